//! What an acknowledgement is worth host by host: `wal` beside `wal+redis` on one broker.

use crate::peer::{Peer, enrol, hello, row};
use crate::support::{Server, ask, dir, free_port, start, start_with, until, wall_ms};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;
use strobe_broker::{Broker, control};
use strobe_wire::ids::HostId;
use strobe_wire::message::{ApiRequest, Hello, Message};
use strobe_wire::pki::Identity;

const GOLD: &str = "[label.\"class=gold\".broker]\ndurability = \"wal+redis\"\n";

/// Puts a text in force; what is said of it.
fn configure(dir: &Path, text: &str) -> (u16, String) {
    let request = ApiRequest {
        method: "POST".into(),
        path: "/api/strobe/v1/config/apply".into(),
        query: "reason=test&now=1".into(),
        body: text.into(),
        ..ApiRequest::default()
    };
    let answer = control::ask(dir, request, Duration::from_secs(10)).unwrap();
    (answer.status, String::from_utf8(answer.body).unwrap())
}

/// One of this class, enrolled.
fn member(broker: &Broker, number: u128, class: &str) -> (Hello, Identity) {
    let token = broker.enrolment_token(Duration::from_secs(60)).unwrap();
    let identity = enrol(broker, &token, HostId(number)).unwrap();
    let labels = vec![("class".to_owned(), class.to_owned())];
    (Hello { labels, ..hello(HostId(number), class) }, identity)
}

fn begin(broker: &Broker, (hello, identity): &(Hello, Identity)) -> (Peer, u64) {
    Peer::begin(broker, identity, hello.clone())
}

fn send(peer: &mut Peer, host: u128, seqs: std::ops::RangeInclusive<u64>, base: i64) {
    for seq in seqs {
        peer.frame(&row(HostId(host), seq, base + i64::try_from(seq).unwrap() * 1000));
    }
}

/// Whether it is told nothing for this long.
fn hears_nothing(peer: &mut Peer, ms: u64) -> bool {
    match peer.message(Duration::from_millis(ms)) {
        None => peer.closed.is_none(),
        Some(Message::Ack { .. }) => false,
        Some(other) => panic!("{other:?}"),
    }
}

fn rows(broker: &Broker, instance: &str) -> usize {
    let path = "/api/v1/query?query=count_over_time(x%7Binstance%3D%22I%22%7D%5B20m%5D)";
    let (_, text) = ask(broker, &path.replace('I', instance));
    let value = text.split("\"value\":[").nth(1).and_then(|rest| rest.split('"').nth(1));
    value.map_or(0, |value| value.parse().unwrap())
}

/// Redis hangs: who is of class `wal` is acknowledged as if nothing was, the others wait, and everybody's
/// rows are seen. A class that changes counts at once, for what waits too.
#[test]
fn a_hung_redis_holds_one_class_and_not_the_other() {
    let (dir, base) = (dir("classes"), wall_ms() - 60_000);
    let server = Server::start(free_port(), &[]);
    let broker = start(&dir, &server.url());
    let (status, said) = configure(&dir, GOLD);
    assert_eq!(status, 200, "{said}");
    let (gold, tin) = (member(&broker, 7, "gold"), member(&broker, 8, "tin"));
    let (mut gold_peer, _) = begin(&broker, &gold);
    let (mut tin_peer, _) = begin(&broker, &tin);
    for (peer, host) in [(&mut gold_peer, 7), (&mut tin_peer, 8)] {
        send(peer, host, 1..=5, base);
        peer.acked(5);
    }
    // Of one of them, Redis has the log.
    let mut redis = server.connect();
    let keys: Vec<String> = redis::cmd("KEYS").arg("monitor:log:*").query(&mut redis).unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    let length: u64 = redis::cmd("XLEN").arg(&keys[0]).query(&mut redis).unwrap();
    assert_eq!(length, 5, "what is acknowledged is there");

    server.signal(Signal::SIGSTOP);
    send(&mut gold_peer, 7, 6..=10, base);
    for from in [6, 11, 16] {
        send(&mut tin_peer, 8, from..=from + 4, base);
        tin_peer.acked(from + 4);
    }
    until("all rows to be seen", || rows(&broker, "gold") == 10 && rows(&broker, "tin") == 20);
    assert!(hears_nothing(&mut gold_peer, 1_000), "Redis does not have it");
    let (_, metrics) = ask(&broker, "/metrics");
    assert!(metrics.contains("\nstrobe_broker_acks_waiting 1\n"), "{metrics}");
    // Its class changes while it waits.
    assert_eq!(configure(&dir, "[broker]\ndurability = \"wal\"").0, 200);
    gold_peer.acked(10);
    send(&mut gold_peer, 7, 11..=12, base);
    gold_peer.acked(12);
    assert_eq!(configure(&dir, GOLD).0, 200);
    send(&mut gold_peer, 7, 13..=14, base);
    assert!(hears_nothing(&mut gold_peer, 500), "it counts at once");
    server.signal(Signal::SIGCONT);
    gold_peer.acked(14);
    broker.stop();
    drop(broker);

    // The disk dies: the one class is there, but for what was of the other then.
    std::fs::remove_dir_all(&dir).unwrap();
    let broker = start(&dir, &server.url());
    let kept = (rows(&broker, "gold"), rows(&broker, "tin"));
    // 6 to 10 were sent as gold, and are there whoever said so first.
    assert_eq!(kept, (12, 0));
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

/// A broker that starts while Redis does not answer names nothing of that class as stored: the agent would
/// let go of it, and it may be on one disk alone.
#[test]
fn a_start_without_redis_names_only_what_redis_has() {
    let (dir, base) = (dir("named"), wall_ms() - 60_000);
    let server = Server::start(free_port(), &[]);
    let both = ["--durability", "wal+redis"];
    let broker = start_with(&dir, &server.url(), &both);
    let tin = "[label.\"class=tin\".broker]\ndurability = \"wal\"\n";
    assert_eq!(configure(&dir, tin).0, 200);
    let (gold, tin) = (member(&broker, 7, "gold"), member(&broker, 8, "tin"));
    let (mut gold_peer, _) = begin(&broker, &gold);
    let (mut tin_peer, _) = begin(&broker, &tin);
    send(&mut gold_peer, 7, 1..=5, base);
    gold_peer.acked(5);
    server.signal(Signal::SIGSTOP);
    send(&mut gold_peer, 7, 6..=10, base);
    send(&mut tin_peer, 8, 1..=5, base);
    tin_peer.acked(5);
    until("the rows to be seen", || rows(&broker, "gold") == 10);
    drop((gold_peer, tin_peer));
    broker.stop();
    drop(broker);

    let broker = start_with(&dir, &server.url(), &both);
    assert_eq!(rows(&broker, "gold"), 10, "they are on the disk");
    let ((mut gold_peer, named), (_tin_peer, tins)) = (begin(&broker, &gold), begin(&broker, &tin));
    assert_eq!((named, tins), (0, 5), "Redis may lack them");
    // It still has what it was not told of.
    send(&mut gold_peer, 7, 6..=11, base);
    assert!(hears_nothing(&mut gold_peer, 1_000));
    server.signal(Signal::SIGCONT);
    gold_peer.acked(11);
    assert_eq!(rows(&broker, "gold"), 11, "each once");
    drop(gold_peer);
    assert_eq!(begin(&broker, &gold).1, 11);
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

/// What cannot be is said before it is agreed on.
#[test]
fn a_class_that_needs_a_redis_is_refused_without_one() {
    let dir = dir("no-redis");
    let broker = start(&dir, "local");
    for text in [GOLD, "[broker]\ndurability = \"wal+redis\"\n"] {
        let (status, why) = configure(&dir, text);
        assert!(status == 400 && why.contains("this broker has no Redis"), "{status} {why}");
    }
    assert_eq!(configure(&dir, "[broker]\ndurability = \"wal\"\n").0, 200);
    // It is given one while it runs.
    let server = Server::start(free_port(), &[]);
    let url = server.url().replace(':', "%3A").replace('/', "%2F");
    let request = ApiRequest {
        method: "POST".into(),
        path: "/api/strobe/v1/cluster/init".into(),
        query: format!("store={url}"),
        ..ApiRequest::default()
    };
    let answer = control::ask(&dir, request, Duration::from_secs(10)).unwrap();
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    until("the cluster of one", || configure(&dir, GOLD).0 == 200);
    let gold = member(&broker, 7, "gold");
    let (mut peer, _) = begin(&broker, &gold);
    send(&mut peer, 7, 1..=5, wall_ms() - 60_000);
    peer.acked(5);
    assert_eq!(server.length("monitor:log:*"), 5, "what is acknowledged is there");
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}
