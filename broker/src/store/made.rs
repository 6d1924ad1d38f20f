//! The rows of one section's rollup window while they are made.

use super::block::ROWS_MAX;
use super::cover::Cover;
use super::head::{REMOTE, Rows};
use super::rollup::{Bucket, Level, ROLLED};
use super::sums::said_step;
use std::collections::BTreeMap;
use strobe_wire::schema::Schema;

/// What becomes of the samples of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kept {
    /// One row: this store has everything of it.
    Whole,
    /// As they are: another store may have some of them.
    Finer,
    /// One row that does not say so.
    Plain,
}

/// Rows under way.
#[derive(Debug)]
pub(super) struct Made {
    level: Level,
    start_ms: i64,
    columns: usize,
    kept: Vec<Kept>,
    /// Of each step, column after column.
    coarse: Vec<Bucket>,
    /// What is kept as it is, by time: what it stands for, and its columns.
    finer: BTreeMap<i64, (i64, Vec<Bucket>)>,
    /// Where a row is that nobody asks for.
    nowhere: Bucket,
}

impl Made {
    pub(super) fn new(level: Level, start_ms: i64, schema: &Schema, cover: &Cover) -> Self {
        let step = i64::from(level.step_ms);
        let kept =
            (1..=level.window_ms / step).map(|n| match cover.is_whole(start_ms + n * step, step) {
                _ if schema.section == REMOTE => Kept::Plain,
                true => Kept::Whole,
                false => Kept::Finer,
            });
        let kept: Vec<Kept> = kept.collect();
        let columns = schema.columns.len();
        let coarse = vec![Bucket::EMPTY; columns * kept.len()];
        let (finer, nowhere) = (BTreeMap::new(), Bucket::EMPTY);
        Self { level, start_ms, columns, kept, coarse, finer, nowhere }
    }

    /// There is a row that stands for so much; to be told before the first of them is added.
    pub(super) fn know(&mut self, time_ms: i64, step_ms: i64) {
        let step = self.step(time_ms);
        let Some(kept) = self.kept.get_mut(step) else { return };
        *kept = match *kept {
            _ if i64::from(self.level.step_ms) <= step_ms => Kept::Whole,
            Kept::Finer if step_ms == 0 => Kept::Plain,
            kept => kept,
        };
    }

    /// Where a sample or a row that stands for `step_ms` is to be added.
    pub(super) fn row(&mut self, column: usize, time_ms: i64, step_ms: i64) -> &mut Bucket {
        let step = self.step(time_ms);
        let columns = self.columns;
        match self.kept.get(step) {
            Some(Kept::Finer) => {
                let new = || (step_ms, vec![Bucket::EMPTY; columns]);
                let row = self.finer.entry(time_ms).or_insert_with(new);
                row.0 = row.0.max(step_ms);
                row.1.get_mut(column)
            }
            Some(_) => self.coarse.get_mut(step * columns + column),
            None => None,
        }
        .unwrap_or(&mut self.nowhere)
    }

    /// The step that a time is in; beyond all of them if it is before the first.
    fn step(&self, time_ms: i64) -> usize {
        let step = (time_ms - 1 - self.start_ms).div_euclid(i64::from(self.level.step_ms));
        usize::try_from(step).unwrap_or(usize::MAX)
    }

    /// All of them, each with what it stands for in the last column.
    pub(super) fn rows(mut self) -> Rows {
        if ROWS_MAX < self.finer.len() + self.kept.len() {
            self.kept
                .iter_mut()
                .filter(|kept| **kept == Kept::Finer)
                .for_each(|k| *k = Kept::Plain);
        }
        // A row that says more may have come behind those that were kept as they are.
        for (time, (step_ms, row)) in std::mem::take(&mut self.finer) {
            let step = self.step(time);
            if self.kept.get(step) == Some(&Kept::Finer) {
                self.finer.insert(time, (step_ms, row));
                continue;
            }
            let own = self.coarse.iter_mut().skip(step * self.columns);
            row.iter()
                .zip(own)
                .filter(|(row, _)| row.is_some())
                .for_each(|(r, o)| o.absorb(time, r));
        }
        let said = self.kept.iter().any(|kept| *kept != Kept::Plain);
        let mut all: BTreeMap<i64, (i64, &[Bucket])> = BTreeMap::new();
        for (time, (step_ms, row)) in &self.finer {
            all.insert(*time, (*step_ms, row));
        }
        let level_ms = i64::from(self.level.step_ms);
        let mut end = self.start_ms;
        for (row, kept) in self.coarse.chunks(self.columns.max(1)).zip(&self.kept) {
            end += level_ms;
            if row.iter().any(Bucket::is_some) {
                all.insert(end, (if *kept == Kept::Whole { level_ms } else { 0 }, row));
            }
        }
        let times = all.keys().copied().collect();
        let mut rows = Rows::blank(self.columns * ROLLED + usize::from(said), times);
        for (at, (step_ms, row)) in all.into_values().enumerate() {
            for (column, bucket) in row.iter().enumerate().filter(|(_, bucket)| bucket.is_some()) {
                for (field, number) in bucket.fields.iter().enumerate() {
                    rows.set(at, column * ROLLED + field, number.to_bits());
                }
            }
            if said {
                rows.set(at, self.columns * ROLLED, said_step(step_ms).to_bits());
            }
        }
        rows
    }
}
