//! The configuration that is in force, and those before it: numbered from 1 without holes.
//!
//! ```text
//!  put ---------------------> in force      (at once, everywhere)
//!  begin --> on trial --end-> in force      (one host or broker runs it; `rollouts`)
//!                      \\-end-> taken back
//! ```
//!
//! Who puts or begins a version names the one in force that it was made from: of two at once the second
//! is refused, nothing is overwritten unseen. At most one is on trial, and while it is, no other begins.
//! The last `VERSIONS_KEPT` are kept, and the one in force.

use super::{Command, key, load, read, save};
use crate::command::Refusal;
use crate::state::State;
use bytes::Bytes;
use prost::Message;

/// One version.
#[derive(Clone, PartialEq, Message)]
pub struct Version {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Who put it.
    #[prost(string, tag = "2")]
    pub author: String,
    /// Why.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// The configuration.
    #[prost(string, tag = "4")]
    pub text: String,
    /// When.
    #[prost(int64, tag = "5")]
    pub at_ms: i64,
    /// How far it has come; 0 where it was put.
    #[prost(enumeration = "Stage", tag = "6")]
    pub stage: i32,
    /// Who tries it or tried it: `host:32 hex` or `broker:NUMBER`.
    #[prost(string, tag = "7")]
    pub canary: String,
    /// Why the trial ended as it did.
    #[prost(string, tag = "8")]
    pub told: String,
}

/// How far a version has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Stage {
    /// It is in force, or was until the next.
    InForce = 0,
    /// One host or broker runs it.
    OnTrial = 1,
    /// Nobody is to run it.
    TakenBack = 2,
}

/// A next version.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    /// Its number is that of the version it was made from.
    #[prost(message, optional, tag = "1")]
    made_from: Option<Version>,
}

impl Change {
    /// A version made from number `from`; the outcome is its own number.
    #[must_use]
    pub fn put(from: u64, author: &str, reason: &str, text: &str, at_ms: i64) -> Command {
        let (author, reason, text) = (author.to_owned(), reason.to_owned(), text.to_owned());
        let version = Version { number: from, author, reason, text, at_ms, ..Version::default() };
        Command::of(KIND, &Self { made_from: Some(version) })
    }
}

/// The newest version, whatever became of it.
#[must_use]
pub fn last(state: &State) -> Option<Version> {
    load(state, &key(KIND, &number(state).to_be_bytes()))
}

/// The version in force.
#[must_use]
pub fn in_force(state: &State) -> Option<Version> {
    history(state).into_iter().rev().find(|version| version.stage() == Stage::InForce)
}

/// The version on trial.
#[must_use]
pub fn on_trial(state: &State) -> Option<Version> {
    last(state).filter(|version| version.stage() == Stage::OnTrial)
}

/// One that is kept.
#[must_use]
pub fn version(state: &State, number: u64) -> Option<Version> {
    load(state, &key(KIND, &number.to_be_bytes()))
}

/// Another number after any change of them.
#[must_use]
pub fn mark(state: &State) -> u128 {
    state.hash_of(KIND)
}

/// The versions that are kept, oldest first.
#[must_use]
pub fn history(state: &State) -> Vec<Version> {
    super::all(state, KIND)
}

pub(super) fn apply(state: &mut State, body: &Bytes) -> Result<u64, Refusal> {
    let change: Change = read(body)?;
    let version = change.made_from.ok_or(Refusal::Malformed)?;
    let plain = Version { stage: 0, canary: String::new(), told: String::new(), ..version };
    add(state, plain)
}

/// A version, made from the one in force that its number names.
pub(super) fn add(state: &mut State, mut version: Version) -> Result<u64, Refusal> {
    let from = in_force(state).map_or(0, |version| version.number);
    if version.number != from || on_trial(state).is_some() {
        return Err(Refusal::Version);
    }
    let words = version.author.len() + version.reason.len() + version.canary.len();
    if WORDS_BYTES_MAX < words || TEXT_BYTES_MAX < version.text.len() {
        return Err(Refusal::TooMuch);
    }
    version.number = number(state) + 1;
    save(state, key(KIND, &version.number.to_be_bytes()), &version);
    let from = in_force(state).map_or(0, |version| version.number);
    let mut kept: Vec<u64> = history(state).iter().map(|version| version.number).collect();
    kept.retain(|number| *number != from);
    for old in kept.iter().take(kept.len().saturating_sub(VERSIONS_KEPT)) {
        state.remove(&key(KIND, &old.to_be_bytes()));
    }
    Ok(version.number)
}

/// The trial of a version is over.
pub(super) fn settle(
    state: &mut State,
    number: u64,
    stage: Stage,
    told: &str,
) -> Result<u64, Refusal> {
    let mut version = on_trial(state).filter(|v| v.number == number).ok_or(Refusal::Missing)?;
    version.set_stage(stage);
    version.told = told.chars().take(TOLD_MAX).collect();
    save(state, key(KIND, &number.to_be_bytes()), &version);
    Ok(number)
}

fn number(state: &State) -> u64 {
    let last = state.scan(&[KIND]).last().and_then(|(_, value)| Version::decode(value).ok());
    last.map_or(0, |version| version.number)
}

pub(super) const KIND: u8 = 4;
/// Besides the one in force.
const VERSIONS_KEPT: usize = 99;
const TEXT_BYTES_MAX: usize = 64 << 10;
const WORDS_BYTES_MAX: usize = 4096;
const TOLD_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_no_holes_and_nothing_is_overwritten_unseen() {
        let mut state = State::default();
        let mut run = |from| apply(&mut state, &Change::put(from, "a", "b", "c", 1).body);
        assert_eq!((run(0), run(0), run(1)), (Ok(1), Err(Refusal::Version), Ok(2)));
        for from in 2..150 {
            run(from).unwrap();
        }
        assert_eq!(last(&state).unwrap().number, 150);
        assert_eq!(history(&state).len(), 100);
    }
}
