//! What arrives in Redis, and how it is filled again.

use crate::support::{
    Server, ask, base_ms, counts, dir, equal_local, fill, free_port, load, mirror, now, open,
    start, until, write_rows,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use strobe_broker::store::redis::{Mirror, Parts, RedisConfig};
use strobe_wire::ids::HostId;

#[test]
fn blocks_arrive_as_they_are_and_an_empty_redis_is_refilled() {
    let (dir, base) = (dir("refill"), base_ms());
    let (store, mut writer) = open(&dir, base);
    let server = Server::start(free_port(), &[]);
    let mut mirror = mirror(&store, &server.url(), base);
    fill(&mut writer, base);
    while mirror.pass(base).is_zero() {}
    let first = server.blocks();
    assert_eq!(first.len(), 20, "{:?}", counts(&mirror));
    equal_local(&dir, &first);
    let before = counts(&mirror);
    mirror.pass(base);
    assert_eq!(counts(&mirror), before, "nothing is written twice");

    // Every key has a life, a block's within 5 % of 7 days; hosts and schemas are described.
    let mut redis = server.connect();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut redis).unwrap();
    for key in &keys {
        let life: i64 = redis::cmd("TTL").arg(key).query(&mut redis).unwrap();
        assert!(0 < life, "{key} has no life");
        if key.starts_with("monitor:metrics:") {
            assert!((574_000..=635_040).contains(&life), "{key}: {life}");
        }
    }
    assert_eq!(keys.iter().filter(|key| key.starts_with("monitor:hosts:{s")).count(), 20);
    assert!(keys.iter().any(|key| key.starts_with("monitor:schema:")));

    // It goes away during ingest and comes back empty.
    let port = server.port;
    drop(server);
    assert!(!mirror.pass(base).is_zero());
    fill(&mut writer, base + 600_000);
    mirror.pass(base + 600_000);
    let gone = counts(&mirror);
    assert_eq!((gone.connected, gone.failures[0]), (false, 2));
    assert!(0 < gone.lag_segments && 0 < gone.lag_ms, "{gone:?}");
    let server = Server::start(port, &[]);
    while mirror.pass(base + 600_000).is_zero() {}
    let again = server.blocks();
    assert_eq!(again.len(), 40);
    assert!(first.iter().all(|(key, block)| again.get(key) == Some(block)));
    equal_local(&dir, &again);
    assert_eq!((counts(&mirror).lag_segments, counts(&mirror).connected), (0, true));

    // Another store's marks are not its own.
    std::fs::write(dir.join("store-id"), "0123456789abcdef 0").unwrap();
    let mut other = crate::support::mirror(&store, &server.url(), base);
    while other.pass(base + 600_000).is_zero() {}
    assert!(40 <= counts(&other).blocks);
    drop((writer, store));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_broker_mirrors_what_it_held_before() {
    let (dir, base) = (dir("broker"), base_ms());
    let (store, mut writer) = open(&dir.join("store"), base);
    fill(&mut writer, base);
    drop((writer, store));
    let server = Server::start(free_port(), &[]);
    let broker = start(&dir, &server.url());
    until("the fill", || server.blocks().len() == 20);
    until("the count", || {
        let (_, metrics) = ask(&broker, "/metrics");
        metrics.contains("strobe_broker_redis_connected 1\n")
            && metrics.contains("strobe_broker_redis_lag_segments 0\n")
    });
    equal_local(&dir.join("store"), &server.blocks());
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

/// One entry of a stream.
type Entry = (String, BTreeMap<String, Vec<u8>>);

fn stream(server: &Server) -> Vec<Entry> {
    let mut redis = server.connect();
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("monitor:queue:metrics:{s*}").query(&mut redis).unwrap();
    assert!(keys.len() <= 1, "{keys:?}");
    keys.first().map_or_else(Vec::new, |key| {
        let life: i64 = redis::cmd("TTL").arg(key).query(&mut redis).unwrap();
        assert!((3400..=3800).contains(&life), "{life}");
        redis::cmd("XRANGE").arg(key).arg("-").arg("+").query(&mut redis).unwrap()
    })
}

fn seqs(entries: &[Entry]) -> Vec<u64> {
    let number =
        |entry: &Entry| String::from_utf8(entry.1["seq"].clone()).unwrap().parse().unwrap();
    entries.iter().map(number).collect()
}

/// Rows are in the stream before they are sealed; once each, and again from the log where Redis
/// was emptied.
#[test]
fn fresh_rows_stand_in_a_stream() {
    let (dir, base) = (dir("stream"), base_ms());
    let (store, mut writer) = open(&dir, base);
    let server = Server::start(free_port(), &[]);
    let mut mirror = mirror(&store, &server.url(), base);
    write_rows(&mut writer, 0..20, base);
    mirror.pass(base);
    let entries = stream(&server);
    assert_eq!(seqs(&entries), Vec::from_iter(0..20));
    let fields = &entries[3].1;
    let text = |name: &str| String::from_utf8(fields[name].clone()).unwrap();
    assert_eq!(text("host"), HostId(7).to_string());
    assert_eq!(text("t"), (base + 3000).to_string());
    assert_eq!(text("schema"), load().id().to_string());
    assert_eq!(
        (&fields["values"][..], &fields["valid"][..]),
        (&150_u64.to_le_bytes()[..], &[1][..])
    );
    let mut redis = server.connect();
    let schema: String =
        redis::cmd("GET").arg(format!("monitor:schema:{}", load().id())).query(&mut redis).unwrap();
    assert!(schema.contains("node_load1"), "{schema}");

    mirror.pass(base);
    write_rows(&mut writer, 20..30, base);
    mirror.pass(base);
    mirror.pass(base);
    assert_eq!(seqs(&stream(&server)), Vec::from_iter(0..30), "each once");
    assert_eq!(counts(&mirror).rows, 30);

    // Another life goes on where the mark is.
    drop((mirror, writer, store));
    let (store, mut writer) = open(&dir, base);
    let mut mirror = crate::support::mirror(&store, &server.url(), base);
    write_rows(&mut writer, 30..40, base);
    mirror.pass(base);
    assert_eq!(seqs(&stream(&server)), Vec::from_iter(0..40));

    redis::cmd("FLUSHALL").exec(&mut redis).unwrap();
    while mirror.pass(base).is_zero() {}
    assert_eq!(seqs(&stream(&server)), Vec::from_iter(0..40), "all that the log has");
    std::fs::remove_dir_all(dir).unwrap();
}

/// Nobody reads it: it does not grow.
#[test]
fn a_stream_is_bounded_and_can_be_left_out() {
    let (dir, base) = (dir("bounded"), base_ms());
    let (store, mut writer) = open(&dir, base);
    let server = Server::start(free_port(), &[]);
    write_rows(&mut writer, 0..2000, base);
    for (queue_max, least, most) in [(0, 0, 0), (300, 300, 500)] {
        let config = RedisConfig { queue_max, ..RedisConfig::at(server.url()) };
        let parts = Parts {
            store: &store,
            registry: None,
            stopping: Arc::default(),
            now_ms: base,
            clock: now,
        };
        let mut mirror = Mirror::new(config, parts).unwrap();
        while mirror.pass(base).is_zero() {}
        let found = seqs(&stream(&server));
        assert!((least..=most).contains(&found.len()), "{}", found.len());
        assert!(found.last().is_none_or(|last| *last == 1999));
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// Redis is killed and comes back with what it had: it is filled from its own mark on, nothing twice.
#[test]
fn a_redis_that_comes_back_filled_gets_what_it_lacks() {
    // No hour ends in it: its rollup would be more blocks.
    let (dir, base) = (dir("filled"), base_ms() / 3_600_000 * 3_600_000 + 1_200_000);
    let files = dir.with_extension("aof");
    drop(std::fs::remove_dir_all(&files));
    std::fs::create_dir_all(&files).unwrap();
    let aof = ["--dir", files.to_str().unwrap(), "--appendonly", "yes", "--appendfsync", "always"];
    let (store, mut writer) = open(&dir, base);
    let server = Server::start(free_port(), &aof);
    let port = server.port;
    let mut mirror = mirror(&store, &server.url(), base);
    write_rows(&mut writer, 0..10, base - 400_000);
    fill(&mut writer, base);
    while mirror.pass(base).is_zero() {}
    let before = server.blocks();
    drop(server);
    write_rows(&mut writer, 10..20, base + 100_000);
    fill(&mut writer, base + 600_000);
    mirror.pass(base + 600_000);
    assert!(!counts(&mirror).connected);
    let server = Server::start(port, &aof);
    // Its file is read behind the open port.
    until("the fill", || {
        let wait = mirror.pass(base + 600_000);
        counts(&mirror).connected && !wait.is_zero()
    });
    let after = server.blocks();
    assert_eq!((before.len(), after.len()), (21, 42));
    assert!(before.iter().all(|(key, block)| after.get(key) == Some(block)));
    equal_local(&dir, &after);
    let counts = counts(&mirror);
    assert_eq!((counts.blocks, counts.rows), (42, 20), "each once: {counts:?}");
    assert_eq!(seqs(&stream(&server)), Vec::from_iter(0..20));
    drop(server);
    for dir in [dir, files] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}
