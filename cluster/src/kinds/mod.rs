//! The kinds of things the cluster agrees on, each a file: its records, its commands, and what a
//! command does to the state.
//!
//! A new kind is a file with a number of its own here, and a line in `apply`. Numbers and
//! protobuf tags are in logs, snapshots and other brokers: they never change. What a command
//! does is the same on every node: it looks at the state and itself, at no clock.

pub mod audit;
pub mod hosts;
pub mod members;
pub mod revocations;
pub mod rollouts;
pub mod shards;
pub mod targets;
pub mod tokens;
pub mod versions;

use crate::command::Refusal;
use crate::state::State;
use bytes::Bytes;
use prost::Message;

/// The outcome of a command; `None` is a kind that this version does not know.
pub(crate) fn apply(state: &mut State, kind: u32, body: &Bytes) -> Option<Result<u64, Refusal>> {
    Some(match u8::try_from(kind).ok()? {
        members::KIND => members::apply(state, body),
        shards::KIND => shards::apply(state, body),
        hosts::KIND => hosts::apply(state, body),
        versions::KIND => versions::apply(state, body),
        targets::KIND => targets::apply(state, body),
        tokens::KIND => tokens::apply(state, body),
        revocations::KIND => revocations::apply(state, body),
        rollouts::KIND => rollouts::apply(state, body),
        audit::KIND => audit::apply(state, body),
        _ => return None,
    })
}

/// A kind's number and the bytes of a command of it, as [`crate::Node::propose`] takes them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    pub(crate) kind: u32,
    pub(crate) body: Bytes,
}

impl Command {
    fn of(kind: u8, message: &impl Message) -> Self {
        Self { kind: u32::from(kind), body: message.encode_to_vec().into() }
    }

    #[cfg(test)]
    pub(crate) fn into_body(self) -> (u32, Bytes) {
        (self.kind, self.body)
    }
}

/// Equal while neither the members nor the owners of shards change.
#[must_use]
pub fn placement(state: &State) -> [u128; 2] {
    [state.hash_of(members::KIND), state.hash_of(shards::KIND)]
}

/// Kinds of which a broker by itself has a state as well; making a cluster of it takes them along.
pub(crate) const OF_ONE: [u8; 3] = [versions::KIND, audit::KIND, targets::KIND];

pub(crate) fn key(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(kind);
    key.extend_from_slice(rest);
    key
}

pub(crate) fn load<M: Message + Default>(state: &State, key: &[u8]) -> Option<M> {
    M::decode(state.get(key)?).ok()
}

pub(crate) fn save(state: &mut State, key: Vec<u8>, record: &impl Message) {
    state.put(key, record.encode_to_vec());
}

fn all<M: Message + Default>(state: &State, kind: u8) -> Vec<M> {
    state.scan(&[kind]).filter_map(|(_, value)| M::decode(value).ok()).collect()
}

fn read<M: Message + Default>(body: &Bytes) -> Result<M, Refusal> {
    M::decode(body.clone()).map_err(|_| Refusal::Malformed)
}

/// Of [`crate::command`].
pub(crate) const SESSIONS: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Envelope, apply};

    /// A log of every command, as version 1 wrote it, makes the state that version 1 made of it.
    /// A change that breaks this breaks rolling upgrades: give the new meaning a tag of its own.
    #[test]
    fn the_golden_log_makes_the_golden_state() {
        let mut state = members::first_state(1, "10.0.0.1:7801", 0x1111);
        let token = [7; 32];
        let commands = [
            members::Change::add("10.0.0.2:7801", 0x2222),
            members::Change::promote(2),
            members::Change::report(2, false),
            shards::Change::moves(&[(17, 0, 1), (255, 0, 1)]),
            shards::Change::moves(&[(17, 1, 2)]),
            hosts::Change::put(9, "web-1", "eu,db", 1_000),
            hosts::Change::put(8, "web-2", "", 2_000),
            hosts::Change::forget(9),
            versions::Change::put(0, "ann", "first", "interval = 1", 5_000),
            tokens::Change::issue(token, 90_000, 5_000),
            tokens::Change::redeem(token, 6_000),
            members::Change::drain(2),
        ];
        let mut log = String::new();
        for (number, command) in (1..).zip(commands) {
            let (kind, body) = command.into_body();
            let envelope = Envelope { broker: 1, life: 1, number, settled: number, kind, body };
            let bytes = envelope.encode_to_vec();
            let applied = apply(&mut state, &bytes).unwrap().unwrap();
            log += &format!("{} {:?}\n", hex(&bytes), applied.outcome);
        }
        log += &format!("{}\n{:032x}\n", hex(&state.image()), state.hash());
        let golden = include_str!("golden.txt");
        assert!(golden == log, "the state or log differs from version 1's; now:\n{log}");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
