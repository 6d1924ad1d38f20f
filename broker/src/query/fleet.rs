//! Aggregations straight over stored series: `sum by (instance) (rate(x[1m]))` over a fleet.
//!
//! Every series' labels would be put together, hashed and dropped again: for 28,000 series more
//! work than reading their samples. Here a group is found once for each source and list of columns,
//! and a series is its group's number and its values.
//!
//! It stands in only where the answer is the same: one metric name, so that dropping it makes no
//! two series equal, and sources that differ in `job` or `instance`. Else it says `None`.

use crate::query::aggregate::{Aggregation, fold, signature};
use crate::query::engine::{QueryError, unwrapped};
use crate::query::evaluation::{Evaluation, check_smoothing, millis, offset};
use crate::query::parse;
use crate::query::selectors::{Leaf, Reduce};
use crate::query::value::{Labels, NAME, Series, Steps, Vector};
use crate::query::window::WindowFunction;
use crate::store::{MatchOp, Part};
use promql_parser::parser::{AggregateExpr, Expr, LabelModifier, VectorSelector};
use std::collections::{HashMap, HashSet};

/// Of each part the group of each of its series; and the groups.
struct Groups {
    of: Vec<Vec<usize>>,
    labels: Vec<Labels>,
}

/// What is aggregated: a selector and what is made of its samples.
struct Inner<'a> {
    selector: &'a VectorSelector,
    window: Option<(WindowFunction, i64)>,
    parameters: Vec<Vec<f64>>,
}

impl Evaluation<'_> {
    /// The aggregation, or `None` if it has to be made of a vector.
    pub(super) fn scan_aggregated(
        &self,
        aggregation: Aggregation,
        expr: &AggregateExpr,
        steps: Steps,
        parameter: &[f64],
    ) -> Result<Option<Vector>, QueryError> {
        if matches!(aggregation, Aggregation::Topk | Aggregation::Bottomk) {
            return Ok(None);
        }
        let Some(inner) = self.inner(&expr.expr, steps)? else { return Ok(None) };
        let leaf = inner.leaf(self, steps)?;
        let mut plan = self.plan(&leaf);
        let parts = self.select(inner.selector, &mut plan)?;
        if !differ(&parts) {
            return Ok(None);
        }
        let series: usize = parts.iter().map(Part::len).sum();
        self.meter.hold(series, steps.count)?;
        let keeps_name = matches!(inner.window, None | Some((WindowFunction::Last, _)));
        let groups = groups(&parts, expr.modifier.as_ref(), keeps_name);
        let found = self.scan_parts(&parts, &plan, |one, column| {
            let group = groups.of.get(one.index).and_then(|of| of.get(one.at)).copied();
            let group = group.ok_or(QueryError::Internal("a series without a group"))?;
            let values = plan.reduce(&leaf, column, &self.meter)?;
            Ok(values.map(|values| (group, values)))
        })?;
        let mut members: Vec<Vec<&[f64]>> = vec![Vec::new(); groups.labels.len()];
        for (group, values) in &found {
            if let Some(members) = members.get_mut(*group) {
                members.push(values);
            }
        }
        let mut out = Vec::with_capacity(members.len());
        for (labels, members) in groups.labels.into_iter().zip(&members) {
            if !members.is_empty() {
                self.meter.spend(members.len())?;
                let values = fold(aggregation, members, parameter, &self.meter)?;
                out.push(Series { labels, values });
            }
        }
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(Some(out))
    }

    fn inner<'a>(&self, expr: &'a Expr, steps: Steps) -> Result<Option<Inner<'a>>, QueryError> {
        let inner = match unwrapped(expr) {
            Expr::VectorSelector(selector) => {
                Inner { selector, window: None, parameters: Vec::new() }
            }
            Expr::Call(call) => {
                let Some(function) = WindowFunction::named(call.func.name) else {
                    return Ok(None);
                };
                let args: Vec<&Expr> = call.args.args.iter().map(|arg| unwrapped(arg)).collect();
                let matrix = args.iter().position(|arg| matches!(arg, Expr::MatrixSelector(_)));
                let (Some(at), true) = (matrix, call.func.name != "absent_over_time") else {
                    return Ok(None);
                };
                let Some(Expr::MatrixSelector(matrix)) = args.get(at).copied() else {
                    return Ok(None);
                };
                let numbers = args.iter().enumerate().filter(|(place, _)| *place != at);
                let numbers = numbers.map(|(_, number)| self.scalar(number, steps));
                let parameters = numbers.collect::<Result<Vec<_>, _>>()?;
                let window = Some((function, millis(matrix.range)?));
                Inner { selector: &matrix.vs, window, parameters }
            }
            _ => return Ok(None),
        };
        let named = parse::matchers(inner.selector)?;
        let named = named.iter().any(|m| m.name == NAME && m.op == MatchOp::Equal);
        Ok(named.then_some(inner))
    }
}

impl Inner<'_> {
    fn leaf(&self, evaluation: &Evaluation<'_>, steps: Steps) -> Result<Leaf<'_>, QueryError> {
        let parameters = [0, 1].map(|at| self.parameters.get(at).map_or(&[][..], Vec::as_slice));
        let reduce = match self.window {
            None => Reduce::Newest,
            Some((function, range_ms)) => {
                if function == WindowFunction::HoltWinters {
                    check_smoothing(&parameters)?;
                }
                Reduce::Window { function, range_ms, parameters }
            }
        };
        Ok(Leaf {
            steps,
            at_ms: evaluation.at(self.selector.at.as_ref())?,
            offset_ms: offset(self.selector.offset.as_ref())?,
            reduce,
        })
    }
}

/// Whether no two series of all parts can have the same labels.
fn differ(parts: &[Part]) -> bool {
    let mut lists = HashSet::new();
    let mut owners = HashSet::with_capacity(parts.len());
    parts.iter().all(|part| {
        let plain = !lists.insert(part.list()) || part.is_plain();
        let owner = (part.label(0, "job"), part.label(0, "instance"));
        plain && owner.0.is_some() && owner.1.is_some() && owners.insert(owner)
    })
}

fn groups(parts: &[Part], modifier: Option<&LabelModifier>, keeps_name: bool) -> Groups {
    let Some(modifier) = modifier else {
        let of = parts.iter().map(|part| vec![0; part.len()]).collect();
        return Groups { of, labels: vec![Labels::default()] };
    };
    // Which series of a list go together whatever their source is, and the first of each kind.
    let mut lists: HashMap<usize, (Vec<usize>, Vec<usize>)> = HashMap::new();
    let mut places: HashMap<Labels, usize> = HashMap::new();
    let mut groups = Groups { of: Vec::with_capacity(parts.len()), labels: Vec::new() };
    for part in parts {
        let full = |series| {
            let mut labels = Labels::from_pairs(part.labels(series).0);
            if !keeps_name {
                labels.set(NAME, String::new());
            }
            signature(&labels, Some(modifier))
        };
        let (kinds, firsts) = lists.entry(part.list()).or_insert_with(|| {
            let mut known: HashMap<Labels, usize> = HashMap::new();
            let mut firsts = Vec::new();
            // By the series' own labels: those of a source may fall together with some of them.
            let kinds = (0..part.len()).map(|series| {
                let own = signature(&Labels::from_pairs(part.own_labels(series)), Some(modifier));
                *known.entry(own).or_insert_with(|| {
                    firsts.push(series);
                    firsts.len() - 1
                })
            });
            (kinds.collect(), firsts)
        });
        let numbers: Vec<usize> = firsts
            .iter()
            .map(|first| {
                let labels = full(*first);
                *places.entry(labels).or_insert_with_key(|labels| {
                    groups.labels.push(labels.clone());
                    groups.labels.len() - 1
                })
            })
            .collect();
        groups.of.push(kinds.iter().filter_map(|kind| numbers.get(*kind)).copied().collect());
    }
    groups
}
