//! The writing side: every sealed block goes to Redis, the oldest segment first.

use super::archive::Archive;
use super::batch::Writes;
use super::describe::Catalog;
use super::era::Era;
use super::fence::{Epochs, Fence};
use super::keys::{Keys, Place, SHARDS, jittered, shard, span_ms};
use super::link::{Link, Reads, TROUBLES, Trouble};
use super::log::{Log, LogParts};
use super::marks::Marks;
use super::stream::Stream;
use super::target::Target;
use super::{RedisConfig, RedisError};
use crate::registry::Registry;
use crate::store::block::{Block, Data};
use crate::store::local::Store;
use crate::store::rollup::HOURS;
use crate::store::segment::{Entry, Loaded, Segment};
use crate::store::shared::Shared;
use redis::RedisResult;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Follows a store and writes its sealed blocks to Redis; one thread owns it.
#[derive(Debug)]
pub struct Mirror {
    shared: Arc<Shared>,
    target: Arc<Target>,
    link: Option<Link>,
    fence: Fence,
    config: RedisConfig,
    keys: Keys,
    catalog: Catalog,
    stream: Stream,
    /// Whose marks and places are ours.
    era: Era,
    counts: Arc<Mutex<MirrorCounts>>,
    stopping: Arc<AtomicBool>,
    backoff: Duration,
    /// The last trouble that was logged.
    said: Option<Trouble>,
    /// As Redis last said.
    marks: Marks,
    /// Whether the marks were ours at the last pass.
    settled: bool,
    /// Shards that newer owners had written to.
    fenced: usize,
}

/// What a mirror works with.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Whose blocks.
    pub store: &'a Store,
    /// Where hosts are known that are read back.
    pub registry: Option<Registry>,
    /// Ends a pass early.
    pub stopping: Arc<AtomicBool>,
    /// Wall time, ms: nothing of an earlier life of the directory ends after this.
    pub now_ms: i64,
    /// For time-outs of queries.
    pub clock: fn() -> Instant,
}

/// What the mirror counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MirrorCounts {
    /// Segments that are whole there.
    pub segments: u64,
    /// Blocks that Redis acknowledged.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rows that its stream took.
    pub rows: u64,
    /// Passes that failed, by [`Trouble`].
    pub failures: [u64; TROUBLES.len()],
    /// Segments that are not whole in Redis.
    pub lag_segments: u64,
    /// From the first sample of the oldest of these until now.
    pub lag_ms: u64,
    /// Shards that a newer owner has written to.
    pub fenced_shards: u64,
    /// Whether the last pass succeeded.
    pub connected: bool,
}

impl Mirror {
    /// A mirror of a store in the Redis at `config.url`; connects at the first pass. Queries of
    /// the store read there from now on.
    ///
    /// # Errors
    /// The URL is not one, or the store's id cannot be kept.
    pub fn new(config: RedisConfig, parts: Parts<'_>) -> Result<Self, RedisError> {
        let Parts { store, registry, stopping, now_ms, clock } = parts;
        let shared = Arc::clone(&store.shared);
        let newest = shared.segments().iter().filter_map(|segment| segment.number()).max();
        let era = Era::of(&shared.config.dir, newest.unwrap_or(0))?;
        let archive = Archive::new(&config, era.id, now_ms, clock)?;
        let target = Arc::new(Target::of(&config)?);
        let keys = Keys::new(&config.prefix);
        let life_s = u64::try_from(config.metadata_ms / 1000).unwrap_or(1);
        // A second mirror of one store reads by way of the first.
        drop(shared.archive.set(archive));
        Ok(Self {
            catalog: Catalog::new(&shared, registry, &config),
            stream: Stream::new(&shared, &config, era.id),
            fence: Fence::new(&keys, &Arc::new(Epochs::none()), life_s),
            keys,
            shared,
            target,
            link: None,
            config,
            era,
            counts: Arc::default(),
            stopping,
            backoff: BACKOFF_MIN,
            said: None,
            marks: Marks::none(),
            settled: false,
            fenced: 0,
        })
    }

    /// What it counts, to be read by others.
    #[must_use]
    pub fn counts(&self) -> Arc<Mutex<MirrorCounts>> {
        Arc::clone(&self.counts)
    }

    /// What sends the log, for a thread of its own: `durability = "wal+redis"`.
    #[must_use]
    pub fn log(&self) -> Log {
        let life_s = u64::try_from(self.config.metadata_ms / 1000).unwrap_or(1);
        Log::new(LogParts {
            shared: Arc::clone(&self.shared),
            target: Arc::clone(&self.target),
            keys: self.keys.clone(),
            fence: Fence::new(&self.keys, &self.fence.epochs, life_s),
            catalog: self.catalog.clone(),
            counts: Arc::clone(&self.counts),
            store: self.era.id,
            raw_ms: self.config.raw_ms,
        })
    }

    /// The epochs that its writes carry: whoever decides on owners sets them.
    #[must_use]
    pub fn epochs(&self) -> Arc<Epochs> {
        Arc::clone(&self.fence.epochs)
    }

    /// Writes the oldest segment that is not in Redis; returns how long to wait for the next pass.
    pub fn pass(&mut self, now_ms: i64) -> Duration {
        match self.try_pass(now_ms) {
            Ok(more) => {
                if self.said.take().is_some() {
                    log::info!("Redis at {} takes blocks again", self.target.address);
                }
                self.backoff = BACKOFF_MIN;
                self.count(|counts| counts.connected = true);
                if more { Duration::ZERO } else { PASS_EVERY }
            }
            Err(error) => {
                let trouble = Trouble::of(&error);
                if self.said.replace(trouble) != Some(trouble) {
                    log::error!(
                        "{}; samples are kept locally, and Redis is tried again and then filled up",
                        trouble.sentence(&self.target.address, &error)
                    );
                }
                self.link = None;
                self.count(|counts| {
                    counts.connected = false;
                    counts.failures[trouble as usize] += 1;
                });
                // The lag goes on growing while Redis is away.
                self.note_lag(&self.behind(), now_ms);
                let wait = self.backoff;
                self.backoff = (wait * 2).min(BACKOFF_MAX);
                wait
            }
        }
    }

    /// Whether there is more to write.
    fn try_pass(&mut self, now_ms: i64) -> RedisResult<bool> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.connect()?,
        };
        self.marks = Marks::read(&mut link, &self.keys, self.era.id)?;
        self.settle(&mut link, now_ms)?;
        let fence = &mut self.fence;
        let mut send = |writes| fence.send(&mut link, writes);
        let (rows, more) = self.stream.pass(&self.catalog, self.marks.wal, &mut send)?;
        self.count(|counts| counts.rows += rows);
        let behind = self.behind();
        self.note_lag(&behind, now_ms);
        if let Some((number, segment)) = behind.first()
            && self.write(&mut link, *number, segment, now_ms)?
        {
            let field = if segment.step_ms == 0 { "raw" } else { "rollup" };
            self.mark(&mut link, &[(field, *number)])?;
            self.era.note(*number);
            self.count(|counts| counts.segments += 1);
            self.note_lag(behind.get(1..).unwrap_or(&[]), now_ms);
        }
        self.note_fenced();
        self.link = Some(link);
        Ok(more || 1 < behind.len())
    }

    fn connect(&mut self) -> RedisResult<Link> {
        let mut link = Link::open(&self.target, Reads::Primary, ANSWER_MAX)?;
        for (node, memory) in link.memory() {
            warn_of_eviction(&node, &memory);
        }
        if link.is_cluster() {
            // A failover of one node may have lost some that blocks of the others need.
            let fence = &mut self.fence;
            self.catalog.write_schemas(&mut |writes| fence.send(&mut link, writes))?;
        }
        Ok(link)
    }

    fn note_fenced(&mut self) {
        let (now, before) = (self.fence.refused(), self.fenced);
        if before < now {
            log::warn!(
                "Redis at {}: newer owners have written to {now} shards; this broker leaves them \
                 alone until it owns them again",
                self.target.address
            );
        }
        self.fenced = now;
        self.count(|counts| {
            let new = now.saturating_sub(before);
            counts.failures[Trouble::Fenced as usize] += u64::try_from(new).unwrap_or(0);
            counts.fenced_shards = u64::try_from(now).unwrap_or(u64::MAX);
        });
    }

    /// Reads back who is known there, once a life of this broker and of what Redis holds.
    fn settle(&mut self, link: &mut Link, now_ms: i64) -> RedisResult<()> {
        let Some(archive) = self.shared.archive.get() else { return Ok(()) };
        archive.set_seen(now_ms);
        self.fence.retry(!self.marks.ours);
        if self.settled && self.marks.ours {
            return Ok(());
        }
        let hosts = self.catalog.read(link)?;
        let elsewhere_ms = if self.marks.ours {
            self.marks.elsewhere_ms
        } else if 0 < hosts {
            // Blocks of others: of an earlier life of this directory, or of a Redis filled before.
            let before = if self.settled { now_ms } else { i64::MIN };
            archive.elsewhere_ms().max(before)
        } else {
            i64::MIN
        };
        archive.set_elsewhere(elsewhere_ms);
        if !self.marks.ours {
            let mut writes = Writes::default();
            for shard in 0..SHARDS {
                writes.cmd(shard, "DEL", &self.keys.mark(shard, self.era.id));
            }
            self.fence.send(link, writes)?;
            self.mark(link, &[("raw", 0), ("rollup", 0)])?;
        }
        self.settled = true;
        if 0 < hosts {
            log::info!(
                "Redis at {} knows {hosts} hosts; their history is read there",
                self.target.address
            );
        }
        Ok(())
    }

    /// Segments that some shard lacks, by number.
    fn behind(&self) -> Vec<(u64, Arc<Segment>)> {
        let counts = |shard| !self.fence.is_refused(shard);
        let (raw, rollup) = (self.marks.least(0, counts), self.marks.least(1, counts));
        let segments = self.shared.segments();
        let numbered = segments.iter().cloned().filter_map(|segment| {
            let number = segment.number()?;
            let mark = if segment.step_ms == 0 { raw } else { rollup };
            (mark < number).then_some((number, segment))
        });
        let mut behind: Vec<_> = numbered.collect();
        behind.sort_by_key(|(number, segment)| (*number, segment.step_ms));
        behind
    }

    /// False: stopped on the way.
    fn write(
        &mut self,
        link: &mut Link,
        number: u64,
        segment: &Segment,
        now_ms: i64,
    ) -> RedisResult<bool> {
        let Ok(loaded) = segment.loaded() else {
            // Removed by retention meanwhile, or unreadable: queries say so.
            return Ok(true);
        };
        let lacking = |entry: &&Entry| {
            let shard = shard(entry.source);
            !self.fence.is_refused(shard) && self.marks.of(shard, segment.step_ms) < number
        };
        let entries: Vec<Entry> = loaded.entries().iter().filter(lacking).copied().collect();
        let fence = &mut self.fence;
        self.catalog.write(&entries, now_ms, &mut |writes| fence.send(link, writes))?;
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            if self.stopping.load(Ordering::Acquire) {
                return Ok(false);
            }
            let (mut pipe, mut blocks, mut bytes) = (Writes::default(), 0, 0);
            while let Some((entry, others)) = rest.split_first() {
                if PIPELINE_BYTES <= bytes {
                    break;
                }
                rest = others;
                let Some(left_s) = self.left_s(segment.step_ms, entry.last_ms, now_ms) else {
                    continue;
                };
                let Some(block) = read(&loaded, entry) else {
                    log::warn!(
                        "{}: a block that does not check is not mirrored",
                        segment.path.display()
                    );
                    continue;
                };
                let place = Place::of(entry, self.era.id, number);
                self.add(&mut pipe, entry.source, segment.step_ms, &place, (&block, left_s));
                if others.first().is_none_or(|next| next.source != entry.source) {
                    self.prune(&mut pipe, entry.source, segment.step_ms, now_ms);
                }
                blocks += 1;
                bytes += block.len();
            }
            self.fence.send(link, pipe)?;
            self.count(|counts| {
                counts.blocks += blocks;
                counts.bytes += u64::try_from(bytes).unwrap_or(0);
            });
        }
        Ok(true)
    }

    /// A block, its place in the index, and a life for both.
    fn add(
        &self,
        pipe: &mut Writes,
        source: u128,
        step_ms: u32,
        place: &Place,
        (block, left_s): (&[u8], u64),
    ) {
        let key = self.keys.blocks(source, step_ms, place.first_ms);
        let name = place.to_string();
        let long = span_ms(step_ms) < place.last_ms.saturating_sub(place.first_ms);
        let (index, score) = if long {
            (self.keys.late(source), place.last_ms)
        } else {
            (self.keys.index(source, step_ms), place.first_ms)
        };
        let shard = shard(source);
        pipe.cmd(shard, "HSET", &key).arg(&name).arg(block);
        pipe.cmd(shard, "ZADD", &index).arg(score).arg(&name);
        let life_s = jittered(left_s, &key);
        // A window lives as long as the newest of its blocks, an index as the newest of its windows.
        for key in [&key, &index] {
            pipe.cmd(shard, "EXPIRE", key).arg(life_s).arg("NX");
            pipe.cmd(shard, "EXPIRE", key).arg(life_s).arg("GT");
        }
    }

    /// Takes out of a host's index what no longer lives.
    fn prune(&self, pipe: &mut Writes, source: u128, step_ms: u32, now_ms: i64) {
        let keep_ms = self.keep_ms(step_ms);
        // Twentieths: the longest life of a key.
        let gone_ms = now_ms.saturating_sub(keep_ms.saturating_add(keep_ms / 20));
        let (shard, index) = (shard(source), self.keys.index(source, step_ms));
        let first = gone_ms.saturating_sub(span_ms(step_ms));
        pipe.cmd(shard, "ZREMRANGEBYSCORE", &index).arg("-inf").arg(format!("({first}"));
        if step_ms == 0 {
            let late = self.keys.late(source);
            pipe.cmd(shard, "ZREMRANGEBYSCORE", &late).arg("-inf").arg(format!("({gone_ms}"));
        }
    }

    /// No shard's mark goes back: one that was refilled may be behind the others.
    fn mark(&mut self, link: &mut Link, fields: &[(&str, u64)]) -> RedisResult<()> {
        let mut writes = Writes::default();
        let archive = self.shared.archive.get();
        let elsewhere_ms = archive.map_or(i64::MIN, Archive::elsewhere_ms);
        let elsewhere_ms = elsewhere_ms.max(self.shared.removed_ms());
        let life_s = u64::try_from(self.config.metadata_ms / 1000).unwrap_or(1);
        let store = format!("{:016x}", self.era.id);
        for shard in 0..SHARDS {
            let key = self.keys.mark(shard, self.era.id);
            let cmd = writes.cmd(shard, "HSET", &key).arg("store").arg(&store);
            cmd.arg("elsewhere").arg(elsewhere_ms);
            for (field, number) in fields {
                let held = self.marks.of(shard, u32::from(*field == "rollup"));
                cmd.arg(field).arg(held.max(*number));
            }
            writes.cmd(shard, "EXPIRE", &key).arg(jittered(life_s, &key));
        }
        self.fence.send(link, writes)
    }

    /// Seconds that a block has still to be kept; `None`: none.
    fn left_s(&self, step_ms: u32, last_ms: i64, now_ms: i64) -> Option<u64> {
        let keep_ms = self.keep_ms(step_ms);
        let left_ms = last_ms.saturating_add(keep_ms).saturating_sub(now_ms);
        u64::try_from(left_ms.min(keep_ms) / 1000).ok().filter(|left| 0 < *left)
    }

    fn keep_ms(&self, step_ms: u32) -> i64 {
        let store = &self.shared.config;
        match step_ms {
            0 => self.config.raw_ms,
            step if step == HOURS.step_ms => store.hour_retention_ms,
            _ => store.minute_retention_ms,
        }
    }

    fn note_lag(&self, behind: &[(u64, Arc<Segment>)], now_ms: i64) {
        let first = behind.iter().map(|(_, segment)| segment.first_ms).min();
        let lag = first.map_or(0, |first| now_ms.saturating_sub(first));
        let segments = u64::try_from(behind.len()).unwrap_or(u64::MAX);
        self.count(|counts| {
            counts.lag_segments = segments;
            counts.lag_ms = u64::try_from(lag).unwrap_or(0);
        });
    }

    fn count(&self, change: impl FnOnce(&mut MirrorCounts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A Redis that throws keys away by itself loses history without a word.
fn warn_of_eviction(node: &str, memory: &str) {
    let value = |name: &str| {
        memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    if let (Some(policy), Some(limit)) = (value("maxmemory_policy"), value("maxmemory"))
        && policy != "noeviction"
        && limit != "0"
    {
        log::warn!(
            "Redis at {node} evicts keys when it is full (maxmemory-policy {policy}): history is \
             lost without a word then; set maxmemory-policy noeviction"
        );
    }
}

fn read(loaded: &Loaded, entry: &Entry) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(entry.length).ok()?];
    loaded.file.read_exact_at(&mut bytes, entry.offset).ok()?;
    Block::open(Data::Memory(&bytes)).ok()?;
    Some(bytes)
}

const PIPELINE_BYTES: usize = 4 << 20;
/// Longest wait for Redis: to connect, to write, to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How often new segments, and Redis itself, are looked at.
const PASS_EVERY: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// A failover takes some seconds; what waits for its end shall not wait much longer.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
