//! What is in memory: every source (a host, or a (job, instance) of remote-write), its sections,
//! and their rows that are not sealed yet.
//!
//! A section keeps the newest rows plain (row after row: an append is one copy). Series of
//! remote-write become such rows where they share their times ([`super::remote`]).

use super::cover::Cover;
use super::elsewhere::Home;
use super::remote::Remote;
use super::shared::INSTANCE;
use super::spill::Body;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use strobe_wire::frame::RowView;
use strobe_wire::schema::{Labels, Schema};
use strobe_wire::score::{Scores, thousandths};

/// Where series come from: a host, or one (job, instance) of remote-write.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) id: u128,
    pub(super) home: Home,
    state: RwLock<SourceState>,
}

/// What a source has.
#[derive(Debug, Default)]
pub(super) struct SourceState {
    /// `job`, `instance` and what the operator added.
    pub(super) labels: Arc<Labels>,
    /// By schema id.
    pub(super) sections: BTreeMap<u64, Section>,
    pub(super) remote: Remote,
    /// Of which times all its frames are here.
    pub(super) cover: Cover,
}

/// A series within its source.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct SeriesName {
    pub(super) name: String,
    pub(super) labels: Labels,
}

/// Rows of one schema.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) schema: Arc<Schema>,
    /// See [`has_guests`].
    pub(super) guests: bool,
    /// Every column has its own times (remote-write).
    pub(super) own_times: bool,
    /// From the first to the last sample, wherever they are.
    pub(super) span: (i64, i64),
    pub(super) rows: Rows,
    pub(super) before: Before,
    /// Encoded blocks, in the order they were made.
    pub(super) young: Vec<Young>,
}

/// An encoded block that is not in a segment yet.
#[derive(Clone, Debug)]
pub(super) struct Young {
    /// No other block of this process has it.
    pub(super) number: u64,
    pub(super) first_ms: i64,
    pub(super) last_ms: i64,
    pub(super) rows: usize,
    /// How many seals had begun when the last of its rows came.
    pub(super) after: u64,
    /// It is being written to a segment as it is.
    pub(super) sealed: bool,
    pub(super) body: Body,
}

/// Rows one after the other.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) columns: usize,
    pub(super) times: Vec<i64>,
    /// Row-major.
    pub(super) values: Vec<u64>,
    /// Row-major, `columns.div_ceil(8)` bytes a row.
    pub(super) valid: Vec<u8>,
}

/// How many entries of a list came before the newest seal began. Only those are in WAL files that
/// the seal makes superfluous: what is sealed beyond them would come from the WAL once more after
/// a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    /// The seal that had begun last when the list was added to.
    seal: u64,
    count: usize,
}

/// Which side of the newest seal's beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Since {
    /// That seal's, if they lie before its cut.
    Before,
    /// The next one's.
    Then,
}

/// Samples of one remote-write series, in the order they came.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct RemoteColumn {
    pub(super) before: Before,
    pub(super) times: Vec<i64>,
    pub(super) values: Vec<u64>,
}

impl Source {
    pub(super) fn new(id: u128, labels: Labels) -> Self {
        let state = SourceState { labels: Arc::new(labels), ..SourceState::default() };
        Self { id, home: Home::Here, state: RwLock::new(state) }
    }

    /// Of what another broker sent.
    pub(super) fn sent(id: u128, labels: Labels, home: Home) -> Self {
        Self { home, ..Self::new(id, labels) }
    }

    // A panic while the lock was held leaves rows that were appended whole or not at all.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, SourceState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, SourceState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Young {
    /// A number for another one.
    pub(super) fn next() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: it only has to differ.
        NEXT.fetch_add(1, Ordering::Relaxed)
    }
}

impl Before {
    /// To be called before a list of `len` is added to, with how many seals have begun.
    pub(super) fn note(&mut self, seals: u64, len: usize) {
        if self.seal != seals {
            *self = Self { seal: seals, count: len };
        }
    }

    /// Of a list that has `len` entries now.
    pub(super) fn count(self, seals: u64, len: usize) -> usize {
        if self.seal == seals { self.count } else { len }
    }

    /// The entries before were taken out.
    pub(super) fn clear(&mut self) {
        self.count = 0;
    }
}

impl SourceState {
    pub(super) fn section(&mut self, id: u64, schema: &Arc<Schema>) -> &mut Section {
        self.sections.entry(id).or_insert_with(|| Section::new(Arc::clone(schema)))
    }
}

impl Section {
    pub(super) fn new(schema: Arc<Schema>) -> Self {
        let rows = Rows::new(schema.columns.len());
        let (own_times, guests) = (schema.section == REMOTE, has_guests(&schema));
        let (before, young) = (Before::default(), Vec::new());
        Self { schema, guests, own_times, span: (i64::MAX, i64::MIN), rows, before, young }
    }

    /// Appends rows that came before the newest seal began, or since.
    pub(super) fn append(&mut self, rows: Rows, seals: u64, since: Since) {
        if since == Since::Then {
            self.before.note(seals, self.rows.len());
            return self.rows.append(rows);
        }
        let later = self.rows.split_off(self.before.count(seals, self.rows.len()));
        self.rows.append(rows);
        self.before = Before { seal: seals, count: self.rows.len() };
        self.rows.append(later);
    }

    pub(super) fn widen(&mut self, first_ms: i64, last_ms: i64) {
        self.span = (self.span.0.min(first_ms), self.span.1.max(last_ms));
    }
}

impl Rows {
    pub(super) fn new(columns: usize) -> Self {
        Self { columns, ..Self::default() }
    }

    /// Bytes of a row's validity.
    pub(super) fn stride(&self) -> usize {
        self.columns.div_ceil(8)
    }

    pub(super) fn len(&self) -> usize {
        self.times.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.times.len() * (8 + self.columns * 8 + self.stride())
    }

    /// Appends a row that has as many columns as this.
    pub(super) fn push(&mut self, time: i64, row: RowView<'_>) {
        assert!(row.len() == self.columns);
        self.times.push(time);
        self.values.extend(row.values().map(|value| value.unwrap_or(0)));
        self.valid.extend_from_slice(row.valid());
    }

    /// Appends a row of as many columns as this.
    pub(super) fn push_plain(&mut self, time: i64, values: &[u64], valid: &[u8]) {
        assert!(values.len() == self.columns && valid.len() == self.stride());
        self.times.push(time);
        self.values.extend_from_slice(values);
        self.valid.extend_from_slice(valid);
    }

    /// Appends a row of the scores that `row` has.
    pub(super) fn push_scores(&mut self, time: i64, row: RowView<'_>, scores: &Scores) {
        assert!(scores.places.len() == self.columns);
        self.times.push(time);
        let bits = |place: &usize| row.scores().get(*place).copied().unwrap_or(0);
        self.values.extend(scores.places.iter().map(|place| thousandths(bits(place))));
        for places in scores.places.chunks(8) {
            let valid = |place: &usize| u8::from(row.value(*place).is_some());
            let bits = places.iter().enumerate().map(|(bit, place)| valid(place) << bit);
            self.valid.push(bits.sum());
        }
    }

    /// Rows at `times` without a value.
    pub(super) fn blank(columns: usize, times: Vec<i64>) -> Self {
        let (values, valid) = (columns * times.len(), columns.div_ceil(8) * times.len());
        Self { columns, times, values: vec![0; values], valid: vec![0; valid] }
    }

    pub(super) fn set(&mut self, row: usize, column: usize, raw: u64) {
        let stride = self.stride();
        if let Some(value) = self.values.get_mut(row * self.columns + column) {
            *value = raw;
        }
        if let Some(byte) = self.valid.get_mut(row * stride + column / 8) {
            *byte |= 1 << (column % 8);
        }
    }

    /// Appends rows of as many columns.
    pub(super) fn append(&mut self, other: Self) {
        assert!(other.columns == self.columns);
        self.times.extend(other.times);
        self.values.extend(other.values);
        self.valid.extend(other.valid);
    }

    /// Takes the rows from `count` on out of it.
    pub(super) fn split_off(&mut self, count: usize) -> Self {
        let (values, valid) = (count * self.columns, count * self.stride());
        Self {
            columns: self.columns,
            times: self.times.split_off(count.min(self.times.len())),
            values: self.values.split_off(values.min(self.values.len())),
            valid: self.valid.split_off(valid.min(self.valid.len())),
        }
    }

    fn push_from(&mut self, other: &Self, row: usize) {
        let (columns, stride) = (self.columns, self.stride());
        self.times.extend(other.times.get(row));
        self.values.extend(other.values.iter().skip(row * columns).take(columns));
        self.valid.extend(other.valid.iter().skip(row * stride).take(stride));
    }

    /// Moves copies of the rows before the cut into `before`, the others into `after`.
    pub(super) fn split(&self, cut_ms: i64, before: &mut Self, after: &mut Self) {
        for (row, &time) in self.times.iter().enumerate() {
            if time < cut_ms { &mut *before } else { &mut *after }.push_from(self, row);
        }
    }

    /// Sorts by time. Rows of one time become one, of each column with the first value there is.
    pub(super) fn sort(&mut self) {
        if self.times.is_sorted_by(|a, b| a < b) {
            return;
        }
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|row| self.times.get(*row));
        let mut sorted = Self::new(self.columns);
        for row in order {
            if sorted.times.last().is_some_and(|last| Some(last) == self.times.get(row)) {
                sorted.fill_from(self, row);
            } else {
                sorted.push_from(self, row);
            }
        }
        *self = sorted;
    }

    /// The values that the last row lacks.
    fn fill_from(&mut self, other: &Self, row: usize) {
        let last = self.len().saturating_sub(1);
        for column in 0..self.columns {
            if let (None, Some(raw)) = (self.value(last, column), other.value(row, column)) {
                self.set(last, column, raw);
            }
        }
    }

    /// Sorted rows in pieces of at most `rows_max`, each within one hour: a late row must not make
    /// a block of days.
    pub(super) fn pieces(self, rows_max: usize) -> Vec<Self> {
        let hour = |time: Option<&i64>| time.map(|time| time.div_euclid(HOUR_MS));
        if self.len() <= rows_max && hour(self.times.first()) == hour(self.times.last()) {
            return if self.times.is_empty() { Vec::new() } else { vec![self] };
        }
        let mut pieces: Vec<Self> = Vec::new();
        for row in 0..self.len() {
            let fits = |piece: &Self| {
                piece.len() < rows_max && hour(piece.times.last()) == hour(self.times.get(row))
            };
            if !pieces.last().is_some_and(fits) {
                pieces.push(Self::new(self.columns));
            }
            if let Some(piece) = pieces.last_mut() {
                piece.push_from(&self, row);
            }
        }
        pieces
    }

    /// Removes the rows without any value.
    pub(super) fn retain_filled(self) -> Self {
        let mut filled = Self::new(self.columns);
        let stride = self.stride().max(1);
        for (row, valid) in self.valid.chunks(stride).enumerate() {
            if valid.iter().any(|byte| *byte != 0) {
                filled.push_from(&self, row);
            }
        }
        filled
    }

    pub(super) fn value(&self, row: usize, column: usize) -> Option<u64> {
        let byte = self.valid.get(row * self.stride() + column / 8).copied().unwrap_or(0);
        (byte >> (column % 8) & 1 == 1)
            .then(|| self.values.get(row * self.columns + column).copied())
            .flatten()
    }

    /// The samples of a column within a range, in the order of the rows.
    pub(super) fn column(
        &self,
        column: usize,
        range: (i64, i64),
    ) -> impl Iterator<Item = (i64, u64)> {
        self.times.iter().enumerate().filter_map(move |(row, &time)| {
            if time < range.0 || range.1 < time {
                return None;
            }
            self.value(row, column).map(|value| (time, value))
        })
    }
}

impl RemoteColumn {
    /// Takes the samples before the cut that came before the newest seal began, or since; sorted,
    /// of one time the first.
    pub(super) fn take(&mut self, cut_ms: i64, seals: u64, since: Since) -> Self {
        let count = self.before.count(seals, self.times.len());
        let samples = self.times.drain(..).zip(self.values.drain(..)).enumerate();
        let wanted = |index: usize| (index < count) == (since == Since::Before);
        let (mut taken, left): (Vec<_>, Vec<_>) = samples
            .map(|(index, sample)| (sample, wanted(index)))
            .partition(|(sample, wanted)| *wanted && sample.0 < cut_ms);
        (self.times, self.values) = left.into_iter().map(|(sample, _)| sample).unzip();
        if since == Since::Before {
            self.before.clear();
        }
        taken.sort_by_key(|(sample, _)| sample.0);
        taken.dedup_by_key(|(sample, _)| sample.0);
        let (times, values) = taken.into_iter().map(|(sample, _)| sample).unzip();
        Self { before: Before::default(), times, values }
    }

    /// Puts samples back that came since the newest seal began.
    pub(super) fn put_back(&mut self, taken: Self, seals: u64) {
        let at = self.before.count(seals, self.times.len());
        self.times.splice(at..at, taken.times);
        self.values.splice(at..at, taken.values);
    }
}

/// The labels of a series as given out: its own, `__name__`, and those of its source that it does
/// not have itself. A target's series that a host's agent scraped have a `job` and `instance` of their own.
pub(super) fn full_labels(column: &SeriesName, source: &Labels) -> Labels {
    let mut pairs = Vec::with_capacity(1 + column.labels.0.len() + source.0.len());
    pairs.push((NAME.to_owned(), column.name.clone()));
    pairs.extend(column.labels.0.iter().cloned());
    let taken = |name: &str| column.labels.value(name).is_some();
    pairs.extend(source.0.iter().filter(|(name, _)| !taken(name)).cloned());
    Labels::new(pairs)
}

/// Whether a schema has series with a `job` or `instance` of their own.
pub(super) fn has_guests(schema: &Schema) -> bool {
    let own = |name: &String| name == "job" || name == INSTANCE;
    schema.columns.iter().any(|column| column.labels.0.iter().any(|(name, _)| own(name)))
}

/// Whether a label is the source's for all series but guests.
pub(super) fn pinned(name: &str, source: &Labels) -> bool {
    (name == "job" || name == "instance") && source.value(name).is_some()
}

/// The column and the source that a remote-write series belongs to; `None` without a name.
pub(super) fn split_remote(labels: &Labels) -> Option<(SeriesName, Labels)> {
    let name = labels.value(NAME)?.to_owned();
    let of_source = |key: &str| key == "job" || key == "instance";
    let own = labels.0.iter().filter(|(key, _)| !of_source(key) && key != NAME).cloned();
    let source = labels.0.iter().filter(|(key, _)| of_source(key)).cloned();
    let column = SeriesName { name, labels: Labels::new(own.collect()) };
    Some((column, Labels::new(source.collect())))
}

const HOUR_MS: i64 = 3_600_000;
pub(super) const NAME: &str = "__name__";
/// The section name of remote-write's blocks; no agent's section can have it ('-').
pub(super) const REMOTE: &str = "remote-write";
