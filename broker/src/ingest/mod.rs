//! Which frames of which session are stored: the checks between [`frame::open`] and the log.
//!
//! A session is one agent's stream: `Hello`, then schemas and frames. This is a state machine
//! without I/O: time and bytes come in, verdicts come out, and the caller does what they say.
//!
//! ```text
//! hello ──▶ open session ──▶ schema* ──▶ frame: Store │ Duplicate │ Lost
//!   │                                      │                        └ a loss stands in its place
//!   └ Refusal (counted, said to the peer) ─┘ the session is closed
//! ```
//!
//! (boot, seq) has no hole without a reason here either: a row whose time is out of bounds, and
//! numbers that a session skips, become entries of the loss ledger ([`Ingest::poll_loss`]).
//!
//! What waited in an agent's spool comes in a session of its own beside the live one
//! ([`Ingest::replay_begins`]): of any boot of the host, each boot's frames in order. While it does,
//! the live session begins behind a hole that is not closed.
//!
//! Invariants: a frame's host is its certificate's; a (host, boot, seq) is stored at most once,
//! across sessions and restarts; of two live boots of one host one is told that it is forked; what is acknowledged
//! is on disk ([`Ingest::stored`] moves only when the writer says so).

mod ledger;
mod refusal;
mod session;

pub use refusal::Refusal;

use crate::window::{Admitted, Window};
use bytes::Bytes;
use ledger::{Cause, count_lost, cover, now_ns, seal};
use refusal::fault;
use session::{Session, Source};
use std::collections::{BTreeMap, HashMap, VecDeque};
use strobe_wire::frame::{self, Payload};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};
use strobe_wire::limits::{TIME_AHEAD_MAX_MS, TIME_BEHIND_MAX_MS};
use strobe_wire::message::Hello;
use strobe_wire::schema::Schema;

/// A session's number, unique in one life of the broker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// Every host's windows and every open session.
#[derive(Debug, Default)]
pub struct Ingest {
    hosts: HashMap<HostId, Host>,
    sessions: HashMap<SessionId, Session>,
    /// At most a hole for each range beyond, and one more; taken after every frame.
    losses: VecDeque<Bytes>,
    counts: Counts,
}

/// How often what happened, since start.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Frames to be stored.
    pub accepted: u64,
    /// Frames that were stored before.
    pub duplicate: u64,
    /// What was refused, by [`Refusal::reason`].
    pub refused: BTreeMap<&'static str, u64>,
    /// Frames that the loss ledger tells of, by reason: the agents' and the broker's.
    pub lost: BTreeMap<&'static str, u64>,
}

/// What to do with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Append it to the log.
    Store,
    /// It is stored or on its way; acknowledge it with the others.
    Duplicate,
    /// Its time is out of bounds, and would be for ever: an entry of the loss ledger is stored in
    /// its place.
    Lost,
}

/// Who a peer has proved to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof {
    /// The host that its certificate names.
    pub host: HostId,
    /// SHA-256 of the certificate.
    pub certificate: [u8; 32],
}

/// A session that may begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcomed {
    /// What `Welcome` says: the agent goes on behind it.
    pub stored: Seq,
    /// An older session of the same host that this one replaces; close it.
    pub replaced: Option<SessionId>,
}

#[derive(Debug, Default)]
struct Host {
    boots: VecDeque<Boot>,
    live: Option<SessionId>,
}

#[derive(Debug)]
struct Boot {
    id: BootId,
    window: Window,
    /// Everything up to this is on disk.
    stored: u64,
}

impl Ingest {
    /// A session begins.
    ///
    /// # Errors
    /// The session must be closed, and the peer told why.
    pub fn hello(
        &mut self,
        session: SessionId,
        proof: Proof,
        hello: &Hello,
        now_ms: i64,
    ) -> Result<Welcomed, Refusal> {
        let result = self.try_hello(session, proof, hello, now_ms);
        self.count(result)
    }

    /// The columns of the rows to come.
    ///
    /// # Errors
    /// The session must be closed.
    pub fn schema(&mut self, session: SessionId, schema: &Schema) -> Result<SchemaId, Refusal> {
        let result = self.try_schema(session, schema);
        self.count(result)
    }

    /// A frame.
    ///
    /// # Errors
    /// The session must be closed; the agent keeps the frame.
    pub fn frame(
        &mut self,
        session: SessionId,
        bytes: &[u8],
        now_ms: i64,
    ) -> Result<Verdict, Refusal> {
        let result = self.try_frame(session, bytes, now_ms);
        match &result {
            Ok(Verdict::Store) => self.counts.accepted += 1,
            Ok(Verdict::Duplicate) => self.counts.duplicate += 1,
            Ok(Verdict::Lost) | Err(_) => {}
        }
        self.count(result)
    }

    /// The next entry of the loss ledger that the last frame made: to be stored before it.
    pub fn poll_loss(&mut self) -> Option<Bytes> {
        self.losses.pop_front()
    }

    /// The session's stream or connection is gone.
    pub fn close(&mut self, session: SessionId) {
        if let Some(closed) = self.sessions.remove(&session)
            && let Some(host) = self.hosts.get_mut(&closed.host)
            && host.live == Some(session)
        {
            host.live = None;
        }
    }

    /// Host and boot of an open session.
    #[must_use]
    pub fn whose(&self, session: SessionId) -> Option<(HostId, BootId)> {
        self.sessions.get(&session).map(|s| (s.host, s.boot))
    }

    /// The last number of the session's boot behind which nothing is open. It may be acknowledged
    /// as soon as everything handed to the writer up to now is on disk.
    #[must_use]
    pub fn through(&self, host: HostId, boot: BootId) -> u64 {
        self.boot(host, boot).map_or(0, |b| b.window.through())
    }

    /// As [`Self::through`], from the session's first frame on.
    #[must_use]
    pub fn through_of(&self, session: SessionId, host: HostId, boot: BootId) -> u64 {
        match self.sessions.get(&session).map(|session| session.source) {
            Some(Source::Beside { first: Some(first) }) => {
                self.boot(host, boot).map_or(0, |b| b.window.through_from(first))
            }
            _ => self.through(host, boot),
        }
    }

    /// The session's host has a spool, with `first..=last` of this boot. In a cluster, other brokers have
    /// acknowledged up to `elsewhere` what does not come in the spool: that is neither missing here nor
    /// to be taken.
    pub fn spooled(
        &mut self,
        session: SessionId,
        (first, last): (u64, u64),
        elsewhere: Option<u64>,
    ) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        known.source = Source::Beside { first: None };
        let (host, boot) = (known.host, known.boot);
        known.elsewhere = elsewhere.map(|seq| (boot, seq));
        let acknowledged = elsewhere.unwrap_or(0);
        if let Some(boot) = self.boot_mut(host, boot) {
            boot.window.cover(1, acknowledged.min(first.saturating_sub(1)));
            boot.window.cover(last.saturating_add(1), acknowledged.min(u64::MAX - 1));
        }
    }

    /// The host of an open session sends its spool in a session of its own.
    ///
    /// # Errors
    /// There is no such session.
    pub fn replay_begins(&mut self, session: SessionId, live: SessionId) -> Result<(), Refusal> {
        let order = Refusal::Order("a spool before the hello");
        let live = self.sessions.get(&live).ok_or(order)?;
        let (schemas, schema_order) = (HashMap::new(), VecDeque::new());
        let source = Source::Spool;
        let spool = Session { source, schemas, schema_order, ..*live };
        self.sessions.insert(session, spool);
        Ok(())
    }

    /// Everything of this boot up to `seq` is on disk.
    pub fn stored(&mut self, host: HostId, boot: BootId, seq: u64) {
        if let Some(boot) = self.boot_mut(host, boot) {
            boot.stored = boot.stored.max(seq);
        }
    }

    /// The host says that another broker has acknowledged everything of this boot up to `seq`: that is
    /// neither missing here nor to be taken. It can only harm itself by saying so.
    pub fn elsewhere(&mut self, host: HostId, boot: BootId, seq: u64) {
        if let Some(boot) = self.boot_mut(host, boot) {
            boot.window.cover(1, seq.min(u64::MAX - 1));
            boot.stored = boot.stored.max(seq.min(boot.window.through()));
        }
    }

    /// These were to be stored and were not: they may come again.
    pub fn forget(&mut self, host: HostId, boot: BootId, first: u64, last: u64) {
        if let Some(boot) = self.boot_mut(host, boot) {
            boot.window.forget(first, last);
        }
    }

    /// Frames `first..=last` were found in the log at start.
    pub fn replay(&mut self, host: HostId, boot: BootId, first: Seq, last: Seq) {
        // What is before them in a log without a kept window may still wait in the agent's spool.
        let boot = self.hosts.entry(host).or_default().boot(boot);
        boot.window.cover(first.0, last.0);
        boot.stored = boot.window.through();
    }

    /// Frames `first..=last` were taken from a lost broker's log; what came here itself may still be on
    /// its way to the disk.
    pub fn known(&mut self, host: HostId, boot: BootId, first: u64, last: u64) {
        let boot = self.hosts.entry(host).or_default().boot(boot);
        boot.window.cover(first, last.min(u64::MAX - 1));
    }

    /// A window kept from the life before, older than anything replayed.
    pub fn restore(&mut self, host: HostId, boot: BootId, window: Window) {
        let boot = self.hosts.entry(host).or_default().boot(boot);
        boot.stored = window.through();
        boot.window = window;
    }

    /// Every window, as it has to be kept.
    pub fn windows(&self) -> impl Iterator<Item = (HostId, BootId, &Window)> {
        self.hosts
            .iter()
            .flat_map(|(id, host)| host.boots.iter().map(move |b| (*id, b.id, &b.window)))
    }

    /// How often what happened.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Open sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    fn try_hello(
        &mut self,
        session: SessionId,
        proof: Proof,
        hello: &Hello,
        now_ms: i64,
    ) -> Result<Welcomed, Refusal> {
        let (host_id, boot_id) = (HostId(hello.host), BootId(hello.boot));
        if host_id != proof.host {
            return Err(Refusal::Identity { certified: proof.host, claimed: host_id });
        }
        if self.sessions.contains_key(&session) {
            return Err(Refusal::Order("a second hello"));
        }
        if let Some(why) = fault(hello) {
            return Err(Refusal::Hello(why));
        }
        let host = self.hosts.entry(host_id).or_default();
        let replaced = host.live;
        if let Some(other) = replaced.and_then(|id| self.sessions.get(&id)) {
            // A later life that holds the same key is a restart: the old one is not waited for. If
            // it was a copy, the original comes back, is the earlier life, and is told so.
            let restarted = other.boot <= boot_id && other.certificate == proof.certificate;
            let silent_ms = now_ms.saturating_sub(other.heard_ms);
            let alive = silent_ms < FORK_MS.max(3 * other.interval_ms);
            if other.boot != boot_id && !restarted && alive {
                return Err(Refusal::Forked { host: host_id });
            }
        }
        if let Some(old) = replaced {
            self.sessions.remove(&old);
        }
        host.live = Some(session);
        let stored = host.boot(boot_id).stored;
        self.sessions.insert(
            session,
            Session {
                host: host_id,
                boot: boot_id,
                certificate: proof.certificate,
                interval_ms: i64::try_from(hello.interval_ms).unwrap_or(i64::MAX / 4),
                heard_ms: now_ms,
                source: Source::Live { begun: false },
                elsewhere: None,
                schemas: HashMap::new(),
                schema_order: VecDeque::new(),
            },
        );
        Ok(Welcomed { stored: Seq(stored), replaced })
    }

    fn try_schema(&mut self, session: SessionId, schema: &Schema) -> Result<SchemaId, Refusal> {
        let session =
            self.sessions.get_mut(&session).ok_or(Refusal::Order("a schema before the hello"))?;
        schema.check()?;
        let id = schema.id();
        if session.schemas.insert(id, schema.columns.len()).is_some() {
            // Told again is the newest again: an agent forgets from time to time what it told.
            session.schema_order.retain(|known| *known != id);
        }
        session.schema_order.push_back(id);
        if SESSION_SCHEMAS_MAX < session.schema_order.len()
            && let Some(oldest) = session.schema_order.pop_front()
        {
            session.schemas.remove(&oldest);
        }
        Ok(id)
    }

    fn try_frame(
        &mut self,
        session: SessionId,
        bytes: &[u8],
        now_ms: i64,
    ) -> Result<Verdict, Refusal> {
        let session =
            self.sessions.get_mut(&session).ok_or(Refusal::Order("a frame before the hello"))?;
        let frame = frame::open(bytes)?;
        let header = frame.header;
        if header.host != session.host {
            return Err(Refusal::Identity { certified: session.host, claimed: header.host });
        }
        if header.boot != session.boot {
            if session.source != Source::Spool {
                return Err(Refusal::Boot { wanted: session.boot, claimed: header.boot });
            }
            session.boot = header.boot;
        }
        if let Some(found) = frame.payload.columns() {
            let wanted = *session
                .schemas
                .get(&header.schema)
                .ok_or(Refusal::UnknownSchema(header.schema))?;
            if found != wanted {
                let schema = header.schema;
                return Err(Refusal::Width { schema, wanted, found });
            }
        }
        if header.seq.0 == 0 || header.seq.0 == u64::MAX {
            return Err(Refusal::Sequence(header.seq.0));
        }
        session.heard_ms = now_ms;
        let window = &mut self.hosts.entry(session.host).or_default().boot(session.boot).window;
        // An agent tells of a hole before it goes on behind it; its first frame may be that.
        let told = match frame.payload {
            Payload::Loss(loss) => cover(window, header.seq.0, loss),
            Payload::Row(_) | Payload::Event(_) | Payload::Burst(_) => None,
        };
        if session.source.closes_holes(header.seq.0) {
            let elsewhere = session.acknowledged_elsewhere(header.boot);
            for (first, last) in window.skip_to(header.seq.0) {
                let first = first.max(elsewhere.saturating_add(1));
                if last < first {
                    continue;
                }
                let skipped = Cause { reason: "skipped", first, last, time_ns: now_ns(now_ms) };
                self.losses.push_back(seal(&header, &skipped, now_ms));
                count_lost(&mut self.counts, skipped.reason, first, last);
            }
        }
        match window.admit(header.seq.0) {
            Admitted::Duplicate => return Ok(Verdict::Duplicate),
            Admitted::Full => return Err(Refusal::Sequence(header.seq.0)),
            Admitted::New => {}
        }
        if let Some((reason, first, last)) = told {
            count_lost(&mut self.counts, reason, first, last);
        }
        let ahead_ms = (header.wall_ns / 1_000_000).saturating_sub(now_ms);
        let in_time = (-TIME_BEHIND_MAX_MS..=TIME_AHEAD_MAX_MS).contains(&ahead_ms);
        // The bounds keep blocks apart; what is told in words is told whatever the clock says.
        if in_time || frame.payload.columns().is_none() {
            return Ok(Verdict::Store);
        }
        let seq = header.seq.0;
        let late = Cause { reason: "time", first: seq, last: seq, time_ns: header.wall_ns };
        self.losses.push_back(seal(&header, &late, now_ms));
        count_lost(&mut self.counts, late.reason, seq, seq);
        Ok(Verdict::Lost)
    }

    fn count<T>(&mut self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        if let Err(refusal) = &result {
            *self.counts.refused.entry(refusal.reason()).or_default() += 1;
        }
        result
    }

    fn boot(&self, host: HostId, boot: BootId) -> Option<&Boot> {
        self.hosts.get(&host)?.boots.iter().find(|b| b.id == boot)
    }

    fn boot_mut(&mut self, host: HostId, boot: BootId) -> Option<&mut Boot> {
        self.hosts.get_mut(&host)?.boots.iter_mut().find(|b| b.id == boot)
    }
}

impl Host {
    /// The boot, of which nothing is stored if it is seen for the first time.
    fn boot(&mut self, id: BootId) -> &mut Boot {
        let at = self.boots.iter().position(|b| b.id == id).unwrap_or_else(|| {
            if BOOTS_MAX <= self.boots.len()
                && let Some((oldest, _)) = self.boots.iter().enumerate().min_by_key(|(_, b)| b.id)
            {
                // Not the one that came first: a spool may come with boots before the live one.
                self.boots.remove(oldest);
            }
            self.boots.push_back(Boot { id, window: Window::default(), stored: 0 });
            self.boots.len() - 1
        });
        &mut self.boots[at]
    }
}

/// Boots remembered of one host; the oldest is forgotten. Its frames are older than the log's.
const BOOTS_MAX: usize = 16;
/// Schemas remembered of one session.
const SESSION_SCHEMAS_MAX: usize = 4096;
/// A session that was heard this recently is alive.
const FORK_MS: i64 = 3_000;

#[cfg(test)]
mod tests;
