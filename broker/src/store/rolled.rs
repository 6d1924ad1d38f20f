//! Giving out rollup rows: for windows that reach behind the raw samples.
//!
//! The rows of one level over the whole range, so that a window never mixes levels: what is not
//! rolled up yet is rolled up while it is read (minutes into hours, raw samples into either). What several
//! stores have is put together by what each row stands for ([`super::sums`]).

use super::block::{Block, Data};
use super::elsewhere::Home;
use super::head::{REMOTE, Source};
use super::local::Store;
use super::redis::Far;
use super::rollup::{Bucket, HOURS, Level, MINUTES, step_end};
use super::scratch::Scratch;
use super::select::{Part, Places};
use super::sums::{Sums, Windows, said_step};
use super::{StoreError, TimeRange};
use std::collections::BTreeMap;

/// Rows of a rollup of one series; the row at a time stands for the step that ends there.
#[derive(Clone, Debug, Default)]
pub struct Rolled {
    /// Ends of steps, ms, ascending.
    pub times: Vec<i64>,
    /// Smallest value of each; NaN where there is none but a stale marker.
    pub min: Vec<f64>,
    /// Largest.
    pub max: Vec<f64>,
    /// Sum.
    pub sum: Vec<f64>,
    /// How many.
    pub count: Vec<f64>,
    /// The last; maybe a stale marker.
    pub last: Vec<f64>,
    /// For who puts them together with others: of how many ms each is the whole, 0 of what nobody says.
    /// Empty where all are of the step that was asked for.
    pub steps: Vec<f64>,
}

/// What can answer a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// Raw samples reach back far enough, or nothing reaches further back than they.
    Raw,
    /// Rollups of this step.
    Rolled {
        /// Their step, ms.
        step_ms: i64,
    },
    /// Rollups reach further back, but their steps do not divide the window: raw samples, which are
    /// whole from this time on.
    RawFrom {
        /// When, ms.
        from_ms: i64,
    },
}

impl Store {
    /// The finest level that has everything from `start_ms` on and can answer windows of
    /// `range_ms`; else the one of those that can which reaches furthest back.
    #[must_use]
    pub fn resolution(&self, start_ms: i64, range_ms: i64) -> Resolution {
        let horizon = self.shared.horizon();
        let far = self.shared.archive.get().map_or(i64::MAX, |archive| archive.raw_from_ms());
        if horizon.raw_ms.min(far) <= start_ms {
            return Resolution::Raw;
        }
        let minute = i64::from(MINUTES.step_ms);
        let hour = i64::from(HOURS.step_ms);
        let divides = |step: i64| step <= range_ms && range_ms % step == 0;
        let rolled = |level| self.shared.rolled_ms(level) != i64::MIN;
        let minutes = rolled(MINUTES) && divides(minute);
        let hours = rolled(HOURS) && divides(hour) && horizon.minutes_ms != i64::MIN;
        if minutes && (horizon.minutes_ms <= start_ms || !hours) {
            return Resolution::Rolled { step_ms: minute };
        }
        if hours {
            return Resolution::Rolled { step_ms: hour };
        }
        Resolution::RawFrom { from_ms: horizon.raw_ms }
    }

    /// Calls `visit` with each series of `part` that has rows in `range`: its number and rows.
    ///
    /// # Errors
    /// What `visit` returned, a limit, or bytes that could not be read.
    pub fn scan_rolled(
        &self,
        part: &Part,
        range: TimeRange,
        step_ms: i64,
        scratch: &mut Scratch,
        visit: &mut dyn FnMut(usize, &Rolled) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.scan_sums(part, (range, step_ms), scratch, &mut |series, sums| {
            let rolled = Rolled::of(sums.settle().iter().map(|(time, row)| (*time, *row)));
            if rolled.times.is_empty() {
                Ok(0)
            } else {
                visit(series, &rolled).map(|()| rolled.times.len())
            }
        })
    }

    /// The same with rows that each say what they stand for.
    pub(super) fn scan_parts(
        &self,
        part: &Part,
        range: TimeRange,
        step_ms: i64,
        scratch: &mut Scratch,
        visit: &mut dyn FnMut(usize, &Rolled) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.scan_sums(part, (range, step_ms), scratch, &mut |series, sums| {
            let parts = sums.parts();
            let mut rolled = Rolled::of(parts.iter().map(|(time, (_, row))| (*time, *row)));
            let said = parts.values().filter(|(_, row)| row.is_some());
            rolled.steps = said.map(|(step, _)| said_step(*step)).collect();
            if rolled.times.is_empty() {
                Ok(0)
            } else {
                visit(series, &rolled).map(|()| rolled.times.len())
            }
        })
    }

    fn scan_sums(
        &self,
        part: &Part,
        (range, step_ms): (TimeRange, i64),
        scratch: &mut Scratch,
        visit: &mut dyn FnMut(usize, &Sums) -> Result<usize, StoreError>,
    ) -> Result<(), StoreError> {
        for (series, place) in part.places.iter().enumerate() {
            let mut sums = match part.source.home {
                Home::Here => self.rolled_rows(part, place, range, step_ms, scratch)?,
                Home::Sent | Home::SentRolled => Sums::new(step_ms),
            };
            self.add_sent_rows(part, place, (range, step_ms), &mut sums);
            let rows = visit(series, &sums)?;
            scratch.take(rows)?;
        }
        Ok(())
    }

    fn rolled_rows(
        &self,
        part: &Part,
        place: &Places,
        range: TimeRange,
        step_ms: i64,
        scratch: &mut Scratch,
    ) -> Result<Sums, StoreError> {
        let (mut own, mut others) = (Sums::new(step_ms), Vec::new());
        let mut from_ms = range.start_ms;
        let coarse = step_ms == i64::from(HOURS.step_ms);
        for level in [HOURS, MINUTES] {
            if level == HOURS && !coarse {
                continue;
            }
            // The last row that is stored; what is behind it comes from the next finer level.
            let to_ms = range.end_ms.min(self.shared.rolled_ms(level));
            if to_ms < from_ms {
                continue;
            }
            let of = (level, (from_ms, to_ms));
            self.level_rows(part, place, of, (&mut own, &mut others))?;
            from_ms = to_ms.saturating_add(1);
        }
        if from_ms <= range.end_ms {
            scratch.pairs.resize_with(1, Vec::new);
            scratch.pairs.iter_mut().for_each(Vec::clear);
            let tail = TimeRange { start_ms: from_ms, end_ms: range.end_ms };
            self.gather_here(part, std::slice::from_ref(place), tail, scratch)?;
            if scratch.settle(0)? {
                let samples = scratch.times.iter().copied().zip(scratch.values.iter().copied());
                add_samples(&part.source, place, step_ms, samples, &mut own);
            }
        }
        own.fold();
        for mut other in others {
            other.fold();
            own.join(other);
        }
        Ok(own)
    }

    /// The stored rows of a level within bounds, of two files that have a window the newer one's; of other
    /// stores in Redis as well.
    fn level_rows(
        &self,
        part: &Part,
        place: &Places,
        (level, bounds): (Level, (i64, i64)),
        (own, others): (&mut Sums, &mut Vec<Sums>),
    ) -> Result<(), StoreError> {
        let mut windows = Windows::default();
        let segments = self.shared.segments();
        let of = segments.iter().filter(|segment| {
            let overlaps = segment.first_ms <= bounds.1 && bounds.0 <= segment.last_ms;
            segment.step_ms == level.step_ms && overlaps
        });
        let mut of: Vec<_> = of.collect();
        of.sort_by_key(|segment| std::cmp::Reverse(segment.number));
        for segment in of {
            let Some(loaded) = self.opened(segment) else { continue };
            for &(schema, column) in &place.sections {
                let columns = columns_of(&part.source, schema);
                for entry in loaded.blocks(part.source.id, schema, bounds) {
                    if !windows.is_new(schema, level.window(entry.first_ms)) {
                        continue;
                    }
                    let data = Data::File(&loaded.file, entry.offset, entry.length);
                    let read = Block::open(data)
                        .and_then(|block| own.block(&block, (column, columns), bounds));
                    if let Err(why) = read {
                        self.corrupt(&segment.path, entry.offset, &why);
                    }
                }
            }
        }
        let Some(far) = self.far(part, bounds) else { return Ok(()) };
        for (store, far) in far.by_store() {
            if self.is_ours(store) {
                self.far_rows(part, place, &far, (level, bounds), (&mut windows, own))?;
                continue;
            }
            let mut theirs = Sums::new(own.asked_ms());
            let windows = &mut Windows::default();
            self.far_rows(part, place, &far, (level, bounds), (windows, &mut theirs))?;
            // What it did not live to roll up lies there as samples.
            let from_ms = theirs.last_ms().map_or(bounds.0, |last| last + 1);
            self.far_raw(part, place, &far, (from_ms, bounds.1), &mut theirs)?;
            others.push(theirs);
        }
        Ok(())
    }

    /// Adds one store's rows that are in Redis, without the windows that are there; the newest file's first.
    fn far_rows(
        &self,
        part: &Part,
        place: &Places,
        far: &Far,
        (level, bounds): (Level, (i64, i64)),
        (windows, sums): (&mut Windows, &mut Sums),
    ) -> Result<(), StoreError> {
        let wanted = |schema| place.sections.iter().any(|section| section.0 == schema);
        let parts = |step| if step == level.step_ms { bounds } else { (1, 0) };
        self.far_blocks(part.source.id, far, &wanted, &parts, &mut |schema, bytes, bounds| {
            let columns = columns_of(&part.source, schema);
            let of = place.sections.iter().find(|section| section.0 == schema);
            let read = Block::open(Data::Memory(bytes)).and_then(|block| match of {
                Some(&(_, column)) if windows.is_new(schema, level.window(block.first_ms)) => {
                    sums.block(&block, (column, columns), bounds)
                }
                _ => Ok(()),
            });
            if let Err(why) = read {
                self.corrupt(std::path::Path::new("a block in Redis"), 0, &why);
            }
            Ok(())
        })
    }

    /// Takes in one store's samples that are in Redis.
    fn far_raw(
        &self,
        part: &Part,
        place: &Places,
        far: &Far,
        bounds: (i64, i64),
        sums: &mut Sums,
    ) -> Result<(), StoreError> {
        let mut pairs = vec![Vec::new()];
        let raw = |step| if step == 0 { bounds } else { (1, 0) };
        let of = (&*part.source, std::slice::from_ref(place));
        self.gather_far(of, far, &raw, (&mut pairs, SAMPLES_FAR_MAX))?;
        let samples: BTreeMap<i64, f64> = pairs.into_iter().flatten().collect();
        let step_ms = if is_remote(&part.source, place) { 0 } else { 1 };
        for (time, value) in samples {
            sums.row(step_ms, time).add(time, value);
        }
        Ok(())
    }
}

impl Rolled {
    fn of(rows: impl Iterator<Item = (i64, Bucket)>) -> Self {
        let mut rolled = Self::default();
        for (time, bucket) in rows.filter(|(_, bucket)| bucket.is_some()) {
            rolled.times.push(time);
            let [min, max, sum, count, last] = bucket.fields;
            rolled.min.push(min);
            rolled.max.push(max);
            rolled.sum.push(sum);
            rolled.count.push(count);
            rolled.last.push(last);
        }
        rolled
    }
}

/// Rolls samples up as far as this store has everything of their time; the others stay what they are.
fn add_samples(
    source: &Source,
    place: &Places,
    step_ms: i64,
    samples: impl Iterator<Item = (i64, f64)>,
    sums: &mut Sums,
) {
    let remote = is_remote(source, place);
    let cover = source.read().cover.clone();
    let minute = i64::from(MINUTES.step_ms);
    let steps = [step_ms, minute];
    // Of the last look: until when, and what the samples until then are put under.
    let mut until: (i64, Option<i64>) = (i64::MIN, None);
    for (time, value) in samples {
        if remote {
            sums.row(0, time).add(time, value);
            continue;
        }
        if until.0 < time {
            let whole = |step: &i64| cover.is_whole(step_end(time, *step), *step);
            let found = steps.into_iter().find(whole);
            until = (step_end(time, found.unwrap_or(minute)), found);
        }
        match until.1 {
            Some(step) => sums.row(step, step_end(time, step)).add(time, value),
            None => sums.row(1, time).add(time, value),
        }
    }
}

/// Whether a series came by remote-write: nobody numbers its samples.
fn is_remote(source: &Source, place: &Places) -> bool {
    let state = source.read();
    place.sections.iter().all(|(schema, _)| {
        state.sections.get(schema).is_some_and(|section| section.schema.section == REMOTE)
    })
}

fn columns_of(source: &Source, schema: u64) -> usize {
    source.read().sections.get(&schema).map_or(0, |section| section.schema.columns.len())
}

/// Of one series, of an hour or two: a sample each millisecond.
const SAMPLES_FAR_MAX: usize = 1 << 24;
