//! The link without and with sockets: handshakes, a fleet's frames with their acknowledgements, and
//! bulk over loopback with and without segmentation offload. Both ends run in one thread: a number
//! is the sum of client and server.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use strobe_wire::ids::HostId;
use strobe_wire::link::{
    Alpn, ConnId, Datagram, Dial, Event, Link, LinkConfig, Offload, Progress, Received, Side,
    Socket, SocketConfig, StreamId,
};
use strobe_wire::message::{Message, Reader, encode, frame_prefix};
use strobe_wire::pki::{Authority, Identity, Role, Subject};

/// Two links that hand each other their datagrams, on a clock of their own.
struct Pair {
    now: Instant,
    server: Link,
    client: Link,
    out: Vec<u8>,
}

impl Pair {
    fn new(server: &Identity, client: &Identity) -> Self {
        let (server, client) = (link(Side::Broker, server), link(Side::Agent, client));
        Self { now: start(), server, client, out: Vec::new() }
    }

    /// Everything that is to be said now, there and back, until both are silent.
    fn settle(&mut self) {
        loop {
            let said = [(true, 1), (false, 2)].map(|(to_server, last)| {
                let (from, to) = match to_server {
                    true => (&mut self.client, &mut self.server),
                    false => (&mut self.server, &mut self.client),
                };
                let mut said = false;
                self.out.clear();
                while let Some(transmit) = from.transmit(self.now, 10, &mut self.out) {
                    let bytes = self.out.get(..transmit.bytes).unwrap_or_default();
                    for one in bytes.chunks(transmit.segment_bytes.unwrap_or(bytes.len()).max(1)) {
                        let from = SocketAddr::from(([127, 0, 0, last], 7801));
                        let (to_ip, ecn) = (None, transmit.ecn);
                        to.handle(self.now, Datagram { from, to: to_ip, ecn, bytes: one.into() });
                    }
                    said = true;
                    self.out.clear();
                }
                said
            });
            if said == [false, false] {
                return;
            }
        }
    }

    /// Moves the clock and does what is due.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.server.on_timeout(self.now);
        self.client.on_timeout(self.now);
        self.settle();
    }

    /// A new connection, as both know it.
    fn connect(&mut self) -> (ConnId, ConnId) {
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

fn handshakes(criterion: &mut Criterion) {
    let (server, client) = identities();
    let mut group = criterion.benchmark_group("link");
    group.throughput(Throughput::Elements(1));
    for resumed in [false, true] {
        let mut pair = Pair::new(&server, &client);
        let name = if resumed { "handshake, resumed" } else { "handshake" };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                if !resumed {
                    pair.client.set_identity(client.clone()).expect("it fits");
                }
                let (here, _) = pair.connect();
                pair.client.close(pair.now, here, "again");
                pair.settle();
                // Both forget it after three round trips' time.
                pair.pass(Duration::from_secs(5));
                while pair.server.poll().is_some() || pair.client.poll().is_some() {}
            });
        });
    }
    group.finish();
}

/// A second of a fleet: each connection sends a frame of 1 KiB and gets an `Ack`.
fn frames(criterion: &mut Criterion) {
    let (server, client) = identities();
    let mut group = criterion.benchmark_group("link");
    for agents in [1_usize, 100, 1_000] {
        let mut pair = Pair::new(&server, &client);
        let mut fleet: Vec<(ConnId, ConnId, StreamId, Reader, Reader)> = (0..agents)
            .map(|_| {
                let (here, there) = pair.connect();
                let stream = pair.client.open(here).expect("two are allowed");
                (here, there, stream, Reader::default(), Reader::default())
            })
            .collect();
        let (head, body) =
            (Bytes::copy_from_slice(&frame_prefix(1024)), Bytes::from(vec![7; 1024]));
        let ack = encode(&Message::Ack { boot: 1, seq: 2 });
        group.throughput(Throughput::Elements(u64::try_from(agents).unwrap_or(1)));
        group.bench_function(BenchmarkId::new("frame and ack", agents), |bencher| {
            bencher.iter(|| {
                for (here, _, stream, _, _) in &fleet {
                    let chunks = &mut [head.clone(), body.clone()];
                    pair.client.send(*here, *stream, chunks).expect("it is open");
                }
                pair.pass(Duration::from_millis(500));
                for (_, there, stream, reader, _) in &mut fleet {
                    read(&mut pair.server, *there, *stream, reader);
                    pair.server.send(*there, *stream, &mut [ack.clone()]).expect("it is open");
                }
                pair.pass(Duration::from_millis(500));
                for (here, _, stream, _, reader) in &mut fleet {
                    read(&mut pair.client, *here, *stream, reader);
                }
                while pair.server.poll().is_some() || pair.client.poll().is_some() {}
            });
        });
    }
    group.finish();
}

/// 4 MiB in frames of 1 KiB over loopback.
fn bulk(criterion: &mut Criterion) {
    let (server, client) = identities();
    let mut group = criterion.benchmark_group("link");
    group.throughput(Throughput::Elements(BULK_FRAMES));
    group.sample_size(10);
    for (name, offload) in [("GSO and GRO", Offload::Auto), ("one by one", Offload::Off)] {
        let mut ends = [(Side::Broker, &server), (Side::Agent, &client)].map(|(side, identity)| {
            let bind = "127.0.0.1:0".parse().expect("an address");
            let config = SocketConfig { bind, offload, batch: 32, kernel_bytes: 4 << 20 };
            (Socket::bind(&config).expect("a socket"), link(side, identity))
        });
        let to = ends[0].0.local_addr().expect("bound");
        ends[1].1.connect(start(), to, &Dial::With(Alpn::Agent)).expect("room");
        let (mut here, mut there) = (None, None);
        group.bench_function(BenchmarkId::new("bulk", name), |bencher| {
            bencher.iter(|| {
                let mut left = BULK_FRAMES * 1029;
                let (mut got, mut reader) = (0, Reader::default());
                let mut waiting = [Bytes::new()];
                while got < BULK_FRAMES {
                    turn(&mut ends);
                    while let Some(event) = ends[1].1.poll() {
                        if let Event::Connected { conn, .. } = event {
                            here = ends[1].1.open(conn).map(|stream| (conn, stream));
                        }
                    }
                    while let Some((conn, stream)) = here
                        && 0 < left
                    {
                        if waiting[0].is_empty() {
                            waiting = [frame_of_1_kib()];
                        }
                        match ends[1].1.send(conn, stream, &mut waiting).expect("it is open") {
                            0 => break,
                            taken => left -= u64::try_from(taken).unwrap_or(0),
                        }
                    }
                    while let Some(event) = ends[0].1.poll() {
                        if let Event::Readable { conn, stream } = event {
                            there = Some((conn, stream));
                        }
                    }
                    if let Some((conn, stream)) = there {
                        got += read(&mut ends[0].1, conn, stream, &mut reader);
                    }
                }
            });
        });
    }
    group.finish();
}

fn turn(ends: &mut [(Socket, Link); 2]) {
    let now = start();
    for (socket, link) in ends {
        while socket.receive(now, link).expect("loopback works") == Progress::More {}
        link.on_timeout(now);
        while socket.transmit(now, link) == Progress::More {}
    }
}

/// Reads what there is; how many messages.
fn read(link: &mut Link, conn: ConnId, stream: StreamId, reader: &mut Reader) -> u64 {
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

fn frame_of_1_kib() -> Bytes {
    [&frame_prefix(1024)[..], &[7; 1024]].concat().into()
}

fn identities() -> (Identity, Identity) {
    let authority = Authority::create(NOW_S).expect("randomness");
    let issue = |role, host| {
        let subject = Subject { role, host: HostId(host) };
        authority.issue(&subject, NOW_S, 86_400).expect("randomness")
    };
    (issue(Role::Broker, 0), issue(Role::Agent, 7))
}

fn link(side: Side, identity: &Identity) -> Link {
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

#[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
fn start() -> Instant {
    Instant::now()
}

const NOW_S: u64 = 1_790_000_000;
const BULK_FRAMES: u64 = 4_096;

criterion_group!(benches, handshakes, frames, bulk);
criterion_main!(benches);
