//! What is read back.

use crate::support::{
    Server, ask, base_ms, commands, dir, fill, free_port, mirror, now, open, query, start, until,
    write_rows,
};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;
use strobe_broker::registry::Registry;
use strobe_broker::store::{Store, StoreConfig};
use strobe_wire::ids::HostId;
use strobe_wire::message::Hello;

/// A state directory is lost: what Redis has of it is found again by a store that begins empty.
#[test]
fn an_empty_store_answers_from_a_full_redis() {
    let (lost, found, base) = (dir("lost"), dir("found"), base_ms());
    let server = Server::start(free_port(), &[]);
    let all = "x{instance=\"i3\"}[1h]";
    {
        let (store, mut writer) = open(&lost, base);
        let mut mirror = mirror(&store, &server.url(), base);
        fill(&mut writer, base);
        while mirror.pass(base).is_zero() {}
        assert_eq!(query(&store, all, base), (60, vec![]));
        assert_eq!(commands(&server, "zrangebyscore"), 0, "what is here is not asked for there");
    }
    std::fs::remove_dir_all(&lost).unwrap();
    let later = base + 600_000;
    let (store, mut writer) = open(&found, later);
    let mut mirror = mirror(&store, &server.url(), later);
    let (samples, warnings) = query(&store, all, base);
    assert_eq!((samples, warnings.len()), (0, 1), "{warnings:?}");
    mirror.pass(later);
    for round in 0..2 {
        assert_eq!(query(&store, all, base), (60, vec![]), "round {round}");
    }
    assert_eq!(commands(&server, "hget"), 1, "the second time it was cached");
    let (series, _) = query(&store, "x[1h]", base);
    assert_eq!(series, 20 * 60);

    // New samples are beside the old ones, and are not read twice.
    fill(&mut writer, later);
    while mirror.pass(later).is_zero() {}
    let before = commands(&server, "hget");
    assert_eq!(query(&store, all, later), (120, vec![]));
    assert_eq!(commands(&server, "hget"), before, "nothing that is here was fetched");

    // Redis goes away: old ranges say so, new ones do not care.
    drop(server);
    let begin = now();
    let (samples, warnings) = query(&store, all, later);
    assert_eq!(samples, 60);
    assert!(warnings[0].contains("does not answer") && warnings.len() == 1, "{warnings:?}");
    assert_eq!(query(&store, "x{instance=\"i3\"}[5m]", later + 600_000), (0, vec![]));
    assert!(begin.elapsed() < Duration::from_secs(3));
    drop((writer, store));
    std::fs::remove_dir_all(found).unwrap();
}

/// The local directory keeps an hour, Redis a week.
#[test]
fn what_local_retention_removed_is_read_from_redis() {
    let (dir, base) = (dir("retention"), base_ms());
    let server = Server::start(free_port(), &[]);
    let config = StoreConfig {
        free_bytes_min: 0,
        raw_retention_ms: 3_600_000,
        ..StoreConfig::at(dir.clone())
    };
    let (store, mut writer, _) = Store::open(config.clone(), base).unwrap();
    let mut first = mirror(&store, &server.url(), base);
    fill(&mut writer, base);
    while first.pass(base).is_zero() {}
    let all = "x{instance=\"i3\"}[1h]";
    let later = base + 7_200_000;
    fill(&mut writer, later);
    while first.pass(later).is_zero() {}
    // What is not rolled up is not removed; by now it is.
    writer.settle(later + 1_300_000).unwrap();
    assert_eq!(store.counts().segments_expired, 1);
    assert_eq!(query(&store, all, base), (60, vec![]));
    assert_eq!(commands(&server, "hget"), 1);
    drop((writer, store, first));

    // A restart does not forget that there is something to ask for.
    let (store, _writer, _) = Store::open(config, later + 60_000).unwrap();
    let mut second = mirror(&store, &server.url(), later + 60_000);
    second.pass(later + 60_000);
    assert_eq!(query(&store, all, base), (60, vec![]));
    assert_eq!(query(&store, "x{instance=\"i3\"}[5m]", later + 600_000), (0, vec![]));
    assert_eq!(commands(&server, "hget"), 2);
    std::fs::remove_dir_all(dir).unwrap();
}

/// One time-out for the first query, none for the next; and it is used again when it goes on.
#[test]
fn a_redis_that_hangs_costs_a_query_one_time_out() {
    let (lost, found, base) = (dir("hang-lost"), dir("hang-found"), base_ms());
    let server = Server::start(free_port(), &[]);
    {
        let (store, mut writer) = open(&lost, base);
        fill(&mut writer, base);
        let mut mirror = mirror(&store, &server.url(), base);
        while mirror.pass(base).is_zero() {}
    }
    let (store, _writer) = open(&found, base + 1000);
    let mut mirror = mirror(&store, &server.url(), base + 1000);
    mirror.pass(base + 1000);
    // All twenty hosts: each would wait by itself.
    assert_eq!(query(&store, "x[1h]", base), (1200, vec![]));
    server.signal(Signal::SIGSTOP);
    let begin = now();
    for _ in 0..2 {
        let (samples, warnings) = query(&store, "x[2h]", base);
        assert_eq!((samples, warnings.len()), (0, 1), "{warnings:?}");
    }
    let took = begin.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&took), "{took:?}");
    server.signal(Signal::SIGCONT);
    until("Redis to be asked again", || query(&store, "x[2h]", base) == (1200, vec![]));
    for dir in [lost, found] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}

fn hello() -> Hello {
    Hello {
        host: 7,
        instance: "a".into(),
        job: "node".into(),
        version: "0.9".into(),
        kernel: "6.1".into(),
        labels: vec![("rack".into(), "r1".into())],
        interval_ms: 1000,
        ..Hello::default()
    }
}

/// Ten minutes of one agent's host, sealed.
fn fill_host(dir: &Path, base: i64) {
    let (_store, mut writer) = open(&dir.join("store"), base);
    write_rows(&mut writer, 0..60, base - 500_000);
    writer.settle(base + 31_000).unwrap();
    let (registry, _) = Registry::open(dir).unwrap();
    registry.hello(&hello(), base);
    registry.seen(HostId(7), base + 5);
    registry.save(&[], 100).unwrap();
}

/// The whole broker: its state directory is lost, Redis is not.
#[test]
fn a_broker_without_a_past_finds_hosts_and_history_in_redis() {
    let (lost, found, base) = (dir("broker-lost"), dir("broker-found"), base_ms());
    std::fs::create_dir_all(&lost).unwrap();
    fill_host(&lost, base);
    let server = Server::start(free_port(), &[]);
    let broker = start(&lost, &server.url());
    until("the fill", || !server.blocks().is_empty());
    until("the mark", || ask(&broker, "/metrics").1.contains("redis_lag_segments 0\n"));
    let hosts = ask(&broker, "/api/strobe/v1/hosts").1;
    assert!(hosts.contains("\"instance\":\"a\""), "{hosts}");
    let at = base / 1000 - 440;
    let path = format!("/api/v1/query?query=node_load1&time={at}");
    let answer = ask(&broker, &path).1;
    assert!(answer.contains("\"rack\":\"r1\"") && answer.contains("\"1.5\""), "{answer}");
    broker.stop();
    std::fs::remove_dir_all(&lost).unwrap();

    let broker = start(&found, &server.url());
    until("the hosts", || ask(&broker, "/api/strobe/v1/hosts").1 == hosts);
    assert_eq!(ask(&broker, &path).1, answer);
    let port = server.port;
    drop(server);
    let (status, partly) = ask(&broker, &path);
    assert_eq!(status, 200);
    let wanted = [r#""result":[]},"warnings":["Redis at 127.0.0.1:"#, &port.to_string()];
    assert!(wanted.iter().all(|part| partly.contains(part)), "{partly}");
    broker.stop();
    std::fs::remove_dir_all(&found).unwrap();
}
