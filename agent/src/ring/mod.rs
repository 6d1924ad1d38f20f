//! The CAS ring between sampler and network loop: rows are sealed in place, sent in place, and
//! stay until they are acknowledged.
//!
//! ```text
//!  Writer (any number)                       Reader (one)
//!  claim ── CAS on tail ──▶ Claim            next ──▶ Slot ── bytes() ──▶ Bytes ──▶ QUIC
//!  seal into the slot                        release(through) on acknowledgement
//!  publish(length) │ drop = abandoned        rewind() after a reconnect
//!
//!  region   ┌──────┬──────┬──────┬─────┐  slots of 4 KiB in huge pages where there are some
//!           └──────┴──────┴──────┴─────┘
//!  headers  [8 B][8 B][8 B] …              dense, apart from the slots: headers inside page-sized
//!  holds    [4 B][4 B][4 B] …              slots share one L1 set (measured: 3.5 × slower)
//! ```
//!
//! **Order.** Slots are read in the order of their claims. A slot that was claimed and not yet
//! published holds back the ones behind it; an abandoned one is stepped over.
//!
//! **Full.** The newest row loses: [`Writer::claim`] gives `None`, the refusal is counted
//! ([`Writer::refused`]), and the sampler's loss ledger says which sequence numbers it cost.
//! Nothing here blocks.
//!
//! **Reuse.** A slot is written again only when it was released *and* the last [`Bytes`] over it
//! is gone: QUIC may keep a frame for retransmission after the broker's acknowledgement of it
//! arrived on another path. Whoever keeps one keeps the slots behind it too, and in the end the
//! ring is full, which is seen and counted. A `Bytes` keeps the memory itself alive, so it may
//! outlive the reader and all writers.
//!
//! The lock-free part is `ledger.rs`; its orderings are explained in `sync.rs` and proven in the
//! `strobe-ring-model` crate, where loom finds an error for each of them weakened.

mod ledger;
mod memory;
mod sync;

use bytes::Bytes;
use hugepage_config::{Got, Region};
use ledger::Cursor;
use memory::Memory;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use strobe_wire::limits::FRAME_BYTES_MAX;

/// A new ring's two ends.
#[derive(Debug)]
pub struct Ring {
    /// For the sampler; clone it for more writers.
    pub writer: Writer,
    /// For the network loop.
    pub reader: Reader,
}

/// Puts frames in. Each thread has its own clone.
#[derive(Clone)]
pub struct Writer {
    memory: Arc<Memory>,
    head_seen: u64,
    /// How long the frame before was: the next one is guessed to be as long.
    before: usize,
}

/// A slot that is being written: 4 KiB of the caller's own. Dropping it abandons the slot.
pub struct Claim<'a> {
    memory: &'a Memory,
    ticket: u64,
    /// What `Drop` publishes: 0 is "abandoned".
    length: u64,
    before: &'a mut usize,
}

/// Takes frames out, in the order of their claims.
pub struct Reader {
    memory: Arc<Memory>,
    cursor: Cursor,
}

/// How far a ring has come, for those who neither write nor read.
#[derive(Clone)]
pub struct Marks(Arc<Memory>);

/// A published frame, seen in place.
pub struct Slot<'a> {
    memory: &'a Arc<Memory>,
    ticket: u64,
    length: usize,
}

/// Names one publication of one slot; later ones are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(u64);

/// Why a ring cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The number of slots is not a power of two.
    #[error("a ring of {0} slots: the number must be a power of two, at most 2^24")]
    Slots(usize),
    /// The slots do not fit.
    #[error("{slots} slots of {FRAME_BYTES_MAX} bytes do not fit a region of {bytes} bytes")]
    Region {
        /// Slots wanted.
        slots: usize,
        /// Bytes of the region.
        bytes: usize,
    },
}

impl Ring {
    /// A ring of `slots` (a power of two) × 4 KiB in `region`.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(slots: usize, region: Region) -> Result<Self, RingError> {
        if !slots.is_power_of_two() || SLOTS_MAX < slots {
            return Err(RingError::Slots(slots));
        }
        let bytes = region.bytes();
        if bytes / FRAME_BYTES_MAX < slots {
            return Err(RingError::Region { slots, bytes });
        }
        let memory = Arc::new(Memory::new(region, slots));
        Ok(Self {
            writer: Writer { memory: Arc::clone(&memory), head_seen: 0, before: 0 },
            reader: Reader { memory, cursor: Cursor::default() },
        })
    }
}

impl Writer {
    /// A slot to write, or `None` if the ring is full; that is counted.
    #[must_use]
    pub fn claim(&mut self) -> Option<Claim<'_>> {
        let Some(ticket) = self.memory.ledger.claim(&mut self.head_seen) else {
            self.memory.refused.fetch_add(1, Relaxed);
            return None;
        };
        // The slot's lines leave the reader's cache all at once, not one by one as they are written
        // (one producer: 112 → 98 ns a row of 1 KiB).
        self.memory.fetch_mut(ticket, self.before);
        Some(Claim { memory: &self.memory, ticket, length: 0, before: &mut self.before })
    }

    /// Claims refused since the start, by all writers.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.memory.refused.load(Relaxed)
    }

    /// Slots in use: written, waiting, sent and not yet acknowledged, or still held.
    #[must_use]
    pub fn occupied(&self) -> u64 {
        self.memory.ledger.occupied()
    }

    /// How far this ring has come.
    #[must_use]
    pub fn marks(&self) -> Marks {
        Marks(Arc::clone(&self.memory))
    }
}

impl fmt::Debug for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Marks({}..{})", self.released(), self.claimed())
    }
}

impl Marks {
    /// Slots claimed since the start.
    #[must_use]
    pub fn claimed(&self) -> u64 {
        self.0.ledger.claimed()
    }

    /// Of these, slots that are free again; all before them are, too.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.0.ledger.released()
    }
}

impl Claim<'_> {
    /// Gives the first `length` bytes to the reader.
    ///
    /// # Panics
    /// If `length` is 0 or more than the slot has.
    pub fn publish(mut self, length: usize) -> Ticket {
        assert!(0 < length);
        assert!(length <= FRAME_BYTES_MAX);
        self.length = u64::try_from(length).unwrap_or(0);
        *self.before = length;
        Ticket(self.ticket)
    }
}

impl Deref for Claim<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: claimed and not published until `self` is dropped, so the head stays behind it;
        // `self` is the only owner, and `&self` lets nobody write.
        unsafe { self.memory.frame(self.ticket, FRAME_BYTES_MAX) }
    }
}

impl DerefMut for Claim<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes this slice the only one.
        unsafe { self.memory.slot_mut(self.ticket) }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.memory.ledger.publish(self.ticket, self.length);
    }
}

impl Reader {
    /// The next published frame, or `None` until there is one. It stays occupied until it is
    /// released.
    #[must_use]
    #[expect(
        clippy::should_implement_trait,
        reason = "a lending iterator: slots borrow the reader"
    )]
    pub fn next(&mut self) -> Option<Slot<'_>> {
        let (ticket, length) = self.cursor.next(&self.memory.ledger)?;
        let length = usize::try_from(length).unwrap_or(FRAME_BYTES_MAX);
        Some(Slot { memory: &self.memory, ticket, length })
    }

    /// Everything up to and with `through` is acknowledged. Frames that were never read stay,
    /// whatever is acknowledged; what is still held is freed when it is let go.
    pub fn release(&mut self, through: Ticket) {
        self.cursor.release(&self.memory.ledger, through.0);
    }

    /// Starts again at the first frame that was not released: the connection is a new one.
    pub fn rewind(&mut self) {
        self.cursor.rewind();
    }

    /// Frees what was released while somebody held it. [`Reader::next`] and
    /// [`Reader::release`] do it too; call it when neither is due and writers are refused.
    pub fn settle(&mut self) {
        self.cursor.settle(&self.memory.ledger);
    }

    /// Frames read and not released: the retransmission buffer's fill.
    #[must_use]
    pub fn unreleased(&self) -> u64 {
        self.cursor.unreleased()
    }

    /// Slots in use, as [`Writer::occupied`].
    #[must_use]
    pub fn occupied(&self) -> u64 {
        self.memory.ledger.occupied()
    }

    /// Slots there are.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.memory.ledger.slots()
    }

    /// Slots claimed since the start: it tells whether somebody wrote since it was last asked.
    #[must_use]
    pub fn claimed(&self) -> u64 {
        self.memory.ledger.claimed()
    }

    /// Claims refused since the start, by all writers.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.memory.refused.load(Relaxed)
    }

    /// What the slots lie on.
    #[must_use]
    pub fn pages(&self) -> Got {
        self.memory.got()
    }
}

impl Slot<'_> {
    /// Its name, for [`Reader::release`].
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        Ticket(self.ticket)
    }

    /// The frame as [`Bytes`], without a copy. The slot is not written again while it, or any
    /// clone or part of it, is there.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.memory.ledger.hold(self.ticket);
        let memory = Arc::clone(self.memory);
        Bytes::from_owner(Hold { memory, ticket: self.ticket, length: self.length })
    }
}

impl Deref for Slot<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the reader has read this ticket, and cannot release it while `self` borrows it.
        unsafe { self.memory.frame(self.ticket, self.length) }
    }
}

/// Owner of a `Bytes` over a slot: keeps the memory mapped and the slot from being reused.
struct Hold {
    memory: Arc<Memory>,
    ticket: u64,
    length: usize,
}

impl AsRef<[u8]> for Hold {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: read by the reader before the hold was taken, and the hold count keeps the
        // head behind the ticket until `self` is dropped.
        unsafe { self.memory.frame(self.ticket, self.length) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.memory.ledger.let_go(self.ticket);
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("cursor", &self.cursor).finish_non_exhaustive()
    }
}

impl fmt::Debug for Slot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("ticket", &self.ticket)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// 64 GiB of slots: far more than any agent has use for, and sums of indexes stay far from overflow.
const SLOTS_MAX: usize = 1 << 24;

#[cfg(test)]
mod tests;
