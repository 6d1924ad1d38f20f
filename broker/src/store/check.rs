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
    /// Each segment file.
    pub files: Vec<SegmentReport>,
}

/// What one segment file holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SegmentReport {
    /// Time between two samples; 0 for raw ones.
    pub step_ms: u32,
    /// Blocks.
    pub blocks: u64,
    /// Samples of the blocks that check.
    pub samples: u64,
    /// Bytes of the blocks.
    pub block_bytes: u64,
    /// Bytes of the file, all included.
    pub bytes: u64,
}

/// Verifies every checksum of the store in `dir` and decodes every block.
///
/// # Errors
/// What could not be read at all.
pub fn check(dir: &Path) -> Result<CheckReport, StoreError> {
    let mut report = CheckReport::default();
    for (_, path) in segment_files(&dir.join(SEGMENTS))? {
        let file = segment::check(&path, &mut report.damage)?;
        report.segments += 1;
        report.blocks += file.blocks;
        report.files.push(file);
    }
    let (records, damage) = Journal::check(&dir.join(WAL))?;
    report.wal_records = records;
    report.damage.extend(
        damage.iter().map(|d| format!("{} at byte {}: {}", d.path.display(), d.offset, d.why)),
    );
    Ok(report)
}
