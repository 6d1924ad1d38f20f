//! What is in memory: every source (a host, or a (job, instance) of remote-write), its sections,
//! and their rows that are not sealed yet.
//!
//! A host's section keeps the newest rows plain (row after row: an append is one copy). A
//! remote-write source keeps a time column for each series.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use strobe_wire::frame::RowView;
use strobe_wire::schema::{Labels, Schema};

/// Where series come from: a host, or one (job, instance) of remote-write.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) id: u128,
    state: RwLock<SourceState>,
}

/// What a source has.
#[derive(Debug, Default)]
pub(super) struct SourceState {
    /// `job`, `instance` and what the operator added.
    pub(super) labels: Arc<Labels>,
    /// By schema id.
    pub(super) sections: BTreeMap<u64, Section>,
    pub(super) remote: HashMap<SeriesName, RemoteColumn>,
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
    pub(super) rows: Rows,
    /// Encoded blocks in memory, oldest first.
    pub(super) young: Vec<Arc<Vec<u8>>>,
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

/// Samples of one remote-write series, in the order they came.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct RemoteColumn {
    pub(super) times: Vec<i64>,
    pub(super) values: Vec<u64>,
}

impl Source {
    pub(super) fn new(id: u128, labels: Labels) -> Self {
        let state = SourceState { labels: Arc::new(labels), ..SourceState::default() };
        Self { id, state: RwLock::new(state) }
    }

    // A panic while the lock was held leaves rows that were appended whole or not at all.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, SourceState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, SourceState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SourceState {
    pub(super) fn section(&mut self, schema: &Arc<Schema>) -> &mut Section {
        self.sections.entry(schema.id().0).or_insert_with(|| Section::new(Arc::clone(schema)))
    }
}

impl Section {
    pub(super) fn new(schema: Arc<Schema>) -> Self {
        let rows = Rows::new(schema.columns.len());
        Self { schema, rows, young: Vec::new() }
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

/// The labels of a series as given out: its own, `__name__`, and its source's.
pub(super) fn full_labels(column: &SeriesName, source: &Labels) -> Labels {
    let mut pairs = Vec::with_capacity(1 + column.labels.0.len() + source.0.len());
    pairs.push((NAME.to_owned(), column.name.clone()));
    // `sort` is stable and `dedup` keeps the first: job and instance are the source's, whatever a
    // column claims; other names are the column's if it has them.
    let owned = |name: &str| name == "job" || name == "instance";
    pairs.extend(source.0.iter().filter(|(name, _)| owned(name)).cloned());
    pairs.extend(column.labels.0.iter().filter(|(name, _)| !pinned(name, source)).cloned());
    let taken = |name: &str| column.labels.value(name).is_some();
    pairs.extend(source.0.iter().filter(|(name, _)| !owned(name) && !taken(name)).cloned());
    Labels::new(pairs)
}

/// Whether a label is the source's even where a column has it too.
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

pub(super) const NAME: &str = "__name__";
