//! The mirror against a real redis-server on loopback: bytes, refill, and trouble that ingest does
//! not feel.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use strobe_broker::config::KEYS;
use strobe_broker::query::{Deadline, Engine, Limits, Output};
use strobe_broker::store::redis::{Mirror, MirrorCounts, Parts, RedisConfig};
use strobe_broker::store::{RemoteSeries, Store, StoreConfig, Writer};
use strobe_broker::{Broker, Config, remote_write};
use strobe_wire::message::ApiRequest;
use strobe_wire::schema::Labels;
use strobe_wire::settings::Settings;

#[expect(clippy::disallowed_methods, reason = "a test on real sockets reads the clock here")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a test on real sockets reads the clock here")]
fn wall_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Until `done` says so, at most 15 s.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = now() + Duration::from_secs(15);
    while !done() {
        assert!(now() < end, "{what} did not happen in 15 s");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A server without a file, ended with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(port: u16, more: &[&str]) -> Self {
        let port_text = port.to_string();
        let args =
            ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let child = Command::new("redis-server")
            .args(args)
            .args(more)
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::null())
            .spawn()
            .expect(
                "redis-server does not start: install it (Debian: apt-get install redis-server)",
            );
        let server = Self { child, port };
        until("redis-server's port", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn connect(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// Every raw block by its host and place, by way of the indexes.
    fn blocks(&self) -> BTreeMap<String, Vec<u8>> {
        let mut redis = self.connect();
        let ask = |name: &str| redis::cmd(name);
        let indexes: Vec<String> =
            ask("KEYS").arg("monitor:index:metrics:*").query(&mut redis).unwrap();
        let mut out = BTreeMap::new();
        for index in indexes {
            let places: Vec<String> =
                ask("ZRANGE").arg(&index).arg(0).arg(-1).query(&mut redis).unwrap();
            for place in places {
                let first_ms: i64 = place.split(':').next().unwrap().parse().unwrap();
                let t = first_ms / 600_000 * 600_000;
                let key = format!("{}:{t}", index.replace(":index:metrics:", ":metrics:"));
                let block: Vec<u8> = ask("HGET").arg(&key).arg(&place).query(&mut redis).unwrap();
                assert!(out.insert(format!("{index}:{place}"), block).is_none());
            }
        }
        out
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // By its id; it may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("strobe-redis-{name}-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    dir
}

fn series(instance: &str, start_ms: i64) -> RemoteSeries {
    let labels = [("__name__", "x"), ("job", "j"), ("instance", instance)];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let samples = (0..60).map(|n: i32| (start_ms + i64::from(n) * 1000, f64::from(n)));
    RemoteSeries { labels: Labels::new(labels.to_vec()), samples: samples.collect() }
}

/// Twenty sources' samples of the ten minutes before `end_ms`, sealed.
fn fill(writer: &mut Writer, end_ms: i64) {
    let all: Vec<_> = (0..20).map(|n| series(&format!("i{n}"), end_ms - 500_000)).collect();
    writer.samples(&all).unwrap();
    writer.commit(end_ms).unwrap();
    for tick in 0..20 {
        writer.tick(end_ms + 31_000 + tick).unwrap();
    }
}

/// The blocks of the segment files, found by their place.
fn equal_local(dir: &Path, blocks: &BTreeMap<String, Vec<u8>>) {
    let files: Vec<_> = std::fs::read_dir(dir.join("segments")).unwrap().collect();
    let raw = |number: u64| {
        let name = format!("raw-{number:016x}.seg");
        files.iter().flatten().find(|f| f.file_name() == *name).map(|f| f.path()).unwrap()
    };
    for (key, block) in blocks {
        let mut parts = key.rsplit('.');
        let (offset, number) = (parts.next().unwrap(), parts.next().unwrap());
        let file = std::fs::read(raw(u64::from_str_radix(number, 16).unwrap())).unwrap();
        let at = usize::from_str_radix(offset, 16).unwrap();
        assert!(block.starts_with(b"HB1"), "{key}");
        assert!(file[at..at + block.len()] == *block, "{key} differs from the segment");
    }
}

fn open(dir: &Path, now_ms: i64) -> (Store, Writer) {
    let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.to_owned()) };
    let (store, writer, _) = Store::open(config, now_ms).unwrap();
    (store, writer)
}

fn counts(mirror: &Mirror) -> MirrorCounts {
    *mirror.counts().lock().unwrap()
}

/// The last end of ten minutes that lies an hour back.
fn base_ms() -> i64 {
    (wall_ms() - 3_600_000) / 600_000 * 600_000
}

/// What `expr` gives at `at_ms` for one host, and what it says is missing.
fn query(store: &Store, expr: &str, at_ms: i64) -> (usize, Vec<String>) {
    let engine = Engine::new(store.for_query());
    let output = engine.instant(expr, at_ms, &Limits::usual(), Deadline::never()).unwrap();
    let Output::Matrix(series) = output else { panic!("{expr} is a range") };
    (series.iter().map(|raw| raw.times.len()).sum(), engine.store().warnings())
}

fn mirror(store: &Store, url: &str, now_ms: i64) -> Mirror {
    let parts = Parts { store, registry: None, stopping: Arc::default(), now_ms, clock: now };
    Mirror::new(RedisConfig::at(url.to_owned()), parts).unwrap()
}

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
    std::fs::write(dir.join("store-id"), "0123456789abcdef").unwrap();
    let mut other = self::mirror(&store, &server.url(), base);
    while other.pass(base + 600_000).is_zero() {}
    assert!(40 <= counts(&other).blocks);
    drop((writer, store));
    std::fs::remove_dir_all(dir).unwrap();
}

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

/// How often Redis was given a command.
fn commands(server: &Server, name: &str) -> u64 {
    let mut redis = server.connect();
    let text: String = redis::cmd("INFO").arg("commandstats").query(&mut redis).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(&format!("cmdstat_{name}:calls=")));
    line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

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

fn start(dir: &Path, url: &str) -> Broker {
    let dir = dir.to_str().unwrap();
    let args = ["--dir", dir, "--broker-listen", "127.0.0.1:0", "--store", url];
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    let settings = Settings::load(KEYS, None, &|_| None, &args).unwrap();
    Broker::start(Config::of(&settings, None, false).unwrap()).unwrap()
}

fn ask(broker: &Broker, method: &str, path: &str, body: Vec<u8>) -> (u16, String) {
    let request =
        ApiRequest { method: method.into(), path: path.into(), body, ..ApiRequest::default() };
    let answer = broker.api(request);
    (answer.status, String::from_utf8(answer.body).unwrap())
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
        let (_, metrics) = ask(&broker, "GET", "/metrics", Vec::new());
        metrics.contains("strobe_broker_redis_connected 1\n")
            && metrics.contains("strobe_broker_redis_lag_segments 0\n")
    });
    equal_local(&dir.join("store"), &server.blocks());
    broker.stop();
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
        let (_, metrics) = ask(&broker, "GET", "/metrics", Vec::new());
        let line = metrics.lines().find(|l| l.contains("redis_failures_total{reason=\"auth\"}"));
        line.is_some_and(|line| !line.ends_with(" 0"))
    });
    let body = remote_write::encode(&[series("a", wall_ms() - 70_000)]);
    let (status, why) = ask(&broker, "POST", "/api/v1/write", body);
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
    let pid = nix::unistd::Pid::from_raw(server.child.id().try_into().unwrap());
    let mut mirror = mirror(&store, &server.url(), base);
    mirror.pass(base);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let begin = now();
    // While connected, and while connecting.
    mirror.pass(base);
    mirror.pass(base);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert_eq!(counts(&mirror).failures, [2, 0, 0, 0]);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    mirror.pass(base);
    assert!(counts(&mirror).connected);
    drop((writer, store));
    std::fs::remove_dir_all(dir).unwrap();
}
