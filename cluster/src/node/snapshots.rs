//! Snapshots, to those who lag and from who leads. Raft hears of every end.

use super::{Node, NodeError};
use crate::codec;
use crate::peer::{Body, Chunk, Got, Verdict};
use crate::transfer::{Receiving, Sending, Step};
use raft::SnapshotStatus;
use raft::eraftpb::Message;
use std::time::Instant;

impl Node {
    /// The state that goes is the one that is applied now, which may be newer than when raft asked.
    pub(super) fn begin_snapshot(&mut self, now: Instant, mut message: Message) {
        let to = message.to;
        if self.sending.contains_key(&to) {
            // Raft lost patience, the one under way did not: its end is reported all the same, and what
            // it lacks then follows. Beginning anew each time would never end.
            return;
        }
        let store = self.raft.store();
        message.set_snapshot(store.snapshot_of_applied());
        let image = store.state().image().into();
        self.sending.insert(to, Sending::new(now, codec::Message::of(&message), image));
        self.send_pieces(to);
    }

    pub(super) fn on_chunk(&mut self, from: u64, chunk: Chunk) -> Result<(), NodeError> {
        let Some(message) = &chunk.message else { return Ok(()) };
        let Some((index, term)) = message.snapshot_at() else { return Ok(()) };
        if message.parties() != (from, self.id()) || message.term() < self.raft.raft.term {
            self.refused += 1;
            return Ok(());
        }
        if index <= self.raft.store().disk.applied.index {
            let got = Got { index, term, through: 0, verdict: Verdict::Taken.into() };
            self.send(from, Body::Got(got));
            return Ok(());
        }
        match Receiving::take(&mut self.receiving, chunk) {
            None => {}
            Some(Step::Answer(got)) => self.send(from, Body::Got(got)),
            Some(Step::Whole(got, message, image)) => {
                self.step_raft(*message, image, from)?;
                self.send(from, Body::Got(got));
            }
        }
        Ok(())
    }

    pub(super) fn on_got(&mut self, now: Instant, from: u64, got: Got) {
        let Some(sending) = self.sending.get_mut(&from) else { return };
        match sending.on_got(now, got) {
            Some(true) => self.end_snapshot(from, SnapshotStatus::Finish),
            Some(false) => self.end_snapshot(from, SnapshotStatus::Failure),
            None => self.send_pieces(from),
        }
    }

    pub(super) fn tend_snapshots(&mut self, now: Instant) {
        let ids: Vec<u64> = self.sending.keys().copied().collect();
        for id in ids {
            let pause = self.config.election_min;
            let alive = self.sending.get_mut(&id).is_some_and(|s| s.on_timeout(now, pause));
            if alive {
                self.send_pieces(id);
            } else {
                self.end_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    pub(super) fn send_pieces(&mut self, to: u64) {
        let piece_bytes = self.config.chunk_bytes;
        while let Some(chunk) = self.sending.get_mut(&to).and_then(|s| s.next(piece_bytes)) {
            self.send(to, Body::Chunk(chunk));
        }
    }

    pub(super) fn end_snapshot(&mut self, to: u64, status: SnapshotStatus) {
        self.sending.remove(&to);
        self.raft.report_snapshot(to, status);
    }
}
