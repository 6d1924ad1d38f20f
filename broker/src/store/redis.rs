//! The mirror in Redis: every sealed block, as its bytes are, for whoever reads blocks there.
//!
//! In this version queries are answered from the local segments; Redis receives all sealed blocks,
//! is not read for queries, and is one standalone server of version 7 or later (no Sentinel, no Cluster) used by one broker.
//!
//! ```text
//! segment files ──one at a time──▶ pass ──pipelines of ≤ 4 MiB──▶ Redis ──▶ mark
//! ```
//!
//! | Key | |
//! |---|---|
//! | `monitor:metrics:{s017}:<host>:<t>:<segment>.<offset>` | an HB1 block; `t` is its first millisecond |
//! | `monitor:rollup:{s017}:<host>:<step>:<t>:<segment>.<offset>` | an HB1 block of a rollup, `step` in ms |
//! | `monitor:index:metrics:{s017}:<host>` | sorted set: block keys by `t` |
//! | `monitor:index:rollup:{s017}:<host>:<step>` | the same of a rollup |
//! | `monitor:hosts:{s017}:<host>` | hash: the labels, `job` and `instance` among them |
//! | `monitor:schema:<id>` | JSON: section and columns, in the order of the block's columns |
//! | `monitor:mark:{s017}` | hash: whose store, and the last segment written whole (`raw`, `rollup`) |
//!
//! Every key has a time to live: a block's is what is left of its retention, ±5 % by a hash of its
//! key, so that a refill expires no later than what it replaces and not all at once.
//!
//! Invariants:
//! - The segments are the queue: nothing is kept in memory for Redis but one pipeline, and ingest
//!   never waits for Redis nor knows of it.
//! - A mark is written after its segment was acknowledged, and read before every pass: an empty,
//!   flushed or exchanged Redis lacks it and is refilled with everything still held locally. What
//!   is not sealed yet lies in the WAL and comes with its segment.

use super::block::{Block, Data};
use super::local::{Shared, Store};
use super::rollup::HOURS;
use super::segment::{Entry, Loaded, Segment};
use serde_json::json;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use strobe_wire::ids::HostId;
use strobe_wire::schema::{Kind, Schema};
use strobe_wire::shard::Shard;

/// Follows a store and writes its sealed blocks to Redis; one thread owns it.
#[derive(Debug)]
pub struct Mirror {
    shared: Arc<Shared>,
    client: ::redis::Client,
    connection: Option<Connection>,
    address: String,
    /// Whose marks are ours.
    owner: String,
    counts: Arc<Mutex<MirrorCounts>>,
    stopping: Arc<AtomicBool>,
    backoff: Duration,
    /// The last trouble that was logged.
    said: Option<Trouble>,
    /// As Redis last said.
    marks: Marks,
}

/// What the mirror counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MirrorCounts {
    /// Blocks that Redis acknowledged.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Passes that failed, by [`Trouble`].
    pub failures: [u64; TROUBLES.len()],
    /// Segments that are not whole in Redis.
    pub lag_segments: u64,
    /// From the first sample of the oldest of these until now.
    pub lag_ms: u64,
    /// Whether the last pass succeeded.
    pub connected: bool,
}

/// Why a pass failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nobody answers, or too slowly.
    Unreachable,
    /// A password is wanted, or another one, or the user may not.
    Auth,
    /// Redis is at its memory limit.
    Memory,
    /// Anything else Redis said.
    Refused,
}

/// Every [`Trouble`], in the order of [`MirrorCounts::failures`].
pub const TROUBLES: [Trouble; 4] =
    [Trouble::Unreachable, Trouble::Auth, Trouble::Memory, Trouble::Refused];

/// A URL that is none of Redis.
#[derive(Debug, thiserror::Error)]
#[error("the Redis URL is not understood ({0}); redis://[USER:PASSWORD@]HOST:PORT/DB is wanted")]
pub struct UrlError(String);

/// The last segment of each shard that is whole in Redis: of raw samples, of rollups.
type Marks = Vec<(u64, u64)>;

struct Connection(::redis::Connection);

impl Mirror {
    /// A mirror of `store` in the Redis at `url`; connects at the first pass. `owner` names the
    /// store, so that marks of another one are not taken for its own.
    ///
    /// # Errors
    /// The URL is not one.
    pub fn new(
        store: &Store,
        url: &str,
        owner: &str,
        stopping: Arc<AtomicBool>,
    ) -> Result<Self, UrlError> {
        let client = ::redis::Client::open(url).map_err(|why| UrlError(why.to_string()))?;
        Ok(Self {
            shared: Arc::clone(&store.shared),
            // Without user and password.
            address: client.get_connection_info().addr().to_string(),
            client,
            connection: None,
            owner: owner.to_owned(),
            counts: Arc::default(),
            stopping,
            backoff: BACKOFF_MIN,
            said: None,
            marks: vec![(0, 0); SHARDS],
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
                    log::error!("{}", trouble.sentence(&self.address, &error));
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
    fn try_pass(&mut self, now_ms: i64) -> ::redis::RedisResult<bool> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        self.marks = self.read_marks(&mut connection)?;
        let behind = self.behind();
        self.note_lag(&behind, now_ms);
        if let Some((number, segment)) = behind.first()
            && self.write(&mut connection, *number, segment, now_ms)?
        {
            self.mark(&mut connection, *number, segment.step_ms)?;
            self.note_lag(behind.get(1..).unwrap_or(&[]), now_ms);
        }
        self.connection = Some(connection);
        Ok(1 < behind.len())
    }

    fn connect(&self) -> ::redis::RedisResult<Connection> {
        let connection = self.client.get_connection_with_timeout(ANSWER_MAX)?;
        connection.set_read_timeout(Some(ANSWER_MAX))?;
        connection.set_write_timeout(Some(ANSWER_MAX))?;
        Ok(Connection(connection))
    }

    fn read_marks(&self, connection: &mut Connection) -> ::redis::RedisResult<Marks> {
        let mut pipe = ::redis::pipe();
        for shard in 0..SHARDS {
            pipe.cmd("HMGET").arg(mark_key(shard)).arg(&["store", "raw", "rollup"]);
        }
        let found: Vec<(Option<String>, Option<u64>, Option<u64>)> = connection
            .query(&pipe)?
            .into_iter()
            .map(::redis::from_redis_value)
            .collect::<Result<_, _>>()?;
        let ours = |(store, raw, rollup): (Option<String>, Option<u64>, Option<u64>)| {
            if store.as_ref() == Some(&self.owner) {
                (raw.unwrap_or(0), rollup.unwrap_or(0))
            } else {
                (0, 0)
            }
        };
        Ok(found.into_iter().map(ours).collect())
    }

    /// Segments that some shard lacks, by number.
    fn behind(&self) -> Vec<(u64, Arc<Segment>)> {
        let raw = self.marks.iter().map(|mark| mark.0).min().unwrap_or(0);
        let rollup = self.marks.iter().map(|mark| mark.1).min().unwrap_or(0);
        let numbered = self.shared.segments().into_iter().filter_map(|segment| {
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
    ) -> ::redis::RedisResult<bool> {
        let Ok(loaded) = segment.loaded() else {
            // Removed by retention meanwhile, or unreadable: queries say so.
            return Ok(true);
        };
        let lacking = |entry: &&Entry| {
            let mark = self.marks.get(shard(entry.source)).copied().unwrap_or_default();
            (if segment.step_ms == 0 { mark.0 } else { mark.1 }) < number
        };
        let entries: Vec<Entry> = loaded.entries().iter().filter(lacking).copied().collect();
        self.describe(connection, &entries)?;
        let step_ms = segment.step_ms;
        let keep_ms = self.keep_ms(step_ms);
        // Twentieths: the longest life of a key.
        let gone_ms = now_ms.saturating_sub(keep_ms.saturating_add(keep_ms / 20));
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
                let Some(left_s) = self.left_s(step_ms, entry.last_ms, now_ms) else { continue };
                let Some(block) = read(&loaded, entry) else {
                    log::warn!(
                        "{}: a block that does not check is not mirrored",
                        segment.path.display()
                    );
                    continue;
                };
                let keys = Keys::of(entry, step_ms, number);
                add(&mut pipe, &keys, &block, (entry.first_ms, gone_ms), left_s);
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

    /// Labels of the hosts and the schemas of what follows.
    fn describe(&self, connection: &mut Connection, entries: &[Entry]) -> ::redis::RedisResult<()> {
        let mut schemas = BTreeSet::new();
        for chunk in entries.chunk_by(|a, b| a.source == b.source) {
            let Some(first) = chunk.first() else { continue };
            let mut pipe = ::redis::pipe();
            let source = self.shared.source(first.source);
            let (labels, known): (_, Vec<Arc<Schema>>) = {
                let state = source.read();
                let fresh = chunk.iter().filter(|entry| schemas.insert(entry.schema));
                let sections = fresh.filter_map(|entry| state.sections.get(&entry.schema));
                (Arc::clone(&state.labels), sections.map(|s| Arc::clone(&s.schema)).collect())
            };
            let host =
                format!("monitor:hosts:{{s{:03}}}:{}", shard(first.source), HostId(first.source));
            if !labels.0.is_empty() {
                pipe.cmd("HSET").arg(&host).arg(&labels.0).ignore();
                pipe.cmd("EXPIRE").arg(&host).arg(jittered(METADATA_S, &host)).ignore();
            }
            for schema in known {
                let key = format!("monitor:schema:{:016x}", schema.id().0);
                let text = schema_json(&schema);
                pipe.cmd("SET")
                    .arg(&key)
                    .arg(text)
                    .arg("EX")
                    .arg(jittered(METADATA_S, &key))
                    .ignore();
            }
            if !pipe.is_empty() {
                connection.exec(&pipe)?;
            }
        }
        Ok(())
    }

    fn mark(
        &self,
        connection: &mut Connection,
        number: u64,
        step_ms: u32,
    ) -> ::redis::RedisResult<()> {
        let field = if step_ms == 0 { "raw" } else { "rollup" };
        let mut pipe = ::redis::pipe();
        for shard in 0..SHARDS {
            let key = mark_key(shard);
            pipe.cmd("HSET")
                .arg(&key)
                .arg("store")
                .arg(&self.owner)
                .arg(field)
                .arg(number)
                .ignore();
            pipe.cmd("EXPIRE").arg(&key).arg(jittered(METADATA_S, &key)).ignore();
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
        let config = &self.shared.config;
        match step_ms {
            0 => config.raw_retention_ms,
            step if step == HOURS.step_ms => config.hour_retention_ms,
            _ => config.minute_retention_ms,
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

impl Connection {
    fn exec(&mut self, pipe: &::redis::Pipeline) -> ::redis::RedisResult<()> {
        self.query(pipe).map(drop)
    }

    /// Every answer, or the first that is an error. The crate's own pipeline would wait for each
    /// answer of a server that hangs, one time-out after the other.
    fn query(&mut self, pipe: &::redis::Pipeline) -> ::redis::RedisResult<Vec<::redis::Value>> {
        self.0.send_packed_command(&pipe.get_packed_pipeline())?;
        let answers = (0..pipe.len()).map(|_| match self.0.recv_response()? {
            ::redis::Value::ServerError(refused) => Err(refused.into()),
            answer => Ok(answer),
        });
        answers.collect()
    }
}

impl Trouble {
    /// As a label's value.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Auth => "auth",
            Self::Memory => "memory",
            Self::Refused => "refused",
        }
    }

    fn of(error: &::redis::RedisError) -> Self {
        let auth = error.kind() == ::redis::ErrorKind::AuthenticationFailed;
        let answer = first_answer(error);
        let code = answer.as_ref().map(::redis::ServerError::code);
        match code {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Self::Auth,
            _ if auth => Self::Auth,
            Some("OOM") => Self::Memory,
            _ if error.is_io_error() => Self::Unreachable,
            _ => Self::Refused,
        }
    }

    fn sentence(self, address: &str, error: &::redis::RedisError) -> String {
        let (what, todo) = match self {
            Self::Unreachable => ("does not answer", "start it, or correct broker.store"),
            Self::Auth => (
                "does not let us in",
                "put user and password into broker.store, as in redis://USER:PASSWORD@HOST:PORT/DB",
            ),
            Self::Memory => ("is out of memory", "raise its maxmemory or lower broker.retention"),
            Self::Refused => ("refuses blocks", "correct broker.store or Redis's configuration"),
        };
        let said = first_answer(error).map_or_else(
            || error.to_string(),
            |answer| format!("{} {}", answer.code(), answer.details().unwrap_or_default()),
        );
        format!(
            "Redis at {address} {what} ({said}): {todo}; samples are kept locally, and Redis is \
             tried again and then filled up"
        )
    }
}

/// What Redis said to the first command that it refused.
fn first_answer(error: &::redis::RedisError) -> Option<::redis::ServerError> {
    let answers = error.clone().into_server_errors()?;
    answers.first().map(|(_, answer)| answer.clone())
}

/// The keys of a block.
struct Keys {
    block: String,
    index: String,
}

impl Keys {
    fn of(entry: &Entry, step_ms: u32, number: u64) -> Self {
        let host = format!("{{s{:03}}}:{}", shard(entry.source), HostId(entry.source));
        let place = format!("{}:{number:x}.{:x}", entry.first_ms, entry.offset);
        if step_ms == 0 {
            return Self {
                block: format!("monitor:metrics:{host}:{place}"),
                index: format!("monitor:index:metrics:{host}"),
            };
        }
        Self {
            block: format!("monitor:rollup:{host}:{step_ms}:{place}"),
            index: format!("monitor:index:rollup:{host}:{step_ms}"),
        }
    }
}

/// A block, its place in the index, and a life for both. `times`: the block's, and that before
/// which blocks are gone.
fn add(pipe: &mut ::redis::Pipeline, keys: &Keys, block: &[u8], times: (i64, i64), left_s: u64) {
    let Keys { block: key, index } = keys;
    let life_s = jittered(left_s, key);
    pipe.cmd("SET").arg(key).arg(block).arg("EX").arg(life_s).ignore();
    pipe.cmd("ZADD").arg(index).arg(times.0).arg(key).ignore();
    pipe.cmd("ZREMRANGEBYSCORE").arg(index).arg("-inf").arg(format!("({}", times.1)).ignore();
    // An index lives as long as the newest of its blocks.
    pipe.cmd("EXPIRE").arg(index).arg(life_s).arg("NX").ignore();
    pipe.cmd("EXPIRE").arg(index).arg(life_s).arg("GT").ignore();
}

fn read(loaded: &Loaded, entry: &Entry) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(entry.length).ok()?];
    loaded.file.read_exact_at(&mut bytes, entry.offset).ok()?;
    Block::open(Data::Memory(&bytes)).ok()?;
    Some(bytes)
}

fn schema_json(schema: &Schema) -> String {
    let columns = schema.columns.iter().map(|column| {
        let labels: serde_json::Map<_, _> =
            column.labels.0.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let (kind, scale) = match column.kind {
            Kind::Counter { scale } => ("counter", scale),
            Kind::Gauge { scale } => ("gauge", scale),
            Kind::Float => ("float", 0),
        };
        json!({ "name": column.name, "labels": labels, "kind": kind, "scale": scale })
    });
    json!({ "section": schema.section, "columns": columns.collect::<Vec<_>>() }).to_string()
}

fn mark_key(shard: usize) -> String {
    format!("monitor:mark:{{s{shard:03}}}")
}

fn shard(source: u128) -> usize {
    usize::from(Shard::of(HostId(source)).0)
}

/// ±5 %, the same for the same key.
fn jittered(seconds: u64, key: &str) -> u64 {
    let share = u64::from(crc32fast::hash(key.as_bytes()) % 1001);
    (seconds.saturating_mul(9500 + share) / 10_000).max(1)
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

const SHARDS: usize = strobe_wire::limits::SHARDS as usize;
const PIPELINE_BYTES: usize = 4 << 20;
/// Longest wait for Redis: to connect, to write, to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How often new segments, and Redis itself, are looked at.
const PASS_EVERY: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Hosts, schemas and marks.
const METADATA_S: u64 = 30 * 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_within_five_percent_and_differ() {
        let lives: BTreeSet<u64> = (0..1000).map(|n| jittered(604_800, &format!("k{n}"))).collect();
        assert!(100 < lives.len(), "{}", lives.len());
        assert!(lives.iter().all(|s| (574_560..=635_040).contains(s)), "{lives:?}");
        assert_eq!(jittered(1, "a"), 1);
    }
}
