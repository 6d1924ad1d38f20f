//! Young blocks out of memory: they lie in a file without a name until they are sealed.
//!
//! Nothing depends on it after a crash (the WAL has the rows), so it is never synced. A file is
//! begun anew when a seal begins; the old one's space is free when the last of its blocks is let go
//! of. What the disk does not take, or a disk with little room, stays in memory.

use super::block::Data;
use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Where young blocks go.
#[derive(Debug)]
pub(super) struct Spill {
    path: PathBuf,
    /// The file being filled, and its length.
    open: Mutex<Option<(Arc<File>, u64)>>,
    /// Whether there is room. Relaxed: it guards nothing but itself.
    room: AtomicBool,
}

/// The bytes of a block.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// In memory.
    Memory(Arc<Vec<u8>>),
    /// So many bytes at this place of a file.
    Spilled(Arc<File>, u64, u32),
}

impl Spill {
    /// Nothing yet; `path` is where its files are made, for a moment.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, open: Mutex::default(), room: AtomicBool::new(false) }
    }

    /// So much of the disk is free, and so much must stay: what is acknowledged comes first.
    pub(super) fn allow(&self, free_bytes: u64, floor_bytes: u64) {
        self.room.store(floor_bytes.saturating_add(ROOM_BYTES) < free_bytes, Ordering::Relaxed);
    }

    /// Takes a block's bytes.
    pub(super) fn put(&self, bytes: Arc<Vec<u8>>) -> Body {
        if !self.room.load(Ordering::Relaxed) {
            return Body::Memory(bytes);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            *open = self.make().ok().map(|file| (Arc::new(file), 0));
        }
        if let Some((file, length)) = &mut *open
            && let Ok(count) = u32::try_from(bytes.len())
            && file.write_all_at(&bytes, *length).is_ok()
        {
            let at = *length;
            *length += u64::from(count);
            return Body::Spilled(Arc::clone(file), at, count);
        }
        Body::Memory(bytes)
    }

    /// What is put from now on goes into a new file.
    pub(super) fn turn(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn make(&self) -> std::io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&self.path)?;
        fs::remove_file(&self.path)?;
        Ok(file)
    }
}

impl Body {
    /// For reading.
    pub(super) fn data(&self) -> Data<'_> {
        match self {
            Self::Memory(bytes) => Data::Memory(bytes),
            Self::Spilled(file, at, count) => Data::File(file, *at, *count),
        }
    }

    /// All of it.
    pub(super) fn bytes(&self) -> Result<Cow<'_, [u8]>, String> {
        match self.data() {
            Data::Memory(bytes) => Ok(Cow::Borrowed(bytes)),
            Data::File(file, at, count) => {
                let mut bytes = vec![0; count as usize];
                file.read_exact_at(&mut bytes, at).map_err(|why| why.to_string())?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Bytes of memory.
    pub(super) fn held(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::Spilled(..) => 0,
        }
    }
}

/// Above the floor: about what a thousand hosts put here in a window.
const ROOM_BYTES: u64 = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &Body) -> Vec<u8> {
        body.bytes().unwrap().into_owned()
    }

    #[test]
    fn blocks_are_read_back_after_a_turn_and_no_file_is_seen() {
        let dir = std::env::temp_dir().join(format!("strobe-spill-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let spill = Spill::new(dir.join("young"));
        assert_eq!(spill.put(Arc::new(b"zero".to_vec())).held(), 4, "no room is known of");
        spill.allow(ROOM_BYTES + 8, 7);
        let first = spill.put(Arc::new(b"one".to_vec()));
        let second = spill.put(Arc::new(b"two".to_vec()));
        spill.turn();
        let third = spill.put(Arc::new(b"three".to_vec()));
        assert_eq!([&first, &second, &third].map(read), [&b"one"[..], b"two", b"three"]);
        assert_eq!(first.held() + second.held() + third.held(), 0);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        spill.allow(ROOM_BYTES + 7, 7);
        assert_eq!(spill.put(Arc::new(b"four".to_vec())).held(), 4, "too little room");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_the_disk_does_not_take_stays_in_memory() {
        let spill = Spill::new(PathBuf::from("/nonexistent/young"));
        spill.allow(u64::MAX, 0);
        let body = spill.put(Arc::new(b"one".to_vec()));
        assert_eq!((read(&body), body.held()), (b"one".to_vec(), 3));
    }
}
