//! What arrives in Redis, and how it is filled again.

use crate::support::{
    Server, ask, base_ms, counts, dir, equal_local, fill, free_port, mirror, open, start, until,
};

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
