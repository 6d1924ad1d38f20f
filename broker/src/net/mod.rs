//! Everyone who is connected: agents' sessions, dashboards' requests and subscriptions, enrolments.
//!
//! A state machine around [`Link`] and [`Ingest`]: whoever drives it feeds datagrams to its link,
//! reports of the writer and answers of the query pool to itself, and takes [`Order`]s for the
//! writer at the end of each turn. It does no I/O but through the registry, and reads no clock.
//!
//! ```text
//! agent stream ──frames──▶ ingest ──batch──▶ writer ──report──▶ Ack (`net/copies`: when Redis has it)
//! viz stream ──ApiRequest──▶ query pool ──answer──▶ same stream, finished
//! viz stream ──Subscribe──▶ hub queue ──pumped──▶ same stream
//! enrol stream ──Enrol──▶ registry (token), certificates ──▶ Enrolled
//! agent, viz ◀──RenewDue── certificates ◀──Renew── ──▶ Enrolled
//! peer stream ◀──control plane's bytes──▶ plane (`net/peers`, `cluster`)
//! peer stream ◀──ApiRequest, ApiResponse──▶ (`net/questions`, `peers`)
//! peer stream ──Subscribe──▶ hub queue, only of what came here ──▶ the other's hub (`net/feeds`)
//! ```
//!
//! When the writer is behind or the disk is full, agents' streams are not read: QUIC's flow control
//! stops them and they keep their frames. Dashboards are answered all the same.

mod acks;
mod agents;
mod certify;
mod copies;
mod feeds;
mod joining;
mod managing;
mod owners;
mod peers;
mod questions;
mod streams;

pub use peers::Seating;
pub use streams::Place;

use crate::certificates::{CertificateCounts, Certificates, seconds};
use crate::hub::{Hub, Update};
use crate::ingest::{Counts, Ingest, SessionId};
use crate::query::Caller;
use crate::registry::{BootRecord, Registry};
use crate::store::Seen;
use crate::writer::{Batch, Item, Order, Report, Windows};
use agents::{Reached, Turn};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};
use streams::{Conn, End, Stream, StreamRole, push_update};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::link::{ConnId, Link};
use strobe_wire::message::{ApiRequest, ApiResponse, Message, encode};

/// The network side of the broker.
pub struct Net {
    /// Takes and gives datagrams.
    pub link: Link,
    ingest: Ingest,
    registry: Registry,
    hub: Hub,
    certificates: Certificates<Place>,
    conns: HashMap<ConnId, Conn>,
    sessions: BTreeMap<SessionId, Place>,
    /// Spools that are being sent, beside the live session of their connection.
    replays: BTreeMap<SessionId, Place>,
    streams: HashMap<Place, Stream>,
    subscribers: BTreeSet<Place>,
    readable: VecDeque<Place>,
    parked: Vec<Place>,
    items: Vec<Item>,
    /// Those of `items`, by index, that waited in a spool.
    late: BTreeSet<usize>,
    touched: BTreeSet<(HostId, BootId, SessionId)>,
    turns: VecDeque<Turn>,
    turn: u64,
    failures: u64,
    unkept: u64,
    frames_in_flight: usize,
    storing: Storing,
    changed: BTreeSet<HostId>,
    keep_at: Instant,
    session_next: u64,
    acks: u64,
    waits: acks::Waits,
    revocations: u64,
    /// In a cluster; none of a broker by itself.
    seat: Option<peers::Seat>,
    joining: joining::Waiting,
    questions: questions::Questions,
    feeds: feeds::Feeds,
    managing: managing::Managing,
    copies: copies::Copies,
}

/// The parts a [`Net`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The broker's side of it.
    pub link: Link,
    /// With every window that was kept.
    pub ingest: Ingest,
    /// Hosts and tokens.
    pub registry: Registry,
    /// Where subscribers listen.
    pub hub: Hub,
    /// Signs certificates.
    pub certificates: Certificates<Place>,
}

/// What an event asks of the driver.
#[derive(Debug)]
pub enum Ask {
    /// Answer this request with [`Net::answer`], while the caller is there.
    Api(Place, ApiRequest, Caller),
    /// The same for another broker, of what is here alone, by who waits for nobody.
    Peer(Place, ApiRequest, Caller),
}

/// Numbers for `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct NetCounts {
    /// What became of frames.
    pub ingest: Counts,
    /// Agents connected.
    pub sessions: usize,
    /// Connections of all kinds.
    pub connections: usize,
    /// Dashboards that listen.
    pub subscribers: usize,
    /// Frames with the writer.
    pub frames_in_flight: usize,
    /// Acknowledgements sent.
    pub acks: u64,
    /// Agents' streams whose acknowledgements wait for Redis.
    pub acks_waiting: usize,
    /// So long, in ms, 99 of 100 frames of the last seconds waited for theirs, at most.
    pub ack_ms_p99: Option<u64>,
    /// Certificates given, renewed, ended.
    pub certificates: CertificateCounts,
    /// TLS handshakes that failed.
    pub handshakes_failed: u64,
    /// Connections refused.
    pub connections_refused: u64,
    /// Whether frames are taken.
    pub storing: bool,
    /// In a cluster.
    pub cluster: Option<PeerCounts>,
}

/// Numbers of a broker in a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PeerCounts {
    /// Other brokers that this one is connected to.
    pub connected: usize,
    /// Messages of the control plane that found a queue full.
    pub dropped: u64,
    /// Agents sent to another broker.
    pub redirects: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Storing {
    Yes,
    No,
}

impl Net {
    /// Nobody is connected yet.
    #[must_use]
    pub fn new(parts: Parts, now: Instant) -> Self {
        let Parts { link, ingest, registry, hub, certificates } = parts;
        // What only the log told so far is to be kept before the log is let go of.
        let changed = ingest.windows().map(|(host, ..)| host).collect();
        Self {
            link,
            ingest,
            registry,
            hub,
            certificates,
            conns: HashMap::new(),
            sessions: BTreeMap::new(),
            replays: BTreeMap::new(),
            streams: HashMap::new(),
            subscribers: BTreeSet::new(),
            readable: VecDeque::new(),
            parked: Vec::new(),
            items: Vec::new(),
            late: BTreeSet::new(),
            touched: BTreeSet::new(),
            turns: VecDeque::new(),
            turn: 0,
            failures: 0,
            unkept: 0,
            frames_in_flight: 0,
            storing: Storing::Yes,
            changed,
            keep_at: now + KEEP_EVERY,
            session_next: 1,
            acks: 0,
            waits: acks::Waits::new(now),
            revocations: 0,
            seat: None,
            joining: joining::Waiting::default(),
            questions: questions::Questions::default(),
            feeds: feeds::Feeds::default(),
            managing: managing::Managing::default(),
            copies: copies::Copies::default(),
        }
    }

    /// When a turn is wanted at the latest, without any news.
    #[must_use]
    pub fn timeout(&self) -> Instant {
        let seat = self.seat.as_ref().map(peers::Seat::timeout);
        let managing = self.managing.timeout();
        [self.link.timeout(), seat, managing].into_iter().flatten().fold(self.keep_at, Instant::min)
    }

    /// Does what is due, takes every event of the link and reads what is readable; `ask` gets
    /// requests.
    pub fn advance(&mut self, now: Instant, now_ms: i64, ask: &mut dyn FnMut(Ask)) {
        self.link.on_timeout(now);
        self.certify(now, seconds(now_ms));
        self.close_revoked(now);
        self.tend_peers(now);
        while let Some(event) = self.link.poll() {
            self.on_event(event, now);
        }
        for _ in 0..self.readable.len() {
            let Some(place) = self.readable.pop_front() else { break };
            self.read(place, now, now_ms, ask);
        }
        self.manage(now);
    }

    /// Whether streams wait to be read without any new event.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.readable.is_empty()
    }

    /// The end of a turn: what goes to the writer, if anything, and what listeners wait for.
    pub fn end_turn(&mut self, now: Instant, now_ms: i64, order: &mut dyn FnMut(Order)) {
        self.waits.turn(now);
        if let Some(batch) = self.batch(now, now_ms) {
            order(Order::Batch(batch));
        }
        if self.keep_at <= now {
            self.keep_at = now + KEEP_EVERY;
            if let Some(windows) = self.windows() {
                order(Order::Windows(windows));
            }
        }
        self.tend_owners(now);
        self.pump();
    }

    /// The windows of every host that changed since the last time, for the writer to keep; `None`
    /// while they hold numbers that are known not to be stored, but not yet which.
    pub fn windows(&mut self) -> Option<Windows> {
        if self.is_stale() {
            return None;
        }
        let changed = std::mem::take(&mut self.changed);
        let mut hosts: BTreeMap<HostId, Vec<BootRecord>> = BTreeMap::new();
        for (host, boot, window) in self.ingest.windows() {
            if changed.contains(&host) {
                hosts.entry(host).or_default().push(BootRecord::of(boot, window));
            }
        }
        let hosts = hosts.into_iter().collect();
        Some(Windows { failures: self.failures, unkept: self.unkept, hosts })
    }

    /// Whether the writer is still to say which frames failed with the failure last heard of: every
    /// turn made before it did, and until then the windows say too much.
    fn is_stale(&self) -> bool {
        self.turns.front().is_some_and(|turn| turn.failures != self.failures)
    }

    /// The writer says what became of a turn.
    pub fn on_report(&mut self, report: Report, now: Instant) {
        match report {
            Report::Stored { turn, at } => self.on_stored(turn, at, now),
            Report::Copied { through } => self.on_copied(through),
            Report::Known(all) => self.on_known(&all),
            Report::Failed { turn, failures, frames, why } => {
                self.failures = failures;
                self.on_failed(turn, &frames, &why, now);
            }
            Report::Unkept { unkept, hosts } => {
                self.unkept = unkept;
                self.changed.extend(hosts);
            }
            Report::Stopped => self.storing = Storing::No,
            Report::Resumed => self.storing = Storing::Yes,
        }
        if self.storing == Storing::Yes && self.frames_in_flight < FRAMES_IN_FLIGHT_MAX {
            self.readable.extend(self.parked.drain(..));
        }
    }

    /// What was taken from a lost broker's log is not to be stored once more.
    fn on_known(&mut self, all: &[Seen]) {
        for Seen { host, boot, ranges } in all {
            ranges.iter().for_each(|(first, last)| self.ingest.known(*host, *boot, *first, *last));
            self.changed.insert(*host);
        }
    }

    /// A request's answer, from the query pool.
    pub fn answer(&mut self, place: Place, response: ApiResponse) {
        if let Some(stream) = self.streams.get_mut(&place) {
            stream.out.push_back(encode(&Message::ApiResponse(response)));
            stream.end = End::AfterOut;
            self.flush(place);
        }
    }

    /// Numbers for `/metrics`.
    #[must_use]
    pub fn counts(&self) -> NetCounts {
        let link = self.link.counters();
        NetCounts {
            ingest: self.ingest.counts().clone(),
            sessions: self.ingest.sessions(),
            connections: self.conns.len(),
            subscribers: self.subscribers.len(),
            frames_in_flight: self.frames_in_flight,
            acks: self.acks,
            acks_waiting: self.copies.len(),
            ack_ms_p99: self.waits.p99_ms(),
            certificates: self.certificates.counts(),
            handshakes_failed: link.handshakes_failed,
            connections_refused: link.refused_full + link.refused_role,
            storing: self.storing == Storing::Yes,
            cluster: self.seat.as_ref().map(|seat| PeerCounts {
                connected: seat.open(),
                dropped: seat.dropped(),
                redirects: seat.owners.redirects(),
            }),
        }
    }

    fn batch(&mut self, now: Instant, now_ms: i64) -> Option<Batch> {
        let nothing = self.items.is_empty() && self.touched.is_empty();
        if nothing || TURNS_MAX <= self.turns.len() || self.is_stale() {
            return None;
        }
        self.turn += 1;
        let touched = std::mem::take(&mut self.touched);
        let mut reached = Vec::with_capacity(touched.len());
        for (host, boot, session) in touched {
            self.registry.seen(host, now_ms);
            self.changed.insert(host);
            let through = self.ingest.through(host, boot);
            let acknowledged = self.ingest.through_of(session, host, boot);
            reached.push(Reached { host, boot, session, through, acknowledged });
        }
        let items = std::mem::take(&mut self.items);
        let late = std::mem::take(&mut self.late);
        self.publish(&items, &late);
        let frames = items.iter().filter(|item| matches!(item, Item::Frame(..))).count();
        self.frames_in_flight += frames;
        let (number, failures) = (self.turn, self.failures);
        self.turns.push_back(Turn { number, at: now, failures, frames, reached });
        Some(Batch { turn: number, failures, items })
    }

    /// Listeners see what was taken in before it is on disk: a live view is no promise, and a
    /// commit's 20 ms is most of what it would wait. What is not stored is sent, and seen, again.
    /// What waited in a spool is no news: it is asked for like the rest of the past.
    fn publish(&self, items: &[Item], late: &BTreeSet<usize>) {
        let heard = self.hub.is_heard();
        let mut updates = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match item {
                // Kept by the hub for those who come later, and told before its first row.
                Item::Schema(schema) => _ = self.hub.schema(schema),
                Item::Frame(bytes, _) if heard && !late.contains(&index) => {
                    updates.push(Update::Frame(bytes.clone()));
                }
                Item::Host(_) | Item::Frame(..) => {}
            }
        }
        if !updates.is_empty() {
            self.hub.publish(&updates);
        }
    }

    /// Moves subscribers' updates into their streams, as far as these take them.
    fn pump(&mut self) {
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
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("link", &self.link).finish_non_exhaustive()
    }
}

/// Turns with the writer; over it they are gathered into one.
pub const TURNS_MAX: usize = 1024;
/// Frames with the writer and not on disk: 64 MiB at 1 KiB. Over it agents are not read.
const FRAMES_IN_FLIGHT_MAX: usize = 65_536;
/// Updates moved to one subscriber at once.
const PUMP_UPDATES: usize = 512;
/// How often windows are kept.
const KEEP_EVERY: Duration = Duration::from_secs(10);
