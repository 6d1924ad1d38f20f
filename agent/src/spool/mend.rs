//! What is done about a directory that does not open as a spool: nothing that holds frames is removed.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use strobe_journal::{Journal, JournalError};

/// Puts aside what stands in the way, so that the next try meets something else.
///
/// # Errors
/// Nothing can be done here: what is wrong, and what to do.
pub(super) fn mend(dir: &Path, why: &JournalError) -> Result<(), String> {
    let said = || why.to_string();
    match why {
        // A version file may be broken like any other: what matters is what is in the records.
        JournalError::Version { path, .. } if has_records(dir) => {
            log::warn!("{why}; its records are of this version");
            fs::remove_file(path).map_err(|error| format!("{}: {error}", path.display()))
        }
        JournalError::Version { .. } => aside(dir, dir, why),
        JournalError::Io { source, .. } if is_the_disks(source.kind()) => Err(said()),
        JournalError::Io { path, .. } if path.extension().is_some_and(|end| end == "log") => {
            aside(dir, path, why)
        }
        JournalError::Io { .. } => aside(dir, dir, why),
        JournalError::Full { .. } | JournalError::Locked { .. } | JournalError::Record { .. } => {
            Err(said())
        }
    }
}

/// What another name would not change.
fn is_the_disks(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

fn has_records(dir: &Path) -> bool {
    // Where it cannot be told, the files are met one by one.
    Journal::check(dir).map_or(true, |(records, damage)| 0 < records || damage.is_empty())
}

/// Moves `what` to `spool.aside` beside the spool, under a name that is free.
fn aside(dir: &Path, what: &Path, why: &JournalError) -> Result<(), String> {
    let place = dir.with_extension("aside");
    let name = what.file_name().unwrap_or_default().to_string_lossy();
    let free = (0..ASIDE_MAX).map(|n| place.join(format!("{name}.{n}"))).find(|at| !at.exists());
    let moved = match free {
        None => Err(format!("{} is full", place.display())),
        Some(to) => fs::create_dir_all(&place)
            .and_then(|()| fs::rename(what, &to))
            .map(|()| log::warn!("{why}; put aside as {}", to.display()))
            .map_err(|error| error.to_string()),
    };
    moved.map_err(|error| format!("{why}; and it cannot be put aside: {error}"))
}

/// So many broken starts are kept for a person to look at.
const ASIDE_MAX: usize = 16;
