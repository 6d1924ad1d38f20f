//! The clock, the network, the agent's lives and the broker's.

use super::oracle::{METRICS, Oracle, Said};
use super::shell::{Fate, Shell};
use bytes::BytesMut;
use hugepage_config::{Region, Want};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strobe_agent::ring::{Reader as Ring, Ring as Ends};
use strobe_agent::sampler::{SectionRow, Tick};
use strobe_agent::schemas::Table;
use strobe_agent::sealer::Sealer;
use strobe_agent::uplink::{Uplink, UplinkConfig};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::link::{Datagram, Link, LinkConfig, Side};
use strobe_wire::message::Hello;
use strobe_wire::pki::{Authority, Identity, Role, Subject};
use strobe_wire::schema::{Column, Kind, Labels, Schema};

/// Who agent and broker are; the same for all seeds.
#[derive(Clone)]
pub(crate) struct Identities {
    agent: Identity,
    broker: Identity,
}

/// How often what happened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) rows: u64,
    pub(crate) acknowledged: u64,
    pub(crate) losses: u64,
    pub(crate) duplicates: u64,
    pub(crate) restarts: u64,
    pub(crate) before_commit: u64,
    pub(crate) torn: u64,
    pub(crate) after_commit: u64,
    pub(crate) other_crashes: u64,
    pub(crate) partitions: u64,
    pub(crate) datagrams: u64,
    pub(crate) virtual_ms: u64,
}

/// One run.
pub(crate) struct World {
    identities: Identities,
    /// One stream for each source of decisions, so that one does not shift the others.
    dice: [u64; 4],
    start: Instant,
    now: Instant,
    agent: Life,
    lives: u16,
    broker: Option<Shell>,
    broker_back: Instant,
    broker_lives: u16,
    flying: Vec<Flying>,
    loss_percent: u64,
    parted_until: Instant,
    tick_next: Instant,
    commit_next: Instant,
    faults: bool,
    dir: PathBuf,
    oracle: Oracle,
    tally: Tally,
}

struct Flying {
    at: Instant,
    from: SocketAddr,
    to: SocketAddr,
    ecn: u8,
    bytes: Vec<u8>,
}

/// One life of the agent.
struct Life {
    boot: u128,
    address: SocketAddr,
    link: Link,
    uplink: Uplink,
    sealer: Sealer,
    ring: Ring,
    table: Table,
    schemas: Vec<Arc<Schema>>,
}

impl Identities {
    pub(crate) fn new() -> Self {
        let authority = Authority::create(NOW_S).expect("an authority");
        let issue = |role| {
            authority.issue(&Subject { role, host: HOST }, NOW_S, 86_400).expect("a certificate")
        };
        Self { agent: issue(Role::Agent), broker: issue(Role::Broker) }
    }
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.acknowledged += other.acknowledged;
        self.losses += other.losses;
        self.duplicates += other.duplicates;
        self.restarts += other.restarts;
        self.before_commit += other.before_commit;
        self.torn += other.torn;
        self.after_commit += other.after_commit;
        self.other_crashes += other.other_crashes;
        self.partitions += other.partitions;
        self.datagrams += other.datagrams;
        self.virtual_ms += other.virtual_ms;
    }
}

impl Life {
    fn new(identity: &Identity, number: u16, now: Instant) -> Self {
        let boot = u128::from(number);
        let region = Region::map(SLOTS * FRAME_BYTES_MAX, Want::Plain).expect("memory");
        let Ends { writer, reader } = Ends::new(SLOTS, region).expect("a ring");
        let hello = Hello {
            host: HOST.0,
            boot,
            instance: "simulated".to_owned(),
            job: "node".to_owned(),
            interval_ms: 200,
            ..Hello::default()
        };
        let config =
            UplinkConfig { brokers: vec!["broker:1".to_owned()], hello, seed: u64::from(number) };
        let table = Table::new();
        let schemas = METRICS.map(|metric| {
            let (name, labels) = (metric.to_owned(), Labels::default());
            let columns = vec![Column { name, labels, kind: Kind::Counter { scale: 0 } }];
            let schema = Arc::new(Schema { section: metric.to_owned(), columns });
            table.publish(&schema);
            schema
        });
        Self {
            boot,
            address: SocketAddr::from(([127, 0, 0, 1], 40_000 + number)),
            link: link(identity, Side::Agent, number),
            uplink: Uplink::new(config, now),
            sealer: Sealer::new(HOST, BootId(boot), writer),
            ring: reader,
            table,
            schemas: schemas.to_vec(),
        }
    }

    fn drive(&mut self, now: Instant) {
        self.link.on_timeout(now);
        self.uplink.on_timeout(now, &mut self.link, &mut self.ring);
        if self.uplink.wants(now).is_some() {
            self.uplink.dial(now, &mut self.link, Ok(broker_address()));
        }
        while let Some(event) = self.link.poll() {
            self.uplink.told(now, &event, &mut self.link, &mut self.ring);
        }
        self.uplink.pump(now, &mut self.link, &mut self.ring, &self.table);
    }
}

impl World {
    pub(crate) fn new(identities: &Identities, seed: u64) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
        let start = Instant::now();
        let shared = PathBuf::from("/dev/shm");
        let root = if shared.is_dir() { shared } else { std::env::temp_dir() };
        let (pid, thread) = (std::process::id(), std::thread::current().id());
        let dir = root.join(format!("strobe-simulation-{pid}-{thread:?}-{seed}"));
        let _ = std::fs::remove_dir_all(&dir);
        let mut world = Self {
            identities: identities.clone(),
            dice: [1, 2, 3, 4].map(|n| (4 * seed + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            start,
            now: start,
            agent: Life::new(&identities.agent, 1, start),
            lives: 1,
            broker: None,
            broker_back: start,
            broker_lives: 0,
            flying: Vec::new(),
            loss_percent: 0,
            parted_until: start,
            tick_next: start,
            commit_next: start,
            faults: true,
            dir,
            oracle: Oracle::default(),
            tally: Tally::default(),
        };
        world.loss_percent = [0, 2, 10, 25][world.index(LUCK, 4)];
        world
    }

    /// Faults for a while, then peace until all is acknowledged, then the judgement.
    pub(crate) fn run(mut self) -> Tally {
        while self.now < self.start + FAULTS {
            self.step();
        }
        (self.faults, self.loss_percent, self.parted_until) = (false, 0, self.now);
        let end = self.now + PEACE;
        while self.agent.uplink.status().acknowledged_seq < self.agent.sealer.seq().0 {
            self.step();
            assert!(self.now < end, "not all acknowledged in {PEACE:?} without faults");
        }
        assert_eq!(self.agent.uplink.status().unsendable, 0, "all frames can be sent");
        let Some(shell) = self.broker.take() else { unreachable!("it acknowledged") };
        self.tally.duplicates += shell.duplicates();
        let store = shell.store.clone();
        drop(shell);
        self.oracle.judge(store, &self.dir);
        self.tally.losses = self.oracle.lost.len() as u64;
        self.tally.acknowledged = self.oracle.acknowledged.values().sum();
        self.tally.rows = self.oracle.rows.len() as u64;
        self.tally.virtual_ms = self.elapsed_ms();
        self.tally.clone()
    }

    fn step(&mut self) {
        let now = self.now;
        if self.tick_next <= now {
            self.tick_next = now + TICK;
            self.misfortune();
            self.sample();
        }
        self.agent.drive(now);
        let status = self.agent.uplink.status();
        let acknowledged = self.oracle.acknowledged.entry(self.agent.boot).or_default();
        *acknowledged = status.acknowledged_seq.max(*acknowledged);
        self.drive_broker();
        self.transmit();
        let wakes = [
            self.flying.iter().map(|flying| flying.at).min(),
            self.agent.link.timeout(),
            self.agent.uplink.timeout(),
            self.broker.as_ref().and_then(|shell| shell.link.timeout()),
            Some(self.tick_next),
            Some(self.commit_next).filter(|_| self.broker.as_ref().is_some_and(Shell::is_dirty)),
            Some(self.broker_back).filter(|_| self.broker.is_none()),
        ];
        let next = wakes.into_iter().flatten().min().unwrap_or(self.tick_next);
        // A timer that is due already moves the clock a little, so that nothing spins.
        self.now = next.max(now + Duration::from_micros(10));
        self.deliver();
    }

    /// Once a tick: whether the agent, the broker or the network breaks.
    fn misfortune(&mut self) {
        if !self.faults {
            return;
        }
        if self.chance(LUCK, 100) {
            self.tally.restarts += 1;
            self.lives += 1;
            self.agent = Life::new(&self.identities.agent, self.lives, self.now);
        }
        if self.chance(LUCK, 100) && self.broker.is_some() {
            self.tally.other_crashes += 1;
            self.crash();
        }
        if self.chance(LUCK, 60) {
            self.tally.partitions += 1;
            self.parted_until = self.now + Duration::from_millis(self.below(LUCK, 20_000));
        }
    }

    /// A row of each section, as long as there are faults; then only what was lost is told.
    fn sample(&mut self) {
        let since = self.now - self.start;
        let since_ns = i64::try_from(since.as_nanos()).expect("a short run");
        let wall_ns = NOW_MS * 1_000_000 + since_ns;
        let tick = Tick { wall_ns, boottime_ns: 1 + since_ns.unsigned_abs() };
        let life = &mut self.agent;
        life.sealer.begin(tick);
        for (schema, metric) in life.schemas.iter().zip(METRICS).filter(|_| self.faults) {
            let value = u32::try_from(self.oracle.rows.len() + self.oracle.lost.len());
            let value = value.expect("a short run");
            let lost = life.sealer.lost();
            let values = [u64::from(value)];
            life.sealer
                .row(tick, &SectionRow { schema, id: schema.id(), values: &values, valid: &[1] });
            let id = (life.boot, life.sealer.seq().0);
            if lost < life.sealer.lost() {
                self.oracle.lost.insert(id);
            } else {
                let time_ms = wall_ns.div_euclid(1_000_000);
                self.oracle.rows.insert(id, Said { metric, time_ms, value });
            }
        }
    }

    fn drive_broker(&mut self) {
        let (now, now_ms) = (self.now, NOW_MS + i64::try_from(self.elapsed_ms()).expect("short"));
        if self.broker.is_none() && self.broker_back <= now {
            self.broker_lives += 1;
            let link = link(&self.identities.broker, Side::Broker, 1000 + self.broker_lives);
            self.broker = Some(Shell::new(link, &self.dir, now_ms));
        }
        let Some(shell) = &mut self.broker else { return };
        shell.link.on_timeout(now);
        shell.advance(now, now_ms);
        if !shell.is_dirty() || now < self.commit_next {
            return;
        }
        self.commit_next = now + COMMIT;
        let fate = match self.below(DISK, 150) {
            0 if self.faults => Fate::Before,
            1 if self.faults => Fate::Torn(self.below(DISK, 1000)),
            2 if self.faults => Fate::After,
            _ => Fate::Good,
        };
        match fate {
            Fate::Good => {}
            Fate::Before => self.tally.before_commit += 1,
            Fate::Torn(_) => self.tally.torn += 1,
            Fate::After => self.tally.after_commit += 1,
        }
        if !self.broker.as_mut().is_some_and(|shell| shell.commit(now_ms, fate)) {
            self.crash();
        }
    }

    /// Everything in memory is gone; the broker comes back some time later.
    fn crash(&mut self) {
        if let Some(shell) = self.broker.take() {
            self.tally.duplicates += shell.duplicates();
        }
        self.broker_back = self.now + Duration::from_millis(self.below(DISK, 5_000));
    }

    fn transmit(&mut self) {
        let mut out = Vec::new();
        for from_agent in [true, false] {
            let from = if from_agent { self.agent.address } else { broker_address() };
            loop {
                out.clear();
                let link = match (from_agent, &mut self.broker) {
                    (true, _) => &mut self.agent.link,
                    (false, Some(shell)) => &mut shell.link,
                    (false, None) => break,
                };
                let Some(transmit) = link.transmit(self.now, 4, &mut out) else { break };
                let size = transmit.segment_bytes.unwrap_or(transmit.bytes);
                for bytes in out[..transmit.bytes].chunks(size) {
                    self.send(from, transmit.to, transmit.ecn, bytes);
                }
            }
        }
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, ecn: u8, bytes: &[u8]) {
        self.tally.datagrams += 1;
        let network = if to == broker_address() { THERE } else { BACK };
        let copies = match self.below(network, 100) {
            _ if self.now < self.parted_until => 0,
            n if n < self.loss_percent => 0,
            n if n < self.loss_percent * 3 / 2 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let jitter = if self.loss_percent == 0 { 0 } else { self.below(network, 30) };
            let at = self.now + Duration::from_millis(5 + jitter);
            self.flying.push(Flying { at, from, to, ecn, bytes: bytes.to_vec() });
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let flying = std::mem::take(&mut self.flying);
        let (due, rest): (Vec<_>, Vec<_>) = flying.into_iter().partition(|f| f.at <= now);
        self.flying = rest;
        for Flying { from, to, ecn, bytes, .. } in due {
            let link = match &mut self.broker {
                Some(shell) if to == broker_address() => &mut shell.link,
                _ if to == self.agent.address => &mut self.agent.link,
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

    fn chance(&mut self, die: usize, one_in: u64) -> bool {
        self.below(die, one_in) == 0
    }

    fn index(&mut self, die: usize, below: usize) -> usize {
        usize::try_from(self.below(die, below as u64)).expect("it was one")
    }

    /// xorshift64.
    fn below(&mut self, die: usize, below: u64) -> u64 {
        let random = &mut self.dice[die];
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        (*random >> 16) % below
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.broker = None;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn link(identity: &Identity, side: Side, number: u16) -> Link {
    let [high, low] = number.to_be_bytes();
    let mut seed = [high; 32];
    seed[0] = low;
    Link::new(&LinkConfig {
        identity: Some(identity.clone()),
        side,
        connections_max: 64,
        whole_datagrams: false,
        wall_s: NOW_S,
        seed: Some(seed),
    })
    .expect("a link")
}

fn broker_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7801))
}

/// Indices into the dice: misfortunes, commits and restarts, the network's two directions.
const LUCK: usize = 0;
const DISK: usize = 1;
const THERE: usize = 2;
const BACK: usize = 3;
const HOST: HostId = HostId(7);
const NOW_S: u64 = 1_790_000_000;
const NOW_MS: i64 = 1_790_000_000_000;
/// Few, so that a partition fills the ring.
const SLOTS: usize = 64;
const TICK: Duration = Duration::from_millis(200);
const COMMIT: Duration = Duration::from_millis(50);
/// Virtual time with faults.
const FAULTS: Duration = Duration::from_secs(60);
/// A back-off, an idle timeout and a stall fit many times over.
const PEACE: Duration = Duration::from_secs(300);
