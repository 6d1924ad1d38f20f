//! Functions over the samples of one window: `rate`, `avg_over_time` and their family.
//!
//! Every function sees the samples of `[end - range, end]`, both ends included (Prometheus 2.x;
//! version 3 leaves the start out), stale markers already removed, times ascending.

use crate::query::value::{count, is_absent, seconds};

/// What is computed over a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WindowFunction {
    /// Per-second increase of a counter, extrapolated to the window's ends.
    Rate,
    /// Increase of a counter, extrapolated to the window's ends.
    Increase,
    /// Difference of a gauge, extrapolated to the window's ends.
    Delta,
    /// Per-second increase between the last two samples.
    Irate,
    /// Difference between the last two samples.
    Idelta,
    /// Slope by least squares, per second.
    Deriv,
    /// Least squares, extrapolated by a parameter of seconds.
    PredictLinear,
    /// Double exponential smoothing by two parameters.
    HoltWinters,
    /// How often the value changed.
    Changes,
    /// How often the value fell.
    Resets,
    /// Mean.
    Avg,
    /// Smallest.
    Min,
    /// Largest.
    Max,
    /// Sum.
    Sum,
    /// Number of samples.
    Count,
    /// Quantile by a parameter.
    Quantile,
    /// Population standard deviation.
    Stddev,
    /// Population variance.
    Stdvar,
    /// Newest.
    Last,
    /// 1 if there is a sample.
    Present,
}

/// The samples of one window and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window<'a> {
    /// Times, ms, ascending.
    pub times: &'a [i64],
    /// Values, as many.
    pub values: &'a [f64],
    /// Start of the window, ms.
    pub start_ms: i64,
    /// End of the window, ms.
    pub end_ms: i64,
    /// The step's own time, ms (differs from the end by `offset` and `@`).
    pub step_ms: i64,
    /// Parameters; what a function does not use is 0.
    pub parameters: [f64; 2],
}

impl WindowFunction {
    /// By PromQL name. `absent_over_time` is built on [`Self::Present`] elsewhere.
    #[must_use]
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "rate" => Self::Rate,
            "increase" => Self::Increase,
            "delta" => Self::Delta,
            "irate" => Self::Irate,
            "idelta" => Self::Idelta,
            "deriv" => Self::Deriv,
            "predict_linear" => Self::PredictLinear,
            "holt_winters" | "double_exponential_smoothing" => Self::HoltWinters,
            "changes" => Self::Changes,
            "resets" => Self::Resets,
            "avg_over_time" => Self::Avg,
            "min_over_time" => Self::Min,
            "max_over_time" => Self::Max,
            "sum_over_time" => Self::Sum,
            "count_over_time" => Self::Count,
            "quantile_over_time" => Self::Quantile,
            "stddev_over_time" => Self::Stddev,
            "stdvar_over_time" => Self::Stdvar,
            "last_over_time" => Self::Last,
            "present_over_time" | "absent_over_time" => Self::Present,
            _ => return None,
        })
    }

    /// Its value over one window, or `None` for no sample.
    #[must_use]
    pub(crate) fn apply(self, window: &Window<'_>) -> Option<f64> {
        let values = window.values;
        let last = *values.last()?;
        match self {
            Self::Rate => extrapolated(window, Slope::Counter)
                .map(|increase| increase / seconds(window.end_ms - window.start_ms)),
            Self::Increase => extrapolated(window, Slope::Counter),
            Self::Delta => extrapolated(window, Slope::Gauge),
            Self::Irate | Self::Idelta => last_two(window, self),
            Self::Deriv => {
                let first = *window.times.first()?;
                (1 < values.len()).then(|| regression(window, first).0)
            }
            Self::PredictLinear => (1 < values.len()).then(|| {
                let (slope, intercept) = regression(window, window.step_ms);
                slope * window.parameters[0] + intercept
            }),
            Self::HoltWinters => holt_winters(values, window.parameters),
            Self::Changes => Some(count(pairs(values).filter(|&(a, b)| differ(a, b)).count())),
            Self::Resets => Some(count(pairs(values).filter(|(a, b)| b < a).count())),
            Self::Avg => Some(mean(values)),
            Self::Min => Some(smallest(values)),
            Self::Max => Some(largest(values)),
            Self::Sum => Some(sum(values)),
            Self::Count => Some(count(values.len())),
            Self::Quantile => Some(quantile(window.parameters[0], &mut values.to_vec())),
            Self::Stddev => Some(variance(values).sqrt()),
            Self::Stdvar => Some(variance(values)),
            Self::Last => Some(last),
            Self::Present => Some(1.0),
        }
    }
}

/// Compensated (Neumaier) sum.
#[must_use]
pub(crate) fn sum(values: &[f64]) -> f64 {
    let mut total = Compensated::default();
    for &value in values {
        total.add(value);
    }
    total.value()
}

/// Mean; scaled when the sum would overflow.
#[must_use]
pub(crate) fn mean(values: &[f64]) -> f64 {
    let n = count(values.len());
    let total = sum(values);
    if total.is_finite() { total / n } else { values.iter().map(|value| value / n).sum() }
}

/// Smallest, NaN only if all are.
#[must_use]
pub(crate) fn smallest(values: &[f64]) -> f64 {
    values.iter().fold(f64::NAN, |least, &v| if v < least || least.is_nan() { v } else { least })
}

/// Largest, NaN only if all are.
#[must_use]
pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().fold(f64::NAN, |most, &v| if most < v || most.is_nan() { v } else { most })
}

/// Population variance by Welford's recurrence with compensated sums.
#[must_use]
pub(crate) fn variance(values: &[f64]) -> f64 {
    let (mut mean, mut squares) = (Compensated::default(), Compensated::default());
    let mut n = 0.0;
    for &value in values {
        n += 1.0;
        let before = value - mean.value();
        mean.add(before / n);
        squares.add(before * (value - mean.value()));
    }
    squares.value() / n
}

/// The φ-quantile with linear interpolation; NaN sorts first. Sorts `values`.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 ≤ rank ≤ len - 1 once φ is in [0, 1]"
)]
pub(crate) fn quantile(phi: f64, values: &mut [f64]) -> f64 {
    if values.is_empty() || phi.is_nan() {
        return f64::NAN;
    }
    if phi < 0.0 {
        return f64::NEG_INFINITY;
    }
    if 1.0 < phi {
        return f64::INFINITY;
    }
    values.sort_unstable_by(|a, b| match (a.is_nan(), b.is_nan()) {
        (false, false) => a.total_cmp(b),
        (a_nan, b_nan) => b_nan.cmp(&a_nan),
    });
    let rank = phi * count(values.len() - 1);
    let lower = rank.floor() as usize;
    let upper = (lower + 1).min(values.len() - 1);
    let weight = rank - rank.floor();
    match (values.get(lower), values.get(upper)) {
        (Some(low), Some(high)) => low * (1.0 - weight) + high * weight,
        _ => f64::NAN,
    }
}

/// A sum that keeps what rounding loses.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Compensated {
    sum: f64,
    lost: f64,
}

impl Compensated {
    /// Adds one number.
    pub(crate) fn add(&mut self, value: f64) {
        let total = self.sum + value;
        if total.is_infinite() {
            self.lost = 0.0;
        } else if value.abs() <= self.sum.abs() {
            self.lost += (self.sum - total) + value;
        } else {
            self.lost += (value - total) + self.sum;
        }
        self.sum = total;
    }

    /// The sum.
    #[must_use]
    pub(crate) fn value(&self) -> f64 {
        if self.sum.is_infinite() { self.sum } else { self.sum + self.lost }
    }
}

#[derive(Clone, Copy)]
enum Slope {
    Counter,
    Gauge,
}

/// The difference over the window. Samples rarely lie on its ends, so the slope between the first
/// and the last is stretched: up to an end that is closer than 1.1 sample distances, else by half
/// a distance; a counter is never stretched back below zero.
fn extrapolated(window: &Window<'_>, slope: Slope) -> Option<f64> {
    let (times, values) = (window.times, window.values);
    let ([first_ms, .., last_ms], [first, .., last]) = (times, values) else { return None };
    let counter = matches!(slope, Slope::Counter);
    let mut change = last - first;
    if counter {
        change += pairs(values).filter(|(a, b)| b < a).map(|(a, _)| a).sum::<f64>();
    }
    let covered = seconds(last_ms - first_ms);
    let distance = covered / count(values.len() - 1);
    let mut to_start = seconds(first_ms - window.start_ms);
    let to_end = seconds(window.end_ms - last_ms);
    if counter && 0.0 < change && 0.0 <= *first {
        to_start = to_start.min(covered * (first / change));
    }
    let near = distance * 1.1;
    let stretch = |gap: f64| if gap < near { gap } else { distance / 2.0 };
    Some(change * ((covered + stretch(to_start) + stretch(to_end)) / covered))
}

fn last_two(window: &Window<'_>, function: WindowFunction) -> Option<f64> {
    let ([.., before_ms, last_ms], [.., before, last]) = (window.times, window.values) else {
        return None;
    };
    if function == WindowFunction::Idelta {
        return Some(last - before);
    }
    let change = if last < before { *last } else { last - before };
    Some(change / seconds(last_ms - before_ms))
}

/// Slope per second and value at `origin_ms`, by least squares.
fn regression(window: &Window<'_>, origin_ms: i64) -> (f64, f64) {
    let Some(&first) = window.values.first() else { return (f64::NAN, f64::NAN) };
    #[expect(clippy::float_cmp, reason = "a constant series has slope 0 exactly")]
    if window.values.iter().all(|&value| value == first) {
        return if first.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, first) };
    }
    let mut sums = [Compensated::default(); 4];
    let [x, y, xy, xx] = &mut sums;
    for (&at, &value) in window.times.iter().zip(window.values) {
        let since = seconds(at - origin_ms);
        x.add(since);
        y.add(value);
        xy.add(since * value);
        xx.add(since * since);
    }
    let n = count(window.values.len());
    let [x, y, xy, xx] = sums.map(|sum| sum.value());
    let slope = (xy - x * y / n) / (xx - x * x / n);
    (slope, y / n - slope * x / n)
}

/// Double exponential smoothing: a level and a trend, each an exponential average.
fn holt_winters(values: &[f64], [level_weight, trend_weight]: [f64; 2]) -> Option<f64> {
    let [first, second, ..] = values else { return None };
    let (mut level_before, mut level, mut trend) = (0.0, *first, second - first);
    for (index, &value) in values.iter().enumerate().skip(1) {
        if 1 < index {
            trend = trend_weight * (level - level_before) + (1.0 - trend_weight) * trend;
        }
        level_before = level;
        level = level_weight * value + (1.0 - level_weight) * (level + trend);
    }
    Some(level)
}

fn pairs(values: &[f64]) -> impl Iterator<Item = (f64, f64)> {
    values.iter().copied().zip(values.iter().copied().skip(1))
}

#[expect(clippy::float_cmp, reason = "a change is any change")]
fn differ(a: f64, b: f64) -> bool {
    debug_assert!(!is_absent(a));
    a != b && !(a.is_nan() && b.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(function: WindowFunction, samples: &[(i64, f64)], wanted: Option<f64>) {
        let times: Vec<i64> = samples.iter().map(|sample| sample.0 * 1000).collect();
        let values: Vec<f64> = samples.iter().map(|sample| sample.1).collect();
        let window = Window {
            times: &times,
            values: &values,
            start_ms: 0,
            end_ms: 60_000,
            step_ms: 60_000,
            parameters: [0.5, 0.5],
        };
        let got = function.apply(&window);
        let close = match (got, wanted) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-12 * b.abs() || a.is_nan() && b.is_nan(),
            (a, b) => a == b,
        };
        assert!(close, "{function:?} of {samples:?}: {got:?}, not {wanted:?}");
    }

    #[test]
    fn functions_of_one_window() {
        use WindowFunction as F;
        let counter = [(0, 0.0), (15, 15.0), (30, 30.0), (45, 5.0), (60, 20.0)];
        check(F::Increase, &counter, Some(50.0));
        check(F::Rate, &counter, Some(50.0 / 60.0));
        check(F::Delta, &counter, Some(20.0));
        check(F::Irate, &counter, Some(1.0));
        check(F::Idelta, &counter, Some(15.0));
        check(F::Resets, &counter, Some(1.0));
        check(F::Changes, &counter, Some(4.0));
        // 10 s to the start are under 1.1 distances of 20 s; 10 s to the end likewise.
        check(F::Delta, &[(10, 1.0), (30, 2.0), (50, 3.0)], Some(3.0));
        // 25 s to the start are over 1.1 distances of 5 s: half a distance.
        check(F::Delta, &[(25, 1.0), (30, 2.0), (35, 3.0)], Some(3.0));
        // 15 s are 1.5 distances of 10 s: half a distance at both ends.
        check(F::Delta, &[(15, 1.0), (25, 2.0), (35, 3.0), (45, 4.0)], Some(4.0));
        // A counter from 1 was 0 a third of the way back.
        check(F::Increase, &[(10, 0.0), (30, 2.0), (50, 4.0)], Some(5.0));
        for single in [F::Rate, F::Irate, F::Delta, F::Deriv, F::PredictLinear, F::HoltWinters] {
            check(single, &[(5, 1.0)], None);
        }
        check(F::Deriv, &[(0, 1.0), (10, 21.0)], Some(2.0));
        check(F::PredictLinear, &[(40, 1.0), (50, 21.0)], Some(42.0));
        check(F::Avg, &[(1, 1.0), (2, 4.0)], Some(2.5));
        check(F::Quantile, &[(1, 4.0), (2, 1.0)], Some(2.5));
        check(F::Stdvar, &[(1, 4.0), (2, 2.0)], Some(1.0));
        check(F::Min, &[(1, f64::NAN), (2, 2.0)], Some(2.0));
        check(F::Max, &[(1, f64::NAN)], Some(f64::NAN));
        check(F::Avg, &[(1, f64::MAX), (2, f64::MAX)], Some(f64::MAX));
        check(F::Count, &[], None);
    }
}
