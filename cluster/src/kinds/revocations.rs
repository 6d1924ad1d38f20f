//! Whose certificates are refused, and up to which end: all that end no later are believed by nobody.

use super::{Command, key, load, read, save};
use crate::command::Refusal;
use crate::state::State;
use bytes::Bytes;
use prost::Message;

/// What is refused of a host.
#[derive(Clone, PartialEq, Message)]
pub struct Revocation {
    /// Certificates that end up to this second since 1970.
    #[prost(uint64, tag = "1")]
    pub refused_s: u64,
}

/// A host's certificates are revoked; it never goes back.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    #[prost(bytes = "vec", tag = "1")]
    host: Vec<u8>,
    #[prost(uint64, tag = "2")]
    refused_s: u64,
}

impl Change {
    /// Refuses what `host` has that ends up to then.
    #[must_use]
    pub fn refuse(host: u128, refused_s: u64) -> Command {
        Command::of(KIND, &Self { host: host.to_be_bytes().to_vec(), refused_s })
    }
}

/// Every host of which certificates are refused, and up to which end.
#[must_use]
pub fn revocations(state: &State) -> Vec<(u128, u64)> {
    let of = |(key, value): (&[u8], &[u8])| {
        let id: [u8; 16] = key.get(1..)?.try_into().ok()?;
        Some((u128::from_be_bytes(id), Revocation::decode(value).ok()?.refused_s))
    };
    state.scan(&[KIND]).filter_map(of).collect()
}

/// Another number after any change of them.
#[must_use]
pub fn mark(state: &State) -> u128 {
    state.hash_of(KIND)
}

pub(super) fn apply(state: &mut State, body: &Bytes) -> Result<u64, Refusal> {
    let Change { host, refused_s } = read(body)?;
    let id: [u8; 16] = host.try_into().map_err(|_| Refusal::Malformed)?;
    let place = key(KIND, &id);
    let before: Option<Revocation> = load(state, &place);
    if before.is_none() && REVOCATIONS_MAX <= state.scan(&[KIND]).count() {
        return Err(Refusal::TooMuch);
    }
    let refused_s = before.map_or(0, |before| before.refused_s).max(refused_s);
    save(state, place, &Revocation { refused_s });
    Ok(refused_s)
}

pub(super) const KIND: u8 = 6;
const REVOCATIONS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_never_goes_back() {
        let mut state = State::default();
        let empty = mark(&state);
        let mut run = |command: Command| apply(&mut state, &command.body);
        assert_eq!(run(Change::refuse(5, 100)), Ok(100));
        assert_eq!(run(Change::refuse(5, 50)), Ok(100));
        assert_eq!(run(Change::refuse(6, 7)), Ok(7));
        assert_eq!(revocations(&state), [(5, 100), (6, 7)]);
        assert_ne!(mark(&state), empty);
    }
}
