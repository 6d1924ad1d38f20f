//! Redis with Sentinels, or as a Cluster, under brokers: a primary hangs, is killed, runs out of memory, comes
//! back empty.
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

/// A Redis Cluster of three primaries and three replicas under three brokers: one primary hangs for 30 s, another
/// is killed meanwhile and comes back, the third is back at once and has nothing, and gives its replica that.
#[test]
fn a_redis_cluster_that_fails_loses_nothing() {
    let mut redis = Sharded::start();
    let url = redis.url();
    let end_ms = whole_hour_ms();
    let history = |at: usize, dir: &std::path::Path| {
        for host in 1..=4 {
            let times = (0..360).map(|n| end_ms - 3_600_000 + n * 10_000);
            fill(dir, 10 * at as u128 + host, times, end_ms);
        }
    };
    let cluster = Cluster::sharing("redis-cluster", (3, &["--store", &url]), history);
    let agents = Agents::start(&cluster, 6);
    agents.wait_until_all_are_heard(30);
    let well = || {
        (0..3).all(|at| {
            let metric = |name: &str| cluster.metric(at, &format!("strobe_broker_redis_{name}"));
            metric("connected") == Some(1) && metric("lag_segments") == Some(0)
        })
    };
    wait("the brokers are with it", 30, well);
    let before = redis.blocks();
    assert!(12 <= before, "four hosts of each broker: {before}");
    let mut primaries: Vec<usize> = (0..6).filter(|at| redis.is_primary(*at)).collect();
    primaries.sort_by_key(|at| redis.blocks_of(*at));
    let [killed, hung, emptied] = primaries[..] else { panic!("three primaries: {primaries:?}") };

    let (watch, begun) = (agents.watch(Duration::from_secs(34)), now());
    redis.servers[hung].signal(Signal::SIGSTOP);
    redis.wait_for_primaries("its replica takes the place of the one that hangs", &[hung]);
    redis.servers[killed].signal(Signal::SIGKILL);
    redis.wait_for_primaries("another replica takes the dead one's", &[hung, killed]);
    redis.restart(killed);
    redis.restart(emptied);
    let left = redis.blocks_of(emptied);
    println!("all three faults within {:?}; the empty one has {left} blocks", begun.elapsed());
    while begun.elapsed() < Duration::from_secs(30) {
        cluster.keep_logs();
        pause(500);
    }
    redis.servers[hung].signal(Signal::SIGCONT);
    let gaps = watch.join().expect("the watch ends");
    println!("agents' gaps {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < NO_GAP), "{gaps:?}");
    wait("Redis has it all again", 30, || before <= redis.blocks());
    wait("the brokers are with it again", 30, well);
    let old = "count_over_time(node_load1{instance=~\"old.*\"}[3h])";
    for at in 0..3 {
        let (found, warnings) = cluster.query(at, old);
        assert_eq!((found.len(), warnings.len()), (12, 0), "{warnings:?}");
        assert!(found.values().all(|rows| *rows == 360), "each row once: {found:?}");
    }
    println!("{}", cluster.judge(agents));
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

/// Three primaries with a replica each; which is which changes.
struct Sharded {
    servers: Vec<Server>,
    buses: Vec<String>,
    files: Folder,
}

impl Sharded {
    fn start() -> Self {
        let files = Folder::new("faults-redis-cluster");
        let bus = || free_address().rsplit(':').next().expect("a port").to_owned();
        let buses: Vec<String> = (0..6).map(|_| bus()).collect();
        let node = |(at, bus): (usize, &String)| {
            let args = Self::args(&files, at, bus);
            Server::start_with(&args.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let servers: Vec<Server> = buses.iter().enumerate().map(node).collect();
        for (at, server) in servers.iter().enumerate() {
            server.tell(&["cluster", "set-config-epoch", &(at + 1).to_string()]);
            let (port, bus) = (server.port().to_string(), &buses[at]);
            servers[0].tell(&["cluster", "meet", "127.0.0.1", &port, bus]);
        }
        for (at, slots) in [["0", "5460"], ["5461", "10922"], ["10923", "16383"]].iter().enumerate()
        {
            servers[at].tell(&["cluster", "addslotsrange", slots[0], slots[1]]);
        }
        let all = |what: &str| servers.iter().all(|s| s.tell(&["cluster", "info"]).contains(what));
        wait("six nodes", 20, || all("cluster_known_nodes:6"));
        for at in 3..6 {
            let id = servers[at - 3].tell(&["cluster", "myid"]).trim().to_owned();
            wait("a replica knows its primary", 20, || {
                servers[at].tell(&["cluster", "replicate", &id]).starts_with("OK")
            });
        }
        let linked =
            |s: &Server| s.tell(&["info", "replication"]).contains("master_link_status:up");
        wait("the replicas follow", 30, || servers[3..].iter().all(linked));
        wait("the Cluster stands", 20, || all("cluster_state:ok"));
        Self { servers, buses, files }
    }

    /// It finds the others again by its file, and rows it keeps in none.
    fn args(files: &Folder, at: usize, bus: &str) -> Vec<String> {
        let text = "--cluster-enabled yes --cluster-node-timeout 1500 \
                    --cluster-replica-validity-factor 0 --appendonly no";
        let own = format!(
            "--dir {} --cluster-config-file nodes-{at}.conf --dbfilename none-{at}.rdb \
             --rdb-del-sync-files yes --cluster-port {bus}",
            files.text()
        );
        text.split(' ').chain(own.split(' ')).map(str::to_owned).collect()
    }

    fn url(&self) -> String {
        let nodes = self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port()));
        format!("redis+cluster://{}", nodes.collect::<Vec<_>>().join(","))
    }

    /// Killed if it runs, and begun anew with nothing.
    fn restart(&mut self, at: usize) {
        let port = self.servers[at].port();
        drop(self.servers.remove(at));
        let args = Self::args(&self.files, at, &self.buses[at]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.servers.insert(at, Server::start_at(port, &args));
    }

    fn is_primary(&self, at: usize) -> bool {
        self.servers[at].tell(&["role"]).starts_with("master")
    }

    /// Three primaries beside these.
    fn wait_for_primaries(&self, what: &str, but: &[usize]) {
        wait(what, 20, || {
            let others = (0..6).filter(|at| !but.contains(at));
            others.filter(|at| self.is_primary(*at)).count() == 3
        });
    }

    fn blocks_of(&self, at: usize) -> usize {
        let keys = self.servers[at].tell(&["keys", "monitor:metrics:*"]);
        keys.lines().filter(|key| !key.is_empty()).count()
    }

    /// Blocks of hosts' rows in all primaries.
    fn blocks(&self) -> usize {
        (0..6).filter(|at| self.is_primary(*at)).map(|at| self.blocks_of(at)).sum()
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
