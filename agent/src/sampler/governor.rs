//! What a collector may cost: one that is dearer is read less often, until it is cheap again.
//!
//! ```text
//!   dearer than its budget DEAR times in a row     ─▶ half as often   (to FACTOR_MAX, or 5 min)
//!   cheaper than half of it CHEAP times in a row   ─▶ twice as often  (to its own interval)
//! ```
//!
//! The sampler's thread gives a reading [`READ_NS`]; who reads on a thread of its own may take
//! `1 / SHARE` of a core. A walk, which is made seldom, is not counted: nothing would make it cheaper.

/// One collector's.
#[derive(Clone, Debug)]
pub(super) struct Governor {
    budget_ns: u64,
    interval_ns: u64,
    /// The interval is doubled so many times.
    doubled: u32,
    dear: u32,
    cheap: u32,
    stretched: u64,
}

/// Whose time a reading takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Thread {
    /// The sampler's.
    Sampler,
    /// One of its own.
    Own,
}

impl Governor {
    pub(super) fn new(interval_ns: u64, thread: Thread) -> Self {
        let budget_ns = match thread {
            Thread::Sampler => READ_NS,
            Thread::Own => (interval_ns / SHARE).max(READ_NS),
        };
        Self { budget_ns, interval_ns, doubled: 0, dear: 0, cheap: 0, stretched: 0 }
    }

    /// A reading took so long.
    pub(super) fn spent(&mut self, cost_ns: u64) {
        if self.budget_ns < cost_ns {
            (self.dear, self.cheap) = (self.dear + 1, 0);
        } else if cost_ns < self.budget_ns / 2 {
            (self.dear, self.cheap) = (0, self.cheap + 1);
        } else {
            (self.dear, self.cheap) = (0, 0);
        }
        let most_ns = self.interval_ns.saturating_mul(FACTOR_MAX).min(INTERVAL_NS_MAX);
        if DEAR <= self.dear {
            self.dear = 0;
            if self.wait_ns().saturating_mul(2) <= most_ns {
                self.doubled += 1;
                self.stretched += 1;
            }
        }
        if CHEAP <= self.cheap {
            self.cheap = 0;
            self.doubled = self.doubled.saturating_sub(1);
        }
    }

    /// How long until the next reading.
    pub(super) fn wait_ns(&self) -> u64 {
        self.interval_ns.saturating_mul(self.factor())
    }

    /// By how much that is longer than it should be.
    pub(super) fn factor(&self) -> u64 {
        1 << self.doubled
    }

    /// The factor, and how often it was doubled; nothing if it never was.
    pub(super) fn told(&self) -> Option<(u64, u64)> {
        (0 < self.stretched).then_some((self.factor(), self.stretched))
    }
}

const READ_NS: u64 = 1_000_000;
/// 0.5 % of a core.
const SHARE: u64 = 200;
/// A disk that wakes up, or a busy moment, is no reason.
const DEAR: u32 = 2;
const CHEAP: u32 = 3;
const FACTOR_MAX: u64 = 16;
/// PromQL looks back that far.
const INTERVAL_NS_MAX: u64 = 300_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn dear_readings_are_made_less_often_and_cheap_ones_as_often_as_before() {
        let mut governor = Governor::new(15 * SECOND, Thread::Sampler);
        for _ in 0..10 {
            // One in two is no habit.
            governor.spent(READ_NS + 1);
            governor.spent(READ_NS);
        }
        assert_eq!((governor.factor(), governor.told()), (1, None));
        let factors: Vec<u64> = (0..12)
            .map(|_| {
                governor.spent(3 * READ_NS);
                governor.factor()
            })
            .collect();
        assert_eq!(factors, [1, 2, 2, 4, 4, 8, 8, 16, 16, 16, 16, 16]);
        assert_eq!((governor.wait_ns(), governor.told()), (240 * SECOND, Some((16, 4))));
        let factors: Vec<u64> = (0..13)
            .map(|_| {
                governor.spent(READ_NS / 3);
                governor.factor()
            })
            .collect();
        assert_eq!(factors, [16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1, 1]);
        assert_eq!(governor.told(), Some((1, 4)), "that it was is still told");
    }

    #[test]
    fn its_own_thread_may_take_its_share_and_no_interval_is_beyond_promql() {
        let mut slow = Governor::new(15 * SECOND, Thread::Own);
        let (mut minute, mut hour) =
            (Governor::new(60 * SECOND, Thread::Own), Governor::new(3600 * SECOND, Thread::Own));
        for _ in 0..20 {
            slow.spent(75_000_000);
            minute.spent(SECOND);
            hour.spent(100 * SECOND);
        }
        assert_eq!((slow.factor(), minute.wait_ns(), hour.factor()), (1, 240 * SECOND, 1));
        slow.spent(75_000_001);
        slow.spent(75_000_001);
        assert_eq!(slow.factor(), 2);
    }
}
