//! Rollups: what is left of samples when they are old.
//!
//! A rollup block has five float columns for each column of the schema (min, max, sum, count,
//! last) and a row for each step. The row at `T` stands for the samples in `(T - step, T]`: its
//! last value is what an instant selector finds at `T`, and `n` rows make a window that is exact.
//! Stale markers are a last value and nothing else. Minutes are made of raw samples an hour at a
//! time, hours of minutes a day at a time, from sealed segments only, a few sections a tick.
//!
//! **Whole or not.** A row of a time of which this store has everything says so; of other times the samples
//! are kept one by one, as another store may have some of them too ([`super::sums`]).
//!
//! **Late rows.** A rollup segment names the newest segment it was made of. Blocks of newer ones
//! that reach into a window rolled up before are late: with the next window, their windows are
//! rolled up again into the same file, and of two rows for one time the newer file's is read. Where
//! the finer level is gone in part, what is late is added to the rollup that is there.
//!
//! **Which level answers** is decided by time: below a floor, which retention raises, raw samples
//! (or minutes) are no longer whole and the next level answers. The floors are kept in a file, as
//! what was removed cannot be asked. Nothing that is not rolled up is removed by age.
//!
//! Block statistics (min, max, sum, ... of ten minutes) are not used for `*_over_time`: a window
//! rarely holds a whole block, sums would be added in another order than the samples', and a block
//! that overlaps a late one counts samples twice.

use super::StoreError;
use super::block::{Block, Data, GROUP, Group, Meta};
use super::encode::{Content, LEVEL_SEALED, encode};
use super::head::{Rows, Source};
use super::made::Made;
use super::segment::{Entry, Loaded, Segment, SegmentWriter};
use super::shared::Shared;
use super::sums::{Windows, known_step};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use strobe_wire::schema::{Kind, Labels, Schema};

/// From which steps to which, and how much at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Level {
    pub(super) from_ms: u32,
    pub(super) step_ms: u32,
    pub(super) window_ms: i64,
}

/// A rollup of one window, and of late rows of others, that is under way.
#[derive(Debug)]
pub(super) struct RollupJob {
    pub(super) level: Level,
    pub(super) start_ms: i64,
    /// From here on the level below is whole.
    floor_ms: i64,
    /// Segments of the level below that are newer are in no rollup yet.
    after: u64,
    through: u64,
    segments: Arc<Vec<Arc<Segment>>>,
    rest: Vec<Work>,
    out: SegmentWriter,
}

/// A section's window.
#[derive(Debug)]
struct Work {
    of: Arc<Source>,
    labels: Arc<Labels>,
    id: u64,
    schema: Arc<Schema>,
    start_ms: i64,
}

/// min, max, sum, count, last of the samples of one step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Bucket {
    pub(super) fields: [f64; ROLLED],
    last_ms: i64,
}

impl RollupJob {
    pub(super) fn new(
        path: PathBuf,
        level: Level,
        start_ms: i64,
        floor_ms: i64,
        shared: &Shared,
    ) -> Result<Self, StoreError> {
        let segments = shared.segments();
        let of = |step: u32| segments.iter().filter(move |segment| segment.step_ms == step);
        let after = of(level.step_ms).map(|segment| segment.through).max().unwrap_or(0);
        let through = of(level.from_ms).map(|segment| segment.number).max().unwrap_or(after);
        let mut late = BTreeSet::new();
        for segment in of(level.from_ms).filter(|s| after < s.number && s.first_ms <= start_ms) {
            for entry in segment.loaded()?.entries() {
                let mut window = level.window(entry.first_ms);
                while window < start_ms && window <= level.window(entry.last_ms) {
                    late.insert((entry.source, entry.schema, window));
                    window += level.window_ms;
                }
            }
        }
        let mut rest = Vec::new();
        for source in shared.sources() {
            source_work(&source, level, start_ms, &late, &mut rest);
        }
        // Taken from the end, so that sources stand in the file in ascending order.
        rest.reverse();
        let out = SegmentWriter::new(path, level.step_ms)?;
        Ok(Self { level, start_ms, floor_ms, after, through, segments, rest, out })
    }

    /// Rolls up the next sections; true when none is left.
    pub(super) fn step(&mut self, sections: usize) -> Result<bool, StoreError> {
        for _ in 0..sections {
            let Some(work) = self.rest.pop() else { return Ok(true) };
            let rows = self.roll(&work)?;
            if rows.len() == 0 {
                continue;
            }
            let meta = Meta { source: work.of.id, schema: work.id, step_ms: self.level.step_ms };
            let kinds = vec![Kind::Float; rows.columns];
            let bytes = encode(&meta, Content::Rows(&rows), &kinds, LEVEL_SEALED);
            self.out.block(&work.labels, &work.schema, &bytes)?;
        }
        Ok(self.rest.is_empty())
    }

    pub(super) fn finish(self) -> Result<Option<Segment>, StoreError> {
        if self.out.is_empty() {
            return Ok(None);
        }
        self.out.finish(i64::MIN, self.through).map(Some)
    }

    fn roll(&self, work: &Work) -> Result<Rows, StoreError> {
        let cover = work.of.read().cover.clone();
        let mut made = Made::new(self.level, work.start_ms, &work.schema, &cover);
        // What is left of the level below is less than the rollup that is there: it is added to.
        let whole = self.floor_ms <= work.start_ms.saturating_add(1);
        if !whole {
            self.add_blocks(work, self.level.step_ms, 0, &mut made)?;
        }
        let after = if whole { 0 } else { self.after };
        self.add_blocks(work, self.level.from_ms, after, &mut made)?;
        Ok(made.rows())
    }

    /// Adds the blocks of a step, newest segment first: of two samples of one time its one counts.
    fn add_blocks(
        &self,
        work: &Work,
        step_ms: u32,
        after: u64,
        made: &mut Made,
    ) -> Result<(), StoreError> {
        let bounds = (work.start_ms + 1, work.start_ms + self.level.window_ms);
        let mut places: Vec<(Arc<Loaded>, Entry, &Segment)> = Vec::new();
        for segment in self.segments.iter().filter(|s| s.step_ms == step_ms && after < s.number) {
            if segment.last_ms < bounds.0 || bounds.1 < segment.first_ms {
                continue;
            }
            let loaded = segment.loaded()?;
            let entries: Vec<Entry> = loaded.blocks(work.of.id, work.id, bounds).copied().collect();
            places
                .extend(entries.into_iter().map(|entry| (Arc::clone(&loaded), entry, &**segment)));
        }
        places.sort_by_key(|(_, _, segment)| std::cmp::Reverse(segment.number));
        if let Some(level) = level_of(step_ms) {
            let mut windows = Windows::default();
            places.retain(|(_, at, _)| windows.is_new(work.id, level.window(at.first_ms)));
        }
        let mut blocks = Vec::new();
        for (loaded, entry, segment) in &places {
            // What is broken is named by the reader and by `check`; the rest is rolled up.
            let data = Data::File(&loaded.file, entry.offset, entry.length);
            match Opened::new(data, work.schema.columns.len()) {
                Ok(block) => blocks.push(block),
                Err(why) => {
                    log::warn!("{} at byte {}: {why}", segment.path.display(), entry.offset);
                }
            }
        }
        if step_ms != 0 {
            for block in &blocks {
                block.times.iter().for_each(|time| made.know(*time, block.step(*time)));
            }
        }
        let columns = work.schema.columns.len() * if step_ms == 0 { 1 } else { ROLLED };
        for index in 0..columns.div_ceil(GROUP) {
            Self::add_group(work, &blocks, index, bounds, made);
        }
        Ok(())
    }

    fn add_group(
        work: &Work,
        blocks: &[Opened<'_>],
        index: usize,
        bounds: (i64, i64),
        made: &mut Made,
    ) {
        let mut samples: [Vec<(i64, u64)>; GROUP] = [const { Vec::new() }; GROUP];
        let mut rolled = false;
        // No two blocks of rollups have rows of one time.
        let said = |time| blocks.iter().find_map(|b| b.steps.get(&time)).copied().unwrap_or(0);
        for block in blocks {
            rolled = block.block.meta.step_ms != 0;
            if let Err(why) = block.group(index, bounds, &mut samples) {
                log::warn!("a block of host {:032x} is rolled up in part: {why}", work.of.id);
            }
        }
        for (place, samples) in samples.iter_mut().enumerate() {
            let column = index * GROUP + place;
            let (of, field) = if rolled { (column / ROLLED, column % ROLLED) } else { (column, 0) };
            let Some(own) = work.schema.columns.get(of) else { continue };
            let kind = if rolled { Kind::Float } else { own.kind };
            if !samples.is_sorted_by(|a, b| a.0 < b.0) {
                samples.sort_by_key(|sample| sample.0);
                samples.dedup_by_key(|sample| sample.0);
            }
            for &(time, raw) in samples.iter() {
                let value = kind.value(raw);
                if rolled {
                    made.row(of, time, said(time)).merge(time, field, value);
                } else {
                    made.row(of, time, 1).add(time, value);
                }
            }
        }
    }
}

/// A block and what all its columns share.
struct Opened<'a> {
    block: Block<'a>,
    times: Vec<i64>,
    valid: Vec<Option<Vec<u8>>>,
    /// Of rollups: what each row stands for.
    steps: BTreeMap<i64, i64>,
}

impl<'a> Opened<'a> {
    fn new(data: Data<'a>, columns: usize) -> Result<Self, String> {
        let block = Block::open(data)?;
        let (times, valid) = (block.times()?, block.validity()?);
        let mut steps = BTreeMap::new();
        let last = columns * ROLLED;
        if block.meta.step_ms != 0 && block.columns == last + 1 {
            block.column(&block.group(last / GROUP)?, last, &times, &valid, &mut |time, raw| {
                steps.insert(time, known_step(f64::from_bits(raw)));
            })?;
        }
        Ok(Self { block, times, valid, steps })
    }

    fn step(&self, time_ms: i64) -> i64 {
        self.steps.get(&time_ms).copied().unwrap_or(0)
    }

    fn group(
        &self,
        index: usize,
        bounds: (i64, i64),
        out: &mut [Vec<(i64, u64)>; GROUP],
    ) -> Result<(), String> {
        if self.block.columns <= index * GROUP {
            return Ok(());
        }
        let group: Group = self.block.group(index)?;
        let columns = index * GROUP..self.block.columns.min((index + 1) * GROUP);
        for (column, out) in columns.zip(out) {
            self.block.column(&group, column, &self.times, &self.valid, &mut |time, raw| {
                if bounds.0 <= time && time <= bounds.1 {
                    out.push((time, raw));
                }
            })?;
        }
        Ok(())
    }
}

/// The windows of a source: the one that is due, and those that rows came late for.
fn source_work(
    source: &Arc<Source>,
    level: Level,
    start_ms: i64,
    late: &BTreeSet<(u128, u64, i64)>,
    out: &mut Vec<Work>,
) {
    let state = source.read();
    for (&id, section) in &state.sections {
        let due = section.span.0 <= start_ms + level.window_ms && start_ms < section.span.1;
        let from = (source.id, id, i64::MIN);
        let late = late.range(from..=(source.id, id, i64::MAX)).map(|late| late.2);
        for start_ms in late.chain(due.then_some(start_ms)) {
            out.push(Work {
                of: Arc::clone(source),
                labels: Arc::clone(&state.labels),
                id,
                schema: Arc::clone(&section.schema),
                start_ms,
            });
        }
    }
}

impl Level {
    /// Start of the window that a sample belongs to.
    pub(super) fn window(self, time_ms: i64) -> i64 {
        (time_ms - 1).div_euclid(self.window_ms) * self.window_ms
    }
}

impl Bucket {
    pub(super) const EMPTY: Self =
        Self { fields: [f64::NAN, f64::NAN, 0.0, 0.0, f64::NAN], last_ms: i64::MIN };

    pub(super) fn is_some(&self) -> bool {
        self.last_ms != i64::MIN
    }

    /// Adds a sample.
    pub(super) fn add(&mut self, time_ms: i64, value: f64) {
        if value.to_bits() != STALE {
            for (field, number) in [(0, value), (1, value), (2, value), (COUNT, 1.0)] {
                self.merge(time_ms, field, number);
            }
        }
        self.merge(time_ms, LAST, value);
    }

    /// Adds one field of a rollup's row.
    pub(super) fn merge(&mut self, time_ms: i64, field: usize, value: f64) {
        let Some(slot) = self.fields.get_mut(field) else { return };
        match field {
            0 => *slot = slot.min(value),
            1 => *slot = slot.max(value),
            2 | COUNT => *slot += value,
            _ if self.last_ms <= time_ms => {
                *slot = value;
                self.last_ms = time_ms;
            }
            _ => {}
        }
    }

    /// Adds a row that ends at `time_ms`.
    pub(super) fn absorb(&mut self, time_ms: i64, row: &Self) {
        for (field, value) in row.fields.iter().enumerate() {
            self.merge(time_ms, field, *value);
        }
    }
}

/// The level whose rows are of this step; none of samples.
fn level_of(step_ms: u32) -> Option<Level> {
    [MINUTES, HOURS].into_iter().find(|level| level.step_ms == step_ms)
}

/// The row that a sample belongs to.
pub(super) fn step_end(time_ms: i64, step_ms: i64) -> i64 {
    ((time_ms - 1).div_euclid(step_ms) + 1) * step_ms
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
pub(super) const COUNT: usize = 3;
/// Prometheus' stale marker.
const STALE: u64 = 0x7ff0_0000_0000_0002;
