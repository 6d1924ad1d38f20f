//! `frame::open`: any bytes, and frames that were sealed here, changed, and given a right checksum,
//! so that what stands behind the checksum is reached.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use strobe_wire::frame::{self, Event, FrameKind, Header, Loss, Payload, Row};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;

#[derive(Arbitrary, Debug)]
struct Case {
    host: u128,
    seq: u64,
    wall_ns: i64,
    schema: u64,
    values: Vec<u64>,
    valid: Vec<u8>,
    scores: Vec<u8>,
    changes: Vec<Change>,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Set { at: u16, to: u8 },
    Cut { to: u16 },
    Add { bytes: Vec<u8> },
}

const LOSS: Loss = Loss { reason: String::new(), first: 1, last: 2, from_ns: 3, to_ns: 4 };

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 2 {
        0 => look(rest),
        _ => {
            if let Ok(case) = Case::arbitrary(&mut Unstructured::new(rest)) {
                sealed(&case);
            }
        }
    }
});

/// Everything that is done with a frame that opened.
fn look(bytes: &[u8]) {
    let Ok(frame) = frame::open(bytes) else { return };
    match frame.payload {
        Payload::Row(row) => {
            let values: Vec<Option<u64>> = row.values().collect();
            assert_eq!(values.len(), row.len());
            for (index, value) in values.iter().enumerate() {
                assert_eq!(row.value(index), *value);
            }
            assert!(row.scores().is_empty() || row.scores().len() == row.len());
            assert_eq!(row.valid().len(), row.len().div_ceil(8));
        }
        Payload::Event(_) => assert_eq!(frame.header.kind, FrameKind::Event),
        Payload::Loss(_) => assert_eq!(frame.header.kind, FrameKind::Loss),
        Payload::Burst(burst) => {
            let mut samples = 0;
            burst.each(|_, values, _| {
                assert_eq!(values.len(), burst.columns());
                samples += 1;
            });
            assert_eq!(samples, burst.samples());
        }
    }
}

fn sealed(case: &Case) {
    let header = Header {
        kind: FrameKind::Row,
        host: HostId(case.host),
        boot: BootId(1),
        seq: Seq(case.seq),
        wall_ns: case.wall_ns,
        boottime_ns: 7,
        schema: SchemaId(case.schema),
    };
    let mut slot = [0; FRAME_BYTES_MAX];
    let row = Row { values: &case.values, valid: &case.valid, scores: &case.scores };
    let mut bytes = match case.seq % 3 {
        0 => {
            let Ok(length) = frame::seal_row(&mut slot, &header, &row) else { return };
            let opened = frame::open(&slot[..length]).expect("what was sealed opens");
            let Payload::Row(view) = opened.payload else { panic!("a row") };
            assert_eq!((opened.header, view.valid()), (header, &case.valid[..]));
            slot[..length].to_vec()
        }
        1 => {
            let header = Header { kind: FrameKind::Event, ..header };
            let Ok(bytes) =
                frame::seal_event(&header, &Event { name: "start".into(), text: "x".into() })
            else {
                return;
            };
            bytes
        }
        _ => {
            let header = Header { kind: FrameKind::Loss, ..header };
            let Ok(bytes) = frame::seal_loss(&header, &LOSS) else { return };
            bytes
        }
    };
    for change in &case.changes {
        match change {
            Change::Set { at, to } => {
                if let Some(byte) = bytes.get_mut(usize::from(*at)) {
                    *byte = *to;
                }
            }
            Change::Cut { to } => bytes.truncate(usize::from(*to)),
            Change::Add { bytes: more } => bytes.extend(more),
        }
    }
    if let (Some(rest), Ok(length)) = (bytes.get(16..), u32::try_from(bytes.len())) {
        let rest = rest.to_vec();
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &rest);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    }
    look(&bytes);
}
