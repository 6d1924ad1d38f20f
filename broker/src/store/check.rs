//! Reading every byte of a store and changing nothing.

use super::local::{SEGMENTS, WAL, segment_files};
use super::{StoreError, segment};
use std::path::Path;
use strobe_journal::Journal;

/// What [`check`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// Segment files read.
    pub segments: u64,
    /// Blocks whose every byte was decoded.
    pub blocks: u64,
    /// Valid WAL records.
    pub wal_records: u64,
    /// Each broken place: file, offset, what is wrong.
    pub damage: Vec<String>,
}

/// Verifies every checksum of the store in `dir` and decodes every block.
///
/// # Errors
/// What could not be read at all.
pub fn check(dir: &Path) -> Result<CheckReport, StoreError> {
    let mut report = CheckReport::default();
    for (_, path) in segment_files(&dir.join(SEGMENTS))? {
        report.segments += 1;
        report.blocks += segment::check(&path, &mut report.damage)?;
    }
    let (records, damage) = Journal::check(&dir.join(WAL))?;
    report.wal_records = records;
    report.damage.extend(
        damage.iter().map(|d| format!("{} at byte {}: {}", d.path.display(), d.offset, d.why)),
    );
    Ok(report)
}
