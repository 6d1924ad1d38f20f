//! An eventfd: the sampler says "there is something", the network loop polls for it.
//!
//! One wake a tick, however many frames were published in it; wakes that were not looked at yet
//! are one. Neither side ever blocks on it.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Both ends of the bell.
#[derive(Debug)]
pub(super) struct Wake {
    event: EventFd,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self { event: EventFd::from_value_and_flags(0, flags)? })
    }

    /// Makes the descriptor readable.
    pub(super) fn ring(&self) {
        // EAGAIN means 2^64 − 2 wakes wait already: it is readable, which is all that is wanted.
        let _ = self.event.write(1);
    }

    /// Makes the descriptor unreadable; says whether it was readable.
    pub(super) fn clear(&self) -> bool {
        self.event.read().is_ok()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
