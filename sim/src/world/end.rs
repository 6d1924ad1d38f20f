//! What has to come true when nothing goes wrong any more, and the judgement.

use super::{RETENTION_MS, World, count};
use crate::ledger::{Buried, Found, visible};
use crate::network::broker_address;
use std::collections::BTreeSet;
use strobe_broker::store::{Store, StoreConfig};
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::kinds::{shards, versions};
use strobe_wire::limits::SHARDS;
use strobe_wire::shard::{Shard, capacity};

impl World<'_> {
    /// Goes on until all is as it has to be.
    pub(super) fn settle(&mut self) {
        let (least, most) = (self.now + PEACE_US_MIN, self.now + PEACE_US_MAX);
        loop {
            self.go_until(self.now + 1_000_000);
            self.ask_again();
            let open = self.unsettled();
            if let Some(why) = open.filter(|_| most <= self.now) {
                self.show();
                panic!("{} s without faults, and {why}", PEACE_US_MAX / 1_000_000);
            }
            if least <= self.now && self.unsettled().is_none() {
                break;
            }
        }
        if let Some(state) = self.newest() {
            self.agreed.end(state);
        }
        self.tally.count("trials that ended well", self.agreed.trials[0]);
        self.tally.count("trials that did not", self.agreed.trials[1]);
    }

    /// How the control plane stands, for whoever reads the trace.
    fn show(&mut self) {
        let mut lines = Vec::new();
        for node in self.nodes() {
            lines.push(format!("broker {}: {:?}", node.id(), node.status()));
        }
        let known = self.newest().map_or_else(Vec::new, members::members);
        lines.extend(known.iter().map(|member| format!("{member:?}")));
        let hosts = self.hosts.iter().map(|host| &host.agent);
        lines.extend(hosts.map(|agent| format!("host {}: {}", agent.host.0, agent.standing())));
        lines.into_iter().for_each(|line| self.trace.say(self.now, || line));
    }

    /// What is not as it has to be.
    fn unsettled(&self) -> Option<String> {
        for host in &self.hosts {
            let agent = &host.agent;
            if agent.acknowledged() < agent.seq() {
                return Some(format!("host {} has frames that nobody took", agent.host.0));
            }
        }
        for (id, machine) in &self.machines {
            if machine.lives != 0 && machine.broker.is_none() {
                return Some(format!("broker {id} is down"));
            }
        }
        if 1 < self.plan.brokers { self.unagreed() } else { None }
    }

    /// What the cluster has not agreed on, or does not go by.
    fn unagreed(&self) -> Option<String> {
        let Some(leader) = self.leader() else { return Some("nobody leads".to_owned()) };
        let state = self.newest()?;
        let known = members::members(state);
        for member in &known {
            let id = member.id;
            match member.stage() {
                Stage::Left => continue,
                Stage::Voter if !member.down => {}
                stage => return Some(format!("broker {id} is {stage:?}, down: {}", member.down)),
            }
            let Some(node) = self.nodes().find(|node| node.id() == id) else {
                return Some(format!("broker {id} has no control plane"));
            };
            if node.state().hash() != state.hash() || node.status().leader != Some(leader) {
                return Some(format!("broker {id} lags behind broker {leader}"));
            }
        }
        let serving = known.iter().filter(|member| member.stage() == Stage::Voter);
        let serving: Vec<u64> = serving.map(|member| member.id).collect();
        let owned: usize = serving.iter().map(|&id| shards::owned_by(state, id)).sum();
        if owned != usize::from(SHARDS) {
            return Some(format!("{owned} shards have an owner that serves"));
        }
        let full =
            serving.iter().find(|&&id| capacity(serving.len()) < shards::owned_by(state, id));
        if let Some(id) = full {
            return Some(format!("broker {id} has more shards than its share"));
        }
        if let Some(version) = versions::on_trial(state) {
            return Some(format!("version {} is on trial", version.number));
        }
        let wanted = versions::in_force(state).map_or(0, |version| version.number);
        let seats = self
            .machines
            .iter()
            .filter_map(|(id, m)| Some((id, m.broker.as_ref()?.seat.as_ref()?)));
        for (id, seat) in seats.filter(|(id, _)| serving.contains(id)) {
            let runs = seat.tuning.running().version;
            if runs != wanted {
                return Some(format!("broker {id} runs version {runs} instead of {wanted}"));
            }
        }
        for host in &self.hosts {
            let (number, runs) = (host.agent.host.0, host.agent.running().version);
            if runs != wanted || host.agent.is_proving() {
                return Some(format!("host {number} runs version {runs} instead of {wanted}"));
            }
        }
        for host in &self.hosts {
            let owner = shards::owned(state, Shard::of(host.agent.host)).owner;
            if host.agent.broker() != broker_address(owner).to_string() {
                let (number, at) = (host.agent.host.0, host.agent.broker());
                return Some(format!("host {number} of broker {owner} is at {at}"));
            }
        }
        None
    }

    /// Every store by itself, and all of them together.
    pub(super) fn judge(&mut self) {
        self.trace.say(self.now, || "what is stored is looked at".to_owned());
        let (mut found, mut again) = (Found::default(), Found::default());
        let lived = self.machines.iter().filter(|(_, machine)| machine.lives != 0);
        let ids: Vec<u64> = lived.map(|(&id, _)| id).collect();
        for id in ids {
            let Some(machine) = self.machines.get_mut(&id) else { continue };
            let Some(broker) = machine.broker.take() else { continue };
            count(&broker, &mut self.tally);
            let bytes = broker.store.counts().segment_bytes;
            assert!(bytes <= machine.config.bytes_max, "{bytes} bytes of segments");
            let (removed, config) = (machine.disk.removed(), machine.config.clone());
            let now_ms = machine.clock.wall_ms(self.now, self.base_ns);
            let buried = buried(&config, StoreConfig::at(machine.disk.graves()), now_ms);
            self.tally.count("logs released", removed.len() as u64);
            self.tally.count("control syncs", machine.platter.syncs());
            self.tally.count("rollups", rollups(&config));
            self.ledger.judge((&broker.store, &config.dir), &removed, &buried, &mut found);
            drop(broker);
            // Nor does a last restart change what readers see.
            let opened = Store::open(config.clone(), now_ms);
            let (store, writer, recovery) = opened.expect("the store opens");
            let damage = recovery.damage.iter().all(|place| place.contains("wal"));
            assert!(damage, "{recovery:?}");
            self.ledger.judge((&store, &config.dir), &removed, &buried, &mut again);
            drop((store, writer));
        }
        self.ledger.account(&found);
        self.ledger.account(&again);
    }
}

fn buried(config: &StoreConfig, graves: StoreConfig, now_ms: i64) -> Buried {
    let mut any = false;
    for grave in std::fs::read_dir(graves.dir.join("segments")).expect("a folder").flatten() {
        if grave.file_name().to_string_lossy().starts_with("raw-") {
            any = true;
        } else {
            std::fs::remove_file(grave.path()).expect("a file of the simulation");
        }
    }
    let by_age = config.raw_retention_ms == RETENTION_MS;
    // A clock that was ahead for a while let go of a bit more.
    let before_ms = by_age.then(|| now_ms - RETENTION_MS + AHEAD_MS_MAX);
    if !any {
        return Buried { samples: BTreeSet::new(), before_ms };
    }
    let (store, ..) = Store::open(graves, now_ms).expect("they are whole");
    Buried { samples: visible(&store), before_ms }
}

fn rollups(config: &StoreConfig) -> u64 {
    let Ok(segments) = std::fs::read_dir(config.dir.join("segments")) else { return 0 };
    let names = segments.flatten().map(|entry| entry.file_name());
    let rolled = |name: &str| name.starts_with("min-") || name.starts_with("hour-");
    names.filter(|name| name.to_str().is_some_and(rolled)).count() as u64
}

/// What is due at the end of a day, and what waits for a minute, is done by then.
const PEACE_US_MIN: u64 = 15_000_000;
/// A back-off, an idle timeout and a stall fit many times over.
const PEACE_US_MAX: u64 = 300_000_000;
/// A broker's clock is never set further forth.
const AHEAD_MS_MAX: i64 = 21_000;
