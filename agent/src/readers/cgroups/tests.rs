//! Control groups: trees of version 1 and 2, churn, and hostile files.

#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use super::*;
use crate::readers::sheet::{Outcome, Vanish};
use std::collections::BTreeMap;
use std::path::PathBuf;

const SECOND: u64 = 1_000_000_000;

/// A tree of control groups in a directory of its own.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let name = format!("strobe-cgroups-{name}-{}", std::process::id());
        // In memory where there is such a place: the tests write a lot.
        let shared = Path::new("/dev/shm");
        let base = if shared.is_dir() { shared.into() } else { std::env::temp_dir() };
        let tree = Self(base.join(name));
        let _ = std::fs::remove_dir_all(&tree.0);
        std::fs::create_dir_all(tree.0.join("fs/cgroup")).unwrap();
        tree
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join("fs/cgroup").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn cpu(&self, group: &str, used_us: u64) {
        let text =
            format!("usage_usec {used_us}\nuser_usec {used_us}\nsystem_usec 0\nnr_periods 5\n");
        self.write(&format!("{group}/cpu.stat"), &text);
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads as an engine does; every value by `name{labels}`.
fn read(groups: &mut Groups, sheet: &mut Sheet, now_ns: u64) -> BTreeMap<String, u64> {
    let named = read_all(groups, sheet, now_ns).0.into_iter();
    named.filter_map(|(name, value)| Some((name, value?))).collect()
}

/// The same with columns without values; whether the columns are others.
fn read_all(
    groups: &mut Groups,
    sheet: &mut Sheet,
    now_ns: u64,
) -> (BTreeMap<String, Option<u64>>, bool) {
    groups.read(now_ns);
    sheet.begin();
    groups.put(sheet);
    let changed = sheet.end() == Outcome::Changed;
    if changed {
        sheet.learn();
        groups.put(sheet);
        sheet.learned();
    }
    let columns = sheet.entries().iter().flat_map(|entry| {
        let columns = columns(entry.shape, &entry.key);
        assert_eq!(columns.len(), entry.count);
        columns
    });
    let named = columns.enumerate().map(|(at, column)| {
        let labels: Vec<_> = column.labels.0.iter().map(|(_, value)| value.as_str()).collect();
        let name = column.name.strip_prefix("strobe_cgroup").unwrap();
        (format!("{name}{{{}}}", labels.join(",")), sheet.value(at))
    });
    (named.collect(), changed)
}

const VERSION_2: [(&str, &str); 13] = [
    (
        "cpu.stat",
        "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\ncore_sched.force_idle_usec 0\n\
             nr_periods 7\nnr_throttled 2\nthrottled_usec 50\nnr_bursts 0\nburst_usec 0\n",
    ),
    ("memory.current", "9000000\n"),
    ("memory.max", "max\n"),
    ("memory.high", "12000000\n"),
    ("memory.swap.current", "4096\n"),
    ("memory.stat", "anon 5\nfile 6\nkernel 7\nkernel_stack 8\nshmem 1\ninactive_file 9\n"),
    ("memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n"),
    (
        "io.stat",
        "8:0 rbytes=100 wbytes=200 rios=3 wios=4 dbytes=0 dios=0\n\
             253:1 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0 \n",
    ),
    ("pids.current", "12\n"),
    ("pids.max", "max\n"),
    (
        "cpu.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 \
             avg300=0.00 total=6\n",
    ),
    ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"),
    ("io.pressure", ""),
];

#[test]
fn every_file_of_version_2_is_told() {
    let tree = Tree::new("v2");
    tree.write("cgroup.controllers", "cpu io memory pids\n");
    tree.write("cpu.stat", "usage_usec 9000\nuser_usec 4000\nsystem_usec 1000\n");
    tree.write("io.stat", "8:0 rbytes=900 wbytes=800 rios=70 wios=60 dbytes=0 dios=0\n");
    for (file, text) in VERSION_2 {
        tree.write(&format!("system.slice/a b.service/{file}"), text);
    }
    let (mut groups, mut sheet) = (Groups::new(&tree.0), Sheet::new(Vanish::Go));
    let values = read(&mut groups, &mut sheet, 100 * SECOND);
    let label = "/system.slice/a b.service";
    let wanted = [
        ("_cpu_seconds_total", 3_000_000),
        ("_cpu_user_seconds_total", 2_000_000),
        ("_cpu_system_seconds_total", 1_000_000),
        ("_cpu_periods_total", 7),
        ("_cpu_throttled_periods_total", 2),
        ("_cpu_throttled_seconds_total", 50_000),
        ("_memory_bytes", 9_000_000),
        ("_memory_high_bytes", 12_000_000),
        ("_memory_swap_bytes", 4096),
        ("_memory_anon_bytes", 5),
        ("_memory_file_bytes", 6),
        ("_memory_kernel_bytes", 7),
        ("_memory_inactive_file_bytes", 9),
        ("_io_read_bytes_total", 101),
        ("_io_written_bytes_total", 202),
        ("_io_reads_total", 6),
        ("_io_writes_total", 8),
        ("_pids", 12),
        ("_pressure_cpu_waiting_seconds_total", 5000),
        ("_pressure_cpu_stalled_seconds_total", 6000),
        ("_pressure_memory_waiting_seconds_total", 7000),
    ];
    let mut left = values;
    for (name, value) in wanted {
        assert_eq!(left.remove(&format!("{name}{{{label}}}")), Some(value), "{name}");
    }
    for (event, count) in [("high", 1), ("max", 2), ("oom", 3), ("oom_kill", 4)] {
        let name = format!("_memory_events_total{{{label},{event}}}");
        assert_eq!(left.remove(&name), Some(count), "{name}");
    }
    // No limit is no value, a file without a line none either; and `other` begins with nothing.
    let rest: Vec<_> = left.iter().map(|(name, value)| (&**name, *value)).collect();
    assert_eq!(
        rest,
        [
            ("_cpu_seconds_total{other}", 0),
            ("_cpu_system_seconds_total{other}", 0),
            ("_cpu_user_seconds_total{other}", 0),
            ("_io_read_bytes_total{other}", 0),
            ("_io_reads_total{other}", 0),
            ("_io_writes_total{other}", 0),
            ("_io_written_bytes_total{other}", 0),
            ("s_refused{}", 0),
            ("s{}", 2),
        ]
    );
}

#[test]
fn version_1_is_told_from_its_hierarchies() {
    let tree = Tree::new("v1");
    for (file, text) in [
        ("cpuacct/cpuacct.usage", "5000\n"),
        ("cpuacct/cpuacct.stat", "user 30\nsystem 20\n"),
        ("memory/memory.usage_in_bytes", "70000000\n"),
        ("memory/memory.stat", "cache 1\ntotal_cache 500\ntotal_rss 600\n"),
        ("blkio/blkio.throttle.io_service_bytes_recursive", "Total 0\n"),
        ("cpuacct/job/cpuacct.usage", "4000\n"),
        ("cpuacct/job/cpuacct.stat", "user 3\nsystem 2\n"),
        ("cpu/job/cpu.stat", "nr_periods 9\nnr_throttled 8\nthrottled_time 7\n"),
        ("memory/job/memory.usage_in_bytes", "20000000\n"),
        ("memory/job/memory.limit_in_bytes", "9223372036854771712\n"),
        (
            "memory/job/memory.stat",
            "cache 1\nrss 2\ntotal_cache 300\ntotal_rss 400\ntotal_swap 5\n",
        ),
        ("memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 6\n"),
        (
            "blkio/job/blkio.throttle.io_service_bytes_recursive",
            "8:0 Read 10\n8:0 Write 20\n8:0 Sync 5\n8:0 Total 30\n9:0 Read 1\nTotal 31\n",
        ),
        ("blkio/job/blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
        ("pids/job/pids.current", "3\n"),
        ("pids/job/pids.max", "100\n"),
        ("unified/job/cpu.pressure", "some avg10=0 avg60=0 avg300=0 total=2\n"),
        // Only where memory is counted.
        ("memory/only/memory.usage_in_bytes", "30000000\n"),
    ] {
        tree.write(file, text);
    }
    let (mut groups, mut sheet) = (Groups::new(&tree.0), Sheet::new(Vanish::Go));
    read(&mut groups, &mut sheet, 100 * SECOND);
    tree.write("blkio/job/blkio.throttle.io_service_bytes_recursive", "8:0 Read 11\n");
    tree.write("cpuacct/cpuacct.usage", "5900\n");
    tree.write("cpuacct/job/cpuacct.usage", "4500\n");
    let values = read(&mut groups, &mut sheet, 110 * SECOND);
    for (name, wanted) in [
        ("_cpu_seconds_total{/job}", Some(4500)),
        ("_cpu_seconds_total{other}", Some(400)),
        ("_cpu_user_seconds_total{/job}", Some(30_000_000)),
        ("_cpu_throttled_seconds_total{/job}", Some(7)),
        ("_memory_bytes{/job}", Some(20_000_000)),
        ("_memory_bytes{/only}", Some(30_000_000)),
        ("_memory_bytes{other}", Some(20_000_000)),
        ("_memory_anon_bytes{/job}", Some(400)),
        ("_memory_anon_bytes{other}", Some(200)),
        ("_memory_limit_bytes{/job}", None),
        ("_memory_events_total{/job,oom_kill}", Some(6)),
        ("_io_read_bytes_total{/job}", Some(11)),
        ("_io_written_bytes_total{/job}", Some(0)),
        ("_io_writes_total{/job}", Some(2)),
        ("_io_read_bytes_total{other}", Some(0)),
        ("_io_writes_total{other}", None),
        ("_pids{/job}", Some(3)),
        ("_pids_limit{/job}", Some(100)),
        ("_pressure_cpu_waiting_seconds_total{/job}", Some(2000)),
        ("s{}", Some(2)),
    ] {
        assert_eq!(values.get(name).copied(), wanted, "{name}: {values:?}");
    }
}

/// Fifty groups, of which forty come and go while they work: what is told and `other` add up to what
/// the host used, and nothing falls.
#[test]
fn groups_come_and_go_and_nothing_is_lost_or_told_twice() {
    (1..=5).for_each(come_and_go);
}

fn come_and_go(mut seed: u64) {
    let tree = Tree::new("churn");
    tree.write("cgroup.controllers", "cpu\n");
    let mut used: BTreeMap<String, u64> = BTreeMap::new();
    let (mut host_us, mut told_ns) = (1_000_000_u64, 0_u64);
    let mut roll = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    let (mut groups, mut sheet) = (Groups::new(&tree.0), Sheet::new(Vanish::Go));
    let mut before: BTreeMap<String, u64> = BTreeMap::new();
    let (mut most, mut changes, mut first_us) = (0, 0, 0);
    for second in 0..60_u64 {
        for number in 0..50 {
            let group = format!("g{}.slice/{number}", number % 3);
            let is_here = used.contains_key(&group);
            if is_here && 10 <= number && roll(20) == 0 {
                // It works to the end, which nobody sees.
                host_us += 7;
                used.remove(&group);
                std::fs::remove_dir_all(tree.0.join("fs/cgroup").join(&group)).unwrap();
            } else if !is_here && roll(10) == 0 {
                used.insert(group, 0);
            }
        }
        for (group, used) in &mut used {
            let busy = roll(4) * roll(30_000);
            *used += busy;
            host_us += busy;
            tree.cpu(group, *used);
        }
        for slice in ["g0.slice", "g1.slice", "g2.slice"] {
            tree.cpu(slice, 1);
        }
        tree.cpu(".", host_us);
        if second == 0 {
            first_us = host_us;
        }
        let (values, changed) = read_all(&mut groups, &mut sheet, (100 + second) * SECOND);
        changes += u64::from(changed);
        let cpu = |name: &&String| name.starts_with("_cpu_seconds_total");
        most = most.max(values.keys().filter(cpu).count());
        // A series without a sample is the same when it has one again, as long as it is told.
        before.retain(|name, _| values.contains_key(name));
        for (name, value) in &values {
            let Some(now) = value.filter(|_| cpu(&name)) else { continue };
            if let Some(before) = before.insert(name.clone(), now) {
                told_ns += growth(before, now);
                assert!(!name.contains("other") || before <= now, "{second}: other fell");
            }
        }
    }
    assert_eq!(told_ns, (host_us - first_us) * 1000);
    assert!((10..=26).contains(&most), "{most}");
    assert!(changes <= 7, "the set is chosen once in ten seconds: {changes}");
}

/// On the host that runs the tests, whatever it has.
#[test]
fn this_host_is_read_and_a_group_that_ends_is_gone() {
    let (mut groups, mut sheet) = (Groups::new(Path::new("/sys")), Sheet::new(Vanish::Go));
    if !groups.is_there() {
        return;
    }
    let first = read(&mut groups, &mut sheet, 100 * SECOND);
    assert!(first.contains_key("_cpu_seconds_total{other}"), "{first:?}");
    let name = format!("strobe-test-{}", std::process::id());
    let dirs = ["cpuacct", "unified", "."].map(|base| Path::new("/sys/fs/cgroup").join(base));
    let dirs = dirs.map(|base| base.join(&name));
    let made: Vec<_> = dirs.iter().filter(|dir| std::fs::create_dir(dir).is_ok()).collect();
    let with = read(&mut groups, &mut sheet, 110 * SECOND);
    let count = |values: &BTreeMap<String, u64>| values["s{}"];
    let wanted = count(&first) + u64::from(!made.is_empty());
    made.iter().for_each(|dir| std::fs::remove_dir(dir).unwrap());
    // Others may come and go on a host that is at work.
    assert!(wanted <= count(&with) + 2, "{wanted} {with:?}");
    read(&mut groups, &mut sheet, 120 * SECOND);
    assert!(!groups.places.contains_key(name.as_bytes()));
    assert!(
        with["_cpu_seconds_total{other}"] <= first["_cpu_seconds_total{other}"] + 1000 * SECOND
    );
}

#[test]
fn foreign_bytes_are_no_values() {
    for spec in files::VERSION_1.iter().chain(files::VERSION_2) {
        let texts: [&[u8]; 7] = [
            b"",
            b"\xff\xfe",
            b"-1\n",
            b"99999999999999999999999\n",
            b"usage_usec 99999999999999999999\nuser_usec\nanon x\n",
            b"8:0 rbytes= wbytes\n8:0 Read\n8:0 Write -5\n",
            b"some total=\nfull avg10=1 total=18446744073709551615\nsome",
        ];
        for text in texts {
            let mut fields = Fields::NONE;
            spec.parse(text, &mut fields);
            let values: Vec<_> =
                fields.0.into_iter().flatten().filter(|value| *value != 0).collect();
            assert_eq!(values, [0; 0], "{spec:?} {:?}", String::from_utf8_lossy(text));
        }
    }
}
