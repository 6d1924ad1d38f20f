//! A fleet against a cluster of real brokers on this machine, some of which are killed or held still
//! meanwhile, and at the end every row that was acknowledged is asked for.
//!
//! The judge: each tick of a host is a moment of its own, so `count_over_time` of a series that every tick
//! has is the number of ticks that were made. Less is a loss; more cannot be, since answers are merged by
//! time, so what brokers hold twice is counted on their disks.

mod harm;
pub mod proposals;
mod site;

use super::{Bench, Found, row, shown};
use crate::report::Table;
use crate::rows::{Model, Shape};
use crate::run::{self, Load, Outcome, hosts, load_with};
use harm::{Hand, LASTING_MAX, Wounds, singly};
use serde_json::json;
use site::{Counted, Site};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What to run.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Brokers.
    pub brokers: usize,
    /// Simulated hosts.
    pub agents: usize,
    /// Series of each.
    pub series: usize,
    /// How long rows are made.
    pub lasting: Duration,
    /// Whether all brokers write to a redis-server of this run's own.
    pub redis: bool,
    /// What is done to the processes.
    pub harm: Harm,
    /// Which blows.
    pub seed: u64,
}

/// What is done to the processes.
#[derive(Clone, Copy, Debug)]
pub enum Harm {
    /// Nothing.
    None,
    /// A broker is killed or held still, one at a time, all along.
    Some {
        /// Time between two blows.
        every: Duration,
    },
    /// Any process is, however many are down already; the run ends after so many.
    Blows {
        /// How many.
        count: u64,
        /// Time between two blows.
        every: Duration,
    },
    /// A broker is killed, comes back, and all are well again before the next; the run ends after so many.
    Kills {
        /// How many.
        count: u64,
    },
}

/// Starts brokers, makes a cluster of them, runs the fleet, hurts them, and counts.
///
/// # Errors
/// What could not be started or read; lost rows are no error but [`Found::failed`].
pub fn measure(bench: &Bench, wanted: &Wanted) -> Result<Found, String> {
    let scratch = bench.scratch("cluster")?;
    let mut site = Site::start(bench, wanted, &scratch)?;
    let authority = site.brokers[0].authority().map_err(|why| why.to_string())?;
    let asked = Load {
        brokers: site.brokers.iter().map(|broker| broker.address).collect(),
        agents: wanted.agents,
        shape: Shape::Host,
        series: wanted.series,
        // The hand ends it.
        lasting: LASTING_MAX,
        interval: Duration::from_secs(1),
        drain: DRAIN,
        broker_pid: None,
    };
    let from_ms = i64::try_from(run::wall_ms()).unwrap_or(0);
    let hosts = hosts(&authority, wanted.agents).map_err(|why| why.to_string())?;
    let (mut cpu_ns, ended, begun) = (0, AtomicBool::new(false), AtomicBool::new(false));
    let (outcome, wounds) = std::thread::scope(|scope| {
        let hand = scope.spawn(|| {
            while !begun.load(Ordering::Relaxed) {
                run::sleep_until(run::now() + Duration::from_millis(5));
            }
            let before_ns = site.cpu_ns();
            let done = Hand::new(&mut site, wanted, &ended).work();
            cpu_ns = site.cpu_ns().saturating_sub(before_ns);
            ended.store(true, Ordering::Relaxed);
            done
        });
        let outcome = load_with(&asked, hosts, &mut || {
            begun.store(true, Ordering::Relaxed);
            if ended.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        // Where nobody could connect there is nothing to be hurt.
        ended.store(true, Ordering::Relaxed);
        begun.store(true, Ordering::Relaxed);
        (outcome, hand.join())
    });
    let outcome = outcome.map_err(|why| why.to_string())?;
    let wounds = wounds.map_err(|_| "the hand that hurts panicked")??;
    let counted = site.counted(wanted, outcome.seconds)?;
    let peak_kib = site.peaks.iter().copied().max().unwrap_or(0);
    let rows_on_disk = site.end(from_ms)?;
    Ok(tell(wanted, &outcome, &wounds, &At { cpu_ns, peak_kib, rows_on_disk, counted }))
}

/// How it stood at the end.
struct At {
    cpu_ns: u64,
    peak_kib: u64,
    rows_on_disk: u64,
    counted: Vec<Counted>,
}

#[expect(clippy::too_many_lines, reason = "one flat list of what was found")]
fn tell(wanted: &Wanted, outcome: &Outcome, wounds: &Wounds, at: &At) -> Found {
    let At { cpu_ns, peak_kib, rows_on_disk, ref counted } = *at;
    let Wanted { brokers, agents, series, .. } = *wanted;
    let tally = &outcome.tally;
    let sections = Model::new(Shape::Host, series).schemas.len() as u64;
    let made: u64 = outcome.hosts.iter().map(|(made, _)| made / sections).sum();
    let mut gaps: Vec<Duration> = outcome.hosts.iter().map(|(_, gaps)| gaps.longest).collect();
    gaps.sort();
    // Per thousand.
    let gap = |q: usize| gaps[(gaps.len() - 1) * q / 1000].as_secs_f64();
    let ack = |q: f64| tally.ack_us.value_at_quantile(q) as f64 / 1000.0;
    let percent = cpu_ns as f64 / 1e7 / outcome.seconds;
    let peak = peak_kib as f64 / 1024.0;
    let (of_each, each) = singly(&wounds.single, &outcome.hosts);
    let twice = rows_on_disk.saturating_sub(tally.samples) as f64 / series as f64;
    let missing: Vec<&Counted> =
        counted.iter().filter(|one| one.sum != made || one.warnings != 0).collect();
    let failed =
        (outcome.lost != 0 || !missing.is_empty() || rows_on_disk < tally.samples).then(|| {
            format!(
                "{made} ticks were made, brokers answer {counted:?}; {} frames were not \
                 acknowledged; {rows_on_disk} samples on disk of {}",
                outcome.lost, tally.samples
            )
        });
    let heading = format!("{brokers} brokers, {agents} agents × {series} series at 1 Hz");
    let mut rows = vec![
        row("Seconds", shown(Some(outcome.seconds), 0)),
        row(
            "Killed (SIGKILL), held still (SIGSTOP); of these the Redis",
            format!("{}, {}; {}", wounds.kills, wounds.stops, wounds.of_redis),
        ),
        row(
            "Ticks made; as every broker counts them at the end",
            format!("{made}; {}", counted[0].sum),
        ),
        row("Frames not acknowledged", outcome.lost.to_string()),
        row("Rows that lie with two brokers", shown(Some(twice), 0)),
        row(
            "Acknowledged after, ms: p50, p99, p99.9",
            format!("{:.0}, {:.0}, {:.0}", ack(0.5), ack(0.99), ack(0.999)),
        ),
        row(
            "Longest time without an acknowledgement, s: median host, p99, worst",
            format!("{:.2}, {:.2}, {:.2}", gap(500), gap(990), gap(1000)),
        ),
        row("Ticks refused by full agents", tally.refused.to_string()),
        row(
            "Sent on by a broker; connections left or lost",
            format!("{}; {}", tally.redirected, tally.closed),
        ),
        row("CPU of all brokers, % of a core", shown(Some(percent), 1)),
        row(
            "CPU of the fleet, % of a core",
            shown(Some(outcome.generator_cpu_ns as f64 / 1e7 / outcome.seconds), 1),
        ),
        row("PSS of the largest broker, MiB", shown(Some(peak), 0)),
    ];
    if !wounds.single.is_empty() {
        rows.extend(of_each);
    }
    let table = Table { head: vec![heading, "found".into()], rows };
    let value = json!({
        "what": "cluster", "brokers": brokers, "agents": agents, "series": series,
        "redis": wanted.redis, "seed": wanted.seed, "seconds": outcome.seconds,
        "kills": wounds.kills, "stops": wounds.stops, "of_redis": wounds.of_redis, "single": each,
        "ticks_made": made, "ticks_answered": counted.iter().map(|one| one.sum).collect::<Vec<_>>(),
        "least_of_a_host": counted.iter().map(|one| one.least).collect::<Vec<_>>(),
        "frames_lost": outcome.lost, "samples": tally.samples, "samples_on_disk": rows_on_disk,
        "rows_twice": twice, "ack_ms_p50": ack(0.5), "ack_ms_p99": ack(0.99), "ack_ms_p999": ack(0.999),
        "gap_s_median": gap(500), "gap_s_p99": gap(990), "gap_s_max": gap(1000),
        "ticks_refused": tally.refused, "redirects": tally.redirected, "connections_lost": tally.closed,
        "brokers_cpu_percent_of_core": percent, "pss_mib_peak": peak, "reasons": tally.reasons,
        "connect_s": outcome.connect_seconds,
    });
    let hurt = match wanted.harm {
        Harm::None => "",
        Harm::Some { .. } => "-hurt",
        Harm::Blows { .. } => "-blows",
        Harm::Kills { .. } => "-kills",
    };
    let name = format!("cluster-{brokers}x{agents}x{series}{hurt}");
    Found { name, value, table, failed }
}

const DRAIN: Duration = Duration::from_secs(60);
const READY: Duration = Duration::from_secs(60);
/// Nobody is hurt in the last of it.
const CALM: Duration = Duration::from_secs(15);
