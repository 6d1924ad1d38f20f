//! What a node must not forget, in one redb file.
//!
//! ```text
//!   log      index -> entry           meta   "hard", "conf", "applied", "cut", "identity", "life"
//!   state    key -> record            applied and cut are (index, term); the log begins behind cut
//! ```
//!
//! What a Ready brings is one transaction: hard state, entries, what was applied of earlier entries,
//! the configuration, the cut. It is synced if raft says that somebody will rely on it; otherwise it
//! becomes durable with the next one that is, and after a crash its entries are applied again, to
//! the state that they were applied to before.
//!
//! All of it is in memory too: the log is cut [`crate::Config::log_keep`] behind what is applied, and
//! what is not applied yet is bounded by raft.

mod tables;

use crate::codec::{self, CodecError};
use crate::kinds::{members, shards};
use crate::plant::Plant;
use crate::state::{ImageError, State};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, StorageError};
use redb::{Database, Durability};
use std::collections::VecDeque;
use tables::{Tables, fail, make, read, write};

/// The store of one node.
#[derive(Debug)]
pub struct Store {
    database: Database,
    identity: Identity,
    life: u64,
    pub(crate) disk: Disk,
    /// Entries behind the cut, without a hole.
    log: VecDeque<Entry>,
    state: State,
}

/// What is on disk besides the log and the state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    pub(crate) conf: ConfState,
    pub(crate) applied: Place,
    cut: Place,
}

/// An entry's place in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct Place {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

/// Whose store it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Which cluster.
    pub cluster: u128,
    /// Which of its brokers.
    pub broker: u64,
    /// This store, made up when it was made: a broker with another disk is another broker.
    pub disk: u64,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused, for good: the node must not go on.
    #[error("cannot {doing} the cluster's store: {why}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// redb's words.
        why: String,
    },
    /// It was never made.
    #[error("the cluster's store is empty: `init` or `join` a cluster first")]
    Empty,
    /// There is a cluster in it already.
    #[error("the cluster's store belongs to a cluster already")]
    Taken,
    /// Its parts do not fit together.
    #[error("the cluster's store is damaged ({0}): remove this broker and add it anew")]
    Damaged(&'static str),
    /// A part of it cannot be read.
    #[error("the cluster's store is damaged: {0}")]
    Codec(#[from] CodecError),
    /// The state in it cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// What one Ready brings.
#[derive(Default, Debug)]
pub(crate) struct Batch {
    pub(crate) hard: Option<HardState>,
    pub(crate) entries: Vec<Entry>,
    /// In place of all there is: where it goes up to, and what is agreed there.
    pub(crate) snapshot: Option<(Place, State)>,
    pub(crate) conf: Option<ConfState>,
    pub(crate) applied: Option<Place>,
    /// The log up to here is no longer needed.
    pub(crate) cut: Option<u64>,
    pub(crate) sync: bool,
}

impl Store {
    /// Makes the store of a new cluster's first broker.
    ///
    /// # Errors
    /// There is one already, or it cannot be written.
    pub fn init(
        database: &Database,
        identity: Identity,
        address: &str,
        alone: &State,
    ) -> Result<(), StoreError> {
        let place = Place { index: 1, term: 1 };
        let mut hard = HardState::default();
        (hard.term, hard.commit) = (1, 1);
        let conf = ConfState::from((vec![identity.broker], vec![]));
        let mut state = members::first_state(identity.broker, address, identity.disk);
        state.take_along(alone);
        let disk = Disk { hard, conf, applied: place, cut: place };
        make(database, identity, &disk, &mut state)
    }

    /// Makes the store of a new cluster's first broker, which knows what another cluster had agreed on
    /// (`State::image`): its members are gone and its shards are this broker's.
    ///
    /// # Errors
    /// There is a store already, it cannot be written, or it is no image.
    pub fn restore(
        database: &Database,
        identity: Identity,
        address: &str,
        image: &[u8],
    ) -> Result<(), StoreError> {
        let place = Place { index: 1, term: 1 };
        let mut hard = HardState::default();
        (hard.term, hard.commit) = (1, 1);
        let conf = ConfState::from((vec![identity.broker], vec![]));
        let mut state = State::of_image(image)?;
        members::only(&mut state, identity.broker, address, identity.disk);
        shards::take_all(&mut state, identity.broker);
        state.all_changed();
        make(database, identity, &Disk { hard, conf, applied: place, cut: place }, &mut state)
    }

    /// Makes the store of a broker that was added to a cluster: empty, to be filled by the leader.
    ///
    /// # Errors
    /// There is one already, or it cannot be written.
    pub fn join(database: &Database, identity: Identity) -> Result<(), StoreError> {
        make(database, identity, &Disk::default(), &mut State::default())
    }

    /// Opens what is there, and begins another life of its broker.
    ///
    /// # Errors
    /// There is nothing, or it is damaged, or it cannot be written.
    pub fn open(database: Database) -> Result<Self, StoreError> {
        let store = read(database)?;
        store.check()?;
        let life = store.life.to_le_bytes();
        store
            .write(Durability::Immediate, |tables| {
                tables.meta.insert("life", life.as_slice()).map(drop)
            })
            .map_err(|why| fail("open", &why))?;
        Ok(store)
    }

    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How often it was opened.
    #[must_use]
    pub fn life(&self) -> u64 {
        self.life
    }

    /// The state at the applied index.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    pub(crate) fn cut(&self) -> u64 {
        self.disk.cut.index
    }

    pub(crate) fn last(&self) -> Place {
        self.log.back().map_or(self.disk.cut, place_of)
    }

    /// The term of the entry at `index`, while it is known.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.disk.cut.index {
            return Some(self.disk.cut.term);
        }
        Some(self.log.get(self.position(index)?)?.term)
    }

    /// What a snapshot of the applied state says of itself.
    pub(crate) fn snapshot_of_applied(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = self.disk.applied.index;
        snapshot.mut_metadata().term = self.disk.applied.term;
        snapshot.mut_metadata().set_conf_state(self.disk.conf.clone());
        snapshot
    }

    /// Writes a batch in one transaction, and takes it over. After an error nobody knows what is on disk:
    /// the node must end.
    pub(crate) fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        let plants = self.state.plants;
        let Batch { hard, entries, snapshot, conf, applied, cut, sync } = batch;
        let mut then = self.disk.clone();
        if let Some(hard) = hard {
            then.hard = hard;
        }
        let whole = snapshot.is_some();
        if let Some((place, mut state)) = snapshot {
            (then.applied, then.cut) = (place, place);
            state.plants = plants;
            if !plants.has(Plant::SnapshotWithoutState) {
                self.state = state;
            }
            self.state.all_changed();
            self.log.clear();
        }
        if let Some(conf) = conf {
            then.conf = conf;
        }
        if let Some(applied) = applied {
            then.applied = applied;
        }
        let gone = self.replaced(&entries);
        let truncated = gone.map(|from| self.truncate(from));
        let kept_from = cut.filter(|&cut| then.cut.index < cut).and_then(|cut| {
            let term = self.term_at(cut).or_else(|| {
                entries.iter().find(|entry| entry.index == cut).map(|entry| entry.term)
            })?;
            then.cut = Place { index: cut, term };
            Some(cut + 1)
        });
        let changes = self.state.take_changes();
        let durability = if sync && !plants.has(Plant::NoSync) {
            Durability::Immediate
        } else {
            Durability::None
        };
        let disk = then.clone();
        self.write(durability, |tables| {
            if whole {
                tables.log.retain(|_, _| false)?;
                tables.state.retain(|_, _| false)?;
            }
            if let Some(Some(from)) = truncated {
                tables.log.retain_in(from.., |_, _| false)?;
            }
            for entry in &entries {
                tables.log.insert(entry.index, codec::entry_bytes(entry).as_slice())?;
            }
            if let Some(from) = kept_from {
                tables.log.retain_in(..from, |_, _| false)?;
            }
            for (key, value) in &changes {
                match value {
                    _ if plants.has(Plant::ApplyApart) => {}
                    Some(value) => drop(tables.state.insert(key.as_slice(), value.as_slice())?),
                    None => drop(tables.state.remove(key.as_slice())?),
                }
            }
            tables.put(&disk, plants)
        })
        .map_err(|why| fail("write", &why))?;
        self.log.extend(entries);
        while self.log.front().is_some_and(|entry| entry.index <= then.cut.index) {
            self.log.pop_front();
        }
        self.disk = then;
        Ok(())
    }

    /// The first index that new entries take the place of.
    fn replaced(&self, entries: &[Entry]) -> Option<u64> {
        let first = entries.first()?.index;
        (first <= self.last().index).then_some(first)
    }

    fn truncate(&mut self, from: u64) -> Option<u64> {
        let position = self.position(from)?;
        self.log.truncate(position);
        Some(from)
    }

    fn position(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.disk.cut.index + 1)?).ok()
    }

    fn check(&self) -> Result<(), StoreError> {
        let Disk { hard, applied, cut, .. } = &self.disk;
        let mut next = cut.index;
        for entry in &self.log {
            next += 1;
            if entry.index != next {
                return Err(StoreError::Damaged("the log has a hole"));
            }
        }
        if applied.index < cut.index || next < applied.index || next < hard.commit {
            return Err(StoreError::Damaged("the log is shorter than what was agreed"));
        }
        Ok(())
    }

    fn write(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::StorageError>,
    ) -> Result<(), redb::Error> {
        write(&self.database, durability, change)
    }
}

impl raft::Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.disk.hard.clone(), self.disk.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let first = self.position(low).ok_or(raft::Error::Store(StorageError::Compacted))?;
        let count = usize::try_from(high.saturating_sub(low)).unwrap_or(0);
        let mut entries: Vec<Entry> = self.log.iter().skip(first).take(count).cloned().collect();
        if entries.len() < count {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.disk.cut.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.term_at(index).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.disk.cut.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().index)
    }

    /// Says up to where; the state itself is read when the message is on its way.
    fn snapshot(&self, request_index: u64, _: u64) -> raft::Result<Snapshot> {
        if self.disk.applied.index < request_index || self.disk.applied.index == 0 {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot_of_applied())
    }
}

impl Place {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.index.to_le_bytes());
        bytes[8..].copy_from_slice(&self.term.to_le_bytes());
        bytes
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let (index, term) = bytes.split_first_chunk::<8>()?;
        let term = u64::from_le_bytes(term.try_into().ok()?);
        Some(Self { index: u64::from_le_bytes(*index), term })
    }
}

impl Identity {
    fn bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.cluster.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.broker.to_le_bytes());
        bytes[24..].copy_from_slice(&self.disk.to_le_bytes());
        bytes
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let (cluster, rest) = bytes.split_first_chunk::<16>()?;
        let Place { index: broker, term: disk } = Place::of(rest)?;
        Some(Self { cluster: u128::from_le_bytes(*cluster), broker, disk })
    }
}

pub(crate) fn place_of(entry: &Entry) -> Place {
    Place { index: entry.index, term: entry.term }
}
