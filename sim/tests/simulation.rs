//! Seeds of the whole cluster; see the crate.
//!
//! `STROBE_SIM_SEEDS=5000` runs more seeds, `STROBE_SIM_SEED=17` runs one, and says what happens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use strobe_broker::store::redis::Plant as Redis;
use strobe_cluster::Plant as Control;
use strobe_sim::{Keys, Plan, Plant, TROUBLES, Tally, Trace, keys};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

/// Runs a plan; why it failed, if it did.
fn tried(keys: &Keys, seed: u64, plant: Option<Plant>) -> Result<Tally, String> {
    let plan = Plan::of(seed, None);
    let run = || match plant {
        Some(plant) => strobe_sim::run_planted(plan, keys, plant, Trace::default()),
        None => strobe_sim::run(plan, keys, Trace::default()),
    };
    catch_unwind(AssertUnwindSafe(run)).map_err(|why| {
        let text = why.downcast_ref::<String>().cloned();
        text.or_else(|| why.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
    })
}

/// All seeds up to there, on two threads; and those that failed, with what they say.
fn all(keys: &Keys, seeds: u64) -> (Tally, Vec<String>) {
    let next = AtomicU64::new(1);
    let work = || {
        let (mut sum, mut failed) = (Tally::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seeds < seed {
                return (sum, failed);
            }
            match tried(keys, seed, None) {
                Ok(tally) => sum.add(&tally),
                Err(why) => {
                    let why = why.lines().take(3).collect::<Vec<_>>().join(" ");
                    failed.push(format!("`strobe sim --seed {seed}`: {why:.400}"));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let (mut sum, mut failed) = work();
        let (tally, more) = other.join().expect("what fails is caught");
        sum.add(&tally);
        failed.extend(more);
        (sum, failed)
    })
}

#[test]
fn what_is_acknowledged_is_stored_once_whatever_fails() {
    let keys = keys();
    if let Some(seed) = number("STROBE_SIM_SEED") {
        let trace = Trace::to(|line| println!("{line}"));
        println!("seed {seed}: {:?}", strobe_sim::run(Plan::of(seed, None), &keys, trace));
        return;
    }
    let seeds = number("STROBE_SIM_SEEDS").unwrap_or(2_000);
    let (sum, failed) = all(&keys, seeds);
    println!("{seeds} seeds: {sum:?}");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    if 200 <= seeds {
        // Otherwise the simulation has become too kind to find anything.
        let quiet = [TROUBLES, EVENTS].concat().into_iter().filter(|what| sum.of(what) == 0);
        assert_eq!(quiet.collect::<Vec<_>>(), [""; 0], "never happened");
    }
}

/// The rows of an hour wait on each agent's disk and are sent beside those of now.
#[test]
fn an_hour_without_a_broker_costs_nothing_and_delays_nothing() {
    let keys = keys();
    for seed in 1..=2 {
        let (late_ms, took_ms) = strobe_sim::cut(&Plan::of(seed, None), &keys, 3_600_000);
        println!("seed {seed}: live rows waited {late_ms} ms at most, the spool took {took_ms} ms");
        assert!(late_ms < 1_000, "{late_ms} ms");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let keys = [keys(), keys()];
    for seed in 1..=20 {
        let [one, two] = keys.each_ref().map(|keys| tried(keys, seed, None).expect("it is well"));
        assert_eq!(one, two, "seed {seed}");
    }
}

/// The simulation can say no: each of these bugs is found within some seeds.
#[test]
fn planted_bugs_are_found() {
    let (keys, hook) = (keys(), std::panic::take_hook());
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for plant in PLANTS {
        let found = (1..=SEEDS_A_PLANT)
            .find_map(|seed| Some((seed, tried(&keys, seed, Some(*plant)).err()?)));
        match found {
            None => missed.push(plant),
            Some((seed, why)) => {
                let why = why.lines().next().unwrap_or_default();
                println!("{plant:?} was found by seed {seed}: {why:.160}");
            }
        }
    }
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "not found: {missed:?}");
}

const PLANTS: &[Plant] = &[
    Plant::AckEarly,
    Plant::NoSync,
    Plant::ForgetLog,
    Plant::ForgetWindows,
    Plant::StoreTwice,
    Plant::NoLedger,
    Plant::DeafToMaps,
    Plant::DeafToVersions,
    Plant::HalfApply,
    Plant::HalfTune,
    Plant::Redis(Redis::MarkEarly),
    Plant::Redis(Redis::NoRefill),
    Plant::Redis(Redis::NoIndex),
    Plant::Redis(Redis::NoFence),
    Plant::Redis(Redis::LogEarly),
    Plant::Control(Control::SendBeforePersist),
    Plant::Control(Control::AckEarly),
    Plant::Control(Control::NoSync),
    Plant::Control(Control::ApplyApart),
    Plant::Control(Control::KeepEpoch),
    Plant::Control(Control::SnapshotWithoutState),
    Plant::Control(Control::ForgetConf),
    Plant::Control(Control::ReadStale),
    Plant::Control(Control::GuessOutcome),
];
const SEEDS_A_PLANT: u64 = 300;

/// What has to happen besides.
const EVENTS: &[&str] = &[
    "Redis failures seen",
    "agents redirected",
    "blocks in Redis",
    "blocks sealed",
    "control planes ended",
    "cuts its connections",
    "drains",
    "fails over",
    "full Redis",
    "hung Redis",
    "joins",
    "leaders",
    "logs released",
    "moves",
    "reads answered",
    "rollups",
    "rows acknowledged",
    "rows lost by full rings",
    "samples found in Redis",
    "segments capped",
    "segments expired",
    "starts again and is empty",
    "stray rows",
    "transfers",
    "trials that did not",
    "trials that ended well",
    "versions run",
    "versions run by brokers",
    "wishes granted",
    "wishes refused or unknown",
    "writes answered",
];
