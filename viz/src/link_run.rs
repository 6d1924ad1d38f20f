//! The loop that keeps the link to a broker: enrols once, connects, subscribes, carries calls.
//!
//! One bidirectional stream a call and one for the subscription. When the connection ends, waiting
//! calls are answered with 502 and it connects again, after a pause that doubles up to 5 s.

use bytes::Bytes;
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use strobe_wire::ids::HostId;
use strobe_wire::link::{
    Alpn, ConnId, Dial, Event, Link, LinkConfig, LinkError, Offload, Progress, Side, Socket,
    SocketConfig, StreamId,
};
use strobe_wire::message::{Incoming, Message, Reader, encode};
use strobe_wire::pki::{self, Identity, PkiError, Role, Subject};

use crate::backend::{Update, unavailable};
use crate::remote::{Call, Remote, RemoteEnd, pair};

/// What the link needs.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// `host:port` of the broker.
    pub broker: String,
    /// Enrolment token; needed while there is no identity in `dir`.
    pub token: Option<pki::Token>,
    /// Where the identity is kept.
    pub dir: PathBuf,
}

/// The running link. Dropping it ends it.
#[derive(Debug)]
pub struct BrokerLink {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// How enrolling ended; nothing comes if there was an identity already.
    enrolment: Option<Receiver<Enrolment>>,
}

/// How far this dashboard is known to the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enrolment {
    /// It has its certificate.
    Done,
    /// The broker has not answered yet.
    Pending,
    /// The broker said no, for a reason that is logged: it will not be asked again.
    Refused,
}

/// Why there can be no link.
#[derive(Debug, thiserror::Error)]
pub enum BrokerLinkError {
    /// No identity and no way to one.
    #[error(
        "this dashboard has not enrolled yet: give --token, as printed by `strobe token create`"
    )]
    NoToken,
    /// Keys.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The system.
    #[error("the link to the broker: {0}")]
    Io(#[from] io::Error),
    /// The broker said no.
    #[error("the broker refused to enrol this dashboard: {0}")]
    Refused(String),
}

impl BrokerLink {
    /// Starts the loop; the other end is the backend. Connecting goes on in the background.
    ///
    /// # Errors
    /// It could never work this way.
    pub fn start(settings: LinkSettings) -> Result<(Self, Remote), BrokerLinkError> {
        let identity = Identity::load(&settings.dir)?;
        if identity.is_none() && settings.token.is_none() {
            return Err(BrokerLinkError::NoToken);
        }
        let (remote, end) = pair();
        let (told, enrolment) = sync_channel(1);
        let enrolment = identity.is_none().then_some(enrolment);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut poll = Poll::new()?;
        end.wake_by(Waker::new(poll.registry(), WAKER)?);
        let run = move || {
            let mut identity = identity;
            let mut pause = PAUSE_MIN;
            while !stopped.load(Ordering::Acquire) {
                let began = clock();
                let stranger = identity.is_none();
                match session(&settings, &mut identity, &mut poll, &end, &stopped) {
                    Ok(_) if stopped.load(Ordering::Acquire) => return,
                    Ok(why) if stranger && identity.is_some() => log::info!("{why}"),
                    Ok(why) => log::warn!("the link to {} ended: {why}", settings.broker),
                    Err(error @ BrokerLinkError::Refused(_)) => {
                        // Nobody may wait for it any more.
                        let _ = told.try_send(Enrolment::Refused);
                        return log::error!("{error}");
                    }
                    Err(error) => log::warn!("the broker at {}: {error}", settings.broker),
                }
                if stranger && identity.is_some() {
                    let _ = told.try_send(Enrolment::Done);
                }
                end.connected(false);
                if began.elapsed() > PAUSE_MAX {
                    pause = PAUSE_MIN;
                }
                std::thread::park_timeout(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
        };
        let thread = std::thread::Builder::new().name("viz-link".to_owned()).spawn(run)?;
        Ok((Self { stop, thread: Some(thread), enrolment }, remote))
    }

    /// How enrolling stands, now or within `wait`.
    #[must_use]
    pub fn enrolment(&self, wait: Duration) -> Enrolment {
        let Some(enrolment) = &self.enrolment else { return Enrolment::Done };
        enrolment.recv_timeout(wait).unwrap_or(Enrolment::Pending)
    }
}

impl Drop for BrokerLink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                log::error!("the link's thread panicked");
            }
        }
    }
}

/// One connection, from the first datagram to the last.
struct Session<'a> {
    link: Link,
    conn: ConnId,
    end: &'a RemoteEnd,
    streams: HashMap<StreamId, Stream>,
    over: Option<String>,
    enrolling: Option<Enrolling>,
}

struct Enrolling {
    key_der: Vec<u8>,
    csr_der: Vec<u8>,
    token: pki::Token,
    identity: Option<Identity>,
    refused: Option<String>,
}

struct Stream {
    out: Bytes,
    reader: Reader,
    call: Option<Call>,
}

fn session(
    settings: &LinkSettings,
    identity: &mut Option<Identity>,
    poll: &mut Poll,
    end: &RemoteEnd,
    stop: &AtomicBool,
) -> Result<String, BrokerLinkError> {
    let broker = settings.broker.to_socket_addrs()?.next();
    let broker = broker.ok_or_else(|| io::Error::other("the name has no address"))?;
    let any: SocketAddr = match broker {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let config =
        SocketConfig { bind: any, offload: Offload::Auto, batch: 8, kernel_bytes: 1 << 20 };
    let mut socket = Socket::bind(&config)?;
    let both = Interest::READABLE | Interest::WRITABLE;
    poll.registry().register(socket.source(), SOCKET, both)?;
    let mut link = Link::new(&LinkConfig {
        identity: identity.clone(),
        side: Side::Viz,
        connections_max: 4,
        whole_datagrams: socket.keeps_datagrams_whole(),
        wall_s: wall_s(),
        seed: None,
    })?;
    let (dial, enrolling) = match (&identity, settings.token) {
        (Some(_), _) => (Dial::With(Alpn::Viz), None),
        (None, None) => return Err(BrokerLinkError::NoToken),
        (None, Some(token)) => {
            let (key_der, csr_der) = pki::request()?;
            let enrolling = Enrolling { key_der, csr_der, token, identity: None, refused: None };
            (Dial::Enrol { fingerprint: token.fingerprint }, Some(enrolling))
        }
    };
    let conn = link.connect(clock(), broker, &dial)?;
    let mut session = Session { link, conn, end, streams: HashMap::new(), over: None, enrolling };
    session.run(poll, &mut socket, stop)?;
    session.abandon();
    if let Some(enrolling) = session.enrolling {
        if let Some(why) = enrolling.refused {
            return Err(BrokerLinkError::Refused(why));
        }
        if let Some(new) = enrolling.identity {
            new.save(&settings.dir)?;
            *identity = Some(new);
            return Ok("enrolled; connecting anew with the certificate".to_owned());
        }
    }
    Ok(session.over.unwrap_or_default())
}

impl Session<'_> {
    fn run(&mut self, poll: &mut Poll, socket: &mut Socket, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(16);
        loop {
            let now = clock();
            self.link.set_wall_s(wall_s());
            let received = socket.receive(now, &mut self.link)?;
            self.link.on_timeout(now);
            while let Some(event) = self.link.poll() {
                self.told(&event);
            }
            self.take_calls();
            let stopping = stop.load(Ordering::Acquire);
            if stopping && self.over.is_none() {
                self.link.close(now, self.conn, "this dashboard stops");
                self.over = Some("stopped".to_owned());
            }
            let sent = socket.transmit(now, &mut self.link);
            if self.over.is_some() {
                return Ok(());
            }
            let more = received == Progress::More || sent == Progress::More;
            let until = self.link.timeout().map(|at| at.saturating_duration_since(now));
            let wait = if more { Duration::ZERO } else { until.unwrap_or(WAIT).min(WAIT) };
            match poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
    }

    fn told(&mut self, event: &Event) {
        match event {
            Event::Connected { conn, .. } if *conn == self.conn => {
                let first = match &self.enrolling {
                    None => Message::Subscribe,
                    Some(enrolling) => Message::Enrol {
                        secret: enrolling.token.secret.to_vec(),
                        host: 0,
                        role: Role::Viz.word().to_owned(),
                        csr: enrolling.csr_der.clone(),
                    },
                };
                match self.link.open(self.conn) {
                    Some(stream) => self.begin(stream, &first, None),
                    None => self.over = Some("the broker allows no stream".to_owned()),
                }
                self.end.connected(self.enrolling.is_none());
            }
            Event::Closed { conn, why } if *conn == self.conn => {
                let foreign = why.to_string().contains("UnknownIssuer");
                let hint = if foreign { FOREIGN } else { "" };
                self.over = Some(format!("{why}{hint}"));
            }
            Event::Readable { stream, .. } => self.read(*stream),
            Event::Writable { stream, .. } => self.write(*stream),
            Event::Connected { .. }
            | Event::Closed { .. }
            | Event::Opened { .. }
            | Event::Room { .. } => {}
        }
    }

    /// Sends a new stream's one message.
    fn begin(&mut self, id: StreamId, message: &Message, call: Option<Call>) {
        let stream = Stream { out: encode(message), reader: Reader::default(), call };
        self.streams.insert(id, stream);
        self.write(id);
    }

    fn take_calls(&mut self) {
        if self.enrolling.is_some() {
            return;
        }
        while let Some(call) = self.end.call() {
            match self.link.open(self.conn) {
                Some(stream) => {
                    let message = Message::ApiRequest(call.request.clone());
                    self.begin(stream, &message, Some(call));
                }
                None => call.answer(unavailable(503, "too many requests are with the broker")),
            }
        }
    }

    fn write(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.out.is_empty() {
            return;
        }
        let mut chunks = [std::mem::take(&mut stream.out)];
        let sent = self.link.send(self.conn, id, &mut chunks);
        let [left] = chunks;
        match sent {
            Ok(_) if left.is_empty() && stream.call.is_some() => self.link.finish(self.conn, id),
            Ok(_) => stream.out = left,
            Err(error) => self.end_stream(id, &error.to_string()),
        }
    }

    fn read(&mut self, id: StreamId) {
        loop {
            let Some(stream) = self.streams.get_mut(&id) else { return };
            let received = match self.link.recv(self.conn, id, &mut stream.reader) {
                Ok(received) => received,
                Err(error) => return self.end_stream(id, &error.to_string()),
            };
            loop {
                let Some(stream) = self.streams.get_mut(&id) else { return };
                match stream.reader.pull() {
                    Ok(Some(incoming)) => self.said(id, incoming),
                    Ok(None) => break,
                    Err(error) => {
                        self.link.reset(self.conn, id);
                        return self.end_stream(id, &error.to_string());
                    }
                }
            }
            match received {
                strobe_wire::link::Received::More => {}
                strobe_wire::link::Received::Blocked => return,
                strobe_wire::link::Received::Finished => {
                    return self.end_stream(id, "the broker ended the stream");
                }
            }
        }
    }

    fn said(&mut self, id: StreamId, incoming: Incoming) {
        let message = match incoming {
            Incoming::Frame(bytes) => return self.end.update(Update::Frame(bytes)),
            Incoming::Control(message) => *message,
        };
        match message {
            Message::Host(info) => self.end.update(Update::Host(info)),
            Message::Schema(schema) => self.end.update(Update::Schema(Arc::new(schema))),
            Message::ApiResponse(response) => {
                if let Some(call) = self.streams.remove(&id).and_then(|stream| stream.call) {
                    call.answer(response);
                }
            }
            Message::Enrolled { certificate, ca } => self.enrolled(certificate, ca),
            Message::Refused { why } => match &mut self.enrolling {
                Some(enrolling) => {
                    enrolling.refused = Some(why.clone());
                    self.over = Some(why);
                }
                None => self.end_stream(id, &why),
            },
            _ => self.over = Some("the broker said what only an agent hears".to_owned()),
        }
    }

    /// Only an identity that will work is kept.
    fn enrolled(&mut self, certificate_der: Vec<u8>, ca_der: Vec<u8>) {
        let Some(enrolling) = &mut self.enrolling else { return };
        if pki::fingerprint(&ca_der) != enrolling.token.fingerprint {
            self.over = Some("the broker's CA is not the token's".to_owned());
            return;
        }
        let identity = Identity { key_der: enrolling.key_der.clone(), certificate_der, ca_der };
        let wanted = Subject { role: Role::Viz, host: HostId(0) };
        match identity.subject() {
            Ok(subject) if subject.role == wanted.role => {
                enrolling.identity = Some(identity);
                self.over = Some("enrolled".to_owned());
                self.link.close(clock(), self.conn, "enrolled");
            }
            Ok(subject) => self.over = Some(format!("the certificate is for {subject:?}")),
            Err(error) => self.over = Some(error.to_string()),
        }
    }

    fn end_stream(&mut self, id: StreamId, why: &str) {
        match self.streams.remove(&id).map(|stream| stream.call) {
            Some(Some(call)) => call.answer(unavailable(502, why)),
            // The subscription: without it there is nothing to show.
            Some(None) if self.over.is_none() => self.over = Some(why.to_owned()),
            Some(None) | None => {}
        }
    }

    fn abandon(&mut self) {
        for (_, stream) in self.streams.drain() {
            if let Some(call) = stream.call {
                call.answer(unavailable(502, "the link to the broker was lost; try again"));
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the loop is where time comes from")]
fn clock() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the loop is where time comes from")]
fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What an operator can do about a certificate that our authority did not sign.
const FOREIGN: &str = " (another broker answers there than the one that made this dashboard's \
    token or certificate: check --broker and --token)";
const SOCKET: Token = Token(0);
const WAKER: Token = Token(1);
const WAIT: Duration = Duration::from_millis(250);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
