//! What stands in a WAL record: a kind byte and a body.
//!
//! Every WAL file stands alone: the schemas and labels that its rows need are written into it
//! before them, so that a file can be removed without a look at the others.

use super::head::SeriesName;
use super::segment::pack;
use crate::class::Durability;
use rkyv::rancor::Failure;
use rkyv::{Archive, Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use strobe_journal::Position;
use strobe_wire::schema::{Labels, Schema};

/// A record read back.
#[derive(Debug)]
pub(super) enum Record<'a> {
    Schema(Schema),
    Labels(u128, Labels),
    Frame(&'a [u8]),
    Samples(Samples),
}

/// Samples of one remote-write series.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Samples {
    pub(super) source: u128,
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) samples: Vec<(i64, u64)>,
}

/// Where in the WAL the records are that Redis has to have too: all of them are between two places.
#[derive(Debug, Default)]
pub(super) struct Copied {
    range: Mutex<Option<(Position, Position)>>,
}

impl Copied {
    /// Some are between these.
    pub(super) fn note(&self, from: Position, to: Position) {
        let mut range = self.range.lock().unwrap_or_else(PoisonError::into_inner);
        *range = Some((range.map_or(from, |range| range.0.min(from)), to));
    }

    /// No record is behind this.
    pub(super) fn end(&self, to: Position) {
        let mut range = self.range.lock().unwrap_or_else(PoisonError::into_inner);
        *range = range.map(|(from, _)| (from, to));
    }

    /// The places, if there are any records.
    pub(super) fn range(&self) -> Option<(Position, Position)> {
        *self.range.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn schema(schema: &Schema) -> Vec<u8> {
    pack(schema)
}

pub(super) fn labels(source: u128, labels: &Labels) -> Vec<u8> {
    pack(&(source, labels.clone()))
}

pub(super) fn samples(source: u128, series: &SeriesName, samples: &[(i64, u64)]) -> Vec<u8> {
    pack(&Samples {
        source,
        name: series.name.clone(),
        labels: series.labels.clone(),
        samples: samples.to_vec(),
    })
}

/// Whether its row is acknowledged only when Redis has this record.
pub(super) fn is_copied(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|kind| kind & COPIED != 0)
}

/// The kind of a record of this class.
pub(super) fn kind(kind: u8, class: Durability) -> u8 {
    if class.is_copied() { kind | COPIED } else { kind }
}

/// `None` for what this version does not know.
pub(super) fn read(bytes: &[u8]) -> Option<Record<'_>> {
    let (&kind, body) = bytes.split_first()?;
    match kind & !COPIED {
        SCHEMA => rkyv::from_bytes::<_, Failure>(body).ok().map(Record::Schema),
        LABELS => rkyv::from_bytes::<(u128, Labels), Failure>(body)
            .ok()
            .map(|(source, labels)| Record::Labels(source, labels)),
        FRAME => Some(Record::Frame(body)),
        SAMPLES => rkyv::from_bytes::<_, Failure>(body).ok().map(Record::Samples),
        _ => None,
    }
}

pub(super) const SCHEMA: u8 = 1;
pub(super) const LABELS: u8 = 2;
pub(super) const FRAME: u8 = 3;
pub(super) const SAMPLES: u8 = 4;
/// Beside the kind, of a frame or samples that Redis has to have too: `durability = "wal+redis"`.
const COPIED: u8 = 0x80;
