//! Two scenarios that together use every edge of the ring, and the proof that each ordering counts.

use crate::ledger::{Cursor, Ledger};
use crate::sync::{Named, weaken};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A ring whose slots are loom cells: an access that nothing orders is a failure.
struct Model {
    ledger: Ledger,
    slots: Vec<UnsafeCell<u64>>,
}

impl Model {
    fn new(slots: usize) -> Arc<Self> {
        let ledger = Ledger::new(slots);
        Arc::new(Self { ledger, slots: (0..slots).map(|_| UnsafeCell::new(0)).collect() })
    }

    /// Claims, writes `value` and publishes it with `length`; `None` if the ring is full.
    fn put(&self, head_seen: &mut u64, value: u64, length: u64) -> Option<u64> {
        let ticket = self.ledger.claim(head_seen)?;
        self.slots[self.ledger.index(ticket)].with_mut(|at| {
            // SAFETY: loom runs one thread at a time and panics where two accesses may overlap.
            unsafe { *at = value }
        });
        self.ledger.publish(ticket, length);
        Some(ticket)
    }

    fn value(&self, ticket: u64) -> u64 {
        self.slots[self.ledger.index(ticket)].with(|at| {
            // SAFETY: as in `put`.
            unsafe { *at }
        })
    }
}

/// Two writers race for the tail of a ring with room for one more lap; what is read is whole,
/// in ticket order, and everybody's claim is there once.
fn two_writers() {
    let model = Model::new(2);
    let writers: Vec<_> = [10, 20]
        .into_iter()
        .map(|value| {
            let model = Arc::clone(&model);
            thread::spawn(move || model.put(&mut 0, value, value))
        })
        .collect();
    let mut cursor = Cursor::default();
    let mut seen = Vec::new();
    let mut take = |seen: &mut Vec<u64>| {
        while let Some((ticket, length)) = cursor.next(&model.ledger) {
            assert_eq!(model.value(ticket), length);
            seen.push(length);
        }
    };
    take(&mut seen);
    for writer in writers {
        assert!(writer.join().unwrap().is_some(), "two slots, two claims");
    }
    take(&mut seen);
    seen.sort_unstable();
    assert_eq!(seen, [10, 20]);
}

/// One slot, so that the second put needs the first to be read, released and let go. The holder
/// reads the bytes after the reader has released them: only its hold keeps the writer away.
fn one_slot_reused_under_a_hold() {
    let model = Model::new(1);
    let mut head_seen = 0;
    model.put(&mut head_seen, 1, 1).unwrap();
    let mut cursor = Cursor::default();
    let (first, _) = cursor.next(&model.ledger).unwrap();
    model.ledger.hold(first);
    let holder = {
        let model = Arc::clone(&model);
        thread::spawn(move || {
            assert_eq!(model.value(first), 1, "a held slot changed");
            model.ledger.let_go(first);
        })
    };
    let writer = {
        let model = Arc::clone(&model);
        thread::spawn(move || model.put(&mut head_seen, 2, 2).is_some())
    };
    assert_eq!(model.value(first), 1);
    cursor.release(&model.ledger, first);
    let read = cursor.next(&model.ledger);
    if let Some((ticket, length)) = read {
        assert_eq!((model.value(ticket), length), (2, 2));
    }
    holder.join().unwrap();
    let written = writer.join().unwrap();
    if written && read.is_none() {
        assert_eq!(cursor.next(&model.ledger), Some((1, 2)));
        assert_eq!(model.value(1), 2);
    }
}

/// A writer that abandons between two that do not: nobody waits for it, and its slot is free
/// again in the end.
fn an_abandoned_slot_between_two() {
    let model = Model::new(2);
    let writer = {
        let model = Arc::clone(&model);
        thread::spawn(move || {
            let mut head_seen = 0;
            [0, 7].map(|length| model.put(&mut head_seen, length, length).is_some())
        })
    };
    let mut cursor = Cursor::default();
    let mut seen = Vec::new();
    while let Some((ticket, length)) = cursor.next(&model.ledger) {
        seen.push(length);
        cursor.release(&model.ledger, ticket);
    }
    assert_eq!(writer.join().unwrap(), [true, true]);
    while let Some((ticket, length)) = cursor.next(&model.ledger) {
        seen.push(length);
        cursor.release(&model.ledger, ticket);
    }
    assert_eq!(seen, [7]);
    assert_eq!(model.ledger.occupied(), 0);
}

const SCENARIOS: [fn(); 3] =
    [two_writers, one_slot_reused_under_a_hold, an_abandoned_slot_between_two];

#[test]
fn two_writers_are_in_order_under_every_interleaving() {
    loom::model(two_writers);
}

#[test]
fn a_held_slot_is_never_written_under_any_interleaving() {
    loom::model(one_slot_reused_under_a_hold);
}

#[test]
fn an_abandoned_slot_holds_nobody_back_under_any_interleaving() {
    loom::model(an_abandoned_slot_between_two);
}

/// Weakens one ordering to `Relaxed`; some scenario must fail, or the model proves nothing of it.
fn is_caught(which: Named) {
    weaken(which);
    let caught = SCENARIOS
        .iter()
        .any(|scenario| catch_unwind(AssertUnwindSafe(|| loom::model(*scenario))).is_err());
    assert!(caught, "no scenario notices that {which:?} is relaxed");
}

#[test]
fn publish_relaxed_is_caught() {
    is_caught(Named::Publish);
}

#[test]
fn read_relaxed_is_caught() {
    is_caught(Named::Read);
}

#[test]
fn let_go_relaxed_is_caught() {
    is_caught(Named::LetGo);
}

#[test]
fn held_relaxed_is_caught() {
    is_caught(Named::Held);
}

#[test]
fn free_relaxed_is_caught() {
    is_caught(Named::Free);
}

#[test]
fn reuse_relaxed_is_caught() {
    is_caught(Named::Reuse);
}
