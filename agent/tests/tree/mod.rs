//! A tree of files from one text: `tests/fixtures/trees/*.tree`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// An unpacked tree, removed when dropped.
#[derive(Debug)]
pub(crate) struct Tree(pub(crate) PathBuf);

impl Tree {
    /// Unpacks `text`: a line is a path, a tab, and the file's text with `\n` for newlines, or `-> `
    /// and what a link points to.
    pub(crate) fn unpack(name: &str, text: &str) -> Self {
        let mut tree =
            Self(std::env::temp_dir().join(format!("strobe-{name}-{}", std::process::id())));
        let _ = fs::remove_dir_all(&tree.0);
        tree.overlay(text);
        tree
    }

    /// Writes what `text` has over what is there; `!` takes it away.
    pub(crate) fn overlay(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (path, content) = line.split_once('\t').unwrap();
            let path = self.0.join(path);
            let _ = fs::remove_file(&path);
            if content == "!" {
                continue;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("-> ") {
                Some(target) => symlink(target, path).unwrap(),
                None => fs::write(path, content.replace("\\n", "\n")).unwrap(),
            }
        }
    }

    /// The path of a part of it.
    pub(crate) fn path(&self, part: &str) -> String {
        Path::join(&self.0, part).to_str().unwrap().to_owned()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
