//! HB1: the samples of one source and one schema, columns in groups of 16.
//!
//! ```text
//!  0 magic "HB1\2"   4     40 rows             4     (the longest column's samples)
//!  4 flags           4     44 columns          4     1: every column has its own times
//!  8 source         16     48 first time, ms   8
//! 24 schema          8     56 last time, ms    8
//! 32 step, ms        4     64 directory: a region each: length u32, CRC32C u32
//! 36 regions         4
//!    then the CRC32C of all before, then the regions, one behind the other:
//!    0 times (delta of delta), 1 validity, 2.. groups
//! region: raw length << 1 | packed? varint, (packed length varint,) bytes (a zstd frame), bits
//! group:  of each column: bytes varint, bits varint; the columns' bytes. Their bits stand behind.
//! ```
//!
//! How a column becomes bytes is `codec.rs`. Same rows, same bytes: nothing else goes in. What
//! nobody read is not there: sums and extremes of a column were a tenth of a block.

use super::codec::{Read, Take, take_times, take_values};
use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use zstd::bulk::Decompressor;

/// What a block is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    pub(super) source: u128,
    pub(super) schema: u64,
    /// 0: raw samples.
    pub(super) step_ms: u32,
}

/// Where a block's bytes are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data<'a> {
    Memory(&'a [u8]),
    /// The file and the block's place in it.
    File(&'a File, u64, u32),
}

/// A block whose header and directory checked.
#[derive(Debug)]
pub(super) struct Block<'a> {
    data: Data<'a>,
    /// The first bytes of a file's block: the directory, and most often times and validity, in
    /// one read.
    front: Vec<u8>,
    pub(super) meta: Meta,
    pub(super) columns: usize,
    pub(super) first_ms: i64,
    pub(super) last_ms: i64,
    rows: usize,
    own: bool,
    regions: Vec<Region>,
}

#[derive(Clone, Copy, Debug)]
struct Region {
    offset: usize,
    length: usize,
    crc: u32,
}

/// A decompressed group.
#[derive(Debug)]
pub(super) struct Group {
    bytes: Vec<u8>,
    bits: Vec<u8>,
    first: usize,
    /// Where each column's bytes and bits are.
    places: Vec<(Range<usize>, Range<usize>)>,
}

/// A group with what it takes to read its columns: all of a block that is worth keeping.
#[derive(Debug)]
pub(super) struct Piece {
    last_ms: i64,
    times: Vec<i64>,
    /// Of the group's columns; empty: all rows everywhere.
    valid: Vec<Option<Vec<u8>>>,
    group: Group,
    rows: usize,
    own: bool,
}

impl Data<'_> {
    fn length(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File(_, _, length) => *length as usize,
        }
    }

    fn bytes(&self, offset: usize, length: usize) -> Result<Cow<'_, [u8]>, String> {
        let end = offset.saturating_add(length);
        if self.length() < end {
            return Err("a part reaches behind the block's end".to_owned());
        }
        match self {
            Self::Memory(bytes) => {
                bytes.get(offset..end).map(Cow::Borrowed).ok_or_else(|| "cut off".to_owned())
            }
            Self::File(file, base, _) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, base + offset as u64).map_err(|e| e.to_string())?;
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

impl<'a> Block<'a> {
    /// Checks the header and the directory.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn open(data: Data<'a>) -> Result<Self, String> {
        let front = match data {
            Data::Memory(_) => Vec::new(),
            Data::File(..) => data.bytes(0, data.length().min(FRONT))?.into_owned(),
        };
        let part = |length| match data {
            Data::Memory(bytes) => bytes.get(..length).ok_or_else(|| "cut off".to_owned()),
            Data::File(..) => front.get(..length).ok_or_else(|| "cut off".to_owned()),
        };
        let mut take = Take(part(HEADER)?);
        if take.array::<4>()? != MAGIC {
            return Err("no HB1 block".to_owned());
        }
        let own = take.u32()? & 1 == 1;
        let meta = Meta { source: take.u128()?, schema: take.u64()?, step_ms: take.u32()? };
        let (count, rows) = (take.u32()? as usize, take.u32()? as usize);
        let columns = take.u32()? as usize;
        let (first_ms, last_ms) = (take.u64()?.cast_signed(), take.u64()?.cast_signed());
        if COLUMNS_MAX < columns || count != 2 + columns.div_ceil(GROUP) || ROWS_MAX < rows {
            return Err("its header's counts are impossible".to_owned());
        }
        let length = HEADER + count * REGION;
        let long;
        let head = if let Ok(head) = part(length + 4) {
            head
        } else {
            long = data.bytes(0, length + 4)?;
            &long
        };
        let (head, sum) = head.split_at(length);
        if sum != crc32c::crc32c(head).to_le_bytes() {
            return Err("its header's CRC32C differs".to_owned());
        }
        let mut take = Take(head.get(HEADER..).unwrap_or(&[]));
        let mut regions = Vec::with_capacity(count);
        let mut offset = length + 4;
        for _ in 0..count {
            let length = take.u32()? as usize;
            regions.push(Region { offset, length, crc: take.u32()? });
            offset = offset.saturating_add(length);
        }
        Ok(Self { data, front, meta, columns, first_ms, last_ms, rows, own, regions })
    }

    /// Whether every byte checks; how many samples there are.
    ///
    /// # Errors
    /// The first part that does not.
    pub(super) fn check(&self) -> Result<u64, String> {
        for index in 0..self.regions.len() {
            self.region(index)?;
        }
        let (times, valid) = (self.times()?, self.validity()?);
        let mut samples = 0;
        for first in 0..self.columns.div_ceil(GROUP) {
            let group = self.group(first)?;
            for column in first * GROUP..self.columns.min((first + 1) * GROUP) {
                self.column(&group, column, &times, &valid, &mut |_, _| samples += 1)?;
            }
        }
        Ok(samples)
    }

    /// The times of all rows; empty if every column has its own.
    pub(super) fn times(&self) -> Result<Vec<i64>, String> {
        if self.own {
            return Ok(Vec::new());
        }
        let (bytes, _) = self.region(0)?;
        take_times(&mut Take(&bytes), self.rows)
    }

    /// Per column: one byte (0 all rows, 1 a bitmap) and the bitmap. Empty: all rows everywhere.
    pub(super) fn validity(&self) -> Result<Vec<Option<Vec<u8>>>, String> {
        // No bitmap at all is what most blocks have; that is seen in the directory.
        if self.own || self.regions.get(1).is_some_and(|region| region.length == 0) {
            return Ok(Vec::new());
        }
        let (bytes, _) = self.region(1)?;
        let mut take = Take(&bytes);
        let stride = self.rows.div_ceil(8);
        let mut columns = Vec::with_capacity(self.columns);
        for _ in 0..self.columns {
            let [flag] = take.array::<1>()?;
            columns.push(if flag == 0 { None } else { Some(take.slice(stride)?.to_vec()) });
        }
        Ok(columns)
    }

    /// Decompresses the 16 columns from `index * 16` on.
    pub(super) fn group(&self, index: usize) -> Result<Group, String> {
        let (bytes, bits) = self.region(2 + index)?;
        let first = index * GROUP;
        let count = self.columns.saturating_sub(first).min(GROUP);
        let mut take = Take(&bytes);
        let mut lengths = Vec::with_capacity(count);
        for _ in 0..count {
            let length = usize::try_from(take.varint()?).map_err(|e| e.to_string())?;
            lengths.push((length, usize::try_from(take.varint()?).map_err(|e| e.to_string())?));
        }
        let (mut at, mut bits_at) = (bytes.len() - take.0.len(), 0_usize);
        let mut places = Vec::with_capacity(count);
        let step = |at: &mut usize, length: usize, all: usize| {
            let end = at.checked_add(length).filter(|end| *end <= all);
            let end = end.ok_or("a column reaches behind its group's end")?;
            Ok::<_, String>(std::mem::replace(at, end)..end)
        };
        for (length, bits_length) in lengths {
            let place = step(&mut at, length, bytes.len())?;
            places.push((place, step(&mut bits_at, bits_length, bits.len())?));
        }
        Ok(Group { bytes, bits, first, places })
    }

    /// Calls `each` with the (time, raw bits) of `column`, which is in `group`.
    pub(super) fn column(
        &self,
        group: &Group,
        column: usize,
        times: &[i64],
        valid: &[Option<Vec<u8>>],
        each: &mut impl FnMut(i64, u64),
    ) -> Result<(), String> {
        let own = self.own.then_some(self.rows);
        let valid = valid.get(column).and_then(Option::as_deref);
        group.column(column, own, (times, usize::MAX), valid, each)
    }

    /// A group that outlives the block.
    pub(super) fn piece(&self, index: usize) -> Result<Piece, String> {
        let group = self.group(index)?;
        let valid = self.validity()?.into_iter().skip(group.first).take(GROUP).collect();
        let (times, last_ms) = (self.times()?, self.last_ms);
        Ok(Piece { last_ms, times, valid, group, rows: self.rows, own: self.own })
    }

    /// A region's bytes, decompressed, and the bits behind them.
    fn region(&self, index: usize) -> Result<(Vec<u8>, Vec<u8>), String> {
        let &Region { offset, length, crc } = self.regions.get(index).ok_or("no such part")?;
        let bytes = match self.front.get(offset..offset.saturating_add(length)) {
            Some(bytes) => Cow::Borrowed(bytes),
            None => self.data.bytes(offset, length)?,
        };
        if crc32c::crc32c(&bytes) != crc {
            return Err(format!("part {index}: its CRC32C differs"));
        }
        if bytes.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let mut take = Take(&bytes);
        let head = take.varint()?;
        let raw = usize::try_from(head >> 1).map_err(|e| e.to_string())?;
        if head & 1 == 0 {
            return Ok((take.slice(raw)?.to_vec(), take.0.to_vec()));
        }
        if REGION_BYTES_MAX < raw {
            return Err(format!("part {index}: its size is impossible"));
        }
        let packed = usize::try_from(take.varint()?).map_err(|e| e.to_string())?;
        Ok((unpack(take.slice(packed)?, raw)?, take.0.to_vec()))
    }
}

impl Group {
    /// Calls `each` with the (time, raw bits) of `column`; `own` has the rows of a block whose
    /// columns have times of their own. Behind row `upto` nobody looks.
    fn column(
        &self,
        column: usize,
        own: Option<usize>,
        (times, upto): (&[i64], usize),
        valid: Option<&[u8]>,
        each: &mut impl FnMut(i64, u64),
    ) -> Result<(), String> {
        let place = column.checked_sub(self.first).ok_or(NOT_HERE)?;
        let Read { bytes, bits } = self.read(place).ok_or(NOT_HERE)?;
        let other = |place: u8| self.read(place.into());
        if let Some(rows) = own {
            let mut take = Take(bytes);
            let count = usize::try_from(take.varint()?).map_err(|e| e.to_string())?;
            if rows < count {
                return Err("a column has more samples than the block".to_owned());
            }
            let times = take_times(&mut take, count)?;
            let mut at = times.iter();
            let read = Read { bytes: take.0, bits };
            return take_values(read, (count, usize::MAX), |_| None, &mut |raw| {
                if let Some(&time) = at.next() {
                    each(time, raw);
                }
            });
        }
        let read = Read { bytes, bits };
        let Some(bitmap) = valid else {
            let mut at = times.iter();
            return take_values(read, (times.len(), upto), other, &mut |raw| {
                if let Some(&time) = at.next() {
                    each(time, raw);
                }
            });
        };
        let set = |row: &usize| bitmap.get(row / 8).is_some_and(|byte| byte >> (row % 8) & 1 == 1);
        let count = (0..times.len()).filter(set).count();
        let mut at = times.iter().enumerate().filter(|(row, _)| set(row));
        take_values(read, (count, usize::MAX), other, &mut |raw| {
            if let Some((_, &time)) = at.next() {
                each(time, raw);
            }
        })
    }

    fn read(&self, place: usize) -> Option<Read<'_>> {
        let (bytes, bits) = self.places.get(place)?;
        Some(Read { bytes: self.bytes.get(bytes.clone())?, bits: self.bits.get(bits.clone())? })
    }
}

impl Piece {
    /// Calls `each` with the (time, raw bits) of `column`, which is in the group, within `bounds`.
    pub(super) fn column(
        &self,
        column: usize,
        bounds: (i64, i64),
        each: &mut impl FnMut(i64, u64),
    ) -> Result<(), String> {
        let own = self.own.then_some(self.rows);
        let place = column.checked_sub(self.group.first);
        let valid = place.and_then(|place| self.valid.get(place)).and_then(Option::as_deref);
        // Most often all of it, and then the times are better read once, in order.
        let upto = if self.last_ms <= bounds.1 {
            usize::MAX
        } else {
            self.times.partition_point(|&time| time <= bounds.1)
        };
        self.group.column(column, own, (&self.times, upto), valid, &mut |time, raw| {
            if bounds.0 <= time && time <= bounds.1 {
                each(time, raw);
            }
        })
    }

    /// How much it holds.
    pub(super) fn bytes(&self) -> usize {
        let valid: usize = self.valid.iter().flatten().map(Vec::len).sum();
        // And itself, its columns' places, and its entry in a map.
        self.group.bytes.len() + self.group.bits.len() + valid + 8 * self.times.len() + 768
    }

    #[cfg(test)]
    pub(super) fn of_bytes(bytes: usize) -> Self {
        let group = Group { bytes: vec![0; bytes], bits: Vec::new(), first: 0, places: Vec::new() };
        Self { last_ms: 0, times: Vec::new(), valid: Vec::new(), group, rows: 0, own: false }
    }
}

thread_local! {
    /// A context costs more to make than a group to decompress.
    static UNPACK: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn unpack(bytes: &[u8], length: usize) -> Result<Vec<u8>, String> {
    UNPACK.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            none => none.insert(Decompressor::new().map_err(|e| e.to_string())?),
        };
        context.decompress(bytes, length).map_err(|e| e.to_string())
    })
}

/// Columns compressed together: what one read of a series has to decompress.
pub(super) const GROUP: usize = 16;
pub(super) const MAGIC: [u8; 4] = *b"HB1\x02";
pub(super) const HEADER: usize = 64;
pub(super) const REGION: usize = 8;
const NOT_HERE: &str = "the column is not in this group";
/// Read at once: the directory, times and validity of a few hundred columns.
const FRONT: usize = 4096;
const COLUMNS_MAX: usize = 65_536;
/// Rows of one block: 10 min at 100 Hz, and room for late ones.
pub(super) const ROWS_MAX: usize = 1 << 18;
const REGION_BYTES_MAX: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::super::encode::{Content, LEVEL_SEALED, encode};
    use super::super::head::{RemoteColumn, Rows};
    use super::*;
    use proptest::prelude::*;
    use strobe_wire::schema::Kind;

    const META: Meta = Meta { source: 7, schema: 9, step_ms: 0 };

    fn decode(bytes: &[u8]) -> Result<Vec<Vec<(i64, u64)>>, String> {
        let block = Block::open(Data::Memory(bytes))?;
        let (times, valid) = (block.times()?, block.validity()?);
        let mut out = Vec::new();
        for column in 0..block.columns {
            let group = block.group(column / GROUP)?;
            let mut samples = Vec::new();
            block.column(&group, column, &times, &valid, &mut |t, v| samples.push((t, v)))?;
            out.push(samples);
        }
        Ok(out)
    }

    fn rows(table: &[(i64, Vec<Option<u64>>)], columns: usize) -> Rows {
        let mut rows = Rows::new(columns);
        for (time, values) in table {
            rows.times.push(*time);
            let mut valid = vec![0_u8; columns.div_ceil(8)];
            for (index, value) in values.iter().enumerate() {
                rows.values.push(value.unwrap_or(0));
                valid[index / 8] |= u8::from(value.is_some()) << (index % 8);
            }
            rows.valid.extend(valid);
        }
        rows
    }

    fn table() -> impl Strategy<Value = Vec<(i64, Vec<Option<u64>>)>> {
        let value = prop_oneof![
            any::<u64>(),
            0..1000_u64,
            any::<f64>().prop_map(f64::to_bits),
            (0..10_000_i32).prop_map(|n| (f64::from(n) / 100.0).to_bits()),
        ];
        let row = prop::collection::vec(prop::option::weighted(0.9, value), 19);
        prop::collection::btree_map(any::<i64>(), row, 1..40).prop_map(|m| m.into_iter().collect())
    }

    /// What moves alike is stored once, whatever its unit, and noise as bits: a clock, a busy counter,
    /// the same in pages, a gauge that is the counter and a little, one that stands still.
    #[test]
    fn columns_that_move_alike_are_stored_once() {
        let mut seed = 1_u64;
        let (mut counter, mut table) = (0, Vec::new());
        for row in 0..600 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            counter += 1000 + (seed >> 54);
            let values = [row * 1000, counter, counter * 4096 + 77, counter + row % 3, 5, u64::MAX];
            let time = i64::try_from(row * 1000).unwrap();
            table.push((time, values.into_iter().map(Some).collect::<Vec<_>>()));
        }
        let kinds = [Kind::Gauge { scale: 0 }; 6];
        let bytes = encode(&META, Content::Rows(&rows(&table, 6)), &kinds, LEVEL_SEALED);
        let back = decode(&bytes).unwrap();
        for (column, samples) in back.iter().enumerate() {
            let wanted: Vec<_> = table.iter().map(|(t, v)| (*t, v[column].unwrap())).collect();
            assert_eq!(samples, &wanted, "column {column}");
        }
        // The counter's ten bits of noise a row are 750 bytes.
        assert!(bytes.len() < 1200, "{}", bytes.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn what_is_encoded_is_decoded_to_the_bit(table in table()) {
            let kind = |n| match n % 3 {
                0 => Kind::Float,
                1 => Kind::Counter { scale: 2 },
                _ => Kind::Gauge { scale: 0 },
            };
            let kinds: Vec<Kind> = (0..19).map(kind).collect();
            let rows = rows(&table, 19);
            let bytes = encode(&META, Content::Rows(&rows), &kinds, LEVEL_SEALED);
            prop_assert_eq!(&bytes, &encode(&META, Content::Rows(&rows), &kinds, LEVEL_SEALED));
            let back = decode(&bytes).unwrap();
            for column in 0..19 {
                let wanted: Vec<(i64, u64)> = table
                    .iter()
                    .filter_map(|(time, row)| row[column].map(|value| (*time, value)))
                    .collect();
                prop_assert_eq!(&back[column], &wanted);
            }
            let own: Vec<RemoteColumn> = back
                .iter()
                .map(|samples| RemoteColumn {
                    times: samples.iter().map(|s| s.0).collect(),
                    values: samples.iter().map(|s| s.1).collect(),
                    ..RemoteColumn::default()
                })
                .collect();
            let bytes = encode(&META, Content::Own(&own), &[Kind::Float; 19], LEVEL_SEALED);
            prop_assert_eq!(decode(&bytes).unwrap(), back);
        }

        #[test]
        fn every_flip_and_cut_is_an_error_and_never_a_panic(
            table in table(), at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let rows = rows(&table, 19);
            let kinds = [Kind::Float; 19];
            let bytes = encode(&META, Content::Rows(&rows), &kinds, LEVEL_SEALED);
            let at = at.index(bytes.len());
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            let check = |b: &[u8]| Block::open(Data::Memory(b)).and_then(|b| b.check());
            prop_assert!(check(&bad).is_err());
            prop_assert!(check(&bytes[..at]).is_err());
            prop_assert!(check(&bytes).is_ok());
        }

        #[test]
        fn rubbish_behind_right_checksums_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let read = Read { bytes: &bytes, bits: bytes.get(30..).unwrap_or(&[]) };
            let _ = take_values(read, (30, usize::MAX), |_| Some(read), &mut |_| ());
            let _ = take_times(&mut Take(&bytes), 1 << 40);
        }
    }
}
