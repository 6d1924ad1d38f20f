//! The log's newest records in Redis: what a host of class `wal+redis` is acknowledged by.
//!
//! ```text
//! WAL ──commit──▶ Log ──a stream a shard, fenced──▶ Redis ──▶ Confirmed ──▶ acknowledged
//!                  ▲ marks: store, positions          │
//!                  └── gone or behind: sent again      └──▶ restore, Taker: a directory that was lost
//! ```
//!
//! | Key | |
//! |---|---|
//! | `Plog:{s017}` | stream: records as the WAL has them (`r`), and whose (`s`), until their blocks are there |
//! | `Pmark:log:{s017}:<store>` | up to where a store's records are in this stream |
//! | `Plogs:<store>` | hash: up to where all of its WAL is there (`at`), and the last of each shard |
//! | `Plogs` | hash: by store its broker, and the ms when it wrote last |
//! | `Ptaken:{s017}` | hash: by lost store the last entry that a shard's owner has taken in |
//!
//! Only records of that class are sent (the WAL says which those are): while there are none, Redis is not
//! asked. The marks are looked at with every connection and once a second: where a failover lost the
//! last writes, or a restart everything, the log is sent again from there (or from its beginning). A
//! shard's mark is written with its records, so that a Cluster's node that loses its last writes loses it
//! with them, and what the other nodes have says that it is missing.
//! Files that are gone by then are in segments: the log goes on when the mirror has brought those.
//! Records that come twice are one: rows by their time, frames by their number.
//!
//! In a cluster every write carries the shard's epoch. Who was deposed and does not know it is refused,
//! and acknowledges nothing more of this class.

use super::batch::{Batch, Writes};
use super::describe::Catalog;
use super::fence::Fence;
use super::keys::{Keys, jittered, shard};
use super::link::{Link, Reads, Trouble};
use super::mirror::MirrorCounts;
use super::plant::{Plant, has};
use super::stream::{position, text};
use super::taken::{Taken, Taker};
use super::target::Target;
use crate::store::local::WAL;
use crate::store::shared::Shared;
use crate::store::wal::{self, Record};
use redis::RedisResult;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;
use strobe_journal::{Position, read_between};
use strobe_wire::frame;

/// Up to where the log is in Redis; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Confirmed {
    shared: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    through: Mutex<Position>,
    sender: OnceLock<Thread>,
    /// Relaxed: a flag by itself, and whoever misses it looks again soon.
    wanted: AtomicBool,
    offer: Mutex<Offer>,
}

/// A part of a lost broker's log, on its way into the one here.
#[derive(Debug, Default)]
enum Offer {
    #[default]
    Nothing,
    /// For the writer.
    Made(Taken),
    /// He has it and will say what became of it.
    Writing,
    /// For who made it: it is in the log up to here, or could not be put there.
    Done(Option<Position>),
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
    /// What Redis was told of that last.
    marked: Position,
    /// Whose log it is, as Redis was told; 0: a broker's by itself.
    named: u64,
    confirmed: Confirmed,
    looked_ms: i64,
    said: bool,
    taker: Taker,
    /// Sources and schemas that Redis was told of by this link.
    told: BTreeSet<u128>,
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

    /// Whether anybody's rows are to wait for it.
    pub fn want(&self, wanted: bool) {
        self.shared.wanted.store(wanted, Ordering::Relaxed);
    }

    /// See [`Self::want`].
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.shared.wanted.load(Ordering::Relaxed)
    }

    /// What is to be taken into the log here, once.
    #[must_use]
    pub fn offered(&self) -> Option<Taken> {
        let mut offer = self.offer();
        match std::mem::replace(&mut *offer, Offer::Writing) {
            Offer::Made(taken) => Some(taken),
            other => {
                *offer = other;
                None
            }
        }
    }

    /// It is there up to this position; none: it could not be.
    pub fn took(&self, at: Option<Position>) {
        *self.offer() = Offer::Done(at);
        self.wake();
    }

    pub(super) fn make_offer(&self, taken: Taken) {
        *self.offer() = Offer::Made(taken);
    }

    /// What became of it, once.
    pub(super) fn outcome(&self) -> Option<Option<Position>> {
        let mut offer = self.offer();
        let Offer::Done(at) = *offer else { return None };
        *offer = Offer::Nothing;
        Some(at)
    }

    fn offer(&self) -> MutexGuard<'_, Offer> {
        self.shared.offer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Redis has it up to there.
    pub(crate) fn set(&self, through: Position) {
        *self.shared.through.lock().unwrap_or_else(PoisonError::into_inner) = through;
    }
}

impl Log {
    pub(super) fn new(parts: LogParts, confirmed: Confirmed) -> Self {
        let LogParts { shared, target, keys, fence, catalog, counts, store, raw_ms } = parts;
        Self {
            taker: Taker::new(keys.clone(), catalog.clone(), store, confirmed.clone()),
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
            marked: Position::default(),
            named: 0,
            confirmed,
            looked_ms: i64::MIN,
            said: false,
            told: BTreeSet::new(),
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
            Ok(more) => {
                if std::mem::take(&mut self.said) {
                    log::info!("Redis at {} takes the log again", self.target.address);
                }
                if more { Duration::ZERO } else { PASS_EVERY }
            }
            Err(error) => {
                let trouble = Trouble::of(&error);
                if !std::mem::replace(&mut self.said, true) {
                    let why = trouble.sentence(&self.target.address, &error);
                    log::error!(
                        "{why}; what is of class wal+redis is not acknowledged until Redis has it"
                    );
                }
                self.link = None;
                let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
                counts.failures[trouble as usize] += 1;
                BACKOFF
            }
        }
    }

    /// Whether there is more to take in.
    fn try_pass(&mut self, now_ms: i64) -> RedisResult<bool> {
        let through = self.shared.synced();
        let lacks = |at: Position| self.shared.copied.range().is_some_and(|(_, last)| at < last);
        let wanted = self.confirmed.is_wanted() || lacks(self.at);
        if !wanted {
            // Nobody waits for Redis: it has what it has to have.
            self.at = self.at.max(through);
            self.confirmed.set(through);
        }
        if !wanted && !self.taker.is_due(&self.fence, now_ms) {
            return Ok(false);
        }
        let fresh = self.link.is_none();
        let mut link = match self.link.take() {
            Some(link) => link,
            None => {
                self.told.clear();
                Link::open(&self.target, Reads::Primary, ANSWER_MAX)?
            }
        };
        let blind = has(Plant::LogNoRefill) && self.at != Position::default();
        if wanted && (fresh || self.looked_ms.saturating_add(LOOK_EVERY_MS) <= now_ms) && !blind {
            if fresh {
                self.named = self.taker.told_of(&mut link)?.unwrap_or(self.named);
            }
            self.look(&mut link)?;
            self.looked_ms = now_ms;
            if self.marked < self.at || fresh || self.broker() != self.named {
                self.mark(&mut link, BTreeSet::new(), now_ms)?;
            }
        }
        if has(Plant::LogEarly) {
            self.confirmed.set(through);
        }
        while wanted && self.at < through {
            let at = self.send(&mut link, through, now_ms)?;
            if at == self.at {
                break;
            }
            self.at = at;
            self.confirmed.set(at);
        }
        let more = self.taker.pass(&mut link, &mut self.fence, now_ms)?;
        self.link = Some(link);
        Ok(more)
    }

    /// Goes back to where Redis is.
    fn look(&mut self, link: &mut Link) -> RedisResult<()> {
        let mut batch = Batch::default();
        batch.cmd("HGETALL", &self.keys.log_of(&self.store));
        let answer = link.query(&batch)?.into_iter().next().unwrap_or(::redis::Value::Nil);
        let told: BTreeMap<String, String> = ::redis::from_redis_value(answer)?;
        let synced = self.shared.synced();
        // One from the future is of a log that is gone.
        let known = |at: &String| position(at).filter(|at| *at <= synced);
        let mut at = told.get("at").and_then(known).unwrap_or_default();
        let first = strobe_journal::first(&self.shared.config().dir.join(WAL));
        let first = first.map_err(|error| std::io::Error::other(error.to_string()))?;
        // What the files that are here have of each shard: the rest is in blocks.
        let of_shards = told.iter().filter_map(|(name, at)| Some((name.parse().ok()?, known(at)?)));
        let of_shards: Vec<(usize, Position)> =
            of_shards.filter(|(_, at)| first.is_some_and(|first| first <= at.file)).collect();
        let mut batch = Batch::default();
        for (shard, _) in &of_shards {
            batch.cmd("GET", &self.keys.log_mark(*shard, &self.store));
        }
        let marks = if of_shards.is_empty() { Vec::new() } else { link.query(&batch)? };
        for ((_, sent), mark) in of_shards.iter().zip(marks) {
            let mark: Option<String> = ::redis::from_redis_value(mark)?;
            let mark = mark.as_ref().and_then(known).unwrap_or_default();
            if mark < *sent {
                at = at.min(mark);
            }
        }
        if at < self.at {
            // Blocks may be gone with it: the mirror says anew what is there.
            self.counts.lock().unwrap_or_else(PoisonError::into_inner).whole = 0;
            self.told.clear();
        }
        (self.at, self.marked) = (at, at);
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

    /// Where the next record may be that has to be there.
    fn next(&self, through: Position) -> Position {
        let range = self.shared.copied.range().filter(|(_, last)| self.at < *last);
        range.map_or(through, |(first, _)| first)
    }

    /// Where the log is then; where it was, if blocks come first.
    fn send(&mut self, link: &mut Link, through: Position, now_ms: i64) -> RedisResult<Position> {
        let next = self.next(through);
        if self.at < next {
            return Ok(if self.lacks_blocks()? { self.at } else { next });
        }
        let (mut writes, mut shards) = (Writes::default(), BTreeSet::new());
        let (catalog, keys, store) = (&self.catalog, &self.keys, &self.store);
        let lag_ms = self.counts.lock().unwrap_or_else(PoisonError::into_inner).lag_ms;
        let lag_ms = i64::try_from(lag_ms).unwrap_or(i64::MAX);
        let keep_ms = now_ms.saturating_sub(lag_ms).saturating_sub(SEALED_WITHIN_MS).max(0);
        let (told, from) = (&mut self.told, &self.shared);
        let mut add = |writes: &mut Writes, source: u128, schema: Option<u64>, record: &[u8]| {
            let shard = shard(source);
            // What names it may stand before what is read: it was of another class then.
            if told.insert(source) {
                let labels = Arc::clone(&from.source(source).read().labels);
                catalog.add_labels(writes, source, &labels);
            }
            if let Some(id) = schema.filter(|id| !told.contains(&u128::from(*id)))
                && let Some(section) = from.source(source).read().sections.get(&id)
            {
                told.insert(u128::from(id));
                catalog.add_schema(writes, &section.schema);
            }
            let entry = writes.cmd(shard, "XADD", &keys.log(shard));
            entry.arg("MINID").arg("~").arg(keep_ms).arg("*");
            entry.arg("r").arg(record).arg("s").arg(store);
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
                Some(_) if !wal::is_copied(record) => {}
                Some(Record::Frame(bytes)) => {
                    if let Ok(frame) = frame::open(bytes) {
                        let header = frame.header;
                        add(&mut writes, header.host.0, Some(header.schema.0), record);
                    }
                }
                Some(Record::Samples(samples)) => add(&mut writes, samples.source, None, record),
                None => {}
            },
        );
        let at = read.map_err(|error| std::io::Error::other(error.to_string()))?;
        if self.lacks_blocks()? {
            return Ok(self.at);
        }
        for shard in &shards {
            let key = self.keys.log(*shard);
            writes.cmd(*shard, "EXPIRE", &key).arg(jittered(self.life_s, &key));
            let key = self.keys.log_mark(*shard, &self.store);
            let life_s = jittered(self.life_s, &key);
            writes.cmd(*shard, "SET", &key).arg(text(at)).arg("EX").arg(life_s);
        }
        self.fence.retry(false);
        self.fence.send(link, writes)?;
        if 0 < self.fence.refused() {
            self.fence.retry(true);
            return Err(std::io::Error::other("a newer owner has written to a shard").into());
        }
        let before = std::mem::replace(&mut self.at, at);
        let marked = self.mark(link, shards, now_ms);
        self.at = before;
        marked.map(|()| at)
    }

    /// Says in Redis how far it has the log, with the last of these shards.
    fn mark(&mut self, link: &mut Link, shards: BTreeSet<usize>, now_ms: i64) -> RedisResult<()> {
        let (mut writes, at) = (Writes::default(), text(self.at));
        let key = self.keys.log_of(&self.store);
        let mark = writes.free("HSET", &key).arg("at").arg(&at);
        for shard in shards {
            mark.arg(shard).arg(&at);
        }
        writes.free("EXPIRE", &key).arg(jittered(self.life_s, &key));
        let (key, broker) = (self.keys.logs(), self.broker());
        writes.free("HSET", &key).arg(&self.store).arg(format!("{broker} {now_ms}"));
        writes.free("EXPIRE", &key).arg(jittered(self.life_s, &key));
        self.fence.send(link, writes)?;
        (self.marked, self.named) = (self.at, broker);
        Ok(())
    }

    /// This one; until it knows that itself, whoever it was in the life before.
    fn broker(&self) -> u64 {
        match self.fence.epochs.broker() {
            0 => self.named,
            broker => broker,
        }
    }
}

/// Longest wait for Redis: to connect, to write, to answer.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Unless something is committed before.
const PASS_EVERY: Duration = Duration::from_millis(500);
const BACKOFF: Duration = Duration::from_millis(500);
const LOOK_EVERY_MS: i64 = 1_000;
/// Of the log, a pipeline.
const BATCH_BYTES: usize = 1 << 20;
/// A row is in a block, and the block in Redis, after this: ten minutes and their margin, twice.
const SEALED_WITHIN_MS: i64 = 30 * 60_000;
