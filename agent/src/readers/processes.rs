//! Processes: totals as node_exporter has them. Which of them are busy is told by [`super::tasks`].
//!
//! One walk of /proc opens each `stat` once.

use super::names::Names;
use super::sheet::{Repair, Sheet};
use super::tasks::stat::{Stat, open};
use super::text::number;
use super::{GAUGE, column};
use std::io::Read;
use std::path::Path;
use strobe_wire::schema::Column;

/// Sums over all of them.
#[derive(Debug)]
pub(crate) struct Processes {
    names: Names,
    pids: Vec<u64>,
    count: u64,
    threads: u64,
    states: [u64; STATES.len()],
}

impl Processes {
    pub(crate) fn new(procfs: &Path) -> Self {
        let (count, threads, states) = (0, 0, [0; STATES.len()]);
        Self { names: Names::new(procfs), pids: Vec::new(), count, threads, states }
    }

    /// Reads every `stat`.
    pub(super) fn walk(&mut self) {
        (self.count, self.threads, self.states) = (0, 0, [0; STATES.len()]);
        let pids = &mut self.pids;
        pids.clear();
        self.names.each(|name| {
            pids.extend(number(name).filter(|_| pids.len() < PROCESSES_MAX));
        });
        let Some(base) = self.names.dir() else { return };
        let mut text = [0; STAT_BYTES];
        for pid in &self.pids {
            // One that ended meanwhile is not there.
            let read = open(base, *pid, b"stat").and_then(|mut file| file.read(&mut text).ok());
            let stat = read.and_then(|length| Stat::parse(text.get(..length)?));
            let Some(stat) = stat else { continue };
            self.count += 1;
            self.threads += stat.threads;
            let place = STATES.iter().position(|state| *state == stat.state);
            if let Some(count) = place.and_then(|place| self.states.get_mut(place)) {
                *count += 1;
            }
        }
    }

    pub(super) fn put(&self, sheet: &mut Sheet) {
        if self.count == 0 {
            return;
        }
        sheet.put(TOTALS, b"", &[Some(self.threads), Some(self.count)], Repair::None);
        for (state, count) in STATES.iter().zip(self.states) {
            sheet.put(STATE, &[*state], &[Some(count)], Repair::None);
        }
    }
}

pub(super) fn columns(shape: u8, key: &str) -> Vec<Column> {
    match shape {
        TOTALS => {
            let names = ["node_processes_threads", "node_processes_pids"];
            names.map(|name| column(name, &[], GAUGE)).into()
        }
        _ => vec![column("node_processes_state", &[("state", key)], GAUGE)],
    }
}

const TOTALS: u8 = 0;
const STATE: u8 = 1;
const PROCESSES_MAX: usize = 65_536;
/// 52 numbers and a name.
const STAT_BYTES: usize = 1024;
const STATES: [u8; 9] = *b"RSDZTtXIP";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readers::sheet::Vanish;

    #[test]
    fn all_are_counted() {
        let root = std::env::temp_dir().join(format!("strobe-processes-{}", std::process::id()));
        for pid in 1..=12 {
            let dir = root.join(pid.to_string());
            std::fs::create_dir_all(&dir).unwrap();
            let text =
                format!("{pid} (a) S (b) S 1 1 1 0 -1 4 1 2 3 4 10 5 0 0 20 0 3 0 7 9 100 1");
            std::fs::write(dir.join("stat"), text).unwrap();
        }
        // One that ended between the list and the reading, and what is no process.
        std::fs::create_dir_all(root.join("13")).unwrap();
        std::fs::create_dir_all(root.join("net")).unwrap();
        let (mut processes, mut sheet) = (Processes::new(&root), Sheet::new(Vanish::Go));
        sheet.learn();
        processes.walk();
        processes.put(&mut sheet);
        sheet.learned();
        let values: Vec<_> = (0..4).map(|at| sheet.value(at)).collect();
        assert_eq!(values, [Some(36), Some(12), Some(0), Some(12)]);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
