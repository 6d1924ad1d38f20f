//! What is proposed: a command of one kind, named by (broker, life, number) so that it counts once
//! however often it comes.
//!
//! A broker numbers the commands of each of its lives from 1, at most [`IN_FLIGHT_MAX`] without an
//! outcome at once. The state keeps the outcomes of its last life that it may still ask for
//! (`settled` says below which number it does not), and only for members: bounded by both.

use crate::kinds;
use crate::kinds::members;
use crate::plant::Plant;
use crate::state::State;
use bytes::Bytes;
use prost::Message;

/// Names a command.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CommandId {
    /// Whose.
    pub broker: u64,
    /// In which of its lives.
    pub life: u64,
    /// Which of them.
    pub number: u64,
}

/// Why a command changed nothing. The same on every node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, prost::Enumeration)]
#[repr(i32)]
pub enum Refusal {
    /// Its bytes mean nothing.
    #[error("the command cannot be read")]
    Malformed = 1,
    /// It, or what it would make, is beyond a bound.
    #[error("that is more than the cluster keeps")]
    TooMuch = 2,
    /// There is no such broker.
    #[error("no broker of this cluster has that id")]
    NoBroker = 3,
    /// The broker is in another state than the command is for.
    #[error("the broker is not in a state for that")]
    BrokerState = 4,
    /// Without this voter there would be none.
    #[error("that is the last voter")]
    LastVoter = 5,
    /// The broker still owns shards.
    #[error("the broker still owns shards: drain it first")]
    OwnsShards = 6,
    /// The shard has moved on since.
    #[error("the shard has another epoch by now")]
    Epoch = 7,
    /// Somebody else was first.
    #[error("another version was put in between")]
    Version = 8,
    /// There is no such thing.
    #[error("that does not exist")]
    Missing = 9,
    /// There is already.
    #[error("that exists already")]
    Exists = 10,
    /// Its time is over, or it was used or taken back.
    #[error("that is no longer good")]
    Spent = 11,
    /// Of an earlier life, or numbered beyond what may be in flight.
    #[error("the command comes from an earlier life of its broker")]
    Stale = 12,
}

/// A command as it is in the log.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Envelope {
    #[prost(uint64, tag = "1")]
    pub(crate) broker: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) life: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) number: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) settled: u64,
    #[prost(uint32, tag = "5")]
    pub(crate) kind: u32,
    #[prost(bytes = "bytes", tag = "6")]
    pub(crate) body: Bytes,
}

/// The commands of a broker's last life.
#[derive(Clone, PartialEq, Message)]
struct Session {
    #[prost(uint64, tag = "1")]
    life: u64,
    #[prost(uint64, tag = "2")]
    settled: u64,
    #[prost(message, repeated, tag = "3")]
    outcomes: Vec<Told>,
}

/// An outcome: of a refusal the code, otherwise the value.
#[derive(Clone, PartialEq, Message)]
struct Told {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(uint64, tag = "2")]
    value: u64,
    #[prost(enumeration = "Refusal", optional, tag = "3")]
    refusal: Option<i32>,
}

/// An entry that this version does not understand: it must not be skipped, others may know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the cluster uses a kind of command ({kind}) that this broker does not know: upgrade it")]
pub struct UnknownKind {
    kind: u32,
}

/// What became of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Applied {
    pub(crate) id: CommandId,
    pub(crate) outcome: Result<u64, Refusal>,
    /// It changed the state; otherwise it had come before, or was stale.
    pub(crate) fresh: bool,
}

/// Takes one entry of the log into the state.
pub(crate) fn apply(state: &mut State, data: &[u8]) -> Result<Option<Applied>, UnknownKind> {
    let Ok(envelope) = Envelope::decode(data) else { return Ok(None) };
    let Envelope { broker, life, number, settled, kind, ref body } = envelope;
    let id = CommandId { broker, life, number };
    let refused = |refusal| Ok(Some(Applied { id, outcome: Err(refusal), fresh: false }));
    if !members::is_member(state, broker) {
        return refused(Refusal::NoBroker);
    }
    let mut session: Session = kinds::load(state, &key(broker)).unwrap_or_default();
    if life < session.life {
        return refused(Refusal::Stale);
    }
    if session.life < life {
        session = Session { life, ..Session::default() };
    }
    let known = session.outcomes.iter().find(|told| told.number == number);
    if let Some(told) = known.filter(|_| !state.plants.has(Plant::ForgetDedup)) {
        return Ok(Some(Applied { id, outcome: told.outcome(), fresh: false }));
    }
    let again = state.plants.has(Plant::ForgetDedup);
    let settled = session.settled.max(settled.min(number)).max(1);
    if (number < settled && !again) || settled.saturating_add(IN_FLIGHT_MAX) <= number {
        return refused(Refusal::Stale);
    }
    let outcome = kinds::apply(state, kind, body).ok_or(UnknownKind { kind })?;
    session.settled = settled;
    session.outcomes.retain(|told| session.settled <= told.number && told.number != number);
    session.outcomes.push(Told::of(number, outcome));
    session.outcomes.sort_unstable_by_key(|told| told.number);
    // The command itself may have been the broker's end.
    if members::is_member(state, broker) {
        kinds::save(state, key(broker), &session);
    }
    Ok(Some(Applied { id, outcome, fresh: true }))
}

/// What became of a command, as far as the state still knows.
pub(crate) fn outcome(state: &State, id: CommandId) -> Option<Result<u64, Refusal>> {
    let session: Session = kinds::load(state, &key(id.broker))?;
    let told = session.outcomes.iter().find(|told| told.number == id.number)?;
    (session.life == id.life).then(|| told.outcome())
}

/// Forgets a broker that left.
pub(crate) fn forget(state: &mut State, broker: u64) {
    state.remove(&key(broker));
}

impl Told {
    fn of(number: u64, outcome: Result<u64, Refusal>) -> Self {
        let value = outcome.unwrap_or(0);
        Self { number, value, refusal: outcome.err().map(i32::from) }
    }

    fn outcome(&self) -> Result<u64, Refusal> {
        match self.refusal {
            None => Ok(self.value),
            Some(code) => Err(Refusal::try_from(code).unwrap_or(Refusal::Malformed)),
        }
    }
}

fn key(broker: u64) -> Vec<u8> {
    kinds::key(kinds::SESSIONS, &broker.to_be_bytes())
}

/// Commands of one broker without an outcome.
pub(crate) const IN_FLIGHT_MAX: u64 = 64;
/// Bytes of one command.
pub(crate) const COMMAND_BYTES_MAX: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::hosts;

    fn send(state: &mut State, life: u64, number: u64, settled: u64) -> Applied {
        let (kind, body) = hosts::Change::forget(u128::from(number)).into_body();
        let envelope = Envelope { broker: 1, life, number, settled, kind, body };
        apply(state, &envelope.encode_to_vec()).unwrap().unwrap()
    }

    #[test]
    fn a_command_counts_once() {
        let mut state = members::first_state(1, "a:1", 7);
        let first = send(&mut state, 1, 1, 1);
        let hash = state.hash();
        assert!(first.fresh);
        assert_eq!(send(&mut state, 1, 1, 1), Applied { fresh: false, ..first });
        assert_eq!(state.hash(), hash);
        assert!(send(&mut state, 1, 3, 2).fresh);
        assert!(send(&mut state, 1, 2, 2).fresh, "they may come in any order");
        assert_eq!(send(&mut state, 1, 1, 2).outcome, Err(Refusal::Stale), "it said it knows");
        assert!(send(&mut state, 2, 1, 1).fresh, "another life");
        assert_eq!(send(&mut state, 1, 4, 4).outcome, Err(Refusal::Stale));
        assert_eq!(send(&mut state, 2, 65, 1).outcome, Err(Refusal::Stale), "too far ahead");
        assert!(send(&mut state, 2, 65, 65).fresh, "it knows all before");
    }
}
