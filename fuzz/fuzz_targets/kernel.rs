//! What the kernel says of processes, control groups, ended processes, links and sockets. The first byte
//! says which; the rest is a file or an answer by netlink.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((&which, rest)) = data.split_first() {
        strobe_agent::fuzz::kernel(which, rest);
    }
});
