//! Agents of a cluster's tests.

use super::{Cluster, now};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use strobe_agent::run::Agent;
use strobe_tests::{Folder, fake_procfs, pause, run, wait};
use strobe_wire::ids::HostId;
use strobe_wire::settings::Settings;

/// Agents in this process, each a host of its own.
pub(crate) struct Agents {
    agents: Arc<Mutex<Vec<Agent>>>,
    hosts: Vec<HostId>,
    _folder: Folder,
}

impl Agents {
    /// They enrol in turn at each broker.
    pub(crate) fn start(cluster: &Cluster, count: usize) -> Self {
        let folder = Folder::new(&format!("agents-of-{}", cluster.address(0).replace(':', "-")));
        let count_brokers = cluster.brokers.len();
        let start = |number: usize| {
            let (at, other) = (number % count_brokers, (number + 1) % count_brokers);
            let (ok, token, why) =
                run("strobe", &["token", "create", "--dir", &cluster.dir(other)]);
            assert!(ok, "a token made at any broker is good at all: {why}");
            let own = folder.path().join(format!("{number}"));
            fake_procfs(&own.join("proc"));
            std::fs::create_dir_all(own.join("sys")).expect("writable");
            let text = |path: PathBuf| path.display().to_string();
            let config = config(&[
                ("--dir", text(own.join("state"))),
                ("--broker", cluster.address(at).to_owned()),
                ("--token", token.trim().to_owned()),
                ("--procfs", text(own.join("proc"))),
                ("--sysfs", text(own.join("sys"))),
                ("--rootfs", text(own.clone())),
                ("--instance", format!("host{number}")),
            ]);
            Agent::start(&config).expect("an agent starts")
        };
        let agents: Vec<Agent> = (0..count).map(start).collect();
        let host = |number: usize| {
            let file = folder.path().join(format!("{number}/state/host.toml"));
            let text = std::fs::read_to_string(file).expect("it has begun");
            let id = text.lines().next().and_then(|line| line.split('"').nth(1));
            id.expect("an id").parse().expect("an id")
        };
        let hosts = (0..count).map(host).collect();
        Self { agents: Arc::new(Mutex::new(agents)), hosts, _folder: folder }
    }

    pub(crate) fn hosts(&self) -> Vec<HostId> {
        self.hosts.clone()
    }

    /// Each has been acknowledged something new.
    pub(crate) fn wait_until_all_are_heard(&self, seconds: u64) {
        let before = seqs(&self.agents);
        wait("every agent is acknowledged", seconds, || {
            seqs(&self.agents).iter().zip(&before).all(|(now, then)| then + 1 < *now)
        });
    }

    /// For so long: the longest time that each agent was without an acknowledgement, by its own account.
    pub(crate) fn watch(&self, long: Duration) -> JoinHandle<Vec<Duration>> {
        let agents = Arc::clone(&self.agents);
        std::thread::spawn(move || {
            let begun = now();
            let mut last: Vec<(u64, Instant)> =
                seqs(&agents).into_iter().map(|seq| (seq, begun)).collect();
            let mut gaps = vec![Duration::ZERO; last.len()];
            while begun.elapsed() < long {
                pause(5);
                let at = now();
                for ((seq, last), gap) in seqs(&agents).into_iter().zip(&mut last).zip(&mut gaps) {
                    *gap = (*gap).max(at - last.1);
                    if seq != last.0 {
                        *last = (seq, at);
                    }
                }
            }
            gaps
        })
    }

    /// Up to which frame each was acknowledged.
    pub(crate) fn acknowledged(&self) -> BTreeMap<HostId, u64> {
        self.hosts.iter().copied().zip(seqs(&self.agents)).collect()
    }

    /// Ends them; up to which frame each was acknowledged.
    pub(crate) fn stop(self) -> BTreeMap<HostId, u64> {
        let through = seqs(&self.agents);
        let agents = std::mem::take(&mut *self.agents.lock().expect("no panic"));
        agents.into_iter().for_each(|agent| agent.stop().expect("it ran well"));
        self.hosts.iter().copied().zip(through).collect()
    }
}

fn seqs(agents: &Mutex<Vec<Agent>>) -> Vec<u64> {
    let agents = agents.lock().expect("no panic");
    agents.iter().map(|agent| agent.status().acknowledged_seq).collect()
}

fn config(args: &[(&str, String)]) -> strobe_agent::config::Config {
    let args: Vec<String> =
        args.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]).collect();
    let keys = strobe_agent::config::KEYS;
    let settings = Settings::load(keys, None, &|_| None, &args).expect("good settings");
    strobe_agent::config::Config::new(&settings, &|_| None).expect("good settings")
}
