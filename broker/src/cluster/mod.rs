//! This broker's place in a cluster: the control plane that it runs, and what the network loop knows
//! of it.
//!
//! ```text
//!  network loop --Order (bounded, dropped when full)--> plane's thread: [ Plane: Node, redb ]
//!       ^   ^                                              |        ^
//!       |   +--Mail: bytes for peers (bounded, dropped)----+        | Order::Ask
//!       +------Post: map, outcomes (few)-------------------+   control socket
//! ```
//!
//! The network loop never waits for the plane: what it knows is the last [`Map`] that it was given, and
//! that stays in force when the plane stalls or the quorum is lost. So a broken control plane stops
//! changes and not ingest. A store that several brokers write to has to refuse old epochs itself.

pub mod findings;
mod map;
mod plane;
mod report;

pub use map::{Map, Owner};
pub use plane::{Answer, Asked, MAIL_MAX, Mail, ORDERS_MAX, Order, Plane, Post};
pub use report::{Known, Report};

use sha2::{Digest, Sha256};

/// What a token for brokers is known by: another one than the same secret has as a token for agents,
/// which must not let anybody have the authority's key.
#[must_use]
pub fn join_hash(secret: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"strobe cluster join");
    hash.update(secret);
    hash.finalize().into()
}
