//! A disk that forgets: what was not synced may be gone after a crash, in part or torn, and a name
//! that was made, changed or removed may be undone.
//!
//! It stands at the door of this thread ([`strobe_journal::disk`]) and keeps, for every file, how
//! much of it is durable. The registry's database does not go through that door: redb's own crash
//! safety is taken as given.

use super::dice::Die;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use strobe_journal::disk::{Call, Fate, watch};

/// The disk; clones share it.
#[derive(Clone)]
pub(crate) struct Disk(Rc<RefCell<State>>);

struct State {
    root: PathBuf,
    /// Removed files are kept here as long as their removal may be undone.
    limbo: PathBuf,
    die: Die,
    /// Bytes of each file that a crash leaves; files that are not here are whole.
    synced: BTreeMap<PathBuf, u64>,
    /// What was done to names and is not durable, oldest first.
    names: Vec<Name>,
    /// Every WAL file that was ever removed, as it was.
    removed: BTreeMap<PathBuf, Vec<u8>>,
    limbo_next: u64,
    /// The machine dies at this call from now.
    dies_in: Option<u64>,
    dead: bool,
    full: bool,
    /// Little is free, though what is written still fits.
    low: bool,
    /// The next sync fails, once.
    sick: bool,
    /// The next sync of a directory fails, once.
    forgetful: bool,
    /// Where segments go that are removed.
    graves: PathBuf,
    /// A planted bug: syncs do nothing.
    lies: bool,
    half_written: bool,
}

enum Name {
    Made(PathBuf),
    Renamed(PathBuf, PathBuf),
    Removed(PathBuf, PathBuf),
}

impl Disk {
    /// The disk of all that is under `root`.
    pub(crate) fn new(root: &Path, die: Die, lies: bool) -> Self {
        let (limbo, graves) = (root.join("limbo"), root.join("graves/segments"));
        for dir in [&limbo, &graves, &root.join("state")] {
            fs::create_dir_all(dir).expect("a folder of the simulation");
        }
        Self(Rc::new(RefCell::new(State {
            root: root.to_owned(),
            limbo,
            graves,
            die,
            synced: BTreeMap::new(),
            names: Vec::new(),
            removed: BTreeMap::new(),
            limbo_next: 0,
            dies_in: None,
            dead: false,
            full: false,
            low: false,
            sick: false,
            forgetful: false,
            lies,
            half_written: false,
        })))
    }

    /// They take their place at the door of this thread.
    pub(crate) fn take_the_door(disks: Vec<Self>) {
        watch(move |call| {
            let path = path(call);
            let disk = disks.iter().find(|disk| path.starts_with(&disk.0.borrow().root));
            disk.map_or(Fate::Pass, |disk| disk.0.borrow_mut().call(call))
        });
    }

    pub(crate) fn graves(&self) -> PathBuf {
        self.0.borrow().root.join("graves")
    }

    /// The machine will die at the call after so many.
    pub(crate) fn die_in(&self, calls: u64) {
        self.0.borrow_mut().dies_in = Some(calls);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.borrow().dead
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.0.borrow_mut().full = full;
    }

    pub(crate) fn set_low(&self, low: bool) {
        self.0.borrow_mut().low = low;
    }

    pub(crate) fn fail_a_sync(&self) {
        self.0.borrow_mut().sick = true;
    }

    pub(crate) fn fail_a_directory(&self) {
        self.0.borrow_mut().forgetful = true;
    }

    /// Nothing more goes wrong.
    pub(crate) fn heal(&self) {
        let state = &mut *self.0.borrow_mut();
        state.calm();
    }

    /// What a crash leaves; from here on the disk works again. Nobody may have a file open.
    pub(crate) fn crash(&self) {
        let state = &mut *self.0.borrow_mut();
        // Names are journalled in order: what is lost is a tail.
        let kept = state.die.index(state.names.len() + 1);
        for name in state.names.drain(..).skip(kept).rev() {
            match name {
                Name::Made(path) => drop(fs::remove_file(path)),
                Name::Renamed(from, to) => drop(fs::rename(to, from)),
                Name::Removed(from, kept) => {
                    state.removed.remove(&from);
                    exhume(&state.graves, &kept);
                    drop(fs::rename(kept, from));
                }
            }
        }
        for (path, synced) in std::mem::take(&mut state.synced) {
            let Ok(mut bytes) = fs::read(&path) else { continue };
            let synced = usize::try_from(synced).expect("a small file").min(bytes.len());
            if synced == bytes.len() {
                continue;
            }
            bytes.truncate(synced + state.die.index(bytes.len() - synced + 1));
            // Pages reach the disk in any order.
            if let Some(tail) = bytes.get_mut(synced..).filter(|tail| !tail.is_empty())
                && state.die.chance(2)
            {
                let from = state.die.index(tail.len());
                let until = from + state.die.index(tail.len() - from);
                if state.die.chance(2) {
                    tail[from..=until].fill(0);
                } else {
                    tail[from] ^= 1 << state.die.below(8);
                }
            }
            fs::write(&path, bytes).expect("a file of the simulation");
        }
        state.dead = false;
        state.calm();
    }

    /// WAL files that were removed, as they were.
    pub(crate) fn removed(&self) -> Vec<Vec<u8>> {
        self.0.borrow().removed.values().cloned().collect()
    }
}

impl State {
    fn calm(&mut self) {
        (self.dies_in, self.full, self.low) = (None, false, false);
        (self.sick, self.forgetful) = (false, false);
    }

    fn call(&mut self, call: Call<'_>) -> Fate {
        if self.dead {
            return Fate::Fail(ErrorKind::NotConnected);
        }
        if let Some(calls) = &mut self.dies_in {
            if *calls == 0 {
                self.dead = true;
                return match call {
                    Call::Write(_, bytes) => Fate::Short(self.die.below(bytes as u64 + 1)),
                    _ => Fate::Fail(ErrorKind::NotConnected),
                };
            }
            *calls -= 1;
        }
        match call {
            Call::Free(_) if self.full || self.low => return Fate::Short(0),
            Call::Free(_) => return Fate::Short(u64::MAX / 2),
            Call::Write(_, bytes) if self.full && !std::mem::take(&mut self.half_written) => {
                self.half_written = true;
                return Fate::Short(bytes as u64 / 2);
            }
            Call::Write(..) | Call::Create(_) if self.full => {
                return Fate::Fail(ErrorKind::StorageFull);
            }
            Call::Write(..) => {}
            Call::Create(path) => {
                if !path.exists() {
                    self.names.push(Name::Made(path.to_owned()));
                }
                self.synced.insert(path.to_owned(), 0);
            }
            Call::Sync(_) if std::mem::take(&mut self.sick) => {
                return Fate::Fail(ErrorKind::Other);
            }
            Call::Sync(path) => {
                if !self.lies {
                    self.synced.insert(path.to_owned(), length(path));
                }
            }
            Call::Rename(from, to) => {
                let synced = self.synced.remove(from).unwrap_or_else(|| length(from));
                self.synced.insert(to.to_owned(), synced);
                self.names.push(Name::Renamed(from.to_owned(), to.to_owned()));
            }
            Call::Remove(path) => self.remove(path),
            Call::SyncDir(_) if std::mem::take(&mut self.forgetful) => {
                return Fate::Fail(ErrorKind::Other);
            }
            Call::SyncDir(dir) => {
                self.names.retain(|name| match name {
                    Name::Made(path) | Name::Renamed(_, path) | Name::Removed(path, _) => {
                        path.parent() != Some(dir)
                    }
                });
            }
        }
        Fate::Pass
    }

    fn remove(&mut self, path: &Path) {
        self.limbo_next += 1;
        let kept = self.limbo.join(self.limbo_next.to_string());
        fs::hard_link(path, &kept).expect("a file of the simulation");
        if path.extension().is_some_and(|extension| extension == "log") {
            self.removed.insert(path.to_owned(), fs::read(path).expect("it is there"));
        }
        if path.extension().is_some_and(|extension| extension == "seg") {
            // A number may be given again once its file is gone, so each grave has one of its own.
            let kind = path.file_name().and_then(|name| name.to_str()?.split('-').next());
            let grave = format!("{}-{:016x}.seg", kind.expect("a segment"), self.limbo_next);
            fs::hard_link(path, self.graves.join(grave)).expect("a file of the simulation");
        }
        self.names.push(Name::Removed(path.to_owned(), kept));
    }
}

/// The removal of what is `kept` was undone.
fn exhume(graves: &Path, kept: &Path) {
    let number = kept.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
    let end = format!("-{:016x}.seg", number.expect("a number"));
    for grave in fs::read_dir(graves).expect("a folder").flatten() {
        if grave.file_name().to_string_lossy().ends_with(&end) {
            fs::remove_file(grave.path()).expect("a file of the simulation");
        }
    }
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

fn path(call: Call<'_>) -> &Path {
    match call {
        Call::Create(path)
        | Call::Write(path, _)
        | Call::Sync(path)
        | Call::Rename(path, _)
        | Call::Remove(path)
        | Call::SyncDir(path)
        | Call::Free(path) => path,
    }
}
