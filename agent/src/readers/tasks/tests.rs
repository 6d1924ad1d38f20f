//! What holds of tasks, whatever comes and goes.

#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use super::*;
use crate::readers::sheet::{Outcome, Vanish};
use std::collections::BTreeMap;

const SECOND: u64 = 1_000_000_000;
const PAGE: u64 = 4096;

/// A /proc in a directory of its own.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let name = format!("strobe-tasks-{name}-{}", std::process::id());
        let shared = Path::new("/dev/shm");
        let base = if shared.is_dir() { shared.into() } else { std::env::temp_dir() };
        let tree = Self(base.join(name));
        let _ = std::fs::remove_dir_all(&tree.0);
        std::fs::create_dir_all(&tree.0).unwrap();
        tree
    }

    fn host(&self, ticks: u64, kib: u64) {
        let text = format!("cpu  {ticks} 0 0 999 5 5 5 5 0 0\ncpu0 1 2 3\n");
        std::fs::write(self.0.join("stat"), text).unwrap();
        let text = format!("nr_free_pages 5\npgpgin {kib}\npgpgout 0\n");
        std::fs::write(self.0.join("vmstat"), text).unwrap();
    }

    fn process(&self, pid: u64, started: u64, (ticks, pages, read): (u64, u64, u64)) {
        let dir = self.0.join(pid.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let text = format!(
            "{pid} (p{pid}) S 1 1 1 0 -1 4194560 1 2 3 4 {ticks} 0 0 0 20 0 3 0 {started} 9 {pages} 1"
        );
        std::fs::write(dir.join("stat"), text).unwrap();
        let text =
            format!("rchar: 1\nread_bytes: {read}\nwrite_bytes: 0\ncancelled_write_bytes: 0\n");
        std::fs::write(dir.join("io"), text).unwrap();
    }

    fn end(&self, pid: u64) {
        // The kernel answers ESRCH to who kept it open; a file that is emptied says as little.
        let dir = self.0.join(pid.to_string());
        std::fs::write(dir.join("stat"), "").unwrap();
        std::fs::write(dir.join("io"), "").unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read(
    tasks: &mut Tasks,
    sheet: &mut Sheet,
    now_ns: u64,
) -> (BTreeMap<String, Option<u64>>, bool) {
    tasks.read(now_ns);
    sheet.begin();
    tasks.put(sheet);
    let changed = sheet.end() == Outcome::Changed;
    if changed {
        sheet.learn();
        tasks.put(sheet);
        sheet.learned();
    }
    let columns = sheet.entries().iter().flat_map(|entry| {
        let columns = columns(entry.shape, &entry.key);
        assert_eq!(columns.len(), entry.count);
        columns
    });
    let named = columns.enumerate().map(|(at, column)| {
        let labels: Vec<_> = column.labels.0.iter().map(|(_, value)| value.as_str()).collect();
        let name = column.name.strip_prefix("strobe_process").unwrap();
        (format!("{name}{{{}}}", labels.join(",")), sheet.value(at))
    });
    (named.collect(), changed)
}

#[test]
fn the_busiest_and_largest_are_named_and_the_rest_is_exact() {
    let tree = Tree::new("top");
    let write = |second: u64| {
        for pid in 1..=40 {
            // The first twenty use the processors, the last twenty memory.
            let busy = pid.min(20) % 20;
            tree.process(pid, 7, (1000 + second * busy, 1000 * pid, 0));
        }
        tree.host(5_000_000 + second * 300, 77);
    };
    write(0);
    let (mut tasks, mut sheet) = (Tasks::new(&tree.0, PAGE), Sheet::new(Vanish::Go));
    read(&mut tasks, &mut sheet, 100 * SECOND);
    let mut last = BTreeMap::new();
    for second in 1..=31 {
        write(second);
        last = read(&mut tasks, &mut sheet, (100 + second) * SECOND).0;
    }
    for (name, wanted) in [
        ("_cpu_seconds_total{p19,19}", Some(1000 + 31 * 19)),
        ("_cpu_seconds_total{p10,10}", Some(1000 + 31 * 10)),
        ("_resident_bytes{p40,40}", Some(40_000 * PAGE)),
        ("_read_bytes_total{p40,40}", Some(0)),
        ("_read_bytes_total{other}", Some(0)),
        ("es{}", Some(40)),
    ] {
        assert_eq!(last.get(name).copied().flatten(), wanted, "{name} {last:?}");
    }
    assert_eq!(last.get("_cpu_seconds_total{p2,2}"), None);
    let memory = last.iter().filter(|(name, _)| name.starts_with("_resident_bytes"));
    assert_eq!(memory.map(|(_, value)| value.unwrap()).sum::<u64>(), 820_000 * PAGE);
}

/// Sixty processes that come and go, and numbers that are given again: what is told by name and
/// `other` add up to what the host used, and nothing falls.
#[test]
fn processes_come_and_go_and_numbers_are_given_again() {
    (1..=5).for_each(come_and_go);
}

fn come_and_go(mut seed: u64) {
    let tree = Tree::new(&format!("churn-{seed}"));
    let mut roll = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    let mut used: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let (mut tasks, mut sheet) = (Tasks::new(&tree.0, PAGE), Sheet::new(Vanish::Go));
    let (mut host, mut first, mut told) = (10_000, 10_000, 0);
    let mut before: BTreeMap<String, u64> = BTreeMap::new();
    let mut changes = 0;
    for second in 0..60 {
        for pid in 1..=60 {
            if used.contains_key(&pid) && roll(15) == 0 {
                host += 3;
                used.remove(&pid);
                tree.end(pid);
            }
            if !used.contains_key(&pid) && roll(6) == 0 {
                used.insert(pid, (100 + second, 0));
            }
        }
        for (pid, (started, ticks)) in &mut used {
            let busy = roll(3) * roll(100);
            *ticks += busy;
            host += busy;
            tree.process(*pid, *started, (*ticks, roll(1000), 0));
        }
        tree.host(host, 0);
        if second == 0 {
            first = host;
        }
        let (values, changed) = read(&mut tasks, &mut sheet, (100 + second) * SECOND);
        changes += u64::from(changed);
        before.retain(|name, _| values.contains_key(name));
        for (name, value) in &values {
            let Some(now) = value.filter(|_| name.starts_with("_cpu")) else { continue };
            if let Some(before) = before.insert(name.clone(), now) {
                assert!(!name.contains("other") || before <= now, "{second}: other fell");
                told += growth(before, now);
            }
        }
        let named = values.keys().filter(|name| name.starts_with("_cpu")).count();
        assert!(named <= 26, "{named}");
    }
    assert_eq!(told, host - first);
    assert!(changes <= 7, "the set is chosen once in ten seconds: {changes}");
}

#[test]
fn this_host_is_read() {
    let (mut tasks, mut sheet) = (Tasks::new(Path::new("/proc"), PAGE), Sheet::new(Vanish::Go));
    let (values, changed) = read(&mut tasks, &mut sheet, 100 * SECOND);
    assert!(changed && values["_cpu_seconds_total{other}"] == Some(0));
    assert!(Some(1) < values["es{}"]);
    assert!(
        values.keys().any(|name| name.starts_with("_resident_bytes") && !name.contains("other"))
    );
}
