//! The leaves of an expression: samples streamed from the store straight into step results.
//!
//! A series is scanned once, column by column; what is kept of it is one value a step. An instant
//! selector looks back at most five minutes and stops at a stale marker; a window function sees
//! a slice of the scanned column. Sources are spread over two threads when there are many.
//!
//! The same labels may come from two sources (a host that also remote-writes itself). Then both
//! columns are merged by time first, the earlier source winning where both have a sample.

use crate::query::deadline::Meter;
use crate::query::engine::QueryError;
use crate::query::evaluation::Evaluation;
use crate::query::rolled::{Column, Plan};
use crate::query::value::{ABSENT, Labels, Series, Steps, Vector, is_absent, seconds};
use crate::query::window::{Window, WindowFunction};
use crate::store::{Part, Scratch, StoreError, TimeRange};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is made of a column of samples.
#[derive(Clone, Debug)]
pub(crate) struct Leaf<'a> {
    /// The steps of the expression around it.
    pub steps: Steps,
    /// `@`: one reference time for all steps.
    pub at_ms: Option<i64>,
    /// `offset`, ms; positive looks back.
    pub offset_ms: i64,
    /// How.
    pub reduce: Reduce<'a>,
}

/// How a column of samples becomes one value a step.
#[derive(Clone, Debug)]
pub(crate) enum Reduce<'a> {
    /// The newest sample of the last `LOOKBACK_MS`.
    Newest,
    /// Its time, in seconds.
    NewestTime,
    /// A function over the window of `range_ms` that ends at the step.
    Window {
        /// Which.
        function: WindowFunction,
        /// Length of the window.
        range_ms: i64,
        /// Parameters by step; empty where the function has none.
        parameters: [&'a [f64]; 2],
    },
}

/// How far an instant selector looks back.
pub(crate) const LOOKBACK_MS: i64 = 5 * 60 * 1000;
/// Units of work of looking at a source.
const PART: usize = 1000;
/// From this many sources on a scan uses two threads.
const PARTS_FOR_THREADS: usize = 8;

/// Raw samples of one series.
#[derive(Clone, PartialEq, Debug)]
pub struct Raw {
    /// Its labels.
    pub labels: Labels,
    /// Times, ms, ascending.
    pub times: Vec<i64>,
    /// Values, as many.
    pub values: Vec<f64>,
}

/// A series that a scan is at.
#[derive(Clone, Copy)]
pub(super) struct One<'a> {
    part: &'a Part,
    /// Of its part among all.
    pub(super) index: usize,
    /// Of the series in its part.
    pub(super) at: usize,
}

impl One<'_> {
    fn labels(&self) -> Labels {
        Labels::from_pairs(self.part.labels(self.at).0)
    }
}

impl Leaf<'_> {
    /// The time range of samples that matter.
    #[must_use]
    pub(crate) fn time_range(&self) -> TimeRange {
        let back = match self.reduce {
            Reduce::Newest | Reduce::NewestTime => LOOKBACK_MS,
            Reduce::Window { range_ms, .. } => range_ms,
        };
        let first = self.reference(0);
        let last = self.reference(self.steps.count.saturating_sub(1));
        TimeRange { start_ms: first.saturating_sub(back), end_ms: last }
    }

    /// One value a step, or `None` if no step has one. Times ascend.
    ///
    /// # Errors
    /// The time is over.
    pub(crate) fn reduce(
        &self,
        times: &[i64],
        values: &[f64],
        meter: &Meter<'_>,
    ) -> Result<Option<Vec<f64>>, QueryError> {
        meter.spend(times.len() + self.steps.count)?;
        let (mut start, mut end, mut any) = (0, 0, false);
        let mut out = Vec::with_capacity(self.steps.count);
        for step in 0..self.steps.count {
            let reference = self.reference(step);
            end += advance(times.get(end..).unwrap_or(&[]), |time| time <= reference);
            let value = match &self.reduce {
                Reduce::Newest => newest(times, values, end, reference).map(|(_, value)| value),
                Reduce::NewestTime => {
                    newest(times, values, end, reference).map(|(time, _)| seconds(time))
                }
                Reduce::Window { function, range_ms, parameters } => {
                    let start_ms = reference.saturating_sub(*range_ms);
                    start += advance(times.get(start..).unwrap_or(&[]), |time| time < start_ms);
                    let span = start.min(end)..end;
                    meter.spend(span.len())?;
                    let parameter = |of: &[f64]| of.get(step).copied().unwrap_or(0.0);
                    function.apply(&Window {
                        times: times.get(span.clone()).unwrap_or(&[]),
                        values: values.get(span).unwrap_or(&[]),
                        start_ms,
                        end_ms: reference,
                        step_ms: self.steps.at(step),
                        parameters: parameters.map(parameter),
                    })
                }
            };
            any |= value.is_some();
            out.push(value.unwrap_or(ABSENT));
        }
        Ok(any.then_some(out))
    }

    /// As [`Self::reduce`] of samples that may have stale markers among them.
    ///
    /// # Errors
    /// The time is over.
    pub(crate) fn reduce_clean(
        &self,
        times: &[i64],
        values: &[f64],
        meter: &Meter<'_>,
    ) -> Result<Option<Vec<f64>>, QueryError> {
        let windowed = matches!(self.reduce, Reduce::Window { .. });
        if windowed && values.iter().copied().any(is_absent) {
            let (times, values) = without_stale(times, values);
            return self.reduce(&times, &values, meter);
        }
        self.reduce(times, values, meter)
    }

    pub(super) fn reference(&self, step: usize) -> i64 {
        self.at_ms.unwrap_or_else(|| self.steps.at(step)).saturating_sub(self.offset_ms)
    }
}

impl Evaluation<'_> {
    /// Evaluates a leaf over all matching series, sorted by labels.
    pub(super) fn scan_leaf(
        &self,
        parts: &[Part],
        leaf: &Leaf<'_>,
        plan: &Plan,
    ) -> Result<Vector, QueryError> {
        let mut found: Vector = self.scan_parts(parts, plan, |one, column| {
            let reduced = plan.reduce(leaf, column, &self.meter)?;
            Ok(reduced.map(|values| Series { labels: one.labels(), values }))
        })?;
        found.sort_by(|a, b| a.labels.cmp(&b.labels));
        if found.windows(2).any(|pair| matches!(pair, [a, b] if a.labels == b.labels)) {
            if plan.rolled_ms.is_none() {
                return self.scan_merged(parts, leaf, plan);
            }
            self.store.note(
                "two sources have a series of the same labels: the first's rollup is shown".into(),
            );
            found.dedup_by(|b, a| a.labels == b.labels);
        }
        Ok(found)
    }

    /// Raw samples of all matching series, sorted by labels, stale markers left out.
    pub(super) fn scan_raw(
        &self,
        parts: &[Part],
        range: TimeRange,
    ) -> Result<Vec<Raw>, QueryError> {
        let mut all = self.merged(parts, range)?;
        for raw in &mut all {
            (raw.times, raw.values) = without_stale(&raw.times, &raw.values);
        }
        all.retain(|raw| !raw.times.is_empty());
        Ok(all)
    }

    fn scan_merged(
        &self,
        parts: &[Part],
        leaf: &Leaf<'_>,
        plan: &Plan,
    ) -> Result<Vector, QueryError> {
        let mut found = Vec::new();
        for raw in self.merged(parts, plan.range)? {
            let column = Column::Samples(&raw.times, &raw.values);
            if let Some(values) = plan.reduce(leaf, column, &self.meter)? {
                found.push(Series { labels: raw.labels, values });
            }
        }
        Ok(found)
    }

    fn merged(&self, parts: &[Part], range: TimeRange) -> Result<Vec<Raw>, QueryError> {
        let plan = Plan::samples(range);
        let scanned = self.scan_parts(parts, &plan, |one, column| {
            let Column::Samples(times, values) = column else { return Ok(None) };
            self.meter.spend(times.len())?;
            Ok(Some(Raw { labels: one.labels(), times: times.to_vec(), values: values.to_vec() }))
        })?;
        let mut places: HashMap<Labels, usize> = HashMap::with_capacity(scanned.len());
        let mut all: Vec<Raw> = Vec::with_capacity(scanned.len());
        for raw in scanned {
            let place = *places.entry(raw.labels.clone()).or_insert(all.len());
            match all.get_mut(place) {
                Some(first) => merge(first, &raw),
                None => all.push(raw),
            }
        }
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(all)
    }

    /// Calls `visit` for every series of every part; results stand in the order of the parts.
    pub(super) fn scan_parts<T: Send>(
        &self,
        parts: &[Part],
        plan: &Plan,
        visit: impl Fn(One<'_>, Column<'_>) -> Result<Option<T>, QueryError> + Sync,
    ) -> Result<Vec<T>, QueryError> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, T)>, QueryError> {
            let mut scratch = Scratch::new(&self.limits.store());
            let mut found = Vec::new();
            // Relaxed: the counter only hands out indices, it publishes nothing.
            while let index = next.fetch_add(1, Ordering::Relaxed)
                && let Some(part) = parts.get(index)
            {
                let before = scratch.samples();
                let mut stopped = None;
                let mut each = |at, column: Column<'_>| {
                    match visit(One { part, index, at }, column) {
                        Ok(item) => found.extend(item.map(|item| (index, item))),
                        Err(why) => {
                            stopped = Some(why);
                            return Err(StoreError::Visitor(String::new()));
                        }
                    }
                    Ok(())
                };
                let (store, range) = (self.store, plan.range);
                let scanned = match plan.rolled_ms {
                    None => store.scan_numbered(part, range, &mut scratch, &mut |at, t, v| {
                        each(at, Column::Samples(t, v))
                    }),
                    Some(step) => {
                        store.scan_rolled(part, range, step, &mut scratch, &mut |at, rows| {
                            each(at, Column::Rolled(rows))
                        })
                    }
                };
                if let Some(why) = stopped {
                    return Err(why);
                }
                scanned?;
                self.meter.spend(PART)?;
                self.count_samples(scratch.samples() - before)?;
            }
            Ok(found)
        };
        let mut found = if parts.len() < PARTS_FOR_THREADS {
            work()?
        } else {
            let (mine, other) = std::thread::scope(|scope| {
                let other = scope.spawn(work);
                (work(), other.join())
            });
            let mut found = mine?;
            found.extend(other.map_err(|_| QueryError::Internal("a scan thread panicked"))??);
            found
        };
        found.sort_by_key(|(index, _)| *index);
        Ok(found.into_iter().map(|(_, item)| item).collect())
    }
}

/// How many of the first times satisfy `holds`; near ones are found without a search.
fn advance(times: &[i64], holds: impl Fn(i64) -> bool) -> usize {
    let mut bound = 1;
    while times.get(bound - 1).is_some_and(|&time| holds(time)) {
        bound *= 2;
    }
    let known = bound / 2;
    let rest = times.get(known..times.len().min(bound)).unwrap_or(&[]);
    known + rest.partition_point(|&time| holds(time))
}

fn newest(times: &[i64], values: &[f64], end: usize, reference: i64) -> Option<(i64, f64)> {
    let last = end.checked_sub(1)?;
    let (time, value) = (*times.get(last)?, *values.get(last)?);
    let fresh = reference.saturating_sub(LOOKBACK_MS) <= time;
    (fresh && !is_absent(value)).then_some((time, value))
}

fn without_stale(times: &[i64], values: &[f64]) -> (Vec<i64>, Vec<f64>) {
    times.iter().zip(values).filter(|(_, value)| !is_absent(**value)).map(|(t, v)| (*t, *v)).unzip()
}

fn merge(first: &mut Raw, second: &Raw) {
    let mut pairs: Vec<(i64, f64)> =
        first.times.iter().copied().zip(first.values.iter().copied()).collect();
    pairs.extend(second.times.iter().copied().zip(second.values.iter().copied()));
    // Stable: at equal times the first source's sample stays in front and is kept.
    pairs.sort_by_key(|pair| pair.0);
    pairs.dedup_by_key(|pair| pair.0);
    (first.times, first.values) = pairs.into_iter().unzip();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::deadline::Deadline;

    fn leaf(reduce: Reduce<'_>) -> Leaf<'_> {
        let steps = Steps { start_ms: 100_000, step_ms: 100_000, count: 5 };
        Leaf { steps, at_ms: None, offset_ms: 0, reduce }
    }

    #[test]
    fn newest_looks_back_five_minutes_and_stops_at_stale_markers() {
        let got = |times: &[i64], values: &[f64]| {
            let meter = Meter::new(Deadline::never(), 10);
            let values = leaf(Reduce::Newest).reduce(times, values, &meter).unwrap()?;
            Some(values.into_iter().map(|v| (!is_absent(v)).then_some(v)).collect::<Vec<_>>())
        };
        assert_eq!(got(&[], &[]), None);
        let (one, two) = (Some(1.0), Some(2.0));
        // Exactly five minutes old still counts.
        assert_eq!(got(&[100_000], &[1.0]), Some(vec![one, one, one, one, None]));
        assert_eq!(got(&[100_001], &[1.0]), Some(vec![None, one, one, one, None]));
        let (times, values) = ([100_000, 150_000, 350_000], [1.0, ABSENT, 2.0]);
        assert_eq!(got(&times, &values), Some(vec![one, None, None, two, two]));
        // `timestamp` sees them too: the marker's own time is nobody's.
        let meter = Meter::new(Deadline::never(), 10);
        let shown = leaf(Reduce::NewestTime).reduce(&times, &values, &meter).unwrap().unwrap();
        let shown: Vec<_> = shown.into_iter().map(|v| (!is_absent(v)).then_some(v)).collect();
        assert_eq!(shown, [Some(100.0), None, None, Some(350.0), Some(350.0)]);
    }

    #[test]
    fn windows_are_closed_at_both_ends() {
        let reduce = Reduce::Window {
            function: WindowFunction::Count,
            range_ms: 100_000,
            parameters: [&[], &[]],
        };
        let times = [0, 50_000, 100_000, 200_000];
        let got =
            leaf(reduce).reduce(&times, &[1.0; 4], &Meter::new(Deadline::never(), 10)).unwrap();
        let [a, b, c, d, e] = got.unwrap()[..] else { panic!("five steps") };
        assert_eq!([a, b, c].map(f64::to_bits), [3.0, 2.0, 1.0].map(f64::to_bits));
        assert!(is_absent(d) && is_absent(e));
    }

    #[test]
    fn advance_equals_partition_point() {
        let times: Vec<i64> = (0..37).collect();
        for bound in -1..40 {
            let wanted = times.partition_point(|&time| time <= bound);
            assert_eq!(advance(&times, |time| time <= bound), wanted, "{bound}");
        }
    }

    #[test]
    fn columns_of_two_sources_merge_by_time() {
        let raw = |times: &[i64], values: &[f64]| Raw {
            labels: Labels::default(),
            times: times.to_vec(),
            values: values.to_vec(),
        };
        let mut first = raw(&[1, 3, 5], &[1.0, 3.0, 5.0]);
        merge(&mut first, &raw(&[2, 3, 9], &[20.0, 30.0, 90.0]));
        assert_eq!(first, raw(&[1, 2, 3, 5, 9], &[1.0, 20.0, 3.0, 5.0, 90.0]));
    }
}
