//! What is left of what was acknowledged when a disk, a broker or Redis dies: the cells of
//! `docs/durability.md` that need a Redis.

use crate::peer::{Peer, enrol, hello, row};
use crate::support::{
    Server, ask, dir, free_port, mirror, now, open, query, send, series, start_with, uninterrupted,
    until, wall_ms, write_copied_rows,
};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;
use strobe_broker::Broker;
use strobe_broker::remote_write;
use strobe_broker::store::redis::{Confirmed, RedisConfig, restore};
use strobe_broker::store::{Recovery, Store, StoreConfig};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::message::ApiRequest;

const HOST: HostId = HostId(7);
const BOTH: [&str; 2] = ["--durability", "wal+redis"];

/// One request of 60 samples; its answer.
fn write(broker: &Broker, instance: &str, from_ms: i64) -> u16 {
    let body = remote_write::encode(&[series(instance, from_ms)]);
    let (method, path) = ("POST".into(), "/api/v1/write".into());
    send(broker, ApiRequest { method, path, body, ..ApiRequest::default() }).0
}

/// How many samples of all instances there are.
fn samples(broker: &Broker) -> u64 {
    let at = wall_ms() / 1000;
    let path = format!("/api/v1/query?query=sum(count_over_time(x[20m]))&time={at}");
    let answer = ask(broker, &path).1;
    let value = answer.split("\"value\":[").nth(1).and_then(|rest| rest.split('"').nth(1));
    value.map_or(0, |value| value.parse().unwrap())
}

/// How many records the log in Redis has.
fn logged(server: &Server) -> u64 {
    let mut redis = server.connect();
    let keys: Vec<String> = redis::cmd("KEYS").arg("monitor:log:*").query(&mut redis).unwrap();
    let length = |key| redis::cmd("XLEN").arg(key).query::<u64>(&mut redis).unwrap();
    keys.iter().map(length).sum()
}

/// The disk dies: with `wal` what was in no block is lost, with `wal+redis` nothing is.
#[test]
fn a_lost_disk_costs_nothing_that_redis_took() {
    for (durability, kept) in [("wal", 0), ("wal+redis", 120)] {
        let dir = dir(&format!("disk-{}", durability.len()));
        let server = Server::start(free_port(), &[]);
        let more = ["--durability", durability];
        let broker = start_with(&dir, &server.url(), &more);
        let from = wall_ms() - 130_000;
        for instance in ["a", "b"] {
            assert_eq!(write(&broker, instance, from), 204);
        }
        // At the moment of the answer, not some time later.
        assert_eq!(logged(&server), if kept == 0 { 0 } else { 2 }, "{durability}");
        assert_eq!(samples(&broker), 120);
        broker.stop();
        std::fs::remove_dir_all(&dir).unwrap();
        let broker = start_with(&dir, &server.url(), &more);
        assert_eq!(samples(&broker), kept, "{durability}");
        // What is sent again is not there twice.
        assert_eq!(write(&broker, "a", from), 204);
        assert_eq!(samples(&broker), kept.max(60), "{durability}");
        broker.stop();
        std::fs::remove_dir_all(dir).unwrap();
    }
}

/// Redis hangs: nothing is acknowledged meanwhile, everything afterwards, and what is asked is
/// answered all the time.
#[test]
fn a_hung_redis_holds_acknowledgements_and_nothing_else() {
    let dir = dir("held");
    let server = Server::start(free_port(), &[]);
    let broker = start_with(&dir, &server.url(), &BOTH);
    assert_eq!(write(&broker, "a", wall_ms() - 130_000), 204);
    server.signal(Signal::SIGSTOP);
    let (other, begin) = (broker.clone(), now());
    let waiting = std::thread::spawn(move || {
        let status = write(&other, "b", wall_ms() - 130_000);
        (status, begin.elapsed())
    });
    until("the samples to be seen", || samples(&broker) == 120);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    std::thread::park_timeout(Duration::from_millis(1500));
    assert!(!waiting.is_finished(), "not acknowledged");
    server.signal(Signal::SIGCONT);
    let (status, took) = waiting.join().unwrap();
    assert!(status == 204 && Duration::from_millis(1500) < took, "{status} after {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

/// Redis dies and comes back with nothing; then the disk dies. And the other order: a broker without
/// a disk does not begin while Redis is away.
#[test]
fn an_emptied_redis_has_the_log_again_before_the_disk_dies() {
    let dir = dir("both");
    let server = Server::start(free_port(), &[]);
    let (url, port) = (server.url(), server.port);
    let broker = start_with(&dir, &url, &BOTH);
    assert_eq!(write(&broker, "a", wall_ms() - 130_000), 204);
    drop(server);
    let server = Server::start(port, &[]);
    until("the log", || logged(&server) == 1);
    assert_eq!(write(&broker, "b", wall_ms() - 130_000), 204);
    broker.stop();
    drop(broker);
    // The broker alone dies: its own log has it all.
    let broker = start_with(&dir, &url, &BOTH);
    assert_eq!(samples(&broker), 120);
    broker.stop();
    std::fs::remove_dir_all(&dir).unwrap();

    server.signal(Signal::SIGSTOP);
    let refused = refused(&dir, &url);
    assert!(refused.contains("does not answer") && refused.contains("\"wal\""), "{refused}");
    server.signal(Signal::SIGCONT);
    let broker = start_with(&dir, &url, &BOTH);
    assert_eq!(samples(&broker), 120);
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

/// What was in one place, or in two that are both gone, is gone: the cells that say so. It is said, too: what a
/// host was acknowledged is not named as stored, and is told as lost when the host goes on behind it.
#[test]
fn what_nobody_has_is_lost() {
    let server = Server::start(free_port(), &[]);
    let url = server.url();
    for (store, more, in_redis) in [("local", &[][..], 0), (&url, &[], 0), (&url, &BOTH, 6)] {
        let dir = dir("lost");
        let broker = start_with(&dir, store, more);
        assert_eq!(write(&broker, "a", wall_ms() - 130_000), 204);
        assert_eq!(samples(&broker), 60);
        let (mut peer, named) = member(&broker);
        assert_eq!(named, 0);
        let base = wall_ms() - 10_000;
        (1..=5)
            .for_each(|seq| peer.frame(&row(HOST, seq, base + i64::try_from(seq).unwrap() * 1000)));
        peer.acked(5);
        assert_eq!(server.length("monitor:log:*"), in_redis, "{store} {more:?}");
        drop(peer);
        broker.stop();
        drop(broker);
        std::fs::remove_dir_all(&dir).unwrap();
        server.tell(&["FLUSHALL"]);
        let broker = start_with(&dir, store, more);
        assert_eq!(samples(&broker), 0, "{store} {more:?}");
        let (mut peer, named) = member(&broker);
        assert_eq!(named, 0, "nothing is named as stored: {store} {more:?}");
        peer.frame(&row(HOST, 6, base + 6000));
        peer.acked(6);
        let told = "\nstrobe_broker_frames_lost_total{reason=\"skipped\"} 5\n";
        until("the loss is told", || ask(&broker, "/metrics").1.contains(told));
        assert_eq!(samples(&broker), 1, "what comes now is kept: {store} {more:?}");
        drop(peer);
        broker.stop();
        std::fs::remove_dir_all(dir).unwrap();
    }
}

/// A host, enrolled, and up to where a broker says that it has its frames.
fn member(broker: &Broker) -> (Peer, u64) {
    let token = broker.enrolment_token(Duration::from_secs(60)).unwrap();
    let identity = enrol(broker, &token, HOST).unwrap();
    Peer::begin(broker, &identity, hello(HOST, "b"))
}

/// A node of a Redis Cluster fails over without its last writes, and the others have theirs: what marks the
/// log's place is on one of those.
#[test]
fn what_one_node_has_lost_comes_again() {
    let (dir, base) = (dir("node"), wall_ms() - 60_000);
    let server = Server::start(free_port(), &[]);
    let (store, mut writer) = open(&dir, base);
    let confirmed = Confirmed::default();
    confirmed.want(true);
    let mut log = mirror(&store, &server.url(), base).log(confirmed.clone());
    write_copied_rows(&mut writer, 0..20, base);
    log.pass(base);
    assert_eq!((confirmed.through(), logged(&server)), (writer.synced(), 20));
    let mut redis = server.connect();
    for lost in ["monitor:log:{*", "monitor:mark:log:{*"] {
        let keys: Vec<String> = redis::cmd("KEYS").arg(lost).query(&mut redis).unwrap();
        assert_eq!(keys.len(), 1, "{keys:?}");
        server.tell(&["DEL", &keys[0]]);
    }
    log.pass(base + 1_001);
    assert_eq!((confirmed.through(), logged(&server)), (writer.synced(), 20));
    // What it has is not sent again and again.
    log.pass(base + 2_002);
    log.pass(base + 3_003);
    assert_eq!(logged(&server), 20);
    drop(writer);
    std::fs::remove_dir_all(dir).unwrap();
}

/// What taking the log in says.
fn refused(dir: &Path, url: &str) -> String {
    let (_store, mut writer) = open(&dir.join("store"), wall_ms());
    let config = RedisConfig::at(url.to_owned());
    let mut recovery = Recovery::default();
    restore(&config, &mut writer, &mut recovery, wall_ms()).unwrap_err().to_string()
}

/// Frames come back with their numbers, so that what an agent sends again is known.
#[test]
fn frames_are_restored_once_with_their_numbers() {
    let (lost, found, base) = (dir("frames-lost"), dir("frames-found"), wall_ms() - 60_000);
    let server = Server::start(free_port(), &[]);
    {
        let (store, mut writer) = open(&lost, base);
        let confirmed = Confirmed::default();
        let mut log = mirror(&store, &server.url(), base).log(confirmed.clone());
        log.pass(base);
        write_copied_rows(&mut writer, 0..20, base);
        assert!(confirmed.through() < writer.synced());
        log.pass(base);
        assert_eq!(confirmed.through(), writer.synced());
        // A mark that is lost makes the log come twice.
        let mut redis = server.connect();
        let marks: Vec<String> =
            redis::cmd("KEYS").arg("monitor:logs:*").query(&mut redis).unwrap();
        server.tell(&["DEL", &marks[0]]);
        write_copied_rows(&mut writer, 20..30, base);
        log.pass(base + 1001);
        assert_eq!(logged(&server), 50);
    }
    let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(found.clone()) };
    let (store, mut writer, mut recovery) = Store::open(config, base).unwrap();
    let redis = RedisConfig::at(server.url());
    let restored = uninterrupted(|| {
        recovery = Recovery::default();
        restore(&redis, &mut writer, &mut recovery, base)
    });
    assert_eq!(restored, 50);
    assert_eq!(query(&store, "node_load1{rack=\"r1\"}[5m]", base + 60_000), (30, vec![]));
    let seen = &recovery.seen[0];
    assert_eq!((recovery.seen.len(), seen.host, seen.boot), (1, HostId(7), BootId(1)));
    assert_eq!(seen.ranges, (0..30).map(|seq| (seq, seq)).collect::<Vec<_>>());
    // One that was cut short is done again, and nothing is there twice.
    std::fs::write(found.join("restoring"), "").unwrap();
    let mut again = Recovery { records: 30, ..Recovery::default() };
    assert_eq!(uninterrupted(|| restore(&redis, &mut writer, &mut again, base)), 50);
    assert_eq!(query(&store, "node_load1{rack=\"r1\"}[5m]", base + 60_000), (30, vec![]));
    // A directory that has something of its own is not mixed with it.
    assert_eq!(
        restore(&redis, &mut writer, &mut Recovery { records: 1, ..recovery }, base).unwrap(),
        0
    );
    drop(writer);
    for dir in [lost, found] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}
