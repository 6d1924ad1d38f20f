//! Redis is full, wants a password, hangs.

use crate::support::{
    Server, ask, base_ms, counts, dir, fill, free_port, mirror, now, open, send, series, start,
    until, wall_ms,
};
use nix::sys::signal::Signal;
use std::sync::Mutex;
use std::time::Duration;
use strobe_broker::remote_write;
use strobe_wire::message::ApiRequest;

#[test]
fn a_full_redis_is_told_apart_and_filled_once_there_is_room() {
    let (dir, base) = (dir("oom"), base_ms());
    let (store, mut writer) = open(&dir, base);
    let server = Server::start(free_port(), &["--maxmemory", "1"]);
    let mut mirror = mirror(&store, &server.url(), base);
    fill(&mut writer, base);
    mirror.pass(base);
    assert_eq!(counts(&mirror).failures, [0, 0, 1, 0]);
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
        if record.level() == log::Level::Error {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }
    fn flush(&self) {}
}

static LOG: Log = Log(Mutex::new(Vec::new()));

#[test]
fn a_wanted_password_is_counted_and_ingest_goes_on() {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Error);
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
    let said: Vec<String> = LOG.0.lock().unwrap().clone();
    let said: Vec<_> = said.iter().filter(|line| line.contains(&server.port.to_string())).collect();
    assert_eq!(said.len(), 1, "one sentence, once: {said:?}");
    let wanted = ["does not let us in (NOAUTH ", "put user and password into broker.store"];
    assert!(wanted.iter().all(|part| said[0].contains(part)) && said[0].len() < 400, "{said:?}");
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
    assert_eq!(counts(&mirror).failures, [2, 0, 0, 0]);
    server.signal(Signal::SIGCONT);
    mirror.pass(base);
    assert!(counts(&mirror).connected);
    drop((writer, store));
    std::fs::remove_dir_all(dir).unwrap();
}
