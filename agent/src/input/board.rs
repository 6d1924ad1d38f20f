//! The series of one input, each in its column, and a row whenever the input has been read.
//!
//! ```text
//! begin ─▶ put(series as it was written, value)… ─▶ finish: rows, a schema before the first of each
//! ```
//!
//! A series that is known is found by its bytes, without parsing them. A new one is a new column at the
//! end, so that only the last section gets a new schema. One that was in the reading before and is not in
//! this one gets Prometheus's stale marker once, and its column away after [`FORGET_NS`]. At most
//! [`Room`] series of all inputs together; what is over is refused and counted.

use super::outbox::{Outbox, Row};
use crate::sampler::Tick;
use crate::schemas::Table;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use strobe_wire::ids::SchemaId;
use strobe_wire::limits::SECTION_COLUMNS_MAX;
use strobe_wire::schema::{Column, Kind, Labels, Schema};

/// How many series all inputs may still have; one thread counts, so `Relaxed` is enough.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<AtomicUsize>);

/// See the module.
#[derive(Debug)]
pub(crate) struct Board {
    section: String,
    table: Arc<Table>,
    room: Room,
    /// Series of this input at most.
    series_max: usize,
    /// By the bytes it was written with.
    texts: HashMap<Box<str>, usize>,
    /// By the hash of its name and labels: two ways to write one series are one column.
    series: HashMap<u64, usize>,
    hasher: RandomState,
    parts: Vec<Part>,
    refused: u64,
    full: bool,
    forgot_ns: u64,
}

/// What became of a sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Put {
    /// It is in the row.
    Taken,
    /// Its name or a label is none.
    Bad,
    /// It is in this row already.
    Twice,
    /// There are too many series.
    Full,
}

/// What becomes of series that are not in a reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Absent {
    /// They have no value in this row.
    Silent,
    /// They are gone: a stale marker, once.
    Stale,
}

/// The columns of one section.
#[derive(Debug, Default)]
struct Part {
    schema: Option<(Arc<Schema>, SchemaId)>,
    columns: Vec<Column>,
    values: Vec<u64>,
    valid: Vec<bool>,
    before: Vec<bool>,
    /// Since [`Board::forget`] looked last.
    seen: Vec<bool>,
}

impl Room {
    pub(crate) fn new(series: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(series)))
    }

    fn take(&self) -> bool {
        let left = self.0.load(Relaxed);
        if 0 < left {
            self.0.store(left - 1, Relaxed);
        }
        0 < left
    }

    fn give(&self, series: usize) {
        self.0.store(self.0.load(Relaxed) + series, Relaxed);
    }
}

impl Board {
    /// `section` is the name of its first section.
    pub(crate) fn new(section: String, series_max: usize, room: Room, table: Arc<Table>) -> Self {
        Self {
            section,
            table,
            room,
            series_max,
            texts: HashMap::new(),
            series: HashMap::new(),
            hasher: RandomState::new(),
            parts: Vec::new(),
            refused: 0,
            full: false,
            forgot_ns: 0,
        }
    }

    /// A reading begins: nothing has a value.
    pub(crate) fn begin(&mut self) {
        for part in &mut self.parts {
            part.valid.fill(false);
        }
    }

    /// The value of a series; `describe` is asked for its name and labels if it is new.
    pub(crate) fn put(
        &mut self,
        text: &str,
        value: f64,
        describe: impl FnOnce(&str) -> Option<(String, Labels)>,
    ) -> Put {
        let index = match self.texts.get(text) {
            Some(index) => *index,
            None => match self.add(text, describe) {
                Ok(index) => index,
                Err(put) => {
                    self.refused += u64::from(put == Put::Full);
                    return put;
                }
            },
        };
        let at = index % SECTION_COLUMNS_MAX;
        let Some(part) = self.parts.get_mut(index / SECTION_COLUMNS_MAX) else { return Put::Full };
        let Some(valid) = part.valid.get_mut(at) else { return Put::Full };
        if std::mem::replace(valid, true) {
            return Put::Twice;
        }
        if let Some(place) = part.values.get_mut(at) {
            *place = value.to_bits();
        }
        Put::Taken
    }

    /// Ends a reading: its rows go to `outbox`; how many found no room there.
    pub(crate) fn finish(&mut self, at: Tick, absent: Absent, outbox: &Outbox) -> u64 {
        let mut dropped = 0;
        for (number, part) in self.parts.iter_mut().enumerate() {
            if let Some(row) = part.row(&self.section, number, at, absent, &self.table) {
                dropped += u64::from(!outbox.put(row));
            }
        }
        let due = FORGET_NS <= at.boottime_ns.saturating_sub(self.forgot_ns);
        if due || std::mem::take(&mut self.full) {
            self.forget();
            self.forgot_ns = at.boottime_ns;
        }
        dropped
    }

    /// Samples refused because there were too many series.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Series now.
    pub(crate) fn len(&self) -> usize {
        self.series.len()
    }

    fn add(
        &mut self,
        text: &str,
        describe: impl FnOnce(&str) -> Option<(String, Labels)>,
    ) -> Result<usize, Put> {
        let (name, labels) = describe(text).ok_or(Put::Bad)?;
        let hash = self.hasher.hash_one((&name, &labels));
        let known = self.series.get(&hash).copied();
        let index = match known {
            Some(index) => index,
            None => {
                if self.series_max <= self.series.len() || !self.room.take() {
                    self.full = true;
                    return Err(Put::Full);
                }
                self.column(Column { name, labels, kind: Kind::Float })
            }
        };
        self.series.insert(hash, index);
        // Somebody who writes each line in another way does not make us remember all of them.
        if self.texts.len() < 2 * self.series_max {
            self.texts.insert(text.into(), index);
        }
        Ok(index)
    }

    /// Places a column behind the last.
    fn column(&mut self, column: Column) -> usize {
        let index = self.parts.iter().map(|part| part.columns.len()).sum::<usize>();
        if index.is_multiple_of(SECTION_COLUMNS_MAX) {
            self.parts.push(Part::default());
        }
        if let Some(part) = self.parts.last_mut() {
            part.columns.push(column);
            part.values.push(0);
            for flags in [&mut part.valid, &mut part.before, &mut part.seen] {
                flags.push(false);
            }
            part.schema = None;
        }
        index
    }

    /// Takes away the columns that nobody wrote since the last time, if there are any.
    fn forget(&mut self) {
        let all = || self.parts.iter().flat_map(|part| &part.seen);
        let gone = all().filter(|seen| !**seen).count();
        if gone == 0 {
            self.parts.iter_mut().for_each(|part| part.seen.fill(false));
            return;
        }
        // What stays moves up; what pointed at a column points at where it is now.
        let mut moved = Vec::with_capacity(self.series.len());
        let mut next = 0;
        for seen in all() {
            moved.push(seen.then_some(next));
            next += usize::from(*seen);
        }
        let place = |index: &mut usize| match moved.get(*index).copied().flatten() {
            Some(to) => {
                *index = to;
                true
            }
            None => false,
        };
        self.texts.retain(|_, index| place(index));
        self.series.retain(|_, index| place(index));
        for part in std::mem::take(&mut self.parts) {
            let flags = part.before.into_iter().zip(part.seen);
            for (column, (before, _)) in
                part.columns.into_iter().zip(flags).filter(|(_, (_, s))| *s)
            {
                self.column(column);
                if let Some(last) = self.parts.last_mut().and_then(|part| part.before.last_mut()) {
                    *last = before;
                }
            }
        }
        self.room.give(gone);
    }
}

impl Part {
    /// The row, if any column has a value.
    fn row(
        &mut self,
        section: &str,
        number: usize,
        at: Tick,
        absent: Absent,
        table: &Table,
    ) -> Option<Row> {
        let mut values = self.values.clone();
        let mut bits = vec![0_u8; values.len().div_ceil(8)];
        let mut any = false;
        let flags = self.valid.iter().zip(&mut self.before).zip(&mut self.seen);
        for (index, ((valid, before), seen)) in flags.enumerate() {
            let stale = absent == Absent::Stale && *before && !*valid;
            if let Some(value) = values.get_mut(index).filter(|_| !*valid) {
                *value = if stale { STALE } else { 0 };
            }
            if let Some(byte) = bits.get_mut(index / 8) {
                *byte |= u8::from(*valid || stale) << (index % 8);
            }
            any |= *valid || stale;
            *seen |= *valid;
            *before = *valid || (absent == Absent::Silent && *before);
        }
        if !any {
            return None;
        }
        let (schema, id) = self.schema.get_or_insert_with(|| {
            let section = match number {
                0 => section.to_owned(),
                number => format!("{section}.{number}"),
            };
            let schema = Arc::new(Schema { section, columns: self.columns.clone() });
            let id = table.publish(&schema);
            (schema, id)
        });
        Some(Row { at, schema: Arc::clone(schema), id: *id, values, valid: bits })
    }
}

/// Prometheus's mark of a series that has ended: the bits of one NaN.
pub(crate) const STALE: u64 = 0x7ff0_0000_0000_0002;
/// A series that comes back within this finds its column where it was.
const FORGET_NS: u64 = 600_000_000_000;

#[cfg(test)]
mod tests {
    use super::super::text::series;
    use super::*;

    fn tick(second: u64) -> Tick {
        Tick { wall_ns: 1, boottime_ns: second * 1_000_000_000 }
    }

    fn board(series_max: usize, room: usize) -> (Board, Outbox, Arc<Table>) {
        let table = Arc::new(Table::new());
        let board = Board::new("x".into(), series_max, Room::new(room), Arc::clone(&table));
        (board, Outbox::default(), table)
    }

    fn rows(outbox: &Outbox, table: &Table) -> Vec<String> {
        let mut out = Vec::new();
        outbox.drain(|_, row| {
            assert_eq!(table.schema(row.id).as_ref(), Some(row.schema));
            assert_eq!(row.schema.check(), Ok(()));
            for (index, column) in row.schema.columns.iter().enumerate() {
                if row.valid[index / 8] >> (index % 8) & 1 == 1 {
                    let value = match row.values[index] {
                        STALE => "stale".to_owned(),
                        bits => f64::from_bits(bits).to_string(),
                    };
                    out.push(format!("{} {}={value}", row.schema.section, column.name));
                }
            }
        });
        out
    }

    #[test]
    fn what_vanishes_is_stale_once_and_forgotten_later() {
        let (mut board, outbox, table) = board(10, 10);
        let mut read = |second, names: &[&str]| {
            board.begin();
            for name in names {
                assert_eq!(board.put(name, 1.0, series), Put::Taken);
            }
            assert_eq!(board.finish(tick(second), Absent::Stale, &outbox), 0);
            (rows(&outbox, &table), board.len())
        };
        assert_eq!(read(0, &["a", "b"]), (vec!["x a=1".into(), "x b=1".into()], 2));
        assert_eq!(read(1, &["b"]), (vec!["x a=stale".into(), "x b=1".into()], 2));
        assert_eq!(read(2, &["b"]), (vec!["x b=1".into()], 2));
        read(601, &["b", "c"]);
        assert_eq!(read(1202, &["c", "d"]).1, 2, "a and b are forgotten");
        assert_eq!(read(1203, &["d"]).0, ["x c=stale", "x d=1"]);
        assert_eq!(read(1204, &[]).0, ["x d=stale"]);
    }

    #[test]
    fn one_series_has_one_column_however_it_is_written_and_there_are_not_too_many() {
        let (mut board, outbox, table) = board(500, 401);
        board.begin();
        assert_eq!(board.put("a{b=\"1\",c=\"2\"}", 1.0, series), Put::Taken);
        assert_eq!(board.put("a{c=\"2\",b=\"1\"}", 1.0, series), Put::Twice);
        assert_eq!(board.put("a{", 1.0, series), Put::Bad);
        for index in 0..400 {
            assert_eq!(board.put(&format!("s{index}"), 2.0, series), Put::Taken);
        }
        assert_eq!(board.put("more", 1.0, series), Put::Full);
        assert_eq!((board.finish(tick(0), Absent::Stale, &outbox), board.refused()), (0, 1));
        let all = rows(&outbox, &table);
        assert_eq!((all.len(), all.last().unwrap().as_str()), (401, "x.1 s399=2"));
        // What was refused finds the room of what is gone.
        for second in [1, 2] {
            board.begin();
            board.put("s399", 3.0, series);
            board.put("more", 1.0, series);
            board.finish(tick(second), Absent::Stale, &outbox);
        }
        board.begin();
        assert_eq!(board.put("more", 1.0, series), Put::Taken);
        board.put("s399", 3.0, series);
        outbox.drain(|_, _| ());
        board.finish(tick(3), Absent::Stale, &outbox);
        let left = rows(&outbox, &table);
        assert!(left.contains(&"x more=1".into()) && left.contains(&"x s399=3".into()), "{left:?}");
    }

    #[test]
    fn silence_is_no_end() {
        let (mut board, outbox, table) = board(10, 10);
        for (name, absent) in [("a", Absent::Silent), ("b", Absent::Silent), ("c", Absent::Stale)] {
            board.begin();
            board.put(name, 1.0, series);
            board.finish(tick(0), absent, &outbox);
        }
        let wanted = ["x a=1", "x b=1", "x a=stale", "x b=stale", "x c=1"];
        assert_eq!(rows(&outbox, &table), wanted);
    }
}
