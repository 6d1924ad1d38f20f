//! What may be said only when Redis has it too (`broker.durability = "wal+redis"`): it waits here,
//! in order, until the log's position that it tells of is confirmed.
//!
//! Bounded by what the network loop and remote-write have in flight. A stop says none of it: agents
//! send again what they were not told, and it is known by its number.

use crate::store::StoreError;
use crate::store::redis::Confirmed;
use crate::writer::Report;
use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::time::Instant;
use strobe_journal::Position;

/// Holds reports and answers back.
#[derive(Debug)]
pub(crate) struct Gate {
    confirmed: Confirmed,
    held: VecDeque<(Position, Held)>,
    /// When to look again.
    pub(crate) look_at: Instant,
}

#[derive(Debug)]
enum Held {
    Report(Report),
    Answer(SyncSender<Result<(), StoreError>>),
}

impl Gate {
    pub(crate) fn new(confirmed: Confirmed, now: Instant) -> Self {
        Self { confirmed, held: VecDeque::new(), look_at: now }
    }

    /// Until everything before `at` is confirmed.
    pub(crate) fn report(&mut self, at: Position, report: Report) {
        self.hold(at, Held::Report(report));
    }

    /// The same for an answer that says yes.
    pub(crate) fn answer(&mut self, at: Position, reply: SyncSender<Result<(), StoreError>>) {
        self.hold(at, Held::Answer(reply));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Says what is confirmed by now.
    pub(crate) fn release(&mut self, report: &mut dyn FnMut(Report)) {
        let through = self.confirmed.through();
        while self.held.front().is_some_and(|(at, _)| *at <= through) {
            match self.held.pop_front() {
                Some((_, Held::Report(held))) => report(held),
                // The asker may have given up; then nobody wants the answer.
                Some((_, Held::Answer(reply))) => drop(reply.try_send(Ok(()))),
                None => {}
            }
        }
    }

    fn hold(&mut self, at: Position, held: Held) {
        self.held.push_back((at, held));
        self.confirmed.wake();
    }
}
