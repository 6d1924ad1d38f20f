//! The agent's side of its conversation with a broker, as a state machine.
//!
//! ```text
//!            dial                Connected           Welcome
//!  Waiting ------> Connecting ------------> Greeting --------> Streaming
//!     ^  due?          |  Closed               |  no answer,       |  Ack: slots released
//!     |                v                       v  Refused          v  Closed, stalled
//!     +--------- back-off 250 ms .. 30 s, half of it random -------+
//!     +--------- at once, to another broker <--- Redirect ---------+
//! ```
//!
//! Frames stay in the ring until they are acknowledged: the ring is the retransmission buffer, and
//! here is only the list of what was read from it. After a reconnect it is read again from the
//! first frame that was not released; what `Welcome` says is stored is not sent twice. A schema
//! goes once a connection, before the first row that uses it.
//!
//! When the broker says that the certificate nears its end, a new key is made here and a request
//! sent; what the broker signs is [`Uplink::renewed`]'s, and [`Uplink::reconnect`] goes on with it.
//! Nothing is lost or doubled by that: what was not acknowledged is still in the ring, and the
//! broker says in its `Welcome` what it has.
//!
//! Bounds: unacknowledged frames by the ring's slots; chunks waiting for QUIC by `CHUNKS_MAX`;
//! a full ring refuses the sampler, which counts it.

mod status;

pub use status::Status;

use crate::recorder::{Bell, Reason};
use crate::ring::{Reader as Ring, Ticket};
use crate::schemas::Table;
use bytes::Bytes;
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};
use strobe_wire::back_off::BackOff;
use strobe_wire::frame::{self, FrameKind};
use strobe_wire::ids::SchemaId;
use strobe_wire::link::{
    Alpn, ConnId, Dial, Distrust, Event, Link, LinkError, Received, StreamId, Why,
};
use strobe_wire::message::{Hello, Incoming, Message, Reader, encode, frame_prefix};
use strobe_wire::pki;
use strobe_wire::schema::Schema;

/// What an uplink is made of.
#[derive(Clone, Debug)]
pub struct UplinkConfig {
    /// `host:port` of the brokers, tried in turn; at least one.
    pub brokers: Vec<String>,
    /// Who this is.
    pub hello: Hello,
    /// Of the back-off's jitter, so that a fleet does not come back in step.
    pub seed: u64,
    /// Rung when the broker asks for a burst.
    pub bell: Bell,
}

/// The state machine.
#[derive(Debug)]
pub struct Uplink {
    config: UplinkConfig,
    state: State,
    /// Index into `config.brokers` of the next dial.
    turn: usize,
    /// Where a broker sent us; forgotten after a failure.
    redirect: Option<String>,
    redirects: u32,
    back_off: BackOff,
    reader: Reader,
    /// Frames read from the ring and not released, in the ring's order.
    unacknowledged: VecDeque<Sent>,
    /// What QUIC could not take yet.
    chunks: VecDeque<Bytes>,
    schemas_sent: HashSet<SchemaId>,
    /// Frames up to this one are stored at the broker.
    stored_seq: u64,
    /// The private key (PKCS#8) of the request that is with the broker.
    renewing: Option<Vec<u8>>,
    renewed: Option<Renewed>,
    /// The broker does not believe this side's certificate.
    distrusted: bool,
    /// What a person should read of the last failure.
    complaint: Option<String>,
    status: Status,
}

/// A frame that was read from the ring.
#[derive(Clone, Copy, Debug)]
struct Sent {
    seq: u64,
    ticket: Ticket,
    at: Instant,
}

/// A new key and what the broker signed for it, not checked yet.
#[derive(Debug)]
pub struct Renewed {
    /// PKCS#8.
    pub key_der: Vec<u8>,
    /// The certificate.
    pub certificate_der: Vec<u8>,
    /// The authority's.
    pub ca_der: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Waiting { until: Instant },
    Connecting { conn: ConnId },
    Greeting { conn: ConnId, stream: StreamId, since: Instant },
    Streaming { conn: ConnId, stream: StreamId, progress: Instant },
}

impl Uplink {
    /// An uplink that wants to dial at once.
    ///
    /// # Panics
    /// Without a broker.
    #[must_use]
    pub fn new(config: UplinkConfig, now: Instant) -> Self {
        assert!(!config.brokers.is_empty(), "the configuration was checked for a broker");
        let back_off = BackOff::new(BACK_OFF_MIN, BACK_OFF_MAX, config.seed);
        Self {
            config,
            state: State::Waiting { until: now },
            turn: 0,
            redirect: None,
            redirects: 0,
            back_off,
            reader: Reader::default(),
            unacknowledged: VecDeque::new(),
            chunks: VecDeque::new(),
            schemas_sent: HashSet::new(),
            stored_seq: 0,
            renewing: None,
            renewed: None,
            distrusted: false,
            complaint: None,
            status: Status::default(),
        }
    }

    /// `host:port` to resolve and [`Self::dial`] now, if it is time.
    #[must_use]
    pub fn wants(&self, now: Instant) -> Option<String> {
        match self.state {
            State::Waiting { until } if until <= now => Some(self.target().to_owned()),
            _ => None,
        }
    }

    /// Dials what [`Self::wants`] said, as it was resolved; an error is a failed attempt.
    pub fn dial(
        &mut self,
        now: Instant,
        link: &mut Link,
        resolved: Result<std::net::SocketAddr, String>,
    ) {
        self.status.broker = self.target().to_owned();
        let begun = resolved.and_then(|remote| {
            link.connect(now, remote, &Dial::With(Alpn::Agent))
                .map_err(|error: LinkError| error.to_string())
        });
        match begun {
            Ok(conn) => self.state = State::Connecting { conn },
            Err(why) => self.fail(now, why),
        }
    }

    /// When [`Self::on_timeout`] or [`Self::wants`] should be asked at the latest.
    #[must_use]
    pub fn timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Connecting { .. } => None,
            State::Greeting { since, .. } => Some(since + GREETING_TIMEOUT),
            State::Streaming { .. } if self.unacknowledged.is_empty() => None,
            State::Streaming { progress, .. } => Some(progress + STALL_TIMEOUT),
        }
    }

    /// Gives up on a broker that does not answer.
    pub fn on_timeout(&mut self, now: Instant, link: &mut Link, ring: &mut Ring) {
        if self.timeout().is_none_or(|at| now < at) {
            return;
        }
        let (conn, why) = match self.state {
            State::Greeting { conn, .. } => (conn, "the broker does not answer Hello"),
            State::Streaming { conn, .. } => (conn, "the broker acknowledges nothing"),
            State::Waiting { .. } | State::Connecting { .. } => return,
        };
        self.hang_up(now, link, ring, conn, why);
    }

    /// The link says what happened.
    pub fn told(&mut self, now: Instant, event: &Event, link: &mut Link, ring: &mut Ring) {
        match (event, self.state) {
            (Event::Connected { conn, .. }, State::Connecting { conn: mine }) if *conn == mine => {
                self.greet(now, link, mine);
            }
            (Event::Closed { conn, why }, _) if Some(*conn) == self.conn() => {
                self.distrusted =
                    matches!(why, Why::Distrust(Distrust::Expired | Distrust::Foreign));
                self.forget_connection(ring);
                self.fail(now, why.to_string());
            }
            (
                Event::Readable { conn, stream },
                State::Greeting { conn: mine, stream: ours, .. }
                | State::Streaming { conn: mine, stream: ours, .. },
            ) if *conn == mine && *stream == ours => self.read(now, link, ring),
            // `pump` is called after all events, and it is what `Writable` asks for.
            _ => {}
        }
    }

    /// Sends what is in the ring, as far as QUIC takes it.
    pub fn pump(&mut self, now: Instant, link: &mut Link, ring: &mut Ring, table: &Table) {
        let (State::Greeting { conn, stream, .. } | State::Streaming { conn, stream, .. }) =
            self.state
        else {
            // Nothing is lost while nobody listens, but the ring wants its held slots back.
            ring.settle();
            return;
        };
        loop {
            match self.state {
                State::Streaming { .. } => self.fill(now, ring, table),
                _ => ring.settle(),
            }
            if self.chunks.is_empty() {
                return;
            }
            match link.send(conn, stream, self.chunks.make_contiguous()) {
                Ok(0) => return,
                Ok(_) => self.chunks.retain(|chunk| !chunk.is_empty()),
                Err(error) => {
                    return self.hang_up(now, link, ring, conn, &error.to_string());
                }
            }
        }
    }

    /// What the broker signed, once.
    pub fn renewed(&mut self) -> Option<Renewed> {
        self.renewed.take()
    }

    /// Whether the last connection failed because the broker does not believe the certificate.
    #[must_use]
    pub fn is_distrusted(&self) -> bool {
        self.distrusted
    }

    /// Leaves the connection and dials the same broker at once, to show it another certificate.
    pub fn reconnect(&mut self, now: Instant, link: &mut Link, ring: &mut Ring) {
        if let Some(conn) = self.conn() {
            link.close(now, conn, "renewed; connecting anew");
            self.forget_connection(ring);
        }
        self.state = State::Waiting { until: now };
    }

    /// What is to be logged of the last failure, once. Logging may wait for a disk or a pipe, and
    /// so is done by who may wait.
    pub fn complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }

    fn target(&self) -> &str {
        match &self.redirect {
            Some(broker) => broker,
            None => &self.config.brokers[self.turn % self.config.brokers.len()],
        }
    }

    fn conn(&self) -> Option<ConnId> {
        match self.state {
            State::Waiting { .. } => None,
            State::Connecting { conn }
            | State::Greeting { conn, .. }
            | State::Streaming { conn, .. } => Some(conn),
        }
    }

    fn greet(&mut self, now: Instant, link: &mut Link, conn: ConnId) {
        self.status.connections += 1;
        self.reader = Reader::default();
        let Some(stream) = link.open(conn) else {
            link.close(now, conn, "an agent needs a stream");
            return self.fail(now, "the broker allows no stream".to_owned());
        };
        self.state = State::Greeting { conn, stream, since: now };
        let hello = encode(&Message::Hello(self.config.hello.clone()));
        // A stream's first bytes always fit: its window is larger than any Hello that is sent
        // (labels are bounded by the configuration). If not, the greeting times out.
        let sent = link.send(conn, stream, &mut [hello]);
        log::debug!("uplink: connected to {}, Hello: {sent:?}", self.status.broker);
    }

    fn read(&mut self, now: Instant, link: &mut Link, ring: &mut Ring) {
        loop {
            let (State::Greeting { conn, stream, .. } | State::Streaming { conn, stream, .. }) =
                self.state
            else {
                return;
            };
            let received = match link.recv(conn, stream, &mut self.reader) {
                Ok(received) => received,
                Err(error) => return self.hang_up(now, link, ring, conn, &error.to_string()),
            };
            loop {
                match self.reader.pull() {
                    Ok(Some(incoming)) => self.heard(now, link, ring, incoming),
                    Ok(None) => break,
                    Err(error) => return self.hang_up(now, link, ring, conn, &error.to_string()),
                }
            }
            match received {
                Received::More => {}
                Received::Blocked => return,
                Received::Finished if self.conn() == Some(conn) => {
                    return self.hang_up(now, link, ring, conn, "the broker ended the stream");
                }
                Received::Finished => return,
            }
        }
    }

    fn heard(&mut self, now: Instant, link: &mut Link, ring: &mut Ring, incoming: Incoming) {
        let Some(conn) = self.conn() else { return };
        let Incoming::Control(message) = incoming else {
            return self.hang_up(now, link, ring, conn, "a broker sends an agent no frames");
        };
        match (*message, self.state) {
            (Message::Welcome { stored_seq, version }, State::Greeting { conn, stream, .. }) => {
                log::info!(
                    "uplink: {} (version {version}) has frames up to {stored_seq}",
                    self.status.broker
                );
                self.redirects = 0;
                self.stored_seq = stored_seq;
                self.state = State::Streaming { conn, stream, progress: now };
            }
            (Message::Ack { boot, seq }, State::Streaming { conn, stream, .. })
                if boot == self.config.hello.boot =>
            {
                self.back_off.succeeded();
                self.state = State::Streaming { conn, stream, progress: now };
                self.acknowledge(ring, seq);
            }
            // A late word about another life of this agent.
            (Message::Ack { .. }, _) => {}
            (Message::Redirect { broker }, _) => {
                link.close(now, conn, "redirected");
                self.forget_connection(ring);
                self.redirected(now, broker);
            }
            (Message::Burst, State::Streaming { .. }) => self.config.bell.ring(Reason::Request),
            // A request is with the broker already.
            (Message::RenewDue, _) if self.renewing.is_some() => {}
            (Message::RenewDue, _) => match pki::request() {
                Ok((key_der, csr)) => {
                    self.renewing = Some(key_der);
                    self.chunks.push_back(encode(&Message::Renew { csr }));
                }
                // It asks again.
                Err(why) => {
                    self.complaint = Some(format!("the certificate is not renewed: {why}"));
                }
            },
            (Message::Enrolled { certificate: certificate_der, ca: ca_der }, _)
                if let Some(key_der) = self.renewing.take() =>
            {
                self.renewed = Some(Renewed { key_der, certificate_der, ca_der });
            }
            (Message::Refused { why }, _) => {
                let why = format!("refused by the broker: {why}");
                self.hang_up(now, link, ring, conn, &why);
            }
            (_, _) => {
                self.hang_up(now, link, ring, conn, "the broker said what an agent never hears");
            }
        }
    }

    fn redirected(&mut self, now: Instant, broker: String) {
        self.redirects += 1;
        if REDIRECTS_MAX < self.redirects || ADDRESS_BYTES_MAX < broker.len() {
            self.redirects = 0;
            return self.fail(now, format!("redirected in circles, last to {broker:.100}"));
        }
        self.redirect = Some(broker);
        self.state = State::Waiting { until: now };
    }

    fn acknowledge(&mut self, ring: &mut Ring, seq: u64) {
        let mut through = None;
        while let Some(sent) = self.unacknowledged.front().filter(|sent| sent.seq <= seq) {
            through = Some(sent.ticket);
            self.unacknowledged.pop_front();
        }
        if let Some(ticket) = through {
            ring.release(ticket);
        }
        self.status.acknowledged_seq = self.status.acknowledged_seq.max(seq);
    }

    /// Takes frames from the ring until enough chunks wait.
    fn fill(&mut self, now: Instant, ring: &mut Ring, table: &Table) {
        while self.chunks.len() < CHUNKS_MAX {
            let Some(slot) = ring.next() else { return };
            let (ticket, header) = (slot.ticket(), frame::open(&slot).map(|frame| frame.header));
            let Ok(header) = header else {
                self.status.unsendable += 1;
                self.unacknowledged.push_back(Sent { seq: 0, ticket, at: now });
                continue;
            };
            let bytes = slot.bytes();
            if self.unacknowledged.is_empty()
                && let State::Streaming { progress, .. } = &mut self.state
            {
                // The wait for an acknowledgement begins with something to acknowledge.
                *progress = now;
            }
            self.unacknowledged.push_back(Sent { seq: header.seq.0, ticket, at: now });
            if header.seq.0 <= self.stored_seq {
                self.acknowledge(ring, self.stored_seq);
                continue;
            }
            let has_schema = matches!(header.kind, FrameKind::Row | FrameKind::Burst);
            if has_schema && !self.schemas_sent.contains(&header.schema) {
                let Some(schema) = table.schema(header.schema) else {
                    self.status.unsendable += 1;
                    continue;
                };
                self.chunks.push_back(encode(&Message::Schema(Schema::clone(&schema))));
                self.schemas_sent.insert(header.schema);
            }
            self.chunks.push_back(Bytes::copy_from_slice(&frame_prefix(bytes.len())));
            self.chunks.push_back(bytes);
            self.status.frames_sent += 1;
        }
    }

    fn hang_up(&mut self, now: Instant, link: &mut Link, ring: &mut Ring, conn: ConnId, why: &str) {
        link.close(now, conn, why);
        self.forget_connection(ring);
        self.fail(now, why.to_owned());
    }

    fn forget_connection(&mut self, ring: &mut Ring) {
        self.chunks.clear();
        self.renewing = None;
        self.schemas_sent.clear();
        self.unacknowledged.clear();
        ring.rewind();
    }

    fn fail(&mut self, now: Instant, why: String) {
        if self.redirect.take().is_none() {
            self.turn = self.turn.wrapping_add(1);
        }
        let wait = self.back_off.failed();
        self.state = State::Waiting { until: now + wait };
        self.complaint = Some(format!("{}: {why}; again in {wait:?}", self.status.broker));
        self.status.last_error = why;
    }
}

const BACK_OFF_MIN: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A broker that took the connection answers Hello within this.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// A broker commits every 50 ms; one that acknowledges nothing for this long is stuck.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
const REDIRECTS_MAX: u32 = 4;
/// The longest DNS name, a colon and a port.
const ADDRESS_BYTES_MAX: usize = 253 + 6;
/// Ten frames with their prefixes and a schema or two.
const CHUNKS_MAX: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;
    use strobe_wire::link::{LinkConfig, Side};

    #[test]
    fn failures_go_round_the_brokers_and_wait_longer_and_longer() {
        #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
        let start = Instant::now();
        let mut link = Link::new(&LinkConfig {
            identity: None,
            side: Side::Agent,
            connections_max: 1,
            whole_datagrams: false,
            wall_s: 0,
            seed: Some([1; 32]),
            accept: None,
        })
        .unwrap();
        let brokers = vec!["a:1".to_owned(), "b:2".to_owned()];
        let (hello, bell) = (Hello::default(), Bell::default());
        let config = UplinkConfig { brokers: brokers.clone(), hello, seed: 7, bell };
        let (mut now, mut uplink) = (start, Uplink::new(config, start));
        for attempt in 0..12 {
            assert_eq!(uplink.wants(now).unwrap(), brokers[attempt % 2]);
            uplink.dial(now, &mut link, Err("no such name".to_owned()));
            assert_eq!(uplink.status().last_error, "no such name");
            assert_eq!(uplink.wants(now), None);
            let until = uplink.timeout().unwrap();
            let whole = (BACK_OFF_MIN * (1 << attempt)).min(BACK_OFF_MAX);
            assert!((whole / 2..=whole).contains(&(until - now)), "attempt {attempt}");
            now = until;
        }
    }
}
