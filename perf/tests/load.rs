//! The generator against a broker of twenty lines, which opens every frame, sees that each host's
//! sequence has no hole, and acknowledges all but what it is told to forget.

#![expect(clippy::disallowed_methods, reason = "drives a real socket, as run.rs does")]
#![expect(clippy::unwrap_used, reason = "test code outside of #[test] functions")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};
use strobe_perf::run::{Load, hosts, load};
use strobe_wire::frame;
use strobe_wire::ids::HostId;
use strobe_wire::link::{
    ConnId, Event, Link, LinkConfig, Offload, Received, Side, Socket, SocketConfig, StreamId,
};
use strobe_wire::message::{Incoming, Message, Reader, encode};
use strobe_wire::pki::{Authority, Role, Subject};

/// How the little broker behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    AcksAll,
    /// Closes each connection once, after a few frames that it does not acknowledge.
    ClosesOnce,
    /// Never acknowledges.
    Silent,
}

struct Little {
    link: Link,
    socket: Socket,
    manner: Manner,
    readers: BTreeMap<(ConnId, StreamId), (Reader, u64)>,
    /// The last sequence number of each host, and whether its connection was closed once.
    seen: BTreeMap<HostId, (u64, bool)>,
    frames: u64,
}

struct Started {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Little>,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn start(authority: &Authority, manner: Manner) -> Started {
    let subject = Subject { role: Role::Broker, host: HostId(1) };
    let identity = authority.issue(&subject, now_s(), 3600).unwrap();
    let bind = (Ipv4Addr::LOCALHOST, 0).into();
    let config = SocketConfig { bind, offload: Offload::Auto, batch: 8, kernel_bytes: 1 << 20 };
    let socket = Socket::bind(&config).unwrap();
    let address = socket.local_addr().unwrap();
    let link = Link::new(&LinkConfig {
        identity: Some(identity),
        side: Side::Broker,
        connections_max: 100,
        whole_datagrams: socket.keeps_datagrams_whole(),
        wall_s: now_s(),
        seed: None,
        accept: None,
    })
    .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (readers, seen) = (BTreeMap::new(), BTreeMap::new());
    let mut little = Little { link, socket, manner, readers, seen, frames: 0 };
    let thread = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let now = Instant::now();
            little.socket.receive(now, &mut little.link).unwrap();
            little.link.on_timeout(now);
            while let Some(event) = little.link.poll() {
                if let Event::Readable { conn, stream } = event {
                    little.read(now, conn, stream);
                }
            }
            little.socket.transmit(now, &mut little.link);
            thread::sleep(Duration::from_millis(1));
        }
        little
    });
    Started { address, stop, thread }
}

impl Little {
    fn read(&mut self, now: Instant, conn: ConnId, stream: StreamId) {
        let (reader, _) = self.readers.entry((conn, stream)).or_default();
        loop {
            match self.link.recv(conn, stream, reader) {
                Ok(Received::More) => {}
                Ok(_) => break,
                // An event from before the connection was closed here.
                Err(_) => return,
            }
        }
        let mut answer = None;
        loop {
            let (reader, count) = self.readers.get_mut(&(conn, stream)).unwrap();
            match reader.pull().unwrap() {
                None => break,
                Some(Incoming::Control(message)) => {
                    if let Message::Hello(hello) = *message {
                        let stored_seq = self.seen.entry(HostId(hello.host)).or_default().0;
                        let welcome = Message::Welcome { stored_seq, version: "test".into() };
                        let _ = self.link.send(conn, stream, &mut [encode(&welcome)]);
                    }
                }
                Some(Incoming::Frame(bytes)) => {
                    *count += 1;
                    let header = frame::open(&bytes).unwrap().header;
                    let (last, closed) = self.seen.get_mut(&header.host).unwrap();
                    if self.manner == Manner::ClosesOnce && 2 < *count && !*closed {
                        *closed = true;
                        return self.link.close(now, conn, "a test of reconnecting");
                    }
                    if header.seq.0 <= *last {
                        continue; // Sent again.
                    }
                    assert_eq!(header.seq.0, *last + 1, "a hole in the sequence");
                    *last += 1;
                    self.frames += 1;
                    answer = Some(Message::Ack { boot: header.boot.0, seq: header.seq.0 });
                }
            }
        }
        if self.manner != Manner::Silent
            && let Some(answer) = answer
        {
            let _ = self.link.send(conn, stream, &mut [encode(&answer)]);
        }
    }
}

fn run(manner: Manner, lasting: Duration) -> (strobe_perf::run::Outcome, Little) {
    let authority = Authority::create(now_s()).unwrap();
    let Started { address, stop, thread } = start(&authority, manner);
    let wanted = Load {
        brokers: vec![address],
        agents: 10,
        shape: strobe_perf::rows::Shape::Row,
        series: 450,
        lasting,
        interval: Duration::from_millis(100),
        drain: Duration::from_secs(if manner == Manner::Silent { 1 } else { 15 }),
        broker_pid: None,
    };
    let outcome = load(&wanted, hosts(&authority, 10).unwrap()).unwrap();
    stop.store(true, Ordering::Relaxed);
    (outcome, thread.join().unwrap())
}

#[test]
fn every_frame_is_made_once_and_acknowledged() {
    let (outcome, little) = run(Manner::AcksAll, Duration::from_secs(1));
    assert_eq!(outcome.lost, 0);
    assert_eq!(outcome.tally.acked, outcome.tally.made);
    assert_eq!(little.frames, outcome.tally.made);
    // 10 hosts × 10 ticks × 2 sections, a tick more or less at the end.
    assert!((180..=220).contains(&outcome.tally.made), "{outcome:?}");
    assert_eq!(outcome.tally.ack_us.len(), outcome.tally.made);
    assert_eq!((outcome.tally.closed, outcome.tally.refused), (0, 0));
}

#[test]
fn a_lost_connection_loses_no_frame() {
    let (outcome, little) = run(Manner::ClosesOnce, Duration::from_secs(2));
    assert_eq!(outcome.lost, 0, "{outcome:?}");
    assert_eq!(outcome.tally.closed, 10);
    assert!(0 < outcome.tally.resent);
    assert_eq!(little.frames, outcome.tally.made);
    assert_eq!(outcome.tally.reasons, ["closed by the peer: a test of reconnecting"]);
}

#[test]
fn a_broker_that_acknowledges_nothing_is_found_out() {
    let (outcome, _) = run(Manner::Silent, Duration::from_millis(500));
    assert_eq!((outcome.tally.acked, outcome.lost), (0, outcome.tally.made));
}
