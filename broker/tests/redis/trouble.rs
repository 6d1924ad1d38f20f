//! Redis is full, wants a password, hangs.

use crate::support::{
    Server, ask, base_ms, counts, dir, fill, free_port, mirror, now, open, query, send, series,
    start, until, wall_ms,
};
use nix::sys::signal::Signal;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;
use strobe_broker::remote_write;
use strobe_broker::store::redis::{Mirror, Parts, RedisConfig};
use strobe_wire::message::ApiRequest;

/// So many failures of one kind.
fn failed(at: usize, times: u64) -> [u64; 6] {
    let mut failures = [0; 6];
    failures[at] = times;
    failures
}

#[test]
fn a_full_redis_is_told_apart_and_filled_once_there_is_room() {
    let (dir, base) = (dir("oom"), base_ms());
    let (store, mut writer) = open(&dir, base);
    let server = Server::start(free_port(), &["--maxmemory", "1"]);
    let mut mirror = mirror(&store, &server.url(), base);
    fill(&mut writer, base);
    mirror.pass(base);
    assert_eq!(counts(&mirror).failures, failed(2, 1));
    let mut redis = server.connect();
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "0"]).exec(&mut redis).unwrap();
    while mirror.pass(base).is_zero() {}
    assert_eq!(server.blocks().len(), 20);
    drop((writer, store));
    std::fs::remove_dir_all(dir).unwrap();
}

/// What was logged, for the sentence that an operator reads.
struct Log(Mutex<Vec<String>>);

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.level() <= log::Level::Warn {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }
    fn flush(&self) {}
}

static LOG: Log = Log(Mutex::new(Vec::new()));
static LISTEN: Once = Once::new();

fn listen() {
    LISTEN.call_once(|| log::set_logger(&LOG).unwrap());
    log::set_max_level(log::LevelFilter::Warn);
}

/// Warnings and errors about a server.
fn said(server: &Server) -> Vec<String> {
    let all = LOG.0.lock().unwrap().clone();
    all.into_iter().filter(|line| line.contains(&format!(":{}", server.port))).collect()
}

/// Users and databases are given by the URL.
#[test]
fn a_user_is_let_in_by_the_url_and_one_without_rights_is_named() {
    let (dir, base) = (dir("users"), base_ms());
    let (store, mut writer) = open(&dir, base);
    fill(&mut writer, base);
    let users = ["--user", "alice", "on", ">secret", "~p:*", "&*", "+@all", "-@dangerous"];
    let more = ["--user", "bob", "on", ">secret", "~*", "&*", "+ping", "+select"];
    let server = Server::start(free_port(), &[&users[..], &more[..]].concat());
    let url = |who: &str| format!("redis://{who}@127.0.0.1:{}/3", server.port);
    let pass = |who: &str| {
        let config = RedisConfig { prefix: "p:".into(), ..RedisConfig::at(url(who)) };
        let parts = Parts {
            store: &store,
            registry: None,
            stopping: Arc::default(),
            now_ms: base,
            clock: now,
        };
        let mut mirror = Mirror::new(config, parts).unwrap();
        mirror.pass(base);
        counts(&mirror)
    };
    assert_eq!(pass("bob:secret").failures, failed(1, 1));
    // A query that needs what may be there says why it cannot have it.
    let warnings = query(&store, "x[3h]", base).1.join("; ");
    assert!(warnings.contains("does not let us in (NOPERM"), "{warnings}");
    assert!(!warnings.contains("secret"), "{warnings}");
    assert_eq!(pass("alice:wrong").failures, failed(1, 1));
    let good = pass("alice:secret");
    assert_eq!((good.failures, good.blocks), ([0; 6], 20));
    let keys: Vec<String> = {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/3", server.port)).unwrap();
        redis::cmd("KEYS").arg("*").query(&mut client.get_connection().unwrap()).unwrap()
    };
    assert!(!keys.is_empty() && keys.iter().all(|key| key.starts_with("p:")), "{keys:?}");
    drop((writer, store));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_redis_that_evicts_is_warned_about() {
    listen();
    let (dir, base) = (dir("evicts"), base_ms());
    let (store, _writer) = open(&dir, base);
    let lru = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let good = ["--maxmemory", "100mb", "--maxmemory-policy", "noeviction"];
    for (more, wanted) in [(lru, 1), (good, 0)] {
        let server = Server::start(free_port(), &more);
        mirror(&store, &server.url(), base).pass(base);
        let said = said(&server);
        assert_eq!(said.len(), wanted, "{said:?}");
        assert!(said.iter().all(|line| line.contains("maxmemory-policy noeviction")), "{said:?}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_wanted_password_is_counted_and_ingest_goes_on() {
    listen();
    let dir = dir("password");
    let server = Server::start(free_port(), &["--requirepass", "secret"]);
    let broker = start(&dir, &server.url());
    until("the failure", || {
        let (_, metrics) = ask(&broker, "/metrics");
        let line = metrics.lines().find(|l| l.contains("redis_failures_total{reason=\"auth\"}"));
        line.is_some_and(|line| !line.ends_with(" 0"))
    });
    let body = remote_write::encode(&[series("a", wall_ms() - 70_000)]);
    let (status, why) = send(
        &broker,
        ApiRequest {
            method: "POST".into(),
            path: "/api/v1/write".into(),
            body,
            ..ApiRequest::default()
        },
    );
    assert_eq!(status, 204, "{why}");
    assert_eq!(broker.store().counts().samples, 60);
    let said = said(&server);
    assert_eq!(said.len(), 1, "one sentence, once: {said:?}");
    let wanted = ["does not let us in (NOAUTH ", "put user and password into broker.store"];
    assert!(wanted.iter().all(|part| said[0].contains(part)) && said[0].len() < 400, "{said:?}");
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

/// The whole broker, with what it acknowledges by on its own disk.
#[test]
fn a_redis_that_hangs_stalls_neither_writes_nor_queries() {
    let dir = dir("stall");
    let server = Server::start(free_port(), &[]);
    let broker = start(&dir, &server.url());
    until("the connection", || ask(&broker, "/metrics").1.contains("redis_connected 1\n"));
    server.signal(Signal::SIGSTOP);
    let begin = now();
    let (mut slowest, mut n) = (Duration::ZERO, 0);
    // Longer than any wait for Redis, so that one would be felt.
    while begin.elapsed() < Duration::from_secs(4) {
        let since = now();
        let body = remote_write::encode(&[series(&format!("i{n}"), wall_ms() - 70_000)]);
        let (method, path) = ("POST".into(), "/api/v1/write".into());
        let request = ApiRequest { method, path, body, ..ApiRequest::default() };
        assert_eq!(send(&broker, request).0, 204);
        let path = format!("/api/v1/query?query=count(x)&time={}", wall_ms() / 1000 - 11);
        let (status, answer) = ask(&broker, &path);
        assert!(status == 200 && answer.contains(&format!("\"{}\"", n + 1)), "{answer}");
        slowest = slowest.max(since.elapsed());
        n += 1;
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    until("the failure", || ask(&broker, "/metrics").1.contains("redis_connected 0\n"));
    server.signal(Signal::SIGCONT);
    until("the end of it", || ask(&broker, "/metrics").1.contains("redis_connected 1\n"));
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_redis_that_hangs_is_left_in_bounded_time() {
    let (dir, base) = (dir("hang"), base_ms());
    let (store, writer) = open(&dir, base);
    let server = Server::start(free_port(), &[]);
    let mut mirror = mirror(&store, &server.url(), base);
    mirror.pass(base);
    server.signal(Signal::SIGSTOP);
    let begin = now();
    // While connected, and while connecting.
    mirror.pass(base);
    mirror.pass(base);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert_eq!(counts(&mirror).failures, failed(0, 2));
    server.signal(Signal::SIGCONT);
    mirror.pass(base);
    assert!(counts(&mirror).connected);
    drop((writer, store));
    std::fs::remove_dir_all(dir).unwrap();
}
