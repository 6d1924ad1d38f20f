//! How far each broker's audit log is: whoever shortens or changes the log itself, which is a file of that
//! broker, cannot change this.

use super::{Command, key, load, read, save};
use crate::command::Refusal;
use crate::state::State;
use bytes::Bytes;
use prost::Message;

/// The end of a log.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Head {
    /// Entries in it.
    #[prost(uint64, tag = "1")]
    pub entries: u64,
    /// SHA-256 of the last, which is over all before it.
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
}

/// A log has grown.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    #[prost(fixed64, tag = "1")]
    log: u64,
    #[prost(message, optional, tag = "2")]
    head: Option<Head>,
}

impl Change {
    /// The log with this random number has so many entries, and ends so.
    #[must_use]
    pub fn grown(log: u64, entries: u64, hash: [u8; 32]) -> Command {
        Command::of(KIND, &Self { log, head: Some(Head { entries, hash: hash.to_vec() }) })
    }
}

/// The end of a log as it was agreed on.
#[must_use]
pub fn head(state: &State, log: u64) -> Option<Head> {
    load(state, &key(KIND, &log.to_be_bytes()))
}

pub(super) fn apply(state: &mut State, body: &Bytes) -> Result<u64, Refusal> {
    let Change { log, head: to } = read(body)?;
    let to = to.filter(|head| head.hash.len() == 32).ok_or(Refusal::Malformed)?;
    let before = head(state, log);
    match &before {
        Some(before) if to.entries <= before.entries => return Err(Refusal::Version),
        None if LOGS_MAX <= state.scan(&[KIND]).count() => return Err(Refusal::TooMuch),
        _ => {}
    }
    save(state, key(KIND, &log.to_be_bytes()), &to);
    Ok(to.entries)
}

pub(super) const KIND: u8 = 21;
/// Brokers that ever were, about.
const LOGS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_never_gets_shorter() {
        let mut state = State::default();
        assert_eq!(state.run(&Change::grown(7, 1, [1; 32])), Ok(1));
        assert_eq!(state.run(&Change::grown(7, 3, [3; 32])), Ok(3));
        assert_eq!(state.run(&Change::grown(7, 3, [4; 32])), Err(Refusal::Version));
        assert_eq!(state.run(&Change::grown(7, 2, [2; 32])), Err(Refusal::Version));
        assert_eq!(head(&state, 7).unwrap().hash, [3; 32]);
        assert_eq!(head(&state, 8), None);
    }
}
