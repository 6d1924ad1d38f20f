//! One life of a broker: the real network loop, the real writer and the real control plane, and between
//! them the queues and the time that threads would be.

use super::dice::Die;
use super::disk::Disk;
use super::keys::Keys;
use super::mirror::{Place, Sharing};
use super::plant::Plant;
use super::platter::{Platter, database};
use super::tuning::Tuning;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use strobe_broker::certificates::Certificates;
use strobe_broker::class::{Classes, Durability};
use strobe_broker::cluster::{Answer, Order as Command};
use strobe_broker::cluster::{Asked, MAIL_MAX, Mail, ORDERS_MAX, Plane, Post};
use strobe_broker::hub::Hub;
use strobe_broker::ingest::Ingest;
use strobe_broker::net::{Net, NetCounts, Parts, Seating, TURNS_MAX};
use strobe_broker::registry::Registry;
use strobe_broker::store::{Store, StoreConfig, StoreCounts};
use strobe_broker::writer::{Item, Order, Report, Scribe};
use strobe_cluster::{Config, NodeError, StoreError};
use strobe_journal::Position;
use strobe_wire::ids::Seq;
use strobe_wire::link::Link;

/// A life.
pub(crate) struct Broker {
    pub(crate) net: Net,
    pub(crate) store: Store,
    scribe: Scribe,
    orders: VecDeque<Order>,
    reports: VecDeque<Report>,
    /// The writer is at work until then; its reports are heard when it is done.
    busy_until: Instant,
    pub(crate) seat: Option<Seat>,
    pub(crate) sharing: Option<Sharing>,
    plant: Option<Plant>,
}

/// What a broker of a cluster has besides.
pub(crate) struct Seat {
    /// Until it is over.
    pub(crate) plane: Option<Plane>,
    orders: Receiver<Command>,
    to_plane: SyncSender<Command>,
    mail: VecDeque<Mail>,
    pub(crate) posts: VecDeque<Post>,
    pub(crate) tuning: Tuning,
    busy_until: Instant,
    mapped: bool,
    versioned: bool,
    /// Why the plane ended, once.
    pub(crate) over: Option<NodeError>,
}

/// What a life is made of.
pub(crate) struct Birth<'a> {
    pub(crate) link: Link,
    pub(crate) keys: &'a Keys,
    pub(crate) config: &'a StoreConfig,
    /// The disk of its control plane, if it is in a cluster.
    pub(crate) platter: Option<&'a Platter>,
    pub(crate) plane: Config,
    pub(crate) shared: Option<Place>,
    pub(crate) plant: Option<Plant>,
}

/// The time of a turn, and what may take time.
pub(crate) struct Turn<'a> {
    pub(crate) now: Instant,
    pub(crate) now_ms: i64,
    pub(crate) disk: &'a Disk,
    /// How long the disk takes, at most.
    pub(crate) work_ms: u64,
    pub(crate) die: &'a mut Die,
}

impl Broker {
    /// As `Broker::start` does it.
    pub(crate) fn new(birth: Birth<'_>, now: Instant, now_ms: i64) -> Result<Self, String> {
        let Birth { link, keys, config, platter, plane, shared, plant } = birth;
        let (registry, windows) = Registry::open(&config.dir).expect("redb survives");
        let (store, mut writer, mut recovery) =
            Store::open(config.clone(), now_ms).map_err(|why| why.to_string())?;
        if let Some(place) = &shared {
            place.restore(&mut writer, &mut recovery, now_ms)?;
        }
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
        let began = writer.synced();
        let mut scribe = Scribe::new(writer, registry.clone(), COMMIT, HOSTS_AT_ONCE, now);
        let sharing =
            shared.map(|place| Sharing::new(&place, (&store, Some(&registry)), (now, now_ms)));
        let confirmed = sharing.as_ref().and_then(Sharing::confirmed);
        let is_copied = confirmed.is_some();
        if let Some(confirmed) = confirmed {
            scribe = scribe.behind(confirmed, now);
        }
        let mut certificates = Certificates::new(keys.authority.clone(), CERTIFICATE_LIFE_S);
        certificates.keep_own();
        let mut net = Net::new(Parts { link, ingest, registry, hub, certificates }, now);
        net.begin_at(began);
        let class = if is_copied { Durability::WalRedis } else { Durability::Wal };
        net.set_classes(Arc::new(Classes::all(class)));
        let seat = match platter {
            Some(platter) => {
                let mut seat = Seat::new(platter, plane, (keys, &mut net, &store), now)?;
                seat.tuning.halves = plant == Some(Plant::HalfTune);
                Some(seat)
            }
            None => None,
        };
        let (orders, reports) = (VecDeque::new(), VecDeque::new());
        Ok(Self { net, store, scribe, orders, reports, busy_until: now, seat, sharing, plant })
    }

    /// A turn of the network loop and, if it is their time, one of the writer's and the plane's.
    pub(crate) fn turn(&mut self, turn: &mut Turn<'_>) {
        let (now, now_ms) = (turn.now, turn.now_ms);
        if self.busy_until <= now {
            for report in self.reports.drain(..) {
                self.net.on_report(report, now);
            }
        }
        if let Some(seat) = self.seat.as_mut().filter(|seat| seat.busy_until <= now) {
            for post in seat.posts.drain(..) {
                let a_map = matches!(post, Post::Map(_));
                let deaf = self.plant == Some(Plant::DeafToMaps) && a_map && seat.mapped;
                seat.mapped |= a_map && matches!(&post, Post::Map(map) if !map.peers.is_empty());
                let versions = matches!(post, Post::Desired(_));
                let deaf =
                    deaf || self.plant == Some(Plant::DeafToVersions) && versions && seat.versioned;
                seat.versioned |= versions;
                if let (Post::Map(map), Some(sharing), false) = (&post, &self.sharing, deaf) {
                    sharing.on_map(map);
                }
                if let (Post::Desired(desired), false) = (&post, deaf) {
                    seat.tuning.on_desired(now, desired);
                }
                if !deaf {
                    self.net.on_post(post, now, now_ms);
                }
            }
            for mail in seat.mail.drain(..) {
                self.net.on_mail(mail, now);
            }
            seat.tuning.on_timeout(now, self.net.counts().storing);
        }
        self.net.advance(now, now_ms, &mut |ask| panic!("nobody asks here, but {ask:?}"));
        let (net, orders) = (&mut self.net, &mut self.orders);
        net.end_turn(now, now_ms, &mut |order| orders.push_back(order));
        assert!(self.orders.len() <= 2 * TURNS_MAX, "{} orders wait", self.orders.len());
        self.write(turn);
        if let Some(sharing) = self.sharing.as_mut().filter(|_| !turn.disk.is_dead()) {
            sharing.turn(turn);
        }
        if let Some(seat) = &mut self.seat {
            seat.turn(turn);
        }
    }

    fn write(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        if now < self.busy_until {
            return;
        }
        while let Some(order) = self.orders.pop_front() {
            self.take(order, now);
        }
        if self.scribe.timeout() <= now {
            let (reports, disk) = (&mut self.reports, turn.disk);
            self.scribe.on_timeout(now, turn.now_ms, &mut |report| {
                // Nobody hears what a machine says that is dead.
                if !disk.is_dead() {
                    reports.push_back(report);
                }
            });
            self.busy_until = now + Duration::from_millis(turn.die.below(turn.work_ms));
            if let Some(sharing) = &mut self.sharing {
                sharing.wake(now);
            }
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
        let seat = self.seat.as_ref().map_or(writer, Seat::timeout);
        let busy = if self.net.is_busy() { self.busy_until } else { writer };
        let sharing = self.sharing.as_ref().map_or(writer, Sharing::timeout);
        self.net.timeout().min(writer).min(seat).min(busy).min(sharing)
    }

    pub(crate) fn counts(&self) -> (NetCounts, StoreCounts) {
        (self.net.counts(), self.store.counts())
    }

    fn take(&mut self, order: Order, now: Instant) {
        let Order::Batch(mut batch) = order else { return self.scribe.take(order) };
        match self.plant {
            Some(Plant::AckEarly) => {
                self.net
                    .on_report(Report::Stored { turn: batch.turn, at: Position::default() }, now);
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

impl Seat {
    fn new(
        platter: &Platter,
        config: Config,
        (keys, net, kept): (&Keys, &mut Net, &Store),
        now: Instant,
    ) -> Result<Self, String> {
        let store = database(platter)
            .map_err(|why| StoreError::Database { doing: "open", why })
            .and_then(strobe_cluster::Store::open)
            .map_err(|why| why.to_string())?;
        let identity = store.identity();
        let plane = Plane::new(store, config, now).map_err(|why| why.to_string())?;
        let (to_plane, orders) = sync_channel(ORDERS_MAX);
        let seating = Seating {
            authority: Arc::clone(&keys.authority),
            cluster: identity.cluster,
            me: identity.broker,
            orders: to_plane.clone(),
        };
        net.take_seat(seating, now);
        let tuning = Tuning::new(kept, (identity.broker, to_plane.clone()));
        Ok(Self {
            tuning,
            plane: Some(plane),
            orders,
            to_plane,
            mail: VecDeque::new(),
            posts: VecDeque::new(),
            busy_until: now,
            mapped: false,
            versioned: false,
            over: None,
        })
    }

    /// Somebody wants something; the answer comes in its time, or never.
    pub(crate) fn ask(&self, asked: Asked) -> Option<Receiver<Answer>> {
        let (reply, answer) = sync_channel(1);
        self.to_plane.try_send(Command::Ask(asked, reply)).ok().map(|()| answer)
    }

    fn turn(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        if now < self.busy_until || !(self.mail.is_empty() && self.posts.is_empty()) {
            return;
        }
        let Some(plane) = &mut self.plane else {
            // Nobody listens any more, and nobody waits for that.
            self.orders.try_iter().for_each(drop);
            return;
        };
        let mut worked = plane.timeout() <= now;
        let mut done = Ok(());
        for order in self.orders.try_iter() {
            worked = true;
            done = done.and_then(|()| plane.take(now, order));
        }
        if !worked {
            return;
        }
        done = done.and_then(|()| plane.on_timeout(now));
        let (mail, posts) = (&mut self.mail, &mut self.posts);
        let mut send = |letter| {
            let room = mail.len() < MAIL_MAX;
            if room {
                mail.push_back(letter);
            }
            room
        };
        while done.is_ok() {
            match plane.poll(now, &mut send) {
                Ok(Some(post)) => posts.push_back(post),
                Ok(None) => break,
                Err(why) => done = Err(why),
            }
        }
        self.busy_until = now + Duration::from_micros(100 * turn.die.below(turn.work_ms));
        if let Err(why) = done {
            (self.plane, self.over) = (None, Some(why));
        }
    }

    fn timeout(&self) -> Instant {
        let waits = !(self.mail.is_empty() && self.posts.is_empty());
        match &self.plane {
            Some(plane) if !waits => plane.timeout().max(self.busy_until),
            Some(_) => self.busy_until,
            None if waits => self.busy_until,
            None => self.busy_until + FOREVER,
        }
    }
}

fn frame(item: &Item) -> Option<Item> {
    let Item::Frame(bytes, class) = item else { return None };
    Some(Item::Frame(bytes.clone(), *class))
}

fn is_loss(item: &Item) -> bool {
    let Item::Frame(bytes, _) = item else { return false };
    let header = strobe_wire::frame::open(bytes).expect("ingest opened it").header;
    header.kind == strobe_wire::frame::FrameKind::Loss
}

/// Longer than until the end of the simulated certificates, which is in the year 4096.
const CERTIFICATE_LIFE_S: u64 = 3_000 * 365 * 86_400;
/// As the broker's default.
const COMMIT: Duration = Duration::from_millis(50);
/// So that a crash finds some hosts kept and others not.
const HOSTS_AT_ONCE: usize = 1;
const FOREVER: Duration = Duration::from_secs(3_600);
