//! Redis with Sentinels under a cluster: its primary hangs, is killed, runs out of memory, comes back empty.
//! A dashboard looks at every host meanwhile: what it waits longer than the hosts' second is the stall.

use crate::server::{Server, fill, tell, whole_hour_ms};
use crate::support::{Agents, Cluster, now};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use strobe_broker::{Subscription, Update};
use strobe_tests::{Folder, free_address, pause, wait};
use strobe_wire::ids::HostId;

/// Whatever happens to Redis, neither rows nor the live view wait for it, and in the end Redis has what the
/// brokers have.
#[test]
fn a_redis_that_fails_is_not_felt() {
    let mut watched = Watched::start();
    let url = watched.url();
    let end_ms = whole_hour_ms();
    let history = |at: usize, dir: &std::path::Path| {
        let times = (0..360).map(|n| end_ms - 3_600_000 + n * 10_000);
        fill(dir, at as u128 + 1, times, end_ms);
    };
    let cluster = Cluster::sharing("redis", (2, &["--store", &url]), history);
    let (here, folder) = cluster.join_here("redis", &["--store", &url]);
    let agents = Agents::start(&cluster, 6);
    agents.wait_until_all_are_heard(30);
    wait("history is in Redis", 30, || watched.blocks() >= 2);
    let before = watched.blocks();
    let (hosts, view) = (agents.hosts(), here.subscribe());
    for fault in ["nothing", "hung", "killed", "full", "empty"] {
        let (over, watch) = (AtomicBool::new(false), agents.watch(Duration::from_secs(6)));
        let stall = std::thread::scope(|scope| {
            let seen = scope.spawn(|| longest(&view, &hosts, &over));
            watched.hurt(fault);
            pause(5_000);
            watched.mend(fault);
            over.store(true, Ordering::Relaxed);
            seen.join().expect("it looks")
        });
        let gaps = watch.join().expect("the watch ends");
        println!(
            "{fault}: dashboard's longest wait for a host's row {stall:?}, agents' gaps {gaps:?}"
        );
        assert!(stall < SECOND + STALL_MAX, "{fault}: {stall:?}");
        assert!(gaps.iter().all(|gap| *gap < NO_GAP), "{fault}: {gaps:?}");
        cluster.keep_logs();
    }
    wait("Redis has it all again", 30, || watched.blocks() >= before);
    wait("the brokers are with it", 30, || {
        (0..2).all(|at| {
            let metric = |name: &str| cluster.metric(at, &format!("strobe_broker_redis_{name}"));
            metric("connected") == Some(1) && metric("lag_segments") == Some(0)
        })
    });
    drop(view);
    let judged = cluster.judge_with(agents, &[folder.path()], || here.stop());
    println!("{judged}");
}

/// The longest time that a host showed nothing new, until it is over.
fn longest(view: &Subscription, hosts: &[HostId], over: &AtomicBool) -> Duration {
    let begun = now();
    let mut last: BTreeMap<HostId, Instant> = hosts.iter().map(|host| (*host, begun)).collect();
    let mut longest = Duration::ZERO;
    while !over.load(Ordering::Relaxed) {
        let update = view.recv_timeout(Duration::from_millis(20));
        let at = now();
        if let Some(Update::Frame(bytes)) = update {
            let frame = strobe_wire::frame::open(&bytes).expect("a frame");
            if let Some(last) = last.get_mut(&frame.header.host)
                && frame.payload.columns().is_some()
            {
                *last = at;
            }
        }
        longest = last.values().map(|last| at - *last).fold(longest, Duration::max);
    }
    longest
}

/// A primary, two replicas and three Sentinels.
struct Watched {
    servers: Vec<Server>,
    sentinels: Vec<(Child, u16)>,
    _files: Folder,
    /// Who was hurt.
    victim: usize,
}

impl Watched {
    fn start() -> Self {
        let files = Folder::new("faults-sentinels");
        let primary = Server::start();
        let port = primary.port();
        let of = ["--replicaof", "127.0.0.1", &port.to_string()];
        let servers = vec![primary, Server::start_with(&of), Server::start_with(&of)];
        let linked = |server: &Server| {
            let text = server.tell(&["info", "replication"]);
            text.contains("role:master") || text.contains("master_link_status:up")
        };
        wait("the replicas follow", 20, || servers.iter().all(linked));
        let sentinels: Vec<_> = (0..3).map(|number| sentinel(&files, number, port)).collect();
        wait("the Sentinels know each other", 30, || {
            let known = |port: u16| tell(port, &["info", "sentinel"]);
            sentinels.iter().all(|(_, port)| known(*port).contains("slaves=2,sentinels=3"))
        });
        Self { servers, sentinels, _files: files, victim: 0 }
    }

    fn url(&self) -> String {
        let ports = self.sentinels.iter().map(|(_, port)| format!("127.0.0.1:{port}"));
        format!("redis+sentinel://{}/main", ports.collect::<Vec<_>>().join(","))
    }

    /// Whom the Sentinels name.
    fn primary(&self) -> usize {
        let ask = ["sentinel", "get-master-addr-by-name", "main"];
        let mut found = None;
        wait("a primary that answers", 20, || {
            let named = tell(self.sentinels[0].1, &ask);
            let port = named.lines().nth(1).and_then(|port| port.parse().ok());
            found = self.servers.iter().position(|server| Some(server.port()) == port);
            found.is_some_and(|at| self.servers[at].tell(&["role"]).starts_with("master"))
        });
        found.expect("it was waited for")
    }

    /// Blocks of hosts' rows in the primary.
    fn blocks(&self) -> usize {
        let keys = self.servers[self.primary()].tell(&["keys", "monitor:metrics:*"]);
        keys.lines().filter(|key| !key.is_empty()).count()
    }

    fn hurt(&mut self, fault: &str) {
        self.victim = self.primary();
        let server = &self.servers[self.victim];
        match fault {
            "hung" => server.signal(Signal::SIGSTOP),
            "killed" => server.signal(Signal::SIGKILL),
            "full" => drop(server.tell(&["config", "set", "maxmemory", "1"])),
            // It is back before anybody misses it, and has nothing.
            "empty" => {
                let port = server.port();
                drop(self.servers.remove(self.victim));
                self.servers.insert(self.victim, Server::start_at(port, &[]));
            }
            _ => {}
        }
    }

    fn mend(&mut self, fault: &str) {
        let server = &self.servers[self.victim];
        match fault {
            "hung" => server.signal(Signal::SIGCONT),
            "killed" => {
                let port = server.port();
                drop(self.servers.remove(self.victim));
                let of = self.servers[self.primary()].port().to_string();
                let of = ["--replicaof", "127.0.0.1", &of];
                self.servers.insert(self.victim, Server::start_at(port, &of));
            }
            "full" => drop(server.tell(&["config", "set", "maxmemory", "0"])),
            _ => {}
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for (child, _) in &mut self.sentinels {
            // By its id; it may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn sentinel(files: &Folder, number: usize, primary: u16) -> (Child, u16) {
    let address = free_address();
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let file = files.path().join(format!("{number}.conf"));
    let text = format!(
        "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {primary} 2\n\
         sentinel down-after-milliseconds main 1000\n\
         sentinel failover-timeout main 3000\n"
    );
    std::fs::write(&file, text).expect("writable");
    let child = Command::new("redis-server")
        .arg(&file)
        .arg("--sentinel")
        .current_dir(files.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed (Debian: apt-get install redis-server)");
    wait("a Sentinel", 15, || tell(port, &["ping"]).starts_with("PONG"));
    (child, port)
}

const SECOND: Duration = Duration::from_secs(1);
/// Beyond the hosts' second.
const STALL_MAX: Duration = Duration::from_secs(1);
/// Of an agent that goes over to reading its acknowledgements with its next tick.
const NO_GAP: Duration = Duration::from_millis(2500);
