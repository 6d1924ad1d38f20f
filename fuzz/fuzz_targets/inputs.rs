//! Every parser of the agent's other inputs. The first byte says which: a scrape's answer (text and
//! OpenMetrics), HTTP from either side, StatsD, remote-write, a command's output, lines on the socket.
//! The rest are its bytes, in readings parted by 0xFF: series come, go and are written in another way.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((&kind, rest)) = data.split_first() {
        strobe_agent::fuzz::input(kind, rest);
    }
});
