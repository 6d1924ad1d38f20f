//! What a column's next sample will be, so that only the difference is stored.
//!
//! Four guesses cover what /proc has: the sample before (gauges that wander), a straight line (clocks),
//! a running mean of the samples (durations, queue lengths: noise around a level) and a running
//! mean of the steps (counters of busy things: noise around a slope). All arithmetic wraps and
//! is of integers: encoder and decoder cannot differ.

/// How the next sample is guessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Predictor {
    /// The sample before.
    Last,
    /// The sample before and the step before.
    Line,
    /// A running mean of the samples; each counts `2^-shift`.
    Level(u8),
    /// The sample before and a running mean of the steps.
    Slope(u8),
}

/// A predictor at work.
#[derive(Debug)]
struct State {
    last: i64,
    /// 1/256 of what is averaged.
    mean: i64,
    /// Grows to `shift_max`: the first samples count more.
    shift: u8,
    shift_max: u8,
    /// All bits: `last` is kept. None: it stays 0.
    keep: i64,
}

impl Predictor {
    /// What is tried for a column that is packed bit by bit.
    pub(super) const TRIED: [Self; 7] = [
        Self::Last,
        Self::Line,
        Self::Level(1),
        Self::Level(3),
        Self::Slope(1),
        Self::Slope(2),
        Self::Slope(4),
    ];

    /// Below 64.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Last => 0,
            Self::Line => 1,
            Self::Level(shift) => 16 + shift,
            Self::Slope(shift) => 32 + shift,
        }
    }

    pub(super) fn of_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Last),
            1 => Some(Self::Line),
            16..32 => Some(Self::Level(code - 16)),
            32..48 => Some(Self::Slope(code - 32)),
            _ => None,
        }
    }

    /// Calls `each` with what the guesses miss by, of all samples but the first, which is 0.
    pub(super) fn misses(self, samples: &[i64], mut each: impl FnMut(u64)) {
        let mut state = self.state();
        for &sample in samples.iter().skip(1) {
            each(zigzag(sample.wrapping_sub(state.guess())));
            state.see(sample);
        }
    }

    /// About how many bits the misses take.
    pub(super) fn cost(self, samples: &[i64]) -> u64 {
        let mut sum = 0;
        self.misses(samples, |miss| sum += u64::from(bits(miss)));
        sum
    }

    /// Calls `each` with `count` samples: 0, and then as the misses say.
    pub(super) fn samples(
        self,
        count: usize,
        mut miss: impl FnMut() -> Result<u64, String>,
        mut each: impl FnMut(i64),
    ) -> Result<(), String> {
        if count == 0 {
            return Ok(());
        }
        each(0);
        if self == Self::Last {
            let mut last = 0_i64;
            for _ in 1..count {
                last = last.wrapping_add(unzigzag(miss()?));
                each(last);
            }
            return Ok(());
        }
        let mut state = self.state();
        for _ in 1..count {
            let sample = state.guess().wrapping_add(unzigzag(miss()?));
            state.see(sample);
            each(sample);
        }
        Ok(())
    }

    fn state(self) -> State {
        let (shift_max, keep) = match self {
            Self::Last => (NEVER, -1),
            Self::Line => (0, -1),
            Self::Level(shift) => (shift, 0),
            Self::Slope(shift) => (shift, -1),
        };
        State { last: 0, mean: 0, shift: 0, shift_max, keep }
    }
}

impl State {
    #[inline]
    fn guess(&self) -> i64 {
        self.last.wrapping_add(self.mean.wrapping_add(HALF) >> POINT)
    }

    #[inline]
    fn see(&mut self, sample: i64) {
        if self.shift_max != NEVER {
            let step = sample.wrapping_sub(self.last).wrapping_shl(POINT);
            self.mean = self.mean.wrapping_add(step.wrapping_sub(self.mean) >> self.shift);
            self.shift = self.shift_max.min(self.shift + 1);
        }
        self.last = sample & self.keep;
    }
}

/// Small numbers of either sign as small numbers.
pub(super) fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

pub(super) fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ (number & 1).cast_signed().wrapping_neg()
}

/// Without the zeros before it.
pub(super) fn bits(number: u64) -> u32 {
    u64::BITS - number.leading_zeros()
}

/// Bits of a mean behind the point.
const POINT: u32 = 8;
const HALF: i64 = 1 << (POINT - 1);
/// The mean stays 0.
const NEVER: u8 = 63;
