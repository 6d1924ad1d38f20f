//! A client and a server in one process, on a virtual clock, over a network that loses, doubles
//! and reorders datagrams from a seed.

mod certificates;
mod timers;

use super::*;
use crate::ids::HostId;
use crate::message::{Incoming as Said, Message, Reader, encode, frame_prefix};
use crate::pki::{Authority, Role, Subject, Token};
use bytes::{Bytes, BytesMut};

const NOW_S: u64 = 1_790_000_000;
const LIFETIME_S: u64 = 3600;
const GRACE_S: u64 = 1800;

/// Both ends, the datagrams on their way, and the clock.
struct Pair {
    now: Instant,
    start: Instant,
    server: Link,
    client: Link,
    flying: Vec<(Instant, bool, Vec<u8>, u8)>,
    seed: u64,
    loss_percent: u64,
    /// Seconds that the server's wall clock is ahead of the client's.
    server_ahead_s: u64,
    sent: u64,
}

impl Pair {
    fn new(server: &LinkConfig, client: &LinkConfig) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant can only be made so; it is never read again"
        )]
        let now = Instant::now();
        Self {
            now,
            start: now,
            server: Link::new(server).unwrap(),
            client: Link::new(client).unwrap(),
            flying: Vec::new(),
            seed: 1,
            loss_percent: 0,
            server_ahead_s: 0,
            sent: 0,
        }
    }

    fn server_addr() -> SocketAddr {
        "[::1]:7801".parse().unwrap()
    }

    fn client_addr() -> SocketAddr {
        "[::1]:40000".parse().unwrap()
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % below
    }

    fn connect(&mut self, dial: &Dial) -> ConnId {
        self.client.connect(self.now, Self::server_addr(), dial).unwrap()
    }

    /// Sends what both have, then moves to the next thing that happens. `false` if nothing does.
    fn step(&mut self) -> bool {
        for to_server in [true, false] {
            let mut out = Vec::new();
            loop {
                out.clear();
                let link = if to_server { &mut self.client } else { &mut self.server };
                let Some(transmit) = link.transmit(self.now, 4, &mut out) else { break };
                let size = transmit.segment_bytes.unwrap_or(transmit.bytes);
                for one in out[..transmit.bytes].chunks(size) {
                    self.sent += 1;
                    let copies = match self.random(100) {
                        n if n < self.loss_percent => 0,
                        n if n < self.loss_percent * 3 / 2 => 2,
                        _ => 1,
                    };
                    for _ in 0..copies {
                        let jitter = if self.loss_percent == 0 { 0 } else { self.random(30) };
                        let at = self.now + Duration::from_millis(10 + jitter);
                        self.flying.push((at, to_server, one.to_vec(), transmit.ecn));
                    }
                }
            }
        }
        let arrival = self.flying.iter().map(|(at, ..)| *at).min();
        let next = [arrival, self.server.timeout(), self.client.timeout()];
        let Some(next) = next.into_iter().flatten().min() else { return false };
        self.now = self.now.max(next);
        let (now, wall_s) = (self.now, NOW_S + (self.now - self.start).as_secs());
        let (due, rest) = std::mem::take(&mut self.flying).into_iter().partition(|f| f.0 <= now);
        self.flying = rest;
        let due: Vec<(Instant, bool, Vec<u8>, u8)> = due;
        for (_, to_server, bytes, ecn) in due {
            let (link, from) = match to_server {
                true => (&mut self.server, Self::client_addr()),
                false => (&mut self.client, Self::server_addr()),
            };
            let bytes = BytesMut::from(bytes.as_slice());
            link.handle(now, Datagram { from, to: None, ecn, bytes });
        }
        for (link, ahead_s) in [(&mut self.server, self.server_ahead_s), (&mut self.client, 0)] {
            link.set_wall_s(wall_s + ahead_s);
            link.on_timeout(now);
        }
        true
    }

    /// Steps until `done` gives something; fails after `seconds` of virtual time.
    fn until<T>(&mut self, seconds: u64, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = self.now + Duration::from_secs(seconds);
        loop {
            if let Some(found) = done(self) {
                return found;
            }
            assert!(self.step() && self.now <= end, "not within {seconds} s");
        }
    }

    fn connected_at_server(&mut self) -> (ConnId, Alpn, Option<Subject>) {
        self.until(10, |pair| match pair.server.poll()? {
            Event::Connected { conn, alpn, subject, .. } => Some((conn, alpn, subject)),
            other => panic!("{other:?}"),
        })
    }

    fn closed_at_client(&mut self) -> String {
        let why = self.until(30, |pair| match pair.client.poll()? {
            Event::Closed { why, .. } => Some(why.to_string()),
            _ => None,
        });
        assert_eq!(self.server.poll(), None, "the server's owner must not hear of it");
        why
    }
}

fn subject(role: Role) -> Subject {
    Subject { role, host: HostId(7) }
}

fn config(side: Side, identity: Option<Identity>) -> LinkConfig {
    LinkConfig {
        identity,
        side,
        connections_max: 4,
        whole_datagrams: true,
        wall_s: NOW_S,
        seed: Some([u8::from(side == Side::Broker); 32]),
        accept: (side == Side::Broker).then_some(Accept { secret: [5; 32], grace_s: GRACE_S }),
    }
}

fn server(ca: &Authority) -> LinkConfig {
    let identity = ca.issue(&subject(Role::Broker), NOW_S, LIFETIME_S).unwrap();
    config(Side::Broker, Some(identity))
}

fn agent(ca: &Authority) -> LinkConfig {
    let identity = ca.issue(&subject(Role::Agent), NOW_S, LIFETIME_S).unwrap();
    config(Side::Agent, Some(identity))
}

fn authority() -> Authority {
    Authority::create(NOW_S).unwrap()
}

/// Sends `frames` frames of 1,000 bytes and an `Ack` back for each; checks order and content.
fn exchange(pair: &mut Pair, frames: usize) {
    let conn = pair.connect(&Dial::With(Alpn::Agent));
    let (at_server, alpn, who) = pair.connected_at_server();
    assert_eq!((alpn, who), (Alpn::Agent, Some(subject(Role::Agent))));
    let stream = pair.client.open(conn).unwrap();
    let body = |index: usize| vec![u8::try_from(index % 251).unwrap(); 1000];
    let mut waiting: VecDeque<Bytes> = (0..frames)
        .flat_map(|i| [Bytes::copy_from_slice(&frame_prefix(1000)), body(i).into()])
        .collect();
    let (mut reader, mut seen, mut acks, mut back) = (Reader::default(), 0, Reader::default(), 0);
    pair.until(600, |pair| {
        pair.client.send(conn, stream, waiting.make_contiguous()).unwrap();
        waiting.retain(|chunk| !chunk.is_empty());
        let _ = pair.server.recv(at_server, stream, &mut reader);
        while let Some(said) = reader.pull().unwrap() {
            assert_eq!(said, Said::Frame(body(seen).into()), "frame {seen}");
            seen += 1;
            let ack = encode(&Message::Ack { boot: 1, seq: seen as u64 });
            assert_eq!(pair.server.send(at_server, stream, &mut [ack.clone()]), Ok(ack.len()));
        }
        let _ = pair.client.recv(conn, stream, &mut acks).unwrap();
        while let Some(said) = acks.pull().unwrap() {
            back += 1;
            let wanted = Message::Ack { boot: 1, seq: back };
            assert_eq!(said, Said::Control(Box::new(wanted)));
        }
        (back == frames as u64).then_some(())
    });
}

#[test]
fn frames_and_acks_arrive_in_order() {
    let ca = authority();
    exchange(&mut Pair::new(&server(&ca), &agent(&ca)), 500);
}

#[test]
fn frames_and_acks_arrive_in_order_over_a_network_that_loses_doubles_and_reorders() {
    let ca = authority();
    for seed in 1..=8 {
        let mut pair = Pair::new(&server(&ca), &agent(&ca));
        (pair.seed, pair.loss_percent) = (seed, 10);
        exchange(&mut pair, 200);
    }
}

#[test]
fn silence_ends_a_connection_and_keep_alives_prevent_it() {
    for (side, role, alpn) in
        [(Side::Agent, Role::Agent, Alpn::Agent), (Side::Viz, Role::Viz, Alpn::Viz)]
    {
        let ca = authority();
        let identity = ca.issue(&subject(role), NOW_S, LIFETIME_S).unwrap();
        silence(&mut Pair::new(&server(&ca), &config(side, Some(identity))), alpn);
    }
}

fn silence(pair: &mut Pair, alpn: Alpn) {
    pair.connect(&Dial::With(alpn));
    pair.connected_at_server();
    let sent = pair.sent;
    let end = pair.now + Duration::from_secs(100);
    while pair.now < end {
        assert!(pair.step());
        assert_eq!(pair.server.poll(), None);
    }
    let kept = pair.sent - sent;
    assert!((30..=100).contains(&kept), "{kept} datagrams for 20 keep-alives and answers");
    pair.loss_percent = 100;
    let began = pair.now;
    let why = pair.until(60, |pair| match pair.server.poll()? {
        Event::Closed { why, .. } => Some(why),
        other => panic!("{other:?}"),
    });
    assert_eq!(why, Why::Silence);
    assert!(pair.now - began <= IDLE_TIMEOUT + KEEP_ALIVE + Duration::from_secs(1));
    pair.until(60, |pair| (pair.server.connections() == 0).then_some(()));
    assert!(pair.server.timers.is_empty(), "a dead connection leaves no timer");
}

#[test]
fn a_full_endpoint_refuses_and_counts() {
    let ca = authority();
    let mut pair = Pair::new(&server(&ca), &agent(&ca));
    pair.client.connections_max = 10;
    for _ in 0..4 {
        pair.connect(&Dial::With(Alpn::Agent));
        pair.connected_at_server();
    }
    pair.connect(&Dial::With(Alpn::Agent));
    let why = pair.closed_at_client();
    assert!(why.contains("refused"), "{why}");
    // A client with a session ticket says hello in two datagrams.
    assert!((1..=2).contains(&pair.server.counters().refused_full));
    // Room again: good-byes are said, and ids are not reused.
    let now = pair.now;
    pair.client.close_all(now, "enough");
    for _ in 0..4 {
        let why = pair.until(10, |pair| match pair.server.poll()? {
            Event::Closed { why, .. } => Some(why),
            other => panic!("{other:?}"),
        });
        assert_eq!(why, Why::Peer("enough".to_owned()));
    }
    pair.until(10, |pair| (pair.server.connections() == 0).then_some(()));
    assert_eq!(pair.server.handshaking, 0);
    let conn = pair.connect(&Dial::With(Alpn::Agent));
    assert_eq!(conn.turn, 6);
}

#[test]
fn many_handshakes_at_once_must_prove_their_address() {
    let ca = authority();
    let mut pair = Pair::new(&server(&ca), &agent(&ca));
    pair.server.handshaking = HANDSHAKES_BEFORE_RETRY;
    pair.connect(&Dial::With(Alpn::Agent));
    pair.connected_at_server();
    assert_eq!(pair.server.counters().retried, 1);
}

#[test]
fn the_second_connection_resumes_the_session() {
    let ca = authority();
    // Without MTU probes, what is sent is the handshake.
    let small = |config| LinkConfig { whole_datagrams: false, ..config };
    let mut pair = Pair::new(&small(server(&ca)), &small(agent(&ca)));
    let mut bytes = Vec::new();
    for _ in 0..2 {
        let conn = pair.connect(&Dial::With(Alpn::Agent));
        let (at_server, _, who) = pair.connected_at_server();
        assert_eq!(who, Some(subject(Role::Agent)), "a resumed session still says who it is");
        let end = pair.now + Duration::from_secs(1);
        pair.until(10, |pair| (end <= pair.now).then_some(()));
        bytes.push(pair.server.slot(at_server).unwrap().quic.stats().udp_tx.bytes);
        let now = pair.now;
        pair.client.close(now, conn, "again");
        pair.until(10, |pair| (pair.server.connections() == 0).then_some(()));
        while pair.server.poll().is_some() {}
    }
    assert!(bytes[1] + 300 < bytes[0], "no certificates the second time: {bytes:?}");
}

#[test]
fn a_restarted_broker_says_so_at_once() {
    // Before, agents waited for the silence: 15 s without rows after each broker's restart.
    let ca = authority();
    let server = server(&ca);
    let mut pair = Pair::new(&server, &agent(&ca));
    let conn = pair.connect(&Dial::With(Alpn::Agent));
    pair.connected_at_server();
    let end = pair.now + Duration::from_secs(2);
    pair.until(10, |pair| (end <= pair.now).then_some(()));
    pair.server = Link::new(&LinkConfig { seed: Some([9; 32]), ..server }).unwrap();
    let stream = pair.client.open(conn).unwrap();
    let began = pair.now;
    pair.client.send(conn, stream, &mut [Bytes::from(vec![1; 1000])]).unwrap();
    let why = pair.until(20, |pair| match pair.client.poll()? {
        Event::Closed { why, .. } => Some(why),
        _ => None,
    });
    assert_eq!(why, Why::Reset);
    assert!(pair.now - began < Duration::from_secs(1), "{:?}", pair.now - began);
}

#[test]
fn garbage_changes_nothing() {
    let ca = authority();
    let mut pair = Pair::new(&server(&ca), &agent(&ca));
    let now = pair.now;
    for length in 0..1500_u32 {
        let bytes: Vec<u8> = (0..length).map(|_| u8::try_from(pair.random(256)).unwrap()).collect();
        let bytes = BytesMut::from(bytes.as_slice());
        pair.server.handle(now, Datagram { from: Pair::client_addr(), to: None, ecn: 0, bytes });
    }
    assert!(pair.server.responses.len() <= RESPONSES_MAX);
    while pair.server.transmit(now, 1, &mut Vec::new()).is_some() {}
    exchange(&mut pair, 3);
}

#[test]
fn over_real_sockets_with_and_without_offload() {
    for (offload, batch) in [(Offload::Auto, 32), (Offload::Off, 1), (Offload::Auto, 1)] {
        loopback(offload, batch);
    }
}

/// 4 MiB from client to server over loopback UDP.
#[expect(clippy::disallowed_methods, reason = "real sockets run on the real clock")]
fn loopback(offload: Offload, batch: usize) {
    const TOTAL: usize = 4 << 20;
    let ca = authority();
    let bind = "127.0.0.1:0".parse().unwrap();
    let socket = SocketConfig { bind, offload, batch, kernel_bytes: 1 << 20 };
    let mut ends: Vec<(Socket, Link)> = [server(&ca), agent(&ca)]
        .into_iter()
        .map(|config| (Socket::bind(&socket).unwrap(), Link::new(&config).unwrap()))
        .collect();
    assert_eq!(ends[0].0.segments() == 1, offload == Offload::Off);
    let mut poll = mio::Poll::new().unwrap();
    for (index, (socket, _)) in ends.iter_mut().enumerate() {
        let both = mio::Interest::READABLE | mio::Interest::WRITABLE;
        poll.registry().register(socket.source(), mio::Token(index), both).unwrap();
    }
    let to = ends[0].0.local_addr().unwrap();
    let start = Instant::now();
    ends[1].1.connect(start, to, &Dial::With(Alpn::Agent)).unwrap();
    let chunk = Bytes::from(vec![7; 64 << 10]);
    let (mut got, mut sent, mut stream_of) = (0, 0, None);
    let mut events = mio::Events::with_capacity(8);
    while got < TOTAL {
        assert!(start.elapsed() < Duration::from_secs(20), "{got} of {TOTAL} bytes arrived");
        let now = Instant::now();
        let mut more = false;
        for (socket, link) in &mut ends {
            more |= socket.receive(now, link).unwrap() == Progress::More;
            link.on_timeout(now);
        }
        while let Some(event) = ends[1].1.poll() {
            match event {
                Event::Connected { conn, .. } => {
                    stream_of = ends[1].1.open(conn).map(|stream| (conn, stream));
                }
                Event::Closed { why, .. } => panic!("{why}"),
                _ => {}
            }
        }
        while let (Some((conn, stream)), true) = (stream_of, sent < TOTAL) {
            let part = chunk.slice(..chunk.len().min(TOTAL - sent));
            match ends[1].1.send(conn, stream, &mut [part]).unwrap() {
                0 => break,
                taken => sent += taken,
            }
        }
        while let Some(event) = ends[0].1.poll() {
            if let Event::Readable { conn, stream } = event {
                got += drain(&mut ends[0].1, conn, stream);
            }
        }
        for (socket, link) in &mut ends {
            more |= socket.transmit(now, link) == Progress::More;
        }
        let next = ends.iter().filter_map(|(_, link)| link.timeout()).min();
        let wait = next.map_or(Duration::from_millis(50), |at| at.saturating_duration_since(now));
        poll.poll(&mut events, Some(if more { Duration::ZERO } else { wait })).unwrap();
    }
    assert_eq!(got, TOTAL);
}

fn drain(link: &mut Link, conn: ConnId, stream: StreamId) -> usize {
    let mut bytes = 0;
    let slot = link.slot(conn).unwrap();
    let mut from = slot.quic.recv_stream(stream);
    let mut chunks = from.read(true).unwrap();
    while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
        assert!(chunk.bytes.iter().all(|byte| *byte == 7));
        bytes += chunk.bytes.len();
    }
    let _ = chunks.finalize();
    link.enqueue(conn.index);
    bytes
}
