//! The agent's clocks: the one place that asks the kernel what time it is.
//!
//! Everything else takes time as an argument. A clock the kernel does not have reads 0. When a tick
//! is due, and when the network loop looks for one, is worked out here too.

use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

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

/// From `now_ns` on the wall clock to the next multiple of `every`. Never less than a quarter of
/// `every`: one that has just been is not due again because the clock was slewed.
#[must_use]
pub fn until_multiple_ns(now_ns: i64, every: Duration) -> i64 {
    let every_ns = ns(every).max(1);
    let until_ns = every_ns - now_ns.rem_euclid(every_ns);
    if until_ns < every_ns / 4 { until_ns + every_ns } else { until_ns }
}

/// When the network loop looks into the ring.
///
/// The sampler ticks at the multiples of the interval and wakes nobody. The network loop looks a
/// little later, each host at its own moment of the interval's first half, so that the agents of
/// a fleet, whose clocks are in step, do not all send in the same millisecond. A tick that is
/// not there yet is looked for again soon.
#[derive(Debug)]
pub struct Look {
    every: Duration,
    after: Duration,
    at: Instant,
    claimed: u64,
}

impl Look {
    /// Looks at once; `host` decides about the moment.
    #[must_use]
    pub fn new(now: Instant, every: Duration, host: u128) -> Self {
        let spread = (every / 2).min(SPREAD_MAX);
        // The id's low bits are random: as many 65,536ths of the spread.
        let share = u32::try_from(host & 0xffff).unwrap_or(0);
        let after = spread / 20 + spread.mul_f64(f64::from(share) * 0.95 / 65_536.0);
        Self { every, after, at: now, claimed: 0 }
    }

    /// When to look next.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }

    /// The ring was looked into; `claimed` slots were ever taken.
    pub fn looked(&mut self, now: Instant, wall_ns: i64, claimed: u64) {
        if now < self.at {
            return;
        }
        let found = self.claimed != claimed;
        self.claimed = claimed;
        self.at = now
            + if found {
                // Behind the next tick, not this host's next moment: who found a tick early by
                // looking again would meet that moment before there is another tick, and again so
                // every second.
                let every_ns = ns(self.every).max(1);
                let until_ns = every_ns - wall_ns.rem_euclid(every_ns);
                self.after + Duration::from_nanos(u64::try_from(until_ns).unwrap_or(0))
            } else {
                (self.every / 16).min(AGAIN_MAX)
            };
    }
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
const AGAIN_MAX: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiples_of_the_wall_clock() {
        let s = Duration::from_secs;
        let until = |now_ms: i64| until_multiple_ns(now_ms * 1_000_000, s(1)) / 1_000_000;
        assert_eq!([0, 1, 600, 750].map(until), [1000, 999, 400, 250]);
        // A millisecond early is the tick that has just been, not one due at once.
        assert_eq!(until(999), 1001);
        assert_eq!(until(-300), 300);
        assert!(0 < until_multiple_ns(i64::MIN, s(1)));
    }

    /// An agent that had once found its tick late looked sixteen times a second ever after: the look
    /// that found the tick was early, and this host's own moment came before the next one.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
    fn a_look_that_was_late_once_is_in_step_again() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut look = Look::new(start, ms(1000), 0xb000);
        let mut looks = 0;
        while look.at() < start + ms(20_000) {
            let at = look.at();
            let at_ms = i64::try_from((at - start).as_millis()).unwrap();
            // A tick at each second but the first.
            look.looked(at, at_ms * 1_000_000, u64::try_from(at_ms / 1000).unwrap());
            looks += 1;
        }
        assert!(looks < 40, "{looks} looks in 20 s");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
    fn a_look_that_finds_nothing_is_repeated_soon() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut look = Look::new(start, ms(1000), 0);
        assert_eq!(look.at(), start);
        look.looked(start, 10_000_000_000, 0);
        assert_eq!(look.at(), start + ms(62) + Duration::from_micros(500));
        // An acknowledgement woke the loop in between; that changes nothing.
        look.looked(start + ms(30), 10_030_000_000, 3);
        let again = look.at();
        look.looked(again, 10_062_500_000, 5);
        // 25 ms, the spread's first twentieth, after the next second.
        assert_eq!(look.at(), again + ms(962) + Duration::from_micros(500));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
    fn hosts_look_at_moments_of_their_own_in_the_first_half() {
        let start = Instant::now();
        for (every_ms, most_ms) in [(100, 50), (1000, 500), (300_000, 500)] {
            for host in [0, 1 << 12, 0xffff, u128::MAX] {
                let look = Look::new(start, Duration::from_millis(every_ms), host);
                let most = Duration::from_millis(most_ms);
                assert!((most / 20..=most).contains(&look.after), "{look:?}");
            }
        }
        let after = |host| Look::new(start, Duration::from_secs(1), host).after;
        assert!(after(1 << 14) < after(1 << 15));
    }
}
