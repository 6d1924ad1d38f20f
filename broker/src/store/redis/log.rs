//! The log's newest records in Redis: what `durability = "wal+redis"` acknowledges by.
//!
//! ```text
//! WAL ──commit──▶ Log ──a stream a shard, fenced──▶ Redis ──▶ Confirmed ──▶ acknowledged
//!                  ▲ mark: store, position            │
//!                  └── gone or behind: sent again      └──▶ restore: a directory that was lost
//! ```
//!
//! | Key | |
//! |---|---|
//! | `Plog:{s017}` | stream: records as the WAL has them (`r`), until their blocks are there |
//! | `Pmark:log:{s000}` | hash: whose store, and up to where its WAL is in the streams |
//!
//! The mark is looked at with every connection and once a second: where a failover lost the last
//! writes, or a restart everything, the log is sent again from there (or from its beginning).
//! Files that are gone by then are in segments: the log goes on when the mirror has brought those.
//! Records that come twice are one: rows by their time, frames by their number.

use super::batch::{Batch, Writes};
use super::describe::Catalog;
use super::fence::Fence;
use super::keys::{Keys, SHARDS, jittered, shard};
use super::link::{Link, Reads, Trouble};
use super::mirror::MirrorCounts;
use super::plant::{Plant, has};
use super::stream::{position, text};
use super::target::Target;
use super::{RedisConfig, RedisError};
use crate::store::local::{WAL, Writer};
use crate::store::shared::Shared;
use crate::store::wal::{self, Record};
use crate::store::{Recovery, Seen, StoreError};
use redis::RedisResult;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;
use strobe_journal::{Position, read_between};
use strobe_wire::frame;
use strobe_wire::ids::{BootId, HostId};

/// Up to where the log is in Redis; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Confirmed {
    shared: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    through: Mutex<Position>,
    sender: OnceLock<Thread>,
}

/// Sends the log; one thread owns it.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    target: Arc<Target>,
    link: Option<Link>,
    keys: Keys,
    fence: Fence,
    catalog: Catalog,
    counts: Arc<Mutex<MirrorCounts>>,
    store: String,
    life_s: u64,
    at: Position,
    confirmed: Confirmed,
    looked_ms: i64,
    said: bool,
}

/// What a log shares with the mirror beside it.
pub(super) struct LogParts {
    pub(super) shared: Arc<Shared>,
    pub(super) target: Arc<Target>,
    pub(super) keys: Keys,
    pub(super) fence: Fence,
    pub(super) catalog: Catalog,
    pub(super) counts: Arc<Mutex<MirrorCounts>>,
    pub(super) store: u64,
    pub(super) raw_ms: i64,
}

impl Confirmed {
    /// Everything before this is in Redis.
    #[must_use]
    pub fn through(&self) -> Position {
        *self.shared.through.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something to send.
    pub fn wake(&self) {
        if let Some(thread) = self.shared.sender.get() {
            thread.unpark();
        }
    }

    fn set(&self, through: Position) {
        *self.shared.through.lock().unwrap_or_else(PoisonError::into_inner) = through;
    }
}

impl Log {
    pub(super) fn new(parts: LogParts) -> Self {
        let LogParts { shared, target, keys, fence, catalog, counts, store, raw_ms } = parts;
        Self {
            shared,
            target,
            link: None,
            keys,
            fence,
            catalog,
            counts,
            store: format!("{store:016x}"),
            life_s: u64::try_from(raw_ms / 1000).unwrap_or(1),
            at: Position::default(),
            confirmed: Confirmed::default(),
            looked_ms: i64::MIN,
            said: false,
        }
    }

    /// Who waits for it asks this; the thread that calls this sends.
    #[must_use]
    pub fn confirmed(&self) -> Confirmed {
        self.confirmed.clone()
    }

    /// Sends what was committed; returns how long to wait, unless something is committed before.
    pub fn pass(&mut self, now_ms: i64) -> Duration {
        // It is set once: by the thread that sends.
        self.confirmed.shared.sender.get_or_init(std::thread::current);
        match self.try_pass(now_ms) {
            Ok(()) => {
                if std::mem::take(&mut self.said) {
                    log::info!("Redis at {} takes the log again", self.target.address);
                }
                PASS_EVERY
            }
            Err(error) => {
                let trouble = Trouble::of(&error);
                if !std::mem::replace(&mut self.said, true) {
                    let why = trouble.sentence(&self.target.address, &error);
                    log::error!("{why}; nothing is acknowledged until Redis has it");
                }
                self.link = None;
                let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
                counts.failures[trouble as usize] += 1;
                BACKOFF
            }
        }
    }

    fn try_pass(&mut self, now_ms: i64) -> RedisResult<()> {
        let fresh = self.link.is_none();
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Link::open(&self.target, Reads::Primary, ANSWER_MAX)?,
        };
        let blind = has(Plant::LogNoRefill) && self.at != Position::default();
        if (fresh || self.looked_ms.saturating_add(LOOK_EVERY_MS) <= now_ms) && !blind {
            self.look(&mut link)?;
            self.looked_ms = now_ms;
        }
        let through = self.shared.synced();
        if has(Plant::LogEarly) {
            self.confirmed.set(through);
        }
        while self.at < through {
            let at = self.send(&mut link, through, now_ms)?;
            if at == self.at {
                break;
            }
            self.at = at;
            self.confirmed.set(at);
        }
        self.link = Some(link);
        Ok(())
    }

    /// Goes back to where Redis is.
    fn look(&mut self, link: &mut Link) -> RedisResult<()> {
        let mut batch = Batch::default();
        batch.cmd("HMGET", &self.keys.log_mark()).arg(&["store", "at"]);
        let answer = link.query(&batch)?.into_iter().next().unwrap_or(::redis::Value::Nil);
        let (store, at): (Option<String>, Option<String>) = ::redis::from_redis_value(answer)?;
        let at = at.filter(|_| store.as_ref() == Some(&self.store));
        // One from the future is of a log that is gone.
        let at = at.and_then(|at| position(&at)).filter(|at| *at <= self.shared.synced());
        let at = at.unwrap_or_default();
        if at < self.at {
            // Blocks may be gone with it: the mirror says anew what is there.
            self.counts.lock().unwrap_or_else(PoisonError::into_inner).whole = 0;
        }
        self.at = at;
        // After a start there may be nothing to send: what is told again then waits for nothing more.
        self.confirmed.set(self.at);
        Ok(())
    }

    /// Whether a file that was not sent is gone, and Redis lacks its blocks: what was in it is in segments,
    /// and the mirror brings them.
    fn lacks_blocks(&self) -> RedisResult<bool> {
        let first = strobe_journal::first(&self.shared.config().dir.join(WAL));
        let first = first.map_err(|error| std::io::Error::other(error.to_string()))?;
        if first.is_some_and(|first| first <= self.at.file) {
            return Ok(false);
        }
        let segments = self.shared.segments();
        let raw = segments.iter().filter(|segment| segment.step_ms == 0);
        let newest = raw.filter_map(|segment| segment.number()).max().unwrap_or(0);
        Ok(self.counts.lock().unwrap_or_else(PoisonError::into_inner).whole < newest)
    }

    /// Where the log is then; where it was, if blocks come first.
    fn send(&mut self, link: &mut Link, through: Position, now_ms: i64) -> RedisResult<Position> {
        let (mut writes, mut shards) = (Writes::default(), BTreeSet::new());
        let (catalog, keys) = (&self.catalog, &self.keys);
        let lag_ms = self.counts.lock().unwrap_or_else(PoisonError::into_inner).lag_ms;
        let lag_ms = i64::try_from(lag_ms).unwrap_or(i64::MAX);
        let keep_ms = now_ms.saturating_sub(lag_ms).saturating_sub(SEALED_WITHIN_MS).max(0);
        let mut add = |writes: &mut Writes, source: u128, record: &[u8]| {
            let shard = shard(source);
            let entry = writes.cmd(shard, "XADD", &keys.log(shard));
            entry.arg("MINID").arg("~").arg(keep_ms).arg("*").arg("r").arg(record);
            shards.insert(shard);
        };
        let dir = self.shared.config().dir.join(WAL);
        let read = read_between(
            &dir,
            self.at,
            through,
            BATCH_BYTES,
            &mut |record| match wal::read(record) {
                Some(Record::Schema(schema)) => catalog.add_schema(&mut writes, &schema),
                Some(Record::Labels(source, labels)) => {
                    catalog.add_labels(&mut writes, source, &labels);
                }
                Some(Record::Frame(bytes)) => {
                    if let Ok(frame) = frame::open(bytes) {
                        add(&mut writes, frame.header.host.0, record);
                    }
                }
                Some(Record::Samples(samples)) => add(&mut writes, samples.source, record),
                None => {}
            },
        );
        let at = read.map_err(|error| std::io::Error::other(error.to_string()))?;
        if self.lacks_blocks()? {
            return Ok(self.at);
        }
        for shard in shards {
            let key = self.keys.log(shard);
            writes.cmd(shard, "EXPIRE", &key).arg(jittered(self.life_s, &key));
        }
        self.fence.send(link, writes)?;
        if 0 < self.fence.refused() {
            self.fence.retry(true);
            return Err(std::io::Error::other("a newer owner has written to a shard").into());
        }
        let (mut writes, key) = (Writes::default(), self.keys.log_mark());
        let mark = writes.cmd(0, "HSET", &key);
        mark.arg("store").arg(&self.store).arg("at").arg(text(at));
        writes.cmd(0, "EXPIRE", &key).arg(jittered(self.life_s, &key));
        self.fence.send(link, writes)?;
        Ok(at)
    }
}

/// Takes what Redis has of a lost directory's log into an empty store: frames and samples that were
/// acknowledged and may not be in blocks. Adds the numbers of its frames to what is known.
///
/// A file says that it has begun, so that one that was cut short is done again.
///
/// # Errors
/// Redis does not answer, or the store refuses: who goes on would acknowledge less than promised.
pub fn restore(
    config: &RedisConfig,
    writer: &mut Writer,
    recovery: &mut Recovery,
    now_ms: i64,
) -> Result<u64, RedisError> {
    let begun = writer.shared.config().dir.join("restoring");
    let has_own = recovery.records != 0 || !writer.shared.segments().is_empty();
    if has_own && !begun.exists() {
        return Ok(0);
    }
    let io = |source| RedisError::Id { path: begun.clone(), source };
    std::fs::write(&begun, "").map_err(io)?;
    let target = Arc::new(Target::of(config)?);
    let lost = |why: String| RedisError::Restore { address: target.address.clone(), why };
    let refused =
        |error: ::redis::RedisError| lost(Trouble::of(&error).sentence(&target.address, &error));
    let mut link = Link::open(&target, Reads::Primary, ANSWER_MAX).map_err(refused)?;
    let keys = Keys::new(&config.prefix);
    let catalog = Catalog::new(&writer.shared, None, config);
    let mut restoring = Restoring { catalog, known: BTreeSet::new(), seen: BTreeMap::new() };
    let mut records = 0;
    for shard in 0..SHARDS {
        let mut from = "-".to_owned();
        loop {
            let found = page(&mut link, &keys.log(shard), &from).map_err(refused)?;
            let Some((last, _)) = found.last() else { break };
            from = format!("({last}");
            for (_, record) in &found {
                let described = restoring.describe(&mut link, record, writer).map_err(refused)?;
                match described.and_then(|()| writer.again(record)) {
                    Ok(()) => records += 1,
                    Err(error) => recovery.damage.push(format!("Redis's log: {error}")),
                }
            }
            writer.commit(now_ms).map_err(|error| lost(error.to_string()))?;
        }
    }
    for ((host, boot), numbers) in restoring.seen {
        let ranges = numbers.into_iter().map(|seq| (seq, seq)).collect();
        recovery.seen.push(Seen { host, boot, ranges });
    }
    std::fs::remove_file(&begun).map_err(io)?;
    Ok(records)
}

/// What was found while restoring.
struct Restoring {
    catalog: Catalog,
    /// Sources and schemas that the writer was told.
    known: BTreeSet<u128>,
    seen: BTreeMap<(HostId, BootId), BTreeSet<u64>>,
}

impl Restoring {
    /// Tells the writer whose record it is, and of which schema.
    fn describe(
        &mut self,
        link: &mut Link,
        record: &[u8],
        writer: &mut Writer,
    ) -> RedisResult<Result<(), StoreError>> {
        let (source, schema) = match wal::read(record) {
            Some(Record::Frame(bytes)) => {
                let Ok(frame) = frame::open(bytes) else { return Ok(Ok(())) };
                let header = frame.header;
                self.seen.entry((header.host, header.boot)).or_default().insert(header.seq.0);
                (header.host.0, Some(header.schema.0))
            }
            Some(Record::Samples(samples)) => (samples.source, None),
            _ => return Ok(Ok(())),
        };
        if self.known.insert(source) {
            let labels = self.catalog.labels(link, source)?;
            if let Err(error) = writer.label_again(source, labels) {
                return Ok(Err(error));
            }
        }
        if let Some(id) = schema
            && self.known.insert(u128::from(id))
            && let Some(schema) = self.catalog.schema(link, id)?
        {
            return Ok(writer.schema(&schema));
        }
        Ok(Ok(()))
    }
}

/// Entries of a stream from one on, and their records.
fn page(link: &mut Link, key: &str, from: &str) -> RedisResult<Vec<(String, Vec<u8>)>> {
    let mut batch = Batch::default();
    batch.cmd("XRANGE", key).arg(from).arg("+").arg("COUNT").arg(PAGE);
    let answer = link.query(&batch)?.into_iter().next().unwrap_or(::redis::Value::Nil);
    let entries: Vec<(String, BTreeMap<String, Vec<u8>>)> = ::redis::from_redis_value(answer)?;
    let record =
        |(id, mut fields): (String, BTreeMap<String, Vec<u8>>)| Some((id, fields.remove("r")?));
    Ok(entries.into_iter().filter_map(record).collect())
}

/// Longest wait for Redis: to connect, to write, to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Unless something is committed before.
const PASS_EVERY: Duration = Duration::from_millis(500);
const BACKOFF: Duration = Duration::from_millis(500);
const LOOK_EVERY_MS: i64 = 1_000;
/// Of the log, a pipeline.
const BATCH_BYTES: usize = 1 << 20;
/// A row is in a block, and the block in Redis, after this: ten minutes and their margin, twice.
const SEALED_WITHIN_MS: i64 = 30 * 60_000;
const PAGE: usize = 500;
