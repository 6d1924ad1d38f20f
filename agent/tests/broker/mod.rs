//! A broker that keeps what it hears in memory.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use strobe_agent::config::{Config, KEYS};
use strobe_wire::frame::{self, Payload};
use strobe_wire::ids::{HostId, SchemaId};
use strobe_wire::link::{
    ConnId, Event, Link, LinkConfig, Offload, Progress, Received, Side, Socket, SocketConfig,
    StreamId,
};
use strobe_wire::message::{Hello, Incoming, Message, Reader, encode};
use strobe_wire::pki::{Authority, Identity, Role, Subject, Token};
use strobe_wire::settings::Settings;

/// What a stream is about.
#[derive(Default)]
pub(crate) struct Conversation {
    pub(crate) reader: Reader,
    pub(crate) schemas: HashSet<SchemaId>,
    /// It is a spool's, and has come so far.
    pub(crate) replayed: Option<(u128, u64)>,
    /// The first was said to come behind what is in the spool.
    pub(crate) beside: bool,
    pub(crate) last: u64,
}

pub(crate) struct Broker {
    pub(crate) ca: Authority,
    pub(crate) identity: Identity,
    pub(crate) token: Token,
    pub(crate) socket: Socket,
    pub(crate) link: Link,
    pub(crate) poll: mio::Poll,
    pub(crate) conversations: BTreeMap<(ConnId, StreamId), Conversation>,
    pub(crate) acknowledges: bool,
    pub(crate) redirect: Option<String>,
    pub(crate) hellos: Vec<Hello>,
    /// By sequence number: the event's name, or the row's section.
    pub(crate) stored: BTreeMap<u64, String>,
    pub(crate) sections: BTreeMap<SchemaId, String>,
    /// What came of spools, in the order it came.
    pub(crate) replayed: Vec<(u128, u64, String)>,
    pub(crate) repeated: u64,
    /// A connection's certificate is asked about after this many frames.
    pub(crate) renew_after: Option<u64>,
    pub(crate) renewed: u64,
    /// When the certificates of the connections end, in the order of the connections.
    pub(crate) ends_s: Vec<u64>,
}

impl Broker {
    pub(crate) fn new() -> Self {
        let ca = Authority::create(wall_s()).unwrap();
        let subject = Subject { role: Role::Broker, host: HostId(1) };
        let identity = ca.issue(&subject, wall_s(), 3600).unwrap();
        let token = Token::create(ca.fingerprint()).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let (socket, link, poll) = open(&identity, any);
        Self {
            ca,
            identity,
            token,
            socket,
            link,
            poll,
            conversations: BTreeMap::new(),
            acknowledges: true,
            redirect: None,
            hellos: Vec::new(),
            stored: BTreeMap::new(),
            sections: BTreeMap::new(),
            replayed: Vec::new(),
            repeated: 0,
            renew_after: None,
            renewed: 0,
            ends_s: Vec::new(),
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Dies without a word and comes back on the same port.
    pub(crate) fn restart(&mut self) {
        let addr = self.addr();
        // The port is free only once the old socket is closed.
        let any = "127.0.0.1:0".parse().unwrap();
        (self.socket, self.link, self.poll) = open(&self.identity, any);
        (self.socket, self.link, self.poll) = open(&self.identity, addr);
        self.conversations.clear();
    }

    #[expect(clippy::disallowed_methods, reason = "a real agent runs on the real clock")]
    pub(crate) fn serve(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        let mut events = mio::Events::with_capacity(4);
        while !done(self) {
            assert!(start.elapsed() < Duration::from_secs(40), "stored: {:?}", self.stored);
            self.poll.poll(&mut events, Some(Duration::from_millis(5))).unwrap();
            let now = Instant::now();
            while self.socket.receive(now, &mut self.link).unwrap() == Progress::More {}
            self.link.on_timeout(now);
            while let Some(event) = self.link.poll() {
                match event {
                    Event::Readable { conn, stream } => self.hear(conn, stream),
                    Event::Connected { expires_s, .. } => self.ends_s.extend(expires_s),
                    _ => {}
                }
            }
            self.socket.transmit(now, &mut self.link);
        }
    }

    pub(crate) fn hear(&mut self, conn: ConnId, stream: StreamId) {
        let mut of = self.conversations.remove(&(conn, stream)).unwrap_or_default();
        while self.link.recv(conn, stream, &mut of.reader) == Ok(Received::More) {}
        let mut answers = Vec::new();
        while let Some(incoming) = of.reader.pull().unwrap() {
            match incoming {
                Incoming::Control(message) => answers.extend(self.control(*message, &mut of)),
                Incoming::Frame(bytes) => self.frame(&bytes, &mut of),
            }
        }
        if let (true, Some((boot, seq))) = (self.acknowledges, of.replayed) {
            answers.push(Message::Ack { boot, seq });
        } else if self.acknowledges
            && let Some(hello) = self.hellos.last()
        {
            let seq = if of.beside { of.last } else { self.through() };
            answers.push(Message::Ack { boot: hello.boot, seq });
        }
        let due = self.renew_after.filter(|_| !answers.is_empty());
        if due.is_some_and(|after| (self.renewed + 1) * after < self.through()) {
            answers.push(Message::RenewDue);
        }
        for answer in answers {
            let bytes = encode(&answer);
            let length = bytes.len();
            // An agent that stops may have closed the connection by now.
            let sent = self.link.send(conn, stream, &mut [bytes]);
            assert!(sent.is_err() || sent == Ok(length), "{sent:?}");
        }
        self.conversations.insert((conn, stream), of);
    }

    pub(crate) fn control(&mut self, message: Message, of: &mut Conversation) -> Option<Message> {
        match message {
            Message::Enrol { secret, host, role, csr } => {
                if secret != self.token.secret {
                    return Some(Message::Refused { why: "the token has expired".to_owned() });
                }
                let subject = Subject { role: role.parse().unwrap(), host: HostId(host) };
                let certificate = self.ca.sign(&csr, &subject, wall_s(), 3600).unwrap();
                Some(Message::Enrolled { certificate, ca: self.ca.certificate_der().to_vec() })
            }
            Message::Renew { csr } => {
                self.renewed += 1;
                let host = HostId(self.hellos.last()?.host);
                let subject = Subject { role: Role::Agent, host };
                let life_s = 3600 + self.renewed;
                let certificate = self.ca.sign(&csr, &subject, wall_s(), life_s).unwrap();
                Some(Message::Enrolled { certificate, ca: self.ca.certificate_der().to_vec() })
            }
            Message::Hello(_) if self.redirect.is_some() => {
                Some(Message::Redirect { broker: self.redirect.clone()? })
            }
            Message::Hello(hello) => {
                self.hellos.push(hello);
                let stored_seq = self.through();
                Some(Message::Welcome { stored_seq, version: "test".to_owned() })
            }
            Message::Schema(schema) => {
                schema.check().unwrap();
                assert!(of.schemas.insert(schema.id()), "a schema goes once a connection");
                self.sections.insert(schema.id(), schema.section);
                None
            }
            Message::Resume { acknowledged_seq, .. } => {
                assert!(acknowledged_seq <= self.through(), "nobody acknowledged that");
                None
            }
            Message::Configured { running: 0, proven: true, refused: 0, .. } => None,
            Message::Spooled { .. } => {
                of.beside = true;
                None
            }
            Message::Replay => {
                of.replayed = Some((0, 0));
                None
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn frame(&mut self, bytes: &[u8], of: &mut Conversation) {
        let frame = frame::open(bytes).unwrap();
        let schemas = &of.schemas;
        let hello = self.hellos.last().unwrap();
        let (host, boot, seq) = (frame.header.host.0, frame.header.boot.0, frame.header.seq.0);
        assert_eq!(host, hello.host);
        assert!(of.replayed.is_some() || boot == hello.boot);
        let what = match frame.payload {
            Payload::Row(_) | Payload::Burst(_) => {
                assert!(schemas.contains(&frame.header.schema), "the schema goes first");
                self.sections[&frame.header.schema].clone()
            }
            Payload::Event(event) => event.name.to_string(),
            Payload::Loss(_) => "loss".to_owned(),
        };
        if let Some(before) = &mut of.replayed {
            *before = (boot, seq);
            self.replayed.push((boot, seq, what.clone()));
            if boot != hello.boot {
                return;
            }
        } else {
            of.last = seq;
        }
        if self.stored.insert(seq, what).is_some() {
            self.repeated += 1;
        }
    }

    /// The last number without a hole before it.
    pub(crate) fn through(&self) -> u64 {
        (1..).zip(self.stored.keys()).take_while(|(wanted, seq)| wanted == *seq).count() as u64
    }
}

pub(crate) fn open(identity: &Identity, bind: SocketAddr) -> (Socket, Link, mio::Poll) {
    let config = SocketConfig { bind, offload: Offload::Auto, batch: 4, kernel_bytes: 0 };
    let mut socket = Socket::bind(&config).unwrap();
    let link = Link::new(&LinkConfig {
        identity: Some(identity.clone()),
        side: Side::Broker,
        connections_max: 100,
        whole_datagrams: socket.keeps_datagrams_whole(),
        wall_s: wall_s(),
        seed: None,
        accept: None,
    })
    .unwrap();
    let poll = mio::Poll::new().unwrap();
    poll.registry().register(socket.source(), mio::Token(0), mio::Interest::READABLE).unwrap();
    (socket, link, poll)
}

pub(crate) fn wall_s() -> u64 {
    u64::try_from(strobe_agent::clock::wall_ns() / 1_000_000_000).unwrap()
}

pub(crate) fn fresh_dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("strobe-uplink-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

pub(crate) fn config(dir: &std::path::Path, broker: SocketAddr, token: Option<&Token>) -> Config {
    let mut args = vec!["--interval=100ms".to_owned(), "--ring-slots=128".to_owned()];
    args.push(format!("--dir={}", dir.display()));
    args.push(format!("--broker={broker}"));
    args.extend(token.map(|token| format!("--token={token}")));
    let settings = Settings::load(KEYS, None, &|_| None, &args).unwrap();
    Config::new(&settings, &|_| None).unwrap()
}
