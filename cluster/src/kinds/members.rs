//! Who belongs to the cluster.
//!
//! ```text
//!   (unknown) --add--> learner --promote--> voter --drain--> draining --leave--> left
//!                         |                   |                               ^
//!                         +---------- remove (of the dead) -------------------+
//! ```
//!
//! Ids are given out here, from 1, and never twice: who left stays known by id. A broker also has the
//! number of its disk: one that comes back with another disk is another broker.
//! `up` is what the leader saw of it last.

use super::{Command, key, load, read, save};
use crate::command::{self, Refusal};
use crate::kinds::shards;
use crate::state::State;
use bytes::Bytes;
use prost::Message;

/// A broker that is or was a member.
#[derive(Clone, PartialEq, Message)]
pub struct Member {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Where peers and agents reach it.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Its state.
    #[prost(enumeration = "Stage", tag = "3")]
    pub stage: i32,
    /// The number of its disk.
    #[prost(uint64, tag = "4")]
    pub disk: u64,
    /// Not heard of: it owns no shards until it is.
    #[prost(bool, tag = "5")]
    pub down: bool,
}

/// How far a broker belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Stage {
    /// Catches up; neither votes nor owns.
    Learner = 0,
    /// Votes and owns.
    Voter = 1,
    /// Votes, and gives its shards away.
    Draining = 2,
    /// Gone for good.
    Left = 3,
}

/// A change of the members.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    #[prost(enumeration = "Verb", tag = "1")]
    verb: i32,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(string, tag = "3")]
    address: String,
    #[prost(uint64, tag = "4")]
    disk: u64,
    #[prost(bool, tag = "5")]
    up: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
enum Verb {
    Nothing = 0,
    Add = 1,
    Promote = 2,
    Drain = 3,
    Leave = 4,
    Remove = 5,
    Report = 6,
}

impl Change {
    /// A new broker; the outcome is its id, the same one if its disk is known already.
    #[must_use]
    pub fn add(address: &str, disk: u64) -> Command {
        let address = address.to_owned();
        Self { verb: Verb::Add.into(), address, disk, ..Self::default() }.command()
    }

    /// A learner has caught up.
    #[must_use]
    pub fn promote(id: u64) -> Command {
        Self { verb: Verb::Promote.into(), id, ..Self::default() }.command()
    }

    /// A voter shall give its shards away and then leave.
    #[must_use]
    pub fn drain(id: u64) -> Command {
        Self { verb: Verb::Drain.into(), id, ..Self::default() }.command()
    }

    /// A draining broker has nothing left.
    #[must_use]
    pub fn leave(id: u64) -> Command {
        Self { verb: Verb::Leave.into(), id, ..Self::default() }.command()
    }

    /// A broker is gone for good, without a drain.
    #[must_use]
    pub fn remove(id: u64) -> Command {
        Self { verb: Verb::Remove.into(), id, ..Self::default() }.command()
    }

    /// A broker is, or is no longer, heard of.
    #[must_use]
    pub fn report(id: u64, up: bool) -> Command {
        Self { verb: Verb::Report.into(), id, up, ..Self::default() }.command()
    }

    fn command(&self) -> Command {
        Command::of(KIND, self)
    }
}

/// One member, also one that left.
#[must_use]
pub fn member(state: &State, id: u64) -> Option<Member> {
    load(state, &key(KIND, &id.to_be_bytes()))
}

/// Every member there ever was, by id.
#[must_use]
pub fn members(state: &State) -> Vec<Member> {
    super::all(state, KIND)
}

/// Whether the broker belongs to the cluster now.
#[must_use]
pub fn is_member(state: &State, id: u64) -> bool {
    member(state, id).is_some_and(|member| member.stage() != Stage::Left)
}

/// Of a cluster that was just made by its first broker.
#[must_use]
pub fn first_state(id: u64, address: &str, disk: u64) -> State {
    let mut state = State::default();
    let address = address.to_owned();
    let first = Member { id, address, stage: Stage::Voter.into(), disk, down: false };
    put(&mut state, &first);
    state
}

/// After a restore: this one is all there is, with another disk.
pub(crate) fn only(state: &mut State, id: u64, address: &str, disk: u64) {
    for mut other in members(state) {
        // Their lives begin anew: of what they proposed nothing is under way any more.
        command::forget(state, other.id);
        other.stage = Stage::Left.into();
        put(state, &other);
    }
    let address = address.to_owned();
    put(state, &Member { id, address, stage: Stage::Voter.into(), disk, down: false });
}

pub(super) fn apply(state: &mut State, body: &Bytes) -> Result<u64, Refusal> {
    let change: Change = read(body)?;
    if change.verb() == Verb::Add {
        return add(state, change);
    }
    let mut member = member(state, change.id).ok_or(Refusal::NoBroker)?;
    let then = match (change.verb(), member.stage()) {
        (_, Stage::Left) => return Err(Refusal::BrokerState),
        (Verb::Promote, Stage::Learner) => Stage::Voter,
        (Verb::Drain, Stage::Voter) => Stage::Draining,
        (Verb::Leave, Stage::Draining) if shards::owned_by(state, member.id) == 0 => Stage::Left,
        (Verb::Leave, Stage::Draining) => return Err(Refusal::OwnsShards),
        (Verb::Remove, _) => Stage::Left,
        (Verb::Report, stage) => {
            member.down = !change.up;
            stage
        }
        (Verb::Nothing, _) => return Err(Refusal::Malformed),
        _ => return Err(Refusal::BrokerState),
    };
    let was_voter = member.stage() == Stage::Voter;
    if was_voter && then != Stage::Voter && voters(state) == 1 {
        return Err(Refusal::LastVoter);
    }
    member.set_stage(then);
    put(state, &member);
    if then == Stage::Left {
        command::forget(state, member.id);
    }
    Ok(member.id)
}

fn add(state: &mut State, change: Change) -> Result<u64, Refusal> {
    let known = members(state);
    if let Some(same) = known.iter().find(|member| member.disk == change.disk) {
        let left = same.stage() == Stage::Left;
        return if left { Err(Refusal::BrokerState) } else { Ok(same.id) };
    }
    let now = known.iter().filter(|member| member.stage() != Stage::Left).count();
    if MEMBERS_MAX <= now || ADDRESS_BYTES_MAX < change.address.len() {
        return Err(Refusal::TooMuch);
    }
    // Who left keeps its place, so the highest id is the highest there ever was.
    let id = known.iter().map(|member| member.id).max().unwrap_or(0) + 1;
    let Change { address, disk, .. } = change;
    put(state, &Member { id, address, stage: Stage::Learner.into(), disk, down: false });
    Ok(id)
}

fn voters(state: &State) -> usize {
    members(state).iter().filter(|member| member.stage() == Stage::Voter).count()
}

fn put(state: &mut State, member: &Member) {
    save(state, key(KIND, &member.id.to_be_bytes()), member);
}

pub(super) const KIND: u8 = 1;
const MEMBERS_MAX: usize = 128;
const ADDRESS_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(state: &mut State, command: &Command) -> Result<u64, Refusal> {
        apply(state, &command.body)
    }

    #[test]
    fn no_id_is_given_out_twice() {
        let mut state = first_state(1, "a:1", 1);
        assert_eq!(run(&mut state, &Change::add("b:1", 2)), Ok(2));
        assert_eq!(run(&mut state, &Change::add("b:1", 2)), Ok(2), "it asked again");
        assert_eq!(run(&mut state, &Change::remove(2)), Ok(2));
        assert_eq!(run(&mut state, &Change::add("b:1", 2)), Err(Refusal::BrokerState));
        assert_eq!(run(&mut state, &Change::add("b:1", 3)), Ok(3));
    }

    #[test]
    fn a_broker_goes_through_its_stages_in_order() {
        let mut state = first_state(1, "a:1", 1);
        assert_eq!(run(&mut state, &Change::drain(1)), Err(Refusal::LastVoter));
        assert_eq!(run(&mut state, &Change::remove(1)), Err(Refusal::LastVoter));
        run(&mut state, &Change::add("b:1", 2)).unwrap();
        assert_eq!(run(&mut state, &Change::drain(2)), Err(Refusal::BrokerState));
        run(&mut state, &Change::promote(2)).unwrap();
        assert_eq!(run(&mut state, &Change::promote(2)), Err(Refusal::BrokerState));
        run(&mut state, &shards::Change::moves(&[(3, 0, 1)])).unwrap_err();
        run(&mut state, &Change::drain(1)).unwrap();
        assert_eq!(run(&mut state, &Change::leave(1)), Ok(1));
        assert!(!is_member(&state, 1));
    }
}
