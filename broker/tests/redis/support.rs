//! A redis-server of a test, a store, and what is asked of both.

pub(crate) use crate::peer::{now, wall_ms};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use strobe_broker::config::{Durability, KEYS};
use strobe_broker::query::{Deadline, Engine, Limits, Output};
use strobe_broker::store::redis::{Mirror, MirrorCounts, Parts, RedisConfig};
use strobe_broker::store::{RemoteSeries, Store, StoreConfig, Writer};
use strobe_broker::{Broker, Config};
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::message::ApiRequest;
use strobe_wire::schema::{Column, Kind, Labels, Schema};
use strobe_wire::settings::Settings;

/// Until `done` says so, at most 15 s.
pub(crate) fn until(what: &str, done: impl FnMut() -> bool) {
    within(15, what, done);
}

/// Until `done` says so, at most so many seconds.
pub(crate) fn within(seconds: u64, what: &str, mut done: impl FnMut() -> bool) {
    let end = now() + Duration::from_secs(seconds);
    while !done() {
        assert!(now() < end, "{what} did not happen in {seconds} s");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A server without a file, ended with the test.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) port: u16,
}

impl Server {
    pub(crate) fn start(port: u16, more: &[&str]) -> Self {
        let port_text = port.to_string();
        let args =
            ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        // What a replica is sent lies there for a moment: another server would begin with it.
        let file = format!("strobe-redis-{port}.rdb");
        let child = Command::new("redis-server")
            .args(args)
            .args(["--dbfilename", &file])
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

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub(crate) fn connect(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// One section of what it says about itself.
    pub(crate) fn info(&self, section: &str) -> String {
        Self::info_of(self.port, section)
    }

    pub(crate) fn info_of(port: u16, section: &str) -> String {
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let redis = client.get_connection_with_timeout(Duration::from_secs(5));
        let ask = |mut redis| redis::cmd("INFO").arg(section).query(&mut redis);
        redis.and_then(ask).unwrap_or_default()
    }

    /// Carries a command out.
    pub(crate) fn tell(&self, command: &[&str]) {
        assert!(self.try_tell(command), "{command:?} is refused");
    }

    pub(crate) fn try_tell(&self, command: &[&str]) -> bool {
        let mut redis = self.connect();
        redis::cmd(command[0]).arg(&command[1..]).exec(&mut redis).is_ok()
    }

    /// Whether it has this key.
    pub(crate) fn has(&self, key: &str) -> bool {
        redis::cmd("EXISTS").arg(key).query(&mut self.connect()).unwrap()
    }

    /// How many entries these streams have.
    pub(crate) fn length(&self, pattern: &str) -> u64 {
        let mut redis = self.connect();
        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query(&mut redis).unwrap();
        let length = |key| redis::cmd("XLEN").arg(key).query::<u64>(&mut redis).unwrap();
        keys.into_iter().map(length).sum()
    }

    /// What it answers, as text.
    pub(crate) fn say(&self, command: &[&str]) -> String {
        let mut redis = self.connect();
        redis::cmd(command[0]).arg(&command[1..]).query(&mut redis).unwrap()
    }

    /// Every raw block by its host and place, by way of the indexes.
    pub(crate) fn blocks(&self) -> BTreeMap<String, Vec<u8>> {
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
        let file = format!("strobe-redis-{}.rdb", self.port);
        drop(std::fs::remove_file(std::env::temp_dir().join(file)));
    }
}

/// A ring of a log that was dropped may interrupt a call of the thread that used it, which has one a thread outside
/// of tests: whoever was interrupted asks again.
pub(crate) fn uninterrupted<E: std::fmt::Display>(mut work: impl FnMut() -> Result<u64, E>) -> u64 {
    loop {
        match work() {
            Ok(done) => return done,
            Err(why) => assert!(why.to_string().contains("Interrupted system call"), "{why}"),
        }
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("strobe-redis-{name}-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    dir
}

pub(crate) fn series(instance: &str, start_ms: i64) -> RemoteSeries {
    let labels = [("__name__", "x"), ("job", "j"), ("instance", instance)];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let samples = (0..60).map(|n: i32| (start_ms + i64::from(n) * 1000, f64::from(n)));
    RemoteSeries { labels: Labels::new(labels.to_vec()), samples: samples.collect() }
}

/// Twenty sources' samples of the ten minutes before `end_ms`, sealed.
pub(crate) fn fill(writer: &mut Writer, end_ms: i64) {
    let all: Vec<_> = (0..20).map(|n| series(&format!("i{n}"), end_ms - 500_000)).collect();
    writer.samples(&all).unwrap();
    writer.commit(end_ms).unwrap();
    for tick in 0..20 {
        writer.tick(end_ms + 31_000 + tick).unwrap();
    }
}

/// The blocks of the segment files, found by their place.
pub(crate) fn equal_local(dir: &Path, blocks: &BTreeMap<String, Vec<u8>>) {
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

pub(crate) fn open(dir: &Path, now_ms: i64) -> (Store, Writer) {
    let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.to_owned()) };
    let (store, writer, _) = Store::open(config, now_ms).unwrap();
    (store, writer)
}

pub(crate) fn counts(mirror: &Mirror) -> MirrorCounts {
    *mirror.counts().lock().unwrap()
}

/// The last end of ten minutes that lies an hour back.
pub(crate) fn base_ms() -> i64 {
    (wall_ms() - 3_600_000) / 600_000 * 600_000
}

/// Like [`base_ms`], with an hour of which nothing is rolled up in the half hour that follows.
pub(crate) fn whole_hour_ms() -> i64 {
    base_ms() / 3_600_000 * 3_600_000 - 3_000_000
}

/// Passes until everything is in Redis, at most 30 s.
pub(crate) fn drive(mirror: &mut Mirror, now_ms: i64) {
    let end = now() + Duration::from_secs(30);
    loop {
        let wait = mirror.pass(now_ms);
        let counts = counts(mirror);
        if counts.connected && counts.lag_segments == 0 && !wait.is_zero() {
            return;
        }
        assert!(now() < end, "not in Redis after 30 s: {counts:?}");
        std::thread::park_timeout(wait.min(Duration::from_millis(300)));
    }
}

/// What `expr` gives at `at_ms` for one host, and what it says is missing.
pub(crate) fn query(store: &Store, expr: &str, at_ms: i64) -> (usize, Vec<String>) {
    let engine = Engine::new(store.for_query());
    let output = engine.instant(expr, at_ms, &Limits::usual(), Deadline::never()).unwrap();
    let Output::Matrix(series) = output else { panic!("{expr} is a range") };
    (series.iter().map(|raw| raw.times.len()).sum(), engine.store().warnings())
}

pub(crate) fn mirror(store: &Store, url: &str, now_ms: i64) -> Mirror {
    mirror_with(store, RedisConfig::at(url.to_owned()), now_ms)
}

pub(crate) fn mirror_with(store: &Store, config: RedisConfig, now_ms: i64) -> Mirror {
    let parts = Parts { store, registry: None, stopping: Arc::default(), now_ms, clock: now };
    Mirror::new(config, parts).unwrap()
}

pub(crate) fn start(dir: &Path, url: &str) -> Broker {
    start_with(dir, url, &[])
}

pub(crate) fn start_with(dir: &Path, url: &str, more: &[&str]) -> Broker {
    let dir = dir.to_str().unwrap();
    let args = ["--dir", dir, "--broker-listen", "127.0.0.1:0", "--store", url];
    let args: Vec<String> = args.iter().chain(more).map(|a| (*a).to_owned()).collect();
    let settings = Settings::load(KEYS, None, &|_| None, &args).unwrap();
    Broker::start(Config::of(&settings, None, false).unwrap()).unwrap()
}

pub(crate) fn ask(broker: &Broker, path: &str) -> (u16, String) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    send(
        broker,
        ApiRequest {
            method: "GET".into(),
            path: path.into(),
            query: query.into(),
            ..ApiRequest::default()
        },
    )
}

pub(crate) fn send(broker: &Broker, request: ApiRequest) -> (u16, String) {
    let answer = broker.api(request);
    (answer.status, String::from_utf8(answer.body).unwrap())
}

/// How often Redis was given a command.
pub(crate) fn commands(server: &Server, name: &str) -> u64 {
    let mut redis = server.connect();
    let text: String = redis::cmd("INFO").arg("commandstats").query(&mut redis).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(&format!("cmdstat_{name}:calls=")));
    line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// One column of host 7.
pub(crate) fn load() -> Schema {
    let labels = Labels::default();
    let column = Column { name: "node_load1".into(), labels, kind: Kind::Gauge { scale: 2 } };
    Schema { section: "load".into(), columns: vec![column] }
}

/// Rows of host 7 with these numbers, a second apart, committed.
pub(crate) fn write_rows(writer: &mut Writer, seqs: std::ops::Range<u64>, from_ms: i64) {
    rows_of(writer, seqs, from_ms, Durability::Wal);
}

/// The same of class `wal+redis`.
pub(crate) fn write_copied_rows(writer: &mut Writer, seqs: std::ops::Range<u64>, from_ms: i64) {
    rows_of(writer, seqs, from_ms, Durability::WalRedis);
}

fn rows_of(writer: &mut Writer, seqs: std::ops::Range<u64>, from_ms: i64, class: Durability) {
    let schema = load();
    writer.schema(&schema).unwrap();
    writer.host(HostId(7), "node", "a", &Labels::of(&[("rack", "r1")])).unwrap();
    for seq in seqs {
        let header = Header {
            kind: FrameKind::Row,
            host: HostId(7),
            boot: BootId(1),
            seq: Seq(seq),
            wall_ns: (from_ms + i64::try_from(seq).unwrap() * 1000) * 1_000_000,
            boottime_ns: 0,
            schema: schema.id(),
        };
        let mut slot = [0; FRAME_BYTES_MAX];
        let row = Row { values: &[150], valid: &[1], scores: &[] };
        let length = seal_row(&mut slot, &header, &row).unwrap();
        writer.frame_of(&Bytes::copy_from_slice(&slot[..length]), class).unwrap();
    }
    writer.commit(from_ms).unwrap();
}
