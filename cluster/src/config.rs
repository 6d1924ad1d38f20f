//! How fast a node is and how much it keeps.

use crate::plant::Plant;
use std::time::Duration;

/// How soon brokers miss each other: the same at all of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// How often a leader is heard.
    pub heartbeat: Duration,
    /// A silence of the leader this long, or up to half as long again, begins an election.
    pub election_min: Duration,
}

/// What a [`crate::Node`] goes by.
#[derive(Clone, Debug)]
pub struct Config {
    /// How often a leader is heard.
    pub heartbeat: Duration,
    /// A silence of the leader this long, or up to half as long again, begins an election.
    pub election_min: Duration,
    /// Entries kept behind the applied one for followers that lag; who lags more gets a snapshot.
    pub log_keep: u64,
    /// A proposal or read without an outcome after this is told to be unknown.
    pub patience: Duration,
    /// Bytes of one piece of a snapshot.
    pub chunk_bytes: usize,
    /// Moves of shards a second, when nothing forces them.
    pub moves_per_second: usize,
    /// Of the election timeouts.
    pub seed: u64,
    /// A bug to put in; does nothing without the feature `plant`.
    #[doc(hidden)]
    pub plant: Option<Plant>,
}

impl Pace {
    /// What a broker uses unless it is told otherwise.
    pub const USUAL: Self =
        Self { heartbeat: Duration::from_millis(500), election_min: Duration::from_secs(1) };
}

impl Config {
    /// What a broker uses unless it is told otherwise.
    #[must_use]
    pub fn usual(seed: u64) -> Self {
        Self::paced(seed, Pace::USUAL)
    }

    /// The same at another pace.
    #[must_use]
    pub fn paced(seed: u64, Pace { heartbeat, election_min }: Pace) -> Self {
        Self {
            heartbeat,
            election_min,
            log_keep: 4096,
            patience: Duration::from_secs(10),
            chunk_bytes: 64 << 10,
            moves_per_second: 16,
            seed,
            plant: None,
        }
    }

    /// The length of one of raft's ticks.
    pub(crate) fn tick(&self) -> Duration {
        self.heartbeat / HEARTBEAT_TICKS
    }

    pub(crate) fn raft(&self, id: u64, applied: u64) -> raft::Config {
        let tick_us = self.tick().as_micros().max(1);
        let election = usize::try_from(self.election_min.as_micros().div_ceil(tick_us));
        let election = election.unwrap_or(usize::MAX / 4).max(2 * HEARTBEAT_TICKS as usize);
        raft::Config {
            id,
            applied,
            heartbeat_tick: HEARTBEAT_TICKS as usize,
            election_tick: election,
            min_election_tick: election,
            max_election_tick: election + election / 2,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: IN_FLIGHT_MESSAGES,
            max_uncommitted_size: UNCOMMITTED_BYTES,
            max_committed_size_per_ready: READY_BYTES,
            check_quorum: true,
            pre_vote: true,
            ..raft::Config::default()
        }
    }
}

/// Of 50 ms at the usual heartbeat.
const HEARTBEAT_TICKS: u32 = 10;
const MESSAGE_BYTES: u64 = 256 << 10;
const IN_FLIGHT_MESSAGES: usize = 64;
const UNCOMMITTED_BYTES: u64 = 8 << 20;
const READY_BYTES: u64 = 1 << 20;
const _: () = assert!(MESSAGE_BYTES <= UNCOMMITTED_BYTES);
