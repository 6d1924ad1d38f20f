//! Reading a host: a tick of the whole sampler, on this host and on the fixture tree, and a tick
//! that finds one file only. On the fixture tree the files are plain ones, so what is measured
//! there is the parsing and one `pread` of the page cache a file.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use strobe_bench::{FILES, FIXTURE, Host, Tree};

fn readers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tick");
    for (name, procfs) in [("host", "/proc"), ("fixture", FIXTURE)] {
        let mut host = Host::new(procfs.as_ref());
        group.bench_function(name, |bencher| bencher.iter(|| black_box(host.tick())));
    }
    group.finish();
    let mut group = criterion.benchmark_group("reader");
    for file in FILES {
        let tree = Tree::of(&[file]);
        let mut host = Host::new(tree.path());
        group.bench_function(BenchmarkId::from_parameter(file), |bencher| {
            bencher.iter(|| black_box(host.tick()));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = readers
}
criterion_main!(benches);
