//! Reading blocks back: those that a query needs and the local directory has not.
//!
//! First the index: places by time, without those whose segment is here. Then the blocks, some at
//! a time, through a cache of bounded size. No answer is an error: what could not be had is a
//! warning, and after a failure Redis is left alone for a while.

use super::batch::Batch;
use super::errand::Errand;
use super::keys::{Keys, Place, span_ms};
use super::link::{Link, Reads, Trouble};
use super::stores::{Skipped, Stores};
use super::target::Target;
use super::{RedisConfig, RedisError};
use crate::store::local::{Floors, Store};
use crate::store::rollup::{HOURS, MINUTES};
use crate::store::select::Part;
use crate::store::{StoreConfig, StoreError};
use redis::RedisResult;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The readers' side of Redis.
#[derive(Debug)]
pub(in super::super) struct Archive {
    target: Arc<Target>,
    reads: Reads,
    keys: Keys,
    store_id: u64,
    keep_raw_ms: i64,
    clock: fn() -> Instant,
    idle: Mutex<Vec<Link>>,
    broken: Mutex<Option<Broken>>,
    cache: Mutex<Cache>,
    stores: Mutex<Stores>,
    // Relaxed, all three: each is a number by itself, nothing is read through it.
    /// What Redis has and the directory never had ends before this.
    elsewhere_ms: AtomicI64,
    /// Wall time when the mirror last looked.
    seen_ms: AtomicI64,
    /// Whether hosts and schemas were read.
    learned: AtomicBool,
    /// Whose it is, a number by itself as the others.
    broker: AtomicU64,
}

/// What Redis has of a source in a range and the directory has not.
#[derive(Debug)]
pub(in super::super) struct Far {
    /// The first raw sample there, the first minute.
    pub(in super::super) floors: Floors,
    places: Vec<(u32, Place)>,
}

impl Far {
    /// The places of each store by themselves, the newest file's first: of two rows of a rollup for one
    /// time that one's is right.
    pub(in super::super) fn by_store(&self) -> BTreeMap<u64, Self> {
        let mut of: BTreeMap<u64, Self> = BTreeMap::new();
        for (step, place) in &self.places {
            let new = || Self { floors: self.floors, places: Vec::new() };
            of.entry(place.store).or_insert_with(new).places.push((*step, *place));
        }
        of.values_mut().for_each(|far| far.places.sort_by_key(|(_, p)| Reverse(p.segment)));
        of
    }
}

/// Redis is not asked before this.
#[derive(Debug)]
struct Broken {
    until: Instant,
    why: String,
}

/// Blocks, in two generations: what was not used while one filled is dropped with the other.
#[derive(Debug, Default)]
struct Cache {
    young: HashMap<(u128, u32, Place), Arc<Vec<u8>>>,
    old: HashMap<(u128, u32, Place), Arc<Vec<u8>>>,
    young_bytes: usize,
}

impl Archive {
    pub(super) fn new(
        config: &RedisConfig,
        store_id: u64,
        now_ms: i64,
        clock: fn() -> Instant,
    ) -> Result<Self, RedisError> {
        Ok(Self {
            target: Arc::new(Target::of(config)?),
            reads: if config.read_replicas { Reads::Replica } else { Reads::Primary },
            keys: Keys::new(&config.prefix),
            store_id,
            keep_raw_ms: config.raw_ms,
            clock,
            idle: Mutex::default(),
            broken: Mutex::default(),
            cache: Mutex::default(),
            stores: Mutex::default(),
            elsewhere_ms: AtomicI64::new(now_ms),
            seen_ms: AtomicI64::new(now_ms),
            learned: AtomicBool::new(false),
            broker: AtomicU64::new(0),
        })
    }

    /// Nothing there is older.
    pub(in super::super) fn oldest_ms(&self, store: &StoreConfig, now_ms: i64) -> i64 {
        let rollups = store.minute_retention_ms.max(store.hour_retention_ms);
        now_ms.saturating_sub(self.keep_raw_ms.max(rollups))
    }

    /// From here on raw samples are there.
    pub(in super::super) fn raw_from_ms(&self) -> i64 {
        self.seen_ms.load(Ordering::Relaxed).saturating_sub(self.keep_raw_ms)
    }

    pub(super) fn elsewhere_ms(&self) -> i64 {
        self.elsewhere_ms.load(Ordering::Relaxed)
    }

    /// What the mirror found out.
    pub(super) fn set_elsewhere(&self, elsewhere_ms: i64) {
        self.elsewhere_ms.store(elsewhere_ms, Ordering::Relaxed);
        self.learned.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_seen(&self, now_ms: i64) {
        self.seen_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Who has written.
    pub(super) fn set_stores(&self, stores: &Stores) {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).clone_from(stores);
    }

    /// Which broker this is, 0 of one by itself.
    pub(super) fn set_broker(&self, broker: u64) {
        self.broker.store(broker, Ordering::Relaxed);
    }

    fn stores(&self) -> std::sync::MutexGuard<'_, Stores> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answers, or a warning.
    fn ask(&self, errand: &Errand, pipe: &Batch) -> Option<Vec<::redis::Value>> {
        if errand.is_spent() {
            errand.warn(format!(
                "Redis at {} is slow: samples that are only there are missing; ask for less",
                self.target.address
            ));
            return None;
        }
        let begin = (self.clock)();
        if let Some(broken) = &*self.broken.lock().unwrap_or_else(PoisonError::into_inner)
            && begin < broken.until
        {
            errand.warn(broken.why.clone());
            return None;
        }
        let answers = self.try_ask(pipe);
        let end = (self.clock)();
        errand.spend(end.saturating_duration_since(begin));
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        match answers {
            Ok(answers) => {
                *broken = None;
                Some(answers)
            }
            Err(error) => {
                let sentence = Trouble::of(&error).sentence(&self.target.address, &error);
                let why = format!("{sentence}; samples that are only there are missing");
                errand.warn(why.clone());
                *broken = Some(Broken { until: end + BREAK, why });
                None
            }
        }
    }

    fn try_ask(&self, pipe: &Batch) -> RedisResult<Vec<::redis::Value>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(mut link) = idle {
            match link.query(pipe) {
                Ok(answers) => {
                    self.keep(link);
                    return Ok(answers);
                }
                // It may have been closed long ago, by a Redis that was restarted since.
                Err(error) if error.is_io_error() && !error.is_timeout() => {
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                Err(error) => return Err(error),
            }
        }
        let mut link = Link::open(&self.target, self.reads, ANSWER_MAX)?;
        let answers = link.query(pipe)?;
        self.keep(link);
        Ok(answers)
    }

    fn keep(&self, link: Link) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(link);
        }
    }

    /// The places of a source that overlap the range, whoever's they are.
    fn list(&self, errand: &Errand, source: u128, bounds: (i64, i64)) -> Option<Vec<Listed>> {
        let mut pipe = Batch::default();
        for step in STEPS {
            let from = bounds.0.saturating_sub(span_ms(step));
            let index = pipe.cmd("ZRANGEBYSCORE", &self.keys.index(source, step));
            index.arg(from).arg(bounds.1).arg("LIMIT").arg(0).arg(PLACES_MAX);
        }
        let late = pipe.cmd("ZRANGEBYSCORE", &self.keys.late(source));
        late.arg(bounds.0).arg("+inf").arg("LIMIT").arg(0).arg(PLACES_MAX);
        // What is older than its life is gone, even if the index of a dead host still has it.
        let oldest = self.seen_ms.load(Ordering::Relaxed).saturating_sub(self.keep_raw_ms);
        for (step, from) in [(0, oldest), (MINUTES.step_ms, i64::MIN)] {
            let index = pipe.cmd("ZRANGEBYSCORE", &self.keys.index(source, step));
            index.arg(from).arg("+inf").arg("LIMIT").arg(0).arg(1);
        }
        let answers = self.ask(errand, &pipe)?;
        let listed = STEPS.into_iter().chain([0, 0, MINUTES.step_ms]).zip(answers);
        let listed = listed.map(|(step_ms, answer)| {
            let texts: Vec<String> = ::redis::from_redis_value(answer).ok()?;
            if PLACES_MAX <= texts.len() {
                errand.warn(format!(
                    "Redis at {} has more than {PLACES_MAX} blocks of one host in the range: the \
                     newest of them are missing; take a shorter range",
                    self.target.address
                ));
            }
            let places = texts.iter().filter_map(|text| text.parse().ok()).collect();
            Some(Listed { step_ms, places })
        });
        listed.collect()
    }

    /// Calls `visit` with every block of `places` that can be had.
    #[expect(clippy::type_complexity, reason = "a visitor: read once, here")]
    fn blocks(
        &self,
        errand: &Errand,
        source: u128,
        places: &[(u32, Place)],
        visit: &mut dyn FnMut(&Place, &[u8], u32) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for chunk in places.chunks(BLOCKS_A_TIME) {
            let of = |(step, place): &(u32, Place)| (source, *step, *place);
            let mut have: Vec<Option<Arc<Vec<u8>>>> =
                self.with_cache(|cache| chunk.iter().map(|item| cache.find(&of(item))).collect());
            let mut pipe = Batch::default();
            for ((step, place), _) in chunk.iter().zip(&have).filter(|(_, have)| have.is_none()) {
                let key = self.keys.blocks(source, *step, place.first_ms);
                pipe.cmd("HGET", &key).arg(place.to_string());
            }
            if !pipe.is_empty() {
                let Some(answers) = self.ask(errand, &pipe) else { return Ok(()) };
                let lacking = chunk.iter().zip(&mut have).filter(|(_, have)| have.is_none());
                for ((item, slot), answer) in lacking.zip(answers) {
                    // Gone with its life: there is nothing to say about it.
                    let Ok(Some(bytes)) = ::redis::from_redis_value::<Option<Vec<u8>>>(answer)
                    else {
                        continue;
                    };
                    let block = Arc::new(bytes);
                    self.with_cache(|cache| cache.keep(of(item), &block));
                    *slot = Some(block);
                }
            }
            for ((step, place), block) in chunk.iter().zip(have) {
                if let Some(block) = block {
                    visit(place, &block, *step)?;
                }
            }
        }
        Ok(())
    }

    fn with_cache<T>(&self, act: impl FnOnce(&mut Cache) -> T) -> T {
        act(&mut self.cache.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One answer of the index.
struct Listed {
    step_ms: u32,
    places: Vec<Place>,
}

impl Cache {
    fn find(&mut self, of: &(u128, u32, Place)) -> Option<Arc<Vec<u8>>> {
        if let Some(block) = self.young.get(of) {
            return Some(Arc::clone(block));
        }
        let block = self.old.remove(of)?;
        self.keep(*of, &block);
        Some(block)
    }

    fn keep(&mut self, of: (u128, u32, Place), block: &Arc<Vec<u8>>) {
        if CACHE_BYTES / 2 < self.young_bytes {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(of, Arc::clone(block)).is_none() {
            self.young_bytes += block.len();
        }
    }
}

impl Store {
    /// A handle for one query: what its answer lacks is told by [`Store::warnings`].
    #[must_use]
    pub fn for_query(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), errand: Some(Arc::default()), elsewhere: None }
    }

    /// The same for the query of another broker, which reads what others wrote to Redis itself if `shares`.
    #[must_use]
    pub fn for_peer(&self, shares: bool) -> Self {
        let errand = if shares { Errand::of_a_peer() } else { Errand::default() };
        Self { shared: Arc::clone(&self.shared), errand: Some(Arc::new(errand)), elsewhere: None }
    }

    /// Whether it reads Redis, and this store's name there.
    #[must_use]
    pub fn shares(&self) -> Option<u64> {
        self.shared.archive.get().map(|archive| archive.store_id)
    }

    /// Whether a store is this one, or an earlier life of it: what that rolled up is the same as what is here,
    /// and not to be added to it.
    pub(in super::super) fn is_ours(&self, store: u64) -> bool {
        self.shared.archive.get().is_none_or(|archive| {
            let of = archive.stores().of(store).map_or(0, |written| written.broker);
            let me = archive.broker.load(Ordering::Relaxed);
            store == archive.store_id || of == 0 || of == me
        })
    }

    /// What an answer lacks without a broker that stays silent.
    #[must_use]
    pub fn missing_of(&self, broker: u64) -> String {
        let there = self.shared.archive.get();
        match there.and_then(|archive| archive.stores().of_broker(broker)) {
            None => "what only it has stored is missing".to_owned(),
            Some(last_ms) => format!(
                "what it stored and has not written to Redis (its newest there: {}) is missing",
                crate::api::moment(last_ms)
            ),
        }
    }

    /// Says what the answer of this handle's query lacks.
    pub fn note(&self, text: String) {
        if let Some(errand) = &self.errand {
            errand.warn(text);
        }
    }

    /// What was not to be had since [`Store::for_query`], a sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.errand.as_ref().map(|errand| errand.warnings()).unwrap_or_default()
    }

    /// Warns if hosts and series of the time before `start_ms` may be known to Redis alone.
    pub(in super::super) fn warn_unlearned(&self, start_ms: i64) {
        let (Some(archive), Some(errand)) = (self.shared.archive.get(), &self.errand) else {
            return;
        };
        if !archive.learned.load(Ordering::Relaxed) && start_ms <= archive.elsewhere_ms() {
            errand.warn(format!(
                "Redis at {} was not read since the start: hosts and samples that are only there \
                 are missing",
                archive.target.address
            ));
        }
    }

    /// What Redis has of a source; `None` where everything is here or Redis is not to be had.
    pub(in super::super) fn far(&self, part: &Part, bounds: (i64, i64)) -> Option<Arc<Far>> {
        let archive = self.shared.archive.get()?;
        let errand = self.errand.as_deref()?;
        let (source, answered) = (part.source.id, Arc::clone(&part.answered));
        let skipped = Skipped { answered, others: errand.is_a_peers() };
        let theirs = archive.stores().beyond_ms(&skipped, archive.store_id);
        let known = if skipped.others { i64::MIN } else { theirs };
        if archive.elsewhere_ms().max(self.shared.removed_ms()).max(known) < bounds.0 {
            return None;
        }
        let of = (source, bounds, Arc::clone(&skipped.answered));
        if let Some(found) = errand.found(&of) {
            return Some(found);
        }
        let mut listed = archive.list(errand, source, bounds)?;
        let first = |listed: Option<Listed>| {
            listed.and_then(|l| l.places.first().map(|p| p.first_ms)).unwrap_or(i64::MAX)
        };
        let minutes_ms = first(listed.pop());
        let raw_ms = first(listed.pop());
        let here: BTreeSet<u64> =
            self.shared.segments().iter().filter_map(|segment| segment.number()).collect();
        let is_here = |p: &Place| p.store == archive.store_id && here.contains(&p.segment);
        let overlaps = |p: &Place| p.first_ms <= bounds.1 && bounds.0 <= p.last_ms;
        let mut places = Vec::new();
        for Listed { step_ms, places: found } in listed {
            let is_read = |p: &Place| !skipped.has(p.store, archive.store_id);
            let found = found.into_iter().filter(|p| overlaps(p) && is_read(p) && !is_here(p));
            places.extend(found.map(|place| (step_ms, place)));
        }
        let far = Arc::new(Far { floors: Floors { raw_ms, minutes_ms }, places });
        errand.keep(of, &far);
        Some(far)
    }

    /// Calls `visit` with the schema and bytes of every far block of the wanted schemas, and with
    /// the part of the range that it answers.
    #[expect(clippy::type_complexity, reason = "a visitor: read once, here")]
    pub(in super::super) fn far_blocks(
        &self,
        source: u128,
        far: &Far,
        wanted: &dyn Fn(u64) -> bool,
        parts: &dyn Fn(u32) -> (i64, i64),
        visit: &mut dyn FnMut(u64, &[u8], (i64, i64)) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let (Some(archive), Some(errand)) = (self.shared.archive.get(), &self.errand) else {
            return Ok(());
        };
        let needed = |(step, place): &&(u32, Place)| {
            let (from, to) = parts(*step);
            wanted(place.schema) && from <= to && place.first_ms <= to && from <= place.last_ms
        };
        let places: Vec<(u32, Place)> = far.places.iter().filter(needed).copied().collect();
        archive.blocks(errand, source, &places, &mut |place, bytes, step| {
            visit(place.schema, bytes, parts(step))
        })
    }
}

const STEPS: [u32; 3] = [0, MINUTES.step_ms, HOURS.step_ms];
/// Longest wait for one answer, and for a connection.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long Redis is left alone after a failure.
const BREAK: Duration = Duration::from_secs(5);
/// Connections kept: two query threads, each with a second one for scans.
const IDLE_MAX: usize = 4;
/// Blocks of one pipeline: some megabytes of answers.
const BLOCKS_A_TIME: usize = 64;
/// Places of one source and one step: 7 days of 100 sections.
const PLACES_MAX: usize = 1 << 17;
/// All cached blocks.
const CACHE_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::default();
        let place =
            |n| Place { first_ms: n, last_ms: n, schema: 1, store: 1, segment: 1, offset: 1 };
        let block = Arc::new(vec![0; 1 << 20]);
        cache.keep((1, 0, place(0)), &block);
        for n in 1..500 {
            cache.keep((1, 0, place(n)), &block);
            assert!(cache.find(&(1, 0, place(0))).is_some(), "{n}");
            let held = cache.young.len() + cache.old.len();
            assert!(held <= (CACHE_BYTES >> 20) + 2, "{held} MiB");
        }
        assert!(cache.find(&(1, 0, place(1))).is_none());
    }
}
