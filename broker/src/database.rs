//! The redb files of a state directory, on a disk that may be full or fail.
//!
//! ```text
//! DIR/reserve        4 MiB that are this broker's: given back by and by where a page finds no room
//! DIR/*.redb         a page that finds none is tried again while the reserve has something to give
//! DIR/*.redb.anew    a copy on its way
//! ```
//!
//! redb copies what it changes, so it wants room for every change, and for a start too; and after one
//! failed call it refuses for good. Without a reserve a full disk ends a broker's part in its cluster,
//! and a restart ends the broker. Frames have no share of it: they are refused at the store's floor and
//! wait with their agents, while the little that brokers agree on goes on. It is filled up again once
//! there is room for four of it.
//!
//! A sync that failed is not asked for again ([`renew`]): what the kernel holds for written may not be on
//! the disk, and redb would build on it. Before such a file is opened again, all of it is written to a
//! new one.

use redb::backends::FileBackend;
use redb::{BackendError, Database, DatabaseError, StorageBackend};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use strobe_journal::disk::{rename, sync_dir};

/// Opens or makes the database at `path`, with so much of a cache and the reserve of its directory.
///
/// # Errors
/// redb's words; a disk without any room among them.
pub(crate) fn open(path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let reserve = Reserve::beside(path);
    reserve.fill();
    let short = AtomicBool::new(reserve.held() < RESERVE_BYTES);
    let backend = Backed { inner: FileBackend::new(file)?, reserve, short };
    Database::builder().set_cache_size(cache_bytes).create_with_backend(backend)
}

/// Writes all of a database that failed to a new file in its place; nobody has it open.
///
/// # Errors
/// The disk refuses; the file is the old one.
pub(crate) fn renew(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".anew");
    let anew = PathBuf::from(name);
    let reserve = Reserve::beside(path);
    let copied = loop {
        match std::fs::copy(path, &anew).and_then(|_| File::open(&anew)?.sync_all()) {
            Err(why) if is_full(&why) && reserve.give() => {}
            copied => break copied,
        }
    };
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let renewed = copied.and_then(|()| rename(&anew, path)).and_then(|()| sync_dir(dir));
    if renewed.is_err() {
        // It is written over the next time.
        let _ = std::fs::remove_file(&anew);
    }
    renewed
}

/// A database's file, and where it finds room.
#[derive(Debug)]
struct Backed {
    inner: FileBackend,
    reserve: Reserve,
    /// Something was given. `Relaxed`: it is a hint to look at the file, and carries no bytes.
    short: AtomicBool,
}

/// A file of no content.
#[derive(Debug)]
struct Reserve {
    path: PathBuf,
}

impl Reserve {
    fn beside(path: &Path) -> Self {
        Self { path: path.with_file_name("reserve") }
    }

    fn held(&self) -> u64 {
        self.path.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Gives a part of it back to the disk; whether there was one.
    fn give(&self) -> bool {
        let held = self.held();
        let Some(left) = held.checked_sub(PART_BYTES) else { return false };
        let cut = OpenOptions::new().write(true).open(&self.path).and_then(|file| {
            file.set_len(left)?;
            // ext4 lets others have freed blocks only when it has committed that they are free.
            file.sync_all()
        });
        log::warn!(
            "{}: the disk is full; {left} bytes of the reserve are left: make room",
            self.path.display()
        );
        cut.is_ok()
    }

    /// Takes what is missing, if there is plenty.
    fn fill(&self) {
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        let free = strobe_journal::free_bytes(dir).unwrap_or(0);
        if RESERVE_BYTES <= self.held() || free < 4 * RESERVE_BYTES {
            return;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path);
        let taken = file.and_then(|file| {
            let bytes = i64::try_from(RESERVE_BYTES).map_err(io::Error::other)?;
            Ok(nix::fcntl::posix_fallocate(&file, 0, bytes)?)
        });
        if let Err(why) = taken {
            log::debug!("{}: no reserve: {why}", self.path.display());
        }
    }
}

impl Backed {
    fn with_room(&self, act: impl Fn() -> io::Result<()>) -> io::Result<()> {
        loop {
            match act() {
                Err(why) if is_full(&why) && self.reserve.give() => {
                    self.short.store(true, Ordering::Relaxed);
                }
                done => return done,
            }
        }
    }
}

impl StorageBackend for Backed {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_room(|| self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()?;
        if self.short.load(Ordering::Relaxed) {
            self.reserve.fill();
            self.short.store(self.reserve.held() < RESERVE_BYTES, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_room(|| self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

fn is_full(why: &io::Error) -> bool {
    matches!(why.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Thousands of changes to what is agreed on, each a few pages and the room of the one before.
const RESERVE_BYTES: u64 = 4 << 20;
const PART_BYTES: u64 = 512 << 10;
