//! A broker on loopback and an agent made of the bare link: enrol, hello, frames, acknowledgements,
//! restarts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use bytes::Bytes;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use strobe_broker::config::KEYS;
use strobe_broker::store::{Limits, MatchOp, Matcher, Scratch, TimeRange};
use strobe_broker::{Broker, Config, Update, control};
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::link::{
    Alpn, ConnId, Dial, Event, Link, LinkConfig, Offload, Progress, Side, Socket, SocketConfig,
    StreamId,
};
use strobe_wire::message::{ApiRequest, Hello, Incoming, Message, Reader, encode, frame_prefix};
use strobe_wire::pki::{Identity, Token, request};
use strobe_wire::schema::{Column, Kind, Labels, Schema};
use strobe_wire::settings::Settings;

const HOST: HostId = HostId(0xabc);

#[expect(clippy::disallowed_methods, reason = "a test on real sockets reads the clock here")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a test on real sockets reads the clock here")]
fn wall_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

struct Peer {
    link: Link,
    socket: Socket,
    conn: ConnId,
    stream: StreamId,
    reader: Reader,
    closed: Option<String>,
}

impl Peer {
    fn dial(broker: SocketAddr, identity: Option<Identity>, dial: &Dial) -> Self {
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

    fn send(&mut self, bytes: Bytes) {
        let mut chunks = [bytes];
        while !chunks[0].is_empty() {
            self.link.send(self.conn, self.stream, &mut chunks).unwrap();
            turn(&mut self.socket, &mut self.link);
        }
    }

    fn frame(&mut self, frame: &[u8]) {
        self.send(Bytes::copy_from_slice(&frame_prefix(frame.len())));
        self.send(Bytes::copy_from_slice(frame));
    }

    /// The next message; `None` when the connection was closed or `wait` is over.
    fn message(&mut self, wait: Duration) -> Option<Message> {
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

    fn acked(&mut self, wanted: u64) {
        loop {
            match self.message(Duration::from_secs(5)) {
                Some(Message::Ack { boot: 1, seq }) if wanted <= seq => return,
                Some(Message::Ack { .. }) => {}
                other => panic!("{other:?} instead of an Ack to {wanted}: {:?}", self.closed),
            }
        }
    }

    /// Hello, welcome, schema.
    fn begin(broker: &Broker, identity: &Identity) -> (Self, u64) {
        let dial = Dial::With(Alpn::Agent);
        let mut peer = Self::dial(broker.quic_addr(), Some(identity.clone()), &dial);
        peer.send(encode(&Message::Hello(hello())));
        let Some(Message::Welcome { stored_seq, .. }) = peer.message(Duration::from_secs(5)) else {
            panic!("no welcome: {:?}", peer.closed)
        };
        peer.send(encode(&Message::Schema(schema())));
        (peer, stored_seq)
    }
}

fn turn(socket: &mut Socket, link: &mut Link) {
    link.on_timeout(now());
    while socket.transmit(now(), link) == Progress::More {}
    while socket.receive(now(), link).unwrap() == Progress::More {}
    while socket.transmit(now(), link) == Progress::More {}
    std::thread::yield_now();
}

fn dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("strobe-session-{name}-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    dir
}

fn start(dir: &Path) -> Broker {
    let args = ["--dir", dir.to_str().unwrap(), "--broker-listen", "127.0.0.1:0"];
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    let settings = Settings::load(KEYS, None, &|_| None, &args).unwrap();
    Broker::start(Config::of(&settings, None, false).unwrap()).unwrap()
}

fn enrol(broker: &Broker, token: &Token) -> Result<Identity, String> {
    let dial = Dial::Enrol { fingerprint: token.fingerprint };
    let mut peer = Peer::dial(broker.quic_addr(), None, &dial);
    let (key_der, csr) = request().unwrap();
    let (secret, role) = (token.secret.to_vec(), "agent".to_owned());
    peer.send(encode(&Message::Enrol { secret, host: HOST.0, role, csr }));
    match peer.message(Duration::from_secs(5)) {
        Some(Message::Enrolled { certificate, ca }) => {
            Ok(Identity { key_der, certificate_der: certificate, ca_der: ca })
        }
        Some(Message::Refused { why }) => Err(why),
        other => panic!("{other:?}: {:?}", peer.closed),
    }
}

fn hello() -> Hello {
    Hello {
        host: HOST.0,
        boot: 1,
        instance: "a".into(),
        job: "node".into(),
        version: "0.1.0".into(),
        interval_ms: 1000,
        ..Hello::default()
    }
}

fn schema() -> Schema {
    let column =
        |name: &str| Column { name: name.into(), labels: Labels::default(), kind: Kind::Float };
    Schema { section: "host".into(), columns: vec![column("x"), column("y")] }
}

fn row(seq: u64, time_ms: i64) -> Vec<u8> {
    let header = Header {
        kind: FrameKind::Row,
        host: HOST,
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

/// Times of series `x`, as a query sees them.
fn times(broker: &Broker) -> Vec<i64> {
    let limits = Limits { series_max: 100, samples_max: 100_000 };
    let range = TimeRange { start_ms: 0, end_ms: i64::MAX };
    let matcher = Matcher { name: "__name__".into(), op: MatchOp::Equal, value: "x".into() };
    let mut out = Vec::new();
    for part in broker.store().select(&[matcher], range, &limits).unwrap() {
        let mut visit = |labels: &Labels, times: &[i64], _: &[f64]| {
            assert_eq!((labels.value("job"), labels.value("instance")), (Some("node"), Some("a")));
            out.extend_from_slice(times);
            Ok(())
        };
        broker.store().scan(&part, range, &mut Scratch::new(&limits), &mut visit).unwrap();
    }
    out
}

fn operate(broker_dir: &Path, method: &str, path: &str, query: &str) -> (u16, String) {
    let request = ApiRequest {
        method: method.into(),
        path: path.into(),
        query: query.into(),
        ..ApiRequest::default()
    };
    let answer = control::ask(broker_dir, request, Duration::from_secs(5)).unwrap();
    (answer.status, String::from_utf8(answer.body).unwrap())
}

#[test]
fn what_is_acknowledged_is_there_once_after_a_restart() {
    let dir = dir("restart");
    let broker = start(&dir);
    let listening = broker.subscribe();
    let identity = enrol(&broker, &broker.enrolment_token(Duration::from_secs(60)).unwrap());
    let identity = identity.unwrap();
    let base = wall_ms() - 60_000;
    let (mut agent, stored) = Peer::begin(&broker, &identity);
    assert_eq!(stored, 0);
    for seq in 1..=20 {
        agent.frame(&row(seq, base + i64::try_from(seq).unwrap() * 1000));
    }
    agent.acked(20);
    let wanted: Vec<i64> = (1..=20).map(|n| base + n * 1000).collect();
    assert_eq!(times(&broker), wanted);
    let updates: Vec<_> =
        std::iter::from_fn(|| listening.recv_timeout(Duration::from_millis(200))).collect();
    assert!(matches!(updates.first(), Some(Update::Host(_))), "{updates:?}");
    let frames = updates.iter().filter(|u| matches!(u, Update::Frame(_))).count();
    assert_eq!(frames, 20);
    // The acknowledgement was lost: the agent comes back and sends half of it again.
    drop(agent);
    let (mut agent, stored) = Peer::begin(&broker, &identity);
    assert_eq!(stored, 20);
    for seq in 11..=25 {
        agent.frame(&row(seq, base + i64::try_from(seq).unwrap() * 1000));
    }
    agent.acked(25);
    assert_eq!(broker.store().counts().samples, 2 * 25, "nothing is stored twice");
    broker.stop();
    drop(broker);

    let broker = start(&dir);
    let wanted: Vec<i64> = (1..=25).map(|n| base + n * 1000).collect();
    assert_eq!(times(&broker), wanted);
    let (mut agent, stored) = Peer::begin(&broker, &identity);
    assert_eq!(stored, 25);
    for seq in 24..=26 {
        agent.frame(&row(seq, base + i64::try_from(seq).unwrap() * 1000));
    }
    agent.acked(26);
    let wanted: Vec<i64> = (1..=26).map(|n| base + n * 1000).collect();
    assert_eq!(times(&broker), wanted);
    let (status, hosts) = operate(&dir, "GET", "/api/strobe/v1/hosts", "");
    assert!(status == 200 && hosts.contains(r#""state":"fresh""#), "{hosts}");
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_token_is_good_once_and_only_for_agents_and_dashboards() {
    let dir = dir("token");
    let broker = start(&dir);
    let (status, text) = operate(&dir, "POST", "/api/strobe/v1/tokens", "lifetime_ms=60000");
    assert_eq!(status, 200, "{text}");
    let token: Token = text.trim().parse().unwrap();
    assert!(enrol(&broker, &token).is_ok());
    let replay = enrol(&broker, &token).unwrap_err();
    assert!(replay.contains("used before"), "{replay}");
    let guess = Token { secret: [7; 32], ..token };
    assert!(enrol(&broker, &guess).unwrap_err().contains("not known"));
    let (status, _) = operate(&dir, "POST", "/api/strobe/v1/tokens", "lifetime_ms=1");
    assert_eq!(status, 422);
    let (_, metrics) = operate(&dir, "GET", "/metrics", "");
    assert!(metrics.contains("strobe_broker_enrolled_total"), "{metrics}");
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

/// Closed at once, refused with the reason, after a restart too; a token lets it in again.
#[test]
fn a_revoked_host_is_out_until_it_enrols_anew() {
    let dir = dir("revoked");
    let broker = start(&dir);
    let token = || broker.enrolment_token(Duration::from_secs(60)).unwrap();
    let (first, other) = (token(), token());
    let identity = enrol(&broker, &first).unwrap();
    let (mut agent, _) = Peer::begin(&broker, &identity);
    let (_, hosts) = operate(&dir, "GET", "/api/strobe/v1/hosts", "");
    assert!(hosts.contains(r#""certificate_expires_s":1"#), "{hosts}");
    assert_eq!(operate(&dir, "POST", "/api/strobe/v1/revoke", "host=nobody").0, 404);
    let (status, said) = operate(&dir, "POST", "/api/strobe/v1/revoke", &format!("host={HOST}"));
    assert!(status == 200 && said.contains("revoked"), "{said}");
    assert_eq!(agent.message(Duration::from_secs(5)), None);
    let why = agent.closed.unwrap_or_default();
    assert!(why.contains("revoked by the operator"), "{why}");
    let (_, hosts) = operate(&dir, "GET", "/api/strobe/v1/hosts", "");
    assert!(hosts.contains(r#""revoked":true"#), "{hosts}");
    broker.stop();
    drop(broker);

    let broker = start(&dir);
    let dial = Dial::With(Alpn::Agent);
    let mut agent = Peer::dial(broker.quic_addr(), Some(identity), &dial);
    agent.send(encode(&Message::Hello(hello())));
    assert_eq!(agent.message(Duration::from_secs(5)), None);
    let why = agent.closed.unwrap_or_default();
    assert!(why.contains("revoked by the operator"), "{why}");
    let (_, metrics) = operate(&dir, "GET", "/metrics", "");
    assert!(metrics.contains("strobe_broker_certificate_expiry_seconds 1"), "{metrics}");
    let identity = enrol(&broker, &other).unwrap();
    drop(Peer::begin(&broker, &identity));
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_liar_is_closed_and_told_why() {
    let dir = dir("liar");
    let broker = start(&dir);
    let token = broker.enrolment_token(Duration::from_secs(60)).unwrap();
    let identity = enrol(&broker, &token).unwrap();
    let dial = Dial::With(Alpn::Agent);
    let mut peer = Peer::dial(broker.quic_addr(), Some(identity), &dial);
    peer.send(encode(&Message::Hello(Hello { host: 99, ..hello() })));
    assert_eq!(peer.message(Duration::from_secs(5)), None);
    let why = peer.closed.unwrap_or_default();
    assert!(why.contains("certificate"), "{why}");
    assert!(times(&broker).is_empty());
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

/// A stop that knocked at the control socket by its name waited for ever once the name was gone.
#[test]
fn a_broker_stops_though_its_directory_is_gone() {
    let dir = dir("gone");
    let broker = start(&dir);
    std::fs::remove_dir_all(&dir).unwrap();
    let (done, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        broker.stop();
        done.send(()).unwrap();
    });
    stopped.recv_timeout(Duration::from_secs(20)).expect("it stops");
}
