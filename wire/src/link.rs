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
//! connection is closed with the reason and no [`Event::Connected`] is seen. A certificate is
//! looked at in every handshake, in a resumed one too; what comes after its end is the owner's to
//! decide ([`Accept::grace_s`]), and so is changing one's own ([`Link::set_identity`]). 0-RTT is off (rows
//! would be replayable); resumption is on.
//!
//! **Bounds.** Connections an endpoint, streams a connection, windows a connection and stream.
//! Beyond them: a connection is refused, `open` gives `None`, `send` takes 0 bytes, and the peer's
//! flow control stops it while `recv` is not called. All refusals are counted ([`Counters`]).
//! Above [`HANDSHAKES_BEFORE_RETRY`] handshakes at once, clients must prove their address first.

mod admit;
mod algorithms;
mod connection;
mod event;
mod proof;
mod socket;
mod stream;
mod tls;
mod transport;

pub use event::{
    Counters, Datagram, Distrust, Event, LinkError, Received, StreamError, Traffic, Transmit, Why,
};
pub use quinn_proto::StreamId;
pub use socket::{Late, Offload, Progress, Socket, SocketConfig};

use crate::pki::Identity;
use connection::{Patience, Phase, Slot};
use quinn_proto::{ConnectionHandle, DatagramEvent, Incoming};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
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
    /// For a broker; `None` forgives no end of a certificate and has secrets of its key.
    pub accept: Option<Accept>,
}

/// What only a side that accepts connections is told.
#[derive(Clone, Copy, Debug)]
pub struct Accept {
    /// Of stateless resets and connection ids: the same in its next life, so that peers then
    /// learn at once that their connections are gone.
    pub secret: [u8; 32],
    /// Seconds after its end for which a client's certificate is let in, to be renewed: the owner
    /// looks at [`Event::Connected`]'s `expires_s`.
    pub grace_s: u64,
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
    /// [`crate::message::ALPN_AGENT`].
    Agent,
    /// [`crate::message::ALPN_VIZ`].
    Viz,
    /// [`crate::message::ALPN_PEER`].
    Peer,
    /// [`crate::message::ALPN_ENROL`].
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

    /// Another certificate for the connections to come; those there are go on as they are. With an
    /// error the old one stays.
    ///
    /// # Errors
    /// It does not fit.
    pub fn set_identity(&mut self, identity: Identity) -> Result<(), LinkError> {
        self.tls.set_identity(identity)?;
        if self.side == Side::Broker {
            self.endpoint.set_server_config(Some(self.tls.server()?));
        }
        Ok(())
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
                slot.transmitted(now);
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
            if slot.due().is_some_and(|due| now < due) {
                self.settle_quiet(now, index);
                continue;
            }
            slot.quic.handle_timeout(now);
            self.settle(now, index);
        }
    }

    /// What happened, oldest first.
    pub fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
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
        let slot = Slot {
            quic,
            turn: self.turn,
            phase: Phase::Opening,
            queued: false,
            wake: None,
            patience: Patience::new(now),
        };
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

/// A client breaks a silence of this long, so that both ends and NATs know it lives.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection is over after a silence of this long: three lost keep-alives.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes that one [`Link::recv`] moves at most.
pub const RECV_BYTES: usize = 64 << 10;
/// Handshakes under way from which on a client must prove its address before it costs memory.
pub const HANDSHAKES_BEFORE_RETRY: usize = 512;
const RESPONSES_MAX: usize = 256;
const CODE_CLOSED: u32 = 0;
const CODE_REFUSED: u32 = 1;
const CODE_RESET: u32 = 2;
const CODE_EXPIRED: u32 = 3;
const _: () = assert!(2 * KEEP_ALIVE.as_secs() < IDLE_TIMEOUT.as_secs());

#[cfg(test)]
mod tests;
