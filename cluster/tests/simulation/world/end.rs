//! What has to be true at the end of a run.

use super::{Asked, World};
use strobe_cluster::Node;
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::kinds::{hosts, shards};
use strobe_wire::limits::SHARDS;
use strobe_wire::shard::capacity;

impl World {
    /// What has to come true when nothing goes wrong any more.
    pub(super) fn check_alive(&mut self) {
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
}
