//! What was said, and whether what is on disk is that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use strobe_broker::store::{Limits, MatchOp, Matcher, Scratch, Store, TimeRange};
use strobe_journal::Journal;
use strobe_wire::frame::{self, Payload};

/// Metric, time in ms and value of a row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Said {
    pub(crate) metric: &'static str,
    pub(crate) time_ms: i64,
    pub(crate) value: u32,
}

/// Everything the agent did.
#[derive(Default, Debug)]
pub(crate) struct Oracle {
    /// Rows put into the ring, by boot and number.
    pub(crate) rows: BTreeMap<(u128, u64), Said>,
    /// Numbers that found the ring full.
    pub(crate) lost: BTreeSet<(u128, u64)>,
    /// The last number acknowledged, by boot.
    pub(crate) acknowledged: BTreeMap<u128, u64>,
}

impl Oracle {
    /// Compares with the readers' view and, frame by frame, with the WAL.
    pub(crate) fn judge(&self, store: Store, dir: &Path) {
        let visible = visible(&store);
        drop(store);
        let (mut stored, mut covered) = (BTreeSet::new(), BTreeSet::new());
        let mut rows = BTreeSet::new();
        let opened = Journal::open(&dir.join("wal"), &mut |_, record: &[u8]| {
            let Some((&FRAME, bytes)) = record.split_first() else { return };
            let frame = frame::open(bytes).expect("a stored frame opens");
            let id = (frame.header.boot.0, frame.header.seq.0);
            assert!(stored.insert(id), "{id:?} is stored twice");
            match frame.payload {
                Payload::Row(row) => {
                    let said = self.rows.get(&id);
                    let said = said.unwrap_or_else(|| panic!("{id:?} was never sent"));
                    assert_eq!(row.value(0), Some(u64::from(said.value)), "{id:?}");
                    rows.insert(*said);
                }
                Payload::Loss(loss) => {
                    let range = loss.first.to_native()..=loss.last.to_native();
                    covered.extend(range.map(|seq| (id.0, seq)));
                }
                Payload::Event(_) => panic!("{id:?}: no event was sent"),
            }
        });
        opened.expect("the WAL opens once the store is closed");
        assert_eq!(visible, rows, "readers see what is stored, and nothing else");
        for (boot, last) in &self.acknowledged {
            for id in (1..=*last).map(|seq| (*boot, seq)) {
                let (stored, covered) = (stored.contains(&id), covered.contains(&id));
                assert!(stored || covered, "{id:?} was acknowledged and is nowhere");
                assert_eq!(covered, self.lost.contains(&id), "{id:?}: a loss that was none");
                assert_ne!(stored, covered, "{id:?} is stored and told as lost");
            }
        }
    }
}

/// Every sample that a query gives; none may stand twice.
fn visible(store: &Store) -> BTreeSet<Said> {
    let mut seen = BTreeSet::new();
    let range = TimeRange { start_ms: 0, end_ms: i64::MAX / 2 };
    let limits = Limits { series_max: 100, samples_max: 1_000_000 };
    for metric in METRICS {
        let (name, value) = ("__name__".to_owned(), metric.to_owned());
        let matcher = Matcher { name, op: MatchOp::Equal, value };
        let mut scratch = Scratch::new(&limits);
        for part in store.select(&[matcher], range, &limits).expect("a selection") {
            let scanned = store.scan(&part, range, &mut scratch, &mut |_, times, values| {
                for (&time_ms, &value) in times.iter().zip(values) {
                    let value = format!("{value}").parse().expect("a value that was sent");
                    let new = seen.insert(Said { metric, time_ms, value });
                    assert!(new, "{metric} at {time_ms} is answered twice");
                }
                Ok(())
            });
            scanned.expect("a scan");
        }
    }
    seen
}

/// The columns; each is a section of its own.
pub(crate) const METRICS: [&str; 2] = ["sim_a", "sim_b"];
/// A WAL record that holds a frame.
const FRAME: u8 = 3;
