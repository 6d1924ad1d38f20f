//! What a store makes of a log of anything: records of every kind, right and wrong, in any order; it
//! always opens, and everything in it can be asked for. What becomes of a broker's own log: `wal`.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use strobe_broker::fuzz::{Recovered, WalOp};

fuzz_target!(|data: &[u8]| {
    let mut rest = Unstructured::new(data);
    let mut ops = Vec::new();
    while ops.len() < 64 && !rest.is_empty() {
        let Ok(op) = Op::arbitrary(&mut rest) else { break };
        ops.push(op.into());
    }
    let Recovered { rows, found } = strobe_broker::fuzz::wal(&ops);
    assert!(found <= rows, "{found} samples of {rows}");
});

#[derive(Arbitrary, Debug)]
enum Op {
    Raw { kind: u8, body: Vec<u8> },
    Schema { columns: u8, seed: u8 },
    Labels { source: u8, pairs: Vec<(String, String)> },
    Row { source: u8, columns: u8, seed: u8, time_s: u16 },
    Samples { source: u8, name: String, samples: Vec<(u32, u64)> },
    Rotate,
}

impl From<Op> for WalOp {
    fn from(op: Op) -> Self {
        match op {
            Op::Raw { kind, body } => Self::Raw { kind, body },
            Op::Schema { columns, seed } => Self::Schema { columns: columns % 4, seed: seed % 2 },
            Op::Labels { source, pairs } => Self::Labels { source, pairs },
            // Few hosts, schemas and times, so that they meet.
            Op::Row { source, columns, seed, time_s } => Self::Row {
                source: source % 3,
                columns: columns % 4,
                seed: seed % 2,
                time_s: time_s % 64,
            },
            // The door lets in a week; nothing older is in a log.
            Op::Samples { source, name, samples } => Self::Samples {
                source: source % 3,
                name,
                samples: samples
                    .into_iter()
                    .map(|(ms, bits)| (if ms % 2 == 0 { ms % 64 } else { ms % 604_800_000 }, bits))
                    .collect(),
            },
            Op::Rotate => Self::Rotate,
        }
    }
}
