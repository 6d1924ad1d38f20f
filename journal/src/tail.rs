//! Reading behind the writer: committed records from a position on, by another thread.

use crate::file::{file_path, io, numbers};
use crate::scan::{HEADER, MAGIC, crc};
use crate::{JournalError, RECORD_BYTES_MAX};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

/// A place in a journal: everything before it lies in files that are lower or in this one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    /// The file's number.
    pub file: u64,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// Calls `visit` with the records of `dir` from one position up to another, which is committed,
/// until about `bytes_max` were read; returns the position behind the last. Files that were removed
/// are passed over, and so is the rest of one that does not check.
///
/// # Errors
/// The operating system refused.
pub fn read_between(
    dir: &Path,
    from: Position,
    through: Position,
    bytes_max: usize,
    visit: &mut dyn FnMut(&[u8]),
) -> Result<Position, JournalError> {
    let mut at = from;
    let mut left = bytes_max;
    // Numbers have no holes but at the beginning: the first file is not looked for one by one.
    if at.file < through.file
        && let Some(first) = numbers(dir)?.into_iter().find(|n| at.file <= *n)
        && at.file < first
    {
        at = Position { file: first, offset: 0 };
    }
    while at.file <= through.file && 0 < left {
        let end = if at.file == through.file { through.offset } else { u64::MAX };
        let (offset, whole) = read_file(dir, at, end, &mut left, visit)?;
        if !whole || at.file == through.file {
            return Ok(Position { file: at.file, offset });
        }
        at = Position { file: at.file + 1, offset: 0 };
    }
    Ok(at)
}

/// The number of the oldest file that is there.
///
/// # Errors
/// The directory cannot be listed.
pub fn first(dir: &Path) -> Result<Option<u64>, JournalError> {
    Ok(numbers(dir)?.into_iter().next())
}

/// The offset behind the last record, and whether there is nothing more to read.
fn read_file(
    dir: &Path,
    at: Position,
    end: u64,
    left: &mut usize,
    visit: &mut dyn FnMut(&[u8]),
) -> Result<(u64, bool), JournalError> {
    let path = file_path(dir, at.file);
    let mut offset = at.offset.max(MAGIC.len() as u64);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        // All of it is passed over, also if it is the last: it may have been removed after a rotation that
        // nothing was committed behind.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((end, true)),
        Err(error) => return Err(io("open", &path)(error)),
    };
    file.seek(SeekFrom::Start(offset)).map_err(io("read", &path))?;
    let mut reader = BufReader::with_capacity(READ_BYTES, file);
    let mut payload = Vec::new();
    while offset + (HEADER as u64) < end {
        if *left == 0 {
            return Ok((offset, false));
        }
        let mut head = [0; HEADER];
        match reader.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(io("read", &path)(error)),
        }
        let [a, b, c, d, sum @ ..] = head;
        let length = u32::from_le_bytes([a, b, c, d]);
        if length == 0 || RECORD_BYTES_MAX < length as usize {
            break;
        }
        payload.clear();
        let read = (&mut reader).take(u64::from(length)).read_to_end(&mut payload);
        read.map_err(io("read", &path))?;
        if payload.len() < length as usize
            || crc(length.to_le_bytes(), &payload) != u32::from_le_bytes(sum)
        {
            break;
        }
        visit(&payload);
        offset += HEADER as u64 + u64::from(length);
        *left = left.saturating_sub(HEADER + payload.len());
    }
    Ok((offset, true))
}

const READ_BYTES: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Journal;

    #[test]
    fn a_reader_follows_the_writer_and_sees_nothing_uncommitted() {
        let dir = std::env::temp_dir().join(format!("journal-tail-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (mut journal, _) = Journal::open(&dir, &mut |_, _| ()).unwrap();
        let read = |from, through, bytes_max| {
            let mut found = Vec::new();
            let visit = &mut |record: &[u8]| found.push(record.to_vec());
            let at = read_between(&dir, from, through, bytes_max, visit).unwrap();
            (at, found)
        };
        journal.append(&[b"a"]).unwrap();
        assert_eq!(read(Position::default(), journal.synced(), 100).1, Vec::<Vec<u8>>::new());
        journal.commit().unwrap();
        let (at, found) = read(Position::default(), journal.synced(), 100);
        assert_eq!((at, found), (journal.synced(), vec![b"a".to_vec()]));
        journal.append(&[b"b"]).unwrap();
        let first = journal.rotate().unwrap();
        journal.append(&[b"c"]).unwrap();
        journal.append(&[b"d"]).unwrap();
        journal.commit().unwrap();
        journal.append(&[b"not yet"]).unwrap();
        let (next, found) = read(at, journal.synced(), 10);
        assert_eq!(found, [b"b".to_vec(), b"c".to_vec()], "no more than about the bound");
        let (end, found) = read(next, journal.synced(), 100);
        assert_eq!((end, found), (journal.synced(), vec![b"d".to_vec()]));
        assert_eq!(read(end, journal.synced(), 100), (end, vec![]));
        journal.remove(first).unwrap();
        let (_, found) = read(Position::default(), journal.synced(), 100);
        assert_eq!(found, [b"c".to_vec(), b"d".to_vec()], "what was removed is passed over");
        let last = journal.rotate().unwrap();
        journal.remove(last).unwrap();
        let (at, found) = read(next, journal.synced(), 100);
        assert_eq!((at, found), (journal.synced(), vec![]), "and so is the last one");
        drop(journal);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
