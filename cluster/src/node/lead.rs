//! What a leader does unasked.

use super::Node;
use crate::controller::{Action, Peer, View};
use crate::kinds::{self, Command};
use std::time::{Duration, Instant};

impl Node {
    pub(super) fn control(&mut self, now: Instant) {
        let busy = self.controlled.is_some_and(|id| self.proposals.waits(id));
        let raft = &self.raft.raft;
        if !self.is_leader() || busy || !raft.apply_to_current_term() || raft.has_pending_conf() {
            return;
        }
        // Who was never heard is given the time of who is silent from now on.
        for (&id, _) in raft.prs().iter() {
            self.heard.entry(id).or_insert(now);
        }
        let of = |(&id, progress): (&u64, &raft::Progress)| {
            let heard = self.heard.get(&id).copied().unwrap_or(now);
            let silent = now.saturating_duration_since(heard);
            (id, Peer { silent, matched: progress.matched })
        };
        let peers = raft.prs().iter().map(of).collect();
        let silence = self.config.heartbeat * MISSED_HEARTBEATS;
        let moves = if self.moves_at <= now { self.config.moves_per_second.div_ceil(2) } else { 0 };
        let conf = raft.prs().conf().to_conf_state();
        let committed = raft.raft_log.committed;
        let state = self.raft.store().state();
        let placement = kinds::placement(state);
        let balanced = self.balanced == Some(placement);
        let view =
            View { balanced, me: raft.id, state, conf: &conf, committed, peers, silence, moves };
        match view.next() {
            None if 0 < moves => self.balanced = Some(placement),
            None => {}
            Some(Action::Propose(command)) => self.propose_own(now, command),
            Some(Action::Move(command)) => {
                self.moves_at = now + MOVES_EVERY;
                self.propose_own(now, command);
            }
            // A refusal shows in the next view.
            Some(Action::Configure(change)) => {
                drop(self.raft.propose_conf_change(Vec::new(), change));
            }
            Some(Action::Transfer(to)) => self.raft.transfer_leader(to),
        }
    }

    pub(super) fn propose_own(&mut self, now: Instant, command: Command) {
        self.controlled = self.proposals.add(now, command, self.config.patience);
        self.send_proposals(now);
    }
}

/// Silent for so many heartbeats, a peer is down.
const MISSED_HEARTBEATS: u32 = 3;
const MOVES_EVERY: Duration = Duration::from_millis(500);
