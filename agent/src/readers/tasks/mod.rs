//! Processes: which use most of the processors, of memory and of disks, and all others together.
//!
//! ```text
//! /proc ─ listed each time ─▶ table of pids ─ read in turn, all within TURN_NS ─▶ what each uses
//! told (Ranks) ─ read each time, files kept open below KEEP_NS ─▶ a name each
//! /proc/stat, /proc/vmstat ─▶ `other`: what the host used − what the told did
//! ```
//!
//! A process is its number and when it started, so a number that is given again is another. `other` is
//! of what the host counts itself (time in user and system, pages in and out), so it holds
//! what nobody saw: processes that lived between two readings, and the last moments of each. Memory is
//! the sum of what is resident, in which what is shared counts for each who shares it.
//!
//! Five thousand reads of 6 µs would be 3 % of a core each second; a tenth of them is not, and
//! counters lose nothing by being read seldom. taskstats(GET) is no cheaper than one `stat` (3.4 µs
//! against 3.0 kept open, 5.9 not) and has no disks of whole processes.
//!
//! Bound: [`TASKS_MAX`] processes; what is over is not looked at.

pub(crate) mod stat;

use super::names::Names;
use super::ranks::{Candidate, MEASURES, Ranks, Remainder, Rule, follow, growth, rate};
use super::sheet::{Repair, Sheet};
use super::text::{lines, next, number, words};
use super::{COUNTER, GAUGE, column};
use stat::{Name, Stat, open, parse_io};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use strobe_wire::schema::{Column, Kind};

/// The table and who is told of it.
#[derive(Debug)]
pub(crate) struct Tasks {
    procfs: PathBuf,
    page_bytes: u64,
    names: Names,
    pids: Vec<u64>,
    /// By number.
    tasks: Vec<Task>,
    former: Vec<Task>,
    /// The number of the next to be read.
    cursor: u64,
    ranks: Ranks,
    told: Vec<Told>,
    others: [Remainder; COUNTERS],
    other: Values,
    other_mask: u8,
    host: [Option<File>; 2],
    read_ns: Option<u64>,
    choose_ns: u64,
    text: Vec<u8>,
}

/// One process, as it was when it was last read.
#[derive(Clone, Copy, Debug)]
struct Task {
    pid: u64,
    started: u64,
    name: Name,
    uses: Values,
    scores: [u64; MEASURES],
    read_ns: Option<u64>,
}

/// One that is told by name.
#[derive(Debug)]
struct Told {
    pid: u64,
    started: u64,
    name: Name,
    mask: u8,
    values: Values,
    stat: Option<File>,
    io: Option<File>,
    /// Counters at the last reading.
    last: [Option<u64>; COUNTERS],
}

/// Ticks, bytes read, bytes written, and resident bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Values([Option<u64>; COUNTERS + 1]);

impl Tasks {
    pub(crate) fn new(procfs: &Path, page_bytes: u64) -> Self {
        Self {
            procfs: procfs.to_owned(),
            page_bytes,
            names: Names::new(procfs),
            pids: Vec::new(),
            tasks: Vec::new(),
            former: Vec::new(),
            cursor: 0,
            ranks: Ranks::new(RULES),
            told: Vec::new(),
            others: [Remainder::default(); COUNTERS],
            other: Values::default(),
            other_mask: 0,
            host: [None, None],
            read_ns: None,
            choose_ns: 0,
            text: vec![0; TEXT_BYTES],
        }
    }

    /// Lists all, reads the told and some of the others, and chooses anew if it is time.
    pub(super) fn read(&mut self, now_ns: u64) {
        let passed_ns = self.read_ns.replace(now_ns).map(|before| now_ns.saturating_sub(before));
        self.list();
        if passed_ns.is_none() {
            self.read_some(now_ns, TURN_NS);
        }
        // Chosen before it is read: what is read of one who is told is told.
        let chosen = self.choose_ns <= now_ns.saturating_add(SLACK_NS);
        if chosen {
            self.choose_ns = now_ns.saturating_add(CHOOSE_NS);
            self.choose();
        }
        // The host first: what is told may be ahead of it, which is owed, and not behind.
        let totals = self.totals();
        let keeps = passed_ns.is_some_and(|passed| passed < KEEP_NS);
        self.read_told(now_ns, keeps, chosen);
        self.read_some(now_ns, passed_ns.unwrap_or(0));
        for ((other, total), value) in self.others.iter_mut().zip(totals).zip(&mut self.other.0) {
            *value = other.total(total);
        }
        let all = self.tasks.iter().filter_map(|task| task.uses.memory());
        let told = self.told.iter().filter_map(|told| told.values.memory());
        let sum = |values: &mut dyn Iterator<Item = u64>| values.fold(0, u64::saturating_add);
        let (mut all, mut told) = (all, told);
        let rest = sum(&mut all).saturating_sub(sum(&mut told));
        self.other.set_memory(Some(rest));
        if chosen {
            self.other_mask |= self.other.mask();
        }
    }

    /// What was read.
    pub(super) fn put(&self, sheet: &mut Sheet) {
        let count = u64::try_from(self.tasks.len()).ok();
        sheet.put(TOTALS, b"", &[count], Repair::None);
        put(OTHER, &[self.other_mask], &self.other, sheet);
        for told in &self.told {
            let mut key = [0; 1 + 20 + 1 + 16];
            let digits = super::net_tables::Digits::new(told.pid);
            let parts = [&[told.mask][..], digits.bytes(), b" ", told.name.bytes()];
            let mut length = 0;
            for (place, byte) in key.iter_mut().zip(parts.into_iter().flatten()) {
                *place = *byte;
                length += 1;
            }
            put(TASK, key.get(..length).unwrap_or(&[]), &told.values, sheet);
        }
    }

    /// Takes in who is there and forgets who is not.
    fn list(&mut self) {
        let pids = &mut self.pids;
        pids.clear();
        self.names.each(|name| {
            pids.extend(number(name).filter(|_| pids.len() < TASKS_MAX));
        });
        // The kernel lists them so; other file systems do not.
        if !self.pids.is_sorted() {
            self.pids.sort_unstable();
        }
        std::mem::swap(&mut self.tasks, &mut self.former);
        self.tasks.clear();
        let mut former = self.former.iter().peekable();
        for pid in &self.pids {
            while former.next_if(|task| task.pid < *pid).is_some() {}
            let known = former.next_if(|task| task.pid == *pid).copied();
            self.tasks.push(known.unwrap_or_else(|| Task::new(*pid)));
        }
    }

    /// As many as it takes to read all within [`TURN_NS`].
    fn read_some(&mut self, now_ns: u64, passed_ns: u64) {
        let all = self.tasks.len();
        let share = u128::try_from(all).unwrap_or(0) * u128::from(passed_ns.min(TURN_NS));
        let share = usize::try_from(share.div_ceil(u128::from(TURN_NS))).unwrap_or(all);
        let mut at = self.tasks.partition_point(|task| task.pid < self.cursor);
        for _ in 0..share.min(all) {
            if all <= at {
                at = 0;
            }
            let (Some(base), Some(task)) = (self.names.dir(), self.tasks.get_mut(at)) else {
                return;
            };
            task.read(base, &mut self.text, (now_ns, self.page_bytes));
            self.cursor = task.pid + 1;
            at += 1;
        }
    }

    fn read_told(&mut self, now_ns: u64, keeps: bool, chosen: bool) {
        let Some(base) = self.names.dir() else { return };
        for told in &mut self.told {
            told.read(base, &mut self.text, (keeps, self.page_bytes));
            if chosen {
                told.mask |= told.values.mask();
            }
            let counters = self.others.iter_mut().zip(&mut told.last).zip(told.values.0);
            for (place, ((other, last), value)) in counters.enumerate() {
                let Some(now) = value.filter(|_| told.mask & 1 << place != 0) else { continue };
                if let Some(before) = last.replace(now) {
                    other.told(growth(before, now));
                }
            }
            let place = self.tasks.binary_search_by_key(&told.pid, |task| task.pid);
            let task = place.ok().and_then(|place| self.tasks.get_mut(place));
            if let Some(task) = task.filter(|task| task.started == told.started) {
                task.take(told.values, now_ns);
            }
        }
    }

    /// What the host counts of each counter.
    fn totals(&mut self) -> [Option<u64>; COUNTERS] {
        let [stat, vmstat] = &mut self.host;
        let cpu = host_file(stat, &self.procfs, "stat", &mut self.text).and_then(|text| {
            let mut words = words(lines(text).next()?.strip_prefix(b"cpu ")?);
            let mut field = || next(&mut words);
            field()?.checked_add(field()?)?.checked_add(field()?)
        });
        let text = host_file(vmstat, &self.procfs, "vmstat", &mut self.text);
        let pages = |name: &[u8]| {
            let value = lines(text?).find_map(|line| line.strip_prefix(name))?;
            number(value)?.checked_mul(KIB)
        };
        [cpu, pages(b"pgpgin "), pages(b"pgpgout ")]
    }

    fn choose(&mut self) {
        let told = &self.told;
        let candidates = self.tasks.iter().filter(|task| task.read_ns.is_some());
        let candidates = candidates.map(|task| Candidate {
            key: key(task.pid, task.started),
            scores: task.scores,
            told: told.iter().any(|told| (told.pid, told.started) == (task.pid, task.started)),
        });
        let chosen = self.ranks.choose(candidates);
        let is_chosen = |pid: u64, started: u64| chosen.contains(&key(pid, started));
        // A series is a number and a name: one that calls itself otherwise now is another, and one
        // that was given both again is the same.
        let tasks = &self.tasks;
        self.told.retain_mut(|told| {
            let place = tasks.binary_search_by_key(&told.pid, |task| task.pid).ok();
            let task = place.and_then(|place| tasks.get(place)).filter(|t| t.name == told.name);
            told.started = task.map_or(told.started, |task| task.started);
            task.is_some() && is_chosen(told.pid, told.started)
        });
        for task in self.tasks.iter().filter(|task| is_chosen(task.pid, task.started)) {
            if !self.told.iter().any(|told| told.pid == task.pid) {
                self.told.push(Told::of(task));
            }
        }
    }
}

impl Task {
    fn new(pid: u64) -> Self {
        let (started, name, uses) = (0, Name::default(), Values::default());
        Self { pid, started, name, uses, scores: [0; MEASURES], read_ns: None }
    }

    fn read(&mut self, base: &File, text: &mut [u8], (now_ns, page_bytes): (u64, u64)) {
        if self.read_ns == Some(now_ns) {
            return;
        }
        let Some(stat) = open(base, self.pid, b"stat").and_then(|file| stat_of(&file, text)) else {
            return;
        };
        if stat.started != self.started {
            *self = Self { started: stat.started, ..Self::new(self.pid) };
        }
        self.name = stat.name;
        let mut values = Values::of(&stat, page_bytes);
        let [ticks, read, written, _] = self.uses.0;
        if self.read_ns.is_some() && ticks == Some(stat.ticks) {
            // Who did not run did not read or write.
            values.set_io(read.zip(written).map(|(read, written)| [read, written]));
        } else if let Some(file) = open(base, self.pid, b"io") {
            values.set_io(io_of(&file, text));
        }
        self.take(values, now_ns);
    }

    /// What it uses now.
    fn take(&mut self, values: Values, now_ns: u64) {
        let [ticks, read, written, memory] = values.0;
        if ticks.is_none() {
            return;
        }
        let before = self.read_ns.replace(now_ns);
        // Of one that is new: what it used so far, as if it did since it started.
        let since_ns = before.unwrap_or_else(|| self.started.saturating_mul(TICK_NS));
        let passed_ns = now_ns.saturating_sub(since_ns);
        let [of_ticks, of_read, of_written, _] = self.uses.0;
        let grown = |before: Option<u64>, now: Option<u64>| {
            growth(before.unwrap_or(0), now.or(before).unwrap_or(0))
        };
        let cpu = grown(of_ticks, ticks).saturating_mul(TICK_NS);
        let io = grown(of_read, read).saturating_add(grown(of_written, written));
        let [cpu_score, memory_score, io_score] = &mut self.scores;
        follow(cpu_score, rate(cpu, passed_ns), passed_ns);
        *memory_score = memory.unwrap_or(0);
        follow(io_score, rate(io, passed_ns), passed_ns);
        self.uses = values;
    }
}

impl Told {
    fn of(task: &Task) -> Self {
        let Task { pid, started, name, .. } = *task;
        let (mask, values, last) = (0, Values::default(), [None; COUNTERS]);
        Self { pid, started, name, mask, values, stat: None, io: None, last }
    }

    /// Reads both files. A file that is kept is its process's alone, whoever has its number now.
    fn read(&mut self, base: &File, text: &mut [u8], (keeps, page_bytes): (bool, u64)) {
        self.values = Values::default();
        let file = self.stat.take().or_else(|| open(base, self.pid, b"stat"));
        let Some(file) = file else { return };
        let stat = stat_of(&file, text).filter(|stat| stat.started == self.started);
        let Some(stat) = stat else { return };
        self.stat = Some(file).filter(|_| keeps);
        self.values = Values::of(&stat, page_bytes);
        let file = self.io.take().or_else(|| open(base, self.pid, b"io"));
        self.values.set_io(file.as_ref().and_then(|file| io_of(file, text)));
        self.io = file.filter(|_| keeps);
    }
}

impl Values {
    fn of(stat: &Stat, page_bytes: u64) -> Self {
        Self([Some(stat.ticks), None, None, stat.pages.checked_mul(page_bytes)])
    }

    fn set_io(&mut self, io: Option<[u64; 2]>) {
        let [_, read, written, _] = &mut self.0;
        (*read, *written) = (io.map(|[read, _]| read), io.map(|[_, written]| written));
    }

    fn memory(&self) -> Option<u64> {
        let [_, _, _, memory] = self.0;
        memory
    }

    fn set_memory(&mut self, bytes: Option<u64>) {
        let [_, _, _, memory] = &mut self.0;
        *memory = bytes;
    }

    /// A bit a value.
    fn mask(&self) -> u8 {
        let values = self.0.iter().enumerate();
        values.fold(0, |mask, (place, value)| mask | u8::from(value.is_some()) << place)
    }
}

fn stat_of(file: &File, text: &mut [u8]) -> Option<Stat> {
    let length = file.read_at(text.get_mut(..STAT_BYTES)?, 0).ok()?;
    Stat::parse(text.get(..length)?)
}

fn io_of(file: &File, text: &mut [u8]) -> Option<[u64; 2]> {
    let length = file.read_at(text.get_mut(..STAT_BYTES)?, 0).ok()?;
    parse_io(text.get(..length)?)
}

/// The beginning of a file of the host's, which is kept open.
fn host_file<'t>(
    kept: &mut Option<File>,
    procfs: &Path,
    name: &str,
    text: &'t mut [u8],
) -> Option<&'t [u8]> {
    if kept.is_none() {
        *kept = File::open(procfs.join(name)).ok();
    }
    let length = kept.as_ref()?.read_at(text, 0);
    if length.is_err() {
        *kept = None;
    }
    text.get(..length.ok()?)
}

fn put(shape: u8, key: &[u8], values: &Values, sheet: &mut Sheet) {
    let mask = key.first().copied().unwrap_or(0);
    let mut told = [None; COUNTERS + 1];
    let named = values.0.iter().enumerate().filter(|(place, _)| mask & 1 << place != 0);
    let count = named.zip(&mut told).map(|((_, value), place)| *place = *value).count();
    if 0 < count {
        sheet.put(shape, key, told.get(..count).unwrap_or(&[]), Repair::None);
    }
}

/// For the fuzz target: `stat`, `io`, and what the name of a process becomes.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &[u8]) {
    let _ = parse_io(text);
    let Some(stat) = Stat::parse(text) else { return };
    assert!(stat.name.bytes().len() <= 16);
    for shape in 0..4 {
        let columns = columns(shape, stat.name.bytes());
        let schema = strobe_wire::schema::Schema { section: "x".to_owned(), columns };
        assert!(schema.columns.is_empty() || schema.check().is_ok(), "{shape}");
    }
}

pub(super) fn columns(shape: u8, key: &[u8]) -> Vec<Column> {
    if shape == TOTALS {
        return vec![column("strobe_processes", &[], GAUGE)];
    }
    let (mask, key) = key.split_first().unwrap_or((&0, &[]));
    let text = String::from_utf8_lossy(key);
    let (pid, name) = text.split_once(' ').unwrap_or(("", "other"));
    let labels = [("pid", pid), ("comm", name)];
    let told = NAMES.iter().enumerate().filter(|(place, _)| mask & 1 << place != 0);
    told.map(|(_, (name, kind))| column(name, &labels, *kind)).collect()
}

fn key(pid: u64, started: u64) -> u64 {
    started.wrapping_shl(PID_BITS).wrapping_add(pid)
}

const TOTALS: u8 = 0;
const OTHER: u8 = 1;
const TASK: u8 = 2;
const COUNTERS: usize = 3;
const NAMES: [(&str, Kind); COUNTERS + 1] = [
    ("strobe_process_cpu_seconds_total", Kind::Counter { scale: 2 }),
    ("strobe_process_read_bytes_total", COUNTER),
    ("strobe_process_written_bytes_total", COUNTER),
    ("strobe_process_resident_bytes", GAUGE),
];
/// Processors in ns a second, memory in bytes, disks in bytes a second.
const RULES: [Rule; MEASURES] = [
    Rule { top: 10, least: 1_000_000 },
    Rule { top: 10, least: 1 << 20 },
    Rule { top: 5, least: 4096 },
];
/// All are read within this.
const TURN_NS: u64 = 10_000_000_000;
/// Between two choices of who is told.
const CHOOSE_NS: u64 = 10_000_000_000;
const SLACK_NS: u64 = 50_000_000;
/// Files that are read again within this are kept open.
const KEEP_NS: u64 = 5_000_000_000;
/// USER_HZ is 100.
const TICK_NS: u64 = 10_000_000;
/// `PID_MAX_LIMIT` of 64 bits is 2^22.
const PID_BITS: u32 = 22;
const KIB: u64 = 1024;
const TASKS_MAX: usize = 65_536;
/// 52 numbers and a name.
const STAT_BYTES: usize = 1024;
/// The first page of vmstat has what is wanted, and /proc/stat its first line.
const TEXT_BYTES: usize = 4096;

#[cfg(test)]
mod tests;
