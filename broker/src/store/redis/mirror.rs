//! The writing side: every sealed block goes to Redis, the oldest segment first.

use super::archive::Archive;
use super::batch::{Batch, Writes};
use super::describe::{Catalog, Hosts};
use super::era::Era;
use super::fence::{Epochs, Fence};
use super::import::Import;
use super::keys::{Keys, SHARDS, jittered};
use super::link::{Link, Reads, TROUBLES, Trouble};
use super::log::{Confirmed, Log, LogParts};
use super::marks::{Field, Marks};
use super::plant::{Plant, has};
use super::stores::{Stores, Written};
use super::stream::Stream;
use super::target::Target;
use super::{RedisConfig, RedisError};
use crate::registry::Registry;
use crate::store::local::Store;
use crate::store::rollup::HOURS;
use crate::store::segment::Segment;
use crate::store::shared::Shared;
use redis::RedisResult;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Follows a store and writes its sealed blocks to Redis; one thread owns it.
#[derive(Debug)]
pub struct Mirror {
    pub(super) shared: Arc<Shared>,
    target: Arc<Target>,
    link: Option<Link>,
    pub(super) fence: Fence,
    pub(super) config: RedisConfig,
    pub(super) keys: Keys,
    pub(super) catalog: Catalog,
    stream: Stream,
    /// Whose marks and places are ours.
    pub(super) era: Era,
    counts: Arc<Mutex<MirrorCounts>>,
    pub(super) stopping: Arc<AtomicBool>,
    backoff: Duration,
    /// The last trouble that was logged.
    said: Option<Trouble>,
    /// As Redis last said.
    pub(super) marks: Marks,
    /// Whether the marks were ours at the last pass.
    settled: bool,
    /// Shards that newer owners had written to.
    fenced: usize,
    /// What was here before Redis was.
    import: Import,
    /// How long no more of it is to be moved.
    rest: Duration,
    /// What others had written when hosts were read, and how long nothing is to be read again.
    learned: (Stores, Duration),
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
    /// All raw segments up to this number are whole there.
    pub whole: u64,
    /// Segments that are not whole in Redis.
    pub lag_segments: u64,
    /// From the first sample of the oldest of these until now.
    pub lag_ms: u64,
    /// Shards that a newer owner has written to.
    pub fenced_shards: u64,
    /// Segments of before that are still to be moved.
    pub import_left: u64,
    /// Those that were moved since the start.
    pub import_done: u64,
    /// Whether the last pass succeeded.
    pub connected: bool,
    /// Whether what was there before is wanted too, whatever was said first: set by who asks for it later.
    pub import_wanted: bool,
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
        let era = Era::of(&shared.config().dir, newest.unwrap_or(0))?;
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
            import: Import::default(),
            rest: Duration::ZERO,
            learned: (Stores::default(), Duration::ZERO),
        })
    }

    /// What it counts, to be read by others.
    #[must_use]
    pub fn counts(&self) -> Arc<Mutex<MirrorCounts>> {
        Arc::clone(&self.counts)
    }

    /// What sends the log, for a thread of its own, and says how far it is there.
    #[must_use]
    pub fn log(&self, confirmed: Confirmed) -> Log {
        let life_s = u64::try_from(self.config.metadata_ms / 1000).unwrap_or(1);
        let parts = LogParts {
            shared: Arc::clone(&self.shared),
            target: Arc::clone(&self.target),
            keys: self.keys.clone(),
            fence: Fence::new(&self.keys, &self.fence.epochs, life_s),
            catalog: self.catalog.clone(),
            counts: Arc::clone(&self.counts),
            store: self.era.id,
            raw_ms: self.config.raw_ms,
        };
        Log::new(parts, confirmed)
    }

    /// The epochs that its writes carry: whoever decides on owners sets them.
    #[must_use]
    pub fn epochs(&self) -> Arc<Epochs> {
        Arc::clone(&self.fence.epochs)
    }

    /// What to do with segments that were there before, and by whose epochs to write.
    #[must_use]
    pub fn attached(mut self, import: Import, epochs: &Arc<Epochs>) -> Self {
        self.import = import;
        self.fence.epochs = Arc::clone(epochs);
        self
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
                let wait = if more { Duration::ZERO } else { PASS_EVERY };
                self.rest = self.rest.saturating_sub(wait);
                self.learned.1 = self.learned.1.saturating_sub(wait);
                wait
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
        if !(has(Plant::NoRefill) && self.settled) {
            self.marks = Marks::read(&mut link, &self.keys, self.era.id)?;
        }
        self.settle(&mut link, now_ms)?;
        self.learn(&mut link)?;
        // What it wrote before it was in a cluster is that broker's too.
        let own = self.marks.stores.of(self.era.id);
        if own.is_some_and(|written| written.broker != self.broker()) {
            self.tell(&mut link, i64::MIN, now_ms)?;
        }
        let fence = &mut self.fence;
        let mut send = |writes| fence.send(&mut link, writes);
        let (rows, more) = self.stream.pass(&self.catalog, self.marks.wal, &mut send)?;
        self.count(|counts| counts.rows += rows);
        let newest = self.shared.segments().iter().filter_map(|segment| segment.number()).max();
        let newest = newest.unwrap_or(0);
        let behind = self.behind();
        let whole = |behind: &[(u64, Arc<Segment>)]| {
            let lacks = behind.iter().find(|(_, segment)| segment.step_ms == 0);
            lacks.map_or(newest, |(number, _)| number.saturating_sub(1))
        };
        self.count(|counts| counts.whole = whole(&behind));
        self.note_lag(&behind, now_ms);
        if let Some((number, segment)) = behind.first() {
            let field = Field::of(segment.step_ms);
            if has(Plant::MarkEarly) {
                self.mark(&mut link, &[(field, *number)])?;
            }
            if self.write(&mut link, (field, *number), segment, now_ms)? {
                self.mark(&mut link, &[(field, *number)])?;
                if has(Plant::NoRefill) {
                    self.marks.note(field, *number);
                }
                self.era.note(*number);
                let rest = behind.get(1..).unwrap_or(&[]);
                self.count(|counts| {
                    counts.segments += 1;
                    counts.whole = whole(rest);
                });
                self.note_lag(rest, now_ms);
            }
        } else {
            self.import(&mut link, now_ms)?;
        }
        self.note_fenced();
        self.link = Some(link);
        Ok(more || 1 < behind.len())
    }

    /// Moves the oldest segment of before, if it is time.
    fn import(&mut self, link: &mut Link, now_ms: i64) -> RedisResult<()> {
        let fence = &self.fence;
        let counts = |shard| !fence.is_refused(shard);
        self.import.wanted |=
            self.counts.lock().unwrap_or_else(PoisonError::into_inner).import_wanted;
        let left = self.import.left(&self.shared.segments(), &self.marks, counts);
        let mut done = 0;
        if let Some((number, segment)) = left.first().filter(|_| self.rest.is_zero())
            && self.write(link, (Field::Import, *number), segment, now_ms)?
        {
            self.mark(link, &[(Field::Import, *number)])?;
            self.rest = Import::rest(segment.bytes);
            done = 1;
            if left.len() == 1 {
                log::warn!("everything that was here before Redis was is there now");
            }
        }
        self.count(|counts| {
            counts.import_left = u64::try_from(left.len()).unwrap_or(u64::MAX).saturating_sub(done);
            counts.import_done += done;
        });
        Ok(())
    }

    /// Whose store it is, as this life knows or an earlier one told: it is in no cluster again until its
    /// control plane has heard of the others.
    fn broker(&self) -> u64 {
        match self.fence.epochs.broker() {
            0 => self.marks.stores.of(self.era.id).map_or(0, |written| written.broker),
            broker => broker,
        }
    }

    /// Tells that blocks of a segment are about to be there.
    pub(super) fn tell(&mut self, link: &mut Link, last_ms: i64, now_ms: i64) -> RedisResult<()> {
        let known = self.marks.stores.of(self.era.id);
        let before = known.map_or(i64::MIN, |written| written.last_ms);
        let written = Written {
            last_ms: before.max(last_ms),
            broker: self.broker(),
            segments: known.map_or(0, |written| written.segments) + 1,
        };
        let longest = [0, HOURS.step_ms, 1].map(|step| self.keep_ms(step));
        let keep_ms = longest.into_iter().max().unwrap_or(0);
        let gone_ms = now_ms.saturating_sub(keep_ms.saturating_add(keep_ms / 20));
        let life_s = u64::try_from(self.config.metadata_ms / 1000).unwrap_or(1);
        let life_s = life_s.max(u64::try_from(keep_ms / 1000).unwrap_or(1));
        let mut writes = Writes::default();
        self.marks.stores.tell((self.era.id, written), gone_ms, life_s, (&mut writes, &self.keys));
        self.fence.send(link, writes)
    }

    /// Hosts that others brought since: a query shall find them when these others are gone.
    fn learn(&mut self, link: &mut Link) -> RedisResult<()> {
        let others = self.marks.stores.of_others(self.era.id);
        if self.learned.0 != others && self.learned.1.is_zero() {
            self.catalog.read(link, Hosts::OfOthers)?;
            self.learned = (others, LEARN_EVERY);
        }
        Ok(())
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
        archive.set_stores(&self.marks.stores);
        archive.set_broker(self.fence.epochs.broker());
        self.fence.retry(!self.marks.ours);
        if self.settled && self.marks.ours {
            return Ok(());
        }
        let hosts = self.catalog.read(link, Hosts::Ours)?;
        let elsewhere_ms = if self.marks.ours {
            self.marks.elsewhere_ms
        } else if self.marks.stores.has_others(self.era.id) {
            // They say themselves up to where they wrote.
            i64::MIN
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
            self.mark(link, &[(Field::Raw, 0), (Field::Rollup, 0), (Field::Import, 0)])?;
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
            (mark < number && !self.import.has(number)).then_some((number, segment))
        });
        let mut behind: Vec<_> = numbered.collect();
        behind.sort_by_key(|(number, segment)| (*number, segment.step_ms));
        behind
    }

    /// No shard's mark goes back: one that was refilled may be behind the others.
    fn mark(&mut self, link: &mut Link, fields: &[(Field, u64)]) -> RedisResult<()> {
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
                cmd.arg(field.name()).arg(self.marks.held(shard, *field).max(*number));
            }
            writes.cmd(shard, "EXPIRE", &key).arg(jittered(life_s, &key));
        }
        self.fence.send(link, writes)
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

    pub(super) fn count(&self, change: impl FnOnce(&mut MirrorCounts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Whether the Redis answers, and lets us in.
///
/// # Errors
/// What it says, or that nobody is there.
pub fn reach(config: &RedisConfig) -> Result<(), RedisError> {
    let target = Arc::new(Target::of(config)?);
    let reached = Link::open(&target, Reads::Primary, ANSWER_MAX).and_then(|mut link| {
        let mut batch = Batch::default();
        batch.cmd("EXISTS", &Keys::new(&config.prefix).stores());
        link.query(&batch).map(drop)
    });
    reached.map_err(|why| RedisError::Unreachable {
        why: Trouble::of(&why).sentence(&target.address, &why),
    })
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

/// Longest wait for Redis: to connect, to write, to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How often new segments, and Redis itself, are looked at.
const PASS_EVERY: Duration = Duration::from_secs(1);
/// Others seal every ten minutes, and import in between.
const LEARN_EVERY: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// A failover takes some seconds; what waits for its end shall not wait much longer.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
