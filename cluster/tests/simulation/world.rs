//! Brokers, their disks and clocks, the network between them, and who works with them.

use super::dice::Die;
use super::disk::Disk;
use super::network::{Flying, Network};
use super::oracle::Oracle;
use redb::Database;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::kinds::{Command, hosts, shards, tokens, versions};
use strobe_cluster::{
    CommandId, Config, Event, Identity, Node, NodeError, Outcome, Output, Plant, Role, Store,
    StoreError, Ticket,
};
use strobe_wire::limits::SHARDS;
use strobe_wire::shard::{Shard, capacity};

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

/// What happened in a run.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Tally {
    digest: u64,
    simulated_ms: u64,
    messages_lost: u64,
    syncs: u64,
    crashes: u64,
    deaths_at_the_disk: u64,
    cuts: u64,
    stops: u64,
    leaders: u64,
    applied: u64,
    refused: u64,
    unknown: u64,
    reads: u64,
    reads_late: u64,
    joins: u64,
    drains: u64,
    removals: u64,
    wipes: u64,
    moves: u64,
    transfers: u64,
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
        Store::init(&database(&disk).expect("new"), identity, "broker-1").expect("new");
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
            Event::Changed => {}
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

    /// A client does something, somewhere.
    fn work(&mut self) {
        let Some(id) = self.any_broker() else { return };
        let joining = self.joining.keys().next().copied();
        let (asked, command) = match self.die.below(20) {
            0..=6 => {
                self.host_next += 1;
                let put = hosts::Change::put(self.host_next, "a host", "tags", 1);
                (Asked::Put(self.host_next), put)
            }
            7 | 8 if !self.oracle.hosts.is_empty() => {
                let at = self.die.index(self.oracle.hosts.len());
                let host = self.oracle.hosts.swap_remove(at);
                (Asked::Forget(host), hosts::Change::forget(host))
            }
            9 | 10 => {
                let state = self.state_of(id);
                let from = state.and_then(versions::last).map_or(0, |version| version.number);
                let text = format!("text {}", self.host_next);
                self.host_next += 1;
                let put = versions::Change::put(from, "somebody", "why not", &text, 1);
                (Asked::Version(from, text), put)
            }
            11 => {
                let hash = [u8::try_from(self.die.below(250)).expect("small"); 32];
                let command = match self.die.below(3) {
                    0 => tokens::Change::issue(hash, i64::MAX, 1),
                    1 => tokens::Change::redeem(hash, 2),
                    _ => tokens::Change::revoke(hash, 3),
                };
                (Asked::Other, command)
            }
            // An operator who knows the state as it is here moves a shard.
            12 => (Asked::Other, self.a_move(id)),
            13..=16 => return self.read(id),
            _ => match joining {
                Some(number) => (Asked::Join(number), members::Change::add("a broker", number)),
                None => return,
            },
        };
        self.ask(id, asked, command);
    }

    fn a_move(&mut self, id: u64) -> Command {
        let shard = Shard(u16::try_from(self.die.below(u64::from(SHARDS))).expect("a shard"));
        let to = 1 + self.die.below(self.brokers.len() as u64);
        let epoch = self.state_of(id).map_or(0, |state| shards::owned(state, shard).epoch);
        self.tally.moves += 1;
        shards::Change::moves(&[(shard.0, epoch, to)])
    }

    fn ask(&mut self, id: u64, asked: Asked, command: Command) {
        let number = self.with(id, |node, now| node.propose(now, command)).flatten();
        if let Some(number) = number
            && let Some(broker) = self.brokers.get_mut(&id)
        {
            broker.asked.insert(number, asked);
        }
    }

    fn read(&mut self, id: u64) {
        let skipped = self.oracle.hosts.len().saturating_sub(10);
        let before: Vec<u128> = self.oracle.hosts.iter().skip(skipped).copied().collect();
        let Some(broker) = self.brokers.get_mut(&id) else { return };
        let now = broker.local(self.start, self.now);
        // Its answer may come at once: it is to be known before.
        let asked = broker.node.as_mut().map(|node| node.read(now));
        if let Some(Ok(Some(ticket))) = asked {
            broker.reads.insert(ticket, before);
        }
        self.with(id, |_, _| Ok(()));
    }

    /// Something goes wrong, or somebody does something.
    fn harm(&mut self) {
        let Some(id) = self.any_broker() else { return };
        match self.die.below(24) {
            0..=3 => {
                self.crash(id);
                self.tally.crashes += 1;
            }
            4..=7 => {
                let calls = self.die.below(60);
                self.brokers[&id].disk.die_in(calls);
            }
            8..=11 => self.part(id),
            12 | 13 => {
                self.tally.stops += 1;
                let until = self.now + 200 + self.die.below(4_000);
                self.broker(id).stopped_until = until;
            }
            14 | 15 => {
                self.network.loss_percent = self.die.below(30);
                self.network.delay_ms = 5 + self.die.below(200);
            }
            16 => self.network.heal(),
            17 => {
                let to = 1 + self.die.below(self.brokers.len() as u64);
                self.tally.transfers += 1;
                self.with(id, |node, now| node.transfer_leader(now, to));
            }
            18 | 19 => self.shrink(id),
            20 => self.wipe(id),
            21 if self.brokers.len() + self.joining.len() < 8 => self.want_another(),
            _ => {
                let peer = 1 + self.die.below(self.brokers.len() as u64);
                self.with(id, |node, now| node.unreachable(now, peer));
            }
        }
    }

    /// One way, both ways, or flapping; towards one or all others.
    fn part(&mut self, id: u64) {
        self.tally.cuts += 1;
        let others: Vec<u64> = self.brokers.keys().copied().filter(|&o| o != id).collect();
        if others.is_empty() {
            return;
        }
        let until = self.now + 500 + self.die.below(6_000);
        let (kind, flapping) = (self.die.below(3), self.die.one_in(4));
        let one = others[self.die.index(others.len())];
        let all = self.die.one_in(2);
        for other in others.into_iter().filter(|&other| all || other == one) {
            if kind != 1 {
                self.network.cut(id, other, until, flapping);
            }
            if kind != 0 {
                self.network.cut(other, id, until, flapping);
            }
        }
    }

    /// An operator drains or removes a broker, while enough are left to go on.
    fn shrink(&mut self, id: u64) {
        let voters = self.voters();
        let staying =
            voters.iter().filter(|v| !self.leaving.contains(v) && self.wiped != Some(**v));
        let enough = 3 < staying.count();
        let wiped = self.wiped.filter(|wiped| voters.contains(wiped));
        let command = match wiped {
            Some(wiped) => {
                self.tally.removals += 1;
                self.leaving.insert(wiped);
                members::Change::remove(wiped)
            }
            None if enough && voters.contains(&id) => {
                self.tally.drains += 1;
                self.leaving.insert(id);
                members::Change::drain(id)
            }
            None => return,
        };
        if let Some(through) = self.any_broker() {
            self.ask(through, Asked::Other, command);
        }
    }

    /// A disk is replaced by an empty one, and somebody starts the broker on it under its old id.
    fn wipe(&mut self, id: u64) {
        let staying = self.voters().into_iter().filter(|voter| !self.leaving.contains(voter));
        if self.wiped.is_some() || staying.count() < 4 || self.leaving.contains(&id) {
            return;
        }
        self.tally.wipes += 1;
        self.wiped = Some(id);
        self.crash(id);
        let (number, disk) = self.new_disk();
        disk.wipe();
        let identity = Identity { cluster: CLUSTER, broker: id, disk: number };
        Store::join(&database(&disk).expect("new"), identity).expect("new");
        self.broker(id).disk = disk;
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

    fn heal(&mut self) {
        self.healed = true;
        self.network.heal();
        let now = self.now;
        for broker in self.brokers.values_mut() {
            broker.stopped_until = 0;
            if broker.back_at != u64::MAX {
                broker.back_at = broker.back_at.min(now + 100);
            }
            broker.disk.die_in(u64::MAX);
        }
    }

    /// What has to come true when nothing goes wrong any more.
    fn check_alive(&mut self) {
        let (leader, _) = self.newest().expect("somebody is there");
        let before = self.tally.applied;
        self.ask(leader, Asked::Last, hosts::Change::put(1, "the last", "", 1));
        self.joining.clear();
        for _ in 0..40 {
            let until = self.now + 50;
            while let Some(at) = self.next_event().filter(|&at| at <= until) {
                self.now = self.now.max(at);
                self.deliver();
                self.wake();
            }
            self.now = until;
        }
        if std::env::var_os("STROBE_SIM_SHOW").is_some() {
            self.show();
        }
        assert!(before + (1 << 40) <= self.tally.applied, "nothing is agreed any more");
        self.tally.applied -= 1 << 40;
        let (_, state) = self.newest().expect("somebody is there");
        let state = state.clone();
        self.oracle.end(&state);
        let known = members::members(&state);
        let stays = |stage| matches!(stage, Stage::Voter | Stage::Draining);
        for member in &known {
            let stays = stays(member.stage()) && self.wiped != Some(member.id);
            let node = self.brokers.get(&member.id).and_then(|broker| broker.node.as_ref());
            if stays {
                let node = node.expect("healed");
                assert_eq!(node.state().hash(), state.hash(), "broker {} lags", member.id);
                assert!(node.status().leader.is_some(), "broker {} has no leader", member.id);
            }
        }
        let serving = |member: &&members::Member| member.stage() == Stage::Voter && !member.down;
        let serving: Vec<u64> = known.iter().filter(serving).map(|member| member.id).collect();
        for &id in &serving {
            let owned = shards::owned_by(&state, id);
            assert!(owned <= capacity(serving.len()), "broker {id} owns {owned} of {serving:?}");
        }
        let owned: usize = serving.iter().map(|&id| shards::owned_by(&state, id)).sum();
        assert_eq!(owned, usize::from(SHARDS), "shards without a broker");
    }

    #[expect(clippy::print_stdout, reason = "asked for")]
    fn show(&self) {
        let (leader, state) = self.newest().expect("somebody is there");
        println!("{leader} leads");
        members::members(state).iter().for_each(|member| println!("{member:?}"));
        for (id, broker) in &self.brokers {
            let status = broker.node.as_ref().map(Node::status);
            println!("broker {id}, wiped {}: {status:?}", self.wiped == Some(*id));
        }
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

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in self.each().into_iter().zip(other.clone().each()) {
            *sum = sum.wrapping_add(*more);
        }
    }

    pub(crate) fn assert_all_happened(mut self) {
        let shown = format!("{self:?}");
        assert!(self.each().into_iter().all(|count| 0 < *count), "{shown}");
    }

    fn each(&mut self) -> [&mut u64; 20] {
        [
            &mut self.digest,
            &mut self.simulated_ms,
            &mut self.messages_lost,
            &mut self.syncs,
            &mut self.crashes,
            &mut self.deaths_at_the_disk,
            &mut self.cuts,
            &mut self.stops,
            &mut self.leaders,
            &mut self.applied,
            &mut self.refused,
            &mut self.unknown,
            &mut self.reads,
            &mut self.reads_late,
            &mut self.joins,
            &mut self.drains,
            &mut self.removals,
            &mut self.wipes,
            &mut self.moves,
            &mut self.transfers,
        ]
    }
}

fn database(disk: &Disk) -> Result<Database, String> {
    let opened = Database::builder().set_cache_size(1 << 20).create_with_backend(disk.door());
    opened.map_err(|why| why.to_string())
}

const CLUSTER: u128 = 0x5afe;
const SUFFERING_MS: u64 = 25_000;
const HEALING_MS: u64 = 12_000;
