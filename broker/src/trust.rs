//! Which certificates are out, and which of them are no longer believed.
//!
//! A certificate is known by whose it is and when it ends. To revoke a host is to refuse whatever
//! ends no later than its last one could; what is given to it afterwards, for a new token, ends
//! later than that and is good. Dashboards are all host 0, and are revoked together.

use std::collections::BTreeMap;
use strobe_wire::ids::HostId;

/// Of one host's certificates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// The last second of the one that ends last; 0 if none was seen.
    pub expires_s: u64,
    /// Those that end up to this second are refused; 0 if none is.
    pub refused_s: u64,
}

/// Of all hosts.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    standings: BTreeMap<HostId, Standing>,
}

impl Standing {
    /// Whether its last certificate is refused.
    #[must_use]
    pub fn is_revoked(self) -> bool {
        self.refused_s != 0 && self.expires_s <= self.refused_s
    }

    /// Seconds a certificate that is made now has to live to be good, and at least `life_s`.
    #[must_use]
    pub fn life_s(self, life_s: u64, now_s: u64) -> u64 {
        life_s.max(self.refused_s.saturating_add(1).saturating_sub(now_s))
    }
}

impl Trust {
    /// Takes in what was kept on disk.
    pub fn load(&mut self, host: HostId, standing: Standing) {
        self.standings.insert(host, standing);
    }

    /// Of this host.
    #[must_use]
    pub fn of(&self, host: HostId) -> Standing {
        self.standings.get(&host).copied().unwrap_or_default()
    }

    /// Of every host.
    pub fn standings(&self) -> impl Iterator<Item = (HostId, Standing)> {
        self.standings.iter().map(|(id, standing)| (*id, *standing))
    }

    /// One that ends then was seen or given; whether that is news.
    pub fn note(&mut self, host: HostId, expires_s: u64) -> bool {
        let standing = self.standings.entry(host).or_default();
        let is_news = standing.expires_s < expires_s;
        standing.expires_s = standing.expires_s.max(expires_s);
        is_news
    }

    /// Refuses all that the host has. One that was given lately and not seen yet lives for `life_s`.
    pub fn revoke(&mut self, host: HostId, now_s: u64, life_s: u64) -> Standing {
        let standing = self.standings.entry(host).or_default();
        standing.refused_s = standing.expires_s.max(now_s.saturating_add(life_s));
        *standing
    }

    /// Another broker refuses what ends up to then; the standing, if that is news.
    pub fn refuse(&mut self, host: HostId, refused_s: u64) -> Option<Standing> {
        let standing = self.standings.entry(host).or_default();
        let is_news = standing.refused_s < refused_s;
        standing.refused_s = standing.refused_s.max(refused_s);
        is_news.then_some(*standing)
    }

    /// Whether a certificate of the host that ends then is refused.
    #[must_use]
    pub fn is_refused(&self, host: HostId, expires_s: u64) -> bool {
        let refused_s = self.of(host).refused_s;
        refused_s != 0 && expires_s <= refused_s
    }
}

/// What the holder of a refused certificate is told.
pub const REVOKED: &str = "this certificate was revoked by the operator of the broker: remove \
     identity.pem (a dashboard's is viz.pem) and enrol anew with a token of `strobe token create` \
     (--token)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_after_a_revocation_is_good() {
        let (mut trust, host, now_s, life_s) = (Trust::default(), HostId(7), 1000, 100);
        assert!(trust.note(host, 1050) && !trust.note(host, 1040));
        assert!(!trust.of(host).is_revoked() && !trust.is_refused(host, 1050));
        trust.revoke(host, now_s, life_s);
        for given_s in [1050, 1100] {
            assert!(trust.is_refused(host, given_s), "{given_s}");
        }
        assert!(!trust.is_refused(HostId(8), 1050));
        // Within the same second, and where an older one lived for longer.
        let life = trust.of(host).life_s(life_s, now_s);
        assert_eq!(life, 101);
        assert!(!trust.is_refused(host, now_s + life));
        trust.note(host, 5000);
        trust.revoke(host, now_s, life_s);
        let life = trust.of(host).life_s(life_s, now_s);
        assert!(trust.is_refused(host, 5000) && !trust.is_refused(host, now_s + life));
        trust.note(host, now_s + life);
        assert!(!trust.of(host).is_revoked());
    }
}
