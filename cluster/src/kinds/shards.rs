//! Who owns which shard, and in which epoch.
//!
//! Every change of owner raises the shard's epoch by one, and names the epoch that it was planned in:
//! two leaders that plan at once cannot both move it. Writes to a shared store carry the epoch; a
//! store refuses what is older than it has seen.

use super::members::{self, Stage};
use super::{Command, key, load, read, save};
use crate::command::Refusal;
use crate::plant::Plant;
use crate::state::State;
use bytes::Bytes;
use prost::Message;
use strobe_wire::limits::SHARDS;
use strobe_wire::shard::{BrokerId, Owners, Shard};

/// A shard that has or had an owner.
#[derive(Clone, PartialEq, Message)]
pub struct Owned {
    /// The shard.
    #[prost(uint32, tag = "1")]
    pub shard: u32,
    /// How often it changed hands.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Its owner.
    #[prost(uint64, tag = "3")]
    pub owner: u64,
}

/// Some moves, done all or none.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    #[prost(message, repeated, tag = "1")]
    moves: Vec<Move>,
}

/// One shard's next owner.
#[derive(Clone, PartialEq, Message)]
struct Move {
    #[prost(uint32, tag = "1")]
    shard: u32,
    /// The epoch it has when this is planned.
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(uint64, tag = "3")]
    to: u64,
}

impl Change {
    /// Moves (shard, its epoch now, its next owner).
    #[must_use]
    pub fn moves(moves: &[(u16, u64, u64)]) -> Command {
        let of = |&(shard, epoch, to): &(u16, u64, u64)| Move { shard: shard.into(), epoch, to };
        Command::of(KIND, &Self { moves: moves.iter().map(of).collect() })
    }
}

/// Who owns the shard and in which epoch; epoch 0 had no owner yet.
#[must_use]
pub fn owned(state: &State, shard: Shard) -> Owned {
    load(state, &place(shard)).unwrap_or_else(|| Owned {
        shard: shard.0.into(),
        epoch: 0,
        owner: 0,
    })
}

/// Every owner.
#[must_use]
pub fn owners(state: &State) -> Owners {
    let mut owners = Owners::none();
    for owned in super::all::<Owned>(state, KIND) {
        let shard = u16::try_from(owned.shard).map(Shard);
        shard.into_iter().for_each(|shard| owners.set(shard, Some(BrokerId(owned.owner))));
    }
    owners
}

/// How many shards the broker owns.
#[must_use]
pub fn owned_by(state: &State, broker: u64) -> usize {
    super::all::<Owned>(state, KIND).iter().filter(|owned| owned.owner == broker).count()
}

/// After a restore: the shards are this broker's, in epochs that no owner before can have reached.
pub(crate) fn take_all(state: &mut State, owner: u64) {
    for shard in Shard::all() {
        let before = owned(state, shard);
        let epoch = before.epoch.saturating_add(RESTORED);
        save(state, place(shard), &Owned { epoch, owner, ..before });
    }
}

pub(super) fn apply(state: &mut State, body: &Bytes) -> Result<u64, Refusal> {
    let change: Change = read(body)?;
    if change.moves.len() > usize::from(SHARDS) {
        return Err(Refusal::TooMuch);
    }
    let mut then = Vec::with_capacity(change.moves.len());
    for Move { shard, epoch, to } in change.moves {
        let shard = u16::try_from(shard).ok().filter(|&shard| shard < SHARDS).map(Shard);
        let shard = shard.ok_or(Refusal::Missing)?;
        let now = owned(state, shard);
        if now.epoch != epoch && !state.plants.has(Plant::ForgetEpoch) {
            return Err(Refusal::Epoch);
        }
        let member = members::member(state, to).ok_or(Refusal::NoBroker)?;
        if member.stage() != Stage::Voter {
            return Err(Refusal::BrokerState);
        }
        let raised = u64::from(!state.plants.has(Plant::KeepEpoch) || epoch == 0);
        then.push((shard, Owned { shard: shard.0.into(), epoch: epoch + raised, owner: to }));
    }
    for (shard, owned) in &then {
        save(state, place(*shard), owned);
    }
    Ok(then.len() as u64)
}

fn place(shard: Shard) -> Vec<u8> {
    key(KIND, &shard.0.to_be_bytes())
}

pub(super) const KIND: u8 = 2;
/// Changes of owner between a backup and its restore: fewer.
const RESTORED: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_of_one_epoch_and_all_or_none() {
        let mut state = members::first_state(1, "a:1", 1);
        let mut run = |moves: &[(u16, u64, u64)]| apply(&mut state, &Change::moves(moves).body);
        assert_eq!(run(&[(3, 0, 1), (4, 0, 1)]), Ok(2));
        assert_eq!(run(&[(5, 0, 1), (3, 0, 1)]), Err(Refusal::Epoch));
        assert_eq!(run(&[(5, 0, 2)]), Err(Refusal::NoBroker));
        assert_eq!(run(&[(256, 0, 1)]), Err(Refusal::Missing));
        assert_eq!(run(&[(3, 1, 1)]), Ok(1));
        assert_eq!(owned(&state, Shard(3)), Owned { shard: 3, epoch: 2, owner: 1 });
        assert_eq!(owned(&state, Shard(5)).epoch, 0, "nothing of it was done");
        assert_eq!(owned_by(&state, 1), 2);
    }
}
