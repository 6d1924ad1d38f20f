//! Frames on their way: from the ring to the stream, and released when they are acknowledged.

use super::{Sent, State, Uplink};
use crate::ring::Reader as Ring;
use crate::schemas::Table;
use crate::spool;
use bytes::Bytes;
use std::collections::HashSet;
use std::time::Instant;
use strobe_wire::frame::{self, FrameKind};
use strobe_wire::ids::SchemaId;
use strobe_wire::link::Link;
use strobe_wire::message::{Message, encode, frame_prefix};
use strobe_wire::schema::Schema;

impl Uplink {
    /// Sends what is in the ring, as far as QUIC takes it.
    pub fn pump(&mut self, now: Instant, link: &mut Link, ring: &mut Ring, table: &Table) {
        let (State::Greeting { conn, stream, .. } | State::Streaming { conn, stream, .. }) =
            self.state
        else {
            // Nothing is lost while nobody listens, but the ring wants its held slots back.
            ring.settle();
            return;
        };
        loop {
            match self.state {
                State::Streaming { .. } => self.fill(now, ring, table),
                _ => ring.settle(),
            }
            if self.chunks.is_empty() {
                return;
            }
            match link.send(conn, stream, self.chunks.make_contiguous()) {
                Ok(0) => return,
                Ok(_) => self.chunks.retain(|chunk| !chunk.is_empty()),
                Err(error) => {
                    return self.hang_up(now, link, ring, conn, &error.to_string());
                }
            }
        }
    }

    pub(super) fn acknowledge(&mut self, ring: &mut Ring, seq: u64) {
        let mut through = None;
        while let Some(sent) = self.unacknowledged.front().filter(|sent| sent.seq <= seq) {
            through = Some(sent.ticket);
            self.unacknowledged.pop_front();
        }
        if let Some(ticket) = through {
            ring.release(ticket);
        }
        self.status.acknowledged_seq = self.status.acknowledged_seq.max(seq);
    }

    /// Takes frames from the ring until enough chunks wait.
    fn fill(&mut self, now: Instant, ring: &mut Ring, table: &Table) {
        while self.chunks.len() < CHUNKS_MAX {
            let Some(slot) = ring.next() else { return };
            let (ticket, header) = (slot.ticket(), frame::open(&slot).map(|frame| frame.header));
            let Ok(header) = header else {
                self.status.unsendable += 1;
                self.unacknowledged.push_back(Sent { seq: 0, ticket, at: now });
                continue;
            };
            let bytes = slot.bytes();
            if self.unacknowledged.is_empty()
                && let State::Streaming { progress, .. } = &mut self.state
            {
                // The wait for an acknowledgement begins with something to acknowledge.
                *progress = now;
            }
            self.unacknowledged.push_back(Sent { seq: header.seq.0, ticket, at: now });
            if header.seq.0 <= self.stored_seq {
                self.acknowledge(ring, self.stored_seq);
                continue;
            }
            let has_schema = matches!(header.kind, FrameKind::Row | FrameKind::Burst);
            if has_schema && !self.schemas_sent.contains(&header.schema) {
                let Some(schema) = table.schema(header.schema) else {
                    // An entry of the ledger stands in its place: what is behind a hole is never acknowledged.
                    self.status.unsendable += 1;
                    let told = spool::no_schema(&header);
                    self.chunks.push_back(Bytes::copy_from_slice(&frame_prefix(told.len())));
                    self.chunks.push_back(told);
                    continue;
                };
                self.chunks.push_back(encode(&Message::Schema(Schema::clone(&schema))));
                remember(&mut self.schemas_sent, header.schema);
            }
            self.chunks.push_back(Bytes::copy_from_slice(&frame_prefix(bytes.len())));
            self.chunks.push_back(bytes);
            self.status.frames_sent += 1;
        }
    }
}

/// Notes that the broker has been told of a schema; whether it had not been. A broker keeps the last 4,096 that it was
/// told of, so all are forgotten in time and told again.
pub(super) fn remember(told: &mut HashSet<SchemaId>, id: SchemaId) -> bool {
    if TOLD_MAX <= told.len() && !told.contains(&id) {
        told.clear();
    }
    told.insert(id)
}

const TOLD_MAX: usize = 1024;
/// Ten frames with their prefixes and a schema or two.
const CHUNKS_MAX: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_schema_is_told_again_before_the_broker_forgets_it() {
        let (mut told, mut since) = (HashSet::new(), 0);
        for number in 1..10_000 {
            assert!(remember(&mut told, SchemaId(number)));
            since = if told.contains(&SchemaId(0)) { since + 1 } else { 0 };
            remember(&mut told, SchemaId(0));
            assert!(told.len() <= TOLD_MAX && since <= TOLD_MAX, "{number}: {since}");
        }
    }
}
