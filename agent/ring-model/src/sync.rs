//! In place of the agent's `ring/sync.rs`: loom's atomics, which look up, on every use, whether
//! this test weakens the ordering. The orderings themselves are the agent's own.

#[expect(unused_imports, reason = "the agent's file also names the atomics replaced here")]
#[path = "../../src/ring/sync.rs"]
mod agent;

use loom::sync::atomic as loomed;
use std::cell::Cell;
use std::sync::atomic::Ordering;

/// One of the six named orderings of the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Named {
    Publish,
    Read,
    LetGo,
    Held,
    Free,
    Reuse,
}

/// An ordering as the ledger passes it: one of the named ones, or plain.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Plain(Ordering),
    Named(Named, Ordering),
}

pub(crate) const PUBLISH: Order = Order::Named(Named::Publish, agent::PUBLISH);
pub(crate) const READ: Order = Order::Named(Named::Read, agent::READ);
pub(crate) const LET_GO: Order = Order::Named(Named::LetGo, agent::LET_GO);
pub(crate) const HELD: Order = Order::Named(Named::Held, agent::HELD);
pub(crate) const FREE: Order = Order::Named(Named::Free, agent::FREE);
pub(crate) const REUSE: Order = Order::Named(Named::Reuse, agent::REUSE);

thread_local! {
    /// Loom runs a model's threads on the test's own thread, so this is per test.
    static WEAKENED: Cell<Option<Named>> = const { Cell::new(None) };
}

/// From here on, `which` is `Relaxed` on this test's thread.
pub(crate) fn weaken(which: Named) {
    WEAKENED.set(Some(which));
}

impl Order {
    fn now(self) -> Ordering {
        match self {
            Self::Named(name, _) if WEAKENED.get() == Some(name) => Ordering::Relaxed,
            Self::Plain(order) | Self::Named(_, order) => order,
        }
    }
}

impl From<Ordering> for Order {
    fn from(order: Ordering) -> Self {
        Self::Plain(order)
    }
}

/// loom's `AtomicU64`, with orderings that can be weakened.
#[derive(Debug)]
pub(crate) struct AtomicU64(loomed::AtomicU64);

impl AtomicU64 {
    pub(crate) fn new(value: u64) -> Self {
        Self(loomed::AtomicU64::new(value))
    }

    pub(crate) fn load(&self, order: impl Into<Order>) -> u64 {
        self.0.load(order.into().now())
    }

    pub(crate) fn store(&self, value: u64, order: impl Into<Order>) {
        self.0.store(value, order.into().now());
    }

    pub(crate) fn compare_exchange_weak(
        &self,
        current: u64,
        new: u64,
        success: impl Into<Order>,
        failure: impl Into<Order>,
    ) -> Result<u64, u64> {
        self.0.compare_exchange_weak(current, new, success.into().now(), failure.into().now())
    }
}

/// loom's `AtomicU32`, with orderings that can be weakened.
#[derive(Debug)]
pub(crate) struct AtomicU32(loomed::AtomicU32);

impl AtomicU32 {
    pub(crate) fn new(value: u32) -> Self {
        Self(loomed::AtomicU32::new(value))
    }

    pub(crate) fn load(&self, order: impl Into<Order>) -> u32 {
        self.0.load(order.into().now())
    }

    pub(crate) fn fetch_add(&self, value: u32, order: impl Into<Order>) -> u32 {
        self.0.fetch_add(value, order.into().now())
    }

    pub(crate) fn fetch_sub(&self, value: u32, order: impl Into<Order>) -> u32 {
        self.0.fetch_sub(value, order.into().now())
    }
}
