//! `strobe-perf`: a fleet in one process, and agents side by side.

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use strobe_perf::agents::{Comparison, Fleet, compare};
use strobe_perf::floor;
use strobe_perf::report::{Table, write};
use strobe_perf::run::{Load, Outcome, hosts, load, wall_ms};
use strobe_wire::pki::Authority;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        What::Load(arguments) => run_load(&arguments),
        What::Agents(arguments) => run_agents(&arguments),
        What::Floor { files } => {
            floor::read_for_ever(&files).map(|()| ExitCode::SUCCESS).map_err(|why| why.to_string())
        }
    };
    match done {
        Ok(code) => code,
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

/// Measures Strobe in the large.
#[derive(Parser, Debug)]
#[command(name = "strobe-perf", version)]
struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Simulates many agents against a broker; fails if a frame is not acknowledged.
    Load(LoadArguments),
    /// Runs strobe-agent, node_exporter and collectd side by side on this host.
    Agents(AgentsArguments),
    /// Reads files once a second and does nothing else; `agents` starts it.
    #[command(hide = true)]
    Floor {
        /// What to read.
        files: Vec<PathBuf>,
    },
}

#[derive(Args, Debug)]
struct LoadArguments {
    /// The broker's QUIC address.
    #[arg(long)]
    broker: SocketAddr,
    /// The broker's certificate directory: the simulated agents' certificates are signed with its
    /// authority here, since an enrolment token is good for one agent only.
    #[arg(long)]
    authority: PathBuf,
    /// Simulated hosts.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Series a host.
    #[arg(long, default_value_t = 150)]
    series: usize,
    /// How long rows are made.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Time between two ticks of a host.
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
    /// The broker's process id: its CPU and memory are measured too.
    #[arg(long)]
    broker_pid: Option<u32>,
    /// Where results go.
    #[arg(long, default_value = "perf/results")]
    results: PathBuf,
}

#[derive(Args, Debug)]
struct AgentsArguments {
    /// strobe-agent; left out if it is not there.
    #[arg(long, default_value = "target/release/strobe-agent")]
    strobe: PathBuf,
    /// The broker it sends to and the program that makes tokens; with one of them left out,
    /// nothing is sent.
    #[arg(long, default_value = "target/release/strobe-broker")]
    broker: PathBuf,
    /// See `--broker`.
    #[arg(long, default_value = "target/release/strobe")]
    cli: PathBuf,
    /// An argument more for strobe-agent (repeat it), such as `--strobe-argument=--interval=5s`.
    #[arg(long, allow_hyphen_values = true)]
    strobe_argument: Vec<String>,
    /// node_exporter; left out if it is not there.
    #[arg(long, default_value = "/usr/bin/prometheus-node-exporter")]
    node_exporter: PathBuf,
    /// collectd; left out if it is not there.
    #[arg(long, default_value = "/usr/sbin/collectd")]
    collectd: PathBuf,
    /// Samples a run, one a second.
    #[arg(long, default_value_t = 30)]
    ticks: u32,
    /// Runs; medians are over these.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Where results go.
    #[arg(long, default_value = "perf/results")]
    results: PathBuf,
}

fn run_load(arguments: &LoadArguments) -> Result<ExitCode, String> {
    let authority = Authority::load(&arguments.authority)
        .map_err(|why| why.to_string())?
        .ok_or_else(|| format!("no authority in {}", arguments.authority.display()))?;
    if arguments.agents == 0 || arguments.series == 0 || arguments.interval_ms == 0 {
        return Err("--agents, --series and --interval-ms must be above 0".into());
    }
    let wanted = Load {
        broker: arguments.broker,
        agents: arguments.agents,
        series: arguments.series,
        lasting: Duration::from_secs(arguments.seconds),
        interval: Duration::from_millis(arguments.interval_ms),
        drain: DRAIN,
        broker_pid: arguments.broker_pid,
    };
    let hosts = hosts(&authority, arguments.agents).map_err(|why| why.to_string())?;
    let outcome = load(&wanted, hosts).map_err(|why| why.to_string())?;
    let (value, table) = tell_load(arguments, &outcome);
    let name = format!("load-{}x{}", arguments.agents, arguments.series);
    keep(&arguments.results, &name, &value, &table)?;
    if outcome.lost != 0 || outcome.tally.refused != 0 {
        let (lost, refused) = (outcome.lost, outcome.tally.refused);
        return Err(format!(
            "{lost} frames were never acknowledged and {refused} ticks refused; heard: {:?}",
            outcome.tally.reasons
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn run_agents(arguments: &AgentsArguments) -> Result<ExitCode, String> {
    let there = |path: &Path| path.exists().then(|| path.to_owned());
    let dir = std::env::temp_dir().join(format!("strobe-perf-{}", std::process::id()));
    let comparison = Comparison {
        strobe: there(&arguments.strobe),
        strobe_arguments: arguments.strobe_argument.clone(),
        fleet: there(&arguments.broker)
            .zip(there(&arguments.cli))
            .map(|(broker, strobe)| Fleet { broker, strobe }),
        node_exporter: there(&arguments.node_exporter),
        collectd: there(&arguments.collectd),
        ticks: arguments.ticks.max(1),
        runs: arguments.runs.max(1),
        dir: dir.clone(),
    };
    if comparison.strobe.is_none() {
        complain(&format!(
            "{} is not there: the others are measured alone",
            arguments.strobe.display()
        ));
    }
    let compared = compare(&comparison).map_err(|why: io::Error| why.to_string());
    // Nothing in it is worth keeping, whatever came of the runs.
    let _ = std::fs::remove_dir_all(&dir);
    let (value, table) = compared?;
    keep(&arguments.results, "agents", &value, &table)?;
    Ok(ExitCode::SUCCESS)
}

fn tell_load(arguments: &LoadArguments, outcome: &Outcome) -> (Value, Table) {
    let tally = &outcome.tally;
    let samples = tally.made as f64 / sections(arguments.series) * arguments.series as f64;
    let quantile = |q: f64| tally.ack_us.value_at_quantile(q);
    let per_sample = |ns: u64| ns as f64 / 1000.0 / samples;
    let percent = |ns: u64| ns as f64 / 1e7 / outcome.seconds;
    let broker_us = outcome.broker_cpu_ns.map(per_sample);
    let shown = |value: Option<String>| value.unwrap_or_else(|| "–".into());
    let rows = vec![
        row(
            "agents × series, every",
            format!("{} × {}, {} ms", arguments.agents, arguments.series, arguments.interval_ms),
        ),
        row("all connected after, s", format!("{:.2}", outcome.connect_seconds)),
        row(
            "frames made / acknowledged / lost",
            format!("{} / {} / {}", tally.made, tally.acked, outcome.lost),
        ),
        row(
            "ack p50 / p99 / p99.9 / max, ms",
            [quantile(0.5), quantile(0.99), quantile(0.999), tally.ack_us.max()]
                .map(ms)
                .join(" / "),
        ),
        row("broker CPU, µs a sample", shown(broker_us.map(|us| format!("{us:.3}")))),
        row(
            "broker CPU, % of a core",
            shown(outcome.broker_cpu_ns.map(|ns| format!("{:.1}", percent(ns)))),
        ),
        row(
            "broker PSS / RSS, MiB",
            shown(outcome.broker_kib.map(|(pss, rss)| format!("{} / {}", pss / 1024, rss / 1024))),
        ),
        row("generator CPU, % of a core", format!("{:.1}", percent(outcome.generator_cpu_ns))),
        row("connections lost, frames resent", format!("{}, {}", tally.closed, tally.resent)),
    ];
    let value = json!({
        "what": "load", "agents": arguments.agents, "series": arguments.series,
        "interval_ms": arguments.interval_ms, "seconds": outcome.seconds,
        "connect_seconds": outcome.connect_seconds, "frames_made": tally.made,
        "frames_acked": tally.acked, "frames_lost": outcome.lost, "ticks_refused": tally.refused,
        "bytes": tally.bytes, "samples": samples,
        "ack_us": { "p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99),
            "p999": quantile(0.999), "max": tally.ack_us.max() },
        "broker_cpu_us_per_sample": broker_us,
        "broker_cpu_percent": outcome.broker_cpu_ns.map(percent),
        "broker_pss_kib": outcome.broker_kib.map(|kib| kib.0),
        "broker_rss_kib": outcome.broker_kib.map(|kib| kib.1),
        "generator_cpu_percent": percent(outcome.generator_cpu_ns),
        "connections_lost": tally.closed, "frames_resent": tally.resent, "reasons": tally.reasons,
    });
    (value, Table { head: vec!["load".into(), "found".into()], rows })
}

fn sections(series: usize) -> f64 {
    series.div_ceil(strobe_wire::limits::SECTION_COLUMNS_MAX) as f64
}

fn row(what: &str, found: String) -> Vec<String> {
    vec![what.into(), found]
}

fn ms(us: u64) -> String {
    format!("{:.1}", us as f64 / 1000.0)
}

fn keep(dir: &Path, name: &str, value: &Value, table: &Table) -> Result<(), String> {
    say(&table.markdown());
    let mut value = value.clone();
    value["at_ms"] = json!(u64::try_from(wall_ms()).unwrap_or(0));
    value["cores"] = json!(std::thread::available_parallelism().map_or(0, usize::from));
    write(dir, name, &value, table).map_err(|why| format!("writing {}: {why}", dir.display()))
}

#[expect(clippy::print_stdout, reason = "the program's output")]
fn say(text: &str) {
    print!("{text}");
}

#[expect(clippy::print_stderr, reason = "the program's complaints")]
fn complain(text: &str) {
    eprintln!("strobe-perf: {text}");
}

/// Time for the last acknowledgements.
const DRAIN: Duration = Duration::from_secs(15);
