//! Certificates that this broker signs: for a token, again before they end, and its own.
//!
//! ```text
//!   life - life/3 - jitter        Renew (a new key's request)            end
//! watched ------ RenewDue ------> asked ------ Enrolled ------> reconnects, or is closed
//! ```
//!
//! The broker asks, because its clock is the one that judges: a host whose clock was never set
//! renews all the same. It signs for the subject of the connection's certificate and for no other,
//! once for each time it asked; what a request says beside its key is ignored. The jitter comes
//! from the host id, so that a fleet that enrolled in one hour does not renew in one.
//!
//! **After the end.** For as long as it lived (the link's grace), a certificate still opens a
//! connection, on which its holder may renew and nothing else: a host that was away for a month
//! comes back by itself. After that a new token is wanted. A session does not outlive its
//! certificate: it is closed with the reason, which happens only if the peer answered no request.
//!
//! A life that was made shorter in the settings holds for certificates that are out already: those
//! that end later than a new one would are renewed early.

use crate::registry::Registry;
use crate::trust::Standing;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use strobe_wire::ids::HostId;
use strobe_wire::message::Message;
use strobe_wire::pki::{Authority, Identity, PkiError, Role, Subject};

/// Who has which certificate, and when to look at it. `P` is how its owner names a conversation.
#[derive(Debug)]
pub struct Certificates<P> {
    authority: Arc<Authority>,
    life_s: u64,
    own_until_s: u64,
    /// What its own names: 0, or which broker of its cluster it is.
    name: HostId,
    watched: HashMap<P, Watched>,
    /// One entry for each of `watched`.
    timers: BTreeSet<(u64, P)>,
    counts: CertificateCounts,
}

/// Numbers for `/metrics`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CertificateCounts {
    /// Given for a token.
    pub enrolled: u64,
    /// Tokens refused.
    pub enrolments_refused: u64,
    /// Given for a certificate that neared its end.
    pub renewed: u64,
    /// Sessions closed because their certificate ended.
    pub expired: u64,
    /// Connections closed because their certificate was revoked.
    pub revoked: u64,
    /// The last second of this broker's own.
    pub own_expires_s: u64,
}

/// What is to be done about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Say `RenewDue`.
    Ask,
    /// Close it.
    Close,
}

/// What a client without a certificate asks for.
#[derive(Debug)]
pub struct Enrolment {
    /// The token's.
    pub secret: Vec<u8>,
    /// Which host it is; 0 for a dashboard.
    pub host: HostId,
    /// `agent` or `viz`.
    pub role: String,
    /// Certificate signing request, DER.
    pub csr: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    subject: Subject,
    at_s: u64,
    closes_s: u64,
    asked: bool,
}

impl<P: Copy + Ord + Hash> Certificates<P> {
    /// Nobody has one yet, this broker included.
    #[must_use]
    pub fn new(authority: Arc<Authority>, life_s: u64) -> Self {
        Self {
            authority,
            life_s,
            own_until_s: 0,
            name: HostId(0),
            watched: HashMap::new(),
            timers: BTreeSet::new(),
            counts: CertificateCounts::default(),
        }
    }

    /// This broker's own identity, when it is time for another one.
    pub fn own(&mut self, now_s: u64) -> Option<Result<Identity, PkiError>> {
        if now_s < self.own_until_s {
            return None;
        }
        self.own_until_s = now_s.saturating_add((self.life_s * 2 / 3).max(1));
        let subject = Subject { role: Role::Broker, host: self.name };
        let issued = self.authority.issue(&subject, now_s, self.life_s);
        if issued.is_ok() {
            self.counts.own_expires_s = now_s.saturating_add(self.life_s);
        }
        Some(issued)
    }

    /// The broker's own identity is its driver's affair: none is made here. For simulations, in which
    /// nothing may come from the system's randomness.
    pub fn keep_own(&mut self) {
        self.own_until_s = u64::MAX;
    }

    /// From now on it signs for this authority, and its own certificate names this broker.
    pub fn seat(&mut self, authority: Arc<Authority>, name: HostId) {
        (self.authority, self.name) = (authority, name);
        if self.own_until_s != u64::MAX {
            self.own_until_s = 0;
        }
    }

    /// How long one that is given now is good.
    #[must_use]
    pub fn life_s(&self) -> u64 {
        self.life_s
    }

    /// A connection was closed because its certificate was revoked.
    pub fn count_revoked(&mut self) {
        self.counts.revoked += 1;
    }

    /// The certificate for a good token. The token is used up on disk before anything is signed.
    pub fn enrol(&mut self, registry: &Registry, ask: &Enrolment, now_ms: i64) -> Message {
        match self.enrolled(registry, ask, now_ms) {
            Ok(certificate) => {
                self.counts.enrolled += 1;
                self.signed(certificate)
            }
            Err(why) => {
                self.counts.enrolments_refused += 1;
                Message::Refused { why }
            }
        }
    }

    /// The certificate for a token that others found good, and used up.
    pub fn grant(&mut self, registry: &Registry, ask: &Enrolment, now_ms: i64) -> Message {
        match self.granted(registry, ask, now_ms) {
            Ok(certificate) => {
                self.counts.enrolled += 1;
                self.signed(certificate)
            }
            Err(why) => {
                self.count_refused();
                Message::Refused { why }
            }
        }
    }

    /// A token was not good.
    pub fn count_refused(&mut self) {
        self.counts.enrolments_refused += 1;
    }

    /// A conversation began whose peer's certificate ends at `expires_s`.
    pub fn watch(&mut self, place: P, subject: Subject, expires_s: u64, now_s: u64) {
        self.forget(place);
        let jitter = |window: u64| {
            u64::try_from(subject.host.0 % u128::from((window / 12).max(1))).unwrap_or(0)
        };
        let (at_s, closes_s) = if expires_s < now_s {
            (now_s, now_s.saturating_add(ANSWER_S))
        } else if now_s.saturating_add(self.life_s) < expires_s {
            (now_s.saturating_add(jitter(self.life_s)), expires_s + 1)
        } else {
            let before = self.life_s / 3 + jitter(self.life_s);
            (expires_s.saturating_sub(before), expires_s + 1)
        };
        self.watched.insert(place, Watched { subject, at_s, closes_s, asked: false });
        self.timers.insert((at_s, place));
    }

    /// The conversation is over.
    pub fn forget(&mut self, place: P) {
        if let Some(watched) = self.watched.remove(&place) {
            self.timers.remove(&(watched.at_s, place));
        }
    }

    /// Whom to see to now; call it until there is nobody.
    pub fn due(&mut self, now_s: u64) -> Option<(P, Due)> {
        let (_, place) = *self.timers.first().filter(|(at_s, _)| *at_s <= now_s)?;
        self.timers.pop_first();
        let watched = self.watched.get_mut(&place)?;
        if watched.closes_s <= now_s {
            self.watched.remove(&place);
            self.counts.expired += 1;
            return Some((place, Due::Close));
        }
        watched.asked = true;
        watched.at_s = now_s.saturating_add((self.life_s / 30).max(1)).min(watched.closes_s);
        self.timers.insert((watched.at_s, place));
        Some((place, Due::Ask))
    }

    /// Signs what was asked for, so that `standing` lets it be good.
    ///
    /// # Errors
    /// Nobody asked, or the request is malformed.
    pub fn renew(
        &mut self,
        place: P,
        csr: &[u8],
        standing: Standing,
        now_s: u64,
    ) -> Result<Message, String> {
        let watched = self.watched.get_mut(&place).filter(|watched| watched.asked);
        let watched = watched.ok_or("a certificate is renewed only when the broker asks for it")?;
        watched.asked = false;
        let subject = watched.subject;
        let certificate = self
            .authority
            .sign(csr, &subject, now_s, standing.life_s(self.life_s, now_s))
            .map_err(|why| why.to_string())?;
        self.counts.renewed += 1;
        log::info!("renewed the certificate of {subject}");
        Ok(self.signed(certificate))
    }

    /// Numbers for `/metrics`.
    #[must_use]
    pub fn counts(&self) -> CertificateCounts {
        self.counts
    }

    fn enrolled(
        &self,
        registry: &Registry,
        ask: &Enrolment,
        now_ms: i64,
    ) -> Result<Vec<u8>, String> {
        role(ask)?;
        registry.redeem_token(&ask.secret, now_ms).map_err(|why| why.to_string())?;
        self.granted(registry, ask, now_ms)
    }

    fn granted(
        &self,
        registry: &Registry,
        ask: &Enrolment,
        now_ms: i64,
    ) -> Result<Vec<u8>, String> {
        let role = role(ask)?;
        let host = if role == Role::Viz { HostId(0) } else { ask.host };
        let (subject, now_s) = (Subject { role, host }, seconds(now_ms));
        let life_s = registry.standing(host).life_s(self.life_s, now_s);
        registry.certificate(host, now_s.saturating_add(life_s));
        self.authority.sign(&ask.csr, &subject, now_s, life_s).map_err(|why| why.to_string())
    }

    fn signed(&self, certificate: Vec<u8>) -> Message {
        Message::Enrolled { certificate, ca: self.authority.certificate_der().to_vec() }
    }
}

fn role(ask: &Enrolment) -> Result<Role, String> {
    match ask.role.as_str() {
        "agent" if ask.host.0 != 0 => Ok(Role::Agent),
        "agent" => Err("an agent enrols with its host id".to_owned()),
        "viz" => Ok(Role::Viz),
        _ => Err("only agents and dashboards enrol".to_owned()),
    }
}

/// Milliseconds since 1970 as certificates count.
pub(crate) fn seconds(ms: i64) -> u64 {
    u64::try_from(ms / 1000).unwrap_or(0)
}

/// A client that is past its end answers within this or is closed.
const ANSWER_S: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use strobe_wire::pki::{expires_s, request};

    const NOW_S: u64 = 1_790_000_000;
    const LIFE_S: u64 = 3_600;
    const AGENT: Subject = Subject { role: Role::Agent, host: HostId(7) };

    fn certificates() -> Certificates<u8> {
        Certificates::new(Arc::new(Authority::create(NOW_S).unwrap()), LIFE_S)
    }

    /// When a certificate that ends at `expires_s` is asked about and closed, looked at each second.
    fn fate(expires_s: u64) -> (Vec<u64>, Option<u64>) {
        let (mut certificates, place) = (certificates(), 1);
        certificates.watch(place, AGENT, expires_s, NOW_S);
        let (mut asked, mut closed) = (Vec::new(), None);
        for now_s in NOW_S..NOW_S + 4 * LIFE_S {
            while let Some((whom, due)) = certificates.due(now_s) {
                assert_eq!(whom, place);
                match due {
                    Due::Ask => asked.push(now_s - NOW_S),
                    Due::Close => assert_eq!(closed.replace(now_s - NOW_S), None),
                }
            }
        }
        assert!(certificates.timers.is_empty() && certificates.watched.is_empty());
        (asked, closed)
    }

    #[test]
    fn a_certificate_is_asked_about_from_two_thirds_on_until_it_ends() {
        let (asked, closed) = fate(NOW_S + LIFE_S);
        assert_eq!(asked.first(), Some(&(LIFE_S * 2 / 3 - 7)));
        assert!((9..=11).contains(&asked.len()), "every thirtieth of its life: {asked:?}");
        assert_eq!(closed, Some(LIFE_S + 1), "it is good in its last second");
        // Older than this broker makes them: soon, not at the end of a year.
        let (asked, closed) = fate(NOW_S + 3 * LIFE_S);
        assert_eq!((asked.first(), closed), (Some(&7), Some(3 * LIFE_S + 1)));
        // Past its end: at once, and not for long.
        let (asked, closed) = fate(NOW_S - 1);
        assert_eq!((asked.first(), closed), (Some(&0), Some(ANSWER_S)));
    }

    #[test]
    fn a_renewal_is_for_the_same_subject_and_once_a_question() {
        let (mut certificates, place) = (certificates(), 1);
        let ((_, csr), good) = (request().unwrap(), Standing::default());
        assert!(certificates.renew(place, &csr, good, NOW_S).is_err(), "nobody is there");
        certificates.watch(place, AGENT, NOW_S + LIFE_S, NOW_S);
        assert!(certificates.renew(place, &csr, good, NOW_S).is_err(), "nobody asked");
        let later_s = NOW_S + LIFE_S - 1;
        assert_eq!(certificates.due(later_s), Some((place, Due::Ask)));
        let Ok(Message::Enrolled { certificate, .. }) =
            certificates.renew(place, &csr, good, later_s)
        else {
            panic!("it was asked for")
        };
        assert_eq!(Subject::of_certificate(&certificate).unwrap(), AGENT);
        assert_eq!(expires_s(&certificate).unwrap(), later_s + LIFE_S);
        assert!(certificates.renew(place, &csr, good, later_s).is_err(), "once");
        assert_eq!(certificates.counts().renewed, 1);
    }

    #[test]
    fn the_brokers_own_changes_at_two_thirds() {
        let mut certificates = certificates();
        assert!(certificates.own(NOW_S).is_some());
        assert!(certificates.own(NOW_S + LIFE_S * 2 / 3 - 1).is_none());
        let next = certificates.own(NOW_S + LIFE_S * 2 / 3).unwrap().unwrap();
        assert_eq!(next.subject().unwrap().role, Role::Broker);
    }
}
