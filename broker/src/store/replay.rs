//! Opening: what the segments and the WAL say was there.
//!
//! Segments first: each names its cut and the last WAL file it covers, so a row of the WAL that
//! is sealed already is known by (file, time) and never held in memory again.

use super::cover;
use super::local::{Pending, SEGMENTS, segment_files};
use super::seal::SealJob;
use super::segment::{Segment, io};
use super::shared::{Shared, last_ms};
use super::upkeep::measure;
use super::wal::{self, Record};
use super::{Recovery, Seen, StoreError};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use strobe_journal::{Damage, Position, disk};
use strobe_wire::frame::{self, Payload};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::schema::{Labels, Schema};

/// A replay that is under way.
#[derive(Debug)]
pub(super) struct Replay {
    shared: Arc<Shared>,
    recovery: Recovery,
    schemas: HashMap<u64, Arc<Schema>>,
    labels: HashMap<u128, Labels>,
    seen: BTreeMap<(HostId, BootId), Vec<(u64, u64)>>,
    /// (cut, WAL file) of every segment.
    cuts: Vec<(i64, u64)>,
    started: bool,
    wal_last_ms: BTreeMap<u64, i64>,
    /// The WAL file being read.
    file: u64,
    /// The last one that has a record which Redis has to have too.
    copied_in: u64,
}

impl Replay {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            recovery: Recovery::default(),
            schemas: HashMap::new(),
            labels: HashMap::new(),
            seen: BTreeMap::new(),
            cuts: Vec::new(),
            started: false,
            wal_last_ms: BTreeMap::new(),
            file: 0,
            copied_in: 0,
        }
    }

    /// Takes in one WAL record. The journal's lock is held by now.
    pub(super) fn record(&mut self, file: u64, bytes: &[u8]) {
        self.start();
        self.recovery.records += 1;
        if self.file != file {
            let through = std::mem::replace(&mut self.file, file);
            if let Err(error) = self.bound(through) {
                self.damage(format!("memory is not bounded while the WAL is read: {error}"));
            }
        }
        if wal::is_copied(bytes) && self.copied_in != file {
            self.copied_in = file;
            let begin = Position { file, offset: 0 };
            self.shared.copied.note(begin, begin);
        }
        let from_ms =
            self.cuts.iter().filter(|cut| file <= cut.1).map(|cut| cut.0).max().unwrap_or(i64::MIN);
        match wal::read(bytes) {
            Some(Record::Schema(schema)) => {
                self.schemas.entry(schema.id().0).or_insert_with(|| Arc::new(schema));
            }
            Some(Record::Labels(id, labels)) => {
                let source = self.shared.source(id);
                self.labels.insert(id, labels.clone());
                self.shared.apply(Pending::Labels(source, labels), from_ms);
            }
            Some(Record::Frame(bytes)) => self.frame(file, bytes, from_ms),
            Some(Record::Samples(samples)) => {
                for &(time, _) in &samples.samples {
                    self.note_time(file, time);
                }
                self.shared.apply(Pending::Samples(samples), from_ms);
            }
            None => {
                let why = format!("WAL file {file}: a record of an unknown kind was left out");
                self.damage(why);
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "what the writer goes on with, named by its caller")]
    pub(super) fn finish(
        mut self,
        damage: &[Damage],
    ) -> (Recovery, HashMap<u64, Arc<Schema>>, HashMap<u128, Labels>, BTreeMap<u64, i64>) {
        self.start();
        for place in damage {
            let text = format!("{} at byte {}: {}", place.path.display(), place.offset, place.why);
            self.damage(text);
        }
        for ((host, boot), mut ranges) in self.seen {
            ranges.sort_unstable();
            let mut merged: Vec<(u64, u64)> = Vec::new();
            for (first, last) in ranges {
                match merged.last_mut() {
                    Some(before) if first <= before.1.saturating_add(1) => {
                        before.1 = before.1.max(last);
                    }
                    _ => merged.push((first, last)),
                }
            }
            self.recovery.seen.push(Seen { host, boot, ranges: merged });
        }
        (self.recovery, self.schemas, self.labels, self.wal_last_ms)
    }

    /// Reads the segments, once; a file that cannot be read is named and left where it is.
    fn start(&mut self) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        if let Err(error) = self.segments() {
            self.damage(error.to_string());
        }
    }

    fn segments(&mut self) -> Result<(), StoreError> {
        let dir = self.shared.config().dir.join(SEGMENTS);
        sweep(&dir)?;
        // Files with a broken list of series, which a later one may have.
        let mut incomplete = Vec::new();
        for (_, path) in segment_files(&dir)? {
            match Segment::open(&path, &mut self.recovery.damage) {
                Ok((segment, footer)) => {
                    let damage = &mut self.recovery.damage;
                    segment.read_schemas(&footer, &mut self.schemas, damage)?;
                    if !self.shared.learn(&footer, &self.schemas) {
                        incomplete.push(path);
                    }
                    self.labels.extend(footer.sources);
                    self.cuts.push((footer.cut_ms, footer.wal_through));
                    self.shared.add_segment(segment);
                }
                Err(error) => self.damage(error.to_string()),
            }
        }
        cover::read(&self.shared, &dir);
        for path in incomplete {
            let (_, footer) = Segment::open(&path, &mut Vec::new())?;
            self.shared.learn(&footer, &self.schemas);
        }
        Ok(())
    }

    /// Between two WAL files: seals all of them up to `through` if their rows fill the memory.
    fn bound(&mut self, through: u64) -> Result<(), StoreError> {
        measure(&self.shared);
        let head = self.shared.count(|_| ()).head_bytes;
        if usize::try_from(head).unwrap_or(usize::MAX) <= self.shared.config().head_bytes_max {
            return Ok(());
        }
        let path = self.shared.segment_path("raw")?;
        let mut job = SealJob::new(path, i64::MAX, through, &self.shared)?;
        job.step(usize::MAX, &self.shared.spill)?;
        self.shared.spill.turn();
        let (segment, done) = job.finish()?;
        if let Some(segment) = segment {
            self.shared.add_segment(segment);
        }
        done.release();
        Ok(())
    }

    /// Names a place, as long as there are not too many.
    fn damage(&mut self, place: String) {
        if self.recovery.damage.len() < DAMAGE_MAX {
            self.recovery.damage.push(place);
        }
    }

    fn frame(&mut self, file: u64, bytes: &[u8], from_ms: i64) {
        let Ok(frame) = frame::open(bytes) else {
            self.damage(format!("WAL file {file}: a frame did not open"));
            return;
        };
        let header = frame.header;
        let ranges = self.seen.entry((header.host, header.boot)).or_default();
        let seq = header.seq.0;
        match ranges.last_mut() {
            Some(last) if last.1.saturating_add(1) == seq => last.1 = seq,
            _ => ranges.push((seq, seq)),
        }
        if let Payload::Loss(loss) = frame.payload {
            // What will never come is as good as stored.
            let (first, last) = (loss.first.to_native(), loss.last.to_native());
            if 0 < first && first <= last && last <= seq {
                ranges.push((first, last));
            }
        }
        // What is sealed already is known to be here as well.
        self.shared.source(header.host.0).write().cover.note(&header);
        if frame.payload.columns().is_some() {
            let time_ms = last_ms(&frame);
            self.note_time(file, time_ms);
            let Some(schema) = self.schemas.get(&header.schema.0) else {
                let why = format!("WAL file {file}: a row's schema {} is lost", header.schema);
                self.damage(why);
                return;
            };
            if from_ms <= time_ms {
                let (source, schema) = (self.shared.source(header.host.0), Arc::clone(schema));
                let row = Pending::Row(source, schema, Bytes::copy_from_slice(bytes));
                self.shared.apply(row, from_ms);
            }
        }
    }

    fn note_time(&mut self, file: u64, time_ms: i64) {
        let last = self.wal_last_ms.entry(file).or_insert(i64::MIN);
        *last = (*last).max(time_ms);
    }
}

/// Removes what was begun and will not be ended.
pub(super) fn sweep(dir: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(io("list", dir))? {
        let path = entry.map_err(io("list", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "part") {
            disk::remove(&path).map_err(io("remove", &path))?;
        }
    }
    Ok(())
}

/// Broken places that are named one by one.
const DAMAGE_MAX: usize = 1_000;
