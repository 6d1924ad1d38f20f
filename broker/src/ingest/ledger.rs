//! The loss ledger, as far as the broker writes it: what it does not store is told like what an
//! agent lost.

use super::Counts;
use crate::window::Window;
use bytes::Bytes;
use strobe_wire::frame::{self, ArchivedLoss, FrameKind, Header, Loss};
use strobe_wire::ids::{SchemaId, Seq};

/// Why numbers of a boot are not stored.
pub(super) struct Cause {
    pub(super) reason: &'static str,
    pub(super) first: u64,
    pub(super) last: u64,
    /// When they are from, as far as it is known.
    pub(super) time_ns: i64,
}

/// Closes the hole that an agent's entry of the ledger tells of, if it lies before the entry. One by
/// its spool stands at its last number, as the broker's do.
pub(super) fn cover(
    window: &mut Window,
    seq: u64,
    loss: &ArchivedLoss,
) -> Option<(&'static str, u64, u64)> {
    let (first, last) = (loss.first.to_native(), loss.last.to_native());
    if seq < last {
        return None;
    }
    window.cover(first, last.min(seq.saturating_sub(1)));
    // A counter's label is not the agent's to choose.
    let reason = AGENT_REASONS.iter().find(|reason| **reason == loss.reason.as_str());
    Some((reason.copied().unwrap_or("other"), first, last))
}

/// An entry of the ledger by the broker. It stands at its last number, so that a replay of the log
/// finds all its numbers taken.
pub(super) fn seal(of: &Header, cause: &Cause, now_ms: i64) -> Bytes {
    let header = Header {
        kind: FrameKind::Loss,
        seq: Seq(cause.last),
        wall_ns: now_ns(now_ms),
        schema: SchemaId(0),
        ..*of
    };
    let (reason, first, last) = (cause.reason.to_owned(), cause.first, cause.last);
    let (from_ns, to_ns) = (cause.time_ns, cause.time_ns);
    let loss = Loss { reason, first, last, from_ns, to_ns };
    Bytes::from(frame::seal_loss(&header, &loss).expect("a reason of one word fits a frame"))
}

/// Counts numbers that will never come.
pub(super) fn count_lost(counts: &mut Counts, reason: &'static str, first: u64, last: u64) {
    let count = counts.lost.entry(reason).or_default();
    *count = count.saturating_add(last.saturating_sub(first).saturating_add(1));
}

pub(super) fn now_ns(now_ms: i64) -> i64 {
    now_ms.saturating_mul(1_000_000)
}

/// Reasons that agents give.
const AGENT_REASONS: [&str; 6] =
    ["ring_full", "oversize", "malformed", "spool_full", "thinned", "no_schema"];
