//! The one who writes: batches of the network loop and samples of remote-write go to the store, are
//! committed together, and are reported.
//!
//! Orders come in one bounded queue, first in first out; the loser when it is full is named where
//! it is filled. A batch that could not be stored is reported as failed whole, and so is every
//! batch after it until the network loop has heard of it: otherwise an acknowledgement could skip
//! what failed.

use crate::hub::{Hub, Update};
use crate::registry::{BootRecord, Registry};
use crate::store::{RemoteSeries, StoreError, Writer};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use strobe_wire::frame;
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::message::Hello;
use strobe_wire::schema::{Labels, Schema};

/// What the writer is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// What one turn of the network loop took in.
    Batch(Batch),
    /// Samples of one remote-write request; the answer goes back when they are on disk.
    Samples(Vec<RemoteSeries>, SyncSender<Result<(), StoreError>>),
    /// The windows of what was handed over before this.
    Windows {
        /// Failures that the network loop had heard of then.
        failures: u64,
        /// The windows of hosts that changed.
        windows: Vec<(HostId, Vec<BootRecord>)>,
    },
    /// Write everything and end.
    Stop,
}

/// One turn's work.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Number of the turn.
    pub(crate) turn: u64,
    /// Failures that the network loop had heard of when it made this.
    pub(crate) failures: u64,
    /// In the order they came.
    pub(crate) items: Vec<Item>,
}

/// One thing to store.
#[derive(Debug)]
pub(crate) enum Item {
    /// A host and its labels.
    Host(Box<Hello>),
    /// Columns.
    Schema(Arc<Schema>),
    /// A frame that ingest let through.
    Frame(Bytes),
}

/// What the writer says to the network loop.
#[derive(Debug)]
pub(crate) enum Report {
    /// Every batch up to this turn is on disk.
    Stored {
        /// The turn.
        turn: u64,
    },
    /// The batch of this turn is not.
    Failed {
        /// The turn.
        turn: u64,
        /// Failures so far; batches made before this is heard of fail too.
        failures: u64,
        /// The frames of it.
        frames: Vec<(HostId, BootId, Seq)>,
        /// Why.
        why: String,
    },
    /// The store takes frames again.
    Resumed,
}

/// The writer's state: one thread owns it.
#[derive(Debug)]
pub(crate) struct Scribe {
    writer: Writer,
    registry: Registry,
    hub: Hub,
    failures: u64,
    failing: bool,
    batches: Vec<Batch>,
    waiting: Vec<SyncSender<Result<(), StoreError>>>,
    windows: Vec<Windows>,
    fault: Option<StoreError>,
}

/// The windows of hosts that changed, to be kept once what they cover is on disk.
#[derive(Debug)]
struct Windows {
    failures: u64,
    hosts: Vec<(HostId, Vec<BootRecord>)>,
}

/// Whether the thread goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// More orders may be taken before the commit.
    Gather,
    /// Commit now.
    Commit,
    /// Commit and end.
    End,
}

impl Scribe {
    pub(crate) fn new(writer: Writer, registry: Registry, hub: Hub) -> Self {
        Self {
            writer,
            registry,
            hub,
            failures: 0,
            failing: false,
            batches: Vec::new(),
            waiting: Vec::new(),
            windows: Vec::new(),
            fault: None,
        }
    }

    /// Appends what an order holds.
    pub(crate) fn take(&mut self, order: Order) -> Next {
        match order {
            Order::Batch(batch) => {
                let stale = batch.failures != self.failures;
                if !stale && !self.failing && self.fault.is_none() {
                    for item in &batch.items {
                        if let Err(error) = self.append(item) {
                            self.fault = Some(error);
                            break;
                        }
                    }
                }
                self.batches.push(batch);
                Next::Gather
            }
            Order::Samples(series, reply) => {
                match self.writer.samples(&series) {
                    Ok(()) => self.waiting.push(reply),
                    // The asker may be gone; then nobody wants the answer.
                    Err(error) => drop(reply.try_send(Err(error))),
                }
                Next::Gather
            }
            Order::Windows { failures, windows } => {
                self.windows.push(Windows { failures, hosts: windows });
                Next::Commit
            }
            Order::Stop => Next::End,
        }
    }

    /// Whether anything waits for a commit.
    pub(crate) fn is_idle(&self) -> bool {
        self.batches.is_empty() && self.waiting.is_empty() && self.windows.is_empty()
    }

    /// One fdatasync for everything taken; then reports, subscribers and, where windows came, the
    /// registry and the store's housekeeping.
    pub(crate) fn commit(&mut self, now_ms: i64, report: &mut dyn FnMut(Report)) {
        let fault = self.fault.take();
        let committed = match fault {
            None => self.writer.commit(now_ms),
            Some(error) => {
                // What was appended before the fault may become durable; it is not acknowledged
                // and comes again, and its windows are reset by the report.
                Err(error)
            }
        };
        let good = match committed {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    report(Report::Resumed);
                }
                self.answer(None);
                self.settle(report);
                if let Err(error) = self.writer.work(now_ms) {
                    log::error!("sealing is put off: {error}");
                }
                true
            }
            Err(error) => {
                let why = error.to_string();
                if !std::mem::replace(&mut self.failing, true) {
                    log::error!("nothing is acknowledged for now: {why}");
                }
                self.failures += u64::from(!self.batches.is_empty());
                self.answer(Some(&why));
                for batch in std::mem::take(&mut self.batches) {
                    report(failed(&batch, self.failures, why.clone()));
                }
                false
            }
        };
        for Windows { failures, hosts: windows } in std::mem::take(&mut self.windows) {
            if good && failures == self.failures {
                self.keep(&windows);
            }
        }
    }

    /// Whether the store refused last time.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing
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
            Item::Frame(bytes) => self.writer.frame(bytes),
        }
    }

    /// Reports and publishes committed batches; those made before a failure was heard of failed
    /// with it.
    fn settle(&mut self, report: &mut dyn FnMut(Report)) {
        let heard = self.hub.is_heard();
        let mut stored = None;
        for batch in std::mem::take(&mut self.batches) {
            if batch.failures != self.failures {
                let why = "a batch before it could not be stored".to_owned();
                report(failed(&batch, self.failures, why));
                continue;
            }
            stored = Some(batch.turn);
            let frames = batch.items.iter().filter_map(|item| match item {
                Item::Frame(bytes) if heard => Some(Update::Frame(bytes.clone())),
                Item::Schema(schema) => {
                    self.hub.schema(schema);
                    None
                }
                Item::Host(_) | Item::Frame(_) => None,
            });
            let updates: Vec<Update> = frames.collect();
            self.hub.publish(&updates);
        }
        if let Some(turn) = stored {
            report(Report::Stored { turn });
        }
    }

    fn answer(&mut self, why: Option<&str>) {
        for reply in std::mem::take(&mut self.waiting) {
            let answer = why.map_or(Ok(()), |why| Err(StoreError::Visitor(why.to_owned())));
            // The asker may have given up; then nobody wants the answer.
            drop(reply.try_send(answer));
        }
    }

    /// Windows first, then the housekeeping that may let go of the log they stand for.
    fn keep(&mut self, windows: &[(HostId, Vec<BootRecord>)]) {
        if let Err(error) = self.registry.save(windows) {
            log::error!("hosts and windows are kept in memory only for now: {error}");
            return;
        }
        if let Err(error) = self.writer.release() {
            log::error!("the write-ahead log stays: {error}");
        }
    }
}

fn failed(batch: &Batch, failures: u64, why: String) -> Report {
    let frames = batch.items.iter().filter_map(|item| match item {
        Item::Frame(bytes) => frame::open(bytes).ok().map(|f| {
            let header = f.header;
            (header.host, header.boot, header.seq)
        }),
        Item::Host(_) | Item::Schema(_) => None,
    });
    Report::Failed { turn: batch.turn, failures, frames: frames.collect(), why }
}
