//! What must hold, whatever happens: looked at after every step of every broker.

use std::collections::{BTreeMap, BTreeSet};
use strobe_cluster::kinds::{hosts, shards, versions};
use strobe_cluster::{CommandId, Node, Outcome, Role, State};
use strobe_wire::ids::HostId;
use strobe_wire::shard::Shard;

/// All that was seen.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    leaders: BTreeMap<u64, u64>,
    committed: BTreeMap<u64, u64>,
    hashes: BTreeMap<u64, u128>,
    owners: BTreeMap<(u32, u64), u64>,
    taken: BTreeMap<CommandId, (u64, Outcome)>,
    by_index: BTreeMap<u64, CommandId>,
    refused: BTreeSet<CommandId>,
    /// What clients were told is so.
    pub(crate) hosts: Vec<u128>,
    forgotten: BTreeSet<u128>,
    pub(crate) versions: BTreeMap<u64, String>,
}

impl Oracle {
    /// One broker after a step: what it believes fits what all others ever believed.
    pub(crate) fn look(&mut self, node: &Node) {
        let (id, status) = (node.id(), node.status());
        if status.role == Role::Leader {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(leader, id, "two leaders of term {}", status.term);
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
            let before = self.hashes.insert(status.applied, hash);
            match before {
                None => self.look_at_owners(node.state()),
                Some(agreed) => {
                    assert_eq!(hash, agreed, "broker {id} has another state at {}", status.applied);
                }
            }
        }
    }

    fn look_at_owners(&mut self, state: &State) {
        for shard in Shard::all() {
            let owned = shards::owned(state, shard);
            let known = *self.owners.entry((owned.shard, owned.epoch)).or_insert(owned.owner);
            let epoch = owned.epoch;
            assert_eq!(known, owned.owner, "shard {} has two owners in epoch {epoch}", shard.0);
        }
    }

    pub(crate) fn taken(&mut self, index: u64, id: CommandId, outcome: Outcome) {
        let (at, known) = *self.taken.entry(id).or_insert((index, outcome));
        assert_eq!(at, index, "{id:?} was applied twice");
        assert_eq!(known, outcome, "{id:?} had another outcome elsewhere");
        let agreed = *self.by_index.entry(index).or_insert(id);
        assert_eq!(agreed, id, "another command at {index}");
    }

    pub(crate) fn outcome(&mut self, id: CommandId, outcome: Outcome) {
        match outcome {
            Outcome::Applied(_) => {
                let told = Some(outcome);
                let taken = self.taken.get(&id).map(|&(_, outcome)| outcome);
                assert_eq!(taken, told, "{id:?} was acknowledged and not applied");
            }
            Outcome::Refused(_) => drop(self.refused.insert(id)),
            Outcome::Unknown => {}
        }
    }

    pub(crate) fn forget_host(&mut self, host: u128) {
        self.forgotten.insert(host);
        self.hosts.retain(|&known| known != host);
    }

    /// The state of whoever answers a read holds what was acknowledged before it was asked.
    pub(crate) fn holds(&self, state: &State, hosts_before: &[u128], why: &str) {
        for &host in hosts_before {
            let there = hosts::host(state, HostId(host)).is_some();
            assert!(there || !self.hosts.contains(&host), "{why}: host {host} is not there");
        }
    }

    /// All is healed and quiet.
    pub(crate) fn end(&self, state: &State) {
        self.holds(state, &self.hosts, "at the end");
        for &host in &self.forgotten {
            assert_eq!(hosts::host(state, HostId(host)), None, "host {host} came back");
        }
        for version in versions::history(state) {
            if let Some(text) = self.versions.get(&version.number) {
                assert_eq!(version.text, *text, "version {} is another", version.number);
            }
        }
        let last = versions::last(state).map_or(0, |version| version.number);
        let acknowledged = self.versions.last_key_value().map_or(0, |(&number, _)| number);
        assert!(acknowledged <= last, "version {acknowledged} is gone");
        for id in &self.refused {
            let taken = self.taken.get(id).map(|&(_, outcome)| outcome);
            let applied = matches!(taken, Some(Outcome::Applied(_)));
            assert!(!applied, "{id:?} was told to be refused and was applied");
        }
    }
}
