//! Strobe's agent beside node_exporter, collectd and sysstat's sadc: started together, measured over
//! the same seconds, so that what the machine does besides weighs on all alike.
//!
//! Each is asked for one sample a second: node_exporter by one scrape just as Prometheus 2.42 does it
//! (a connection kept open, OpenMetrics, gzip), collectd and sadc by their interval (sadc with what
//! Debian has it take, into a file), Strobe's agent by its own tick, and sends it to a broker of its
//! own ([`crate::broker`]); then once more, alone, with its flight recorder. The floor is the same
//! files, read and not looked at ([`crate::floor`]). CPU is all of the process's, from /proc; memory
//! is PSS at the end.

use crate::broker::Broker;
use crate::floor;
use crate::http::{Ask, Http};
use crate::process;
use crate::report::{Table, median};
use crate::run;
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What to compare.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Strobe's agent, if it is there.
    pub strobe: Option<PathBuf>,
    /// More arguments for it (`--broker …`).
    pub strobe_arguments: Vec<String>,
    /// The broker it sends to; without it nothing is sent.
    pub broker: Option<PathBuf>,
    /// node_exporter, if it is there.
    pub node_exporter: Option<PathBuf>,
    /// collectd, if it is there.
    pub collectd: Option<PathBuf>,
    /// sysstat's collector, if it is there.
    pub sadc: Option<PathBuf>,
    /// Samples a run.
    pub ticks: u32,
    /// Runs; medians are over these.
    pub runs: u32,
    /// Where state and configuration files may go; removed by the caller.
    pub dir: PathBuf,
}

/// What one agent cost in one run.
#[derive(Clone, Copy, Debug)]
struct Cost {
    cpu_us_per_tick: f64,
    pss_kib: u64,
    threads: u64,
    /// Of the flight recorder, a second: its thread's voluntary switches.
    samples: Option<f64>,
}

/// A started agent; it is ended by its id when this is dropped.
struct Running {
    name: &'static str,
    child: Child,
    /// Where it wants to be asked once a second, if it does.
    scrape: Option<u16>,
    /// The connection it is asked on.
    scraper: Option<Http>,
}

/// Runs the comparison.
///
/// # Errors
/// An agent cannot be started, or it ended while it was measured.
pub fn compare(comparison: &Comparison) -> io::Result<(Value, Table)> {
    let mut costs: Vec<(&'static str, Vec<Cost>)> = Vec::new();
    let broker = match &comparison.broker {
        Some(program) => Some(Broker::start(program, &comparison.dir).map_err(io::Error::other)?),
        None => None,
    };
    for turn in 0..comparison.runs {
        let beside = once(comparison, broker.as_ref(), turn)?;
        for (name, cost) in beside.into_iter().chain(recording(comparison, broker.as_ref(), turn)?)
        {
            match costs.iter_mut().find(|(known, _)| *known == name) {
                Some((_, costs)) => costs.push(cost),
                None => costs.push((name, vec![cost])),
            }
        }
    }
    Ok(summary(&costs, comparison))
}

fn once(
    comparison: &Comparison,
    broker: Option<&Broker>,
    turn: u32,
) -> io::Result<Vec<(&'static str, Cost)>> {
    let dir = comparison.dir.join(format!("run-{turn}"));
    fs::create_dir_all(&dir)?;
    let mut running = Vec::new();
    if let Some(path) = &comparison.strobe {
        let agent = strobe(comparison, path, broker, &dir.join("agent"), false)?;
        // It has its files open after its first tick.
        run::sleep_until(run::now() + WARM_UP);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("floor").args(floor::files_of(agent.child.id())?);
        running.extend([agent, spawn("pread floor", command, None)?]);
    }
    if let Some(path) = &comparison.node_exporter {
        let port = free_port()?;
        let mut command = Command::new(path);
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        running.push(spawn("node_exporter", command, Some(port))?);
    }
    if let Some(path) = &comparison.collectd {
        let file = collectd_file(&dir)?;
        let mut command = Command::new(path);
        command.arg("-f").arg("-C").arg(file);
        running.push(spawn("collectd", command, None)?);
    }
    if let Some(path) = &comparison.sadc {
        let mut command = Command::new(path);
        command.args(["-F", "-S", "DISK", "1"]).arg(dir.join("sadc"));
        running.push(spawn("sadc", command, None)?);
    }
    measure(&mut running, comparison.ticks)
}

/// The flight recorder, after the others: a hundred wake-ups a second would keep the caches warm for
/// them. Once where nothing else runs, and once where something always does, so that it has no rest.
fn recording(
    comparison: &Comparison,
    broker: Option<&Broker>,
    turn: u32,
) -> io::Result<Vec<(&'static str, Cost)>> {
    let Some(path) = &comparison.strobe else { return Ok(Vec::new()) };
    let mut costs = Vec::new();
    for (name, busy) in [("strobe-agent, flight recorder", None), (BUSY_NAME, Some(BUSY))] {
        let dir = comparison.dir.join(format!("recording-{turn}-{}", costs.len()));
        let shell = |text: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", text]);
            spawn("sh", shell, None)
        };
        let _busy = busy.map(shell).transpose()?;
        let agent = strobe(comparison, path, broker, &dir, true)?;
        let measured = measure(&mut [agent], comparison.ticks)?;
        costs.extend(measured.into_iter().map(|(_, cost)| (name, cost)));
    }
    Ok(costs)
}

/// Strobe's agent, with the flight recorder or without.
fn strobe(
    comparison: &Comparison,
    path: &Path,
    broker: Option<&Broker>,
    dir: &Path,
    records: bool,
) -> io::Result<Running> {
    let mut command = Command::new(path);
    command.arg("--dir").arg(dir).args(records.then_some("--recorder"));
    command.args(&comparison.strobe_arguments);
    match broker {
        // A token is good for one enrolment, and each run is a fresh agent.
        Some(broker) => {
            let token = broker.token().map_err(io::Error::other)?;
            command.args(["--broker", &broker.address.to_string(), "--token", &token]);
        }
        None => {
            command.args(["--listen", &format!("127.0.0.1:{}", free_port()?)]);
        }
    }
    spawn("strobe-agent", command, None)
}

fn measure(running: &mut [Running], ticks: u32) -> io::Result<Vec<(&'static str, Cost)>> {
    let warm = run::now() + WARM_UP;
    for second in 1..=WARM_UP.as_secs() {
        run::sleep_until(warm - WARM_UP + Duration::from_secs(second));
        scrape_all(running)?;
    }
    let before = cpu_of(running)?;
    let samples = |running: &[Running]| -> Vec<_> {
        running.iter().map(|one| process::switches(one.child.id(), RECORDER)).collect()
    };
    let slept = samples(running);
    for tick in 1..=ticks {
        // Half a second off the scrapes, the end is away from everybody's work.
        run::sleep_until(warm + Duration::from_millis(500) + Duration::from_secs(1) * (tick - 1));
        scrape_all(running)?;
    }
    run::sleep_until(warm + Duration::from_secs(1) * ticks);
    let after = cpu_of(running)?;
    let slept = samples(running).into_iter().zip(slept);
    let costs = running.iter().zip(before.iter().zip(&after)).zip(slept);
    costs
        .map(|((one, (before, after)), (slept, slept_before))| {
            let pid = one.child.id();
            let us = Duration::from_nanos(after.saturating_sub(*before)).as_secs_f64() * 1e6;
            let gone = || io::Error::other(format!("{} has ended", one.name));
            let cost = Cost {
                cpu_us_per_tick: us / f64::from(ticks),
                pss_kib: process::pss_kib(pid).ok_or_else(gone)?,
                threads: process::threads(pid).ok_or_else(gone)?,
                samples: slept
                    .zip(slept_before)
                    .map(|(now, then)| now.saturating_sub(then) as f64 / f64::from(ticks)),
            };
            Ok((one.name, cost))
        })
        .collect()
}

fn cpu_of(running: &mut [Running]) -> io::Result<Vec<u64>> {
    let ended = |one: &Running| io::Error::other(format!("{} ended by itself", one.name));
    running
        .iter_mut()
        .map(|one| match one.child.try_wait()? {
            Some(_) => Err(ended(one)),
            None => process::cpu_ns(one.child.id()).ok_or_else(|| ended(one)),
        })
        .collect()
}

fn scrape_all(running: &mut [Running]) -> io::Result<()> {
    for one in running {
        let Some(port) = one.scrape else { continue };
        let mut scraper = match one.scraper.take() {
            Some(scraper) => scraper,
            None => Http::connect(port)?,
        };
        scraper.must(&SCRAPE)?;
        one.scraper = Some(scraper);
    }
    Ok(())
}

fn summary(costs: &[(&'static str, Vec<Cost>)], comparison: &Comparison) -> (Value, Table) {
    let middle = |costs: &[Cost], of: &dyn Fn(&Cost) -> f64| {
        median(&costs.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let of = |wanted: &str| {
        costs.iter().find(|(name, _)| *name == wanted).map(|(_, costs)| costs.as_slice())
    };
    let (strobe, floor) = (of("strobe-agent"), of("pread floor"));
    let mut rows = Vec::new();
    let mut agents = Vec::new();
    for (name, costs) in costs {
        let cpu = middle(costs, &|cost| cost.cpu_us_per_tick);
        let pss = middle(costs, &|cost| cost.pss_kib as f64);
        let threads = middle(costs, &|cost| cost.threads as f64);
        let samples: Vec<f64> = costs.iter().filter_map(|cost| cost.samples).collect();
        let samples = median(&samples);
        // Each ratio is within one run, where both had the same seconds.
        let over = |other: Option<&[Cost]>| {
            let pairs = costs.iter().zip(other?);
            median(&pairs.map(|(a, b)| a.cpu_us_per_tick / b.cpu_us_per_tick).collect::<Vec<_>>())
        };
        let shown =
            |ratio: Option<f64>| ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"));
        let (ratio, above) = (over(strobe), over(floor));
        rows.push(vec![
            (*name).into(),
            format!("{cpu:.0}"),
            shown(ratio),
            shown(above),
            format!("{:.1}", pss / 1024.0),
            format!("{threads:.0}"),
            samples.map_or_else(|| "–".into(), |samples| format!("{samples:.0}")),
        ]);
        agents.push(json!({
            "name": name, "cpu_us_per_tick": cpu, "cpu_over_strobe": ratio,
            "cpu_over_floor": above,
            "pss_kib": pss, "threads": threads, "samples_per_s": samples,
            "runs": costs.iter().map(|cost| cost.cpu_us_per_tick).collect::<Vec<_>>(),
        }));
    }
    let head = ["agent", "CPU µs a tick", "× strobe-agent", "× floor", "PSS MiB", "threads", "Hz"];
    let table = Table { head: head.map(String::from).to_vec(), rows };
    let value = json!({ "what": "agents", "ticks": comparison.ticks, "runs": comparison.runs, "agents": agents });
    (value, table)
}

/// A configuration with the plugins nearest to what the others read, and no output.
fn collectd_file(dir: &Path) -> io::Result<PathBuf> {
    let mut text = format!(
        "Interval 1\nBaseDir \"{0}\"\nPIDFile \"{0}/collectd.pid\"\nFQDNLookup false\n",
        dir.display()
    );
    for plugin in ["cpu", "load", "memory", "swap", "vmem", "disk", "df", "interface"] {
        text += &format!("LoadPlugin {plugin}\n");
    }
    let file = dir.join("collectd.conf");
    fs::write(&file, text)?;
    Ok(file)
}

fn spawn(name: &'static str, mut command: Command, scrape: Option<u16>) -> io::Result<Running> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|why| io::Error::new(why.kind(), format!("starting {name}: {why}")))?;
    Ok(Running { name, child, scrape, scraper: None })
}

/// A port that was free a moment ago.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already; either way its exit is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const WARM_UP: Duration = Duration::from_secs(3);
const RECORDER: &str = "strobe-record";
const BUSY_NAME: &str = "strobe-agent, flight recorder, host never quiet";
/// About a tenth of a core, in pieces.
const BUSY: &str = "while :; do i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; sleep 0.02; done";

/// What Prometheus 2.42 sends.
const SCRAPE: Ask<'_> = Ask {
    method: "GET",
    path: "/metrics",
    head: "User-Agent: Prometheus/2.42.0+ds\r\n\
        Accept: application/openmetrics-text;version=1.0.0,\
        application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n\
        Accept-Encoding: gzip\r\nX-Prometheus-Scrape-Timeout-Seconds: 1\r\n",
    body: &[],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_within_a_run_and_medians_over_runs() {
        let cost =
            |cpu_us_per_tick| Cost { cpu_us_per_tick, pss_kib: 2048, threads: 2, samples: None };
        let comparison = Comparison {
            strobe: None,
            strobe_arguments: Vec::new(),
            broker: None,
            node_exporter: None,
            collectd: None,
            sadc: None,
            ticks: 1,
            runs: 3,
            dir: PathBuf::new(),
        };
        let costs = [
            ("strobe-agent", vec![cost(100.0), cost(200.0), cost(100.0)]),
            ("node_exporter", vec![cost(1000.0), cost(4000.0), cost(3000.0)]),
            ("pread floor", vec![cost(50.0), cost(100.0), cost(200.0)]),
        ];
        let (value, table) = summary(&costs, &comparison);
        assert_eq!(value["agents"][1]["cpu_us_per_tick"], 3000.0);
        assert_eq!(value["agents"][1]["cpu_over_strobe"], 20.0);
        assert_eq!(table.rows[0], ["strobe-agent", "100", "1.00", "2.00", "2.0", "2", "–"]);
        assert_eq!(value["agents"][2]["cpu_over_strobe"], 0.5);
    }
}
