//! Brokers, their disks and clocks, the network between them, and who works with them.

mod clients;
mod end;
mod harm;
mod tally;

use super::dice::Die;
use super::disk::Disk;
use super::network::{Flying, Network};
use super::oracle::Oracle;
use redb::Database;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::{
    CommandId, Config, Event, Identity, Node, NodeError, Outcome, Output, Plant, Role, Store,
    StoreError, Ticket,
};
pub(crate) use tally::Tally;

/// One run.
pub(crate) struct World {
    now: u64,
    start: Instant,
    die: Die,
    network: Network,
    brokers: BTreeMap<u64, Broker>,
    /// Joined or about to; the disk's number is the key.
    joining: BTreeMap<u64, Disk>,
    disk_next: u64,
    host_next: u128,
    oracle: Oracle,
    plant: Option<Plant>,
    tally: Tally,
    wiped: Option<u64>,
    /// Gone by an operator's will.
    leaving: BTreeSet<u64>,
    healed: bool,
}

struct Broker {
    node: Option<Node>,
    disk: Disk,
    /// Its clock: so many thousandths of the world's, and so many ms ahead.
    rate: u64,
    ahead: u64,
    back_at: u64,
    stopped_until: u64,
    asked: BTreeMap<CommandId, Asked>,
    reads: BTreeMap<Ticket, Vec<u128>>,
}

enum Asked {
    Put(u128),
    Forget(u128),
    Version(u64, String),
    Join(u64),
    Last,
    Other,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "a beginning for the virtual clock")]
    pub(crate) fn new(seed: u64, plant: Option<Plant>) -> Self {
        let mut world = Self {
            now: 1_000,
            start: Instant::now(),
            die: Die::new(seed, 1),
            network: Network::new(Die::new(seed, 2)),
            brokers: BTreeMap::new(),
            joining: BTreeMap::new(),
            disk_next: 1,
            host_next: 1,
            oracle: Oracle::default(),
            plant,
            tally: Tally::default(),
            wiped: None,
            leaving: BTreeSet::new(),
            healed: false,
        };
        let (number, disk) = world.new_disk();
        let identity = Identity { cluster: CLUSTER, broker: 1, disk: number };
        let database = database(&disk).expect("new");
        Store::init(&database, identity, "broker-1", &strobe_cluster::State::default())
            .expect("new");
        world.settle_in(1, disk);
        world
    }

    /// Grows in peace, suffers, and is healed.
    pub(crate) fn run(mut self) -> Tally {
        let count = 3 + self.die.below(3);
        for _ in 1..count {
            self.want_another();
            self.go_on(2_500);
        }
        let until = self.now + SUFFERING_MS;
        while self.now < until {
            self.harm();
            let pause = 50 + self.die.below(700);
            self.go_on(pause);
        }
        self.heal();
        self.go_on(HEALING_MS);
        self.check_alive();
        self.tally.syncs = self.brokers.values().map(|broker| broker.disk.syncs()).sum();
        self.tally.digest = self.network.digest;
        self.tally.messages_lost = self.network.lost;
        self.tally.simulated_ms = self.now;
        self.tally
    }

    /// Lets the time pass, with clients at work.
    fn go_on(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            let work_at = self.now + 20 + self.die.below(120);
            while let Some(at) = self.next_event().filter(|&at| at <= work_at.min(until)) {
                self.now = self.now.max(at);
                self.deliver();
                self.wake();
            }
            self.now = work_at.min(until);
            self.work();
        }
    }

    fn next_event(&self) -> Option<u64> {
        let of = |broker: &Broker| match &broker.node {
            Some(node) => broker.world_ms(self.start, node.timeout()).max(broker.stopped_until),
            None => broker.back_at,
        };
        self.brokers.values().map(of).chain(self.network.timeout()).min()
    }

    fn deliver(&mut self) {
        while let Some(Flying { from, to, bytes }) = self.network.due(self.now) {
            let Some(broker) = self.brokers.get(&to) else { continue };
            if self.now < broker.stopped_until {
                // It waits in the kernel's buffer.
                let until = broker.stopped_until;
                let (now, message) = (until.max(self.now), Flying { from, to, bytes });
                if !self.die.one_in(2) {
                    self.network.send(now, &message);
                }
                continue;
            }
            self.with(to, |node, now| node.step(now, from, &bytes));
        }
    }

    fn wake(&mut self) {
        let ids: Vec<u64> = self.brokers.keys().copied().collect();
        for id in ids {
            let broker = &self.brokers[&id];
            if self.now < broker.stopped_until {
                continue;
            }
            match &broker.node {
                None if broker.back_at <= self.now => self.open(id),
                Some(node) if broker.world_ms(self.start, node.timeout()) <= self.now => {
                    self.with(id, Node::on_timeout);
                }
                _ => {}
            }
        }
    }

    /// Does something with a node, and lets out what it has to say.
    fn with<T>(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut Node, Instant) -> Result<T, NodeError>,
    ) -> Option<T> {
        let broker = self.brokers.get_mut(&id)?;
        let now = broker.local(self.start, self.now);
        let node = broker.node.as_mut()?;
        let done = act(node, now);
        let mut events = Vec::new();
        let ended = loop {
            match node.poll(now) {
                Ok(Some(Output::Send { to, bytes })) => {
                    self.network.send(self.now, &Flying { from: id, to, bytes });
                }
                Ok(Some(Output::Event(event))) => events.push(event),
                Ok(None) => break None,
                Err(why) => break Some(why),
            }
        };
        for event in events {
            self.hear(id, &event);
        }
        match (done, ended) {
            (Ok(done), None) => {
                let node = self.brokers[&id].node.as_ref().expect("it is there");
                self.oracle.look(node);
                Some(done)
            }
            (Err(NodeError::Over), Some(why)) | (Err(why), _) | (Ok(_), Some(why)) => {
                self.over(id, &why);
                None
            }
        }
    }

    fn over(&mut self, id: u64, why: &NodeError) {
        if self.wiped == Some(id) && matches!(why, NodeError::LostLog) {
            // It hears what it confirmed when it had another disk, and is right to end.
            self.crash(id);
            self.broker(id).back_at = u64::MAX;
            return;
        }
        let disk = matches!(why, NodeError::Store(StoreError::Database { .. }) | NodeError::Over);
        assert!(disk, "broker {id} ended: {why}");
        self.tally.deaths_at_the_disk += 1;
        self.crash(id);
    }

    fn hear(&mut self, id: u64, event: &Event) {
        match *event {
            Event::Taken(index, command, outcome) => self.oracle.taken(index, command, outcome),
            Event::Outcome(command, outcome) => self.hear_outcome(id, command, outcome),
            Event::Leader(leader, _) => self.tally.leaders += u64::from(leader == Some(id)),
            Event::Changed | Event::Gone(_) => {}
            Event::Read(ticket, answered) => {
                let broker = self.brokers.get_mut(&id).expect("it spoke");
                let before = broker.reads.remove(&ticket).unwrap_or_default();
                self.tally.reads += u64::from(answered);
                self.tally.reads_late += u64::from(!answered);
                if answered && let Some(node) = &broker.node {
                    self.oracle.holds(node.state(), &before, "a read");
                }
            }
        }
    }

    fn hear_outcome(&mut self, id: u64, command: CommandId, outcome: Outcome) {
        self.oracle.outcome(command, outcome);
        match outcome {
            Outcome::Applied(_) => self.tally.applied += 1,
            Outcome::Refused(_) => self.tally.refused += 1,
            Outcome::Unknown => self.tally.unknown += 1,
        }
        let asked = self.brokers.get_mut(&id).and_then(|broker| broker.asked.remove(&command));
        let (Some(asked), Outcome::Applied(value)) = (asked, outcome) else { return };
        match asked {
            Asked::Put(host) => self.oracle.hosts.push(host),
            Asked::Forget(host) => self.oracle.forget_host(host),
            Asked::Version(from, text) => {
                assert_eq!(value, from + 1, "a version of another number");
                let other = self.oracle.versions.insert(value, text);
                assert_eq!(other, None, "version {value} was acknowledged twice");
            }
            Asked::Join(number) => {
                if let Some(disk) = self.joining.remove(&number) {
                    let identity = Identity { cluster: CLUSTER, broker: value, disk: number };
                    Store::join(&database(&disk).expect("new"), identity).expect("new");
                    self.settle_in(value, disk);
                    self.tally.joins += 1;
                }
            }
            Asked::Last => self.tally.applied += 1 << 40,
            Asked::Other => {}
        }
    }

    fn want_another(&mut self) {
        let (number, disk) = self.new_disk();
        self.joining.insert(number, disk);
    }

    fn new_disk(&mut self) -> (u64, Disk) {
        self.disk_next += 1;
        (self.disk_next, Disk::new())
    }

    fn settle_in(&mut self, id: u64, disk: Disk) {
        let (rate, ahead) = (950 + self.die.below(101), self.die.below(100_000));
        let broker = Broker {
            node: None,
            disk,
            rate,
            ahead,
            back_at: self.now,
            stopped_until: 0,
            asked: BTreeMap::new(),
            reads: BTreeMap::new(),
        };
        self.brokers.insert(id, broker);
        self.open(id);
    }

    fn open(&mut self, id: u64) {
        let plant = self.plant;
        let seed = self.die.below(1 << 40);
        let (chunk_bytes, log_keep) = (300 + self.die.index(5000), 5 + self.die.below(40));
        let (start, now) = (self.start, self.now);
        let broker = self.broker(id);
        let config =
            Config { log_keep, chunk_bytes, plant, moves_per_second: 64, ..Config::usual(seed) };
        let local = broker.local(start, now);
        let node = database(&broker.disk)
            .map_err(|why| StoreError::Database { doing: "open", why })
            .and_then(Store::open)
            .map_err(NodeError::from)
            .and_then(|store| Node::new(store, config, local));
        match node {
            Ok(node) => broker.node = Some(node),
            Err(why) => return self.over(id, &why),
        }
        self.with(id, |_, _| Ok(()));
    }

    fn crash(&mut self, id: u64) {
        let down = if self.healed { 100 } else { 100 + self.die.below(5_000) };
        let mut die = self.die.clone();
        self.die.below(2);
        let now = self.now;
        let broker = self.broker(id);
        broker.back_at = now + down;
        broker.node = None;
        broker.asked.clear();
        broker.reads.clear();
        broker.disk.crash(&mut die);
    }

    fn any_broker(&mut self) -> Option<u64> {
        let up = |broker: &Broker| broker.node.is_some() && broker.stopped_until <= self.now;
        let ids: Vec<u64> = self.brokers.iter().filter(|(_, b)| up(b)).map(|(&id, _)| id).collect();
        if ids.is_empty() { None } else { Some(ids[self.die.index(ids.len())]) }
    }

    /// Who leads in the latest term, and what it knows.
    fn newest(&self) -> Option<(u64, &strobe_cluster::State)> {
        let nodes = self.brokers.values().filter_map(|broker| broker.node.as_ref());
        let rank = |node: &&Node| {
            let status = node.status();
            (status.role == Role::Leader, status.term, status.applied)
        };
        nodes.max_by_key(rank).map(|node| (node.id(), node.state()))
    }

    fn voters(&self) -> BTreeSet<u64> {
        let known = self.newest().map_or_else(Vec::new, |(_, state)| members::members(state));
        let voters = known.iter().filter(|member| member.stage() == Stage::Voter);
        voters.map(|member| member.id).collect()
    }

    fn state_of(&self, id: u64) -> Option<&strobe_cluster::State> {
        self.brokers.get(&id)?.node.as_ref().map(Node::state)
    }

    fn broker(&mut self, id: u64) -> &mut Broker {
        self.brokers.get_mut(&id).expect("it was there")
    }
}

impl Broker {
    fn local(&self, start: Instant, world_ms: u64) -> Instant {
        start + Duration::from_millis(self.ahead) + Duration::from_micros(world_ms * self.rate)
    }

    /// The first moment of the world at which its clock shows `at`.
    fn world_ms(&self, start: Instant, at: Instant) -> u64 {
        let shown = at.saturating_duration_since(start + Duration::from_millis(self.ahead));
        u64::try_from(shown.as_micros()).expect("a short run").div_ceil(self.rate)
    }
}

fn database(disk: &Disk) -> Result<Database, String> {
    let opened = Database::builder().set_cache_size(1 << 20).create_with_backend(disk.door());
    opened.map_err(|why| why.to_string())
}

const CLUSTER: u128 = 0x5afe;
const SUFFERING_MS: u64 = 25_000;
const HEALING_MS: u64 = 12_000;
