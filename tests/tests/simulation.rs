//! A fleet and a broker on a virtual clock, with faults from a seed.
//!
//! Real: `Sealer`, `Ring`, `Uplink`, both `Link`s (QUIC and TLS), the broker's `Net`, `Ingest` and
//! `Scribe`, its registry, the store with its WAL, sealing, rollups and recovery. Simulated: time,
//! the two threads' interleaving, the network (loses, doubles, delays, reorders, parts), the disk
//! (dies at any call, tears and forgets what was not synced, is full or nearly so, fails a sync of a
//! file or of a directory's names) and the agents' lives and wall clocks. Some brokers keep raw samples
//! for minutes, some in little room: what retention removed is the only thing that may be missing.
//!
//! Every decision comes from the seed and the virtual clock. Keys are made of numbers, signatures
//! have one length, connection ids and all that moves a datagram's length come from seeds; what
//! is still random (TLS nonces) nobody decides by. So a seed is a run, to the last datagram.
//!
//! `STROBE_SIM_SEEDS=5000` runs more seeds, `STROBE_SIM_SEED=17` runs one.

#[path = "../src/simulation/agent.rs"]
mod agent;
#[path = "../src/simulation/broker.rs"]
mod broker;
#[path = "../src/simulation/dice.rs"]
mod dice;
#[path = "../src/simulation/disk.rs"]
mod disk;
#[path = "../src/simulation/keys.rs"]
mod keys;
#[path = "../src/simulation/network.rs"]
mod network;
#[path = "../src/simulation/oracle.rs"]
mod oracle;
#[path = "../src/simulation/world.rs"]
mod world;

use broker::Plant;
use keys::Keys;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use world::{HOSTS, Tally, World};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

fn run(keys: &Keys, seed: u64) -> Tally {
    let outcome = catch_unwind(AssertUnwindSafe(|| World::new(keys, seed, None).run()));
    outcome.unwrap_or_else(|_| panic!("run it again with STROBE_SIM_SEED={seed}"))
}

#[test]
fn what_is_acknowledged_is_stored_once_whatever_fails() {
    let keys = Keys::new(&HOSTS);
    if let Some(seed) = number("STROBE_SIM_SEED") {
        println!("seed {seed}: {:?}", run(&keys, seed));
        return;
    }
    let (seeds, next) = (number("STROBE_SIM_SEEDS").unwrap_or(1_000), AtomicU64::new(1));
    let work = || {
        let mut sum = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seeds < seed {
                return sum;
            }
            sum.add(&run(&keys, seed));
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
        let Tally { lost, strays, restarts, kills, deaths_at_the_disk, .. } = sum;
        let Tally {
            full_disks,
            low_disks,
            failed_syncs,
            failed_directories,
            clock_steps,
            expired,
            capped,
            partitions,
            blocks_sealed,
            rollups,
            logs_released,
            ..
        } = sum;
        let happened = [lost, strays, restarts, kills, deaths_at_the_disk, full_disks];
        let done = [failed_syncs, partitions, blocks_sealed, rollups, logs_released];
        let more = [low_disks, failed_directories, clock_steps, expired, capped];
        assert!(happened.into_iter().chain(done).chain(more).all(|count| 0 < count), "{sum:?}");
    }
}

/// The rows of an hour wait on each agent's disk and are sent beside those of now.
#[test]
fn an_hour_without_a_broker_costs_nothing_and_delays_nothing() {
    let keys = Keys::new(&HOSTS);
    for seed in 1..=2 {
        let (late, took) = World::new(&keys, seed, None).cut(Duration::from_secs(3600));
        println!("seed {seed}: live rows waited {late:?} at most, the spool took {took:?}");
        assert!(late < Duration::from_secs(1), "{late:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let keys = [Keys::new(&HOSTS), Keys::new(&HOSTS)];
    for seed in 1..=30 {
        let [one, two] = keys.each_ref().map(|keys| run(keys, seed));
        assert_eq!(one, two, "seed {seed}");
    }
}

/// The oracle can say no: each of these bugs is found within a few seeds.
#[test]
fn planted_bugs_are_found() {
    let keys = Keys::new(&HOSTS);
    for plant in [
        Plant::AckEarly,
        Plant::NoSync,
        Plant::ForgetLog,
        Plant::ForgetWindows,
        Plant::StoreTwice,
        Plant::NoLedger,
    ] {
        let found = (1..=100).find(|&seed| {
            let run = || World::new(&keys, seed, Some(plant)).run();
            catch_unwind(AssertUnwindSafe(run)).is_err()
        });
        println!("{plant:?} was found by seed {found:?}");
        assert!(found.is_some(), "{plant:?} was not found");
    }
}
