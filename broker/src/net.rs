//! Everyone who is connected: agents' sessions, dashboards' requests and subscriptions, enrolments.
//!
//! A state machine around [`Link`] and [`Ingest`]: the loop in `run.rs` feeds it events, reports of
//! the writer and answers of the query pool, and takes a [`Batch`] at the end of each turn.
//!
//! ```text
//! agent stream ──frames──▶ ingest ──batch──▶ writer ──report──▶ Ack
//! viz stream ──ApiRequest──▶ query pool ──answer──▶ same stream, finished
//! viz stream ──Subscribe──▶ hub queue ──pumped──▶ same stream
//! enrol stream ──Enrol──▶ registry (token), certificates ──▶ Enrolled
//! agent, viz ◀──RenewDue── certificates ◀──Renew── ──▶ Enrolled
//! ```
//!
//! When the writer is behind or the disk is full, agents' streams are not read: QUIC's flow control
//! stops them and they keep their frames. Dashboards are answered all the same.

use crate::certificates::{CertificateCounts, Certificates, Due, Enrolment, seconds};
use crate::hub::{Hub, Subscription, Update};
use crate::ingest::{Counts, Ingest, SessionId, Verdict};
use crate::own;
use crate::registry::{BootRecord, Registry};
use crate::writer::{Batch, Item, Report};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::link::{Alpn, ConnId, Distrust, Event, Link, LinkError, Received, StreamId};
use strobe_wire::message::{
    ApiRequest, ApiResponse, Hello, Incoming, Message, Reader, encode, frame_prefix,
};
use strobe_wire::pki::Subject;

/// The network side of the broker.
pub(crate) struct Net {
    pub(crate) link: Link,
    ingest: Ingest,
    registry: Registry,
    hub: Hub,
    certificates: Certificates<Place>,
    conns: HashMap<ConnId, Conn>,
    sessions: BTreeMap<SessionId, Place>,
    streams: HashMap<Place, Stream>,
    subscribers: BTreeSet<Place>,
    readable: VecDeque<Place>,
    parked: Vec<Place>,
    items: Vec<Item>,
    touched: BTreeMap<(HostId, BootId), SessionId>,
    turns: VecDeque<Turn>,
    turn: u64,
    failures: u64,
    frames_in_flight: usize,
    storing: Storing,
    changed: BTreeSet<HostId>,
    session_next: u64,
    acks: u64,
}

/// What an event asks of the loop.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Answer this request with [`Net::answer`].
    Api(Place, ApiRequest),
}

/// A stream of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Place {
    conn: ConnId,
    stream: StreamId,
}

/// Numbers for `/metrics`.
#[derive(Clone, Debug, Default)]
pub(crate) struct NetCounts {
    pub(crate) ingest: Counts,
    pub(crate) sessions: usize,
    pub(crate) connections: usize,
    pub(crate) subscribers: usize,
    pub(crate) frames_in_flight: usize,
    pub(crate) acks: u64,
    pub(crate) certificates: CertificateCounts,
    pub(crate) handshakes_failed: u64,
    pub(crate) connections_refused: u64,
    pub(crate) storing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Storing {
    Yes,
    No,
}

#[derive(Debug)]
struct Conn {
    alpn: Alpn,
    subject: Option<Subject>,
    /// The last second of its certificate.
    expires_s: u64,
    streams: Vec<StreamId>,
}

#[derive(Debug)]
struct Stream {
    role: StreamRole,
    reader: Reader,
    out: VecDeque<Bytes>,
    end: End,
}

#[derive(Debug)]
enum StreamRole {
    /// Nothing was said yet.
    New,
    Agent(SessionId),
    /// A request is being answered.
    Asking,
    Subscriber(Subscription),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Open,
    /// Finish the stream when everything is sent.
    AfterOut,
}

/// What one turn handed to the writer.
#[derive(Debug)]
struct Turn {
    number: u64,
    frames: usize,
    reached: Vec<(HostId, BootId, SessionId, u64)>,
}

/// The parts a [`Net`] is made of.
pub(crate) struct Parts {
    pub(crate) link: Link,
    pub(crate) ingest: Ingest,
    pub(crate) registry: Registry,
    pub(crate) hub: Hub,
    pub(crate) certificates: Certificates<Place>,
}

impl Net {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { link, ingest, registry, hub, certificates } = parts;
        Self {
            link,
            ingest,
            registry,
            hub,
            certificates,
            conns: HashMap::new(),
            sessions: BTreeMap::new(),
            streams: HashMap::new(),
            subscribers: BTreeSet::new(),
            readable: VecDeque::new(),
            parked: Vec::new(),
            items: Vec::new(),
            touched: BTreeMap::new(),
            turns: VecDeque::new(),
            turn: 0,
            failures: 0,
            frames_in_flight: 0,
            storing: Storing::Yes,
            changed: BTreeSet::new(),
            session_next: 1,
            acks: 0,
        }
    }

    /// Takes every event of the link and reads what is readable; `ask` gets requests.
    pub(crate) fn advance(&mut self, now: Instant, now_ms: i64, ask: &mut dyn FnMut(Ask)) {
        self.certify(now, seconds(now_ms));
        while let Some(event) = self.link.poll() {
            self.on_event(event);
        }
        for _ in 0..self.readable.len() {
            let Some(place) = self.readable.pop_front() else { break };
            self.read(place, now, now_ms, ask);
        }
    }

    /// Whether streams wait to be read without any new event.
    pub(crate) fn is_busy(&self) -> bool {
        !self.readable.is_empty()
    }

    /// The end of a turn: what goes to the writer, if anything.
    pub(crate) fn end_turn(&mut self, now_ms: i64) -> Option<Batch> {
        let nothing = self.items.is_empty() && self.touched.is_empty();
        if nothing || TURNS_MAX <= self.turns.len() {
            return None;
        }
        self.turn += 1;
        let touched = std::mem::take(&mut self.touched);
        let mut reached = Vec::with_capacity(touched.len());
        for ((host, boot), session) in touched {
            self.registry.seen(host, now_ms);
            self.changed.insert(host);
            reached.push((host, boot, session, self.ingest.through(host, boot)));
        }
        let items = std::mem::take(&mut self.items);
        let frames = items.iter().filter(|item| matches!(item, Item::Frame(_))).count();
        self.frames_in_flight += frames;
        self.turns.push_back(Turn { number: self.turn, frames, reached });
        Some(Batch { turn: self.turn, failures: self.failures, items })
    }

    /// The windows of every host that changed since the last call.
    pub(crate) fn windows(&mut self) -> (u64, Vec<(HostId, Vec<BootRecord>)>) {
        let changed = std::mem::take(&mut self.changed);
        let mut windows: BTreeMap<HostId, Vec<BootRecord>> = BTreeMap::new();
        for (host, boot, window) in self.ingest.windows() {
            if changed.contains(&host) {
                windows.entry(host).or_default().push(BootRecord::of(boot, window));
            }
        }
        (self.failures, windows.into_iter().collect())
    }

    /// The writer says what became of a turn.
    pub(crate) fn on_report(&mut self, report: Report, now: Instant) {
        match report {
            Report::Stored { turn } => self.on_stored(turn),
            Report::Failed { turn, failures, frames, why } => {
                self.failures = failures;
                self.on_failed(turn, &frames, &why, now);
            }
            Report::Resumed => self.storing = Storing::Yes,
        }
        if self.storing == Storing::Yes && self.frames_in_flight < FRAMES_IN_FLIGHT_MAX {
            self.readable.extend(self.parked.drain(..));
        }
    }

    /// A request's answer, from the query pool.
    pub(crate) fn answer(&mut self, place: Place, response: ApiResponse) {
        if let Some(stream) = self.streams.get_mut(&place) {
            stream.out.push_back(encode(&Message::ApiResponse(response)));
            stream.end = End::AfterOut;
            self.flush(place);
        }
    }

    /// Moves subscribers' updates into their streams, as far as these take them.
    pub(crate) fn pump(&mut self) {
        let places: Vec<Place> = self.subscribers.iter().copied().collect();
        for place in places {
            while let Some(stream) = self.streams.get_mut(&place) {
                let StreamRole::Subscriber(subscription) = &stream.role else { break };
                if !stream.out.is_empty() {
                    break;
                }
                let updates = std::iter::from_fn(|| subscription.try_recv());
                for update in updates.take(PUMP_UPDATES) {
                    push_update(&mut stream.out, update);
                }
                if stream.out.is_empty() {
                    break;
                }
                self.flush(place);
            }
        }
    }

    /// Numbers for `/metrics`.
    pub(crate) fn counts(&self) -> NetCounts {
        let link = self.link.counters();
        NetCounts {
            ingest: self.ingest.counts().clone(),
            sessions: self.ingest.sessions(),
            connections: self.conns.len(),
            subscribers: self.subscribers.len(),
            frames_in_flight: self.frames_in_flight,
            acks: self.acks,
            certificates: self.certificates.counts(),
            handshakes_failed: link.handshakes_failed,
            connections_refused: link.refused_full + link.refused_role,
            storing: self.storing == Storing::Yes,
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "an event is handled once")]
    fn on_event(&mut self, event: Event) {
        match event {
            Event::Connected { conn, alpn, subject, expires_s, .. } => {
                let expires_s = expires_s.unwrap_or(u64::MAX);
                self.conns.insert(conn, Conn { alpn, subject, expires_s, streams: Vec::new() });
            }
            Event::Opened { conn, stream } => {
                let place = Place { conn, stream };
                if let Some(known) = self.conns.get_mut(&conn) {
                    known.streams.push(stream);
                    self.streams.insert(
                        place,
                        Stream {
                            role: StreamRole::New,
                            reader: Reader::default(),
                            out: VecDeque::new(),
                            end: End::Open,
                        },
                    );
                }
            }
            Event::Readable { conn, stream } => self.readable.push_back(Place { conn, stream }),
            Event::Writable { conn, stream } => self.flush(Place { conn, stream }),
            Event::Room { .. } => {}
            Event::Closed { conn, .. } => self.forget_conn(conn),
        }
    }

    fn read(&mut self, place: Place, now: Instant, now_ms: i64, ask: &mut dyn FnMut(Ask)) {
        let full = self.storing == Storing::No
            || FRAMES_IN_FLIGHT_MAX <= self.frames_in_flight + self.items.len();
        let Some(conn) = self.conns.get(&place.conn) else { return };
        if full && conn.alpn == Alpn::Agent {
            self.parked.push(place);
            return;
        }
        let Some(stream) = self.streams.get_mut(&place) else { return };
        let received = self.link.recv(place.conn, place.stream, &mut stream.reader);
        let outcome = loop {
            let Some(stream) = self.streams.get_mut(&place) else { return };
            match stream.reader.pull() {
                Ok(Some(incoming)) => {
                    if let Err(why) = self.on_message(place, incoming, now_ms, ask) {
                        break Err(why);
                    }
                }
                Ok(None) => break Ok(()),
                Err(why) => break Err(why.to_string()),
            }
        };
        if let Err(why) = outcome {
            log::warn!("connection from {:?} closed: {why}", self.link.remote(place.conn));
            self.refuse(place.conn, &why, now);
            return;
        }
        match received {
            Ok(Received::More) => self.readable.push_back(place),
            Ok(Received::Blocked) => {}
            Ok(Received::Finished) => self.on_finished(place),
            Err(_) => self.forget_stream(place),
        }
    }

    fn on_message(
        &mut self,
        place: Place,
        incoming: Incoming,
        now_ms: i64,
        ask: &mut dyn FnMut(Ask),
    ) -> Result<(), String> {
        let message = match incoming {
            Incoming::Frame(bytes) => return self.on_frame(place, bytes, now_ms),
            Incoming::Control(message) => *message,
        };
        let now_s = seconds(now_ms);
        let conn = self.conns.get(&place.conn).ok_or("the connection is gone")?;
        let (alpn, is_past) = (conn.alpn, conn.expires_s < now_s);
        match (alpn, message) {
            (Alpn::Agent | Alpn::Viz, Message::Renew { csr }) => {
                let signed = self.certificates.renew(place, &csr, now_s)?;
                self.say(place, &signed)
            }
            // Past its end it may renew, for which it is asked, and nothing else.
            (Alpn::Agent, Message::Hello(_)) | (Alpn::Viz, Message::Subscribe) if is_past => {
                self.watch(place, now_s)
            }
            (Alpn::Viz, Message::ApiRequest(_)) if is_past => {
                self.answer(place, own::error(503, "unavailable", &Distrust::Expired.to_string()));
                Ok(())
            }
            (Alpn::Agent | Alpn::Viz, _) if is_past => Err(Distrust::Expired.to_string()),
            (Alpn::Agent, Message::Hello(hello)) => {
                self.watch(place, now_s)?;
                self.on_hello(place, hello, now_ms)
            }
            (Alpn::Agent, Message::Schema(schema)) => {
                let session = self.session(place)?;
                self.ingest.schema(session, &schema).map_err(|why| why.to_string())?;
                self.items.push(Item::Schema(Arc::new(schema)));
                Ok(())
            }
            (Alpn::Viz, Message::ApiRequest(request)) => {
                let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
                if !matches!(stream.role, StreamRole::New) {
                    return Err("a second request on one stream".to_owned());
                }
                stream.role = StreamRole::Asking;
                ask(Ask::Api(place, request));
                Ok(())
            }
            (Alpn::Viz, Message::Subscribe) => {
                self.watch(place, now_s)?;
                let subscription = self.hub.subscribe(self.registry.hosts(), None);
                let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
                stream.role = StreamRole::Subscriber(subscription);
                self.subscribers.insert(place);
                Ok(())
            }
            (Alpn::Enrol, Message::Enrol { secret, host, role, csr }) => {
                let ask = Enrolment { secret, host: HostId(host), role, csr };
                self.on_enrol(place, &ask, now_ms)
            }
            _ => Err("this message is not for this kind of connection".to_owned()),
        }
    }

    fn on_hello(&mut self, place: Place, hello: Hello, now_ms: i64) -> Result<(), String> {
        let subject = self.conns.get(&place.conn).and_then(|conn| conn.subject);
        let certified = subject.ok_or("no certificate")?.host;
        let session = SessionId(self.session_next);
        let welcomed = self
            .ingest
            .hello(session, certified, &hello, now_ms)
            .map_err(|refusal| refusal.to_string())?;
        self.session_next += 1;
        if let Some(replaced) = welcomed.replaced {
            self.sessions.remove(&replaced);
        }
        let info = self.registry.hello(&hello, now_ms);
        self.hub.publish(&[Update::Host(info)]);
        self.changed.insert(certified);
        self.items.push(Item::Host(Box::new(hello)));
        self.sessions.insert(session, place);
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        stream.role = StreamRole::Agent(session);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.say(place, &Message::Welcome { stored_seq: welcomed.stored.0, version })
    }

    fn on_frame(&mut self, place: Place, bytes: Bytes, now_ms: i64) -> Result<(), String> {
        let session = self.session(place)?;
        let verdict =
            self.ingest.frame(session, &bytes, now_ms).map_err(|refusal| refusal.to_string())?;
        if let Some((host, boot)) = self.ingest.whose(session) {
            self.touched.insert((host, boot), session);
        }
        if verdict == Verdict::Store {
            self.items.push(Item::Frame(bytes));
        }
        Ok(())
    }

    fn on_enrol(&mut self, place: Place, ask: &Enrolment, now_ms: i64) -> Result<(), String> {
        let answer = self.certificates.enrol(&self.registry, ask, now_ms);
        match &answer {
            Message::Refused { why } => {
                log::warn!("enrolment from {:?} refused: {why}", self.link.remote(place.conn));
            }
            _ => log::info!("enrolled {} {}", ask.role, ask.host),
        }
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        stream.end = End::AfterOut;
        self.say(place, &answer)
    }

    /// Certificates that near their end, or are past it, and the broker's own.
    fn certify(&mut self, now: Instant, now_s: u64) {
        if let Some(own) = self.certificates.own(now_s) {
            let set = own.map_err(LinkError::from).and_then(|own| self.link.set_identity(own));
            if let Err(why) = set {
                log::error!("this broker's certificate is not renewed: {why}");
            }
        }
        while let Some((place, due)) = self.certificates.due(now_s) {
            let said = match due {
                Due::Ask => self.say(place, &Message::RenewDue),
                Due::Close => Err(Distrust::Expired.to_string()),
            };
            if let Err(why) = said {
                self.refuse(place.conn, &why, now);
            }
        }
    }

    /// From its first word on, a conversation's certificate is watched.
    fn watch(&mut self, place: Place, now_s: u64) -> Result<(), String> {
        let conn = self.conns.get(&place.conn).ok_or("the connection is gone")?;
        let subject = conn.subject.ok_or("no certificate")?;
        self.certificates.watch(place, subject, conn.expires_s, now_s);
        Ok(())
    }

    fn say(&mut self, place: Place, message: &Message) -> Result<(), String> {
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        stream.out.push_back(encode(message));
        self.flush(place);
        Ok(())
    }

    fn on_stored(&mut self, turn: u64) {
        let mut acks: BTreeMap<(HostId, BootId), (SessionId, u64)> = BTreeMap::new();
        while let Some(done) = self.turns.front().filter(|t| t.number <= turn) {
            self.frames_in_flight -= done.frames;
            for (host, boot, session, through) in &done.reached {
                acks.insert((*host, *boot), (*session, *through));
            }
            self.turns.pop_front();
        }
        for ((host, boot), (session, seq)) in acks {
            self.ingest.stored(host, boot, seq);
            let Some(place) = self.sessions.get(&session).copied() else { continue };
            let Some(stream) = self.streams.get_mut(&place) else { continue };
            // A peer that does not read its acknowledgements gets only the newest.
            if ACKS_WAITING_MAX <= stream.out.len() {
                stream.out.pop_back();
            }
            stream.out.push_back(encode(&Message::Ack { boot: boot.0, seq }));
            self.acks += 1;
            self.flush(place);
        }
    }

    fn on_failed(&mut self, turn: u64, frames: &[(HostId, BootId, Seq)], why: &str, now: Instant) {
        self.storing = Storing::No;
        for (host, boot, seq) in frames {
            self.ingest.forget(*host, *boot, *seq);
        }
        let Some(at) = self.turns.iter().position(|t| t.number == turn) else { return };
        let Some(failed) = self.turns.remove(at) else { return };
        self.frames_in_flight -= failed.frames;
        // They resend from what is stored when they come back.
        for (_, _, session, _) in failed.reached {
            if let Some(place) = self.sessions.get(&session).copied() {
                self.refuse(place.conn, why, now);
            }
        }
    }

    fn on_finished(&mut self, place: Place) {
        let Some(stream) = self.streams.get_mut(&place) else { return };
        match stream.role {
            // A request is one message; its answer is still to come.
            StreamRole::Asking => {}
            StreamRole::New if stream.out.is_empty() => self.forget_stream(place),
            StreamRole::New => stream.end = End::AfterOut,
            StreamRole::Agent(_) | StreamRole::Subscriber(_) => {
                self.link.finish(place.conn, place.stream);
                self.forget_stream(place);
            }
        }
    }

    fn session(&self, place: Place) -> Result<SessionId, String> {
        match self.streams.get(&place).map(|stream| &stream.role) {
            Some(StreamRole::Agent(session)) => Ok(*session),
            _ => Err("an agent says hello first".to_owned()),
        }
    }

    fn flush(&mut self, place: Place) {
        let Some(stream) = self.streams.get_mut(&place) else { return };
        let sent = self.link.send(place.conn, place.stream, stream.out.make_contiguous());
        stream.out.retain(|chunk| !chunk.is_empty());
        if sent.is_err() {
            self.forget_stream(place);
        } else if stream.out.is_empty() && stream.end == End::AfterOut {
            self.link.finish(place.conn, place.stream);
            self.forget_stream(place);
        }
    }

    fn refuse(&mut self, conn: ConnId, why: &str, now: Instant) {
        self.link.close(now, conn, why);
        self.forget_conn(conn);
    }

    fn forget_conn(&mut self, conn: ConnId) {
        let Some(gone) = self.conns.remove(&conn) else { return };
        for stream in gone.streams {
            self.forget_stream(Place { conn, stream });
        }
    }

    fn forget_stream(&mut self, place: Place) {
        if let Some(conn) = self.conns.get_mut(&place.conn) {
            conn.streams.retain(|stream| *stream != place.stream);
        }
        self.subscribers.remove(&place);
        self.certificates.forget(place);
        let Some(stream) = self.streams.remove(&place) else { return };
        let StreamRole::Agent(session) = stream.role else { return };
        let whose = self.ingest.whose(session);
        self.ingest.close(session);
        self.sessions.remove(&session);
        if let Some((host, _)) = whose
            && let Some(info) = self.registry.gone(host)
        {
            self.hub.publish(&[Update::Host(info)]);
        }
    }
}

fn push_update(out: &mut VecDeque<Bytes>, update: Update) {
    match update {
        Update::Host(info) => out.push_back(encode(&Message::Host(info))),
        Update::Schema(schema) => out.push_back(encode(&Message::Schema((*schema).clone()))),
        Update::Frame(bytes) => {
            out.push_back(Bytes::copy_from_slice(&frame_prefix(bytes.len())));
            out.push_back(bytes);
        }
        // The frames' own sequence numbers show the gap to the other side.
        Update::Lagged(_) => {}
    }
}

/// Turns with the writer; over it they are gathered into one.
pub(crate) const TURNS_MAX: usize = 1024;
/// Frames with the writer and not on disk: 64 MiB at 1 KiB. Over it agents are not read.
const FRAMES_IN_FLIGHT_MAX: usize = 65_536;
/// Updates moved to one subscriber at once.
const PUMP_UPDATES: usize = 512;
/// Acknowledgements waiting in one stream.
const ACKS_WAITING_MAX: usize = 16;
