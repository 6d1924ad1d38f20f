//! Remote-write in memory: series that come one by one become rows that share their times.
//!
//! ```text
//! samples ──▶ a column each ── FOLD_ROWS of one ──▶ fold ──▶ rows of a section, as a host's are
//!                  │                                 └─ left: times that no other series has
//!                  └── seal ──▶ a block of columns with their own times
//! ```
//!
//! What one scrape of a (job, instance) brought has one time. Of a source's columns those with the
//! same times, or a part of them, are one section with one time column: a tenth of the bytes in
//! memory, and read like a host's. A row may come in parts (its series in two requests, a fold in
//! between): where rows meet they become one ([`super::head::Rows::sort`]).
//!
//! A fold takes what came since the newest seal began, and a seal folds what came before that, so
//! that both know which WAL file the rows are in ([`super::head::Before`]).
//!
//! A column that was folded has a home, the section it went to: who looks for series finds it
//! there, and goes past the columns here unless some have none yet.

use super::block::Meta;
use super::encode::{Content, LEVEL_SEALED, encode};
use super::head::{REMOTE, RemoteColumn, Rows, Section, SeriesName, Since, SourceState, Young};
use super::seal::make_young;
use super::spill::{Body, Spill};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use strobe_wire::limits::SECTION_COLUMNS_MAX;
use strobe_wire::schema::{Column, Kind, Schema};

/// The series of a source that came by remote-write, with what is not in a section.
#[derive(Debug, Default)]
pub(super) struct Remote {
    columns: HashMap<SeriesName, Staged>,
    /// How many of them have no home.
    homeless: usize,
}

/// A series, and what came of it since it was folded.
#[derive(Debug, Default)]
struct Staged {
    samples: RemoteColumn,
    home: Option<u64>,
    /// Folding is tried when there are so many more than [`FOLD_ROWS`].
    patience: usize,
    /// Nothing came since the last seal.
    quiet: bool,
}

/// Samples of a series.
#[derive(Debug)]
pub(super) struct More {
    pub(super) name: SeriesName,
    pub(super) samples: Vec<(i64, u64)>,
    /// How many seals have begun.
    pub(super) seals: u64,
}

/// What to fold: what lies before a time and came before the newest seal began, or since.
#[derive(Clone, Copy, Debug)]
struct Cut {
    cut_ms: i64,
    seals: u64,
    since: Since,
}

/// Columns that share their times, or have a part of them.
struct Cluster {
    times: Vec<i64>,
    columns: BTreeMap<SeriesName, RemoteColumn>,
}

impl Remote {
    /// A series' samples that are in no section.
    pub(super) fn column(&self, name: &SeriesName) -> Option<&RemoteColumn> {
        self.columns.get(name).map(|column| &column.samples)
    }

    /// The series that no section tells of.
    pub(super) fn homeless(&self) -> impl Iterator<Item = &SeriesName> {
        let some = (self.homeless != 0).then_some(&self.columns).into_iter().flatten();
        some.filter(|(_, column)| column.home.is_none()).map(|(name, _)| name)
    }

    pub(super) fn bytes(&self) -> usize {
        self.columns.values().map(|column| column.samples.times.len() * 16).sum()
    }

    /// Columns whose section was forgotten have no home any more.
    pub(super) fn keep_homes(&mut self, sections: &BTreeMap<u64, Section>) {
        for column in self.columns.values_mut() {
            column.home = column.home.filter(|home| sections.contains_key(home));
        }
        self.count();
    }

    fn count(&mut self) {
        self.columns.retain(|_, column| !column.samples.times.is_empty() || column.home.is_some());
        self.homeless = self.columns.values().filter(|column| column.home.is_none()).count();
    }
}

impl Staged {
    /// Whether a fold is worth trying.
    fn is_due(&self, seals: u64) -> bool {
        let count = self.samples.times.len();
        FOLD_ROWS + self.patience <= count - self.samples.before.count(seals, count)
    }
}

/// Takes in samples of a series; returns how many.
pub(super) fn push(source: u128, state: &mut SourceState, more: More, spill: &Spill) -> usize {
    let More { name, samples, seals } = more;
    // Before these are added: what came with the same request for other series is there by then.
    if let Some(column) = state.remote.columns.get(&name).filter(|column| column.is_due(seals)) {
        let last_ms = column.samples.times.iter().max().copied().unwrap_or(i64::MIN);
        let cut = Cut { cut_ms: last_ms.saturating_add(1), seals, since: Since::Then };
        let (folded, left) = fold(state, cut);
        for (name, taken) in left {
            if let Some(column) = state.remote.columns.get_mut(&name) {
                column.patience = taken.times.len();
                column.samples.put_back(taken, seals);
            }
        }
        state.remote.count();
        for id in folded {
            if let Some(section) = state.sections.get_mut(&id) {
                make_young(source, id, section, spill, seals);
            }
        }
    }
    let remote = &mut state.remote;
    let column = remote.columns.entry(name).or_insert_with(|| {
        remote.homeless += 1;
        Staged::default()
    });
    column.quiet &= samples.is_empty();
    column.samples.before.note(seals, column.samples.times.len());
    column.samples.times.extend(samples.iter().map(|sample| sample.0));
    column.samples.values.extend(samples.iter().map(|sample| sample.1));
    if let Some(section) = column.home.and_then(|home| state.sections.get_mut(&home)) {
        let times = samples.iter().map(|sample| sample.0);
        let span = times.fold((i64::MAX, i64::MIN), |s, t| (s.0.min(t), s.1.max(t)));
        section.widen(span.0, span.1);
    }
    samples.len()
}

/// Moves samples into rows of sections, as far as series share their times; returns which
/// sections, and what is left over.
fn fold(state: &mut SourceState, cut: Cut) -> (Vec<u64>, Vec<(SeriesName, RemoteColumn)>) {
    let mut groups: BTreeMap<Vec<i64>, Cluster> = BTreeMap::new();
    for (name, column) in &mut state.remote.columns {
        let taken = column.samples.take(cut.cut_ms, cut.seals, cut.since);
        if !taken.times.is_empty() {
            let times = taken.times.clone();
            let new = |times: &Vec<i64>| Cluster { times: times.clone(), columns: BTreeMap::new() };
            let group = groups.entry(times).or_insert_with_key(new);
            group.columns.insert(name.clone(), taken);
        }
    }
    let mut groups: Vec<Cluster> = groups.into_values().collect();
    groups.sort_by_key(|group| Reverse((group.columns.len(), group.times.len())));
    let least = if state.remote.columns.len() == 1 { 1 } else { 2 };
    let mut folded = Vec::new();
    for _ in 0..CLUSTERS_MAX {
        if groups.first().is_none_or(|group| group.columns.len() < least) {
            break;
        }
        let mut cluster = groups.remove(0);
        for part in groups.extract_if(.., |group| is_part(&group.times, &cluster.times)) {
            cluster.columns.extend(part.columns);
        }
        folded.extend(place(state, cluster, cut));
    }
    (folded, groups.into_iter().flat_map(|group| group.columns).collect())
}

/// Whether all of `some` are among `all`; both ascend.
fn is_part(some: &[i64], all: &[i64]) -> bool {
    let mut all = all.iter();
    some.len() <= all.len() && some.iter().all(|time| all.any(|other| other == time))
}

/// Appends a cluster to the sections its columns went to before, what is new to new ones.
fn place(state: &mut SourceState, cluster: Cluster, cut: Cut) -> Vec<u64> {
    let mut by_home: BTreeMap<Option<u64>, Vec<(SeriesName, RemoteColumn)>> = BTreeMap::new();
    for (name, column) in cluster.columns {
        let home = state.remote.columns.get(&name).and_then(|staged| staged.home);
        by_home.entry(home).or_default().push((name, column));
    }
    let mut new = by_home.remove(&None).unwrap_or_default();
    let mut folded = Vec::new();
    for (home, columns) in by_home {
        let schema = home.and_then(|home| state.sections.get(&home)).map(|s| Arc::clone(&s.schema));
        match schema {
            // Where half of a section has gone, the rest is better off without its holes.
            Some(schema) if schema.columns.len() <= 2 * columns.len() => {
                folded.push(append(state, &schema, (&cluster.times, &columns), cut));
            }
            _ => new.extend(columns),
        }
    }
    new.sort_by(|a, b| a.0.cmp(&b.0));
    for columns in new.chunks(SECTION_COLUMNS_MAX) {
        let schema = schema(ROWS, columns);
        folded.push(append(state, &schema, (&cluster.times, columns), cut));
    }
    folded
}

/// Appends columns, sorted by name, as rows at `times`.
fn append(
    state: &mut SourceState,
    schema: &Arc<Schema>,
    (times, columns): (&[i64], &[(SeriesName, RemoteColumn)]),
    cut: Cut,
) -> u64 {
    let id = schema.id().0;
    let mut rows = Rows::blank(schema.columns.len(), times.to_vec());
    let mut names = schema.columns.iter().enumerate();
    for (name, column) in columns {
        let is_it = |c: &Column| c.name == name.name && c.labels == name.labels;
        let Some((at, _)) = names.find(|(_, c)| is_it(c)) else { continue };
        let mut row = 0;
        for (time, raw) in column.times.iter().zip(&column.values) {
            while times.get(row).is_some_and(|of| of < time) {
                row += 1;
            }
            rows.set(row, at, *raw);
        }
        if let Some(kept) = state.remote.columns.get_mut(name) {
            kept.home = Some(id);
            kept.patience = 0;
        }
    }
    // Those that have a part of the times only may leave rows without any value.
    let rows = rows.retain_filled();
    let section = state.section(id, schema);
    if let (Some(first), Some(last)) = (times.first(), times.last()) {
        section.widen(*first, *last);
    }
    section.append(rows, cut.seals, cut.since);
    id
}

fn schema(section: &str, columns: &[(SeriesName, RemoteColumn)]) -> Arc<Schema> {
    let columns = columns.iter().map(|(name, _)| Column {
        name: name.name.clone(),
        labels: name.labels.clone(),
        kind: Kind::Float,
    });
    Arc::new(Schema { section: section.to_owned(), columns: columns.collect() })
}

/// Moves what came before a seal and lies before its cut to where it is sealed: rows, or blocks
/// with their own times.
pub(super) fn seal(source: u128, state: &mut SourceState, cut_ms: i64, number: u64) {
    let (_, mut series) = fold(state, Cut { cut_ms, seals: number, since: Since::Before });
    for column in state.remote.columns.values_mut() {
        let is_empty = column.samples.times.is_empty();
        if std::mem::replace(&mut column.quiet, true) && is_empty {
            column.home = None;
        }
        column.patience = 0;
    }
    state.remote.count();
    series.sort_by(|a, b| a.0.cmp(&b.0));
    for chunk in series.chunks(SECTION_COLUMNS_MAX) {
        let schema = schema(REMOTE, chunk);
        let id = schema.id().0;
        let kinds = vec![Kind::Float; chunk.len()];
        let columns: Vec<RemoteColumn> = chunk.iter().map(|(_, column)| column.clone()).collect();
        let meta = Meta { source, schema: id, step_ms: 0 };
        let bytes = encode(&meta, Content::Own(&columns), &kinds, LEVEL_SEALED);
        let span = columns.iter().flat_map(|column| &column.times).copied();
        let (first, last) = span.fold((i64::MAX, i64::MIN), |s, t| (s.0.min(t), s.1.max(t)));
        let section = state.section(id, &schema);
        section.widen(first, last);
        section.young.push(Young {
            number: Young::next(),
            first_ms: first,
            last_ms: last,
            rows: 0,
            after: 0,
            sealed: true,
            body: Body::Memory(Arc::new(bytes)),
        });
    }
}

/// The section name of remote-write's rows; as [`REMOTE`], no agent's can be it.
const ROWS: &str = "remote-write-rows";
/// Samples of a series that wait to be folded: 16 bytes each.
const FOLD_ROWS: usize = 8;
/// Scrape cycles of one source; series beyond them keep their own times.
const CLUSTERS_MAX: usize = 4;

#[cfg(test)]
mod tests;
