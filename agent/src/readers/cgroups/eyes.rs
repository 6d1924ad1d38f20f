//! How the directories of control groups are looked at.

use super::PATH_BYTES_MAX;
use super::files::{BASES, COUNTERS, Fields, SPECS_MAX, Spec, VERSION_1, VERSION_2, When};
use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat, fstatat};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The hierarchies and what is needed to read them.
#[derive(Debug)]
pub(super) struct Eyes {
    bases: [Option<OwnedFd>; BASES.len()],
    /// Which of them are trees of their own: `cpu` and `cpuacct` are often one.
    walked: [bool; BASES.len()],
    specs: &'static [Spec],
    /// Whether files of the told stay open.
    pub(super) keeps: bool,
    /// What was listed last.
    pub(super) found: Vec<Box<[u8]>>,
    path: Vec<u8>,
    text: Vec<u8>,
}

/// One that is told by name.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) key: u64,
    pub(super) path: Box<[u8]>,
    /// A bit a field, once it had a value.
    pub(super) mask: u32,
    pub(super) fields: Fields,
    seldom: Fields,
    files: [Option<File>; SPECS_MAX],
    /// Counters at the last reading.
    pub(super) last: [Option<u64>; COUNTERS.len()],
    fresh: bool,
}

impl Eyes {
    pub(super) fn new(root: &Path) -> Self {
        let is_unified = root.join("cgroup.controllers").exists();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = |names: &[&str]| {
            let mut paths = names.iter().map(|name| root.join(name));
            paths.find_map(|path| nix::fcntl::open(&path, flags, Mode::empty()).ok())
        };
        // The first is version 2 alone, the others are version 1.
        let is_here = |names: &[&str]| is_unified == (names == BASES[0]);
        let bases = BASES.map(|names| if is_here(names) { open(names) } else { None });
        let mut known = Vec::new();
        let walked = bases.each_ref().map(|base| {
            let found = base.as_ref().and_then(|base| fstat(base).ok());
            let found = found.map(|found| (found.st_dev, found.st_ino));
            let is_new = found.is_some_and(|found| !known.contains(&found));
            known.extend(found);
            is_new
        });
        let specs = if is_unified { VERSION_2 } else { VERSION_1 };
        let (found, path, text) = (Vec::new(), Vec::new(), vec![0; TEXT_BYTES]);
        Self { bases, walked, specs, keeps: false, found, path, text }
    }

    pub(super) fn is_there(&self) -> bool {
        self.walked.contains(&true)
    }

    /// Version 2 alone.
    pub(super) fn is_unified(&self) -> bool {
        self.bases.first().is_some_and(Option::is_some)
    }

    /// The link count of a group's directory, if it has one in this hierarchy.
    pub(super) fn links(&mut self, base: usize, group: &[u8]) -> Option<u64> {
        self.walked.get(base).filter(|walked| **walked)?;
        self.aim(group, b".");
        let base = self.bases.get(base)?.as_ref()?;
        let found = fstatat(base, self.path.as_slice(), AtFlags::empty()).ok()?;
        #[expect(clippy::useless_conversion, reason = "it has 32 bits on some architectures")]
        Some(found.st_nlink.into())
    }

    /// The paths of the groups directly below one.
    pub(super) fn list(&mut self, base: usize, group: &[u8], found: &mut Vec<Box<[u8]>>) {
        self.aim(group, b".");
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Some(base) = self.bases.get(base).and_then(Option::as_ref) else { return };
        let Ok(mut dir) = Dir::openat(base, self.path.as_slice(), flags, Mode::empty()) else {
            return;
        };
        for entry in dir.iter().flatten() {
            let name = entry.file_name().to_bytes();
            let is_group = entry.file_type() == Some(Type::Directory) && !name.starts_with(b".");
            if is_group && group.len() + 1 + name.len() <= PATH_BYTES_MAX {
                let parts = if group.is_empty() { [group, b"", name] } else { [group, b"/", name] };
                found.push(parts.concat().into());
            }
        }
    }

    /// Reads what groups are ranked by.
    pub(super) fn measure(&mut self, group: &[u8], fields: &mut Fields) {
        for spec in self.specs.iter().filter(|spec| spec.when == When::Rank) {
            if let Some(file) = self.open(spec, group) {
                self.take(&file, spec, fields);
            }
        }
    }

    fn open(&mut self, spec: &Spec, group: &[u8]) -> Option<File> {
        self.aim(group, spec.name);
        let base = self.bases.get(spec.base)?.as_ref()?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = openat(base, self.path.as_slice(), flags, Mode::empty()).ok()?;
        Some(File::from(file))
    }

    /// Reads a file; whether it could be read.
    fn take(&mut self, file: &File, spec: &Spec, fields: &mut Fields) -> bool {
        // The kernel hands out each of these in one piece.
        let Ok(length) = file.read_at(&mut self.text, 0) else { return false };
        spec.parse(self.text.get(..length).unwrap_or(&[]), fields);
        true
    }

    fn aim(&mut self, group: &[u8], name: &[u8]) {
        self.path.clear();
        self.path.extend_from_slice(group);
        if !group.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }
}

impl Told {
    pub(super) fn of(key: u64, path: &[u8]) -> Self {
        Self {
            key,
            path: path.into(),
            mask: 0,
            fields: Fields::NONE,
            seldom: Fields::NONE,
            files: [const { None }; SPECS_MAX],
            last: [None; COUNTERS.len()],
            fresh: true,
        }
    }

    /// Reads its files.
    pub(super) fn read(&mut self, eyes: &mut Eyes, reading: u64) {
        let mut fields = Fields::NONE;
        for (spec, kept) in eyes.specs.iter().zip(&mut self.files) {
            if spec.when == When::Seldom {
                continue;
            }
            if let Some(file) = kept.take().filter(|file| eyes.take(file, spec, &mut fields)) {
                *kept = Some(file).filter(|_| eyes.keeps);
                continue;
            }
            // Not open, or of a group that ended and began anew.
            if let Some(file) = eyes.open(spec, &self.path)
                && eyes.take(&file, spec, &mut fields)
            {
                *kept = Some(file).filter(|_| eyes.keeps);
            }
        }
        // In turn, by the key, so that no reading has those of all.
        let is_due = reading % SELDOM == self.key % SELDOM;
        if std::mem::take(&mut self.fresh) || is_due || !eyes.keeps {
            self.seldom = Fields::NONE;
            for spec in eyes.specs.iter().filter(|spec| spec.when == When::Seldom) {
                if let Some(file) = eyes.open(spec, &self.path) {
                    eyes.take(&file, spec, &mut self.seldom);
                }
            }
        }
        fields.fill(&self.seldom);
        if eyes.is_unified() && self.path.is_empty() {
            fields.without_steal();
        }
        self.fields = fields;
    }
}

/// `io.stat` has a line of 100 bytes a device.
const TEXT_BYTES: usize = 32 << 10;
const SELDOM: u64 = 10;
