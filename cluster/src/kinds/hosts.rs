//! Which hosts the fleet has: what brokers agree on about a host, apart from what it sends.

use super::{Command, key, load, read, save};
use crate::command::Refusal;
use crate::state::State;
use bytes::Bytes;
use prost::Message;
use strobe_wire::ids::HostId;

/// A host.
#[derive(Clone, PartialEq, Message)]
pub struct Host {
    /// What people call it.
    #[prost(string, tag = "1")]
    pub instance: String,
    /// Its tags, with commas between.
    #[prost(string, tag = "2")]
    pub tags: String,
    /// When it was first put here.
    #[prost(int64, tag = "3")]
    pub first_ms: i64,
}

/// A change of one host.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    #[prost(bytes = "vec", tag = "1")]
    host: Vec<u8>,
    /// None: forget it.
    #[prost(message, optional, tag = "2")]
    put: Option<Host>,
}

impl Change {
    /// A host is, or is now, like this.
    #[must_use]
    pub fn put(host: u128, instance: &str, tags: &str, now_ms: i64) -> Command {
        let (instance, tags) = (instance.to_owned(), tags.to_owned());
        let put = Some(Host { instance, tags, first_ms: now_ms });
        Command::of(KIND, &Self { host: host.to_be_bytes().to_vec(), put })
    }

    /// A host is retired.
    #[must_use]
    pub fn forget(host: u128) -> Command {
        Command::of(KIND, &Self { host: host.to_be_bytes().to_vec(), put: None })
    }
}

/// One host.
#[must_use]
pub fn host(state: &State, host: HostId) -> Option<Host> {
    load(state, &key(KIND, &host.0.to_be_bytes()))
}

/// How many hosts there are.
#[must_use]
pub fn hosts(state: &State) -> usize {
    state.scan(&[KIND]).count()
}

pub(super) fn apply(state: &mut State, body: &Bytes) -> Result<u64, Refusal> {
    let Change { host, put } = read(body)?;
    let id: [u8; 16] = host.try_into().map_err(|_| Refusal::Malformed)?;
    let place = key(KIND, &id);
    let before: Option<Host> = load(state, &place);
    let Some(mut host) = put else {
        state.remove(&place);
        return before.map(|_| 0).ok_or(Refusal::Missing);
    };
    if TEXT_BYTES_MAX < host.instance.len() || TEXT_BYTES_MAX < host.tags.len() {
        return Err(Refusal::TooMuch);
    }
    match before {
        Some(before) => host.first_ms = before.first_ms,
        None if HOSTS_MAX <= hosts(state) => return Err(Refusal::TooMuch),
        None => {}
    }
    save(state, place, &host);
    Ok(0)
}

pub(super) const KIND: u8 = 3;
const HOSTS_MAX: usize = 100_000;
const TEXT_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_keeps_when_it_came() {
        let mut state = State::default();
        let mut run = |command: Command| apply(&mut state, &command.body);
        assert_eq!(run(Change::put(5, "a", "", 10)), Ok(0));
        assert_eq!(run(Change::put(5, "b", "x", 20)), Ok(0));
        assert_eq!(run(Change::forget(6)), Err(Refusal::Missing));
        let known = Host { instance: "b".into(), tags: "x".into(), first_ms: 10 };
        assert_eq!(host(&state, HostId(5)), Some(known));
    }
}
