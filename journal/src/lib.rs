//! Bytes that must survive: append-only files of checked records.
//!
//! ```text
//! DIR/version    "strobe journal 1\n"      another version is refused
//! DIR/lock       flock                     two processes on one directory are refused
//! DIR/0000000000000001.log                 magic "SJL1", then records
//!     record: [length u32][CRC32C of length and payload u32][payload], little-endian
//! ```
//!
//! States of a record: appended (in memory) → written and synced by one [`Journal::commit`].
//! A file is synced before the next one is begun, so only the last can be torn by a crash. A
//! journal never appends to a file of an earlier life: recovery reads, and the first commit begins a
//! new file.
//! Recovery scans every file with one bounded buffer, keeps every record that checks, names the
//! places that do not ([`Damage`]), and behind a broken record looks for the next that checks.
//!
//! When the disk is full, [`JournalError::Full`]; the file is cut back to its last synced length,
//! what was appended stays in memory and the next commit tries again. When a sync fails, nobody
//! knows what the disk has and the kernel does not say so twice: the file is given up at its last
//! synced length, and the next commit begins another.

mod anew;
pub mod disk;
mod file;
mod scan;
mod tail;
#[expect(unsafe_code, reason = "what is handed to the kernel is not borrowed by it")]
mod uring;

pub use anew::Anew;
pub use file::{Damage, Journal, free_bytes};
pub use scan::{Bounds, Then};
pub use tail::{Position, first, read_between};
pub use uring::{Commit, try_uring};

use std::path::PathBuf;

/// Bytes of the largest record.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// Why the journal could not do something.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
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
    /// No space left.
    #[error("{path}: no space left on the device; make space, nothing written before is lost")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the directory.
    #[error("{path} is in use by another process; stop it, or use another directory")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// Another version wrote the directory.
    #[error("{path} was written by another version ({found:?}); this one reads {wanted:?}")]
    Version {
        /// The version file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What is wanted.
        wanted: String,
    },
    /// A record that is empty or too large.
    #[error("a record of {bytes} bytes; 1 to {RECORD_BYTES_MAX} are allowed")]
    Record {
        /// Its size.
        bytes: usize,
    },
}
