//! What the leader does by itself so that the cluster is as its state says: one thing at a time,
//! decided by nothing but what it is shown.
//!
//! In this order: leave a joint configuration; hand the lead over if it has left itself; note who is
//! no longer, or again, heard of; give the shards of those who are gone to others, all at once;
//! take learners that caught up as voters; make raft's configuration that of the members; move
//! shards where the ring wants them, a few at a time; let drained brokers go; hand the lead over
//! when it is to leave itself.

use crate::kinds::members::{self, Member, Stage};
use crate::kinds::shards::Owned;
use crate::kinds::{Command, shards};
use crate::state::State;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use strobe_wire::shard::BrokerId;

/// What a leader sees.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) me: u64,
    pub(crate) state: &'a State,
    pub(crate) conf: &'a ConfState,
    pub(crate) committed: u64,
    /// Of every peer that raft follows.
    pub(crate) peers: BTreeMap<u64, Peer>,
    /// After so long a silence a peer is down.
    pub(crate) silence: Duration,
    /// Shards that may be moved now without need.
    pub(crate) moves: usize,
    /// The shards of this very state were looked at, and are where they belong.
    pub(crate) balanced: bool,
}

/// What a leader knows of a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// How long it has been silent.
    pub(crate) silent: Duration,
    /// How much of the log it has.
    pub(crate) matched: u64,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    Propose(Command),
    /// Moves without need.
    Move(Command),
    Configure(ConfChangeV2),
    Transfer(u64),
}

impl View<'_> {
    /// The next thing to be done; `None` when all is as it should be.
    pub(crate) fn next(&self) -> Option<Action> {
        let members = members::members(self.state);
        if !self.conf.voters_outgoing.is_empty() {
            // Nothing in it means: leave the joint configuration.
            return Some(Action::Configure(ConfChangeV2::default()));
        }
        let left = |member: &Member| member.id == self.me && member.stage() == Stage::Left;
        if members.iter().any(left) {
            // What it proposes is refused: whoever follows it does the rest.
            return self.configure(&members).or_else(|| self.hand_over(&members));
        }
        if let Some(report) = self.report(&members) {
            return Some(report);
        }
        let plan = self.plan(&members);
        self.rescue(&members, &plan)
            .or_else(|| self.promote(&members))
            .or_else(|| self.configure(&members))
            .or_else(|| self.rebalance(&plan))
            .or_else(|| self.let_go(&members))
            .or_else(|| self.hand_over(&members))
    }

    fn report(&self, members: &[Member]) -> Option<Action> {
        let changed = members.iter().filter(|member| member.stage() != Stage::Left).find(|m| {
            let up = self.is_heard(m.id);
            m.down == up
        })?;
        Some(Action::Propose(members::Change::report(changed.id, changed.down)))
    }

    /// Shards without an owner that could serve them.
    fn rescue(&self, members: &[Member], plan: &[(Owned, u64)]) -> Option<Action> {
        let serves = |owned: &Owned| {
            members.iter().any(|member| {
                let stage = member.stage();
                let serves = matches!(stage, Stage::Voter | Stage::Draining) && !member.down;
                serves && member.id == owned.owner
            })
        };
        let lost: Vec<_> = plan.iter().filter(|(owned, _)| !serves(owned)).collect();
        (!lost.is_empty()).then(|| Action::Propose(moves(&lost)))
    }

    fn rebalance(&self, plan: &[(Owned, u64)]) -> Option<Action> {
        let some: Vec<_> = plan.iter().take(self.moves).collect();
        (!some.is_empty()).then(|| Action::Move(moves(&some)))
    }

    /// What the ring would move, and to whom.
    fn plan(&self, members: &[Member]) -> Vec<(Owned, u64)> {
        if self.balanced {
            return Vec::new();
        }
        let fit = |member: &&Member| member.stage() == Stage::Voter && !member.down;
        let brokers: Vec<BrokerId> =
            members.iter().filter(fit).map(|member| BrokerId(member.id)).collect();
        let now = shards::owners(self.state);
        let then = now.assign(&brokers);
        let to = |shard| Some((shards::owned(self.state, shard), then.owner(shard)?.0));
        then.moved(&now).filter_map(to).collect()
    }

    /// A learner that has nearly all of the log may vote.
    fn promote(&self, members: &[Member]) -> Option<Action> {
        let ready = members.iter().find(|member| {
            // In a young cluster nothing at all is within the lag: it has to have something.
            let caught_up =
                |peer: &Peer| 0 < peer.matched && self.committed <= peer.matched + LAG_MAX;
            member.stage() == Stage::Learner
                && !member.down
                && self.conf.learners.contains(&member.id)
                && self.peers.get(&member.id).is_some_and(caught_up)
        })?;
        Some(Action::Propose(members::Change::promote(ready.id)))
    }

    fn configure(&self, members: &[Member]) -> Option<Action> {
        let of = |wanted: &dyn Fn(Stage) -> bool| -> BTreeSet<u64> {
            members.iter().filter(|m| wanted(m.stage())).map(|member| member.id).collect()
        };
        let voters = of(&|stage| matches!(stage, Stage::Voter | Stage::Draining));
        let learners = of(&|stage| stage == Stage::Learner);
        let now = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let (had_voters, had_learners) = (now(&self.conf.voters), now(&self.conf.learners));
        let mut changes: Vec<ConfChangeSingle> = Vec::new();
        let mut change = |kind, id| {
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = id;
            changes.push(single);
        };
        voters.difference(&had_voters).for_each(|&id| change(ConfChangeType::AddNode, id));
        let new = learners.difference(&had_learners);
        new.for_each(|&id| change(ConfChangeType::AddLearnerNode, id));
        let had: BTreeSet<u64> = had_voters.union(&had_learners).copied().collect();
        let wanted: BTreeSet<u64> = voters.union(&learners).copied().collect();
        had.difference(&wanted).for_each(|&id| change(ConfChangeType::RemoveNode, id));
        if changes.is_empty() || (!wanted.contains(&self.me) && 1 < voters.len()) {
            return None;
        }
        let mut v2 = ConfChangeV2::default();
        if 1 < changes.len() {
            v2.set_transition(ConfChangeTransition::Explicit);
        }
        v2.set_changes(changes.into());
        Some(Action::Configure(v2))
    }

    fn let_go(&self, members: &[Member]) -> Option<Action> {
        let drained = members.iter().find(|member| {
            member.id != self.me
                && member.stage() == Stage::Draining
                && shards::owned_by(self.state, member.id) == 0
        })?;
        Some(Action::Propose(members::Change::leave(drained.id)))
    }

    fn hand_over(&self, members: &[Member]) -> Option<Action> {
        let mine = members.iter().find(|member| member.id == self.me)?;
        if !matches!(mine.stage(), Stage::Draining | Stage::Left) {
            return None;
        }
        let fit = |id: &u64| {
            members.iter().any(|m| m.id == *id && m.stage() == Stage::Voter && self.is_heard(m.id))
        };
        let best = self.peers.iter().filter(|(id, _)| **id != self.me && fit(id));
        best.max_by_key(|(_, peer)| peer.matched).map(|(&id, _)| Action::Transfer(id))
    }

    fn is_heard(&self, id: u64) -> bool {
        id == self.me || self.peers.get(&id).is_some_and(|peer| peer.silent < self.silence)
    }
}

fn moves(plan: &[&(Owned, u64)]) -> Command {
    let of = |(owned, to): &&(Owned, u64)| {
        let shard = u16::try_from(owned.shard).expect("it came from a Shard");
        (shard, owned.epoch, *to)
    };
    shards::Change::moves(&plan.iter().map(of).collect::<Vec<_>>())
}

/// Entries that a learner may lack when it is taken as a voter.
const LAG_MAX: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn peer(silent_ms: u64, matched: u64) -> Peer {
        Peer { silent: Duration::from_millis(silent_ms), matched }
    }

    /// Runs what the controller proposes until it proposes no more.
    fn settle(state: &mut State, conf: &mut ConfState, peers: &BTreeMap<u64, Peer>) -> Vec<String> {
        let mut did = Vec::new();
        while did.len() < 100 {
            let silence = Duration::from_millis(1500);
            let view = View {
                me: 1,
                state,
                conf,
                committed: 100,
                peers: peers.clone(),
                silence,
                moves: 8,
                balanced: false,
            };
            let Some(action) = view.next() else { return did };
            did.push(match action {
                Action::Propose(command) | Action::Move(command) => {
                    let done = kinds::apply(state, command.kind, &command.body).unwrap();
                    format!("{} {done:?}", command.kind)
                }
                Action::Configure(change) => {
                    for one in change.changes.iter() {
                        conf.voters.retain(|&id| id != one.node_id);
                        conf.learners.retain(|&id| id != one.node_id);
                        match one.get_change_type() {
                            ConfChangeType::AddNode => conf.voters.push(one.node_id),
                            ConfChangeType::AddLearnerNode => conf.learners.push(one.node_id),
                            ConfChangeType::RemoveNode => {}
                        }
                    }
                    format!("configure {:?} {:?}", conf.voters, conf.learners)
                }
                Action::Transfer(to) => return [did, vec![format!("transfer {to}")]].concat(),
            });
        }
        panic!("it does not come to rest: {did:?}");
    }

    #[test]
    fn a_cluster_grows_fails_and_shrinks() {
        let mut state = members::first_state(1, "a:1", 1);
        let mut conf = ConfState::from((vec![1], vec![]));
        let mut peers = BTreeMap::from([(1, peer(0, 100))]);
        assert_eq!(settle(&mut state, &mut conf, &peers), ["2 Ok(256)"], "all to the only one");
        let add = members::Change::add("b:1", 2);
        kinds::apply(&mut state, add.kind, &add.body).unwrap().unwrap();
        peers.insert(2, peer(0, 50));
        assert_eq!(settle(&mut state, &mut conf, &peers), ["configure [1] [2]"], "it lags");
        peers.insert(2, peer(0, 99));
        let did = settle(&mut state, &mut conf, &peers);
        assert_eq!(did[..2], ["1 Ok(2)", "configure [1, 2] []"]);
        assert_eq!(did.len(), 2 + 122_usize.div_ceil(8), "eight at a time");
        assert_eq!(shards::owned_by(&state, 2), 122);
        peers.insert(2, peer(1500, 99));
        assert_eq!(settle(&mut state, &mut conf, &peers), ["1 Ok(2)", "2 Ok(122)"], "at once");
        peers.insert(2, peer(0, 99));
        let did = settle(&mut state, &mut conf, &peers);
        assert_eq!((did.len(), shards::owned_by(&state, 2)), (17, 122), "it is back");
        let drain = members::Change::drain(2);
        kinds::apply(&mut state, drain.kind, &drain.body).unwrap().unwrap();
        let did = settle(&mut state, &mut conf, &peers);
        assert_eq!(did[did.len() - 2..], ["1 Ok(2)", "configure [1] []"]);
        assert_eq!((did.len(), shards::owned_by(&state, 1)), (18, 256));
    }

    #[test]
    fn a_leader_that_is_drained_hands_over() {
        let mut state = members::first_state(1, "a:1", 1);
        let mut conf = ConfState::from((vec![1], vec![]));
        let peers = BTreeMap::from([(1, peer(0, 100)), (2, peer(0, 99)), (3, peer(0, 100))]);
        for (id, command) in [
            (2, members::Change::add("b:1", 2)),
            (3, members::Change::add("c:1", 3)),
            (1, members::Change::drain(1)),
        ] {
            if id == 1 {
                settle(&mut state, &mut conf, &peers);
            }
            kinds::apply(&mut state, command.kind, &command.body).unwrap().unwrap();
        }
        let did = settle(&mut state, &mut conf, &peers);
        assert_eq!(did.last().unwrap(), "transfer 3");
        assert_eq!(shards::owned_by(&state, 1), 0);
    }

    /// A drained broker was elected just before it was let go. What it proposed was refused, since it was
    /// no member, so it reported for ever that another was up again, and never came to hand over.
    #[test]
    fn a_leader_that_has_left_only_hands_over() {
        let mut state = members::first_state(1, "a:1", 1);
        for command in [
            members::Change::add("b:1", 2),
            members::Change::promote(2),
            members::Change::add("c:1", 3),
            members::Change::promote(3),
            members::Change::report(2, false),
            members::Change::drain(1),
            members::Change::leave(1),
        ] {
            kinds::apply(&mut state, command.kind, &command.body).unwrap().unwrap();
        }
        let mut conf = ConfState::from((vec![1, 2, 3], vec![]));
        let peers = BTreeMap::from([(1, peer(0, 100)), (2, peer(0, 99)), (3, peer(0, 100))]);
        assert_eq!(settle(&mut state, &mut conf, &peers), ["transfer 3"]);
    }
}
