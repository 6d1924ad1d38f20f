//! The same data and the same queries to the real Prometheus and to our engine: equal answers.
//!
//! Needs the program `prometheus` (Debian's 2.42; `apt-get install prometheus`). It runs on a free
//! loopback port with its data in a temporary directory and is ended by its process id.

mod data;
mod queries;
mod server;

use serde_json::Value;
use server::Prometheus;
use std::fmt::Write as _;
use strobe_broker::api::{Answer, handle};
use strobe_broker::query::{Deadline, Engine, Limits};
use strobe_broker::remote_write;
use strobe_broker::store::{RemoteSeries, Store, StoreConfig, Writer};
use strobe_wire::message::ApiRequest;

#[test]
fn answers_equal_those_of_prometheus() {
    let dir = std::env::temp_dir().join(format!("strobe-differential-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let prometheus = Prometheus::start(&dir);
    let series = data::series(SEED);
    for some in series.chunks(50) {
        let (status, body) = prometheus.write(&remote_write::encode(some));
        assert_eq!(status, 204, "Prometheus refused the data: {body}");
    }
    // As it came, and as it lies in segments an hour later.
    let live = store(&dir.join("live"), &series);
    let mut sealed = store(&dir.join("sealed"), &series);
    sealed.writer.settle(data::END_MS + 3_600_000).unwrap();
    assert!(0 < sealed.engine.store().counts().blocks_sealed);

    let mut report = String::new();
    let (mut asked, mut bad) = (0, 0);
    for request in requests() {
        let theirs = prometheus.ask(&request.path, &request.query);
        for (name, ours) in [("live", &live), ("sealed", &sealed)] {
            let ours = ask(&ours.engine, &request);
            asked += 1;
            if let Err(why) = compare(&theirs, &ours, &request) {
                bad += 1;
                let (path, query) = (&request.path, decoded(&request.query));
                writeln!(report, "{name} {path} {query}\n  {why}").unwrap();
            }
        }
    }
    drop(prometheus);
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(bad == 0, "{bad} of {asked} answers differ (seed {SEED}):\n{report}");
    assert!(500 < asked, "only {asked} requests were compared");
}

struct Ours {
    engine: Engine,
    writer: Writer,
}

fn store(dir: &std::path::Path, series: &[RemoteSeries]) -> Ours {
    std::fs::create_dir_all(dir).expect("a temporary directory");
    let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.to_owned()) };
    let (store, mut writer, _) = Store::open(config, data::END_MS).expect("a new store");
    let body = remote_write::encode(series);
    writer.samples(&remote_write::decode(&body).expect("our own bytes")).expect("room");
    writer.commit(data::END_MS).expect("a commit");
    Ours { engine: Engine::new(store), writer }
}

/// Every query at several moments and over two ranges, and the endpoints about labels.
fn requests() -> Vec<ApiRequest> {
    let mut all = Vec::new();
    let mut push = |path: &str, query: String| {
        all.push(ApiRequest {
            method: "GET".to_owned(),
            path: path.to_owned(),
            query,
            ..ApiRequest::default()
        });
    };
    for query in queries::QUERIES {
        let query = encoded(query);
        for minute in [10, 31, 34, 44, 52] {
            let time = (data::START_MS + minute * 60_000 + 7) / 1000;
            push("/api/v1/query", format!("query={query}&time={time}.5"));
        }
        for (from, to, step) in [(0, 55, "60"), (20, 45, "17.3")] {
            let start = data::START_MS / 1000 + from * 60;
            let end = data::START_MS / 1000 + to * 60;
            push(
                "/api/v1/query_range",
                format!("query={query}&start={start}&end={end}&step={step}"),
            );
        }
    }
    for matcher in ["", "&match[]=node_load1", "&match[]={job=~\"n.*\"}&match[]=odd"] {
        let span = format!("start={}&end={}", data::START_MS / 1000, data::END_MS / 1000);
        let matcher = matcher.replace('"', "%22").replace('{', "%7B").replace('}', "%7D");
        push("/api/v1/labels", format!("{span}{matcher}"));
        push("/api/v1/label/instance/values", format!("{span}{matcher}"));
        push("/api/v1/label/__name__/values", format!("{span}{matcher}"));
        push("/api/v1/series", format!("{span}{matcher}"));
    }
    all
}

fn ask(engine: &Engine, request: &ApiRequest) -> (u16, Value) {
    let Answer::Response(response) =
        handle(engine, &Limits::usual(), request, data::END_MS, Deadline::never())
    else {
        panic!("{request:?} is no write");
    };
    (response.status, serde_json::from_slice(&response.body).expect("we write JSON"))
}

fn compare(theirs: &(u16, Value), ours: &(u16, Value), request: &ApiRequest) -> Result<(), String> {
    if theirs.0 != ours.0 {
        return Err(format!("status {} and ours {}: {} / {}", theirs.0, ours.0, theirs.1, ours.1));
    }
    if theirs.0 != 200 {
        let same = theirs.1["errorType"] == ours.1["errorType"];
        return same.then_some(()).ok_or_else(|| format!("{} / {}", theirs.1, ours.1));
    }
    let (theirs, ours) = (&theirs.1["data"], &ours.1["data"]);
    if theirs["resultType"] != ours["resultType"] {
        return Err(format!("{theirs} / {ours}"));
    }
    let (mut theirs, mut ours) = match theirs.get("result") {
        Some(result) => (result.clone(), ours["result"].clone()),
        None => (theirs.clone(), ours.clone()),
    };
    let ordered = decoded(&request.query).starts_with("query=sort");
    for list in [&mut theirs, &mut ours] {
        match list.as_array_mut() {
            Some(list) if !ordered && list.iter().all(Value::is_object) => {
                list.sort_by_key(|one| one.get("metric").unwrap_or(one).to_string());
            }
            _ => {}
        }
    }
    same(&theirs, &ours, "")
}

/// Equal but for the last bits of numbers in strings.
fn same(theirs: &Value, ours: &Value, place: &str) -> Result<(), String> {
    match (theirs, ours) {
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .try_for_each(|(at, (a, b))| same(a, b, &format!("{place}[{at}]"))),
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            a.iter().try_for_each(|(name, a)| match b.get(name) {
                Some(b) => same(a, b, &format!("{place}.{name}")),
                None => Err(format!("{place}.{name} is missing: {theirs} / {ours}")),
            })
        }
        (Value::String(a), Value::String(b)) if a == b => Ok(()),
        (Value::String(a), Value::String(b)) if place.contains(".value") || place == "[1]" => {
            let (x, y): (f64, f64) = match (a.parse(), b.parse()) {
                (Ok(x), Ok(y)) => (x, y),
                _ => return Err(format!("{place}: {a} and ours {b}")),
            };
            let close =
                (x - y).abs() <= RELATIVE * x.abs().max(y.abs()) && x.to_bits() != y.to_bits();
            if close { Ok(()) } else { Err(format!("{place}: {a} and ours {b}")) }
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => Ok(()),
        (a, b) if a == b => Ok(()),
        (a, b) => Err(format!("{place}: {a} and ours {b}").chars().take(1500).collect()),
    }
}

fn encoded(text: &str) -> String {
    let letter = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(letter).collect()
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex: Vec<u8> = if byte == b'%' { bytes.by_ref().take(2).collect() } else { Vec::new() };
        let hex = str::from_utf8(&hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(hex.unwrap_or(byte));
    }
    String::from_utf8_lossy(&out).into_owned()
}

const SEED: u64 = 0x5eed_0001;
const RELATIVE: f64 = 1e-12;
