//! What the host is called.

use crate::readers::host::Uname;
use crate::readers::kept::{Buffer, Kept, Shape};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct KernelName {
    procfs: PathBuf,
    hostname: Kept,
    last: Vec<u8>,
    pub(super) uname: Uname,
    next_ns: u64,
}

impl KernelName {
    pub(super) fn new(procfs: &Path) -> Self {
        Self {
            procfs: procfs.to_owned(),
            hostname: Kept::new(procfs.join("sys/kernel/hostname"), Shape::Line),
            last: Vec::with_capacity(256),
            uname: Uname::read(procfs),
            next_ns: 0,
        }
    }

    /// Whether the host has another name than before; looks every [`NAME_NS`].
    pub(super) fn refresh(&mut self, now_ns: u64, buffer: &mut Buffer) -> bool {
        if now_ns < self.next_ns {
            return false;
        }
        self.next_ns = now_ns.saturating_add(NAME_NS);
        let Some(name) = self.hostname.read(buffer) else { return false };
        if name == self.last {
            return false;
        }
        let first = self.last.is_empty();
        self.last.clear();
        self.last.extend_from_slice(name);
        let uname = Uname::read(&self.procfs);
        let renamed = uname != self.uname;
        self.uname = uname;
        renamed && !first
    }
}

/// A name changes by hand, a few times in a host's life.
const NAME_NS: u64 = 10_000_000_000;
