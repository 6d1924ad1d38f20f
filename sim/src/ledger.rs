//! What was said, and whether what is on disk and what readers see is that.

use super::agent::instance;
use super::redis::Redis;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use strobe_broker::store::{Limits, MatchOp, Matcher, Scratch, Store, TimeRange};
use strobe_wire::frame::{self, ArchivedLoss, Payload};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::schema::{Kind, Schema};

/// Names a frame of the fleet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Id {
    pub(crate) host: HostId,
    pub(crate) boot: BootId,
    pub(crate) seq: u64,
}

/// What a number was given to.
#[derive(Clone, Debug)]
pub(crate) enum Sent {
    /// A row; `stray` if its time is out of bounds, so that a loss is to stand in its place.
    Row { bytes: Bytes, schema: Arc<Schema>, stray: bool },
    /// An event, or an entry of the loss ledger.
    Words,
    /// It found the ring full.
    Lost,
}

/// What retention removed.
pub(crate) struct Buried {
    /// Every sample of every raw segment that went.
    pub(crate) samples: BTreeSet<Sample>,
    /// They went for their age, which is greater than this; else for the room they took.
    pub(crate) before_ms: Option<i64>,
}

/// What all brokers have.
#[derive(Default)]
pub(crate) struct Found {
    stored: BTreeSet<Id>,
    /// What is told as lost, and by which entry.
    told: BTreeMap<Id, Id>,
}

/// Everything the agents did.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) sent: BTreeMap<Id, Sent>,
    /// Whether brokers take in what lost ones have left in Redis: one of them may have a frame from there
    /// and from the agent too, and answers it once.
    takes_in: bool,
    /// The last number acknowledged of each boot.
    pub(crate) acknowledged: BTreeMap<(HostId, BootId), u64>,
    value: u64,
}

/// Instance, metric, ms, and the bits of a value.
pub(crate) type Sample = (String, String, i64, u64);

impl Ledger {
    pub(crate) fn new(takes_in: bool) -> Self {
        Self { takes_in, ..Self::default() }
    }

    /// Whether brokers take in what lost ones have left in Redis.
    pub(crate) fn takes_in(&self) -> bool {
        self.takes_in
    }

    /// Values of the next row; no two rows have the same.
    pub(crate) fn values(&mut self, schema: &Schema, salt: usize) -> Vec<u64> {
        let columns = schema.columns.iter().map(|column| {
            self.value += 1;
            match column.kind {
                Kind::Counter { .. } => self.value,
                Kind::Gauge { .. } => (-i64::try_from(self.value).expect("small")).cast_unsigned(),
                // Now and then a NaN with a payload of its own.
                Kind::Float if self.value.is_multiple_of(7) => 0x7ff8_0000_0000_0000 | self.value,
                Kind::Float => (self.value as f64 / 3.0 + salt as f64).to_bits(),
            }
        });
        columns.collect()
    }

    pub(crate) fn lost(&self) -> u64 {
        self.sent.values().filter(|sent| matches!(sent, Sent::Lost)).count() as u64
    }

    /// One broker's store: compares with the readers' view and, frame by frame, with every WAL file
    /// there ever was. What was `buried` by retention may be missing, and a rollup may stand for it.
    /// What it has is noted in `found`.
    pub(crate) fn judge(
        &self,
        (store, dir): (&Store, &Path),
        removed: &[Vec<u8>],
        buried: &Buried,
        found: &mut Found,
    ) {
        let (mut stored, mut samples) = (BTreeSet::new(), BTreeSet::new());
        let logs = std::fs::read_dir(dir.join("wal")).expect("the WAL").flatten();
        let logs = logs.map(|entry| entry.path()).filter(|path| path.extension().is_some());
        let logs: Vec<_> = logs.map(|path| std::fs::read(path).expect("a WAL file")).collect();
        for frame in removed.iter().chain(&logs).flat_map(|log| frames(log)) {
            let opened = frame::open(&frame).expect("a stored frame opens");
            let header = opened.header;
            let id = Id { host: header.host, boot: header.boot, seq: header.seq.0 };
            assert!(stored.insert(id) || self.takes_in, "{id:?} is stored twice");
            match (opened.payload, self.sent.get(&id)) {
                (Payload::Row(_), Some(Sent::Row { bytes, schema, stray: false })) => {
                    assert_eq!(*bytes, frame, "{id:?} is not stored byte for byte");
                    samples.extend(said(bytes, schema));
                }
                (Payload::Event(_), Some(Sent::Words)) => {}
                (Payload::Loss(loss), sent) => self.tell(id, loss, sent, found),
                (_, sent) => panic!("{id:?} was {sent:?}, and is stored otherwise"),
            }
        }
        found.stored.extend(stored);
        compare(store, &samples, buried);
    }

    /// An entry of the loss ledger says what happened, once.
    fn tell(&self, id: Id, loss: &ArchivedLoss, sent: Option<&Sent>, found: &mut Found) {
        let (first, last) = (loss.first.to_native(), loss.last.to_native());
        if loss.reason.as_str() == "time" {
            assert!(matches!(sent, Some(Sent::Row { stray: true, .. })), "{id:?}: {sent:?}");
            assert_eq!((first, last), (id.seq, id.seq), "{id:?} stands for itself");
            return;
        }
        assert!(matches!(sent, Some(Sent::Words)), "{id:?}: {sent:?} became a {}", loss.reason);
        for seq in first..=last {
            let lost = Id { seq, ..id };
            let sent = self.sent.get(&lost);
            assert!(matches!(sent, Some(Sent::Lost)), "{lost:?}: {sent:?} is told as lost");
            let by = *found.told.entry(lost).or_insert(id);
            assert_eq!(by, id, "{lost:?} is told twice");
        }
    }

    /// The rows that were acknowledged, and their samples.
    pub(crate) fn owed(&self) -> impl Iterator<Item = (Id, Vec<Sample>)> {
        let known = |id: &Id| self.acknowledged.get(&(id.host, id.boot)).copied().unwrap_or(0);
        let owed = self.sent.iter().filter(move |(id, _)| id.seq <= known(id));
        owed.filter_map(|(id, sent)| match sent {
            Sent::Row { bytes, schema, stray: false } => Some((*id, said(bytes, schema))),
            _ => None,
        })
    }

    /// Every sample of every row that is one.
    pub(crate) fn said(&self) -> BTreeSet<Sample> {
        let rows = self.sent.values().filter_map(|sent| match sent {
            Sent::Row { bytes, schema, stray: false } => Some(said(bytes, schema)),
            _ => None,
        });
        rows.flatten().collect()
    }

    /// What is newly acknowledged is in Redis by then, where nothing is acknowledged before.
    pub(crate) fn look_at_log(
        &self,
        (host, boot): (HostId, BootId),
        new: RangeInclusive<u64>,
        redis: &Redis,
    ) {
        for seq in new {
            let id = Id { host, boot, seq };
            if let Some(Sent::Row { bytes, stray: false, .. }) = self.sent.get(&id) {
                let header = frame::open(bytes).expect("it was sealed here").header;
                let there = redis.has_or_lost(host, bytes, header.wall_ns.div_euclid(1_000_000));
                assert!(there, "{id:?} was acknowledged before Redis had it");
            }
        }
    }

    /// What was acknowledged is stored by somebody, or told as lost.
    pub(crate) fn account(&self, found: &Found) {
        for (&(host, boot), &last) in &self.acknowledged {
            for seq in 1..=last {
                let id = Id { host, boot, seq };
                let accounted = match self.sent.get(&id) {
                    Some(Sent::Lost) => found.told.contains_key(&id),
                    _ => found.stored.contains(&id),
                };
                assert!(accounted, "{id:?} was acknowledged and is nowhere");
            }
        }
    }
}

/// The samples that one broker's log has are those that its readers see.
fn compare(store: &Store, samples: &BTreeSet<Sample>, buried: &Buried) {
    let seen = visible(store);
    let last_ms = buried.samples.iter().map(|sample| sample.2).max();
    let rolled = |sample: &Sample| last_ms.is_some_and(|last| sample.2 <= last + STEP_MS);
    let places: BTreeSet<_> = seen.iter().map(|(host, name, ms, _)| (host, name, *ms)).collect();
    for missing in samples.difference(&seen) {
        let gone = buried.samples.contains(missing);
        // What came late stands hidden in a segment until its hour is rolled up again.
        assert!(gone || rolled(missing), "{missing:?} is stored, and no reader sees it");
        if let Some(before_ms) = buried.before_ms.filter(|_| gone) {
            assert!(missing.2 < before_ms, "{missing:?} went too early");
            let (host, name, ms, _) = missing;
            let step = (host, name, (ms + STEP_MS - 1).div_euclid(STEP_MS) * STEP_MS);
            assert!(places.contains(&step), "{missing:?} went, and no minute has it");
        }
    }
    for extra in seen.difference(samples) {
        let a_rollup = rolled(extra) && extra.2 % STEP_MS == 0;
        assert!(a_rollup, "{extra:?} is seen, and nobody said it");
    }
}

/// The frames of a WAL file, up to what a crash tore. Written anew here, so that the journal's
/// reader is not its own witness.
fn frames(log: &[u8]) -> Vec<Bytes> {
    let mut frames = Vec::new();
    let mut at = 4;
    while let Some(&[a, b, c, d, e, f, g, h]) = log.get(at..).and_then(|rest| rest.first_chunk()) {
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let record = log.get(at + 8..at + 8 + length).filter(|record| !record.is_empty());
        let sum = |record| crc32c::crc32c_append(crc32c::crc32c(&[a, b, c, d]), record);
        let Some(record) = record.filter(|r| sum(r) == u32::from_le_bytes([e, f, g, h])) else {
            // Behind a torn record another may be whole.
            at += 1;
            continue;
        };
        if let [FRAME | COPIED, bytes @ ..] = record {
            frames.push(Bytes::copy_from_slice(bytes));
        }
        at += 8 + length;
    }
    frames
}

/// The samples of a row.
fn said(bytes: &[u8], schema: &Schema) -> Vec<Sample> {
    let frame = frame::open(bytes).expect("it was sealed here");
    let Payload::Row(row) = frame.payload else { unreachable!("a row was sealed") };
    let time_ms = frame.header.wall_ns.div_euclid(1_000_000);
    let columns = row.values().zip(&schema.columns).filter_map(|(raw, column)| {
        let value = match column.kind {
            Kind::Counter { .. } => raw? as f64,
            Kind::Gauge { .. } => raw?.cast_signed() as f64 / 100.0,
            Kind::Float => f64::from_bits(raw?),
        };
        Some((instance(frame.header.host), column.name.clone(), time_ms, value.to_bits()))
    });
    columns.collect()
}

/// Every sample that a query gives; none may stand twice.
pub(crate) fn visible(store: &Store) -> BTreeSet<Sample> {
    let mut seen = BTreeSet::new();
    let range = TimeRange { start_ms: 0, end_ms: i64::MAX / 2 };
    let limits = Limits { series_max: 100, samples_max: 1_000_000 };
    let every = Matcher { name: "job".to_owned(), op: MatchOp::Equal, value: "node".to_owned() };
    let mut scratch = Scratch::new(&limits);
    for part in store.select(&[every], range, &limits).expect("a selection") {
        let scanned = store.scan(&part, range, &mut scratch, &mut |labels, times, values| {
            let label = |name| labels.value(name).expect("every series has it").to_owned();
            let (instance, metric) = (label("instance"), label("__name__"));
            for (&time_ms, &value) in times.iter().zip(values) {
                let sample = (instance.clone(), metric.clone(), time_ms, value.to_bits());
                assert!(!seen.contains(&sample), "{sample:?} is answered twice");
                seen.insert(sample);
            }
            Ok(())
        });
        scanned.expect("a scan");
    }
    seen
}

/// Between two rows of the finer rollup.
const STEP_MS: i64 = 60_000;
/// A WAL record that holds a frame.
const FRAME: u8 = 3;
/// The same of class `wal+redis`.
const COPIED: u8 = 0x83;
