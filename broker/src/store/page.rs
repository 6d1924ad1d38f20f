//! What one broker has of a selection, for another broker's query: pages, each asked for by itself.
//!
//! ```text
//! asked: Wanted ──► page ──► page …   each at most about PAGE_BYTES; Next says where to go on
//! page:  version, (from 2 on) store in Redis 8, step that would answer instead varint, notes, next, zstd(sources)
//! source: id 16, labels, sections varint, (schema: length varint, bytes; block: length varint, bytes)…
//! ```
//!
//! A section is a list of columns, and a block of their samples (each column with its own times) or of
//! their rollup rows, each from version 3 on with what it stands for. Where only names are wanted there is no block.

use super::block::Meta;
use super::codec::{Take, put_varint};
use super::encode::{Content, LEVEL_YOUNG, encode};
use super::head::{Before, RemoteColumn, SeriesName};
use super::lists::put_schema;
use super::rolled::Rolled;
use super::scratch::Scratch;
use super::select::Part;
use super::{Limits, Matcher, Resolution, Store, StoreError, TimeRange};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use strobe_wire::limits::{MESSAGE_BYTES_MAX, SECTION_COLUMNS_MAX};
use strobe_wire::schema::{Column, Kind, Labels, Schema};

/// What is wanted of a selection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// Which series.
    pub matchers: Vec<Matcher>,
    /// Of what time.
    pub range: TimeRange,
    /// How much of them.
    pub depth: Depth,
    /// What it may touch.
    pub limits: Limits,
    /// Where the last page ended.
    pub next: Option<Next>,
    /// The newest version of a page that who asks can read.
    #[serde(default = "first_version")]
    pub version: u8,
    /// Whether who asks reads itself what others have written to Redis.
    #[serde(default)]
    pub shares: bool,
}

/// How much of a series.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Depth {
    /// That it is there.
    Names,
    /// Samples; for windows of so many ms, if for windows.
    Samples(Option<i64>),
    /// Rows of a rollup of so many ms.
    Rolled(i64),
}

/// Where a page ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Next {
    /// In which source, 32 digits.
    source: String,
    /// Before which of its series, and how many it had then.
    series: usize,
    of: usize,
}

/// A page, read.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Only rollups of this step reach back that far there; then nothing else is said.
    pub(super) coarser_ms: Option<i64>,
    /// What its store is called in Redis; none of one without, or of an older version.
    pub(super) store: Option<u64>,
    /// What is missing, a sentence each.
    pub(super) notes: Vec<String>,
    pub(super) next: Option<Next>,
    pub(super) sources: Vec<PageSource>,
}

#[derive(Debug)]
pub(super) struct PageSource {
    pub(super) id: u128,
    pub(super) labels: Labels,
    pub(super) sections: Vec<(Schema, Arc<Vec<u8>>)>,
}

/// Sections of one source being written.
#[derive(Default)]
struct Sections {
    columns: Vec<Column>,
    data: Vec<RemoteColumn>,
    samples: usize,
    count: u64,
    out: Vec<u8>,
}

impl Store {
    /// The next page of what is wanted, from what this broker itself has. It ends early when
    /// `is_left` says that nobody waits for it.
    ///
    /// # Errors
    /// As [`Store::select`].
    pub fn page(&self, wanted: &Wanted, is_left: &dyn Fn() -> bool) -> Result<Vec<u8>, StoreError> {
        self.page_within(wanted, PAGE_BYTES, is_left)
    }

    pub(super) fn page_within(
        &self,
        wanted: &Wanted,
        bytes_max: usize,
        is_left: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, StoreError> {
        let mut page = Page { store: self.shares(), ..Page::default() };
        let version = wanted.version.min(newest());
        if let Depth::Samples(Some(window_ms)) = wanted.depth {
            match self.resolution(wanted.range.start_ms, window_ms) {
                Resolution::Rolled { step_ms } => {
                    page.coarser_ms = Some(step_ms);
                    return Ok(page.write(version, 0, &[]));
                }
                Resolution::RawFrom { from_ms } => page.notes.push(format!(
                    "samples before {} s are kept as rollups there, which cannot answer this",
                    from_ms / 1000
                )),
                Resolution::Raw => {}
            }
        }
        let parts = self.select(&wanted.matchers, wanted.range, &wanted.limits)?;
        let after = wanted.next.as_ref();
        let after = after.map(|n| (u128::from_str_radix(&n.source, 16).unwrap_or(0), n));
        let (mut body, mut count) = (Vec::new(), 0);
        for part in parts {
            let (id, all) = (part.source.id, part.len());
            let first = match after {
                Some((source, _)) if id < source => continue,
                Some((source, next)) if id == source => {
                    if next.of != all {
                        page.notes.push(CHANGED.to_owned());
                    }
                    next.series
                }
                _ => 0,
            };
            if is_left() {
                break;
            }
            let room = bytes_max.saturating_sub(body.len());
            let (sections, end) = self.sections(&part, first, wanted, room)?;
            if 0 < sections.count {
                put_source(&mut body, &part, &sections);
                count += 1;
            }
            if end < all || bytes_max <= body.len() {
                page.next = Some(Next { source: format!("{id:032x}"), series: end, of: all });
                break;
            }
        }
        page.notes.extend(self.warnings());
        Ok(page.write(version, count, &body))
    }

    /// The series of a part from the `first` on, until the page is full; and the first that is not in.
    fn sections(
        &self,
        part: &Part,
        first: usize,
        wanted: &Wanted,
        room: usize,
    ) -> Result<(Sections, usize), StoreError> {
        let rest = part.behind(first);
        let (mut sections, mut end) = (Sections::default(), part.len());
        let mut scratch = Scratch::new(&wanted.limits);
        let id = part.source.id;
        let full = |sections: &Sections| room <= sections.bytes();
        let stop = || Err(StoreError::Visitor(String::new()));
        let scanned = match wanted.depth {
            Depth::Names => (0..rest.len()).try_for_each(|at| {
                sections.names(id, rest.name(at));
                if full(&sections) {
                    end = first + at + 1;
                    return stop();
                }
                Ok(())
            }),
            Depth::Samples(_) => {
                self.scan_numbered(&rest, wanted.range, &mut scratch, &mut |at, times, values| {
                    sections.samples(id, rest.name(at), (times, values));
                    if full(&sections) {
                        end = first + at + 1;
                        return stop();
                    }
                    Ok(())
                })
            }
            Depth::Rolled(step_ms) => {
                let visit = &mut |at, rows: &Rolled| {
                    sections.rolled((id, step_ms), rest.name(at), rows);
                    if full(&sections) {
                        end = first + at + 1;
                        return stop();
                    }
                    Ok(())
                };
                // Who asks in an older form adds up what it gets.
                if wanted.version.min(newest()) < 3 {
                    self.scan_rolled(&rest, wanted.range, step_ms, &mut scratch, visit)
                } else {
                    self.scan_parts(&rest, wanted.range, step_ms, &mut scratch, visit)
                }
            }
        };
        match scanned {
            Ok(()) => {}
            Err(StoreError::Visitor(_)) if end < part.len() || full(&sections) => {}
            Err(why) => return Err(why),
        }
        let step_ms = if let Depth::Rolled(step_ms) = wanted.depth { step_ms } else { 0 };
        sections.end(id, step_ms);
        Ok((sections, end))
    }
}

impl Sections {
    /// What is written, and about what is still to be.
    fn bytes(&self) -> usize {
        self.out.len() + self.samples * SAMPLE_BYTES + self.columns.len() * NAME_BYTES
    }

    fn names(&mut self, id: u128, name: Option<&SeriesName>) {
        self.column(name);
        if SECTION_COLUMNS_MAX <= self.columns.len() {
            self.end(id, 0);
        }
    }

    fn samples(&mut self, id: u128, name: Option<&SeriesName>, of: (&[i64], &[f64])) {
        for (times, values) in of.0.chunks(SAMPLES_MAX).zip(of.1.chunks(SAMPLES_MAX)) {
            self.column(name);
            let values = values.iter().map(|value| value.to_bits()).collect();
            self.data.push(RemoteColumn {
                before: Before::default(),
                times: times.to_vec(),
                values,
            });
            self.samples += times.len();
            if SECTION_COLUMNS_MAX <= self.columns.len() || SAMPLES_MAX <= self.samples {
                self.end(id, 0);
            }
        }
    }

    fn rolled(&mut self, (id, step_ms): (u128, i64), name: Option<&SeriesName>, rows: &Rolled) {
        self.column(name);
        for field in [&rows.min, &rows.max, &rows.sum, &rows.count, &rows.last] {
            let (times, values) = (rows.times.clone(), field.iter().map(|v| v.to_bits()).collect());
            self.data.push(RemoteColumn { before: Before::default(), times, values });
            self.samples += rows.times.len();
        }
        if !rows.steps.is_empty() {
            let (times, values) = (rows.times.clone(), rows.steps.iter().map(|v| v.to_bits()));
            let (before, values) = (Before::default(), values.collect());
            self.data.push(RemoteColumn { before, times, values });
        }
        if SECTION_COLUMNS_MAX <= self.columns.len() || SAMPLES_MAX <= self.samples {
            self.end(id, step_ms);
        }
    }

    fn column(&mut self, name: Option<&SeriesName>) {
        let Some(SeriesName { name, labels }) = name else { return };
        let (name, labels) = (name.clone(), labels.clone());
        self.columns.push(Column { name, labels, kind: Kind::Float });
    }

    /// Closes the section.
    fn end(&mut self, source: u128, step_ms: i64) {
        if self.columns.is_empty() {
            return;
        }
        let columns = std::mem::take(&mut self.columns);
        let schema = Schema { section: ELSEWHERE.to_owned(), columns };
        let bytes = put_schema(&schema);
        put_varint(&mut self.out, bytes.len() as u64);
        self.out.extend(bytes);
        let data = std::mem::take(&mut self.data);
        let block = if data.is_empty() {
            Vec::new()
        } else {
            let step_ms = u32::try_from(step_ms).unwrap_or(0);
            let meta = Meta { source, schema: schema.id().0, step_ms };
            encode(&meta, Content::Own(&data), &vec![Kind::Float; data.len()], LEVEL_YOUNG)
        };
        put_varint(&mut self.out, block.len() as u64);
        self.out.extend(block);
        self.samples = 0;
        self.count += 1;
    }
}

impl Page {
    fn write(&self, version: u8, count: u64, sources: &[u8]) -> Vec<u8> {
        let mut out = vec![version];
        if 1 < version {
            out.extend(self.store.unwrap_or(0).to_le_bytes());
        }
        put_varint(&mut out, self.coarser_ms.map_or(0, i64::unsigned_abs));
        put_varint(&mut out, self.notes.len() as u64);
        self.notes.iter().for_each(|note| put_text(&mut out, note));
        let next = self.next.as_ref().map(|next| serde_json::to_string(next).unwrap_or_default());
        put_text(&mut out, &next.unwrap_or_default());
        put_varint(&mut out, count);
        put_varint(&mut out, sources.len() as u64);
        // Names are most of a page without samples, and blocks are packed already.
        out.extend(zstd::bulk::compress(sources, PACK_LEVEL).unwrap_or_default());
        out
    }

    /// Reads a page of another broker's.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut take = Take(bytes);
        let [version] = take.array::<1>()?;
        if !(1..=newest()).contains(&version) {
            return Err(format!(
                "its page is of version {version}, this broker reads 1 to {}",
                newest()
            ));
        }
        let store = if 1 < version { Some(u64::from_le_bytes(take.array()?)) } else { None };
        let store = store.filter(|store| *store != 0);
        let coarser_ms = i64::try_from(take.varint()?).ok().filter(|step| *step != 0);
        let mut notes = Vec::new();
        for _ in 0..take.varint()? {
            notes.push(take_text(&mut take)?);
        }
        let next = take_text(&mut take)?;
        let next = match next.as_str() {
            "" => None,
            text => Some(serde_json::from_str(text).map_err(|why| why.to_string())?),
        };
        let (count, length) = (take.varint()?, take.varint()?);
        let length = usize::try_from(length).ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
        let length = length.ok_or("its page is too large")?;
        let body = zstd::bulk::decompress(take.0, length).map_err(|why| why.to_string())?;
        let mut take = Take(&body);
        let mut sources = Vec::new();
        for _ in 0..count {
            sources.push(take_source(&mut take)?);
        }
        Ok(Self { coarser_ms, store, notes, next, sources })
    }
}

fn put_source(out: &mut Vec<u8>, part: &Part, sections: &Sections) {
    out.extend(part.source.id.to_le_bytes());
    put_varint(out, part.owner.0.len() as u64);
    for (name, value) in &part.owner.0 {
        put_text(out, name);
        put_text(out, value);
    }
    put_varint(out, sections.count);
    out.extend(&sections.out);
}

fn take_source(take: &mut Take<'_>) -> Result<PageSource, String> {
    let id = take.u128()?;
    let mut labels = Vec::new();
    for _ in 0..take.varint()? {
        let name = take_text(take)?;
        labels.push((name, take_text(take)?));
    }
    let mut sections = Vec::new();
    for _ in 0..take.varint()? {
        let schema = super::lists::take_schema(take_bytes(take)?)?;
        sections.push((schema, Arc::new(take_bytes(take)?.to_vec())));
    }
    Ok(PageSource { id, labels: Labels::new(labels), sections })
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend(text.as_bytes());
}

fn take_text(take: &mut Take<'_>) -> Result<String, String> {
    String::from_utf8(take_bytes(take)?.to_vec()).map_err(|why| why.to_string())
}

fn take_bytes<'a>(take: &mut Take<'a>) -> Result<&'a [u8], String> {
    let length = usize::try_from(take.varint()?).map_err(|why| why.to_string())?;
    take.slice(length)
}

fn first_version() -> u8 {
    1
}

/// What is written to who can read it; whatever was before it is read too.
pub(crate) fn newest() -> u8 {
    if strobe_wire::message::is_previous() { VERSION - 1 } else { VERSION }
}

const VERSION: u8 = 3;
/// A page's sources are at most about so long: a page more, and then it is one block over.
const PAGE_BYTES: usize = 1 << 20;
/// Samples of a block: at most 4 MiB.
const SAMPLES_MAX: usize = 1 << 17;
/// Packed samples of a fleet are of 1 to 6 bytes.
const SAMPLE_BYTES: usize = 4;
const NAME_BYTES: usize = 8;
const PACK_LEVEL: i32 = 1;
/// The section's name; no agent's can be it.
pub(super) const ELSEWHERE: &str = "another-broker";
const CHANGED: &str = "a host's series changed while they were read: some may be missing";
const _: () = assert!(PAGE_BYTES + SAMPLES_MAX * 2 * 24 <= MESSAGE_BYTES_MAX);
