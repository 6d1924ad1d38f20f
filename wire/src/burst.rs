//! Samples of a hundredth of a second, packed: each as what changed since the one before.
//!
//! ```text
//! block   sample*                         the first one's change is from nothing, so a block stands alone
//! sample  µs since the last, varint | a bit a column: has it changed? | a zigzag varint each that has
//! ```
//!
//! A column's 64 bits count from 1 here, and 0 is a column without a value. So most samples of a quiet
//! host are a dozen bytes: a minute of fifty columns a hundred times a second takes about 100 KiB
//! where plain rows would take 2.4 MB. [`Packer`] fills a block that fits a frame and allocates
//! nothing; [`unpack`] takes bytes of any origin.

use crate::limits::SECTION_COLUMNS_MAX;

/// A block being filled.
#[derive(Clone, Debug)]
pub struct Packer {
    bytes: [u8; BURST_BYTES_MAX],
    length: usize,
    samples: u16,
    columns: usize,
    last_us: u64,
    cells: [u64; BURST_COLUMNS_MAX],
}

/// The block has no room for another sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

impl Packer {
    /// A block of samples of so many columns, [`BURST_COLUMNS_MAX`] at most.
    ///
    /// # Panics
    /// With more.
    #[must_use]
    pub fn new(columns: usize) -> Self {
        assert!(columns <= BURST_COLUMNS_MAX, "{columns} columns in a burst");
        Self {
            bytes: [0; BURST_BYTES_MAX],
            length: 0,
            samples: 0,
            columns,
            last_us: 0,
            cells: [0; BURST_COLUMNS_MAX],
        }
    }

    /// Empties the block, for samples of so many columns.
    ///
    /// # Panics
    /// With more than [`BURST_COLUMNS_MAX`].
    pub fn clear(&mut self, columns: usize) {
        assert!(columns <= BURST_COLUMNS_MAX, "{columns} columns in a burst");
        (self.length, self.samples, self.columns, self.last_us) = (0, 0, columns, 0);
        self.cells.fill(0);
    }

    /// Adds a sample of `at_us` after some moment that is the same for all of the block.
    ///
    /// # Errors
    /// It does not fit, and the block is as it was.
    pub fn push(&mut self, at_us: u64, values: &[Option<u64>]) -> Result<(), Full> {
        assert!(values.len() == self.columns, "a sample of other columns");
        let changed =
            values.iter().zip(&self.cells).filter(|(value, cell)| bits(**value) != **cell);
        let room = VARINT_BYTES_MAX * (1 + changed.count()) + self.columns.div_ceil(8);
        if BURST_BYTES_MAX - self.length < room || self.samples == u16::MAX {
            return Err(Full);
        }
        let after_us = if self.samples == 0 { 0 } else { at_us.saturating_sub(self.last_us) };
        self.put(after_us);
        let map = self.length;
        self.length += self.columns.div_ceil(8);
        self.bytes[map..self.length].fill(0);
        for (column, value) in values.iter().enumerate() {
            let change = bits(*value).wrapping_sub(self.cells[column]).cast_signed();
            if change != 0 {
                self.bytes[map + column / 8] |= 1 << (column % 8);
                self.put((change << 1 ^ change >> 63).cast_unsigned());
                self.cells[column] = bits(*value);
            }
        }
        self.last_us = at_us;
        self.samples += 1;
        Ok(())
    }

    /// The block so far.
    #[must_use]
    pub fn packed(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Columns of each sample.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Samples in it.
    #[must_use]
    pub fn samples(&self) -> u16 {
        self.samples
    }

    fn put(&mut self, mut value: u64) {
        while 0x7f < value {
            self.bytes[self.length] = (value & 0x7f | 0x80).to_le_bytes()[0];
            self.length += 1;
            value >>= 7;
        }
        self.bytes[self.length] = value.to_le_bytes()[0];
        self.length += 1;
    }
}

/// Hands each sample of a block to `visit`: µs since the first, values, and which of them are valid
/// (bit `i % 8` of byte `i / 8`). `None` if the bytes are not a block of so many samples of so many
/// columns; then some may have been handed over.
pub fn unpack(
    packed: &[u8],
    columns: usize,
    samples: u16,
    mut visit: impl FnMut(u64, &[u64], &[u8]),
) -> Option<()> {
    if columns == 0 || BURST_COLUMNS_MAX < columns {
        return None;
    }
    let mut rest = packed;
    let mut cells = [0_u64; BURST_COLUMNS_MAX];
    let (mut values, mut valid) = ([0_u64; BURST_COLUMNS_MAX], [0_u8; BURST_COLUMNS_MAX / 8]);
    let mut at_us = 0_u64;
    for _ in 0..samples {
        at_us = at_us.checked_add(take(&mut rest)?)?;
        let map = rest.split_off(..columns.div_ceil(8))?;
        for column in 0..columns {
            if map.get(column / 8)? >> (column % 8) & 1 == 1 {
                let zigzag = take(&mut rest)?;
                let change = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
                let cell = cells.get_mut(column)?;
                *cell = cell.wrapping_add(change.cast_unsigned());
                *values.get_mut(column)? = cell.wrapping_sub(u64::from(*cell != 0));
                let byte = valid.get_mut(column / 8)?;
                *byte = *byte & !(1 << (column % 8)) | u8::from(*cell != 0) << (column % 8);
            }
        }
        visit(at_us, values.get(..columns)?, valid.get(..columns.div_ceil(8))?);
    }
    rest.is_empty().then_some(())
}

/// A value as it is packed; the largest is none.
fn bits(value: Option<u64>) -> u64 {
    value.map_or(0, |value| value.wrapping_add(1))
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for (index, byte) in rest.iter().take(VARINT_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(index * 7).ok()?)?;
        if byte & 0x80 == 0 {
            *rest = rest.get(index + 1..)?;
            return Some(value);
        }
    }
    None
}

/// Bytes of one block: a frame is as large as a ring's slot.
pub const BURST_BYTES_MAX: usize = 3968;
/// Columns of a burst: a sample that changes all of them fits a block.
pub const BURST_COLUMNS_MAX: usize = 128;
const VARINT_BYTES_MAX: usize = 10;
const _: () = assert!(BURST_COLUMNS_MAX <= SECTION_COLUMNS_MAX);
const _: () = assert!(VARINT_BYTES_MAX * (1 + BURST_COLUMNS_MAX) + 16 < BURST_BYTES_MAX);
// 80 header + 8 for the counts and the box, which rkyv pads to 16 at most.
const _: () = assert!(BURST_BYTES_MAX + 80 + 16 <= crate::limits::FRAME_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(packer: &Packer, columns: usize) -> Vec<(u64, Vec<Option<u64>>)> {
        let mut found = Vec::new();
        let visit = |at_us, values: &[u64], valid: &[u8]| {
            let value = |n: usize| (valid[n / 8] >> (n % 8) & 1 == 1).then_some(values[n]);
            found.push((at_us, (0..columns).map(value).collect()));
        };
        unpack(packer.packed(), columns, packer.samples(), visit).unwrap();
        found
    }

    #[test]
    fn what_is_packed_is_what_is_unpacked() {
        let mut packer = Packer::new(9);
        let mut wanted = Vec::new();
        for n in 0..40_u64 {
            let some = |value: u64| (n % 7 != 3).then_some(value);
            let fixed = [Some(0), None, Some(u64::MAX - 1), Some(5)];
            let moving = [some(n), some(1000 - n * n % 900), some(n << 50), some(7), Some(n / 20)];
            let values: Vec<_> = fixed.into_iter().chain(moving).collect();
            packer.push(1_000_000 + n * 10_000, &values).unwrap();
            wanted.push((n * 10_000, values));
        }
        assert_eq!(samples(&packer, 9), wanted);
        packer.clear(2);
        packer.push(77, &[Some(1), None]).unwrap();
        assert_eq!(samples(&packer, 2), [(0, vec![Some(1), None])]);
    }

    #[test]
    fn a_full_block_says_so_and_stays_whole() {
        let mut packer = Packer::new(BURST_COLUMNS_MAX);
        let mut pushed = 0;
        let values = |n: u64| [Some(if n.is_multiple_of(2) { u64::MAX - 1 } else { 0 }); 128];
        while packer.push(pushed, &values(pushed)).is_ok() {
            pushed += 1;
        }
        assert!(1 < pushed);
        assert_eq!(samples(&packer, 128).len(), usize::try_from(pushed).unwrap());
    }

    #[test]
    fn a_quiet_minute_is_small() {
        let (mut packer, mut bytes) = (Packer::new(50), 0);
        let mut values = [Some(1_000_000_000); 50];
        for n in 0..6000_u64 {
            for value in values.iter_mut().take(6).flatten() {
                *value += 1 + n % 90;
            }
            if packer.push(n * 10_000, &values).is_err() {
                bytes += packer.packed().len();
                packer.clear(50);
                packer.push(n * 10_000, &values).unwrap();
            }
        }
        bytes += packer.packed().len();
        assert!(bytes < 120 << 10, "{bytes} bytes");
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let mut packer = Packer::new(3);
        packer.push(0, &[Some(1), None, Some(3)]).unwrap();
        let good = packer.packed();
        let check = |bytes: &[u8], columns, samples| unpack(bytes, columns, samples, |_, _, _| ());
        assert_eq!(check(good, 3, 1), Some(()));
        assert_eq!(check(good, 3, 2), None);
        assert_eq!(check(good, 0, 1), None);
        assert_eq!(check(good, 9999, 1), None);
        assert_eq!(check(&good[..good.len() - 1], 3, 1), None);
        assert_eq!(check(&[0xff; 200], 3, 1), None);
        let mut seed = 1_u64;
        for _ in 0..20_000 {
            let mut bytes = [0; 64];
            for byte in &mut bytes {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = seed.to_le_bytes()[6] & if seed.is_multiple_of(3) { 0xff } else { 0x0f };
            }
            let _ = check(&bytes, 1 + usize::from(bytes[0]) % 128, 5);
        }
    }
}
