//! How good anomaly scores are: on columns made here from a seed, each with labelled faults.
//!
//! Printed for each step (1 s, 1 min, 5 min) and fault: the area under the precision-recall curve
//! (average precision, point by point: every labelled sample counts, none is adjusted), mean over
//! the columns; beside it a z-score over a sliding window and a random score, which show what a
//! number is worth. Then alarms a host-day on the same columns without any fault, 30 columns a host,
//! at one in ten thousand; and the time of one score.

#![expect(clippy::print_stdout, reason = "a table is what this program is for")]

use std::f64::consts::TAU;
use std::hint::black_box;
use std::time::Instant;
use strobe_agent::score::{BriefScorer, Scorer};

fn main() {
    println!("area under the precision-recall curve");
    println!("| step | fault | strobe | brief | z-score | random |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (step, step_s) in STEPS {
        for fault in Fault::ALL {
            let mut sums = [0.0; 4];
            // Only what has a season can change it, and only after some days.
            let season = matches!(fault, Fault::ChangedSeason);
            if season && step_s * f64::from(SAMPLES) < 5.0 * 86_400.0 {
                continue;
            }
            for column in (0..COLUMNS).map(|column| if season { column * 4 } else { column }) {
                let (values, labels) = column_with(column, step_s, Some(fault));
                for (sum, scores) in sums.iter_mut().zip(all_scores(&values, step_s, column)) {
                    *sum += average_precision(&scores, &labels);
                }
            }
            let cells = sums.map(|sum| format!("{:.3}", sum / f64::from(COLUMNS)));
            println!("| {step} | {fault:?} | {} |", cells.join(" | "));
        }
    }
    println!("\nalarms a host-day without any fault (30 columns a host)");
    println!("| step | strobe | brief | z-score |");
    println!("| --- | --- | --- | --- |");
    for (step, step_s) in STEPS {
        let mut alarms = [0_u32; 3];
        let mut days = 0.0;
        for column in 0..COLUMNS {
            let (values, _) = column_with(column, step_s, None);
            days += f64::from(SAMPLES) * step_s / 86_400.0;
            for (count, scores) in alarms.iter_mut().zip(all_scores(&values, step_s, column)) {
                // A z-score of 3.9 is one in ten thousand of a normal column.
                let bound = ALARM;
                *count +=
                    u32::try_from(scores.iter().filter(|s| bound <= **s).count()).unwrap_or(0);
            }
        }
        let cells = alarms.map(|count| format!("{:.2}", f64::from(count) * 30.0 / days));
        println!("| {step} | {} |", cells.join(" | "));
    }
    time();
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn time() {
    let (values, _) = column_with(0, 1.0, None);
    let (mut scorer, mut brief) = (Scorer::default(), BriefScorer::default());
    let began = Instant::now();
    for (at, value) in values.iter().enumerate() {
        black_box(scorer.score(at_s(at, 1.0), *value));
    }
    let full_ns = began.elapsed().as_nanos() / u128::from(SAMPLES);
    let began = Instant::now();
    for value in &values {
        black_box(brief.score(*value));
    }
    let brief_ns = began.elapsed().as_nanos() / u128::from(SAMPLES);
    println!(
        "\none score: {full_ns} ns in {} B; brief: {brief_ns} ns in {} B",
        size_of::<Scorer>(),
        size_of::<BriefScorer>()
    );
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    LevelShift,
    Drift,
    Spike,
    StuckValue,
    ChangedVariance,
    ChangedSeason,
}

impl Fault {
    const ALL: [Self; 6] = [
        Self::LevelShift,
        Self::Drift,
        Self::Spike,
        Self::StuckValue,
        Self::ChangedVariance,
        Self::ChangedSeason,
    ];

    /// Samples it lasts.
    fn length(self) -> u32 {
        match self {
            Self::Spike => 3,
            Self::LevelShift | Self::StuckValue | Self::ChangedVariance => 120,
            Self::Drift | Self::ChangedSeason => 240,
        }
    }

    /// The value `n` samples into it; `wave` is what the season says and `noise` the rest.
    fn value(self, n: u32, wave: f64, noise: f64, spread: f64) -> f64 {
        match self {
            Self::LevelShift => wave + noise + 6.0 * spread,
            Self::Drift => wave + noise + 10.0 * spread * f64::from(n) / f64::from(self.length()),
            Self::Spike => wave + noise + 12.0 * spread,
            Self::StuckValue => wave,
            Self::ChangedVariance => wave + noise * 6.0,
            Self::ChangedSeason => wave.max(50.0) + noise,
        }
    }
}

/// A column's values and which of them are part of a fault. Four kinds of columns: a daily wave
/// with noise, a flat one with noise, bursts, and a slowly wandering one.
fn column_with(column: u32, step_s: f64, fault: Option<Fault>) -> (Vec<f64>, Vec<bool>) {
    let mut noise = Noise::of(u64::from(column) + 1);
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    let (mut wander, mut stuck) = (0.0, None);
    for n in 0..SAMPLES {
        let of_day = at_s(usize::try_from(n).unwrap_or(0), step_s) / 86_400.0;
        let kind = column % 4;
        let wave = if kind == 0 { 50.0 - 30.0 * (of_day * TAU).cos() } else { 50.0 };
        wander = 0.999 * wander + 0.05 * noise.normal();
        let (rest, spread) = match kind {
            2 => (0.5 / (noise.even() + 0.02), 3.0),
            3 => (wander + 0.3 * noise.normal(), 1.0),
            _ => (noise.normal(), 1.0),
        };
        // Five of them in the second half.
        let apart = SAMPLES / 10;
        let (turn, into) = (n / apart, n % apart);
        let broken = fault.filter(|fault| 5 <= turn && into < fault.length());
        let value = broken.map_or(wave + rest, |fault| fault.value(into, wave, rest, spread));
        let value = match broken {
            Some(Fault::StuckValue) => *stuck.get_or_insert(value),
            _ => {
                stuck = None;
                value
            }
        };
        values.push(value);
        labels.push(broken.is_some());
    }
    (values, labels)
}

/// Of strobe, strobe in brief, a z-score and chance.
fn all_scores(values: &[f64], step_s: f64, seed: u32) -> [Vec<f64>; 4] {
    let (mut scorer, mut brief) = (Scorer::default(), BriefScorer::default());
    let full = values.iter().enumerate();
    let full = full.map(|(at, value)| scorer.score(at_s(at, step_s), *value)).collect();
    let brief = values.iter().map(|value| brief.score(*value)).collect();
    let mut chance = Noise::of(u64::from(seed) + 99);
    [full, brief, z_scores(values), values.iter().map(|_| chance.even()).collect()]
}

/// Distance from the mean of the last 300 samples in standard deviations, scaled so that one in
/// ten thousand of a normal column is [`ALARM`].
fn z_scores(values: &[f64]) -> Vec<f64> {
    let mut scores = Vec::with_capacity(values.len());
    let (mut sum, mut squares) = (0.0, 0.0);
    for (at, value) in values.iter().enumerate() {
        let held = at.min(WINDOW);
        let count = f64::from(u32::try_from(held.max(1)).unwrap_or(1));
        let mean: f64 = sum / count;
        let spread = (squares / count - mean * mean).max(1e-9).sqrt();
        scores.push(if held < 30 { 0.0 } else { (value - mean).abs() / spread / 3.89 * ALARM });
        sum += value;
        squares += value * value;
        if let Some(old) = at.checked_sub(WINDOW).and_then(|old| values.get(old)) {
            sum -= old;
            squares -= old * old;
        }
    }
    scores
}

/// The mean of the precision at every true sample, from the highest score down; samples of one
/// score come together.
fn average_precision(scores: &[f64], labels: &[bool]) -> f64 {
    let mut order: Vec<(f64, bool)> = scores.iter().copied().zip(labels.iter().copied()).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut seen, mut hits, mut sum) = (0.0, 0.0, 0.0);
    for same in order.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let found = same.iter().filter(|(_, label)| *label).fold(0.0, |n, _| n + 1.0);
        seen += same.iter().fold(0.0, |n, _| n + 1.0);
        hits += found;
        sum += found * hits / seen;
    }
    if hits == 0.0 { 0.0 } else { sum / hits }
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred thousand samples")]
fn at_s(at: usize, step_s: f64) -> f64 {
    T0_S + at as f64 * step_s
}

/// xorshift; the same numbers for a seed everywhere.
struct Noise(u64);

impl Noise {
    fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn even(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        f64::from(u32::try_from(self.0 >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.even()).sum::<f64>() - 6.0
    }
}

const STEPS: [(&str, f64); 3] = [("1 s", 1.0), ("1 min", 60.0), ("5 min", 300.0)];
const COLUMNS: u32 = 20;
const SAMPLES: u32 = 20_000;
const WINDOW: usize = 300;
const ALARM: f64 = 4.0 / 9.0;
const T0_S: f64 = 1_795_219_200.0;
