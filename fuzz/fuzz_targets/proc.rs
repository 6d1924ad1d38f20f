//! Every parser of a /proc file. The first byte says which; the rest are the file's contents at one
//! tick after the other, parted by 0xFF: sets change, counters step back, lines are torn.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((&format, rest)) = data.split_first() {
        strobe_agent::fuzz::proc_file(format, rest.split(|byte| *byte == 0xff).take(8));
    }
});
