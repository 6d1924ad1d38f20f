//! What stands in a WAL record: a kind byte and a body.
//!
//! Every WAL file stands alone: the schemas and labels that its rows need are written into it
//! before them, so that a file can be removed without a look at the others.

use super::head::SeriesName;
use super::segment::pack;
use rkyv::rancor::Failure;
use rkyv::{Archive, Deserialize, Serialize};
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

/// `None` for what this version does not know.
pub(super) fn read(bytes: &[u8]) -> Option<Record<'_>> {
    let (&kind, body) = bytes.split_first()?;
    match kind {
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
