//! Micro-benchmarks: `cargo bench -p strobe-bench`. What they share is here: the row of 1 KiB
//! that every queue carries.

use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};

/// Columns of the row: 80 header + 100 × 8 + 13 + 100 + 24 = 1,017 bytes sealed.
pub const COLUMNS: usize = 100;

/// Bytes of the sealed row, rounded up: an element of the queues that copy. The ring's slots are
/// 4 KiB, so this favours the rivals.
pub const ROW_BYTES: usize = 1024;

/// Seals row `seq` into `out`, as the sampler does, and returns its length.
#[must_use]
pub fn seal(out: &mut [u8], seq: u64) -> usize {
    let header = Header {
        kind: FrameKind::Row,
        host: HostId(1),
        boot: BootId(2),
        seq: Seq(seq),
        wall_ns: 3,
        boottime_ns: 4,
        schema: SchemaId(5),
    };
    let mut values = [seq; COLUMNS];
    values[COLUMNS - 1] = !seq;
    let row = Row { values: &values, valid: &[0xff; COLUMNS.div_ceil(8)], scores: &[9; COLUMNS] };
    seal_row(out, &header, &row).unwrap_or(0)
}

/// What a consumer looks at: the sequence number and the last byte, so that the row really comes
/// over.
#[must_use]
pub fn look(frame: &[u8]) -> u64 {
    let seq =
        frame.get(48..56).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    seq ^ frame.last().map_or(0, |byte| u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_is_a_kibibyte() {
        let mut out = [0; ROW_BYTES];
        let length = seal(&mut out, 1);
        assert_eq!(length, 1017);
        assert!(strobe_wire::frame::open(&out[..length]).is_ok());
    }
}
