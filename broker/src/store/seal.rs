//! Sealing: rows of memory become blocks of a segment, a few sources a tick.
//!
//! A job takes all rows before its cut. A source's rows are encoded and stand in memory as one
//! young block until the segment is synced; only then are they let go of. Rows that come while
//! the job runs, late ones too, are not in it: they wait for the next.

use super::StoreError;
use super::block::{Block, Data, GROUP, Meta, ROWS_MAX};
use super::encode::{Content, LEVEL_SEALED, LEVEL_YOUNG, encode};
use super::head::{Rows, Section, Source, Young};
use super::remote;
use super::segment::{Segment, SegmentWriter};
use super::shared::Shared;
use super::spill::{Body, Spill};
use std::path::PathBuf;
use std::sync::Arc;
use strobe_wire::schema::Kind;

/// A seal that is under way.
#[derive(Debug)]
pub(super) struct SealJob {
    pub(super) cut_ms: i64,
    /// Its number among the seals.
    number: u64,
    wal_through: u64,
    rest: Vec<Arc<Source>>,
    out: SegmentWriter,
    /// (source, schema) of each block in the segment.
    done: Vec<(Arc<Source>, u64)>,
}

impl SealJob {
    pub(super) fn new(
        path: PathBuf,
        cut_ms: i64,
        wal_through: u64,
        shared: &Shared,
    ) -> Result<Self, StoreError> {
        let mut sources = shared.sources();
        // Taken from the end, so that they stand in the file in ascending order.
        sources.sort_by_key(|source| std::cmp::Reverse(source.id));
        let out = SegmentWriter::new(path, 0)?;
        let number = shared.begin_seal();
        Ok(Self { cut_ms, number, wal_through, rest: sources, out, done: Vec::new() })
    }

    /// Seals the next sources; true when none is left.
    pub(super) fn step(&mut self, sources: usize, spill: &Spill) -> Result<bool, StoreError> {
        for _ in 0..sources {
            let Some(source) = self.rest.pop() else { return Ok(true) };
            let mut blocks = Vec::new();
            let labels = {
                let mut state = source.write();
                remote::seal(source.id, &mut state, self.cut_ms, self.number);
                for (&id, section) in &mut state.sections {
                    seal_rows(source.id, id, section, (self.cut_ms, self.number))?;
                    let own = section.young.iter_mut().filter(|young| young.sealed).map(|young| {
                        let body = young.body.clone();
                        if let Body::Memory(bytes) = &young.body {
                            young.body = spill.put(Arc::clone(bytes));
                        }
                        (id, Arc::clone(&section.schema), body)
                    });
                    blocks.extend(own);
                }
                Arc::clone(&state.labels)
            };
            for (id, schema, body) in blocks {
                self.out.block(&labels, &schema, &body.bytes().map_err(corrupt)?)?;
                self.done.push((Arc::clone(&source), id));
            }
        }
        Ok(self.rest.is_empty())
    }

    /// Syncs the segment; `None` if there was nothing to seal. Then `release` lets go of the
    /// rows, after the segment is visible.
    pub(super) fn finish(self) -> Result<(Option<Segment>, Done), StoreError> {
        let done = Done { blocks: self.done };
        let segment = if self.out.is_empty() {
            None
        } else {
            Some(self.out.finish(self.cut_ms, self.wal_through)?)
        };
        Ok((segment, done))
    }

    pub(super) fn wal_through(&self) -> u64 {
        self.wal_through
    }
}

/// The blocks that now lie in a segment.
#[derive(Debug)]
pub(super) struct Done {
    blocks: Vec<(Arc<Source>, u64)>,
}

impl Done {
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Lets go of them.
    pub(super) fn release(self) {
        for (source, schema) in self.blocks {
            if let Some(section) = source.write().sections.get_mut(&schema) {
                section.young.retain(|young| !young.sealed);
            }
        }
    }
}

/// Encodes a section's plain rows into a young block if there are many, and many small young
/// blocks into one: it is smaller, and a reader opens one instead of eight.
pub(super) fn make_young(source: u128, id: u64, section: &mut Section, spill: &Spill, seals: u64) {
    if section.rows.len() < rows_wanted(source, section) {
        return;
    }
    let before = section.before.count(seals, section.rows.len());
    let mut rows = std::mem::replace(&mut section.rows, Rows::new(section.schema.columns.len()));
    section.before.clear();
    let mut after = seals;
    if 0 < before {
        // A seal began among them: a block is of rows before that, or of rows after.
        section.rows = rows.split_off(before);
        after = seals.saturating_sub(1);
    }
    push_young(source, id, section, (rows, after), spill);
    let small =
        |young: &&Young| !young.sealed && young.rows < YOUNG_ROWS * MERGED && young.after == after;
    if section.young.iter().rev().take_while(small).count() < MERGED {
        return;
    }
    let first = section.young.len() - MERGED;
    let mut rows = Rows::new(section.schema.columns.len());
    for young in section.young.iter().skip(first) {
        // What was encoded in memory decodes; if not, it is left as it is and the seal says so.
        let Ok(more) = decode_body(&young.body) else { return };
        rows.append(more);
    }
    section.young.truncate(first);
    push_young(source, id, section, (rows, after), spill);
}

/// A source's first young block is shorter, each by another length: else those that came together
/// would all hold most, and be encoded, in the same second for ever.
fn rows_wanted(source: u128, section: &Section) -> usize {
    if !section.young.is_empty() {
        return YOUNG_ROWS;
    }
    let [byte, ..] = source.to_le_bytes();
    YOUNG_ROWS / 3 + usize::from(byte) % (YOUNG_ROWS * 2 / 3)
}

/// `rows` are some and how many seals had begun when they came.
fn push_young(source: u128, id: u64, section: &mut Section, rows: (Rows, u64), spill: &Spill) {
    let mut young = encode_rows(source, id, section, rows.0, LEVEL_YOUNG);
    young.after = rows.1;
    if let Body::Memory(bytes) = young.body {
        young.body = spill.put(bytes);
    }
    section.young.push(young);
}

/// Makes one block of everything that came before the seal began and lies before its cut, and
/// plain rows of the rest that came before.
fn seal_rows(
    source: u128,
    id: u64,
    section: &mut Section,
    (cut_ms, seal): (i64, u64),
) -> Result<(), StoreError> {
    if section.own_times {
        return Ok(());
    }
    let mut before = Rows::new(section.schema.columns.len());
    let mut after = before.clone();
    for young in section.young.iter().filter(|young| young.after < seal) {
        let rows = decode_body(&young.body).map_err(corrupt)?;
        rows.split(cut_ms, &mut before, &mut after);
    }
    let count = section.before.count(seal, section.rows.len());
    let since = section.rows.split_off(count);
    section.rows.split(cut_ms, &mut before, &mut after);
    section.young.retain(|young| seal <= young.after);
    after.append(since);
    section.rows = after;
    section.before.clear();
    // A block's rows are bounded; what a flood of late rows leaves over is further blocks.
    before.sort();
    for rows in before.pieces(ROWS_MAX) {
        let block = encode_rows(source, id, section, rows, LEVEL_SEALED);
        section.young.push(Young { sealed: true, ..block });
    }
    Ok(())
}

fn encode_rows(source: u128, id: u64, section: &Section, mut rows: Rows, level: i32) -> Young {
    rows.sort();
    let kinds: Vec<Kind> = section.schema.columns.iter().map(|column| column.kind).collect();
    let meta = Meta { source, schema: id, step_ms: 0 };
    Young {
        number: Young::next(),
        first_ms: rows.times.first().copied().unwrap_or(i64::MAX),
        last_ms: rows.times.last().copied().unwrap_or(i64::MIN),
        rows: rows.len(),
        after: 0,
        sealed: false,
        body: Body::Memory(Arc::new(encode(&meta, Content::Rows(&rows), &kinds, level))),
    }
}

fn decode_body(body: &Body) -> Result<Rows, String> {
    decode_rows(&body.bytes()?)
}

fn corrupt(why: String) -> StoreError {
    StoreError::Corrupt { path: PathBuf::from("young"), offset: 0, why }
}

pub(super) fn decode_rows(bytes: &[u8]) -> Result<Rows, String> {
    let block = Block::open(Data::Memory(bytes))?;
    let (times, valid) = (block.times()?, block.validity()?);
    let mut rows = Rows::blank(block.columns, times.clone());
    for index in 0..block.columns.div_ceil(GROUP) {
        let group = block.group(index)?;
        for column in index * GROUP..block.columns.min((index + 1) * GROUP) {
            let mut row = 0;
            block.column(&group, column, &times, &valid, &mut |time, raw| {
                // Ascending in both, so one walk.
                while times.get(row).is_some_and(|at| *at != time) {
                    row += 1;
                }
                rows.set(row, column, raw);
            })?;
        }
    }
    Ok(rows)
}

/// Rows kept plain: 200 columns of 1,000 hosts are 48 MB at most, 24 MB on average.
const YOUNG_ROWS: usize = 30;
/// Young blocks that become one.
const MERGED: usize = 8;
