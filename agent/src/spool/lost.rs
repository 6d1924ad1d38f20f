//! What a full spool cost, until it is told.

use super::{Mark, Place, Spooled};
use bytes::Bytes;
use std::collections::VecDeque;
use strobe_wire::frame::{self, FrameKind, Header, Loss, Payload};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};

/// Frames of a boot that are gone, without a hole between them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lost {
    pub(super) boot: BootId,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) from_ns: i64,
    pub(super) to_ns: i64,
    pub(super) boottime_ns: u64,
    pub(super) reason: &'static str,
}

/// Several, in order. Over `LOSSES_MAX` the oldest is told by nobody but the broker, which sees the
/// hole.
#[derive(Debug, Default)]
pub(super) struct Losses(VecDeque<Lost>);

impl Lost {
    pub(super) fn of(header: &Header, reason: &'static str) -> Self {
        let (first, last) = (header.seq.0, header.seq.0);
        let (from_ns, to_ns) = (header.wall_ns, header.wall_ns);
        let (boot, boottime_ns) = (header.boot, header.boottime_ns);
        Self { boot, first, last, from_ns, to_ns, boottime_ns, reason }
    }

    /// What an entry of the ledger that stands at its last number tells, if this is one and `reason`
    /// is its reason.
    pub(super) fn told(header: &Header, frame: &[u8], reason: &'static str) -> Option<Self> {
        let Payload::Loss(loss) = frame::open(frame).ok()?.payload else { return None };
        let (first, last) = (loss.first.to_native(), loss.last.to_native());
        let is_ours = loss.reason.as_str() == reason && last == header.seq.0 && first <= last;
        let from_ns = loss.from_ns.to_native();
        is_ours.then(|| Self { first, from_ns, ..Self::of(header, reason) })
    }

    /// Joins what follows directly; whether it did.
    pub(super) fn join(&mut self, next: &Self) -> bool {
        let follows = self.boot == next.boot
            && self.last.checked_add(1) == Some(next.first)
            && self.reason == next.reason;
        if follows {
            self.last = next.last;
            self.to_ns = next.to_ns;
        }
        follows
    }

    /// The entry of the ledger: it stands at its last number.
    pub(super) fn seal(&self, host: HostId) -> Bytes {
        let header = Header {
            kind: FrameKind::Loss,
            host,
            boot: self.boot,
            seq: Seq(self.last),
            wall_ns: self.to_ns,
            boottime_ns: self.boottime_ns,
            schema: SchemaId(0),
        };
        let Self { first, last, from_ns, to_ns, .. } = *self;
        let loss = Loss { reason: self.reason.to_owned(), first, last, from_ns, to_ns };
        Bytes::from(frame::seal_loss(&header, &loss).expect("a reason of one word fits a frame"))
    }

    pub(super) fn spooled(&self, host: HostId, place: Place) -> Spooled {
        let mark = Mark { boot: self.boot, seq: self.last, place };
        Spooled::Frame { schema: None, bytes: self.seal(host), mark }
    }
}

impl Losses {
    pub(super) fn add(&mut self, lost: Lost) {
        if self.0.back_mut().is_some_and(|before| before.join(&lost)) {
            return;
        }
        self.0.push_back(lost);
        if LOSSES_MAX < self.0.len() {
            self.0.pop_front();
        }
    }

    pub(super) fn at(&self, index: usize) -> Option<&Lost> {
        self.0.get(index)
    }

    /// Forgets the first; whether there was one.
    pub(super) fn pop(&mut self) -> bool {
        self.0.pop_front().is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

const LOSSES_MAX: usize = 1024;
