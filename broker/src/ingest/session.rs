//! What is known of a session: whose it is, where its frames come from, which columns they have.

use std::collections::{HashMap, VecDeque};
use strobe_wire::ids::{BootId, HostId, SchemaId};

/// An open session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) host: HostId,
    pub(super) boot: BootId,
    pub(super) certificate: [u8; 32],
    pub(super) interval_ms: i64,
    pub(super) heard_ms: i64,
    pub(super) source: Source,
    /// Of a host with a spool, in a cluster: up to where other brokers have acknowledged this boot.
    pub(super) elsewhere: Option<(BootId, u64)>,
    pub(super) schemas: HashMap<SchemaId, usize>,
    pub(super) schema_order: VecDeque<SchemaId>,
}

/// Where a session's frames come from, and so what is not told before them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// The ring, in order from the oldest that the agent has: what is before the first will not come.
    Live { begun: bool },
    /// The ring, and what is before the first may still come from the spool.
    Beside { first: Option<u64> },
    /// The spool: what is before any of them will not come.
    Spool,
}

impl Source {
    /// Whether what is missing before this frame will never come.
    pub(super) fn closes_holes(&mut self, seq: u64) -> bool {
        match self {
            Self::Live { begun } => !std::mem::replace(begun, true),
            Self::Beside { first } => {
                first.get_or_insert(seq);
                false
            }
            Self::Spool => true,
        }
    }
}

impl Session {
    /// Up to where a number of `boot` that the spool does not have is at another broker. Of an earlier
    /// boot nobody here knows, so in a cluster no hole of it is called a loss; the agent says itself
    /// what of its spool was broken.
    pub(super) fn acknowledged_elsewhere(&self, boot: BootId) -> u64 {
        match self.elsewhere {
            None => 0,
            Some((known, seq)) if known == boot => seq,
            Some(_) => u64::MAX,
        }
    }
}
