//! The store of samples: what is written by one [`Writer`] and read by many [`Store`] handles.
//!
//! ```text
//! frame, samples ──► WAL (journal) ──commit: fdatasync──► head rows ──30 rows──► young blocks
//!                                        (in a nameless file)  600 s │ seal
//!                                     segment files of HB1 blocks ◄──┴──► 1 min, 1 h rollups
//! ```
//!
//! Invariants:
//! - Nothing is visible to a reader before [`Writer::commit`] made it durable.
//! - A WAL file is removed only after every row in it lies in a synced segment.
//! - Same rows, same bytes: sealing depends on nothing but the rows.
//! - When the disk is at its floor, [`Writer::commit`] says [`StoreError::Full`]; readers go on.

mod again;
mod block;
mod check;
mod codec;
mod cover;
mod elsewhere;
mod encode;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod head;
mod horizon;
mod links;
mod lists;
mod local;
mod made;
mod matching;
mod names;
mod page;
mod pieces;
mod predict;
pub mod redis;
mod remote;
mod replay;
mod retune;
mod rice;
mod rolled;
mod rollup;
mod samples;
mod scratch;
mod seal;
mod segment;
mod select;
mod shared;
mod spill;
mod sums;
mod upkeep;
mod wal;

pub use check::{CheckReport, SegmentReport, check};
pub use elsewhere::{Elsewhere, Said};
pub use local::{Store, Writer};
pub(crate) use page::newest as newest_page;
pub use page::{Depth, Next, Wanted};
pub use retune::Removal;
pub use rolled::{Resolution, Rolled};
pub use scratch::Scratch;
pub use select::Part;

#[cfg(test)]
mod edge_tests;
#[cfg(test)]
mod rollup_tests;
#[cfg(test)]
mod seal_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wal_tests;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use strobe_wire::frame::FrameError;
use strobe_wire::ids::{BootId, HostId, SchemaId};
use strobe_wire::schema::{Labels, SchemaError};

/// One condition on a label.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Matcher {
    /// The label; `__name__` is the metric.
    pub name: String,
    /// How it is compared.
    pub op: MatchOp,
    /// With what. An empty value stands for an absent label.
    pub value: String,
}

/// How a [`Matcher`] compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MatchOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`, anchored at both ends.
    Regex,
    /// `!~`, anchored at both ends.
    NotRegex,
}

/// From `start_ms` to `end_ms`, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimeRange {
    /// First millisecond.
    pub start_ms: i64,
    /// Last millisecond.
    pub end_ms: i64,
}

/// What one query may touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Series selected.
    pub series_max: usize,
    /// Samples scanned (held by the [`Scratch`] made with these limits).
    pub samples_max: u64,
}

/// Samples of one series that came by remote-write.
#[derive(Clone, PartialEq, Debug)]
pub struct RemoteSeries {
    /// All labels, `__name__` among them.
    pub labels: Labels,
    /// (ms since the epoch, value).
    pub samples: Vec<(i64, f64)>,
}

/// Where the store lies and what it may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreConfig {
    /// Its directory; made if absent.
    pub dir: PathBuf,
    /// How long raw samples are kept.
    pub raw_retention_ms: i64,
    /// How long 1 min rollups are kept.
    pub minute_retention_ms: i64,
    /// How long 1 h rollups are kept.
    pub hour_retention_ms: i64,
    /// Hard cap of all segment files and the WAL; the oldest segments go first.
    pub bytes_max: u64,
    /// A WAL file that has so many bytes is closed, and removed once its rows are sealed.
    pub wal_file_bytes: u64,
    /// Free space of the file system under which nothing more is accepted.
    pub free_bytes_min: u64,
    /// Memory for rows that are not sealed yet; more seals early. What was read lately may have
    /// as much once more.
    pub head_bytes_max: usize,
}

/// What was found when the store was opened.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Frames that the WAL still holds, as ranges of sequence numbers.
    pub seen: Vec<Seen>,
    /// WAL records that were replayed.
    pub records: u64,
    /// Places that were not readable, each named; everything else was kept.
    pub damage: Vec<String>,
}

/// Frames of one boot of one host that are durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The host.
    pub host: HostId,
    /// Its boot.
    pub boot: BootId,
    /// First and last sequence numbers, both included, ascending.
    pub ranges: Vec<(u64, u64)>,
}

/// What the store counts about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreCounts {
    /// Samples made visible since start.
    pub samples: u64,
    /// Commits since start.
    pub commits: u64,
    /// Blocks sealed since start.
    pub blocks_sealed: u64,
    /// Segment files removed by age.
    pub segments_expired: u64,
    /// Segment files removed by the size cap.
    pub segments_capped: u64,
    /// Blocks that could not be read because a checksum differed.
    pub blocks_corrupt: u64,
    /// Bytes of all segment files.
    pub segment_bytes: u64,
    /// Bytes of the WAL.
    pub wal_bytes: u64,
    /// Bytes of unsealed rows in memory.
    pub head_bytes: u64,
    /// Samples of remote-write that were too old or too far ahead.
    pub samples_refused: u64,
    /// Column groups that a reader found decompressed.
    pub groups_found: u64,
    /// Column groups that had to be read and decompressed.
    pub groups_read: u64,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The WAL refused.
    #[error("write-ahead log: {0}")]
    Journal(#[from] strobe_journal::JournalError),
    /// The disk is at its floor.
    #[error(
        "{path} has {free} bytes free and {floor} must stay free: nothing more is accepted until \
         space is made (lower the size cap or the retention, or remove other files)"
    )]
    Full {
        /// The store's directory.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes that must stay free.
        floor: u64,
    },
    /// The selection matches too much.
    #[error("the selection matches more than {max} series; make the matchers narrower")]
    SeriesMax {
        /// The limit.
        max: usize,
    },
    /// The scan touches too much.
    #[error("the query touches more than {max} samples; take a shorter range or fewer series")]
    SamplesMax {
        /// The limit.
        max: u64,
    },
    /// A pattern that is no regular expression.
    #[error("label {name:?}: {value:?} is not a regular expression: {why}")]
    Pattern {
        /// The label.
        name: String,
        /// The pattern.
        value: String,
        /// What the parser says.
        why: String,
    },
    /// A row whose schema was never given.
    #[error("host {host}: schema {schema} was not sent before its row")]
    SchemaUnknown {
        /// The host.
        host: HostId,
        /// The schema.
        schema: SchemaId,
    },
    /// A row that has another number of columns than its schema.
    #[error("host {host}: a row of {found} columns came for schema {schema} of {wanted}")]
    Columns {
        /// The host.
        host: HostId,
        /// The schema.
        schema: SchemaId,
        /// Columns of the row.
        found: usize,
        /// Columns of the schema.
        wanted: usize,
    },
    /// A schema that breaks the data model.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Stored bytes that do not check.
    #[error("{path} at byte {offset}: {why}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// What the caller's visitor said to stop a scan.
    #[error("{0}")]
    Visitor(String),
}

impl StoreConfig {
    /// The store of a default installation in `dir`: 7 days raw, 90 days of minutes, 2 years of hours.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        const DAY_MS: i64 = 86_400_000;
        Self {
            dir,
            raw_retention_ms: 7 * DAY_MS,
            minute_retention_ms: 90 * DAY_MS,
            hour_retention_ms: 730 * DAY_MS,
            bytes_max: 20 << 30,
            wal_file_bytes: 64 << 20,
            free_bytes_min: 256 << 20,
            head_bytes_max: 64 << 20,
        }
    }
}
