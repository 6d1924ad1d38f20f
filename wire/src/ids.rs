//! Newtypes for what must not be mixed.

use std::fmt;
use std::str::FromStr;

/// A host's random 128-bit identity, kept in the agent's state directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostId(pub u128);

/// One life of an agent process: when it began, and random. (boot, seq) names a frame of a host; of
/// two lives the later one is greater, as far as the host's wall clock can be believed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootId(pub u128);

/// Position of a frame in its boot's sequence; the first frame is 1, 0 means "not sequenced".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Seq(pub u64);

/// Names a schema by its content: the first eight bytes of its SHA-256, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SchemaId(pub u64);

/// Wall-clock milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Millis(pub i64);

impl BootId {
    /// A life that began at `wall_ms` since 1970: 48 bits of that, then 80 of `random`.
    #[must_use]
    pub fn begun(wall_ms: u64, random: u128) -> Self {
        Self(u128::from(wall_ms) << 80 | random >> 48)
    }
}

impl Seq {
    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for HostId {
    type Err = IdError;

    /// Exactly 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(IdError { text: text.chars().take(64).collect() });
        }
        let value = u128::from_str_radix(text, 16)
            .map_err(|_| IdError { text: text.chars().take(64).collect() })?;
        Ok(Self(value))
    }
}

/// A text that is no host id.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a host id: 32 hexadecimal digits are wanted")]
pub struct IdError {
    text: String,
}
