//! Reading one file of records with a bounded buffer, past whatever is broken.

use crate::{Damage, JournalError, RECORD_BYTES_MAX};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// What reading may take in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Bytes of the largest record there can be; a length above it is a broken one.
    pub record_bytes_max: usize,
    /// Bytes read at once.
    pub read_bytes: usize,
}

impl Bounds {
    /// For a journal of a process that has memory.
    pub const WIDE: Self = Self { record_bytes_max: RECORD_BYTES_MAX, read_bytes: 1 << 20 };
}

/// A window over a file: bytes `at..` are unread.
struct Window<'a> {
    file: &'a File,
    path: &'a Path,
    bounds: Bounds,
    buffer: Vec<u8>,
    at: usize,
    /// File offset of `buffer[0]`.
    base: u64,
}

/// What stands at the window's start.
enum Place {
    Record(usize),
    End,
    Broken(&'static str),
}

/// Calls `visit` with each record that checks, in order.
pub(crate) fn scan(
    file: &File,
    path: &Path,
    bounds: Bounds,
    damage: &mut Vec<Damage>,
    visit: &mut dyn FnMut(&[u8]),
) -> Result<u64, JournalError> {
    let mut window = Window { file, path, bounds, buffer: Vec::new(), at: 0, base: 0 };
    if window.fill(MAGIC.len())?.starts_with(&MAGIC) {
        window.at += MAGIC.len();
    } else if !window.rest().is_empty() {
        damage.push(window.damage("its first four bytes are not the journal's"));
    }
    let mut records = 0;
    window.each(damage, &mut |_, record| {
        visit(record);
        records += 1;
        Then::More
    })?;
    Ok(records)
}

/// Calls `visit` with each record that checks from `offset` on, and the offset behind it, until it
/// has had enough; gives the offset to go on from.
pub(crate) fn scan_from(
    mut file: &File,
    path: &Path,
    bounds: Bounds,
    offset: u64,
    visit: &mut dyn FnMut(u64, &[u8]) -> Then,
) -> Result<u64, JournalError> {
    let base = offset.max(MAGIC.len() as u64);
    file.seek(SeekFrom::Start(base)).map_err(|source| JournalError::Io {
        doing: "read",
        path: path.into(),
        source,
    })?;
    let mut window = Window { file, path, bounds, buffer: Vec::new(), at: 0, base };
    window.each(&mut Vec::new(), visit)?;
    Ok(window.offset())
}

/// Whether a visitor wants another record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// It does.
    More,
    /// It has enough.
    Stop,
}

impl Window<'_> {
    fn each(
        &mut self,
        damage: &mut Vec<Damage>,
        visit: &mut dyn FnMut(u64, &[u8]) -> Then,
    ) -> Result<(), JournalError> {
        // Where a broken stretch began; one is named once, however long.
        let mut broken = false;
        loop {
            match self.place()? {
                Place::Record(length) => {
                    let behind = self.offset() + (HEADER + length) as u64;
                    let then = visit(behind, self.payload(length));
                    self.at += HEADER + length;
                    broken = false;
                    if then == Then::Stop {
                        return Ok(());
                    }
                }
                Place::End => return Ok(()),
                Place::Broken(why) => {
                    if !broken {
                        damage.push(self.damage(why));
                    }
                    broken = true;
                    self.at += 1;
                }
            }
        }
    }

    fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// At least `wanted` unread bytes, or all there are.
    fn fill(&mut self, wanted: usize) -> Result<&[u8], JournalError> {
        if self.rest().len() < wanted {
            self.buffer.drain(..self.at);
            self.base += self.at as u64;
            self.at = 0;
            let more = wanted.max(self.bounds.read_bytes).saturating_sub(self.buffer.len()) as u64;
            self.file.take(more).read_to_end(&mut self.buffer).map_err(|source| {
                JournalError::Io { doing: "read", path: self.path.into(), source }
            })?;
        }
        Ok(self.rest())
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or(&[])
    }

    fn payload(&self, length: usize) -> &[u8] {
        self.rest().get(HEADER..HEADER + length).unwrap_or(&[])
    }

    fn place(&mut self) -> Result<Place, JournalError> {
        let rest = self.fill(HEADER)?;
        if rest.is_empty() {
            return Ok(Place::End);
        }
        let Some((&length, tail)) = rest.split_first_chunk::<4>() else {
            return Ok(Place::Broken("torn: a record's header is cut off"));
        };
        let Some(&wanted) = tail.first_chunk::<4>() else {
            return Ok(Place::Broken("torn: a record's header is cut off"));
        };
        let bytes = u32::from_le_bytes(length) as usize;
        if bytes == 0 || self.bounds.record_bytes_max < bytes {
            return Ok(Place::Broken("corrupt: a record's length is impossible"));
        }
        let rest = self.fill(HEADER + bytes)?;
        let Some(payload) = rest.get(HEADER..HEADER + bytes) else {
            return Ok(Place::Broken("torn: a record is cut off"));
        };
        if crc(length, payload) != u32::from_le_bytes(wanted) {
            return Ok(Place::Broken("corrupt: a record's CRC32C differs"));
        }
        Ok(Place::Record(bytes))
    }

    fn damage(&self, why: &str) -> Damage {
        Damage { path: self.path.into(), offset: self.offset(), why: why.to_owned() }
    }
}

/// The checksum of a record.
pub(crate) fn crc(length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), payload)
}

/// The first bytes of a file.
pub(crate) const MAGIC: [u8; 4] = *b"SJL1";
/// Length and CRC before a payload.
pub(crate) const HEADER: usize = 8;
