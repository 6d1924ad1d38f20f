//! A machine's clocks: one that only goes forward, at a speed of its own, and one that people set.

use std::time::{Duration, Instant};

/// Both. The world's time is microseconds since its beginning.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// So many thousandths of the world's speed.
    rate: u64,
    ahead_us: u64,
    /// How wrong its wall clock is.
    pub(crate) skew_ns: i64,
}

impl Clock {
    pub(crate) fn new(start: Instant, rate: u64, ahead_us: u64) -> Self {
        Self { start, rate, ahead_us, skew_ns: 0 }
    }

    /// What it shows.
    pub(crate) fn at(&self, now_us: u64) -> Instant {
        self.start + Duration::from_micros(self.ahead_us + now_us * self.rate / 1_000)
    }

    /// The first moment of the world at which it shows `at`.
    pub(crate) fn world_us(&self, at: Instant) -> u64 {
        let shown = at.saturating_duration_since(self.start + Duration::from_micros(self.ahead_us));
        let shown_us = u64::try_from(shown.as_nanos().div_ceil(1_000)).expect("a bounded run");
        (shown_us * 1_000).div_ceil(self.rate)
    }

    /// Nanoseconds since it was started, and never back.
    pub(crate) fn boottime_ns(&self, now_us: u64) -> u64 {
        1 + now_us * self.rate
    }

    /// Somebody keeps it at the world's speed, but not always at its time.
    pub(crate) fn wall_ns(&self, now_us: u64, base_ns: i64) -> i64 {
        base_ns + self.skew_ns + 1_000 * i64::try_from(now_us).expect("a bounded run")
    }

    pub(crate) fn wall_ms(&self, now_us: u64, base_ns: i64) -> i64 {
        self.wall_ns(now_us, base_ns).div_euclid(1_000_000)
    }
}
