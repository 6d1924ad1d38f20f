//! The one who writes: batches of the network loop and samples of remote-write go to the store, are
//! committed together, and are reported.
//!
//! A state machine on top of the store's files: orders and the time come in, reports and the next
//! timeout come out. Orders come in one bounded queue, first in first out; the loser when it is
//! full is named where it is filled.
//!
//! ```text
//! take ──▶ appended ──on_timeout: one fdatasync──▶ Stored ──▶ acknowledged, of class `wal`
//!                 │                                   └─ Redis has it: Copied ──▶ the others too
//!                 │            └─ refused: all of it is discarded ──▶ Failed ──▶ sent again
//!                 └ Windows: kept once what they cover is on disk; then the log may be let go of
//! ```
//!
//! A batch that could not be stored is reported as failed whole, and so is every batch after it
//! until the network loop has heard of it: otherwise an acknowledgement could skip what failed.
//! What was appended of it is discarded: it comes again, and must not be stored twice.

use crate::class::Durability;
use crate::gate::Gate;
use crate::registry::{BootRecord, Registry};
use crate::store::redis::Confirmed;
use crate::store::{RemoteSeries, Seen, StoreError, Writer};
use bytes::Bytes;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use strobe_journal::Position;
use strobe_wire::frame::{self, Payload};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::message::Hello;
use strobe_wire::schema::{Labels, Schema};

/// What the writer is told.
#[derive(Debug)]
pub enum Order {
    /// What one turn of the network loop took in.
    Batch(Batch),
    /// Samples of one remote-write request; the answer goes back when they are where this class wants.
    Samples(Vec<RemoteSeries>, Durability, SyncSender<Result<(), StoreError>>),
    /// The windows of what was handed over before this.
    Windows(Windows),
    /// Keep all that is stored, and the registry, under second names in this folder.
    Link(PathBuf, SyncSender<Result<(), String>>),
    /// Write everything and end.
    Stop,
}

/// One turn's work.
#[derive(Debug, Default)]
pub struct Batch {
    /// Number of the turn.
    pub turn: u64,
    /// Failures that the network loop had heard of when it made this.
    pub failures: u64,
    /// In the order they came.
    pub items: Vec<Item>,
}

/// The windows of hosts that changed, to be kept once what they cover is on disk.
#[derive(Debug)]
pub struct Windows {
    /// Failures that the network loop had heard of when it made this.
    pub failures: u64,
    /// As many [`Report::Unkept`] as it had heard of: only then nothing is missing here.
    pub unkept: u64,
    /// Every boot of every host that changed.
    pub hosts: Vec<(HostId, Vec<BootRecord>)>,
}

/// One thing to store.
#[derive(Debug)]
pub enum Item {
    /// A host and its labels.
    Host(Box<Hello>),
    /// Columns.
    Schema(Arc<Schema>),
    /// A frame that ingest let through, of a host of this class.
    Frame(Bytes, Durability),
}

/// What the writer says to the network loop.
#[derive(Debug)]
pub enum Report {
    /// Every batch up to this turn is on disk.
    Stored {
        /// The turn.
        turn: u64,
        /// The log's end by then.
        at: Position,
    },
    /// Redis has what it has to have of the log before this.
    Copied {
        /// The position.
        through: Position,
    },
    /// Frames that were taken from a lost broker's log.
    Known(Vec<Seen>),
    /// The batch of this turn is not.
    Failed {
        /// The turn.
        turn: u64,
        /// Failures so far; batches made before this is heard of fail too.
        failures: u64,
        /// The frames of it.
        frames: Vec<Unstored>,
        /// Why.
        why: String,
    },
    /// Windows that were not kept: they are to come again, as they are then.
    Unkept {
        /// So many were not kept so far.
        unkept: u64,
        /// Whose.
        hosts: Vec<HostId>,
    },
    /// The store refuses; what is made until `Resumed` may fail too.
    Stopped,
    /// The store takes frames again.
    Resumed,
}

/// Numbers of a boot that were taken and are not stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unstored {
    /// The host.
    pub host: HostId,
    /// Its boot.
    pub boot: BootId,
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
}

/// The writer's state: one thread owns it.
#[derive(Debug)]
pub struct Scribe {
    writer: Writer,
    registry: Registry,
    /// At most one commit in this time.
    commit_every: Duration,
    committed: Instant,
    tick_at: Instant,
    failures: u64,
    unkept: u64,
    failing: bool,
    batches: Vec<Batch>,
    waiting: Vec<(SyncSender<Result<(), StoreError>>, Durability)>,
    /// Whether something was taken that Redis has to have too.
    copied: bool,
    /// With the last WAL file that they cover whole.
    windows: Vec<(Option<u64>, Windows)>,
    /// What they cover is on disk: a slice at a time, so that no commit waits for all of a fleet.
    saves: VecDeque<Save>,
    save_at: Instant,
    hosts_at_once: usize,
    fault: Option<StoreError>,
    /// Where Redis has to have it too.
    gate: Gate,
    /// Frames of a lost broker's log that are in the next commit.
    known: Option<Vec<Seen>>,
    /// Who wants second names.
    links: Vec<(PathBuf, SyncSender<Result<(), String>>)>,
    stopping: bool,
}

/// Windows that are being kept.
#[derive(Debug)]
struct Save {
    through: Option<u64>,
    /// Those that are left.
    windows: Windows,
    /// Slices that are left: there may be hosts that changed without their windows.
    slices: usize,
}

impl Scribe {
    /// Nothing to write yet. Between two commits, `hosts_at_once` of the hosts are kept.
    #[must_use]
    pub fn new(
        writer: Writer,
        registry: Registry,
        commit_every: Duration,
        hosts_at_once: usize,
        now: Instant,
    ) -> Self {
        let gate = Gate::new(Confirmed::default(), writer.synced(), now);
        Self {
            writer,
            registry,
            commit_every,
            committed: now,
            tick_at: now + TICK_EVERY,
            failures: 0,
            unkept: 0,
            failing: false,
            batches: Vec::new(),
            waiting: Vec::new(),
            copied: false,
            windows: Vec::new(),
            saves: VecDeque::new(),
            save_at: now,
            hosts_at_once: hosts_at_once.max(1),
            fault: None,
            gate,
            known: None,
            links: Vec::new(),
            stopping: false,
        }
    }

    /// Who sends the log to Redis says here how far it is.
    #[must_use]
    pub fn behind(mut self, confirmed: Confirmed, now: Instant) -> Self {
        self.gate = Gate::new(confirmed, self.writer.synced(), now);
        self
    }

    /// Appends what an order holds.
    pub fn take(&mut self, order: Order) {
        match order {
            Order::Batch(batch) => {
                let stale = batch.failures != self.failures;
                for item in &batch.items {
                    // Hosts and schemas are not sent again: they are taken all the same.
                    if let Item::Frame(_, class) = item {
                        if stale || self.fault.is_some() {
                            continue;
                        }
                        self.copied |= class.is_copied();
                    }
                    if let Err(error) = self.append(item) {
                        self.fault.get_or_insert(error);
                    }
                }
                self.batches.push(batch);
            }
            Order::Samples(series, class, reply) => match self.writer.samples_of(&series, class) {
                Ok(()) => self.waiting.push((reply, class)),
                // The asker may be gone; then nobody wants the answer.
                Err(error) => drop(reply.try_send(Err(error))),
            },
            // What comes behind them is not in the WAL files that are closed by now.
            Order::Windows(windows) => self.windows.push((self.writer.wal_closed(), windows)),
            Order::Link(to, reply) => self.links.push((to, reply)),
            Order::Stop => self.stopping = true,
        }
    }

    /// When [`Self::on_timeout`] wants to be called at the latest: at once after a quiet time,
    /// else at most one commit an interval; a store that refuses is tried again now and then.
    #[must_use]
    pub fn timeout(&self) -> Instant {
        let idle = self.batches.is_empty() && self.waiting.is_empty() && self.windows.is_empty();
        let commit = if self.stopping || !self.links.is_empty() {
            self.committed
        } else if !idle {
            self.committed + self.commit_every
        } else if self.failing {
            self.committed + PROBE_EVERY
        } else {
            self.tick_at
        };
        let save = if self.saves.is_empty() { self.tick_at } else { self.save_at };
        let look = if self.gate.is_waiting() { self.gate.look_at } else { self.tick_at };
        commit.min(self.tick_at).min(save).min(look)
    }

    /// Whether everything is written and nothing more is wanted.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let idle = self.batches.is_empty() && self.windows.is_empty() && self.saves.is_empty();
        self.stopping && idle
    }

    /// What is due: one fdatasync for everything taken, then the reports; and a small step of the
    /// store's housekeeping.
    pub fn on_timeout(&mut self, now: Instant, now_ms: i64, report: &mut dyn FnMut(Report)) {
        self.take_in();
        let idle = self.batches.is_empty() && self.waiting.is_empty() && self.windows.is_empty();
        let every = if idle { PROBE_EVERY } else { self.commit_every };
        let due = self.committed + every <= now || self.stopping || !self.links.is_empty();
        let (idle, due) = (idle && self.known.is_none(), due || self.known.is_some());
        let tick = self.tick_at <= now;
        // Housekeeping closes the log's file, and with it commits what is appended: what is not
        // reported by then could be refused after it was stored, and be stored a second time.
        let idle = idle && self.links.is_empty();
        let wanted = if idle { due && self.failing } else { due || tick };
        if wanted {
            self.commit(now_ms, report);
            self.committed = now;
        }
        for (to, reply) in std::mem::take(&mut self.links) {
            // Who asked may have given up.
            drop(reply.try_send(self.link(&to, now_ms)));
        }
        self.gate.release(report);
        self.gate.look_at = now + self.commit_every.min(GATE_LOOK);
        while self.save_at <= now || self.stopping {
            let Some(save) = self.saves.pop_front() else { break };
            self.save_at = now + self.commit_every;
            self.save(save, report);
        }
        if tick {
            self.tick_at = now + if self.writer.is_tidy() { TICK_EVERY } else { TICK_BUSY };
            if let Err(error) = self.writer.tick(now_ms) {
                log::error!("sealing is put off: {error}");
            }
        }
    }

    fn commit(&mut self, now_ms: i64, report: &mut dyn FnMut(Report)) {
        let committed = self.fault.take().map_or_else(|| self.writer.commit(now_ms), Err);
        let windows = std::mem::take(&mut self.windows);
        match committed {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    report(Report::Resumed);
                }
                self.answer(None);
                self.settle(report);
                if let Some(known) = self.known.take() {
                    report(Report::Known(known));
                    self.gate.took(Some(self.writer.synced()));
                }
                for (through, windows) in windows {
                    self.keep(through, windows, report);
                }
            }
            Err(error) => {
                self.writer.discard();
                self.copied = false;
                if self.known.take().is_some() {
                    self.gate.took(None);
                }
                let why = error.to_string();
                if !std::mem::replace(&mut self.failing, true) {
                    report(Report::Stopped);
                    log::error!("nothing is acknowledged for now: {why}");
                }
                self.failures += u64::from(!self.batches.is_empty());
                self.answer(Some(&why));
                for batch in std::mem::take(&mut self.batches) {
                    report(failed(&batch, self.failures, why.clone()));
                }
                windows.iter().for_each(|(_, windows)| self.leave(windows, report));
            }
        }
    }

    /// Behind a commit: the windows on disk tell of nothing that the log's closed files lack.
    fn link(&mut self, to: &Path, now_ms: i64) -> Result<(), String> {
        if self.failing {
            return Err("the store takes nothing now".to_owned());
        }
        self.writer.link_to(&to.join("store"), now_ms).map_err(|why| why.to_string())?;
        self.registry.copy_to(&to.join("registry.redb")).map_err(|why| why.to_string())
    }

    fn append(&mut self, item: &Item) -> Result<(), StoreError> {
        match item {
            Item::Host(hello) => self.writer.host(
                HostId(hello.host),
                &hello.job,
                &hello.instance,
                &Labels::new(hello.labels.clone()),
            ),
            Item::Schema(schema) => self.writer.schema(schema),
            Item::Frame(bytes, class) => self.writer.frame_of(bytes, *class),
        }
    }

    /// Appends what is offered of a lost broker's log; it comes again if it cannot be.
    fn take_in(&mut self) {
        let Some(taken) = self.gate.offered() else { return };
        match self.writer.take_in(&taken) {
            Ok(damage) => {
                damage.iter().for_each(|place| log::warn!("a lost broker's log: {place}"));
                self.known = Some(taken.seen());
            }
            Err(error) => {
                log::error!("a lost broker's log is not taken in for now: {error}");
                // What was appended of it is discarded with all that was: it would stand there twice.
                self.fault.get_or_insert(error);
                self.gate.took(None);
            }
        }
    }

    /// Reports committed batches; those made before a failure was heard of failed with it.
    fn settle(&mut self, report: &mut dyn FnMut(Report)) {
        let mut stored = None;
        for batch in std::mem::take(&mut self.batches) {
            if batch.failures == self.failures {
                stored = Some(batch.turn);
            } else {
                let why = "a batch before it could not be stored".to_owned();
                report(failed(&batch, self.failures, why));
            }
        }
        let at = self.writer.synced();
        if let Some(turn) = stored {
            report(Report::Stored { turn, at });
        }
        // Who sent only what is known already waits for this position too.
        let some_wait = stored.is_some() && self.gate.is_wanted();
        if std::mem::take(&mut self.copied) || some_wait {
            self.gate.rows(at);
        }
    }

    fn answer(&mut self, why: Option<&str>) {
        for (reply, class) in std::mem::take(&mut self.waiting) {
            if why.is_none() && class.is_copied() {
                self.gate.answer(self.writer.synced(), reply);
                continue;
            }
            let answer = why.map_or(Ok(()), |why| Err(StoreError::Visitor(why.to_owned())));
            // The asker may have given up; then nobody wants the answer.
            drop(reply.try_send(answer));
        }
    }

    /// What the windows cover is on disk by now: they may be kept.
    fn keep(&mut self, through: Option<u64>, windows: Windows, report: &mut dyn FnMut(Report)) {
        if windows.failures != self.failures || SAVES_MAX <= self.saves.len() {
            return self.leave(&windows, report);
        }
        let hosts = windows.hosts.len().max(self.registry.behind());
        let slices = hosts.div_ceil(self.hosts_at_once).max(1);
        self.saves.push_back(Save { through, windows, slices });
    }

    /// The next slice; with the last one the log that the windows stand for may be let go of.
    fn save(&mut self, mut save: Save, report: &mut dyn FnMut(Report)) {
        let hosts = &mut save.windows.hosts;
        let slice = hosts.split_off(hosts.len().saturating_sub(self.hosts_at_once));
        if let Err(error) = self.registry.save(&slice, self.hosts_at_once) {
            log::error!("hosts and windows are kept in memory only for now: {error}");
            hosts.extend(slice);
            return self.leave(&save.windows, report);
        }
        save.slices -= 1;
        if 0 < save.slices {
            self.saves.push_front(save);
        } else if save.windows.unkept == self.unkept {
            self.writer.windows_kept(save.through);
        }
    }

    fn leave(&mut self, windows: &Windows, report: &mut dyn FnMut(Report)) {
        self.unkept += 1;
        let hosts = windows.hosts.iter().map(|(host, _)| *host).collect();
        report(Report::Unkept { unkept: self.unkept, hosts });
    }
}

fn failed(batch: &Batch, failures: u64, why: String) -> Report {
    let mut frames = Vec::new();
    for item in &batch.items {
        let Item::Frame(bytes, _) = item else { continue };
        let Ok(frame) = frame::open(bytes) else { continue };
        let (host, boot, seq) = (frame.header.host, frame.header.boot, frame.header.seq.0);
        frames.push(Unstored { host, boot, first: seq, last: seq });
        if let Payload::Loss(loss) = frame.payload {
            let (first, last) = (loss.first.to_native(), loss.last.to_native());
            frames.push(Unstored { host, boot, first, last });
        }
    }
    Report::Failed { turn: batch.turn, failures, frames, why }
}

/// Hosts kept between two commits: some milliseconds.
pub const HOSTS_AT_ONCE: usize = 250;
/// Windows that wait to be kept; more come again.
const SAVES_MAX: usize = 2;
/// How often a store that refuses is tried again.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Housekeeping: a step of about 10 ms, this often while there is more of it.
const TICK_BUSY: Duration = Duration::from_millis(50);
/// What waits for Redis is looked at so often: its answer takes about as long.
const GATE_LOOK: Duration = Duration::from_millis(5);
const TICK_EVERY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, StoreConfig};
    use std::cell::Cell;
    use std::path::PathBuf;
    use std::rc::Rc;
    use strobe_journal::disk::{Call, Fate, watch};
    use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
    use strobe_wire::ids::Seq;
    use strobe_wire::limits::FRAME_BYTES_MAX;
    use strobe_wire::schema::{Column, Kind};

    const T0: i64 = 1_699_999_200_000;

    fn place(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("strobe-writer-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn batch(turn: u64) -> Batch {
        let column = Column { name: "c".into(), labels: Labels::default(), kind: Kind::Float };
        let schema = Schema { section: "s".into(), columns: vec![column] };
        let header = Header {
            kind: FrameKind::Row,
            host: HostId(7),
            boot: BootId(1),
            seq: Seq(turn),
            wall_ns: T0 * 1_000_000,
            boottime_ns: 0,
            schema: schema.id(),
        };
        let mut slot = [0; FRAME_BYTES_MAX];
        let row = Row { values: &[turn], valid: &[1], scores: &[] };
        let bytes = seal_row(&mut slot, &header, &row).unwrap();
        let frame = Item::Frame(Bytes::copy_from_slice(&slot[..bytes]), Durability::Wal);
        Batch { turn, failures: 0, items: vec![Item::Schema(Arc::new(schema)), frame] }
    }

    /// Housekeeping once stored a batch that was then refused for want of space: it came again,
    /// and stood in the log twice.
    #[test]
    fn what_housekeeping_stores_is_not_refused_afterwards() {
        let dir = place("tick");
        let full = Rc::new(Cell::new(false));
        let seen = Rc::clone(&full);
        watch(move |call| match call {
            Call::Free(_) => Fate::Short(if seen.get() { 0 } else { u64::MAX / 2 }),
            _ => Fate::Pass,
        });
        let (registry, _) = Registry::open(&dir).unwrap();
        let (_store, writer, _) = Store::open(StoreConfig::at(dir.clone()), T0).unwrap();
        #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
        let start = Instant::now();
        let mut scribe = Scribe::new(writer, registry, Duration::from_millis(50), 1, start);
        let mut reports = Vec::new();
        // Housekeeping is due at 250 ms, in the middle between two commits.
        for (at_ms, turn) in [(230, Some(1)), (255, Some(2)), (290, None)] {
            if let Some(turn) = turn {
                scribe.take(Order::Batch(batch(turn)));
            }
            full.set(turn.is_none());
            let now = start + Duration::from_millis(at_ms);
            scribe.on_timeout(now, T0, &mut |report| reports.push(report));
        }
        let stored = |report: &Report| matches!(report, Report::Stored { .. });
        assert!(reports.len() == 2 && reports.iter().all(stored), "{reports:?}");
        drop(scribe);
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// What an agent sends again is known already: its turn brings a hello and no row, and its
    /// acknowledgement waits for Redis too.
    #[test]
    fn a_turn_without_a_row_is_told_when_redis_has_it() {
        let dir = place("turns");
        let (registry, _) = Registry::open(&dir).unwrap();
        let (_store, writer, _) = Store::open(StoreConfig::at(dir.clone()), T0).unwrap();
        #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
        let start = Instant::now();
        let confirmed = Confirmed::default();
        confirmed.want(true);
        // What was there at the start is told before.
        confirmed.set(writer.synced());
        let scribe = Scribe::new(writer, registry, Duration::from_millis(50), 1, start);
        let mut scribe = scribe.behind(confirmed.clone(), start);
        scribe.on_timeout(start, T0, &mut |_| ());
        let mut turn = batch(1);
        turn.items = vec![Item::Host(Box::new(Hello { host: 7, ..Hello::default() }))];
        scribe.take(Order::Batch(turn));
        let mut told = Vec::new();
        let now = start + Duration::from_millis(60);
        scribe.on_timeout(now, T0, &mut |report| told.push(report));
        let [Report::Stored { at, .. }] = told[..] else { panic!("{told:?}") };
        confirmed.set(at);
        let now = scribe.timeout();
        scribe.on_timeout(now, T0, &mut |report| told.push(report));
        assert!(matches!(told[..], [_, Report::Copied { through }] if through == at), "{told:?}");
        drop(scribe);
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// Ten thousand hosts at once held up every acknowledgement behind them.
    #[test]
    fn hosts_are_kept_a_slice_between_two_commits_and_the_rest_at_the_end() {
        let dir = place("slices");
        let (registry, _) = Registry::open(&dir).unwrap();
        for host in 1..=5 {
            registry.hello(&Hello { host, ..Hello::default() }, T0);
        }
        let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.clone()) };
        let (_store, writer, _) = Store::open(config, T0).unwrap();
        #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
        let mut now = Instant::now();
        let every = Duration::from_millis(50);
        let mut scribe = Scribe::new(writer, registry.clone(), every, 1, now);
        let hosts = (1..=4).map(|host| (HostId(host), Vec::new())).collect();
        scribe.take(Order::Windows(Windows { failures: 0, unkept: 0, hosts }));
        for behind in [4, 3, 2] {
            now += every;
            assert!(scribe.timeout() <= now);
            scribe.on_timeout(now, T0, &mut |report| panic!("{report:?}"));
            assert_eq!(registry.behind(), behind);
        }
        scribe.take(Order::Stop);
        assert!(!scribe.is_done());
        scribe.on_timeout(now, T0, &mut |report| panic!("{report:?}"));
        assert_eq!((scribe.is_done(), registry.behind()), (true, 0));
        drop(scribe);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
