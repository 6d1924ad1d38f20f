//! A whole cluster in one process and one thread, on virtual clocks, with faults from a seed.
//!
//! Real: agents' `Sealer`, `Ring` and `Uplink`; every `Link` (QUIC and TLS); the brokers' `Net`, `Ingest`,
//! `Scribe`, registry, store with WAL, sealing, rollups and recovery; `Plane` with its node, controller
//! and redb. Simulated: time, and each machine's clocks; the threads' interleaving; the network (loses,
//! doubles, delays, reorders, damages, parts one way and both, flaps, clogs); the disks (die at any call,
//! tear, flip and forget what was not synced, are full, nearly full or slow, fail a sync of a file, of a
//! directory's names, of the control plane); the agents' lives (half of them spool in memory what their ring cannot hold); operators who move shards, add
//! and drain brokers, hand the lead over, write the configuration. A fourth of the seeds is one
//! broker by itself. Some keep raw samples for minutes, some in little room.
//! Five of sixteen have a Redis, at whose door bytes go in and out (`redis`): the brokers' mirror and log
//! write to it, and in the end strangers read from it.
//!
//! ```text
//!  Plan::of(seed) --troubles--> World: grow | suffer | heal | settle | judge --> Tally, or a panic
//!       ^                          |   looked at after every turn: Agreed (raft, owners, state)
//!       +--- shrink: fewer --------+   looked at in the end: Ledger (rows, losses, once)
//! ```
//!
//! Every decision comes from the plan, its seed and the virtual clocks. Keys are made of numbers,
//! signatures have one length, connection ids and all that moves a datagram's length come from
//! seeds; what is still random (TLS nonces) nobody decides by. So a plan is a run, to the last datagram.
//!
//! What does not hold shows as a panic that says so. Agents and brokers do not link this; `strobe` does,
//! for `strobe sim`.

mod agent;
mod agreed;
mod broker;
mod clock;
mod dice;
mod disk;
mod keys;
mod ledger;
pub mod linear;
mod machine;
mod mirror;
mod network;
mod plan;
mod plant;
mod platter;
mod redis;
mod shrink;
mod tally;
mod trace;
mod tuning;
mod world;

pub use keys::Keys;
pub use plan::{Plan, Shared, Trouble, What};
pub use plant::Plant;
pub use shrink::shrink;
pub use tally::{TROUBLES, Tally};
pub use trace::Trace;

use world::World;

/// Everyone's keys, the same for every run.
#[must_use]
pub fn keys() -> Keys {
    Keys::new(&world::HOSTS)
}

/// Runs a plan.
///
/// # Panics
/// Something that must hold does not.
#[must_use]
pub fn run(plan: Plan, keys: &Keys, trace: Trace) -> Tally {
    World::new(plan, keys, None, trace).run()
}

/// Runs the hosts of a plan, without its troubles, through so many milliseconds without their one
/// broker, with spools on disk: how long live rows waited at most while the spools were sent, and
/// how long that took, in milliseconds.
///
/// # Panics
/// Something that must hold does not.
#[must_use]
pub fn cut(plan: &Plan, keys: &Keys, cut_ms: u64) -> (u64, u64) {
    let plan = Plan { brokers: 1, troubles: Vec::new(), ..plan.clone() };
    World::new(plan, keys, None, Trace::default()).cut(cut_ms)
}

/// Runs a plan with a bug put in.
///
/// # Panics
/// Something that must hold does not.
#[cfg(feature = "plant")]
#[must_use]
pub fn run_planted(plan: Plan, keys: &Keys, plant: Plant, trace: Trace) -> Tally {
    use strobe_broker::store::redis;
    redis::plant(if let Plant::Redis(bug) = plant { Some(bug) } else { None });
    let tally = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        World::new(plan, keys, Some(plant), trace).run()
    }));
    redis::plant(None);
    tally.unwrap_or_else(|why| std::panic::resume_unwind(why))
}
