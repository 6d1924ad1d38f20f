//! What the files of a process say: proc_pid_stat(5), proc_pid_io(5).

use crate::readers::net_tables::Digits;
use crate::readers::text::{lines, number, words};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::AsFd;

/// One `stat` file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) threads: u64,
    /// When it started, in ticks since the host did: a later process of its number has another.
    pub(crate) started: u64,
    /// Time on a processor, in ticks of 10 ms.
    pub(crate) ticks: u64,
    /// Resident pages.
    pub(crate) pages: u64,
    pub(crate) name: Name,
}

/// What a process calls itself: 15 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Name {
    bytes: [u8; 16],
    length: usize,
}

impl Name {
    pub(crate) fn new(name: &[u8]) -> Self {
        let mut bytes = [0; 16];
        let length = name.len().min(bytes.len());
        for (place, byte) in bytes.iter_mut().zip(name) {
            *place = *byte;
        }
        Self { bytes, length }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

impl Stat {
    /// `4711 (a name) S 1 …`: the name may hold anything, so it ends with the last `)`.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let open = memchr::memchr(b'(', text)?;
        let close = memchr::memrchr(b')', text)?;
        let name = Name::new(text.get(open + 1..close)?);
        let mut words = words(text.get(close + 1..)?);
        let state = *words.next()?.first()?;
        // Fields 14 and 15 are user and system time; 20 are the threads, 22 the start, 24 the
        // resident pages.
        let user = words.nth(10).and_then(number)?;
        let system = words.next().and_then(number)?;
        let threads = words.nth(4).and_then(number)?;
        let started = words.nth(1).and_then(number)?;
        let pages = words.nth(1).and_then(number)?;
        let ticks = user.checked_add(system)?;
        Some(Self { state, threads, started, ticks, pages, name })
    }
}

/// Bytes that a process had read from disks, and written without what it took back.
pub(crate) fn parse_io(text: &[u8]) -> Option<[u64; 2]> {
    let value = |name: &[u8]| {
        let line = lines(text).find_map(|line| line.strip_prefix(name));
        line.and_then(|value| number(value.trim_ascii()))
    };
    let written = value(b"write_bytes:")?.saturating_sub(value(b"cancelled_write_bytes:")?);
    Some([value(b"read_bytes:")?, written])
}

/// A file of a process.
pub(crate) fn open<F: AsFd>(procfs: F, pid: u64, name: &[u8]) -> Option<File> {
    let mut path = [0; 32];
    let digits = Digits::new(pid);
    let length = digits.bytes().len() + 1 + name.len();
    let parts = digits.bytes().iter().chain(b"/").chain(name);
    for (place, byte) in path.get_mut(..length)?.iter_mut().zip(parts) {
        *place = *byte;
    }
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    Some(File::from(openat(procfs, path.get(..length)?, flags, Mode::empty()).ok()?))
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn torn_files_are_no_processes() {
        let whole = b"1 (a) S (b) S 0 1 1 0 -1 4 1 2 3 4 10 5 0 0 20 0 3 0 7 9 100 1";
        let stat = Stat::parse(whole).unwrap();
        assert_eq!((stat.name.bytes(), stat.state), (&b"a) S (b"[..], b'S'));
        assert_eq!((stat.ticks, stat.threads, stat.started, stat.pages), (15, 3, 7, 100));
        for end in 0..whole.len() - 6 {
            assert_eq!(Stat::parse(&whole[..end]), None, "{end}");
        }
        assert_eq!(Stat::parse(b"1 )x( S 1"), None);
        let io = b"rchar: 9\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 12\n";
        assert_eq!(parse_io(io), Some([4096, 8180]));
        for end in 0..io.len() - 4 {
            assert_eq!(parse_io(&io[..end]), None, "{end}");
        }
    }

    #[test]
    fn this_process_is_read() {
        let procfs = File::open("/proc").unwrap();
        let mut text = String::new();
        let pid = u64::from(std::process::id());
        std::io::Read::read_to_string(&mut open(&procfs, pid, b"stat").unwrap(), &mut text)
            .unwrap();
        let stat = Stat::parse(text.as_bytes()).unwrap();
        assert!(0 < stat.started && 0 < stat.pages && 0 < stat.threads, "{stat:?}");
        assert!(open(&procfs, u64::MAX, b"stat").is_none());
        assert!(open(&procfs, pid, &[b'x'; 64]).is_none());
    }
}
