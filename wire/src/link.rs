//! The QUIC link between the parts: many connections over one UDP port, as a state machine.
//!
//! ```text
//!   socket --> receive --> [ Link: quinn-proto endpoint, its connections, their timers ]
//!   socket <-- transmit <--        |  poll() -> Event        ^  open, send, recv, close
//!                                  v                         |
//!                              the loop that owns it (broker, viz, agent: run.rs)
//! ```
//!
//! [`Link`] does no I/O and reads no clock; [`Socket`] moves its datagrams. A loop recites:
//! `socket.receive(now, &mut link)`, `link.on_timeout(now)`, `while let Some(event) = link.poll()`,
//! act, `socket.transmit(now, &mut link)`, wait until `link.timeout()`.
//!
//! **Who may connect.** TLS 1.3 only. A server's certificate must be signed by the fleet's CA and
//! name a broker; when enrolling, the CA must be the one whose SHA-256 is in the token. A client
//! without a certificate may only enrol; with one, its role must match its ALPN: otherwise the
//! connection is closed with the reason and no [`Event::Connected`] is seen. 0-RTT is off (rows
//! would be replayable); resumption is on.
//!
//! **Bounds.** Connections an endpoint, streams a connection, windows a connection and stream.
//! Beyond them: a connection is refused, `open` gives `None`, `send` takes 0 bytes, and the peer's
//! flow control stops it while `recv` is not called. All refusals are counted ([`Counters`]).
//! Above [`HANDSHAKES_BEFORE_RETRY`] handshakes at once, clients must prove their address first.

mod proof;
mod socket;
mod tls;

pub use quinn_proto::StreamId;
pub use socket::{Offload, Progress, Socket, SocketConfig};

use crate::message::{ALPN_AGENT, ALPN_ENROL, ALPN_PEER, ALPN_VIZ, Reader};
use crate::pki::{Identity, PkiError, Role, Subject};
use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ConnectionError, ConnectionHandle, DatagramEvent, Dir, Incoming, ReadError, StreamEvent,
    VarInt, WriteError,
};
use rustls_pki_types::CertificateDer;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a link is made of.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Whom it speaks for; `None` can only enrol.
    pub identity: Option<Identity>,
    /// Whether it accepts connections.
    pub side: Side,
    /// Connections at once, both ways.
    pub connections_max: usize,
    /// Whether datagrams may leave whole: then the path's MTU is searched for
    /// ([`Socket::keeps_datagrams_whole`]).
    pub whole_datagrams: bool,
    /// Wall-clock seconds, for certificates ([`Link::set_wall_s`] keeps it right).
    pub wall_s: u64,
    /// Seed of the connection ids; `None` is the system's randomness, tests give one.
    pub seed: Option<[u8; 32]>,
}

/// Which part a link plays; decides its windows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Connects, sends frames, receives little: small windows.
    Agent,
    /// Connects, receives API bodies and frames: large windows.
    Viz,
    /// Accepts all and connects to peers.
    Broker,
}

/// As what a connection was made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Alpn {
    /// [`ALPN_AGENT`].
    Agent,
    /// [`ALPN_VIZ`].
    Viz,
    /// [`ALPN_PEER`].
    Peer,
    /// [`ALPN_ENROL`].
    Enrol,
}

/// How to connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dial {
    /// As an agent, viz or peer, with the identity's certificate, to a broker of its CA.
    With(Alpn),
    /// To enrol, with no certificate, at a broker of the CA with this SHA-256.
    Enrol {
        /// The token's.
        fingerprint: [u8; 32],
    },
}

/// Names a connection of one link; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId {
    index: u32,
    turn: u32,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A handshake is complete and the peer is who it must be.
    Connected {
        /// The connection.
        conn: ConnId,
        /// The peer's address.
        remote: SocketAddr,
        /// As what.
        alpn: Alpn,
        /// What the peer's certificate says; `None` only for one that enrols.
        subject: Option<Subject>,
    },
    /// The peer opened a bidirectional stream. `Readable` follows if there is something to read.
    Opened {
        /// The connection.
        conn: ConnId,
        /// The stream.
        stream: StreamId,
    },
    /// There is something to read, or the stream has ended.
    Readable {
        /// The connection.
        conn: ConnId,
        /// The stream.
        stream: StreamId,
    },
    /// A `send` that took less than all may go on, or the peer wants no more (`send` says so).
    Writable {
        /// The connection.
        conn: ConnId,
        /// The stream.
        stream: StreamId,
    },
    /// After `open` gave `None`: it may give a stream now.
    Room {
        /// The connection.
        conn: ConnId,
    },
    /// The connection is over, by the peer or the network; not sent for one's own [`Link::close`].
    /// A client sees it also for a connection that was never `Connected`.
    Closed {
        /// The connection, which is unknown from now on.
        conn: ConnId,
        /// Why.
        why: Why,
    },
}

/// Why a connection is over.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Why {
    /// Nothing was heard for [`IDLE_TIMEOUT`].
    #[error("nothing was heard from the peer for {} s", IDLE_TIMEOUT.as_secs())]
    Silence,
    /// The peer's application closed it, with these words.
    #[error("closed by the peer: {0}")]
    Peer(String),
    /// The peer has forgotten it (it restarted).
    #[error("the peer has restarted")]
    Reset,
    /// The handshake or the protocol failed, on this side or the peer's.
    #[error("{0}")]
    Failed(String),
}

/// How far [`Link::recv`] came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// All there was; `Readable` tells of more.
    Blocked,
    /// There is more: call again when there is time.
    More,
    /// The peer finished the stream: nothing will follow.
    Finished,
}

/// Why a stream cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is over.
    #[error("the connection is over")]
    Gone,
    /// The stream is over: finished, reset or stopped, here or there.
    #[error("the stream is over")]
    Closed,
}

/// Why a link could not be made, or a connection not begun.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The identity's keys do not fit TLS.
    #[error("the identity cannot be used: {0}")]
    Tls(String),
    /// Reading a certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A server or a client that is not enrolling without an identity.
    #[error("{0} needs an identity: enrol first")]
    NoIdentity(&'static str),
    /// Too many connections.
    #[error("{0} connections are open, which is the bound")]
    Full(usize),
    /// quinn-proto refused to begin.
    #[error("cannot connect to {remote}: {why}")]
    Connect {
        /// To where.
        remote: SocketAddr,
        /// Its words.
        why: String,
    },
}

/// What was refused or failed, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Connections refused because there were `connections_max`.
    pub refused_full: u64,
    /// Handshakes answered with a demand to prove the address first.
    pub retried: u64,
    /// Incoming handshakes that failed (foreign CA, expired, no common ALPN, garbage).
    pub handshakes_failed: u64,
    /// Connections closed because the certificate's role did not match the ALPN.
    pub refused_role: u64,
}

/// A datagram that came in.
#[derive(Debug)]
pub struct Datagram {
    /// From whom.
    pub from: SocketAddr,
    /// To which of this machine's addresses, if known.
    pub to: Option<IpAddr>,
    /// Congestion mark: the two bits of the IP header.
    pub ecn: u8,
    /// Its bytes.
    pub bytes: BytesMut,
}

/// Datagrams to send; their bytes are in the buffer given to [`Link::transmit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// To whom.
    pub to: SocketAddr,
    /// From which of this machine's addresses, if it matters.
    pub from: Option<IpAddr>,
    /// Congestion mark: the two bits of the IP header.
    pub ecn: u8,
    /// Bytes in all.
    pub bytes: usize,
    /// Bytes of each datagram but the last; `None` is a single datagram.
    pub segment_bytes: Option<usize>,
}

/// The state machine.
pub struct Link {
    endpoint: quinn_proto::Endpoint,
    tls: tls::Tls,
    side: Side,
    connections_max: usize,
    /// By `ConnectionHandle`, which quinn-proto keeps dense.
    slots: Vec<Option<Box<Slot>>>,
    turn: u32,
    handshaking: usize,
    /// Connections that may have something to transmit; each at most once ([`Slot::queued`]).
    busy: VecDeque<u32>,
    /// When to look at which connection; each at most once, never later than it needs.
    timers: BTreeSet<(Instant, u32)>,
    /// Stateless answers; at most [`RESPONSES_MAX`], then the newest is dropped (peers resend).
    responses: VecDeque<(Transmit, Vec<u8>)>,
    scratch: Vec<u8>,
    events: VecDeque<Event>,
    counters: Counters,
}

struct Slot {
    quic: quinn_proto::Connection,
    turn: u32,
    phase: Phase,
    queued: bool,
    wake: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The handshake is under way.
    Opening,
    /// `Connected` was told.
    Open,
    /// Over for the owner; quinn-proto still says good-bye.
    Over,
}

impl Link {
    /// A link with no connections.
    ///
    /// # Errors
    /// The identity does not fit.
    pub fn new(config: &LinkConfig) -> Result<Self, LinkError> {
        let tls = tls::Tls::new(config)?;
        let server = match config.side {
            Side::Broker => Some(tls.server()?),
            Side::Agent | Side::Viz => None,
        };
        let mut quic = tls.endpoint();
        quic.rng_seed(config.seed);
        let endpoint =
            quinn_proto::Endpoint::new(Arc::new(quic), server, config.whole_datagrams, None);
        Ok(Self {
            endpoint,
            tls,
            side: config.side,
            connections_max: config.connections_max,
            slots: Vec::new(),
            turn: 0,
            handshaking: 0,
            busy: VecDeque::new(),
            timers: BTreeSet::new(),
            responses: VecDeque::new(),
            scratch: Vec::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        })
    }

    /// Sets the wall clock that certificates are judged by. Cheap: call it every loop.
    pub fn set_wall_s(&self, wall_s: u64) {
        self.tls.set_wall_s(wall_s);
    }

    /// Begins a connection; [`Event::Connected`] or [`Event::Closed`] follows.
    ///
    /// # Errors
    /// It cannot even begin.
    pub fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        dial: &Dial,
    ) -> Result<ConnId, LinkError> {
        if self.connections_max <= self.endpoint.open_connections() {
            return Err(LinkError::Full(self.connections_max));
        }
        let config = self.tls.client(dial)?;
        let (handle, quic) = self
            .endpoint
            .connect(now, config, remote, tls::SERVER_NAME)
            .map_err(|why| LinkError::Connect { remote, why: why.to_string() })?;
        Ok(self.insert(now, handle, quic))
    }

    /// A datagram came in.
    pub fn handle(&mut self, now: Instant, datagram: Datagram) {
        let Datagram { from, to, ecn, bytes } = datagram;
        let ecn = quinn_proto::EcnCodepoint::from_bits(ecn);
        self.scratch.clear();
        let mut scratch = std::mem::take(&mut self.scratch);
        match self.endpoint.handle(now, from, to, ecn, bytes, &mut scratch) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let index = index_of(handle);
                if let Some(slot) = self.slot_at(index) {
                    slot.quic.handle_event(event);
                    self.settle(now, index);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.accept(now, incoming, &mut scratch);
            }
            Some(DatagramEvent::Response(transmit)) => self.respond(&transmit, &scratch),
            None => {}
        }
        self.scratch = scratch;
    }

    /// Appends the next datagrams to `out`, at most `segments` of equal size for one peer (the
    /// last may be shorter); `None` when there is nothing to send now.
    pub fn transmit(
        &mut self,
        now: Instant,
        segments: usize,
        out: &mut Vec<u8>,
    ) -> Option<Transmit> {
        if let Some((transmit, bytes)) = self.responses.pop_front() {
            out.extend_from_slice(&bytes);
            return Some(transmit);
        }
        while let Some(index) = self.busy.pop_front() {
            let Some(slot) = self.slot_at(index) else { continue };
            if let Some(transmit) = slot.quic.poll_transmit(now, segments.max(1), out) {
                // To the back: one that sends much does not starve the others.
                self.busy.push_back(index);
                return Some(plain(&transmit));
            }
            slot.queued = false;
            self.settle_quiet(now, index);
        }
        self.defer();
        None
    }

    fn defer(&mut self) {
        while let Some(&(at, index)) = self.timers.first()
            && let Some(slot) = slot_mut(&mut self.slots, index)
            && slot.quic.poll_timeout().is_none_or(|wanted| at < wanted)
        {
            (slot.wake, _) = (None, self.timers.pop_first());
            self.schedule(index);
        }
    }

    /// When [`Self::on_timeout`] wants to be called at the latest.
    #[must_use]
    pub fn timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Does what is due at `now`.
    pub fn on_timeout(&mut self, now: Instant) {
        while let Some(&(at, index)) = self.timers.first() {
            if now < at {
                break;
            }
            self.timers.pop_first();
            let Some(slot) = self.slot_at(index) else { continue };
            slot.wake = None;
            slot.quic.handle_timeout(now);
            self.settle(now, index);
        }
    }

    /// What happened, oldest first.
    pub fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Opens a bidirectional stream; `None` while the peer allows no more, or it is over. The
    /// peer learns of it with the first `send`.
    pub fn open(&mut self, conn: ConnId) -> Option<StreamId> {
        self.slot(conn)?.quic.streams().open(Dir::Bi)
    }

    /// Gives the stream as much of `chunks` as it takes, in order, and returns how many bytes that
    /// was; taken chunks are left empty, one taken in part is advanced. Less than all: wait for
    /// [`Event::Writable`].
    ///
    /// # Errors
    /// The stream or its connection is over.
    pub fn send(
        &mut self,
        conn: ConnId,
        stream: StreamId,
        chunks: &mut [Bytes],
    ) -> Result<usize, StreamError> {
        let slot = self.slot(conn).ok_or(StreamError::Gone)?;
        let taken = match slot.quic.send_stream(stream).write_chunks(chunks) {
            Ok(written) => written.bytes,
            Err(WriteError::Blocked) => 0,
            Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                return Err(StreamError::Closed);
            }
        };
        self.enqueue(conn.index);
        Ok(taken)
    }

    /// Moves what has come into `reader`, at most [`RECV_BYTES`] at once.
    ///
    /// # Errors
    /// The stream was reset, or its connection is over.
    pub fn recv(
        &mut self,
        conn: ConnId,
        stream: StreamId,
        reader: &mut Reader,
    ) -> Result<Received, StreamError> {
        let slot = self.slot(conn).ok_or(StreamError::Gone)?;
        let mut from = slot.quic.recv_stream(stream);
        let mut chunks = from.read(true).map_err(|_| StreamError::Closed)?;
        let mut room = RECV_BYTES;
        let outcome = loop {
            if room == 0 {
                break Ok(Received::More);
            }
            match chunks.next(room) {
                Ok(Some(chunk)) => {
                    room = room.saturating_sub(chunk.bytes.len());
                    reader.push(&chunk.bytes);
                }
                Ok(None) => break Ok(Received::Finished),
                Err(ReadError::Blocked) => break Ok(Received::Blocked),
                Err(ReadError::Reset(_)) => break Err(StreamError::Closed),
            }
        };
        if chunks.finalize().should_transmit() {
            self.enqueue(conn.index);
        }
        outcome
    }

    /// Says that nothing will follow on the stream; what was sent still arrives.
    pub fn finish(&mut self, conn: ConnId, stream: StreamId) {
        if let Some(slot) = self.slot(conn) {
            // It fails when the stream is over already, which is what was wanted.
            let _ = slot.quic.send_stream(stream).finish();
            self.enqueue(conn.index);
        }
    }

    /// Gives the stream up in both directions; what was not delivered is dropped.
    pub fn reset(&mut self, conn: ConnId, stream: StreamId) {
        if let Some(slot) = self.slot(conn) {
            // Both fail only when that direction is over already.
            let _ = slot.quic.send_stream(stream).reset(VarInt::from_u32(CODE_RESET));
            let _ = slot.quic.recv_stream(stream).stop(VarInt::from_u32(CODE_RESET));
            self.enqueue(conn.index);
        }
    }

    /// Closes the connection at once and tells the peer `why`. What was not delivered is dropped,
    /// and no [`Event::Closed`] follows here.
    pub fn close(&mut self, now: Instant, conn: ConnId, why: &str) {
        if self.slot(conn).is_some() {
            self.close_at(now, conn.index, why);
        }
    }

    /// Closes all connections ([`Self::close`]). One more [`Socket::transmit`] carries it out.
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

    /// The round trip as estimated.
    pub fn rtt(&mut self, conn: ConnId) -> Option<Duration> {
        self.slot(conn).map(|slot| slot.quic.rtt())
    }

    /// Connections that quinn-proto holds, those saying good-bye included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// What was refused or failed.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn accept(&mut self, now: Instant, incoming: Incoming, scratch: &mut Vec<u8>) {
        if self.connections_max <= self.endpoint.open_connections() {
            self.counters.refused_full += 1;
            let transmit = self.endpoint.refuse(incoming, scratch);
            return self.respond(&transmit, scratch);
        }
        if HANDSHAKES_BEFORE_RETRY <= self.handshaking && incoming.may_retry() {
            self.counters.retried += 1;
            if let Ok(transmit) = self.endpoint.retry(incoming, scratch) {
                self.respond(&transmit, scratch);
            }
            return;
        }
        match self.endpoint.accept(incoming, now, scratch, None) {
            Ok((handle, quic)) => {
                self.insert(now, handle, quic);
            }
            Err(refused) => {
                self.counters.handshakes_failed += 1;
                if let Some(transmit) = refused.response {
                    self.respond(&transmit, scratch);
                }
            }
        }
    }

    fn insert(
        &mut self,
        now: Instant,
        handle: ConnectionHandle,
        quic: quinn_proto::Connection,
    ) -> ConnId {
        self.turn = self.turn.wrapping_add(1);
        let conn = ConnId { index: index_of(handle), turn: self.turn };
        if self.slots.len() <= handle.0 {
            self.slots.resize_with(handle.0 + 1, || None);
        }
        let slot = Slot { quic, turn: self.turn, phase: Phase::Opening, queued: false, wake: None };
        let before = self.slots.get_mut(handle.0).and_then(|place| place.replace(Box::new(slot)));
        assert!(before.is_none(), "quinn-proto gives out a handle only after it is drained");
        self.handshaking += 1;
        self.settle(now, conn.index);
        conn
    }

    fn respond(&mut self, transmit: &quinn_proto::Transmit, bytes: &[u8]) {
        if self.responses.len() < RESPONSES_MAX
            && let Some(bytes) = bytes.get(..transmit.size)
        {
            self.responses.push_back((plain(transmit), bytes.to_vec()));
        }
    }

    /// After anything that a connection was told: its events, its timer, its turn to transmit.
    fn settle(&mut self, now: Instant, index: u32) {
        self.settle_quiet(now, index);
        self.enqueue(index);
    }

    fn settle_quiet(&mut self, now: Instant, index: u32) {
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
        match admit(&slot.quic) {
            Ok((alpn, subject)) => {
                slot.phase = Phase::Open;
                if self.side == Side::Broker && matches!(alpn, Alpn::Viz | Alpn::Peer) {
                    tls::widen(&mut slot.quic);
                }
                let remote = slot.quic.remote_address();
                self.events.push_back(Event::Connected { conn, remote, alpn, subject });
            }
            Err(why) => {
                self.counters.refused_role += 1;
                let client = slot.quic.side().is_client();
                slot.quic.close(now, VarInt::from_u32(CODE_REFUSED), Bytes::from(why.clone()));
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

    /// An entry that is too early stays till it is the first; then `defer` moves it.
    fn schedule(&mut self, index: u32) {
        let Some(slot) = slot_mut(&mut self.slots, index) else { return };
        let Some(at) = slot.quic.poll_timeout() else { return };
        if slot.wake.is_some_and(|wake| wake <= at) {
            return;
        }
        if let Some(later) = slot.wake.replace(at) {
            self.timers.remove(&(later, index));
        }
        self.timers.insert((at, index));
    }

    fn enqueue(&mut self, index: u32) {
        if let Some(slot) = slot_mut(&mut self.slots, index)
            && !slot.queued
        {
            slot.queued = true;
            self.busy.push_back(index);
        }
    }

    /// The connection, while it is the owner's.
    fn slot(&mut self, conn: ConnId) -> Option<&mut Slot> {
        self.slot_at(conn.index).filter(|s| s.turn == conn.turn && s.phase != Phase::Over)
    }

    fn slot_at(&mut self, index: u32) -> Option<&mut Slot> {
        slot_mut(&mut self.slots, index)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("side", &self.side)
            .field("connections", &self.connections())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Alpn {
    /// As it stands in the handshake.
    #[must_use]
    pub fn protocol(self) -> &'static [u8] {
        match self {
            Self::Agent => ALPN_AGENT,
            Self::Viz => ALPN_VIZ,
            Self::Peer => ALPN_PEER,
            Self::Enrol => ALPN_ENROL,
        }
    }

    fn of(protocol: &[u8]) -> Option<Self> {
        [Self::Agent, Self::Viz, Self::Peer, Self::Enrol]
            .into_iter()
            .find(|alpn| alpn.protocol() == protocol)
    }

    /// The role a client must have to connect so.
    fn role(self) -> Option<Role> {
        match self {
            Self::Agent => Some(Role::Agent),
            Self::Viz => Some(Role::Viz),
            Self::Peer => Some(Role::Broker),
            Self::Enrol => None,
        }
    }
}

impl Why {
    fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => Self::Silence,
            ConnectionError::Reset => Self::Reset,
            ConnectionError::ApplicationClosed(close) => {
                Self::Peer(clip(&String::from_utf8_lossy(&close.reason)))
            }
            other @ (ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::ConnectionClosed(_)
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted) => Self::Failed(clip(&other.to_string())),
        }
    }
}

/// Whether the peer may be what it says: its ALPN and subject, or why not.
fn admit(quic: &quinn_proto::Connection) -> Result<(Alpn, Option<Subject>), String> {
    let session = quic.crypto_session();
    let alpn = session
        .handshake_data()
        .and_then(|data| data.downcast::<quinn_proto::crypto::rustls::HandshakeData>().ok())
        .and_then(|data| Alpn::of(data.protocol.as_deref()?))
        .ok_or("no known protocol was agreed on")?;
    let certificates = session
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let subject = match certificates.as_ref().and_then(|chain| chain.first()) {
        Some(certificate) => {
            Some(Subject::of_certificate(certificate).map_err(|error| error.to_string())?)
        }
        None => None,
    };
    let wanted = if quic.side().is_client() { Some(Role::Broker) } else { alpn.role() };
    match (wanted, subject.map(|subject| subject.role)) {
        (None, _) => Ok((alpn, subject)),
        (Some(wanted), Some(role)) if wanted == role => Ok((alpn, subject)),
        (Some(wanted), Some(role)) => Err(format!(
            "a certificate for the role {} cannot act as {}",
            role.word(),
            wanted.word()
        )),
        (Some(wanted), None) => {
            Err(format!("the role {} needs a certificate: enrol first", wanted.word()))
        }
    }
}

/// A text for a log or a close frame: bounded, one line, nothing that moves a terminal's cursor.
fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WHY_CHARS_MAX).collect()
}

fn plain(transmit: &quinn_proto::Transmit) -> Transmit {
    Transmit {
        to: transmit.destination,
        from: transmit.src_ip,
        ecn: transmit.ecn.map_or(0, |ecn| ecn as u8),
        bytes: transmit.size,
        segment_bytes: transmit.segment_size,
    }
}

fn index_of(handle: ConnectionHandle) -> u32 {
    u32::try_from(handle.0).expect("connections_max bounds the slab far below 2^32")
}

/// A function, not a method, so that other fields of the link stay free to use.
fn slot_mut(slots: &mut [Option<Box<Slot>>], index: u32) -> Option<&mut Slot> {
    slots.get_mut(index as usize)?.as_deref_mut()
}

/// A client breaks a silence of this long, so that both ends and NATs know it lives.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection is over after a silence of this long: three lost keep-alives.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes that one [`Link::recv`] moves at most.
pub const RECV_BYTES: usize = 64 << 10;
/// Handshakes under way from which on a client must prove its address before it costs memory.
pub const HANDSHAKES_BEFORE_RETRY: usize = 512;
const RESPONSES_MAX: usize = 256;
const WHY_CHARS_MAX: usize = 240;
const CODE_CLOSED: u32 = 0;
const CODE_REFUSED: u32 = 1;
const CODE_RESET: u32 = 2;
const _: () = assert!(2 * KEEP_ALIVE.as_secs() < IDLE_TIMEOUT.as_secs());

#[cfg(test)]
mod tests;
