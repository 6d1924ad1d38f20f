//! A broker's two threads that write to Redis, and the time that they would take.

use super::broker::Turn;
use super::redis::Redis;
use std::cell::Cell;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use strobe_broker::cluster::Map;
use strobe_broker::registry::Registry;
use strobe_broker::store::redis::{self, Confirmed, Epochs, Log, Mirror, MirrorCounts};
use strobe_broker::store::{Recovery, Store, StoreConfig, Writer};

/// What a broker has besides that shares a Redis.
pub(crate) struct Sharing {
    redis: Redis,
    mirror: Mirror,
    mirror_at: Instant,
    /// Passes after each other that had more to do.
    restless: u32,
    /// With `durability = "wal+redis"`.
    log: Option<Log>,
    log_at: Instant,
    /// What is committed wakes it, but it may wait for Redis.
    log_busy_until: Instant,
    epochs: Arc<Epochs>,
    counts: Arc<Mutex<MirrorCounts>>,
}

/// Which Redis, and what it is for.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) redis: Redis,
    /// Rows are acknowledged when they are there.
    pub(crate) log: bool,
}

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl Place {
    /// What was acknowledged before a directory was lost.
    pub(crate) fn restore(
        &self,
        writer: &mut Writer,
        recovery: &mut Recovery,
        now_ms: i64,
    ) -> Result<u64, String> {
        if !self.log {
            return Ok(0);
        }
        let restored = redis::restore(&self.redis.config(), writer, recovery, now_ms);
        restored.map_err(|why| why.to_string())
    }
}

impl Sharing {
    /// As `Broker::start` does it.
    pub(crate) fn new(
        place: &Place,
        (store, registry): (&Store, Option<&Registry>),
        (now, now_ms): (Instant, i64),
    ) -> Self {
        NOW.set(Some(now));
        let parts = redis::Parts {
            store,
            registry: registry.cloned(),
            stopping: Arc::default(),
            now_ms,
            clock: || NOW.get().expect("a broker has begun"),
        };
        let mirror = Mirror::new(place.redis.config(), parts).expect("a good URL, and a disk");
        let log = place.log.then(|| {
            let confirmed = Confirmed::default();
            confirmed.want(true);
            mirror.log(confirmed)
        });
        let (epochs, counts) = (mirror.epochs(), mirror.counts());
        let redis = place.redis.clone();
        let (mirror_at, log_at, log_busy_until, restless) = (now, now, now, 0);
        Self { redis, mirror, mirror_at, restless, log, log_at, log_busy_until, epochs, counts }
    }

    /// What acknowledgements wait for.
    pub(crate) fn confirmed(&self) -> Option<Confirmed> {
        self.log.as_ref().map(Log::confirmed)
    }

    /// Whatever is agreed on, its writes carry from now on.
    pub(crate) fn on_map(&self, map: &Map) {
        self.epochs.follow(map);
    }

    /// Something was committed.
    pub(crate) fn wake(&mut self, now: Instant) {
        self.log_at = self.log_at.min(now.max(self.log_busy_until));
    }

    /// What is due.
    pub(crate) fn turn(&mut self, turn: &Turn<'_>) {
        NOW.set(Some(turn.now));
        if let Some(log) = self.log.as_mut().filter(|_| self.log_at <= turn.now) {
            let wait = log.pass(turn.now_ms);
            self.log_busy_until = turn.now + self.redis.waited();
            self.log_at = self.log_busy_until + wait;
        }
        if self.mirror_at <= turn.now {
            self.pass(turn.now, turn.now_ms);
        }
    }

    /// One of the mirror's.
    pub(crate) fn pass(&mut self, now: Instant, now_ms: i64) {
        let wait = self.mirror.pass(now_ms);
        self.restless = if wait.is_zero() { self.restless + 1 } else { 0 };
        assert!(self.restless < RESTLESS_MAX, "the mirror never waits");
        // Redis that was away is tried again as soon as a broker does it.
        let patience = if self.counts().connected { PATIENCE } else { 1 };
        self.mirror_at = now + self.redis.waited() + (wait * patience).max(LEAST);
    }

    pub(crate) fn timeout(&self) -> Instant {
        let log = self.log.as_ref().map_or(self.mirror_at, |_| self.log_at);
        self.mirror_at.min(log)
    }

    pub(crate) fn counts(&self) -> MirrorCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody whose disk is new, and what they find in Redis: they restore what was acknowledged, if it is
/// for that, and read what is there.
pub(crate) fn stranger(
    place: &Place,
    dir: &Path,
    now: Instant,
    now_ms: i64,
) -> (Store, Writer, Sharing) {
    let (store, mut writer, mut recovery) =
        Store::open(StoreConfig::at(dir.to_owned()), now_ms).expect("a new disk");
    place.restore(&mut writer, &mut recovery, now_ms).expect("Redis is well");
    let mut sharing = Sharing::new(place, (&store, None), (now, now_ms));
    sharing.pass(now, now_ms);
    assert!(sharing.counts().connected, "Redis is well");
    (store, writer, sharing)
}

/// A busy machine lets what is idle wait. Most of a run's cost was to look at marks that were as before.
const PATIENCE: u32 = 3;
/// A pass takes some time.
const LEAST: Duration = Duration::from_millis(5);
/// No run has as many segments, nor as much of a log.
const RESTLESS_MAX: u32 = 300;
