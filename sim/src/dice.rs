//! Where decisions come from: one stream of numbers for each kind of decision, so that one more of
//! one kind does not shift the others.

/// A stream of numbers (xorshift64).
#[derive(Clone, Debug)]
pub(crate) struct Die(u64);

impl Die {
    pub(crate) fn new(seed: u64, kind: u64) -> Self {
        let mut die = Self((16 * seed + kind).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            die.below(2);
        }
        die
    }

    pub(crate) fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    pub(crate) fn index(&mut self, below: usize) -> usize {
        usize::try_from(self.below(below as u64)).expect("it was one")
    }

    pub(crate) fn below(&mut self, below: u64) -> u64 {
        let random = &mut self.0;
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        (*random >> 16) % below
    }
}
