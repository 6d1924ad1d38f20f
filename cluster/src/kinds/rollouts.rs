//! How a version of the configuration comes into force by a trial: one host or broker runs it first
//! ([`super::versions`] has the records).
//!
//! A trial is in the state from its first moment to its last, so whoever leads next goes on with it. The
//! first word on it counts: whoever ends what has ended is refused.

use super::versions::{Stage, Version, add, settle};
use super::{Command, read};
use crate::command::Refusal;
use crate::state::State;
use bytes::Bytes;
use prost::Message;

/// A trial begins or ends.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    /// Its number is that of the version in force that it was made from.
    #[prost(message, optional, tag = "1")]
    begin: Option<Version>,
    #[prost(message, optional, tag = "2")]
    end: Option<End>,
}

/// The end of a trial.
#[derive(Clone, PartialEq, Message)]
struct End {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bool, tag = "2")]
    well: bool,
    #[prost(string, tag = "3")]
    told: String,
}

impl Change {
    /// A version made from number `version.number` is tried by its canary; the outcome is its own number.
    #[must_use]
    pub fn begin(version: Version) -> Command {
        Command::of(KIND, &Self { begin: Some(version), end: None })
    }

    /// A trial is over, well or not, because of this.
    #[must_use]
    pub fn end(number: u64, outcome: Result<&str, &str>) -> Command {
        let told = outcome.unwrap_or_else(|why| why).to_owned();
        let end = Some(End { number, well: outcome.is_ok(), told });
        Command::of(KIND, &Self { begin: None, end })
    }
}

pub(super) fn apply(state: &mut State, body: &Bytes) -> Result<u64, Refusal> {
    match read(body)? {
        Change { begin: Some(mut version), end: None } => {
            if version.canary.is_empty() {
                return Err(Refusal::Malformed);
            }
            version.set_stage(Stage::OnTrial);
            version.told = String::new();
            add(state, version)
        }
        Change { begin: None, end: Some(End { number, well, told }) } => {
            let stage = if well { Stage::InForce } else { Stage::TakenBack };
            settle(state, number, stage, &told)
        }
        _ => Err(Refusal::Malformed),
    }
}

pub(super) const KIND: u8 = 20;

#[cfg(test)]
mod tests {
    use super::super::versions::{self, history, in_force, on_trial};
    use super::*;

    fn trial(from: u64) -> Command {
        let (author, canary) = ("a".to_owned(), "host:7".to_owned());
        Change::begin(Version { number: from, author, canary, ..Version::default() })
    }

    fn numbers(state: &State) -> (u64, u64) {
        let number = |version: Option<Version>| version.map_or(0, |version| version.number);
        (number(in_force(state)), number(on_trial(state)))
    }

    #[test]
    fn a_trial_ends_once_and_nothing_begins_beside_it() {
        let mut state = State::default();
        let put = |from| versions::Change::put(from, "a", "b", "c", 1);
        assert_eq!(state.run(&put(0)), Ok(1));
        assert_eq!(state.run(&trial(0)), Err(Refusal::Version));
        assert_eq!(state.run(&trial(1)), Ok(2));
        assert_eq!(numbers(&state), (1, 2));
        assert_eq!(state.run(&trial(1)), Err(Refusal::Version));
        assert_eq!(state.run(&put(1)), Err(Refusal::Version));
        assert_eq!(state.run(&Change::end(1, Ok(""))), Err(Refusal::Missing));
        assert_eq!(state.run(&Change::end(2, Err("it fell"))), Ok(2));
        assert_eq!(state.run(&Change::end(2, Ok("late"))), Err(Refusal::Missing));
        assert_eq!(numbers(&state), (1, 0));
        assert_eq!(history(&state).last().map(|v| v.told.clone()).as_deref(), Some("it fell"));
        // What was taken back is no version to go on from; the number is not given again.
        assert_eq!(state.run(&put(2)), Err(Refusal::Version));
        assert_eq!(state.run(&trial(1)), Ok(3));
        assert_eq!(state.run(&Change::end(3, Ok("well"))), Ok(3));
        assert_eq!(numbers(&state), (3, 0));
    }

    #[test]
    fn the_version_in_force_outlives_a_thousand_that_failed() {
        let mut state = State::default();
        assert_eq!(state.run(&versions::Change::put(0, "a", "b", "keep me", 1)), Ok(1));
        for _ in 0..1_000 {
            let number = state.run(&trial(1)).unwrap();
            assert_eq!(state.run(&Change::end(number, Err("no"))), Ok(number));
        }
        assert_eq!(in_force(&state).unwrap().text, "keep me");
        assert_eq!(history(&state).len(), 100);
    }
}
