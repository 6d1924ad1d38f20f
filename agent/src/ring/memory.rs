//! The slots' bytes. The only unsafe code of the ring: three ways from a ticket to a slice.
//!
//! Invariants: the region holds `slots` × 4,096 bytes and lives as long as this value; all of it
//! was zeroed at the start, so every byte is initialised; who may touch which slot is the
//! ledger's word ([`super::ledger`]).

use super::ledger::Ledger;
use super::sync::AtomicU64;
use hugepage_config::{Got, Region};
use std::slice;
use strobe_wire::limits::FRAME_BYTES_MAX;

/// Everything that writers, the reader and the holders of bytes share.
#[derive(Debug)]
pub(super) struct Memory {
    region: Region,
    pub(super) ledger: Ledger,
    pub(super) refused: AtomicU64,
}

impl Memory {
    /// The region must have room for all slots of the ledger.
    pub(super) fn new(region: Region, slots: usize) -> Self {
        assert!(slots.checked_mul(FRAME_BYTES_MAX).is_some_and(|bytes| bytes <= region.bytes()));
        Self { region, ledger: Ledger::new(slots), refused: AtomicU64::new(0) }
    }

    /// What the slots lie on.
    pub(super) fn got(&self) -> Got {
        self.region.got()
    }

    /// The whole slot of a claimed ticket.
    ///
    /// # Safety
    /// The caller owns `ticket`: claimed, not published, and it makes no second slice of it
    /// while this one lives.
    #[expect(clippy::mut_from_ref, reason = "the ledger hands a ticket to one owner only")]
    pub(super) unsafe fn slot_mut(&self, ticket: u64) -> &mut [u8] {
        let at = self.slot(ticket);
        // SAFETY: a whole slot inside the region, initialised (module invariants); exclusive by
        // this function's contract.
        unsafe { slice::from_raw_parts_mut(at, FRAME_BYTES_MAX) }
    }

    /// The first `length` bytes of a ticket's slot.
    ///
    /// # Safety
    /// Until the slice ends nobody writes the slot and the head stays behind `ticket`: it is
    /// claimed and shared-borrowed by its owner, or read and kept by the reader's borrow or a hold.
    pub(super) unsafe fn frame(&self, ticket: u64, length: usize) -> &[u8] {
        let at = self.slot(ticket);
        // SAFETY: inside the slot because of the `min`, initialised; nobody writes it while the
        // head stays behind the ticket.
        unsafe { slice::from_raw_parts(at, length.min(FRAME_BYTES_MAX)) }
    }

    /// Asks the processor for a ticket's first `length` bytes, which will soon be written, and to
    /// take them away from the other processors' caches.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn fetch_mut(&self, ticket: u64, length: usize) {
        let at = self.slot(ticket);
        for offset in (0..length.min(FRAME_BYTES_MAX)).step_by(LINE_BYTES) {
            // `_mm_prefetch` with the hint to write becomes one to read unless the build is for one
            // kind of processor; every x86-64 knows this instruction, or takes it for none.
            // SAFETY: a hint; it reads and writes nothing that the program could see.
            unsafe {
                std::arch::asm!(
                    "prefetchw [{line}]",
                    line = in(reg) at.wrapping_add(offset),
                    options(nostack, preserves_flags, readonly)
                );
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn fetch_mut(&self, _: u64, _: usize) {}

    fn slot(&self, ticket: u64) -> *mut u8 {
        let offset = self.ledger.index(ticket) * FRAME_BYTES_MAX;
        // SAFETY: `index < slots`, and the region holds that many slots (asserted in `new`).
        unsafe { self.region.address().as_ptr().add(offset) }
    }
}

#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;
