//! Micro-benchmarks: `cargo bench -p strobe-bench`. What they share is here: the row of 1 KiB
//! that every queue carries.

use strobe_wire::frame::{FrameKind, Header, Row, open, seal_row};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};

/// Columns of the row: 80 header + 100 × 8 + 13 + 100 + 24 = 1,017 bytes sealed.
pub const COLUMNS: usize = 100;

/// Bytes of the sealed row.
pub const SEALED_BYTES: usize = 1017;

/// The same, rounded up: an element of the queues that copy. The ring's slots are
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

/// What a consumer does with a row: opens it, as the uplink and the broker do, which reads every
/// byte of it (CRC) and checks its structure. 0 is no row.
#[must_use]
pub fn look(frame: &[u8]) -> u64 {
    open(frame).map_or(0, |frame| frame.header.seq.0 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_is_a_kibibyte() {
        let mut out = [0; ROW_BYTES];
        let length = seal(&mut out, 1);
        assert_eq!(length, SEALED_BYTES);
        assert_eq!(look(&out[..length]), 2);
        out[500] ^= 1;
        assert_eq!(look(&out[..length]), 0);
    }
}
