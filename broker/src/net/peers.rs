//! The other brokers of the cluster: each is dialled, and dials; one stream a connection carries the
//! control plane's messages both ways.
//!
//! ```text
//!  Waiting --due--> Opening --Connected, the right broker--> Open
//!     ^                |  late, refused, another broker        |  closed, or written to and not heard
//!     +----------------+---------------------------------------+
//! ```
//!
//! What goes to a peer takes the stream that was dialled, or the one that the peer dialled: a broker that
//! has just joined does not know the others yet, and answers whoever speaks to it. A stream that has
//! `OUT_MAX` messages waiting takes no more: they are dropped, counted and told to the plane,
//! for which messages are best effort. Nothing here waits for the plane: its queue is full, or it is not.

use super::Net;
use super::owners::Owners;
use super::streams::{Conn, Place, Stream};
use crate::cluster::{Mail, Order, Post};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use strobe_wire::ids::HostId;
use strobe_wire::link::{Alpn, ConnId, Dial, Link};
use strobe_wire::message::frame_prefix;
use strobe_wire::pki::{Authority, Role, Subject};

/// A broker's place in its cluster, as it takes it.
#[derive(Debug)]
pub struct Seating {
    /// The cluster's.
    pub authority: Arc<Authority>,
    /// Which cluster.
    pub cluster: u128,
    /// Which broker this is.
    pub me: u64,
    /// To the control plane.
    pub orders: SyncSender<Order>,
}

/// The place, taken.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) authority: Arc<Authority>,
    pub(super) cluster: u128,
    pub(super) orders: SyncSender<Order>,
    pub(super) owners: Owners,
    peers: BTreeMap<u64, Peer>,
    /// Streams that peers dialled, the newest of each.
    accepted: BTreeMap<u64, Place>,
    look_at: Instant,
    dropped: u64,
}

#[derive(Debug)]
struct Peer {
    remote: SocketAddr,
    state: State,
    /// Datagrams received when it was looked at last.
    received: u64,
    /// When it was heard last, of what was looked at.
    heard: Option<Instant>,
    /// Since when something was written, or it was pinged, without a sign of life.
    asked: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Waiting { until: Instant },
    Opening { conn: ConnId, until: Instant },
    Open { place: Place },
}

impl Seat {
    fn new(seating: Seating, now: Instant) -> Self {
        let Seating { authority, cluster, me: _, orders } = seating;
        Self {
            authority,
            cluster,
            orders,
            owners: Owners::default(),
            peers: BTreeMap::new(),
            accepted: BTreeMap::new(),
            look_at: now,
            dropped: 0,
        }
    }

    /// When it is time for [`Net::tend_peers`] or [`Net::tend_owners`].
    pub(super) fn timeout(&self) -> Instant {
        self.owners.timeout().map_or(self.look_at, |at| at.min(self.look_at))
    }

    /// Tells the plane; a full queue loses it.
    pub(super) fn tell(&mut self, order: Order) -> bool {
        let told = self.orders.try_send(order).is_ok();
        self.dropped += u64::from(!told);
        told
    }

    /// Messages lost to full queues.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Peers whose stream is open.
    pub(super) fn open(&self) -> usize {
        self.peers.values().filter(|peer| matches!(peer.state, State::Open { .. })).count()
    }

    /// The connection that was dialled to a broker, if it is up.
    pub(super) fn connection(&self, id: u64) -> Option<ConnId> {
        match self.peers.get(&id)?.state {
            State::Open { place } => Some(place.conn),
            State::Waiting { .. } | State::Opening { .. } => None,
        }
    }

    /// Brokers that were dialled and are there.
    pub(super) fn connected(&self) -> impl Iterator<Item = u64> {
        let open = |peer: &Peer| matches!(peer.state, State::Open { .. });
        self.peers.iter().filter(move |(_, peer)| open(peer)).map(|(id, _)| *id)
    }

    /// When a broker was heard last.
    pub(super) fn heard(&self, id: u64) -> Option<Instant> {
        self.peers.get(&id)?.heard
    }

    fn dialled(&self, conn: ConnId) -> Option<u64> {
        let of = |peer: &Peer| match peer.state {
            State::Waiting { .. } => None,
            State::Opening { conn, .. } => Some(conn),
            State::Open { place } => Some(place.conn),
        };
        self.peers.iter().find(|(_, peer)| of(peer) == Some(conn)).map(|(id, _)| *id)
    }
}

impl Peer {
    /// Whether something came since the last look.
    fn listen(&mut self, link: &mut Link, conn: ConnId, now: Instant) -> bool {
        let received = link.traffic(conn).map_or(0, |traffic| traffic.received);
        let before = std::mem::replace(&mut self.received, received);
        if before != received {
            self.heard = Some(now);
        }
        before != received
    }
}

impl Net {
    /// This broker belongs to a cluster from now on: its certificate names it there.
    pub fn take_seat(&mut self, seating: Seating, now: Instant) {
        self.certificates.seat(Arc::clone(&seating.authority), HostId(seating.me.into()));
        self.set_agreed(seating.orders.clone());
        self.seat = Some(Seat::new(seating, now));
    }

    /// The plane says something.
    pub fn on_post(&mut self, post: Post, now: Instant, now_ms: i64) {
        match post {
            Post::Outcome(ticket, outcome) => self.on_outcome(ticket, outcome, now_ms),
            Post::Revoked(all) => {
                if let Err(why) = self.registry.refuse(&all) {
                    log::error!("revocations hold until the next start only: {why}");
                }
            }
            Post::Desired(desired) => self.on_desired(desired),
            Post::Map(map) => {
                let Some(seat) = &mut self.seat else { return };
                seat.peers.retain(|id, _| map.peers.iter().any(|(known, _)| known == id));
                for &(id, remote) in &map.peers {
                    let new = Peer {
                        remote,
                        state: State::Waiting { until: now },
                        received: 0,
                        heard: None,
                        asked: None,
                    };
                    seat.peers.entry(id).or_insert(new).remote = remote;
                }
                seat.look_at = now;
                self.on_map(map, (now, now_ms));
            }
        }
    }

    /// Bytes of the plane for a peer.
    pub fn on_mail(&mut self, mail: Mail, now: Instant) {
        let Mail { to, bytes } = mail;
        let Some(seat) = &mut self.seat else { return };
        let dialled = seat.peers.get(&to).and_then(|peer| match peer.state {
            State::Open { place } => Some(place),
            State::Waiting { .. } | State::Opening { .. } => None,
        });
        let place = dialled.or_else(|| seat.accepted.get(&to).copied());
        let stream = place.and_then(|place| self.streams.get_mut(&place));
        let Some((place, stream)) = place.zip(stream.filter(|s| s.out.len() < OUT_MAX)) else {
            // A queue that is full is worth a number; that nobody is there shows elsewhere.
            if place.is_some() {
                seat.tell(Order::Dropped);
            }
            seat.tell(Order::Unreachable(to));
            return;
        };
        let mut message = BytesMut::with_capacity(bytes.len() + 8);
        message.put_slice(&frame_prefix(bytes.len()));
        message.put_slice(&bytes);
        stream.out.push_back(message.freeze());
        if let Some(peer) = seat.peers.get_mut(&to).filter(|_| dialled.is_some()) {
            peer.asked.get_or_insert(now);
        }
        self.flush(place);
    }

    /// Asks a broker's transport for a sign of life; what came before is none.
    pub(super) fn ask_peer(&mut self, id: u64, now: Instant) {
        self.listen_to_peer(id, now);
        if let Some(conn) = self.seat.as_ref().and_then(|seat| seat.connection(id)) {
            self.link.ping(conn);
        }
    }

    /// Looks whether a broker was heard.
    pub(super) fn listen_to_peer(&mut self, id: u64, now: Instant) {
        let Some(seat) = &mut self.seat else { return };
        let Some((conn, peer)) = seat.connection(id).zip(seat.peers.get_mut(&id)) else { return };
        if peer.listen(&mut self.link, conn, now) {
            peer.asked = None;
        }
    }

    /// Dials whom it is time to dial, and gives up on those who are silent.
    pub(super) fn tend_peers(&mut self, now: Instant) {
        let Some(seat) = &mut self.seat else { return };
        if now < seat.look_at {
            return;
        }
        seat.look_at = now + LOOK_EVERY;
        let mut silent = Vec::new();
        for (id, peer) in &mut seat.peers {
            match peer.state {
                State::Waiting { until } if until <= now => {
                    let dial = Dial::With(Alpn::Peer);
                    peer.state = match self.link.connect(now, peer.remote, &dial) {
                        Ok(conn) => State::Opening { conn, until: now + OPENING },
                        Err(why) => {
                            log::debug!("broker {id} cannot be dialled: {why}");
                            State::Waiting { until: now + AGAIN }
                        }
                    };
                }
                State::Opening { conn, until } if until <= now => silent.push((*id, conn)),
                State::Open { place } => {
                    if peer.listen(&mut self.link, place.conn, now) {
                        peer.asked = None;
                    } else if peer.asked.is_some_and(|at| at + SILENCE <= now) {
                        silent.push((*id, place.conn));
                    } else if peer.asked.is_none() {
                        // Followers say nothing to each other until they have to elect somebody: a
                        // connection that died must not be found out then.
                        peer.asked = Some(now);
                        self.link.ping(place.conn);
                    }
                }
                State::Waiting { .. } | State::Opening { .. } => {}
            }
        }
        for (id, conn) in silent {
            log::debug!("broker {id} does not answer");
            self.link.close(now, conn, "nothing was heard");
            self.forget_conn(conn);
            self.peer_gone(conn, now);
        }
        self.tend_feeds();
    }

    /// Whether this was a connection that was dialled here.
    pub(super) fn peer_connected(
        &mut self,
        conn: ConnId,
        subject: Option<Subject>,
        now: Instant,
    ) -> bool {
        let Some(seat) = &mut self.seat else { return false };
        let Some(id) = seat.dialled(conn) else { return false };
        let wanted = Subject { role: Role::Broker, host: HostId(id.into()) };
        let stream = if subject == Some(wanted) { self.link.open(conn) } else { None };
        let Some(stream) = stream else {
            log::warn!("the broker at the address of broker {id} is another one");
            self.link.close(now, conn, "another broker is wanted");
            self.peer_gone(conn, now);
            return true;
        };
        let place = Place { conn, stream };
        let expires_s = u64::MAX;
        self.conns
            .insert(conn, Conn { alpn: Alpn::Peer, subject, expires_s, streams: vec![stream] });
        self.streams.insert(place, Stream::new());
        // Pages and rows of others share the connection: an election does not wait for them.
        self.link.prefer(conn, stream);
        if let Some(peer) = seat.peers.get_mut(&id) {
            (peer.state, peer.asked) = (State::Open { place }, None);
            log::info!("connected to broker {id} at {}", peer.remote);
        }
        true
    }

    /// A connection is over; if it was to a peer, it is dialled again.
    pub(super) fn peer_gone(&mut self, conn: ConnId, now: Instant) {
        let Some(seat) = &mut self.seat else { return };
        seat.accepted.retain(|_, place| place.conn != conn);
        let Some(id) = seat.dialled(conn) else { return };
        if let Some(peer) = seat.peers.get_mut(&id) {
            peer.state = State::Waiting { until: now + AGAIN };
        }
        seat.tell(Order::Unreachable(id));
    }

    /// A peer's message.
    pub(super) fn on_peer_bytes(
        &mut self,
        place: Place,
        bytes: Bytes,
        now: Instant,
    ) -> Result<(), String> {
        if self.on_feed(place, &bytes) {
            return Ok(());
        }
        let subject = self.conns.get(&place.conn).and_then(|conn| conn.subject);
        let from = subject.and_then(|s| u64::try_from(s.host.0).ok()).filter(|&id| id != 0);
        let from = from.ok_or("this broker's certificate names no broker of a cluster")?;
        let seat = self.seat.as_mut().ok_or("this broker belongs to no cluster")?;
        if seat.dialled(place.conn).is_none() && seat.accepted.len() < ACCEPTED_MAX {
            seat.accepted.insert(from, place);
            self.link.prefer(place.conn, place.stream);
        }
        if let Some(peer) = seat.peers.get_mut(&from) {
            peer.heard = Some(now);
        }
        seat.tell(Order::Heard { from, bytes });
        Ok(())
    }
}

/// Messages waiting for one peer.
const OUT_MAX: usize = 256;
/// Members there may be, twice.
const ACCEPTED_MAX: usize = 256;
const LOOK_EVERY: Duration = Duration::from_millis(250);
const AGAIN: Duration = Duration::from_millis(200);
/// A handshake takes a round trip or two.
const OPENING: Duration = Duration::from_millis(1500);
/// What is written is confirmed by the transport within a round trip and 25 ms.
const SILENCE: Duration = Duration::from_millis(1500);
