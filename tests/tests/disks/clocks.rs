//! Clocks that step: libfaketime gives a broker, or an agent, another time of day.

use super::support::{Agents, Cluster};
use super::{broker, judge};
use std::path::{Path, PathBuf};
use strobe_tests::{Folder, Process, fake_procfs, pause, run, wait};

/// What is set before a program whose clock is to step, and the file that steps it.
fn faked(folder: &Path, name: &str) -> (Vec<String>, PathBuf) {
    let clock = folder.join(format!("{name}.clock"));
    step(&clock, "+0");
    let library = LIBRARIES.iter().find(|path| Path::new(path).exists());
    let library = library.expect("libfaketime is there; run scripts/setup test");
    let words = [
        "/usr/bin/env".to_owned(),
        format!("LD_PRELOAD={library}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "FAKETIME_DONT_FAKE_UTIME=1".to_owned(),
        "NO_FAKE_STAT=1".to_owned(),
    ];
    (words.to_vec(), clock)
}

/// At once, never half.
fn step(clock: &Path, by: &str) {
    let next = clock.with_extension("next");
    std::fs::write(&next, by).expect("writable");
    std::fs::rename(next, clock).expect("ours");
}

/// A broker of three lives an hour or a day ahead or behind for some seconds. Brokers decide by clocks that do
/// not step: nobody is elected anew, no shard moves. Rows that it takes for ones of the future are told as lost.
#[test]
fn a_broker_whose_clock_steps_stays_one_of_three() {
    let folder = Folder::new("clock-of-a-broker");
    let (before, clock) = faked(folder.path(), "broker");
    let programs = [broker(&[], &[]), broker(&before, &[]), broker(&[], &[])];
    let cluster = Cluster::of_programs("clock-of-a-broker", &programs, |_, _| {});
    let agents = Agents::start(&cluster, 6);
    agents.wait_until_all_are_heard(30);
    let leader = cluster.leader();
    let shards: Vec<u64> = (1..=3).map(|id| cluster.status(0).shards(id)).collect();
    for by in STEPS {
        step(&clock, by);
        pause(1500);
        agents.wait_until_all_are_heard(20);
        assert_eq!(cluster.leader(), leader, "{by}: elected anew");
        let then: Vec<u64> = (1..=3).map(|id| cluster.status(0).shards(id)).collect();
        assert_eq!(then, shards, "{by}: shards moved");
    }
    step(&clock, "+0");
    agents.wait_until_all_are_heard(20);
    println!("{} frames, each once", judge(cluster, agents));
}

/// A host's clock steps: rows more than ten minutes ahead or seven days behind are told as lost with their
/// reason, others are kept; its numbers have no hole and none comes twice, and it is heard all the time.
#[test]
fn an_agent_whose_clock_steps_tells_what_it_cost() {
    let folder = Folder::new("clock-of-an-agent");
    let cluster = Cluster::of_programs("clock-of-an-agent", &[broker(&[], &[])], |_, _| {});
    let agents = Agents::start(&cluster, 2);
    let (before, clock) = faked(folder.path(), "agent");
    let mut agent = stepped(&cluster, folder.path(), &before);
    agents.wait_until_all_are_heard(30);
    let rows = || cluster.query(0, "count_over_time(node_load1{instance=\"stepped\"}[9d])").0;
    let count = || rows().get("stepped").copied().unwrap_or(0);
    wait("its rows are there", 20, || 3 < count());
    let lost =
        || cluster.metric(0, "strobe_broker_frames_lost_total{reason=\"time\"}").unwrap_or(0);
    for by in STEPS {
        let (had, refused) = (count(), lost());
        step(&clock, by);
        wait(by, 15, || if by.starts_with('+') { refused + 3 < lost() } else { had + 3 < count() });
        step(&clock, "+0");
        let had = count();
        wait("its rows go on", 15, || had + 2 < count());
    }
    // In the ledger and nowhere else: what is missing is told, and a row is one moment.
    assert_eq!(cluster.query(0, "count(node_load1)").0[""], 3);
    assert!(agent.terminate(), "it ends well");
    println!("{} rows too far ahead; {} frames, each once", lost(), judge(cluster, agents));
}

/// An agent in a process of its own, for its clock.
fn stepped(cluster: &Cluster, folder: &Path, before: &[String]) -> Process {
    let (ok, token, why) = run("strobe", &["token", "create", "--dir", &cluster.dir(0)]);
    assert!(ok, "{why}");
    let text = |name: &str| folder.join(name).display().to_string();
    fake_procfs(&folder.join("proc"));
    std::fs::create_dir_all(folder.join("sys")).expect("writable");
    let program = strobe_tests::binary("strobe-agent").display().to_string();
    let (dir, proc, sys) = (text("state"), text("proc"), text("sys"));
    let mut words: Vec<&str> = before.iter().skip(1).map(String::as_str).collect();
    words.extend([&*program, "--dir", &dir, "--broker", cluster.address(0)]);
    words.extend(["--token", token.trim(), "--procfs", &proc, "--sysfs", &sys]);
    words.extend(["--instance", "stepped"]);
    Process::start(&before[0], &words)
}

const STEPS: [&str; 4] = ["+1h", "-1h", "+1d", "-1d"];
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
];
