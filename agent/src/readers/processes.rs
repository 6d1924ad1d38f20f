//! Processes: totals as node_exporter has them, and the few that use most of the processors and of
//! memory, with everything else in one exact `other`.
//!
//! One walk of /proc opens each `stat` once. A process is told apart from a later one of its number
//! by when it started; its share of a processor is what its ticks grew by since the reading before,
//! so a process that was not there then has none yet. The shares of the named and of `other`
//! add up to all that were seen twice.

use super::sheet::{Repair, Sheet};
use super::text::{number, words};
use super::{GAUGE, column};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::cmp::Reverse;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use strobe_wire::schema::{Column, Kind};

/// What is kept between two readings.
#[derive(Debug)]
pub(crate) struct Processes {
    procfs: PathBuf,
    dir: Option<Dir>,
    page_bytes: u64,
    /// By number.
    before: Vec<Process>,
    now: Vec<Process>,
    before_ns: u64,
    threads: u64,
    states: [u64; STATES.len()],
}

#[derive(Clone, Copy, Debug)]
struct Process {
    pid: u64,
    started: u64,
    ticks: u64,
    pages: u64,
    /// Ticks since the reading before; `None` if it was not there.
    grown: Option<u64>,
    name: Name,
}

/// What a process calls itself: 15 bytes.
#[derive(Clone, Copy, Debug)]
struct Name {
    bytes: [u8; 16],
    length: usize,
}

/// One `stat` file.
#[derive(Clone, Copy, Debug)]
struct Stat {
    process: Process,
    state: u8,
    threads: u64,
}

impl Processes {
    pub(crate) fn new(procfs: &Path, page_bytes: u64) -> Self {
        Self {
            procfs: procfs.to_owned(),
            dir: None,
            page_bytes,
            before: Vec::new(),
            now: Vec::new(),
            before_ns: 0,
            threads: 0,
            states: [0; STATES.len()],
        }
    }

    /// Reads every `stat`; the ns since the reading before, 0 if there was none.
    pub(super) fn walk(&mut self, now_ns: u64) -> u64 {
        std::mem::swap(&mut self.before, &mut self.now);
        self.before.sort_unstable_by_key(|process| process.pid);
        (self.threads, self.states) = (0, [0; STATES.len()]);
        self.now.clear();
        self.list();
        let before_ns = std::mem::replace(&mut self.before_ns, now_ns);
        if before_ns == 0 { 0 } else { now_ns.saturating_sub(before_ns) }
    }

    pub(super) fn put(&mut self, passed_ns: u64, sheet: &mut Sheet) {
        if self.now.is_empty() {
            return;
        }
        let count = u64::try_from(self.now.len()).unwrap_or(u64::MAX);
        sheet.put(TOTALS, b"", &[Some(self.threads), Some(count)], Repair::None);
        for (state, count) in STATES.iter().zip(self.states) {
            sheet.put(STATE, &[*state], &[Some(count)], Repair::None);
        }
        if 0 < passed_ns {
            // A tick is 10 ms. A ratio of nine digits: ticks · 10^7 ns · 10^9 / ns.
            let ratio = |ticks: u64| {
                let scaled = u128::from(ticks) * 10_000_000_000_000_000;
                u64::try_from(scaled / u128::from(passed_ns)).ok()
            };
            self.now.sort_unstable_by_key(|process| Reverse((process.grown, process.pid)));
            self.put_top(CPU, |process| process.grown.unwrap_or(0), ratio, sheet);
        }
        self.now.sort_unstable_by_key(|process| Reverse((process.pages, process.pid)));
        let page_bytes = self.page_bytes;
        self.put_top(MEMORY, |process| process.pages, |n| n.checked_mul(page_bytes), sheet);
    }

    /// The first [`TOP`] of `now` by name, and the sum of the others.
    fn put_top(
        &self,
        shape: u8,
        amount: impl Fn(&Process) -> u64,
        value: impl Fn(u64) -> Option<u64>,
        sheet: &mut Sheet,
    ) {
        for process in self.now.iter().take(TOP).filter(|process| 0 < amount(process)) {
            let mut key = [0; 36];
            let length = process.key(&mut key);
            let key = key.get(..length).unwrap_or(&[]);
            sheet.put(shape, key, &[value(amount(process))], Repair::None);
        }
        let others = self.now.iter().skip(TOP).map(&amount);
        let others = others.fold(0_u64, u64::saturating_add);
        sheet.put(shape, b"", &[value(others)], Repair::None);
    }

    fn list(&mut self) {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        if self.dir.is_none() {
            self.dir = Dir::open(&self.procfs, flags, Mode::empty()).ok();
        }
        let Some(dir) = &mut self.dir else { return };
        let Ok(base) = dir.as_fd().try_clone_to_owned() else { return };
        let mut text = [0; STAT_BYTES];
        for entry in dir.iter().flatten() {
            let name = entry.file_name().to_bytes();
            let Some(pid) = number(name).filter(|_| self.now.len() < PROCESSES_MAX) else {
                continue;
            };
            // One that ended meanwhile is not there.
            let Some(length) = read_stat(&base, name, &mut text) else { continue };
            let Some(stat) = text.get(..length).and_then(|text| parse(pid, text)) else { continue };
            self.threads += stat.threads;
            let place = STATES.iter().position(|state| *state == stat.state);
            if let Some(count) = place.and_then(|place| self.states.get_mut(place)) {
                *count += 1;
            }
            let known = self.before.binary_search_by_key(&pid, |process| process.pid);
            let known = known.ok().and_then(|at| self.before.get(at));
            let same = known.filter(|known| known.started == stat.process.started);
            let grown = same.map(|known| stat.process.ticks.saturating_sub(known.ticks));
            self.now.push(Process { grown, ..stat.process });
        }
    }
}

/// The text of `PID/stat` below `base`; how long it is.
fn read_stat(base: &OwnedFd, pid: &[u8], text: &mut [u8; STAT_BYTES]) -> Option<usize> {
    let mut path = [0; 32];
    let (first, rest) = path.split_at_mut_checked(pid.len())?;
    first.copy_from_slice(pid);
    rest.get_mut(..STAT.len())?.copy_from_slice(STAT);
    let path = std::str::from_utf8(path.get(..pid.len() + STAT.len())?).ok()?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = nix::fcntl::openat(base, path, flags, Mode::empty()).ok()?;
    File::from(file).read(text).ok()
}

impl Process {
    /// `4711 name` into `key`; how long it is.
    fn key(&self, key: &mut [u8; 36]) -> usize {
        let digits = super::net_tables::Digits::new(self.pid);
        let name = self.name.bytes.get(..self.name.length).unwrap_or(&[]);
        let mut length = 0;
        for part in [digits.bytes(), b" ", name] {
            let end = length + part.len();
            if let Some(room) = key.get_mut(length..end) {
                room.copy_from_slice(part);
                length = end;
            }
        }
        length
    }
}

/// `4711 (a name) S 1 …`: the name may hold anything, so it ends with the last `)`.
fn parse(pid: u64, text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let name = text.get(open + 1..close)?;
    let mut words = words(text.get(close + 1..)?);
    let state = *words.next()?.first()?;
    // Fields 14 and 15 of proc_pid_stat(5) are user and system time; 20 are the threads, 22 the start, 24
    // the resident pages.
    let user = words.nth(10).and_then(number)?;
    let system = words.next().and_then(number)?;
    let threads = words.nth(4).and_then(number)?;
    let started = words.nth(1).and_then(number)?;
    let pages = words.nth(1).and_then(number)?;
    let mut bytes = [0; 16];
    let length = name.len().min(bytes.len());
    bytes.get_mut(..length)?.copy_from_slice(name.get(..length)?);
    let name = Name { bytes, length };
    let ticks = user.checked_add(system)?;
    let process = Process { pid, started, ticks, pages, grown: None, name };
    Some(Stat { process, state, threads })
}

pub(super) fn columns(shape: u8, key: &str) -> Vec<Column> {
    let (pid, name) = key.split_once(' ').unwrap_or(("", "other"));
    let labels = [("pid", pid), ("comm", name)];
    match shape {
        TOTALS => {
            vec![
                column("node_processes_threads", &[], GAUGE),
                column("node_processes_pids", &[], GAUGE),
            ]
        }
        STATE => vec![column("node_processes_state", &[("state", key)], GAUGE)],
        CPU => vec![column("strobe_process_cpu_ratio", &labels, Kind::Gauge { scale: 9 })],
        _ => vec![column("strobe_process_resident_bytes", &labels, GAUGE)],
    }
}

const TOTALS: u8 = 0;
const STATE: u8 = 1;
const CPU: u8 = 2;
const MEMORY: u8 = 3;
/// How many are named, by each measure.
const TOP: usize = 10;
const PROCESSES_MAX: usize = 65_536;
const STAT: &[u8] = b"/stat";
/// 52 numbers and a name.
const STAT_BYTES: usize = 1024;
const STATES: [u8; 9] = *b"RSDZTtXIP";

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::readers::sheet::{Outcome, Vanish};

    fn read(processes: &mut Processes, now_ns: u64) -> Vec<(String, u64)> {
        let mut sheet = Sheet::new(Vanish::Go);
        sheet.learn();
        let passed_ns = processes.walk(now_ns);
        processes.put(passed_ns, &mut sheet);
        sheet.learned();
        assert_eq!(sheet.end(), Outcome::Same);
        let entries = sheet.entries().iter();
        let columns = entries
            .flat_map(|entry| columns(entry.shape, std::str::from_utf8(&entry.key).unwrap()));
        columns
            .enumerate()
            .map(|(at, column)| {
                let labels: Vec<_> =
                    column.labels.0.iter().map(|(_, value)| value.as_str()).collect();
                (format!("{}{{{}}}", column.name, labels.join(",")), sheet.value(at).unwrap())
            })
            .collect()
    }

    /// Twelve processes: ten are named, two are `other`, and the sum is that of all.
    #[test]
    fn the_busiest_are_named_and_the_rest_is_exact() {
        let root = std::env::temp_dir().join(format!("strobe-processes-{}", std::process::id()));
        let write = |pid: u64, name: &str, ticks: u64, started: u64| {
            let dir = root.join(pid.to_string());
            std::fs::create_dir_all(&dir).unwrap();
            let text = format!(
                "{pid} ({name}) S 1 1 1 0 -1 4194560 1 2 3 4 {ticks} 5 0 0 20 0 3 0 {started} 9 {} 1",
                100 * pid
            );
            std::fs::write(dir.join("stat"), text).unwrap();
        };
        (1..=12).for_each(|pid| write(pid, "a) S (b", 1000, 7));
        let mut processes = Processes::new(&root, 4096);
        let first = read(&mut processes, 1_000_000_000);
        let value = |found: &[(String, u64)], name: &str| {
            found.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
        };
        assert_eq!(value(&first, "node_processes_threads{}"), Some(36));
        assert_eq!(value(&first, "node_processes_state{S}"), Some(12));
        assert!(first.iter().all(|(name, _)| !name.starts_with("strobe_process_cpu")));
        let memory = "strobe_process_resident_bytes";
        assert_eq!(value(&first, &format!("{memory}{{a) S (b,12}}")), Some(1200 * 4096));
        assert_eq!(value(&first, &format!("{memory}{{other}}")), Some(300 * 4096));
        // In ten seconds each runs for as many ticks as its number; 5 is another process.
        (1..=12).filter(|pid| *pid != 5).for_each(|pid| write(pid, "x", 1000 + pid, 7));
        write(5, "x", 1_000_000, 99);
        let second = read(&mut processes, 11_000_000_000);
        let ratio = |name: &str| value(&second, &format!("strobe_process_cpu_ratio{{{name}}}"));
        assert_eq!((ratio("x,12"), ratio("x,5")), (Some(12_000_000), None));
        let all: u64 =
            second.iter().filter(|(name, _)| name.contains("cpu_ratio")).map(|(_, v)| v).sum();
        assert_eq!(all, (78 - 5) * 1_000_000);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn torn_files_are_no_processes() {
        let whole = b"1 (init) S 0 1 1 0 -1 4 1 2 3 4 10 5 0 0 20 0 3 0 7 9 100 1";
        assert!(parse(1, whole).is_some());
        for end in 0..whole.len() - 6 {
            assert!(parse(1, &whole[..end]).is_none(), "{end}");
        }
        assert!(parse(1, b"1 )x( S 1").is_none());
    }
}
