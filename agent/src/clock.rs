//! The agent's clocks: the one place that asks the kernel what time it is.
//!
//! Everything else takes time as an argument. A clock the kernel does not have reads 0. When a tick
//! is due is worked out here too.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Wall time in ns since 1970-01-01 UTC.
#[must_use]
pub fn wall_ns() -> i64 {
    i64::try_from(read(ClockId::CLOCK_REALTIME)).unwrap_or(i64::MAX)
}

/// Time since the machine started, suspended time included, in ns.
#[must_use]
pub fn boottime_ns() -> u64 {
    read(ClockId::CLOCK_BOOTTIME)
}

/// A clock that never steps, in ns, for measuring how long something took.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// From `now_ns` on the wall clock to the next multiple of `every`, `after` it. Never less than a
/// quarter of `every`: one that has just been is not due again because the clock was slewed.
#[must_use]
pub fn until_multiple_ns(now_ns: i64, every: Duration, after: Duration) -> i64 {
    let every_ns = ns(every).max(1);
    let since_ns = now_ns.saturating_sub(ns(after)).rem_euclid(every_ns);
    let until_ns = every_ns - since_ns;
    if until_ns < every_ns / 4 { until_ns + every_ns } else { until_ns }
}

/// The host's own moment within the interval: the agents of a fleet, whose clocks are in step,
/// neither read nor send all in the same millisecond. It is in the interval's first half, the same
/// in every life of the host, and never at the beginning, where everybody else's timers are.
#[must_use]
pub fn moment(every: Duration, host: u128) -> Duration {
    let spread = (every / 2).min(SPREAD_MAX);
    // The id's low bits are random: as many 65,536ths of the spread.
    let share = u32::try_from(host & 0xffff).unwrap_or(0);
    spread / 20 + spread.mul_f64(f64::from(share) * 0.95 / 65_536.0)
}

fn ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn read(clock: ClockId) -> u64 {
    let Ok(time) = clock_gettime(clock) else { return 0 };
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Beyond that nobody gains from more spread, and people wait.
const SPREAD_MAX: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiples_of_the_wall_clock() {
        let s = Duration::from_secs;
        let until =
            |now_ms: i64, after| until_multiple_ns(now_ms * 1_000_000, s(1), after) / 1_000_000;
        assert_eq!([0, 1, 600, 750].map(|ms| until(ms, s(0))), [1000, 999, 400, 250]);
        // A millisecond early is the tick that has just been, not one due at once.
        assert_eq!(until(999, s(0)), 1001);
        assert_eq!(until(-300, s(0)), 300);
        let after = Duration::from_millis(100);
        assert_eq!([100, 101, 0].map(|ms| until(ms, after)), [1000, 999, 1100]);
        assert_eq!(until_multiple_ns(i64::MIN, s(1), after).rem_euclid(1), 0);
    }

    #[test]
    fn hosts_have_moments_of_their_own_in_the_first_half() {
        for (every_ms, most_ms) in [(100, 50), (1000, 500), (300_000, 500)] {
            for host in [0, 1 << 12, 0xffff, u128::MAX] {
                let moment = moment(Duration::from_millis(every_ms), host);
                let most = Duration::from_millis(most_ms);
                assert!((most / 20..=most).contains(&moment), "{moment:?}");
            }
        }
        let of = |host| moment(Duration::from_secs(1), host);
        assert!(of(1 << 14) < of(1 << 15));
    }
}
