//! What must not be an alarm, and what must.

use super::*;

/// Noise from a seed, about normal.
struct Noise(u64);

impl Noise {
    fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn even(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        f64::from(u32::try_from(self.0 >> 32).unwrap()) / f64::from(u32::MAX)
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.even()).sum::<f64>() - 6.0
    }
}

/// The scores of `samples` values, one a second, from 2026-11-21 00:00 UTC.
fn scores(samples: u32, mut value: impl FnMut(u32) -> f64) -> Vec<f64> {
    let mut scorer = Scorer::default();
    (0..samples).map(|n| scorer.score(T0_S + f64::from(n), value(n))).collect()
}

fn alarms(scores: &[f64]) -> usize {
    scores.iter().filter(|score| ALARM <= **score).count()
}

fn highest(scores: &[f64]) -> f64 {
    scores.iter().copied().fold(0.0, f64::max)
}

#[test]
fn noise_alarms_as_seldom_as_the_score_says() {
    for seed in 1..=5 {
        let mut noise = Noise::of(seed);
        let normal = scores(50_000, |_| 50.0 + noise.normal());
        // One in 10,000 would be 5; six kinds of evidence and an estimated tail are given slack.
        assert!(alarms(&normal) <= 25, "{} alarms", alarms(&normal));
        let bursts = scores(50_000, |_| 1.0 / (noise.even() + 1e-4));
        assert!(alarms(&bursts) <= 50, "{} alarms of bursts", alarms(&bursts));
    }
}

#[test]
fn a_start_is_quiet() {
    let mut loud = 0;
    for seed in 1..=100 {
        let mut noise = Noise::of(seed);
        loud += alarms(&scores(300, |_| 50.0 + noise.normal()));
    }
    assert!(loud <= 10, "{loud} alarms in the first 300 samples of 100 columns");
}

#[test]
fn faults_are_found() {
    let check = |what: &str, fault: &dyn Fn(u32, f64) -> f64| {
        let mut noise = Noise(42);
        let found = scores(10_000, |n| {
            let usual = 50.0 + noise.normal();
            if n < 9_000 { usual } else { fault(n - 9_000, usual) }
        });
        let (before, after) = found.split_at(9_000);
        assert!(highest(&before[1_000..]) < highest(after), "{what} is not the highest");
        assert!(ODD <= highest(after), "{what}: {}", highest(after));
    };
    check("a spike", &|n, usual| if n == 500 { usual + 30.0 } else { usual });
    check("a level shift", &|_, usual| usual + 8.0);
    check("a small shift", &|_, usual| usual + 1.5);
    check("a drift", &|n, usual| usual + f64::from(n) * 0.05);
    check("more noise", &|_, usual| 50.0 + (usual - 50.0) * 8.0);
    check("a stuck value", &|_, _| 50.1);
}

#[test]
fn a_flat_column_takes_wiggles_for_what_they_are() {
    // A thousandth of the size is nothing, on however flat a column.
    let wiggle = scores(5_000, |n| if n.is_multiple_of(700) { 100.05 } else { 100.0 });
    assert_eq!(alarms(&wiggle), 0);
    // A real jump is one alarm, not one a sample for as long as it lasts.
    let jump = scores(5_000, |n| if n < 4_000 { 0.0 } else { 1.0 });
    assert!(ALARM <= highest(&jump[4_000..]));
    assert!(alarms(&jump) <= 20, "{} alarms", alarms(&jump));
}

#[test]
fn gaps_missing_values_and_clock_steps_are_no_alarms() {
    for step_s in [3600.0, -3600.0, 86_400.0, -86_400.0] {
        let (mut scorer, mut noise, mut loud) = (Scorer::default(), Noise(7), 0);
        for n in 0..20_000_u32 {
            let stepped = if n < 10_000 { 0.0 } else { step_s };
            let value = if n.is_multiple_of(50) { f64::NAN } else { 50.0 + noise.normal() };
            let score = scorer.score(T0_S + f64::from(n) + stepped, value);
            loud += usize::from((10_000..10_100).contains(&n) && ALARM <= score);
        }
        assert_eq!(loud, 0, "after a step of {step_s} s");
    }
}

#[test]
fn a_busy_night_is_found_where_days_are_busy() {
    // Ten days at 5 min; nights are quiet but for the last, which goes on as its day was: nothing
    // jumps, and no value is one that days do not have.
    let (mut scorer, mut noise) = (Scorer::default(), Noise::of(3));
    let (mut usual, mut odd) = (0.0_f64, 0.0_f64);
    for n in 0..10 * 288_u32 {
        let busy = (96..240).contains(&(n % 288)) || 9 * 288 + 240 <= n;
        let value = if busy { 100.0 } else { 20.0 } + 5.0 * noise.normal();
        let score = scorer.score(T0_S + f64::from(n) * 300.0, value);
        match n {
            2832.. => odd = odd.max(score),
            1440.. => usual = usual.max(score),
            _ => {}
        }
    }
    assert!(usual < odd && ODD <= odd, "{usual} on usual days, {odd} in the odd night");
}

#[test]
fn what_moved_during_a_gap_is_no_jump() {
    let (mut scorer, mut noise) = (Scorer::default(), Noise::of(9));
    // Up for 50 samples, down for 50.
    for n in 0..20_000_u32 {
        let wave = 2.0 * f64::from((n % 100).min(100 - n % 100));
        let score = scorer.score(T0_S + f64::from(n), wave + noise.normal());
        assert!(n < 5_000 || score < ALARM, "{score} at {n}");
    }
    // From the bottom to the top: the level is not odd, and nobody saw it change.
    let score = scorer.score(T0_S + 20_550.0, 100.0);
    assert!(score < ALARM, "{score}");
}

#[test]
fn nothing_is_rarer_than_what_has_been_seen_can_say() {
    let mut tail = Tail::default();
    for count in 1..40_u32 {
        let p = tail.p(0.01, f64::from(count));
        assert!(0.0 < p && p <= 1.0);
    }
    let p = tail.p(1e300, 40.0);
    assert!((1.0 / 1600.0 - p).abs() < 1e-12, "{p}");
}

#[test]
fn any_number_gives_a_score() {
    let all = [0.0, -0.0, 1e308, -1e308, f64::MIN_POSITIVE, f64::NAN, f64::INFINITY, 1.0, -1e-300];
    let (mut scorer, mut brief) = (Scorer::default(), BriefScorer::default());
    for round in 0..500_usize {
        for (index, value) in all.iter().enumerate() {
            let time = all[(index + round) % all.len()];
            for score in [scorer.score(time, *value), brief.score(*value)] {
                assert!((0.0..=1.0).contains(&score), "{score} of {value} at {time}");
            }
        }
    }
}

const T0_S: f64 = 1_795_219_200.0;
/// One in a thousand.
const ODD: f64 = 3.0 / 9.0;
/// One in ten thousand.
const ALARM: f64 = 4.0 / 9.0;
