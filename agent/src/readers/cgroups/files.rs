//! What the files of a control group say: admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/.

use crate::readers::text::{lines, next, number, words};
use crate::readers::{COUNTER, GAUGE, NANOSECONDS as SECONDS, column};
use strobe_wire::schema::{Column, Kind};

/// A file of a control group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    /// Which of [`BASES`] it is below.
    pub(super) base: usize,
    pub(super) name: &'static [u8],
    parse: Parse,
    pub(super) when: When,
}

/// What a file is read for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum When {
    /// To rank every group by, and each reading of those that are told.
    Rank,
    /// Each reading of those that are told.
    Tell,
    /// What seldom changes, of those that are told: every tenth reading.
    Seldom,
}

/// How a file is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Parse {
    /// A number that is this field, times that.
    Number(usize, u64),
    /// A limit: `max`, or a number beyond what there is, is none.
    Limit(usize),
    /// `cpu.stat` of version 2.
    Cpu,
    /// `cpu.stat` of version 1.
    Quota,
    /// `cpuacct.stat`.
    Ticks,
    /// `memory.stat` of version 2.
    Memory,
    /// `memory.stat` of version 1.
    MemoryOne,
    /// `memory.events` of version 2, `memory.oom_control` of version 1.
    Events,
    /// `io.stat` of version 2.
    Io,
    /// `blkio.throttle.io_service_bytes` and `io_serviced`: reads are this field, writes the next.
    Blocks(usize),
    /// `*.pressure`: `some` is this field, `full` the next.
    Pressure(usize),
}

/// What is known of a group, field by field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields(pub(super) [Option<u64>; FIELDS]);

impl Fields {
    pub(super) const NONE: Self = Self([None; FIELDS]);

    pub(super) fn field(&self, field: usize) -> Option<u64> {
        self.0.get(field).copied().flatten()
    }

    pub(super) fn set(&mut self, field: usize, value: Option<u64>) {
        if let Some(place) = self.0.get_mut(field) {
            *place = value;
        }
    }

    /// Adds up what several lines say of a field.
    fn add(&mut self, field: usize, value: Option<u64>) {
        if let (Some(place), Some(value)) = (self.0.get_mut(field), value) {
            *place = Some(place.unwrap_or(0).saturating_add(value));
        }
    }

    /// A bit a field that has a value.
    pub(super) fn mask(&self) -> u32 {
        let fields = self.0.iter().enumerate();
        fields.fold(0, |mask, (field, value)| mask | u32::from(value.is_some()) << field)
    }

    /// Takes from another what it has not itself.
    pub(super) fn fill(&mut self, other: &Self) {
        for (place, value) in self.0.iter_mut().zip(other.0) {
            *place = place.or(value);
        }
    }

    /// The root of version 2 counts time that was stolen from this machine as used.
    pub(super) fn without_steal(&mut self) {
        let used = self.field(USER).zip(self.field(SYSTEM));
        self.set(CPU, used.and_then(|(user, system)| user.checked_add(system)));
    }

    /// Bytes read and written.
    pub(super) fn io_bytes(&self) -> u64 {
        let (read, written) = (self.field(IO), self.field(IO + 1));
        read.unwrap_or(0).saturating_add(written.unwrap_or(0))
    }
}

impl Spec {
    /// Takes what the file says.
    pub(super) fn parse(&self, bytes: &[u8], fields: &mut Fields) {
        match self.parse {
            Parse::Number(field, factor) => {
                let value = number(bytes.trim_ascii());
                fields.set(field, value.and_then(|value| value.checked_mul(factor)));
            }
            Parse::Limit(field) => {
                let limit = number(bytes.trim_ascii());
                fields.set(field, limit.filter(|limit| *limit < UNLIMITED));
            }
            Parse::Cpu => pairs(bytes, CPU_KEYS, fields),
            Parse::Quota => pairs(bytes, QUOTA_KEYS, fields),
            Parse::Ticks => pairs(bytes, TICKS_KEYS, fields),
            Parse::Memory => pairs(bytes, MEMORY_KEYS, fields),
            Parse::MemoryOne => pairs(bytes, MEMORY_ONE_KEYS, fields),
            Parse::Events => pairs(bytes, EVENT_KEYS, fields),
            Parse::Io => io(bytes, fields),
            Parse::Blocks(field) => blocks(bytes, field, fields),
            Parse::Pressure(field) => pressure(bytes, field, fields),
        }
    }
}

/// `key value` a line.
fn pairs(bytes: &[u8], keys: &[(&[u8], usize, u64)], fields: &mut Fields) {
    let mut wanted = keys.len();
    for line in lines(bytes) {
        let mut words = words(line);
        let key = words.next().unwrap_or(&[]);
        let Some((_, field, factor)) = keys.iter().find(|(known, ..)| *known == key) else {
            continue;
        };
        fields.set(*field, next(&mut words).and_then(|value| value.checked_mul(*factor)));
        wanted -= 1;
        if wanted == 0 {
            // The rest of memory.stat is three times as long.
            return;
        }
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6` a device.
fn io(bytes: &[u8], fields: &mut Fields) {
    for line in lines(bytes) {
        for word in words(line).skip(1) {
            let Some(at) = memchr::memchr(b'=', word) else { continue };
            let Some((key, value)) = word.split_at_checked(at) else { continue };
            if let Some(place) = IO_KEYS.iter().position(|known| *known == key) {
                fields.add(IO + place, number(value.get(1..).unwrap_or(&[])));
            }
        }
    }
    // A group that never did any has an empty file.
    (0..IO_KEYS.len()).for_each(|place| fields.add(IO + place, Some(0)));
}

/// `8:0 Read 1`, `8:0 Write 2`, … a device, and `Total 3`.
fn blocks(bytes: &[u8], field: usize, fields: &mut Fields) {
    for line in lines(bytes) {
        let mut words = words(line).skip(1);
        let (what, value) = (words.next(), next(&mut words));
        match what {
            Some(b"Read") => fields.add(field, value),
            Some(b"Write") => fields.add(field + 1, value),
            _ => {}
        }
    }
    (field..field + 2).for_each(|field| fields.add(field, Some(0)));
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=5`, in µs.
fn pressure(bytes: &[u8], field: usize, fields: &mut Fields) {
    for line in lines(bytes) {
        let field = if line.starts_with(b"some ") { field } else { field + 1 };
        let total = words(line).last().and_then(|word| word.strip_prefix(b"total="));
        let total = total.and_then(number).and_then(|total| total.checked_mul(US));
        fields.set(field, total);
    }
}

/// The columns of a group, or of all others: one for each field of `mask`.
pub(super) fn columns(cgroup: &str, mask: u32) -> Vec<Column> {
    let told = NAMES.iter().enumerate().filter(|(field, _)| mask & 1 << field != 0);
    let named = told.map(|(_, (name, event, kind))| match event {
        &"" => column(name, &[("cgroup", cgroup)], *kind),
        event => column(name, &[("cgroup", cgroup), ("event", event)], *kind),
    });
    named.collect()
}

/// For the fuzz target: one file of a group, read at two ticks, parted by 0xFF.
#[cfg(fuzzing)]
pub(crate) fn fuzz(which: u8, bytes: &[u8]) {
    use strobe_wire::schema::Schema;
    let specs: Vec<&Spec> = VERSION_2.iter().chain(VERSION_1).collect();
    let Some(spec) = specs.get(usize::from(which) % specs.len()) else { return };
    let mut known = Fields::NONE;
    for text in bytes.split(|byte| *byte == 0xff).take(2) {
        let mut fields = Fields::NONE;
        spec.parse(text, &mut fields);
        fields.without_steal();
        fields.fill(&known);
        known = fields;
        let _ = fields.io_bytes();
        let columns = columns("/a", fields.mask());
        assert_eq!(columns.len(), fields.0.iter().flatten().count());
        let schema = Schema { section: "x".to_owned(), columns };
        assert!(schema.columns.is_empty() || schema.check().is_ok(), "{spec:?}");
    }
}

pub(super) const CPU: usize = 0;
const USER: usize = 1;
const SYSTEM: usize = 2;
pub(super) const MEMORY: usize = 6;
const LIMIT: usize = 7;
const HIGH: usize = 8;
const SWAP: usize = 9;
pub(super) const ANON: usize = 10;
pub(super) const FILE: usize = 11;
const KERNEL: usize = 12;
const INACTIVE: usize = 13;
const EVENTS: usize = 14;
pub(super) const IO: usize = 18;
const PIDS: usize = 22;
const PRESSURE: usize = 24;
pub(super) const FIELDS: usize = NAMES.len();
/// What all others are told of too: counters, and levels.
pub(super) const COUNTERS: [usize; 7] = [CPU, USER, SYSTEM, IO, IO + 1, IO + 2, IO + 3];
pub(super) const LEVELS: [usize; 3] = [MEMORY, ANON, FILE];
const NAMES: [(&str, &str, Kind); 30] = [
    ("strobe_cgroup_cpu_seconds_total", "", SECONDS),
    ("strobe_cgroup_cpu_user_seconds_total", "", SECONDS),
    ("strobe_cgroup_cpu_system_seconds_total", "", SECONDS),
    ("strobe_cgroup_cpu_periods_total", "", COUNTER),
    ("strobe_cgroup_cpu_throttled_periods_total", "", COUNTER),
    ("strobe_cgroup_cpu_throttled_seconds_total", "", SECONDS),
    ("strobe_cgroup_memory_bytes", "", GAUGE),
    ("strobe_cgroup_memory_limit_bytes", "", GAUGE),
    ("strobe_cgroup_memory_high_bytes", "", GAUGE),
    ("strobe_cgroup_memory_swap_bytes", "", GAUGE),
    ("strobe_cgroup_memory_anon_bytes", "", GAUGE),
    ("strobe_cgroup_memory_file_bytes", "", GAUGE),
    ("strobe_cgroup_memory_kernel_bytes", "", GAUGE),
    ("strobe_cgroup_memory_inactive_file_bytes", "", GAUGE),
    ("strobe_cgroup_memory_events_total", "high", COUNTER),
    ("strobe_cgroup_memory_events_total", "max", COUNTER),
    ("strobe_cgroup_memory_events_total", "oom", COUNTER),
    ("strobe_cgroup_memory_events_total", "oom_kill", COUNTER),
    ("strobe_cgroup_io_read_bytes_total", "", COUNTER),
    ("strobe_cgroup_io_written_bytes_total", "", COUNTER),
    ("strobe_cgroup_io_reads_total", "", COUNTER),
    ("strobe_cgroup_io_writes_total", "", COUNTER),
    ("strobe_cgroup_pids", "", GAUGE),
    ("strobe_cgroup_pids_limit", "", GAUGE),
    ("strobe_cgroup_pressure_cpu_waiting_seconds_total", "", SECONDS),
    ("strobe_cgroup_pressure_cpu_stalled_seconds_total", "", SECONDS),
    ("strobe_cgroup_pressure_memory_waiting_seconds_total", "", SECONDS),
    ("strobe_cgroup_pressure_memory_stalled_seconds_total", "", SECONDS),
    ("strobe_cgroup_pressure_io_waiting_seconds_total", "", SECONDS),
    ("strobe_cgroup_pressure_io_stalled_seconds_total", "", SECONDS),
];
const US: u64 = 1000;
/// USER_HZ is 100.
const TICK: u64 = 10_000_000;
/// Version 1 says "no limit" with a number near this.
const UNLIMITED: u64 = 1 << 62;
const CPU_KEYS: &[(&[u8], usize, u64)] = &[
    (b"usage_usec", CPU, US),
    (b"user_usec", USER, US),
    (b"system_usec", SYSTEM, US),
    (b"nr_periods", 3, 1),
    (b"nr_throttled", 4, 1),
    (b"throttled_usec", 5, US),
];
const QUOTA_KEYS: &[(&[u8], usize, u64)] =
    &[(b"nr_periods", 3, 1), (b"nr_throttled", 4, 1), (b"throttled_time", 5, 1)];
const TICKS_KEYS: &[(&[u8], usize, u64)] = &[(b"user", USER, TICK), (b"system", SYSTEM, TICK)];
const MEMORY_KEYS: &[(&[u8], usize, u64)] = &[
    (b"anon", ANON, 1),
    (b"file", FILE, 1),
    (b"kernel", KERNEL, 1),
    (b"inactive_file", INACTIVE, 1),
];
/// `rss` and the like without `total_` are of the group without those below it.
const MEMORY_ONE_KEYS: &[(&[u8], usize, u64)] = &[
    (b"total_cache", FILE, 1),
    (b"total_rss", ANON, 1),
    (b"total_swap", SWAP, 1),
    (b"total_inactive_file", INACTIVE, 1),
];
const EVENT_KEYS: &[(&[u8], usize, u64)] = &[
    (b"high", EVENTS, 1),
    (b"max", EVENTS + 1, 1),
    (b"oom", EVENTS + 2, 1),
    (b"oom_kill", EVENTS + 3, 1),
];
const IO_KEYS: [&[u8]; 4] = [b"rbytes", b"wbytes", b"rios", b"wios"];

/// Where hierarchies are mounted below /sys/fs/cgroup. The first is version 2 alone.
pub(super) const BASES: [&[&str]; 7] = [
    &["."],
    &["cpuacct", "cpu,cpuacct"],
    &["cpu", "cpu,cpuacct"],
    &["memory"],
    &["blkio"],
    &["pids"],
    &["unified"],
];
const fn spec(base: usize, name: &'static [u8], parse: Parse, when: When) -> Spec {
    Spec { base, name, parse, when }
}
pub(super) const VERSION_2: &[Spec] = &[
    spec(0, b"cpu.stat", Parse::Cpu, When::Rank),
    spec(0, b"memory.current", Parse::Number(MEMORY, 1), When::Rank),
    spec(0, b"io.stat", Parse::Io, When::Rank),
    spec(0, b"memory.stat", Parse::Memory, When::Tell),
    spec(0, b"pids.current", Parse::Number(PIDS, 1), When::Tell),
    spec(0, b"cpu.pressure", Parse::Pressure(PRESSURE), When::Tell),
    spec(0, b"memory.pressure", Parse::Pressure(PRESSURE + 2), When::Tell),
    spec(0, b"io.pressure", Parse::Pressure(PRESSURE + 4), When::Tell),
    spec(0, b"memory.max", Parse::Limit(LIMIT), When::Seldom),
    spec(0, b"memory.high", Parse::Limit(HIGH), When::Seldom),
    spec(0, b"memory.swap.current", Parse::Number(SWAP, 1), When::Seldom),
    spec(0, b"memory.events", Parse::Events, When::Seldom),
    spec(0, b"pids.max", Parse::Limit(PIDS + 1), When::Seldom),
];
pub(super) const VERSION_1: &[Spec] = &[
    spec(1, b"cpuacct.usage", Parse::Number(CPU, 1), When::Rank),
    spec(3, b"memory.usage_in_bytes", Parse::Number(MEMORY, 1), When::Rank),
    spec(4, b"blkio.throttle.io_service_bytes_recursive", Parse::Blocks(IO), When::Rank),
    spec(1, b"cpuacct.stat", Parse::Ticks, When::Tell),
    spec(2, b"cpu.stat", Parse::Quota, When::Tell),
    spec(3, b"memory.stat", Parse::MemoryOne, When::Tell),
    spec(4, b"blkio.throttle.io_serviced_recursive", Parse::Blocks(IO + 2), When::Tell),
    spec(5, b"pids.current", Parse::Number(PIDS, 1), When::Tell),
    spec(6, b"cpu.pressure", Parse::Pressure(PRESSURE), When::Tell),
    spec(6, b"memory.pressure", Parse::Pressure(PRESSURE + 2), When::Tell),
    spec(6, b"io.pressure", Parse::Pressure(PRESSURE + 4), When::Tell),
    spec(3, b"memory.limit_in_bytes", Parse::Limit(LIMIT), When::Seldom),
    spec(3, b"memory.kmem.usage_in_bytes", Parse::Number(KERNEL, 1), When::Seldom),
    spec(3, b"memory.failcnt", Parse::Number(EVENTS + 1, 1), When::Seldom),
    spec(3, b"memory.oom_control", Parse::Events, When::Seldom),
    spec(5, b"pids.max", Parse::Limit(PIDS + 1), When::Seldom),
];
/// Files of the larger of both.
pub(super) const SPECS_MAX: usize = 16;
const _: () = assert!(VERSION_2.len() <= SPECS_MAX && VERSION_1.len() <= SPECS_MAX);
const _: () = assert!(FIELDS <= 32, "a mask has a bit a field");
