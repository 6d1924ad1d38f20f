//! An agent and a broker on a virtual clock, with faults from a seed.
//!
//! Real: `Sealer`, `Ring`, `Uplink`, both `Link`s (QUIC and TLS), `Ingest`, the store and its WAL.
//! Simulated: time, the network (loses, doubles, delays, reorders, parts), the crashes. The
//! broker's network loop is private, so a small [`shell`] stands for it: it acknowledges only
//! after `Writer::commit`. What is not covered thereby: the loop's own turns, and sealing, for
//! the store's housekeeping is not run and the WAL keeps every frame for the oracle.
//!
//! Every decision comes from the seed and the virtual clock, each kind from its own stream. Not
//! deterministic are the TLS keys and signatures and the connection ids, hence datagrams' bytes
//! and, by a byte or two, the lengths of those of a handshake. No decision looks at either, but
//! such a byte can make one datagram more, and the network's dice fall otherwise from there on:
//! a few seeds in a hundred. A failing seed that then passes is to be run some more times.
//!
//! `STROBE_SIM_SEEDS=1000` runs more seeds, `STROBE_SIM_SEED=17` runs one.

#[path = "../src/simulation/oracle.rs"]
mod oracle;
#[path = "../src/simulation/shell.rs"]
mod shell;
#[path = "../src/simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use world::{Identities, Tally, World};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

fn run(identities: &Identities, seed: u64) -> Tally {
    let outcome = catch_unwind(AssertUnwindSafe(|| World::new(identities, seed).run()));
    outcome.unwrap_or_else(|_| panic!("run it again with STROBE_SIM_SEED={seed}"))
}

#[test]
fn what_is_acknowledged_is_stored_once_whatever_fails() {
    let identities = Identities::new();
    if let Some(seed) = number("STROBE_SIM_SEED") {
        println!("seed {seed}: {:?}", run(&identities, seed));
        return;
    }
    let (seeds, next) = (number("STROBE_SIM_SEEDS").unwrap_or(200), AtomicU64::new(1));
    let work = || {
        let mut sum = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seeds < seed {
                return sum;
            }
            sum.add(&run(&identities, seed));
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
        assert!(0 < sum.before_commit && 0 < sum.torn && 0 < sum.after_commit, "{sum:?}");
        assert!(0 < sum.restarts && 0 < sum.losses, "{sum:?}");
    }
}

/// Other keys, same decisions; a handshake's length may still move a few runs (see the module).
#[test]
fn the_same_seed_is_the_same_run() {
    let keys = [Identities::new(), Identities::new()];
    let mut equal = 0;
    for seed in 1..=50 {
        let [one, two] = keys.each_ref().map(|identities| run(identities, seed));
        assert_eq!((one.restarts, one.partitions), (two.restarts, two.partitions), "seed {seed}");
        equal += u64::from(one == two);
    }
    println!("{equal} of 50 runs are equal to the last datagram");
    assert!(40 <= equal, "only {equal} of 50 runs came out the same");
}
