//! Rollups: what is left of samples when they are old.
//!
//! A rollup block has five float columns for each column of the schema (min, max, sum, count,
//! last) and a row for each step, at the step's end. Minutes are made of raw samples an hour at a
//! time, hours of minutes a day at a time, a few sources a tick, from sealed segments only.

use super::StoreError;
use super::block::{Block, Content, Data, GROUP, LEVEL_SEALED, Meta, encode};
use super::head::{Rows, Source};
use super::segment::{Segment, SegmentWriter};
use std::path::PathBuf;
use std::sync::Arc;
use strobe_wire::schema::{Kind, Schema};

/// From which steps to which, and how much at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Level {
    pub(super) from_ms: u32,
    pub(super) step_ms: u32,
    pub(super) window_ms: i64,
}

/// A rollup of one window that is under way.
#[derive(Debug)]
pub(super) struct RollupJob {
    pub(super) level: Level,
    pub(super) start_ms: i64,
    /// Those of the level below that overlap the window.
    segments: Vec<Arc<Segment>>,
    rest: Vec<Arc<Source>>,
    out: SegmentWriter,
}

/// min, max, sum, count, last.
#[derive(Clone, Copy, Debug)]
struct Bucket([f64; ROLLED]);

impl RollupJob {
    pub(super) fn new(
        path: PathBuf,
        level: Level,
        start_ms: i64,
        segments: Vec<Arc<Segment>>,
        mut sources: Vec<Arc<Source>>,
    ) -> Result<Self, StoreError> {
        sources.sort_by_key(|source| std::cmp::Reverse(source.id));
        let out = SegmentWriter::new(path, level.step_ms)?;
        Ok(Self { level, start_ms, segments, rest: sources, out })
    }

    /// Rolls up the next sources; true when none is left.
    pub(super) fn step(&mut self, sources: usize) -> Result<bool, StoreError> {
        for _ in 0..sources {
            let Some(source) = self.rest.pop() else { return Ok(true) };
            let end_ms = self.start_ms + self.level.window_ms;
            let (labels, sections) = {
                let state = source.read();
                let overlaps = |span: (i64, i64)| span.0 <= end_ms && self.start_ms <= span.1;
                let sections = state.sections.iter().filter(|(_, s)| overlaps(s.span));
                let sections: Vec<(u64, Arc<Schema>)> =
                    sections.map(|(&id, section)| (id, Arc::clone(&section.schema))).collect();
                (Arc::clone(&state.labels), sections)
            };
            for (id, schema) in sections {
                let rows = self.roll(source.id, id, &schema)?;
                if rows.len() == 0 {
                    continue;
                }
                let meta = Meta { source: source.id, schema: id, step_ms: self.level.step_ms };
                let kinds = vec![Kind::Float; rows.columns];
                let bytes = encode(&meta, Content::Rows(&rows), &kinds, LEVEL_SEALED);
                self.out.block(&labels, &schema, &bytes)?;
            }
        }
        Ok(self.rest.is_empty())
    }

    pub(super) fn finish(self) -> Result<Option<Segment>, StoreError> {
        if self.out.is_empty() { Ok(None) } else { self.out.finish(i64::MIN, 0).map(Some) }
    }

    fn roll(&self, source: u128, id: u64, schema: &Schema) -> Result<Rows, StoreError> {
        let step = i64::from(self.level.step_ms);
        let steps = self.level.window_ms / step;
        let times: Vec<i64> = (1..=steps).map(|n| self.start_ms + n * step).collect();
        let columns = schema.columns.len();
        let mut buckets = vec![Bucket::EMPTY; columns * times.len()];
        for segment in &self.segments {
            let loaded = segment.loaded()?;
            let bounds = (self.start_ms, self.start_ms + self.level.window_ms);
            for entry in loaded.blocks(source, id, bounds) {
                let data = Data::File(&loaded.file, entry.offset, entry.length);
                // What is broken is named by the reader and by `check`; the rest is rolled up.
                if let Err(why) = Block::open(data)
                    .and_then(|block| self.add(&block, schema, times.len(), &mut buckets))
                {
                    log::warn!("{} at byte {}: {why}", segment.path.display(), entry.offset);
                }
            }
        }
        let mut rows = Rows::blank(columns * ROLLED, times);
        for (index, bucket) in buckets.iter().enumerate().filter(|(_, b)| 0.0 < b.0[COUNT]) {
            for (field, number) in bucket.0.iter().enumerate() {
                let column = index % columns * ROLLED + field;
                rows.set(index / columns, column, number.to_bits());
            }
        }
        Ok(rows.retain_filled())
    }

    fn add(
        &self,
        block: &Block<'_>,
        schema: &Schema,
        steps: usize,
        buckets: &mut [Bucket],
    ) -> Result<(), String> {
        let (times, valid) = (block.times()?, block.validity()?);
        let columns = schema.columns.len();
        let rolled = self.level.from_ms != 0;
        for index in 0..block.columns.div_ceil(GROUP) {
            let group = block.group(index)?;
            for column in index * GROUP..block.columns.min((index + 1) * GROUP) {
                let (of, field) =
                    if rolled { (column / ROLLED, column % ROLLED) } else { (column, LAST) };
                let kind = match schema.columns.get(of) {
                    Some(column) if !rolled => column.kind,
                    Some(_) => Kind::Float,
                    None => continue,
                };
                block.column(&group, column, &times, &valid, &mut |time, raw| {
                    // A rollup's row stands at the end of its step.
                    let at = if rolled { time - 1 } else { time } - self.start_ms;
                    let step = at.div_euclid(i64::from(self.level.step_ms));
                    let Ok(step) = usize::try_from(step) else { return };
                    let bucket = buckets.get_mut(step * columns + of).filter(|_| step < steps);
                    let value = kind.value(raw);
                    match bucket {
                        Some(bucket) if rolled => bucket.merge(field, value),
                        Some(bucket) => bucket.add(value),
                        None => {}
                    }
                })?;
            }
        }
        Ok(())
    }
}

impl Bucket {
    const EMPTY: Self = Self([f64::NAN, f64::NAN, 0.0, 0.0, f64::NAN]);

    fn add(&mut self, value: f64) {
        // A NaN (stale marker) is the last there is, but no number to sum.
        if !value.is_nan() {
            for (field, number) in [(0, value), (1, value), (2, value)] {
                self.merge(field, number);
            }
        }
        self.merge(COUNT, 1.0);
        self.merge(LAST, value);
    }

    fn merge(&mut self, field: usize, value: f64) {
        let Some(slot) = self.0.get_mut(field) else { return };
        *slot = match field {
            0 => slot.min(value),
            1 => slot.max(value),
            2 | COUNT => *slot + value,
            _ => value,
        };
    }
}

/// Minutes out of raw samples.
pub(super) const MINUTES: Level = Level { from_ms: 0, step_ms: 60_000, window_ms: 3_600_000 };
/// Hours out of minutes.
pub(super) const HOURS: Level =
    Level { from_ms: 60_000, step_ms: 3_600_000, window_ms: 86_400_000 };
/// Columns of a rollup for each column.
pub(super) const ROLLED: usize = 5;
/// Which of them is the last value: what a query sees where raw samples are gone.
pub(super) const LAST: usize = 4;
const COUNT: usize = 3;
