//! Redis beside the segments: every sealed block is written there, and read back when the local
//! directory no longer has it.
//!
//! ```text
//! WAL ────────────committed rows──▶ Stream ───────────────────▶ Redis ──▶ mark
//! segment files ──one at a time──▶ Mirror ──pipelines of ≤ 4 MiB──▶ Redis ──▶ mark
//!                                  at start ◀── hosts, schemas ────── │
//! query ──what is not local──▶ Archive ◀── places by time, blocks ────┘
//! ```
//!
//! Version 7 or later: one server, the primary that Sentinels name, or a Cluster; used by one broker.
//! `P` is the prefix, `monitor:` by default; `{s017}` the host's shard, and in a Cluster what its
//! keys are together by.
//!
//! | Key | |
//! |---|---|
//! | `Pmetrics:{s017}:<host>:<t>` | hash: the HB1 blocks that begin in the ten minutes from `t` ms on, by place |
//! | `Prollup:{s017}:<host>:<step>:<t>` | the same of a rollup, `step` in ms; an hour or a day from `t` on |
//! | `Pindex:metrics:{s017}:<host>` | sorted set: places by their first ms |
//! | `Pindex:rollup:{s017}:<host>:<step>` | the same of a rollup |
//! | `Pindex:late:{s017}:<host>` | sorted set: places longer than an hour (late rows) by their last ms |
//! | `Pindex:hosts:{s017}` | sorted set: hosts by their last sample's ms |
//! | `Phosts:{s017}:<host>` | hash: `job`, `instance`, `label:…`, and of an agent's host what it said |
//! | `Psections:{s017}:<host>` | sorted set: schema ids by their last sample's ms |
//! | `Pschema:<id>` | JSON: section and columns, in the order of the block's columns |
//! | `Plog:{s017}`, `Pmark:log:…`, `Plogs…`, `Ptaken:…` | of class `wal+redis`: see `log.rs` |
//! | `Pqueue:metrics:{s017}` | stream: fresh rows of agents, the newest some thousand |
//! | `Pstores` | hash: by store the end of its newest block, its broker, how many segments |
//! | `Pepoch:{s017}` | the newest owner's epoch; there is none with one broker |
//! | `Pmark:{s017}` | hash: whose store, the last segment written whole (`raw`, `rollup`), `elsewhere`, `wal` |
//!
//! A place is `<first ms>:<last ms>:<schema>:<store>.<segment>.<offset>`: a window has a block a
//! section, and one more where rows came late, so `<t>` alone does not name a block; the place
//! does, for ever, and says whether the local directory has the same bytes.
//!
//! Every key has a time to live: a block's is what is left of its retention, ±5 % by a hash of its
//! key, so that a refill expires no later than what it replaces and not all at once.
//!
//! Invariants:
//! - The segments are the queue: nothing is kept in memory for Redis but one pipeline, and ingest
//!   never waits for Redis nor knows of it.
//! - A mark is written after its segment was acknowledged, and read before every pass: an empty,
//!   flushed or exchanged Redis lacks it and is refilled with everything still held locally. What
//!   is not sealed yet lies in the WAL and comes with its segment.
//! - A query asks Redis only for times up to `elsewhere`, the last end of a block that may be there
//!   and not here: the start of this directory's life, or what retention removed since. A Redis
//!   that is down costs such a query one time-out and a warning, other queries nothing.
//! - Every write to a shard is one script that first looks at its epoch: of two that think they own
//!   it, the one of the older epoch is refused ([`Epochs`]).
//! - A mark lies where its shard's blocks lie and is written after them, so that a failover that
//!   loses the last writes loses it with them. Schemas lie elsewhere in a Cluster: they are written
//!   again with every new link.
//! - No KEYS, no SCAN: hosts are found by shard, blocks by host and time.

mod archive;
mod batch;
mod blocks;
mod describe;
pub mod door;
mod era;
mod errand;
mod fence;
mod import;
mod keys;
mod link;
mod log;
mod marks;
mod mirror;
mod plant;
mod slots;
mod stores;
mod stream;
mod taken;
mod target;

pub(super) use archive::{Archive, Far};
pub(super) use errand::Errand;
pub use fence::Epochs;
pub use import::{Attached, Import};
pub use link::{TROUBLES, Trouble};
pub use log::{Confirmed, Log};
pub use mirror::{Mirror, MirrorCounts, Parts, reach};
pub use plant::Plant;
#[cfg(feature = "plant")]
pub use plant::plant;
pub use taken::{RESTORING, Taken, restore};

use std::path::PathBuf;

/// Which Redis, and how it is used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedisConfig {
    /// `redis://…`, `rediss://…`, `redis+sentinel://…/NAME`, `redis+cluster://…` or `unix://PATH`.
    pub url: String,
    /// Certificates (PEM) that a server's may be signed with; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate and key (PEM), for servers that want one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Whether history may be read from replicas, which may lack the newest of it.
    pub read_replicas: bool,
    /// What every key begins with.
    pub prefix: String,
    /// How long raw blocks are kept there.
    pub raw_ms: i64,
    /// How long hosts, schemas and marks are kept after they were last written.
    pub metadata_ms: i64,
    /// How long a shard's stream is kept after its last row.
    pub queue_ms: i64,
    /// How many rows a shard's stream has, about; 0: no streams.
    pub queue_max: u64,
}

/// Redis cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// A URL that is none of Redis.
    #[error(
        "the Redis URL is not understood ({0}); redis://[USER:PASSWORD@]HOST:PORT/DB, \
         redis+sentinel://HOST:PORT,…/NAME or redis+cluster://HOST:PORT,… is wanted (rediss…: by TLS)"
    )]
    Url(String),
    /// A file for TLS.
    #[error("cannot read {path} for TLS to Redis: {source}")]
    Certificate {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Nobody is there, or does not let us in.
    #[error("{why}; nothing was changed")]
    Unreachable {
        /// In a sentence.
        why: String,
    },
    /// The log of a lost directory.
    #[error(
        "the state directory is empty, and what Redis at {address} has of its log cannot be taken \
         in: {why}; without it, broker.durability = \"wal\" starts empty"
    )]
    Restore {
        /// Where.
        address: String,
        /// Why not.
        why: String,
    },
    /// The store's own name.
    #[error("cannot keep {path}: {source}")]
    Id {
        /// Where it is kept.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl RedisConfig {
    /// With the default prefix and lives.
    #[must_use]
    pub fn at(url: String) -> Self {
        const DAY_MS: i64 = 86_400_000;
        Self {
            url,
            ca: None,
            identity: None,
            read_replicas: false,
            prefix: "monitor:".to_owned(),
            raw_ms: 7 * DAY_MS,
            metadata_ms: 30 * DAY_MS,
            queue_ms: 3_600_000,
            queue_max: 2_000,
        }
    }
}
