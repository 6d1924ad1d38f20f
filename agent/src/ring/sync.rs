//! The atomics and orderings of the ring, apart from the algorithm, so that the model in
//! `agent/ring-model` can put loom's atomics and weaker orderings in their place.
//!
//! Three edges carry bytes from thread to thread; each is a pair of orderings here, and the model
//! fails when either half is weakened:
//!
//! ```text
//! PUBLISH → READ    what a writer put into a slot, to the reader           (header word)
//! LET_GO  → HELD    that a holder of a slot's Bytes has finished reading,  (hold count)
//!                   to the reader
//! FREE    → REUSE   that the reader, and by the edge above every holder,   (head)
//!                   has finished with a slot, to the writer that claims it
//! ```
//!
//! Everything else is `Relaxed`, because it orders nothing but itself: the tail's CAS hands out
//! tickets (a number is given once whatever is seen around it), a hold is taken by the reader's
//! thread which is also the one that looks at the count, and the refusals are a statistic.

pub(super) use std::sync::atomic::{AtomicU32, AtomicU64};

use std::sync::atomic::Ordering;

/// A writer stores a slot's header.
pub(super) const PUBLISH: Ordering = Ordering::Release;
/// The reader loads a slot's header.
pub(super) const READ: Ordering = Ordering::Acquire;
/// A holder of a slot's bytes drops them.
pub(super) const LET_GO: Ordering = Ordering::Release;
/// The reader looks whether a slot is still held.
pub(super) const HELD: Ordering = Ordering::Acquire;
/// The reader moves the head over slots that are done with.
pub(super) const FREE: Ordering = Ordering::Release;
/// A writer looks where the head is before it claims a slot.
pub(super) const REUSE: Ordering = Ordering::Acquire;
