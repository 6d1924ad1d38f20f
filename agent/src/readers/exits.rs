//! Processes that ended, by the records that taskstats(accounting/taskstats.rst) sends of each: how many, and
//! how many of them were too short for any reading to see.
//!
//! ```text
//! generic netlink: what is TASKSTATS called? ─▶ send me the exits of all CPUs ─▶ a record a thread
//! ```
//!
//! It takes CAP_NET_ADMIN in the host's own namespaces; without there are no columns. The kernel marks the
//! record of a process's last thread since version 12 of the structure (Linux 5.18); before that
//! nothing can be told. What comes faster than it is read is dropped by the kernel, which says so: then
//! the counts are too low, and `missed` says how often that was.
#![expect(clippy::host_endian_bytes, reason = "netlink speaks the host's own order")]

use super::sheet::{Repair, Sheet};
use super::{COUNTER, column};
use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBuf;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{bind, recv, send, setsockopt, socket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use strobe_wire::schema::{Column, Kind};

/// A socket that the kernel sends records to.
#[derive(Debug)]
pub(crate) struct Exits {
    /// Which CPUs there may be.
    cpus: PathBuf,
    link: Option<OwnedFd>,
    family: u16,
    buffer: Vec<u8>,
    counts: Counts,
    told: bool,
    /// Readings to let pass before it is asked again.
    rest: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    all: u64,
    short: u64,
    short_us: u64,
    missed: u64,
}

impl Exits {
    pub(crate) fn new(sysfs: &Path) -> Self {
        let cpus = sysfs.join("devices/system/cpu/possible");
        let (counts, buffer) = (Counts::default(), vec![0; BUFFER_BYTES]);
        Self { cpus, link: None, family: 0, buffer, counts, told: false, rest: 0 }
    }

    /// Takes what has come since the last reading.
    pub(super) fn read(&mut self) {
        if self.link.is_none() && self.rest == 0 {
            self.told = self.open().is_some();
            self.rest = RETRY_READS;
        }
        self.rest = self.rest.saturating_sub(1);
        let Some(link) = &self.link else { return };
        for _ in 0..RECORDS_MAX {
            match recv(link.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => {
                    let message = self.buffer.get(..length).unwrap_or(&[]);
                    self.told &= self.counts.take(message, self.family);
                }
                Err(Errno::ENOBUFS) => self.counts.missed += 1,
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
    }

    pub(super) fn put(&self, sheet: &mut Sheet) {
        let Counts { all, short, short_us, missed } = self.counts;
        if self.told {
            sheet.put(0, b"", &[all, short, short_us, missed].map(Some), Repair::None);
        }
    }

    /// Asks for the records; `None` if they are refused.
    fn open(&mut self) -> Option<()> {
        let cpus = std::fs::read(&self.cpus).ok()?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkGeneric;
        let link = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).ok()?;
        bind(link.as_raw_fd(), &NetlinkAddr::new(0, 0)).ok()?;
        // As much as the host allows; the default is some three hundred records.
        let _ = setsockopt(&link, RcvBuf, &RECEIVE_BYTES);
        let ask = |message: &[u8], buffer: &mut [u8]| {
            send(link.as_raw_fd(), message, MsgFlags::empty()).ok()?;
            // Both answer at once.
            recv(link.as_raw_fd(), buffer, MsgFlags::empty()).ok()
        };
        let length = ask(&request(CONTROL, GET_FAMILY, FAMILY_NAME, NAME), &mut self.buffer)?;
        let answer = self.buffer.get(BODY..length)?;
        let id = attributes(answer).find_map(|(kind, body)| (kind == FAMILY_ID).then_some(body))?;
        self.family = u16::from_ne_bytes(id.get(..2)?.try_into().ok()?);
        let mut mask = cpus.trim_ascii().to_vec();
        mask.push(0);
        let length = ask(&request(self.family, GET, REGISTER_CPUS, &mask), &mut self.buffer)?;
        // An answer is an error number, which is 0 where all is well.
        let answer = self.buffer.get(..length)?;
        let refused =
            answer.get(4..6)? != NLMSG_ERROR.to_ne_bytes() || answer.get(16..20)? != [0; 4];
        self.link = Some(link).filter(|_| !refused);
        self.link.as_ref().map(|_| ())
    }
}

impl Counts {
    /// Takes one message; whether its kind of record says when a process ended.
    fn take(&mut self, message: &[u8], family: u16) -> bool {
        if message.get(4..6) != Some(&family.to_ne_bytes()) {
            return true;
        }
        let body = message.get(BODY..).unwrap_or(&[]);
        let threads = attributes(body).filter(|(kind, _)| *kind == OF_THREAD);
        let mut stats = threads.flat_map(|(_, body)| attributes(body));
        let Some((_, stats)) = stats.find(|(kind, _)| *kind == STATS) else { return true };
        let number = |at: usize| Some(u64::from_ne_bytes(stats.get(at..at + 8)?.try_into().ok()?));
        let version =
            stats.get(..2).and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)));
        if version.is_none_or(|version| version < VERSION) {
            return false;
        }
        let is_last = stats.get(8).is_some_and(|flags| flags & LAST != 0);
        let times = (number(144), number(152), number(160));
        let (Some(lived_us), Some(user_us), Some(system_us)) = times else { return false };
        if is_last {
            self.all += 1;
            if lived_us < SHORT_US {
                self.short += 1;
                let used_us = user_us.saturating_add(system_us);
                self.short_us = self.short_us.saturating_add(used_us);
            }
        }
        true
    }
}

pub(super) fn columns() -> Vec<Column> {
    let microseconds = Kind::Counter { scale: 6 };
    [
        ("strobe_process_exits_total", COUNTER),
        ("strobe_process_exits_short_total", COUNTER),
        ("strobe_process_exits_short_cpu_seconds_total", microseconds),
        ("strobe_process_exits_missed_total", COUNTER),
    ]
    .map(|(name, kind)| column(name, &[], kind))
    .into()
}

/// `nlmsghdr`, `genlmsghdr` and one attribute.
fn request(family: u16, command: u8, attribute: u16, value: &[u8]) -> Vec<u8> {
    let size = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
    let length = BODY + 4 + value.len().next_multiple_of(4);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&u32::from(size(length)).to_ne_bytes());
    bytes.extend_from_slice(&family.to_ne_bytes());
    // Who registers gets no answer of its own, so one is asked for; who asks for a name has it.
    let flags = if command == GET { REQUEST | ACKNOWLEDGE } else { REQUEST };
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[command, 1, 0, 0]);
    bytes.extend_from_slice(&size(4 + value.len()).to_ne_bytes());
    bytes.extend_from_slice(&attribute.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(length, 0);
    bytes
}

/// The attributes of a message: kind and body.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(word(0)?), word(2)?);
        let body = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind & KIND, body))
    })
}

/// For the fuzz target: one record after the other, each as long as it says.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut counts = Counts::default();
    let mut rest = bytes;
    while let Some(length) = rest.get(..4).and_then(|word| word.try_into().ok()) {
        let length = usize::try_from(u32::from_ne_bytes(length)).unwrap_or(usize::MAX);
        let Some(record) = rest.get(..length).filter(|_| 0 < length) else { break };
        counts.take(record, 31);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    assert!(counts.short <= counts.all, "{counts:?}");
}

const BODY: usize = 16 + 4;
const NLMSG_ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
/// The rest are flags.
const KIND: u16 = 0x3fff;
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_NAME: u16 = 2;
const FAMILY_ID: u16 = 1;
const NAME: &[u8] = b"TASKSTATS\0";
const GET: u8 = 1;
const REGISTER_CPUS: u16 = 3;
const OF_THREAD: u16 = 4;
const STATS: u16 = 3;
/// The first that marks a process's last thread.
const VERSION: u16 = 12;
const LAST: u8 = 0x20;
/// What lives no longer is seen by no reading of every second.
const SHORT_US: u64 = 1_000_000;
const RETRY_READS: u32 = 60;
const BUFFER_BYTES: usize = 4096;
const RECEIVE_BYTES: usize = 1 << 20;
/// A storm of more waits for the next reading.
const RECORDS_MAX: usize = 8192;

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn who_ends_is_counted_where_it_is_permitted() {
        let mut exits = Exits::new(Path::new("/sys"));
        exits.read();
        if !exits.told {
            assert!(exits.link.is_none());
            return;
        }
        let before = exits.counts;
        for _ in 0..3 {
            assert!(std::process::Command::new("true").status().unwrap().success());
        }
        exits.read();
        let Counts { all, short, short_us, .. } = exits.counts;
        assert!(
            before.all + 3 <= all && before.short + 3 <= short,
            "{before:?} {:?}",
            exits.counts
        );
        // What so short a process used may be less than the kernel counts.
        assert!(short <= all && short_us < 3_000_000);
        assert_eq!(columns().len(), 4);
    }

    #[test]
    fn records_are_told_apart_and_torn_ones_end() {
        let record = |version: u16, flags: u8, lived_us: u64| {
            let mut stats = vec![0; 200];
            stats[..2].copy_from_slice(&version.to_ne_bytes());
            stats[8] = flags;
            stats[144..152].copy_from_slice(&lived_us.to_ne_bytes());
            stats[152..160].copy_from_slice(&30_u64.to_ne_bytes());
            stats[160..168].copy_from_slice(&4_u64.to_ne_bytes());
            let inner = request(0, 0, STATS, &stats);
            request(31, 2, OF_THREAD, &inner[BODY..])
        };
        let mut counts = Counts::default();
        assert!(counts.take(&record(12, LAST, 5000), 31));
        assert!(counts.take(&record(16, LAST, 2_000_000), 31));
        assert!(counts.take(&record(16, 0, 10), 31), "a thread of one that goes on");
        assert!(counts.take(&record(16, LAST, 10), 30), "another family's");
        assert_eq!(counts, Counts { all: 2, short: 1, short_us: 34, missed: 0 });
        assert!(!counts.take(&record(11, LAST, 10), 31), "an older kernel does not say");
        let whole = record(16, LAST, 10);
        for end in 0..whole.len() {
            counts.take(&whole[..end], 31);
        }
        assert_eq!(counts.all, 2, "nothing that is torn is counted");
    }
}
