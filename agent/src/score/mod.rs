//! How unusual a value is, from 0 to 1: training-free, a fixed few hundred bytes a column.
//!
//! ```text
//!            level   change   shift 24   spread   hour   shift 96        what is odd
//!              |        |        |         |        |        |
//! deviation / usual deviation, each                                      how much
//!              |        |        |         |        |        |
//! tail: how often has this evidence been so large?  p1 … p6              how rare
//!              +--------+--------+----+----+--------+--------+
//!                              Cauchy mean, p                            together
//!                                     |
//!                        minus the echo of a recent alarm
//! ```
//!
//! - **Evidence** is a distance from what the column usually does, in units of what it usually
//!   strays: from its slow mean (*level*), from its fast mean (*change*), of a mean of 24 and of
//!   96 samples from the slow mean (*shift*), of the size of the last 24 changes from the usual
//!   one (*spread*), and from what this hour of the day was like (*hour*; from the second day on).
//!   Outliers are clipped before they are learned from.
//! - **Tail.** No distribution is assumed for what is usual. For each kind of evidence the height
//!   that 5 % of the samples exceed is tracked, and the mean log excess over it (the Hill
//!   estimator: B. M. Hill, Annals of Statistics 3, 1975). Beyond the height, the probability falls
//!   as a power of the evidence. So each kind of evidence says how rare it is *in this column*, and
//!   bursty columns do not cry wolf. What was seen n times is never called rarer than 1/n², which
//!   keeps a start quiet.
//! - **Together.** The six are dependent; the Cauchy combination (Liu and Xie, JASA 115, 2020) is
//!   valid all the same.
//! - **Echo.** While an alarm is fresh, a part of its height is taken off lower ones: the first
//!   sample of what is odd stands out, the rest of it stays above what is usual.
//!
//! The score is −log10(p) / 9, so 1/3 is one in a thousand and 2/3 one in a million. A column that
//! never moved has no usual deviation: a thousandth of its size is nothing, and what it strays beyond
//! is measured against that. Values that are not finite are left out; after a gap or a step of the clock nothing is
//! called a change.

mod tail;
#[cfg(test)]
mod tests;

use tail::Tail;

/// Scores one column.
#[derive(Clone, Debug)]
pub struct Scorer {
    /// Samples so far.
    count: f64,
    /// Time of the last sample and the usual time between two, s.
    last_s: f64,
    period_s: f64,
    /// Largest recent absolute value.
    size: f64,
    level: f64,
    /// Usual distance from the level.
    stray: f64,
    fast: f64,
    /// Usual distance from the fast mean, and that of the last few.
    change: f64,
    change_short: f64,
    shift: f64,
    shift_long: f64,
    /// What each hour of the day (UTC) is like, how many samples said so, and how far they stray.
    hours: [f64; 24],
    hour_counts: [u32; 24],
    hour_stray: f64,
    /// Samples that were held against their hour.
    hour_count: f64,
    tails: [Tail; EVIDENCE],
    echo: f64,
}

/// Scores one column in 64 bytes, by level and change alone.
#[derive(Clone, Debug, Default)]
pub struct BriefScorer {
    count: f64,
    level: f64,
    stray: f64,
    fast: f64,
    tails: [Tail; 2],
}

impl Default for Scorer {
    fn default() -> Self {
        Self {
            count: 0.0,
            last_s: 0.0,
            period_s: 0.0,
            size: 0.0,
            level: 0.0,
            stray: 0.0,
            fast: 0.0,
            change: 0.0,
            change_short: 0.0,
            shift: 0.0,
            shift_long: 0.0,
            hours: [0.0; 24],
            hour_counts: [0; 24],
            hour_stray: 0.0,
            hour_count: 0.0,
            tails: [Tail::default(); EVIDENCE],
            echo: 0.0,
        }
    }
}

impl Scorer {
    /// The score of the next value; `time_s` is wall time in seconds since the epoch.
    pub fn score(&mut self, time_s: f64, value: f64) -> f64 {
        if !value.is_finite() || !time_s.is_finite() {
            return 0.0;
        }
        self.count += 1.0;
        if self.count < 2.0 {
            (self.level, self.fast, self.shift, self.shift_long) = (value, value, value, value);
        }
        self.size = (self.size * SIZE_KEPT).max(value.abs());
        if self.is_torn(time_s) {
            self.fast = value;
        }
        let floor = self.size * FLOOR + f64::MIN_POSITIVE;
        let hour = hour(time_s);
        let p = self.weigh(value, hour, floor);
        self.learn(value, floor);
        self.learn_hour(value, hour, floor);
        self.without_echo(score(p))
    }

    /// Whether the last sample says nothing of this one's change; keeps the time.
    fn is_torn(&mut self, time_s: f64) -> bool {
        let step_s = time_s - self.last_s;
        self.last_s = time_s;
        if self.count < 2.0 {
            return true;
        }
        if self.period_s == 0.0 {
            self.period_s = step_s.clamp(PERIOD_MIN_S, PERIOD_MAX_S);
        }
        let torn = step_s <= 0.0 || self.period_s * GAP < step_s;
        if !torn {
            self.period_s += rate(self.count, PERIOD_SAMPLES) * (step_s - self.period_s);
        }
        torn
    }

    /// The tail probability of all evidence.
    fn weigh(&mut self, value: f64, hour: usize, floor: f64) -> f64 {
        let known = self.hour_counts.get(hour).copied().unwrap_or(0);
        let in_season = self.samples_an_hour() < f64::from(known);
        if in_season {
            self.hour_count += 1.0;
        }
        let usual = self.hours.get(hour).copied().unwrap_or(value);
        let stray = self.stray + floor;
        let over = |off: f64| (off.abs() - floor).max(0.0);
        let evidence = [
            over(value - self.level) / stray,
            over(value - self.fast) / (self.change + floor),
            over(self.shift - self.level) / stray,
            libm::log((self.change_short + floor) / (self.change + floor)),
            over(self.shift_long - self.level) / stray,
            over(value - usual) / (self.hour_stray + floor),
        ];
        let mut odds = Odds::default();
        for ((tail, evidence), (index, weight)) in
            self.tails.iter_mut().zip(evidence).zip(WEIGHTS.into_iter().enumerate())
        {
            let of_hour = index == EVIDENCE - 1;
            let count = if of_hour { self.hour_count } else { self.count };
            let p = if of_hour && !in_season { 1.0 } else { tail.p(evidence, count) };
            odds.add(p, weight);
        }
        if self.count < WARM { 1.0 } else { odds.p() }
    }

    fn learn(&mut self, value: f64, floor: f64) {
        let near = |from: f64, reach: f64| (value - from).clamp(-reach, reach);
        let slow = rate(self.count, LEVEL_SAMPLES);
        let reach = CLIP * self.stray + floor;
        let (off, moved) = (value - self.level, value - self.fast);
        self.shift += rate(self.count, SHIFT_SAMPLES) * near(self.shift, reach);
        self.shift_long += rate(self.count, SHIFT_LONG_SAMPLES) * near(self.shift_long, reach);
        self.level += slow * off.clamp(-reach, reach);
        self.stray += slow * (off.abs().min(reach + self.stray) - self.stray);
        self.fast += rate(self.count, FAST_SAMPLES) * moved;
        let reach = CLIP * self.change + floor;
        let usual = rate(self.count, CHANGE_SAMPLES);
        self.change += usual * (moved.abs().min(reach) - self.change);
        self.change_short += rate(self.count, SHIFT_SAMPLES) * (moved.abs() - self.change_short);
    }

    fn learn_hour(&mut self, value: f64, hour: usize, floor: f64) {
        let samples_an_hour = self.samples_an_hour();
        let (Some(usual), Some(count)) = (self.hours.get_mut(hour), self.hour_counts.get_mut(hour))
        else {
            return;
        };
        if *count == 0 {
            *usual = value;
        }
        let off = value - *usual;
        let reach = HOUR_CLIP * self.hour_stray + floor;
        let rate_hour = (1.0 / (f64::from(*count) + 1.0)).max(HOUR_RATE / samples_an_hour).min(1.0);
        *usual += rate_hour * off.clamp(-reach, reach);
        if samples_an_hour < f64::from(*count) {
            let far = off.abs().min(reach + self.hour_stray);
            self.hour_stray += rate(self.hour_count, LEVEL_SAMPLES) * (far - self.hour_stray);
        } else {
            // Until an hour came back: as far as from the level.
            self.hour_stray = self.stray;
        }
        *count = count.saturating_add(1);
    }

    fn samples_an_hour(&self) -> f64 {
        (3600.0 / self.period_s.max(PERIOD_MIN_S)).max(1.0)
    }

    fn without_echo(&mut self, score: f64) -> f64 {
        let echo = if self.echo < score { 0.0 } else { self.echo * ECHO };
        self.echo = (self.echo * ECHO_KEPT).max(score);
        (score - echo).max(0.0)
    }
}

impl BriefScorer {
    /// The score of the next value.
    pub fn score(&mut self, value: f64) -> f64 {
        if !value.is_finite() {
            return 0.0;
        }
        self.count += 1.0;
        if self.stray == 0.0 && value.to_bits() == self.level.to_bits() {
            // It never moved, as most columns of a host, and there is nothing to learn.
            return 0.0;
        }
        if self.count < 2.0 {
            (self.level, self.fast) = (value, value);
        }
        let floor = self.level.abs().max(value.abs()) * FLOOR + f64::MIN_POSITIVE;
        let stray = self.stray + floor;
        let (off, moved) = (value - self.level, value - self.fast);
        let over = |off: f64| (off.abs() - floor).max(0.0);
        let mut odds = Odds::default();
        let [of_level, of_change] = &mut self.tails;
        odds.add(of_level.p(over(off) / stray, self.count), 1.0);
        odds.add(of_change.p(over(moved) / stray, self.count), 1.0);
        let p = if self.count < WARM { 1.0 } else { odds.p() };
        let slow = rate(self.count, LEVEL_SAMPLES);
        let reach = CLIP * self.stray + floor;
        self.level += slow * off.clamp(-reach, reach);
        self.stray += slow * (off.abs().min(reach + self.stray) - self.stray);
        self.fast += rate(self.count, FAST_SAMPLES) * moved;
        score(p)
    }
}

/// A score as a frame carries it; what one sample in ten does is 0.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
pub fn to_bits(score: f64) -> u8 {
    if score < 1.0 / 9.0 { 0 } else { (score * 255.0).round().clamp(0.0, 255.0) as u8 }
}

/// Tail probabilities being combined.
#[derive(Default)]
struct Odds {
    sum: f64,
    weight: f64,
}

impl Odds {
    fn add(&mut self, p: f64, weight: f64) {
        if p < 0.5 {
            self.sum += weight * libm::tan((0.5 - p.max(P_MIN)) * std::f64::consts::PI);
        }
        self.weight += weight;
    }

    fn p(&self) -> f64 {
        // Most samples are nothing special, and the arc tangent of nothing is nothing.
        if self.sum == 0.0 {
            return 0.5;
        }
        0.5 - libm::atan(self.sum / self.weight) / std::f64::consts::PI
    }
}

/// A mean's learning rate: of all samples at first, of the last `samples` later.
fn rate(count: f64, samples: f64) -> f64 {
    1.0 / count.clamp(1.0, samples)
}

/// One in a billion is 1.
fn score(p: f64) -> f64 {
    // Even odds are nothing to speak of, and the Cauchy mean of no evidence is even odds.
    if 0.5 <= p { 0.0 } else { (-libm::log10(p) / 9.0).clamp(0.0, 1.0) }
}

/// The hour of the day, UTC.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 23")]
fn hour(time_s: f64) -> usize {
    (time_s / 3600.0).floor().rem_euclid(24.0).clamp(0.0, 23.0) as usize
}

/// Kinds of evidence, and the vote of each: three of them are about the same slow mean.
const EVIDENCE: usize = 6;
const WEIGHTS: [f64; EVIDENCE] = [0.5, 1.0, 1.0, 1.0, 0.5, 0.5];
/// Samples before anything is said.
const WARM: f64 = 32.0;
/// What the means are over, in samples: so a column at 1 s and one at 5 min are treated alike.
/// `cargo bench -p strobe-bench --bench scores` shows what they do.
const LEVEL_SAMPLES: f64 = 300.0;
const FAST_SAMPLES: f64 = 16.0;
const SHIFT_SAMPLES: f64 = 24.0;
const SHIFT_LONG_SAMPLES: f64 = 96.0;
const CHANGE_SAMPLES: f64 = 1000.0;
const PERIOD_SAMPLES: f64 = 1000.0;
/// An outlier teaches no more than this many usual deviations.
const CLIP: f64 = 8.0;
const HOUR_CLIP: f64 = 4.0;
/// A day's part of what an hour is like.
const HOUR_RATE: f64 = 0.15;
/// A gap is this many usual steps.
const GAP: f64 = 10.0;
const PERIOD_MIN_S: f64 = 0.001;
const PERIOD_MAX_S: f64 = 86_400.0;
/// What is too small to matter, as a part of the largest recent value.
const FLOOR: f64 = 1e-3;
const SIZE_KEPT: f64 = 0.9999;
const ECHO: f64 = 0.3;
/// An echo dies away within about 400 samples.
const ECHO_KEPT: f64 = 1.0 - 1.0 / 400.0;
const P_MIN: f64 = 1e-9;

const _: () = assert!(size_of::<Scorer>() <= 600);
const _: () = assert!(size_of::<BriefScorer>() <= 64);
