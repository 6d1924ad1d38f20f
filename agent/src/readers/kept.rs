//! A file of /proc that stays open.
//!
//! One `pread` from offset 0 is a fresh reading; opening each time costs 1.5 to 14 times more
//! (measured on Linux 6.18). An error closes the file and it is opened again at once; a file that
//! is not there is looked for again only every [`RETRY_READS`] readings.

use super::few::Few;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// One kept-open file.
#[derive(Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    file: Option<File>,
    shape: Shape,
    /// Readings to let pass before the path is tried again.
    rest: u32,
    /// Bytes of the last reading.
    length: usize,
    extent: Extent,
    /// How often the start was not enough.
    short: u32,
    /// Where lines have files of their own.
    few: Option<Few>,
}

/// How the kernel hands a file out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// In one piece, if the buffer is large enough (`single_open`).
    Whole,
    /// So too, and the kernel allocates and zeroes as much as is asked for (sysctls): little is
    /// asked for at once.
    Line,
    /// A page of records at a time (`seq_file`), the longest of so many bytes. A page that had
    /// room for one more was the last.
    Records(usize),
    /// The same, of records that are the same while the kernel runs: once all that is wanted was
    /// seen, what is behind is not asked for, and the kernel does not print it.
    Fixed(usize),
}

/// How much of a file is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Extent {
    Whole,
    /// So many bytes, and of them whole lines.
    Start(usize),
}

/// The one buffer all files are read into.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
}

impl Kept {
    pub(crate) fn new(path: PathBuf, shape: Shape) -> Self {
        let extent = Extent::Whole;
        Self { path, file: None, shape, rest: 0, length: 0, extent, short: 0, few: None }
    }

    /// The same; the few lines that are wanted are read from files of their own most of the time.
    pub(crate) fn with_few(self, few: Few) -> Self {
        Self { few: Some(few), ..self }
    }

    /// The file's bytes now, or `None` if it cannot be read.
    pub(crate) fn read<'b>(&mut self, buffer: &'b mut Buffer) -> Option<&'b [u8]> {
        if 0 < self.rest {
            self.rest -= 1;
            return None;
        }
        if let Some(length) = self.few.as_mut().and_then(|few| few.read(&mut buffer.bytes)) {
            self.length = length;
            return buffer.bytes.get(..length);
        }
        let length = match self.attempt(buffer) {
            Ok(length) => length,
            // A device or namespace that went away leaves a dead descriptor: one fresh start.
            Err(_) if self.file.take().is_some() => match self.attempt(buffer) {
                Ok(length) => length,
                Err(_) => return self.give_up(),
            },
            Err(_) => return self.give_up(),
        };
        self.length = length;
        let bytes = buffer.bytes.get(..length)?;
        if let Some(few) = &mut self.few {
            few.learn(bytes);
        }
        Some(bytes)
    }

    /// The whole of a file of which the last reading had only the start; `None` if it was whole.
    pub(crate) fn read_on<'b>(&mut self, buffer: &'b mut Buffer) -> Option<&'b [u8]> {
        if self.extent == Extent::Whole {
            return None;
        }
        self.extent = Extent::Whole;
        self.short += 1;
        self.read(buffer)
    }

    /// The first `reach` bytes of the last reading had all that is wanted: the next may be shorter, but
    /// for numbers that grow.
    pub(crate) fn suffices(&mut self, reach: usize) {
        if matches!(self.shape, Shape::Fixed(_)) && self.short < SHORT_MAX {
            let wanted = reach.saturating_add(GROWTH_BYTES);
            match self.extent {
                Extent::Start(bytes) if reach < bytes => {}
                Extent::Start(_) | Extent::Whole => self.extent = Extent::Start(wanted),
            }
        }
    }

    /// Whether the file may say something else than when this was last asked. Of a list of mounts
    /// the kernel tells (proc(5), `mounts`: "priority event"); of a file elsewhere nothing is known.
    pub(crate) fn may_differ(&self) -> bool {
        let Some(file) = &self.file else { return true };
        let mut wait = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        let told = nix::poll::poll(&mut wait, PollTimeout::ZERO);
        told.is_err()
            || wait.iter().any(|fd| fd.revents().is_some_and(|r| r.contains(PollFlags::POLLPRI)))
            || fstatfs(file).map_or(true, |found| found.filesystem_type() != PROC_SUPER_MAGIC)
    }

    /// The last reading again, while `buffer` still holds it.
    pub(crate) fn last<'b>(&self, buffer: &'b Buffer) -> Option<&'b [u8]> {
        buffer.bytes.get(..self.length)
    }

    fn give_up(&mut self) -> Option<&'static [u8]> {
        self.file = None;
        self.rest = RETRY_READS;
        None
    }

    fn attempt(&mut self, buffer: &mut Buffer) -> io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::open(&self.path)?),
        };
        let mut length = 0;
        loop {
            if buffer.bytes.len() == length {
                buffer.grow()?;
            }
            let most = match (self.shape, self.extent) {
                (Shape::Line, _) => LINE_BYTES,
                (_, Extent::Start(bytes)) => bytes,
                (_, Extent::Whole) => usize::MAX,
            };
            let end = buffer.bytes.len().min(length.saturating_add(most));
            let room = buffer.bytes.get_mut(length..end).unwrap_or(&mut []);
            let wanted = room.len();
            let offset = u64::try_from(length).unwrap_or(u64::MAX);
            let taken = match file.read_at(room, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            length += taken;
            if let Extent::Start(_) = self.extent {
                // What is asked for may end within a line, which then says something else.
                let read = buffer.bytes.get(..length).unwrap_or(&[]);
                return Ok(memchr::memrchr(b'\n', read).map_or(0, |end| end + 1));
            }
            let last = match self.shape {
                Shape::Whole | Shape::Line => taken < wanted,
                Shape::Records(longest) | Shape::Fixed(longest) => {
                    taken + longest < PAGE_BYTES && taken < wanted
                }
            };
            if taken == 0 || last {
                return Ok(length);
            }
        }
    }
}

impl Buffer {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; BUFFER_BYTES] }
    }

    fn grow(&mut self) -> io::Result<()> {
        if FILE_BYTES_MAX <= self.bytes.len() {
            return Err(io::Error::other("the file is larger than FILE_BYTES_MAX"));
        }
        self.bytes.resize(self.bytes.len() * 2, 0);
        Ok(())
    }
}

/// Enough for every file of a 64-core machine; grows by doubling.
const BUFFER_BYTES: usize = 32 << 10;
/// /proc/stat of 4,096 cores and 10,000 interrupts is below 1 MiB; /proc/interrupts, which is read on
/// request only, is 13 MB on 1,152.
const FILE_BYTES_MAX: usize = 16 << 20;
/// A sysctl of a line, which is far shorter.
const LINE_BYTES: usize = 512;
const RETRY_READS: u32 = 30;
/// Of all numbers before the last that is wanted: a hundred of them, which grow by a digit or two in a life.
const GROWTH_BYTES: usize = 256;
/// Where the start was not enough so often, it is not tried again.
const SHORT_MAX: u32 = 8;
/// The smallest page there is; where pages are larger, it is read once more than needed.
const PAGE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_and_again_when_it_changed() {
        let dir = std::env::temp_dir().join(format!("strobe-kept-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("file");
        let long = vec![b'x'; 3 * BUFFER_BYTES + 5];
        std::fs::write(&path, &long).unwrap();
        for shape in [Shape::Whole, Shape::Records(100)] {
            let mut buffer = Buffer::new();
            let mut kept = Kept::new(path.clone(), shape);
            assert_eq!(kept.read(&mut buffer), Some(&*long));
        }
        let mut buffer = Buffer::new();
        let mut missing = Kept::new(dir.join("none"), Shape::Whole);
        assert_eq!(missing.read(&mut buffer), None);
        std::fs::write(dir.join("none"), "now").unwrap();
        for _ in 0..RETRY_READS {
            assert_eq!(missing.read(&mut buffer), None);
        }
        assert_eq!(missing.read(&mut buffer), Some(&b"now"[..]));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_start_suffices_until_it_does_not() {
        let mut buffer = Buffer::new();
        let mut kept = Kept::new("/proc/vmstat".into(), Shape::Fixed(512));
        let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
        let whole = kept.read(&mut buffer).map(lines).unwrap();
        assert_eq!(kept.read_on(&mut buffer), None);
        for _ in 0..SHORT_MAX {
            kept.suffices(1000);
            let start = kept.read(&mut buffer).unwrap();
            // Whole lines, whatever number of bytes was asked for.
            assert!((1000..=1000 + GROWTH_BYTES).contains(&start.len()), "{}", start.len());
            assert_eq!(start.last(), Some(&b'\n'));
            assert_eq!(kept.read_on(&mut buffer).map(lines), Some(whole));
        }
        kept.suffices(1000);
        assert_eq!(kept.read(&mut buffer).map(lines), Some(whole), "it is not tried again");
    }

    #[test]
    fn a_page_that_had_room_was_the_last() {
        for name in ["vmstat", "diskstats", "net/dev", "1/mounts", "crypto"] {
            let path = PathBuf::from("/proc").join(name);
            let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
            let longest = if name == "1/mounts" { 64 << 10 } else { 512 };
            let mut buffer = Buffer::new();
            let mut kept = Kept::new(path.clone(), Shape::Records(longest));
            let whole = std::fs::read(&path).unwrap();
            assert_eq!(kept.read(&mut buffer).map(lines), Some(lines(&whole)), "{name}");
        }
    }
}
