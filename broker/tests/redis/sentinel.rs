//! A primary, a replica and three Sentinels: the primary hangs, is killed, comes back empty.

use crate::support::{
    Server, counts, dir, drive, equal_local, fill, free_port, mirror, mirror_with, now, open,
    query, uninterrupted, until, wall_ms, whole_hour_ms, within, write_copied_rows,
};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use strobe_broker::store::Recovery;
use strobe_broker::store::redis::{Confirmed, RedisConfig, restore};

/// Who is watched, and three who watch.
struct Watched {
    servers: Vec<Server>,
    sentinels: Vec<(Child, u16)>,
    files: PathBuf,
}

impl Watched {
    fn start(name: &str, down_after_ms: u64) -> Self {
        let files = dir(&format!("{name}-sentinels"));
        std::fs::create_dir_all(&files).unwrap();
        let primary = Server::start(free_port(), &[]);
        let of = ["--replicaof", "127.0.0.1", &primary.port.to_string()].map(str::to_owned);
        let of: Vec<&str> = of.iter().map(String::as_str).collect();
        let replica = Server::start(free_port(), &of);
        until("the replica", || replica.info("replication").contains("master_link_status:up"));
        let watch = |n| sentinel(&files, n, primary.port, down_after_ms);
        let sentinels = (0..3).map(watch).collect();
        let watched = Self { servers: vec![primary, replica], sentinels, files };
        until("the Sentinels", || {
            watched.sentinels.iter().all(|(_, port)| {
                let text = Server::info_of(*port, "sentinel");
                text.contains("slaves=1,sentinels=3")
            })
        });
        watched
    }

    fn url(&self) -> String {
        let ports = self.sentinels.iter().map(|(_, port)| format!("127.0.0.1:{port}"));
        format!("redis+sentinel://{}/main", ports.collect::<Vec<_>>().join(","))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for (child, _) in &mut self.sentinels {
            drop(child.kill());
            drop(child.wait());
        }
        drop(std::fs::remove_dir_all(&self.files));
    }
}

fn sentinel(files: &Path, number: usize, primary: u16, down_after_ms: u64) -> (Child, u16) {
    let (port, file) = (free_port(), files.join(format!("{number}.conf")));
    let text = format!(
        "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {primary} 2\n\
         sentinel down-after-milliseconds main {down_after_ms}\n\
         sentinel failover-timeout main 3000\n"
    );
    std::fs::write(&file, text).unwrap();
    let child = Command::new("redis-server")
        .arg(&file)
        .arg("--sentinel")
        .current_dir(files)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("a Sentinel", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (child, port)
}

/// What an empty store reads of the Redis that a store was mirrored to.
fn read_anew(
    url: &str,
    name: &str,
    expr: &str,
    at_ms: i64,
    replicas: bool,
) -> (usize, Vec<String>) {
    let dir = dir(name);
    let (store, _writer) = open(&dir, at_ms);
    let config = RedisConfig { read_replicas: replicas, ..RedisConfig::at(url.to_owned()) };
    let mut mirror = mirror_with(&store, config, at_ms);
    until("a first look", || {
        mirror.pass(at_ms);
        counts(&mirror).connected
    });
    let found = query(&store, expr, at_ms);
    std::fs::remove_dir_all(dir).unwrap();
    found
}

/// A primary that hangs is replaced, and so is one that is killed; ingest does not feel it, and every
/// row is there once.
#[test]
fn a_primary_that_hangs_or_dies_is_replaced_and_nothing_is_lost() {
    let (dir, base) = (dir("failover"), whole_hour_ms());
    let mut watched = Watched::start("failover", 700);
    let url = watched.url();
    let (store, mut writer) = open(&dir, base);
    let mut mirror = mirror(&store, &url, base);
    fill(&mut writer, base);
    drive(&mut mirror, base);
    let first = watched.servers[0].blocks();
    assert_eq!(first.len(), 20, "{:?}", first.keys().collect::<Vec<_>>());

    // The copy answers for history where that is allowed.
    until("the copy", || watched.servers[1].blocks().len() == 20);
    assert_eq!(read_anew(&url, "copy", "x[2h]", base, true), (20 * 60, vec![]));
    let asked = [0, 1].map(|at| crate::support::commands(&watched.servers[at], "zrangebyscore"));
    assert!(asked[0] == 0 && 0 < asked[1], "the replica was asked: {asked:?}");

    watched.servers[0].signal(Signal::SIGSTOP);
    let begin = now();
    fill(&mut writer, base + 600_000);
    assert!(begin.elapsed() < Duration::from_secs(1), "ingest waits for nobody");
    // One time-out, then the Sentinels are asked until they agree.
    drive(&mut mirror, base + 600_000);
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    equal_local(&dir, &watched.servers[1].blocks());
    assert_eq!(watched.servers[1].blocks().len(), 40);

    // It wakes up, still thinks that it is the primary, and is told.
    watched.servers[0].signal(Signal::SIGCONT);
    let old = &watched.servers[0];
    // Sentinels look at its role every ten seconds, and wait eight more before they correct it.
    within(25, "the old primary to follow", || {
        old.info("replication").contains("master_link_status:up")
    });
    assert_eq!(old.blocks().len(), 40);

    // And the other way round, by a kill.
    watched.servers.remove(1);
    let begin = now();
    fill(&mut writer, base + 1_200_000);
    drive(&mut mirror, base + 1_200_000);
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    let blocks = watched.servers[0].blocks();
    assert_eq!(blocks.len(), 60);
    equal_local(&dir, &blocks);
    let found = read_anew(&url, "killed", "x[2h]", base + 1_200_000, false);
    assert_eq!(found, (20 * 180, vec![]), "each row once");
    drop((writer, store));
    std::fs::remove_dir_all(dir).unwrap();
}

/// The primary is back before a Sentinel misses it, without anything: its replica follows it into
/// emptiness, and both are filled from what the store holds.
#[test]
fn a_primary_that_restarts_empty_is_filled_again() {
    let (dir, base) = (dir("emptied"), whole_hour_ms());
    let mut watched = Watched::start("emptied", 5000);
    let (store, mut writer) = open(&dir, base);
    let mut mirror = mirror(&store, &watched.url(), base);
    fill(&mut writer, base);
    drive(&mut mirror, base);
    let first = watched.servers[0].blocks();
    let port = watched.servers[0].port;
    drop(watched.servers.remove(0));
    let again = Server::start(port, &[]);
    fill(&mut writer, base + 600_000);
    drive(&mut mirror, base + 600_000);
    let blocks = again.blocks();
    assert_eq!((first.len(), blocks.len()), (20, 40));
    equal_local(&dir, &blocks);
    let replica = &watched.servers[0];
    until("the replica", || replica.blocks().len() == 40);
    drop((writer, store));
    std::fs::remove_dir_all(dir).unwrap();
}

/// `wal+redis`: the primary dies, the log goes on to the next one, and then the disk dies.
#[test]
fn a_log_outlives_its_primary_and_then_its_disk() {
    let (lost, found, base) = (dir("log-lost"), dir("log-found"), wall_ms() - 60_000);
    let mut watched = Watched::start("log", 700);
    let url = watched.url();
    {
        let (store, mut writer) = open(&lost, base);
        let mut log = mirror(&store, &url, base).log(Confirmed::default());
        write_copied_rows(&mut writer, 0..20, base);
        log.pass(base);
        assert_eq!(log.confirmed().through(), writer.synced());
        drop(watched.servers.remove(0));
        write_copied_rows(&mut writer, 20..40, base);
        log.pass(base);
        assert!(log.confirmed().through() < writer.synced(), "nobody has it");
        until("the next primary", || {
            log.pass(wall_ms());
            log.confirmed().through() == writer.synced()
        });
    }
    let (store, mut writer) = open(&found, base);
    let mut recovery = Recovery::default();
    let config = RedisConfig::at(url);
    uninterrupted(|| restore(&config, &mut writer, &mut recovery, base));
    assert_eq!(query(&store, "node_load1[5m]", base + 60_000), (40, vec![]));
    assert_eq!(recovery.seen[0].ranges.len(), 40, "each number once");
    drop(writer);
    for dir in [lost, found] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}

/// `wal+redis`: the primary and the disk die at once. What the replica had is there; Redis answers before it
/// copies, so what it had not is lost with both.
#[test]
fn a_primary_and_the_disk_die_at_once() {
    for copied in [true, false] {
        let (lost, found, base) = (dir("once-lost"), dir("once-found"), wall_ms() - 60_000);
        let mut watched = Watched::start("once", 700);
        let url = watched.url();
        {
            let (store, mut writer) = open(&lost, base);
            let mut log = mirror(&store, &url, base).log(Confirmed::default());
            write_copied_rows(&mut writer, 0..20, base);
            log.pass(base);
            let replica = &watched.servers[1];
            until("the replica", || replica.has("monitor:logs"));
            if !copied {
                // It is behind, as over a slow line: nothing of what comes is even in its socket.
                replica.signal(Signal::SIGSTOP);
                watched.servers[0].tell(&["CLIENT", "KILL", "TYPE", "replica"]);
            }
            write_copied_rows(&mut writer, 20..30, base);
            log.pass(base);
            assert_eq!(log.confirmed().through(), writer.synced(), "acknowledged");
            if copied {
                until("the replica", || replica.length("monitor:log:*") == 30);
            }
        }
        drop(watched.servers.remove(0));
        if !copied {
            watched.servers[0].signal(Signal::SIGCONT);
        }
        let replica = &watched.servers[0];
        within(30, "the next primary", || replica.info("replication").contains("role:master"));
        let (store, mut writer) = open(&found, base);
        let mut recovery = Recovery::default();
        let config = RedisConfig::at(url);
        // Until a quorum of Sentinels names it.
        within(15, "the log to be taken in", || {
            restore(&config, &mut writer, &mut recovery, base).is_ok()
        });
        let (count, _) = query(&store, "node_load1[5m]", base + 60_000);
        assert_eq!(count, if copied { 30 } else { 20 }, "rows that the replica had");
        drop(writer);
        for dir in [lost, found] {
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
}

/// The URL of a Sentinel is enough where it watches one name.
#[test]
fn a_sentinel_is_recognised() {
    let (dir, base) = (dir("probe-sentinel"), whole_hour_ms());
    let watched = Watched::start("probe", 5000);
    let (store, _writer) = open(&dir, base);
    let url = format!("redis://127.0.0.1:{}", watched.sentinels[0].1);
    let mut mirror = mirror(&store, &url, base);
    mirror.pass(base);
    assert!(counts(&mirror).connected, "{:?}", counts(&mirror));
    std::fs::remove_dir_all(dir).unwrap();
}
