//! What may be said only when Redis has it too (class `wal+redis`): answers to remote-write wait here, in
//! order, until the log's position that they tell of is confirmed; of agents' rows the network loop is told
//! how far Redis is, and keeps what it may not say yet.
//!
//! Bounded by what remote-write has in flight. A stop says none of it: who was not told sends again.

use crate::store::StoreError;
use crate::store::redis::{Confirmed, Taken};
use crate::writer::Report;
use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::time::Instant;
use strobe_journal::Position;

/// Holds answers back, and sees how far Redis is.
#[derive(Debug)]
pub(crate) struct Gate {
    confirmed: Confirmed,
    held: VecDeque<(Position, SyncSender<Result<(), StoreError>>)>,
    /// What the network loop was told.
    told: Position,
    /// What it waits for.
    awaited: Position,
    /// When to look again.
    pub(crate) look_at: Instant,
}

impl Gate {
    /// What was there at `began` is not told before Redis has it either.
    pub(crate) fn new(confirmed: Confirmed, began: Position, now: Instant) -> Self {
        let (held, told) = (VecDeque::new(), Position::default());
        Self { confirmed, held, told, awaited: began, look_at: now }
    }

    /// Rows before `at` wait for Redis.
    pub(crate) fn rows(&mut self, at: Position) {
        self.awaited = at;
        self.confirmed.wake();
    }

    /// So does an answer that says yes.
    pub(crate) fn answer(&mut self, at: Position, reply: SyncSender<Result<(), StoreError>>) {
        self.held.push_back((at, reply));
        self.confirmed.wake();
    }

    /// Whether some hosts' rows wait for Redis.
    pub(crate) fn is_wanted(&self) -> bool {
        self.confirmed.is_wanted()
    }

    pub(crate) fn is_waiting(&self) -> bool {
        let rows = self.told < self.awaited && self.is_wanted();
        rows || !self.held.is_empty()
    }

    /// Says what is confirmed by now.
    pub(crate) fn release(&mut self, report: &mut dyn FnMut(Report)) {
        let through = self.confirmed.through();
        while self.held.front().is_some_and(|(at, _)| *at <= through) {
            if let Some((_, reply)) = self.held.pop_front() {
                // The asker may have given up; then nobody wants the answer.
                drop(reply.try_send(Ok(())));
            }
        }
        if self.told < through && self.told < self.awaited {
            self.told = through;
            report(Report::Copied { through });
        }
    }

    /// What a lost broker's log says, to be taken in.
    pub(crate) fn offered(&self) -> Option<Taken> {
        self.confirmed.offered()
    }

    /// It is in the log here up to this position; none: it could not be.
    pub(crate) fn took(&self, at: Option<Position>) {
        self.confirmed.took(at);
    }
}
