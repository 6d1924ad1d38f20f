//! How a column becomes bytes: varints of zigzag deltas, decimals as integers, XOR planes.
//!
//! A column is a varint stream of zigzag deltas, or of deltas of deltas where that is shorter.
//! A float column that is a decimal of at most nine digits behind the point in every sample, to
//! the bit, is stored as such an integer column; else as XOR with the sample before, its bytes
//! in eight planes. Same samples, same bytes.

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

pub(super) fn put_times(out: &mut Vec<u8>, times: &[i64]) {
    let raw: Vec<u64> = times.iter().map(|time| time.cast_unsigned()).collect();
    put_deltas(out, &raw, true);
}

pub(super) fn take_times(take: &mut Take<'_>, count: usize) -> Result<Vec<i64>, String> {
    // `count` is checked by what is there: each takes a byte at least.
    let mut times = Vec::with_capacity(count.min(take.0.len()));
    take_deltas(take, count, true, &mut |raw| times.push(raw.cast_signed()))?;
    Ok(times)
}

pub(super) fn put_values(out: &mut Vec<u8>, raws: &[u64], kind: Kind) {
    let (ints, scale) = match kind {
        Kind::Counter { .. } | Kind::Gauge { .. } => (Some(Cow::Borrowed(raws)), PLAIN),
        Kind::Float => decimals(raws).map_or((None, PLAIN), |(i, s)| (Some(Cow::Owned(i)), s)),
    };
    let Some(ints) = ints else {
        out.extend([XOR, PLAIN]);
        let mut last = 0;
        let mut bits = Vec::with_capacity(raws.len());
        for &raw in raws {
            bits.push((raw ^ last).to_le_bytes());
            last = raw;
        }
        for plane in (0..8).rev() {
            out.extend(bits.iter().map(|bytes| bytes[plane]));
        }
        return;
    };
    let twice = deltas_bytes(&ints, true) < deltas_bytes(&ints, false);
    out.extend([if twice { DELTA_OF_DELTA } else { DELTA }, scale]);
    put_deltas(out, &ints, twice);
}

/// Calls `each` with the first `upto` of `count` values.
pub(super) fn take_values(
    take: &mut Take<'_>,
    (count, upto): (usize, usize),
    each: &mut impl FnMut(u64),
) -> Result<(), String> {
    let [codec, scale] = take.array::<2>()?;
    let upto = upto.min(count);
    match (codec, scale) {
        (DELTA | DELTA_OF_DELTA, PLAIN) => take_deltas(take, upto, codec == DELTA_OF_DELTA, each),
        (DELTA | DELTA_OF_DELTA, 0..=9) => {
            let kind = Kind::Gauge { scale };
            take_deltas(take, upto, codec == DELTA_OF_DELTA, &mut |raw| {
                each(kind.value(raw).to_bits());
            })
        }
        (XOR, PLAIN) => {
            let planes = take.slice(count.checked_mul(8).ok_or("too many samples")?)?;
            let mut last = 0;
            for index in 0..upto {
                let plane = |n: usize| planes.get(n * count + index).copied().unwrap_or(0);
                let bytes = [0, 1, 2, 3, 4, 5, 6, 7].map(plane);
                last ^= u64::from_be_bytes(bytes);
                each(last);
            }
            Ok(())
        }
        _ => Err(format!("column codec {codec}.{scale} is not known to this version")),
    }
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

fn put_deltas(out: &mut Vec<u8>, values: &[u64], twice: bool) {
    each_delta(values, twice, |delta| put_varint(out, delta));
}

fn deltas_bytes(values: &[u64], twice: bool) -> usize {
    let mut bytes = 0;
    each_delta(values, twice, |delta| {
        bytes += (64 - (delta | 1).leading_zeros() as usize).div_ceil(7);
    });
    bytes
}

fn each_delta(values: &[u64], twice: bool, mut each: impl FnMut(u64)) {
    let (mut last, mut before) = (0_u64, 0_u64);
    for (index, &value) in values.iter().enumerate() {
        let delta = value.wrapping_sub(last);
        let coded = if twice { delta.wrapping_sub(before) } else { delta };
        each((coded << 1) ^ (coded.cast_signed() >> 63).cast_unsigned());
        // The first value is no slope.
        before = if index == 0 { 0 } else { delta };
        last = value;
    }
}

fn take_deltas(
    take: &mut Take<'_>,
    count: usize,
    twice: bool,
    each: &mut impl FnMut(u64),
) -> Result<(), String> {
    let (mut last, mut before) = (0_u64, 0_u64);
    for index in 0..count {
        let coded = take.varint()?;
        let coded = (coded >> 1) ^ (coded & 1).wrapping_neg();
        let delta = if twice { coded.wrapping_add(before) } else { coded };
        before = if index == 0 { 0 } else { delta };
        last = last.wrapping_add(delta);
        each(last);
    }
    Ok(())
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while 0x80 <= value {
        out.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

const DELTA: u8 = 0;
const DELTA_OF_DELTA: u8 = 1;
const XOR: u8 = 2;
const PLAIN: u8 = 255;
/// 2^53: up to here every integer is an f64.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
