//! The link without and with sockets: handshakes, a fleet's frames with their acknowledgements, and
//! bulk over loopback with and without segmentation offload. Both ends run in one thread: a number
//! is the sum of client and server.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;
use strobe_bench::pair::{Pair, frame_of_1_kib, identities, link, read, start};
use strobe_wire::link::{
    Alpn, ConnId, Dial, Event, Link, Offload, Progress, Side, Socket, SocketConfig, StreamId,
};
use strobe_wire::message::{Message, Reader, encode, frame_prefix};

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

const BULK_FRAMES: u64 = 4_096;

criterion_group!(benches, handshakes, frames, bulk);
criterion_main!(benches);
