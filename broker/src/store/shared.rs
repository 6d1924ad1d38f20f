//! What the writer and the readers of a store have in common.

use super::head::{Rows, Source, has_guests};
use super::horizon::Horizon;
use super::local::{Pending, SEGMENTS, segment_files};
use super::pieces::Pieces;
use super::redis::Archive;
use super::remote;
use super::rollup::{HOURS, Level};
use super::segment::{Footer, Segment};
use super::spill::Spill;
use super::wal::Copied;
use super::{StoreConfig, StoreCounts, StoreError};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use strobe_journal::Position;
use strobe_wire::frame::{self, BurstView, Frame, Payload, RowView};
use strobe_wire::schema::{Labels, Schema};
use strobe_wire::score::Scores;

/// What the writer and the readers have in common.
#[derive(Debug)]
pub(super) struct Shared {
    /// Its limits may change while it is open.
    pub(super) config: RwLock<Arc<StoreConfig>>,
    pub(super) sources: RwLock<BTreeMap<u128, Arc<Source>>>,
    /// The same by `instance`, none for those without: a question about one of a thousand hosts
    /// looks at that one.
    pub(super) instances: RwLock<HashMap<String, Vec<Arc<Source>>>>,
    /// Of all steps, by first time; a reader takes all of them with one count.
    pub(super) segments: RwLock<Arc<Vec<Arc<Segment>>>>,
    pub(super) counts: Mutex<StoreCounts>,
    pub(super) horizon: Mutex<Horizon>,
    /// Everything up to these is in minutes, in hours. Relaxed: a number by itself; what it says is
    /// in the segments, which are under a lock.
    pub(super) rolled_ms: [AtomicI64; 2],
    pub(super) spill: Spill,
    pub(super) pieces: Pieces,
    /// Where blocks are that are no longer here.
    pub(super) archive: OnceLock<Archive>,
    /// End of the newest segment that retention removed. Relaxed: a number by itself.
    pub(super) removed_ms: AtomicI64,
    /// Behind the last committed record of the WAL.
    pub(super) synced: Mutex<Position>,
    /// Where records are that Redis has to have too.
    pub(super) copied: Copied,
    /// The highest number of a segment file so far. Relaxed: one writer, and a number by itself.
    pub(super) last_number: AtomicU64,
    /// The scores that rows of a schema have a series of, by its name; none of most.
    pub(super) scores: Mutex<HashMap<u64, Option<Arc<Scores>>>>,
    /// Listings under instances of guests. Relaxed: a number by itself.
    pub(super) guests: AtomicU64,
    /// How many seals have begun. Relaxed: only the writer's thread counts and asks.
    pub(super) seals: AtomicU64,
}

impl Shared {
    /// As it is now.
    pub(super) fn config(&self) -> Arc<StoreConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Behind the last committed record of the WAL.
    pub(super) fn synced(&self) -> Position {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_synced(&self, at: Position) {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    pub(super) fn sources(&self) -> Vec<Arc<Source>> {
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        sources.values().cloned().collect()
    }

    pub(super) fn source(&self, id: u128) -> Arc<Source> {
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(&id) {
            return Arc::clone(source);
        }
        drop(sources);
        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let new = Arc::new(Source::new(id, Labels::default()));
            self.list(&Labels::default(), &new);
            new
        };
        Arc::clone(sources.entry(id).or_insert_with(new))
    }

    /// The sources whose `instance` this is, and those that have none.
    pub(super) fn sources_of(&self, instance: &str) -> Vec<Arc<Source>> {
        let instances = self.instances.read().unwrap_or_else(PoisonError::into_inner);
        let of = |instance: &str| instances.get(instance).into_iter().flatten().cloned();
        let mut sources: Vec<_> = of(instance).chain(of("")).collect();
        sources.sort_by_key(|source| source.id);
        sources.dedup_by_key(|source| source.id);
        sources
    }

    /// Gives a source its labels.
    pub(super) fn label(&self, source: &Arc<Source>, labels: Labels) {
        let before = Arc::clone(&source.read().labels);
        if *before == labels {
            return;
        }
        // Listed under both in between: a reader looks at the labels themselves.
        self.list(&labels, source);
        let instance = labels.value(INSTANCE).unwrap_or_default().to_owned();
        source.write().labels = Arc::new(labels);
        let old = before.value(INSTANCE).unwrap_or_default();
        if old != instance {
            let mut instances = self.instances.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(sources) = instances.get_mut(old) {
                sources.retain(|other| other.id != source.id);
                if sources.is_empty() {
                    instances.remove(old);
                }
            }
        }
    }

    /// A schema that may be new to a source: it is listed under the instances of its guests too.
    pub(super) fn welcome(&self, source: &Arc<Source>, id: u64, schema: &Schema) {
        if source.read().sections.contains_key(&id) || !has_guests(schema) {
            return;
        }
        let own = schema.columns.iter().filter_map(|column| column.labels.value(INSTANCE));
        for instance in own.collect::<BTreeSet<_>>() {
            // Beyond the bound whoever asks for any instance looks at this source as well.
            let full = GUESTS_MAX <= self.guests.load(Ordering::Relaxed);
            if self.list_under(if full { "" } else { instance }, source) {
                self.guests.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn list(&self, labels: &Labels, source: &Arc<Source>) {
        self.list_under(labels.value(INSTANCE).unwrap_or_default(), source);
    }

    /// Whether it was not there yet.
    fn list_under(&self, instance: &str, source: &Arc<Source>) -> bool {
        let mut instances = self.instances.write().unwrap_or_else(PoisonError::into_inner);
        let sources = instances.entry(instance.to_owned()).or_default();
        let new = sources.iter().all(|other| other.id != source.id);
        if new {
            sources.push(Arc::clone(source));
        }
        new
    }

    pub(super) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        Arc::clone(&self.segments.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn add_segment(&self, segment: Segment) {
        let mut shared = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        let segments = Arc::make_mut(&mut shared);
        segments.push(Arc::new(segment));
        segments.sort_by_key(|segment| (segment.first_ms, segment.path.clone()));
        let bytes = segments.iter().map(|segment| segment.bytes).sum();
        drop(shared);
        self.count(|counts| counts.segment_bytes = bytes);
    }

    pub(super) fn remove_segment(&self, path: &Path) {
        let mut shared = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        let segments = Arc::make_mut(&mut shared);
        for segment in segments.iter().filter(|segment| segment.path == path) {
            self.removed_ms.fetch_max(segment.last_ms, Ordering::Relaxed);
            self.last_number.fetch_max(segment.number().unwrap_or(0), Ordering::Relaxed);
        }
        segments.retain(|segment| segment.path != path);
        let bytes = segments.iter().map(|segment| segment.bytes).sum();
        drop(shared);
        self.count(|counts| counts.segment_bytes = bytes);
    }

    pub(super) fn horizon(&self) -> Horizon {
        *self.horizon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what is about to be removed.
    pub(super) fn raise_horizon(&self, horizon: Horizon) -> Result<(), StoreError> {
        if horizon == self.horizon() {
            return Ok(());
        }
        horizon.write(&self.config().dir.join(SEGMENTS))?;
        *self.horizon.lock().unwrap_or_else(PoisonError::into_inner) = horizon;
        Ok(())
    }

    pub(super) fn rolled_ms(&self, level: Level) -> i64 {
        self.rolled_ms[usize::from(level == HOURS)].load(Ordering::Relaxed)
    }

    pub(super) fn set_rolled(&self, level: Level, ms: i64) {
        self.rolled_ms[usize::from(level == HOURS)].store(ms, Ordering::Relaxed);
    }

    pub(super) fn removed_ms(&self) -> i64 {
        self.removed_ms.load(Ordering::Relaxed)
    }

    /// Changes the counts and returns them.
    pub(super) fn count(&self, change: impl FnOnce(&mut StoreCounts)) -> StoreCounts {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts);
        *counts
    }

    /// Makes the sources and sections of a segment known; false if a block's schema is not.
    pub(super) fn learn(&self, footer: &Footer, schemas: &HashMap<u64, Arc<Schema>>) -> bool {
        for (id, labels) in &footer.sources {
            self.label(&self.source(*id), labels.clone());
        }
        let mut all = true;
        for entry in &footer.entries {
            let Some(schema) = schemas.get(&entry.schema) else {
                all = false;
                continue;
            };
            let source = self.source(entry.source);
            self.welcome(&source, entry.schema, schema);
            source.write().section(entry.schema, schema).widen(entry.first_ms, entry.last_ms);
        }
        all
    }

    /// Makes one record visible, without what is sealed already; returns its samples.
    pub(super) fn apply(&self, pending: Pending, from_ms: i64) -> u64 {
        match pending {
            Pending::Labels(source, labels) => {
                self.label(&source, labels);
                0
            }
            Pending::Row(source, schema, bytes) => {
                // Opened once when it was appended, or checked by the WAL's CRC.
                let Ok(frame) = frame::open(&bytes) else { return 0 };
                source.write().cover.note(&frame.header);
                self.welcome(&source, frame.header.schema.0, &schema);
                match frame.payload {
                    Payload::Row(row) => self.apply_row((&source, &schema), &frame, row, from_ms),
                    Payload::Burst(burst) => {
                        self.apply_burst((&source, &schema), &frame, burst, from_ms)
                    }
                    Payload::Event(_) | Payload::Loss(_) => 0,
                }
            }
            Pending::Told(source, header) => {
                source.write().cover.note(&header);
                0
            }
            Pending::Samples(record) => {
                let source = self.source(record.source);
                let name = super::head::SeriesName { name: record.name, labels: record.labels };
                let mut samples = record.samples;
                samples.retain(|sample| from_ms <= sample.0);
                let mut state = source.write();
                let seals = self.seals.load(Ordering::Relaxed);
                let more = remote::More { name, samples, seals };
                let taken = remote::push(source.id, &mut state, more, &self.spill);
                u64::try_from(taken).unwrap_or(0)
            }
        }
    }

    fn apply_row(
        &self,
        (source, schema): (&Source, &Arc<Schema>),
        frame: &Frame<'_>,
        row: RowView<'_>,
        from_ms: i64,
    ) -> u64 {
        let time_ms = frame.header.wall_ns.div_euclid(1_000_000);
        if time_ms < from_ms || row.len() != schema.columns.len() {
            return 0;
        }
        let id = frame.header.schema.0;
        let mut state = source.write();
        let mut append = |id, schema: &Arc<Schema>, push: &dyn Fn(&mut Rows)| {
            let section = state.section(id, schema);
            let seals = self.seals.load(Ordering::Relaxed);
            section.before.note(seals, section.rows.len());
            push(&mut section.rows);
            section.widen(time_ms, time_ms);
            super::seal::make_young(source.id, id, section, &self.spill, seals);
        };
        append(id, schema, &|rows| rows.push(time_ms, row));
        if !row.scores().is_empty()
            && let Some(scores) = self.scores(id, schema)
        {
            let push = |rows: &mut Rows| rows.push_scores(time_ms, row, &scores);
            append(scores.id.0, &scores.schema, &push);
        }
        u64::try_from(row.len()).unwrap_or(0)
    }

    /// Samples of a hundredth of a second are rows like others, at their own times.
    fn apply_burst(
        &self,
        (source, schema): (&Source, &Arc<Schema>),
        frame: &Frame<'_>,
        burst: BurstView<'_>,
        from_ms: i64,
    ) -> u64 {
        if burst.columns() != schema.columns.len() {
            return 0;
        }
        let id = frame.header.schema.0;
        let mut state = source.write();
        let section = state.section(id, schema);
        let seals = self.seals.load(Ordering::Relaxed);
        section.before.note(seals, section.rows.len());
        let mut samples = 0_u64;
        burst.each(|wall_ns, values, valid| {
            let time_ms = wall_ns.div_euclid(1_000_000);
            if from_ms <= time_ms {
                section.rows.push_plain(time_ms, values, valid);
                section.widen(time_ms, time_ms);
                samples = samples.saturating_add(u64::try_from(values.len()).unwrap_or(0));
            }
        });
        super::seal::make_young(source.id, id, section, &self.spill, seals);
        samples
    }

    /// The series of scores that go with a schema.
    fn scores(&self, id: u64, schema: &Schema) -> Option<Arc<Scores>> {
        let mut known = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(id).or_insert_with(|| Scores::of(schema).map(Arc::new)).clone()
    }

    /// Counts a seal that begins; what comes from now on is not in it.
    pub(super) fn begin_seal(&self) -> u64 {
        self.seals.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The next free file of a kind. A number is not used twice: Redis knows what it means.
    pub(super) fn segment_path(&self, kind: &str) -> Result<PathBuf, StoreError> {
        let dir = self.config().dir.join(SEGMENTS);
        let last = segment_files(&dir)?.last().map_or(0, |(number, _)| *number);
        let last = self.last_number.fetch_max(last, Ordering::Relaxed).max(last);
        let next = last.saturating_add(1);
        self.last_number.fetch_max(next, Ordering::Relaxed);
        Ok(dir.join(format!("{kind}-{next:016x}.seg")))
    }
}

/// The time of a frame's last sample.
pub(super) fn last_ms(frame: &Frame<'_>) -> i64 {
    let mut last_ns = frame.header.wall_ns;
    if let Payload::Burst(burst) = frame.payload {
        burst.each(|wall_ns, _, _| last_ns = last_ns.max(wall_ns));
    }
    last_ns.div_euclid(1_000_000)
}

pub(super) const INSTANCE: &str = "instance";
/// Instances of guests that sources are listed under.
const GUESTS_MAX: u64 = 100_000;
