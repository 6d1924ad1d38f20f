//! What stands in a record of the spool's journal.

use strobe_journal::{Bounds, Position};
use strobe_wire::frame::{self, Header};
use strobe_wire::ids::SchemaId;

/// A record that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Record<'a> {
    /// A frame that opens.
    Frame(Header, &'a [u8]),
    /// A schema's message, for the stream.
    Schema(SchemaId, &'a [u8]),
    /// Everything before this place is acknowledged.
    Mark(Position),
    /// Nothing this version knows.
    Other,
}

impl<'a> Record<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Self {
        let known = match bytes.split_first() {
            Some((&FRAME, frame)) => frame::open(frame).ok().map(|f| Self::Frame(f.header, frame)),
            Some((&SCHEMA, rest)) => rest
                .split_first_chunk()
                .map(|(id, message)| Self::Schema(SchemaId(u64::from_le_bytes(*id)), message)),
            Some((&MARK, rest)) => mark(rest).map(Self::Mark),
            _ => None,
        };
        known.unwrap_or(Self::Other)
    }
}

fn mark(bytes: &[u8]) -> Option<Position> {
    let (file, rest) = bytes.split_first_chunk()?;
    let offset = rest.first_chunk()?;
    Some(Position { file: u64::from_le_bytes(*file), offset: u64::from_le_bytes(*offset) })
}

pub(super) const FRAME: u8 = 1;
pub(super) const SCHEMA: u8 = 2;
pub(super) const MARK: u8 = 3;
/// A schema of 400 columns takes 50 KB as a rule. One that is larger than a record is not kept, and its
/// rows need an agent that still has it. Reading takes 64 KiB, and not longer than it lasts.
pub(super) const BOUNDS: Bounds = Bounds { record_bytes_max: 256 << 10, read_bytes: 64 << 10 };
