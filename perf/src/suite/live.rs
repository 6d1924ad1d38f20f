//! How late a dashboard is: a fleet sends, a hundred browsers look, each message is timed.
//!
//! Half of the browsers look at the fleet, half at one host each, with all its columns. A row's
//! time is the agent's clock when it sent it, which is this machine's: so what is told is sent →
//! browser, a little more than received → browser. The row's text has whole milliseconds, rounded
//! down, so up to one more is told than there was. A fleet message is timed from when viz made it.

use super::{Bench, Found, row, shown};
use crate::broker::Broker;
use crate::process::Watch;
use crate::report::Table;
use crate::rows::Shape;
use crate::run::{self, Load, hosts, load};
use hdrhistogram::Histogram;
use serde_json::json;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use strobe_wire::ids::HostId;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

/// What to run.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Simulated hosts.
    pub agents: usize,
    /// Series of each.
    pub series: usize,
    /// Browsers.
    pub dashboards: usize,
    /// How long it is measured.
    pub lasting: Duration,
}

/// What the browsers saw.
#[derive(Debug)]
struct Seen {
    row_us: Histogram<u64>,
    fleet_us: Histogram<u64>,
    skipped: u64,
    broken: Vec<String>,
}

/// Starts a broker, a viz, a fleet and the browsers, and times.
///
/// # Errors
/// What could not be started; browsers that were cut off are no error but [`Found::failed`].
pub fn measure(bench: &Bench, wanted: &Wanted) -> Result<Found, String> {
    let scratch = bench.scratch("live")?;
    let program = bench.program("strobe-broker")?;
    let broker = Broker::start(&program, &scratch).map_err(|why| why.to_string())?;
    let viz = Viz::start(&bench.program("strobe-viz")?, &broker, &scratch)?;
    let authority = broker.authority().map_err(|why| why.to_string())?;
    let hosts = hosts(&authority, wanted.agents).map_err(|why| why.to_string())?;
    let ids: Vec<HostId> = hosts.iter().map(|host| host.host).collect();
    let asked = Load {
        brokers: vec![broker.address],
        agents: wanted.agents,
        shape: Shape::Host,
        series: wanted.series,
        lasting: wanted.lasting + SETTLE * 4,
        interval: Duration::from_secs(1),
        drain: SETTLE,
        broker_pid: Some(broker.pid()),
    };
    let fleet = thread::spawn(move || load(&asked, hosts).map_err(|why| why.to_string()));
    run::sleep_until(run::now() + SETTLE + Duration::from_millis(3) * small(wanted.agents));
    let (stop, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let seen = Arc::new(Mutex::new(Seen::new()));
    let browsers: Vec<_> = (0..wanted.dashboards)
        .map(|index| {
            let watch = match index % 2 {
                0 => "{\"watch\":{\"fleet\":true}}".to_owned(),
                _ => format!("{{\"watch\":{{\"host\":\"{}\"}}}}", ids[index % ids.len()]),
            };
            let (seen, stop, begun) = (Arc::clone(&seen), Arc::clone(&stop), Arc::clone(&begun));
            let address = viz.address;
            thread::spawn(move || look(address, &watch, &seen, (&begun, &stop)))
        })
        .collect();
    run::sleep_until(run::now() + SETTLE);
    let mut watch = Watch::begin(viz.child.id());
    // Relaxed, both: they carry nothing but themselves.
    begun.store(true, Ordering::Relaxed);
    run::sleep_until(run::now() + wanted.lasting);
    watch.iter_mut().for_each(Watch::look);
    stop.store(true, Ordering::Relaxed);
    for browser in browsers {
        let _ = browser.join();
    }
    let outcome = fleet.join().map_err(|_| "the fleet's thread panicked")??;
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = tell(wanted, &seen, watch, outcome.tally.late_us.value_at_quantile(0.99));
    if outcome.lost != 0 || seen.row_us.is_empty() || !seen.broken.is_empty() {
        let rows = seen.row_us.len();
        found.failed = Some(format!("{} lost, {rows} rows seen: {:?}", outcome.lost, seen.broken));
    }
    Ok(found)
}

/// One browser, until it is told to stop.
fn look(address: SocketAddr, watch: &str, seen: &Mutex<Seen>, when: (&AtomicBool, &AtomicBool)) {
    let mut own = Seen::new();
    if let Err(why) = look_at(address, watch, &mut own, when) {
        own.broken.push(why);
    }
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    seen.row_us.add(&own.row_us).unwrap_or_default();
    seen.fleet_us.add(&own.fleet_us).unwrap_or_default();
    seen.skipped += own.skipped;
    seen.broken.extend(own.broken);
}

fn look_at(
    address: SocketAddr,
    watch: &str,
    seen: &mut Seen,
    (begun, stop): (&AtomicBool, &AtomicBool),
) -> Result<(), String> {
    let mut socket = open(address)?;
    socket.send(Message::text(watch)).map_err(|why| why.to_string())?;
    let mut silent = 0;
    while !stop.load(Ordering::Relaxed) {
        let message = match socket.read() {
            Ok(message) => message,
            // Half a second without a message.
            Err(tungstenite::Error::Io(why)) if why.kind() == ErrorKind::WouldBlock => {
                silent += 1;
                if silent < SILENCES_MAX {
                    continue;
                }
                return Err("nothing came for ten seconds".into());
            }
            Err(why) => return Err(why.to_string()),
        };
        let now_us = run::wall_us();
        silent = 0;
        let Message::Text(text) = message else { continue };
        if !begun.load(Ordering::Relaxed) {
            continue;
        }
        if let Some(ms) = number(&text, "{\"type\":\"row\",", "\"t\":") {
            seen.row_us.saturating_record(now_us.saturating_sub(ms * 1000).max(1));
        } else if let Some(ms) = number(&text, "{\"type\":\"fleet", "\"now_ms\":") {
            seen.fleet_us.saturating_record(now_us.saturating_sub(ms * 1000).max(1));
        } else if let Some(count) = number(&text, "{\"type\":\"skipped\"", "\"n\":") {
            seen.skipped += count;
        }
    }
    Ok(())
}

fn open(address: SocketAddr) -> Result<WebSocket<TcpStream>, String> {
    let stream = TcpStream::connect(address).map_err(|why| why.to_string())?;
    stream.set_nodelay(true).map_err(|why| why.to_string())?;
    stream.set_read_timeout(Some(SILENCE)).map_err(|why| why.to_string())?;
    let url = format!("ws://{address}/live");
    let mut request = url.into_client_request().map_err(|why| why.to_string())?;
    let origin = format!("http://{address}").parse().map_err(|_| "no origin")?;
    request.headers_mut().insert("Origin", origin);
    let (socket, _) = tungstenite::client(request, stream).map_err(|why| why.to_string())?;
    Ok(socket)
}

/// The number behind `name` in a text that begins with `head`.
fn number(text: &str, head: &str, name: &str) -> Option<u64> {
    let (_, rest) = text.strip_prefix(head)?.split_once(name)?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn tell(wanted: &Wanted, seen: &Seen, viz: Option<Watch>, late_us: u64) -> Found {
    let ms = |us: u64| us as f64 / 1000.0;
    let of = |histogram: &Histogram<u64>, q: f64| ms(histogram.value_at_quantile(q));
    let shares = [0.5, 0.99, 0.999];
    let [row_p50, row_p99, row_p999] = shares.map(|q| of(&seen.row_us, q));
    let [fleet_p50, fleet_p99, _] = shares.map(|q| of(&seen.fleet_us, q));
    let core = viz.map(|viz| viz.cpu_ns as f64 / 1e7 / wanted.lasting.as_secs_f64());
    let pss = viz.map(|viz| viz.pss_kib_peak as f64 / 1024.0);
    let rows = vec![
        row(
            "agents × series, dashboards",
            format!("{} × {}, {}", wanted.agents, wanted.series, wanted.dashboards),
        ),
        row(
            "row sent → browser p50 / p99 / p99.9, ms",
            format!("{row_p50:.1} / {row_p99:.1} / {row_p999:.1}"),
        ),
        row("rows seen, skipped", format!("{}, {}", seen.row_us.len(), seen.skipped)),
        row("fleet made → browser p50 / p99, ms", format!("{fleet_p50:.1} / {fleet_p99:.1}")),
        row("viz: % of one core, PSS MiB", format!("{}, {}", shown(core, 1), shown(pss, 1))),
        row("generator late p99, ms", format!("{:.1}", ms(late_us))),
    ];
    let value = json!({
        "what": "live", "agents": wanted.agents, "series": wanted.series,
        "dashboards": wanted.dashboards, "seconds": wanted.lasting.as_secs_f64(),
        "row_ms_p50": row_p50, "row_ms_p99": row_p99, "row_ms_p999": row_p999,
        "rows_seen": seen.row_us.len(), "rows_skipped": seen.skipped,
        "fleet_ms_p50": fleet_p50, "fleet_ms_p99": fleet_p99,
        "viz_cpu_percent_of_core": core, "viz_pss_mib_peak": pss,
        "generator_late_ms_p99": ms(late_us), "broken": seen.broken,
    });
    let table = Table { head: vec!["live".into(), "found".into()], rows };
    Found { name: "live".into(), value, table, failed: None }
}

impl Seen {
    fn new() -> Self {
        let empty = Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("fixed, valid bounds");
        Self { row_us: empty.clone(), fleet_us: empty, skipped: 0, broken: Vec::new() }
    }
}

/// A dashboard server; ended by its id when this is dropped.
struct Viz {
    child: Child,
    address: SocketAddr,
}

impl Viz {
    fn start(program: &Path, broker: &Broker, scratch: &Path) -> Result<Self, String> {
        let log = scratch.join("viz.log");
        let out = fs::File::create(&log).map_err(|why| why.to_string())?;
        let err = out.try_clone().map_err(|why| why.to_string())?;
        let child = Command::new(program)
            .arg("--dir")
            .arg(scratch.join("viz"))
            .args(["--broker", &broker.address.to_string(), "--listen", "127.0.0.1:0"])
            .args(["--token", &broker.token().map_err(|why| why.to_string())?])
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|why| format!("starting {}: {why}", program.display()))?;
        let mut viz = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let until = run::now() + Duration::from_secs(20);
        loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let address = said.split_once("http://").and_then(|(_, rest)| {
                rest.split_whitespace().next()?.trim_end_matches('/').parse().ok()
            });
            if let Some(address) = address {
                viz.address = address;
                return Ok(viz);
            }
            if until < run::now() || viz.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return Err(format!("{} does not start: {said}", program.display()));
            }
            run::sleep_until(run::now() + Duration::from_millis(50));
        }
    }
}

impl Drop for Viz {
    fn drop(&mut self) {
        // It may have ended already; either way its exit is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Time for everyone to connect, and for the first messages, which are large.
const SETTLE: Duration = Duration::from_secs(3);
/// How often a browser that hears nothing looks whether it shall stop, and after how many such
/// times it is broken.
const SILENCE: Duration = Duration::from_millis(500);
const SILENCES_MAX: u32 = 20;
const MICROS_MAX: u64 = 60_000_000;
