//! What waited in the spool, sent beside what is live: on a stream of its own that yields to the first,
//! so much at a time as the broker acknowledges.
//!
//! ```text
//!  Welcome ── open a stream: Replay ── schemas, frames ── Ack ── released ── … ── empty: finished
//!                 ^                        |  the broker gives the stream up
//!                 +---- PAUSE -------------+  TRIES without an acknowledgement: the first frame goes
//! ```

use super::frames::remember;
use super::{State, Uplink};
use crate::ring::Reader as Ring;
use crate::schemas::Table;
use crate::spool::{Mark, Spool, Spooled};
use bytes::Bytes;
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};
use strobe_wire::ids::{BootId, SchemaId};
use strobe_wire::link::{ConnId, Link, Received, StreamId};
use strobe_wire::message::{Incoming, Message, Reader, encode, frame_prefix};
use strobe_wire::schema::Schema;

/// A spool on its way.
#[derive(Debug, Default)]
pub(super) struct Replay {
    stream: Option<StreamId>,
    reader: Reader,
    chunks: VecDeque<Bytes>,
    sent: VecDeque<Sent>,
    sent_bytes: usize,
    schemas: HashSet<SchemaId>,
    /// Acknowledged and still to be released.
    acks: VecDeque<(BootId, u64)>,
    /// The broker gave the stream up: not before this again.
    paused: Option<Instant>,
    failures: u32,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    mark: Mark,
    /// None of a row whose schema nobody has: it is not sent, and the broker says that it is missing.
    bytes: Option<usize>,
}

impl Replay {
    /// The connection is gone, and what was on it.
    pub(super) fn forget(&mut self) {
        let (paused, failures) = (self.paused, self.failures);
        *self = Self { paused, failures, ..Self::default() };
    }

    pub(super) fn is_on(&self, stream: StreamId) -> bool {
        self.stream == Some(stream)
    }

    /// Whether nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.stream.is_none()
    }

    /// Reads acknowledgements.
    pub(super) fn read(&mut self, now: Instant, link: &mut Link, conn: ConnId) {
        let Some(stream) = self.stream else { return };
        loop {
            let received = link.recv(conn, stream, &mut self.reader);
            while let Ok(Some(incoming)) = self.reader.pull() {
                if let Incoming::Control(message) = incoming
                    && let Message::Ack { boot, seq } = *message
                {
                    self.acks.push_back((BootId(boot), seq));
                }
            }
            match received {
                Ok(Received::More) => {}
                Ok(Received::Blocked) => return,
                Ok(Received::Finished) | Err(_) => return self.give_up(now, link, conn),
            }
        }
    }

    /// The broker refuses what comes here; what is live is not to suffer from it.
    fn give_up(&mut self, now: Instant, link: &mut Link, conn: ConnId) {
        if let Some(stream) = self.stream {
            link.reset(conn, stream);
        }
        self.forget();
        self.failures += 1;
        self.paused = Some(now + PAUSE);
    }

    /// Gives the last number of this life that was acknowledged, or 0.
    fn release(&mut self, spool: &mut Spool, boot_here: BootId) -> u64 {
        let mut through = 0;
        while let Some((boot, seq)) = self.acks.pop_front() {
            let covers = |sent: &Sent| sent.mark.boot == boot && sent.mark.seq <= seq;
            let Some(last) = self.sent.iter().rposition(covers) else { continue };
            for sent in self.sent.drain(..=last) {
                self.sent_bytes = self.sent_bytes.saturating_sub(sent.bytes.unwrap_or(0));
                spool.release(sent.mark);
            }
            if boot == boot_here {
                through = through.max(seq);
            }
            self.failures = 0;
        }
        while let Some(Sent { mark, bytes: None }) = self.sent.front().copied() {
            self.sent.pop_front();
            spool.release(mark);
        }
        through
    }

    fn fill(&mut self, spool: &mut Spool, table: &Table) {
        while self.sent_bytes < ON_THE_WAY_BYTES {
            let Some(next) = spool.next() else { return };
            let (schema, bytes, mark) = match next {
                Spooled::Schema(id, message) => {
                    if remember(&mut self.schemas, id) {
                        self.chunks.push_back(message);
                    }
                    continue;
                }
                Spooled::Frame { schema, bytes, mark } => (schema, bytes, mark),
            };
            if let Some(id) = schema
                && !self.schemas.contains(&id)
            {
                // Of a row that no disk took, or whose schema the disk has lost twice.
                let known = spool.schema(id).or_else(|| {
                    let schema = table.schema(id)?;
                    Some(encode(&Message::Schema(Schema::clone(&schema))))
                });
                match known {
                    Some(message) => self.chunks.push_back(message),
                    None => {
                        self.sent.push_back(Sent { mark, bytes: None });
                        continue;
                    }
                }
                remember(&mut self.schemas, id);
            }
            self.sent.push_back(Sent { mark, bytes: Some(bytes.len()) });
            self.sent_bytes += bytes.len();
            self.chunks.push_back(Bytes::copy_from_slice(&frame_prefix(bytes.len())));
            self.chunks.push_back(bytes);
        }
    }
}

impl Uplink {
    /// Brings the older part of a ring that fills up to the spool, while no broker takes it; one that
    /// takes less than there is is left for that.
    pub fn spill(
        &mut self,
        now: Instant,
        link: &mut Link,
        ring: &mut Ring,
        spool: &mut Spool,
        table: &Table,
    ) {
        match self.conn().filter(|_| !matches!(self.state, State::Connecting { .. })) {
            None => {
                spool.spill(now, ring, table);
                // Before the greeting that a connection just made is about to send.
                self.note(spool);
            }
            // A quarter is left for the time that the transport holds on to what it was given.
            Some(conn) if ring.slots() * 3 <= ring.occupied() * 4 => {
                self.hang_up(
                    now,
                    link,
                    ring,
                    conn,
                    "the broker takes too little, and the ring fills up",
                );
            }
            Some(_) => {}
        }
    }

    /// What a greeting says of the spool.
    fn note(&mut self, spool: &Spool) {
        self.spooled = (!spool.is_empty()).then(|| spool.mine().unwrap_or((0, 0)));
    }

    /// Sends what waits in the spool, as far as the broker keeps up with it.
    pub fn replay(&mut self, now: Instant, link: &mut Link, spool: &mut Spool, table: &Table) {
        self.note(spool);
        let State::Streaming { conn, .. } = self.state else { return };
        let replay = &mut self.replay;
        let through = replay.release(spool, BootId(self.hello.boot));
        self.status.acknowledged_seq = self.status.acknowledged_seq.max(through);
        if spool.is_empty() {
            if let Some(stream) = replay.stream.take() {
                link.finish(conn, stream);
                replay.forget();
            }
            return;
        }
        if replay.paused.is_some_and(|until| now < until) {
            return;
        }
        let stream = match replay.stream {
            Some(stream) => stream,
            None => {
                let Some(stream) = link.open(conn) else { return };
                link.yield_to_others(conn, stream);
                spool.rewind();
                if TRIES <= replay.failures {
                    refuse_first(spool);
                    replay.failures = 0;
                }
                replay.chunks.push_back(encode(&Message::Replay));
                *replay.stream.insert(stream)
            }
        };
        loop {
            replay.fill(spool, table);
            if replay.chunks.is_empty() {
                return;
            }
            match link.send(conn, stream, replay.chunks.make_contiguous()) {
                Ok(0) => return,
                Ok(_) => replay.chunks.retain(|chunk| !chunk.is_empty()),
                Err(_) => return replay.give_up(now, link, conn),
            }
        }
    }
}

/// Lets the first frame go, which the broker does not take however often it is sent.
fn refuse_first(spool: &mut Spool) {
    while let Some(next) = spool.next() {
        if let Spooled::Frame { mark, .. } = next {
            log::warn!("the broker refuses frame {} of boot {} of the spool", mark.seq, mark.boot);
            return spool.release(mark);
        }
    }
}

/// A round trip and a commit of a broker, 100 ms, at 10 Mbit/s.
const ON_THE_WAY_BYTES: usize = 128 << 10;
const PAUSE: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;
