//! What Redis has of a lost broker's log, taken into the log of one who goes on.
//!
//! Two do that. A broker by itself that begins with an empty directory ([`restore`]) takes everything in
//! before it listens. And in a cluster the owner of a shard ([`Taker`]) takes in what brokers have left
//! there that own nothing any more: they are dead, or drained and may die.
//!
//! ```text
//!  Plogs: whose owns no shard for TAKE_AFTER? ──▶ the shard's epoch is raised: a deposed one is refused
//!   ──▶ Plog:{s017}, entries of theirs ──offer──▶ the writer's log ──▶ this log in Redis ──▶ Ptaken:{s017}
//! ```
//!
//! A mark says what is taken only when Redis has it under the taker's own name: so it is nobody's last
//! copy at any time. What is taken twice is one, and so is what the dead broker has if it comes back.

use super::RedisConfig;
use super::RedisError;
use super::batch::{Batch, Writes};
use super::describe::Catalog;
use super::fence::Fence;
use super::keys::{Keys, SHARDS};
use super::link::{Link, Reads, Trouble};
use super::log::{ANSWER_MAX, Confirmed};
use super::target::Target;
use crate::store::local::Writer;
use crate::store::wal::{self, Record};
use crate::store::{Recovery, Seen};
use redis::RedisResult;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use strobe_journal::Position;
use strobe_wire::frame;
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::schema::{Labels, Schema};

/// Records, and what they need to be understood.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    pub(in super::super) labels: Vec<(u128, Labels)>,
    pub(in super::super) schemas: Vec<Schema>,
    pub(in super::super) records: Vec<Vec<u8>>,
}

/// Looks for what lost brokers have left. Part of a [`super::Log`].
#[derive(Debug)]
pub(super) struct Taker {
    keys: Keys,
    catalog: Catalog,
    store: u64,
    confirmed: Confirmed,
    /// Other stores' brokers, and since when they own nothing.
    gone: BTreeMap<u64, i64>,
    known: BTreeSet<u128>,
    scans: BTreeMap<usize, Scan>,
    step: Step,
    look_at_ms: i64,
}

/// How far a shard's stream is read.
#[derive(Debug, Default)]
struct Scan {
    epoch: u64,
    /// Whose entries were looked for.
    stores: BTreeSet<u64>,
    /// By store, as its mark says.
    taken: BTreeMap<u64, EntryId>,
    /// The last entry that was looked at.
    last: Option<EntryId>,
}

/// What is being done.
#[derive(Debug)]
enum Step {
    Look,
    /// The writer has it.
    Offered(Page),
    /// It is in the log here, and goes to Redis from there.
    Written(Page, Position),
}

/// Some entries of a shard's stream.
#[derive(Debug)]
struct Page {
    shard: usize,
    /// By store, the last one.
    marks: BTreeMap<u64, EntryId>,
}

/// `<ms>-<n>`, as Redis numbers a stream's entries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct EntryId(u64, u64);

struct Entry {
    id: EntryId,
    /// None: of a time when a stream was one broker's.
    store: Option<u64>,
    record: Vec<u8>,
}

impl Taken {
    /// The numbers of its frames.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let mut seen: BTreeMap<(HostId, BootId), BTreeSet<u64>> = BTreeMap::new();
        for record in &self.records {
            if let Some(Record::Frame(bytes)) = wal::read(record)
                && let Ok(frame) = frame::open(bytes)
            {
                let header = frame.header;
                seen.entry((header.host, header.boot)).or_default().insert(header.seq.0);
            }
        }
        let one = |((host, boot), numbers): ((HostId, BootId), BTreeSet<u64>)| {
            let ranges = numbers.into_iter().map(|seq| (seq, seq)).collect();
            Seen { host, boot, ranges }
        };
        seen.into_iter().map(one).collect()
    }

    /// Of these records; who is `known` was described before.
    fn of(
        link: &mut Link,
        catalog: &Catalog,
        records: Vec<Vec<u8>>,
        known: &mut BTreeSet<u128>,
    ) -> RedisResult<Self> {
        let mut taken = Self { records, ..Self::default() };
        for record in &taken.records {
            let (source, schema) = match wal::read(record) {
                Some(Record::Frame(bytes)) => {
                    let Ok(frame) = frame::open(bytes) else { continue };
                    (frame.header.host.0, Some(frame.header.schema.0))
                }
                Some(Record::Samples(samples)) => (samples.source, None),
                _ => continue,
            };
            if known.insert(source) {
                taken.labels.push((source, catalog.labels(link, source)?));
            }
            if let Some(id) = schema
                && known.insert(u128::from(id))
                && let Some(schema) = catalog.schema(link, id)?
            {
                taken.schemas.push(schema);
            }
        }
        Ok(taken)
    }
}

impl Taker {
    pub(super) fn new(keys: Keys, catalog: Catalog, store: u64, confirmed: Confirmed) -> Self {
        Self {
            keys,
            catalog,
            store,
            confirmed,
            gone: BTreeMap::new(),
            known: BTreeSet::new(),
            scans: BTreeMap::new(),
            step: Step::Look,
            look_at_ms: i64::MIN,
        }
    }

    /// Whether there is something to do, or to look for. A broker by itself looks once, at its start.
    pub(super) fn is_due(&self, fence: &Fence, now_ms: i64) -> bool {
        let looks = matches!(self.step, Step::Look);
        fence.epochs.broker() != 0 && (!looks || self.look_at_ms <= now_ms)
    }

    /// The next step; whether there is another one at once.
    pub(super) fn pass(
        &mut self,
        link: &mut Link,
        fence: &mut Fence,
        now_ms: i64,
    ) -> RedisResult<bool> {
        if !self.is_due(fence, now_ms) {
            return Ok(false);
        }
        match std::mem::replace(&mut self.step, Step::Look) {
            Step::Look => self.look(link, fence, now_ms),
            Step::Offered(page) => {
                match self.confirmed.outcome() {
                    None => self.step = Step::Offered(page),
                    Some(Some(at)) => self.step = Step::Written(page, at),
                    Some(None) => self.forget(page.shard),
                }
                Ok(false)
            }
            Step::Written(page, at) if self.confirmed.through() < at => {
                self.step = Step::Written(page, at);
                Ok(false)
            }
            Step::Written(page, _) => {
                let (mut writes, key) = (Writes::default(), self.keys.taken(page.shard));
                let mark = writes.cmd(page.shard, "HSET", &key);
                for (store, id) in &page.marks {
                    mark.arg(format!("{store:016x}")).arg(id.to_string());
                }
                writes.cmd(page.shard, "EXPIRE", &key).arg(MARK_LIFE_S);
                fence.send(link, writes)?;
                Ok(true)
            }
        }
    }

    /// Whose log this store's is, by what Redis was told.
    pub(super) fn told_of(&self, link: &mut Link) -> RedisResult<Option<u64>> {
        Ok(logs(link, &self.keys)?.get(&self.store).map(|log| log.broker))
    }

    /// What is not in the log here is looked for again.
    fn forget(&mut self, shard: usize) {
        self.scans.remove(&shard);
        self.known.clear();
    }

    fn look(&mut self, link: &mut Link, fence: &mut Fence, now_ms: i64) -> RedisResult<bool> {
        self.look_at_ms = now_ms.saturating_add(TAKE_EVERY_MS);
        self.find_gone(link, fence, now_ms)?;
        let after_ms = now_ms.saturating_sub(TAKE_AFTER_MS);
        let gone: BTreeSet<u64> =
            self.gone.iter().filter(|(_, since)| **since <= after_ms).map(|(s, _)| *s).collect();
        let me = fence.epochs.broker();
        let mine: BTreeSet<usize> = fence.epochs.of_broker(me).collect();
        self.scans.retain(|shard, _| mine.contains(shard));
        if gone.is_empty() {
            return Ok(false);
        }
        for shard in mine {
            if !self.begin(link, fence, shard, &gone)? {
                continue;
            }
            // A few pages at a time: acknowledgements wait for who does this.
            let (mut marks, mut records, mut more) = (BTreeMap::new(), Vec::new(), true);
            for _ in 0..PAGES {
                let Some(scan) = self.scans.get_mut(&shard) else { break };
                let from = scan.last.map_or_else(|| "-".to_owned(), |last| format!("({last}"));
                let entries = page(link, &self.keys.log(shard), &from)?;
                more = !entries.is_empty();
                for Entry { id, store, record } in entries {
                    scan.last = Some(id);
                    let wanted = store.filter(|store| gone.contains(store));
                    let wanted = wanted.filter(|s| scan.taken.get(s).is_none_or(|t| *t < id));
                    if let Some(store) = wanted {
                        marks.insert(store, id);
                        records.push(record);
                    }
                }
            }
            if !records.is_empty() {
                let taken = Taken::of(link, &self.catalog, records, &mut self.known);
                // Until it is there, it is to be read again.
                let taken = taken.inspect_err(|_| self.forget(shard))?;
                log::info!("{} records of lost brokers' logs are taken in", taken.records.len());
                self.confirmed.make_offer(taken);
                self.step = Step::Offered(Page { shard, marks });
                return Ok(false);
            }
            if more {
                self.look_at_ms = now_ms;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whose brokers own nothing. One that moved from shard to shard goes on by itself.
    fn find_gone(&mut self, link: &mut Link, fence: &Fence, now_ms: i64) -> RedisResult<()> {
        let me = fence.epochs.broker();
        let mut gone = BTreeMap::new();
        for (store, log) in logs(link, &self.keys)? {
            let owns = log.broker != me && fence.epochs.of_broker(log.broker).next().is_some();
            let old = log.touched_ms.saturating_add(LOGS_MS_MAX) < now_ms;
            if store != self.store && log.broker != 0 && !owns && !old {
                gone.insert(store, self.gone.get(&store).copied().unwrap_or(now_ms).min(now_ms));
            }
        }
        self.gone = gone;
        Ok(())
    }

    /// Whether a shard's stream may be read: nobody who owned it before writes to it by his old epoch.
    fn begin(
        &mut self,
        link: &mut Link,
        fence: &mut Fence,
        shard: usize,
        gone: &BTreeSet<u64>,
    ) -> RedisResult<bool> {
        let epoch = fence.epochs.of(shard);
        let scan = self.scans.entry(shard).or_default();
        if scan.epoch == epoch && gone.is_subset(&scan.stores) {
            return Ok(true);
        }
        let (mut writes, key) = (Writes::default(), self.keys.taken(shard));
        writes.cmd(shard, "EXPIRE", &key).arg(MARK_LIFE_S);
        fence.retry(false);
        fence.send(link, writes)?;
        if fence.is_refused(shard) {
            // Its owner is another one, and this broker has not heard of it yet.
            fence.retry(true);
            return Ok(false);
        }
        let mut batch = Batch::default();
        batch.cmd("HGETALL", &key);
        let answer = link.query(&batch)?.into_iter().next().unwrap_or(::redis::Value::Nil);
        let marks: BTreeMap<String, String> = ::redis::from_redis_value(answer)?;
        let mark = |(store, id): (&String, &String)| Some((number(store)?, id.parse().ok()?));
        let taken = marks.iter().filter_map(mark).collect();
        *scan = Scan { epoch, stores: gone.clone(), taken, last: None };
        Ok(true)
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

impl std::str::FromStr for EntryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ms, n) = text.split_once('-').ok_or(())?;
        Ok(Self(ms.parse().map_err(drop)?, n.parse().map_err(drop)?))
    }
}

/// Takes what Redis has of a lost directory's log into an empty store, or one that was restored from a backup:
/// frames and samples that were acknowledged and may not be in blocks. Adds the numbers of its frames to what
/// is known.
///
/// A file says that it has begun, so that one that was cut short is done again. The logs of brokers of a
/// cluster that lives are not touched.
///
/// # Errors
/// Redis does not answer, or the store refuses: who goes on would acknowledge less than promised.
pub fn restore(
    config: &RedisConfig,
    writer: &mut Writer,
    recovery: &mut Recovery,
    now_ms: i64,
) -> Result<u64, RedisError> {
    let begun = writer.shared.config().dir.join(RESTORING);
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
    let logs = logs(&mut link, &keys).map_err(refused)?;
    let is_lost =
        |log: &OfStore| log.broker == 0 || log.touched_ms.saturating_add(QUIET_MS) < now_ms;
    let alive = logs.values().filter(|log| !is_lost(log)).count();
    let shards = if 0 < alive && alive == logs.len() { 0..0 } else { 0..SHARDS };
    let (mut known, mut records) = (BTreeSet::new(), 0);
    for shard in shards {
        let mut from = "-".to_owned();
        loop {
            let mut found = page(&mut link, &keys.log(shard), &from).map_err(refused)?;
            let Some(last) = found.last() else { break };
            from = format!("({}", last.id);
            let of = |entry: &Entry| entry.store.and_then(|store| logs.get(&store));
            found.retain(|entry| of(entry).is_none_or(is_lost));
            let found = found.into_iter().map(|entry| entry.record).collect();
            let taken = Taken::of(&mut link, &catalog, found, &mut known).map_err(refused)?;
            let damage = writer.take_in(&taken).map_err(|error| lost(error.to_string()))?;
            let named = damage.iter().map(|place| format!("Redis's log: {place}"));
            recovery.damage.extend(named);
            records += u64::try_from(taken.records.len()).unwrap_or(0);
            recovery.seen.extend(taken.seen());
            writer.commit(now_ms).map_err(|error| lost(error.to_string()))?;
        }
    }
    std::fs::remove_file(&begun).map_err(io)?;
    Ok(records)
}

/// What is said of a store's log.
#[derive(Clone, Copy)]
struct OfStore {
    broker: u64,
    touched_ms: i64,
}

fn logs(link: &mut Link, keys: &Keys) -> RedisResult<BTreeMap<u64, OfStore>> {
    let mut batch = Batch::default();
    batch.cmd("HGETALL", &keys.logs());
    let answer = link.query(&batch)?.into_iter().next().unwrap_or(::redis::Value::Nil);
    let found: BTreeMap<String, String> = ::redis::from_redis_value(answer)?;
    let one = |(store, text): (&String, &String)| {
        let (broker, touched_ms) = text.split_once(' ')?;
        let (broker, touched_ms) = (broker.parse().ok()?, touched_ms.parse().ok()?);
        Some((number(store)?, OfStore { broker, touched_ms }))
    };
    Ok(found.iter().filter_map(one).collect())
}

/// Entries of a stream from one on.
fn page(link: &mut Link, key: &str, from: &str) -> RedisResult<Vec<Entry>> {
    let mut batch = Batch::default();
    batch.cmd("XRANGE", key).arg(from).arg("+").arg("COUNT").arg(PAGE);
    let answer = link.query(&batch)?.into_iter().next().unwrap_or(::redis::Value::Nil);
    let entries: Vec<(String, BTreeMap<String, Vec<u8>>)> = ::redis::from_redis_value(answer)?;
    let entry = |(id, mut fields): (String, BTreeMap<String, Vec<u8>>)| {
        let store = fields.get("s").and_then(|name| number(std::str::from_utf8(name).ok()?));
        Some(Entry { id: id.parse().ok()?, store, record: fields.remove("r")? })
    };
    Ok(entries.into_iter().filter_map(entry).collect())
}

fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// In the store's directory: what Redis has of a log is to be taken in, whatever else is there.
pub const RESTORING: &str = "restoring";
/// A broker that starts again within this, with its disk, has its rows itself.
const TAKE_AFTER_MS: i64 = 15_000;
const TAKE_EVERY_MS: i64 = 2_000;
/// A log that nobody wrote to for a day has nothing that is not in blocks, or is gone.
const LOGS_MS_MAX: i64 = 86_400_000;
/// A broker that lives tells of its log every second.
const QUIET_MS: i64 = 30_000;
/// Of a mark of what was taken: longer than any entry is there.
const MARK_LIFE_S: i64 = 2 * 86_400;
const PAGE: usize = 500;
const PAGES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_ordered_as_redis_numbers_them() {
        let id = |text: &str| text.parse::<EntryId>();
        assert!(
            id("9-5").unwrap() < id("10-0").unwrap() && id("9-5").unwrap() < id("9-10").unwrap()
        );
        assert_eq!(id("12-3").unwrap().to_string(), "12-3");
        assert_eq!((id(""), id("1"), id("a-1")), (Err(()), Err(()), Err(())));
    }
}
