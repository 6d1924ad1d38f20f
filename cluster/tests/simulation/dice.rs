//! Randomness from a seed.

/// A die; who has one of its own is not moved by what others throw.
#[derive(Clone, Debug)]
pub(crate) struct Die(u64);

impl Die {
    pub(crate) fn new(seed: u64, whose: u64) -> Self {
        let x = (seed << 8 | whose).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self((x ^ (x >> 32)).max(1))
    }

    pub(crate) fn below(&mut self, below: u64) -> u64 {
        let random = &mut self.0;
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        (*random >> 16) % below
    }

    pub(crate) fn index(&mut self, below: usize) -> usize {
        usize::try_from(self.below(below as u64)).expect("it was one")
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}
