//! The clock, the machines and what is between them.

mod cut;
mod end;
mod harm;
mod history;
mod make;
mod operators;
mod shared;

use super::agreed::Agreed;
use super::broker::{Birth, Broker, Turn};
use super::dice::Die;
use super::disk::Disk;
use super::keys::{BROKERS_MAX, Keys};
use super::ledger::Ledger;
use super::machine::{Host, Machine};
use super::mirror::Place;
use super::network::{AGENTS, Flying, Network, broker_address, machine};
use super::plan::{Plan, Shared};
use super::plant::Plant;
use super::tally::Tally;
use super::trace::Trace;
use bytes::BytesMut;
use history::History;
use make::{folder, link};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;
use strobe_agent::sampler::Tick;
use strobe_broker::cluster::Post;
use strobe_cluster::{Config, NodeError, StoreError};
use strobe_wire::ids::HostId;
use strobe_wire::link::{Datagram, Link, Side};

/// One run.
pub(crate) struct World<'a> {
    plan: Plan,
    keys: &'a Keys,
    plant: Option<Plant>,
    trace: Trace,
    /// What brokers write to besides.
    shared: Option<Place>,
    /// Microseconds since the beginning.
    now: u64,
    start: Instant,
    /// Wall time of the beginning; a sleep moves it.
    base_ns: i64,
    luck: Die,
    work: Die,
    hosts: Vec<Host>,
    machines: BTreeMap<u64, Machine>,
    network: Network,
    tick_next: u64,
    faults: bool,
    /// Rows have the right time always.
    calm: bool,
    root: PathBuf,
    ledger: Ledger,
    agreed: Agreed,
    history: History,
    tally: Tally,
}

impl<'a> World<'a> {
    pub(crate) fn new(plan: Plan, keys: &'a Keys, plant: Option<Plant>, trace: Trace) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
        let start = Instant::now();
        let seed = plan.seed;
        let mut luck = Die::new(seed, 1);
        // A day ends within the run: blocks, minutes and hours are due then.
        let base_ns = DAY_END_NS - 1_000_000_000 * i64::try_from(luck.below(60)).expect("small");
        let mut network = Network::new(seed);
        network.loss_percent = [0, 0, 2, 10, 25][luck.index(5)];
        let takes_in = plan.shared == Shared::Log && 1 < plan.brokers;
        let mut world = Self {
            root: folder(seed),
            shared: shared::redis(seed, plan.shared),
            keys,
            plant,
            trace,
            now: 1_000,
            start,
            base_ns,
            luck,
            work: Die::new(seed, 2),
            hosts: Vec::new(),
            machines: BTreeMap::new(),
            network,
            tick_next: 0,
            faults: true,
            calm: false,
            ledger: Ledger::new(takes_in),
            agreed: Agreed::default(),
            history: History::new(seed),
            tally: Tally::default(),
            plan,
        };
        for number in 1..=u64::from(BROKERS_MAX) {
            world.add_machine(number);
        }
        let disks = world.machines.values().map(|machine| machine.disk.clone());
        Disk::take_the_door(disks.collect());
        for number in 1..=world.plan.hosts {
            world.add_host(number);
        }
        world
    }

    /// Grows in peace, suffers, is healed, settles, and is judged.
    pub(crate) fn run(mut self) -> Tally {
        let (loss, plan) = (self.network.loss_percent, self.plan.clone());
        self.grow();
        self.network.loss_percent = loss;
        let begun = self.now;
        let asleep_at = begun + 1_000 * plan.suffering_ms * 2 / 3;
        let mut slept = false;
        for trouble in &plan.troubles {
            let at = begun + 1_000 * trouble.at_ms;
            if asleep_at <= at && !slept {
                self.go_until(asleep_at);
                self.sleep();
                slept = true;
            }
            self.go_until(at);
            self.suffer(trouble);
        }
        self.go_until(begun + 1_000 * plan.suffering_ms);
        self.heal();
        self.settle();
        self.judge_history();
        self.judge_redis();
        self.judge();
        self.tally.count("frames", self.ledger.sent.len() as u64);
        self.tally.count("rows lost by full rings", self.ledger.lost());
        self.tally.count("rows acknowledged", self.ledger.acknowledged.values().sum());
        self.tally.count("datagrams", self.network.datagrams);
        self.tally.count("datagrams lost", self.network.lost);
        self.tally.digest = self.network.digest;
        self.tally.simulated_ms = self.now / 1_000;
        std::mem::take(&mut self.tally)
    }

    /// Everyone sleeps: what is due at the end of a day is done at the seal after it.
    fn sleep(&mut self) {
        self.trace.say(self.now, || "everyone sleeps for eleven minutes".to_owned());
        self.base_ns += ASLEEP_NS;
    }

    fn go_until(&mut self, until: u64) {
        loop {
            let machines = self.machines.values().map(|machine| machine.wake_at);
            let hosts = self.hosts.iter().map(|host| host.wake_at);
            let wakes = machines.chain(hosts).chain(self.network.timeout());
            let next = wakes.fold(self.tick_next, u64::min);
            if until <= next {
                self.now = self.now.max(until);
                return;
            }
            self.now = self.now.max(next);
            self.deliver();
            if self.tick_next <= self.now {
                self.tick_next = self.now + TICK_US;
                self.recover();
                self.sample();
                self.go_on_with_history();
            }
            self.wake();
        }
    }

    fn wake(&mut self) {
        for index in 0..self.hosts.len() {
            if self.hosts[index].wake_at <= self.now {
                self.drive(index);
            }
        }
        let due = self.machines.iter().filter(|(_, machine)| machine.wake_at <= self.now);
        let due: Vec<u64> = due.map(|(id, _)| *id).collect();
        for id in due {
            self.turn(id);
        }
    }

    fn drive(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let now = host.clock.at(self.now);
        let agent = &mut host.agent;
        let before = self.trace.is_on().then(|| agent.broker());
        let running = agent.running().clone();
        agent.drive(now);
        if agent.running() != &running {
            self.agreed.look_at_agent(agent);
            self.tally.count("versions run", 1);
            let (host, runs) = (agent.host.0, agent.running().version);
            self.trace.say(self.now, || format!("host {host} runs version {runs}"));
        }
        let known = self.ledger.acknowledged.entry((agent.host, agent.boot)).or_default();
        let held = *known;
        *known = agent.acknowledged().max(held);
        if let Some(place) = self.shared.as_ref().filter(|place| place.log) {
            let new = held + 1..=*known;
            self.ledger.look_at_log((agent.host, agent.boot), new, &place.redis);
        }
        send_all(&mut agent.link, agent.address, (now, self.now), &mut self.network);
        let due = agent.timeout().map_or(u64::MAX, |at| host.clock.world_us(at));
        host.wake_at = due.max(self.now + AGENT_TURN_US);
        if let Some(before) = before
            && before != host.agent.broker()
        {
            let (host, broker) = (host.agent.host.0, host.agent.broker());
            self.trace.say(self.now, || format!("host {host} dials {broker}"));
        }
    }

    /// A turn of a broker's loops.
    fn turn(&mut self, id: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if self.now < machine.stopped_until {
            machine.wake_at = machine.stopped_until;
            return;
        }
        if machine.broker.is_none() {
            if machine.back_at <= self.now {
                self.start(id);
            } else {
                machine.wake_at = machine.back_at;
            }
            return;
        }
        let (now, now_ms) =
            (machine.clock.at(self.now), machine.clock.wall_ms(self.now, self.base_ns));
        let Some(broker) = &mut machine.broker else { return };
        let work_ms = if self.now < machine.slow_until { 2_000 } else { 30 };
        let disk = &machine.disk;
        if let Some(place) = &self.shared {
            place.redis.set_time(self.now, now_ms);
        }
        broker.turn(&mut Turn { now, now_ms, disk, work_ms, die: &mut self.work });
        machine.turned_at = self.now;
        if machine.disk.is_dead() || machine.platter.is_dead() {
            self.tally.count("deaths at the disk", 1);
            if self.luck.chance(2) {
                broker.last_words(now);
                broker.net.advance(now, now_ms, &mut |_| {});
                let link = &mut broker.net.link;
                send_all(link, broker_address(id), (now, self.now), &mut self.network);
            }
            return self.crash(id, "died at a call to its disk");
        }
        send_all(&mut broker.net.link, broker_address(id), (now, self.now), &mut self.network);
        let due = machine.clock.world_us(broker.timeout());
        machine.wake_at = due.max(self.now + BROKER_TURN_US);
        self.look(id);
        self.look_at_redis(id);
        self.hear_answers(id);
    }

    /// What a broker believes fits what all others ever believed.
    fn look(&mut self, id: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(seat) = machine.broker.as_mut().and_then(|broker| broker.seat.as_mut()) else {
            return;
        };
        if let Some(plane) = &seat.plane
            && let Some(term) = self.agreed.look(plane.node())
        {
            self.tally.count("leaders", 1);
            self.trace.say(self.now, || format!("broker {id} leads in term {term}"));
        }
        if seat.tuning.news().is_some() {
            self.agreed.look_at_broker(id, &seat.tuning);
            self.tally.count("versions run by brokers", 1);
        }
        for post in &seat.posts {
            if let Post::Map(map) = post {
                self.agreed.look_at_map(map, &HOSTS);
            }
        }
        if let Some(why) = seat.over.take() {
            let disk =
                matches!(&why, NodeError::Over | NodeError::Store(StoreError::Database { .. }));
            assert!(disk, "the control plane of broker {id} ended: {why}");
            self.tally.count("control planes ended", 1);
            self.trace.say(self.now, || format!("the control plane of broker {id} ended: {why}"));
            machine.restart_at = Some(self.now + 1_000 * (500 + self.luck.below(8_000)));
        }
    }

    fn deliver(&mut self) {
        while let Some(flying) = self.network.due(self.now) {
            let to = machine(flying.to);
            let (now, link) = if AGENTS <= to {
                let host = self.hosts.iter_mut().find(|host| host.agent.address == flying.to);
                // Nobody lives there any more.
                let Some(host) = host else { continue };
                host.wake_at = self.now;
                (host.clock.at(self.now), &mut host.agent.link)
            } else {
                let Some(machine) = self.machines.get_mut(&to) else { continue };
                if self.now < machine.stopped_until {
                    // It waits in the kernel's buffer, if there is room.
                    let until = machine.stopped_until;
                    if !self.luck.chance(2) {
                        self.network.keep(until, flying);
                    }
                    continue;
                }
                let now = machine.clock.at(self.now);
                let Some(broker) = &mut machine.broker else { continue };
                let turn_at = self.now.max(machine.turned_at + BROKER_TURN_US);
                machine.wake_at = machine.wake_at.min(turn_at);
                (now, &mut broker.net.link)
            };
            let Flying { from, ecn, bytes, .. } = flying;
            let bytes = BytesMut::from(bytes.as_slice());
            link.handle(now, Datagram { from, to: None, ecn, bytes });
        }
    }

    /// Rows of each host, as long as there are faults; then only what was lost is told.
    fn sample(&mut self) {
        for host in &mut self.hosts {
            let boottime_ns = host.clock.boottime_ns(self.now);
            let wall_ns = host.clock.wall_ns(self.now, self.base_ns);
            let mut tick = Tick { wall_ns, boottime_ns };
            host.wake_at = self.now;
            if !self.faults && !host.agent.is_proving() {
                host.agent.settle(tick, &mut self.ledger);
                continue;
            }
            let stray =
                !self.calm && self.faults && self.luck.chance(100) && host.clock.skew_ns == 0;
            if stray {
                self.tally.count("stray rows", 1);
                tick.wall_ns += [3_600, -8 * 86_400][self.luck.index(2)] * 1_000_000_000;
            }
            // An hour ahead is out of bounds; as long behind is late, and taken.
            host.agent.sample(tick, stray || 0 < host.clock.skew_ns, &mut self.ledger);
        }
    }

    /// Somebody, or its unit file, starts a broker.
    fn start(&mut self, id: u64) {
        let (seed, chunk) = (self.luck.below(1 << 40), 300 + self.luck.index(5_000));
        let log_keep = 5 + self.luck.below(40);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.lives += 1;
        machine.asked.clear();
        let in_cluster = 1 < self.plan.brokers;
        let name = if in_cluster { id } else { 0 };
        let identity = &self.keys.brokers[usize::try_from(name).expect("few")];
        let planted = match self.plant {
            Some(Plant::Control(plant)) => Some(plant),
            _ => None,
        };
        let plane = Config {
            log_keep,
            chunk_bytes: chunk,
            moves_per_second: 64,
            plant: planted,
            ..Config::usual(seed)
        };
        let birth = Birth {
            link: link(identity, Side::Broker, u128::from(id), u128::from(machine.lives)),
            keys: self.keys,
            config: &machine.config,
            platter: machine.joined.then_some(&machine.platter),
            plane,
            shared: self.shared.clone(),
            plant: self.plant,
        };
        let (now, now_ms) =
            (machine.clock.at(self.now), machine.clock.wall_ms(self.now, self.base_ns));
        if let Some(place) = &self.shared {
            place.redis.set_time(self.now, now_ms);
        }
        match Broker::new(birth, now, now_ms) {
            Ok(broker) => {
                machine.broker = Some(broker);
                (machine.wake_at, machine.restart_at) = (self.now, None);
                let life = machine.lives;
                self.trace.say(self.now, || format!("broker {id} starts, life {life}"));
                self.look(id);
            }
            // It died while it started, or the disk is full: someone starts it again.
            Err(why) => self.crash(id, &format!("does not start: {why}")),
        }
    }

    /// Everything in memory is gone; the broker comes back some time later.
    fn crash(&mut self, id: u64, how: &str) {
        self.trace.say(self.now, || format!("broker {id} {how}"));
        let Some(machine) = self.machines.get_mut(&id) else { return };
        // The power goes before the process: nothing is tidied up.
        machine.platter.crash(&mut self.luck);
        if let Some(broker) = machine.broker.take() {
            count(&broker, &mut self.tally);
        }
        machine.disk.crash();
        (machine.full_until, machine.low_until, machine.stopped_until) = (0, 0, 0);
        let down_ms = if self.faults { 50 + self.luck.below(5_000) } else { 100 };
        machine.back_at = self.now + 1_000 * down_ms;
        machine.wake_at = machine.back_at;
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        self.machines.clear();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// A life ends: what it saw.
fn count(broker: &Broker, tally: &mut Tally) {
    let (net, store) = broker.counts();
    tally.count("duplicates refused", net.ingest.duplicate);
    tally.count("blocks sealed", store.blocks_sealed);
    tally.count("segments expired", store.segments_expired);
    tally.count("segments capped", store.segments_capped);
    tally.count("agents redirected", net.cluster.map_or(0, |cluster| cluster.redirects));
    assert_eq!(net.ingest.lost.get("skipped"), None, "an agent left a hole");
}

fn send_all(link: &mut Link, from: SocketAddr, now: (Instant, u64), network: &mut Network) {
    let mut out = Vec::new();
    while let Some(transmit) = link.transmit(now.0, 4, &mut out) {
        let size = transmit.segment_bytes.unwrap_or(transmit.bytes);
        for bytes in out[..transmit.bytes].chunks(size) {
            let (to, ecn, bytes) = (transmit.to, transmit.ecn, bytes.to_vec());
            network.send(now.1, &Flying { from, to, ecn, bytes });
        }
        out.clear();
    }
}

/// The fleet; a run has the first one, two or three. Their shards differ.
pub(crate) const HOSTS: [HostId; 3] = [HostId(1), HostId(2), HostId(3)];
/// The number of a broker's disk is that of its machine and this.
const DISKS: u64 = 100;
const DAY_END_NS: i64 = 20_700 * 86_400_000_000_000;
const TICK_US: u64 = 250_000;
/// At most 500 turns a second, as the network loop does it.
const BROKER_TURN_US: u64 = 2_000;
const AGENT_TURN_US: u64 = 1_000;
/// What is older than that is gone at the end of a run: all from before everyone slept.
const RETENTION_MS: i64 = 660_000;
const ASLEEP_NS: i64 = 660_000_000_000;
