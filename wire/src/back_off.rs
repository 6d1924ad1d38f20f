//! How long to wait before the next attempt: doubling up to a bound, half of it random, so that a
//! fleet that lost its broker in one moment does not come back in one.

use std::time::Duration;

/// The waits between attempts.
#[derive(Clone, Debug)]
pub struct BackOff {
    min: Duration,
    max: Duration,
    failures: u32,
    random: u64,
}

impl BackOff {
    /// From `min` up to `max`; `seed` should differ from host to host.
    #[must_use]
    pub fn new(min: Duration, max: Duration, seed: u64) -> Self {
        // xorshift stays at 0 for ever.
        Self { min, max, failures: 0, random: seed | 1 }
    }

    /// An attempt failed: the wait before the next, half of it random.
    pub fn failed(&mut self) -> Duration {
        let whole = self.min.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        whole / 2 + (whole / 2).mul_f64(self.fraction())
    }

    /// A wait below `most`, so that a fleet that is sent elsewhere does not arrive in one moment.
    pub fn spread(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.fraction())
    }

    /// An attempt succeeded: the next wait is a short one.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Attempts that failed since the last that succeeded.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// 0.0 to 1.0 (xorshift64).
    fn fraction(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        f64::from(u32::try_from(self.random >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_differ_by_seed() {
        let (min, max) = (Duration::from_millis(250), Duration::from_secs(30));
        let waits = |seed| {
            let mut back_off = BackOff::new(min, max, seed);
            (0..12).map(|_| back_off.failed()).collect::<Vec<_>>()
        };
        for (attempt, wait) in waits(7).into_iter().enumerate() {
            let whole = (min * (1 << attempt)).min(max);
            assert!((whole / 2..=whole).contains(&wait), "attempt {attempt}: {wait:?}");
        }
        assert_ne!(waits(7), waits(8), "a fleet does not come back in step");
        let mut back_off = BackOff::new(min, max, 7);
        for _ in 0..9 {
            back_off.failed();
        }
        back_off.succeeded();
        assert!(back_off.failed() <= min);
    }
}
