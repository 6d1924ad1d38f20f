//! Which segment files a place or a mark in Redis may mean: those of one directory, while its
//! numbers only grow.
//!
//! `store-id` in the store's directory holds a random id and the highest number that was marked.
//! A directory that has no such number any more (it is new, or its newest files were removed) may
//! use it again, so it gets another id: what Redis has is then somebody else's, and is read there.

use super::{RedisError, door};
use std::fs;
use std::path::{Path, PathBuf};

/// One directory's name in Redis.
#[derive(Debug)]
pub(super) struct Era {
    path: PathBuf,
    pub(super) id: u64,
    /// The highest number that was noted.
    marked: u64,
}

impl Era {
    /// Of the store in `dir` whose newest segment is `newest` (0: none).
    pub(super) fn of(dir: &Path, newest: u64) -> Result<Self, RedisError> {
        let path = dir.join("store-id");
        let fail = |source| RedisError::Id { path: path.clone(), source };
        let text = fs::read_to_string(&path).unwrap_or_default();
        let numbers = text.trim().split_once(' ').map(|(id, marked)| {
            (u64::from_str_radix(id, 16).ok(), u64::from_str_radix(marked, 16).ok())
        });
        if let Some((Some(id), Some(marked))) = numbers
            && marked <= newest
        {
            return Ok(Self { path, id, marked });
        }
        let mut bytes = door::number().unwrap_or(0).to_le_bytes();
        if bytes == [0; 8] {
            let random = getrandom::fill(&mut bytes);
            random.map_err(|why| fail(std::io::Error::other(why.to_string())))?;
        }
        let era = Self { path: path.clone(), id: u64::from_le_bytes(bytes), marked: 0 };
        era.write().map_err(fail)?;
        Ok(era)
    }

    /// A segment is whole in Redis.
    pub(super) fn note(&mut self, number: u64) {
        if self.marked < number {
            self.marked = number;
            if let Err(error) = self.write() {
                log::warn!("{}: {error}; tried again with the next segment", self.path.display());
            }
        }
    }

    /// Not synced: a crash costs the newest number, and its segment is there.
    fn write(&self) -> std::io::Result<()> {
        let part = self.path.with_extension("part");
        fs::write(&part, format!("{:016x} {:x}\n", self.id, self.marked))?;
        fs::rename(&part, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_lasts_as_long_as_its_numbers() {
        let dir = std::env::temp_dir().join(format!("strobe-era-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut era = Era::of(&dir, 0).unwrap();
        let id = era.id;
        era.note(3);
        era.note(2);
        let found = |newest| Era::of(&dir, newest).unwrap().id;
        assert_eq!((found(3), found(4)), (id, id));
        assert_ne!(found(2), id, "number 3 may come again");
        fs::write(dir.join("store-id"), "torn").unwrap();
        assert_ne!(found(9), id);
        fs::remove_dir_all(dir).unwrap();
    }
}
