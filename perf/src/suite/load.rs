//! A fleet against a broker: what a sample costs, what waits, what is lost, what is stored.
//!
//! The broker's CPU is its own process's, from /proc: the generator's is told apart. What the
//! kernel does for a datagram over loopback until it lies in the broker's socket is booked on who
//! sends it: the broker pays so for its acknowledgements, the generator for the frames.

use super::peers::{Fed, feed};
use super::{Bench, Found, row, shown};
use crate::broker::{Broker, Stored};
use crate::peers::Kind;
use crate::report::Table;
use crate::rows::{Model, Shape};
use crate::run::{self, Load, Outcome, hosts, load};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// What to run.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Simulated hosts.
    pub agents: usize,
    /// Series of each.
    pub series: usize,
    /// How they lie in sections.
    pub shape: Shape,
    /// Time between two ticks of a host.
    pub interval: Duration,
    /// How long rows are made.
    pub lasting: Duration,
    /// Whether to begin a minute before blocks are sealed.
    pub seal: Seal,
    /// Who is fed the same samples after, for the ratio.
    pub peers: Vec<Kind>,
    /// How long each is.
    pub peers_lasting: Duration,
}

/// When a run begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seal {
    /// At once.
    AnyTime,
    /// [`BEFORE_SEAL`] before the next ten minutes are full: with a run of 12 minutes the sealing
    /// of a little and of a full window fall inside.
    Inside,
}

/// Starts a broker, runs the fleet against it, and counts.
///
/// # Errors
/// What could not be started or read; lost frames are no error but [`Found::failed`].
pub fn measure(bench: &Bench, wanted: &Wanted) -> Result<Found, String> {
    let text = |why: &dyn std::fmt::Display| why.to_string();
    let scratch = bench.scratch("load")?;
    if wanted.seal == Seal::Inside {
        let full_ms = 600_000 - run::wall_ms() % 600_000;
        let wait = Duration::from_millis(u64::try_from(full_ms).unwrap_or(0));
        run::sleep_until(run::now() + wait.saturating_sub(BEFORE_SEAL));
    }
    let from_ms = i64::try_from(run::wall_ms()).unwrap_or(0);
    let broker = Broker::start(&bench.program("strobe-broker")?, &scratch).map_err(|e| text(&e))?;
    let authority = broker.authority().map_err(|e| text(&e))?;
    let asked = Load {
        brokers: vec![broker.address],
        agents: wanted.agents,
        shape: wanted.shape,
        series: wanted.series,
        lasting: wanted.lasting,
        interval: wanted.interval,
        drain: DRAIN,
        broker_pid: Some(broker.pid()),
    };
    let hosts = hosts(&authority, wanted.agents).map_err(|e| text(&e))?;
    let outcome = load(&asked, hosts).map_err(|e| text(&e))?;
    let counters = [
        ("commits", "strobe_broker_commits_total"),
        ("samples_visible", "strobe_broker_samples_total"),
        ("blocks_sealed", "strobe_broker_blocks_sealed_total"),
        ("segment_bytes", "strobe_broker_segment_bytes"),
        ("head_bytes", "strobe_broker_head_bytes"),
    ];
    let counted: Vec<_> = counters
        .iter()
        .map(|(name, counter)| (*name, broker.counter(counter).ok().flatten()))
        .collect();
    let stored = broker.stored(from_ms).map_err(|e| text(&e))?;
    let mut found = tell(wanted, &outcome, &counted, &stored);
    let model = Arc::new(Model::new(wanted.shape, wanted.series));
    for kind in wanted.peers.iter().filter(|kind| kind.program().is_some()) {
        let fed = feed(*kind, &model, wanted.agents, wanted.peers_lasting, &scratch)?;
        add_peer(&mut found, &fed);
    }
    Ok(found)
}

fn tell(
    wanted: &Wanted,
    outcome: &Outcome,
    counted: &[(&str, Option<u64>)],
    stored: &Stored,
) -> Found {
    let mut value = value(wanted, outcome, stored);
    for (name, count) in counted {
        value[*name] = json!(count);
    }
    let shape = if wanted.shape == Shape::Host { "" } else { "-row" };
    Found {
        name: format!("load-{}x{}{shape}", wanted.agents, wanted.series),
        table: table(&value),
        value,
        failed: fault(outcome, stored),
    }
}

fn value(wanted: &Wanted, outcome: &Outcome, stored: &Stored) -> Value {
    let tally = &outcome.tally;
    let (watch, samples) = (outcome.broker, tally.samples as f64);
    let ack = |q: f64| ms(tally.ack_us.value_at_quantile(q));
    let percent = |ns: u64| ns as f64 / 1e7 / outcome.seconds;
    let mib = |kib: u64| kib as f64 / 1024.0;
    let all =
        (stored.raw.samples != 0).then(|| stored.raw.bytes as f64 / stored.raw.samples as f64);
    json!({
        "what": "load", "agents": wanted.agents, "series": wanted.series,
        "frames_a_tick": Model::new(wanted.shape, wanted.series).schemas.len(),
        "interval_ms": u64::try_from(wanted.interval.as_millis()).unwrap_or(0),
        "seconds": outcome.seconds, "samples": tally.samples,
        "broker_cpu_us_per_sample": watch.map(|watch| watch.cpu_ns as f64 / 1000.0 / samples),
        "broker_cpu_percent_of_core": watch.map(|watch| percent(watch.cpu_ns)),
        "broker_pss_mib_peak": watch.map(|watch| mib(watch.pss_kib_peak)),
        "broker_pss_mib_end": watch.map(|watch| mib(watch.pss_kib)),
        "broker_rss_mib_peak": watch.map(|watch| mib(watch.rss_kib_peak)),
        "ack_ms_p50": ack(0.5), "ack_ms_p90": ack(0.9), "ack_ms_p99": ack(0.99),
        "ack_ms_p999": ack(0.999), "ack_ms_max": ms(tally.ack_us.max()),
        "frames_made": tally.made, "frames_acked": tally.acked, "frames_lost": outcome.lost,
        "ticks_refused": tally.refused, "connections_lost": tally.closed,
        "frames_resent": tally.resent, "reasons": tally.reasons,
        "stored_bytes_per_sample": stored.bytes_per_sample(),
        "stored_bytes_per_sample_all": all,
        "stored_samples": stored.raw.samples, "stored_damage": stored.damage,
        "wire_bytes_per_sample": tally.bytes as f64 / samples,
        "wal_mib_end": stored.wal_bytes as f64 / 1_048_576.0,
        "connect_s": outcome.connect_seconds,
        "connect_cpu_s": outcome.connect_cpu_ns.map(|ns| ns as f64 / 1e9),
        "generator_cpu_percent_of_core": percent(outcome.generator_cpu_ns),
        "generator_late_ms_p99": ms(tally.late_us.value_at_quantile(0.99)),
    })
}

/// The same for people: what is said, and which numbers with how many digits.
fn table(value: &Value) -> Table {
    let lines: [(&str, &[(&str, usize)]); 15] = [
        (
            "agents, series of each, frames a tick",
            &[("agents", 0), ("series", 0), ("frames_a_tick", 0)],
        ),
        ("every ms, for s", &[("interval_ms", 0), ("seconds", 0)]),
        ("broker CPU, µs a sample", &[("broker_cpu_us_per_sample", 3)]),
        ("broker CPU, % of one core", &[("broker_cpu_percent_of_core", 1)]),
        ("broker PSS peak, end, MiB", &[("broker_pss_mib_peak", 1), ("broker_pss_mib_end", 1)]),
        ("broker RSS peak, MiB", &[("broker_rss_mib_peak", 1)]),
        (
            "sent → acknowledged p50, p99, p99.9, max, ms",
            &[("ack_ms_p50", 1), ("ack_ms_p99", 1), ("ack_ms_p999", 1), ("ack_ms_max", 1)],
        ),
        (
            "frames made, acknowledged, lost",
            &[("frames_made", 0), ("frames_acked", 0), ("frames_lost", 0)],
        ),
        (
            "ticks refused, connections lost, frames resent",
            &[("ticks_refused", 0), ("connections_lost", 0), ("frames_resent", 0)],
        ),
        (
            "stored bytes a sample: longest blocks, all",
            &[("stored_bytes_per_sample", 3), ("stored_bytes_per_sample_all", 3)],
        ),
        ("bytes a sample on the wire and in the WAL", &[("wire_bytes_per_sample", 2)]),
        ("WAL at the end, MiB", &[("wal_mib_end", 0)]),
        ("blocks sealed in the run", &[("blocks_sealed", 0)]),
        ("all connected after s, for broker CPU s", &[("connect_s", 2), ("connect_cpu_s", 2)]),
        (
            "generator: % of one core, ticks late p99 ms",
            &[("generator_cpu_percent_of_core", 1), ("generator_late_ms_p99", 1)],
        ),
    ];
    let rows = lines.map(|(what, fields)| {
        let cells = fields.iter().map(|(name, digits)| shown(value[*name].as_f64(), *digits));
        row(what, cells.collect::<Vec<_>>().join(" / "))
    });
    Table { head: vec!["load".into(), "found".into()], rows: rows.into() }
}

fn add_peer(found: &mut Found, fed: &Fed) {
    let name = fed.kind.name();
    let us = fed.cpu_us_per_sample;
    let ratio = found.value["broker_cpu_us_per_sample"].as_f64().map(|own| us / own);
    let pss = fed.watch.pss_kib_peak as f64 / 1024.0;
    let pss_ratio = found.value["broker_pss_mib_peak"].as_f64().map(|own| pss / own);
    let stored = fed.stored_bytes_per_sample;
    found.table.rows.extend([
        row(
            &format!("{name} CPU, µs a sample (× strobe)"),
            format!("{us:.2} ({})", shown(ratio, 1)),
        ),
        row(
            &format!("{name} PSS peak, MiB (× strobe)"),
            format!("{pss:.0} ({})", shown(pss_ratio, 1)),
        ),
        row(&format!("{name} stored bytes a sample"), format!("{stored:.2}")),
        row(
            &format!("{name} write p99, latest request, ms"),
            format!("{:.0}, {:.0}", fed.write_ms_p99, fed.late_ms_max),
        ),
    ]);
    found.value[name.replace('-', "_")] = json!({
        "cpu_us_per_sample": us, "cpu_over_strobe": ratio, "pss_mib_peak": pss,
        "pss_over_strobe": pss_ratio, "rss_mib_peak": fed.watch.rss_kib_peak as f64 / 1024.0,
        "stored_bytes_per_sample": stored, "write_ms_p99": fed.write_ms_p99,
        "late_ms_max": fed.late_ms_max,
    });
}

/// What must not be.
fn fault(outcome: &Outcome, stored: &Stored) -> Option<String> {
    let tally = &outcome.tally;
    if outcome.lost != 0 || tally.refused != 0 || tally.acked != tally.made {
        return Some(format!(
            "{} frames were never acknowledged and {} ticks refused; heard: {:?}",
            outcome.lost, tally.refused, tally.reasons
        ));
    }
    // Rows of one host and millisecond are one row: there are none here.
    if stored.raw.samples != tally.samples || !stored.damage.is_empty() {
        return Some(format!(
            "{} samples were acknowledged and {} are stored; damage: {:?}",
            tally.samples, stored.raw.samples, stored.damage
        ));
    }
    None
}

fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

/// How long before a window is full a run begins that is to see it sealed.
pub const BEFORE_SEAL: Duration = Duration::from_secs(60);
/// Time for the last acknowledgements.
const DRAIN: Duration = Duration::from_secs(15);
