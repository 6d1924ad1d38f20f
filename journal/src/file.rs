//! The journal's directory: its lock, its version, its files, and the one that is written.

use crate::anew::{Anew, write_anew};
use crate::disk::{self, Output};
use crate::scan::{Bounds, HEADER, MAGIC, Then, crc, scan, scan_from};
use crate::tail::Position;
use crate::uring::{Commit, Engine, Fault, choose};
use crate::{JournalError, RECORD_BYTES_MAX};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A directory of record files, open for appending.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    /// Held for as long as the journal is open.
    _lock: Flock<File>,
    bounds: Bounds,
    /// Files of earlier turns and their bytes, oldest first; not the active one.
    closed: Vec<(u64, u64)>,
    active: u64,
    /// The active one; none until the first commit, for a start needs no room then.
    file: Option<Output>,
    engine: Engine,
    /// Synced bytes of the active file.
    synced: u64,
    /// Appended and not yet written.
    pending: Vec<u8>,
}

/// A place that recovery could not read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// The first byte that is not part of a valid record.
    pub offset: u64,
    /// What is wrong with it.
    pub why: String,
}

impl Journal {
    /// Opens or makes the journal in `dir`, calls `visit` with (file number, record) of every
    /// valid record, oldest first. What is committed goes into a new file.
    ///
    /// # Errors
    /// The directory is locked, of another version, or the operating system refused.
    pub fn open(
        dir: &Path,
        visit: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<(Self, Vec<Damage>), JournalError> {
        Self::open_within(dir, Bounds::WIDE, visit)
    }

    /// As [`Journal::open`], with less memory.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_within(
        dir: &Path,
        bounds: Bounds,
        visit: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<(Self, Vec<Damage>), JournalError> {
        fs::create_dir_all(dir).map_err(io("make the directory", dir))?;
        let lock = lock(dir)?;
        version(dir)?;
        let mut closed = Vec::new();
        let mut damage = Vec::new();
        for number in numbers(dir)? {
            let path = file_path(dir, number);
            let file = File::open(&path).map_err(io("open", &path))?;
            let bytes = file.metadata().map_err(io("ask for the size of", &path))?.len();
            scan(&file, &path, bounds, &mut damage, &mut |record| visit(number, record))?;
            closed.push((number, bytes));
        }
        let active = closed.last().map_or(1, |(last, _)| last.saturating_add(1));
        let file = None;
        let synced = MAGIC.len() as u64;
        let dir = dir.to_owned();
        let pending = Vec::new();
        let engine = choose(&dir);
        let journal =
            Self { dir, _lock: lock, bounds, closed, active, file, engine, synced, pending };
        Ok((journal, damage))
    }

    /// Reads every record of `dir` and changes nothing; for checking.
    ///
    /// # Errors
    /// The operating system refused.
    pub fn check(dir: &Path) -> Result<(u64, Vec<Damage>), JournalError> {
        let (mut records, mut damage) = (0, Vec::new());
        for number in numbers(dir)? {
            let path = file_path(dir, number);
            let file = File::open(&path).map_err(io("open", &path))?;
            records += scan(&file, &path, Bounds::WIDE, &mut damage, &mut |_| ())?;
        }
        Ok((records, damage))
    }

    /// Calls `visit` with each committed record behind `from` and the position behind it, in order and
    /// past what is broken, until it has had enough; gives the position to go on from.
    ///
    /// # Errors
    /// The operating system refused.
    pub fn read(
        &self,
        from: Position,
        visit: &mut dyn FnMut(Position, &[u8]) -> Then,
    ) -> Result<Position, JournalError> {
        let mut at = from;
        let active = self.file.is_some().then_some(self.active);
        let numbers = self.closed.iter().map(|(number, _)| *number).chain(active);
        for number in numbers.filter(|number| from.file <= *number) {
            let path = file_path(&self.dir, number);
            let file = File::open(&path).map_err(io("open", &path))?;
            let offset = if number == from.file { from.offset } else { 0 };
            let mut enough = Then::More;
            let offset = scan_from(&file, &path, self.bounds, offset, &mut |offset, record| {
                enough = visit(Position { file: number, offset }, record);
                enough
            })?;
            at = Position { file: number, offset };
            if enough == Then::Stop {
                break;
            }
        }
        Ok(at)
    }

    /// How commits reach the disk here.
    #[must_use]
    pub fn commits(&self) -> Commit {
        match self.engine {
            Engine::Plain => Commit::Plain,
            Engine::Uring(_) => Commit::Uring,
        }
    }

    /// Appends a record to the next commit.
    ///
    /// # Errors
    /// [`JournalError::Record`] if it is empty or too large.
    pub fn append(&mut self, parts: &[&[u8]]) -> Result<(), JournalError> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(bytes).unwrap_or(u32::MAX);
        if bytes == 0 || RECORD_BYTES_MAX < bytes {
            return Err(JournalError::Record { bytes });
        }
        put_record(&mut self.pending, length, parts);
        Ok(())
    }

    /// Writes a closed file anew: `visit` gets each record that checks, at last `None`, and the
    /// file to be. The file is the old one or the new one, whatever happens.
    ///
    /// # Errors
    /// The operating system refused; the file is as it was.
    pub fn rewrite(
        &mut self,
        number: u64,
        visit: &mut dyn FnMut(Option<&[u8]>, &mut Anew),
    ) -> Result<(), JournalError> {
        let Some(at) = self.closed.iter().position(|(closed, _)| *closed == number) else {
            return Ok(());
        };
        let path = file_path(&self.dir, number);
        let new = path.with_extension("new");
        let written = write_anew(&path, &new, self.bounds, visit).and_then(|bytes| {
            disk::rename(&new, &path).map_err(io("rename", &new))?;
            Ok(bytes)
        });
        match written {
            Ok(bytes) => self.closed[at].1 = bytes,
            Err(why) => {
                // Where it cannot be removed it is written over the next time.
                let _ = disk::remove(&new);
                return Err(why);
            }
        }
        sync_dir(&self.dir)
    }

    /// Writes and syncs everything appended: one write, one fdatasync, however they are called.
    ///
    /// # Errors
    /// What the operating system said; everything appended is kept for the next commit.
    pub fn commit(&mut self) -> Result<(), JournalError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(create(&self.dir, self.active)?),
        };
        if let Err(fault) = self.engine.write_sync(file, &self.pending) {
            let path = file_path(&self.dir, self.active);
            // A half-written tail is cut off; if even that fails, recovery reads past it.
            let cut = file.cut(self.synced);
            if let Err(error) = &cut {
                log::warn!("{}: the torn tail could not be cut off: {error}", path.display());
            }
            if cut.is_err() || matches!(fault, Fault::Sync(_)) {
                self.give_up(&path);
            }
            let error = fault.into_error();
            return Err(match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => JournalError::Full { path },
                _ => JournalError::Io { doing: "write", path, source: error },
            });
        }
        self.synced += self.pending.len() as u64;
        self.pending.clear();
        self.pending.shrink_to(4 * self.bounds.read_bytes);
        Ok(())
    }

    /// No more is written to the active file: what was synced of it stays, and the next commit begins
    /// another. A sync that failed is never asked for again.
    fn give_up(&mut self, path: &Path) {
        self.file = None;
        if self.synced == MAGIC.len() as u64 && disk::remove(path).is_ok() {
            // Nothing was committed to it: its number is free, and a disk that fails for hours is
            // not filled with empty files.
            return;
        }
        log::warn!("{}: given up after {} bytes; a new file is begun", path.display(), self.synced);
        self.closed.push((self.active, self.synced));
        self.active = self.active.saturating_add(1);
        self.synced = MAGIC.len() as u64;
    }

    /// Commits so from here on, whichever was faster when it was opened; for benches, which
    /// compare.
    ///
    /// # Errors
    /// The kernel has no io_uring for us.
    pub fn commit_by(&mut self, how: Commit) -> Result<(), JournalError> {
        self.engine = Engine::of(how).map_err(io("use io_uring in", &self.dir))?;
        Ok(())
    }

    /// Forgets what was appended since the last commit.
    pub fn discard(&mut self) {
        self.pending.clear();
    }

    /// Commits and begins a new file; returns the number of the last one that is closed.
    ///
    /// # Errors
    /// As [`Journal::commit`], or the new file could not be made.
    pub fn rotate(&mut self) -> Result<u64, JournalError> {
        self.commit()?;
        if self.file.is_none() {
            // Nothing is in it: it is new as it is.
            return Ok(self.active.saturating_sub(1));
        }
        let next = self.active.saturating_add(1);
        self.file = Some(create(&self.dir, next)?);
        let old = std::mem::replace(&mut self.active, next);
        self.closed.push((old, self.synced));
        self.synced = MAGIC.len() as u64;
        Ok(old)
    }

    /// Removes a closed file. The last one stays while the active one is not made: the next life
    /// goes on counting behind what it finds, and no number may come twice.
    ///
    /// # Errors
    /// The operating system refused.
    pub fn remove(&mut self, number: u64) -> Result<(), JournalError> {
        let is_last = self.closed.last().is_some_and(|(last, _)| *last == number);
        let is_closed = self.closed.iter().any(|(closed, _)| *closed == number);
        if !is_closed || is_last && self.file.is_none() {
            return Ok(());
        }
        let path = file_path(&self.dir, number);
        disk::remove(&path).map_err(io("remove", &path))?;
        self.closed.retain(|(closed, _)| *closed != number);
        Ok(())
    }

    /// Numbers and bytes of the closed files, oldest first.
    #[must_use]
    pub fn closed(&self) -> &[(u64, u64)] {
        &self.closed
    }

    /// Bytes of all files, with what is appended.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.closed.iter().map(|(_, bytes)| bytes).sum::<u64>() + self.active_bytes()
    }

    /// The number of the file that is written.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.active
    }

    /// Behind the last committed record.
    #[must_use]
    pub fn synced(&self) -> Position {
        Position { file: self.active, offset: self.synced }
    }

    /// Bytes of the file that is written, with what is appended.
    #[must_use]
    pub fn active_bytes(&self) -> u64 {
        let written = if self.file.is_some() { self.synced } else { 0 };
        written + self.pending.len() as u64
    }
}

pub(crate) fn put_record(to: &mut Vec<u8>, length: u32, parts: &[&[u8]]) {
    let start = to.len();
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(&[0; 4]);
    for part in parts {
        to.extend_from_slice(part);
    }
    let sum = crc(length.to_le_bytes(), &to[start + HEADER..]);
    to[start + 4..start + HEADER].copy_from_slice(&sum.to_le_bytes());
}

/// Bytes that an unprivileged process may still write on the file system of `path`.
///
/// # Errors
/// The operating system refused.
pub fn free_bytes(path: &Path) -> Result<u64, JournalError> {
    disk::free_bytes(path).map_err(io("ask for the free space of", path))
}

/// Makes what was created or renamed in `dir` durable.
///
/// # Errors
/// The operating system refused.
fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    disk::sync_dir(dir).map_err(io("sync", dir))
}

fn lock(dir: &Path) -> Result<Flock<File>, JournalError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(io("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => JournalError::Locked { path: dir.to_owned() },
        other => io("lock", &path)(other.into()),
    })
}

fn version(dir: &Path) -> Result<(), JournalError> {
    let path = dir.join("version");
    match fs::read(&path) {
        Ok(found) if found == VERSION.as_bytes() => Ok(()),
        // An empty file is a crash between create and write.
        Ok(found) if !found.is_empty() => Err(JournalError::Version {
            path,
            found: String::from_utf8_lossy(&found).trim().chars().take(80).collect(),
            wanted: VERSION.trim().to_owned(),
        }),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("read", &path)(error)),
        _ => {
            let mut file = Output::create(&path).map_err(io("make", &path))?;
            file.write_all(VERSION.as_bytes())
                .and_then(|()| file.sync_data())
                .map_err(io("write", &path))?;
            sync_dir(dir)
        }
    }
}

pub(crate) fn numbers(dir: &Path) -> Result<Vec<u64>, JournalError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(io("list", dir))? {
        let name = entry.map_err(io("list", dir))?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".log"));
        numbers.extend(digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn create(dir: &Path, number: u64) -> Result<Output, JournalError> {
    let path = file_path(dir, number);
    let mut file = Output::create(&path).map_err(io("make", &path))?;
    let written = file.write_all(&MAGIC).and_then(|()| file.sync_data());
    let named = written.map_err(io("write", &path)).and_then(|()| sync_dir(dir));
    if let Err(why) = named {
        // Another try is to make another file: of this one, and of its name, a sync may have failed.
        let _ = disk::remove(&path);
        return Err(why);
    }
    Ok(file)
}

pub(crate) fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.log"))
}

pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> JournalError {
    move |source| match source.kind() {
        ErrorKind::StorageFull => JournalError::Full { path: path.to_owned() },
        _ => JournalError::Io { doing, path: path.to_owned(), source },
    }
}

const VERSION: &str = "strobe journal 1\n";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A directory of its own, removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("journal-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn read(dir: &Path) -> (Vec<Vec<u8>>, Vec<Damage>) {
        let mut records = Vec::new();
        let (_, damage) =
            Journal::open(dir, &mut |_, record| records.push(record.to_vec())).unwrap();
        (records, damage)
    }

    fn write(dir: &Path, records: &[Vec<u8>]) {
        let (mut journal, _) = Journal::open(dir, &mut |_, _| ()).unwrap();
        for record in records {
            journal.append(&[record]).unwrap();
        }
        journal.commit().unwrap();
    }

    #[test]
    fn what_is_committed_is_read_back_in_order_across_files() {
        let place = Place::new("order");
        let (mut journal, _) = Journal::open(&place.0, &mut |_, _| ()).unwrap();
        journal.append(&[b"a", b"b"]).unwrap();
        let first = journal.rotate().unwrap();
        journal.append(&[b"c"]).unwrap();
        journal.commit().unwrap();
        journal.append(&[b"lost"]).unwrap();
        drop(journal);
        let (records, damage) = read(&place.0);
        assert_eq!((records, damage), (vec![b"ab".to_vec(), b"c".to_vec()], vec![]));
        let (mut journal, _) = Journal::open(&place.0, &mut |_, _| ()).unwrap();
        journal.remove(first).unwrap();
        drop(journal);
        assert_eq!(read(&place.0).0, [b"c".to_vec()]);
    }

    /// A disk that is full to the last byte: a restart made a file, could not, and did not start.
    #[test]
    fn a_start_needs_no_room_and_numbers_go_on() {
        let place = Place::new("lazy");
        let (mut journal, _) = Journal::open(&place.0, &mut |_, _| ()).unwrap();
        journal.append(&[b"a"]).unwrap();
        let first = journal.rotate().unwrap();
        drop(journal);
        disk::watch(|call| match call {
            disk::Call::Create(_) | disk::Call::Write(..) => {
                disk::Fate::Fail(ErrorKind::StorageFull)
            }
            _ => disk::Fate::Pass,
        });
        let (mut journal, damage) = Journal::open(&place.0, &mut |_, _| ()).unwrap();
        assert_eq!(damage, []);
        let last = journal.rotate().unwrap();
        journal.append(&[b"b"]).unwrap();
        assert!(matches!(journal.commit(), Err(JournalError::Full { .. })));
        for number in first..=last {
            journal.remove(number).unwrap();
        }
        disk::watch(|_| disk::Fate::Pass);
        drop(journal);
        // All is removed that may be, and still what is new comes behind it.
        let (mut journal, _) = Journal::open(&place.0, &mut |_, _| ()).unwrap();
        assert!(last < journal.active(), "{last} {}", journal.active());
        journal.append(&[b"c"]).unwrap();
        journal.commit().unwrap();
        journal.remove(last).unwrap();
        drop(journal);
        assert_eq!(read(&place.0).0, [b"c".to_vec()]);
    }

    /// The kernel says once that a sync failed; the next one of the same file succeeds, whatever the
    /// disk has. What was not acknowledged then was believed to be there one commit later.
    #[test]
    fn a_sync_that_failed_is_not_asked_for_again() {
        let place = Place::new("sync");
        let (mut journal, _) = Journal::open(&place.0, &mut |_, _| ()).unwrap();
        journal.append(&[b"a"]).unwrap();
        journal.commit().unwrap();
        let first = file_path(&place.0, journal.active());
        let fail = |call: disk::Call<'_>| match call {
            disk::Call::Sync(_) => disk::Fate::Fail(ErrorKind::Other),
            _ => disk::Fate::Pass,
        };
        disk::watch(fail);
        journal.append(&[b"b"]).unwrap();
        // It fails for long: not one file a try is left behind.
        for _ in 0..5 {
            assert!(matches!(journal.commit(), Err(JournalError::Io { .. })));
        }
        let failed = first.clone();
        disk::watch(move |call| match call {
            disk::Call::Sync(path) | disk::Call::Write(path, _) => {
                assert_ne!(path, failed, "it is given up");
                disk::Fate::Pass
            }
            _ => disk::Fate::Pass,
        });
        journal.commit().unwrap();
        disk::watch(|_| disk::Fate::Pass);
        assert_eq!(numbers(&place.0).unwrap(), [1, 2]);
        assert_eq!(fs::read(first).unwrap().len() as u64, journal.closed()[0].1);
        drop(journal);
        assert_eq!(read(&place.0), (vec![b"a".to_vec(), b"b".to_vec()], vec![]));
    }

    #[test]
    fn a_second_process_and_another_version_are_refused() {
        let place = Place::new("lock");
        let (journal, _) = Journal::open(&place.0, &mut |_, _| ()).unwrap();
        let second = Journal::open(&place.0, &mut |_, _| ());
        assert!(matches!(second, Err(JournalError::Locked { .. })));
        drop(journal);
        fs::write(place.0.join("version"), "strobe journal 9\n").unwrap();
        let other = Journal::open(&place.0, &mut |_, _| ()).unwrap_err();
        assert!(other.to_string().contains("strobe journal 9"), "{other}");
    }

    /// A crash leaves the file cut at any byte: every whole record before the cut is kept.
    #[test]
    fn cut_at_every_byte_all_whole_records_are_kept() {
        let place = Place::new("cut");
        let records: Vec<Vec<u8>> = (1..6_u8).map(|n| vec![n; usize::from(n) * 7]).collect();
        write(&place.0, &records);
        let path = file_path(&place.0, 1);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            let other = Place::new("cut-at");
            fs::create_dir_all(&other.0).unwrap();
            fs::write(file_path(&other.0, 1), &whole[..cut]).unwrap();
            let (found, damage) = read(&other.0);
            let mut end = MAGIC.len();
            let expected: Vec<_> = records
                .iter()
                .take_while(|record| {
                    end += HEADER + record.len();
                    end <= cut
                })
                .cloned()
                .collect();
            assert_eq!(found, expected, "cut at {cut}");
            let clean: usize =
                MAGIC.len() + expected.iter().map(|r| r.len() + HEADER).sum::<usize>();
            assert_eq!(damage.is_empty(), cut == 0 || cut == clean, "cut at {cut}: {damage:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// One flipped bit costs at most the record it is in; the others are all found.
        #[test]
        fn a_flipped_bit_costs_one_record(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 1..12),
            at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let place = Place::new("flip");
            write(&place.0, &records);
            let path = file_path(&place.0, 1);
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len() - MAGIC.len()) + MAGIC.len();
            bytes[at] ^= 1 << bit;
            fs::write(&path, &bytes).unwrap();
            let mut end = MAGIC.len();
            let hit = records.iter().position(|r| { end += HEADER + r.len(); at < end }).unwrap();
            let mut expected = records;
            expected.remove(hit);
            let (found, damage) = read(&place.0);
            prop_assert_eq!(found, expected);
            prop_assert_eq!(damage.len(), 1);
        }
    }
}
