//! Bugs that are put in on purpose, to see that the simulation finds them.
//!
//! Without the feature `plant`, which only the simulation's tests turn on, [`has`] is always false and
//! the branches behind it are compiled away.

/// A bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// A segment's mark is written before its blocks.
    MarkEarly,
    /// What Redis has is asked once a connection, and believed from then on.
    NoRefill,
    /// A host's blocks are written, their places in the index are not.
    NoIndex,
    /// Writes do not look at the epoch that Redis holds.
    NoFence,
    /// The log counts as sent when it is about to be.
    LogEarly,
    /// The log's mark is not looked at again.
    LogNoRefill,
}

#[cfg(feature = "plant")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

/// From now on this thread's stores have this bug, or none.
#[cfg(feature = "plant")]
pub fn plant(bug: Option<Plant>) {
    PLANTED.set(bug);
}

#[cfg(feature = "plant")]
pub(super) fn has(bug: Plant) -> bool {
    PLANTED.get() == Some(bug)
}

#[cfg(not(feature = "plant"))]
pub(super) fn has(_: Plant) -> bool {
    false
}
