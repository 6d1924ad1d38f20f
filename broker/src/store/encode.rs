//! HB1 blocks made of rows: the same rows, the same bytes.

use super::block::{GROUP, HEADER, MAGIC, Meta, REGION};
use super::codec::{Numbers, Written, put_floats, put_times, put_varint};
use super::head::{RemoteColumn, Rows};
use std::borrow::Cow;
use std::cell::RefCell;
use strobe_wire::schema::Kind;
use zstd::bulk::Compressor;

/// Samples to encode.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// Sorted by time, no time twice.
    Rows(&'a Rows),
    /// A time column each, sorted, no time twice.
    Own(&'a [RemoteColumn]),
}

/// Rows turned into columns.
#[derive(Debug)]
struct Columns<'a> {
    /// Of each column, the values it has.
    values: Vec<Cow<'a, [u64]>>,
    /// Of each column, a bit a row; none where columns have their own times.
    bitmaps: Vec<Vec<u8>>,
    rows: usize,
}

/// Encodes; `kinds` are the schema's, `level` is zstd's.
pub(super) fn encode(meta: &Meta, content: Content<'_>, kinds: &[Kind], level: i32) -> Vec<u8> {
    let columns = Columns::new(content);
    let mut regions = vec![region(&times(content), &[], level)];
    regions.push(region(&columns.validity(), &[], level));
    for first in (0..kinds.len()).step_by(GROUP) {
        let (bytes, bits) = group(content, &columns, kinds, (first, level));
        regions.push(region(&bytes, &bits, level));
    }
    let flags = u32::from(matches!(content, Content::Own(_)));
    let (first_ms, last_ms, rows) = span(content);
    let mut out = MAGIC.to_vec();
    out.extend(flags.to_le_bytes());
    out.extend(meta.source.to_le_bytes());
    out.extend(meta.schema.to_le_bytes());
    out.extend(meta.step_ms.to_le_bytes());
    for count in [regions.len(), rows, kinds.len()] {
        out.extend(small(count).to_le_bytes());
    }
    out.extend(first_ms.to_le_bytes());
    out.extend(last_ms.to_le_bytes());
    assert!(out.len() == HEADER);
    for region in &regions {
        out.extend(small(region.len()).to_le_bytes());
        out.extend(crc32c::crc32c(region).to_le_bytes());
    }
    assert!(out.len() == HEADER + regions.len() * REGION);
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out.extend(regions.concat());
    out
}

/// A region; empty where there is nothing to say.
pub(super) fn region(raw: &[u8], bits: &[u8], level: i32) -> Vec<u8> {
    let mut out = Vec::new();
    if raw.is_empty() {
        return out;
    }
    match pack(raw, level) {
        Some(packed) => {
            put_varint(&mut out, (raw.len() as u64) << 1 | 1);
            put_varint(&mut out, packed.len() as u64);
            out.extend(packed);
        }
        None => {
            put_varint(&mut out, (raw.len() as u64) << 1);
            out.extend(raw);
        }
    }
    out.extend(bits);
    out
}

fn span(content: Content<'_>) -> (i64, i64, usize) {
    match content {
        Content::Rows(rows) => {
            let first = rows.times.first().copied().unwrap_or(0);
            (first, rows.times.last().copied().unwrap_or(first), rows.len())
        }
        Content::Own(columns) => {
            let first = columns.iter().filter_map(|c| c.times.first()).min().copied().unwrap_or(0);
            let last = columns.iter().filter_map(|c| c.times.last()).max().copied();
            let rows = columns.iter().map(|c| c.times.len()).max().unwrap_or(0);
            (first, last.unwrap_or(first), rows)
        }
    }
}

fn times(content: Content<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    if let Content::Rows(rows) = content {
        put_times(&mut out, &rows.times);
    }
    out
}

impl<'a> Columns<'a> {
    fn new(content: Content<'a>) -> Self {
        let rows = match content {
            Content::Rows(rows) => rows,
            Content::Own(columns) => {
                let values = columns.iter().map(|c| Cow::Borrowed(c.values.as_slice())).collect();
                return Self { values, bitmaps: Vec::new(), rows: 0 };
            }
        };
        let mut values = vec![Vec::with_capacity(rows.len()); rows.columns];
        let mut bitmaps = vec![vec![0_u8; rows.len().div_ceil(8)]; rows.columns];
        // Row after row: reads are in order, and each column is written in order.
        let stride = rows.stride().max(1);
        let each = rows.values.chunks(rows.columns.max(1)).zip(rows.valid.chunks(stride));
        for (row, (raws, valid)) in each.enumerate() {
            let columns = values.iter_mut().zip(&mut bitmaps).zip(raws).enumerate();
            for (column, ((values, bitmap), &raw)) in columns {
                if valid[column / 8] >> (column % 8) & 1 == 1 {
                    values.push(raw);
                    bitmap[row / 8] |= 1 << (row % 8);
                }
            }
        }
        Self { values: values.into_iter().map(Cow::Owned).collect(), bitmaps, rows: rows.len() }
    }

    /// Per column 0 if every row has a value, else 1 and the bitmap; nothing if all are full.
    fn validity(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if (0..self.values.len()).all(|column| self.is_full(column)) {
            return out;
        }
        for (values, bitmap) in self.values.iter().zip(&self.bitmaps) {
            let all = values.len() == self.rows;
            out.push(u8::from(!all));
            if !all {
                out.extend(bitmap);
            }
        }
        out
    }

    /// Whether every row has a value; columns with times of their own share no rows.
    fn is_full(&self, column: usize) -> bool {
        self.bitmaps.is_empty() || self.raws(column).len() == self.rows
    }

    /// The raw values of a column.
    fn raws(&self, column: usize) -> &[u64] {
        self.values.get(column).map_or(&[], AsRef::as_ref)
    }
}

/// The bytes of a group that are packed, and the bits behind them.
fn group(
    content: Content<'_>,
    columns: &Columns<'_>,
    kinds: &[Kind],
    (first, level): (usize, i32),
) -> (Vec<u8>, Vec<u8>) {
    let (mut lengths, mut body, mut tail) = (Vec::new(), Vec::new(), Vec::new());
    // What later columns may be like: those that move and stand by themselves.
    let mut moving: Vec<(u8, Vec<i64>)> = Vec::new();
    for (place, (index, kind)) in (0..).zip(kinds.iter().enumerate().skip(first).take(GROUP)) {
        let (start, bits_start) = (body.len(), tail.len());
        if let Content::Own(own) = content {
            let times = own.get(index).map_or(&[][..], |c| &c.times);
            put_varint(&mut body, times.len() as u64);
            put_times(&mut body, times);
        }
        if let Some(mut numbers) = Numbers::of(columns.raws(index), *kind) {
            let rows = matches!(content, Content::Rows(_)) && columns.is_full(index);
            let comparing = level != LEVEL_YOUNG && rows && !numbers.is_flat();
            if comparing {
                let others: Vec<_> = moving.iter().map(|(at, steps)| (*at, &steps[..])).collect();
                numbers.subtract(&others);
            }
            let (bytes, bits) = shorter(numbers.write(level != LEVEL_YOUNG), level);
            body.extend(bytes);
            tail.extend(bits);
            if comparing && !numbers.is_like() {
                moving.push((place, numbers.steps));
            }
        } else {
            put_floats(&mut body, columns.raws(index));
        }
        put_varint(&mut lengths, (body.len() - start) as u64);
        put_varint(&mut lengths, (tail.len() - bits_start) as u64);
    }
    lengths.extend(body);
    (lengths, tail)
}

/// A column in the way that is shorter once it is packed.
fn shorter(written: Written, level: i32) -> (Vec<u8>, Vec<u8>) {
    match written {
        Written::Bytes(bytes) => (bytes, Vec::new()),
        Written::Either { varints, head, bits } => {
            let packed = pack(&varints, level).map_or(varints.len(), |packed| packed.len());
            if packed.saturating_sub(FRAME_BYTES) < bits.len() + head.len() {
                (varints, Vec::new())
            } else {
                (head, bits)
            }
        }
    }
}

/// A count or offset within a block, which is far below 4 GiB.
fn small(count: usize) -> u32 {
    u32::try_from(count).expect("a block is bounded by its rows and columns")
}

thread_local! {
    /// A context costs more to make than a group to compress.
    static PACK: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
}

/// `None` where it would not be shorter.
fn pack(raw: &[u8], level: i32) -> Option<Vec<u8>> {
    if raw.len() < PACK_BYTES_MIN {
        return None;
    }
    PACK.with_borrow_mut(|context| {
        if context.as_ref().is_none_or(|(of, _)| *of != level) {
            *context = Some((level, Compressor::new(level).ok()?));
        }
        let (_, context) = context.as_mut()?;
        context.compress(raw).ok().filter(|packed| packed.len() < raw.len())
    })
}

/// zstd's level for what is written to disk.
pub(super) const LEVEL_SEALED: i32 = 3;
/// zstd's level for lists of series, which are written once a segment.
pub(super) const LEVEL_LISTS: i32 = 9;
/// zstd's level for young blocks, which live minutes.
pub(super) const LEVEL_YOUNG: i32 = 1;
/// Of zstd's for a group, which a column of it does not pay for.
const FRAME_BYTES: usize = 9;
/// zstd's own header and checks make anything shorter longer.
const PACK_BYTES_MIN: usize = 24;
