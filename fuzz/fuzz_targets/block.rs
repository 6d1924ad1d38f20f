//! HB1 blocks and the segments that hold them: any bytes; parts of any content in a block whose
//! checksums are right; rows that are encoded and must come back; segment files of any chunks.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use strobe_broker::fuzz::{self, BlockParts};

#[derive(Arbitrary, Debug)]
struct Made {
    rows: u16,
    columns: u8,
    own: bool,
    times: (i64, i64),
    /// 0: times, 1: validity, 2..: groups; bytes and bits.
    parts: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Arbitrary, Debug)]
struct Rows {
    columns: u8,
    kinds: Vec<u8>,
    /// Distances in ms, values.
    rows: Vec<(u16, Vec<Option<u64>>)>,
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let mut rest = Unstructured::new(rest);
    match kind % 4 {
        0 => fuzz::block(rest.take_rest()),
        1 => {
            if let Ok(Made { rows, columns, own, times, parts }) = Made::arbitrary(&mut rest) {
                fuzz::block_of(&BlockParts { rows, columns, own, times, parts });
            }
        }
        2 => {
            if let Ok(Rows { columns, kinds, rows }) = Rows::arbitrary(&mut rest) {
                fuzz::block_round_trip(columns, &kinds, &rows);
            }
        }
        _ => {
            if let Ok(chunks) = Vec::<(u8, bool, Vec<u8>)>::arbitrary(&mut rest) {
                fuzz::segment(&chunks);
            }
        }
    }
});
