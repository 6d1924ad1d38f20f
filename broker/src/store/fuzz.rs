//! The store's insides for the fuzz targets. Not part of any normal build.

use super::block::{Block, Data, GROUP, Meta};
use super::encode::{Content, LEVEL_SEALED, LEVEL_YOUNG, encode, region};
use super::head::Rows;
use super::seal::decode_rows;
use super::segment::{self, Segment};
use super::{Limits, Scratch, Store, StoreConfig, TimeRange, wal};
use bytes::Bytes;
use std::fs;
use std::path::PathBuf;
use strobe_journal::Journal;
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::limits::{FRAME_BYTES_MAX, SECTION_COLUMNS_MAX};
use strobe_wire::schema::{Column, Kind, Labels, Schema};

/// A block's parts, to be put together with right checksums.
#[derive(Debug)]
pub struct BlockParts {
    /// What the header says.
    pub rows: u16,
    /// What the header says.
    pub columns: u8,
    /// Whether every column has its own times.
    pub own: bool,
    /// First and last.
    pub times: (i64, i64),
    /// Times, validity, groups: bytes, and the bits behind them.
    pub parts: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A record of a log.
#[derive(Debug)]
pub enum WalOp {
    /// Any bytes of any kind.
    Raw {
        /// The kind byte.
        kind: u8,
        /// What follows.
        body: Vec<u8>,
    },
    /// A schema.
    Schema {
        /// How many.
        columns: u8,
        /// Another seed is another schema.
        seed: u8,
    },
    /// Labels of a source.
    Labels {
        /// Which.
        source: u8,
        /// Any.
        pairs: Vec<(String, String)>,
    },
    /// A row of a host.
    Row {
        /// Which.
        source: u8,
        /// Of its schema.
        columns: u8,
        /// Of its schema.
        seed: u8,
        /// Seconds.
        time_s: u16,
    },
    /// Samples by remote-write.
    Samples {
        /// Which.
        source: u8,
        /// The metric.
        name: String,
        /// Milliseconds and bits.
        samples: Vec<(u32, u64)>,
    },
    /// The next file.
    Rotate,
}

/// What a store found in a log.
#[derive(Clone, Copy, Debug)]
pub struct Recovered {
    /// Samples that the records have, at most.
    pub rows: usize,
    /// Samples that were read.
    pub found: usize,
}

/// Reads all of a block, twice: checking, and as rows.
pub fn block(bytes: &[u8]) {
    if let Ok(block) = Block::open(Data::Memory(bytes)) {
        let _ = block.check();
        let _ = decode_rows(bytes);
    }
}

/// Reads a block of these parts.
pub fn block_of(of: &BlockParts) {
    let count = 2 + usize::from(of.columns).div_ceil(GROUP);
    let mut out = b"HB1\x02".to_vec();
    out.extend(u32::from(of.own).to_le_bytes());
    out.extend(7_u128.to_le_bytes());
    out.extend(9_u64.to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    for number in [count, usize::from(of.rows), usize::from(of.columns)] {
        out.extend(small(number).to_le_bytes());
    }
    out.extend(of.times.0.to_le_bytes());
    out.extend(of.times.1.to_le_bytes());
    let mut body = Vec::new();
    for index in 0..count {
        let none = (Vec::new(), Vec::new());
        let (bytes, bits) = of.parts.get(index).unwrap_or(&none);
        let part = region(bytes, bits, LEVEL_YOUNG);
        out.extend(small(part.len()).to_le_bytes());
        out.extend(crc32c::crc32c(&part).to_le_bytes());
        body.extend(part);
    }
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out.extend(body);
    assert!(Block::open(Data::Memory(&out)).is_ok(), "its header is right");
    block(&out);
}

/// Rows are the same behind a block, at both levels.
///
/// # Panics
/// If they are not.
pub fn block_round_trip(columns: u8, kinds: &[u8], rows: &[(u16, Vec<Option<u64>>)]) {
    let columns = usize::from(columns).max(1);
    let kinds: Vec<Kind> = (0..columns)
        .map(|column| match kinds.get(column).copied().unwrap_or(0) {
            kind @ 0..=9 => Kind::Counter { scale: kind },
            kind @ 10..=19 => Kind::Gauge { scale: kind - 10 },
            _ => Kind::Float,
        })
        .collect();
    let mut times = Vec::new();
    for (step, _) in rows {
        times.push(times.last().copied().unwrap_or(1_700_000_000_000) + 1 + i64::from(*step));
    }
    let mut wanted = Rows::blank(columns, times);
    for (row, (_, values)) in rows.iter().enumerate() {
        for (column, value) in values.iter().take(columns).enumerate() {
            if let Some(value) = value {
                wanted.set(row, column, *value);
            }
        }
    }
    let meta = Meta { source: 7, schema: 9, step_ms: 0 };
    for level in [LEVEL_YOUNG, LEVEL_SEALED] {
        let bytes = encode(&meta, Content::Rows(&wanted), &kinds, level);
        assert_eq!(bytes, encode(&meta, Content::Rows(&wanted), &kinds, level), "same bytes");
        let opened = Block::open(Data::Memory(&bytes)).expect("what was encoded opens");
        assert!(opened.check().is_ok());
        assert_eq!(decode_rows(&bytes).as_ref(), Ok(&wanted));
    }
}

/// A segment file of (kind, whether its checksum is right, payload).
///
/// # Panics
/// If a file cannot be written.
pub fn segment(chunks: &[(u8, bool, Vec<u8>)]) {
    let mut bytes = Vec::new();
    let mut last = 0;
    for (kind, right, payload) in chunks {
        last = bytes.len() as u64;
        let head = [u32::from(kind % 6).to_le_bytes(), small(payload.len()).to_le_bytes()].concat();
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head), payload);
        let sum = if *right { sum } else { !sum };
        bytes.extend([b"SGC1", &head[..], &sum.to_le_bytes(), payload].concat());
    }
    let at = last.to_le_bytes();
    bytes.extend([&at[..], &crc32c::crc32c(&at).to_le_bytes(), b"SGE1"].concat());
    let dir = scratch("segment");
    let path = dir.join("raw-0000000000000001.seg");
    fs::write(&path, bytes).expect("there is room");
    let mut damage = Vec::new();
    if let Ok((segment, footer)) = Segment::open(&path, &mut damage) {
        let loaded = segment.loaded().expect("it was read before");
        for entry in &footer.entries {
            for entry in loaded.blocks(entry.source, entry.schema, (i64::MIN, i64::MAX)) {
                let data = Data::File(&loaded.file, entry.offset, entry.length);
                let _ = Block::open(data).and_then(|block| block.check());
            }
        }
    }
    let _ = segment::check(&path, &mut damage);
}

/// Writes a log, opens a store on it, reads everything.
///
/// # Panics
/// If the store does not open, or does not open again behind a seal.
pub fn wal(ops: &[WalOp]) -> Recovered {
    let dir = scratch("wal");
    let mut rows = 0;
    {
        let (mut journal, _) =
            Journal::open(&dir.join("wal"), &mut |_, _| ()).expect("a new directory opens");
        for (seq, op) in ops.iter().enumerate() {
            rows += append(&mut journal, op, seq as u64);
        }
        journal.commit().expect("there is room");
    }
    let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir) };
    let (store, mut writer, _) = Store::open(config.clone(), T0_MS).expect("it always opens");
    let found = read(&store);
    // What was recovered can be sealed; a bad time or a foreign row may not stop it.
    let sealed = writer.settle(T0_MS + 3 * 3_600_000);
    drop((store, writer));
    let (store, writer, _) = Store::open(config, T0_MS).expect("it always opens");
    if sealed.is_ok() {
        assert_eq!(read(&store), found, "sealed and opened again");
    }
    drop((store, writer));
    Recovered { rows, found }
}

fn append(journal: &mut Journal, op: &WalOp, seq: u64) -> usize {
    let (kind, body, rows) = match op {
        WalOp::Raw { kind, body } => (kind % 6, body.clone(), body.len()),
        WalOp::Schema { columns, seed } => (wal::SCHEMA, wal::schema(&schema(*columns, *seed)), 0),
        WalOp::Labels { source, pairs } => {
            (wal::LABELS, wal::labels(u128::from(*source), &Labels::new(pairs.clone())), 0)
        }
        WalOp::Row { source, columns, seed, time_s } => {
            let schema = schema(*columns, *seed);
            let values: Vec<u64> = (0..schema.columns.len() as u64).collect();
            let header = Header {
                kind: FrameKind::Row,
                host: HostId(u128::from(*source)),
                boot: BootId(1),
                seq: Seq(seq),
                wall_ns: (T0_MS + i64::from(*time_s) * 1000) * 1_000_000,
                boottime_ns: 0,
                schema: schema.id(),
            };
            let valid = vec![255; values.len().div_ceil(8)];
            let mut slot = [0; FRAME_BYTES_MAX];
            let row = Row { values: &values, valid: &valid, scores: &[] };
            let length = seal_row(&mut slot, &header, &row).expect("a row of few columns fits");
            (wal::FRAME, Bytes::copy_from_slice(&slot[..length]).to_vec(), values.len())
        }
        WalOp::Samples { source, name, samples } => {
            let series = super::head::SeriesName { name: name.clone(), labels: Labels::default() };
            let samples: Vec<(i64, u64)> =
                samples.iter().map(|&(ms, bits)| (T0_MS + i64::from(ms), bits)).collect();
            let bytes = wal::samples(u128::from(*source), &series, &samples);
            (wal::SAMPLES, bytes, samples.len())
        }
        WalOp::Rotate => {
            journal.rotate().expect("there is room");
            return 0;
        }
    };
    journal.append(&[&[kind], &body]).map_or(0, |()| rows)
}

fn schema(columns: u8, seed: u8) -> Schema {
    let columns = usize::from(columns).clamp(1, SECTION_COLUMNS_MAX);
    let column = |n: usize| Column {
        name: format!("m{seed}_{n}"),
        labels: Labels::default(),
        kind: if n.is_multiple_of(2) { Kind::Float } else { Kind::Gauge { scale: 2 } },
    };
    Schema { section: "x".to_owned(), columns: (0..columns).map(column).collect() }
}

fn read(store: &Store) -> usize {
    let range = TimeRange { start_ms: i64::MIN, end_ms: i64::MAX };
    let limits = Limits { series_max: 1 << 20, samples_max: 1 << 30 };
    let parts = store.select(&[], range, &limits).expect("there is no pattern");
    let mut found = 0;
    let mut scratch = Scratch::new(&limits);
    for part in &parts {
        let read = store.scan(part, range, &mut scratch, &mut |_, times, values| {
            assert_eq!(times.len(), values.len());
            assert!(times.is_sorted_by(|a, b| a < b));
            found += times.len();
            Ok(())
        });
        read.expect("what is in memory can be read");
    }
    found
}

/// An empty directory; `scripts/fuzz` has it in memory.
fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("strobe-fuzz-{name}-{}", std::process::id()));
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).expect("the temporary directory can be written");
    dir
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

const T0_MS: i64 = 1_700_000_000_000;
