//! Numbers as bits, for columns of noise: Golomb-Rice codes whose parameter follows the numbers.
//!
//! A number is `n >> k` ones, a zero, and its low `k` bits; `k` is what suits the mean of the numbers
//! before it. Where zstd needs whole bytes and one table for all columns of a group, noise of 11
//! bits takes 11 and a half. A number far beyond the mean is 20 ones, its length and all its bits.

/// Writes.
#[derive(Debug, Default)]
pub(super) struct Writer {
    out: Vec<u8>,
    held: u64,
    /// Bits in `held`, below 8 between calls.
    count: u32,
    mean: Mean,
}

/// Reads.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// In bits.
    at: usize,
    mean: Mean,
}

/// A running mean of the numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Mean(u64);

impl Writer {
    /// `start` is a guess of the first numbers' bits.
    pub(super) fn new(start: u8) -> Self {
        Self { mean: Mean::start(start), ..Self::default() }
    }

    pub(super) fn put(&mut self, number: u64) {
        let low = self.mean.low_bits();
        self.mean.see(number);
        let ones = number >> low;
        if ones < u64::from(ONES_MAX) {
            self.bits((1 << ones) - 1, u32::try_from(ones).unwrap_or(0) + 1);
            self.bits(number & ((1 << low) - 1), low);
            return;
        }
        let length = u64::BITS - number.leading_zeros();
        self.bits((1 << ONES_MAX) - 1, ONES_MAX);
        self.bits(u64::from(length - 1), LENGTH_BITS);
        self.bits(number & u64::from(u32::MAX), length.min(32));
        self.bits(number >> 32, length.saturating_sub(32));
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        if 0 < self.count {
            self.bits(0, 8 - self.count);
        }
        self.out
    }

    /// At most 32 at a time.
    fn bits(&mut self, bits: u64, count: u32) {
        self.held |= bits << self.count;
        self.count += count;
        while 8 <= self.count {
            let [byte, ..] = self.held.to_le_bytes();
            self.out.push(byte);
            self.held >>= 8;
            self.count -= 8;
        }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], start: u8) -> Self {
        Self { bytes, at: 0, mean: Mean::start(start) }
    }

    #[inline]
    pub(super) fn take(&mut self) -> Result<u64, String> {
        let (low, held) = (self.mean.low_bits(), self.held());
        let ones = held.trailing_ones();
        let number = if ones < ONES_MAX {
            self.at += (ones + 1 + low) as usize;
            u64::from(ones) << low | held >> (ones + 1) & ((1 << low) - 1)
        } else {
            self.long()?
        };
        if self.bytes.len() * 8 < self.at {
            return Err("cut off".to_owned());
        }
        self.mean.see(number);
        Ok(number)
    }

    #[cold]
    fn long(&mut self) -> Result<u64, String> {
        self.at += ONES_MAX as usize;
        let [length, ..] = self.held().to_le_bytes();
        let length = u32::from(length & ((1 << LENGTH_BITS) - 1)) + 1;
        self.at += LENGTH_BITS as usize;
        let mut number = 0;
        for (from, count) in [(0, length.min(32)), (32, length.saturating_sub(32))] {
            number |= (self.held() & ((1 << count) - 1)) << from;
            self.at += count as usize;
        }
        Ok(number)
    }

    /// The next 57 bits at least; behind the end are zeros.
    #[inline]
    fn held(&self) -> u64 {
        let rest = self.bytes.get(self.at / 8..).unwrap_or(&[]);
        let held = match rest.first_chunk::<8>() {
            Some(eight) => u64::from_le_bytes(*eight),
            None => {
                let mut eight = [0; 8];
                eight.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                u64::from_le_bytes(eight)
            }
        };
        held >> (self.at % 8)
    }
}

impl Mean {
    fn start(bits: u8) -> Self {
        Self((1 << bits.min(NUMBER_BITS)) << WEIGHT)
    }

    /// About log2 of seven tenths of the mean: what makes geometrically distributed numbers shortest.
    #[inline]
    fn low_bits(self) -> u32 {
        u64::BITS - ((self.0 * 11) >> (WEIGHT + 4)).leading_zeros()
    }

    #[inline]
    fn see(&mut self, number: u64) {
        self.0 += number.min(1 << NUMBER_BITS);
        self.0 -= self.0 >> WEIGHT;
    }
}

/// A number counts a sixteenth in the mean.
const WEIGHT: u32 = 4;
/// Larger numbers count as this many bits: then 20 ones, a zero and the low bits are 53 at most.
const NUMBER_BITS: u8 = 31;
const ONES_MAX: u32 = 20;
const LENGTH_BITS: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_of_any_length_come_back(
            numbers in prop::collection::vec((any::<u64>(), 0..64_u32), 0..200), start in 0..40_u8,
        ) {
            let numbers: Vec<u64> = numbers.into_iter().map(|(n, shift)| n >> shift).collect();
            let mut writer = Writer::new(start);
            numbers.iter().for_each(|&number| writer.put(number));
            let bytes = writer.finish();
            let mut reader = Reader::new(&bytes, start);
            for &number in &numbers {
                prop_assert_eq!(reader.take(), Ok(number));
            }
            // Fewer than eight bits are left, and behind them is the end.
            let more = (0..9).map(|_| reader.take()).find_map(Result::err);
            prop_assert!(more.is_some());
        }
    }

    #[test]
    fn noise_takes_little_more_than_its_bits() {
        let mut seed = 1_u64;
        let mut writer = Writer::new(10);
        for _ in 0..600 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            writer.put(seed >> 54);
        }
        // Ten bits of noise each.
        assert!(writer.finish().len() < 600 * 11 / 8);
    }
}
