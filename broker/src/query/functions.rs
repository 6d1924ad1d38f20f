//! Functions of values: maths, clocks, labels, sorting, histograms.

use crate::query::binary::drop_empty;
use crate::query::calendar::Moment;
use crate::query::engine::QueryError;
use crate::query::value::{ABSENT, Labels, NAME, Series, Vector, is_absent};
use regex::Regex;
use std::collections::HashMap;

/// A function of one number by name, for scalars-by-step parameters `p` and `q`.
type Maths = fn(f64, f64, f64) -> f64;

/// The functions that map every sample by itself, or `None`.
#[must_use]
pub(crate) fn maths(name: &str) -> Option<Maths> {
    Some(match name {
        "abs" => |v, _, _| v.abs(),
        "ceil" => |v, _, _| v.ceil(),
        "floor" => |v, _, _| v.floor(),
        "exp" => |v, _, _| v.exp(),
        "ln" => |v, _, _| v.ln(),
        "log2" => |v, _, _| v.log2(),
        "log10" => |v, _, _| v.log10(),
        "sqrt" => |v, _, _| v.sqrt(),
        "sin" => |v, _, _| v.sin(),
        "cos" => |v, _, _| v.cos(),
        "tan" => |v, _, _| v.tan(),
        "asin" => |v, _, _| v.asin(),
        "acos" => |v, _, _| v.acos(),
        "atan" => |v, _, _| v.atan(),
        "sinh" => |v, _, _| v.sinh(),
        "cosh" => |v, _, _| v.cosh(),
        "tanh" => |v, _, _| v.tanh(),
        "asinh" => |v, _, _| v.asinh(),
        "acosh" => |v, _, _| v.acosh(),
        "atanh" => |v, _, _| v.atanh(),
        "rad" => |v, _, _| v * std::f64::consts::PI / 180.0,
        "deg" => |v, _, _| v * 180.0 / std::f64::consts::PI,
        "sgn" => |v, _, _| {
            if v < 0.0 {
                -1.0
            } else if 0.0 < v {
                1.0
            } else {
                v
            }
        },
        // Halves go up; the inverse is taken first, so that 0.1 and its like round cleanly.
        "round" => |v, to, _| (v * (1.0 / to) + 0.5).floor() / (1.0 / to),
        "clamp_min" => |v, least, _| greater(v, least),
        "clamp_max" => |v, most, _| lesser(v, most),
        "clamp" => |v, least, most| {
            if most < least { ABSENT } else { greater(least, lesser(most, v)) }
        },
        "minute" => |v, _, _| Moment::at(v).minute,
        "hour" => |v, _, _| Moment::at(v).hour,
        "day_of_week" => |v, _, _| Moment::at(v).day_of_week,
        "day_of_month" => |v, _, _| Moment::at(v).day_of_month,
        "day_of_year" => |v, _, _| Moment::at(v).day_of_year,
        "days_in_month" => |v, _, _| Moment::at(v).days_in_month,
        "month" => |v, _, _| Moment::at(v).month,
        "year" => |v, _, _| Moment::at(v).year,
        _ => return None,
    })
}

/// Whether a maths function without an argument takes the time.
#[must_use]
pub(crate) fn of_time(name: &str) -> bool {
    matches!(
        name,
        "minute"
            | "hour"
            | "day_of_week"
            | "day_of_month"
            | "day_of_year"
            | "days_in_month"
            | "month"
            | "year"
    )
}

/// Maps every sample; drops names.
#[must_use]
pub(crate) fn map(mut vector: Vector, function: Maths, parameters: [&[f64]; 2]) -> Vector {
    for series in &mut vector {
        for (step, value) in series.values.iter_mut().enumerate() {
            if !is_absent(*value) {
                let [p, q] = parameters.map(|by| by.get(step).copied().unwrap_or(0.0));
                *value = function(*value, p, q);
            }
        }
        series.labels = series.labels.without_name();
    }
    drop_empty(vector)
}

/// `scalar(v)`: the only sample of a step, else NaN.
#[must_use]
pub(crate) fn scalar(vector: &Vector, steps: usize) -> Vec<f64> {
    let one = |step: usize| {
        let mut here =
            vector.iter().filter_map(|s| s.values.get(step).copied()).filter(|v| !is_absent(*v));
        match (here.next(), here.next()) {
            (Some(value), None) => value,
            _ => f64::NAN,
        }
    };
    (0..steps).map(one).collect()
}

/// `absent(v)`: 1 at the steps where no series has a sample.
#[must_use]
pub(crate) fn absent(vector: &Vector, labels: Labels, steps: usize) -> Vector {
    let mut values = vec![1.0; steps];
    for series in vector {
        for (slot, value) in values.iter_mut().zip(&series.values) {
            if !is_absent(*value) {
                *slot = ABSENT;
            }
        }
    }
    drop_empty(vec![Series { labels, values }])
}

/// `sort` and `sort_desc`; only the order of an instant query's result shows it.
#[must_use]
pub(crate) fn sort(mut vector: Vector, order: Order) -> Vector {
    let first = |series: &Series| series.values.first().copied().unwrap_or(ABSENT);
    vector.sort_by(|a, b| {
        let (a, b) = (first(a), first(b));
        match (a.is_nan(), b.is_nan()) {
            (false, false) if order == Order::Ascending => a.total_cmp(&b),
            (false, false) => b.total_cmp(&a),
            (a_nan, b_nan) => a_nan.cmp(&b_nan),
        }
    });
    vector
}

/// Which way [`sort`] goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// Smallest first.
    Ascending,
    /// Largest first.
    Descending,
}

/// `label_replace(v, dst, replacement, src, regex)`.
///
/// # Errors
/// A pattern or label name that is none.
pub(crate) fn label_replace(
    mut vector: Vector,
    [to, template, from, pattern]: [&str; 4],
) -> Result<Vector, QueryError> {
    let regex = Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
        QueryError::Execution(format!("invalid regular expression in label_replace(): {error}"))
    })?;
    check_label_name(to, "label_replace")?;
    for series in &mut vector {
        let value = series.labels.value(from).to_owned();
        if let Some(found) = regex.captures(&value) {
            let mut result = String::new();
            found.expand(template, &mut result);
            series.labels.set(to, result);
        }
    }
    Ok(vector)
}

/// `label_join(v, dst, separator, src…)`.
///
/// # Errors
/// A label name that is none.
pub(crate) fn label_join(
    mut vector: Vector,
    to: &str,
    separator: &str,
    from: &[String],
) -> Result<Vector, QueryError> {
    for name in from {
        if !is_label_name(name) {
            return Err(QueryError::Execution(format!(
                "invalid source label name in label_join(): {name}"
            )));
        }
    }
    check_label_name(to, "label_join")?;
    for series in &mut vector {
        let values: Vec<&str> = from.iter().map(|name| series.labels.value(name)).collect();
        let joined = values.join(separator);
        series.labels.set(to, joined);
    }
    Ok(vector)
}

/// `histogram_quantile(φ, v)` over classic buckets.
#[must_use]
pub(crate) fn histogram_quantile(phi: &[f64], vector: &Vector) -> Vector {
    let le = ["le".to_owned()];
    let mut places: HashMap<Labels, usize> = HashMap::new();
    let mut groups: Vec<(Labels, Vec<(f64, &Series)>)> = Vec::new();
    for series in vector {
        let Some(bound) = parse_bound(series.labels.value("le")) else { continue };
        let labels = series.labels.without(&le);
        let place = *places.entry(labels.clone()).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.1.push((bound, series)),
            None => groups.push((labels, vec![(bound, series)])),
        }
    }
    let mut out = Vec::with_capacity(groups.len());
    for (labels, members) in groups {
        let value = |(step, phi): (usize, &f64)| {
            let here = members.iter().filter_map(|(bound, series)| {
                let value = *series.values.get(step)?;
                (!is_absent(value)).then_some((*bound, value))
            });
            let mut buckets: Vec<(f64, f64)> = here.collect();
            if buckets.is_empty() { ABSENT } else { bucket_quantile(*phi, &mut buckets) }
        };
        let values = phi.iter().enumerate().map(value).collect();
        out.push(Series { labels, values });
    }
    drop_empty(out)
}

/// The φ-quantile of cumulative buckets (upper bound, count), linear inside a bucket.
#[must_use]
pub(crate) fn bucket_quantile(phi: f64, buckets: &mut Vec<(f64, f64)>) -> f64 {
    if phi.is_nan() {
        return f64::NAN;
    }
    if phi < 0.0 {
        return f64::NEG_INFINITY;
    }
    if 1.0 < phi {
        return f64::INFINITY;
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    if buckets.last().is_none_or(|last| last.0 != f64::INFINITY) {
        return f64::NAN;
    }
    // Equal bounds (several series of one bucket) are one bucket; counts never fall.
    buckets.dedup_by(|later, kept| {
        #[expect(clippy::float_cmp, reason = "equal bounds were parsed from equal numbers")]
        let same = later.0 == kept.0;
        if same {
            kept.1 += later.1;
        }
        same
    });
    let mut most = f64::NEG_INFINITY;
    for bucket in buckets.iter_mut() {
        most = if most < bucket.1 || most == f64::NEG_INFINITY { bucket.1 } else { most };
        bucket.1 = if bucket.1 < most { most } else { bucket.1 };
    }
    let [.., (below_last, _), (_, total)] = buckets[..] else { return f64::NAN };
    if total == 0.0 {
        return f64::NAN;
    }
    let mut rank = phi * total;
    let inner = buckets.get(..buckets.len() - 1).unwrap_or(&[]);
    let Some(at) = inner.iter().position(|bucket| rank <= bucket.1) else { return below_last };
    let Some(&(end, mut inside)) = inner.get(at) else { return f64::NAN };
    let before = at.checked_sub(1).and_then(|at| inner.get(at));
    if before.is_none() && end <= 0.0 {
        return end;
    }
    let mut start = 0.0;
    if let Some(&(bound, below)) = before {
        start = bound;
        inside -= below;
        rank -= below;
    }
    start + (end - start) * (rank / inside)
}

/// Whether a text may name a label.
#[must_use]
pub(crate) fn is_label_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

fn check_label_name(name: &str, function: &str) -> Result<(), QueryError> {
    if is_label_name(name) || name == NAME {
        return Ok(());
    }
    Err(QueryError::Execution(format!("invalid destination label name in {function}(): {name}")))
}

fn parse_bound(text: &str) -> Option<f64> {
    text.parse().ok()
}

/// The greater; NaN if either is (unlike `f64::max`).
fn greater(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn lesser(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_buckets() {
        let inf = f64::INFINITY;
        let check = |phi: f64, buckets: &[(f64, f64)], wanted: f64| {
            let got = bucket_quantile(phi, &mut buckets.to_vec());
            let same = got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan();
            assert!(same, "{phi} of {buckets:?}: {got}, not {wanted}");
        };
        check(0.5, &[(1.0, 10.0), (2.0, 20.0), (inf, 20.0)], 1.0);
        check(0.75, &[(1.0, 10.0), (2.0, 20.0), (inf, 20.0)], 1.5);
        check(1.0, &[(1.0, 10.0), (2.0, 20.0), (inf, 30.0)], 2.0);
        check(0.5, &[(1.0, 10.0), (2.0, 20.0)], f64::NAN);
        check(0.5, &[(inf, 20.0)], f64::NAN);
        check(0.1, &[(-1.0, 10.0), (2.0, 20.0), (inf, 20.0)], -1.0);
        check(2.0, &[(1.0, 10.0), (inf, 20.0)], inf);
        check(0.9, &[(1.0, 10.0), (2.0, 5.0), (inf, 10.0)], 0.9);
    }

    #[test]
    fn rounding_and_clamping() {
        let check = |name: &str, v: f64, p: f64, q: f64, wanted: f64| {
            let got = maths(name).unwrap()(v, p, q);
            let same = got.to_bits() == wanted.to_bits() || (got - wanted).abs() < 1e-15;
            assert!(same, "{name}({v}, {p}, {q}) = {got}, not {wanted}");
        };
        check("round", 2.5, 1.0, 0.0, 3.0);
        check("round", -2.5, 1.0, 0.0, -2.0);
        check("round", 0.26, 0.1, 0.0, 0.3);
        check("clamp", 5.0, 1.0, 3.0, 3.0);
        check("clamp", 5.0, 3.0, 1.0, ABSENT);
        check("sgn", -3.0, 0.0, 0.0, -1.0);
        assert!(maths("clamp_min").unwrap()(f64::NAN, 1.0, 0.0).is_nan());
    }
}
