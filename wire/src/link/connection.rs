//! One connection of a link: its phase, its timer, its turn to transmit, and what it tells.

use super::admit::{Admitted, Refusal, admit};
use super::event::clip;
use super::{Alpn, CODE_CLOSED, ConnId, Event, Link, Side, Traffic, Why, transport};
use bytes::Bytes;
use quinn_proto::{ConnectionHandle, Dir, StreamEvent, VarInt};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub(super) struct Slot {
    pub(super) quic: quinn_proto::Connection,
    pub(super) turn: u32,
    pub(super) phase: Phase,
    pub(super) queued: bool,
    pub(super) wake: Option<Instant>,
    pub(super) patience: Patience,
}

/// How long a peer may take to acknowledge what it was sent ([`Link::be_patient`]).
#[derive(Clone, Copy)]
pub(super) struct Patience {
    pub(super) most: Duration,
    /// From when on there is any: the path has been good for a while by then.
    pub(super) from: Instant,
    /// Packets that the path had lost when this was looked at.
    pub(super) lost: u64,
    /// Something was written that has not left yet.
    pub(super) spoken: bool,
    /// Until when no timer of the connection is looked at.
    pub(super) until: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The handshake is under way.
    Opening,
    /// `Connected` was told.
    Open,
    /// Over for the owner; quinn-proto still says good-bye.
    Over,
}

impl Patience {
    /// Of a new connection.
    pub(super) fn new(now: Instant) -> Self {
        Self { most: Duration::ZERO, from: now + NEW, lost: 0, spoken: false, until: None }
    }
}

impl Link {
    /// Closes the connection at once and tells the peer `why`. What was not delivered is dropped,
    /// and no [`Event::Closed`] follows here.
    pub fn close(&mut self, now: Instant, conn: ConnId, why: &str) {
        if self.slot(conn).is_some() {
            self.close_at(now, conn.index, why);
        }
    }

    /// Closes all connections ([`Self::close`]). One more `Socket::transmit` carries it out.
    pub fn close_all(&mut self, now: Instant, why: &str) {
        for index in (0..).take(self.slots.len()) {
            if self.slot_at(index).is_some_and(|slot| slot.phase != Phase::Over) {
                self.close_at(now, index, why);
            }
        }
    }

    /// The peer's address as it is now (it may move).
    pub fn remote(&mut self, conn: ConnId) -> Option<SocketAddr> {
        self.slot(conn).map(|slot| slot.quic.remote_address())
    }

    /// Whether both ends know all that this version of the protocol says; an older one is spoken to as
    /// before.
    pub fn is_newest(&mut self, conn: ConnId) -> bool {
        self.slot(conn).is_some_and(|slot| super::admit::is_newest(&slot.quic))
    }

    /// The round trip as estimated.
    pub fn rtt(&mut self, conn: ConnId) -> Option<Duration> {
        self.slot(conn).map(|slot| slot.quic.rtt())
    }

    /// From now on the peer has `most` to acknowledge what it is sent: so long after something was
    /// sent on a stream, no timer of the connection is looked at, and nothing is sent twice. For
    /// an agent, which acknowledges with a later tick so that it need not wake in between. What
    /// is lost in spite of that is found when the peer acknowledges something later. A path that
    /// loses is not relied on: for half a minute from the last loss on, and on a connection's first
    /// seconds, the transport has its own way.
    pub fn be_patient(&mut self, conn: ConnId, most: Duration) {
        if let Some(slot) = self.slot(conn) {
            slot.patience.most = most;
        }
    }

    /// Asks the peer's transport for a sign of life.
    pub fn ping(&mut self, conn: ConnId) {
        if let Some(slot) = self.slot(conn) {
            slot.quic.ping();
            self.enqueue(conn.index);
        }
    }

    /// Datagrams and packets of the connection so far.
    pub fn traffic(&mut self, conn: ConnId) -> Option<Traffic> {
        let stats = self.slot(conn)?.quic.stats();
        Some(Traffic {
            sent: stats.udp_tx.datagrams,
            received: stats.udp_rx.datagrams,
            lost: stats.path.lost_packets,
        })
    }

    /// After anything that a connection was told: its events, its timer, its turn to transmit.
    pub(super) fn settle(&mut self, now: Instant, index: u32) {
        self.settle_quiet(now, index);
        self.enqueue(index);
    }

    pub(super) fn settle_quiet(&mut self, now: Instant, index: u32) {
        let handle = ConnectionHandle(index as usize);
        loop {
            let Some(slot) = slot_mut(&mut self.slots, index) else { return };
            if let Some(event) = slot.quic.poll_endpoint_events() {
                let drained = event.is_drained();
                if let Some(answer) = self.endpoint.handle_event(handle, event) {
                    slot.quic.handle_event(answer);
                }
                if drained {
                    // Its last words (why it is over) come after this event.
                    while let Some(event) =
                        slot_mut(&mut self.slots, index).and_then(|slot| slot.quic.poll())
                    {
                        self.told(now, index, event);
                    }
                    return self.remove(index);
                }
                continue;
            }
            let Some(event) = slot.quic.poll() else { break };
            self.told(now, index, event);
        }
        self.schedule(index);
    }

    fn told(&mut self, now: Instant, index: u32, event: quinn_proto::Event) {
        let Some(slot) = slot_mut(&mut self.slots, index) else { return };
        let conn = ConnId { index, turn: slot.turn };
        match event {
            quinn_proto::Event::Connected if slot.phase == Phase::Opening => {
                self.handshaking -= 1;
                self.connected(now, conn);
            }
            quinn_proto::Event::ConnectionLost { reason } => {
                let before = slot.phase;
                slot.phase = Phase::Over;
                if before == Phase::Opening {
                    self.handshaking -= 1;
                }
                match (before, slot.quic.side()) {
                    (Phase::Over, _) => {}
                    (Phase::Opening, quinn_proto::Side::Server) => {
                        self.counters.handshakes_failed += 1;
                    }
                    (Phase::Opening, quinn_proto::Side::Client) | (Phase::Open, _) => {
                        self.events.push_back(Event::Closed { conn, why: Why::of(&reason) });
                    }
                }
            }
            quinn_proto::Event::Stream(event) if slot.phase == Phase::Open => {
                self.stream_told(conn, &event);
            }
            quinn_proto::Event::Connected
            | quinn_proto::Event::Stream(_)
            | quinn_proto::Event::HandshakeDataReady
            | quinn_proto::Event::DatagramReceived
            | quinn_proto::Event::DatagramsUnblocked => {}
        }
    }

    fn stream_told(&mut self, conn: ConnId, event: &StreamEvent) {
        match *event {
            StreamEvent::Opened { dir: Dir::Bi } => {
                while let Some(slot) = slot_mut(&mut self.slots, conn.index)
                    && let Some(stream) = slot.quic.streams().accept(Dir::Bi)
                {
                    self.events.push_back(Event::Opened { conn, stream });
                    self.events.push_back(Event::Readable { conn, stream });
                }
            }
            StreamEvent::Readable { id } => {
                self.events.push_back(Event::Readable { conn, stream: id });
            }
            StreamEvent::Writable { id } | StreamEvent::Stopped { id, .. } => {
                self.events.push_back(Event::Writable { conn, stream: id });
            }
            StreamEvent::Available { dir: Dir::Bi } => self.events.push_back(Event::Room { conn }),
            StreamEvent::Opened { dir: Dir::Uni }
            | StreamEvent::Available { dir: Dir::Uni }
            | StreamEvent::Finished { .. } => {}
        }
    }

    fn connected(&mut self, now: Instant, conn: ConnId) {
        let Some(slot) = slot_mut(&mut self.slots, conn.index) else { return };
        match admit(&slot.quic, self.tls.wall_s(), self.tls.grace_s()) {
            Ok(Admitted { alpn, subject, expires_s }) => {
                slot.phase = Phase::Open;
                if self.side == Side::Broker && matches!(alpn, Alpn::Viz | Alpn::Peer) {
                    transport::widen(&mut slot.quic);
                }
                let remote = slot.quic.remote_address();
                self.events.push_back(Event::Connected { conn, remote, alpn, subject, expires_s });
            }
            Err(Refusal { code, why }) => {
                self.counters.refused_role += 1;
                let client = slot.quic.side().is_client();
                slot.quic.close(now, VarInt::from_u32(code), Bytes::from(why.clone()));
                slot.phase = Phase::Over;
                if client {
                    self.events.push_back(Event::Closed { conn, why: Why::Failed(why) });
                }
            }
        }
    }

    fn close_at(&mut self, now: Instant, index: u32, why: &str) {
        let Some(slot) = slot_mut(&mut self.slots, index) else { return };
        if slot.phase == Phase::Opening {
            self.handshaking -= 1;
        }
        slot.phase = Phase::Over;
        let why = Bytes::copy_from_slice(clip(why).as_bytes());
        slot.quic.close(now, VarInt::from_u32(CODE_CLOSED), why);
        self.settle(now, index);
    }

    fn remove(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::take) else { return };
        if let Some(at) = slot.wake {
            self.timers.remove(&(at, index));
        }
        if slot.phase == Phase::Opening {
            self.handshaking -= 1;
        }
    }

    /// Before the owner sleeps: the first entry may be earlier than its connection needs by now.
    pub(super) fn defer(&mut self) {
        while let Some(&(at, index)) = self.timers.first()
            && let Some(slot) = slot_mut(&mut self.slots, index)
            && slot.due().is_none_or(|wanted| at < wanted)
        {
            slot.wake = None;
            self.timers.pop_first();
            self.schedule(index);
        }
    }

    /// An entry that is due too early only looks once too often; that is cheaper than moving it
    /// with every datagram.
    fn schedule(&mut self, index: u32) {
        let Some(slot) = slot_mut(&mut self.slots, index) else { return };
        let Some(at) = slot.due() else { return };
        if slot.wake.is_some_and(|wake| wake <= at) {
            return;
        }
        if let Some(later) = slot.wake.replace(at) {
            self.timers.remove(&(later, index));
        }
        self.timers.insert((at, index));
    }

    pub(super) fn enqueue(&mut self, index: u32) {
        if let Some(slot) = slot_mut(&mut self.slots, index)
            && !slot.queued
        {
            slot.queued = true;
            self.busy.push_back(index);
        }
    }

    /// The connection, while it is the owner's.
    pub(super) fn slot(&mut self, conn: ConnId) -> Option<&mut Slot> {
        self.slot_at(conn.index).filter(|s| s.turn == conn.turn && s.phase != Phase::Over)
    }

    pub(super) fn slot_at(&mut self, index: u32) -> Option<&mut Slot> {
        slot_mut(&mut self.slots, index)
    }
}

impl Slot {
    /// When its timers are to be looked at.
    pub(super) fn due(&mut self) -> Option<Instant> {
        let at = self.quic.poll_timeout()?;
        let until = self.patience.until.filter(|_| self.phase == Phase::Open);
        Some(until.map_or(at, |until| at.max(until)))
    }

    /// Something was handed to the socket.
    pub(super) fn transmitted(&mut self, now: Instant) {
        let patience = &mut self.patience;
        if patience.spoken && patience.most != Duration::ZERO {
            let lost = self.quic.stats().path.lost_packets;
            if std::mem::replace(&mut patience.lost, lost) != lost {
                patience.from = now + AFTER_LOSS;
            }
            patience.until = (patience.from <= now).then_some(now + patience.most);
        }
        patience.spoken = false;
    }
}

/// An agent rests after three good ticks.
const NEW: Duration = Duration::from_secs(3);
/// As long as an agent does not rest then.
const AFTER_LOSS: Duration = Duration::from_secs(30);

/// A function, not a method, so that other fields of the link stay free to use.
pub(super) fn slot_mut(slots: &mut [Option<Box<Slot>>], index: u32) -> Option<&mut Slot> {
    slots.get_mut(index as usize)?.as_deref_mut()
}
