//! The configuration that is in force, and those before it: numbered from 1 without holes.
//!
//! Who puts a version names the one it was made from: of two at once the second is refused, nothing is
//! overwritten unseen. The last `VERSIONS_KEPT` are kept.

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
        let version = Version { number: from, author, reason, text, at_ms };
        Command::of(KIND, &Self { made_from: Some(version) })
    }
}

/// The version in force.
#[must_use]
pub fn last(state: &State) -> Option<Version> {
    load(state, &key(KIND, &number(state).to_be_bytes()))
}

/// The versions that are kept, oldest first.
#[must_use]
pub fn history(state: &State) -> Vec<Version> {
    super::all(state, KIND)
}

pub(super) fn apply(state: &mut State, body: &Bytes) -> Result<u64, Refusal> {
    let change: Change = read(body)?;
    let mut version = change.made_from.ok_or(Refusal::Malformed)?;
    if version.number != number(state) {
        return Err(Refusal::Version);
    }
    let words = version.author.len() + version.reason.len();
    if WORDS_BYTES_MAX < words || TEXT_BYTES_MAX < version.text.len() {
        return Err(Refusal::TooMuch);
    }
    version.number += 1;
    save(state, key(KIND, &version.number.to_be_bytes()), &version);
    if let Some(old) = version.number.checked_sub(VERSIONS_KEPT) {
        state.remove(&key(KIND, &old.to_be_bytes()));
    }
    Ok(version.number)
}

fn number(state: &State) -> u64 {
    let last = state.scan(&[KIND]).last().and_then(|(_, value)| Version::decode(value).ok());
    last.map_or(0, |version| version.number)
}

pub(super) const KIND: u8 = 4;
const VERSIONS_KEPT: u64 = 100;
const TEXT_BYTES_MAX: usize = 64 << 10;
const WORDS_BYTES_MAX: usize = 4096;

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
