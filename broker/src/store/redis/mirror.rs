//! The writing side: every sealed block goes to Redis, the oldest segment first.

use super::archive::Archive;
use super::describe::Catalog;
use super::era::Era;
use super::keys::{Keys, Place, SHARDS, jittered, shard, span_ms};
use super::link::{Connection, TROUBLES, Trouble};
use super::stream::{self, Stream};
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
use strobe_journal::Position;

/// Follows a store and writes its sealed blocks to Redis; one thread owns it.
#[derive(Debug)]
pub struct Mirror {
    shared: Arc<Shared>,
    client: ::redis::Client,
    connection: Option<Connection>,
    address: String,
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
    /// Whether the last pass succeeded.
    pub connected: bool,
}

/// As Redis has them.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Marks {
    /// The last segment of each shard that is whole there: of raw samples, of rollups.
    shards: Vec<(u64, u64)>,
    /// Whether they are this store's.
    ours: bool,
    /// See [`Archive`].
    elsewhere_ms: i64,
    /// Up to where the log is in the stream.
    wal: Option<Position>,
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
        let client = ::redis::Client::open(config.url.as_str())
            .map_err(|why| RedisError::Url(why.to_string()))?;
        let address = archive.address.clone();
        // A second mirror of one store reads by way of the first.
        drop(shared.archive.set(archive));
        Ok(Self {
            catalog: Catalog::new(&shared, registry, &config),
            stream: Stream::new(&shared, &config),
            keys: Keys::new(&config.prefix),
            shared,
            address,
            client,
            config,
            connection: None,
            era,
            counts: Arc::default(),
            stopping,
            backoff: BACKOFF_MIN,
            said: None,
            marks: Marks {
                shards: vec![(0, 0); SHARDS],
                ours: false,
                elsewhere_ms: i64::MIN,
                wal: None,
            },
            settled: false,
        })
    }

    /// What it counts, to be read by others.
    #[must_use]
    pub fn counts(&self) -> Arc<Mutex<MirrorCounts>> {
        Arc::clone(&self.counts)
    }

    /// Writes the oldest segment that is not in Redis; returns how long to wait for the next pass.
    pub fn pass(&mut self, now_ms: i64) -> Duration {
        match self.try_pass(now_ms) {
            Ok(more) => {
                if self.said.take().is_some() {
                    log::info!("Redis at {} takes blocks again", self.address);
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
                        trouble.sentence(&self.address, &error)
                    );
                }
                self.connection = None;
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
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        self.marks = self.read_marks(&mut connection)?;
        self.settle(&mut connection, now_ms)?;
        let (rows, more) = self.stream.pass(&mut connection, &self.catalog, self.marks.wal)?;
        self.count(|counts| counts.rows += rows);
        let behind = self.behind();
        self.note_lag(&behind, now_ms);
        if let Some((number, segment)) = behind.first()
            && self.write(&mut connection, *number, segment, now_ms)?
        {
            let field = if segment.step_ms == 0 { "raw" } else { "rollup" };
            self.mark(&mut connection, &[(field, *number)])?;
            self.era.note(*number);
            self.note_lag(behind.get(1..).unwrap_or(&[]), now_ms);
        }
        self.connection = Some(connection);
        Ok(more || 1 < behind.len())
    }

    fn connect(&self) -> RedisResult<Connection> {
        let mut connection = Connection::open(&self.client, ANSWER_MAX)?;
        self.check_policy(&mut connection);
        Ok(connection)
    }

    /// A Redis that throws keys away by itself loses history without a word.
    fn check_policy(&self, connection: &mut Connection) {
        let mut pipe = ::redis::pipe();
        pipe.cmd("INFO").arg("memory");
        // Who may not ask does not learn it; that is no reason not to write.
        let Ok(answers) = connection.query(&pipe) else { return };
        let answer = answers.into_iter().next();
        let Some(Ok(text)) = answer.map(::redis::from_redis_value::<String>) else { return };
        let value = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        if let (Some(policy), Some(limit)) = (value("maxmemory_policy"), value("maxmemory"))
            && policy != "noeviction"
            && limit != "0"
        {
            log::warn!(
                "Redis at {} evicts keys when it is full (maxmemory-policy {policy}): history is \
                 lost without a word then; set maxmemory-policy noeviction",
                self.address
            );
        }
    }

    fn read_marks(&self, connection: &mut Connection) -> RedisResult<Marks> {
        let mut pipe = ::redis::pipe();
        for shard in 0..SHARDS {
            let key = self.keys.mark(shard);
            pipe.cmd("HMGET").arg(key).arg(&["store", "raw", "rollup", "elsewhere", "wal"]);
        }
        let me = format!("{:016x}", self.era.id);
        let mut marks =
            Marks { shards: Vec::new(), ours: false, elsewhere_ms: i64::MIN, wal: None };
        for answer in connection.query(&pipe)? {
            let (store, raw, rollup): (Option<String>, Option<u64>, Option<u64>);
            let (elsewhere_ms, wal): (Option<i64>, Option<String>);
            (store, raw, rollup, elsewhere_ms, wal) = ::redis::from_redis_value(answer)?;
            let ours = store.as_ref() == Some(&me);
            let mark = (raw.unwrap_or(0), rollup.unwrap_or(0));
            marks.shards.push(if ours { mark } else { (0, 0) });
            if ours {
                marks.ours = true;
                marks.wal = marks.wal.or_else(|| stream::position(wal.as_deref()?));
                marks.elsewhere_ms = marks.elsewhere_ms.max(elsewhere_ms.unwrap_or(i64::MIN));
            }
        }
        Ok(marks)
    }

    /// Reads back who is known there, once a life of this broker and of what Redis holds.
    fn settle(&mut self, connection: &mut Connection, now_ms: i64) -> RedisResult<()> {
        let Some(archive) = self.shared.archive.get() else { return Ok(()) };
        archive.set_seen(now_ms);
        if self.settled && self.marks.ours {
            return Ok(());
        }
        let hosts = self.catalog.read(connection)?;
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
            let mut pipe = ::redis::pipe();
            for shard in 0..SHARDS {
                pipe.cmd("DEL").arg(self.keys.mark(shard));
            }
            connection.exec(&pipe)?;
            self.mark(connection, &[("raw", 0), ("rollup", 0)])?;
        }
        self.settled = true;
        if 0 < hosts {
            log::info!(
                "Redis at {} knows {hosts} hosts; their history is read there",
                self.address
            );
        }
        Ok(())
    }

    /// Segments that some shard lacks, by number.
    fn behind(&self) -> Vec<(u64, Arc<Segment>)> {
        let raw = self.marks.shards.iter().map(|mark| mark.0).min().unwrap_or(0);
        let rollup = self.marks.shards.iter().map(|mark| mark.1).min().unwrap_or(0);
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
        &self,
        connection: &mut Connection,
        number: u64,
        segment: &Segment,
        now_ms: i64,
    ) -> RedisResult<bool> {
        let Ok(loaded) = segment.loaded() else {
            // Removed by retention meanwhile, or unreadable: queries say so.
            return Ok(true);
        };
        let lacking = |entry: &&Entry| {
            let mark = self.marks.shards.get(shard(entry.source)).copied().unwrap_or_default();
            (if segment.step_ms == 0 { mark.0 } else { mark.1 }) < number
        };
        let entries: Vec<Entry> = loaded.entries().iter().filter(lacking).copied().collect();
        self.catalog.write(connection, &entries, now_ms)?;
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            if self.stopping.load(Ordering::Acquire) {
                return Ok(false);
            }
            let (mut pipe, mut blocks, mut bytes) = (::redis::pipe(), 0, 0);
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
            connection.exec(&pipe)?;
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
        pipe: &mut ::redis::Pipeline,
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
        pipe.cmd("HSET").arg(&key).arg(&name).arg(block);
        pipe.cmd("ZADD").arg(&index).arg(score).arg(&name);
        let life_s = jittered(left_s, &key);
        // A window lives as long as the newest of its blocks, an index as the newest of its windows.
        for key in [&key, &index] {
            pipe.cmd("EXPIRE").arg(key).arg(life_s).arg("NX");
            pipe.cmd("EXPIRE").arg(key).arg(life_s).arg("GT");
        }
    }

    /// Takes out of a host's index what no longer lives.
    fn prune(&self, pipe: &mut ::redis::Pipeline, source: u128, step_ms: u32, now_ms: i64) {
        let keep_ms = self.keep_ms(step_ms);
        // Twentieths: the longest life of a key.
        let gone_ms = now_ms.saturating_sub(keep_ms.saturating_add(keep_ms / 20));
        let index = self.keys.index(source, step_ms);
        let first = gone_ms.saturating_sub(span_ms(step_ms));
        pipe.cmd("ZREMRANGEBYSCORE").arg(index).arg("-inf").arg(format!("({first}"));
        if step_ms == 0 {
            let late = self.keys.late(source);
            pipe.cmd("ZREMRANGEBYSCORE").arg(late).arg("-inf").arg(format!("({gone_ms}"));
        }
    }

    fn mark(&self, connection: &mut Connection, fields: &[(&str, u64)]) -> RedisResult<()> {
        let mut pipe = ::redis::pipe();
        let archive = self.shared.archive.get();
        let elsewhere_ms = archive.map_or(i64::MIN, Archive::elsewhere_ms);
        let elsewhere_ms = elsewhere_ms.max(self.shared.removed_ms());
        let life_s = u64::try_from(self.config.metadata_ms / 1000).unwrap_or(1);
        for shard in 0..SHARDS {
            let key = self.keys.mark(shard);
            pipe.cmd("HSET").arg(&key).arg("store").arg(format!("{:016x}", self.era.id));
            pipe.arg("elsewhere").arg(elsewhere_ms).arg(fields);
            pipe.cmd("EXPIRE").arg(&key).arg(jittered(life_s, &key));
        }
        connection.exec(&pipe)
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
const BACKOFF_MAX: Duration = Duration::from_secs(30);
