//! Real faults of disks and clocks: disks that are full, lose their power, fail a sync; clocks that step.
//!
//! Each test has file systems of its own (ext4 in a file, mounted by a loop device, or a tmpfs) under the
//! state directories of its brokers, and takes them away whatever becomes of it. What decides is the
//! same each time: every frame that an agent was acknowledged is in a broker's log, and every row of it is
//! answered once.

#[path = "disks/calls.rs"]
mod calls;
#[path = "disks/clocks.rs"]
mod clocks;
#[path = "disks/cuts.rs"]
mod cuts;
#[path = "disks/disk.rs"]
mod disk;
#[path = "disks/full.rs"]
mod full;
#[path = "disks/programs.rs"]
mod programs;
#[expect(dead_code, reason = "most of it is for what a cluster goes through")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use strobe_tests::{pause, wait};
use strobe_wire::ids::HostId;
use support::judge::numbers;
use support::{Agents, Cluster, now};

/// Everything ends, and what was acknowledged is in a log and answered once; how many frames that is.
fn judge(mut cluster: Cluster, agents: Agents) -> u64 {
    cluster.keep_logs();
    let acknowledged = agents.stop();
    let brokers = cluster.count();
    let count = "sum by (instance) (count_over_time(node_load1[9d]))";
    wait("all are asked", 30, || (0..brokers).all(|at| cluster.query(at, count).1.is_empty()));
    let counted: Vec<_> = (0..brokers).map(|at| cluster.query(at, count).0).collect();
    cluster.stop();
    let dirs: Vec<String> = (0..brokers).map(|at| cluster.dir(at)).collect();
    let frames = assert_stored(&dirs, &acknowledged);
    let stored = cluster.moments("node_load1");
    assert!(counted.iter().all(|counted| *counted == stored), "{counted:?}\n{stored:?}");
    frames
}

/// Of every host, each frame that was acknowledged is in the log of a broker. A power cut may have torn
/// the end of a log, behind what was synced.
fn assert_stored(dirs: &[String], acknowledged: &BTreeMap<HostId, u64>) -> u64 {
    let mut held = BTreeMap::<HostId, BTreeSet<u64>>::new();
    for dir in dirs {
        let dir = std::path::Path::new(dir);
        for log in std::fs::read_dir(dir.join("kept")).expect("kept logs").flatten() {
            let to = dir.join("store/wal").join(log.file_name());
            // It is there still, or is put back.
            drop(std::fs::hard_link(log.path(), to));
        }
        for (host, numbers) in numbers(dir).0 {
            held.entry(host).or_default().extend(numbers);
        }
    }
    for (host, &through) in acknowledged {
        let held = held.get(host).unwrap_or_else(|| panic!("nothing of {host} is stored"));
        let missing: Vec<u64> = (1..=through).filter(|seq| !held.contains(seq)).collect();
        assert!(missing.is_empty(), "{host}: acknowledged and not stored: {missing:?}");
    }
    acknowledged.values().sum()
}

/// Waits until nothing was acknowledged to anyone for a while.
fn wait_for_silence(agents: &Agents) {
    let (begun, mut last, mut since) = (now(), agents.acknowledged(), now());
    while since.elapsed() < Duration::from_millis(2500) {
        assert!(begun.elapsed() < Duration::from_secs(20), "something is still acknowledged");
        pause(50);
        let seen = agents.acknowledged();
        if seen != last {
            (last, since) = (seen, now());
        }
    }
}

/// The program of a broker, and what is set before it.
fn broker(before: &[String], arguments: &[&str]) -> Vec<String> {
    let program = strobe_tests::binary("strobe-broker").display().to_string();
    let arguments = arguments.iter().map(|&argument| argument.to_owned());
    before.iter().cloned().chain([program]).chain(arguments).collect()
}
