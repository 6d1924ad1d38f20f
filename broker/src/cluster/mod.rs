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

mod alone;
mod desired;
pub mod findings;
mod keeper;
mod map;
mod plane;
mod report;

pub use alone::{Alone, FILE as ALONE_FILE, load as load_alone};
pub use desired::{Canary, Desired, Text};
pub use map::{Map, Owner};
pub use plane::{Answer, Asked, Look, MAIL_MAX, Mail, ORDERS_MAX, Order, Plane, Post};
pub use report::{Known, Report};

use sha2::{Digest, Sha256};
use strobe_cluster::State;
use strobe_cluster::kinds::versions::{self, Version};

/// The versions of the configuration, as this broker knows them.
#[derive(Clone, Debug)]
pub struct Versions {
    /// Which broker this is; 0 in no cluster.
    pub me: u64,
    /// Those that are kept, oldest first.
    pub all: Vec<Version>,
    /// The one in force; number 0 if there was none yet.
    pub in_force: Version,
}

impl Versions {
    fn of(state: &State, me: u64) -> Self {
        let in_force = versions::in_force(state).unwrap_or_default();
        Self { me, all: versions::history(state), in_force }
    }
}

/// What a token for brokers is known by: another one than the same secret has as a token for agents,
/// which must not let anybody have the authority's key.
#[must_use]
pub fn join_hash(secret: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"strobe cluster join");
    hash.update(secret);
    hash.finalize().into()
}
