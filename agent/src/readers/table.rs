//! A file of many values, parsed as those of /proc are, in a family that is found by a walk.

use super::Format;
use super::kept::{Buffer, Kept, Shape};
use super::sheet::{Outcome, Sheet, Vanish};
use std::path::PathBuf;
use strobe_wire::schema::Column;

/// A file of many values.
#[derive(Debug)]
pub(crate) struct Table {
    kept: Kept,
    format: Format,
    /// What the file is about, if it does not say so itself.
    about: Box<str>,
    pub(crate) sheet: Sheet,
}

impl Table {
    pub(crate) fn new(path: PathBuf, shape: Shape, format: Format, about: &str) -> Self {
        let (kept, sheet) = (Kept::new(path, shape), Sheet::new(Vanish::Go));
        Self { kept, format, about: about.into(), sheet }
    }

    pub(crate) fn columns(&self) -> impl Iterator<Item = Column> {
        let entries = self.sheet.entries().iter();
        entries.flat_map(|entry| self.format.columns_about(entry, &self.about))
    }

    /// Whether its columns are others.
    pub(crate) fn read(&mut self, buffer: &mut Buffer) -> bool {
        self.sheet.begin();
        let Some(bytes) = self.kept.read(buffer) else { return false };
        self.format.parse(bytes, &mut self.sheet);
        let changed = self.sheet.end() == Outcome::Changed;
        if changed {
            self.sheet.learn();
            self.format.parse(bytes, &mut self.sheet);
            self.sheet.learned();
        }
        changed
    }
}
