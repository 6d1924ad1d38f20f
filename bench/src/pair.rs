//! Two links that hand each other their datagrams, on a clock of their own: an agent and a broker
//! without sockets.

use bytes::{Bytes, BytesMut};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use strobe_wire::ids::HostId;
use strobe_wire::link::{
    Alpn, ConnId, Datagram, Dial, Event, Link, LinkConfig, Received, Side, StreamId,
};
use strobe_wire::message::{Reader, frame_prefix};
use strobe_wire::pki::{Authority, Identity, Role, Subject};

/// The two.
#[derive(Debug)]
pub struct Pair {
    /// Their clock.
    pub now: Instant,
    /// The broker's.
    pub server: Link,
    /// The agent's.
    pub client: Link,
    out: Vec<u8>,
    flying: Vec<(u8, BytesMut)>,
}

impl Pair {
    /// Not connected.
    #[must_use]
    pub fn new(server: &Identity, client: &Identity) -> Self {
        let (server, client) = (link(Side::Broker, server), link(Side::Agent, client));
        Self { now: start(), server, client, out: Vec::new(), flying: Vec::new() }
    }

    /// What one side has to say now is under way; whether there was anything.
    pub fn send(&mut self, from: Side) -> bool {
        let link = if from == Side::Agent { &mut self.client } else { &mut self.server };
        let mut said = false;
        while let Some(transmit) = link.transmit(self.now, 10, &mut self.out) {
            let bytes = self.out.get(..transmit.bytes).unwrap_or_default();
            let size = transmit.segment_bytes.unwrap_or(bytes.len()).max(1);
            self.flying.extend(bytes.chunks(size).map(|one| (transmit.ecn, one.into())));
            said = true;
            self.out.clear();
        }
        said
    }

    /// What is under way arrives at the other side.
    pub fn arrive(&mut self, at: Side) {
        let to_broker = at == Side::Broker;
        let (link, last) = if to_broker { (&mut self.server, 1) } else { (&mut self.client, 2) };
        let from = SocketAddr::from(([127, 0, 0, last], 7801));
        for (ecn, bytes) in self.flying.drain(..) {
            link.handle(self.now, Datagram { from, to: None, ecn, bytes });
        }
    }

    /// Everything that is to be said now, there and back, until both are silent.
    pub fn settle(&mut self) {
        loop {
            let there = self.send(Side::Agent);
            self.arrive(Side::Broker);
            let back = self.send(Side::Broker);
            self.arrive(Side::Agent);
            if !there && !back {
                return;
            }
        }
    }

    /// Moves the clock and does what is due.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.server.on_timeout(self.now);
        self.client.on_timeout(self.now);
        self.settle();
    }

    /// A new connection, as both know it.
    ///
    /// # Panics
    /// If it fails.
    pub fn connect(&mut self) -> (ConnId, ConnId) {
        let to = SocketAddr::from(([127, 0, 0, 2], 7801));
        let here = self.client.connect(self.now, to, &Dial::With(Alpn::Agent)).expect("room");
        self.settle();
        let connected = |link: &mut Link| loop {
            match link.poll() {
                Some(Event::Connected { conn, .. }) => break conn,
                Some(Event::Closed { why, .. }) => panic!("{why}"),
                Some(_) => {}
                None => panic!("the handshake needs no time here"),
            }
        };
        assert_eq!(connected(&mut self.client), here);
        (here, connected(&mut self.server))
    }
}

/// Reads what there is; how many messages.
pub fn read(link: &mut Link, conn: ConnId, stream: StreamId, reader: &mut Reader) -> u64 {
    let mut count = 0;
    loop {
        let received = link.recv(conn, stream, reader);
        while let Ok(Some(_)) = reader.pull() {
            count += 1;
        }
        if received != Ok(Received::More) {
            return count;
        }
    }
}

/// A frame's bytes on its stream, prefix and all.
#[must_use]
pub fn frame_of_1_kib() -> Bytes {
    [&frame_prefix(1024)[..], &[7; 1024]].concat().into()
}

/// A broker's and an agent's.
///
/// # Panics
/// If there is no randomness.
#[must_use]
pub fn identities() -> (Identity, Identity) {
    let authority = Authority::create(NOW_S).expect("randomness");
    let issue = |role, host| {
        let subject = Subject { role, host: HostId(host) };
        authority.issue(&subject, NOW_S, 86_400).expect("randomness")
    };
    (issue(Role::Broker, 0), issue(Role::Agent, 7))
}

/// A link with this identity.
///
/// # Panics
/// If the identity does not fit.
#[must_use]
pub fn link(side: Side, identity: &Identity) -> Link {
    Link::new(&LinkConfig {
        identity: Some(identity.clone()),
        side,
        connections_max: 20_000,
        whole_datagrams: true,
        wall_s: NOW_S,
        seed: None,
        accept: None,
    })
    .expect("the identity fits")
}

/// A time.
#[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
#[must_use]
pub fn start() -> Instant {
    Instant::now()
}

const NOW_S: u64 = 1_790_000_000;
