//! Rows of rollups: each says what it stands for, so that the rows of several stores count everything once.
//!
//! ```text
//! step_ms of a row at T    it stands for
//!  60,000 / 3,600,000      (T - step, T], and its store has everything of that
//!  1                       the sample at T: nobody vouches that the minute is whole
//!  0                       (T - the block's step, T], of a store that cannot say (remote-write; versions before)
//! ```
//!
//! **Of several stores**, as a host moves: a coarse row that is whole stands for all finer ones of its time,
//! whoever has them; of two whole rows the one of more samples counts; samples of one time are one. Rows of
//! stores that cannot say are added up: there a sample that two have taken in counts twice.

use super::block::{Block, GROUP};
use super::rollup::{Bucket, COUNT, LAST, ROLLED, step_end};
use std::collections::{BTreeMap, BTreeSet};

/// The rows of one series in one store, or in several, by what they stand for.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    /// What a plain row stands for, and the coarsest that is wanted.
    asked_ms: i64,
    steps: BTreeMap<i64, BTreeMap<i64, Bucket>>,
    plain: BTreeMap<i64, Bucket>,
}

/// The rollup windows of one store that were read, the newest file's first: an older file's are no more.
#[derive(Debug, Default)]
pub(super) struct Windows(BTreeSet<(u64, i64)>);

impl Windows {
    /// Whether a block of a section that begins in this window is the first.
    pub(super) fn is_new(&mut self, schema: u64, window_ms: i64) -> bool {
        self.0.insert((schema, window_ms))
    }
}

impl Sums {
    pub(super) fn new(asked_ms: i64) -> Self {
        Self { asked_ms, steps: BTreeMap::new(), plain: BTreeMap::new() }
    }

    /// The step that it was made for.
    pub(super) fn asked_ms(&self) -> i64 {
        self.asked_ms
    }

    /// The row that is to be added to.
    pub(super) fn row(&mut self, step_ms: i64, time_ms: i64) -> &mut Bucket {
        let (rows, time_ms) = if step_ms == 0 {
            (&mut self.plain, step_end(time_ms, self.asked_ms))
        } else {
            (self.steps.entry(step_ms).or_default(), time_ms)
        };
        rows.entry(time_ms).or_insert(Bucket::EMPTY)
    }

    /// Adds a block's rows of one series, which is the `column`th of `columns`.
    pub(super) fn block(
        &mut self,
        block: &Block<'_>,
        (column, columns): (usize, usize),
        bounds: (i64, i64),
    ) -> Result<(), String> {
        let (times, valid) = (block.times()?, block.validity()?);
        // A page has the steps of each series behind its fields, a stored block once for all.
        let own = columns * (ROLLED + 1);
        let (stride, steps) = match block.columns {
            all if all == own => (ROLLED + 1, Some(column * (ROLLED + 1) + ROLLED)),
            all => (ROLLED, (all == columns * ROLLED + 1).then_some(columns * ROLLED)),
        };
        let mut of = BTreeMap::new();
        let read = |column: usize, each: &mut dyn FnMut(i64, f64)| {
            let group = block.group(column / GROUP)?;
            block.column(&group, column, &times, &valid, &mut |time, raw| {
                if bounds.0 <= time && time <= bounds.1 {
                    each(time, f64::from_bits(raw));
                }
            })
        };
        if let Some(steps) = steps {
            read(steps, &mut |time, step| {
                of.insert(time, known_step(step));
            })?;
        }
        for field in 0..ROLLED {
            read(column * stride + field, &mut |time, value| {
                self.row(of.get(&time).copied().unwrap_or(0), time).merge(time, field, value);
            })?;
        }
        Ok(())
    }

    /// Puts the rows of one store under those whole rows that stand for their time as well: another section
    /// of the same store has them.
    pub(super) fn fold(&mut self) {
        let steps: Vec<i64> = self.steps.keys().copied().collect();
        for (at, fine) in steps.iter().enumerate() {
            let Some(mut rows) = self.steps.remove(fine) else { continue };
            let coarser = steps.get(at + 1..).unwrap_or(&[]);
            rows.retain(|&time, row| {
                let whole = coarser.iter().find(|step| {
                    let rows = self.steps.get(step);
                    rows.is_some_and(|rows| rows.contains_key(&step_end(time, **step)))
                });
                if let Some(step) = whole {
                    self.row(*step, step_end(time, *step)).absorb(time, row);
                }
                whole.is_none()
            });
            self.steps.insert(*fine, rows);
        }
    }

    /// Takes in what another store has of the same series; both are folded.
    pub(super) fn join(&mut self, other: Self) {
        for (step, rows) in other.steps {
            let own = self.steps.entry(step).or_default();
            for (time, row) in rows {
                let known = own.entry(time).or_insert(row);
                if known.fields[COUNT] < row.fields[COUNT] {
                    *known = row;
                }
            }
        }
        let steps: Vec<i64> = self.steps.keys().copied().collect();
        for (at, fine) in steps.iter().enumerate() {
            let Some(mut rows) = self.steps.remove(fine) else { continue };
            let coarser = steps.get(at + 1..).unwrap_or(&[]);
            let coarser: Vec<_> =
                coarser.iter().filter_map(|step| Some((*step, self.steps.get(step)?))).collect();
            rows.retain(|&time, _| {
                !coarser.iter().any(|(step, rows)| rows.contains_key(&step_end(time, *step)))
            });
            self.steps.insert(*fine, rows);
        }
        add_rows(&mut self.plain, &other.plain, self.asked_ms);
    }

    /// The last time that a row stands at.
    pub(super) fn last_ms(&self) -> Option<i64> {
        let rows = self.steps.values().chain([&self.plain]);
        rows.filter_map(|rows| rows.last_key_value().map(|(time, _)| *time)).max()
    }

    /// All of it as rows of the step that was asked for.
    pub(super) fn settle(&self) -> BTreeMap<i64, Bucket> {
        let mut out: BTreeMap<i64, Bucket> = BTreeMap::new();
        for rows in self.steps.values() {
            for (&time, row) in rows {
                let end = step_end(time, self.asked_ms);
                out.entry(end).or_insert(Bucket::EMPTY).absorb(time, row);
            }
        }
        add_rows(&mut out, &self.plain, self.asked_ms);
        out
    }

    /// All of it with what each row stands for, for who puts it together with other stores'.
    pub(super) fn parts(&self) -> BTreeMap<i64, (i64, Bucket)> {
        let mut out: BTreeMap<i64, (i64, Bucket)> = BTreeMap::new();
        let plain = self.plain.iter().map(|row| (0, row));
        let steps = self.steps.iter().flat_map(|(step, rows)| rows.iter().map(|row| (*step, row)));
        for (step, (&time, row)) in steps.chain(plain) {
            match out.get_mut(&time) {
                // Nobody can say any more what both together stand for.
                Some(known) => {
                    known.0 = 0;
                    known.1.absorb(time, row);
                }
                None => {
                    out.insert(time, (step, *row));
                }
            }
        }
        out
    }
}

/// Adds plain rows. Whose last sample is the later one nobody says: it is theirs who go on.
fn add_rows(rows: &mut BTreeMap<i64, Bucket>, sent: &BTreeMap<i64, Bucket>, step_ms: i64) {
    let mut added = Vec::with_capacity(sent.len());
    for (&time, bucket) in sent {
        let Some(known) = rows.get(&time) else {
            added.push((time, *bucket));
            continue;
        };
        let (mut both, next) = (*known, time.saturating_add(step_ms));
        let goes_on = !rows.contains_key(&next) && sent.contains_key(&next);
        for (field, value) in bucket.fields.iter().enumerate() {
            if field != LAST || goes_on {
                both.merge(time, field, *value);
            }
        }
        added.push((time, both));
    }
    rows.extend(added);
}

/// What a row says it stands for; 0 for what this version does not know.
pub(super) fn known_step(step: f64) -> i64 {
    STEPS.into_iter().find(|(said, _)| said.to_bits() == step.to_bits()).map_or(0, |(_, step)| step)
}

/// As a row says it.
pub(super) fn said_step(step: i64) -> f64 {
    STEPS.into_iter().find(|(_, known)| *known == step).map_or(0.0, |(said, _)| said)
}

/// What a row can stand for, as a column says it.
const STEPS: [(f64, i64); 3] = [(1.0, 1), (60_000.0, 60_000), (3_600_000.0, 3_600_000)];
