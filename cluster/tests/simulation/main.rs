//! The control plane on a virtual clock, with faults from a seed.
//!
//! Real: `Node`, `Store` and the redb under it, the controller, snapshots. Simulated: time and each
//! broker's skewed idea of it, the network (loses, doubles, delays, reorders, parts one way or
//! both, flaps), the disks (die at any call, keep any part of what was not synced), operators.
//!
//! Every decision comes from the seed, so a seed is a run: `STROBE_SIM_SEED=17` runs one,
//! `STROBE_SIM_SEEDS=2000` more of them.

mod dice;
mod disk;
mod network;
mod oracle;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use strobe_cluster::Plant;
use world::{Tally, World};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

fn run(seed: u64) -> Tally {
    let outcome = catch_unwind(AssertUnwindSafe(|| World::new(seed, None).run()));
    outcome.unwrap_or_else(|_| panic!("run it again with STROBE_SIM_SEED={seed}"))
}

#[test]
fn the_control_plane_stays_right_whatever_fails() {
    if let Some(seed) = number("STROBE_SIM_SEED") {
        println!("seed {seed}: {:?}", run(seed));
        return;
    }
    let (seeds, next) = (number("STROBE_SIM_SEEDS").unwrap_or(120), AtomicU64::new(1));
    let work = || {
        let mut sum = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seeds < seed {
                return sum;
            }
            sum.add(&run(seed));
        }
    };
    let sum = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut sum = work();
        sum.add(&other.join().expect("a seed failed; it is named above"));
        sum
    });
    println!("{seeds} seeds: {sum:?}");
    if 50 <= seeds {
        // Otherwise the simulation has become too kind to find anything.
        sum.assert_all_happened();
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=10 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

/// The oracle can say no: each of these bugs is found within some seeds.
#[test]
fn planted_bugs_are_found() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for plant in [
        Plant::SendBeforePersist,
        Plant::AckEarly,
        Plant::NoSync,
        Plant::ApplyApart,
        Plant::ForgetDedup,
        Plant::ForgetEpoch,
        Plant::KeepEpoch,
        Plant::ReuseId,
        Plant::ForgetVote,
        Plant::SnapshotWithoutState,
        Plant::ForgetConf,
        Plant::ReadStale,
        Plant::GuessOutcome,
    ] {
        let found = (1..=300).find_map(|seed| {
            let run = || World::new(seed, Some(plant)).run();
            Some((seed, catch_unwind(AssertUnwindSafe(run)).err()?))
        });
        match found {
            None => missed.push(plant),
            Some((seed, why)) => {
                let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
                let why = why.lines().next().unwrap_or_default().to_owned();
                println!("{plant:?} was found by seed {seed}: {why}");
            }
        }
    }
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "not found: {missed:?}");
}
