//! Machines that the fleet knows of, whether an agent runs there or not: found, or named by an operator.
//!
//! What is found never undoes what an operator said: a name that is there keeps its address if an
//! operator gave it, its tags, its group, and that it is retired.

use super::{Command, key, load, read, save};
use crate::command::Refusal;
use crate::state::State;
use bytes::Bytes;
use prost::Message;

/// A machine.
#[derive(Clone, PartialEq, Message)]
pub struct Target {
    /// What it is called; an agent with this instance is on it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Where it is; empty: the name says it.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Who says so: `operator`, or by which way it was found.
    #[prost(string, tag = "3")]
    pub source: String,
    /// Words by which machines are told apart.
    #[prost(string, repeated, tag = "4")]
    pub tags: Vec<String>,
    /// The one group that it belongs to; empty: none.
    #[prost(string, tag = "5")]
    pub group: String,
    /// What is checked besides what is checked of all.
    #[prost(string, repeated, tag = "6")]
    pub checks: Vec<String>,
    /// When it was first put here.
    #[prost(int64, tag = "7")]
    pub first_ms: i64,
    /// Since when it is out of use; 0: it is in use.
    #[prost(int64, tag = "8")]
    pub retired_ms: i64,
}

/// A change of one machine.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    #[prost(message, optional, tag = "1")]
    target: Option<Target>,
    #[prost(enumeration = "Verb", tag = "2")]
    verb: i32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
enum Verb {
    /// An operator says how it is.
    Put = 0,
    /// It was found.
    Found = 1,
    /// It is forgotten.
    Remove = 2,
}

impl Change {
    /// A machine is like this, as an operator says.
    #[must_use]
    pub fn put(target: Target) -> Command {
        Self::of(target, Verb::Put)
    }

    /// A machine was found.
    #[must_use]
    pub fn found(name: &str, address: &str, source: &str, now_ms: i64) -> Command {
        let (name, address, source) = (name.to_owned(), address.to_owned(), source.to_owned());
        let target = Target { name, address, source, first_ms: now_ms, ..Target::default() };
        Self::of(target, Verb::Found)
    }

    /// A machine is forgotten.
    #[must_use]
    pub fn remove(name: &str) -> Command {
        Self::of(Target { name: name.to_owned(), ..Target::default() }, Verb::Remove)
    }

    fn of(target: Target, verb: Verb) -> Command {
        Command::of(KIND, &Self { target: Some(target), verb: verb.into() })
    }
}

/// Every machine, by name.
#[must_use]
pub fn targets(state: &State) -> Vec<Target> {
    super::all(state, KIND)
}

/// One machine.
#[must_use]
pub fn target(state: &State, name: &str) -> Option<Target> {
    load(state, &key(KIND, name.as_bytes()))
}

/// Another number after any change of them.
#[must_use]
pub fn mark(state: &State) -> u128 {
    state.hash_of(KIND)
}

pub(super) fn apply(state: &mut State, body: &Bytes) -> Result<u64, Refusal> {
    let change: Change = read(body)?;
    let verb = change.verb();
    let mut target = change.target.ok_or(Refusal::Malformed)?;
    if target.name.is_empty() {
        return Err(Refusal::Malformed);
    }
    if TARGET_BYTES_MAX < target.encoded_len()
        || WORDS_MAX < target.tags.len() + target.checks.len()
    {
        return Err(Refusal::TooMuch);
    }
    let place = key(KIND, target.name.as_bytes());
    let before: Option<Target> = load(state, &place);
    match (verb, before) {
        (Verb::Remove, before) => {
            state.remove(&place);
            return before.map(|_| 0).ok_or(Refusal::Missing);
        }
        (_, None) if TARGETS_MAX <= state.scan(&[KIND]).count() => return Err(Refusal::TooMuch),
        (Verb::Found, Some(before)) => {
            let fixed = before.source == OPERATOR && !before.address.is_empty();
            let address = if fixed { before.address.clone() } else { target.address };
            target = Target { address, ..before };
        }
        (Verb::Put, Some(before)) => target.first_ms = before.first_ms,
        (Verb::Put | Verb::Found, None) => {}
    }
    save(state, place, &target);
    Ok(0)
}

/// [`Target::source`] of what an operator put.
pub const OPERATOR: &str = "operator";
pub(super) const KIND: u8 = 9;
const TARGETS_MAX: usize = 20_000;
const TARGET_BYTES_MAX: usize = 4096;
const WORDS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_does_not_undo_what_an_operator_said() {
        let mut state = State::default();
        let mut run = |command: Command| apply(&mut state, &command.body);
        assert_eq!(run(Change::found("a", "10.0.0.1", "mdns", 5)), Ok(0));
        assert_eq!(run(Change::found("a", "10.0.0.2", "scan", 6)), Ok(0));
        let said = Target {
            name: "a".into(),
            address: "10.0.0.9".into(),
            source: OPERATOR.into(),
            tags: vec!["db".into()],
            retired_ms: 8,
            ..Target::default()
        };
        assert_eq!(run(Change::put(said.clone())), Ok(0));
        assert_eq!(run(Change::found("a", "10.0.0.3", "mdns", 7)), Ok(0));
        assert_eq!(run(Change::found("b", "10.0.0.4", "mdns", 7)), Ok(0));
        assert_eq!(run(Change::found("b", "10.0.0.5", "srv", 8)), Ok(0));
        assert_eq!(run(Change::remove("c")), Err(Refusal::Missing));
        assert_eq!(run(Change::remove("")), Err(Refusal::Malformed));
        assert_eq!(target(&state, "a"), Some(Target { first_ms: 5, ..said }));
        let found = target(&state, "b").unwrap();
        let told = (found.address.as_str(), found.source.as_str(), found.first_ms);
        assert_eq!((told, targets(&state).len()), (("10.0.0.5", "mdns", 7), 2));
    }

    #[test]
    fn a_machine_has_a_bound() {
        let mut state = State::default();
        let mut run = |target| apply(&mut state, &Change::put(target).body);
        let named = |name: &str| Target { name: name.to_owned(), ..Target::default() };
        assert_eq!(run(named(&"x".repeat(5000))), Err(Refusal::TooMuch));
        let tags = vec![String::new(); 33];
        assert_eq!(run(Target { tags, ..named("a") }), Err(Refusal::TooMuch));
        assert_eq!(run(named("a")), Ok(0));
    }
}
