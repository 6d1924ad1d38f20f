//! How brokers agree: who is a member, who owns which shard, which configuration is in force.
//!
//! ```text
//!   propose, read, step(peer's bytes), on_timeout          poll -> bytes to peers, events
//!            |                                                          ^
//!            v                                                          |
//!   [ Node: raft | Controller (leader only) | snapshot transfers | proposals ]
//!                                  |
//!                                  v  one transaction a Ready
//!   [ Store: redb: log, hard state, configuration, applied State ]
//! ```
//!
//! A crate of its own, so that it is built and tested without the broker, and so that a
//! broker without a cluster need not build raft. It knows no socket and no clock: the
//! simulation in `tests/` runs whole clusters of it by seed.
//!
//! Never a sample goes through here.

pub mod codec;
mod command;
mod config;
mod controller;
pub mod kinds;
mod node;
mod peer;
mod plant;
mod proposals;
mod state;
mod store;
mod transfer;

pub use command::{CommandId, Refusal, UnknownKind};
pub use config::{Config, Pace};
pub use node::{Event, Node, NodeError, Output, Role, Status, Ticket};
pub use plant::Plant;
pub use proposals::Outcome;
pub use state::{ImageError, State};
pub use store::{Identity, Store, StoreError};
