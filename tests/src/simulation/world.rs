//! The clock, the agents' lives and the broker's, and what goes wrong.

#[path = "cut.rs"]
mod cut;
#[path = "tally.rs"]
mod tally;

pub(crate) use tally::Tally;

use super::agent::Agent;
use super::broker::{Broker, Plant};
use super::dice::Die;
use super::disk::Disk;
use super::keys::Keys;
use super::network::{Flying, Network};
use super::oracle::{Buried, Oracle, visible};
use bytes::BytesMut;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use strobe_agent::sampler::Tick;
use strobe_broker::store::{Store, StoreConfig};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::link::{Datagram, Link, LinkConfig, Side};
use strobe_wire::pki::Identity;

/// One run.
pub(crate) struct World {
    keys: Keys,
    plant: Option<Plant>,
    luck: Die,
    work: Die,
    start: Instant,
    start_ms: i64,
    now: Instant,
    agents: Vec<Agent>,
    broker: Option<Broker>,
    broker_back: Instant,
    broker_lives: u16,
    config: StoreConfig,
    network: Network,
    disk: Disk,
    full_until: Option<Instant>,
    low_until: Option<Instant>,
    /// When each agent's wall clock is set right.
    skewed_until: [Option<Instant>; HOSTS.len()],
    /// What came later than the others and must not shift their decisions.
    more: Die,
    tick_next: Instant,
    faults: bool,
    /// Only what the test does goes wrong.
    calm: bool,
    root: PathBuf,
    oracle: Oracle,
    tally: Tally,
}

impl World {
    pub(crate) fn new(keys: &Keys, seed: u64, plant: Option<Plant>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
        let start = Instant::now();
        let root = folder(seed);
        let die = |kind| Die::new(seed, kind);
        let mut luck = die(0);
        let mut network = Network::new(start, die(1), die(2));
        network.loss_percent = [0, 2, 10, 25][luck.index(4)];
        // A day ends within the run: blocks, minutes and hours are due then.
        let start_ms = DAY_END_MS - 1_000 * i64::try_from(luck.below(60)).expect("small");
        let hosts = 1 + luck.index(HOSTS.len());
        let boot = BootId(1);
        let agents = HOSTS.iter().zip(&keys.agents).take(hosts).map(|(&host, identity)| {
            let agent = Agent::new(host, boot, link(identity, Side::Agent, host, boot.0), start);
            // Half of them keep what the ring cannot hold, in memory: the disk here is the broker's.
            if seed.is_multiple_of(2) { agent.with_spool(NOWHERE.into()) } else { agent }
        });
        // Some seal early all the time, some only when it is time.
        let head_bytes_max = [2 << 10, 16 << 10, 1 << 20][luck.index(3)];
        let mut more = die(5);
        let state = StoreConfig::at(root.join("state"));
        let mut config = StoreConfig { head_bytes_max, ..state };
        // Some keep raw samples for minutes only, some have little room: what is gone by that is
        // told from what is lost.
        match more.index(4) {
            0 => config.raw_retention_ms = RETENTION_MS,
            1 => (config.bytes_max, config.wal_file_bytes) = (ROOM_BYTES, ROOM_BYTES / 8),
            _ => {}
        }
        Self {
            keys: keys.clone(),
            plant,
            work: die(3),
            more,
            start,
            start_ms,
            now: start,
            agents: agents.collect(),
            broker: None,
            broker_back: start,
            broker_lives: 0,
            config,
            network,
            disk: Disk::new(
                root.join("limbo"),
                root.join("graves/segments"),
                die(4),
                plant == Some(Plant::NoSync),
            ),
            full_until: None,
            low_until: None,
            skewed_until: [None; HOSTS.len()],
            tick_next: start,
            faults: true,
            calm: false,
            root,
            oracle: Oracle::default(),
            tally: Tally::default(),
            luck,
        }
    }

    /// Faults for a while, then peace until all is acknowledged and tidy, then the judgement.
    pub(crate) fn run(mut self) -> Tally {
        while self.now < self.start + FAULTS {
            self.step();
        }
        self.faults = false;
        (self.network.loss_percent, self.network.parted_until) = (0, self.now);
        self.disk.heal();
        let (end, tidy) = (self.now + PEACE, self.start + TIDY);
        while self.now < tidy || self.agents.iter().any(|a| a.acknowledged() < a.seq()) {
            self.step();
            assert!(self.now < end, "not all acknowledged in {PEACE:?} without faults");
        }
        let Some(broker) = self.broker.take() else { unreachable!("it acknowledged") };
        self.count(&broker);
        let bytes = broker.store.counts().segment_bytes;
        assert!(bytes <= self.config.bytes_max, "{bytes} bytes of segments");
        let removed = self.disk.removed();
        let buried = self.buried();
        let dir = self.config.dir.clone();
        self.oracle.judge(&broker.store, &dir, &removed, &buried);
        drop(broker);
        // Nor does a last restart change what readers see.
        let now_ms = self.now_ms();
        let opened = Store::open(self.config.clone(), now_ms);
        let (store, writer, recovery) = opened.expect("the store opens");
        assert!(recovery.damage.iter().all(|place| place.contains("wal")), "{recovery:?}");
        self.oracle.judge(&store, &dir, &removed, &buried);
        drop((store, writer));
        self.finish(removed.len() as u64)
    }

    fn buried(&self) -> Buried {
        let config = StoreConfig::at(self.root.join("graves"));
        let graves = config.dir.join("segments");
        for grave in std::fs::read_dir(&graves).expect("a folder").flatten() {
            if !grave.file_name().to_string_lossy().starts_with("raw-") {
                std::fs::remove_file(grave.path()).expect("a file of the simulation");
            }
        }
        let (store, ..) = Store::open(config, self.now_ms()).expect("they are whole");
        let by_age = self.config.raw_retention_ms == RETENTION_MS;
        let before_ms = by_age.then(|| self.now_ms() - RETENTION_MS);
        Buried { samples: visible(&store), before_ms }
    }

    fn finish(mut self, logs_released: u64) -> Tally {
        let segments = std::fs::read_dir(self.root.join("state/segments")).expect("segments");
        let names = segments.flatten().map(|entry| entry.file_name());
        let rolled = |name: &str| name.starts_with("min-") || name.starts_with("hour-");
        self.tally.rollups = names.filter(|name| name.to_str().is_some_and(rolled)).count() as u64;
        self.tally.logs_released = logs_released;
        self.tally.frames = self.oracle.sent.len() as u64;
        self.tally.lost = self.oracle.lost();
        self.tally.acknowledged = self.oracle.acknowledged.values().sum();
        self.tally.datagrams = self.network.datagrams;
        self.tally.digest = self.network.digest;
        self.tally.virtual_ms = self.elapsed_ms();
        std::mem::take(&mut self.tally)
    }

    fn step(&mut self) {
        let now = self.now;
        if self.tick_next <= now {
            self.tick_next = now + TICK;
            self.misfortune();
            self.sample();
        }
        for agent in &mut self.agents {
            agent.drive(now, broker_address());
            let acknowledged =
                self.oracle.acknowledged.entry((agent.host, agent.boot)).or_default();
            *acknowledged = agent.acknowledged().max(*acknowledged);
        }
        self.drive_broker();
        self.transmit();
        let mut next = self.tick_next;
        let wakes = self.agents.iter().filter_map(Agent::timeout).chain(self.network.timeout());
        next = wakes.fold(next, Instant::min);
        next = next.min(self.broker.as_ref().map_or(self.broker_back, Broker::timeout));
        // A timer that is due already moves the clock a little, so that nothing spins.
        self.now = next.max(now + Duration::from_micros(10));
        self.deliver();
    }

    /// Once a tick: whether an agent, the broker, its disk or the network breaks.
    fn misfortune(&mut self) {
        if self.full_until.is_some_and(|until| until <= self.now) {
            self.full_until = None;
            self.disk.set_full(false);
        }
        if self.low_until.is_some_and(|until| until <= self.now) {
            self.low_until = None;
            self.disk.set_low(false);
        }
        self.clocks();
        if !self.faults || self.calm {
            return;
        }
        self.more_misfortune();
        if self.luck.chance(100) {
            self.tally.restarts += 1;
            let index = self.luck.index(self.agents.len());
            let (host, boot) = (self.agents[index].host, BootId(self.agents[index].boot.0 + 1));
            let link = link(&self.keys.agents[index], Side::Agent, host, boot.0);
            let spools = self.agents[index].spools();
            let agent = Agent::new(host, boot, link, self.now);
            self.agents[index] = if spools { agent.with_spool(NOWHERE.into()) } else { agent };
        }
        if self.luck.chance(150) && self.broker.is_some() {
            self.tally.kills += 1;
            self.crash();
        }
        if self.luck.chance(60) && self.broker.is_some() {
            let calls = self.luck.below(40);
            self.disk.die_in(calls);
        }
        if self.luck.chance(150) && self.broker.is_some() {
            self.tally.full_disks += 1;
            self.disk.set_full(true);
            let while_ms = self.luck.below(15_000);
            self.full_until = Some(self.now + Duration::from_millis(while_ms));
        }
        if self.luck.chance(60) && self.broker.is_some() {
            self.tally.failed_syncs += 1;
            self.disk.fail_a_sync();
        }
        if self.luck.chance(60) {
            self.tally.partitions += 1;
            let while_ms = self.luck.below(20_000);
            self.network.parted_until = self.now + Duration::from_millis(while_ms);
        }
    }

    /// The floor of free space comes and goes, and a directory's names are not made durable.
    fn more_misfortune(&mut self) {
        if self.more.chance(150) && self.broker.is_some() {
            self.tally.low_disks += 1;
            self.disk.set_low(true);
            let while_ms = self.more.below(8_000);
            self.low_until = Some(self.now + Duration::from_millis(while_ms));
        }
        if self.more.chance(40) && self.broker.is_some() {
            self.tally.failed_directories += 1;
            self.disk.fail_a_directory();
        }
    }

    /// Somebody sets an agent's wall clock an hour forth or back, and later right again.
    fn clocks(&mut self) {
        for (agent, until) in self.agents.iter_mut().zip(&mut self.skewed_until) {
            if !self.faults || until.is_some_and(|until| until <= self.now) {
                (*until, agent.skew_ns) = (None, 0);
            } else if until.is_none() && !self.calm && self.more.chance(200) {
                self.tally.clock_steps += 1;
                agent.skew_ns = [3_600, -3_600][self.more.index(2)] * 1_000_000_000;
                let while_ms = self.more.below(10_000);
                *until = Some(self.now + Duration::from_millis(while_ms));
            }
        }
    }

    /// Rows of each host, as long as there are faults; then only what was lost is told.
    fn sample(&mut self) {
        let (wall_ns, since_ns) = (self.wall_ns(), (self.now - self.start).as_nanos());
        let boottime_ns = 1 + u64::try_from(since_ns).expect("a short run");
        for agent in &mut self.agents {
            let mut tick = Tick { wall_ns: wall_ns + agent.skew_ns, boottime_ns };
            if !self.faults {
                agent.settle(tick, &mut self.oracle);
                continue;
            }
            let stray = self.luck.chance(100) && agent.skew_ns == 0 && !self.calm;
            if stray {
                self.tally.strays += 1;
                tick.wall_ns += [3_600, -8 * 86_400][self.luck.index(2)] * 1_000_000_000;
            }
            // An hour ahead is out of bounds; an hour behind is late, and taken.
            agent.sample(tick, stray || 0 < agent.skew_ns, &mut self.oracle);
        }
    }

    fn drive_broker(&mut self) {
        let (now, now_ms) = (self.now, self.now_ms());
        if self.broker.is_none() && self.broker_back <= now {
            self.broker_lives += 1;
            let life = 1_000 + u128::from(self.broker_lives);
            let link = link(&self.keys.broker, Side::Broker, HostId(0), life);
            let made = Broker::new(link, &self.keys, &self.config, (now, now_ms), self.plant);
            self.broker = made.ok();
            if self.broker.is_none() {
                // It died while it started, or the disk is full: someone starts it again.
                self.crash();
            }
        }
        let Some(broker) = &mut self.broker else { return };
        let work = Duration::from_millis(self.work.below(30));
        broker.turn(now, now_ms, &self.disk, work);
        if self.disk.is_dead() {
            self.tally.deaths_at_the_disk += 1;
            if self.luck.chance(2) {
                broker.last_words(now);
                self.transmit();
            }
            self.crash();
        }
    }

    /// Everything in memory is gone; the broker comes back some time later.
    fn crash(&mut self) {
        if let Some(broker) = self.broker.take() {
            self.count(&broker);
        }
        self.disk.crash();
        (self.full_until, self.low_until) = (None, None);
        self.broker_back = self.now + Duration::from_millis(self.luck.below(5_000));
    }

    fn count(&mut self, broker: &Broker) {
        let (net, store) = broker.counts();
        self.tally.duplicates += net.ingest.duplicate;
        self.tally.blocks_sealed += store.blocks_sealed;
        self.tally.expired += store.segments_expired;
        self.tally.capped += store.segments_capped;
        assert_eq!(net.ingest.lost.get("skipped"), None, "an agent left a hole");
        assert_eq!(net.ingest.refused.get("forked"), None, "a restart is no fork");
    }

    fn transmit(&mut self) {
        let now = self.now;
        for agent in &mut self.agents {
            send_all(&mut agent.link, agent.address, now, &mut self.network);
        }
        if let Some(broker) = &mut self.broker {
            send_all(&mut broker.net.link, broker_address(), now, &mut self.network);
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        while let Some(Flying { from, to, ecn, bytes }) = self.network.due(now) {
            let agent = self.agents.iter_mut().find(|agent| agent.address == to);
            let link = match (&mut self.broker, agent) {
                (Some(broker), _) if to == broker_address() => &mut broker.net.link,
                (_, Some(agent)) => &mut agent.link,
                // Nobody lives there any more.
                _ => continue,
            };
            let bytes = BytesMut::from(bytes.as_slice());
            link.handle(now, Datagram { from, to: None, ecn, bytes });
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from((self.now - self.start).as_millis()).expect("a short run")
    }

    fn now_ms(&self) -> i64 {
        self.wall_ns().div_euclid(1_000_000)
    }

    /// Everyone sleeps once: what is due at the end of a day is done at the seal after it.
    fn wall_ns(&self) -> i64 {
        let since = self.now - self.start;
        let since = since + if since < ASLEEP_AT { Duration::ZERO } else { ASLEEP };
        self.start_ms * 1_000_000 + i64::try_from(since.as_nanos()).expect("a short run")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.broker = None;
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn send_all(link: &mut Link, from: SocketAddr, now: Instant, network: &mut Network) {
    let mut out = Vec::new();
    while let Some(transmit) = link.transmit(now, 4, &mut out) {
        let size = transmit.segment_bytes.unwrap_or(transmit.bytes);
        for bytes in out[..transmit.bytes].chunks(size) {
            let (to, ecn, bytes) = (transmit.to, transmit.ecn, bytes.to_vec());
            network.send(now, &Flying { from, to, ecn, bytes }, to == broker_address());
        }
        out.clear();
    }
}

/// In memory where that is possible: a sync costs nothing there.
fn folder(seed: u64) -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    let root = if shared.is_dir() { shared } else { std::env::temp_dir() };
    let (pid, thread) = (std::process::id(), std::thread::current().id());
    let root = root.join(format!("strobe-simulation-{pid}-{thread:?}-{seed}"));
    let _ = std::fs::remove_dir_all(&root);
    std::fs::create_dir_all(root.join("limbo")).expect("a folder");
    std::fs::create_dir_all(root.join("state")).expect("a folder");
    std::fs::create_dir_all(root.join("graves/segments")).expect("a folder");
    root
}

fn link(identity: &Identity, side: Side, host: HostId, life: u128) -> Link {
    let mut seed = [7; 32];
    seed[..16].copy_from_slice(&host.0.to_le_bytes());
    seed[16..].copy_from_slice(&life.to_le_bytes());
    Link::new(&LinkConfig {
        identity: Some(identity.clone()),
        side,
        connections_max: 64,
        whole_datagrams: false,
        wall_s: u64::try_from(DAY_END_MS / 1_000).expect("positive"),
        seed: Some(seed),
        accept: None,
    })
    .expect("a link")
}

fn broker_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7801))
}

/// The fleet; a run has the first one, two or three.
pub(crate) const HOSTS: [HostId; 3] = [HostId(1), HostId(2), HostId(3)];
/// Where no directory can be made.
const NOWHERE: &str = "/dev/null/spool";
const DAY_END_MS: i64 = 20_700 * 86_400_000;
const TICK: Duration = Duration::from_millis(200);
/// Virtual time with faults.
const FAULTS: Duration = Duration::from_secs(60);
/// What is older than that is gone at the end of a run: all from before everyone slept.
const RETENTION_MS: i64 = 660_000;
/// Less than a fleet of three says in a run.
const ROOM_BYTES: u64 = 24 << 10;
/// With 20 s of faults left, so that blocks and rollups meet them.
const ASLEEP_AT: Duration = Duration::from_secs(40);
const ASLEEP: Duration = Duration::from_secs(660);
/// The day is over for half a minute by then, and what is due then is done.
const TIDY: Duration = Duration::from_secs(105);
/// A back-off, an idle timeout and a stall fit many times over.
const PEACE: Duration = Duration::from_secs(300);
