//! What fits a line or two: load, pressure, file handles, the name of the kernel, the time.

use super::sheet::{Repair, Sheet};
use super::text::{hundredths, lines, next, number, words};
use super::{GAUGE, column};
use std::path::Path;
use strobe_wire::schema::{Column, Kind};

/// What a pressure file is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resource {
    /// /proc/pressure/cpu: only waiting; `full` is not defined for a whole machine.
    Cpu,
    /// /proc/pressure/io.
    Io,
    /// /proc/pressure/memory.
    Memory,
    /// /proc/pressure/irq (since 6.1, if interrupt time is accounted): only `full`.
    Irq,
}

/// `0.42 0.28 0.29 3/180 4711`.
pub(super) fn parse_load(bytes: &[u8], sheet: &mut Sheet) {
    let mut words = words(bytes);
    let values: [Option<u64>; 3] = std::array::from_fn(|_| words.next().and_then(hundredths));
    sheet.put(0, b"", &values, Repair::None);
}

pub(super) fn load_columns() -> Vec<Column> {
    ["node_load1", "node_load5", "node_load15"]
        .map(|name| column(name, &[], Kind::Gauge { scale: 2 }))
        .into()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=25454453`, in µs.
pub(super) fn parse_pressure(bytes: &[u8], resource: Resource, sheet: &mut Sheet) {
    let (mut some, mut full) = (None, None);
    for line in lines(bytes) {
        let mut words = words(line);
        let first = words.next();
        let total = words.find_map(|word| word.strip_prefix(b"total=")).and_then(number);
        match first {
            Some(b"some") => some = total,
            Some(b"full") => full = total,
            _ => {}
        }
    }
    match resource {
        Resource::Cpu => sheet.put(0, b"", &[some], Repair::None),
        Resource::Io | Resource::Memory => sheet.put(0, b"", &[some, full], Repair::None),
        Resource::Irq => sheet.put(0, b"", &[full], Repair::None),
    }
}

pub(super) fn pressure_columns(resource: Resource) -> Vec<Column> {
    let names: &[&str] = match resource {
        Resource::Cpu => &["node_pressure_cpu_waiting_seconds_total"],
        Resource::Io => {
            &["node_pressure_io_waiting_seconds_total", "node_pressure_io_stalled_seconds_total"]
        }
        Resource::Memory => &[
            "node_pressure_memory_waiting_seconds_total",
            "node_pressure_memory_stalled_seconds_total",
        ],
        Resource::Irq => &["node_pressure_irq_stalled_seconds_total"],
    };
    names.iter().map(|name| column(name, &[], Kind::Counter { scale: 6 })).collect()
}

/// `638\t0\t2466177`: allocated, unused (always 0), maximum.
pub(super) fn parse_handles(bytes: &[u8], sheet: &mut Sheet) {
    let mut words = words(bytes.trim_ascii());
    let allocated = next(&mut words);
    words.next();
    sheet.put(0, b"", &[allocated, next(&mut words)], Repair::None);
}

pub(super) fn handle_columns() -> Vec<Column> {
    ["node_filefd_allocated", "node_filefd_maximum"].map(|name| column(name, &[], GAUGE)).into()
}

/// Who the kernel says it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Uname {
    /// `Linux`.
    pub sysname: String,
    /// The host's name.
    pub nodename: String,
    /// `6.18.44`.
    pub release: String,
    /// `#1 SMP PREEMPT_DYNAMIC …`.
    pub version: String,
    /// `x86_64`.
    pub machine: String,
    /// NIS domain, `(none)` as a rule.
    pub domainname: String,
}

impl Uname {
    /// From `procfs`, which may be another machine's, and from uname(2) what is not there.
    #[must_use]
    pub fn read(procfs: &Path) -> Self {
        let own = nix::sys::utsname::uname().ok();
        let text = |name: &str, own: Option<&std::ffi::OsStr>| {
            let file = std::fs::read(procfs.join("sys/kernel").join(name)).ok();
            match file.map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned()) {
                Some(text) if !text.is_empty() && text.len() <= 256 => text,
                _ => own.map(|own| own.to_string_lossy().into_owned()).unwrap_or_default(),
            }
        };
        let own = own.as_ref();
        Self {
            sysname: text("ostype", own.map(|own| own.sysname())),
            nodename: text("hostname", own.map(|own| own.nodename())),
            release: text("osrelease", own.map(|own| own.release())),
            version: text("version", own.map(|own| own.version())),
            machine: text("arch", own.map(|own| own.machine())),
            domainname: text("domainname", own.map(|own| own.domainname())),
        }
    }

    pub(crate) fn column(&self) -> Column {
        let labels = [
            ("sysname", self.sysname.as_str()),
            ("nodename", &self.nodename),
            ("release", &self.release),
            ("version", &self.version),
            ("machine", &self.machine),
            ("domainname", &self.domainname),
        ];
        column("node_uname_info", &labels, GAUGE)
    }
}
