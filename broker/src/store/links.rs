//! The store's files at one moment, under other names: nothing is copied, nobody waits.
//!
//! Segments and closed files of the log are never changed, only removed; what is small is written anew under
//! another name and renamed. So a second name keeps a file as it is now.

use super::StoreError;
use super::local::{SEGMENTS, WAL, Writer};
use super::segment::io;
use std::fs;
use std::path::Path;

impl Writer {
    /// Gives every file a second name in `to`, which is to be on the same disk; everything that was
    /// committed before is in them.
    ///
    /// # Errors
    /// The system refused.
    pub(crate) fn link_to(&mut self, to: &Path, now_ms: i64) -> Result<(), StoreError> {
        self.commit(now_ms)?;
        // Names that wait for a row are written with it, and are in the registry.
        let closed = self.rotate()?;
        let from = self.shared.config().dir.clone();
        for folder in [SEGMENTS, WAL] {
            let (from, to) = (from.join(folder), to.join(folder));
            fs::create_dir_all(&to).map_err(io("make", &to))?;
            for entry in fs::read_dir(&from).map_err(io("list", &from))? {
                let path = entry.map_err(io("list", &from))?.path();
                if folder == WAL && !is_closed(&path, closed) || is_unfinished(&path) {
                    continue;
                }
                let name = path.file_name().unwrap_or_default();
                fs::hard_link(&path, to.join(name)).map_err(io("link", &path))?;
            }
        }
        Ok(())
    }
}

/// The file that is being appended to has a higher number.
fn is_closed(path: &Path, closed: u64) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.and_then(|stem| u64::from_str_radix(stem, 16).ok()).is_some_and(|n| n <= closed)
}

fn is_unfinished(path: &Path) -> bool {
    path.extension().is_none_or(|extension| extension == "part" || extension == "tmp")
}
