//! Finding series by matchers, and giving out their samples.
//!
//! Matchers on `job` and `instance` are decided once a source (but for guests: series with a `job` or
//! `instance` of their own, which a host's agent scraped), the others once a schema as long
//! as no label of the source has the same name: a thousand hosts with one schema cost one look,
//! and share the list of what was found. Full labels are put together only for who asks.

use super::block::{Block, Data, GROUP, Piece};
use super::elsewhere::join;
use super::head::{NAME, RemoteColumn, SeriesName, Source, Young, full_labels, pinned};
use super::local::Store;
use super::matching::Test;
use super::pieces::{Key, Pieces, Place};
use super::redis::Far;
use super::rollup::{LAST, ROLLED};
use super::scratch::Scratch;
use super::{Limits, Matcher, StoreError, TimeRange};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use strobe_wire::schema::{Kind, Labels, Schema};

/// The matching series of one source.
#[derive(Clone, Debug)]
pub struct Part {
    pub(super) source: Arc<Source>,
    /// The labels that stand on every series of the source.
    pub(super) owner: Arc<Labels>,
    pub(super) places: Arc<Vec<Places>>,
    /// The same source's rows that another broker sent.
    pub(super) also: Option<Arc<Source>>,
    /// Whose stores need not be looked for in Redis: they answered.
    pub(super) answered: Arc<BTreeSet<u64>>,
}

/// What one selection has found out about schemas.
#[derive(Debug, Default)]
struct Known {
    /// Matching columns, by schema.
    hits: HashMap<u64, Arc<[usize]>>,
    /// Places, by the schemas that have hits.
    places: HashMap<Vec<u64>, Arc<Vec<Places>>>,
}

/// Where one series lies: the same labels may stand in several schemas as sets change.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) name: SeriesName,
    pub(super) sections: Vec<(u64, usize)>,
}

impl Places {
    /// Whether two series lie in one column group: then they are read together.
    fn together(&self, other: &Self) -> bool {
        let group = |places: &Self| places.sections.first().map(|(s, c)| (*s, c / GROUP));
        group(self) == group(other)
    }
}

impl Part {
    /// How many series.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The full labels of a series, counted from 0; none behind the last.
    #[must_use]
    pub fn labels(&self, series: usize) -> Labels {
        let place = self.places.get(series);
        place.map_or_else(Labels::default, |place| full_labels(&place.name, &self.owner))
    }

    /// The labels of a series without those of its source.
    pub fn own_labels(&self, series: usize) -> impl Iterator<Item = (String, String)> {
        self.places.get(series).into_iter().flat_map(|place| {
            let name = (NAME.to_owned(), place.name.name.clone());
            std::iter::once(name).chain(place.name.labels.0.iter().cloned())
        })
    }

    /// The value of one label of a series, as in [`Self::labels`].
    #[must_use]
    pub fn label(&self, series: usize, name: &str) -> Option<&str> {
        let place = &self.places.get(series)?.name;
        if name == NAME {
            return Some(&place.name);
        }
        place.labels.value(name).or_else(|| self.owner.value(name))
    }

    /// Whether `name` is a label of the source and the same for all its series.
    #[must_use]
    pub fn is_owned(&self, name: &str) -> bool {
        pinned(name, &self.owner)
    }

    /// Two parts of one list have the same series but for the labels of their sources.
    #[must_use]
    pub fn list(&self) -> usize {
        Arc::as_ptr(&self.places).addr()
    }

    /// Whether no series of another part can have the labels of one of these, as long as `job`
    /// and `instance` differ, and no two of these are equal.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        pinned("job", &self.owner)
            && pinned("instance", &self.owner)
            && !self.places.iter().any(|place| {
                place.name.labels.0.iter().any(|(name, _)| self.is_owned(name) || name == NAME)
            })
    }
}

impl Store {
    /// The series that satisfy all matchers and may have samples in `range`.
    ///
    /// # Errors
    /// A pattern that is no regular expression, or more series than `limits` allow.
    pub fn select(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        limits: &Limits,
    ) -> Result<Vec<Part>, StoreError> {
        let tests = matchers.iter().map(Test::new).collect::<Result<Vec<_>, _>>()?;
        self.warn_unlearned(range.start_ms);
        let mut found = 0;
        let mut known = Known::default();
        let one = tests.iter().find_map(|test| test.only("instance"));
        let sources = one.map_or_else(|| self.shared.sources(), |one| self.shared.sources_of(one));
        let mut some = |sources: Vec<Arc<Source>>| {
            let mut parts = Vec::new();
            for source in sources {
                let part = select_source(&source, &tests, range, &mut known);
                if part.is_empty() {
                    continue;
                }
                found += part.len();
                if limits.series_max < found {
                    return Err(StoreError::SeriesMax { max: limits.series_max });
                }
                parts.push(part);
            }
            Ok(parts)
        };
        let mut parts = some(sources)?;
        if let Some(elsewhere) = &self.elsewhere {
            join(&mut parts, some(elsewhere.sources())?);
            let answered = Arc::new(elsewhere.answered());
            parts.iter_mut().for_each(|part| part.answered = Arc::clone(&answered));
        }
        Ok(parts)
    }

    /// Calls `visit` with each series of `part` that has samples in `range`: its labels, times
    /// ascending without repeats, and values.
    ///
    /// # Errors
    /// What `visit` returned, a limit, or bytes that could not be read.
    #[expect(clippy::type_complexity, reason = "a visitor: read once, here")]
    pub fn scan(
        &self,
        part: &Part,
        range: TimeRange,
        scratch: &mut Scratch,
        visit: &mut dyn FnMut(&Labels, &[i64], &[f64]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.scan_numbered(part, range, scratch, &mut |series, times, values| {
            visit(&part.labels(series), times, values)
        })
    }

    /// As [`Store::scan`], with a series' number in its part instead of its labels.
    ///
    /// # Errors
    /// As [`Store::scan`].
    #[expect(clippy::type_complexity, reason = "a visitor: read once, here")]
    pub fn scan_numbered(
        &self,
        part: &Part,
        range: TimeRange,
        scratch: &mut Scratch,
        visit: &mut dyn FnMut(usize, &[i64], &[f64]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut start = 0;
        // A block is opened once for all its groups, as long as their samples are not many.
        let short = range.end_ms.saturating_sub(range.start_ms) <= SHORT_MS;
        let at_once = if short { SERIES_OF_SHORT } else { GROUP };
        for places in part.places.chunk_by(|a, b| short || a.together(b)) {
            for places in places.chunks(at_once) {
                scratch.pairs.resize_with(at_once, Vec::new);
                scratch.pairs.iter_mut().for_each(Vec::clear);
                self.gather(part, places, range, scratch)?;
                for series in 0..places.len() {
                    if scratch.settle(series)? {
                        visit(start + series, &scratch.times, &scratch.values)?;
                    }
                }
                start += places.len();
            }
        }
        Ok(())
    }

    /// Fills `scratch.pairs` with the samples of a few series, unsorted where they overlap.
    pub(super) fn gather_here(
        &self,
        part: &Part,
        places: &[Places],
        range: TimeRange,
        scratch: &mut Scratch,
    ) -> Result<(), StoreError> {
        let (source, bounds) = (&*part.source, (range.start_ms, range.end_ms));
        let by_schema = by_schema(places);
        // Memory first, then the disk: what is sealed in between is seen twice and made one.
        let kinds =
            gather_memory(source, places, &by_schema, bounds, (scratch, &self.shared.pieces))?;
        let far = self.far(part, bounds);
        let floors = self.floors(far.as_deref());
        for (segment, bounds) in self.segments_for(bounds, floors) {
            let Some(loaded) = self.opened(&segment) else { continue };
            for (&schema, wanted) in &by_schema {
                for entry in loaded.blocks(source.id, schema, bounds) {
                    let data = Data::File(&loaded.file, entry.offset, entry.length);
                    let mut block = Lazy::new(data, Place::Segment(segment.number, entry.offset));
                    let mut piece = |group| block.piece(group, &self.shared.pieces);
                    let (kind, out) = (kinds.get(&schema), &mut scratch.pairs);
                    let read = push_block(segment.step_ms, kind, wanted, bounds, out, &mut piece);
                    // One broken block is not the end of a query: it is counted and named.
                    if let Err(why) = read {
                        self.corrupt(&segment.path, entry.offset, &why);
                    }
                }
                let held = scratch.pairs.iter().map(Vec::len).sum();
                scratch.fits(held)?;
            }
        }
        let Some(far) = far else { return Ok(()) };
        let parts = |step| floors.part(step, bounds);
        let room = scratch.room();
        self.gather_far((source, places), &far, &parts, (&mut scratch.pairs, room))
    }

    /// The same from Redis, of each step the part that is asked for.
    pub(super) fn gather_far(
        &self,
        (source, places): (&Source, &[Places]),
        far: &Far,
        parts: &dyn Fn(u32) -> (i64, i64),
        (out, room): (&mut [Vec<(i64, f64)>], usize),
    ) -> Result<(), StoreError> {
        let by_schema = by_schema(places);
        let wanted = |schema| by_schema.contains_key(&schema);
        self.far_blocks(source.id, far, &wanted, parts, &mut |schema, bytes, bounds| {
            let wanted = by_schema.get(&schema).map_or(&[][..], Vec::as_slice);
            let kind = source.read().sections.get(&schema).map(|s| Arc::clone(&s.schema));
            let read = Block::open(Data::Memory(bytes)).and_then(|block| {
                if (block.meta.source, block.meta.schema) != (source.id, schema) {
                    return Err("it is of another host or section".to_owned());
                }
                let mut piece = |group| block.piece(group).map(Arc::new);
                push_block(block.meta.step_ms, kind.as_ref(), wanted, bounds, out, &mut piece)
            });
            if let Err(why) = read {
                self.corrupt(std::path::Path::new("a block in Redis"), 0, &why);
            }
            let held: usize = out.iter().map(Vec::len).sum();
            let max = u64::try_from(room).unwrap_or(u64::MAX);
            if room < held { Err(StoreError::SamplesMax { max }) } else { Ok(()) }
        })
    }
}

/// Which columns of a section fill which series.
pub(super) fn by_schema(places: &[Places]) -> BTreeMap<u64, Vec<(usize, usize)>> {
    let mut by_schema: BTreeMap<u64, Vec<(usize, usize)>> = BTreeMap::new();
    for (series, place) in places.iter().enumerate() {
        for &(schema, column) in &place.sections {
            by_schema.entry(schema).or_default().push((column, series));
        }
    }
    by_schema
}

/// Appends the samples that are in memory; returns the schemas.
pub(super) fn gather_memory(
    source: &Source,
    places: &[Places],
    by_schema: &BTreeMap<u64, Vec<(usize, usize)>>,
    bounds: (i64, i64),
    (scratch, pieces): (&mut Scratch, &Pieces),
) -> Result<BTreeMap<u64, Arc<Schema>>, StoreError> {
    let mut young = Vec::new();
    let mut kinds = BTreeMap::new();
    let state = source.read();
    for (&schema, wanted) in by_schema {
        let Some(section) = state.sections.get(&schema) else { continue };
        let within = |y: &&Young| y.first_ms <= bounds.1 && bounds.0 <= y.last_ms;
        let within = section.young.iter().filter(within);
        young.extend(within.map(|young| (schema, young.number, young.body.clone())));
        kinds.insert(schema, Arc::clone(&section.schema));
        for &(column, series) in wanted {
            let kind = kind_of(&section.schema, column);
            let rows = section.rows.column(column, bounds);
            if let Some(pairs) = scratch.pairs.get_mut(series) {
                pairs.extend(rows.map(|(time, raw)| (time, kind.value(raw))));
            }
        }
    }
    for (place, pairs) in places.iter().zip(&mut scratch.pairs) {
        if let Some(remote) = state.remote.column(&place.name) {
            push_remote(remote, bounds, pairs);
        }
    }
    drop(state);
    for (schema, number, body) in young {
        let wanted = by_schema.get(&schema).map_or(&[][..], Vec::as_slice);
        let mut block = Lazy::new(body.data(), Place::Young(number));
        let mut piece = |group| block.piece(group, pieces);
        push_block(0, kinds.get(&schema), wanted, bounds, &mut scratch.pairs, &mut piece)
            .map_err(|why| StoreError::Corrupt { path: "young".into(), offset: 0, why })?;
    }
    Ok(kinds)
}

/// Appends a block's samples of the wanted (column, series), of groups as `piece` gives them.
fn push_block(
    step_ms: u32,
    schema: Option<&Arc<Schema>>,
    wanted: &[(usize, usize)],
    bounds: (i64, i64),
    out: &mut [Vec<(i64, f64)>],
    piece: &mut dyn FnMut(usize) -> Result<Arc<Piece>, String>,
) -> Result<(), String> {
    let Some(schema) = schema else { return Ok(()) };
    let rolled = step_ms != 0;
    let mut group: Option<(usize, Arc<Piece>)> = None;
    for &(column, series) in wanted {
        let kind = if rolled { Kind::Float } else { kind_of(schema, column) };
        let column = if rolled { column * ROLLED + LAST } else { column };
        let index = column / GROUP;
        if group.as_ref().is_none_or(|(held, _)| *held != index) {
            group = Some((index, piece(index)?));
        }
        let (Some((_, group)), Some(pairs)) = (&group, out.get_mut(series)) else { continue };
        group.column(column, bounds, &mut |time, raw| pairs.push((time, kind.value(raw))))?;
    }
    Ok(())
}

/// A block that is opened when the first of its groups is not kept, and once.
struct Lazy<'a> {
    data: Data<'a>,
    place: Place,
    open: Option<Block<'a>>,
}

impl<'a> Lazy<'a> {
    fn new(data: Data<'a>, place: Place) -> Self {
        Self { data, place, open: None }
    }

    fn piece(&mut self, group: usize, pieces: &Pieces) -> Result<Arc<Piece>, String> {
        pieces.piece(Key { place: self.place, group }, || {
            let block = match self.open.take() {
                Some(block) => block,
                None => Block::open(self.data)?,
            };
            self.open.insert(block).piece(group)
        })
    }
}

fn select_source(
    source: &Arc<Source>,
    tests: &[Test],
    range: TimeRange,
    known: &mut Known,
) -> Part {
    let state = source.read();
    let owner = Arc::clone(&state.labels);
    let part = |places| Part {
        source: Arc::clone(source),
        owner: Arc::clone(&owner),
        places,
        also: None,
        answered: Arc::default(),
    };
    let refused = |test: &Test| {
        pinned(&test.name, &owner) && !test.holds(owner.value(&test.name).unwrap_or(""))
    };
    let refused = tests.iter().any(refused);
    if refused && !state.sections.values().any(|section| section.guests) {
        return part(Arc::default());
    }
    let rest: Vec<&Test> = tests.iter().filter(|test| !pinned(&test.name, &owner)).collect();
    let hit = |name: &str, own: &Labels| rest.iter().all(|test| test.holds_for(name, own, &owner));
    // The source's pinned tests passed, so what is left depends on the schema alone, unless the
    // source has a label of a tested name or lacks job or instance.
    let alone = rest.iter().all(|test| owner.value(&test.name).is_none())
        && owner.value("job").is_some()
        && owner.value("instance").is_some();
    let guest = |name: &str, own: &Labels| tests.iter().all(|t| t.holds_for(name, own, &owner));
    let mut found: Vec<(u64, &Schema, Arc<[usize]>)> = Vec::new();
    let mut guests = false;
    for (&id, section) in &state.sections {
        if section.span.1 < range.start_ms || range.end_ms < section.span.0 {
            continue;
        }
        let columns = section.schema.columns.iter().enumerate();
        if section.guests {
            let hits = columns.filter(|(_, c)| guest(&c.name, &c.labels)).map(|(i, _)| i);
            let hits: Arc<[usize]> = hits.collect();
            if !hits.is_empty() {
                guests = true;
                found.push((id, &section.schema, hits));
            }
            continue;
        }
        if refused {
            continue;
        }
        let look = || columns.filter(|(_, c)| hit(&c.name, &c.labels)).map(|(i, _)| i).collect();
        let hits: Arc<[usize]> =
            if alone { Arc::clone(known.hits.entry(id).or_insert_with(look)) } else { look() };
        if !hits.is_empty() {
            found.push((id, &section.schema, hits));
        }
    }
    let remote: Vec<&SeriesName> =
        state.remote.homeless().filter(|name| !refused && hit(&name.name, &name.labels)).collect();
    if guests || !remote.is_empty() || !alone {
        return part(Arc::new(places(&found, &remote)));
    }
    let ids = found.iter().map(|(id, ..)| *id).collect();
    part(Arc::clone(known.places.entry(ids).or_insert_with(|| Arc::new(places(&found, &[])))))
}

/// Where each series lies, in the order of the places, so that those of one column group follow
/// each other.
fn places(found: &[(u64, &Schema, Arc<[usize]>)], remote: &[&SeriesName]) -> Vec<Places> {
    let mut all: BTreeMap<(&str, &Labels), Vec<(u64, usize)>> = BTreeMap::new();
    for (id, schema, hits) in found {
        for &index in hits.iter() {
            if let Some(column) = schema.columns.get(index) {
                all.entry((&column.name, &column.labels)).or_default().push((*id, index));
            }
        }
    }
    for name in remote {
        all.entry((&name.name, &name.labels)).or_default();
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(_, sections)| sections.first().copied());
    let place = |((name, labels), sections): ((&str, &Labels), _)| Places {
        name: SeriesName { name: name.to_owned(), labels: labels.clone() },
        sections,
    };
    all.into_iter().map(place).collect()
}

fn push_remote(remote: &RemoteColumn, bounds: (i64, i64), pairs: &mut Vec<(i64, f64)>) {
    let samples = remote.times.iter().zip(&remote.values);
    let within = samples.filter(|(time, _)| (bounds.0..=bounds.1).contains(time));
    pairs.extend(within.map(|(&time, &raw)| (time, f64::from_bits(raw))));
}

fn kind_of(schema: &Schema, column: usize) -> Kind {
    schema.columns.get(column).map_or(Kind::Float, |column| column.kind)
}

/// Up to this range so many series are read at once; beyond it one column group.
const SHORT_MS: i64 = 7_200_000;
const SERIES_OF_SHORT: usize = 128;
