//! A disk under redb that forgets: of what was not synced a crash keeps any part, whole sectors of any
//! write in any order.

use super::dice::Die;
use redb::{Database, StorageBackend};
use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

/// The disk; it outlives crashes. Each life of a broker has its own door.
#[derive(Clone, Debug)]
pub(crate) struct Platter(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    durable: Vec<u8>,
    now: Vec<u8>,
    pending: Vec<Change>,
    life: u64,
    /// It dies at this call from now.
    dies_in: Option<u64>,
    dead: bool,
    /// The next sync fails, once.
    sick: bool,
    /// It does not grow.
    full: bool,
    syncs: u64,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// What one life opens.
#[derive(Debug)]
pub(crate) struct Door {
    disk: Platter,
    life: u64,
}

impl Platter {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State::default())))
    }

    pub(crate) fn door(&self) -> Door {
        Door { disk: self.clone(), life: self.lock().life }
    }

    pub(crate) fn die_in(&self, calls: u64) {
        self.lock().dies_in = Some(calls);
    }

    pub(crate) fn fail_a_sync(&self) {
        self.lock().sick = true;
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Nothing more goes wrong.
    pub(crate) fn heal(&self) {
        let platter = &mut *self.lock();
        (platter.dies_in, platter.sick, platter.full) = (None, false, false);
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// The power is gone, and comes back: old doors lead nowhere.
    pub(crate) fn crash(&self, die: &mut Die) {
        let platter = &mut *self.lock();
        platter.life += 1;
        (platter.dead, platter.dies_in) = (false, None);
        (platter.sick, platter.full) = (false, false);
        for change in std::mem::take(&mut platter.pending) {
            match change {
                _ if die.chance(3) => {}
                Change::Length(length) => platter.durable.resize(length, 0),
                Change::Write(at, bytes) => {
                    // Sectors of one write reach the disk or not, each by itself.
                    let torn = die.chance(3);
                    for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                        if !torn || die.chance(2) {
                            put(&mut platter.durable, at + number * SECTOR, sector);
                        }
                    }
                }
            }
        }
        platter.now = platter.durable.clone();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl Door {
    fn open(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mut platter = self.disk.lock();
        if platter.life != self.life || platter.dead {
            return Err(Error::from(ErrorKind::NotConnected));
        }
        if let Some(calls) = &mut platter.dies_in {
            if *calls == 0 {
                platter.dead = true;
                return Err(Error::from(ErrorKind::NotConnected));
            }
            *calls -= 1;
        }
        Ok(platter)
    }
}

impl StorageBackend for Door {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.open()?.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let (platter, at) = (self.open()?, usize::try_from(offset).expect("small"));
        let bytes = platter.now.get(at..at + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        let (mut platter, length) = (self.open()?, usize::try_from(len).expect("small"));
        if platter.full && platter.now.len() < length {
            return Err(Error::from(ErrorKind::StorageFull));
        }
        platter.now.resize(length, 0);
        platter.pending.push(Change::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), Error> {
        let platter = &mut *self.open()?;
        if std::mem::take(&mut platter.sick) {
            return Err(Error::from(ErrorKind::Other));
        }
        platter.syncs += 1;
        for change in platter.pending.drain(..) {
            match change {
                Change::Length(length) => platter.durable.resize(length, 0),
                Change::Write(at, bytes) => put(&mut platter.durable, at, &bytes),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let (mut platter, at) = (self.open()?, usize::try_from(offset).expect("small"));
        put(&mut platter.now, at, data);
        platter.pending.push(Change::Write(at, data.to_vec()));
        Ok(())
    }
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

const SECTOR: usize = 512;

/// The control plane's database on it.
pub(crate) fn database(platter: &Platter) -> Result<Database, String> {
    let opened = Database::builder().set_cache_size(1 << 20).create_with_backend(platter.door());
    opened.map_err(|why| why.to_string())
}
