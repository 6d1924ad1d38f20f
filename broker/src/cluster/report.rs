//! How the cluster stands, as one broker sees it.

use serde_json::{Value, json};
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::kinds::shards;
use strobe_cluster::{Identity, Role, State, Status};
use strobe_wire::shard::Shard;

/// What one broker knows.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which cluster.
    pub cluster: u128,
    /// This broker.
    pub me: u64,
    /// Its part.
    pub role: Role,
    /// In which term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// Agreed up to here.
    pub committed: u64,
    /// Taken in up to here.
    pub applied: u64,
    /// Who votes.
    pub voters: Vec<u64>,
    /// Every member that has not left.
    pub members: Vec<Known>,
    /// Messages that were refused, or dropped because a queue was full.
    pub refused: u64,
    /// The same, dropped on their way to peers.
    pub dropped: u64,
    /// Of each shard its owner; 0: none.
    pub owners: Vec<u64>,
    /// This broker is no member any more, whatever else it still believes.
    pub left: bool,
}

/// A member.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its id.
    pub id: u64,
    /// Where it is.
    pub address: String,
    /// How far it belongs.
    pub stage: Stage,
    /// Not heard of.
    pub down: bool,
    /// Shards it owns.
    pub shards: usize,
}

impl Report {
    pub(super) fn of(identity: Identity, status: Status, state: &State, dropped: u64) -> Self {
        let here = members::members(state);
        let here = here.into_iter().filter(|member| member.stage() != Stage::Left);
        let known = |member: members::Member| Known {
            id: member.id,
            stage: member.stage(),
            down: member.down,
            shards: shards::owned_by(state, member.id),
            address: member.address,
        };
        let Status { role, term, leader, committed, applied, voters, refused, .. } = status;
        let owners = shards::owners(state);
        let owner = |shard| owners.owner(shard).map_or(0, |broker| broker.0);
        let owners = Shard::all().map(owner).collect();
        let (cluster, me, members) = (identity.cluster, identity.broker, here.map(known).collect());
        Self {
            cluster,
            me,
            role,
            term,
            leader,
            committed,
            applied,
            voters,
            members,
            refused,
            dropped,
            owners,
            left: false,
        }
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let member = |known: &Known| {
            json!({
                "id": known.id,
                "address": known.address,
                "stage": word(known.stage),
                "down": known.down,
                "shards": known.shards,
                "leader": self.leader == Some(known.id),
                "me": self.me == known.id,
            })
        };
        json!({
            "cluster": format!("{:032x}", self.cluster),
            "broker": self.me,
            "term": self.term,
            "leader": self.leader,
            "left": self.left,
            "committed": self.committed,
            "applied": self.applied,
            "messages_refused": self.refused,
            "messages_dropped": self.dropped,
            "members": self.members.iter().map(member).collect::<Vec<_>>(),
        })
    }
}

/// A stage in a word.
fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Learner => "learner",
        Stage::Voter => "voter",
        Stage::Draining => "draining",
        Stage::Left => "left",
    }
}
