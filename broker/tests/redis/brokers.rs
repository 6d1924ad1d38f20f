//! Several brokers of a cluster write to one Redis: each its own blocks, behind the agreed epochs.

use crate::support::{
    Server, ask, base_ms, counts, dir, drive, fill, free_port, mirror, open, start, until,
};
use std::path::Path;
use std::time::Duration;
use strobe_broker::{Broker, control};
use strobe_wire::message::ApiRequest;

const SHARDS: usize = 256;

/// What a broker's owner asks of it; it is done.
fn operate(dir: &Path, what: &str, query: &str) -> String {
    let (path, query) = (format!("/api/strobe/v1/cluster/{what}"), query.to_owned());
    let request = ApiRequest { method: "POST".into(), path, query, ..ApiRequest::default() };
    let answer = control::ask(dir, request, Duration::from_secs(30)).unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    assert_eq!(answer.status, 200, "{text}");
    text
}

/// The epoch of each shard, as Redis has it; 0 where it has none.
fn epochs(server: &Server) -> Vec<u64> {
    let mut redis = server.connect();
    let of = |shard: usize| -> Option<u64> {
        let key = format!("monitor:epoch:{{s{shard:03}}}");
        redis::cmd("GET").arg(key).query(&mut redis).unwrap()
    };
    (0..SHARDS).map(of).map(Option::unwrap_or_default).collect()
}

fn metric(broker: &Broker, name: &str) -> u64 {
    let (_, text) = ask(broker, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("strobe_broker_{name} ")));
    line.and_then(|number| number.parse().ok()).unwrap_or(u64::MAX)
}

fn is_settled(broker: &Broker) -> bool {
    metric(broker, "redis_connected") == 1
        && metric(broker, "redis_lag_segments") == 0
        && metric(broker, "redis_fenced_shards") == 0
}

/// Each goes on from its own mark; who does not know the newest owners is refused.
#[test]
fn brokers_of_a_cluster_share_a_redis() {
    let (server, base) = (Server::start(free_port(), &[]), base_ms());
    let dirs = ["a", "b", "c"].map(|name| dir(&format!("brokers-{name}")));
    for dir in &dirs {
        let (store, mut writer) = open(&dir.join("store"), base);
        fill(&mut writer, base);
        drop((writer, store));
    }
    let [a, b, c] = dirs.each_ref().map(|dir| start(dir, &server.url()));
    operate(&dirs[0], "init", "");
    for dir in &dirs[1..] {
        let token = operate(&dirs[0], "token", "lifetime_ms=60000");
        operate(dir, "join", &format!("seed={}&token={}", a.quic_addr(), token.trim()));
    }
    until("all belong to it", || {
        let status = operate(&dirs[0], "status", "");
        let json: serde_json::Value = serde_json::from_str(&status).unwrap();
        let members = json["members"].as_array().unwrap();
        let good = |member: &serde_json::Value| member["shards"].as_u64() > Some(60);
        members.len() == 3 && members.iter().all(good)
    });
    // Redis comes back empty, and each fills it again: every shard is written to.
    server.tell(&["FLUSHALL"]);
    until("everything is in Redis", || {
        server.blocks().len() == 60 && [&a, &b, &c].into_iter().all(is_settled)
    });
    let before = epochs(&server);
    assert!(before.iter().all(|epoch| 0 < *epoch), "{before:?}");
    let written = [&a, &b, &c].map(|broker| metric(broker, "redis_blocks_total"));
    std::thread::park_timeout(Duration::from_secs(3));
    let again = [&a, &b, &c].map(|broker| metric(broker, "redis_blocks_total"));
    assert_eq!(again, written, "nobody takes another's mark for its own");

    // One is gone, and others own its shards.
    c.stop();
    until("the others own its shards", || {
        let json: serde_json::Value =
            serde_json::from_str(&operate(&dirs[0], "status", "")).unwrap();
        json["members"][2]["shards"] == 0
    });
    server.tell(&["FLUSHALL"]);
    until("they have written there", || {
        server.blocks().len() == 40 && [&a, &b].into_iter().all(is_settled)
    });
    let after = epochs(&server);
    let lost = after.iter().zip(&before).filter(|(now, then)| then < now).count();
    assert!(60 < lost, "{lost} shards have changed hands");
    // It does not know, as behind a partition, and goes on with what it knew.
    let (store, mut writer) = open(&dirs[2].join("store"), base);
    let mut deposed = mirror(&store, &server.url(), base);
    (0..SHARDS).for_each(|shard| deposed.epochs().set(shard, before[shard]));
    fill(&mut writer, base + 600_000);
    drive(&mut deposed, base + 600_000);
    assert_eq!(counts(&deposed).fenced_shards, u64::try_from(lost).unwrap());
    let held = server.blocks().len();
    // As soon as it knows, what it took in while it was the owner follows.
    (0..SHARDS).for_each(|shard| deposed.epochs().set(shard, after[shard]));
    drive(&mut deposed, base + 600_000);
    assert!(held < server.blocks().len() && counts(&deposed).fenced_shards == 0);
    drop((writer, store));
    a.stop();
    b.stop();
    for dir in &dirs {
        std::fs::remove_dir_all(dir).unwrap();
    }
}
