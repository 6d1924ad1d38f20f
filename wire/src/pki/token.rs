//! Enrolment tokens, as an operator carries them: text.

use super::{PkiError, crypto};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use std::str::FromStr;

/// What an operator hands to a new host: which CA to believe, and the proof that it may enrol.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the CA's certificate.
    pub fingerprint: [u8; 32],
    /// Known to the broker; short-lived.
    pub secret: [u8; 32],
}

impl Token {
    /// A token for the CA with `fingerprint`, with a random secret.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn create(fingerprint: [u8; 32]) -> Result<Self, PkiError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(crypto("make a token's secret"))?;
        Ok(Self { fingerprint, secret })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut both = [0; 64];
        both[..32].copy_from_slice(&self.fingerprint);
        both[32..].copy_from_slice(&self.secret);
        write!(f, "{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(both))
    }
}

impl FromStr for Token {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let body = text.trim().strip_prefix(TOKEN_PREFIX).ok_or(PkiError::Token)?;
        let both = URL_SAFE_NO_PAD.decode(body).map_err(|_| PkiError::Token)?;
        let both: [u8; 64] = both.try_into().map_err(|_| PkiError::Token)?;
        let mut token = Self { fingerprint: [0; 32], secret: [0; 32] };
        token.fingerprint.copy_from_slice(&both[..32]);
        token.secret.copy_from_slice(&both[32..]);
        Ok(token)
    }
}

// Secrets stay out of logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

const TOKEN_PREFIX: &str = "strobe1.";
