//! The agent's side of its conversation with a broker, as a state machine.
//!
//! ```text
//!            dial                Connected           Welcome
//!  Waiting ------> Connecting ------------> Greeting --------> Streaming
//!     ^  due?          |  Closed               |  no answer,       |  Ack: slots released
//!     |                v                       v  Refused          v  Closed, stalled
//!     +--------- back-off 250 ms .. 30 s, half of it random -------+
//!     +--------- soon, to another broker <--- Redirect ------------+
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

mod brokers;
mod fleet;
mod frames;
mod replay;
mod silence;
mod status;

pub use status::Status;

use brokers::Brokers;
use fleet::Fleet;
use replay::Replay;
use silence::Silence;

use crate::managed::Pushed;
use crate::ring::{Reader as Ring, Ticket};
use bytes::Bytes;
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};
use strobe_wire::back_off::BackOff;
use strobe_wire::ids::SchemaId;
use strobe_wire::link::{
    Alpn, ConnId, Dial, Distrust, Event, Link, LinkError, Received, StreamId, Why,
};
use strobe_wire::message::{Hello, Incoming, Message, Question, Reader, encode};
use strobe_wire::pki;

/// What an uplink is made of.
#[derive(Clone, Debug)]
pub struct UplinkConfig {
    /// `host:port` of the brokers, tried in turn; at least one.
    pub brokers: Vec<String>,
    /// Who this is.
    pub hello: Hello,
    /// Of the back-off's jitter, so that a fleet does not come back in step.
    pub seed: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Uplink {
    hello: Hello,
    fleet: Fleet,
    state: State,
    brokers: Brokers,
    silence: Silence,
    /// Packets that a connection had lost when it was looked at.
    lost: Option<(ConnId, u64)>,
    back_off: BackOff,
    reader: Reader,
    /// Frames read from the ring and not released, in the ring's order.
    unacknowledged: VecDeque<Sent>,
    /// What QUIC could not take yet.
    chunks: VecDeque<Bytes>,
    schemas_sent: HashSet<SchemaId>,
    /// Frames up to this one are stored at the broker.
    stored_seq: u64,
    /// What waits in the spool of this boot, as the next broker is to hear; none if the spool is empty.
    spooled: Option<(u64, u64)>,
    replay: Replay,
    /// The private key (PKCS#8) of the request that is with the broker.
    renewing: Option<Vec<u8>>,
    renewed: Option<Renewed>,
    /// Whose certificate was not believed, if the last connection failed of that.
    distrust: Option<Distrust>,
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
    Connecting { conn: ConnId, since: Instant },
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
        let back_off = BackOff::new(BACK_OFF_MIN, BACK_OFF_MAX, config.seed);
        Self {
            hello: config.hello,
            fleet: Fleet::default(),
            state: State::Waiting { until: now },
            brokers: Brokers::new(config.brokers),
            silence: Silence::default(),
            lost: None,
            back_off,
            reader: Reader::default(),
            unacknowledged: VecDeque::new(),
            chunks: VecDeque::new(),
            schemas_sent: HashSet::new(),
            stored_seq: 0,
            spooled: None,
            replay: Replay::default(),
            renewing: None,
            renewed: None,
            distrust: None,
            complaint: None,
            status: Status::default(),
        }
    }

    /// `host:port` to resolve and [`Self::dial`] now, if it is time.
    #[must_use]
    pub fn wants(&self, now: Instant) -> Option<String> {
        match self.state {
            State::Waiting { until } if until <= now => Some(self.brokers.target().to_owned()),
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
        self.status.broker = self.brokers.target().to_owned();
        let begun = resolved.and_then(|remote| {
            link.connect(now, remote, &Dial::With(Alpn::Agent))
                .map_err(|error: LinkError| error.to_string())
        });
        match begun {
            Ok(conn) => {
                self.silence = Silence::default();
                self.state = State::Connecting { conn, since: now };
            }
            Err(why) => self.fail(now, why, false),
        }
    }

    /// When [`Self::on_timeout`] or [`Self::wants`] should be asked at the latest.
    #[must_use]
    pub fn timeout(&self) -> Option<Instant> {
        let by_state = match self.state {
            State::Waiting { until } => Some(until),
            State::Connecting { since, .. } if self.has_choice() => Some(since + CONNECT_TIMEOUT),
            State::Connecting { .. } => None,
            State::Greeting { since, .. } => Some(since + GREETING_TIMEOUT),
            State::Streaming { .. } if self.unacknowledged.is_empty() => None,
            State::Streaming { progress, .. } => Some(progress + STALL_TIMEOUT),
        };
        let silence = self.awaited().map(|(_, since)| self.silence.timeout(since));
        [by_state, silence].into_iter().flatten().min()
    }

    /// Since when something has waited for an answer, where a silent broker can be left.
    fn awaited(&self) -> Option<(ConnId, Instant)> {
        match self.state {
            _ if !self.has_choice() => None,
            State::Waiting { .. } | State::Connecting { .. } => None,
            State::Greeting { conn, since, .. } => Some((conn, since)),
            State::Streaming { conn, .. } => {
                self.unacknowledged.front().map(|sent| (conn, sent.at))
            }
        }
    }

    /// Whether more than one broker is known.
    #[must_use]
    pub fn has_choice(&self) -> bool {
        self.brokers.has_choice()
    }

    /// Notes whether something was heard, for whoever does not call [`Self::on_timeout`] now.
    pub fn listen(&mut self, now: Instant, link: &mut Link) {
        if let Some((conn, _)) = self.awaited() {
            self.silence.listen(now, link, conn);
        }
    }

    /// Where the brokers are, once after a broker told something new: to be kept for the next start.
    pub fn brokers(&mut self) -> Option<Vec<String>> {
        self.brokers.news()
    }

    /// Gives up on a broker that does not answer.
    pub fn on_timeout(&mut self, now: Instant, link: &mut Link, ring: &mut Ring) {
        if self.timeout().is_none_or(|at| now < at) {
            return;
        }
        if let Some(awaited) = self.awaited() {
            if self.silence.is_over(now, link, awaited) {
                return self.leave(now, link, ring, awaited.0);
            }
            // Nothing else is due as often as this.
            if self.timeout().is_none_or(|at| now < at) {
                return;
            }
        }
        let (conn, why) = match self.state {
            State::Connecting { conn, .. } => return self.leave(now, link, ring, conn),
            State::Greeting { conn, .. } => (conn, "the broker does not answer Hello"),
            State::Streaming { conn, .. } => (conn, "the broker acknowledges nothing"),
            State::Waiting { .. } => return,
        };
        self.hang_up(now, link, ring, conn, why);
    }

    /// The link says what happened.
    pub fn told(&mut self, now: Instant, event: &Event, link: &mut Link, ring: &mut Ring) {
        match (event, self.state) {
            (Event::Connected { conn, .. }, State::Connecting { conn: mine, .. })
                if *conn == mine =>
            {
                self.greet(now, link, mine);
            }
            (Event::Closed { conn, why }, _) if Some(*conn) == self.conn() => {
                self.distrust = match why {
                    Why::Distrust(why) => Some(*why),
                    _ => None,
                };
                self.forget_connection(ring);
                self.fail(now, why.to_string(), *why == Why::Silence);
            }
            (
                Event::Readable { conn, stream },
                State::Greeting { conn: mine, stream: ours, .. }
                | State::Streaming { conn: mine, stream: ours, .. },
            ) if *conn == mine && *stream == ours => self.read(now, link, ring),
            (Event::Readable { conn, stream }, State::Streaming { conn: mine, .. })
                if *conn == mine && self.replay.is_on(*stream) =>
            {
                self.replay.read(now, link, mine);
            }
            // `pump` is called after all events, and it is what `Writable` asks for.
            _ => {}
        }
    }

    /// What the broker signed, once.
    pub fn renewed(&mut self) -> Option<Renewed> {
        self.renewed.take()
    }

    /// Whose certificate was not believed, if that is why the last connection failed.
    #[must_use]
    pub fn distrust(&self) -> Option<Distrust> {
        self.distrust
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

    fn conn(&self) -> Option<ConnId> {
        match self.state {
            State::Waiting { .. } => None,
            State::Connecting { conn, .. }
            | State::Greeting { conn, .. }
            | State::Streaming { conn, .. } => Some(conn),
        }
    }

    fn greet(&mut self, now: Instant, link: &mut Link, conn: ConnId) {
        self.status.connections += 1;
        self.reader = Reader::default();
        let Some(stream) = link.open(conn) else {
            link.close(now, conn, "an agent needs a stream");
            return self.fail(now, "the broker allows no stream".to_owned(), false);
        };
        self.state = State::Greeting { conn, stream, since: now };
        let (acknowledged_seq, silent) = (self.status.acknowledged_seq, self.brokers.silent());
        let mut words = Vec::with_capacity(3);
        if acknowledged_seq != 0 || !silent.is_empty() {
            let silent = silent.to_owned();
            words.push(encode(&Message::Resume { acknowledged_seq, silent }));
        }
        if let Some((first_seq, last_seq)) = self.spooled {
            words.push(encode(&Message::Spooled { first_seq, last_seq }));
        }
        words.push(encode(&Message::Hello(self.hello.clone())));
        // A stream's first bytes always fit: its window is larger than any Hello that is sent
        // (labels are bounded by the configuration). If not, the greeting times out.
        let sent = link.send(conn, stream, &mut words);
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
                self.brokers.welcomed();
                self.stored_seq = stored_seq;
                self.state = State::Streaming { conn, stream, progress: now };
                if link.is_newest(conn) {
                    self.chunks.extend(self.fleet.welcomed());
                }
            }
            (Message::Ack { boot, seq }, State::Streaming { conn, stream, .. })
                if boot == self.hello.boot =>
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
            (Message::Brokers(told), _) => self.brokers.told(told),
            (Message::Burst, State::Streaming { .. }) => self.fleet.asks(0, Question::Burst),
            (Message::Ask { id, what }, State::Streaming { .. }) => self.fleet.asks(id, what),
            (Message::Configure { version, values }, State::Streaming { .. }) => {
                self.fleet.pushed = Some(Pushed { version, values });
            }
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
        let circles = format!("redirected in circles, last to {broker:.100}");
        if !self.brokers.redirected(broker) {
            return self.fail(now, circles, false);
        }
        self.state = State::Waiting { until: now + self.back_off.spread(REDIRECT_SPREAD) };
    }

    fn hang_up(&mut self, now: Instant, link: &mut Link, ring: &mut Ring, conn: ConnId, why: &str) {
        link.close(now, conn, why);
        self.forget_connection(ring);
        self.fail(now, why.to_owned(), false);
    }

    /// Nothing is heard from this broker, and there are others.
    fn leave(&mut self, now: Instant, link: &mut Link, ring: &mut Ring, conn: ConnId) {
        link.close(now, conn, "nothing was heard");
        self.forget_connection(ring);
        self.fail(now, "nothing is heard from the broker".to_owned(), true);
    }

    fn forget_connection(&mut self, ring: &mut Ring) {
        self.chunks.clear();
        self.fleet.gone();
        self.renewing = None;
        self.schemas_sent.clear();
        self.unacknowledged.clear();
        self.replay.forget();
        ring.rewind();
    }

    fn fail(&mut self, now: Instant, why: String, silent: bool) {
        self.brokers.failed(silent);
        let wait = self.back_off.failed();
        // The others are asked soon, each once, before the waits grow.
        let round = self.has_choice() && (self.back_off.failures() as usize) < self.brokers.count();
        let wait = if round { self.back_off.spread(REDIRECT_SPREAD) } else { wait };
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
/// A handshake is two round trips; a lost datagram of it is sent again after half a second, and a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A fleet that is sent elsewhere, or whose broker is gone, arrives within this.
const REDIRECT_SPREAD: Duration = Duration::from_millis(150);

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
        let config = UplinkConfig { brokers: brokers.clone(), hello: Hello::default(), seed: 7 };
        let (mut now, mut uplink) = (start, Uplink::new(config, start));
        for attempt in 0..12 {
            assert_eq!(uplink.wants(now).unwrap(), brokers[attempt % 2]);
            uplink.dial(now, &mut link, Err("no such name".to_owned()));
            assert_eq!(uplink.status().last_error, "no such name");
            assert_eq!(uplink.wants(now), None);
            let until = uplink.timeout().unwrap();
            let whole = (BACK_OFF_MIN * (1 << attempt)).min(BACK_OFF_MAX);
            // The other one is asked soon; then the waits grow.
            let wanted =
                if attempt == 0 { Duration::ZERO..=REDIRECT_SPREAD } else { whole / 2..=whole };
            assert!(wanted.contains(&(until - now)), "attempt {attempt}");
            now = until;
        }
    }
}
