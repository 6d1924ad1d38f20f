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
//! Invariants: a frame's host is its certificate's; a (host, boot, seq) is stored at most once,
//! across sessions and restarts; of two live boots of one host one is told that it is forked; what is acknowledged
//! is on disk ([`Ingest::stored`] moves only when the writer says so).

use crate::window::{Admitted, Window};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use strobe_wire::frame::{self, ArchivedLoss, FrameError, FrameKind, Header, Loss, Payload};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};
use strobe_wire::limits::{
    LABEL_VALUE_BYTES_MAX, LABELS_MAX, TIME_AHEAD_MAX_MS, TIME_BEHIND_MAX_MS,
};
use strobe_wire::message::Hello;
use strobe_wire::schema::{Schema, SchemaError, is_label_name};

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

/// Why a session is closed. `Display` is what the peer is told.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// Another host's frame or hello.
    #[error("the certificate is {certified}'s, but the message says {claimed}")]
    Identity {
        /// The certificate's.
        certified: HostId,
        /// The message's.
        claimed: HostId,
    },
    /// A frame of another boot than the hello's.
    #[error("a frame of boot {claimed} came on the session of boot {wanted}")]
    Boot {
        /// The hello's.
        wanted: BootId,
        /// The frame's.
        claimed: BootId,
    },
    /// The same host id is live with another boot.
    #[error(
        "host {host} is already connected as another agent process; if its state directory was \
         copied, delete the copy's identity; if it was restarted, try again in a few seconds"
    )]
    Forked {
        /// The host.
        host: HostId,
    },
    /// A hello that breaks the data model.
    #[error("the hello is refused: {0}")]
    Hello(&'static str),
    /// Something before the hello, or a second hello.
    #[error("messages came in the wrong order: {0}")]
    Order(&'static str),
    /// A schema that breaks the data model.
    #[error("a schema is refused: {0}")]
    Schema(#[from] SchemaError),
    /// A frame that is none.
    #[error("a frame is refused: {0}")]
    Frame(#[from] FrameError),
    /// A row before its schema.
    #[error("a row of schema {0} came before the schema itself")]
    UnknownSchema(SchemaId),
    /// A row that is wider or narrower than its schema.
    #[error("a row of schema {schema} has {found} values; the schema has {wanted} columns")]
    Width {
        /// The schema.
        schema: SchemaId,
        /// Columns.
        wanted: usize,
        /// Values.
        found: usize,
    },
    /// Sequence number 0, or too many holes.
    #[error("frame {0} is out of sequence: too many frames before it are missing")]
    Sequence(u64),
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

#[derive(Debug)]
struct Session {
    host: HostId,
    boot: BootId,
    certificate: [u8; 32],
    interval_ms: i64,
    heard_ms: i64,
    begun: bool,
    schemas: HashMap<SchemaId, usize>,
    schema_order: VecDeque<SchemaId>,
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

    /// Everything of this boot up to `seq` is on disk.
    pub fn stored(&mut self, host: HostId, boot: BootId, seq: u64) {
        if let Some(boot) = self.boot_mut(host, boot) {
            boot.stored = boot.stored.max(seq);
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
        let boot = self.hosts.entry(host).or_default().boot(boot, first.0);
        boot.window.cover(first.0, last.0);
        boot.stored = boot.window.through();
    }

    /// A window kept from the life before, older than anything replayed.
    pub fn restore(&mut self, host: HostId, boot: BootId, window: Window) {
        let boot = self.hosts.entry(host).or_default().boot(boot, 1);
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
        let stored = host.boot(boot_id, 1).stored;
        self.sessions.insert(
            session,
            Session {
                host: host_id,
                boot: boot_id,
                certificate: proof.certificate,
                interval_ms: i64::try_from(hello.interval_ms).unwrap_or(i64::MAX / 4),
                heard_ms: now_ms,
                begun: false,
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
        if session.schemas.insert(id, schema.columns.len()).is_none() {
            session.schema_order.push_back(id);
            if SESSION_SCHEMAS_MAX < session.schema_order.len()
                && let Some(oldest) = session.schema_order.pop_front()
            {
                session.schemas.remove(&oldest);
            }
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
            return Err(Refusal::Boot { wanted: session.boot, claimed: header.boot });
        }
        if let Payload::Row(row) = frame.payload {
            let wanted = *session
                .schemas
                .get(&header.schema)
                .ok_or(Refusal::UnknownSchema(header.schema))?;
            if row.len() != wanted {
                let (schema, found) = (header.schema, row.len());
                return Err(Refusal::Width { schema, wanted, found });
            }
        }
        if header.seq.0 == 0 || header.seq.0 == u64::MAX {
            return Err(Refusal::Sequence(header.seq.0));
        }
        session.heard_ms = now_ms;
        let window = &mut self.hosts.entry(session.host).or_default().boot(session.boot, 1).window;
        // An agent tells of a hole before it goes on behind it; its first frame may be that.
        let told = match frame.payload {
            Payload::Loss(loss) => cover(window, header.seq.0, loss),
            Payload::Row(_) | Payload::Event(_) => None,
        };
        if !std::mem::replace(&mut session.begun, true) {
            for (first, last) in window.skip_to(header.seq.0) {
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
        if in_time || !matches!(frame.payload, Payload::Row(_)) {
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

impl Refusal {
    /// One word, for counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Identity { .. } => "identity",
            Self::Boot { .. } => "boot",
            Self::Forked { .. } => "forked",
            Self::Hello(_) => "hello",
            Self::Order(_) => "order",
            Self::Schema(_) => "schema",
            Self::Frame(FrameError::Crc { .. }) => "crc",
            Self::Frame(_) => "frame",
            Self::UnknownSchema(_) => "unknown_schema",
            Self::Width { .. } => "width",
            Self::Sequence(_) => "sequence",
        }
    }
}

impl Host {
    /// The boot's window; a boot seen for the first time begins before `first`.
    fn boot(&mut self, id: BootId, first: u64) -> &mut Boot {
        let at = self.boots.iter().position(|b| b.id == id).unwrap_or_else(|| {
            if BOOTS_MAX <= self.boots.len() {
                self.boots.pop_front();
            }
            self.boots.push_back(Boot { id, window: Window::before(first), stored: 0 });
            self.boots.len() - 1
        });
        &mut self.boots[at]
    }
}

/// Why numbers of a boot are not stored.
struct Cause {
    reason: &'static str,
    first: u64,
    last: u64,
    /// When they are from, as far as it is known.
    time_ns: i64,
}

/// Closes the hole that an agent's entry of the ledger tells of, if it lies before the entry.
fn cover(window: &mut Window, seq: u64, loss: &ArchivedLoss) -> Option<(&'static str, u64, u64)> {
    let (first, last) = (loss.first.to_native(), loss.last.to_native());
    if seq <= last {
        return None;
    }
    window.cover(first, last);
    // A counter's label is not the agent's to choose.
    let reason = AGENT_REASONS.iter().find(|reason| **reason == loss.reason.as_str());
    Some((reason.copied().unwrap_or("other"), first, last))
}

/// An entry of the ledger by the broker. It stands at its last number, so that a replay of the log
/// finds all its numbers taken.
fn seal(of: &Header, cause: &Cause, now_ms: i64) -> Bytes {
    let header = Header {
        kind: FrameKind::Loss,
        seq: Seq(cause.last),
        wall_ns: now_ns(now_ms),
        schema: SchemaId(0),
        ..*of
    };
    let (reason, first, last) = (cause.reason.to_owned(), cause.first, cause.last);
    let (from_ns, to_ns) = (cause.time_ns, cause.time_ns);
    let loss = Loss { reason, first, last, from_ns, to_ns };
    Bytes::from(frame::seal_loss(&header, &loss).expect("a reason of one word fits a frame"))
}

fn count_lost(counts: &mut Counts, reason: &'static str, first: u64, last: u64) {
    let count = counts.lost.entry(reason).or_default();
    *count = count.saturating_add(last.saturating_sub(first).saturating_add(1));
}

fn now_ns(now_ms: i64) -> i64 {
    now_ms.saturating_mul(1_000_000)
}

fn fault(hello: &Hello) -> Option<&'static str> {
    let sized = |text: &str| !text.is_empty() && text.len() <= LABEL_VALUE_BYTES_MAX;
    if !sized(&hello.instance) || !sized(&hello.job) {
        return Some("instance and job must have 1 to 4096 bytes");
    }
    if 256 < hello.version.len() || 256 < hello.kernel.len() {
        return Some("version or kernel is longer than 256 bytes");
    }
    if LABELS_MAX - 2 < hello.labels.len() {
        return Some("more than 62 labels");
    }
    let reserved = |name: &str| name == "job" || name == "instance" || name.starts_with("__");
    if hello.labels.iter().any(|(name, _)| !is_label_name(name) || reserved(name)) {
        return Some("a label's name is not [a-zA-Z_][a-zA-Z0-9_]*, or is reserved");
    }
    if hello.labels.iter().any(|(_, value)| !sized(value)) {
        return Some("a label's value is empty or longer than 4096 bytes");
    }
    if !hello.labels.is_sorted_by(|a, b| a.0 < b.0) {
        return Some("labels are not sorted or one stands twice");
    }
    if !(INTERVAL_MIN_MS..=INTERVAL_MAX_MS).contains(&hello.interval_ms) {
        return Some("the interval is not within 10 ms to 1 h");
    }
    None
}

/// Reasons that agents give.
const AGENT_REASONS: [&str; 3] = ["ring_full", "oversize", "malformed"];
/// Boots remembered of one host; the oldest is forgotten. Its frames are older than the log's.
const BOOTS_MAX: usize = 16;
/// Schemas remembered of one session.
const SESSION_SCHEMAS_MAX: usize = 4096;
/// A session that was heard this recently is alive.
const FORK_MS: i64 = 3_000;
const INTERVAL_MIN_MS: u64 = 10;
const INTERVAL_MAX_MS: u64 = 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use strobe_wire::frame::{FrameKind, Header, Loss, Row};
    use strobe_wire::limits::FRAME_BYTES_MAX;
    use strobe_wire::schema::{Column, Kind, Labels};

    const NOW: i64 = 1_800_000_000_000;
    const ONE: SessionId = SessionId(1);
    const TWO: SessionId = SessionId(2);

    const SEVEN: Proof = Proof { host: HostId(7), certificate: [7; 32] };

    fn hello(boot: u128) -> Hello {
        Hello {
            host: 7,
            boot,
            instance: "a".into(),
            job: "node".into(),
            interval_ms: 1000,
            ..Hello::default()
        }
    }

    fn schema() -> Schema {
        let column = Column {
            name: "x_total".into(),
            labels: Labels::default(),
            kind: Kind::Counter { scale: 0 },
        };
        Schema { section: "host".into(), columns: vec![column] }
    }

    fn header(seq: u64) -> Header {
        Header {
            kind: FrameKind::Row,
            host: HostId(7),
            boot: BootId(1),
            seq: Seq(seq),
            wall_ns: NOW * 1_000_000,
            boottime_ns: 1,
            schema: schema().id(),
        }
    }

    fn row(header: &Header, values: &[u64]) -> Vec<u8> {
        let mut out = [0; FRAME_BYTES_MAX];
        let row = Row { values, valid: &[1], scores: &[] };
        let length = frame::seal_row(&mut out, header, &row).unwrap();
        out[..length].to_vec()
    }

    /// Number, reason, first and last of every entry that waits.
    fn losses(ingest: &mut Ingest) -> Vec<(u64, String, u64, u64)> {
        let entry = |bytes: Bytes| {
            let frame = frame::open(&bytes).unwrap();
            let Payload::Loss(loss) = frame.payload else { panic!("not a loss") };
            let (first, last) = (loss.first.to_native(), loss.last.to_native());
            (frame.header.seq.0, loss.reason.to_string(), first, last)
        };
        std::iter::from_fn(|| ingest.poll_loss()).map(entry).collect()
    }

    fn opened() -> Ingest {
        let mut ingest = Ingest::default();
        ingest.hello(ONE, SEVEN, &hello(1), NOW).unwrap();
        ingest.schema(ONE, &schema()).unwrap();
        ingest
    }

    #[test]
    fn each_refusal_is_named_and_counted() {
        let check = |change: &dyn Fn(&mut Header), values: &[u64], reason: &str| {
            let mut ingest = opened();
            let mut header = header(1);
            change(&mut header);
            let refused = ingest.frame(ONE, &row(&header, values), NOW).unwrap_err();
            assert_eq!(refused.reason(), reason, "{refused}");
            assert_eq!(ingest.counts().refused.get(reason), Some(&1));
            assert_eq!(ingest.through(HostId(7), BootId(1)), 0, "{reason} must not be taken");
        };
        check(&|h| h.host = HostId(8), &[1], "identity");
        check(&|h| h.boot = BootId(8), &[1], "boot");
        check(&|h| h.schema = SchemaId(8), &[1], "unknown_schema");
        check(&|_| {}, &[1, 2], "width");
        check(&|h| h.seq = Seq(0), &[1], "sequence");
        check(&|h| h.seq = Seq(u64::MAX), &[1], "sequence");
        let mut ingest = opened();
        let mut bytes = row(&header(1), &[1]);
        bytes[90] ^= 1;
        assert_eq!(ingest.frame(ONE, &bytes, NOW).unwrap_err().reason(), "crc");
        assert_eq!(ingest.frame(ONE, &bytes[..20], NOW).unwrap_err().reason(), "frame");
        let early = ingest.frame(TWO, &row(&header(1), &[1]), NOW).unwrap_err();
        assert_eq!(early.reason(), "order");
    }

    #[test]
    fn hostile_hellos_are_named() {
        let check = |change: &dyn Fn(&mut Hello), wanted: &str| {
            let mut said = hello(1);
            change(&mut said);
            let refused = Ingest::default().hello(ONE, SEVEN, &said, NOW).unwrap_err();
            assert!(refused.to_string().contains(wanted), "{refused}");
        };
        check(&|h| h.host = 9, "certificate");
        check(&|h| h.instance.clear(), "instance");
        check(&|h| h.job = "x".repeat(5000), "job");
        check(&|h| h.labels = vec![("job".into(), "x".into())], "reserved");
        check(&|h| h.labels = vec![("__name__".into(), "x".into())], "reserved");
        check(&|h| h.labels = vec![("b".into(), "x".into()), ("a".into(), "x".into())], "sorted");
        check(&|h| h.interval_ms = 0, "interval");
        check(&|h| h.version = "x".repeat(300), "version");
    }

    #[test]
    fn a_row_whose_time_is_far_off_becomes_a_loss_in_its_place() {
        let mut ingest = opened();
        for (seq, off_ms, wanted) in [
            (1, TIME_AHEAD_MAX_MS, Verdict::Store),
            (2, TIME_AHEAD_MAX_MS + 1, Verdict::Lost),
            (3, -TIME_BEHIND_MAX_MS, Verdict::Store),
            (4, -TIME_BEHIND_MAX_MS - 1, Verdict::Lost),
        ] {
            let mut header = header(seq);
            header.wall_ns += off_ms * 1_000_000;
            assert_eq!(ingest.frame(ONE, &row(&header, &[1]), NOW), Ok(wanted), "{off_ms}");
        }
        assert_eq!(ingest.through(HostId(7), BootId(1)), 4);
        assert_eq!(ingest.counts().lost.get("time"), Some(&2));
        assert_eq!(losses(&mut ingest), [(2, "time".to_owned(), 2, 2), (4, "time".into(), 4, 4)]);
    }

    /// A broker that lost its disk hears of an agent in the middle of its life.
    #[test]
    fn what_a_session_skips_is_told_unless_the_agent_tells_it() {
        let mut ingest = opened();
        assert_eq!(ingest.frame(ONE, &row(&header(9), &[1]), NOW), Ok(Verdict::Store));
        assert_eq!(losses(&mut ingest), [(8, "skipped".to_owned(), 1, 8)]);
        assert_eq!(ingest.counts().lost.get("skipped"), Some(&8));
        assert_eq!(ingest.through(HostId(7), BootId(1)), 9);
        let mut ingest = opened();
        let loss = Loss { reason: "ring_full".into(), first: 1, last: 8, from_ns: 0, to_ns: 0 };
        let header = Header { kind: FrameKind::Loss, ..header(9) };
        let bytes = frame::seal_loss(&header, &loss).unwrap();
        assert_eq!(ingest.frame(ONE, &bytes, NOW), Ok(Verdict::Store));
        assert_eq!(losses(&mut ingest), []);
        assert_eq!(ingest.counts().lost.get("ring_full"), Some(&8));
    }

    #[test]
    fn a_loss_closes_its_hole() {
        let mut ingest = opened();
        ingest.frame(ONE, &row(&header(1), &[1]), NOW).unwrap();
        ingest.frame(ONE, &row(&header(5), &[1]), NOW).unwrap();
        assert_eq!(ingest.through(HostId(7), BootId(1)), 1);
        let loss = Loss { reason: "ring_full".into(), first: 2, last: 4, from_ns: 0, to_ns: 0 };
        let header = Header { kind: FrameKind::Loss, ..header(6) };
        let bytes = frame::seal_loss(&header, &loss).unwrap();
        assert_eq!(ingest.frame(ONE, &bytes, NOW), Ok(Verdict::Store));
        assert_eq!(ingest.through(HostId(7), BootId(1)), 6);
    }

    /// A state directory was copied to a second machine: both say they are host 7. The later life
    /// goes on, the earlier one is told; when the later has been silent, it may come back.
    #[test]
    fn forked_hosts_are_never_merged() {
        let mut ingest = opened();
        let copy = ingest.hello(TWO, SEVEN, &hello(2), NOW).unwrap();
        assert_eq!(copy, Welcomed { stored: Seq(0), replaced: Some(ONE) });
        assert!(ingest.frame(ONE, &row(&header(2), &[1]), NOW).is_err(), "the old one is closed");
        for at_ms in [0, 2_000] {
            let forked = ingest.hello(ONE, SEVEN, &hello(1), NOW + at_ms);
            assert_eq!(forked, Err(Refusal::Forked { host: HostId(7) }));
        }
        assert_eq!(ingest.counts().refused.get("forked"), Some(&2));
        let back = ingest.hello(ONE, SEVEN, &hello(1), NOW + 9_000).unwrap();
        assert_eq!(back.replaced, Some(TWO));
    }

    /// Somebody enrolled as host 7 while host 7 is alive: a greater boot id alone proves nothing.
    #[test]
    fn another_certificate_waits_for_silence() {
        let mut ingest = opened();
        let other = Proof { certificate: [8; 32], ..SEVEN };
        let forked = ingest.hello(TWO, other, &hello(2), NOW + 2_000);
        assert_eq!(forked, Err(Refusal::Forked { host: HostId(7) }));
        ingest.frame(ONE, &row(&header(1), &[1]), NOW + 2_000).unwrap();
        let forked = ingest.hello(TWO, other, &hello(2), NOW + 4_000);
        assert_eq!(forked, Err(Refusal::Forked { host: HostId(7) }));
        assert!(ingest.hello(TWO, other, &hello(2), NOW + 9_000).is_ok());
    }

    /// An agent's connection breaks and it comes back before the broker noticed.
    #[test]
    fn the_same_boot_replaces_its_own_session_and_resends() {
        let mut ingest = opened();
        ingest.frame(ONE, &row(&header(1), &[1]), NOW).unwrap();
        let again = ingest.hello(TWO, SEVEN, &hello(1), NOW).unwrap();
        assert_eq!(again, Welcomed { stored: Seq(0), replaced: Some(ONE) }, "not on disk yet");
        ingest.schema(TWO, &schema()).unwrap();
        let verdict = ingest.frame(TWO, &row(&header(1), &[1]), NOW);
        assert_eq!(verdict, Ok(Verdict::Duplicate));
        ingest.close(ONE);
        assert!(ingest.whose(TWO).is_some(), "closing the old one leaves the new one");
    }

    proptest! {
        /// Any order of sends, resends, reconnects, failed commits and restarts: no frame is
        /// stored twice, and nothing is acknowledged that is not stored.
        #[test]
        fn stored_once_and_acknowledged_only_when_stored(
            steps in prop::collection::vec((0..12_u8, 1..40_u64), 1..120),
        ) {
            let mut ingest = opened();
            let (mut disk, mut flight) = (BTreeSet::new(), BTreeSet::new());
            let (mut session, mut skipped) = (ONE, 0);
            let mut first = true;
            for (step, seq) in steps {
                match step {
                    0 => { // Reconnect.
                        session = SessionId(session.0 + 1);
                        ingest.hello(session, SEVEN, &hello(1), NOW).unwrap();
                        ingest.schema(session, &schema()).unwrap();
                        first = true;
                    }
                    1 => { // The commit fails.
                        for seq in std::mem::take(&mut flight) {
                            ingest.forget(HostId(7), BootId(1), seq, seq);
                        }
                    }
                    2 => { // The commit succeeds.
                        disk.append(&mut flight);
                        let through = ingest.through(HostId(7), BootId(1));
                        for acked in 1..=through {
                            prop_assert!(disk.contains(&acked) || acked < skipped, "{acked}");
                        }
                        ingest.stored(HostId(7), BootId(1), through);
                    }
                    _ => {
                        if first {
                            skipped = skipped.max(seq);
                            first = false;
                        }
                        let verdict = ingest.frame(session, &row(&header(seq), &[1]), NOW);
                        if verdict == Ok(Verdict::Store) {
                            prop_assert!(!disk.contains(&seq), "{seq} stored twice");
                            prop_assert!(flight.insert(seq), "{seq} in flight twice");
                        }
                    }
                }
            }
        }
    }
}
