//! What other brokers have, as sources that live for one query.
//!
//! A host that moved has left rows behind: its source here and the one made of what others sent are one
//! [`Part`], whose samples are put together by time, each once. So a row that lies in the logs of two
//! brokers, because it was on its way when one of them died, is counted once; in rollups too ([`super::sums`]).

use super::block::{Block, Data};
use super::head::{Section, SeriesName, Source, Young};
use super::page::{Next, Page};
use super::scratch::Scratch;
use super::select::{Part, Places, by_schema, gather_memory};
use super::spill::Body;
use super::sums::Sums;
use super::{Store, StoreError, TimeRange};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Where a source's rows are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Home {
    /// In this store.
    Here,
    /// They were sent for one query: samples.
    Sent,
    /// Rows of a rollup.
    SentRolled,
}

/// What others sent for one selection.
#[derive(Debug)]
pub struct Elsewhere {
    home: Home,
    range: TimeRange,
    sources: Mutex<BTreeMap<u128, Arc<Source>>>,
    bytes: Mutex<usize>,
    /// The stores whose brokers told all they have: Redis is not asked for those.
    answered: Mutex<BTreeSet<u64>>,
}

/// What a page said besides samples.
#[derive(Debug)]
pub struct Said {
    /// Where to go on.
    pub next: Option<Next>,
    /// Rollups of this step are wanted instead.
    pub coarser_ms: Option<i64>,
    /// What it lacks.
    pub notes: Vec<String>,
}

impl Elsewhere {
    /// Nothing yet; rows of rollups or samples of `range` will come.
    #[must_use]
    pub fn new(range: TimeRange, rolled: bool) -> Self {
        let home = if rolled { Home::SentRolled } else { Home::Sent };
        let (sources, bytes) = Default::default();
        Self { home, range, sources, bytes, answered: Mutex::default() }
    }

    /// Takes a page in.
    ///
    /// # Errors
    /// Why it cannot be read, or is too much.
    pub fn take(&self, bytes: &[u8]) -> Result<Said, String> {
        let page = Page::read(bytes)?;
        let mut held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *held = held.saturating_add(bytes.len());
        if BYTES_MAX < *held {
            return Err(format!("more than {} MiB came from other brokers", BYTES_MAX >> 20));
        }
        drop(held);
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        for sent in page.sources {
            let new = || Arc::new(Source::sent(sent.id, sent.labels, self.home));
            let source = sources.entry(sent.id).or_insert_with(new);
            let mut state = source.write();
            for (schema, bytes) in sent.sections {
                let schema = Arc::new(schema);
                let section = state.section(schema.id().0, &schema);
                if bytes.is_empty() {
                    section.widen(self.range.start_ms, self.range.end_ms);
                } else {
                    young(section, bytes)?;
                }
            }
        }
        if page.next.is_none() && page.coarser_ms.is_none() {
            self.answered.lock().unwrap_or_else(PoisonError::into_inner).extend(page.store);
        }
        Ok(Said { next: page.next, coarser_ms: page.coarser_ms, notes: page.notes })
    }

    pub(super) fn answered(&self) -> BTreeSet<u64> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn sources(&self) -> Vec<Arc<Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

fn young(section: &mut Section, bytes: Arc<Vec<u8>>) -> Result<(), String> {
    let block = Block::open(Data::Memory(&bytes))?;
    block.check()?;
    let (first_ms, last_ms) = (block.first_ms, block.last_ms);
    section.widen(first_ms, last_ms);
    let (number, body) = (Young::next(), Body::Memory(bytes));
    section.young.push(Young { number, first_ms, last_ms, rows: 0, after: 0, sealed: true, body });
    Ok(())
}

impl Store {
    /// The same store for reading, with what others sent.
    #[must_use]
    pub fn with(&self, elsewhere: Elsewhere) -> Self {
        Self { elsewhere: Some(Arc::new(elsewhere)), ..self.clone() }
    }

    /// Fills `scratch.pairs` with the samples of a few series of a part, unsorted where they overlap.
    pub(super) fn gather(
        &self,
        part: &Part,
        places: &[Places],
        range: TimeRange,
        scratch: &mut Scratch,
    ) -> Result<(), StoreError> {
        if part.source.home == Home::Here {
            self.gather_here(part, places, range, scratch)?;
        }
        for source in part.sent().filter(|source| source.home == Home::Sent) {
            self.gather_sent(source, places, range, scratch)?;
        }
        Ok(())
    }

    fn gather_sent(
        &self,
        source: &Source,
        places: &[Places],
        range: TimeRange,
        scratch: &mut Scratch,
    ) -> Result<(), StoreError> {
        let (bounds, wanted) = ((range.start_ms, range.end_ms), by_schema(places));
        let pieces = &self.shared.pieces;
        let read = gather_memory(source, places, &wanted, bounds, (scratch, pieces));
        if let Err(why) = read {
            self.note(format!("samples of another broker cannot be read: {why}"));
        }
        scratch.fits(scratch.pairs.iter().map(Vec::len).sum())
    }

    /// Puts the rows of rollups that others sent to those that are here.
    pub(super) fn add_sent_rows(
        &self,
        part: &Part,
        place: &Places,
        (range, step_ms): (TimeRange, i64),
        sums: &mut Sums,
    ) {
        let bounds = (range.start_ms, range.end_ms);
        for source in part.sent().filter(|source| source.home == Home::SentRolled) {
            let state = source.read();
            for &(schema, column) in &place.sections {
                let Some(section) = state.sections.get(&schema) else { continue };
                let columns = section.schema.columns.len();
                // A series is in one block of what one broker sends.
                for young in &section.young {
                    let mut sent = Sums::new(step_ms);
                    let read = Block::open(young.body.data())
                        .and_then(|block| sent.block(&block, (column, columns), bounds));
                    if let Err(why) = read {
                        self.note(format!("rollups of another broker cannot be read: {why}"));
                    }
                    sums.join(sent);
                }
            }
        }
    }
}

impl Part {
    /// Its series from this one on.
    pub(super) fn behind(&self, first: usize) -> Self {
        let rest = self.places.get(first..).unwrap_or(&[]);
        Self { places: Arc::new(rest.to_vec()), ..self.clone() }
    }

    /// What a series is called within its source.
    pub(super) fn name(&self, series: usize) -> Option<&SeriesName> {
        self.places.get(series).map(|place| &place.name)
    }

    /// What others sent of its source.
    fn sent(&self) -> impl Iterator<Item = &Source> {
        let alone = Some(&self.source).filter(|source| source.home != Home::Here);
        alone.into_iter().chain(&self.also).map(|source| &**source)
    }
}

/// Puts the parts of one source that are here and elsewhere together, where they have the same labels.
pub(super) fn join(parts: &mut Vec<Part>, sent: Vec<Part>) {
    let places: HashMap<u128, usize> =
        parts.iter().enumerate().map(|(at, part)| (part.source.id, at)).collect();
    for other in sent {
        let known = places.get(&other.source.id).and_then(|at| parts.get_mut(*at));
        match known.filter(|part| part.owner == other.owner) {
            Some(part) => {
                part.places = Arc::new(union(&part.places, &other.places));
                part.also = Some(other.source);
            }
            None => parts.push(other),
        }
    }
}

fn union(here: &[Places], sent: &[Places]) -> Vec<Places> {
    let mut all: Vec<Places> = here.to_vec();
    let at: HashMap<_, usize> =
        here.iter().enumerate().map(|(at, place)| (&place.name, at)).collect();
    for place in sent {
        match at.get(&place.name).and_then(|at| all.get_mut(*at)) {
            Some(known) => known.sections.extend(&place.sections),
            None => all.push(place.clone()),
        }
    }
    all
}

/// Packed bytes that others may send for one selection.
const BYTES_MAX: usize = 256 << 20;

#[cfg(test)]
mod tests;
