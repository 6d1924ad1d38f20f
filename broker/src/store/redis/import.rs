//! What was in the store before Redis was: it stays where it is, or moves there in the background.
//!
//! A store that is given a Redis while it runs writes down which segments it had then
//! (`shared-store` in the state directory). Newer ones go to Redis as they come; older ones, if they are
//! wanted there, whenever nothing newer waits, and no faster than [`BYTES_A_SECOND`]. How far they are
//! is marked in Redis with the blocks, so a restart goes on where it was, and a Redis that comes back
//! empty gets them again. A block's place names its file and offset: written twice it is the same.

use super::RedisError;
use super::marks::Marks;
use crate::store::local::Store;
use crate::store::segment::Segment;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What becomes of segments that were there before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Import {
    /// The newest of them; 0: there was none, or all are like new ones.
    pub until: u64,
    /// Whether they go to Redis.
    pub wanted: bool,
}

/// A Redis that was given to a running broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// As `broker.store` would name it.
    pub url: String,
    /// What was here before.
    pub import: Import,
}

impl Import {
    /// Whether a segment was there before.
    pub(super) fn has(self, number: u64) -> bool {
        number <= self.until
    }

    /// The segments that are still to be moved, oldest first.
    pub(super) fn left(
        self,
        segments: &[Arc<Segment>],
        marks: &Marks,
        counts: impl Fn(usize) -> bool,
    ) -> Vec<(u64, Arc<Segment>)> {
        if !self.wanted {
            return Vec::new();
        }
        let done = marks.imports.iter().enumerate().filter(|(shard, _)| counts(*shard));
        let done = done.map(|(_, number)| *number).min().unwrap_or(u64::MAX);
        let numbered = segments.iter().cloned().filter_map(|segment| {
            let number = segment.number()?;
            (done < number && self.has(number)).then_some((number, segment))
        });
        let mut left: Vec<_> = numbered.collect();
        left.sort_by_key(|(number, segment)| (*number, segment.step_ms));
        left
    }

    /// How long a segment of so many bytes is to be rested after.
    pub(super) fn rest(bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1000) / BYTES_A_SECOND)
    }
}

impl Store {
    /// Whether it is written to a Redis.
    #[must_use]
    pub fn has_redis(&self) -> bool {
        self.shared.archive.get().is_some()
    }

    /// The newest segment file's number, and how many there are.
    pub(crate) fn newest_segment(&self) -> (u64, usize) {
        let segments = self.shared.segments();
        let newest = segments.iter().filter_map(|segment| segment.number()).max();
        (newest.unwrap_or(0), segments.len())
    }
}

impl Attached {
    /// What the directory says, if a Redis was given to it while it ran.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(dir: &Path) -> Result<Option<Self>, RedisError> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RedisError::Id { path, source }),
        };
        let mut words = text.split_whitespace();
        let (url, until) =
            (words.next(), words.next().and_then(|n| u64::from_str_radix(n, 16).ok()));
        match (url, until) {
            (Some(url), Some(until)) => {
                let import = Import { until, wanted: words.next() == Some(IMPORT) };
                Ok(Some(Self { url: url.to_owned(), import }))
            }
            _ => {
                let source = std::io::Error::other("it is not `URL NUMBER [import]`");
                Err(RedisError::Id { path, source })
            }
        }
    }

    /// Writes it down, for the owner's eyes: a URL may hold a password.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), RedisError> {
        let path: PathBuf = dir.join(FILE);
        let part = path.with_extension("part");
        let word = if self.import.wanted { IMPORT } else { "" };
        let write = || -> std::io::Result<()> {
            let mut options = fs::OpenOptions::new();
            let options = options.create(true).write(true).truncate(true).mode(0o600);
            let mut file = options.open(&part)?;
            writeln!(file, "{} {:x} {word}", self.url, self.import.until)?;
            file.sync_all()?;
            fs::rename(&part, &path)?;
            fs::File::open(dir)?.sync_all()
        };
        write().map_err(|source| RedisError::Id { path: path.clone(), source })
    }
}

const FILE: &str = "shared-store";
const IMPORT: &str = "import";
/// A disk and a Redis that have other things to do hardly notice it; ten gigabytes take twenty minutes.
const BYTES_A_SECOND: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_attached_is_read_back() {
        let dir = std::env::temp_dir().join(format!("strobe-attached-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(Attached::load(&dir).unwrap(), None);
        for wanted in [true, false] {
            let import = Import { until: 0x2f, wanted };
            let attached = Attached { url: "redis://:secret@127.0.0.1:1/0".to_owned(), import };
            attached.save(&dir).unwrap();
            assert_eq!(Attached::load(&dir).unwrap(), Some(attached));
        }
        fs::write(dir.join(FILE), "torn").unwrap();
        assert!(Attached::load(&dir).unwrap_err().to_string().contains("shared-store"));
        fs::remove_dir_all(dir).unwrap();
    }
}
