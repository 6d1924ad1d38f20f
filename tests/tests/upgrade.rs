//! A cluster and its agents go from one version to the next, one process after the other, and nobody notices.

#[expect(dead_code, reason = "most of it is for what a cluster goes through")]
mod support;

use strobe_tests::{Folder, Process, fake_procfs, pause, run, wait};
use support::{Agents, Cluster, PREVIOUS};

/// Agents that are processes, each a host of its own.
struct Hosts {
    folder: Folder,
    processes: Vec<Process>,
}

impl Hosts {
    fn start(cluster: &Cluster, count: usize) -> Self {
        let mut hosts = Self { folder: Folder::new("upgrade-hosts"), processes: Vec::new() };
        for number in 0..count {
            let (ok, token, why) = run("strobe", &["token", "create", "--dir", &cluster.dir(0)]);
            assert!(ok, "{why}");
            fake_procfs(&hosts.folder.path().join(format!("{number}/proc")));
            let process = hosts.life(number, &[PREVIOUS], (cluster.address(number % 3), &token));
            hosts.processes.push(process);
        }
        hosts
    }

    fn life(&self, number: usize, env: &[(&str, &str)], at: (&str, &str)) -> Process {
        let own = self.folder.path().join(number.to_string());
        let of = |what: &str| own.join(what).display().to_string();
        let (dir, proc, name) = (of("state"), of("proc"), format!("real{number}"));
        let args = ["--dir", &dir, "--procfs", &proc, "--instance", &name, "--broker", at.0];
        Process::start_with("strobe-agent", env, &[&args[..], &["--token", at.1.trim()]].concat())
    }

    fn upgrade(&mut self, number: usize, broker: &str) {
        assert!(self.processes[number].terminate(), "SIGTERM ends it well");
        // It is enrolled: no token is wanted any more.
        self.processes[number] = self.life(number, &[], (broker, ""));
    }
}

/// Which hosts say how they stand with the fleet's configuration: only the newer version does, and only to
/// a broker of the newer version.
fn configured(cluster: &Cluster, at: usize) -> Vec<String> {
    let hosts = cluster.get(at, "/api/strobe/v1/hosts", "");
    let hosts = hosts.as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = hosts
        .iter()
        .filter(|host| host["configuration"]["version"].is_u64())
        .filter_map(|host| host["instance"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// Every broker answers for all hosts with rows of the last seconds, whichever versions the others are of.
fn assert_all_answer(cluster: &Cluster, when: &str) {
    for at in 0..3 {
        let (mut found, mut warnings) = Default::default();
        wait(&format!("{when}: broker {} answers for all", at + 1), 30, || {
            (found, warnings) = cluster.query(at, "count_over_time(node_load1[3s])");
            found.len() == HOSTS + REAL && warnings.is_empty()
        });
    }
}

#[test]
fn a_cluster_is_upgraded_under_load() {
    let mut cluster = Cluster::start_previous("upgrade", 3);
    let agents = Agents::start(&cluster, HOSTS);
    let mut hosts = Hosts::start(&cluster, REAL);
    agents.wait_until_all_are_heard(30);
    assert_all_answer(&cluster, "of the version before");
    // It is the version before that they speak: none of this version's messages is said.
    assert_eq!(configured(&cluster, 0), Vec::<String>::new());
    let mut gaps = Vec::new();
    for at in 0..3 {
        let watch = agents.watch(std::time::Duration::from_secs(8));
        cluster.keep_logs();
        cluster.upgrade(at);
        let of_round = watch.join().expect("the watch ends");
        println!("broker {} was upgraded: agents' gaps {of_round:?}", at + 1);
        gaps.extend(of_round);
        cluster.wait_until_balanced(60);
        agents.wait_until_all_are_heard(30);
        assert_all_answer(&cluster, &format!("{} of 3 are upgraded", at + 1));
    }
    let worst = gaps.iter().max().expect("agents were watched");
    assert!(*worst < std::time::Duration::from_secs(3), "an agent was not taken: {gaps:?}");
    // Brokers and the agents in this process are of this version now, the others not yet.
    let newer: Vec<String> = (0..HOSTS).map(|number| format!("host{number}")).collect();
    wait("agents of this version say what they run", 60, || configured(&cluster, 0) == newer);
    for number in 0..REAL {
        hosts.upgrade(number, cluster.address((number + 1) % 3));
        pause(1_000);
    }
    wait("all agents say what they run", 60, || configured(&cluster, 1).len() == HOSTS + REAL);
    agents.wait_until_all_are_heard(30);
    let acknowledged = agents.stop();
    hosts.processes.iter_mut().for_each(|process| assert!(process.terminate()));
    cluster.stop();
    let seen = cluster.all_moments("node_load1");
    assert_eq!(seen.len(), HOSTS + REAL);
    for (host, times) in &seen {
        let times: Vec<i64> = times.iter().copied().collect();
        let mut steps: Vec<i64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        steps.sort_unstable();
        // One that is a process was away once itself.
        let away = usize::from(host.starts_with("real"));
        let holes: Vec<&i64> =
            steps.iter().rev().skip(away).filter(|step| 2_500 < **step).collect();
        assert!(holes.is_empty(), "{host} has holes of {holes:?} ms in {} rows", times.len());
    }
    let (all, twice) = cluster.assert_stored(&acknowledged);
    println!("{all} frames were acknowledged and none is lost; {twice} are in two brokers' logs");
}

/// Agents of this version from the beginning.
const HOSTS: usize = 6;
/// Agents that are upgraded too.
const REAL: usize = 2;
