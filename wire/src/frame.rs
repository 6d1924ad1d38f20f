//! The frame: a fixed header and a payload, sealed once and opened by one door.
//!
//! ```text
//! offset  0  magic "SFR1"            4
//!         4  version                 1   (1)
//!         5  kind                    1   [`FrameKind`]
//!         6  flags                   2   (0)
//!         8  length, header included 4
//!        12  CRC32C of all the rest  4   (bytes 0..12 and 16..length)
//!        16  host id                16
//!        32  boot id                16
//!        48  seq                     8
//!        56  wall time, ns           8   since 1970-01-01 UTC, signed
//!        64  boot time, ns           8   CLOCK_BOOTTIME: the order of rows when wall time steps
//!        72  schema id               8   of a row or a burst
//!        80  payload                     rkyv, little-endian, unaligned
//! ```
//!
//! All integers are little-endian. [`open`] checks length, CRC, kind and the payload's structure
//! (bytecheck): nothing behind it checks again. The CRC is not optional: 92 % of randomly
//! corrupted rows pass bytecheck (measured, DESIGN §2). It is most of what opening costs: of 90 ns
//! for 200 columns 80 were the CRC instruction's (8 bytes in 3 cycles, three at a time); by carry-less
//! multiplication it is 47 ns in all, and sealing 77 instead of 113. That takes 0.7 MB of tables (the
//! feature `fast-crc`, a broker's); an agent, which seals a dozen frames a second, uses the instruction.

use crate::burst;
use crate::ids::{BootId, HostId, SchemaId, Seq};
use crate::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, SECTION_COLUMNS_MAX};
use rkyv::api::low::LowSerializer;
use rkyv::rancor::Failure;
use rkyv::ser::allocator::SubAllocator;
use rkyv::ser::writer::Buffer;
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Deserialize, Serialize};
use std::mem::MaybeUninit;

/// Who, when and what: the fixed part of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the payload is.
    pub kind: FrameKind,
    /// The host that made it.
    pub host: HostId,
    /// The agent's life it was made in.
    pub boot: BootId,
    /// Its place in that life.
    pub seq: Seq,
    /// Wall time in ns since the epoch.
    pub wall_ns: i64,
    /// CLOCK_BOOTTIME in ns.
    pub boottime_ns: u64,
    /// The schema of a row; 0 otherwise.
    pub schema: SchemaId,
}

/// What a frame's payload is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// One tick of one section ([`Row`]).
    Row = 1,
    /// Something that happened ([`Event`]).
    Event = 2,
    /// What was dropped and why ([`Loss`]).
    Loss = 3,
    /// Samples of a hundredth of a second ([`Burst`]). A broker of before there were any refuses it,
    /// so brokers are upgraded first.
    Burst = 4,
}

/// One tick of one section.
#[derive(Archive, Serialize, Debug)]
pub struct Row<'a> {
    /// A column's 64 bits each, in the schema's order.
    #[rkyv(with = InlineAsBox)]
    pub values: &'a [u64],
    /// Bit `i % 8` of byte `i / 8` is set where column `i` has a value.
    #[rkyv(with = InlineAsBox)]
    pub valid: &'a [u8],
    /// An anomaly score a column, 0 to 255, or none at all ([`crate::score`]).
    #[rkyv(with = InlineAsBox)]
    pub scores: &'a [u8],
}

/// A block of samples of one section; the header's times are the first one's.
#[derive(Archive, Serialize, Debug)]
pub struct Burst<'a> {
    /// Columns of its schema.
    pub columns: u16,
    /// How many samples.
    pub samples: u16,
    /// Them, packed ([`crate::burst`]).
    #[rkyv(with = InlineAsBox)]
    pub packed: &'a [u8],
}

/// Something that happened on the host: a clock step, a schema change, a source that failed.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[rkyv(derive(Debug))]
pub struct Event {
    /// One word: `clock_step`, `start`, `stop`, `source`, …
    pub name: String,
    /// A sentence for people.
    pub text: String,
}

/// An entry of the loss ledger: frames `first..=last` of this boot will never come.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[rkyv(derive(Debug))]
pub struct Loss {
    /// Why: `ring_full`, `oversize`, …
    pub reason: String,
    /// First sequence number lost.
    pub first: u64,
    /// Last sequence number lost.
    pub last: u64,
    /// Wall time in ns of the first loss.
    pub from_ns: i64,
    /// Wall time in ns of the last loss.
    pub to_ns: i64,
}

/// A frame that passed [`open`]. It borrows the bytes it was opened on.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The fixed part.
    pub header: Header,
    /// The checked payload.
    pub payload: Payload<'a>,
}

/// A checked payload.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// See [`Row`].
    Row(RowView<'a>),
    /// See [`Event`].
    Event(&'a ArchivedEvent),
    /// See [`Loss`].
    Loss(&'a ArchivedLoss),
    /// See [`Burst`].
    Burst(BurstView<'a>),
}

/// A row as it lies in the frame: read without a copy.
#[derive(Clone, Copy)]
pub struct RowView<'a>(&'a ArchivedRow<'a>);

/// A burst as it lies in the frame; it was unpacked once to see that it can be.
#[derive(Clone, Copy, Debug)]
pub struct BurstView<'a> {
    wall_ns: i64,
    columns: u16,
    samples: u16,
    packed: &'a [u8],
}

/// Why bytes are not a frame, or a frame could not be sealed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Shorter than a header, or its length field disagrees with the bytes at hand.
    #[error("a frame of {found} bytes says it has {claimed}")]
    Length {
        /// Bytes at hand.
        found: usize,
        /// Bytes claimed.
        claimed: usize,
    },
    /// The magic or the version is another.
    #[error("not a frame: magic {magic:#010x}, version {version}")]
    Magic {
        /// The first four bytes, little-endian.
        magic: u32,
        /// The fifth byte.
        version: u8,
    },
    /// The checksum differs.
    #[error("frame CRC32C is {found:#010x}, {wanted:#010x} was sent")]
    Crc {
        /// Computed here.
        found: u32,
        /// As sent.
        wanted: u32,
    },
    /// A kind that this version does not know.
    #[error("frame kind {0} is not known to this version")]
    Kind(u8),
    /// The payload's structure is broken.
    #[error("the frame's payload is malformed")]
    Payload,
    /// A row whose validity or scores do not match its values, or with too many columns.
    #[error("a row of {values} values has {valid} validity bytes and {scores} scores")]
    Shape {
        /// Values.
        values: usize,
        /// Validity bytes.
        valid: usize,
        /// Scores.
        scores: usize,
    },
    /// The buffer is too small for the frame.
    #[error("the frame does not fit into {room} bytes")]
    Room {
        /// Bytes there were.
        room: usize,
    },
}

/// Seals a row into `out` (a claimed ring slot) and returns the frame's length. Allocates nothing.
///
/// # Errors
/// [`FrameError::Shape`] or [`FrameError::Room`]; `out` holds no frame then.
pub fn seal_row(out: &mut [u8], header: &Header, row: &Row<'_>) -> Result<usize, FrameError> {
    assert!(header.kind == FrameKind::Row);
    shape(row.values.len(), row.valid.len(), row.scores.len())?;
    seal_in_place(out, header, row)
}

/// Seals a burst into `out` and returns the frame's length. Allocates nothing.
///
/// # Errors
/// [`FrameError::Room`]; `out` holds no frame then.
pub fn seal_burst(out: &mut [u8], header: &Header, burst: &Burst<'_>) -> Result<usize, FrameError> {
    assert!(header.kind == FrameKind::Burst);
    seal_in_place(out, header, burst)
}

/// Seals an event.
///
/// # Errors
/// [`FrameError::Room`] if it is larger than [`FRAME_BYTES_MAX`].
pub fn seal_event(header: &Header, event: &Event) -> Result<Vec<u8>, FrameError> {
    assert!(header.kind == FrameKind::Event);
    let bytes = rkyv::to_bytes::<Failure>(event).map_err(|_| FrameError::Payload)?;
    seal_payload(header, &bytes)
}

/// Seals an entry of the loss ledger.
///
/// # Errors
/// [`FrameError::Room`] if it is larger than [`FRAME_BYTES_MAX`].
pub fn seal_loss(header: &Header, loss: &Loss) -> Result<Vec<u8>, FrameError> {
    assert!(header.kind == FrameKind::Loss);
    let bytes = rkyv::to_bytes::<Failure>(loss).map_err(|_| FrameError::Payload)?;
    seal_payload(header, &bytes)
}

/// The only door: checks everything about `bytes` that can be checked without knowing the schema.
///
/// # Errors
/// The first thing found wrong.
pub fn open(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let header = open_header(bytes)?;
    let payload = bytes.get(FRAME_HEADER_BYTES..).ok_or(FrameError::Payload)?;
    let payload = match header.kind {
        FrameKind::Row => {
            let row = rkyv::access::<ArchivedRow<'_>, Failure>(payload)
                .map_err(|_| FrameError::Payload)?;
            shape(row.values.len(), row.valid.len(), row.scores.len())?;
            Payload::Row(RowView(row))
        }
        FrameKind::Event => Payload::Event(
            rkyv::access::<ArchivedEvent, Failure>(payload).map_err(|_| FrameError::Payload)?,
        ),
        FrameKind::Loss => Payload::Loss(
            rkyv::access::<ArchivedLoss, Failure>(payload).map_err(|_| FrameError::Payload)?,
        ),
        FrameKind::Burst => Payload::Burst(BurstView::open(&header, payload)?),
    };
    Ok(Frame { header, payload })
}

impl Payload<'_> {
    /// Columns of its schema, if it has one.
    #[must_use]
    pub fn columns(&self) -> Option<usize> {
        match self {
            Self::Row(row) => Some(row.len()),
            Self::Burst(burst) => Some(burst.columns()),
            Self::Event(_) | Self::Loss(_) => None,
        }
    }
}

impl<'a> RowView<'a> {
    /// Columns of the row.
    #[must_use]
    pub fn len(self) -> usize {
        self.0.values.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0.values.is_empty()
    }

    /// Raw bits and validity of each column, in order.
    pub fn values(self) -> impl ExactSizeIterator<Item = Option<u64>> + 'a {
        let row = self.0;
        row.values.iter().enumerate().map(move |(index, value)| {
            let byte = row.valid.as_ref().get(index / 8).copied().unwrap_or(0);
            (byte >> (index % 8) & 1 == 1).then(|| value.to_native())
        })
    }

    /// The raw bits of column `index`, if it is there and valid.
    #[must_use]
    pub fn value(self, index: usize) -> Option<u64> {
        let byte = self.0.valid.as_ref().get(index / 8).copied().unwrap_or(0);
        let value = self.0.values.as_ref().get(index)?;
        (byte >> (index % 8) & 1 == 1).then(|| value.to_native())
    }

    /// The validity bitmap.
    #[must_use]
    pub fn valid(self) -> &'a [u8] {
        &self.0.valid
    }

    /// Anomaly scores: as many as values, or none.
    #[must_use]
    pub fn scores(self) -> &'a [u8] {
        &self.0.scores
    }
}

impl<'a> BurstView<'a> {
    fn open(header: &Header, payload: &'a [u8]) -> Result<Self, FrameError> {
        let burst = rkyv::access::<ArchivedBurst<'_>, Failure>(payload);
        let burst = burst.map_err(|_| FrameError::Payload)?;
        let (columns, samples) = (burst.columns.to_native(), burst.samples.to_native());
        let packed: &[u8] = burst.packed.as_ref();
        burst::unpack(packed, columns.into(), samples, |_, _, _| ()).ok_or(FrameError::Payload)?;
        Ok(Self { wall_ns: header.wall_ns, columns, samples, packed })
    }

    /// Columns of each sample.
    #[must_use]
    pub fn columns(self) -> usize {
        usize::from(self.columns)
    }

    /// Samples.
    #[must_use]
    pub fn samples(self) -> usize {
        usize::from(self.samples)
    }

    /// Wall time in ns, values and validity of each sample, in order.
    pub fn each(self, mut visit: impl FnMut(i64, &[u64], &[u8])) {
        let visit = |at_us: u64, values: &[u64], valid: &[u8]| {
            let after_ns = i64::try_from(at_us.saturating_mul(1000)).unwrap_or(i64::MAX);
            visit(self.wall_ns.saturating_add(after_ns), values, valid);
        };
        let whole = burst::unpack(self.packed, self.columns(), self.samples, visit);
        debug_assert!(whole.is_some(), "it was unpacked when it was opened");
    }
}

impl std::fmt::Debug for RowView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.values()).finish()
    }
}

fn shape(values: usize, valid: usize, scores: usize) -> Result<(), FrameError> {
    let fits = 0 < values && values <= SECTION_COLUMNS_MAX;
    if !fits || valid != values.div_ceil(8) || (scores != 0 && scores != values) {
        return Err(FrameError::Shape { values, valid, scores });
    }
    Ok(())
}

/// Serializes behind the header's place, then the header.
fn seal_in_place<T>(out: &mut [u8], header: &Header, content: &T) -> Result<usize, FrameError>
where
    T: for<'a> Serialize<LowSerializer<Buffer<'a>, SubAllocator<'a>, Failure>>,
{
    let room = out.len();
    let Some(payload) = out.get_mut(FRAME_HEADER_BYTES..) else {
        return Err(FrameError::Room { room });
    };
    let mut scratch = [MaybeUninit::uninit(); 64];
    let written = rkyv::api::low::to_bytes_in_with_alloc::<_, _, Failure>(
        content,
        Buffer::from(payload),
        SubAllocator::new(&mut scratch),
    )
    .map_err(|_| FrameError::Room { room })?
    .len();
    Ok(finish(out, header, written))
}

fn seal_payload(header: &Header, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    if FRAME_BYTES_MAX - FRAME_HEADER_BYTES < payload.len() {
        return Err(FrameError::Room { room: FRAME_BYTES_MAX });
    }
    let mut out = vec![0; FRAME_HEADER_BYTES + payload.len()];
    out[FRAME_HEADER_BYTES..].copy_from_slice(payload);
    finish(&mut out, header, payload.len());
    Ok(out)
}

/// Writes the header before a payload of `payload` bytes; returns the frame's length.
fn finish(out: &mut [u8], header: &Header, payload: usize) -> usize {
    let length = FRAME_HEADER_BYTES + payload;
    let claimed = u32::try_from(length).expect("a frame is at most FRAME_BYTES_MAX");
    out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[4] = VERSION;
    out[5] = header.kind as u8;
    out[6..8].fill(0);
    out[8..12].copy_from_slice(&claimed.to_le_bytes());
    out[16..32].copy_from_slice(&header.host.0.to_le_bytes());
    out[32..48].copy_from_slice(&header.boot.0.to_le_bytes());
    out[48..56].copy_from_slice(&header.seq.0.to_le_bytes());
    out[56..64].copy_from_slice(&header.wall_ns.to_le_bytes());
    out[64..72].copy_from_slice(&header.boottime_ns.to_le_bytes());
    out[72..80].copy_from_slice(&header.schema.0.to_le_bytes());
    let crc = crc(&out[..length]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    length
}

fn open_header(bytes: &[u8]) -> Result<Header, FrameError> {
    let Some((head, _)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(FrameError::Length { found: bytes.len(), claimed: FRAME_HEADER_BYTES });
    };
    let magic = u32::from_le_bytes(part(head, 0));
    if magic != MAGIC || head[4] != VERSION {
        return Err(FrameError::Magic { magic, version: head[4] });
    }
    let claimed = u32::from_le_bytes(part(head, 8)) as usize;
    if claimed != bytes.len() || FRAME_BYTES_MAX < claimed {
        return Err(FrameError::Length { found: bytes.len(), claimed });
    }
    let wanted = u32::from_le_bytes(part(head, 12));
    let found = crc(bytes);
    if wanted != found {
        return Err(FrameError::Crc { found, wanted });
    }
    Ok(Header {
        kind: match head[5] {
            1 => FrameKind::Row,
            2 => FrameKind::Event,
            3 => FrameKind::Loss,
            4 => FrameKind::Burst,
            other => return Err(FrameError::Kind(other)),
        },
        host: HostId(u128::from_le_bytes(part(head, 16))),
        boot: BootId(u128::from_le_bytes(part(head, 32))),
        seq: Seq(u64::from_le_bytes(part(head, 48))),
        wall_ns: i64::from_le_bytes(part(head, 56)),
        boottime_ns: u64::from_le_bytes(part(head, 64)),
        schema: SchemaId(u64::from_le_bytes(part(head, 72))),
    })
}

fn part<const N: usize>(head: &[u8; FRAME_HEADER_BYTES], from: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&head[from..from + N]);
    out
}

fn crc(bytes: &[u8]) -> u32 {
    let (front, rest) = bytes.split_at(12);
    checksum(front, rest.get(4..).unwrap_or(&[]))
}

#[cfg(feature = "fast-crc")]
fn checksum(front: &[u8], rest: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(front);
    digest.update(rest);
    u32::try_from(digest.finalize()).expect("a CRC of 32 bits")
}

#[cfg(not(feature = "fast-crc"))]
fn checksum(front: &[u8], rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(front), rest)
}

const MAGIC: u32 = u32::from_le_bytes(*b"SFR1");
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: FrameKind) -> Header {
        Header {
            kind,
            host: HostId(7),
            boot: BootId(9),
            seq: Seq(3),
            wall_ns: -5,
            boottime_ns: 11,
            schema: SchemaId(13),
        }
    }

    fn row_frame() -> Vec<u8> {
        let mut slot = [0; FRAME_BYTES_MAX];
        let row = Row { values: &[1, 2, u64::MAX], valid: &[0b101], scores: &[0, 9, 255] };
        let length = seal_row(&mut slot, &header(FrameKind::Row), &row).unwrap();
        slot[..length].to_vec()
    }

    #[test]
    fn what_is_sealed_is_what_is_opened() {
        let bytes = row_frame();
        let frame = open(&bytes).unwrap();
        assert_eq!(frame.header, header(FrameKind::Row));
        let Payload::Row(row) = frame.payload else { panic!("a row was sealed") };
        assert_eq!(row.values().collect::<Vec<_>>(), [Some(1), None, Some(u64::MAX)]);
        assert_eq!(row.scores(), [0, 9, 255]);
        assert_eq!((row.value(0), row.value(1), row.value(3)), (Some(1), None, None));
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, B.4, bit by bit: what is on disk was checked so whatever computes it today.
        let bytes = row_frame();
        let mut sum = u32::MAX;
        for byte in bytes[..12].iter().chain(&bytes[16..]) {
            sum ^= u32::from(*byte);
            for _ in 0..8 {
                sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
            }
        }
        assert_eq!(bytes[12..16], (!sum).to_le_bytes());
    }

    #[test]
    fn every_flipped_bit_is_caught() {
        let bytes = row_frame();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_right_crc_over_a_wrong_row_is_still_refused() {
        let bytes = row_frame();
        for at in FRAME_HEADER_BYTES..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] = bad[at].wrapping_add(0x55);
            let sum = crc(&bad);
            bad[12..16].copy_from_slice(&sum.to_le_bytes());
            if let Ok(Frame { payload: Payload::Row(row), .. }) = open(&bad) {
                assert_eq!(row.values().count(), row.len());
            }
        }
    }

    #[test]
    fn the_largest_row_fits_a_slot_and_one_column_more_is_refused() {
        let mut slot = [0; FRAME_BYTES_MAX];
        let values = [0; SECTION_COLUMNS_MAX + 1];
        let row = |columns: usize| Row {
            values: &values[..columns],
            valid: &[255; 51][..columns.div_ceil(8)],
            scores: &[1; SECTION_COLUMNS_MAX + 1][..columns],
        };
        assert!(seal_row(&mut slot, &header(FrameKind::Row), &row(SECTION_COLUMNS_MAX)).is_ok());
        let refused = seal_row(&mut slot, &header(FrameKind::Row), &row(SECTION_COLUMNS_MAX + 1));
        assert!(matches!(refused, Err(FrameError::Shape { .. })));
        let short = seal_row(&mut slot[..100], &header(FrameKind::Row), &row(50));
        assert_eq!(short, Err(FrameError::Room { room: 100 }));
    }

    #[test]
    fn losses_and_events_travel() {
        let loss = Loss { reason: "ring_full".into(), first: 4, last: 9, from_ns: 1, to_ns: 2 };
        let bytes = seal_loss(&header(FrameKind::Loss), &loss).unwrap();
        let Payload::Loss(back) = open(&bytes).unwrap().payload else { panic!("a loss") };
        assert_eq!(rkyv::deserialize::<Loss, Failure>(back), Ok(loss));
    }

    #[test]
    fn bursts_travel_and_broken_ones_do_not() {
        let mut packer = burst::Packer::new(2);
        packer.push(500, &[Some(7), None]).unwrap();
        packer.push(10_500, &[Some(8), Some(1)]).unwrap();
        let sealed = |samples| {
            let mut slot = [0; FRAME_BYTES_MAX];
            let content = Burst { columns: 2, samples, packed: packer.packed() };
            let length = seal_burst(&mut slot, &header(FrameKind::Burst), &content).unwrap();
            slot[..length].to_vec()
        };
        let bytes = sealed(2);
        let Payload::Burst(view) = open(&bytes).unwrap().payload else { panic!("a burst") };
        let mut seen = Vec::new();
        view.each(|wall_ns, values, valid| seen.push((wall_ns, values.to_vec(), valid[0])));
        assert_eq!(seen, [(-5, vec![7, 0], 1), (9_999_995, vec![8, 1], 3)]);
        assert_eq!(open(&sealed(3)).unwrap_err(), FrameError::Payload);
    }

    #[test]
    fn the_fullest_burst_fits_a_slot() {
        let packed = [0; burst::BURST_BYTES_MAX];
        let content = Burst { columns: 1, samples: 1, packed: &packed };
        let mut slot = [0; FRAME_BYTES_MAX];
        assert!(seal_burst(&mut slot, &header(FrameKind::Burst), &content).is_ok());
    }
}
