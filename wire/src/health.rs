//! How fresh a host's data is: one rule for the broker's answers and the dashboard's colours.

use crate::message::HostInfo;

/// How fresh a host's data is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Health {
    /// Heard of within three intervals or five seconds.
    Fresh,
    /// Silent for longer, not yet lost.
    Late,
    /// Silent for ten intervals and for a minute.
    Lost,
}

impl Health {
    /// Every state, best first.
    pub const ALL: [Self; 3] = [Self::Fresh, Self::Late, Self::Lost];

    /// Of a host at `now_ms`.
    #[must_use]
    pub fn of(info: &HostInfo, now_ms: i64) -> Self {
        let interval_ms = i64::try_from(info.hello.interval_ms).unwrap_or(i64::MAX);
        let age_ms = now_ms.saturating_sub(info.last_seen_ms);
        if age_ms <= interval_ms.saturating_mul(3).max(FRESH_MS) {
            Self::Fresh
        } else if age_ms <= interval_ms.saturating_mul(10).max(LATE_MS) {
            Self::Late
        } else {
            Self::Lost
        }
    }

    /// As it stands in JSON and labels.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Late => "late",
            Self::Lost => "lost",
        }
    }
}

/// A hiccup of the network is no news, however short the interval.
const FRESH_MS: i64 = 5_000;
const LATE_MS: i64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_follows_the_interval() {
        let mut info = HostInfo { last_seen_ms: 0, ..HostInfo::default() };
        for (interval_ms, age_ms, wanted) in [
            (100, 5_000, Health::Fresh),
            (1_000, 5_000, Health::Fresh),
            (1_000, 5_001, Health::Late),
            (1_000, 60_000, Health::Late),
            (1_000, 60_001, Health::Lost),
            (60_000, 180_000, Health::Fresh),
            (60_000, 600_000, Health::Late),
            (60_000, 600_001, Health::Lost),
            (u64::MAX, i64::MAX, Health::Fresh),
        ] {
            info.hello.interval_ms = interval_ms;
            assert_eq!(Health::of(&info, age_ms), wanted, "{interval_ms} {age_ms}");
        }
    }
}
