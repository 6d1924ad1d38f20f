//! How often the recorder looks: as often as it is told to where that costs no more than `COST_MAX` of
//! a core, and where it would cost more, by a token bucket of CPU time.
//!
//! ```text
//! nothing moves                 every other one: what is left out is where there is nothing to see
//! something moves, credit       all of them
//! something moves, no credit    as many as the budget pays for
//! ```
//!
//! On an idle host most of a sample's cost is the waking up, so that the same sample costs twice as much
//! there as on a busy one; what a pause saves is there for the burst that ends it.

use std::time::Duration;

/// What it may cost, and what follows.
#[derive(Debug)]
pub struct Throttle {
    every_ns: u64,
    slowest_ns: u64,
    /// CPU time that may be used on top of the budget.
    credit_ns: i64,
    /// What a sample has cost, the last few seconds.
    sample_ns: u64,
    /// When something moved last.
    moved_ns: u64,
    since_ns: u64,
    used_ns: u64,
    samples: u64,
    /// The longest interval that was told of.
    told_ns: u64,
}

impl Throttle {
    /// A sample every so often, if that is not too dear.
    #[must_use]
    pub fn new(every: Duration) -> Self {
        let every_ns = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self {
            every_ns,
            slowest_ns: every_ns.max(INTERVAL_NS_MAX),
            credit_ns: CREDIT_NS_MAX,
            sample_ns: 0,
            moved_ns: 0,
            since_ns: 0,
            used_ns: 0,
            samples: 0,
            told_ns: every_ns,
        }
    }

    /// One whose samples have cost this much.
    #[cfg(test)]
    pub(super) fn of(every: Duration, sample_ns: u64) -> Self {
        Self { sample_ns, ..Self::new(every) }
    }

    /// After a sample: ns until the next.
    pub fn step_ns(&mut self, now_ns: u64, is_quiet: bool) -> u64 {
        self.samples += 1;
        if !is_quiet {
            self.moved_ns = now_ns;
        }
        let even_ns = self.even_ns();
        if even_ns <= self.every_ns {
            return self.every_ns;
        }
        let rests = self.moved_ns.saturating_add(AWAKE_NS) <= now_ns;
        if rests {
            even_ns.max(self.every_ns.saturating_mul(2)).min(self.slowest_ns)
        } else if 0 < self.credit_ns {
            self.every_ns
        } else {
            even_ns
        }
    }

    /// The interval at which a sample costs just what it may; never below the one that is wanted.
    fn even_ns(&self) -> u64 {
        self.sample_ns.saturating_mul(COST_MAX).clamp(self.every_ns, self.slowest_ns)
    }

    /// Whether it is time to judge what the samples cost.
    #[must_use]
    pub fn is_due(&self, now_ns: u64) -> bool {
        self.since_ns.saturating_add(WINDOW_NS) <= now_ns
    }

    /// Judges by the thread's own time on a CPU; whether samples are so much dearer than ever before that
    /// somebody should know. The first window is not judged: a start is no cost.
    pub fn judge(&mut self, now_ns: u64, used_ns: u64) -> bool {
        let passed_ns = now_ns.saturating_sub(std::mem::replace(&mut self.since_ns, now_ns));
        let cost_ns = used_ns.saturating_sub(std::mem::replace(&mut self.used_ns, used_ns));
        let samples = std::mem::take(&mut self.samples);
        let is_first = passed_ns == now_ns;
        if is_first || samples == 0 {
            return false;
        }
        let earned_ns = (passed_ns / COST_MAX).cast_signed();
        let credit_ns = self.credit_ns.saturating_add(earned_ns);
        let credit_ns = credit_ns.saturating_sub(cost_ns.min(DEBT_NS_MAX).cast_signed());
        self.credit_ns = credit_ns.clamp(-CREDIT_NS_MAX, CREDIT_NS_MAX);
        let sample_ns = cost_ns / samples;
        self.sample_ns = match self.sample_ns {
            0 => sample_ns,
            mean_ns => mean_ns - mean_ns / MEAN_OF + sample_ns / MEAN_OF,
        };
        let is_news = self.told_ns.saturating_mul(2) <= self.even_ns()
            || (self.told_ns == self.every_ns && self.told_ns < self.even_ns());
        if is_news {
            self.told_ns = self.even_ns();
        }
        is_news
    }

    /// As a person reads it.
    #[must_use]
    pub fn words(&self) -> String {
        let ns = Duration::from_nanos;
        let ms = |interval_ns: u64| format!("{} ms", interval_ns.div_ceil(1_000_000));
        format!(
            "a sample costs {} µs here, so that there is one every {} for a moment when something \
             moves, every {} when it goes on, and less while nothing does",
            ns(self.sample_ns).as_micros(),
            ms(self.every_ns),
            ms(self.even_ns())
        )
    }
}

/// One part in so many of a core: 0.95 %, which with what the sampler's thread does for it is 1 %.
const COST_MAX: u64 = 105;
/// Two seconds of samples that cost half as much again as they may.
const CREDIT_NS_MAX: i64 = 10_000_000;
const DEBT_NS_MAX: u64 = 1_000_000_000;
const WINDOW_NS: u64 = 500_000_000;
/// Windows that a mean is of.
const MEAN_OF: u64 = 8;
/// After something moved, it is not quiet for so long.
const AWAKE_NS: u64 = 50_000_000;
const INTERVAL_NS_MAX: u64 = 160_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(10);

    /// A recorder, and when it took samples.
    struct Run {
        throttle: Throttle,
        now_ns: u64,
        used_ns: u64,
        samples: Vec<u64>,
    }

    impl Run {
        fn new() -> Self {
            let throttle = Throttle::new(EVERY);
            Self { throttle, now_ns: 1_000_000_000_000, used_ns: 0, samples: Vec::new() }
        }

        /// So many seconds of samples, each at a cost; samples a second in the last one.
        fn seconds(&mut self, seconds: u64, cost_us: u64, quiet: bool) -> usize {
            let until_ns = self.now_ns + seconds * 1_000_000_000;
            while self.now_ns < until_ns {
                self.samples.push(self.now_ns);
                self.used_ns += cost_us * 1000;
                let step_ns = self.throttle.step_ns(self.now_ns, quiet);
                if self.throttle.is_due(self.now_ns) {
                    self.throttle.judge(self.now_ns, self.used_ns);
                }
                self.now_ns += step_ns;
            }
            self.within(until_ns - 1_000_000_000, 1_000_000_000)
        }

        fn within(&self, from_ns: u64, lasting_ns: u64) -> usize {
            let inside = |at: &&u64| (from_ns..from_ns + lasting_ns).contains(*at);
            self.samples.iter().filter(inside).count()
        }
    }

    #[test]
    fn what_costs_no_more_than_it_may_is_taken_always() {
        let mut run = Run::new();
        assert_eq!(run.seconds(30, 95, true), 100);
        assert_eq!(run.seconds(30, 95, false), 100);
    }

    #[test]
    fn a_dear_sample_costs_the_quiet_ones_first() {
        let mut run = Run::new();
        assert_eq!(run.seconds(30, 140, true), 50, "every other one");
        // All of them as soon as something moves, for what was saved; then what 0.95 % pays for.
        let begun_ns = run.now_ns;
        assert!((66..=70).contains(&run.seconds(30, 140, false)), "{:?}", run.throttle);
        assert!((99..=100).contains(&run.within(begun_ns, 1_000_000_000)));
        // On a busy host each is cheap, and it is at all of them again within seconds.
        assert_eq!(run.seconds(10, 70, false), 100);
        assert_eq!(run.seconds(1, 70, true), 100);
        // A /proc/stat of 30 ms, as of a machine with thousands of cores: 3 s would do, and are no recorder.
        assert_eq!(run.seconds(30, 30_000, false), 6);
    }

    #[test]
    fn it_never_costs_more_than_it_may_and_uses_what_it_may_when_something_moves() {
        for cost_us in [20, 90, 100, 110, 126, 140, 200, 500, 1500] {
            for period_s in [1, 3, 10, 60] {
                let mut run = Run::new();
                run.seconds(10, cost_us, true);
                let (used_ns, from_ns) = (run.used_ns, run.now_ns);
                for turn in 0..120 / period_s {
                    run.seconds(period_s, cost_us, turn % 2 == 1);
                }
                let (used_ns, passed_ns) = (run.used_ns - used_ns, run.now_ns - from_ns);
                let most_ns = passed_ns / COST_MAX + CREDIT_NS_MAX.cast_unsigned() * 3 / 2;
                assert!(used_ns <= most_ns, "{cost_us} µs, {period_s} s: {used_ns} of {most_ns}");
                if 100 <= cost_us {
                    let (used_ns, from_ns) = (run.used_ns, run.now_ns);
                    run.seconds(60, cost_us, false);
                    let least_ns = (run.now_ns - from_ns) / COST_MAX * 9 / 10;
                    assert!(least_ns <= run.used_ns - used_ns, "{cost_us} µs: too careful");
                }
            }
        }
    }

    #[test]
    fn a_burst_has_most_of_its_20_samples_whatever_was_before() {
        let burst_ns = 200_000_000;
        for offset_ns in (0..40).map(|ms| ms * 1_000_000) {
            // Out of quiet: the first may be 20 ms late.
            let mut throttle = Throttle::of(EVERY, 150_000);
            let (begins_ns, mut at, mut seen) =
                (1_000_000_000_000 + offset_ns, 1_000_000_000_000, 0);
            while at < begins_ns + burst_ns {
                let in_burst = begins_ns <= at;
                seen += u32::from(in_burst);
                at += throttle.step_ns(at, !in_burst);
            }
            assert!((18..=20).contains(&seen), "{seen}");
            // On a host that always moves and has used up its credit.
            let mut run = Run::new();
            run.seconds(30, 126, false);
            let begins_ns = run.now_ns + offset_ns;
            run.seconds(1, 126, false);
            let seen = run.within(begins_ns, burst_ns);
            assert!((15..=20).contains(&seen), "{seen}");
        }
    }

    #[test]
    fn it_says_so_once_and_again_only_when_it_is_much_worse() {
        let mut throttle = Throttle::new(EVERY);
        let (mut words, mut used_ns) = (Vec::new(), 0);
        for window in 1..400_u64 {
            let cost_ns = if window < 200 { 140_000 } else { 1_000_000 };
            used_ns += cost_ns;
            throttle.step_ns(0, false);
            if throttle.judge(window * WINDOW_NS, used_ns) {
                words.push((window, throttle.words()));
            }
        }
        let windows: Vec<_> = words.iter().map(|(window, _)| *window).collect();
        assert_eq!(windows, [2, 201, 207], "{words:?}");
        assert!(
            words[0].1.starts_with("a sample costs 140 µs here, so that there is one every 10 ms")
        );
        assert!(words[0].1.contains("every 15 ms when it goes on"), "{words:?}");
    }
}
