//! Who uses the CPUs at the moment of a burst: the five busiest processes and cgroups.
//!
//! A thread looks at all of them twice, half a second apart, and ends. It exists only while a burst
//! begins; nobody waits for it, and while it is at it no other is started.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;

/// Where to look, and by which clock in ns.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) procfs: PathBuf,
    pub(super) cgroups: PathBuf,
    pub(super) clock: fn() -> u64,
}

/// What one of them used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Use {
    pub(super) metric: &'static str,
    pub(super) labels: Vec<(&'static str, String)>,
    /// CPUs, in ten thousandths.
    pub(super) ratio_e4: u64,
}

#[derive(Debug)]
pub(super) struct Top {
    places: Places,
    answer: Option<Receiver<Vec<Use>>>,
}

/// Microseconds of CPU by name, at a moment.
struct Look {
    at_ns: u64,
    processes: HashMap<(u64, String), u64>,
    cgroups: HashMap<String, u64>,
}

impl Top {
    pub(super) fn new(places: Places) -> Self {
        Self { places, answer: None }
    }

    /// Looks, unless it is looking.
    pub(super) fn ask(&mut self) {
        if self.answer.is_some() {
            return;
        }
        let (give, take) = channel();
        let places = self.places.clone();
        let body = move || look_twice(&places, &give);
        let started = std::thread::Builder::new().name("strobe-top".to_owned()).spawn(body);
        // Without a thread there is a burst without names.
        self.answer = started.is_ok().then_some(take);
    }

    /// What was found, once; nothing of a thread that could not be started.
    pub(super) fn found(&mut self) -> Option<Vec<Use>> {
        let Some(answer) = &self.answer else { return Some(Vec::new()) };
        match answer.try_recv() {
            Err(TryRecvError::Empty) => None,
            found => {
                self.answer = None;
                Some(found.unwrap_or_default())
            }
        }
    }
}

fn look_twice(places: &Places, give: &Sender<Vec<Use>>) {
    let before = Look::new(places);
    // Nobody ever sends; it ends early if the sender is dropped, which it is not.
    let (_keep, pause) = channel::<()>();
    if pause.recv_timeout(PAUSE) == Err(RecvTimeoutError::Disconnected) {
        return;
    }
    let now = Look::new(places);
    // Who asked may have ended.
    let _ = give.send(now.since(&before));
}

impl Look {
    fn new(places: &Places) -> Self {
        let mut look =
            Self { at_ns: (places.clock)(), processes: HashMap::new(), cgroups: HashMap::new() };
        let names = std::fs::read_dir(&places.procfs).into_iter().flatten().flatten();
        for entry in names.take(NAMES_MAX) {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u64>().ok()) else {
                continue;
            };
            let Ok(stat) = std::fs::read(entry.path().join("stat")) else { continue };
            if let Some((comm, ticks)) = process(&stat) {
                look.processes.insert((pid, comm), ticks.saturating_mul(US_A_TICK));
            }
        }
        look.add_cgroups(&places.cgroups, "", 0);
        look
    }

    fn add_cgroups(&mut self, dir: &Path, name: &str, depth: usize) {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries {
            let child = format!("{name}/{}", entry.file_name().to_string_lossy());
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if !is_dir || NAMES_MAX <= self.cgroups.len() || DEPTH_MAX <= depth {
                continue;
            }
            let stat = std::fs::read_to_string(entry.path().join("cpu.stat"));
            let used = stat.ok().and_then(|stat| {
                let line = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
                line?.trim().parse().ok()
            });
            if let Some(used) = used {
                self.cgroups.insert(child.clone(), used);
            }
            self.add_cgroups(&entry.path(), &child, depth + 1);
        }
    }

    /// The busiest since a look before.
    fn since(&self, before: &Self) -> Vec<Use> {
        let passed_us = (self.at_ns.saturating_sub(before.at_ns) / 1000).max(1);
        let ratio = |used_us: u64| used_us.saturating_mul(10_000) / passed_us;
        let processes = self.processes.iter().map(|(name, used)| {
            let used = used.saturating_sub(*before.processes.get(name).unwrap_or(used));
            let labels = vec![("pid", name.0.to_string()), ("comm", name.1.clone())];
            Use { metric: PROCESS, labels, ratio_e4: ratio(used) }
        });
        let cgroups = self.cgroups.iter().map(|(name, used)| {
            let used = used.saturating_sub(*before.cgroups.get(name).unwrap_or(used));
            let labels = vec![("cgroup", name.clone())];
            Use { metric: CGROUP, labels, ratio_e4: ratio(used) }
        });
        let mut found = busiest(processes.collect());
        found.extend(busiest(cgroups.collect()));
        found
    }
}

fn busiest(mut all: Vec<Use>) -> Vec<Use> {
    all.retain(|one| 0 < one.ratio_e4);
    all.sort_by(|a, b| b.ratio_e4.cmp(&a.ratio_e4).then_with(|| a.labels.cmp(&b.labels)));
    all.truncate(TOP);
    all
}

/// `pid (comm) state …`: the name, and user and system ticks.
fn process(stat: &[u8]) -> Option<(String, u64)> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let comm = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    let rest = str::from_utf8(stat.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some((comm, user.saturating_add(system)))
}

const TOP: usize = 5;
const PAUSE: Duration = Duration::from_millis(500);
const PROCESS: &str = "strobe_burst_process_cpu_ratio";
const CGROUP: &str = "strobe_burst_cgroup_cpu_ratio";
/// USER_HZ is 100.
const US_A_TICK: u64 = 10_000;
const NAMES_MAX: usize = 32_768;
const DEPTH_MAX: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_call_itself_anything() {
        let stat = b"7 (a) b (c) R 1 1 1 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 1 0 5 0 0";
        assert_eq!(process(stat), Some(("a) b (c".to_owned(), 42)));
        assert_eq!((process(b""), process(b"7 (x R 1"), process(b")(")), (None, None, None));
    }

    #[test]
    fn the_busiest_five_since_the_look_before() {
        let look = |at_us: u64, used: &[u64]| Look {
            at_ns: at_us * 1000,
            processes: used.iter().zip(1..).map(|(us, pid)| ((pid, "x".to_owned()), *us)).collect(),
            cgroups: HashMap::from([("/a".to_owned(), used[0])]),
        };
        let before = look(0, &[100, 100, 100, 100, 100, 100, 100]);
        // The sixth fell, which no process does: its number is another's now.
        let found = look(1000, &[600, 110, 120, 130, 140, 50, 150, 9_999]).since(&before);
        let named: Vec<_> = found.iter().map(|one| (&*one.labels[0].1, one.ratio_e4)).collect();
        let wanted = [("1", 5000), ("7", 500), ("5", 400), ("4", 300), ("3", 200), ("/a", 5000)];
        assert_eq!(named, wanted);
    }
}
