//! `strobe sim`: a whole cluster on virtual clocks, with faults from a seed; a failure is shrunk and told.
//!
//! Each run is a process of its own, for what fails panics, and a panic ends a process. A run is named
//! by its seed, its length and the troubles that were not left out: the command that is printed in
//! the end runs it again.

use super::output::print;
use nix::sys::signal::{SigSet, Signal};
use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use strobe_sim::{Plan, TROUBLES, Trace, shrink};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The first seed.
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Simulated hours of trouble a seed; without it half a minute.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100))]
    hours: Option<u64>,
    /// How many seeds.
    #[arg(long, default_value = "1")]
    seeds: u64,
    /// Seed after seed, until it is ended or something fails.
    #[arg(long, conflicts_with = "seeds")]
    forever: bool,
    /// Runs at a time.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
    /// Say what happens, as it happens.
    #[arg(long)]
    trace: bool,
    /// Of the seed's troubles only these.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    only: Option<Vec<usize>>,
    /// And healed after so long.
    #[arg(long, value_name = "MS")]
    until_ms: Option<u64>,
    /// In this process.
    #[arg(long, hide = true)]
    here: bool,
}

/// What became of the runs so far.
#[derive(Debug, Default)]
struct Sum {
    counts: BTreeMap<String, u64>,
    simulated_ms: u64,
    seeds: u64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, String> {
    if args.here {
        here(args);
        return Ok(ExitCode::SUCCESS);
    }
    if args.trace || args.only.is_some() || args.until_ms.is_some() {
        let told = child(&plan(args), args, true)?;
        return Ok(told.map_or_else(|why| failed(&why), |_| ExitCode::SUCCESS));
    }
    static ENDED: AtomicBool = AtomicBool::new(false);
    catch_ends(&ENDED)?;
    let ended = || ENDED.load(Ordering::Relaxed);
    let began = now();
    let (sum, told_at) = (Mutex::new(Sum::default()), Mutex::new(began));
    let (next, over) = (AtomicU64::new(args.seed), AtomicBool::new(false));
    let end = if args.forever { u64::MAX } else { args.seed.saturating_add(args.seeds) };
    let work = || -> Result<Option<(Plan, String)>, String> {
        while !over.load(Ordering::Relaxed) && !ended() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if end <= seed {
                break;
            }
            let plan = Plan::of(seed, args.hours);
            match child(&plan, args, false)? {
                Ok(text) => sum.lock().unwrap_or_else(PoisonError::into_inner).add(&text),
                // A terminal's Ctrl-C ends the runs as well.
                Err(_) if ended() => return Ok(None),
                Err(why) => {
                    over.store(true, Ordering::Relaxed);
                    return Ok(Some((plan, why)));
                }
            }
            let mut told_at = told_at.lock().unwrap_or_else(PoisonError::into_inner);
            if TELL_EVERY <= told_at.elapsed() {
                *told_at = now();
                print(&sum.lock().unwrap_or_else(PoisonError::into_inner).line(began));
            }
        }
        Ok(None)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..args.jobs).map(|_| scope.spawn(work)).collect();
        jobs.into_iter().map(|job| job.join().map_err(|_| "a thread ended".to_owned())).collect()
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    print(&sum.report(began));
    for result in results {
        if let Some((plan, why)) = result?? {
            return explain(&plan, &why, args);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Shrinks a failure and tells it.
fn explain(plan: &Plan, why: &str, args: &Args) -> Result<ExitCode, String> {
    print(&format!("seed {} fails: {why}", plan.seed));
    print(&format!("leaving out of its {} troubles what does not matter ...", plan.troubles.len()));
    let kind = kind(why);
    let small = shrink(
        plan,
        ASKS_MAX,
        &mut |plan| matches!(child(plan, args, false), Ok(Err(why)) if self::kind(&why) == kind),
    );
    print(&format!("with {} of them:", small.troubles.len()));
    let told = child(&small, args, true)?;
    let numbers = small.troubles.iter().map(|trouble| trouble.number.to_string());
    let numbers = numbers.collect::<Vec<_>>().join(",");
    let hours = args.hours.map_or(String::new(), |hours| format!(" --hours {hours}"));
    let (seed, until_ms) = (small.seed, small.suffering_ms);
    // A list may be empty, a flag's value not.
    let only = if numbers.is_empty() { "0".to_owned() } else { numbers };
    print(&format!(
        "this again: strobe sim --seed {seed}{hours} --only {only} --until-ms {until_ms}"
    ));
    Ok(failed(&told.err().unwrap_or_else(|| "it did not fail once more".to_owned())))
}

fn failed(why: &str) -> ExitCode {
    super::output::complain(why);
    ExitCode::FAILURE
}

/// The plan that the arguments name.
fn plan(args: &Args) -> Plan {
    let plan = Plan::of(args.seed, args.hours);
    let until_ms = args.until_ms.unwrap_or(plan.suffering_ms);
    let all: Vec<usize> = plan.troubles.iter().map(|trouble| trouble.number).collect();
    plan.only(args.only.as_deref().unwrap_or(&all), until_ms)
}

/// Runs what the arguments name in this process.
fn here(args: &Args) {
    let trace = if args.trace { Trace::to(print) } else { Trace::default() };
    let tally = strobe_sim::run(plan(args), &strobe_sim::keys(), trace);
    let counts = tally.counts().chain([(SIMULATED, tally.simulated_ms)]);
    counts.for_each(|(what, count)| print(&format!("{count} {what}")));
}

/// Runs a plan in a process of its own: what it said, or why it failed.
fn child(plan: &Plan, args: &Args, shown: bool) -> Result<Result<String, String>, String> {
    let own = std::env::current_exe().map_err(|why| format!("cannot find myself: {why}"))?;
    let mut command = Command::new(own);
    command.args(["sim", "--here", "--seed", &plan.seed.to_string()]);
    command.args(["--until-ms", &plan.suffering_ms.to_string()]);
    if let Some(hours) = args.hours {
        command.args(["--hours", &hours.to_string()]);
    }
    let whole = Plan::of(plan.seed, args.hours).troubles.len();
    if plan.troubles.len() < whole {
        let numbers = plan.troubles.iter().map(|trouble| trouble.number.to_string());
        let numbers: Vec<String> = std::iter::once("0".to_owned()).chain(numbers).collect();
        command.args(["--only", &numbers.join(",")]);
    }
    if shown {
        command.arg("--trace").stdout(Stdio::inherit());
    }
    command.env("RUST_BACKTRACE", "0").stdin(Stdio::null()).stderr(Stdio::piped());
    if !shown {
        command.stdout(Stdio::piped());
    }
    let child = command.spawn().map_err(|why| format!("cannot start a run: {why}"))?;
    let done = child.wait_with_output().map_err(|why| format!("cannot wait for a run: {why}"))?;
    if done.status.success() {
        return Ok(Ok(String::from_utf8_lossy(&done.stdout).into_owned()));
    }
    Ok(Err(why(&String::from_utf8_lossy(&done.stderr))))
}

/// What a panic says, and where.
fn why(stderr: &str) -> String {
    let lines = stderr.lines().skip_while(|line| !line.contains(" panicked at "));
    let lines = lines.take_while(|line| !line.starts_with("note: "));
    let text = lines.collect::<Vec<_>>().join("\n");
    let place = text.split_once(" panicked at ").map(|(_, rest)| rest.to_owned());
    place.unwrap_or_else(|| format!("it ended: {}", stderr.trim()))
}

/// A failure without its numbers: the same one again.
fn kind(why: &str) -> String {
    let first = why.lines().take(2).collect::<String>();
    first.chars().filter(|c| !c.is_ascii_hexdigit()).take(120).collect()
}

impl Sum {
    fn add(&mut self, text: &str) {
        self.seeds += 1;
        for line in text.lines() {
            let Some((count, what)) = line.split_once(' ') else { continue };
            let count = count.parse().unwrap_or(0);
            if what == SIMULATED {
                self.simulated_ms += count;
            } else {
                *self.counts.entry(what.to_owned()).or_default() += count;
            }
        }
    }

    fn line(&self, began: Instant) -> String {
        let hours = Duration::from_millis(self.simulated_ms).as_secs_f64() / 3_600.0;
        let taken = began.elapsed().as_secs_f64();
        let troubles: u64 = TROUBLES.iter().filter_map(|what| self.counts.get(*what)).sum();
        format!(
            "{hours:.2} hours simulated in {taken:.0} s ({:.0} times as fast), {} seeds, {troubles} \
             faults survived",
            hours * 3_600.0 / taken.max(0.001),
            self.seeds
        )
    }

    fn report(&self, began: Instant) -> String {
        let trouble = |what: &str| TROUBLES.contains(&what);
        let lines = |of: bool| {
            let counts = self.counts.iter().filter(move |(what, _)| trouble(what) == of);
            let lines = counts.map(|(what, count)| format!("\n  {count:>9} {what}"));
            lines.collect::<String>()
        };
        let (faults, rest) = (lines(true), lines(false));
        format!("{}\nfaults:{faults}\nand:{rest}", self.line(began))
    }
}

/// From now on SIGINT and SIGTERM end no more than the run: no further seed is begun, and what was done is
/// told. To be called before any thread is started; a child does not inherit it.
fn catch_ends(ended: &'static AtomicBool) -> Result<(), String> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(|why| format!("cannot block signals: {why}"))?;
    std::thread::spawn(move || {
        // Relaxed: a word by itself.
        ended.store(signals.wait().is_ok(), Ordering::Relaxed);
        print("no further seed is begun; those under way are ended ...");
    });
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "says how fast the simulation is")]
fn now() -> Instant {
    Instant::now()
}

const SIMULATED: &str = "ms simulated";
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Runs to shrink a failure with.
const ASKS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_known_again_without_its_numbers() {
        let said = |host: u64, seq: u64| {
            why(&format!(
                "noise\n\nthread 'main' (17) panicked at sim/src/ledger.rs:140:17:\nId {{ host: {host}, seq: \
                 {seq} }} was acknowledged and is nowhere\nnote: run with"
            ))
        };
        assert!(said(1, 2).starts_with("sim/src/ledger.rs:140:17:\nId"));
        assert_eq!(kind(&said(1, 2)), kind(&said(3, 456)));
        assert_ne!(kind(&said(1, 2)), kind("sim/src/ledger.rs:9:9:\nit is stored twice"));
        assert_eq!(why("killed\n"), "it ended: killed");
    }
}
