//! The reader of a stream's messages: any bytes in pieces of any size, and frames behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strobe_wire::frame;
use strobe_wire::message::{Incoming, Reader, encode};

fuzz_target!(|data: &[u8]| {
    let Some((&size, rest)) = data.split_first() else { return };
    let mut whole = Vec::new();
    let end = read(rest, rest.len().max(1), &mut whole);
    let mut pieces = Vec::new();
    // Where the stream is cut does not matter.
    assert_eq!(read(rest, usize::from(size).max(1), &mut pieces), end);
    assert_eq!(whole, pieces);
    for incoming in whole {
        match incoming {
            Incoming::Frame(bytes) => drop(frame::open(&bytes)),
            Incoming::Control(message) => {
                let mut reader = Reader::default();
                reader.push(&encode(&message));
                assert_eq!(reader.pull(), Ok(Some(Incoming::Control(message))));
            }
        }
    }
});

/// Whether the stream broke.
fn read(bytes: &[u8], size: usize, out: &mut Vec<Incoming>) -> bool {
    let mut reader = Reader::default();
    for piece in bytes.chunks(size) {
        reader.push(piece);
        loop {
            match reader.pull() {
                Ok(Some(incoming)) => out.push(incoming),
                Ok(None) => break,
                Err(_) => return true,
            }
        }
    }
    false
}
