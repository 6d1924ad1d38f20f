//! The hot subset of /proc, read a hundred times a second: one `pread` a file into one buffer, and
//! only the numbers that are wanted. CPUs, disks and links are read each time, and of memory, softnet
//! and the three pressures one at most every [`TURN_NS`], in turn: a gauge of memory hardly moves in 100 ms, totals
//! lose nothing, and a `pread` of these that finds cold caches is 3 to 15 µs.
//!
//! CPU time is added up here from the lines of each CPU: a CPU that comes, goes or steps back
//! counts from its next line on, so the sums never fall and never jump. Of disks and links the
//! [`DEVICES_MAX`] that moved most bytes so far have columns; one that is gone has no values, and a
//! set that changed is learned anew, at most every [`LEARN_NS`].
#![deny(clippy::indexing_slicing)]

use crate::readers::disk::{self, is_ignored};
use crate::readers::kept::{Buffer, Kept, Shape};
use crate::readers::text::{lines, next, number, words};
use crate::readers::{COUNTER, GAUGE, column};
use std::path::Path;
use strobe_wire::schema::{Column, Kind};

/// What is read, and what it said last.
#[derive(Debug)]
pub(super) struct Hot {
    stat: Kept,
    meminfo: Kept,
    pressure: [Kept; 3],
    softnet: Kept,
    disks: Devices,
    links: Devices,
    buffer: Buffer,
    cpus: Vec<Cpu>,
    /// Ticks by mode since the start.
    sums: [u64; MODES.len()],
    reading: u64,
    /// Whose turn it is of what is not read each time, and when it was the last one's.
    turn: u8,
    turn_ns: u64,
    values: Vec<Option<u64>>,
    learned: bool,
    /// Of everything that moves only where something happens.
    moved: u64,
    is_quiet: bool,
}

/// A CPU's ticks by mode, and the reading they are of.
#[derive(Clone, Copy, Debug, Default)]
struct Cpu {
    ticks: [u64; MODES.len()],
    reading: u64,
}

/// What a line says of a device.
struct Line<'a> {
    name: &'a [u8],
    fields: [Option<u64>; FIELDS],
}

#[derive(Debug)]
struct Devices {
    file: Kept,
    names: Vec<Box<[u8]>>,
    values: Vec<[Option<u64>; FIELDS]>,
    /// How many the file had when they were learned.
    found: usize,
    learn_ns: u64,
    parse: fn(&[u8]) -> Option<Line<'_>>,
}

impl Hot {
    pub(super) fn new(procfs: &Path, sysfs: &Path) -> Self {
        let kept = |name: &str, shape| Kept::new(procfs.join(name), shape);
        let devices = |file, parse| Devices {
            file,
            names: Vec::new(),
            values: Vec::new(),
            found: 0,
            learn_ns: 0,
            parse,
        };
        let disks = disk::kept(procfs, sysfs, LIST_READS);
        Self {
            stat: kept("stat", Shape::Whole),
            meminfo: kept("meminfo", Shape::Whole),
            pressure: RESOURCES.map(|name| kept(&format!("pressure/{name}"), Shape::Whole)),
            softnet: kept("net/softnet_stat", Shape::Records(LINE_BYTES_MAX)),
            disks: devices(disks, parse_disk),
            links: devices(kept("net/dev", Shape::Records(LINE_BYTES_MAX)), parse_link),
            buffer: Buffer::new(),
            cpus: Vec::new(),
            sums: [0; MODES.len()],
            // A CPU that was never seen is of reading 0, which is no reading's neighbour.
            reading: 1,
            turn: 0,
            turn_ns: 0,
            values: vec![None; DISKS],
            learned: false,
            moved: 0,
            is_quiet: false,
        }
    }

    /// Reads everything; whether the columns are others than before.
    pub(super) fn read(&mut self, now_ns: u64) -> bool {
        self.reading += 1;
        self.forget(0..MEMORY_AT);
        self.read_stat();
        // By time and not by readings: where these are slow, none of it becomes older than it has to.
        if self.turn_ns.saturating_add(TURN_NS) <= now_ns {
            self.turn_ns = now_ns;
            match self.turn {
                0 => self.read_memory(),
                1 => self.read_softnet(),
                resource => self.read_pressure(usize::from(resource - 2)),
            }
            self.turn = (self.turn + 1) % 5;
        }
        let first = !std::mem::replace(&mut self.learned, true);
        let disks = self.disks.read(&mut self.buffer, now_ns);
        let links = self.links.read(&mut self.buffer, now_ns);
        self.values.truncate(DISKS);
        let fields = self.disks.values.iter().chain(&self.links.values);
        self.values.extend(fields.flatten());
        self.judge();
        disks | links | first
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    fn judge(&mut self) {
        let busy = self.sums.iter().take(IDLE);
        let bytes = (self.disks.values.iter().chain(&self.links.values))
            .flat_map(|fields| fields.iter().skip(BYTES_IN).take(2).flatten());
        let moved = busy.chain(bytes).fold(0_u64, |sum, value| sum.wrapping_add(*value));
        let before = std::mem::replace(&mut self.moved, moved);
        let at = |at: usize| self.values.get(at).copied().flatten();
        // Of those that run one is who asks.
        let waits = at(RUNNING).is_some_and(|running| 1 < running) || at(BLOCKED) != Some(0);
        self.is_quiet = moved == before && !waits;
    }

    pub(super) fn values(&self) -> &[Option<u64>] {
        &self.values
    }

    pub(super) fn disks(&self) -> impl Iterator<Item = (String, usize)> {
        let names = self.disks.names.iter().enumerate();
        names.map(|(index, name)| (text(name), DISKS + index * FIELDS))
    }

    pub(super) fn links(&self) -> impl Iterator<Item = (String, usize)> {
        let first = DISKS + self.disks.names.len() * FIELDS;
        let names = self.links.names.iter().enumerate();
        names.map(move |(index, name)| (text(name), first + index * FIELDS))
    }

    /// The columns behind the values.
    pub(super) fn columns(&self) -> Vec<Column> {
        let mut columns: Vec<Column> = MODES
            .iter()
            .map(|mode| {
                let kind = Kind::Counter { scale: 2 };
                column("strobe_burst_cpu_seconds_total", &[("mode", mode)], kind)
            })
            .collect();
        columns.extend(STAT.map(|(_, name, kind)| column(name, &[], kind)));
        let memory = |(_, of): (_, &str)| column("strobe_burst_memory_bytes", &[("of", of)], GAUGE);
        columns.extend(MEMORY.map(memory));
        columns.extend(PRESSURE.map(|(resource, _, share)| {
            let labels = [("resource", resource), ("share", share)];
            column("strobe_burst_pressure_seconds_total", &labels, Kind::Counter { scale: 6 })
        }));
        columns.extend(SOFTNET.map(|name| column(name, &[], COUNTER)));
        let milliseconds = Kind::Counter { scale: 3 };
        let kinds = |name: &str| if name.contains("seconds") { milliseconds } else { COUNTER };
        for (fields, (device, _)) in
            (self.disks().map(|disk| (DISK, disk))).chain(self.links().map(|link| (LINK, link)))
        {
            columns.extend(fields.map(|name| column(name, &[("device", &device)], kinds(name))));
        }
        columns
    }

    fn read_stat(&mut self) {
        let Some(bytes) = self.stat.read(&mut self.buffer) else { return };
        let Some((sums, rest)) = self.values.split_at_mut_checked(MODES.len()) else { return };
        for line in lines(bytes) {
            let mut words = words(line);
            let Some(name) = words.next() else { continue };
            if let Some(cpu) = name.strip_prefix(b"cpu") {
                let cpu = number(cpu).and_then(|cpu| usize::try_from(cpu).ok());
                let Some(cpu) = cpu.filter(|cpu| *cpu < CPUS_MAX) else { continue };
                // user nice system idle iowait irq softirq steal
                let mut ticks = || next(&mut words).unwrap_or(0);
                let [user, nice, system, idle] = [ticks(), ticks(), ticks(), ticks()];
                let [iowait, irq, softirq, steal] = [ticks(), ticks(), ticks(), ticks()];
                let now = [user + nice, system, iowait, irq + softirq, steal, idle];
                add_cpu(
                    &mut self.cpus,
                    cpu,
                    Cpu { ticks: now, reading: self.reading },
                    &mut self.sums,
                );
                sums.iter_mut().zip(self.sums).for_each(|(value, sum)| *value = Some(sum));
            } else if let Some(at) = STAT.iter().position(|(line, ..)| *line == name)
                && let Some(value) = rest.get_mut(at)
            {
                *value = next(&mut words);
                if name == b"procs_blocked" {
                    return;
                }
            }
        }
    }

    fn read_memory(&mut self) {
        self.forget(MEMORY_AT..PRESSURE_AT);
        let Some(bytes) = self.meminfo.read(&mut self.buffer) else { return };
        let mut found = 0;
        for line in lines(bytes) {
            let mut words = words(line);
            let name = words.next();
            let at = MEMORY.iter().position(|(known, _)| Some(*known) == name);
            if let Some(value) = at.and_then(|at| self.values.get_mut(MEMORY_AT + at)) {
                *value = next(&mut words).and_then(|kib| kib.checked_mul(1024));
                found += 1;
                if found == MEMORY.len() {
                    return;
                }
            }
        }
    }

    fn read_pressure(&mut self, resource: usize) {
        let Some(name) = RESOURCES.get(resource) else { return };
        for (value, place) in self.values.iter_mut().skip(PRESSURE_AT).zip(PRESSURE) {
            if place.0 == *name {
                *value = None;
            }
        }
        let Some(file) = self.pressure.get_mut(resource) else { return };
        let Some(bytes) = file.read(&mut self.buffer) else { return };
        for line in lines(bytes) {
            let mut words = words(line);
            let share = words.next();
            let of = |known: &(&str, &[u8], &str)| known.0 == *name && Some(known.1) == share;
            let at = PRESSURE.iter().position(of);
            let total = words.find_map(|word| word.strip_prefix(b"total=")).and_then(number);
            if let Some(value) = at.and_then(|at| self.values.get_mut(PRESSURE_AT + at)) {
                *value = total;
            }
        }
    }

    /// What is read now is not known until it has been.
    fn forget(&mut self, places: std::ops::Range<usize>) {
        self.values.get_mut(places).unwrap_or(&mut []).fill(None);
    }

    fn read_softnet(&mut self) {
        self.forget(SOFTNET_AT..DISKS);
        let Some(bytes) = self.softnet.read(&mut self.buffer) else { return };
        let mut sums = [0_u64; SOFTNET.len()];
        for line in lines(bytes) {
            for (sum, word) in sums.iter_mut().zip(words(line)) {
                let text = str::from_utf8(word).unwrap_or("");
                *sum = sum.wrapping_add(u64::from_str_radix(text, 16).unwrap_or(0));
            }
        }
        for (value, sum) in self.values.iter_mut().skip(SOFTNET_AT).zip(sums) {
            *value = Some(sum);
        }
    }
}

/// Adds what a CPU did since the reading before to the sums, if that can be known.
fn add_cpu(cpus: &mut Vec<Cpu>, cpu: usize, now: Cpu, sums: &mut [u64; MODES.len()]) {
    if cpus.len() <= cpu {
        cpus.resize(cpu + 1, Cpu::default());
    }
    let Some(known) = cpus.get_mut(cpu) else { return };
    let before = std::mem::replace(known, now);
    let fell = now.ticks.iter().zip(before.ticks).any(|(now, before)| *now < before);
    if before.reading + 1 != now.reading || fell {
        return;
    }
    for (sum, (now, before)) in sums.iter_mut().zip(now.ticks.iter().zip(before.ticks)) {
        *sum = sum.wrapping_add(now - before);
    }
}

impl Devices {
    /// Reads the file; whether the set is another.
    fn read(&mut self, buffer: &mut Buffer, now_ns: u64) -> bool {
        self.values.fill([None; FIELDS]);
        let Some(bytes) = self.file.read(buffer) else { return false };
        let found = self.take(bytes);
        if found == self.found || now_ns < self.learn_ns {
            return false;
        }
        (self.found, self.learn_ns) = (found, now_ns.saturating_add(LEARN_NS));
        let changed = self.learn(bytes);
        self.take(bytes);
        changed
    }

    /// Takes what it says of those that were chosen; how many it has.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut found = 0;
        for Line { name, fields } in lines(bytes).filter_map(self.parse) {
            found += 1;
            let at = self.names.iter().position(|known| **known == *name);
            if let Some(place) = at.and_then(|at| self.values.get_mut(at)) {
                *place = fields;
            }
        }
        found
    }

    /// Chooses those that moved most; whether they are others than before.
    fn learn(&mut self, bytes: &[u8]) -> bool {
        let mut found: Vec<_> = lines(bytes)
            .filter_map(self.parse)
            .map(|Line { name, fields: [_, _, read, written, _] }| {
                let moved = read.unwrap_or(0).saturating_add(written.unwrap_or(0));
                (std::cmp::Reverse(moved), name)
            })
            .collect();
        found.sort_unstable();
        found.truncate(DEVICES_MAX);
        let mut names: Vec<Box<[u8]>> = found.into_iter().map(|(_, name)| name.into()).collect();
        names.sort_unstable();
        let changed = names != self.names;
        self.values = vec![[None; FIELDS]; names.len()];
        self.names = names;
        changed
    }
}

/// Reads, writes, bytes read, bytes written, ms busy.
fn parse_disk(line: &[u8]) -> Option<Line<'_>> {
    let mut words = words(line);
    let name = words.nth(2).filter(|name| !is_ignored(name))?;
    let mut field = |skip| words.nth(skip).and_then(number);
    let (reads, read) = (field(0), field(1));
    let (writes, written) = (field(1), field(1));
    let busy = field(2);
    let bytes = |sectors: Option<u64>| sectors.and_then(|sectors| sectors.checked_mul(512));
    Some(Line { name, fields: [reads, writes, bytes(read), bytes(written), busy] })
}

/// Packets received, packets sent, bytes received, bytes sent, drops.
fn parse_link(line: &[u8]) -> Option<Line<'_>> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = line.get(..colon)?.trim_ascii();
    let mut words = words(line.get(colon + 1..)?);
    let mut field = |skip| words.nth(skip).and_then(number);
    let (received, packets, dropped) = (field(0), field(0), field(1));
    let (sent, packets_sent, dropped_sent) = (field(4), field(0), field(1));
    let drops = dropped.and_then(|drops| drops.checked_add(dropped_sent?));
    Some(Line { name, fields: [packets, packets_sent, received, sent, drops] })
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

const LINE_BYTES_MAX: usize = 512;
const CPUS_MAX: usize = 8192;
/// Disks, and links, that have columns.
const DEVICES_MAX: usize = 8;
const LEARN_NS: u64 = 5_000_000_000;
/// Readings of disks' own files to one of the list: a second of them, or 16 where they are slowest.
const LIST_READS: u32 = 100;
/// Every other reading where there are 60 a second and more, and each where there are fewer; timers are a
/// little early or late.
const TURN_NS: u64 = 18_000_000;
const FIELDS: usize = 5;
pub(super) const MODES: [&str; 6] = ["user", "system", "iowait", "irq", "steal", "idle"];
/// Modes that count as busy.
pub(super) const BUSY: [usize; 4] = [0, 1, 3, 4];
/// Where a disk's or link's bytes are among its fields, and a disk's busy time.
pub(super) const BYTES_IN: usize = 2;
pub(super) const BYTES_OUT: usize = 3;
pub(super) const DISK_BUSY: usize = 4;
pub(super) const RUNNING: usize = MODES.len();
const BLOCKED: usize = RUNNING + 1;
/// Modes before this one are of a CPU that does, or waits for, something.
const IDLE: usize = MODES.len() - 1;
const STAT: [(&[u8], &str, Kind); 4] = [
    (b"procs_running", "strobe_burst_procs_running", GAUGE),
    (b"procs_blocked", "strobe_burst_procs_blocked", GAUGE),
    (b"ctxt", "strobe_burst_context_switches_total", COUNTER),
    (b"processes", "strobe_burst_forks_total", COUNTER),
];
const MEMORY_AT: usize = RUNNING + STAT.len();
const MEMORY: [(&[u8], &str); 5] = [
    (b"MemFree:", "free"),
    (b"MemAvailable:", "available"),
    (b"Cached:", "cached"),
    (b"Dirty:", "dirty"),
    (b"Writeback:", "writeback"),
];
pub(super) const RESOURCES: [&str; 3] = ["cpu", "io", "memory"];
pub(super) const PRESSURE_AT: usize = MEMORY_AT + MEMORY.len();
pub(super) const PRESSURE: [(&str, &[u8], &str); 5] = [
    ("cpu", b"some", "some"),
    ("io", b"some", "some"),
    ("memory", b"some", "some"),
    ("io", b"full", "full"),
    ("memory", b"full", "full"),
];
const SOFTNET_AT: usize = PRESSURE_AT + PRESSURE.len();
const SOFTNET: [&str; 3] = [
    "strobe_burst_softnet_processed_total",
    "strobe_burst_softnet_dropped_total",
    "strobe_burst_softnet_squeezed_total",
];
const DISKS: usize = SOFTNET_AT + SOFTNET.len();
const DISK: [&str; FIELDS] = [
    "strobe_burst_disk_reads_total",
    "strobe_burst_disk_writes_total",
    "strobe_burst_disk_read_bytes_total",
    "strobe_burst_disk_written_bytes_total",
    "strobe_burst_disk_io_seconds_total",
];
const LINK: [&str; FIELDS] = [
    "strobe_burst_network_receive_packets_total",
    "strobe_burst_network_transmit_packets_total",
    "strobe_burst_network_receive_bytes_total",
    "strobe_burst_network_transmit_bytes_total",
    "strobe_burst_network_drops_total",
];
const _: () = assert!(DISKS + 2 * DEVICES_MAX * FIELDS <= strobe_wire::burst::BURST_COLUMNS_MAX);
