//! PromQL and the HTTP API before it: any text is answered or refused over a small store.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    strobe_broker::fuzz::promql(kind, text);
});
