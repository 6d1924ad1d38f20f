//! Sealing a row into a slot, and opening it: the two ends of every sample.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use strobe_wire::frame::{FrameKind, Header, Row, open, seal_row};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;

fn frames(criterion: &mut Criterion) {
    let header = Header {
        kind: FrameKind::Row,
        host: HostId(1),
        boot: BootId(2),
        seq: Seq(3),
        wall_ns: 4,
        boottime_ns: 5,
        schema: SchemaId(6),
    };
    for columns in [100, 200, 400] {
        let values: Vec<u64> = (0..columns).collect();
        let valid = vec![0xff; values.len().div_ceil(8)];
        let scores = vec![0; values.len()];
        let row = Row { values: &values, valid: &valid, scores: &scores };
        let mut slot = vec![0; FRAME_BYTES_MAX];
        let length = seal_row(&mut slot, &header, &row).expect("the row fits");

        let mut group = criterion.benchmark_group("frame");
        group.throughput(Throughput::Elements(columns));
        group.bench_function(BenchmarkId::new("open", columns), |bencher| {
            bencher.iter(|| open(black_box(&slot[..length])).map(|frame| frame.header.seq));
        });
        group.bench_function(BenchmarkId::new("seal", columns), |bencher| {
            bencher.iter(|| seal_row(black_box(&mut slot), &header, black_box(&row)));
        });
        group.finish();
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
