//! Brokers that share a Redis: what one of them wrote there is answered when it is gone, and one that runs by
//! itself moves there while it runs.

pub(crate) mod redis;

use crate::support::{Agents, Cluster};
use redis::{Server, fill};
use std::collections::BTreeMap;
use std::time::Duration;
use strobe_tests::{Folder, pause, run, wait};

/// A broker dies with its disk. Whatever of its history was sealed is answered by the others, row for row,
/// and what they have too is counted once; before and after the dead one is removed, and after a restart.
#[test]
fn a_dead_brokers_history_is_answered() {
    let redis = Server::start();
    let url = redis.url();
    let end_ms = redis::whole_hour_ms();
    let hosts = |at: usize| -> Vec<(u128, i64)> {
        match at {
            // A host that moved, and a row that both took in because it was sent again.
            0 => vec![(1, 0), (2, 0), (3, 0)],
            1 => vec![(3, 359), (4, 0)],
            _ => vec![(5, 0)],
        }
    };
    let fill = |at: usize, dir: &std::path::Path| {
        for (host, from) in hosts(at) {
            let to = if (at, host) == (0, 3) { 360 } else { 720 };
            fill(dir, host, (from..to).map(|n| end_ms - 7_200_000 + n * 10_000), end_ms);
        }
    };
    let mut cluster = Cluster::sharing("dead", (3, &["--store", &url]), fill);
    wait_until_all_is_there(&cluster, &[0, 1, 2]);
    let count = format!("count_over_time(node_load1[2h] @ {})", (end_ms - 5_000) / 1000);
    let all: BTreeMap<String, u64> = (1..=5).map(|host| (format!("old{host}"), 720)).collect();
    let before = redis.calls("hget");
    for at in 0..3 {
        assert_eq!(cluster.query(at, &count), (all.clone(), vec![]), "asked: {at}");
    }
    assert_eq!(redis.calls("hget"), before, "while all are there Redis is not asked");

    cluster.lose(0);
    wait("the others lead", 20, || cluster.status(1).leader.is_some_and(|id| id != 1));
    for at in 1..3 {
        let (found, warnings) = cluster.query(at, &count);
        assert_eq!(found, all, "asked: {at}");
        let said = "broker 1 (";
        assert!(warnings.len() == 1 && warnings[0].contains(said), "{warnings:?}");
        assert!(
            warnings[0].contains("has not written to Redis (its newest there: 2"),
            "{warnings:?}"
        );
    }
    let series = cluster.get(
        2,
        "/api/v1/series",
        &format!("match[]=node_load1&start={}", end_ms / 1000 - 7200),
    );
    assert_eq!(series["data"].as_array().expect("a list").len(), 5);

    let (ok, _, why) = run("strobe", &["cluster", "remove", "1", "--dir", &cluster.dir(1)]);
    assert!(ok, "{why}");
    wait("nobody asks it any more", 10, || cluster.query(1, &count).1.is_empty());
    assert_eq!(cluster.query(2, &count), (all.clone(), vec![]));
    cluster.kill(1);
    cluster.restart(1);
    wait("it is back", 20, || cluster.query(1, &count) == (all.clone(), vec![]));
}

/// The same behind the raw retention, where rollups answer: each minute once, also those that the dead
/// one did not live to roll up.
#[test]
fn a_dead_brokers_rollups_are_answered() {
    let redis = Server::start();
    let url = redis.url();
    let end_ms = redis::whole_hour_ms() - 3 * 3_600_000;
    let fill = |at: usize, dir: &std::path::Path| {
        let (host, rows) = if at == 0 { (1, 0..360) } else { (2, 0..360) };
        fill(dir, host, rows.map(|n| end_ms - 3_600_000 + n * 10_000), end_ms + 3 * 3_600_000);
        // A host that moved in the middle of a minute.
        let rows = if at == 0 { 0..183 } else { 183..360 };
        fill_more(dir, rows, end_ms);
    };
    let short = ["--store", &url, "--retention", "1h", "--redis-retention", "1h"];
    let mut cluster = Cluster::sharing("rolled", (2, &short), fill);
    wait_until_all_is_there(&cluster, &[0, 1]);
    let count = format!("count_over_time(node_load1[30m] @ {})", (end_ms - 1_200_000) / 1000);
    let all: BTreeMap<String, u64> = (1..=3).map(|host| (format!("old{host}"), 180)).collect();
    wait("samples are rolled up", 20, || cluster.query(1, &count).0.len() == 3);
    assert_eq!(cluster.query(0, &count), (all.clone(), vec![]));
    cluster.lose(0);
    pause(2000);
    let (found, warnings) = cluster.query(1, &count);
    assert_eq!(found, all, "{warnings:?}");
    assert!(warnings.len() == 1 && warnings[0].contains("broker 1 ("), "{warnings:?}");
}

fn fill_more(dir: &std::path::Path, rows: std::ops::Range<i64>, end_ms: i64) {
    fill(dir, 3, rows.map(|n| end_ms - 3_600_000 + n * 10_000), end_ms + 3 * 3_600_000);
}

/// A broker was given a Redis, and its history was to stay; later it is wanted there all the same.
#[test]
fn what_stayed_follows_when_it_is_asked_for() {
    let redis = Server::start();
    let url = redis.url();
    let end_ms = redis::whole_hour_ms();
    let cluster = Cluster::alone_with("later", &[], |dir| {
        fill(dir, 1, (0..720).map(|n| end_ms - 7_200_000 + n * 10_000), end_ms);
    });
    cluster.init();
    let dir = cluster.dir(0);
    let share =
        |more: &[&str]| run("strobe", &[&["cluster", "share", &url, "--dir", &dir], more].concat());
    let (ok, said, why) = share(&[]);
    assert!(ok && said.contains("--import would"), "{said}{why}");
    let metric = |state: &str| {
        cluster.metric(0, &format!("strobe_broker_redis_import_segments{{state=\"{state}\"}}"))
    };
    wait("it writes there", 20, || cluster.metric(0, "strobe_broker_redis_connected") == Some(1));
    assert_eq!((metric("left"), metric("moved")), (Some(0), Some(0)), "it stays");
    let (ok, _, why) = share(&[]);
    assert!(!ok && why.contains("has a Redis already"), "{why}");
    let (ok, said, why) = share(&["--import"]);
    assert!(ok && said.contains("has that Redis already"), "{said}{why}");
    wait("it is there", 30, || metric("moved") > Some(0) && metric("left") == Some(0));
    assert!(redis.calls("hset") > 0, "blocks were written");
    let kept = std::fs::read_to_string(format!("{dir}/shared-store")).expect("it is kept");
    assert!(kept.trim_end().ends_with("import"), "after a restart too: {kept}");
    let other = ["cluster", "share", "redis://127.0.0.1:1/0", "--import", "--dir", &dir];
    let (ok, _, why) = run("strobe", &other);
    assert!(!ok && why.contains("has a Redis already"), "{why}");
}

/// One `strobe up` with history becomes three brokers with a Redis, under load, and its history moves there
/// in the background; then its disk goes. No agent has a gap, no frame is in two logs, nothing is missing.
#[test]
fn a_strobe_grows_onto_a_redis() {
    let redis = Server::start();
    let url = redis.url();
    let end_ms = redis::whole_hour_ms();
    let mut cluster = Cluster::alone_with("onto", &[], |dir| {
        for host in 1..=3 {
            fill(dir, host, (0..720).map(|n| end_ms - 7_200_000 + n * 10_000), end_ms);
        }
    });
    let agents = Agents::start(&cluster, 4);
    agents.wait_until_all_are_heard(30);
    let why = run(
        "strobe",
        &["cluster", "init", "--store", "redis://127.0.0.1:1/0", "--dir", &cluster.dir(0)],
    );
    assert!(!why.0 && why.2.contains("nothing was changed"), "{why:?}");
    let watch = agents.watch(Duration::from_secs(15));
    cluster.will_say(&["--store", &url, "--import"]);
    cluster.init();
    // What was imported is marked: it goes on after a restart, which takes its agents a moment.
    cluster.grow("onto");
    cluster.grow("onto");
    cluster.wait_until_balanced(60);
    agents.wait_until_all_are_heard(30);
    let gaps = watch.join().expect("the watch ends");
    println!("one became three on Redis: agents' gaps {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < crate::GAP_MAX), "{gaps:?}");
    let left = "strobe_broker_redis_import_segments{state=\"left\"}";
    wait("the old history is in Redis", 30, || cluster.metric(0, left) == Some(0));
    let moved = cluster.metric(0, "strobe_broker_redis_import_segments{state=\"moved\"}");
    assert!(0 < moved.expect("it is counted"), "nothing was moved");
    let count = format!("count_over_time(node_load1[2h] @ {})", (end_ms - 5_000) / 1000);
    let old = |cluster: &Cluster, at| {
        let (mut found, warnings) = cluster.query(at, &count);
        found.retain(|host, _| host.starts_with("old"));
        (found, warnings)
    };
    let all: BTreeMap<String, u64> = (1..=3).map(|host| (format!("old{host}"), 720)).collect();
    assert_eq!(old(&cluster, 1), (all.clone(), vec![]));

    cluster.keep_logs();
    let acknowledged = agents.stop();
    wait("the hosts of the first one are known to the others", 30, || {
        redis.calls("hgetall") > 0 && cluster.query(1, "count(node_load1)").1.is_empty()
    });
    pause(11_000);
    let (frames, twice) = cluster.while_stopped(|cluster| cluster.assert_stored(&acknowledged));
    assert_eq!(twice, 0, "of {frames} frames");
    cluster.lose(0);
    wait("the others lead", 20, || cluster.status(1).leader.is_some_and(|id| id != 1));
    for at in 1..3 {
        let (found, warnings) = old(&cluster, at);
        assert_eq!(found, all, "asked: {at}: {warnings:?}");
        assert!(warnings.iter().all(|w| w.contains("has not written to Redis")), "{warnings:?}");
    }
    println!("{frames} frames were acknowledged, none is lost and none in two brokers' logs");
}

/// Only one broker has a Redis, and is asked for `wal+redis` everywhere: the others would refuse it when it is
/// in force, so it says which lack one, and takes it when all have it.
#[test]
fn a_redis_is_wanted_of_those_who_have_it() {
    let redis = Server::start();
    let cluster = Cluster::start("wanted", 3);
    let folder = Folder::new("wanted-config");
    let file = folder.path().join("fleet.toml");
    std::fs::write(&file, "[broker]\ndurability = \"wal+redis\"\n").expect("writable");
    let file = file.display().to_string();
    let apply = || {
        let args = ["config", "apply", &file, "--reason", "a test", "--now", "--dir"];
        run("strobe", &[&args[..], &[&cluster.dir(0)]].concat())
    };
    let share = |at: usize| {
        let args = ["cluster", "share", &redis.url(), "--dir", &cluster.dir(at)];
        let (ok, said, why) = run("strobe", &args);
        assert!(ok, "{said}{why}");
    };
    share(0);
    let (ok, said, why) = apply();
    assert!(!ok && why.contains("no Redis at broker 2 and broker 3"), "{said}{why}");
    (1..3).for_each(share);
    let mut last = (false, String::new(), String::new());
    wait("it is taken", 20, || {
        last = apply();
        last.0
    });
}

/// `wal+redis` in a cluster, by the fleet's configuration: a broker dies with its disk, for good. The owners of
/// its shards take in what it had told Redis; every row that was acknowledged is answered by the others, once,
/// though no agent has it any more.
#[test]
fn a_dead_brokers_newest_rows_are_taken_in() {
    let redis = Server::start();
    let mut cluster = Cluster::sharing("taken", (3, &["--store", &redis.url()]), |_, _| {});
    cluster.wait_until_balanced(60);
    let folder = Folder::new("taken-config");
    let file = folder.path().join("fleet.toml");
    std::fs::write(&file, "[broker]\ndurability = \"wal+redis\"\n").expect("writable");
    let file = file.display().to_string();
    let apply = ["config", "apply", &file, "--reason", "a test", "--now", "--dir"];
    let (ok, said, why) = run("strobe", &[&apply[..], &[&cluster.dir(0)]].concat());
    assert!(ok, "{said}{why}");
    let agents = Agents::start(&cluster, 9);
    agents.wait_until_all_are_heard(60);
    pause(5_000);
    let dead = (0..3).max_by_key(|at| cluster.sessions(*at)).expect("three");
    let had = cluster.sessions(dead);
    // None of them has a row any more that was acknowledged.
    let acknowledged = agents.stop();
    assert!(acknowledged.values().all(|seq| 3 < *seq), "{acknowledged:?}");
    let alive: Vec<usize> = (0..3).filter(|at| *at != dead).collect();
    let count = format!("count_over_time(node_load1[10m] @ {})", redis::now_ms() / 1000 + 1);
    let (all, warnings) = cluster.query(alive[0], &count);
    assert!(all.len() == 9 && warnings.is_empty(), "{all:?} {warnings:?}");
    cluster.lose(dead);
    let left = |cluster: &Cluster| cluster.query(alive[0], &count).0;
    assert_ne!(left(&cluster), all, "what it had is gone");
    wait("its rows are taken in", 60, || left(&cluster) == all);
    assert_eq!(cluster.query(alive[1], &count).0, all);
    let id = (dead + 1).to_string();
    let remove = ["cluster", "remove", &id, "--dir", &cluster.dir(alive[0])];
    let (ok, _, why) = run("strobe", &remove);
    assert!(ok, "{why}");
    wait("nobody asks it any more", 20, || {
        alive.iter().all(|at| cluster.query(*at, &count) == (all.clone(), vec![]))
    });
    // Whoever took them in has them, and is not in need of Redis for it.
    redis.tell(&["flushall"]);
    assert_eq!(cluster.query(alive[1], &count), (all.clone(), vec![]));
    let rows: u64 = all.values().sum();
    println!("a broker with {had} of 9 agents died with its disk: all {rows} rows are there");
}

fn wait_until_all_is_there(cluster: &Cluster, brokers: &[usize]) {
    wait("everything is in Redis", 60, || {
        brokers.iter().all(|at| {
            let metric = |name: &str| cluster.metric(*at, &format!("strobe_broker_redis_{name}"));
            metric("lag_segments") == Some(0)
                && metric("connected") == Some(1)
                && metric("blocks_written_total").is_some_and(|blocks| 0 < blocks)
        })
    });
}
