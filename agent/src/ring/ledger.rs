//! Who may touch which slot: the lock-free part of the ring, without the memory and without unsafe.
//!
//! Tickets count up from 0 and never come again; ticket `t` stands for slot `t % slots` in lap
//! `t / slots`. Four marks cut the tickets into who owns them:
//!
//! ```text
//!    free for the next lap │ released, held │ sent, not released │ to be read │ claimed │ free
//!                        head             acked                next              tail
//!                         └──────────────── at most `slots` ─────────────────────┘
//! ```
//!
//! - A slot's header is `(ticket + 1) << 13 | length`, one 8-byte store: the ticket says which lap
//!   it was written in, so a header of another lap is "not yet". Length 0 is an abandoned slot.
//! - A writer owns ticket `t` between the CAS that moved `tail` over it and its header's store.
//! - The reader moves `head` over a ticket only when it was released and nobody holds its bytes.
//! - A writer gets `t` only if `t - head < slots`, so the slot's former ticket lies behind `head`.
//!
//! A writer that dies between claim and publish would stop the reader at its ticket (`Claim`'s
//! drop abandons, so this takes a `mem::forget`); the ring then fills up and refuses, visibly.
//!
//! The orderings are explained in `sync.rs`.

use super::sync::{AtomicU32, AtomicU64, FREE, HELD, LET_GO, PUBLISH, READ, REUSE};
use crossbeam_utils::CachePadded;
use std::sync::atomic::Ordering::Relaxed;

/// The shared marks and the dense headers.
#[derive(Debug)]
pub(super) struct Ledger {
    tail: CachePadded<AtomicU64>,
    head: CachePadded<AtomicU64>,
    headers: Box<[AtomicU64]>,
    holds: Box<[AtomicU32]>,
}

/// The reader's own marks: `head <= acked <= next <= seen`.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    head: u64,
    acked: u64,
    next: u64,
    seen: u64,
}

impl Ledger {
    /// `slots` is a power of two.
    pub(super) fn new(slots: usize) -> Self {
        assert!(slots.is_power_of_two());
        Self {
            tail: CachePadded::new(AtomicU64::new(0)),
            head: CachePadded::new(AtomicU64::new(0)),
            headers: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            holds: (0..slots).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// A ticket of the caller's own, or `None` if the ring is full. `head_seen` is the caller's
    /// memory of the head: while it suffices, the reader's cache line is left alone.
    pub(super) fn claim(&self, head_seen: &mut u64) -> Option<u64> {
        let mut ticket = self.tail.load(Relaxed);
        loop {
            if self.is_full(ticket, *head_seen) {
                *head_seen = self.head.load(REUSE);
                if self.is_full(ticket, *head_seen) {
                    return None;
                }
            }
            // A stale `ticket`, even one behind the head, fails here and comes back fresh.
            match self.tail.compare_exchange_weak(ticket, ticket + 1, Relaxed, Relaxed) {
                Ok(_) => return Some(ticket),
                Err(fresh) => ticket = fresh,
            }
        }
    }

    /// Ends the caller's ownership of `ticket`; `length` 0 abandons it.
    pub(super) fn publish(&self, ticket: u64, length: u64) {
        assert!(length <= LENGTH_MASK);
        let header = (ticket + 1) << LENGTH_BITS | length;
        self.headers[self.index(ticket)].store(header, PUBLISH);
    }

    /// One more holder of a slot that the reader has read and not released.
    pub(super) fn hold(&self, ticket: u64) {
        let before = self.holds[self.index(ticket)].fetch_add(1, Relaxed);
        assert!(before < u32::MAX, "4 billion holds of one slot");
    }

    /// One holder less; it reads the slot no more.
    pub(super) fn let_go(&self, ticket: u64) {
        let before = self.holds[self.index(ticket)].fetch_sub(1, LET_GO);
        assert!(0 < before, "a hold was let go twice");
    }

    /// The slot of a ticket.
    pub(super) fn index(&self, ticket: u64) -> usize {
        let mask = self.headers.len() - 1;
        // Truncation on a 32-bit machine loses only bits that the mask takes away.
        usize::try_from(ticket & u64::try_from(mask).unwrap_or(u64::MAX)).unwrap_or(0) & mask
    }

    /// Tickets claimed and not yet free again, as far as the caller can see.
    pub(super) fn occupied(&self) -> u64 {
        let head = self.head.load(Relaxed);
        self.tail.load(Relaxed).saturating_sub(head)
    }

    /// Tickets given out since the start.
    pub(super) fn claimed(&self) -> u64 {
        self.tail.load(Relaxed)
    }

    /// Tickets that are free again since the start.
    pub(super) fn released(&self) -> u64 {
        self.head.load(Relaxed)
    }

    /// How many there are.
    pub(super) fn slots(&self) -> u64 {
        u64::try_from(self.headers.len()).unwrap_or(u64::MAX)
    }

    fn is_full(&self, ticket: u64, head: u64) -> bool {
        self.slots() <= ticket.saturating_sub(head)
    }

    /// The length published for `ticket` (0: abandoned), or `None` while its writer writes.
    pub(super) fn read(&self, ticket: u64) -> Option<u64> {
        let header = self.headers[self.index(ticket)].load(READ);
        (header >> LENGTH_BITS == ticket + 1).then_some(header & LENGTH_MASK)
    }

    fn is_held(&self, ticket: u64) -> bool {
        self.holds[self.index(ticket)].load(HELD) != 0
    }
}

impl Cursor {
    /// The next published ticket and its length; steps over abandoned ones. The head is looked
    /// after only where there is nothing to read: a reader in a hurry writes nothing shared here.
    pub(super) fn next(&mut self, ledger: &Ledger) -> Option<(u64, u64)> {
        loop {
            let ticket = self.next;
            let Some(length) = ledger.read(ticket) else {
                self.settle(ledger);
                return None;
            };
            self.next += 1;
            self.seen = self.seen.max(self.next);
            if length != 0 {
                return Some((ticket, length));
            }
            self.settle(ledger);
        }
    }

    /// Everything read up to and with `through` is done with; what was not read yet stays.
    pub(super) fn release(&mut self, ledger: &Ledger, through: u64) {
        self.acked = through.saturating_add(1).min(self.seen).max(self.acked);
        self.settle(ledger);
    }

    /// Reads again from the first ticket that was not released.
    pub(super) fn rewind(&mut self) {
        self.next = self.acked;
    }

    /// Moves the head over what is released and not held, and over abandoned slots behind that.
    pub(super) fn settle(&mut self, ledger: &Ledger) {
        let before = self.head;
        loop {
            if self.head < self.acked {
                if ledger.is_held(self.head) {
                    break;
                }
                self.head += 1;
            } else if self.head < self.seen && ledger.read(self.head) == Some(0) {
                self.head += 1;
                self.acked = self.head;
            } else {
                break;
            }
        }
        self.next = self.next.max(self.acked);
        assert!(self.acked <= self.next && self.next <= self.seen);
        if before != self.head {
            ledger.head.store(self.head, FREE);
        }
    }

    /// Tickets read at least once and not released.
    pub(super) fn unreleased(&self) -> u64 {
        self.seen - self.acked
    }
}

/// Bits of a header that hold the length: 0 to 4,096 and room for none else that is used.
const LENGTH_BITS: u32 = 13;
const LENGTH_MASK: u64 = (1 << LENGTH_BITS) - 1;
