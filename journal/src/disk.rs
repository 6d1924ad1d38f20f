//! The door to the disk: every call that a crash could undo, or a full disk refuse, is made here.
//!
//! What is written is safe after [`Output::sync_data`]; a name that is made, changed or removed is
//! safe after [`sync_dir`]. A test may stand at the door of its own thread ([`watch`]): it sees
//! each call before it is made and decides what becomes of it, so that a simulation knows what a
//! crash at this moment would leave. Without a watcher a call costs one look at a thread's own
//! memory.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A call that is about to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call<'a> {
    /// An empty file is made, or made empty.
    Create(&'a Path),
    /// Bytes are appended.
    Write(&'a Path, usize),
    /// What was written becomes durable.
    Sync(&'a Path),
    /// A file gets another name.
    Rename(&'a Path, &'a Path),
    /// A file is removed.
    Remove(&'a Path),
    /// The names in a directory become durable.
    SyncDir(&'a Path),
    /// Free space is asked for.
    Free(&'a Path),
}

/// What becomes of a [`Call`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is made.
    Pass,
    /// It fails and does nothing.
    Fail(ErrorKind),
    /// A write takes only so many bytes; an answer about free space is this.
    Short(u64),
}

/// A file that is written from its start to its end.
#[derive(Debug)]
pub struct Output {
    file: File,
    path: PathBuf,
}

/// Someone at the door.
struct Watcher(Box<dyn FnMut(Call<'_>) -> Fate>);

thread_local! {
    static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
}

/// Puts a watcher at the door of this thread, in place of another; for tests.
pub fn watch(watcher: impl FnMut(Call<'_>) -> Fate + 'static) {
    WATCHER.set(Some(Watcher(Box::new(watcher))));
}

/// Whether someone stands at the door of this thread: then nothing may go around it.
#[must_use]
pub fn is_watched() -> bool {
    WATCHER.with_borrow(Option::is_some)
}

impl Output {
    /// Makes the file, or makes it empty.
    ///
    /// # Errors
    /// The operating system refused.
    pub fn create(path: &Path) -> io::Result<Self> {
        pass(Call::Create(path))?;
        Ok(Self { file: File::create(path)?, path: path.to_owned() })
    }

    /// The file itself, if nobody stands at the door.
    pub(crate) fn unwatched(&self) -> Option<&File> {
        (!is_watched()).then_some(&self.file)
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// The operating system refused.
    pub fn sync_data(&self) -> io::Result<()> {
        pass(Call::Sync(&self.path))?;
        self.file.sync_data()
    }

    /// Cuts the file to its first bytes, behind which the next ones go.
    ///
    /// # Errors
    /// The operating system refused.
    pub fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.file.seek(SeekFrom::Start(bytes)).map(|_| ())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = match ask(Call::Write(&self.path, bytes.len())) {
            Fate::Pass => bytes.len(),
            Fate::Fail(kind) => return Err(kind.into()),
            Fate::Short(room) => usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len()),
        };
        self.file.write_all(bytes.get(..room).unwrap_or(bytes))?;
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives a file another name.
///
/// # Errors
/// The operating system refused.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    pass(Call::Rename(from, to))?;
    fs::rename(from, to)
}

/// Removes a file.
///
/// # Errors
/// The operating system refused.
pub fn remove(path: &Path) -> io::Result<()> {
    pass(Call::Remove(path))?;
    fs::remove_file(path)
}

/// Makes what was made, renamed or removed in `dir` durable.
///
/// # Errors
/// The operating system refused.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    pass(Call::SyncDir(dir))?;
    File::open(dir).and_then(|file| file.sync_all())
}

/// Bytes that an unprivileged process may still write on the file system of `path`.
///
/// # Errors
/// The operating system refused.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    match ask(Call::Free(path)) {
        Fate::Pass => {}
        Fate::Fail(kind) => return Err(kind.into()),
        Fate::Short(bytes) => return Ok(bytes),
    }
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn pass(call: Call<'_>) -> io::Result<()> {
    match ask(call) {
        Fate::Pass | Fate::Short(_) => Ok(()),
        Fate::Fail(kind) => Err(kind.into()),
    }
}

fn ask(call: Call<'_>) -> Fate {
    WATCHER
        .with_borrow_mut(|watcher| watcher.as_mut().map_or(Fate::Pass, |watcher| watcher.0(call)))
}
