//! Rows of other inputs on their way to the sampler's thread, which numbers and seals all frames.
//!
//! ```text
//!   inputs ── put ──▶ queue of BYTES_MAX ── drain, DRAIN_MAX a tick ──▶ sampler ──▶ ring
//! ```
//!
//! The inputs' thread holds the lock for a push and nothing else; the sampler tries it, and comes a
//! tick later if it is taken. A full queue refuses the row, and the inputs' thread counts it.

use crate::sampler::{SectionRow, Tick};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use strobe_wire::ids::SchemaId;
use strobe_wire::schema::Schema;

/// The queue; clones are ends of the same one.
#[derive(Clone, Debug, Default)]
pub struct Outbox(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    rows: VecDeque<Row>,
    bytes: usize,
}

/// A section's values at one moment.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) at: Tick,
    pub(crate) schema: Arc<Schema>,
    pub(crate) id: SchemaId,
    pub(crate) values: Vec<u64>,
    pub(crate) valid: Vec<u8>,
}

impl Outbox {
    /// Whether there was room for it.
    pub(crate) fn put(&self, row: Row) -> bool {
        let mut queue = self.lock();
        let fits = queue.bytes + row.bytes() <= BYTES_MAX;
        if fits {
            queue.bytes += row.bytes();
            queue.rows.push_back(row);
        }
        fits
    }

    /// Hands out the oldest rows, a bounded number, without waiting for anybody.
    pub fn drain(&self, mut sink: impl FnMut(Tick, SectionRow<'_>)) {
        for _ in 0..DRAIN_MAX {
            let Ok(mut queue) = self.0.try_lock() else { return };
            let Some(row) = queue.rows.pop_front() else { return };
            queue.bytes -= row.bytes();
            drop(queue);
            let Row { at, schema, id, values, valid } = &row;
            sink(*at, SectionRow { schema, id: *id, values, valid, scores: &[] });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing under the lock leaves the queue half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.values.len() * 8 + self.valid.len()
    }
}

/// A thousand rows of the largest kind.
const BYTES_MAX: usize = 4 << 20;
/// An eighth of the ring by default: 25,600 series.
const DRAIN_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_in_bytes_and_in_what_a_tick_takes() {
        let (outbox, at) = (Outbox::default(), Tick { wall_ns: 1, boottime_ns: 2 });
        let schema = Arc::new(Schema { section: "x".to_owned(), columns: Vec::new() });
        let row = || {
            let (values, valid) = (vec![7; 400], vec![255; 50]);
            Row { at, schema: Arc::clone(&schema), id: SchemaId(3), values, valid }
        };
        let put = (0..10_000).take_while(|_| outbox.put(row())).count();
        assert!((1_000..1_400).contains(&put), "{put}");
        let drained = |of: &Outbox| {
            let mut count = 0;
            of.drain(|_, row| {
                assert_eq!((row.values[399], row.valid.len()), (7, 50));
                count += 1;
            });
            count
        };
        assert_eq!(drained(&outbox), DRAIN_MAX);
        assert!(outbox.put(row()), "there is room again");
        assert_eq!((0..100).map(|_| drained(&outbox)).sum::<usize>(), put - DRAIN_MAX + 1);
        let held = outbox.lock();
        assert_eq!((drained(&outbox.clone()), held.bytes), (0, 0), "nobody is waited for");
    }
}
