//! A write and the fdatasync behind it in one system call: two linked io_uring operations.
//!
//! ```text
//! [write fd, bytes, at the file's position] ──link──▶ [fsync fd, data only] ──▶ two completions
//! ```
//!
//! The kernel starts the sync when the whole write is done; a write that fails or is short breaks
//! the link, and the sync ends with ECANCELED (`io_uring_enter(2)`, `IOSQE_IO_LINK`). Both
//! completions are always reaped before the call returns, so the kernel never holds on to bytes
//! that are no longer ours. [`choose`] takes this twin only where it was faster than two calls on
//! this very disk; where io_uring is missing or forbidden, there is only the plain one.

use crate::disk::{self, Output};
use io_uring::{IoUring, Probe, opcode, squeue, types};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How a commit reaches the disk.
pub(crate) enum Engine {
    /// `write` and `fdatasync`.
    Plain,
    /// Both in one call.
    Uring(Box<Uring>),
}

/// How [`crate::Journal::commit_by`] is told to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Commit {
    /// `write` and `fdatasync`.
    Plain,
    /// Both in one call of io_uring.
    Uring,
}

/// Which half of a commit failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The write: what lies in the file before it is as durable as it was.
    Write(io::Error),
    /// The sync. The kernel says so once and then holds the pages for clean, whatever the disk has of
    /// them (`fsync(2)`): the next sync of this file would succeed, and mean nothing.
    Sync(io::Error),
}

/// An io_uring of two entries.
pub(crate) struct Uring(IoUring);

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "Plain",
            Self::Uring(_) => "Uring",
        })
    }
}

/// The faster of the two in `dir`, by the median of a few commits of each. What cannot be tried is
/// not taken.
pub(crate) fn choose(dir: &Path) -> Engine {
    if disk::is_watched() {
        return Engine::Plain;
    }
    // On a thread of its own: when a ring is dropped, the kernel interrupts a system call of each
    // thread that used it (its exit work is queued as a signal), and the caller has other calls.
    let chosen = std::thread::scope(|scope| scope.spawn(|| trial(dir)).join());
    match chosen {
        Ok(Ok(Some(uring))) => Engine::Uring(Box::new(uring)),
        Ok(Ok(None)) => Engine::Plain,
        Ok(Err(error)) => {
            log::debug!("{}: io_uring is not used: {error}", dir.display());
            Engine::Plain
        }
        Err(_) => Engine::Plain,
    }
}

/// Whether a ring that a journal would use can be had on this host.
///
/// # Errors
/// The kernel's words: it is too old, or it is not permitted.
pub fn try_uring() -> io::Result<()> {
    Uring::new().map(drop)
}

/// A ring, if it was faster.
fn trial(dir: &Path) -> io::Result<Option<Uring>> {
    let path = dir.join(PROBE);
    let chosen = Uring::new().and_then(|mut uring| {
        let file = File::create(&path)?;
        let (mut plain, mut linked) = ([Duration::ZERO; TRIES], [Duration::ZERO; TRIES]);
        for (plain, linked) in plain.iter_mut().zip(&mut linked) {
            *plain = timed(|| (&file).write_all(&PAGE).and_then(|()| file.sync_data()))?;
            *linked =
                timed(|| uring.write_sync(&file, &PAGE).map(|_| ()).map_err(Fault::into_error))?;
        }
        plain.sort_unstable();
        linked.sort_unstable();
        let (plain, linked) = (plain[TRIES / 2], linked[TRIES / 2]);
        log::debug!("{}: a commit takes {plain:?}, by io_uring {linked:?}", dir.display());
        Ok((linked < plain).then_some(uring))
    });
    // Whatever became of the trial, nothing of it stays; a file that does is overwritten next time.
    let _ = std::fs::remove_file(&path);
    chosen
}

#[expect(clippy::disallowed_methods, reason = "the probe is what measures")]
fn timed(act: impl FnOnce() -> io::Result<()>) -> io::Result<Duration> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed())
}

impl Engine {
    /// This one, whichever is faster.
    pub(crate) fn of(how: Commit) -> io::Result<Self> {
        Ok(match how {
            Commit::Plain => Self::Plain,
            Commit::Uring => Self::Uring(Box::new(Uring::new()?)),
        })
    }

    /// Appends `bytes` to `output` and makes them durable.
    ///
    /// # Errors
    /// The operating system refused; some of the bytes may lie in the file.
    pub(crate) fn write_sync(&mut self, output: &mut Output, bytes: &[u8]) -> Result<(), Fault> {
        let Self::Uring(uring) = self else { return plain(output, bytes) };
        let Some(file) = output.unwatched() else { return plain(output, bytes) };
        let written = uring.write_sync(file, bytes)?;
        if written == bytes.len() {
            return Ok(());
        }
        // A short write: the rest, or the reason, comes from the plain twin.
        plain(output, bytes.get(written..).unwrap_or_default())
    }
}

fn plain(output: &mut Output, bytes: &[u8]) -> Result<(), Fault> {
    output.write_all(bytes).map_err(Fault::Write)?;
    output.sync_data().map_err(Fault::Sync)
}

impl Fault {
    /// The kernel's words.
    pub(crate) fn into_error(self) -> io::Error {
        let (Self::Write(error) | Self::Sync(error)) = self;
        error
    }
}

impl Uring {
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let known = [opcode::Write::CODE, opcode::Fsync::CODE];
        // Linux 5.6: an offset of -1 is the file's own position, which then moves on.
        if known.iter().all(|code| probe.is_supported(*code))
            && ring.params().is_feature_rw_cur_pos()
        {
            Ok(Self(ring))
        } else {
            Err(ErrorKind::Unsupported.into())
        }
    }

    /// Returns the bytes written: all of them, which are durable then, or fewer, which are not.
    pub(crate) fn write_sync(&mut self, file: &File, bytes: &[u8]) -> Result<usize, Fault> {
        let fd = types::Fd(file.as_raw_fd());
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let write = opcode::Write::new(fd, bytes.as_ptr(), length).offset(u64::MAX).build();
        let write = write.flags(squeue::Flags::IO_LINK).user_data(WRITE);
        let sync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
        // SAFETY: `bytes` and `file` outlive this call, and it does not return before both
        // completions are reaped or the kernel refused to take the operations at all.
        let pushed = unsafe { self.0.submission().push_multiple(&[write, sync.user_data(SYNC)]) };
        pushed.map_err(|why| Fault::Write(io::Error::other(why)))?;
        let (mut written, mut synced, mut taken) = (None, None, false);
        while written.is_none() || synced.is_none() {
            match self.0.submit_and_wait(if taken { 1 } else { 2 }) {
                Ok(_) => taken = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // An error means that nothing was taken; the ring is left as it was found.
                Err(error) if !taken => {
                    *self = Self::new().map_err(Fault::Write)?;
                    return Err(Fault::Write(error));
                }
                Err(_) => {}
            }
            for done in self.0.completion() {
                taken = true;
                match done.user_data() {
                    WRITE => written = Some(done.result()),
                    _ => synced = Some(done.result()),
                }
            }
        }
        let written = result(written.unwrap_or(0)).map_err(Fault::Write)?;
        if written == bytes.len() {
            result(synced.unwrap_or(0)).map_err(Fault::Sync)?;
        }
        Ok(written)
    }
}

fn result(code: i32) -> io::Result<usize> {
    usize::try_from(code).map_err(|_| io::Error::from_raw_os_error(-code))
}

const ENTRIES: u32 = 2;
const WRITE: u64 = 1;
const SYNC: u64 = 2;
const PROBE: &str = "probe.tmp";
const PAGE: [u8; 4096] = [0; 4096];
const TRIES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    /// Either it works here, or the kernel says why not; then the plain twin is chosen.
    fn uring() -> Option<Uring> {
        match Uring::new() {
            Ok(uring) => Some(uring),
            Err(error) => {
                let known = [libc::ENOSYS, libc::EPERM, libc::ENOMEM];
                assert!(error.raw_os_error().is_none_or(|code| known.contains(&code)), "{error}");
                let dir = std::env::temp_dir();
                assert!(matches!(choose(&dir), Engine::Plain));
                None
            }
        }
    }

    #[test]
    fn both_twins_leave_the_same_bytes_and_errors() {
        let dir = std::env::temp_dir().join(format!("journal-uring-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let engines = [Some(Engine::Plain), uring().map(|uring| Engine::Uring(Box::new(uring)))];
        let mut left = Vec::new();
        for (number, mut engine) in engines.into_iter().flatten().enumerate() {
            let path = dir.join(number.to_string());
            let mut output = Output::create(&path).unwrap();
            for size in [1, 4096, 5_000_000, 3] {
                engine
                    .write_sync(&mut output, &vec![u8::try_from(size % 251).unwrap(); size])
                    .unwrap();
            }
            // As a commit that failed half-way leaves it.
            output.cut(4097).unwrap();
            engine.write_sync(&mut output, b"end").unwrap();
            left.push(std::fs::read(&path).unwrap());
            // A full disk, and after it a good one.
            let mut full = Output::create(Path::new("/dev/full")).unwrap();
            let fault = engine.write_sync(&mut full, &PAGE).unwrap_err();
            assert!(matches!(fault, Fault::Write(_)), "{fault:?}");
            assert_eq!(fault.into_error().kind(), ErrorKind::StorageFull, "{engine:?}");
            engine.write_sync(&mut output, b"!").unwrap();
            assert!(std::fs::read(&path).unwrap().ends_with(b"end!"));
        }
        assert_eq!(left[0].len(), 4100);
        assert!(left.iter().all(|bytes| *bytes == left[0]));
        assert!(!dir.join(PROBE).exists());
        drop(choose(&dir));
        assert!(!dir.join(PROBE).exists(), "the trial cleans up");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
