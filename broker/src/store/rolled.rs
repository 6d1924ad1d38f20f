//! Giving out rollup rows: for windows that reach behind the raw samples.
//!
//! The rows of one level over the whole range, so that a window never mixes levels: what is not
//! rolled up yet is rolled up while it is read (minutes into hours, raw samples into either).

use super::block::{Block, Data, GROUP};
use super::elsewhere::{Home, add_rows};
use super::local::Store;
use super::redis::Far;
use super::rollup::{Bucket, HOURS, Level, MINUTES, ROLLED, coarser, step_end};
use super::scratch::Scratch;
use super::select::{Part, Places};
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
        for (series, place) in part.places.iter().enumerate() {
            let mut rows = match part.source.home {
                Home::Here => self.rolled_rows(part, place, range, step_ms, scratch)?,
                Home::Sent | Home::SentRolled => BTreeMap::new(),
            };
            self.add_sent_rows(part, place, (range, step_ms), &mut rows);
            let mut rolled = Rolled::default();
            for (time, bucket) in rows.iter().filter(|(_, bucket)| bucket.is_some()) {
                rolled.times.push(*time);
                let [min, max, sum, count, last] = bucket.fields;
                rolled.min.push(min);
                rolled.max.push(max);
                rolled.sum.push(sum);
                rolled.count.push(count);
                rolled.last.push(last);
            }
            scratch.take(rolled.times.len())?;
            if !rolled.times.is_empty() {
                visit(series, &rolled)?;
            }
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
    ) -> Result<BTreeMap<i64, Bucket>, StoreError> {
        let mut rows = BTreeMap::new();
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
            let found = self.level_rows(part, place, level, (from_ms, to_ms))?;
            coarser(&found, step_ms, &mut rows);
            from_ms = to_ms.saturating_add(1);
        }
        if from_ms <= range.end_ms {
            scratch.pairs.resize_with(1, Vec::new);
            scratch.pairs.iter_mut().for_each(Vec::clear);
            let tail = TimeRange { start_ms: from_ms, end_ms: range.end_ms };
            self.gather_here(part, std::slice::from_ref(place), tail, scratch)?;
            if scratch.settle(0)? {
                for (&time, &value) in scratch.times.iter().zip(&scratch.values) {
                    let end = step_end(time, step_ms);
                    rows.entry(end).or_insert(Bucket::EMPTY).add(time, value);
                }
            }
        }
        Ok(rows)
    }

    /// The stored rows of a level within `bounds`, of two for one time the newer file's.
    fn level_rows(
        &self,
        part: &Part,
        place: &Places,
        level: Level,
        bounds: (i64, i64),
    ) -> Result<BTreeMap<i64, Bucket>, StoreError> {
        let mut rows = BTreeMap::new();
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
                for entry in loaded.blocks(part.source.id, schema, bounds) {
                    let data = Data::File(&loaded.file, entry.offset, entry.length);
                    let read = Block::open(data)
                        .and_then(|block| push_rows(&block, column, bounds, &mut rows));
                    if let Err(why) = read {
                        self.corrupt(&segment.path, entry.offset, &why);
                    }
                }
            }
        }
        let far = self.far(part, bounds);
        let Some(far) = far else { return Ok(rows) };
        for (store, far) in far.by_store() {
            if self.is_ours(store) {
                self.far_rows(part, place, &far, (level, bounds), &mut rows)?;
            } else {
                let mut theirs = BTreeMap::new();
                self.far_rows(part, place, &far, (level, bounds), &mut theirs)?;
                // What it did not live to roll up lies there as samples.
                let from_ms = theirs.last_key_value().map_or(bounds.0, |(last, _)| last + 1);
                self.far_raw(part, place, &far, ((from_ms, bounds.1), level), &mut theirs)?;
                add_rows(&mut rows, &theirs, i64::from(level.step_ms));
            }
        }
        Ok(rows)
    }

    /// Adds one store's rows that are in Redis, without those that are there; the newest file's first.
    fn far_rows(
        &self,
        part: &Part,
        place: &Places,
        far: &Far,
        (level, bounds): (Level, (i64, i64)),
        rows: &mut BTreeMap<i64, Bucket>,
    ) -> Result<(), StoreError> {
        let wanted = |schema| place.sections.iter().any(|section| section.0 == schema);
        let parts = |step| if step == level.step_ms { bounds } else { (1, 0) };
        self.far_blocks(part.source.id, far, &wanted, &parts, &mut |schema, bytes, bounds| {
            let of = place.sections.iter().filter(|section| section.0 == schema);
            for &(_, column) in of {
                let read = Block::open(Data::Memory(bytes))
                    .and_then(|block| push_rows(&block, column, bounds, rows));
                if let Err(why) = read {
                    self.corrupt(std::path::Path::new("a block in Redis"), 0, &why);
                }
            }
            Ok(())
        })
    }

    /// Rolls one store's samples up that are in Redis.
    fn far_raw(
        &self,
        part: &Part,
        place: &Places,
        far: &Far,
        (bounds, level): ((i64, i64), Level),
        rows: &mut BTreeMap<i64, Bucket>,
    ) -> Result<(), StoreError> {
        let mut pairs = vec![Vec::new()];
        let raw = |step| if step == 0 { bounds } else { (1, 0) };
        let of = (&*part.source, std::slice::from_ref(place));
        self.gather_far(of, far, &raw, (&mut pairs, SAMPLES_FAR_MAX))?;
        let samples: BTreeMap<i64, f64> = pairs.into_iter().flatten().collect();
        for (time, value) in samples {
            let end = step_end(time, i64::from(level.step_ms));
            rows.entry(end).or_insert(Bucket::EMPTY).add(time, value);
        }
        Ok(())
    }
}

/// Of one series, of an hour or two: a sample each millisecond.
const SAMPLES_FAR_MAX: usize = 1 << 24;

/// Adds a block's rows of one series, without those that are there.
pub(super) fn push_rows(
    block: &Block<'_>,
    column: usize,
    bounds: (i64, i64),
    rows: &mut BTreeMap<i64, Bucket>,
) -> Result<(), String> {
    let (times, valid) = (block.times()?, block.validity()?);
    let mut found: BTreeMap<i64, Bucket> = BTreeMap::new();
    for field in 0..ROLLED {
        let column = column * ROLLED + field;
        let group = block.group(column / GROUP)?;
        block.column(&group, column, &times, &valid, &mut |time, raw| {
            if bounds.0 <= time && time <= bounds.1 && !rows.contains_key(&time) {
                let row = found.entry(time).or_insert(Bucket::EMPTY);
                row.merge(time, field, f64::from_bits(raw));
            }
        })?;
    }
    rows.extend(found);
    Ok(())
}
