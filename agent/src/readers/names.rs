//! The names in a directory that stays open, into a buffer of its own: nix allocates each name.

use rustix::fs::RawDir;
use std::fs::File;
use std::io::Seek;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

/// A directory that is listed again and again.
#[derive(Debug)]
pub(crate) struct Names {
    path: PathBuf,
    dir: Option<File>,
    room: Vec<MaybeUninit<u8>>,
}

impl Names {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), dir: None, room: Vec::new() }
    }

    /// The directory, if it could be opened when it was last listed.
    pub(crate) fn dir(&self) -> Option<&File> {
        self.dir.as_ref()
    }

    /// Hands out all names, as the directory is now.
    pub(crate) fn each(&mut self, mut take: impl FnMut(&[u8])) {
        if self.dir.is_none() {
            self.dir = File::open(&self.path).ok();
            self.room.resize(ROOM_BYTES, MaybeUninit::uninit());
        }
        let Some(dir) = &mut self.dir else { return };
        if dir.rewind().is_err() {
            self.dir = None;
            return;
        }
        let mut entries = RawDir::new(&*dir, &mut self.room);
        while let Some(Ok(entry)) = entries.next() {
            take(entry.file_name().to_bytes());
        }
    }
}

/// Some two hundred names of numbers a call.
const ROOM_BYTES: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn all_names_are_there_each_time() {
        let root = std::env::temp_dir().join(format!("strobe-names-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let mut names = Names::new(&root);
        let mut list = || {
            let mut found = BTreeSet::new();
            names.each(|name| found.extend(String::from_utf8(name.to_vec())));
            found
        };
        assert_eq!(list().len(), 2, "itself and its parent");
        (0..2000).for_each(|number| std::fs::write(root.join(format!("{number}")), "").unwrap());
        assert_eq!(list().len(), 2002);
        std::fs::remove_file(root.join("7")).unwrap();
        assert!(!list().contains("7"));
        std::fs::remove_dir_all(&root).unwrap();
        let mut none = Names::new(&root);
        none.each(|name| panic!("{name:?}"));
        assert!(none.dir().is_none());
    }
}
