//! How a column becomes bytes: integers as what a predictor misses by, as varints or as bits; floats
//! that are no decimals as XOR planes.
//!
//! A float column that is a decimal of at most nine digits behind the point in every sample, to
//! the bit, is stored as such an integer column. Zero bits that all steps end with (pages of 4 KiB,
//! sectors) are left out. A column may be stored as its difference from another one of its
//! group that is stored by itself. A column that moves is written twice, for zstd and as bits
//! (`rice.rs`), and the shorter one is kept. Same samples, same bytes.
//!
//! ```text
//! column of integers: codec, scale, base varint; like: place, shift; moving: unit, predictor;
//!                     bits: start; varints: the misses
//! column of floats:   codec, 8 planes of a byte a sample
//! ```

use super::predict::{Predictor, bits, unzigzag, zigzag};
use super::rice;
use std::borrow::Cow;
use strobe_wire::schema::Kind;

/// Reads integers off the front of bytes.
pub(super) struct Take<'a>(pub(super) &'a [u8]);

impl<'a> Take<'a> {
    pub(super) fn slice(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (front, rest) = self.0.split_at_checked(length).ok_or("cut off")?;
        self.0 = rest;
        Ok(front)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (front, rest) = self.0.split_first_chunk::<N>().ok_or("cut off")?;
        self.0 = rest;
        Ok(*front)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self) -> Result<u128, String> {
        self.array().map(u128::from_le_bytes)
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, String> {
        // One byte is by far the most frequent.
        if let Some((&byte, rest)) = self.0.split_first()
            && byte < 0x80
        {
            self.0 = rest;
            return Ok(u64::from(byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, String> {
        // Two bytes and three are most of the rest.
        if let &[first, second, ref rest @ ..] = self.0
            && second < 0x80
        {
            self.0 = rest;
            return Ok(u64::from(first & 0x7f) | u64::from(second) << 7);
        }
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let [byte] = self.array::<1>()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
            shift += 7;
            if 63 < shift {
                return Err("a number is longer than 64 bits".to_owned());
            }
        }
    }
}

/// Times, as deltas of deltas behind the first.
pub(super) fn put_times(out: &mut Vec<u8>, times: &[i64]) {
    let Some(&first) = times.first() else { return };
    put_varint(out, zigzag(first));
    let steps: Vec<i64> = times.iter().map(|time| time.wrapping_sub(first)).collect();
    Predictor::Line.misses(&steps, |miss| put_varint(out, miss));
}

pub(super) fn take_times(take: &mut Take<'_>, count: usize) -> Result<Vec<i64>, String> {
    // `count` is checked by what is there: each takes a byte at least.
    let mut times = Vec::with_capacity(count.min(take.0.len()));
    if count == 0 {
        return Ok(times);
    }
    let first = unzigzag(take.varint()?);
    Predictor::Line.samples(
        count,
        || take.varint(),
        |step| times.push(first.wrapping_add(step)),
    )?;
    Ok(times)
}

/// How a column of integers is written.
#[derive(Debug)]
pub(super) struct Numbers {
    base: u64,
    scale: u8,
    /// From the first sample on, so the first is 0.
    pub(super) steps: Vec<i64>,
    /// The column of the group, and its shift, that is subtracted.
    like: Option<(u8, u8)>,
}

/// Both ways to write a column that moves.
#[derive(Debug)]
pub(super) enum Written {
    /// Whole, to be packed by zstd.
    Bytes(Vec<u8>),
    /// A head and varints to be packed by zstd; or another head to be packed, and bits that are
    /// as short as they get.
    Either { varints: Vec<u8>, head: Vec<u8>, bits: Vec<u8> },
}

/// A column's bytes: unpacked, and bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) bits: &'a [u8],
}

impl Numbers {
    /// `None` for floats that are no decimals.
    pub(super) fn of(raws: &[u64], kind: Kind) -> Option<Self> {
        let (ints, scale) = match kind {
            Kind::Counter { .. } | Kind::Gauge { .. } => (Cow::Borrowed(raws), PLAIN),
            Kind::Float => decimals(raws).map(|(ints, scale)| (Cow::Owned(ints), scale))?,
        };
        let base = ints.first().copied().unwrap_or(0);
        let steps = ints.iter().map(|&int| int.wrapping_sub(base).cast_signed()).collect();
        Some(Self { base, scale, steps, like: None })
    }

    pub(super) fn is_flat(&self) -> bool {
        self.steps.iter().all(|&step| step == 0)
    }

    /// Whether another column is subtracted.
    pub(super) fn is_like(&self) -> bool {
        self.like.is_some()
    }

    /// Subtracts the one of `others` (places in the group) that leaves the least, if that is
    /// worth reading two columns for one: the bytes of `lo` are received as they are sent.
    pub(super) fn subtract(&mut self, others: &[(u8, &[i64])]) {
        let alone = cost(&self.steps);
        let mut best = (alone - alone / 16, None);
        let unit = unit(&self.steps);
        for &(place, other) in others {
            let apart = unit.saturating_sub(self::unit(other));
            for shift in [0, apart].into_iter().take(1 + usize::from(0 < apart)) {
                let pairs = self.steps.iter().zip(other);
                let rest = |(step, other): (&i64, &i64)| {
                    step.wrapping_sub(other.wrapping_shl(shift.into()))
                };
                let rest: Vec<i64> = pairs.map(rest).collect();
                let bits = cost(&rest) + LIKE_BITS;
                if bits < best.0 {
                    best = (bits, Some((place, shift, rest)));
                }
            }
        }
        if let Some((place, shift, rest)) = best.1 {
            self.like = Some((place, shift));
            self.steps = rest;
        }
    }

    /// Writes; `trying` all ways, or the one that is quick.
    pub(super) fn write(&self, trying: bool) -> Written {
        let mut head = vec![if self.like.is_some() { LIKE } else { 0 }, self.scale];
        put_varint(&mut head, zigzag(self.base.cast_signed()));
        if let Some((place, shift)) = self.like {
            head.extend([place, shift]);
        }
        if self.is_flat() {
            return Written::Bytes(head);
        }
        let unit = unit(&self.steps);
        let samples: Vec<i64> = self.steps.iter().map(|step| step >> unit).collect();
        let length = |predictor: Predictor| {
            let mut bytes = 0;
            predictor.misses(&samples, |miss| bytes += bits(miss).max(1).div_ceil(7));
            bytes
        };
        let twice = length(Predictor::Line) < length(Predictor::Last);
        let predictor = if twice { Predictor::Line } else { Predictor::Last };
        let mut varints = head.clone();
        varints[0] |= VARINT;
        varints.extend([unit, predictor.code()]);
        predictor.misses(&samples, |miss| put_varint(&mut varints, miss));
        if !trying {
            return Written::Bytes(varints);
        }
        let best = Predictor::TRIED.into_iter().min_by_key(|tried| tried.cost(&samples));
        let best = best.unwrap_or(predictor);
        let mut misses = Vec::with_capacity(samples.len());
        best.misses(&samples, |miss| misses.push(miss));
        let first: u64 = misses.iter().take(FIRST).map(|&miss| u64::from(bits(miss))).sum();
        let start = u8::try_from(first / FIRST as u64).unwrap_or(0);
        head[0] |= RICE;
        head.extend([unit, best.code(), start]);
        let mut writer = rice::Writer::new(start);
        misses.into_iter().for_each(|miss| writer.put(miss));
        Written::Either { varints, head, bits: writer.finish() }
    }
}

/// Floats that are no decimals.
pub(super) fn put_floats(out: &mut Vec<u8>, raws: &[u64]) {
    out.push(XOR);
    let mut last = 0;
    let mut bits = Vec::with_capacity(raws.len());
    for &raw in raws {
        bits.push((raw ^ last).to_le_bytes());
        last = raw;
    }
    for plane in (0..8).rev() {
        out.extend(bits.iter().map(|bytes| bytes[plane]));
    }
}

/// Calls `each` with the first `upto` of `count` values; `other` has the bytes of a column of the
/// same group.
pub(super) fn take_values<'a>(
    read: Read<'a>,
    (count, upto): (usize, usize),
    other: impl Fn(u8) -> Option<Read<'a>>,
    each: &mut impl FnMut(u64),
) -> Result<(), String> {
    let mut take = Take(read.bytes);
    let upto = upto.min(count);
    if take.0.first() == Some(&XOR) {
        let planes = take.slice(1 + count.checked_mul(8).ok_or("too many samples")?)?;
        let mut last = 0;
        for index in 0..upto {
            let plane = |n: usize| planes.get(1 + n * count + index).copied().unwrap_or(0);
            last ^= u64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(plane));
            each(last);
        }
        return Ok(());
    }
    let head = Head::take(&mut take)?;
    let (base, kind) = (head.base, Kind::Gauge { scale: head.scale });
    let mut tell = |int| {
        each(if head.scale == PLAIN { int } else { kind.value(int).to_bits() });
    };
    let Some((place, shift)) = head.like else {
        let each = |step: i64| tell(base.wrapping_add_signed(step));
        return head.steps(take, read.bits, upto, each);
    };
    let like = other(place).ok_or("a column is like none of its group")?;
    let mut take_like = Take(like.bytes);
    let like_head = Head::take(&mut take_like)?;
    if like_head.like.is_some() {
        return Err("a column is like one that is like a third".to_owned());
    }
    let mut steps = Vec::with_capacity(upto);
    like_head.steps(take_like, like.bits, upto, |step| steps.push(step.wrapping_shl(shift)))?;
    let mut steps = steps.into_iter();
    head.steps(take, read.bits, upto, |step| {
        let like = steps.next().unwrap_or(0);
        tell(base.wrapping_add_signed(like).wrapping_add_signed(step));
    })
}

/// What stands before a column of integers.
struct Head {
    codec: u8,
    scale: u8,
    base: u64,
    like: Option<(u8, u32)>,
}

impl Head {
    fn take(take: &mut Take<'_>) -> Result<Self, String> {
        let [codec, scale] = take.array()?;
        if 9 < scale && scale != PLAIN || XOR <= codec & !LIKE {
            return Err(format!("column codec {codec}.{scale} is not known to this version"));
        }
        let base = unzigzag(take.varint()?).cast_unsigned();
        let mut like = None;
        if codec & LIKE != 0 {
            let [place, shift] = take.array()?;
            like = Some((place, u32::from(shift)));
        }
        Ok(Self { codec: codec & !LIKE, scale, base, like })
    }

    /// Calls `each` with `count` steps from the base, the first 0.
    fn steps(
        &self,
        mut take: Take<'_>,
        bits: &[u8],
        count: usize,
        mut each: impl FnMut(i64),
    ) -> Result<(), String> {
        if self.codec == FLAT {
            (0..count).for_each(|_| each(0));
            return Ok(());
        }
        let [unit, predictor] = take.array()?;
        let predictor = Predictor::of_code(predictor).ok_or("a predictor is not known")?;
        let each = |sample: i64| each(sample.wrapping_shl(unit.into()));
        if self.codec == VARINT {
            return predictor.samples(count, || take.varint(), each);
        }
        let [start] = take.array()?;
        let mut reader = rice::Reader::new(bits, start);
        predictor.samples(count, || reader.take(), each)
    }
}

/// Zero bits that all steps end with.
fn unit(steps: &[i64]) -> u8 {
    let all = steps.iter().fold(0, |all, step| all | step);
    u8::try_from(all.trailing_zeros() & 63).unwrap_or(0)
}

/// About how many bits it takes to write the steps.
fn cost(steps: &[i64]) -> u64 {
    let unit = unit(steps);
    let samples: Vec<i64> = steps.iter().map(|step| step >> unit).collect();
    let of = |predictor: Predictor| predictor.cost(&samples);
    of(Predictor::Last).min(of(Predictor::Slope(2)))
}

/// The samples as decimals of the fewest digits that give every one back to the bit.
fn decimals(raws: &[u64]) -> Option<(Vec<u64>, u8)> {
    let mut scale = 0_u8;
    for &raw in raws {
        while decimal(raw, scale).is_none() {
            scale += 1;
            if 9 < scale {
                return None;
            }
        }
    }
    let ints = raws.iter().map(|&raw| decimal(raw, scale)).collect::<Option<Vec<_>>>()?;
    Some((ints, scale))
}

fn decimal(raw: u64, scale: u8) -> Option<u64> {
    let value = f64::from_bits(raw);
    let scaled = (value * 10_f64.powi(i32::from(scale))).round();
    if scaled.is_nan() || EXACT_MAX <= scaled.abs() {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53, checked above")]
    let int = (scaled as i64).cast_unsigned();
    (Kind::Gauge { scale }.value(int).to_bits() == raw).then_some(int)
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while 0x80 <= value {
        out.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

/// Codecs. Every sample is the first one.
const FLAT: u8 = 0;
/// Misses as varints.
const VARINT: u8 = 1;
/// Misses as bits, apart.
const RICE: u8 = 2;
/// XOR with the sample before, in planes.
const XOR: u8 = 3;
/// Added to a codec: another column of the group is subtracted.
const LIKE: u8 = 4;
/// The scale of what is no decimal.
const PLAIN: u8 = 255;
/// Subtracting another column must save this many bits, and a sixteenth.
const LIKE_BITS: u64 = 64;
/// Misses from which the first bits' parameter is guessed.
const FIRST: usize = 16;
/// 2^53: up to here every integer is an f64.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
