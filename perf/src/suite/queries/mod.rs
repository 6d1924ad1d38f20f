//! The same data into Strobe, victoria-metrics and prometheus, and the same questions to each.
//!
//! The peers take remote-write; Strobe takes the same samples as it does from a fleet, as rows of
//! its own agents over QUIC that were spooled meanwhile, or by remote-write too, byte for byte the
//! same requests at the HTTP door of `strobe up`. Then each question is
//! asked in turns: every turn has a time of its own, so that no cache of answers helps, and every
//! system gets the same turns. What is measured is from the first byte sent to the last received.

pub mod fleet;

use crate::broker::sealed;
use crate::http::{Ask, Http};
use crate::peers::{Kind, Peer, free_port};
use crate::process::Watch;
use crate::report::Table;
use crate::run;
use crate::suite::{Bench, Found, shown, version_of};
use fleet::{Fleet, Span, instance};
use serde_json::{Value, json};
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use strobe_wire::pki::Authority;

/// What to load, and how often to ask.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Hosts of 150 series.
    pub hosts: usize,
    /// How long the data is.
    pub minutes: usize,
    /// Between two samples.
    pub interval_ms: i64,
    /// Turns of each question.
    pub turns: usize,
    /// Strobe only.
    pub alone: bool,
    /// How Strobe is loaded.
    pub by: By,
    /// Time between loading and asking.
    pub settle: Duration,
}

/// How Strobe gets its samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// As rows of agents, over QUIC.
    Agents,
    /// As the peers get them.
    RemoteWrite,
}

/// One of the systems.
struct System {
    name: &'static str,
    runs: Runs,
    watch: Watch,
    /// What it cost to load.
    load: Value,
    /// Microseconds of each turn, by question.
    took_us: Vec<Vec<f64>>,
}

enum Runs {
    Strobe(Strobe),
    Peer(Peer),
}

/// `strobe up --no-agent`; ended by its id when dropped.
struct Strobe {
    child: Child,
    dir: PathBuf,
    port: u16,
    quic: SocketAddr,
}

/// A question, of one turn.
struct Question {
    path: &'static str,
    query: String,
    times: String,
}

/// Loads, asks, and tells.
///
/// # Errors
/// A system does not start, does not take the data or does not answer, or two answers differ.
pub fn measure(bench: &Bench, wanted: &Wanted) -> Result<Found, String> {
    let scratch = bench.scratch("queries")?;
    let mut systems = start(bench, wanted, &scratch)?;
    let interval_ms = wanted.interval_ms;
    let now_ms = i64::try_from(run::wall_ms()).map_err(|_| "the clock is far off")?;
    let end_ms = (now_ms - END_AGO_MS).div_euclid(interval_ms) * interval_ms;
    let start_ms = end_ms - i64::try_from(wanted.minutes).unwrap_or(0) * 60_000;
    let samples = load(&mut systems, wanted, start_ms)?;
    if wanted.by == By::Agents {
        for system in &mut systems {
            system.replay(wanted, start_ms)?;
        }
    }
    run::sleep_until(run::now() + wanted.settle);
    for system in &mut systems {
        system.loaded(samples)?;
    }
    for turn in 0..wanted.turns + WARM_UP {
        for (number, question) in questions(wanted, turn, (start_ms, end_ms)).iter().enumerate() {
            let mut answers = Vec::new();
            for system in &mut systems {
                let (took, body) = system.ask(question)?;
                if WARM_UP <= turn {
                    system.took_us[number].push(took.as_secs_f64() * 1e6);
                }
                answers.push((system.name, body));
            }
            if turn == 0 {
                compare(question, &answers)?;
            }
        }
    }
    for system in &mut systems {
        system.load["bytes_per_sample"] = json!(system.stored(samples, start_ms)?);
    }
    Ok(tell(wanted, &systems, samples))
}

fn start(bench: &Bench, wanted: &Wanted, scratch: &Path) -> Result<Vec<System>, String> {
    let system = |name, runs: Runs, pid| {
        let watch = Watch::begin(pid).ok_or_else(|| format!("{name} has ended"))?;
        let took_us = vec![Vec::new(); QUESTIONS];
        Ok::<_, String>(System { name, runs, watch, load: Value::Null, took_us })
    };
    let strobe = Strobe::start(&bench.program("strobe")?, scratch)?;
    let pid = strobe.child.id();
    let mut systems = vec![system("strobe", Runs::Strobe(strobe), pid)?];
    for kind in Kind::ALL {
        if wanted.alone || kind.program().is_none() {
            continue;
        }
        let peer = Peer::start(kind, scratch).map_err(|why| why.to_string())?;
        let pid = peer.pid();
        systems.push(system(kind.name(), Runs::Peer(peer), pid)?);
    }
    Ok(systems)
}

/// Into all that take remote-write.
fn load(systems: &mut [System], wanted: &Wanted, start_ms: i64) -> Result<u64, String> {
    let mut fleet = Fleet::new(wanted.hosts);
    let count = usize::try_from(60_000 / wanted.interval_ms).unwrap_or(1).max(1);
    let mut doors = systems.iter().map(System::connect).collect::<Result<Vec<_>, _>>()?;
    let mut samples = 0;
    for minute in 0..wanted.minutes {
        let start_ms = start_ms + i64::try_from(minute).unwrap_or(0) * 60_000;
        let span = Span { start_ms, step_ms: wanted.interval_ms, count };
        samples += fleet.series() * count;
        if wanted.alone && wanted.by == By::Agents {
            continue;
        }
        for first in (0..wanted.hosts).step_by(HOSTS_A_REQUEST) {
            let body = fleet.request(first, HOSTS_A_REQUEST, span);
            for (system, door) in systems.iter().zip(&mut doors) {
                if wanted.by == By::Agents && matches!(system.runs, Runs::Strobe(_)) {
                    continue;
                }
                again(door, system, &Peer::write(&body))?;
            }
        }
        systems.iter_mut().for_each(|system| system.watch.look());
    }
    u64::try_from(samples).map_err(|why| why.to_string())
}

/// Asks; on a connection that was closed meanwhile, asks on a new one.
fn again(door: &mut Http, system: &System, ask: &Ask<'_>) -> Result<(Duration, Vec<u8>), String> {
    let failed = |why: std::io::Error| format!("{}: {why}", system.name);
    let since = run::now();
    if let Ok(answer) = door.ask(ask)
        && answer.status / 100 == 2
    {
        return Ok((run::now() - since, answer.body));
    }
    *door = system.connect()?;
    let since = run::now();
    let body = door.must(ask).map_err(failed)?;
    Ok((run::now() - since, body))
}

impl System {
    fn connect(&self) -> Result<Http, String> {
        let port = match &self.runs {
            Runs::Strobe(strobe) => strobe.port,
            Runs::Peer(peer) => peer.port,
        };
        Http::connect(port).map_err(|why| format!("{}: {why}", self.name))
    }

    /// Into Strobe, as agents that were away would.
    fn replay(&mut self, wanted: &Wanted, start_ms: i64) -> Result<(), String> {
        let Runs::Strobe(strobe) = &self.runs else { return Ok(()) };
        let text = |why: &dyn std::fmt::Display| why.to_string();
        let authority = Authority::load(&strobe.dir.join("ca")).map_err(|why| text(&why))?;
        let authority = authority.ok_or("strobe up has no authority")?;
        let mut fleet = Fleet::new(wanted.hosts);
        let count = 60_000 / wanted.interval_ms * i64::try_from(wanted.minutes).unwrap_or(0);
        let count = usize::try_from(count).unwrap_or(0);
        let span = Span { start_ms, step_ms: wanted.interval_ms, count };
        for first in (0..wanted.hosts).step_by(HOSTS_A_REPLAY) {
            let past = fleet.rows(first, HOSTS_A_REPLAY, span);
            let hosts = run::hosts(&authority, past.len()).map_err(|why| text(&why))?;
            let hosts = hosts.into_iter().zip(past).collect();
            run::replay(strobe.quic, fleet.schemas(), hosts).map_err(|why| text(&why))?;
            self.watch.look();
        }
        Ok(())
    }

    fn loaded(&mut self, samples: u64) -> Result<(), String> {
        self.watch.look();
        let per_sample = Duration::from_nanos(self.watch.cpu_ns).as_secs_f64() * 1e6;
        self.load = json!({
            "cpu_us_per_sample": per_sample / samples as f64,
            "rss_mib_peak": self.watch.rss_kib_peak as f64 / 1024.0,
        });
        // A look at the data, so that the first turn finds what a server that runs has open.
        let question =
            Question { path: "/api/v1/labels", query: String::new(), times: String::new() };
        self.ask(&question).map(|_| ())
    }

    fn ask(&mut self, question: &Question) -> Result<(Duration, Vec<u8>), String> {
        let Question { path, query, times } = question;
        let path = format!("{path}?query={}{times}&nocache=1", encoded(query));
        let mut door = self.connect()?;
        // The connection is warm when it counts: as a dashboard's is.
        let hello = Ask { method: "GET", path: "/-/healthy", head: "", body: &[] };
        drop(door.ask(&hello).map_err(|why| format!("{}: {why}", self.name))?);
        again(&mut door, self, &Ask { method: "GET", path: &path, head: "", body: &[] })
    }

    /// Bytes a sample on the disk; ends the system.
    fn stored(&mut self, samples: u64, start_ms: i64) -> Result<f64, String> {
        match &mut self.runs {
            Runs::Peer(peer) => {
                let bytes = peer.stored_bytes().map_err(|why| why.to_string())?;
                Ok(bytes as f64 / samples as f64)
            }
            Runs::Strobe(strobe) => strobe.bytes_per_sample(start_ms),
        }
    }
}

impl Strobe {
    fn start(program: &Path, scratch: &Path) -> Result<Self, String> {
        let dir = scratch.join("strobe");
        fs::create_dir_all(&dir).map_err(|why| why.to_string())?;
        let log = fs::File::create(scratch.join("strobe.log")).map_err(|why| why.to_string())?;
        let port = free_port().map_err(|why| why.to_string())?;
        // A port that was free a moment ago.
        let quic = UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr());
        let quic = quic.map_err(|why| why.to_string())?;
        let child = Command::new(program)
            .args(["up", "--no-agent", "--broker-listen", &quic.to_string(), "--listen"])
            .arg(format!("127.0.0.1:{port}"))
            .arg("--dir")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|why| why.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|why| format!("starting {}: {why}", program.display()))?;
        let strobe = Self { child, dir, port, quic };
        let ready = Ask { method: "GET", path: "/-/ready", head: "", body: &[] };
        for _ in 0..200 {
            if Http::connect(port).and_then(|mut http| http.must(&ready)).is_ok() {
                return Ok(strobe);
            }
            run::sleep_until(run::now() + Duration::from_millis(50));
        }
        Err("strobe up is not ready after 10 s".to_owned())
    }

    /// Of everything, sealed now where it was not yet.
    fn bytes_per_sample(&mut self, start_ms: i64) -> Result<f64, String> {
        self.end();
        let stored = sealed(&self.dir.join("store"), start_ms).map_err(|why| why.to_string())?;
        Ok(stored.raw.bytes as f64 / stored.raw.samples as f64)
    }

    fn end(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            // It may have ended already; either way its exit is waited for.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Strobe {
    fn drop(&mut self) {
        self.end();
    }
}

/// The three questions, each turn at other times and of another host.
fn questions(wanted: &Wanted, turn: usize, (start_ms, end_ms): (i64, i64)) -> Vec<Question> {
    let shift = |room_ms: i64| {
        let step = i64::try_from(turn).unwrap_or(0) * 7_919;
        step.rem_euclid(room_ms.max(1))
    };
    let seconds = |ms: i64| format!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000));
    let range = |minutes: i64| {
        let span_ms = (minutes * 60_000).min(end_ms - start_ms);
        let start = start_ms + shift(end_ms - start_ms - span_ms);
        format!("&start={}&end={}&step=15", seconds(start), seconds(start + span_ms))
    };
    let host = instance(turn * 37 % wanted.hosts.max(1));
    let at = end_ms - 60_000 - shift((end_ms - start_ms) / 2);
    vec![
        Question {
            path: "/api/v1/query_range",
            query: format!("node_load1{{instance=\"{host}\"}}"),
            times: range(60),
        },
        Question {
            path: "/api/v1/query_range",
            query: "avg(node_load1)".to_owned(),
            times: range(30),
        },
        Question {
            path: "/api/v1/query",
            query: "topk(10, sum by (instance) \
                    (rate(node_cpu_seconds_total{mode!=\"idle\"}[1m])))"
                .to_owned(),
            times: format!("&time={}", seconds(at)),
        },
    ]
}

/// Strobe's answer has to be Prometheus'; victoria-metrics extrapolates otherwise, so of its
/// answer only the shape is looked at.
fn compare(question: &Question, answers: &[(&'static str, Vec<u8>)]) -> Result<(), String> {
    let read = |body: &[u8]| -> Result<Value, String> {
        let value: Value = serde_json::from_slice(body).map_err(|why| why.to_string())?;
        Ok(value["data"]["result"].clone())
    };
    let of = |name: &str| answers.iter().find(|(known, _)| *known == name).map(|(_, body)| body);
    let Some(ours) = of("strobe") else { return Ok(()) };
    let ours = read(ours)?;
    if ours.as_array().is_none_or(Vec::is_empty) {
        return Err(format!("strobe answers nothing to {}", question.query));
    }
    if let Some(theirs) = of("prometheus") {
        let theirs = read(theirs)?;
        if !close(&ours, &theirs) {
            let cut = |value: &Value| value.to_string().chars().take(600).collect::<String>();
            let (ours, theirs) = (cut(&ours), cut(&theirs));
            return Err(format!("{}: {ours}\nand prometheus {theirs}", question.query));
        }
    }
    Ok(())
}

/// Equal but for the last bits of numbers.
fn close(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| close(a, b)))
        }
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::String(a), Value::String(b)) => match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(a), Ok(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()),
            _ => a == b,
        },
        (a, b) => a == b,
    }
}

fn tell(wanted: &Wanted, systems: &[System], samples: u64) -> Found {
    let mut rows = Vec::new();
    let mut list = Vec::new();
    for system in systems {
        let load = |name: &str| system.load[name].as_f64();
        let mut cells = vec![system.name.to_owned()];
        let mut asked = Vec::new();
        for (name, took_us) in NAMES.iter().zip(&system.took_us) {
            let (p50, p99) = (percentile(took_us, 50), percentile(took_us, 99));
            let ms = |us: Option<f64>| shown(us.map(|us| us / 1000.0), 2);
            cells.push(format!("{} / {}", ms(p50), ms(p99)));
            asked.push(
                json!({ "query": name, "p50_us": p50, "p99_us": p99, "turns": took_us.len() }),
            );
        }
        cells.push(shown(load("cpu_us_per_sample"), 2));
        cells.push(shown(load("rss_mib_peak"), 0));
        cells.push(shown(load("bytes_per_sample"), 2));
        rows.push(cells);
        list.push(json!({ "name": system.name, "load": system.load, "queries": asked,
            "version": version(system) }));
    }
    let mut head = vec!["ms, p50 / p99".to_owned()];
    head.extend(NAMES.map(str::to_owned));
    head.extend(["load: CPU µs a sample", "RSS peak MiB", "bytes a sample"].map(str::to_owned));
    let value = json!({ "what": "queries", "hosts": wanted.hosts, "samples": samples,
        "minutes": wanted.minutes, "by": format!("{:?}", wanted.by), "interval_ms": wanted.interval_ms, "turns": wanted.turns,
        "systems": list });
    Found { name: "queries".into(), value, table: Table { head, rows }, failed: None }
}

fn version(system: &System) -> Option<String> {
    match &system.runs {
        Runs::Strobe(_) => None,
        Runs::Peer(_) => version_of(&Path::new("/usr/bin").join(system.name)),
    }
}

/// The nearest rank: of 50 turns the 99th percentile is the slowest.
fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

fn encoded(text: &str) -> String {
    let letter = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(letter).collect()
}

const QUESTIONS: usize = 3;
const NAMES: [&str; QUESTIONS] =
    ["1 host × 1 metric × 1 h", "avg over hosts × 30 min", "top 10 by 1 min CPU rate"];
/// 50 hosts × 150 series × 4 samples are about 1.5 MB before snappy.
const HOSTS_A_REQUEST: usize = 50;
/// Turns that do not count.
const WARM_UP: usize = 3;
/// The data ends so long ago that a window of ten minutes is over.
const END_AGO_MS: i64 = 25 * 60_000;
/// Hosts that are connected at once.
const HOSTS_A_REPLAY: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_differ_and_lie_inside_the_data() {
        let wanted = Wanted {
            hosts: 10,
            minutes: 65,
            interval_ms: 15_000,
            turns: 50,
            alone: true,
            by: By::Agents,
            settle: Duration::ZERO,
        };
        let ask = |turn| questions(&wanted, turn, (0, 65 * 60_000));
        assert_ne!(ask(1)[0].times, ask(2)[0].times);
        assert_ne!(ask(1)[2].times, ask(2)[2].times);
        for turn in 0..200 {
            let times = ask(turn)[0].times.clone();
            let end = times.split("end=").nth(1).and_then(|t| t.split('&').next());
            assert!(end.unwrap().parse::<f64>().unwrap() <= 65.0 * 60.0);
        }
    }

    #[test]
    fn ranks_and_closeness() {
        let values: Vec<f64> = (1..=50).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), Some(25.0));
        assert_eq!(percentile(&values, 99), Some(50.0));
        assert_eq!(percentile(&[], 50), None);
        assert!(close(&json!([1, "0.1"]), &json!([1.0, "0.10000000000000001"])));
        assert!(!close(&json!(["0.1"]), &json!(["0.2"])));
    }
}
