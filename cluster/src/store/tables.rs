//! The tables of a store, and what is read of them when a life begins.

use super::{Disk, Identity, Place, Store, StoreError};
use crate::codec::{self, CodecError};
use crate::plant::{Plant, Plants};
use crate::state::State;
use raft::eraftpb::Entry;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::VecDeque;

pub(super) struct Tables<'t> {
    pub(super) log: redb::Table<'t, u64, &'static [u8]>,
    pub(super) meta: redb::Table<'t, &'static str, &'static [u8]>,
    pub(super) state: redb::Table<'t, &'static [u8], &'static [u8]>,
}

impl Tables<'_> {
    pub(super) fn put(&mut self, disk: &Disk, plants: Plants) -> Result<(), redb::StorageError> {
        let mut hard = disk.hard.clone();
        if plants.has(Plant::ForgetVote) {
            hard.vote = 0;
        }
        self.meta.insert("hard", codec::hard_bytes(&hard).as_slice())?;
        if !plants.has(Plant::ForgetConf) {
            self.meta.insert("conf", codec::conf_bytes(&disk.conf).as_slice())?;
        }
        self.meta.insert("applied", disk.applied.bytes().as_slice())?;
        self.meta.insert("cut", disk.cut.bytes().as_slice())?;
        Ok(())
    }
}

pub(super) fn make(
    database: &Database,
    identity: Identity,
    disk: &Disk,
    state: &mut State,
) -> Result<(), StoreError> {
    let mut taken = false;
    write(database, Durability::Immediate, |tables| {
        taken = tables.meta.get("identity")?.is_some();
        if taken {
            return Ok(());
        }
        tables.meta.insert("identity", identity.bytes().as_slice())?;
        tables.meta.insert("life", 0_u64.to_le_bytes().as_slice())?;
        for (key, value) in state.take_changes() {
            tables.state.insert(key.as_slice(), value.unwrap_or_default().as_slice())?;
        }
        tables.put(disk, Plants::default())
    })
    .map_err(|why| fail("make", &why))?;
    if taken { Err(StoreError::Taken) } else { Ok(()) }
}

pub(super) fn write(
    database: &Database,
    durability: Durability,
    change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::StorageError>,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(durability)?;
    let mut tables = Tables {
        log: transaction.open_table(LOG)?,
        meta: transaction.open_table(META)?,
        state: transaction.open_table(STATE)?,
    };
    change(&mut tables)?;
    drop(tables);
    transaction.commit()?;
    Ok(())
}

/// All there is, as the life that begins now has it.
pub(super) fn read(database: Database) -> Result<Store, StoreError> {
    let Rows { meta, log, state } = read_rows(&database).map_err(|why| match why {
        redb::Error::TableDoesNotExist(_) => StoreError::Empty,
        why => fail("read", &why),
    })?;
    let value = |name: &str| meta.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
    let identity = Identity::of(value("identity").ok_or(StoreError::Empty)?);
    let identity = identity.ok_or(StoreError::Damaged("identity"))?;
    let life = value("life").and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let place = |name| value(name).and_then(Place::of).ok_or(StoreError::Damaged("a place"));
    let disk = Disk {
        hard: codec::hard(value("hard").unwrap_or_default())?,
        conf: codec::conf(value("conf").unwrap_or_default())?,
        applied: place("applied")?,
        cut: place("cut")?,
    };
    let log: Result<VecDeque<Entry>, CodecError> = log.iter().map(|b| codec::entry(b)).collect();
    let mut kept = State::default();
    state.into_iter().for_each(|(key, value)| kept.put(key, value));
    kept.take_changes();
    let life = life.ok_or(StoreError::Damaged("life"))? + 1;
    Ok(Store { database, identity, life, disk, log: log?, state: kept })
}

#[derive(Default)]
struct Rows {
    meta: Vec<(String, Vec<u8>)>,
    log: Vec<Vec<u8>>,
    state: Vec<(Vec<u8>, Vec<u8>)>,
}

fn read_rows(database: &Database) -> Result<Rows, redb::Error> {
    let transaction = database.begin_read()?;
    let Rows { mut meta, mut log, mut state } = Rows::default();
    for entry in transaction.open_table(META)?.iter()? {
        let (key, value) = entry?;
        meta.push((key.value().to_owned(), value.value().to_vec()));
    }
    for entry in transaction.open_table(LOG)?.iter()? {
        log.push(entry?.1.value().to_vec());
    }
    for entry in transaction.open_table(STATE)?.iter()? {
        let (key, value) = entry?;
        state.push((key.value().to_vec(), value.value().to_vec()));
    }
    Ok(Rows { meta, log, state })
}

pub(super) fn fail(doing: &'static str, why: &redb::Error) -> StoreError {
    StoreError::Database { doing, why: why.to_string() }
}

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const STATE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");
