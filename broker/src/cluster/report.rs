//! How the cluster stands, as one broker sees it.

use serde_json::{Value, json};
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::kinds::shards;
use strobe_cluster::{Identity, Role, State, Status};
use strobe_wire::limits::SHARDS;

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
            "committed": self.committed,
            "applied": self.applied,
            "messages_refused": self.refused,
            "messages_dropped": self.dropped,
            "members": self.members.iter().map(member).collect::<Vec<_>>(),
        })
    }

    /// What an operator should look at: (how bad, a sentence each).
    #[must_use]
    pub fn findings(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let voting = |known: &&Known| self.voters.contains(&known.id);
        let down: Vec<&Known> = self.members.iter().filter(|known| known.down).collect();
        if !self.members.iter().any(|known| known.id == self.me) {
            let why = "this broker is no member of the cluster any more: stop it";
            found.push(("bad", why.to_owned()));
        }
        if self.leader.is_none() {
            let why = "no leader is known: less than half of the voters can be reached, or an \
                       election is under way. Ingest goes on; nothing can be changed";
            found.push(("bad", why.to_owned()));
        }
        for known in &down {
            let Known { id, address, .. } = known;
            let why = format!(
                "broker {id} ({address}) is not heard of: start it, or `strobe cluster remove {id}`"
            );
            found.push(("bad", why));
        }
        let owned: usize = self.members.iter().map(|known| known.shards).sum();
        if owned < usize::from(SHARDS) {
            let why = format!("{} shards have no owner", usize::from(SHARDS) - owned);
            found.push(("bad", why));
        }
        for known in self.members.iter().filter(|known| known.stage == Stage::Learner) {
            found.push(("note", format!("broker {} is still catching up", known.id)));
        }
        match self.members.iter().filter(voting).count() {
            1 => found.push(("note", "one voter: it is not survived by anybody".to_owned())),
            count if count % 2 == 0 => {
                let why = format!(
                    "{count} voters survive the loss of {}, as {} would: add one",
                    (count - 1) / 2,
                    count - 1
                );
                found.push(("note", why));
            }
            _ => {}
        }
        if 0 < self.dropped {
            let why =
                format!("{} messages to peers were dropped: they do not keep up", self.dropped);
            found.push(("note", why));
        }
        found
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
