//! The store on the local disk: the writer, the readers' handle, and what they share.

use super::head::{SeriesName, Source, split_remote};
use super::{Recovery, RemoteSeries, StoreConfig, StoreCounts, StoreError};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use strobe_wire::frame::{self, Payload};
use strobe_wire::ids::HostId;
use strobe_wire::schema::{Labels, Schema};

/// A reader's handle; clones are cheap and several threads may use them at once.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

/// The one writer.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    schemas: HashMap<u64, Arc<Schema>>,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct Shared {
    #[expect(dead_code, reason = "used when segments are on disk")]
    config: StoreConfig,
    sources: RwLock<BTreeMap<u128, Arc<Source>>>,
    counts: Mutex<StoreCounts>,
}

/// What was appended and is not committed.
#[derive(Debug)]
enum Pending {
    Labels(Arc<Source>, Labels),
    Row(Arc<Source>, Arc<Schema>, Bytes),
    Samples(Arc<Source>, SeriesName, Vec<(i64, u64)>),
}

impl Store {
    /// Opens or makes the store in `config.dir` and replays its WAL.
    ///
    /// # Errors
    /// What could not be opened.
    pub fn open(config: StoreConfig, _now_ms: i64) -> Result<(Self, Writer, Recovery), StoreError> {
        let shared =
            Arc::new(Shared { config, sources: RwLock::default(), counts: Mutex::default() });
        let writer =
            Writer { shared: Arc::clone(&shared), schemas: HashMap::new(), pending: Vec::new() };
        Ok((Self { shared }, writer, Recovery::default()))
    }

    /// What the store counts about itself.
    #[must_use]
    pub fn counts(&self) -> StoreCounts {
        *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sources(&self) -> Vec<Arc<Source>> {
        let sources = self.shared.sources.read().unwrap_or_else(PoisonError::into_inner);
        sources.values().cloned().collect()
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
        let mut pairs =
            vec![("job".to_owned(), job.to_owned()), ("instance".to_owned(), instance.to_owned())];
        let own = |name: &str| name != "job" && name != "instance";
        pairs.extend(labels.0.iter().filter(|(name, _)| own(name)).cloned());
        let source = self.source(host.0);
        self.pending.push(Pending::Labels(source, Labels::new(pairs)));
        Ok(())
    }

    /// Appends a frame that ingest opened and found new. Events and losses are kept in the WAL only.
    ///
    /// # Errors
    /// A row that does not fit its schema, or the WAL refused.
    pub fn frame(&mut self, bytes: &Bytes) -> Result<(), StoreError> {
        let frame = frame::open(bytes)?;
        if let Payload::Row(row) = frame.payload {
            let (host, schema) = (frame.header.host, frame.header.schema);
            let Some(known) = self.schemas.get(&schema.0) else {
                return Err(StoreError::SchemaUnknown { host, schema });
            };
            let (found, wanted) = (row.len(), known.columns.len());
            if found != wanted {
                return Err(StoreError::Columns { host, schema, found, wanted });
            }
            let known = Arc::clone(known);
            let source = self.source(host.0);
            self.pending.push(Pending::Row(source, known, bytes.clone()));
        }
        Ok(())
    }

    /// Appends samples that came by remote-write. A series without `__name__` is left out.
    ///
    /// # Errors
    /// The WAL refused.
    pub fn samples(&mut self, series: &[RemoteSeries]) -> Result<(), StoreError> {
        for one in series {
            let Some((column, labels)) = split_remote(&one.labels) else { continue };
            let source = self.source(remote_id(&labels));
            self.pending.push(Pending::Labels(Arc::clone(&source), labels));
            let samples = one.samples.iter().map(|&(time, value)| (time, value.to_bits()));
            self.pending.push(Pending::Samples(source, column, samples.collect()));
        }
        Ok(())
    }

    /// Makes everything appended durable (one fdatasync) and then visible.
    ///
    /// # Errors
    /// [`StoreError::Full`] or the WAL refused; nothing of it is visible or may be acknowledged.
    pub fn commit(&mut self, _now_ms: i64) -> Result<(), StoreError> {
        let mut samples = 0;
        for pending in std::mem::take(&mut self.pending) {
            samples += apply(pending)?;
        }
        let mut counts = self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.samples += samples;
        counts.commits += 1;
        Ok(())
    }

    /// Seals what is due, removes what is too old or too much, and releases the WAL.
    ///
    /// # Errors
    /// A file that could not be written; the rows stay in memory and in the WAL.
    pub fn tick(&mut self, _now_ms: i64) -> Result<(), StoreError> {
        Ok(())
    }

    fn source(&self, id: u128) -> Arc<Source> {
        let mut sources = self.shared.sources.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Source::new(id, Labels::default()));
        Arc::clone(sources.entry(id).or_insert_with(new))
    }
}

/// Makes one record visible; returns its samples.
fn apply(pending: Pending) -> Result<u64, StoreError> {
    match pending {
        Pending::Labels(source, labels) => {
            if *source.read().labels != labels {
                source.write().labels = Arc::new(labels);
            }
            Ok(0)
        }
        Pending::Row(source, schema, bytes) => {
            let frame = frame::open(&bytes)?;
            let Payload::Row(row) = frame.payload else { return Ok(0) };
            let time_ms = frame.header.wall_ns.div_euclid(1_000_000);
            source.write().section(&schema).rows.push(time_ms, row);
            Ok(u64::try_from(row.len()).unwrap_or(0))
        }
        Pending::Samples(source, column, samples) => {
            let mut state = source.write();
            let remote = state.remote.entry(column).or_default();
            remote.times.extend(samples.iter().map(|sample| sample.0));
            remote.values.extend(samples.iter().map(|sample| sample.1));
            Ok(u64::try_from(samples.len()).unwrap_or(0))
        }
    }
}

/// The id of a remote-write source: a hash of its labels.
fn remote_id(labels: &Labels) -> u128 {
    let mut hash = Sha256::new();
    hash.update(b"remote");
    for (name, value) in &labels.0 {
        hash.update([0]);
        hash.update(name);
        hash.update([0]);
        hash.update(value);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    u128::from_le_bytes(first)
}
