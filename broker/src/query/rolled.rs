//! Windows that reach behind the raw samples, answered from rollup rows.
//!
//! A row at `T` stands for the samples in `(T - step, T]`. Means, sums, counts and extremes of a
//! window that is a multiple of the step are exact for the window that ends at the last whole step;
//! `rate` and its like see the last sample of each step, as a scrape at that interval would have.
//! Functions that ask for every single sample have no answer there.

use crate::query::deadline::Meter;
use crate::query::engine::QueryError;
use crate::query::evaluation::Evaluation;
use crate::query::selectors::{Leaf, Reduce};
use crate::query::value::{ABSENT, is_absent, seconds};
use crate::query::window::{WindowFunction, largest, smallest, sum};
use crate::store::{Resolution, Rolled, TimeRange};

/// What a scan gives out of one series.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column<'a> {
    /// Times and values.
    Samples(&'a [i64], &'a [f64]),
    /// Rows of a rollup.
    Rolled(&'a Rolled),
}

/// What answers a leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) range: TimeRange,
    /// The step of the rollup that is read.
    pub(super) rolled_ms: Option<i64>,
    /// Windows that begin before this have no answer.
    from_ms: i64,
    /// Of windows that rollups can answer, their length; of others 1.
    pub(super) window_ms: Option<i64>,
    /// Where the range begins, if nothing is left out.
    start_ms: i64,
}

impl Evaluation<'_> {
    /// Rollups where a window reaches behind the raw samples, its function can be had from them, and
    /// it is a multiple of their step; else raw samples for the windows that have all of theirs.
    pub(super) fn plan(&self, leaf: &Leaf<'_>) -> Plan {
        let mut plan = Plan::samples(leaf.time_range());
        let Reduce::Window { function, range_ms, .. } = leaf.reduce else { return plan };
        // A window of 1 ms is a multiple of no step.
        let asked_ms = if is_answered(function) { range_ms } else { 1 };
        plan.window_ms = Some(asked_ms);
        match self.store.resolution(plan.range.start_ms, asked_ms) {
            Resolution::Raw => {}
            Resolution::Rolled { step_ms } => plan.rolled_ms = Some(step_ms),
            Resolution::RawFrom { from_ms } => {
                plan.from_ms = from_ms;
                plan.range.start_ms = plan.range.start_ms.max(from_ms);
                self.store.note(format!(
                    "samples before {} are kept as rollups of minutes and hours, which cannot \
                     answer {function:?} over {} s: windows that begin before have no value",
                    seconds(from_ms),
                    seconds(range_ms)
                ));
            }
        }
        plan
    }
}

impl Plan {
    /// Samples, whatever there is.
    pub(super) fn samples(range: TimeRange) -> Self {
        let (rolled_ms, from_ms, window_ms) = (None, i64::MIN, None);
        Self { range, rolled_ms, from_ms, window_ms, start_ms: range.start_ms }
    }

    /// Somebody else has only rollups of this step of that time.
    pub(super) fn coarsen(&mut self, step_ms: i64) {
        (self.rolled_ms, self.from_ms) = (Some(step_ms), i64::MIN);
        self.range.start_ms = self.start_ms;
    }

    /// One value a step, or `None` if no step has one.
    ///
    /// # Errors
    /// The time is over.
    pub(super) fn reduce(
        &self,
        leaf: &Leaf<'_>,
        column: Column<'_>,
        meter: &Meter<'_>,
    ) -> Result<Option<Vec<f64>>, QueryError> {
        let reduced = match (column, &leaf.reduce) {
            (Column::Samples(times, values), _) => leaf.reduce_clean(times, values, meter)?,
            (Column::Rolled(rows), Reduce::Window { function, range_ms, .. }) => {
                if is_points(*function) {
                    leaf.reduce_clean(&rows.times, &rows.last, meter)?
                } else {
                    fold(leaf, *function, *range_ms, rows, meter)?
                }
            }
            (Column::Rolled(_), _) => None,
        };
        let Some(mut values) = reduced else { return Ok(None) };
        if self.from_ms != i64::MIN
            && let Reduce::Window { range_ms, .. } = leaf.reduce
        {
            for (step, value) in values.iter_mut().enumerate() {
                if leaf.reference(step).saturating_sub(range_ms) < self.from_ms {
                    *value = ABSENT;
                }
            }
        }
        Ok(Some(values).filter(|values| values.iter().any(|value| !is_absent(*value))))
    }
}

/// Of rows whose last sample is all that is asked for.
fn is_points(function: WindowFunction) -> bool {
    use WindowFunction as F;
    matches!(function, F::Rate | F::Increase | F::Delta | F::Deriv | F::PredictLinear)
}

fn is_answered(function: WindowFunction) -> bool {
    use WindowFunction as F;
    let folded =
        matches!(function, F::Avg | F::Min | F::Max | F::Sum | F::Count | F::Last | F::Present);
    folded || is_points(function)
}

fn fold(
    leaf: &Leaf<'_>,
    function: WindowFunction,
    range_ms: i64,
    rows: &Rolled,
    meter: &Meter<'_>,
) -> Result<Option<Vec<f64>>, QueryError> {
    let mut out = Vec::with_capacity(leaf.steps.count);
    for step in 0..leaf.steps.count {
        let end_ms = leaf.reference(step);
        let start_ms = end_ms.saturating_sub(range_ms);
        let first = rows.times.partition_point(|time| *time <= start_ms);
        let end = rows.times.partition_point(|time| *time <= end_ms);
        meter.spend(end.saturating_sub(first))?;
        let of = |field: &'_ [f64]| field.get(first..end).map_or_else(Vec::new, <[f64]>::to_vec);
        let count = sum(&of(&rows.count));
        let value = match function {
            _ if count < 1.0 => ABSENT,
            WindowFunction::Avg => sum(&of(&rows.sum)) / count,
            WindowFunction::Min => smallest(&of(&rows.min)),
            WindowFunction::Max => largest(&of(&rows.max)),
            WindowFunction::Sum => sum(&of(&rows.sum)),
            WindowFunction::Count => count,
            WindowFunction::Present => 1.0,
            _ => of(&rows.last).into_iter().rfind(|last| !is_absent(*last)).unwrap_or(ABSENT),
        };
        out.push(value);
    }
    Ok(out.iter().any(|value| !is_absent(*value)).then_some(out))
}
