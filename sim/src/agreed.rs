//! What must hold of the control plane, whatever happens: looked at after every step of every broker.

use super::agent::Agent;
use super::tuning::Tuning;
use std::collections::{BTreeMap, BTreeSet};
use strobe_broker::cluster::{Canary, Map};
use strobe_cluster::kinds::versions::Stage;
use strobe_cluster::kinds::{hosts, placement, shards, versions};
use strobe_cluster::{Node, Role, State};
use strobe_wire::fleet::Document;
use strobe_wire::ids::HostId;
use strobe_wire::shard::Shard;

/// All that was seen.
#[derive(Debug, Default)]
pub(crate) struct Agreed {
    leaders: BTreeMap<u64, u64>,
    committed: BTreeMap<u64, u64>,
    hashes: BTreeMap<u64, u128>,
    owners: BTreeMap<(u32, u64), u64>,
    /// What each broker was like when it was looked at last.
    seen: BTreeMap<u64, (Role, u64, u64, u64)>,
    placed: [u128; 2],
    /// What operators were told is so.
    pub(crate) hosts: Vec<u128>,
    pub(crate) versions: BTreeMap<u64, String>,
    configured: u128,
    /// By number: its text, who tries or tried it, and whether it ever was in force.
    texts: BTreeMap<u64, (String, String, bool)>,
    ended: BTreeSet<u64>,
    /// Trials that ended well, and not.
    pub(crate) trials: [u64; 2],
}

impl Agreed {
    /// One broker after a step: what it believes fits what all others ever believed. Returns whether it
    /// has just begun to lead.
    pub(crate) fn look(&mut self, node: &Node) -> Option<u64> {
        let (id, status) = (node.id(), node.status());
        let now = (status.role, status.term, status.committed, status.applied);
        let before = self.seen.insert(id, now);
        if before == Some(now) {
            return None;
        }
        // Only what is new is looked at, and the last ones again: a log that changed shows there.
        let from = status.committed.saturating_sub(30).max(1);
        for index in from..=status.committed {
            let Some(term) = node.term_at(index) else { continue };
            let agreed = *self.committed.entry(index).or_insert(term);
            assert_eq!(term, agreed, "broker {id} has another entry {index} than was agreed");
        }
        if 0 < status.applied {
            let hash = node.state().hash();
            let agreed = *self.hashes.entry(status.applied).or_insert(hash);
            assert_eq!(hash, agreed, "broker {id} has another state at {}", status.applied);
            let configured = versions::mark(node.state());
            if std::mem::replace(&mut self.configured, configured) != configured {
                self.look_at_versions(node.state());
            }
            let placed = placement(node.state());
            if std::mem::replace(&mut self.placed, placed) != placed {
                self.look_at_owners(node.state());
            }
        }
        if status.role != Role::Leader {
            return None;
        }
        let leader = *self.leaders.entry(status.term).or_insert(id);
        assert_eq!(leader, id, "two leaders of term {}", status.term);
        before.is_none_or(|(role, ..)| role != Role::Leader).then_some(status.term)
    }

    /// A broker's network loop is given owners: only those that were agreed on.
    pub(crate) fn look_at_map(&self, map: &Map, hosts: &[HostId]) {
        for &host in hosts {
            // Epoch 0 is of a broker that has left and sends all its agents away.
            let Some(owner) = map.owner(host).filter(|owner| owner.epoch != 0) else { continue };
            let agreed = self.owners.get(&(Shard::of(host).0.into(), owner.epoch));
            let me = map.me;
            assert_eq!(agreed, Some(&owner.broker), "broker {me} goes by owners nobody agreed on");
        }
    }

    /// Whether a shard ever had that epoch.
    pub(crate) fn is_epoch(&self, shard: u32, epoch: u64) -> bool {
        self.owners.contains_key(&(shard, epoch))
    }

    fn look_at_versions(&mut self, state: &State) {
        for version in versions::history(state) {
            let (number, stage) = (version.number, version.stage());
            let new = (version.text.clone(), version.canary.clone(), false);
            let known = self.texts.entry(number).or_insert(new);
            assert_eq!(known.0, version.text, "version {number} has two texts");
            known.2 |= stage == Stage::InForce;
            // Who lags may think that it is on trial still.
            let both = known.2 && stage == Stage::TakenBack;
            assert!(!both, "version {number} was in force, and is taken back");
            if !version.told.is_empty() && self.ended.insert(number) {
                self.trials[usize::from(stage == Stage::TakenBack)] += 1;
            }
        }
    }

    /// A host runs a version whole, and only one that is its own to run.
    pub(crate) fn look_at_agent(&self, agent: &Agent) {
        let (host, running) = (agent.host, agent.running());
        let Some((text, canary, in_force)) = self.texts.get(&running.version) else {
            let own = running.version == 0 && running.values.is_empty();
            return assert!(own, "host {} runs {running:?}, which nobody agreed on", host.0);
        };
        let tries = *canary == Canary::Host(host).to_string();
        let number = running.version;
        assert!(*in_force || tries, "host {} runs version {number}, on trial elsewhere", host.0);
        let wanted = Document::read(text).expect("it was read before").of_host(agent.hello());
        assert_eq!(running.values, wanted, "host {} runs half of version {number}", host.0);
    }

    /// The same of a broker.
    pub(crate) fn look_at_broker(&self, id: u64, tuning: &Tuning) {
        let running = tuning.running();
        let Some((text, canary, in_force)) = self.texts.get(&running.version) else {
            return assert_eq!(running.version, 0, "broker {id} runs what nobody agreed on");
        };
        let tries = *canary == Canary::Broker(id).to_string();
        let number = running.version;
        assert!(*in_force || tries, "broker {id} runs version {number}, on trial elsewhere");
        tuning.look(id, text);
    }

    fn look_at_owners(&mut self, state: &State) {
        for shard in Shard::all() {
            let owned = shards::owned(state, shard);
            let known = *self.owners.entry((owned.shard, owned.epoch)).or_insert(owned.owner);
            let epoch = owned.epoch;
            assert_eq!(known, owned.owner, "shard {} has two owners in epoch {epoch}", shard.0);
        }
    }

    /// All is healed and quiet.
    pub(crate) fn end(&self, state: &State) {
        for &host in &self.hosts {
            let there = hosts::host(state, HostId(host)).is_some();
            assert!(there, "host {host} was registered, and is not there");
        }
        for version in versions::history(state) {
            if let Some(text) = self.versions.get(&version.number) {
                assert_eq!(version.text, *text, "version {} is another", version.number);
            }
        }
        let last = versions::last(state).map_or(0, |version| version.number);
        let acknowledged = self.versions.last_key_value().map_or(0, |(&number, _)| number);
        assert!(acknowledged <= last, "version {acknowledged} is gone");
    }
}
