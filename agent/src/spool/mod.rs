//! What the ring cannot hold: frames that wait for a broker on the disk, or in a little memory where
//! there is none.
//!
//! ```text
//!                                put ──▶ memory ──flush──▶ disk (files of a journal)
//!  next ──▶ front: what full cost │ disk: oldest first │ gap: what full cost │ memory: newest
//!  release(mark) as it is acknowledged; rewind() when the connection is another
//!
//!  DIR/spool/…log   records: 1 frame │ 2 schema id, its message │ 3 mark: all before is acknowledged
//! ```
//!
//! The frames of each boot are in order, boot behind boot, and all are older than what is in the ring.
//! A file has the schemas of its rows, each twice, so that one broken record costs no others. An empty
//! spool is no directory. It is written by the network's thread, and only while nothing is replayed.
//!
//! **It always starts.** What is broken is named and passed over; a file that cannot be read is put
//! aside; without a disk that takes it, frames stay in memory and the disk is tried again now and then.
//!
//! **Full.** On the disk the oldest rows are thinned, to one in 10 s and then one in a minute; then the
//! oldest file goes. In memory the oldest frame goes. Each hole is told by an entry of the loss ledger
//! that stands at its last number, sent where the frames would have been, and counted
//! ([`Numbers`]).

mod disk;
mod lost;
mod mend;
mod numbers;
mod record;

pub use numbers::{Numbers, Snapshot, SpoolSection};

use crate::ring::Reader;
use crate::schemas::Table;
use bytes::Bytes;
use disk::Disk;
use lost::{Losses, Lost};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strobe_journal::Position;
use strobe_wire::frame::{self, FrameKind, Header};
use strobe_wire::ids::{BootId, HostId, SchemaId};
use strobe_wire::message::{Message, encode};
use strobe_wire::schema::Schema;

/// Where a spool is and how large it may get.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpoolConfig {
    /// Its directory.
    pub dir: PathBuf,
    /// Bytes on the disk.
    pub disk_bytes_max: u64,
    /// Bytes in memory while the disk takes nothing.
    pub memory_bytes_max: usize,
}

/// The spool.
#[derive(Debug)]
pub struct Spool {
    config: SpoolConfig,
    host: HostId,
    boot: BootId,
    front: Losses,
    disk: Option<Disk>,
    gap: Losses,
    memory: VecDeque<Held>,
    memory_bytes: usize,
    /// Those of the rows in `memory`, as they are sent.
    schemas: BTreeMap<SchemaId, Bytes>,
    /// How far [`Self::next`] has come in each.
    read: Read,
    /// Frames of this boot that wait here.
    mine: Option<(u64, u64)>,
    /// When the disk is tried again.
    retry: Option<Instant>,
    complaint: Option<String>,
    numbers: Arc<Numbers>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Read {
    front: usize,
    gap: usize,
    memory: usize,
}

/// A frame in memory.
#[derive(Clone, Debug)]
struct Held {
    header: Header,
    bytes: Bytes,
}

/// The next of a spool to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Spooled {
    /// A schema, before the first row that uses it.
    Schema(SchemaId, Bytes),
    /// A frame.
    Frame {
        /// Its schema, if it has one.
        schema: Option<SchemaId>,
        /// Itself.
        bytes: Bytes,
        /// To release it.
        mark: Mark,
    },
}

/// A frame that [`Spool::next`] gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Its boot.
    pub boot: BootId,
    /// Its number.
    pub seq: u64,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Front,
    Disk(Position),
    Gap,
    Memory,
}

impl Spool {
    /// From now on it may take so much of the disk; what is over goes with the next that comes.
    pub fn resize(&mut self, disk_bytes_max: u64) {
        self.config.disk_bytes_max = disk_bytes_max;
        if let Some(disk) = &mut self.disk {
            disk.resize(disk_bytes_max);
        }
    }

    /// Takes up what an earlier life left, if it left anything.
    #[must_use]
    pub fn open(
        config: SpoolConfig,
        (host, boot): (HostId, BootId),
        numbers: Arc<Numbers>,
    ) -> Self {
        let mut spool = Self {
            config,
            host,
            boot,
            front: Losses::default(),
            disk: None,
            gap: Losses::default(),
            memory: VecDeque::new(),
            memory_bytes: 0,
            schemas: BTreeMap::new(),
            read: Read::default(),
            mine: None,
            retry: None,
            complaint: None,
            numbers,
        };
        // A directory that cannot even be asked for may hold frames.
        if spool.config.dir.try_exists().unwrap_or(true) {
            match Disk::open(&spool.config) {
                Ok(disk) => spool.disk = Some(disk),
                Err(why) => log::error!("the spool is not read: {why}"),
            }
        }
        spool.count();
        spool
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.disk.is_none()
            && self.memory.is_empty()
            && self.front.is_empty()
            && self.gap.is_empty()
    }

    /// The first and the last frame of this boot that wait here.
    #[must_use]
    pub fn mine(&self) -> Option<(u64, u64)> {
        self.mine
    }

    /// What is to be logged, once.
    pub fn complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }

    /// Takes the oldest quarter of a ring that nobody reads, if half of it is full.
    pub fn spill(&mut self, now: Instant, ring: &mut Reader, table: &Table) {
        let slots = ring.slots();
        if slots <= ring.occupied() * 2 {
            self.keep(ring, table, slots / 4);
            self.flush(now);
        }
    }

    /// Takes so many frames of the ring, the oldest; nobody may be reading it.
    pub fn keep(&mut self, ring: &mut Reader, table: &Table, most: u64) {
        ring.rewind();
        let mut last = None;
        for _ in 0..most {
            let Some(slot) = ring.next() else { break };
            self.put(&slot, table);
            last = Some(slot.ticket());
        }
        if let Some(ticket) = last {
            ring.release(ticket);
        }
        ring.rewind();
    }

    /// Takes a frame of the ring, in order; [`Self::flush`] brings it to the disk.
    pub fn put(&mut self, frame: &[u8], table: &Table) {
        let Ok(header) = frame::open(frame).map(|frame| frame.header) else {
            // The ring's own frames open; what does not could not have been sent either.
            return;
        };
        if let Some(id) = schema_of(&header)
            && !self.schemas.contains_key(&id)
            && let Some(schema) = table.schema(id)
        {
            let message = encode(&Message::Schema(Schema::clone(&schema)));
            if SCHEMAS_MAX <= self.schemas.len() {
                let memory = &self.memory;
                let is_used = |id| memory.iter().any(|held| schema_of(&held.header) == Some(id));
                self.schemas.retain(|id, _| is_used(*id));
            }
            self.schemas.insert(id, message);
        }
        if header.boot == self.boot {
            let first = self.mine.map_or(header.seq.0, |(first, _)| first.min(header.seq.0));
            self.mine = Some((first, header.seq.0));
        }
        self.memory_bytes += frame.len();
        self.memory.push_back(Held { header, bytes: Bytes::copy_from_slice(frame) });
        self.numbers.kept(1);
    }

    /// Brings what is in memory to the disk, or keeps as much of it as may be kept.
    pub fn flush(&mut self, now: Instant) {
        self.rewind();
        if self.retry.is_none_or(|at| at <= now)
            && (!self.memory.is_empty() || !self.gap.is_empty())
        {
            match self.write() {
                Ok(()) => self.retry = None,
                Err(why) => {
                    if self.retry.replace(now + RETRY).is_none() {
                        self.complaint = Some(format!("the spool stays in memory: {why}"));
                    }
                }
            }
        }
        while self.config.memory_bytes_max < self.memory_bytes
            && let Some(oldest) = self.memory.pop_front()
        {
            self.memory_bytes = self.memory_bytes.saturating_sub(oldest.bytes.len());
            self.numbers.lost(1);
            self.gap.add(Lost::of(&oldest.header, "spool_full"));
        }
        self.count();
    }

    /// As [`Self::flush`] at the end of the agent: whatever was tried before, and how far it was
    /// acknowledged with it.
    pub fn close(&mut self, now: Instant) {
        self.retry = None;
        self.flush(now);
        if let Some(disk) = &mut self.disk
            && let Err(why) = disk.mark()
        {
            log::warn!("the spool does not know what of it was acknowledged: {why}");
        }
        if !self.memory.is_empty() {
            log::error!("{} frames end with the agent: no disk took them", self.memory.len());
        }
    }

    /// The next to be sent, which stays until it is released.
    #[expect(clippy::should_implement_trait, reason = "what is given may be asked for again")]
    pub fn next(&mut self) -> Option<Spooled> {
        if let Some(lost) = self.front.at(self.read.front) {
            self.read.front += 1;
            return Some(lost.spooled(self.host, Place::Front));
        }
        if let Some(disk) = &mut self.disk {
            if let Some(found) = disk.next(self.host) {
                return Some(found);
            }
            if disk.is_done() {
                self.leave_disk();
            }
        }
        if let Some(lost) = self.gap.at(self.read.gap) {
            self.read.gap += 1;
            return Some(lost.spooled(self.host, Place::Gap));
        }
        let held = self.memory.get(self.read.memory)?;
        self.read.memory += 1;
        let (boot, seq) = (held.header.boot, held.header.seq.0);
        let mark = Mark { boot, seq, place: Place::Memory };
        Some(Spooled::Frame { schema: schema_of(&held.header), bytes: held.bytes.clone(), mark })
    }

    /// The message of a schema that did not come before a row that needs it: of a row in memory, or one
    /// whose first copy on the disk is broken.
    #[must_use]
    pub fn schema(&mut self, id: SchemaId) -> Option<Bytes> {
        let here = self.schemas.get(&id).cloned();
        here.or_else(|| self.disk.as_mut()?.schema(id))
    }

    /// The frame is acknowledged; they are released in the order they were given.
    pub fn release(&mut self, mark: Mark) {
        match mark.place {
            Place::Front => self.read.front -= usize::from(self.front.pop()),
            Place::Gap => self.read.gap -= usize::from(self.gap.pop()),
            Place::Memory => {
                if let Some(held) = self.memory.pop_front() {
                    self.memory_bytes = self.memory_bytes.saturating_sub(held.bytes.len());
                    self.read.memory = self.read.memory.saturating_sub(1);
                }
                if self.memory.is_empty() {
                    self.forget_memory();
                }
            }
            Place::Disk(position) => {
                if let Some(disk) = &mut self.disk {
                    disk.release(position);
                    if disk.is_done() {
                        self.leave_disk();
                    }
                }
            }
        }
        if mark.boot == self.boot {
            let rest = self.mine.filter(|(_, last)| mark.seq < *last);
            self.mine = rest.map(|(_, last)| (mark.seq + 1, last));
        }
        self.numbers.sent(1);
        self.count();
    }

    /// From the first that was not released.
    pub fn rewind(&mut self) {
        self.read = Read::default();
        if let Some(disk) = &mut self.disk {
            disk.rewind();
        }
    }

    /// The disk has nothing more.
    fn leave_disk(&mut self) {
        if let Some(disk) = self.disk.take()
            && let Err(why) = disk.remove()
        {
            self.complaint = Some(format!("the empty spool is not removed: {why}"));
        }
        self.count();
    }

    fn forget_memory(&mut self) {
        self.memory = VecDeque::new();
        self.schemas = BTreeMap::new();
        self.memory_bytes = 0;
    }

    /// Memory to the disk, a batch a commit.
    fn write(&mut self) -> Result<(), String> {
        let disk = match &mut self.disk {
            Some(disk) => disk,
            None => self.disk.insert(Disk::open(&self.config)?),
        };
        while let Some(lost) = self.gap.at(0) {
            disk.append(&lost.seal(self.host), None, &self.schemas)?;
            disk.commit(&self.schemas)?;
            self.gap.pop();
        }
        while !self.memory.is_empty() {
            let batch = self.memory.len().min(BATCH);
            for held in self.memory.range(..batch) {
                disk.append(&held.bytes, schema_of(&held.header), &self.schemas)?;
            }
            disk.commit(&self.schemas)?;
            for held in self.memory.drain(..batch) {
                self.memory_bytes = self.memory_bytes.saturating_sub(held.bytes.len());
            }
        }
        let room = disk.make_room(&mut self.front, &self.numbers);
        self.forget_memory();
        room
    }

    fn count(&self) {
        let disk_bytes = self.disk.as_ref().map_or(0, Disk::bytes);
        self.numbers.hold(disk_bytes, self.memory_bytes as u64);
    }
}

/// What is sent in the place of a row whose schema nobody has any more.
#[must_use]
pub fn no_schema(of: &Header) -> Bytes {
    Lost::of(of, "no_schema").seal(of.host)
}

fn schema_of(header: &Header) -> Option<SchemaId> {
    matches!(header.kind, FrameKind::Row | FrameKind::Burst).then_some(header.schema)
}

/// Schemas in memory, before those that no row in memory needs are let go.
const SCHEMAS_MAX: usize = 512;
/// Frames of a commit: 256 KiB at most, and half of it as a rule.
const BATCH: usize = 64;
/// How long a disk that took nothing is left alone.
const RETRY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
