//! Enrolment tokens: issued for a time, good once, and only if they were not taken back. Only their
//! hashes are here.

use super::{Command, key, load, read, save};
use crate::command::Refusal;
use crate::state::State;
use bytes::Bytes;
use prost::Message;

/// A token.
#[derive(Clone, PartialEq, Message)]
pub struct Token {
    /// When it ends.
    #[prost(int64, tag = "1")]
    pub expires_ms: i64,
    /// When it was used; 0 is not yet.
    #[prost(int64, tag = "2")]
    pub used_ms: i64,
    /// It was taken back.
    #[prost(bool, tag = "3")]
    pub revoked: bool,
}

/// A change of one token.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    #[prost(bytes = "vec", tag = "1")]
    hash: Vec<u8>,
    #[prost(enumeration = "Verb", tag = "2")]
    verb: i32,
    #[prost(int64, tag = "3")]
    expires_ms: i64,
    /// The proposer's clock.
    #[prost(int64, tag = "4")]
    now_ms: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
enum Verb {
    Nothing = 0,
    Issue = 1,
    Redeem = 2,
    Revoke = 3,
}

impl Change {
    /// A new token.
    #[must_use]
    pub fn issue(hash: [u8; 32], expires_ms: i64, now_ms: i64) -> Command {
        Self { expires_ms, ..Self::of(hash, Verb::Issue, now_ms) }.command()
    }

    /// Somebody shows it; of two who do so, one is refused.
    #[must_use]
    pub fn redeem(hash: [u8; 32], now_ms: i64) -> Command {
        Self::of(hash, Verb::Redeem, now_ms).command()
    }

    /// It shall be good for nothing.
    #[must_use]
    pub fn revoke(hash: [u8; 32], now_ms: i64) -> Command {
        Self::of(hash, Verb::Revoke, now_ms).command()
    }

    fn of(hash: [u8; 32], verb: Verb, now_ms: i64) -> Self {
        Self { hash: hash.to_vec(), verb: verb.into(), expires_ms: 0, now_ms }
    }

    fn command(&self) -> Command {
        Command::of(KIND, self)
    }
}

/// One token.
#[must_use]
pub fn token(state: &State, hash: [u8; 32]) -> Option<Token> {
    load(state, &key(KIND, &hash))
}

pub(super) fn apply(state: &mut State, body: &Bytes) -> Result<u64, Refusal> {
    let change: Change = read(body)?;
    let hash: &[u8; 32] = change.hash.as_slice().try_into().map_err(|_| Refusal::Malformed)?;
    let place = key(KIND, hash);
    let known: Option<Token> = load(state, &place);
    let token = match (change.verb(), known) {
        (Verb::Nothing, _) => return Err(Refusal::Malformed),
        (Verb::Issue, Some(_)) => return Err(Refusal::Exists),
        (Verb::Issue, None) => {
            expire(state, change.now_ms);
            if TOKENS_MAX <= state.scan(&[KIND]).count() {
                return Err(Refusal::TooMuch);
            }
            Token { expires_ms: change.expires_ms, used_ms: 0, revoked: false }
        }
        (_, None) => return Err(Refusal::Missing),
        (Verb::Revoke, Some(token)) => Token { revoked: true, ..token },
        (Verb::Redeem, Some(token)) => {
            let over = token.expires_ms <= change.now_ms;
            if token.revoked || token.used_ms != 0 || over {
                return Err(Refusal::Spent);
            }
            Token { used_ms: change.now_ms.max(1), ..token }
        }
    };
    save(state, place, &token);
    Ok(0)
}

fn expire(state: &mut State, now_ms: i64) {
    let over = |value: &[u8]| Token::decode(value).is_ok_and(|token| token.expires_ms <= now_ms);
    let gone: Vec<Vec<u8>> =
        state.scan(&[KIND]).filter(|(_, value)| over(value)).map(|(key, _)| key.to_vec()).collect();
    gone.iter().for_each(|key| state.remove(key));
}

pub(super) const KIND: u8 = 5;
const TOKENS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_until_its_end() {
        let mut state = State::default();
        let mut run = |command: Command| apply(&mut state, &command.body);
        let [a, b, c] = [[1; 32], [2; 32], [3; 32]];
        for hash in [a, b, c] {
            assert_eq!(run(Change::issue(hash, 100, 1)), Ok(0));
        }
        assert_eq!(run(Change::issue(a, 100, 1)), Err(Refusal::Exists));
        assert_eq!(run(Change::redeem(a, 50)), Ok(0));
        assert_eq!(run(Change::redeem(a, 51)), Err(Refusal::Spent));
        assert_eq!(run(Change::revoke(b, 52)), Ok(0));
        assert_eq!(run(Change::redeem(b, 53)), Err(Refusal::Spent));
        assert_eq!(run(Change::redeem(c, 100)), Err(Refusal::Spent), "it ended");
        assert_eq!(run(Change::redeem([9; 32], 53)), Err(Refusal::Missing));
        assert_eq!(run(Change::issue([4; 32], 300, 200)), Ok(0));
        assert_eq!(token(&state, a), None, "what ended is forgotten");
    }
}
