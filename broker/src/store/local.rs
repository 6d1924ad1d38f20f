//! The store on the local disk: the writer, the readers' handle, and what they share.
//!
//! ```text
//! DIR/wal/        the journal (its lock and version are the store's)
//! DIR/segments/   raw-N.seg, min-N.seg, hour-N.seg; *.part are unfinished and removed at start
//! ```

use super::elsewhere::Elsewhere;
use super::head::Source;
use super::horizon::Horizon;
use super::pieces::Pieces;
use super::redis::{Errand, Far};
use super::replay::Replay;
use super::rollup::{HOURS, MINUTES};
use super::segment::{Loaded, Segment, io};
use super::shared::{Shared, last_ms};
use super::spill::Spill;
use super::upkeep::Upkeep;
use super::wal::{self, Copied};
use super::{Recovery, StoreConfig, StoreCounts, StoreError};
use crate::class::Durability;
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use strobe_journal::{Journal, free_bytes};
use strobe_wire::frame::{self, Header};
use strobe_wire::ids::HostId;
use strobe_wire::schema::{Labels, Schema};

/// A reader's handle; clones are cheap and several threads may use them at once.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) shared: Arc<Shared>,
    /// Of the query that has this handle.
    pub(super) errand: Option<Arc<Errand>>,
    pub(super) elsewhere: Option<Arc<Elsewhere>>,
}

/// The one writer.
#[derive(Debug)]
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) journal: Journal,
    schemas: HashMap<u64, Arc<Schema>>,
    labels: HashMap<u128, Labels>,
    pub(super) pending: Vec<Pending>,
    pub(super) pending_bytes: usize,
    pub(super) written: Written,
    pub(super) upkeep: Upkeep,
    /// Newest row in each WAL file.
    pub(super) wal_last_ms: BTreeMap<u64, i64>,
    /// Whether something was appended since the last commit that Redis has to have too.
    pub(super) copied: bool,
}

/// Which schemas and labels the WAL file being written has.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) schemas: HashSet<u64>,
    pub(super) labels: HashSet<u128>,
}

/// From when on there are finer samples than rollups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Floors {
    pub(super) raw_ms: i64,
    pub(super) minutes_ms: i64,
}

/// What was appended and is not committed.
#[derive(Debug)]
pub(super) enum Pending {
    Labels(Arc<Source>, Labels),
    Row(Arc<Source>, Arc<Schema>, Bytes),
    /// A frame without samples.
    Told(Arc<Source>, Header),
    Samples(wal::Samples),
}

impl Store {
    /// Opens or makes the store in `config.dir` and replays its WAL.
    ///
    /// # Errors
    /// What could not be opened.
    pub fn open(config: StoreConfig, now_ms: i64) -> Result<(Self, Writer, Recovery), StoreError> {
        let dir = config.dir.join(SEGMENTS);
        fs::create_dir_all(&dir).map_err(io("make the directory", &dir))?;
        let horizon = Horizon::read(&dir);
        let shared = Arc::new(Shared {
            spill: Spill::new(config.dir.join(SPILL)),
            pieces: Pieces::new(config.head_bytes_max),
            config: RwLock::new(Arc::new(config)),
            sources: RwLock::default(),
            instances: RwLock::default(),
            guests: AtomicU64::new(0),
            segments: RwLock::default(),
            counts: Mutex::default(),
            horizon: Mutex::new(horizon),
            rolled_ms: [const { AtomicI64::new(i64::MIN) }; 2],
            archive: OnceLock::new(),
            removed_ms: AtomicI64::new(horizon.raw_ms.max(horizon.minutes_ms)),
            synced: Mutex::default(),
            copied: Copied::default(),
            last_number: AtomicU64::new(0),
            scores: Mutex::default(),
            seals: AtomicU64::new(0),
        });
        shared.spill.allow(free_bytes(&shared.config().dir)?, shared.config().free_bytes_min);
        let mut replay = Replay::new(Arc::clone(&shared));
        // The lock comes first: until it is held nothing is removed.
        let journal = Journal::open(&shared.config().dir.join(WAL), &mut |number, record| {
            replay.record(number, record);
        });
        let (journal, damage) = journal?;
        shared.note_synced(journal.synced());
        shared.copied.end(journal.synced());
        let (recovery, schemas, labels, wal_last_ms) = replay.finish(&damage);
        let upkeep = Upkeep::new(&shared, now_ms);
        let writer = Writer {
            shared: Arc::clone(&shared),
            journal,
            schemas,
            labels,
            pending: Vec::new(),
            pending_bytes: 0,
            written: Written::default(),
            upkeep,
            wal_last_ms,
            copied: false,
        };
        Ok((Self { shared, errand: None, elsewhere: None }, writer, recovery))
    }

    /// What the store counts about itself.
    #[must_use]
    pub fn counts(&self) -> StoreCounts {
        let (groups_found, groups_read) = self.shared.pieces.counts();
        StoreCounts { groups_found, groups_read, ..self.shared.count(|_| ()) }
    }

    /// Counts samples that were not taken.
    pub(crate) fn refused(&self, samples: u64) {
        self.shared.count(|counts| counts.samples_refused += samples);
    }

    /// From when on a source has raw samples and minutes, here or in Redis.
    pub(super) fn floors(&self, far: Option<&Far>) -> Floors {
        let segments = self.shared.segments();
        let first = |step: u32| {
            let of = segments.iter().filter(|segment| segment.step_ms == step);
            of.map(|segment| segment.first_ms).min().unwrap_or(i64::MAX)
        };
        let there = far.map_or(Floors { raw_ms: i64::MAX, minutes_ms: i64::MAX }, |f| f.floors);
        let horizon = self.shared.horizon();
        let known = |ms: i64| Some(ms).filter(|ms| *ms != i64::MIN);
        let raw_ms = known(horizon.raw_ms).unwrap_or_else(|| first(0)).min(there.raw_ms);
        let minutes_ms = known(horizon.minutes_ms).unwrap_or_else(|| first(MINUTES.step_ms));
        Floors { raw_ms, minutes_ms: minutes_ms.min(there.minutes_ms).min(raw_ms) }
    }

    /// The segments to read for a range, each with the part of the range it answers.
    pub(super) fn segments_for(
        &self,
        bounds: (i64, i64),
        floors: Floors,
    ) -> Vec<(Arc<Segment>, (i64, i64))> {
        let segments = self.shared.segments();
        let mut out = Vec::new();
        for segment in segments.iter() {
            let (from, to) = floors.part(segment.step_ms, bounds);
            if from <= to && segment.first_ms <= to && from <= segment.last_ms {
                out.push((Arc::clone(segment), (from, to)));
            }
        }
        // Of two rollup rows for one time the newer file's is right.
        out.sort_by_key(|(segment, _)| Reverse(segment.number * u64::from(segment.step_ms.min(1))));
        out
    }

    /// Counts a block that could not be read, and tells who asked.
    pub(super) fn corrupt(&self, path: &Path, offset: u64, why: &str) {
        let counts = self.shared.count(|counts| counts.blocks_corrupt += 1);
        let text = format!("{} at byte {offset}: {why}; the block is left out", path.display());
        if counts.blocks_corrupt < LOG_MAX {
            log::error!("{text}");
        }
        self.note(text);
    }

    /// A segment to read from. One that retention has removed since it was looked up has no
    /// samples that anyone is owed; one that cannot be read is named, and is not the end of a query.
    pub(super) fn opened(&self, segment: &Segment) -> Option<Arc<Loaded>> {
        match segment.loaded() {
            Ok(loaded) => {
                loaded.damage.iter().for_each(|place| self.note(place.clone()));
                Some(loaded)
            }
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                self.corrupt(&segment.path, 0, &error.to_string());
                None
            }
        }
    }
}

impl Floors {
    /// The part of a range that blocks of a step answer: raw where raw samples are kept, minutes
    /// before that, hours before those.
    pub(super) fn part(self, step_ms: u32, bounds: (i64, i64)) -> (i64, i64) {
        match step_ms {
            0 => (bounds.0.max(self.raw_ms), bounds.1),
            step if step == HOURS.step_ms => (bounds.0, bounds.1.min(self.minutes_ms - 1)),
            _ => (bounds.0.max(self.minutes_ms), bounds.1.min(self.raw_ms - 1)),
        }
    }
}

impl Writer {
    /// Makes a schema known; rows of it may follow.
    ///
    /// # Errors
    /// A schema that breaks the data model.
    pub fn schema(&mut self, schema: &Schema) -> Result<(), StoreError> {
        schema.check()?;
        self.schemas.entry(schema.id().0).or_insert_with(|| Arc::new(schema.clone()));
        Ok(())
    }

    /// Names a host: `job`, `instance` and `labels` stand on every series of it from the next
    /// commit on.
    ///
    /// # Errors
    /// The WAL refused.
    pub fn host(
        &mut self,
        host: HostId,
        job: &str,
        instance: &str,
        labels: &Labels,
    ) -> Result<(), StoreError> {
        let own = |name: &str| name != "job" && name != "instance";
        let mut pairs: Vec<(String, String)> =
            labels.0.iter().filter(|(name, _)| own(name)).cloned().collect();
        pairs.push(("job".to_owned(), job.to_owned()));
        pairs.push(("instance".to_owned(), instance.to_owned()));
        self.name(host.0, Labels::new(pairs))
    }

    /// Appends a frame that ingest opened and found new. Events and losses are kept in the WAL only.
    ///
    /// # Errors
    /// A row that does not fit its schema, [`StoreError::Full`] when too much waits for a commit
    /// that fails, or the WAL refused. Nothing of the frame is kept then.
    pub fn frame(&mut self, bytes: &Bytes) -> Result<(), StoreError> {
        self.frame_of(bytes, Durability::Wal)
    }

    /// The same of a host of this class.
    ///
    /// # Errors
    /// As [`Writer::frame`].
    pub fn frame_of(&mut self, bytes: &Bytes, class: Durability) -> Result<(), StoreError> {
        self.room()?;
        let frame = frame::open(bytes)?;
        let (host, schema) = (frame.header.host, frame.header.schema);
        if let Some(found) = frame.payload.columns() {
            let Some(known) = self.schemas.get(&schema.0) else {
                return Err(StoreError::SchemaUnknown { host, schema });
            };
            let wanted = known.columns.len();
            if found != wanted {
                return Err(StoreError::Columns { host, schema, found, wanted });
            }
            let known = Arc::clone(known);
            self.write_labels(host.0)?;
            if self.written.schemas.insert(schema.0) {
                self.journal.append(&[&[wal::SCHEMA], &wal::schema(&known)])?;
            }
            self.note_time(last_ms(&frame));
            self.pending.push(Pending::Row(self.shared.source(host.0), known, bytes.clone()));
        } else {
            self.pending.push(Pending::Told(self.shared.source(host.0), frame.header));
        }
        self.journal.append(&[&[wal::kind(wal::FRAME, class)], bytes])?;
        self.copied |= class.is_copied();
        self.pending_bytes += bytes.len();
        Ok(())
    }

    /// Makes everything appended durable (one fdatasync) and then visible.
    ///
    /// # Errors
    /// [`StoreError::Full`] or the WAL refused. Nothing appended is visible or may be
    /// acknowledged; it is kept, and the next commit tries again.
    pub fn commit(&mut self, _now_ms: i64) -> Result<(), StoreError> {
        // Also with nothing to write: so it is found out that there is room again.
        self.floor()?;
        if self.pending.is_empty() && self.pending_bytes == 0 {
            return Ok(());
        }
        self.commit_now()
    }

    /// Forgets everything appended since the last commit: its sender was told, and sends it again.
    pub fn discard(&mut self) {
        self.journal.discard();
        self.copied = false;
        // Names stay: they were not refused, and go into the WAL again before the next row.
        self.pending.retain(|pending| matches!(pending, Pending::Labels(..)));
        self.pending_bytes = 0;
        self.written = Written::default();
    }

    /// The last WAL file that nothing is appended to any more.
    #[must_use]
    pub fn wal_closed(&self) -> Option<u64> {
        self.journal.closed().last().map(|(number, _)| *number)
    }

    /// The windows of every frame in WAL files up to `through` are kept elsewhere: these files,
    /// which tell them too, may be removed once their rows are sealed.
    pub fn windows_kept(&mut self, through: Option<u64>) {
        self.upkeep.kept = self.upkeep.kept.max(through);
    }

    /// Whether no housekeeping is under way.
    #[must_use]
    pub fn is_tidy(&self) -> bool {
        !self.upkeep.progress().0
    }

    /// Seals what is due, removes what is too old or too much, and releases the WAL; a bounded
    /// piece of work a call. Call it a few times a second.
    ///
    /// # Errors
    /// A file that could not be written; the rows stay in memory and in the WAL.
    pub fn tick(&mut self, now_ms: i64) -> Result<(), StoreError> {
        super::upkeep::tick(self, now_ms)
    }

    /// Seals and rolls up everything that is due at `now_ms` before it returns.
    ///
    /// # Errors
    /// As [`Writer::tick`].
    pub fn settle(&mut self, now_ms: i64) -> Result<(), StoreError> {
        let mut before = None;
        loop {
            self.tick(now_ms)?;
            let progress = self.upkeep.progress();
            if !progress.0 && before == Some(progress) {
                return Ok(());
            }
            before = Some(progress);
        }
    }

    /// As [`Writer::commit`], whatever space is left.
    pub(super) fn commit_now(&mut self) -> Result<(), StoreError> {
        self.journal.commit()?;
        if std::mem::take(&mut self.copied) {
            self.shared.copied.note(self.shared.synced(), self.journal.synced());
        }
        self.shared.note_synced(self.journal.synced());
        let mut samples = 0;
        for pending in self.pending.drain(..) {
            samples += self.shared.apply(pending, i64::MIN);
        }
        self.pending_bytes = 0;
        let wal_bytes = self.journal.bytes();
        self.shared.count(|counts| {
            counts.samples += samples;
            counts.commits += 1;
            counts.wal_bytes = wal_bytes;
        });
        if self.shared.config().wal_file_bytes <= self.journal.active_bytes() {
            // What was committed is safe in the old file; without room for a new one it grows.
            match self.rotate() {
                Ok(_) => {}
                Err(error) => log::warn!("the write-ahead log's file is not changed: {error}"),
            }
        }
        Ok(())
    }

    /// Closes the WAL file, in which all is visible by now; the next one stands alone.
    pub(super) fn rotate(&mut self) -> Result<u64, StoreError> {
        assert!(self.pending.is_empty());
        let closed = self.journal.rotate()?;
        self.written = Written::default();
        Ok(closed)
    }

    fn floor(&self) -> Result<(), StoreError> {
        let config = self.shared.config();
        let free = free_bytes(&config.dir)?;
        self.shared.spill.allow(free, config.free_bytes_min);
        if free < config.free_bytes_min {
            let (path, floor) = (config.dir.clone(), config.free_bytes_min);
            return Err(StoreError::Full { path, free, floor });
        }
        Ok(())
    }

    /// Refuses when commits fail and too much has gathered.
    pub(super) fn room(&self) -> Result<(), StoreError> {
        if PENDING_BYTES_MAX < self.pending_bytes {
            self.floor()?;
            let config = self.shared.config();
            let (path, floor) = (config.dir.clone(), config.free_bytes_min);
            return Err(StoreError::Full { path, free: free_bytes(&config.dir)?, floor });
        }
        Ok(())
    }

    pub(super) fn name(&mut self, id: u128, labels: Labels) -> Result<(), StoreError> {
        if self.labels.get(&id) == Some(&labels) {
            return Ok(());
        }
        self.labels.insert(id, labels.clone());
        self.written.labels.remove(&id);
        self.write_labels(id)?;
        let source = self.shared.source(id);
        self.pending.push(Pending::Labels(source, labels));
        Ok(())
    }

    pub(super) fn knows(&self, id: u128) -> bool {
        self.labels.contains_key(&id)
    }

    pub(super) fn write_labels(&mut self, id: u128) -> Result<(), StoreError> {
        if let Some(labels) = self.labels.get(&id)
            && self.written.labels.insert(id)
        {
            self.journal.append(&[&[wal::LABELS], &wal::labels(id, labels)])?;
        }
        Ok(())
    }

    pub(super) fn note_time(&mut self, time_ms: i64) {
        let last = self.wal_last_ms.entry(self.journal.active()).or_insert(i64::MIN);
        *last = (*last).max(time_ms);
    }
}

/// The segment files of a directory, by number.
pub(super) fn segment_files(dir: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(io("list", dir))? {
        let path = entry.map_err(io("list", dir))?.path();
        let stem = path.file_name().and_then(|name| name.to_str());
        let digits = stem.and_then(|stem| stem.strip_suffix(".seg")?.split('-').nth(1));
        if let Some(number) = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

pub(super) const SEGMENTS: &str = "segments";
pub(super) const WAL: &str = "wal";
const SPILL: &str = "young";
/// Appended and not committed; more is refused.
const PENDING_BYTES_MAX: usize = 64 << 20;
/// Broken blocks that are logged one by one.
const LOG_MAX: u64 = 100;
