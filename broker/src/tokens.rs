//! Enrolment tokens: who may still use which secret.
//!
//! The broker keeps only a secret's SHA-256, until when it is good, and whether it was used. A used
//! token stays on the list until it would have expired, so that a replay is told apart from a
//! guess. The list is bounded: over the bound no token is made until others expire.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A secret as it is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TokenHash(pub [u8; 32]);

/// What is known of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Good until, ms since the epoch.
    pub expires_ms: i64,
    /// When it was used; 0 if it was not.
    pub used_ms: i64,
}

/// All tokens.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    entries: BTreeMap<TokenHash, Entry>,
}

/// Why a token is refused; also what the one who showed it is told.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// No such secret, or long expired.
    #[error("the token is not known here; make one with `strobe token create` on this broker")]
    Unknown,
    /// Too late.
    #[error("the token has expired; make another with `strobe token create`")]
    Expired,
    /// A replay.
    #[error("the token was used before; each is good for one enrolment")]
    Used,
    /// The list is full.
    #[error("{TOKENS_MAX} tokens are waiting to be used; let some expire first")]
    Full,
    /// A lifetime out of bounds.
    #[error("a token lives for 1 second to 7 days")]
    Lifetime,
}

impl TokenHash {
    /// Of a secret.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }
}

impl Tokens {
    /// Takes in what was kept on disk.
    pub fn load(&mut self, hash: TokenHash, entry: Entry) {
        self.entries.insert(hash, entry);
    }

    /// A new token, good for `lifetime_ms`.
    ///
    /// # Errors
    /// [`TokenError::Full`] or [`TokenError::Lifetime`].
    pub fn issue(
        &mut self,
        hash: TokenHash,
        lifetime_ms: u64,
        now_ms: i64,
    ) -> Result<Entry, TokenError> {
        let lifetime_ms = i64::try_from(lifetime_ms).map_err(|_| TokenError::Lifetime)?;
        if !(1_000..=LIFETIME_MAX_MS).contains(&lifetime_ms) {
            return Err(TokenError::Lifetime);
        }
        if TOKENS_MAX <= self.entries.len() {
            return Err(TokenError::Full);
        }
        let entry = Entry { expires_ms: now_ms.saturating_add(lifetime_ms), used_ms: 0 };
        self.entries.insert(hash, entry);
        Ok(entry)
    }

    /// Whether it is on the list.
    #[must_use]
    pub fn knows(&self, hash: TokenHash) -> bool {
        self.entries.contains_key(&hash)
    }

    /// Whether it could be used now.
    #[must_use]
    pub fn is_good(&self, hash: TokenHash, now_ms: i64) -> bool {
        self.entries.get(&hash).is_some_and(|entry| entry.used_ms == 0 && now_ms < entry.expires_ms)
    }

    /// Uses a token up. What it returns must be on disk before anything is given for it.
    ///
    /// # Errors
    /// Why it is not good.
    pub fn redeem(&mut self, hash: TokenHash, now_ms: i64) -> Result<Entry, TokenError> {
        let entry = self.entries.get_mut(&hash).ok_or(TokenError::Unknown)?;
        if entry.used_ms != 0 {
            return Err(TokenError::Used);
        }
        if entry.expires_ms <= now_ms {
            return Err(TokenError::Expired);
        }
        entry.used_ms = now_ms.max(1);
        Ok(*entry)
    }

    /// Forgets tokens that expired a day ago and says which.
    pub fn expire(&mut self, now_ms: i64) -> Vec<TokenHash> {
        let old = |entry: &Entry| entry.expires_ms.saturating_add(DAY_MS) < now_ms;
        let gone = self.entries.iter().filter(|(_, e)| old(e)).map(|(h, _)| *h).collect();
        self.entries.retain(|_, entry| !old(entry));
        gone
    }
}

/// Tokens on the list.
const TOKENS_MAX: usize = 65_536;
const DAY_MS: i64 = 86_400_000;
const LIFETIME_MAX_MS: i64 = 7 * DAY_MS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_for_its_time() {
        let (mut tokens, one, two) = (Tokens::default(), TokenHash::of(b"1"), TokenHash::of(b"2"));
        assert_eq!(tokens.redeem(one, 0), Err(TokenError::Unknown));
        tokens.issue(one, 5_000, 1_000).unwrap();
        tokens.issue(two, 5_000, 1_000).unwrap();
        assert!(tokens.is_good(one, 5_999) && !tokens.is_good(one, 6_000));
        assert!(tokens.redeem(one, 5_999).is_ok());
        assert!(!tokens.is_good(one, 5_999));
        assert_eq!(tokens.redeem(one, 5_999), Err(TokenError::Used), "a replay");
        assert_eq!(tokens.redeem(two, 6_000), Err(TokenError::Expired));
        assert_eq!(tokens.expire(DAY_MS + 6_001).len(), 2);
        assert_eq!(tokens.redeem(one, 6_001), Err(TokenError::Unknown));
    }

    #[test]
    fn lifetimes_are_bounded() {
        let mut tokens = Tokens::default();
        for (lifetime_ms, good) in [(0, false), (999, false), (1_000, true), (u64::MAX, false)] {
            let made = tokens.issue(TokenHash::of(&lifetime_ms.to_le_bytes()), lifetime_ms, 0);
            assert_eq!(made.is_ok(), good, "{lifetime_ms}");
        }
    }
}
