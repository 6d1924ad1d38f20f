//! A segment: an immutable file of many blocks, with what is needed to read them alone.
//!
//! ```text
//! chunk:   "SGC1", kind u32, length u32, CRC32C of kind, length and payload u32, payload
//! file:    sources and schemas before the blocks that use them, blocks, the footer
//! trailer: offset of the footer u64, CRC32C of it u32, "SGE1"
//! ```
//!
//! It is written under another name, synced, renamed, and the directory synced: a crash leaves it
//! whole or absent. If the footer is broken, the chunks are scanned: every block that checks is
//! kept and what does not is named.

use super::block::{Block, Data};
use super::encode::LEVEL_LISTS;
use super::lists::{put_schema, take_schema};
use super::{SegmentReport, StoreError};
use rkyv::rancor::Failure;
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use strobe_journal::disk::{self, Output};
use strobe_wire::schema::{Labels, Schema};

/// What a segment holds, at its end.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Footer {
    /// 0: raw samples.
    pub(super) step_ms: u32,
    /// Every row before this that lay in a WAL file up to `wal_through` is in a segment. Of a
    /// rollup, whose cut is before all time, `wal_through` is the newest segment it is made of.
    pub(super) cut_ms: i64,
    pub(super) wal_through: u64,
    pub(super) sources: Vec<(u128, Labels)>,
    /// The id of each, and where it stands: a host's lists of series are a tenth of its file, and
    /// once is enough.
    pub(super) schemas: Vec<(u64, u64)>,
    /// By source, schema, time.
    pub(super) entries: Vec<Entry>,
}

/// Where a block is.
#[derive(
    Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default,
)]
pub(super) struct Entry {
    pub(super) source: u128,
    pub(super) schema: u64,
    pub(super) first_ms: i64,
    pub(super) last_ms: i64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// A segment file being written.
#[derive(Debug)]
pub(super) struct SegmentWriter {
    path: PathBuf,
    out: BufWriter<Output>,
    offset: u64,
    footer: Footer,
}

/// A segment file that can be read.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) step_ms: u32,
    pub(super) first_ms: i64,
    pub(super) last_ms: i64,
    pub(super) bytes: u64,
    /// As its name has it.
    pub(super) number: u64,
    /// Of a rollup: the newest segment it is made of.
    pub(super) through: u64,
    /// The file and its index, while they are in use.
    loaded: Mutex<Option<Arc<Loaded>>>,
}

/// An open segment.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) file: File,
    /// What of it could not be read.
    pub(super) damage: Vec<String>,
    entries: Vec<Entry>,
}

impl SegmentWriter {
    pub(super) fn new(path: PathBuf, step_ms: u32) -> Result<Self, StoreError> {
        let file = Output::create(&path.with_extension("part")).map_err(io("make", &path))?;
        let footer = Footer { step_ms, ..Footer::default() };
        Ok(Self { path, out: BufWriter::with_capacity(1 << 18, file), offset: 0, footer })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.footer.entries.is_empty()
    }

    /// Writes a block, and before it whatever it needs that is not yet in the file.
    pub(super) fn block(
        &mut self,
        labels: &Labels,
        schema: &Schema,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let block = Block::open(Data::Memory(bytes)).map_err(|why| StoreError::Corrupt {
            path: self.path.clone(),
            offset: 0,
            why,
        })?;
        let meta = block.meta;
        if self.footer.sources.last().is_none_or(|last| last.0 != meta.source) {
            let entry = (meta.source, labels.clone());
            self.chunk(SOURCE, &pack(&entry))?;
            self.footer.sources.push(entry);
        }
        if !self.footer.schemas.iter().any(|(id, _)| *id == meta.schema) {
            let place = (meta.schema, self.offset);
            self.chunk(SCHEMA, &put_schema(schema))?;
            self.footer.schemas.push(place);
        }
        let offset = self.offset + CHUNK as u64;
        self.chunk(BLOCK, bytes)?;
        self.footer.entries.push(Entry {
            source: meta.source,
            schema: meta.schema,
            first_ms: block.first_ms,
            last_ms: block.last_ms,
            offset,
            length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        });
        Ok(())
    }

    /// Ends the file, syncs it and gives it its name.
    pub(super) fn finish(mut self, cut_ms: i64, wal_through: u64) -> Result<Segment, StoreError> {
        self.footer.cut_ms = cut_ms;
        self.footer.wal_through = wal_through;
        self.footer.entries.sort_unstable();
        let at = self.offset.to_le_bytes();
        let footer = pack(&self.footer);
        self.chunk(FOOTER, &footer)?;
        let trailer = [&at[..], &crc32c::crc32c(&at).to_le_bytes(), &TRAILER_MAGIC].concat();
        let part = self.path.with_extension("part");
        self.out.write_all(&trailer).map_err(io("write", &part))?;
        let file = self.out.into_inner().map_err(|e| io("write", &part)(e.into_error()))?;
        file.sync_data().map_err(io("sync", &part))?;
        disk::rename(&part, &self.path).map_err(io("rename", &part))?;
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        if let Err(error) = disk::sync_dir(dir) {
            // Its rows are sealed once more, into another file: this one must not be found beside
            // it by the next start. If it cannot be removed, readers see the same rows twice and
            // give them out once.
            if let Err(error) = disk::remove(&self.path) {
                log::warn!("{} stays, and its rows twice: {error}", self.path.display());
            }
            return Err(io("sync", dir)(error));
        }
        let bytes = self.offset + TRAILER as u64;
        Ok(Segment::new(self.path, bytes, &self.footer))
    }

    fn chunk(&mut self, kind: u32, payload: &[u8]) -> Result<(), StoreError> {
        // Names compress to a quarter; on one host they were a quarter of the file. Blocks are
        // compressed group by group.
        let packed;
        let (kind, payload) = match kind {
            SCHEMA | FOOTER => {
                let small = zstd::bulk::compress(payload, LEVEL_LISTS);
                let small = small.map_err(io("compress a part of", &self.path))?;
                let raw = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                packed = [&raw.to_le_bytes()[..], &small].concat();
                (kind | PACKED, &packed[..])
            }
            _ => (kind, payload),
        };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let head = [kind.to_le_bytes(), length.to_le_bytes()].concat();
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head), payload);
        for part in [&CHUNK_MAGIC[..], &head, &sum.to_le_bytes(), payload] {
            self.out.write_all(part).map_err(io("write", &self.path))?;
        }
        self.offset += (CHUNK + payload.len()) as u64;
        Ok(())
    }
}

impl Segment {
    fn new(path: PathBuf, bytes: u64, footer: &Footer) -> Self {
        let first_ms = footer.entries.iter().map(|entry| entry.first_ms).min().unwrap_or(0);
        let last_ms = footer.entries.iter().map(|entry| entry.last_ms).max().unwrap_or(0);
        let step_ms = footer.step_ms;
        let number = number(&path).unwrap_or(0);
        let through = if step_ms == 0 { 0 } else { footer.wal_through };
        let loaded = Mutex::new(None);
        Self { path, step_ms, first_ms, last_ms, bytes, number, through, loaded }
    }

    /// Reads a file's footer, or what is left of a file without one.
    pub(super) fn open(
        path: &Path,
        damage: &mut Vec<String>,
    ) -> Result<(Self, Footer), StoreError> {
        let file = File::open(path).map_err(io("open", path))?;
        let bytes = file.metadata().map_err(io("ask for the size of", path))?.len();
        let footer = read_footer(&file, path, bytes, damage)?;
        Ok((Self::new(path.to_owned(), bytes, &footer), footer))
    }

    /// Adds the schemas of the file that are not known yet.
    pub(super) fn read_schemas(
        &self,
        footer: &Footer,
        known: &mut HashMap<u64, Arc<Schema>>,
        damage: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        let mut file = None;
        for &(id, at) in &footer.schemas {
            if known.contains_key(&id) {
                continue;
            }
            let file = match &file {
                Some(file) => file,
                None => file.insert(File::open(&self.path).map_err(io("open", &self.path))?),
            };
            let chunk = read_chunk(file, at, self.bytes).filter(|(kind, ..)| *kind == SCHEMA);
            match chunk.and_then(|(_, payload, _)| take_schema(&payload).ok()) {
                Some(schema) if schema.id().0 == id => {
                    known.insert(id, Arc::new(schema));
                }
                _ => damage.push(format!(
                    "{} at byte {at}: a list of series is broken; its blocks are read if another \
                     file has the list",
                    self.path.display()
                )),
            }
        }
        Ok(())
    }

    pub(super) fn loaded(&self) -> Result<Arc<Loaded>, StoreError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*loaded {
            return Ok(Arc::clone(loaded));
        }
        let file = File::open(&self.path).map_err(io("open", &self.path))?;
        let mut damage = Vec::new();
        let footer = read_footer(&file, &self.path, self.bytes, &mut damage)?;
        damage.truncate(DAMAGE_MAX);
        let new = Arc::new(Loaded { file, damage, entries: footer.entries });
        *loaded = Some(Arc::clone(&new));
        Ok(new)
    }

    /// Its number, as its name has it.
    pub(super) fn number(&self) -> Option<u64> {
        number(&self.path)
    }

    /// Closes the file and forgets the index until the next use.
    pub(super) fn unload(&self) {
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn number(path: &Path) -> Option<u64> {
    let digits = path.file_stem()?.to_str()?.split('-').nth(1)?;
    u64::from_str_radix(digits, 16).ok()
}

impl Loaded {
    /// All blocks, by source, schema, time.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The blocks of a source and schema that overlap a range.
    pub(super) fn blocks(
        &self,
        source: u128,
        schema: u64,
        range: (i64, i64),
    ) -> impl Iterator<Item = &Entry> {
        let start = self.entries.partition_point(|e| (e.source, e.schema) < (source, schema));
        let all = self.entries.get(start..).unwrap_or(&[]).iter();
        all.take_while(move |e| (e.source, e.schema) == (source, schema))
            .filter(move |e| e.first_ms <= range.1 && range.0 <= e.last_ms)
    }
}

/// Checks every byte of a segment file.
pub(super) fn check(path: &Path, damage: &mut Vec<String>) -> Result<SegmentReport, StoreError> {
    let file = File::open(path).map_err(io("open", path))?;
    let bytes = file.metadata().map_err(io("ask for the size of", path))?.len();
    let _ = read_footer(&file, path, bytes, damage)?;
    let before = damage.len();
    let footer = scan_chunks(&file, path, bytes, damage)?;
    let mut report = SegmentReport { step_ms: footer.step_ms, bytes, ..SegmentReport::default() };
    for entry in &footer.entries {
        report.blocks += 1;
        report.block_bytes += u64::from(entry.length);
        let data = Data::File(&file, entry.offset, entry.length);
        match Block::open(data).and_then(|block| block.check()) {
            Ok(samples) => report.samples += samples,
            Err(why) => damage.push(format!("{} at byte {}: {why}", path.display(), entry.offset)),
        }
    }
    damage.truncate(damage.len().min(before + DAMAGE_MAX));
    Ok(report)
}

fn read_footer(
    file: &File,
    path: &Path,
    bytes: u64,
    damage: &mut Vec<String>,
) -> Result<Footer, StoreError> {
    if let Some(footer) = try_footer(file, bytes) {
        return Ok(footer);
    }
    damage.push(format!("{}: its footer is broken; its blocks were searched", path.display()));
    scan_chunks(file, path, bytes, damage)
}

fn try_footer(file: &File, bytes: u64) -> Option<Footer> {
    let mut trailer = [0; TRAILER];
    file.read_exact_at(&mut trailer, bytes.checked_sub(TRAILER as u64)?).ok()?;
    let (at, rest) = trailer.split_first_chunk::<8>()?;
    let (sum, magic) = rest.split_first_chunk::<4>()?;
    if magic != TRAILER_MAGIC || u32::from_le_bytes(*sum) != crc32c::crc32c(at) {
        return None;
    }
    let (kind, payload, _) = read_chunk(file, u64::from_le_bytes(*at), bytes)?;
    (kind == FOOTER).then(|| rkyv::from_bytes::<Footer, Failure>(&payload).ok()).flatten()
}

/// The kind and payload of a chunk that checks, and how long it is in the file.
fn read_chunk(file: &File, at: u64, bytes: u64) -> Option<(u32, Vec<u8>, u64)> {
    let mut head = [0; CHUNK];
    file.read_exact_at(&mut head, at).ok()?;
    let (magic, rest) = head.split_first_chunk::<4>()?;
    let (fields, sum) = rest.split_first_chunk::<8>()?;
    let (kind, length) = fields.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    let end = at.checked_add(CHUNK as u64)?.checked_add(u64::from(length))?;
    if *magic != CHUNK_MAGIC || bytes < end {
        return None;
    }
    let mut payload = vec![0; length as usize];
    file.read_exact_at(&mut payload, at + CHUNK as u64).ok()?;
    let found = crc32c::crc32c_append(crc32c::crc32c(fields), &payload);
    if *sum != found.to_le_bytes() {
        return None;
    }
    let (kind, end) = (u32::from_le_bytes(*kind), CHUNK as u64 + u64::from(length));
    if kind & PACKED == 0 {
        return Some((kind, payload, end));
    }
    let (raw, packed) = payload.split_first_chunk::<4>()?;
    let raw = u32::from_le_bytes(*raw) as usize;
    let payload = zstd::bulk::decompress(packed, raw.min(PACKED_BYTES_MAX)).ok()?;
    Some((kind & !PACKED, payload, end))
}

/// A footer made from the chunks that check.
fn scan_chunks(
    file: &File,
    path: &Path,
    bytes: u64,
    damage: &mut Vec<String>,
) -> Result<Footer, StoreError> {
    let mut footer = Footer::default();
    let mut at = 0;
    while at + (CHUNK as u64) <= bytes {
        let Some((kind, payload, length)) = read_chunk(file, at, bytes) else {
            if at + TRAILER as u64 == bytes {
                break;
            }
            damage.push(format!("{} at byte {at}: a broken chunk was skipped", path.display()));
            match find_magic(file, path, at + 1, bytes)? {
                Some(next) => at = next,
                None => break,
            }
            continue;
        };
        match kind {
            SOURCE => footer.sources.extend(rkyv::from_bytes::<_, Failure>(&payload).ok()),
            SCHEMA => {
                footer.schemas.extend(take_schema(&payload).ok().map(|schema| (schema.id().0, at)));
            }
            BLOCK => {
                if let Ok(block) = Block::open(Data::Memory(&payload)) {
                    footer.step_ms = block.meta.step_ms;
                    footer.entries.push(Entry {
                        source: block.meta.source,
                        schema: block.meta.schema,
                        first_ms: block.first_ms,
                        last_ms: block.last_ms,
                        offset: at + CHUNK as u64,
                        length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
                    });
                }
            }
            _ => {}
        }
        at += length;
    }
    footer.entries.sort_unstable();
    Ok(footer)
}

/// The next place at or behind `at` where a chunk may begin.
fn find_magic(file: &File, path: &Path, at: u64, bytes: u64) -> Result<Option<u64>, StoreError> {
    let mut buffer = vec![0; 1 << 16];
    let mut base = at;
    while base < bytes {
        let found = file.read_at(&mut buffer, base).map_err(io("read", path))?;
        let window = buffer.get(..found).unwrap_or(&[]);
        if let Some(place) = window.windows(4).position(|four| four == CHUNK_MAGIC) {
            return Ok(Some(base + place as u64));
        }
        if found < 4 {
            break;
        }
        base += found as u64 - 3;
    }
    Ok(None)
}

pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    move |source| StoreError::Io { doing, path: path.to_owned(), source }
}

/// As rkyv has it; only allocation could fail.
pub(super) fn pack<T>(value: &T) -> Vec<u8>
where
    T: for<'a> Serialize<
        rkyv::api::high::HighSerializer<
            rkyv::util::AlignedVec,
            rkyv::ser::allocator::ArenaHandle<'a>,
            Failure,
        >,
    >,
{
    rkyv::to_bytes::<Failure>(value).expect("plain data in memory is serializable").to_vec()
}

const CHUNK_MAGIC: [u8; 4] = *b"SGC1";
const TRAILER_MAGIC: [u8; 4] = *b"SGE1";
const CHUNK: usize = 16;
const TRAILER: usize = 16;
const SOURCE: u32 = 1;
const SCHEMA: u32 = 2;
const BLOCK: u32 = 3;
const FOOTER: u32 = 4;
/// The payload is its length u32 and a zstd frame.
const PACKED: u32 = 1 << 8;
/// A footer of a hundred thousand hosts.
const PACKED_BYTES_MAX: usize = 256 << 20;
/// Places named in one file.
const DAMAGE_MAX: usize = 100;
