//! A fleet against a cluster of real brokers on this machine, some of which are killed or held still
//! meanwhile, and at the end every row that was acknowledged is asked for.
//!
//! The judge: each tick of a host is a moment of its own, so `count_over_time` of a series that every tick
//! has is the number of ticks that were made. Less is a loss; more cannot be, since answers are merged by
//! time, so what brokers hold twice is counted on their disks.

use super::{Bench, Found, row, shown};
use crate::broker::{Broker, sealed};
use crate::process::{cpu_ns, pss_kib};
use crate::report::Table;
use crate::rows::{Model, Shape};
use crate::run::{self, Load, Outcome, hosts, load_with};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
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
    /// Time between two blows; none: nobody is hurt.
    pub blows_every: Option<Duration>,
    /// Which blows.
    pub seed: u64,
}

/// The brokers, and what was done to them.
struct Site {
    brokers: Vec<Broker>,
    redis: Option<(Child, u16)>,
    kills: u64,
    stops: u64,
    /// Who is to go on, and when.
    held: Vec<(usize, Duration, Blow)>,
    /// CPU time of lives that are over.
    spent_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// SIGKILL, and another life later.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Stop,
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
        lasting: wanted.lasting,
        interval: Duration::from_secs(1),
        drain: DRAIN,
        broker_pid: None,
    };
    let from_ms = i64::try_from(run::wall_ms()).unwrap_or(0);
    let hosts = hosts(&authority, wanted.agents).map_err(|why| why.to_string())?;
    let (mut random, mut next) = (wanted.seed | 1, wanted.blows_every);
    let (mut began_ns, mut peaks, mut look) = (None, vec![0; wanted.brokers], Duration::ZERO);
    let mut trouble = None;
    let mut meanwhile = |passed: Duration| {
        began_ns.get_or_insert_with(|| site.cpu_ns());
        if look <= passed {
            look = passed + LOOK_EVERY;
            for (peak, broker) in peaks.iter_mut().zip(&site.brokers) {
                *peak = pss_kib(broker.pid()).unwrap_or(0).max(*peak);
            }
        }
        let done = site.go_on(passed).and_then(|()| match (next, wanted.blows_every) {
            // The last blow's wounds are to heal before the end.
            (Some(at), Some(every)) if at <= passed && passed + CALM < wanted.lasting => {
                next = Some(at + every);
                site.strike(&mut random, passed)
            }
            _ => Ok(()),
        });
        if let Err(why) = done {
            trouble.get_or_insert(why);
        }
    };
    let outcome = load_with(&asked, hosts, &mut meanwhile).map_err(|why| why.to_string())?;
    site.go_on(Duration::MAX)?;
    if let Some(why) = trouble {
        return Err(why);
    }
    let cpu_ns = site.cpu_ns().saturating_sub(began_ns.unwrap_or(0));
    let counted = site.counted(wanted)?;
    let told = json!({ "kills": site.kills, "stops": site.stops, "pss_kib_peak": peaks });
    let rows_on_disk = site.end(from_ms)?;
    Ok(tell(wanted, &outcome, (cpu_ns, &counted, rows_on_disk), &told))
}

impl Site {
    fn start(bench: &Bench, wanted: &Wanted, scratch: &Path) -> Result<Self, String> {
        let redis = if wanted.redis { Some(start_redis(scratch)?) } else { None };
        let store = redis.as_ref().map(|(_, port)| format!("redis://127.0.0.1:{port}/0"));
        let more: Vec<&str> = store.iter().flat_map(|url| ["--store", url.as_str()]).collect();
        let program = bench.program("strobe-broker")?;
        let mut brokers = Vec::new();
        for number in 1..=wanted.brokers {
            let own = scratch.join(number.to_string());
            let started = Broker::start_with(&program, &own, &more);
            brokers.push(started.map_err(|why| why.to_string())?);
        }
        let site = Self { brokers, redis, kills: 0, stops: 0, held: Vec::new(), spent_ns: 0 };
        let ask = |at: usize, what: &str, form: &str| {
            let said = site.brokers[at].operate(&format!("/api/strobe/v1/cluster/{what}"), form);
            said.map_err(|why| why.to_string())
        };
        ask(0, "init", "")?;
        let seed = site.brokers[0].address;
        for at in 1..wanted.brokers {
            let token = ask(0, "token", "lifetime_ms=600000")?;
            ask(at, "join", &format!("seed={seed}&token={}", token.trim()))?;
        }
        let until = run::now() + READY;
        while !site.is_balanced() {
            if until < run::now() {
                return Err("the brokers did not become a cluster within a minute".into());
            }
            run::sleep_until(run::now() + Duration::from_millis(200));
        }
        Ok(site)
    }

    fn is_balanced(&self) -> bool {
        let status = self.brokers[0].operate("/api/strobe/v1/cluster/status", "");
        let status: Value = serde_json::from_str(&status.unwrap_or_default()).unwrap_or_default();
        let members = status["members"].as_array().cloned().unwrap_or_default();
        let fair = 256_u64.div_ceil(self.brokers.len() as u64) * 21 / 20 + 1;
        let shards = |member: &Value| member["shards"].as_u64().unwrap_or(u64::MAX);
        members.len() == self.brokers.len()
            && members.iter().all(|one| one["stage"] == "voter" && shards(one) <= fair)
            && members.iter().map(shards).sum::<u64>() == 256
    }

    fn cpu_ns(&self) -> u64 {
        let living = self.brokers.iter().filter_map(|broker| cpu_ns(broker.pid()));
        self.spent_ns + living.sum::<u64>()
    }

    /// One broker at a time: more than half stay.
    fn strike(&mut self, random: &mut u64, passed: Duration) -> Result<(), String> {
        let quorum_is_hurt = (self.brokers.len() - 1) / 2 <= self.held.len();
        if quorum_is_hurt {
            return Ok(());
        }
        let victim = usize::try_from(draw(random) % self.brokers.len() as u64).unwrap_or(0);
        if self.held.iter().any(|(at, ..)| *at == victim) {
            return Ok(());
        }
        let blow = if draw(random).is_multiple_of(2) { Blow::Kill } else { Blow::Stop };
        let back = passed + Duration::from_millis(500 + draw(random) % 5_000);
        match blow {
            Blow::Kill => {
                self.spent_ns += cpu_ns(self.brokers[victim].pid()).unwrap_or(0);
                self.brokers[victim].kill();
                self.kills += 1;
            }
            Blow::Stop => {
                signal(self.brokers[victim].pid(), Signal::SIGSTOP)?;
                self.stops += 1;
            }
        }
        self.held.push((victim, back, blow));
        Ok(())
    }

    /// Those whose time has come live again.
    fn go_on(&mut self, passed: Duration) -> Result<(), String> {
        let (due, held) = self.held.drain(..).partition(|(_, back, _)| *back <= passed);
        self.held = held;
        let due: Vec<(usize, Duration, Blow)> = due;
        for (at, _, blow) in due {
            match blow {
                Blow::Kill => self.brokers[at].begin_again().map_err(|why| why.to_string())?,
                Blow::Stop => signal(self.brokers[at].pid(), Signal::SIGCONT)?,
            }
        }
        Ok(())
    }

    /// Moments of every host, as each broker answers when all are there.
    fn counted(&self, wanted: &Wanted) -> Result<Vec<Counted>, String> {
        let model = Model::new(Shape::Host, wanted.series);
        let first = &model.schemas[0].columns[0];
        // Seconds that any host's first row may be ago, with what came before them.
        let seconds = (wanted.lasting + DRAIN + READY + READY).as_secs();
        let expression = format!("sum(count_over_time({}[{seconds}s]))", first.name);
        let least = format!("min(count_over_time({}[{seconds}s]))", first.name);
        let until = run::now() + READY;
        loop {
            let all: Result<Vec<Counted>, String> = (0..self.brokers.len())
                .map(|at| {
                    let (sum, warnings) = self.ask(at, &expression)?;
                    Ok(Counted { sum, least: self.ask(at, &least)?.0, warnings })
                })
                .collect();
            // A broker that was hurt last may still be on its way back.
            match all {
                Ok(all) if all.iter().all(|one| one.warnings == 0) => return Ok(all),
                all if until < run::now() => return all,
                _ => run::sleep_until(run::now() + Duration::from_millis(500)),
            }
        }
    }

    fn ask(&self, at: usize, expression: &str) -> Result<(u64, usize), String> {
        // Nothing in it would have to be encoded.
        let query = format!("query={expression}");
        let body = self.brokers[at].ask("/api/v1/query", &query).map_err(|why| why.to_string())?;
        let body: Value = serde_json::from_str(&body).map_err(|why| why.to_string())?;
        let value = body["data"]["result"][0]["value"][1].as_str().unwrap_or("0");
        let value = value.parse().map_err(|_| format!("{value:?} is no whole number"))?;
        Ok((value, body["warnings"].as_array().map_or(0, Vec::len)))
    }

    /// Ends all, and counts the raw samples on their disks.
    fn end(self, from_ms: i64) -> Result<u64, String> {
        let dirs: Vec<_> = self.brokers.iter().map(|broker| broker.dir.join("store")).collect();
        let ended: Vec<_> = self.brokers.into_iter().map(Broker::end_and_keep).collect();
        let mut samples = 0;
        for dir in &dirs {
            samples += sealed(dir, from_ms).map_err(|why| why.to_string())?.raw.samples;
        }
        drop(ended);
        if let Some((mut redis, _)) = self.redis {
            signal(redis.id(), Signal::SIGTERM)?;
            redis.wait().map_err(|why| why.to_string())?;
        }
        Ok(samples)
    }
}

/// What a broker answers.
#[derive(Clone, Copy, Debug)]
struct Counted {
    /// Moments of all hosts.
    sum: u64,
    /// Of the host that has the fewest.
    least: u64,
    warnings: usize,
}

#[expect(clippy::too_many_lines, reason = "one flat list of what was found")]
fn tell(
    wanted: &Wanted,
    outcome: &Outcome,
    (cpu_ns, counted, rows_on_disk): (u64, &[Counted], u64),
    told: &Value,
) -> Found {
    let Wanted { brokers, agents, series, .. } = *wanted;
    let tally = &outcome.tally;
    let sections = Model::new(Shape::Host, series).schemas.len() as u64;
    let made: u64 = outcome.hosts.iter().map(|(made, _)| made / sections).sum();
    let mut gaps: Vec<Duration> = outcome.hosts.iter().map(|(_, gap)| *gap).collect();
    gaps.sort();
    // Per thousand.
    let gap = |q: usize| gaps[(gaps.len() - 1) * q / 1000].as_secs_f64();
    let ack = |q: f64| tally.ack_us.value_at_quantile(q) as f64 / 1000.0;
    let percent = cpu_ns as f64 / 1e7 / outcome.seconds;
    let peaks = told["pss_kib_peak"].as_array().cloned().unwrap_or_default();
    let peak = peaks.iter().filter_map(Value::as_u64).max().unwrap_or(0) as f64 / 1024.0;
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
    let rows = vec![
        row("Seconds", shown(Some(outcome.seconds), 0)),
        row(
            "Killed (SIGKILL), held still (SIGSTOP)",
            format!("{}, {}", told["kills"], told["stops"]),
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
    let table = Table { head: vec![heading, "found".into()], rows };
    let value = json!({
        "what": "cluster", "brokers": brokers, "agents": agents, "series": series,
        "redis": wanted.redis, "seed": wanted.seed, "seconds": outcome.seconds,
        "kills": told["kills"], "stops": told["stops"],
        "ticks_made": made, "ticks_answered": counted.iter().map(|one| one.sum).collect::<Vec<_>>(),
        "least_of_a_host": counted.iter().map(|one| one.least).collect::<Vec<_>>(),
        "frames_lost": outcome.lost, "samples": tally.samples, "samples_on_disk": rows_on_disk,
        "rows_twice": twice, "ack_ms_p50": ack(0.5), "ack_ms_p99": ack(0.99), "ack_ms_p999": ack(0.999),
        "gap_s_median": gap(500), "gap_s_p99": gap(990), "gap_s_max": gap(1000),
        "ticks_refused": tally.refused, "redirects": tally.redirected, "connections_lost": tally.closed,
        "brokers_cpu_percent_of_core": percent, "pss_mib_peak": peak, "reasons": tally.reasons,
        "connect_s": outcome.connect_seconds,
    });
    let hurt = if wanted.blows_every.is_some() { "-hurt" } else { "" };
    let name = format!("cluster-{brokers}x{agents}x{series}{hurt}");
    Found { name, value, table, failed }
}

fn start_redis(scratch: &Path) -> Result<(Child, u16), String> {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let port = free.map_err(|why| why.to_string())?.port();
    std::fs::create_dir_all(scratch).map_err(|why| why.to_string())?;
    let redis = Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        .arg("--dir")
        .arg(scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|why| format!("redis-server cannot be started: {why}"))?;
    let until = run::now() + READY;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if until < run::now() {
            return Err("redis-server does not answer".into());
        }
        run::sleep_until(run::now() + Duration::from_millis(20));
    }
    Ok((redis, port))
}

fn signal(pid: u32, signal: Signal) -> Result<(), String> {
    let pid = i32::try_from(pid).map_err(|why| why.to_string())?;
    kill(Pid::from_raw(pid), signal).map_err(|why| format!("{signal}: {why}"))
}

/// xorshift64.
fn draw(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 11
}

const DRAIN: Duration = Duration::from_secs(60);
const READY: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Nobody is hurt in the last of it.
const CALM: Duration = Duration::from_secs(15);
