//! A source's columns and their values now.
//!
//! A parser walks a file and calls [`Sheet::put`] for each thing it finds (a core, a disk, a line
//! of meminfo). While nothing new appears the call compares one key and stores numbers: no
//! allocation, no hashing. Something new, or something gone from a set, makes [`Sheet::end`] ask
//! for the file to be parsed once more in learning mode, which may allocate.
//!
//! ```text
//! entries  [0: "cpu0" columns 0..10] [1: "cpu1" columns 10..20] …      cursor → the one expected
//! values   [ 0 1 2 … 9 | 10 11 … 19 | … ]     valid [ … ]
//! ```
//!
//! Bounds: [`COLUMNS_MAX`] columns; what is over is refused and counted.

use super::picks::Picks;
use strobe_wire::limits::SECTION_COLUMNS_MAX;

/// The columns of one source.
#[derive(Debug)]
pub(crate) struct Sheet {
    /// Where the parser found what it wanted.
    pub(super) picks: Picks,
    /// Bytes of the file that had all that was wanted, where a parser says so.
    pub(crate) reach: usize,
    /// The most rows that the file had, where a parser needs to know.
    pub(super) most: usize,
    entries: Vec<Entry>,
    values: Vec<u64>,
    valid: Vec<bool>,
    /// Entries and values before the lesson, for [`Repair::Cpu`] to go on from.
    former: Option<(Vec<Entry>, Vec<u64>, Vec<bool>)>,
    cursor: usize,
    seen: usize,
    unknown: bool,
    refused: u64,
    vanish: Vanish,
}

/// One thing a file speaks of.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Which of the source's shapes it has.
    pub(crate) shape: u8,
    /// Its name in the file.
    pub(crate) key: Box<[u8]>,
    first: usize,
    /// Its columns.
    pub(crate) count: usize,
}

/// What becomes of an entry that the file no longer has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Vanish {
    /// Its columns stay, without values.
    Stay,
    /// Its columns go: the section gets a new schema.
    Go,
}

/// What happens to a counter that steps back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Repair {
    /// It is taken as it is.
    None,
    /// As node_exporter does for a core: the old value stays, unless `idle` (this column) fell by
    /// at least three seconds of ticks, which is a core that was away.
    Cpu {
        /// Which column is `idle`.
        idle: usize,
    },
}

/// What a parse came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The same columns as before.
    Same,
    /// Parse again between [`Sheet::learn`] and [`Sheet::learned`].
    Changed,
}

impl Sheet {
    pub(crate) fn new(vanish: Vanish) -> Self {
        Self {
            picks: Picks::default(),
            reach: 0,
            most: 0,
            entries: Vec::new(),
            values: Vec::new(),
            valid: Vec::new(),
            former: None,
            cursor: 0,
            seen: 0,
            unknown: false,
            refused: 0,
            vanish,
        }
    }

    /// Before a reading: no column has a value.
    pub(crate) fn begin(&mut self) {
        self.valid.fill(false);
        self.cursor = 0;
        self.seen = 0;
        self.unknown = false;
    }

    /// What the parser found; `None` is a column without a value.
    pub(crate) fn put(&mut self, shape: u8, key: &[u8], values: &[Option<u64>], repair: Repair) {
        let Some(index) = self.find(shape, key, values.len()) else {
            self.add(shape, key, values, repair);
            return;
        };
        self.cursor = index + 1;
        self.seen += 1;
        if let Some(entry) = self.entries.get(index) {
            self.store(entry.first, values, repair);
        }
    }

    /// What stands in `line` behind the key that is expected next, and its shape, if that has one column: most
    /// lines are where they were.
    pub(crate) fn expected<'l>(&self, line: &'l [u8]) -> Option<(u8, &'l [u8])> {
        let entry = self.entries.get(self.cursor).filter(|entry| entry.count == 1)?;
        Some((entry.shape, line.strip_prefix(&*entry.key)?))
    }

    /// The value of the one that [`Sheet::expected`] found.
    pub(crate) fn put_expected(&mut self, value: Option<u64>) {
        let Some(entry) = self.entries.get(self.cursor) else { return };
        let first = entry.first;
        self.cursor += 1;
        self.seen += 1;
        self.store(first, &[value], Repair::None);
    }

    /// After a reading.
    pub(crate) fn end(&self) -> Outcome {
        let gone = self.vanish == Vanish::Go && self.seen < self.entries.len();
        if self.unknown || gone { Outcome::Changed } else { Outcome::Same }
    }

    /// Before the parse that learns.
    pub(crate) fn learn(&mut self) {
        if self.vanish == Vanish::Go {
            let entries = std::mem::take(&mut self.entries);
            let values = std::mem::take(&mut self.values);
            self.former = Some((entries, values, std::mem::take(&mut self.valid)));
        } else {
            self.former = Some((Vec::new(), Vec::new(), Vec::new()));
        }
        self.refused = 0;
        self.begin();
    }

    /// After the parse that learns.
    pub(crate) fn learned(&mut self) {
        self.former = None;
        self.unknown = false;
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The values of an entry, if there is one; of columns without a value those of before.
    pub(super) fn entry_values(&self, shape: u8, key: &[u8]) -> Option<&[u64]> {
        let is = |entry: &&Entry| entry.shape == shape && *entry.key == *key;
        let entry = self.entries.iter().find(is)?;
        self.values.get(entry.first..entry.first + entry.count)
    }

    /// How many columns there are.
    pub(crate) fn width(&self) -> usize {
        self.values.len()
    }

    /// The value of column `index` now.
    pub(crate) fn value(&self, index: usize) -> Option<u64> {
        let valid = self.valid.get(index).copied().unwrap_or(false);
        self.values.get(index).copied().filter(|_| valid)
    }

    /// Whether the last reading found everything there is to find.
    pub(crate) fn has_all(&self) -> bool {
        !self.entries.is_empty() && self.seen == self.entries.len()
    }

    /// Whether the last reading found anything at all.
    pub(crate) fn has_any(&self) -> bool {
        0 < self.seen
    }

    /// Something in the file that is too long to be told is left out and counted.
    pub(crate) fn refuse(&mut self) {
        self.refused = self.refused.saturating_add(1);
    }

    /// Entries beyond [`COLUMNS_MAX`] or with too long a name, left out.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    fn find(&self, shape: u8, key: &[u8], count: usize) -> Option<usize> {
        let is = |entry: &Entry| entry.shape == shape && entry.count == count && *entry.key == *key;
        if self.entries.get(self.cursor).is_some_and(is) {
            return Some(self.cursor);
        }
        let ahead = self.entries.iter().skip(self.cursor).position(is);
        ahead.map(|at| at + self.cursor).or_else(|| self.entries.iter().position(is))
    }

    fn add(&mut self, shape: u8, key: &[u8], values: &[Option<u64>], repair: Repair) {
        if COLUMNS_MAX < self.values.len() + values.len() || KEY_BYTES_MAX < key.len() {
            self.refuse();
            return;
        }
        let Some((entries, old_values, _)) = &self.former else {
            self.unknown = true;
            return;
        };
        let first = self.values.len();
        let same = |e: &&Entry| e.shape == shape && e.count == values.len() && *e.key == *key;
        let before =
            entries.iter().find(same).and_then(|e| old_values.get(e.first..e.first + e.count));
        match before {
            Some(before) => self.values.extend_from_slice(before),
            None => self.values.resize(first + values.len(), 0),
        }
        self.valid.resize(self.values.len(), false);
        self.entries.push(Entry { shape, key: key.into(), first, count: values.len() });
        self.cursor = self.entries.len();
        self.seen += 1;
        self.store(first, values, repair);
    }

    fn store(&mut self, first: usize, found: &[Option<u64>], repair: Repair) {
        let range = first..first + found.len();
        let (Some(values), Some(valid)) =
            (self.values.get_mut(range.clone()), self.valid.get_mut(range))
        else {
            return;
        };
        let floor = match repair {
            Repair::None => false,
            Repair::Cpu { idle } => match (values.get(idle), found.get(idle).copied().flatten()) {
                (Some(before), Some(now)) => before.saturating_sub(now) < IDLE_RESET_TICKS,
                _ => true,
            },
        };
        for ((value, valid), found) in values.iter_mut().zip(valid).zip(found) {
            if let Some(found) = *found {
                *value = if floor { found.max(*value) } else { found };
                *valid = true;
            }
        }
    }
}

/// Columns of one source: sixteen full sections.
const COLUMNS_MAX: usize = 16 * SECTION_COLUMNS_MAX;
/// A mount's key is its device, mount point and type: two paths at most.
const KEY_BYTES_MAX: usize = 2 * 4096 + 256;
/// Three seconds, as in node_exporter's `jumpBackSeconds`.
const IDLE_RESET_TICKS: u64 = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sheet: &mut Sheet, things: &[(&str, u64)]) -> Outcome {
        let put = |sheet: &mut Sheet| {
            for (key, value) in things {
                sheet.put(0, key.as_bytes(), &[Some(*value)], Repair::None);
            }
        };
        sheet.begin();
        put(sheet);
        let outcome = sheet.end();
        if outcome == Outcome::Changed {
            sheet.learn();
            put(sheet);
            sheet.learned();
        }
        outcome
    }

    fn now(sheet: &Sheet) -> Vec<Option<u64>> {
        (0..sheet.width()).map(|index| sheet.value(index)).collect()
    }

    #[test]
    fn a_set_that_changes_gets_new_columns() {
        let mut sheet = Sheet::new(Vanish::Go);
        assert_eq!(read(&mut sheet, &[("a", 1), ("b", 2)]), Outcome::Changed);
        assert_eq!(read(&mut sheet, &[("a", 3), ("b", 4)]), Outcome::Same);
        assert_eq!(read(&mut sheet, &[("b", 5), ("a", 6)]), Outcome::Same);
        assert_eq!(now(&sheet), [Some(6), Some(5)]);
        assert_eq!(read(&mut sheet, &[("b", 7)]), Outcome::Changed);
        assert_eq!(now(&sheet), [Some(7)]);
        assert_eq!(read(&mut sheet, &[("b", 7), ("c", 1)]), Outcome::Changed);
        assert_eq!(now(&sheet), [Some(7), Some(1)]);
    }

    #[test]
    fn a_line_that_is_missing_is_invalid_and_its_column_stays() {
        let mut sheet = Sheet::new(Vanish::Stay);
        read(&mut sheet, &[("a", 1), ("b", 2)]);
        assert_eq!(read(&mut sheet, &[("b", 3)]), Outcome::Same);
        assert_eq!(now(&sheet), [None, Some(3)]);
        assert_eq!(read(&mut sheet, &[("b", 3), ("c", 4)]), Outcome::Changed);
        assert_eq!(now(&sheet), [None, Some(3), Some(4)]);
    }

    #[test]
    fn a_full_sheet_refuses_and_does_not_learn_for_ever() {
        let mut sheet = Sheet::new(Vanish::Go);
        let keys: Vec<String> = (0..COLUMNS_MAX + 5).map(|n| n.to_string()).collect();
        let things: Vec<_> = keys.iter().map(|key| (key.as_str(), 1)).collect();
        assert_eq!(read(&mut sheet, &things), Outcome::Changed);
        assert_eq!((sheet.width(), sheet.refused()), (COLUMNS_MAX, 5));
        assert_eq!(read(&mut sheet, &things), Outcome::Same);
    }

    /// node_exporter issue 1903: idle and iowait step back on live kernels, and `rate()` then saw
    /// a reset worth the whole uptime.
    #[test]
    fn a_core_whose_idle_steps_back_keeps_its_value_unless_it_was_away() {
        let mut sheet = Sheet::new(Vanish::Go);
        let mut step = |idle: u64, user: u64| {
            for learning in [false, true] {
                if learning {
                    sheet.learn();
                } else {
                    sheet.begin();
                }
                sheet.put(0, b"0", &[Some(user), Some(idle)], Repair::Cpu { idle: 1 });
                if learning {
                    sheet.learned();
                } else if sheet.end() == Outcome::Same {
                    break;
                }
            }
            (sheet.value(1), sheet.value(0))
        };
        assert_eq!(step(1000, 50), (Some(1000), Some(50)));
        assert_eq!(step(999, 49), (Some(1000), Some(50)));
        assert_eq!(step(701, 51), (Some(1000), Some(51)));
        assert_eq!(step(700, 3), (Some(700), Some(3)));
    }
}
