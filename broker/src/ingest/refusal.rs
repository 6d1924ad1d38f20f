//! Why a session is closed.

use strobe_wire::frame::FrameError;
use strobe_wire::ids::{BootId, HostId, SchemaId};
use strobe_wire::limits::{LABEL_VALUE_BYTES_MAX, LABELS_MAX};
use strobe_wire::message::Hello;
use strobe_wire::schema::{SchemaError, is_label_name};

/// Why a session is closed. `Display` is what the peer is told.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// Another host's frame or hello.
    #[error("the certificate is {certified}'s, but the message says {claimed}")]
    Identity {
        /// The certificate's.
        certified: HostId,
        /// The message's.
        claimed: HostId,
    },
    /// A frame of another boot than the hello's.
    #[error("a frame of boot {claimed} came on the session of boot {wanted}")]
    Boot {
        /// The hello's.
        wanted: BootId,
        /// The frame's.
        claimed: BootId,
    },
    /// The same host id is live with another boot.
    #[error(
        "host {host} is already connected as another agent process; if its state directory was \
         copied, delete the copy's identity; if it was restarted, try again in a few seconds"
    )]
    Forked {
        /// The host.
        host: HostId,
    },
    /// A hello that breaks the data model.
    #[error("the hello is refused: {0}")]
    Hello(&'static str),
    /// Something before the hello, or a second hello.
    #[error("messages came in the wrong order: {0}")]
    Order(&'static str),
    /// A schema that breaks the data model.
    #[error("a schema is refused: {0}")]
    Schema(#[from] SchemaError),
    /// A frame that is none.
    #[error("a frame is refused: {0}")]
    Frame(#[from] FrameError),
    /// A row before its schema.
    #[error("a row of schema {0} came before the schema itself")]
    UnknownSchema(SchemaId),
    /// A row that is wider or narrower than its schema.
    #[error("a row of schema {schema} has {found} values; the schema has {wanted} columns")]
    Width {
        /// The schema.
        schema: SchemaId,
        /// Columns.
        wanted: usize,
        /// Values.
        found: usize,
    },
    /// Sequence number 0, or too many holes.
    #[error("frame {0} is out of sequence: too many frames before it are missing")]
    Sequence(u64),
}

impl Refusal {
    /// One word, for counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Identity { .. } => "identity",
            Self::Boot { .. } => "boot",
            Self::Forked { .. } => "forked",
            Self::Hello(_) => "hello",
            Self::Order(_) => "order",
            Self::Schema(_) => "schema",
            Self::Frame(FrameError::Crc { .. }) => "crc",
            Self::Frame(_) => "frame",
            Self::UnknownSchema(_) => "unknown_schema",
            Self::Width { .. } => "width",
            Self::Sequence(_) => "sequence",
        }
    }
}

/// What breaks the data model in a hello.
pub(super) fn fault(hello: &Hello) -> Option<&'static str> {
    let sized = |text: &str| !text.is_empty() && text.len() <= LABEL_VALUE_BYTES_MAX;
    if !sized(&hello.instance) || !sized(&hello.job) {
        return Some("instance and job must have 1 to 4096 bytes");
    }
    if 256 < hello.version.len() || 256 < hello.kernel.len() {
        return Some("version or kernel is longer than 256 bytes");
    }
    if LABELS_MAX - 2 < hello.labels.len() {
        return Some("more than 62 labels");
    }
    let reserved = |name: &str| name == "job" || name == "instance" || name.starts_with("__");
    if hello.labels.iter().any(|(name, _)| !is_label_name(name) || reserved(name)) {
        return Some("a label's name is not [a-zA-Z_][a-zA-Z0-9_]*, or is reserved");
    }
    if hello.labels.iter().any(|(_, value)| !sized(value)) {
        return Some("a label's value is empty or longer than 4096 bytes");
    }
    if !hello.labels.is_sorted_by(|a, b| a.0 < b.0) {
        return Some("labels are not sorted or one stands twice");
    }
    if !(INTERVAL_MIN_MS..=INTERVAL_MAX_MS).contains(&hello.interval_ms) {
        return Some("the interval is not within 10 ms to 1 h");
    }
    None
}

const INTERVAL_MIN_MS: u64 = 10;
const INTERVAL_MAX_MS: u64 = 3_600_000;
