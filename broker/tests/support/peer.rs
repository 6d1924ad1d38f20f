//! An agent made of the bare link.

use bytes::Bytes;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use strobe_broker::Broker;
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::link::{
    Alpn, ConnId, Dial, Event, Link, LinkConfig, Offload, Progress, Side, Socket, SocketConfig,
    StreamId,
};
use strobe_wire::message::{Hello, Incoming, Message, Reader, encode, frame_prefix};
use strobe_wire::pki::{Identity, Token, request};
use strobe_wire::schema::{Column, Kind, Labels, Schema};

#[expect(clippy::disallowed_methods, reason = "a test on real sockets reads the clock here")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a test on real sockets reads the clock here")]
pub(crate) fn wall_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

pub(crate) struct Peer {
    link: Link,
    socket: Socket,
    conn: ConnId,
    stream: StreamId,
    reader: Reader,
    pub(crate) closed: Option<String>,
}

impl Peer {
    pub(crate) fn dial(broker: SocketAddr, identity: Option<Identity>, dial: &Dial) -> Self {
        let bind = "127.0.0.1:0".parse().unwrap();
        let config = SocketConfig { bind, offload: Offload::Off, batch: 4, kernel_bytes: 0 };
        let mut socket = Socket::bind(&config).unwrap();
        let mut link = Link::new(&LinkConfig {
            identity,
            side: Side::Agent,
            connections_max: 4,
            whole_datagrams: socket.keeps_datagrams_whole(),
            wall_s: u64::try_from(wall_ms() / 1000).unwrap(),
            seed: None,
            accept: None,
        })
        .unwrap();
        let conn = link.connect(now(), broker, dial).unwrap();
        let end = now() + Duration::from_secs(5);
        let stream = loop {
            turn(&mut socket, &mut link);
            match link.poll() {
                Some(Event::Connected { .. }) => break link.open(conn).unwrap(),
                Some(Event::Closed { why, .. }) => panic!("not connected: {why}"),
                _ => assert!(now() < end, "no handshake in 5 s"),
            }
        };
        Self { link, socket, conn, stream, reader: Reader::default(), closed: None }
    }

    pub(crate) fn send(&mut self, bytes: Bytes) {
        let mut chunks = [bytes];
        while !chunks[0].is_empty() {
            self.link.send(self.conn, self.stream, &mut chunks).unwrap();
            turn(&mut self.socket, &mut self.link);
        }
    }

    pub(crate) fn frame(&mut self, frame: &[u8]) {
        self.send(Bytes::copy_from_slice(&frame_prefix(frame.len())));
        self.send(Bytes::copy_from_slice(frame));
    }

    /// The next message; `None` when the connection was closed or `wait` is over.
    pub(crate) fn message(&mut self, wait: Duration) -> Option<Message> {
        let end = now() + wait;
        while now() < end {
            turn(&mut self.socket, &mut self.link);
            while let Some(event) = self.link.poll() {
                match event {
                    Event::Readable { .. } => {
                        let read = self.link.recv(self.conn, self.stream, &mut self.reader);
                        assert!(read.is_ok() || self.closed.is_some());
                    }
                    Event::Closed { why, .. } => self.closed = Some(why.to_string()),
                    _ => {}
                }
            }
            if let Some(Incoming::Control(message)) = self.reader.pull().unwrap() {
                return Some(*message);
            }
            if self.closed.is_some() {
                return None;
            }
        }
        None
    }

    pub(crate) fn acked(&mut self, wanted: u64) {
        loop {
            match self.message(Duration::from_secs(5)) {
                Some(Message::Ack { boot: 1, seq }) if wanted <= seq => return,
                Some(Message::Ack { .. } | Message::Brokers(_)) => {}
                other => panic!("{other:?} instead of an Ack to {wanted}: {:?}", self.closed),
            }
        }
    }

    /// Hello, welcome, schema.
    pub(crate) fn begin(broker: &Broker, identity: &Identity, hello: Hello) -> (Self, u64) {
        let dial = Dial::With(Alpn::Agent);
        let mut peer = Self::dial(broker.quic_addr(), Some(identity.clone()), &dial);
        peer.send(encode(&Message::Hello(hello)));
        let Some(Message::Welcome { stored_seq, .. }) = peer.message(Duration::from_secs(5)) else {
            panic!("no welcome: {:?}", peer.closed)
        };
        peer.send(encode(&Message::Schema(schema())));
        (peer, stored_seq)
    }
}

pub(crate) fn turn(socket: &mut Socket, link: &mut Link) {
    link.on_timeout(now());
    while socket.transmit(now(), link) == Progress::More {}
    while socket.receive(now(), link).unwrap() == Progress::More {}
    while socket.transmit(now(), link) == Progress::More {}
    std::thread::yield_now();
}

pub(crate) fn enrol(broker: &Broker, token: &Token, host: HostId) -> Result<Identity, String> {
    let dial = Dial::Enrol { fingerprint: token.fingerprint };
    let mut peer = Peer::dial(broker.quic_addr(), None, &dial);
    let (key_der, csr) = request().unwrap();
    let (secret, role) = (token.secret.to_vec(), "agent".to_owned());
    peer.send(encode(&Message::Enrol { secret, host: host.0, role, csr }));
    match peer.message(Duration::from_secs(5)) {
        Some(Message::Enrolled { certificate, ca }) => {
            Ok(Identity { key_der, certificate_der: certificate, ca_der: ca })
        }
        Some(Message::Refused { why }) => Err(why),
        other => panic!("{other:?}: {:?}", peer.closed),
    }
}

pub(crate) fn hello(host: HostId, instance: &str) -> Hello {
    Hello {
        host: host.0,
        boot: 1,
        instance: instance.into(),
        job: "node".into(),
        version: "0.1.0".into(),
        interval_ms: 1000,
        ..Hello::default()
    }
}

pub(crate) fn schema() -> Schema {
    let column =
        |name: &str| Column { name: name.into(), labels: Labels::default(), kind: Kind::Float };
    Schema { section: "host".into(), columns: vec![column("x"), column("y")] }
}

pub(crate) fn row(host: HostId, seq: u64, time_ms: i64) -> Vec<u8> {
    let header = Header {
        kind: FrameKind::Row,
        host,
        boot: BootId(1),
        seq: Seq(seq),
        wall_ns: time_ms * 1_000_000,
        boottime_ns: seq,
        schema: schema().id(),
    };
    let values = [1.0, 2.0_f64].map(f64::to_bits);
    let mut out = vec![0; FRAME_BYTES_MAX];
    let row = Row { values: &values, valid: &[3], scores: &[] };
    let length = seal_row(&mut out, &header, &row).unwrap();
    out.truncate(length);
    out
}
