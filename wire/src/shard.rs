//! Which shard a host belongs to: CRC32 (IEEE) of the host id's 16 little-endian bytes.

use crate::ids::HostId;
use crate::limits::SHARDS;

/// A logical shard, `0..SHARDS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Shard(pub u16);

impl Shard {
    /// The shard of `host`.
    #[must_use]
    pub fn of(host: HostId) -> Self {
        let hash = crc32fast::hash(&host.0.to_le_bytes());
        Self(u16::try_from(hash % u32::from(SHARDS)).expect("a remainder below SHARDS fits u16"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_host_has_a_known_shard() {
        assert_eq!(Shard::of(HostId(0)), Shard(u16::try_from(0xecbb_4b55_u32 % 256).unwrap()));
    }
}
