//! Aggregations over series: groups are found once by labels, values step by step.

use crate::query::deadline::Meter;
use crate::query::engine::QueryError;
use crate::query::value::{ABSENT, Labels, Series, Vector, is_absent, number};
use crate::query::window::quantile;
use promql_parser::parser::LabelModifier;
use promql_parser::parser::token::{
    T_AVG, T_BOTTOMK, T_COUNT, T_GROUP, T_MAX, T_MIN, T_QUANTILE, T_STDDEV, T_STDVAR, T_SUM,
    T_TOPK, TokenId,
};
use std::cmp::Ordering;
use std::collections::HashMap;

/// What is made of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Aggregation {
    /// Sum.
    Sum,
    /// Mean.
    Avg,
    /// Smallest.
    Min,
    /// Largest.
    Max,
    /// How many.
    Count,
    /// 1.
    Group,
    /// Population standard deviation.
    Stddev,
    /// Population variance.
    Stdvar,
    /// Quantile by a parameter.
    Quantile,
    /// The k largest series.
    Topk,
    /// The k smallest series.
    Bottomk,
}

/// The series of one group: its labels and its members' places in the input.
struct Group {
    labels: Labels,
    members: Vec<usize>,
}

impl Aggregation {
    /// By token; `count_values` is [`count_values`], the experimental ones are `None`.
    #[must_use]
    pub(crate) fn named(token: TokenId) -> Option<Self> {
        Some(match token {
            T_SUM => Self::Sum,
            T_AVG => Self::Avg,
            T_MIN => Self::Min,
            T_MAX => Self::Max,
            T_COUNT => Self::Count,
            T_GROUP => Self::Group,
            T_STDDEV => Self::Stddev,
            T_STDVAR => Self::Stdvar,
            T_QUANTILE => Self::Quantile,
            T_TOPK => Self::Topk,
            T_BOTTOMK => Self::Bottomk,
            _ => return None,
        })
    }
}

/// Aggregates; `parameter` is by step (`k` or φ), empty where there is none.
///
/// # Errors
/// A `k` that is no whole number of 64 bits.
pub(crate) fn aggregate(
    aggregation: Aggregation,
    vector: Vector,
    modifier: Option<&LabelModifier>,
    parameter: &[f64],
    meter: &Meter<'_>,
) -> Result<Vector, QueryError> {
    let groups = groups(&vector, modifier);
    if matches!(aggregation, Aggregation::Topk | Aggregation::Bottomk) {
        return select(aggregation, vector, &groups, parameter, meter);
    }
    let mut out = Vec::with_capacity(groups.len());
    for group in groups {
        meter.spend(group.members.len())?;
        let members: Vec<&[f64]> =
            group.members.iter().filter_map(|at| vector.get(*at)).map(|s| &s.values[..]).collect();
        let values = fold(aggregation, &members, parameter, meter)?;
        out.push(Series { labels: group.labels, values });
    }
    Ok(out)
}

/// `count_values("name", v)`: one series for each value of a group.
///
/// # Errors
/// The time is over.
pub(crate) fn count_values(
    name: &str,
    vector: &Vector,
    modifier: Option<&LabelModifier>,
    meter: &Meter<'_>,
) -> Result<Vector, QueryError> {
    let mut places: HashMap<Labels, usize> = HashMap::new();
    let mut out: Vector = Vec::new();
    for group in groups(vector, modifier) {
        for series in group.members.iter().filter_map(|at| vector.get(*at)) {
            for (step, &value) in series.values.iter().enumerate() {
                if is_absent(value) {
                    continue;
                }
                meter.spend(RANKING)?;
                let mut labels = group.labels.clone();
                labels.set(name, number(value));
                let place = *places.entry(labels.clone()).or_insert(out.len());
                if out.len() <= place {
                    meter.hold(place + 1, series.values.len())?;
                    out.push(Series { labels, values: vec![ABSENT; series.values.len()] });
                }
                if let Some(slot) = out.get_mut(place).and_then(|s| s.values.get_mut(step)) {
                    *slot = if is_absent(*slot) { 1.0 } else { *slot + 1.0 };
                }
            }
        }
    }
    Ok(out)
}

fn groups(vector: &Vector, modifier: Option<&LabelModifier>) -> Vec<Group> {
    let mut places: HashMap<Labels, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (index, series) in vector.iter().enumerate() {
        let labels = signature(&series.labels, modifier);
        let place = *places.entry(labels.clone()).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.members.push(index),
            None => groups.push(Group { labels, members: vec![index] }),
        }
    }
    groups
}

/// The labels of the group that a series belongs to.
#[must_use]
pub(super) fn signature(labels: &Labels, modifier: Option<&LabelModifier>) -> Labels {
    match modifier {
        None => Labels::default(),
        Some(LabelModifier::Include(names)) => labels.only(&names.labels),
        Some(LabelModifier::Exclude(names)) => labels.without(&names.labels),
    }
}

/// One pass a member, so that columns are read in order.
pub(super) fn fold(
    aggregation: Aggregation,
    members: &[&[f64]],
    parameter: &[f64],
    meter: &Meter<'_>,
) -> Result<Vec<f64>, QueryError> {
    let steps = members.first().map_or(0, |values| values.len());
    match aggregation {
        Aggregation::Avg | Aggregation::Stddev | Aggregation::Stdvar => {
            moments(aggregation, members, steps, meter)
        }
        Aggregation::Quantile => {
            let mut out = Vec::with_capacity(steps);
            for step in 0..steps {
                meter.spend(members.len())?;
                let mut present: Vec<f64> = at_step(members, step).collect();
                let phi = parameter.get(step).copied().unwrap_or(f64::NAN);
                out.push(if present.is_empty() { ABSENT } else { quantile(phi, &mut present) });
            }
            Ok(out)
        }
        _ => {
            let mut out = vec![ABSENT; steps];
            for values in members {
                meter.spend(steps)?;
                for (slot, &value) in out.iter_mut().zip(*values) {
                    if !is_absent(value) {
                        *slot = combine(aggregation, *slot, value);
                    }
                }
            }
            Ok(out)
        }
    }
}

fn combine(aggregation: Aggregation, so_far: f64, value: f64) -> f64 {
    let first = is_absent(so_far);
    match aggregation {
        Aggregation::Group => 1.0,
        Aggregation::Count => {
            if first {
                1.0
            } else {
                so_far + 1.0
            }
        }
        _ if first => value,
        Aggregation::Min => {
            if value < so_far || so_far.is_nan() {
                value
            } else {
                so_far
            }
        }
        Aggregation::Max => {
            if so_far < value || so_far.is_nan() {
                value
            } else {
                so_far
            }
        }
        _ => so_far + value,
    }
}

/// Mean and variance by running updates, which neither overflow nor cancel.
fn moments(
    aggregation: Aggregation,
    members: &[&[f64]],
    steps: usize,
    meter: &Meter<'_>,
) -> Result<Vec<f64>, QueryError> {
    // Series after series: the steps do not wait for each other's divisions.
    let mut all = vec![Moments::default(); steps];
    for values in members {
        meter.spend(steps)?;
        for (moments, &value) in all.iter_mut().zip(*values) {
            if !is_absent(value) {
                moments.add(value);
            }
        }
    }
    let out = all.into_iter().map(|Moments { n, mean, squares }| match aggregation {
        _ if n == 0.0 => ABSENT,
        Aggregation::Avg => mean,
        Aggregation::Stddev => (squares / n).sqrt(),
        _ => squares / n,
    });
    Ok(out.collect())
}

/// Of the values of one step so far.
#[derive(Clone, Copy, Default)]
struct Moments {
    n: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.n += 1.0;
        let before = value - self.mean;
        // An infinite mean stays what it is, or every later difference would be NaN.
        if self.mean.is_infinite() && (value.is_finite() || same_sign(self.mean, value)) {
            self.squares = f64::NAN;
            return;
        }
        self.mean += value / self.n - self.mean / self.n;
        self.squares += before * (value - self.mean);
    }
}

fn same_sign(a: f64, b: f64) -> bool {
    b.is_infinite() && (0.0 < a) == (0.0 < b)
}

fn at_step(members: &[&[f64]], step: usize) -> impl Iterator<Item = f64> {
    members
        .iter()
        .filter_map(move |values| values.get(step).copied())
        .filter(|value| !is_absent(*value))
}

/// `topk` and `bottomk` keep series as they are and blank what is not among the k.
fn select(
    aggregation: Aggregation,
    mut vector: Vector,
    groups: &[Group],
    parameter: &[f64],
    meter: &Meter<'_>,
) -> Result<Vector, QueryError> {
    let steps = vector.first().map_or(0, |series| series.values.len());
    let mut out_order: Vec<usize> = Vec::new();
    for group in groups {
        let mut keep = vec![vec![false; steps]; group.members.len()];
        for step in 0..steps {
            meter.spend(group.members.len() * RANKING)?;
            let ranked = ranked(aggregation, &vector, group, step);
            let k = whole(parameter.get(step).copied().unwrap_or(0.0))?;
            for &(place, _) in ranked.iter().take(k) {
                if let Some(slot) = keep.get_mut(place).and_then(|row| row.get_mut(step)) {
                    *slot = true;
                }
            }
            if steps == 1 {
                let members = ranked.iter().take(k);
                out_order.extend(members.filter_map(|(place, _)| group.members.get(*place)));
            }
        }
        for (place, &member) in group.members.iter().enumerate() {
            let Some(series) = vector.get_mut(member) else { continue };
            for (value, keep) in series.values.iter_mut().zip(keep.get(place).into_iter().flatten())
            {
                if !keep {
                    *value = ABSENT;
                }
            }
        }
    }
    if steps == 1 {
        return Ok(out_order.into_iter().filter_map(|at| vector.get(at).cloned()).collect());
    }
    Ok(super::binary::drop_empty(vector))
}

/// A group's present members at a step, best first, NaN last, ties in input order.
fn ranked(
    aggregation: Aggregation,
    vector: &Vector,
    group: &Group,
    step: usize,
) -> Vec<(usize, f64)> {
    let mut present: Vec<(usize, f64)> = group
        .members
        .iter()
        .enumerate()
        .filter_map(|(place, at)| Some((place, *vector.get(*at)?.values.get(step)?)))
        .filter(|(_, value)| !is_absent(*value))
        .collect();
    present.sort_by(|(_, a), (_, b)| match (a.is_nan(), b.is_nan()) {
        (false, false) if aggregation == Aggregation::Topk => {
            b.partial_cmp(a).unwrap_or(Ordering::Equal)
        }
        (false, false) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
        (a_nan, b_nan) => a_nan.cmp(&b_nan),
    });
    present
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "k was checked to be at least 1 and below 2^63; more than usize::MAX is all"
)]
fn whole(k: f64) -> Result<usize, QueryError> {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if !(-LIMIT..LIMIT).contains(&k) {
        return Err(QueryError::Execution(format!("Scalar value {} overflows int64", number(k))));
    }
    Ok(if k < 1.0 { 0 } else { k as usize })
}

/// Units of work of a comparison in a sort, or of a value made a label.
const RANKING: usize = 16;
