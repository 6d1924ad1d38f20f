//! The spool's files: opened whatever is in them, appended to, read from their beginning, made fewer.

use super::lost::{Losses, Lost};
use super::numbers::Numbers;
use super::record::{BOUNDS, FRAME, MARK, Record, SCHEMA};
use super::{Mark, Place, SpoolConfig, Spooled, mend, schema_of};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::path::PathBuf;
use strobe_journal::{Journal, Position, Then};
use strobe_wire::frame::{FrameKind, Header};
use strobe_wire::ids::{HostId, SchemaId};

/// An open journal and how far it was read.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    journal: Journal,
    bytes_max: u64,
    file_bytes_max: u64,
    /// Everything before it is acknowledged.
    acknowledged: Position,
    /// The last of these that stands in a record.
    marked: Position,
    read: Position,
    /// Read from the disk and not given yet.
    ahead: VecDeque<(Position, Ahead)>,
    /// Behind what is read there is nothing.
    is_read: bool,
    /// Given and not released.
    given: usize,
    /// Schemas that the active file has.
    schemas: HashSet<SchemaId>,
    /// Those of them that are new with the next commit.
    fresh: Vec<SchemaId>,
    /// Schemas that were looked for and are not there.
    missing: HashSet<SchemaId>,
    /// How coarse the rows of closed files are; as they came, if it is not known.
    coarse: BTreeMap<u64, usize>,
}

#[derive(Debug)]
enum Ahead {
    Schema(SchemaId, Bytes),
    Frame(Header, Bytes),
}

impl Disk {
    /// Opens it, whatever is on it; what is broken is named in the log.
    pub(super) fn open(config: &SpoolConfig) -> Result<Self, String> {
        for _ in 0..MENDS_MAX {
            let (mut frames, mut mark) = (0_u64, Position::default());
            let opened =
                Journal::open_within(&config.dir, BOUNDS, &mut |_, record| match Record::parse(
                    record,
                ) {
                    Record::Frame(..) => frames += 1,
                    Record::Mark(found) => mark = mark.max(found),
                    Record::Schema(..) | Record::Other => {}
                });
            let (journal, damage) = match opened {
                Ok(opened) => opened,
                Err(why) => {
                    mend::mend(&config.dir, &why)?;
                    continue;
                }
            };
            for damage in damage.iter().take(DAMAGE_TOLD_MAX) {
                let (path, offset) = (damage.path.display(), damage.offset);
                log::warn!("{path}, at byte {offset}: {}; the rest is kept", damage.why);
            }
            if DAMAGE_TOLD_MAX < damage.len() {
                log::warn!("{} broken places in the spool in all", damage.len());
            }
            if 0 < frames {
                log::info!("the spool has {frames} frames of before");
            }
            return Ok(Self::new(config, journal, mark));
        }
        Err(format!("{} has too much that is broken; remove it", config.dir.display()))
    }

    fn new(config: &SpoolConfig, journal: Journal, mark: Position) -> Self {
        let last = journal.closed().last().map_or(0, |(number, _)| *number);
        let acknowledged = if mark.file <= last { mark } else { Position::default() };
        let bytes_max = config.disk_bytes_max;
        Self {
            dir: config.dir.clone(),
            journal,
            bytes_max,
            file_bytes_max: (bytes_max / FILES).clamp(FILE_BYTES_MIN, FILE_BYTES_MAX),
            acknowledged,
            marked: acknowledged,
            read: acknowledged,
            ahead: VecDeque::new(),
            is_read: false,
            given: 0,
            schemas: HashSet::new(),
            fresh: Vec::new(),
            missing: HashSet::new(),
            coarse: BTreeMap::new(),
        }
    }

    pub(super) fn resize(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
        self.file_bytes_max = (bytes_max / FILES).clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.journal.bytes()
    }

    /// The next frame or schema.
    pub(super) fn next(&mut self, host: HostId) -> Option<Spooled> {
        loop {
            let Some((position, ahead)) = self.ahead.pop_front() else {
                if self.is_read {
                    return None;
                }
                self.read_ahead();
                continue;
            };
            match ahead {
                Ahead::Schema(id, message) => return Some(Spooled::Schema(id, message)),
                // The disk was another host's before: that one has it still.
                Ahead::Frame(header, _) if header.host != host => {}
                Ahead::Frame(header, bytes) => {
                    self.given += 1;
                    let (boot, seq) = (header.boot, header.seq.0);
                    let mark = Mark { boot, seq, place: Place::Disk(position) };
                    return Some(Spooled::Frame { schema: schema_of(&header), bytes, mark });
                }
            }
        }
    }

    /// A schema that is somewhere on the disk; it is looked for once.
    pub(super) fn schema(&mut self, id: SchemaId) -> Option<Bytes> {
        if MISSING_MAX <= self.missing.len() || self.missing.contains(&id) {
            return None;
        }
        let mut found = None;
        let read = self.journal.read(Position::default(), &mut |_, record| {
            if let Record::Schema(known, message) = Record::parse(record)
                && known == id
            {
                found = Some(Bytes::copy_from_slice(message));
                return Then::Stop;
            }
            Then::More
        });
        if found.is_none() {
            log::warn!("nobody has the schema {id} any more, and rows of it are lost: {read:?}");
            self.missing.insert(id);
        }
        found
    }

    /// Whether everything was given and released.
    pub(super) fn is_done(&self) -> bool {
        self.is_read && self.ahead.is_empty() && self.given == 0
    }

    pub(super) fn release(&mut self, through: Position) {
        self.acknowledged = self.acknowledged.max(through);
        self.given = self.given.saturating_sub(1);
        while let Some((number, _)) = self.journal.closed().first().copied()
            && number < through.file
        {
            if let Err(why) = self.journal.remove(number) {
                log::warn!("a file of the spool that was sent stays: {why}");
                break;
            }
        }
    }

    pub(super) fn rewind(&mut self) {
        self.ahead.clear();
        (self.read, self.is_read, self.given) = (self.acknowledged, false, 0);
    }

    /// Appends a frame to the next commit, and before it its schema if the file has it not yet.
    pub(super) fn append(
        &mut self,
        frame: &[u8],
        schema: Option<SchemaId>,
        schemas: &BTreeMap<SchemaId, Bytes>,
    ) -> Result<(), String> {
        if let Some(id) = schema
            && !self.schemas.contains(&id)
            && let Some(message) = schemas.get(&id)
            && self.append_schema(id, message)
        {
            self.schemas.insert(id);
            self.fresh.push(id);
        }
        self.journal.append(&[&[FRAME], frame]).map_err(|why| why.to_string())
    }

    /// Whether it is not too large.
    fn append_schema(&mut self, id: SchemaId, message: &[u8]) -> bool {
        let id = id.0.to_le_bytes();
        message.len() + id.len() < BOUNDS.record_bytes_max
            && self.journal.append(&[&[SCHEMA], &id, message]).is_ok()
    }

    /// Makes what was appended durable, or forgets it.
    pub(super) fn commit(&mut self, schemas: &BTreeMap<SchemaId, Bytes>) -> Result<(), String> {
        // Many rows need each: it is there twice, with rows in between.
        for id in self.fresh.clone() {
            if let Some(message) = schemas.get(&id) {
                self.append_schema(id, message);
            }
        }
        let fresh = std::mem::take(&mut self.fresh);
        if let Err(why) = self.journal.commit() {
            self.journal.discard();
            self.schemas.retain(|id| !fresh.contains(id));
            return Err(why.to_string());
        }
        if self.file_bytes_max <= self.journal.active_bytes() {
            match self.journal.rotate() {
                Ok(_) => self.schemas.clear(),
                // What is written is safe; the file grows until another can be made.
                Err(why) => log::debug!("the spool goes on in its file: {why}"),
            }
        }
        Ok(())
    }

    /// Notes on the disk what is acknowledged, so that the next life does not send it again.
    pub(super) fn mark(&mut self) -> Result<(), String> {
        let Position { file, offset } = self.acknowledged;
        if self.marked == self.acknowledged {
            return Ok(());
        }
        let record: [&[u8]; 3] = [&[MARK], &file.to_le_bytes(), &offset.to_le_bytes()];
        self.journal.append(&record).map_err(|why| why.to_string())?;
        if let Err(why) = self.journal.commit() {
            self.journal.discard();
            return Err(why.to_string());
        }
        self.marked = self.acknowledged;
        Ok(())
    }

    /// Thins and drops the oldest until the rest fits.
    pub(super) fn make_room(&mut self, lost: &mut Losses, numbers: &Numbers) -> Result<(), String> {
        while self.bytes_max < self.journal.bytes() {
            let closed = self.journal.closed();
            let Some(oldest) = closed.first().map(|(number, _)| *number) else { return Ok(()) };
            let count = closed.len();
            let mut ranked = closed.iter().map(|(number, _)| *number).enumerate();
            let wanted = |rank| match (rank * 4 < count, rank * 2 < count) {
                (true, _) => 2,
                (false, true) => 1,
                (false, false) => 0,
            };
            let is_finer = |&(rank, number): &(usize, u64)| {
                // Of one that was sent in part, the place that is marked must stay.
                self.acknowledged.file < number
                    && self.coarse.get(&number).copied().unwrap_or(0) < wanted(rank)
            };
            let finer = ranked.find(is_finer).map(|(rank, number)| (number, wanted(rank)));
            let thinned = finer.map(|(number, level)| self.thin(number, level, numbers));
            match thinned {
                Some(Ok(())) => {}
                // A disk without room for the thinner file has room when the oldest is gone.
                Some(Err(why)) => {
                    log::debug!("the spool is not thinned: {why}");
                    self.drop_file(oldest, lost, numbers)?;
                }
                None => self.drop_file(oldest, lost, numbers)?,
            }
        }
        Ok(())
    }

    fn thin(&mut self, number: u64, level: usize, numbers: &Numbers) -> Result<(), String> {
        let every_ns = EVERY_NS.get(level).copied().unwrap_or(0);
        let mut kept: HashMap<SchemaId, i64> = HashMap::new();
        let (mut hole, mut count) = (Losses::default(), 0);
        let mut host = None;
        let rewritten = self.journal.rewrite(number, &mut |record, out| {
            if let Some(record) = record
                && let Record::Frame(header, frame) = Record::parse(record)
            {
                host = Some(header.host);
                let before = kept.get(&header.schema).map_or(i64::MAX, |before| {
                    header.wall_ns.saturating_sub(*before).saturating_abs()
                });
                if header.kind == FrameKind::Row && before < every_ns {
                    count += 1;
                    return hole.add(Lost::of(&header, THINNED));
                }
                if let Some(lost) = Lost::told(&header, frame, THINNED) {
                    return hole.add(lost);
                }
                if header.kind == FrameKind::Row {
                    kept.insert(header.schema, header.wall_ns);
                }
            }
            while let Some(lost) = hole.at(0) {
                out.put(&[&[FRAME], &lost.seal(host.unwrap_or_default())]);
                hole.pop();
            }
            if let Some(record) = record {
                out.put(&[record]);
            }
        });
        rewritten.map_err(|why| why.to_string())?;
        self.coarse.insert(number, level);
        numbers.lost(count);
        Ok(())
    }

    fn drop_file(
        &mut self,
        number: u64,
        lost: &mut Losses,
        numbers: &Numbers,
    ) -> Result<(), String> {
        let start = Position { file: number, offset: 0 }.max(self.acknowledged);
        let read =
            self.journal.read(start, &mut |position, record| {
                if position.file != number {
                    return Then::Stop;
                }
                if let Record::Frame(header, frame) = Record::parse(record) {
                    let told = Lost::told(&header, frame, THINNED);
                    numbers.lost(u64::from(told.is_none()));
                    lost.add(told.map_or_else(
                        || Lost::of(&header, FULL),
                        |told| Lost { reason: FULL, ..told },
                    ));
                }
                Then::More
            });
        if let Err(why) = read {
            log::warn!("what full costs the spool is not known in full: {why}");
        }
        self.journal.remove(number).map_err(|why| why.to_string())?;
        self.coarse.remove(&number);
        self.acknowledged = self.acknowledged.max(Position { file: number + 1, offset: 0 });
        self.rewind();
        Ok(())
    }

    /// Ends it, and its directory.
    pub(super) fn remove(self) -> std::io::Result<()> {
        let dir = self.dir;
        drop(self.journal);
        fs::remove_dir_all(dir)
    }

    fn read_ahead(&mut self) {
        let (mut bytes, mut enough) = (0, Then::More);
        let ahead = &mut self.ahead;
        let read = self.journal.read(self.read, &mut |position, record| {
            match Record::parse(record) {
                Record::Frame(header, frame) => {
                    let frame = Bytes::copy_from_slice(frame);
                    ahead.push_back((position, Ahead::Frame(header, frame)));
                }
                Record::Schema(id, message) => {
                    let message = Bytes::copy_from_slice(message);
                    ahead.push_back((position, Ahead::Schema(id, message)));
                }
                Record::Mark(_) | Record::Other => {}
            }
            bytes += record.len();
            enough = if bytes < AHEAD_BYTES { Then::More } else { Then::Stop };
            enough
        });
        match read {
            Ok(at) => (self.read, self.is_read) = (at, enough == Then::More),
            Err(why) => {
                log::warn!("a file of the spool cannot be read on: {why}");
                let last = self.ahead.back().map_or(self.read, |(position, _)| *position);
                // Behind what was read of it, or behind all of it.
                let next = Position { file: self.read.file.max(1) + 1, offset: 0 };
                self.read = if self.read < last { last } else { next };
                self.is_read = self.journal.active() < self.read.file;
            }
        }
    }
}

/// Read from the disk at once.
const AHEAD_BYTES: usize = 32 << 10;
/// Files of a full spool, as far as their bounds allow: that much of it goes at once.
const FILES: u64 = 32;
const FILE_BYTES_MIN: u64 = 64 << 10;
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Time between two rows of a section in a file that is so coarse; ticks may come a little early.
const EVERY_NS: [i64; 3] = [0, 9_500_000_000, 57_000_000_000];
const THINNED: &str = "thinned";
const FULL: &str = "spool_full";
/// Over it a spool is too broken to be searched again and again.
const MISSING_MAX: usize = 64;
const MENDS_MAX: usize = 1024;
const DAMAGE_TOLD_MAX: usize = 10;
