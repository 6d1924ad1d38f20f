//! Instructions an operation takes, counted by valgrind (callgrind): the same on a busy machine and on
//! an idle one, so that a change of one per cent is seen. The kernel's part is not counted.
//!
//! Each operation runs twice in a process of its own, a few and many times; the difference is the
//! operations alone, without the start of the process and what they share. Of most operations only
//! what happens inside [`measured`] counts; queries, which have threads, count as a whole.
//!
//! ```text
//! cargo bench --package strobe-bench --bench instructions            beside the record
//! cargo bench --package strobe-bench --bench instructions -- link    only names with this in them
//! cargo bench --package strobe-bench --bench instructions -- --record    makes a new record
//! ```
//!
//! The record is `bench/results/instructions.json`. What grew by more than 3 % is named; that is no
//! failure, for more may be worth it, but a commit that does it says why and records anew.

#![expect(clippy::print_stdout, reason = "a benchmark's output")]

use hugepage_config::{Region, Want};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;
use strobe_agent::ring::Ring;
use strobe_bench::fleet::{Dir, Fleet, Plan, T0, config, equal};
use strobe_bench::pair::{Pair, frame_of_1_kib, identities, read};
use strobe_bench::{FILES, FIXTURE, Host, ROW_BYTES, SEALED_BYTES, Tree, look, seal};
use strobe_broker::query::{Deadline, Engine, Limits as QueryLimits, parse};
use strobe_broker::store::{Limits, Scratch, Store, TimeRange};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::link::{Event, Side};
use strobe_wire::message::{Message, Reader, encode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, times, dir] = args.as_slice()
        && flag == "--operate"
    {
        operate(name, times.parse().unwrap_or(0), Path::new(dir));
        return ExitCode::SUCCESS;
    }
    let wanted = args.iter().find(|arg| !arg.starts_with("--")).map_or("", String::as_str);
    match report(wanted, args.iter().any(|arg| arg == "--record")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// How often an operation runs, and what of it counts.
#[derive(Clone, Copy)]
struct Times {
    few: u64,
    many: u64,
    whole: bool,
}

/// Name by name.
fn operations() -> Vec<(String, Times)> {
    let of = |few, many, whole| Times { few, many, whole };
    let mut all = vec![("reader/none".to_owned(), of(100, 600, false))];
    all.extend(FILES.map(|file| (format!("reader/{file}"), of(100, 600, false))));
    let small = ["tick/fixture", "frame/seal", "frame/open", "promql/parse", "promql/refuse"];
    all.extend(small.map(|name| (name.to_owned(), of(100, 600, false))));
    let ring = ["ring/claim and publish", "ring/next", "ring/release"];
    all.extend(ring.map(|name| (name.to_owned(), of(100, 600, false))));
    let link = ["link/frame sent", "link/frame received", "link/ack sent", "link/ack received"];
    all.extend(link.map(|name| (name.to_owned(), of(200, 1_200, false))));
    let block = ["block/rows taken", "block/seal", "block/scan"];
    all.extend(block.map(|name| (name.to_owned(), of(1, 3, false))));
    let query = ["query/rate, 1 host, 1 h", "query/avg, 1000 hosts, 10 min"];
    all.extend(query.map(|name| (name.to_owned(), of(2, 6, true))));
    all
}

fn report(wanted: &str, record: bool) -> Result<(), String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/results/instructions.json");
    let text = std::fs::read_to_string(path).unwrap_or_else(|_| "{}".to_owned());
    let mut recorded: BTreeMap<String, u64> =
        serde_json::from_str(&text).map_err(|why| format!("{path}: {why}"))?;
    let mut fleet = None;
    let mut grown = Vec::new();
    println!("{:<34} {:>14} {:>14} {:>8}", "operation", "recorded", "instructions", "change");
    for (name, times) in operations().iter().filter(|(name, _)| name.contains(wanted)) {
        // Made once, outside valgrind, and sealed: each process opens it.
        let needs = name == "block/scan" || name.starts_with("query/");
        let dir = if needs { fleet.get_or_insert_with(sealed).path() } else { Path::new("") };
        let count = |runs| count(name, runs, times.whole, dir);
        let instructions =
            count(times.many)?.saturating_sub(count(times.few)?) / (times.many - times.few);
        let before = recorded.get(name).copied();
        let change = before.map(|before| 100.0 * (instructions as f64 / before as f64 - 1.0));
        let shown = before.map_or_else(|| "-".to_owned(), |before| before.to_string());
        let percent = change.map_or_else(|| "new".to_owned(), |change| format!("{change:+.1} %"));
        println!("{name:<34} {shown:>14} {instructions:>14} {percent:>8}");
        if change.is_some_and(|change| GROWN_PERCENT < change) {
            grown.push(format!("{name} ({percent})"));
        }
        if record {
            recorded.insert(name.clone(), instructions);
        }
    }
    if grown.is_empty() {
        println!("nothing grew by more than {GROWN_PERCENT} %");
    } else {
        println!("GREW by more than {GROWN_PERCENT} %: {}", grown.join(", "));
    }
    if record {
        recorded.retain(|name, _| operations().iter().any(|(known, _)| known == name));
        let text = serde_json::to_string_pretty(&recorded).map_err(|why| why.to_string())?;
        std::fs::write(path, text + "\n").map_err(|why| format!("{path}: {why}"))?;
        println!("recorded in {path}");
    }
    Ok(())
}

/// Instructions of a process that does `name` so many times.
fn count(name: &str, times: u64, whole: bool, dir: &Path) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|why| why.to_string())?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    if !whole {
        valgrind.args(["--collect-atstart=no", "--toggle-collect=*instructions*measured*"]);
    }
    let found = valgrind
        .arg(program)
        .args(["--operate", name, &times.to_string()])
        .arg(dir)
        .output()
        .map_err(|why| format!("starting valgrind: {why} (scripts/setup bench installs it)"))?;
    let said = String::from_utf8_lossy(&found.stderr);
    let line = said.lines().find_map(|line| line.split_once("Collected :"));
    let collected = line.and_then(|(_, number)| number.trim().parse().ok());
    collected
        .filter(|count| found.status.success() && 0 < *count)
        .ok_or_else(|| format!("valgrind counted nothing of {name}: {said}"))
}

/// What of an operation counts. Never inlined, for valgrind knows it by its name.
#[inline(never)]
fn measured<T>(act: impl FnOnce() -> T) -> T {
    black_box(act())
}

fn operate(name: &str, times: u64, dir: &Path) {
    let part = name.split_once('/').map_or("", |(_, part)| part);
    match name {
        "frame/seal" => {
            let mut row = [0; ROW_BYTES];
            for seq in 0..times {
                assert!(measured(|| seal(black_box(&mut row), seq)) == SEALED_BYTES);
            }
        }
        "frame/open" => {
            let mut row = [0; ROW_BYTES];
            let length = seal(&mut row, 1);
            (0..times).for_each(|_| assert!(measured(|| look(black_box(&row[..length]))) == 2));
        }
        "promql/parse" => promql(GOOD, true, times),
        "promql/refuse" => promql(BAD, false, times),
        "tick/fixture" => ticks(&mut Host::new(FIXTURE.as_ref()), times),
        "reader/none" => ticks(&mut Host::new(Tree::of(&[]).path()), times),
        "block/rows taken" | "block/seal" => sealing(part == "seal", times),
        "block/scan" => scans(dir, times),
        _ if name.starts_with("reader/") => ticks(&mut Host::new(Tree::of(&[part]).path()), times),
        _ if name.starts_with("ring/") => ring(part, times),
        _ if name.starts_with("link/") => link(part, times),
        _ => queries(part, dir, times),
    }
}

fn promql(text: &str, good: bool, times: u64) {
    (0..times).for_each(|_| assert!(measured(|| parse(black_box(text)).is_ok()) == good));
}

/// Claims and publishes, reads, releases; the row's bytes are not touched.
fn ring(part: &str, times: u64) {
    let region = Region::map(64 * FRAME_BYTES_MAX, Want::Plain).expect("memory");
    let Ring { mut writer, mut reader } = Ring::new(64, region).expect("a ring");
    for _ in 0..times {
        let mut put = || writer.claim().expect("room").publish(SEALED_BYTES);
        if part == "claim and publish" {
            measured(&mut put)
        } else {
            put()
        };
        let mut next = || reader.next().expect("a row").ticket();
        let ticket = if part == "next" { measured(&mut next) } else { next() };
        if part == "release" { measured(|| reader.release(ticket)) } else { reader.release(ticket) }
    }
}

fn ticks(host: &mut Host, times: u64) {
    // The first ticks learn the host and start a thread.
    (0..20).for_each(|_| assert!(host.tick() < 100));
    (0..times).for_each(|_| assert!(measured(|| host.tick()) < 100));
}

/// An agent's frame of 1 KiB and the broker's acknowledgement, each a datagram and what QUIC says
/// beside it.
fn link(part: &str, times: u64) {
    let (server, client) = identities();
    let mut pair = Pair::new(&server, &client);
    let (here, there) = pair.connect();
    let stream = pair.client.open(here).expect("two are allowed");
    let (mut frames, mut acks) = (Reader::default(), Reader::default());
    for seq in 0..times {
        pair.now += Duration::from_millis(500);
        let (frame, ack) = (frame_of_1_kib(), encode(&Message::Ack { boot: 1, seq }));
        only(part == "frame sent", || {
            pair.client.send(here, stream, &mut [frame]).expect("it is open");
            pair.send(Side::Agent)
        });
        only(part == "frame received", || {
            pair.arrive(Side::Broker);
            assert_eq!(read(&mut pair.server, there, stream, &mut frames), 1);
        });
        only(part == "ack sent", || {
            pair.server.send(there, stream, &mut [ack]).expect("it is open");
            pair.send(Side::Broker)
        });
        only(part == "ack received", || {
            pair.arrive(Side::Agent);
            assert_eq!(read(&mut pair.client, here, stream, &mut acks), 1);
        });
        // What is late (acknowledgements of acknowledgements, timers) belongs to neither.
        pair.pass(Duration::from_millis(500));
        let closed = |event| matches!(event, Some(Event::Closed { .. }));
        while let Some(event) = pair.server.poll().or_else(|| pair.client.poll()) {
            assert!(!closed(Some(event)), "the connection lives");
        }
    }
}

fn only<T>(counts: bool, act: impl FnOnce() -> T) -> T {
    if counts { measured(act) } else { act() }
}

/// Ten minutes of a host of 175 series: its 3,000 frames taken (log, rows, young blocks), or sealed.
fn sealing(seals: bool, times: u64) {
    let plan = Plan { name: "seal", hosts: 1, others_from: 0, seconds: 0, sections: &[] };
    let mut host = Fleet::empty(&plan);
    for _ in 0..times {
        only(!seals, || host.fill());
        only(seals, || host.seal());
    }
}

/// A thousand hosts with ten minutes, sealed; the first has an hour.
fn sealed() -> Dir {
    println!("(a thousand hosts are made)");
    let mut fleet = Fleet::new(&Plan {
        name: "instructions",
        hosts: 1_000,
        others_from: 3_000,
        seconds: 3_600,
        sections: &[("host", 0)],
    });
    fleet.commit();
    fleet.seal();
    fleet.close()
}

/// All 97 series of an hour of a host.
fn scans(dir: &Path, times: u64) {
    let (store, _writer) = open(dir);
    let range = TimeRange { start_ms: T0, end_ms: END };
    let limits = Limits { series_max: 1_000, samples_max: u64::MAX };
    let parts = store.select(&[equal("instance", "host-0001")], range, &limits).expect("found");
    for _ in 0..times {
        let (mut scratch, mut samples) = (Scratch::new(&limits), 0);
        measured(|| {
            for part in &parts {
                let visit = &mut |_: usize, times: &[i64], _: &[f64]| {
                    samples += times.len();
                    Ok(())
                };
                store.scan_numbered(part, range, &mut scratch, visit).expect("scanned");
            }
        });
        assert!(3_600 < samples, "{samples}");
    }
}

fn queries(part: &str, dir: &Path, times: u64) {
    let (store, _writer) = open(dir);
    let engine = Engine::new(store);
    let (text, start_ms) = match part {
        "rate, 1 host, 1 h" => {
            (r#"rate(node_context_switches_total{instance="host-0001"}[1m])"#, T0)
        }
        _ => ("avg(node_load1)", END - 600_000),
    };
    let (range, limits) = (TimeRange { start_ms, end_ms: END }, QueryLimits::usual());
    for _ in 0..times {
        let asked = engine.range(black_box(text), range, 15_000, &limits, Deadline::never());
        let answer = black_box(asked.expect("answered"));
        assert!(!format!("{answer:?}").ends_with("([])"), "nobody answers");
    }
}

/// The sealed fleet, in a process of its own.
fn open(dir: &Path) -> (Store, strobe_broker::store::Writer) {
    let (store, writer, _) = Store::open(config(dir), END).expect("the fleet's store");
    (store, writer)
}

const END: i64 = T0 + 3_600_000;
const GROWN_PERCENT: f64 = 3.0;
const GOOD: &str = "histogram_quantile(0.9, sum by (le, job) (rate(x_bucket{a=~\"b.*\"}[5m]))) > 1";
const BAD: &str = "histogram_quantile(0.9, sum by (le, job) (rate(x_bucket{a=~\"b.*\"}))) > 1";
