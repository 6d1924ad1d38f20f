//! The agent ring's lock-free part, run by loom through every interleaving of small scenarios.
//!
//! `ledger.rs` is the agent's own file, included by path; only its `sync` is another: loom's
//! atomics, and orderings that a test can weaken one at a time. A crate of its own, so that loom
//! is no dependency of the agent and no `--cfg loom` touches anybody else's build:
//! `cargo test -p strobe-ring-model` is all it takes.

#[cfg(test)]
#[expect(dead_code, reason = "included from the agent, which uses more of it")]
#[path = "../../src/ring/ledger.rs"]
mod ledger;
#[cfg(test)]
mod sync;
#[cfg(test)]
#[expect(unsafe_code, reason = "loom's cells stand for the slots' bytes and see every race")]
mod tests;
