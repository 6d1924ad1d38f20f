//! Remote-write's door: any body, and any message in a body whose compression is right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strobe_broker::remote_write::{decode, encode};

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let body = match kind % 2 {
        0 => rest.to_vec(),
        _ => snap::raw::Encoder::new().compress_vec(rest).expect("memory is enough"),
    };
    let Ok(series) = decode(&body) else { return };
    for one in &series {
        assert!(one.labels.value("__name__").is_some_and(|name| !name.is_empty()));
        assert!(one.labels.0.is_sorted_by(|a, b| a.0 < b.0), "{:?}", one.labels);
    }
    let again = decode(&encode(&series)).expect("what was let in comes back");
    assert_eq!(again.len(), series.len());
    for (a, b) in again.iter().zip(&series) {
        assert_eq!(a.labels, b.labels);
        // Protobuf leaves a zero out, and with it the sign (as Prometheus's own encoder does).
        let sign_of_zero = |value: f64| if value == 0.0 { 0 } else { value.to_bits() };
        let bits = |samples: &[(i64, f64)]| -> Vec<(i64, u64)> {
            samples.iter().map(|(at, value)| (*at, sign_of_zero(*value))).collect()
        };
        assert_eq!(bits(&a.samples), bits(&b.samples));
    }
});
