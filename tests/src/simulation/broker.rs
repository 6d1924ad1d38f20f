//! One life of the broker: the real network loop and the real writer, and between them the queues
//! and the time that threads would be.

use super::disk::Disk;
use super::keys::Keys;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use strobe_broker::certificates::Certificates;
use strobe_broker::hub::Hub;
use strobe_broker::ingest::Ingest;
use strobe_broker::net::{Net, NetCounts, Parts};
use strobe_broker::registry::Registry;
use strobe_broker::store::{Store, StoreConfig, StoreCounts, StoreError};
use strobe_broker::writer::{Item, Order, Report, Scribe};
use strobe_wire::ids::Seq;
use strobe_wire::link::Link;

/// A bug that is put in on purpose, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plant {
    /// Acknowledged when it is handed to the writer.
    AckEarly,
    /// A sync returns and nothing is durable.
    NoSync,
    /// The numbers in the WAL are not taken in at start.
    ForgetLog,
    /// The windows that were kept are not taken in at start.
    ForgetWindows,
    /// The writer takes a batch twice.
    StoreTwice,
    /// Entries of the loss ledger are not stored.
    NoLedger,
}

/// A life.
pub(crate) struct Broker {
    pub(crate) net: Net,
    pub(crate) store: Store,
    scribe: Scribe,
    orders: VecDeque<Order>,
    reports: VecDeque<Report>,
    /// The writer is at work until then; its reports are heard when it is done.
    busy_until: Instant,
    plant: Option<Plant>,
}

impl Broker {
    /// As `Broker::start` does it.
    pub(crate) fn new(
        link: Link,
        keys: &Keys,
        config: &StoreConfig,
        (now, now_ms): (Instant, i64),
        plant: Option<Plant>,
    ) -> Result<Self, StoreError> {
        let (registry, windows) = Registry::open(&config.dir).expect("redb survives");
        let (store, writer, recovery) = Store::open(config.clone(), now_ms)?;
        let mut ingest = Ingest::default();
        if plant != Some(Plant::ForgetWindows) {
            for (host, boot, window) in windows {
                ingest.restore(host, boot, window);
            }
        }
        for seen in recovery.seen.iter().filter(|_| plant != Some(Plant::ForgetLog)) {
            for (first, last) in &seen.ranges {
                ingest.replay(seen.host, seen.boot, Seq(*first), Seq(*last));
            }
        }
        let hub = Hub::default();
        let scribe = Scribe::new(writer, registry.clone(), COMMIT, HOSTS_AT_ONCE, now);
        // Nobody's certificate, and not its own, is ever due here: its keys are not random.
        let mut certificates = Certificates::new(keys.authority.clone(), CERTIFICATE_LIFE_S);
        drop(certificates.own(u64::try_from(now_ms / 1000).unwrap_or(0)));
        let net = Net::new(Parts { link, ingest, registry, hub, certificates }, now);
        let (orders, reports) = (VecDeque::new(), VecDeque::new());
        Ok(Self { net, store, scribe, orders, reports, busy_until: now, plant })
    }

    /// A turn of the network loop and, if it is its time, one of the writer's.
    pub(crate) fn turn(&mut self, now: Instant, now_ms: i64, disk: &Disk, work: Duration) {
        if self.busy_until <= now {
            for report in self.reports.drain(..) {
                self.net.on_report(report, now);
            }
        }
        self.net.advance(now, now_ms, &mut |ask| panic!("nobody asks here, but {ask:?}"));
        let (net, orders) = (&mut self.net, &mut self.orders);
        net.end_turn(now, now_ms, &mut |order| orders.push_back(order));
        if now < self.busy_until {
            return;
        }
        while let Some(order) = self.orders.pop_front() {
            self.take(order, now);
        }
        if self.scribe.timeout() <= now {
            let reports = &mut self.reports;
            self.scribe.on_timeout(now, now_ms, &mut |report| {
                // Nobody hears what a machine says that is dead.
                if !disk.is_dead() {
                    reports.push_back(report);
                }
            });
            self.busy_until = now + work;
        }
    }

    /// The writer's last words are heard: it died right after them.
    pub(crate) fn last_words(&mut self, now: Instant) {
        for report in self.reports.drain(..) {
            self.net.on_report(report, now);
        }
    }

    pub(crate) fn timeout(&self) -> Instant {
        let writer = self.scribe.timeout().max(self.busy_until);
        self.net.timeout().min(writer)
    }

    pub(crate) fn counts(&self) -> (NetCounts, StoreCounts) {
        (self.net.counts(), self.store.counts())
    }

    fn take(&mut self, order: Order, now: Instant) {
        let Order::Batch(mut batch) = order else { return self.scribe.take(order) };
        match self.plant {
            Some(Plant::AckEarly) => {
                self.net.on_report(Report::Stored { turn: batch.turn }, now);
            }
            Some(Plant::StoreTwice) => {
                let frames: Vec<_> = batch.items.iter().filter_map(frame).collect();
                batch.items.extend(frames);
            }
            Some(Plant::NoLedger) => batch.items.retain(|item| !is_loss(item)),
            _ => {}
        }
        self.scribe.take(Order::Batch(batch));
    }
}

fn frame(item: &Item) -> Option<Item> {
    let Item::Frame(bytes) = item else { return None };
    Some(Item::Frame(bytes.clone()))
}

fn is_loss(item: &Item) -> bool {
    let Item::Frame(bytes) = item else { return false };
    let header = strobe_wire::frame::open(bytes).expect("ingest opened it").header;
    header.kind == strobe_wire::frame::FrameKind::Loss
}

/// As the broker's default.
/// Longer than until the end of the simulated certificates, which is in the year 4096.
const CERTIFICATE_LIFE_S: u64 = 3_000 * 365 * 86_400;
const COMMIT: Duration = Duration::from_millis(50);
/// So that a crash finds some hosts kept and others not.
const HOSTS_AT_ONCE: usize = 1;
