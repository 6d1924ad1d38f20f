//! The file systems: which there are, and how full they are as the hazard threads have it.

use super::Trees;
use crate::hazard::{Answer, Hazard, Target, space};
use crate::readers::filesystem::{self, Mount};
use crate::readers::kept::{Buffer, Kept, Shape};
use crate::readers::sheet::{Repair, Sheet};
use std::path::PathBuf;

#[derive(Debug)]
pub(super) struct Mounts {
    files: [Kept; 2],
    /// Which of them was read last, and when it is read again even if the kernel tells of nothing.
    from: usize,
    list_ns: u64,
    rootfs: PathBuf,
    last: Vec<u8>,
    pub(super) list: Vec<Mount>,
    pub(super) hazard: Hazard,
    interval_ns: u64,
    pub(super) asked_ns: Option<u64>,
    pub(super) next_ns: u64,
    pub(super) hung: u64,
    listed: u64,
}

impl Mounts {
    pub(super) fn new(trees: &Trees) -> Self {
        let kept = |name| Kept::new(trees.procfs.join(name), Shape::Records(LINE_BYTES_MAX));
        Self {
            // The first process sees the host's mounts even from a container with the host's /proc.
            files: ["1/mounts", "mounts"].map(kept),
            from: 0,
            list_ns: 0,
            rootfs: trees.rootfs.clone(),
            last: Vec::new(),
            list: Vec::new(),
            hazard: Hazard::new(space),
            interval_ns: trees.filesystem_interval_ms.saturating_mul(1_000_000),
            asked_ns: None,
            next_ns: 0,
            hung: 0,
            listed: 0,
        }
    }

    /// Asks for the space of all mounts when it is time; false if the list cannot be read.
    pub(super) fn ask(&mut self, now_ns: u64, buffer: &mut Buffer) -> bool {
        if self.asked_ns.is_some() || now_ns < self.next_ns {
            return true;
        }
        if self.files.get(self.from).is_none_or(Kept::may_differ) {
            self.list_ns = 0;
        }
        if self.list_ns <= now_ns {
            if !self.list(buffer) {
                return false;
            }
            self.list_ns = now_ns.saturating_add(LIST_NS);
        }
        self.hazard.ask(now_ns);
        self.asked_ns = Some(now_ns);
        self.next_ns = now_ns.saturating_add(self.interval_ns);
        true
    }

    /// Reads which there are; false if it cannot be read.
    fn list(&mut self, buffer: &mut Buffer) -> bool {
        let [first, second] = &mut self.files;
        let bytes = match first.read(buffer) {
            Some(_) => {
                self.from = 0;
                first.last(buffer)
            }
            None => {
                self.from = 1;
                second.read(buffer)
            }
        };
        let Some(bytes) = bytes else { return false };
        if bytes != self.last {
            self.listed += 1;
            self.last.clear();
            self.last.extend_from_slice(bytes);
            self.list = filesystem::parse(bytes);
            for mount in &mut self.list {
                mount.rebase(&self.rootfs);
            }
            let rootfs = &self.rootfs;
            let target = |mount: &Mount| Target {
                path: rootfs.join(mount.point.trim_start_matches('/')),
                trusted: mount.answers_from_memory(),
            };
            self.hazard.aim(&self.list.iter().map(target).collect::<Vec<_>>());
        }
        true
    }

    /// Lists and threads that were new.
    pub(super) fn changes(&self) -> u64 {
        self.listed + self.hazard.threads()
    }

    pub(super) fn is_ready(&self, now_ns: u64) -> bool {
        let Some(asked_ns) = self.asked_ns else { return false };
        WAIT_NS <= now_ns.saturating_sub(asked_ns) || self.hazard.is_settled(now_ns)
    }

    pub(super) fn put(&mut self, now_ns: u64, sheet: &mut Sheet) {
        let (list, mut hung) = (&self.list, 0);
        let answered = self.hazard.answers(now_ns, |index, answer| {
            let Some(mount) = list.get(index) else { return };
            hung += u64::from(answer == Answer::Hung);
            sheet.put(0, mount.key(), &mount.values(answer), Repair::None);
        });
        if answered {
            self.hung = hung;
            return;
        }
        for mount in list {
            sheet.put(0, mount.key(), &mount.values(Answer::Pending), Repair::None);
        }
    }
}

/// The kernel tells of mounts that come, go and change, but not of a file system that it makes
/// read-only after an error.
const LIST_NS: u64 = 30_000_000_000;
/// How long a row of file systems waits for the slowest of them.
const WAIT_NS: u64 = 900_000_000;
/// Two paths, each byte of them escaped, and options.
const LINE_BYTES_MAX: usize = 64 << 10;
