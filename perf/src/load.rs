//! One simulated agent: a state machine like the real uplink's, with a row maker in place of the
//! sampler.
//!
//! ```text
//! Waiting ──until──▶ Dialling ──Connected──▶ Greeting ──Welcome──▶ Open
//!    ▲                  │                       │                    │
//!    └──────────────────┴────── Closed ─────────┴────────────────────┘
//! ```
//!
//! A frame is kept until the broker acknowledges its (boot, seq); what is not acknowledged when
//! a connection ends is sent again on the next. When [`UNACKED_MAX`] frames wait, the newest tick
//! is not made, and counted ([`Tally::refused`]). A frame's latency counts from when it is given to
//! its stream; how late that was against when its tick was *due* is kept beside it
//! ([`Tally::late_us`]), so that a generator that falls behind is seen.

use crate::gaps::Gaps;
use crate::rows::{self, Model, Values};
use bytes::Bytes;
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strobe_wire::ids::{BootId, HostId, SchemaId};
use strobe_wire::link::{Alpn, ConnId, Dial, Event, Link, Received, StreamId};
use strobe_wire::message::{Hello, Incoming, Message, Reader, encode};
use strobe_wire::schema::Schema;

/// What all agents of a run share.
#[derive(Debug)]
pub struct Plan {
    /// The brokers; with several, agents go where they are sent, and leave one that is silent.
    pub brokers: Vec<SocketAddr>,
    /// What each host reports.
    pub model: Arc<Model>,
    /// Time between two ticks.
    pub interval: Duration,
    /// The sections' schemas, by name and encoded.
    pub schemas: Vec<(SchemaId, Bytes)>,
}

/// What came of a run.
#[derive(Debug)]
pub struct Tally {
    /// Frames made.
    pub made: u64,
    /// Samples in them.
    pub samples: u64,
    /// Frames acknowledged.
    pub acked: u64,
    /// Ticks not made, because too much was unacknowledged.
    pub refused: u64,
    /// Bytes given to streams the first time.
    pub bytes: u64,
    /// Connections that ended before their time.
    pub closed: u64,
    /// Frames sent a second time.
    pub resent: u64,
    /// Agents that were welcomed at least once.
    pub welcomed: u64,
    /// Times that a broker sent an agent to another one.
    pub redirected: u64,
    /// What the broker or the link said when it ended one; the first few.
    pub reasons: Vec<String>,
    /// Sent for the first time → acknowledged, µs, of each frame.
    pub ack_us: Histogram<u64>,
    /// Due → made, µs, of each tick: the generator's own lateness.
    pub late_us: Histogram<u64>,
}

/// One agent.
#[derive(Debug)]
pub struct Agent {
    plan: Arc<Plan>,
    host: HostId,
    boot: BootId,
    instance: String,
    state: State,
    reader: Reader,
    out: VecDeque<Bytes>,
    unacked: VecDeque<Unacked>,
    values: Values,
    seq: u64,
    due: Option<Instant>,
    welcomed: bool,
    /// Whom it is with, or dials: an index into the plan's brokers.
    turn: usize,
    /// Where a broker sent it.
    sent_to: Option<SocketAddr>,
    /// Whom it left because nothing was heard from there.
    silent: Option<SocketAddr>,
    /// Datagrams of the connection, and since when something is out without one coming back.
    received: u64,
    waiting: Option<Instant>,
    acked_seq: u64,
    acked_at: Option<Instant>,
    gaps: Gaps,
}

#[derive(Debug)]
struct Unacked {
    seq: u64,
    made: Instant,
    message: Bytes,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Idle,
    Waiting(Instant),
    Dialling(Instant),
    Greeting(ConnId, StreamId),
    Open(ConnId, StreamId),
}

impl Plan {
    /// For hosts of this model.
    #[must_use]
    pub fn new(brokers: Vec<SocketAddr>, model: Model, interval: Duration) -> Self {
        assert!(!brokers.is_empty(), "a fleet needs a broker");
        let encoded = |schema: &Schema| (schema.id(), encode(&Message::Schema(schema.clone())));
        let schemas = model.schemas.iter().map(encoded).collect();
        Self { brokers, model: Arc::new(model), interval, schemas }
    }
}

impl Default for Tally {
    fn default() -> Self {
        let empty = Histogram::new_with_bounds(1, ACK_US_MAX, 3).expect("fixed, valid bounds");
        Self {
            made: 0,
            samples: 0,
            acked: 0,
            refused: 0,
            bytes: 0,
            closed: 0,
            resent: 0,
            welcomed: 0,
            redirected: 0,
            reasons: Vec::new(),
            ack_us: empty.clone(),
            late_us: empty,
        }
    }
}

impl Agent {
    /// An agent that waits for [`Self::dial`]; it makes no rows before [`Self::start`].
    #[must_use]
    pub fn new(plan: Arc<Plan>, host: HostId, boot: BootId) -> Self {
        let [_, _, _, _, _, _, _, _, seed @ ..] = host.0.to_le_bytes();
        let values = Values::new(Arc::clone(&plan.model), u64::from_le_bytes(seed));
        Self {
            plan,
            host,
            boot,
            instance: format!("load-{:08x}", host.0 >> 96),
            state: State::Idle,
            reader: Reader::default(),
            out: VecDeque::new(),
            unacked: VecDeque::new(),
            values,
            seq: 0,
            due: None,
            welcomed: false,
            turn: usize::try_from(host.0 % 1024).unwrap_or(0),
            sent_to: None,
            silent: None,
            received: 0,
            waiting: None,
            acked_seq: 0,
            acked_at: None,
            gaps: Gaps::default(),
        }
    }

    /// Frames that it made.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.seq
    }

    /// Its times without an acknowledgement.
    #[must_use]
    pub fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    fn target(&self) -> SocketAddr {
        self.sent_to.unwrap_or_else(|| self.plan.brokers[self.turn % self.plan.brokers.len()])
    }

    /// Gives it another name than its own; before it dials.
    pub fn name(&mut self, instance: String) {
        self.instance = instance;
    }

    /// Dials now.
    pub fn dial(&mut self, now: Instant) {
        self.state = State::Waiting(now);
    }

    /// Makes rows from `first` on.
    pub fn start(&mut self, first: Instant) {
        self.due = Some(first);
    }

    /// Makes no more rows; what is unacknowledged is still seen through.
    pub fn stop(&mut self) {
        self.due = None;
    }

    /// Frames made and not acknowledged.
    #[must_use]
    pub fn unacked(&self) -> usize {
        self.unacked.len()
    }

    /// When [`Self::act`] has something to do at the latest, the link apart.
    #[must_use]
    pub fn timeout(&self) -> Option<Instant> {
        let until = match self.state {
            State::Waiting(until) => Some(until),
            State::Dialling(since) => Some(since + DIAL_MAX),
            State::Idle | State::Greeting(..) | State::Open(..) => None,
        };
        let silence = self.waiting.map(|since| since + SILENCE);
        [until, silence, self.due].into_iter().flatten().min()
    }

    /// Does what `now` asks for: events, dialling, rows, and everything on to the stream.
    pub fn act(&mut self, now: Instant, wall_ns: i64, link: &mut Link, tally: &mut Tally) {
        while let Some(event) = link.poll() {
            self.on_event(now, link, &event, tally);
        }
        if let State::Waiting(until) = self.state
            && until <= now
        {
            match link.connect(now, self.target(), &Dial::With(Alpn::Agent)) {
                Ok(_) => self.state = State::Dialling(now),
                Err(why) => self.lost(now, &why.to_string(), tally),
            }
        }
        self.listen(now, link, tally);
        while let Some(due) = self.due
            && due <= now
        {
            self.due = Some(due + self.plan.interval);
            // One that is late by whole intervals has that many ticks to make, each of its own time.
            let behind = (now - due).as_nanos() / self.plan.interval.as_nanos().max(1);
            let behind_ns = behind * self.plan.interval.as_nanos();
            let wall_ns = wall_ns.saturating_sub(i64::try_from(behind_ns).unwrap_or(0));
            self.tick(now, wall_ns, tally);
            tally.late_us.saturating_record(micros(now, due));
        }
        self.send(now, link);
    }

    /// Leaves a broker from which nothing comes, where there is another one.
    fn listen(&mut self, now: Instant, link: &mut Link, tally: &mut Tally) {
        if let State::Dialling(since) = self.state
            && since + DIAL_MAX <= now
        {
            link.close_all(now, "no answer");
            self.silent = Some(self.target());
            return self.lost(now, "no handshake", tally);
        }
        let (State::Greeting(conn, _) | State::Open(conn, _)) = self.state else { return };
        let received = link.traffic(conn).map_or(0, |traffic| traffic.received);
        if received != self.received {
            (self.received, self.waiting) = (received, None);
        }
        if 1 < self.plan.brokers.len() && self.waiting.is_some_and(|since| since + SILENCE <= now) {
            link.close(now, conn, "silence");
            self.silent = Some(self.target());
            self.lost(now, "silence", tally);
        }
    }

    fn tick(&mut self, now: Instant, wall_ns: i64, tally: &mut Tally) {
        if !self.has_room() {
            tally.refused += 1;
            return;
        }
        self.values.tick(wall_ns);
        let values = std::mem::take(&mut self.values.values);
        self.push(now, wall_ns, &values, tally);
        self.values.values = values;
    }

    /// Whether there is room for another row of all sections.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.unacked.len() + self.plan.schemas.len() <= UNACKED_MAX
    }

    /// Sends the values of all sections as of `wall_ns`, which may be long ago.
    pub fn push(&mut self, now: Instant, wall_ns: i64, values: &[u64], tally: &mut Tally) {
        let plan = Arc::clone(&self.plan);
        for ((schema, _), values) in plan.schemas.iter().zip(plan.model.sections(values)) {
            self.seq += 1;
            let row = (*schema, values);
            let message = rows::message(self.host, self.boot, self.seq, wall_ns, row);
            tally.made += 1;
            tally.samples += values.len() as u64;
            tally.bytes += message.len() as u64;
            if matches!(self.state, State::Open(..)) {
                self.out.push_back(message.clone());
            }
            self.unacked.push_back(Unacked { seq: self.seq, made: now, message });
        }
    }

    fn on_event(&mut self, now: Instant, link: &mut Link, event: &Event, tally: &mut Tally) {
        match event {
            Event::Connected { conn, .. } => {
                let Some(stream) = link.open(*conn) else {
                    link.close(now, *conn, "no stream");
                    return self.lost(now, "the broker allows no stream", tally);
                };
                self.state = State::Greeting(*conn, stream);
                self.reader = Reader::default();
                self.out.clear();
                if 1 < self.plan.brokers.len() {
                    let silent = self.silent.map(|broker| broker.to_string()).unwrap_or_default();
                    let acknowledged_seq = self.acked_seq;
                    self.out.push_back(encode(&Message::Resume { acknowledged_seq, silent }));
                }
                self.out.push_back(encode(&Message::Hello(self.hello())));
            }
            Event::Readable { .. } => self.read(now, link, tally),
            Event::Closed { why, .. } => self.lost(now, &why.to_string(), tally),
            Event::Opened { .. } | Event::Writable { .. } | Event::Room { .. } => {}
        }
    }

    fn read(&mut self, now: Instant, link: &mut Link, tally: &mut Tally) {
        let (State::Greeting(conn, stream) | State::Open(conn, stream)) = self.state else {
            return;
        };
        loop {
            let received = link.recv(conn, stream, &mut self.reader);
            loop {
                match self.reader.pull() {
                    Ok(Some(Incoming::Control(message))) => {
                        if let Message::Redirect { broker } = &*message {
                            return self.sent_on(now, link, broker, tally);
                        }
                        self.on_message(now, &message, conn, stream, tally);
                    }
                    Ok(Some(Incoming::Frame(_))) => {}
                    Ok(None) => break,
                    Err(why) => {
                        link.close(now, conn, "malformed");
                        return self.lost(now, &why.to_string(), tally);
                    }
                }
            }
            match received {
                Ok(Received::More) => {}
                Ok(Received::Blocked) => return,
                Ok(Received::Finished) | Err(_) => {
                    link.close(now, conn, "the stream has ended");
                    return self.lost(now, "the broker ended the stream", tally);
                }
            }
        }
    }

    fn on_message(
        &mut self,
        now: Instant,
        message: &Message,
        conn: ConnId,
        stream: StreamId,
        tally: &mut Tally,
    ) {
        match message {
            Message::Welcome { stored_seq, .. } => {
                self.acked(now, *stored_seq, tally);
                self.state = State::Open(conn, stream);
                self.silent = None;
                self.out.extend(self.plan.schemas.iter().map(|(_, bytes)| bytes.clone()));
                if self.welcomed {
                    tally.resent += self.unacked.len() as u64;
                } else {
                    self.welcomed = true;
                    tally.welcomed += 1;
                }
                self.out.extend(self.unacked.iter().map(|waiting| waiting.message.clone()));
            }
            Message::Ack { boot, seq } if *boot == self.boot.0 => self.acked(now, *seq, tally),
            Message::Refused { why } => tally.reason(why),
            _ => {}
        }
    }

    /// To the owner of its shard.
    fn sent_on(&mut self, now: Instant, link: &mut Link, broker: &str, tally: &mut Tally) {
        tally.redirected += 1;
        link.close_all(now, "sent on");
        self.sent_to = broker.parse().ok();
        self.out.clear();
        (self.state, self.waiting) = (State::Waiting(now), None);
    }

    fn acked(&mut self, now: Instant, through: u64, tally: &mut Tally) {
        while let Some(first) = self.unacked.front()
            && first.seq <= through
        {
            tally.ack_us.saturating_record(micros(now, first.made));
            tally.acked += 1;
            self.acked_seq = first.seq;
            self.unacked.pop_front();
            if let Some(before) = self.acked_at.filter(|_| self.due.is_some()) {
                self.gaps.add(now, now.saturating_duration_since(before), self.plan.interval);
            }
            self.acked_at = Some(now);
        }
    }

    fn send(&mut self, now: Instant, link: &mut Link) {
        let (State::Greeting(conn, stream) | State::Open(conn, stream)) = self.state else {
            return;
        };
        if self.out.is_empty() {
            return;
        }
        self.waiting.get_or_insert(now);
        // An error is followed by `Closed`, which sees to it.
        let _ = link.send(conn, stream, self.out.make_contiguous());
        while self.out.front().is_some_and(Bytes::is_empty) {
            self.out.pop_front();
        }
    }

    fn lost(&mut self, now: Instant, why: &str, tally: &mut Tally) {
        tally.closed += 1;
        tally.reason(why);
        self.out.clear();
        self.waiting = None;
        // Not all of a dead broker's agents in one moment.
        let spread = Duration::from_millis(u64::try_from(self.host.0 % 200).unwrap_or(0));
        let alone = self.plan.brokers.len() == 1;
        // As strobe-agent's: one that it was sent to may also be the one whose turn it is. Whoever took
        // another turn for each one lost came back to the dead one, and waited for its handshake.
        let left = self.target();
        if self.sent_to.take().is_none() || self.target() == left {
            self.turn = self.turn.wrapping_add(1);
        }
        self.state = State::Waiting(now + if alone { REDIAL } else { spread });
    }

    fn hello(&self) -> Hello {
        Hello {
            host: self.host.0,
            boot: self.boot.0,
            instance: self.instance.clone(),
            job: "node".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: "simulated".into(),
            labels: Vec::new(),
            interval_ms: u64::try_from(self.plan.interval.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Tally {
    fn reason(&mut self, why: &str) {
        if self.reasons.len() < REASONS_MAX && !self.reasons.iter().any(|reason| reason == why) {
            self.reasons.push(why.to_owned());
        }
    }
}

fn micros(now: Instant, then: Instant) -> u64 {
    let us = now.saturating_duration_since(then).as_micros();
    u64::try_from(us).unwrap_or(u64::MAX).max(1)
}

/// Frames that wait for their acknowledgement at once, an agent: ten minutes of one section a second.
pub const UNACKED_MAX: usize = 600;
/// Time until a lost agent dials again.
const REDIAL: Duration = Duration::from_secs(1);
/// Nothing comes back for so long: the broker is left. As strobe-agent's doubt and grace.
const SILENCE: Duration = Duration::from_millis(700);
const DIAL_MAX: Duration = Duration::from_secs(2);
/// Different reasons kept.
const REASONS_MAX: usize = 8;
/// Latencies above this are counted as this.
const ACK_US_MAX: u64 = 10 * 60 * 1_000_000;
