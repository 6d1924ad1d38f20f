//! What happens to files, from a seed.

use std::ops::Range;

pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % bound.max(1)
    }

    /// Cuts a file off, flips some bits or fills some blocks; which bytes that were.
    pub(super) fn spoil(&mut self, bytes: &mut Vec<u8>, how: u32) -> Vec<Range<usize>> {
        let at = self.below(bytes.len());
        match how {
            0 => {
                bytes.truncate(at);
                std::iter::once(at..usize::MAX).collect()
            }
            1 => (0..=self.below(4))
                .map(|_| {
                    let at = self.below(bytes.len());
                    bytes[at] ^= 1 << self.below(8);
                    at..at + 1
                })
                .collect(),
            // Blocks that were never written, or hold what was there before.
            _ => {
                let at = at / 512 * 512;
                let end = bytes.len().min(at + 512 * (1 + self.below(4)));
                let fill = [0, u8::try_from(self.below(256)).unwrap()][self.below(2)];
                bytes[at..end].fill(fill);
                std::iter::once(at..end).collect()
            }
        }
    }
}
