//! The store with a real redis-server on loopback: bytes, refill, history read back, and trouble that
//! ingest does not feel.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod brokers;
mod classes;
mod cluster;
mod durability;
mod fencing;
mod importing;
#[path = "../support/peer.rs"]
mod peer;
mod reading;
mod sentinel;
mod support;
mod takeover;
mod tls;
mod trouble;
mod writing;
