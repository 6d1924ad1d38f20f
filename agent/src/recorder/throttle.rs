//! How often the recorder looks.
//!
//! ```text
//! all    every interval                      as long as that costs COST_MAX of a core at most
//! thin   every other one while all is quiet  where it would cost more: what is left out is where nothing moves
//! slow   every 2, 4, … intervals             where that costs too much as well
//! ```
//!
//! Most of a sample's cost on an idle host is the waking up, and on an idle host there is the least to
//! see; so thin it is after one window that cost too much, and slow only after `WINDOWS`. It goes back as
//! soon as samples have become cheap enough for as long, with `COST_LOW` of a core for what comes next.

use std::time::Duration;

/// What it may cost, and what follows.
#[derive(Debug)]
pub struct Throttle {
    every_ns: u64,
    /// A multiple of it.
    interval_ns: u64,
    slowest_ns: u64,
    is_thin: bool,
    /// When something moved last.
    moved_ns: u64,
    since_ns: u64,
    used_ns: u64,
    samples: u64,
    /// Windows in a row that cost too much, and that would have been cheap enough one step up.
    dear: u32,
    cheap: u32,
}

impl Throttle {
    /// A sample every so often, if that is not too dear.
    #[must_use]
    pub fn new(every: Duration) -> Self {
        let every_ns = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self {
            every_ns,
            interval_ns: every_ns,
            slowest_ns: every_ns.max(INTERVAL_NS_MAX),
            is_thin: false,
            moved_ns: 0,
            since_ns: 0,
            used_ns: 0,
            samples: 0,
            dear: 0,
            cheap: 0,
        }
    }

    /// One whose samples have cost too much.
    #[cfg(test)]
    pub(super) fn thin(every: Duration) -> Self {
        Self { is_thin: true, ..Self::new(every) }
    }

    /// After a sample: ns until the next.
    pub fn step_ns(&mut self, now_ns: u64, is_quiet: bool) -> u64 {
        self.samples += 1;
        if !is_quiet {
            self.moved_ns = now_ns;
        }
        let rests = self.is_thin && self.moved_ns.saturating_add(AWAKE_NS) <= now_ns;
        self.interval_ns.saturating_mul(if rests { 2 } else { 1 }).min(self.slowest_ns)
    }

    /// Whether it is time to judge what the samples cost.
    #[must_use]
    pub fn is_due(&self, now_ns: u64) -> bool {
        self.since_ns.saturating_add(WINDOW_NS) <= now_ns
    }

    /// Judges by the thread's own time on a CPU; whether the pace is slower from now on. The first
    /// window is not judged: a start is no cost.
    pub fn judge(&mut self, now_ns: u64, used_ns: u64) -> bool {
        let passed_ns = now_ns.saturating_sub(std::mem::replace(&mut self.since_ns, now_ns));
        let cost_ns = used_ns.saturating_sub(std::mem::replace(&mut self.used_ns, used_ns));
        let samples = std::mem::take(&mut self.samples);
        let is_first = passed_ns == now_ns;
        if is_first || samples == 0 {
            return false;
        }
        let is_dear = passed_ns < cost_ns.saturating_mul(COST_MAX);
        self.dear = if is_dear { self.dear + 1 } else { 0 };
        if is_dear && (!self.is_thin || self.dear == WINDOWS) {
            self.dear = 0;
            return self.slow_down();
        }
        // What it would cost one step up, each sample as dear as these.
        let above_ns = if self.is_slow() { self.interval_ns / 2 } else { self.every_ns };
        let is_cheap = (cost_ns / samples).saturating_mul(COST_LOW) <= above_ns;
        self.cheap = if is_cheap && self.is_thin { self.cheap + 1 } else { 0 };
        if self.cheap == WINDOWS {
            self.cheap = 0;
            if self.is_slow() {
                self.interval_ns = above_ns;
            } else {
                self.is_thin = false;
            }
        }
        false
    }

    fn is_slow(&self) -> bool {
        self.every_ns < self.interval_ns
    }

    /// Whether it could.
    fn slow_down(&mut self) -> bool {
        if !self.is_thin {
            self.is_thin = true;
        } else if self.interval_ns.saturating_mul(2) <= self.slowest_ns {
            self.interval_ns *= 2;
        } else {
            return false;
        }
        true
    }

    /// As a person reads it.
    #[must_use]
    pub fn words(&self) -> String {
        let every = Duration::from_nanos(self.interval_ns);
        if self.interval_ns == self.every_ns {
            format!(
                "a sample every {every:?} while something moves, and half as many while nothing does"
            )
        } else {
            format!("a sample every {every:?}")
        }
    }
}

/// One part in so many of a core: 1 %.
const COST_MAX: u64 = 100;
/// 0.8 %.
const COST_LOW: u64 = 125;
const WINDOW_NS: u64 = 2_000_000_000;
/// Ten seconds: a busy moment of the machine is no cost.
const WINDOWS: u32 = 5;
/// After something moved, it is not quiet for so long.
const AWAKE_NS: u64 = 50_000_000;
const INTERVAL_NS_MAX: u64 = 160_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// So many windows of samples, each at a cost; samples of the last one.
    fn run(
        throttle: &mut Throttle,
        from: &mut u64,
        windows: u64,
        (cost_ns, quiet): (u64, bool),
    ) -> u64 {
        let (mut used_ns, mut samples) = (throttle.used_ns, 0);
        for _ in 0..windows {
            samples = 0;
            loop {
                if throttle.is_due(*from) {
                    throttle.judge(*from, used_ns);
                    break;
                }
                samples += 1;
                used_ns += cost_ns;
                *from += throttle.step_ns(*from, quiet);
            }
        }
        samples
    }

    #[test]
    fn a_dear_sample_costs_the_quiet_ones_first() {
        let mut throttle = Throttle::new(Duration::from_millis(10));
        let mut now = 1_000_000_000_000;
        let mut after = |windows, of| run(&mut throttle, &mut now, windows, of);
        assert_eq!(after(9, (99_000, true)), 200, "99 µs a hundred times a second is below 1 %");
        // 150 µs are not: half of them go where nothing moves, and no more ...
        assert_eq!(after(2, (150_000, true)), 100);
        assert_eq!(after(20, (150_000, true)), 100);
        // ... and as soon as something moves all are there. That costs too much after ten seconds.
        assert_eq!(after(5, (150_000, false)), 200);
        assert_eq!(after(1, (150_000, false)), 100);
        // 90 µs would do, and are too near; with 79 it is as before, again after ten seconds.
        assert_eq!(after(20, (90_000, false)), 100);
        assert_eq!(after(5, (79_000, false)), 100);
        assert_eq!(after(6, (79_000, false)), 200);
        assert_eq!(after(1, (79_000, true)), 200);
        // A /proc/stat of 30 ms, as of a machine with thousands of cores: 3 s would do, and are no recorder.
        assert_eq!(after(99, (30_000_000, false)), 13);
    }

    #[test]
    fn it_says_once_that_it_slows_down() {
        let mut throttle = Throttle::new(Duration::from_millis(10));
        let mut words = Vec::new();
        for window in 1..100_u64 {
            throttle.step_ns(0, false);
            if throttle.judge(window * WINDOW_NS, window * WINDOW_NS / 2) {
                words.push((window, throttle.words()));
            }
        }
        let found: Vec<_> = words.iter().map(|(window, words)| (*window, &**words)).collect();
        assert_eq!(
            found,
            [
                (
                    2,
                    "a sample every 10ms while something moves, and half as many while nothing does"
                ),
                (7, "a sample every 20ms"),
                (12, "a sample every 40ms"),
                (17, "a sample every 80ms"),
                (22, "a sample every 160ms"),
            ]
        );
    }

    #[test]
    fn a_burst_out_of_quiet_has_at_least_18_of_its_20_samples() {
        let now = 1_000_000_000_000;
        for begins_ns in (0..40).map(|ms| now + ms * 1_000_000) {
            let mut throttle = Throttle::thin(Duration::from_millis(10));
            let (mut at, mut seen) = (now, 0);
            while at < begins_ns + 200_000_000 {
                let in_burst = begins_ns <= at;
                seen += u32::from(in_burst);
                at += throttle.step_ns(at, !in_burst);
            }
            assert!((18..=20).contains(&seen), "{seen}");
        }
    }
}
