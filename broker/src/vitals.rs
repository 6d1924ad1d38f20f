//! How one broker is doing, as it tells the others and whoever looks after the cluster.

use crate::net::NetCounts;
use crate::scaling::Proposal;
use crate::store::StoreCounts;
use crate::store::redis::MirrorCounts;
use serde::{Deserialize, Serialize};

/// A broker's own numbers, of this moment.
///
/// What a field is called stands in the page that shows it, and in what brokers of other versions send:
/// a new field has a default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Vitals {
    /// Of its program.
    pub version: String,
    /// When it was asked, by its own wall clock.
    pub now_ms: i64,
    /// Agents connected.
    pub sessions: u64,
    /// Connections of all kinds.
    pub connections: u64,
    /// Frames taken since it started.
    pub frames: u64,
    /// So long 99 of 100 frames waited for their acknowledgement, at most.
    pub ack_ms_p99: Option<u64>,
    /// Frames that are not on its disk yet.
    pub in_flight: u64,
    /// Its write-ahead log: rows that are in no segment yet.
    pub wal_bytes: u64,
    /// The same rows in memory.
    pub head_bytes: u64,
    /// Its segments.
    pub segment_bytes: u64,
    /// Whether it takes frames.
    pub storing: bool,
    /// CPU time that it has used since it started.
    pub cpu_ms: u64,
    /// Its memory: resident pages.
    pub memory_bytes: u64,
    /// Where it writes to Redis.
    pub redis: Option<Redis>,
    /// What it proposes, if it leads.
    pub scaling: Option<Proposal>,
}

/// How far Redis is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Redis {
    /// Whether it took the last pass.
    pub connected: bool,
    /// From the first sample that is sealed and not there until now.
    pub lag_ms: u64,
    /// Segments not whole there.
    pub lag_segments: u64,
    /// Segments that were written there since it was first wanted.
    pub segments_done: u64,
    /// Segments of before Redis that are still to be moved there.
    pub import_left: u64,
    /// Shards that a newer owner writes to.
    pub fenced_shards: u64,
}

impl Vitals {
    /// Of what it counts.
    #[must_use]
    pub fn of(
        net: &NetCounts,
        store: &StoreCounts,
        mirror: Option<&MirrorCounts>,
        now_ms: i64,
    ) -> Self {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let redis = |of: &MirrorCounts| Redis {
            connected: of.connected,
            lag_ms: of.lag_ms,
            lag_segments: of.lag_segments,
            segments_done: of.segments,
            import_left: of.import_left,
            fenced_shards: of.fenced_shards,
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now_ms,
            sessions: count(net.sessions),
            connections: count(net.connections),
            frames: net.ingest.accepted,
            ack_ms_p99: net.ack_ms_p99,
            in_flight: count(net.frames_in_flight),
            wal_bytes: store.wal_bytes,
            head_bytes: store.head_bytes,
            segment_bytes: store.segment_bytes,
            storing: net.storing,
            cpu_ms: cpu_ms(),
            memory_bytes: memory_bytes(),
            redis: mirror.map(redis),
            scaling: None,
        }
    }
}

fn cpu_ms() -> u64 {
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    let used = used.map(|used| used.user_time() + used.system_time());
    used.map_or(0, |time| {
        u64::try_from(nix::sys::time::TimeValLike::num_milliseconds(&time)).unwrap_or(0)
    })
}

/// proc_pid_statm(5): the second number, in pages.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let size = size.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096);
    pages.unwrap_or(0).saturating_mul(size)
}
