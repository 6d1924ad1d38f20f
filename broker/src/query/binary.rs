//! Binary operators: arithmetic, comparison, and the set operators, over whole columns.
//!
//! Which series can meet depends on labels alone and is found once; which of them do meet is
//! decided step by step, because a series may be absent at a step and another of the same match
//! group present.

use crate::query::deadline::Meter;
use crate::query::engine::QueryError;
use crate::query::value::{ABSENT, Labels, NAME, Series, Vector, is_absent};
use promql_parser::parser::token::{
    T_ADD, T_ATAN2, T_DIV, T_EQLC, T_GTE, T_GTR, T_LAND, T_LOR, T_LSS, T_LTE, T_LUNLESS, T_MOD,
    T_MUL, T_NEQ, T_POW, T_SUB, TokenId,
};
use promql_parser::parser::{BinModifier, LabelModifier, VectorMatchCardinality};
use std::collections::HashMap;

/// An operator that yields a number or filters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operator {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `%`
    Mod,
    /// `^`
    Pow,
    /// `atan2`
    Atan2,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
}

/// What a comparison does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Compare {
    /// Keeps the left value where it holds.
    Filter,
    /// Gives 0 or 1.
    Bool,
}

impl Operator {
    /// By token; `None` for the set operators.
    #[must_use]
    pub(crate) fn named(token: TokenId) -> Option<Self> {
        Some(match token {
            T_ADD => Self::Add,
            T_SUB => Self::Sub,
            T_MUL => Self::Mul,
            T_DIV => Self::Div,
            T_MOD => Self::Mod,
            T_POW => Self::Pow,
            T_ATAN2 => Self::Atan2,
            T_EQLC => Self::Equal,
            T_NEQ => Self::NotEqual,
            T_LSS => Self::Less,
            T_LTE => Self::LessEqual,
            T_GTR => Self::Greater,
            T_GTE => Self::GreaterEqual,
            _ => return None,
        })
    }

    /// Whether the result has lost its metric name. Prometheus 2.42 keeps it for `atan2`.
    #[must_use]
    pub(crate) fn drops_name(self) -> bool {
        matches!(self, Self::Add | Self::Sub | Self::Mul | Self::Div | Self::Mod | Self::Pow)
    }

    /// The number, or whether the comparison holds.
    #[expect(clippy::float_cmp, reason = "PromQL's == is exact")]
    fn apply(self, left: f64, right: f64) -> Result<f64, bool> {
        match self {
            Self::Add => Ok(left + right),
            Self::Sub => Ok(left - right),
            Self::Mul => Ok(left * right),
            Self::Div => Ok(left / right),
            Self::Mod => Ok(left % right),
            Self::Pow => Ok(left.powf(right)),
            Self::Atan2 => Ok(left.atan2(right)),
            Self::Equal => Err(left == right),
            Self::NotEqual => Err(left != right),
            Self::Less => Err(left < right),
            Self::LessEqual => Err(left <= right),
            Self::Greater => Err(left > right),
            Self::GreaterEqual => Err(left >= right),
        }
    }

    /// The value at a step, [`ABSENT`] if filtered away; `kept` is what a filter lets through.
    fn step(self, pair: (f64, f64), kept: f64, compare: Compare) -> f64 {
        match (self.apply(pair.0, pair.1), compare) {
            (Ok(value), _) => value,
            (Err(holds), Compare::Bool) => f64::from(u8::from(holds)),
            (Err(true), Compare::Filter) => kept,
            (Err(false), Compare::Filter) => ABSENT,
        }
    }
}

/// Scalar with scalar; comparisons give 0 or 1 (the parser insists on `bool`).
#[must_use]
pub(crate) fn scalars(operator: Operator, left: &[f64], right: &[f64]) -> Vec<f64> {
    let pairs = left.iter().zip(right);
    pairs.map(|(&l, &r)| operator.step((l, r), l, Compare::Bool)).collect()
}

/// Vector with scalar, in either order. A filter lets the vector's value through.
#[must_use]
pub(crate) fn with_scalar(
    operator: Operator,
    mut vector: Vector,
    scalar: &[f64],
    order: Order,
    compare: Compare,
) -> Vector {
    for series in &mut vector {
        for (value, &number) in series.values.iter_mut().zip(scalar) {
            if is_absent(*value) {
                continue;
            }
            let pair = match order {
                Order::VectorFirst => (*value, number),
                Order::ScalarFirst => (number, *value),
            };
            *value = operator.step(pair, *value, compare);
        }
        if operator.drops_name() || compare == Compare::Bool {
            series.labels = series.labels.without_name();
        }
    }
    vector
}

/// Which operand is the vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// `vector op scalar`
    VectorFirst,
    /// `scalar op vector`
    ScalarFirst,
}

/// Vector with vector by match groups.
///
/// # Errors
/// Several series of a group where one is needed.
pub(crate) fn vectors(
    operator: Operator,
    [left, right]: [&Vector; 2],
    modifier: Option<&BinModifier>,
    meter: &Meter<'_>,
) -> Result<Vector, QueryError> {
    let matching = Matching::new(operator, modifier);
    let swapped = matches!(matching.cardinality, Cardinality::OneToMany);
    let (many, one) = if swapped { (right, left) } else { (left, right) };
    let mut groups: HashMap<Labels, Vec<&Series>> = HashMap::new();
    for series in one {
        groups.entry(matching.signature(&series.labels)).or_default().push(series);
    }
    let mut results = Results::default();
    let mut owners: HashMap<Labels, Vec<bool>> = HashMap::new();
    // Two series of the one side at one step are an error even if nothing meets them, as long
    // as both sides have a sample at that step.
    let live = live_steps(many);
    for (signature, group) in groups.iter().filter(|(_, group)| 1 < group.len()) {
        meter.spend(group.len() * live.len())?;
        check_one_side(group, &live, signature, if swapped { "left" } else { "right" })?;
    }
    for series in many {
        let signature = matching.signature(&series.labels);
        let Some(group) = groups.get(&signature) else { continue };
        for other in group {
            meter.spend(series.values.len())?;
            let values = matching.values(series, other, swapped);
            if values.iter().copied().all(is_absent) {
                continue;
            }
            if matches!(matching.cardinality, Cardinality::OneToOne) {
                let owned =
                    owners.entry(signature.clone()).or_insert_with(|| vec![false; values.len()]);
                for (owned, value) in owned.iter_mut().zip(&values) {
                    if !is_absent(*value) && std::mem::replace(owned, true) {
                        return Err(QueryError::Execution(
                            "multiple matches for labels: many-to-one matching must be explicit \
                             (group_left/group_right)"
                                .to_owned(),
                        ));
                    }
                }
            }
            let labels = matching.result(&series.labels, &other.labels);
            results.add(
                labels,
                values,
                "multiple matches for labels: grouping labels must ensure unique matches",
            )?;
        }
    }
    Ok(results.vector)
}

/// `and`, `or`, `unless`.
///
/// # Errors
/// A token that is none of them.
pub(crate) fn sets(
    token: TokenId,
    left: Vector,
    right: &Vector,
    modifier: Option<&BinModifier>,
) -> Result<Vector, QueryError> {
    let matching = Matching::new(Operator::Equal, modifier);
    let steps = left.iter().chain(right).map(|series| series.values.len()).max().unwrap_or(0);
    let (kept, tested) = if token == T_LOR { (&left, right) } else { (right, &left) };
    let mut present: HashMap<Labels, Vec<bool>> = HashMap::new();
    for series in kept {
        let seen =
            present.entry(matching.signature(&series.labels)).or_insert_with(|| vec![false; steps]);
        for (seen, value) in seen.iter_mut().zip(&series.values) {
            *seen |= !is_absent(*value);
        }
    }
    let wanted = match token {
        T_LAND => true,
        T_LOR | T_LUNLESS => false,
        _ => return Err(QueryError::Unsupported(format!("binary operator {token}"))),
    };
    let mut filtered = tested.clone();
    for series in &mut filtered {
        let seen = present.get(&matching.signature(&series.labels));
        for (index, value) in series.values.iter_mut().enumerate() {
            let seen = seen.and_then(|seen| seen.get(index)).copied().unwrap_or(false);
            if seen != wanted {
                *value = ABSENT;
            }
        }
    }
    if token != T_LOR {
        return Ok(drop_empty(filtered));
    }
    let mut results = Results::default();
    for series in left.into_iter().chain(drop_empty(filtered)) {
        results.add(series.labels, series.values, DUPLICATE)?;
    }
    Ok(results.vector)
}

/// Series of equal labels made one, as long as they never have a sample at the same step.
///
/// # Errors
/// Two samples of one label set at one step.
pub(crate) fn unique(vector: Vector) -> Result<Vector, QueryError> {
    let mut results = Results::default();
    for series in vector {
        results.add(series.labels, series.values, DUPLICATE)?;
    }
    Ok(results.vector)
}

/// Without the series that have no sample at all.
#[must_use]
pub(crate) fn drop_empty(mut vector: Vector) -> Vector {
    vector.retain(|series| !series.values.iter().copied().all(is_absent));
    vector
}

/// What Prometheus says too.
pub(crate) const DUPLICATE: &str = "vector cannot contain metrics with the same labelset";

#[derive(Default)]
struct Results {
    vector: Vector,
    places: HashMap<Labels, usize>,
}

struct Matching<'a> {
    operator: Operator,
    compare: Compare,
    cardinality: Cardinality,
    on: bool,
    names: &'a [String],
    include: &'a [String],
}

enum Cardinality {
    OneToOne,
    ManyToOne,
    OneToMany,
}

impl Results {
    fn add(&mut self, labels: Labels, values: Vec<f64>, clash: &str) -> Result<(), QueryError> {
        let place = *self.places.entry(labels.clone()).or_insert(self.vector.len());
        let Some(known) = self.vector.get_mut(place) else {
            self.vector.push(Series { labels, values });
            return Ok(());
        };
        for (mine, value) in known.values.iter_mut().zip(values) {
            if is_absent(value) {
                continue;
            }
            if !is_absent(*mine) {
                return Err(QueryError::Execution(format!("{clash}: {}", known.labels)));
            }
            *mine = value;
        }
        Ok(())
    }
}

impl<'a> Matching<'a> {
    fn new(operator: Operator, modifier: Option<&'a BinModifier>) -> Self {
        let (on, names): (bool, &[String]) = match modifier.and_then(|m| m.matching.as_ref()) {
            Some(LabelModifier::Include(names)) => (true, &names.labels),
            Some(LabelModifier::Exclude(names)) => (false, &names.labels),
            None => (false, &[]),
        };
        let (cardinality, include): (_, &[String]) = match modifier.map(|m| &m.card) {
            Some(VectorMatchCardinality::ManyToOne(include)) => {
                (Cardinality::ManyToOne, &include.labels)
            }
            Some(VectorMatchCardinality::OneToMany(include)) => {
                (Cardinality::OneToMany, &include.labels)
            }
            _ => (Cardinality::OneToOne, &[]),
        };
        let bool_asked = modifier.is_some_and(|modifier| modifier.return_bool);
        let compare = if bool_asked { Compare::Bool } else { Compare::Filter };
        Self { operator, compare, cardinality, on, names, include }
    }

    fn signature(&self, labels: &Labels) -> Labels {
        if self.on { labels.only(self.names) } else { labels.without(self.names) }
    }

    fn values(&self, many: &Series, one: &Series, swapped: bool) -> Vec<f64> {
        let pairs = many.values.iter().zip(&one.values);
        pairs
            .map(|(&many, &one)| {
                let (left, right) = if swapped { (one, many) } else { (many, one) };
                if is_absent(left) || is_absent(right) {
                    return ABSENT;
                }
                self.operator.step((left, right), left, self.compare)
            })
            .collect()
    }

    fn result(&self, many: &Labels, one: &Labels) -> Labels {
        let mut labels = many.clone();
        if self.operator.drops_name() {
            labels.set(NAME, String::new());
        }
        if matches!(self.cardinality, Cardinality::OneToOne) {
            if self.on {
                labels = labels.only(self.names);
            } else {
                for name in self.names {
                    labels.set(name, String::new());
                }
            }
        }
        for name in self.include {
            labels.set(name, one.value(name).to_owned());
        }
        if self.compare == Compare::Bool {
            labels.set(NAME, String::new());
        }
        labels
    }
}

fn live_steps(vector: &Vector) -> Vec<bool> {
    let steps = vector.first().map_or(0, |series| series.values.len());
    let mut live = vec![false; steps];
    for series in vector {
        for (live, value) in live.iter_mut().zip(&series.values) {
            *live |= !is_absent(*value);
        }
    }
    live
}

fn check_one_side(
    group: &[&Series],
    live: &[bool],
    signature: &Labels,
    side: &str,
) -> Result<(), QueryError> {
    for (step, _) in live.iter().enumerate().filter(|(_, live)| **live) {
        let here = |series: &&&Series| series.values.get(step).is_some_and(|v| !is_absent(*v));
        let mut present = group.iter().filter(here);
        if let (Some(first), Some(second)) = (present.next(), present.next()) {
            return Err(QueryError::Execution(format!(
                "found duplicate series for the match group {signature} on the {side} hand-side of \
                 the operation: [{}, {}]; many-to-many matching not allowed: matching labels must \
                 be unique on one side",
                first.labels, second.labels
            )));
        }
    }
    Ok(())
}
