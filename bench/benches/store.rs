//! The store: blocks sealed and scanned, one column of a thousand hosts, and the three questions that
//! a fleet page is made of.
//!
//! - `block/seal`: ten minutes of a host of 175 series, which lie in memory as young blocks and rows,
//!   become five sealed blocks in a synced segment.
//! - `block/scan`: all 175 series of these ten minutes, once from the segment's file (CRC, zstd,
//!   columns) and once from what a reader before has left in memory.
//! - `store` and `query`: a thousand hosts at 1 Hz for 30 min (host 1: 60 min), of each host the row
//!   with the 97 series that are no core's, disk's or network's, and for the last minutes its cores;
//!   sealed as a running broker seals them, the newest minutes in memory.
//!
//! What is shown is CPU time of the whole process, which does not depend on who else uses the
//! machine; a query over many hosts uses two threads, so it takes about half of it.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::time::Duration;
use strobe_bench::fleet::{Fleet, Plan, T0, config, equal};
use strobe_broker::query::{Deadline, Engine, Limits as QueryLimits};
use strobe_broker::store::{Limits, Matcher, Part, Scratch, Store, StoreConfig, TimeRange};
use strobe_wire::schema::Labels;

const END: i64 = T0 + 3_600_000;
const LIMITS: Limits = Limits { series_max: 1_000_000, samples_max: u64::MAX };

/// Seconds of all threads of this process.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has it");
        now.into()
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn blocks(criterion: &mut Criterion<CpuTime>) {
    let mut host =
        Fleet::empty(&Plan { name: "block", hosts: 1, others_from: 0, seconds: 0, sections: &[] });
    host.fill();
    host.seal();
    let range = TimeRange { start_ms: T0, end_ms: T0 + 599_999 };
    let all = [equal("instance", "host-0001")];
    let mut group = criterion.benchmark_group("block");
    group.sample_size(10).throughput(Throughput::Elements(600 * 175));
    let kept = &host.store;
    let parts = kept.select(&all, range, &LIMITS).expect("found");
    group.bench_function("scan, kept in memory", |bench| {
        bench.iter(|| scan(kept, &parts, range));
    });
    group.bench_function("seal", |bench| {
        bench.iter_custom(|times| {
            let mut spent = Duration::ZERO;
            for _ in 0..times {
                host.fill();
                let start = CpuTime.start();
                host.seal();
                spent += CpuTime.end(start);
            }
            spent
        });
    });
    // Another store over the same files, which keeps nothing of what was read.
    let dir = host.dir().with_extension("read");
    copy(host.dir(), &dir);
    let config = StoreConfig { head_bytes_max: 0, ..config(&dir) };
    let (cold, _writer, _) = Store::open(config, T0).expect("a store");
    let parts = cold.select(&all, range, &LIMITS).expect("found");
    group.bench_function("scan, from its file", |bench| {
        bench.iter(|| scan(&cold, &parts, range));
    });
    group.finish();
    // What stays in the temporary directory harms nobody.
    let _ = std::fs::remove_dir_all(&dir);
}

/// The segments and their places, without the log.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    let (from, to) = (from.join("segments"), to.join("segments"));
    std::fs::create_dir_all(&to).expect("a directory");
    for file in std::fs::read_dir(from).expect("segments").flatten() {
        std::fs::copy(file.path(), to.join(file.file_name())).expect("room");
    }
}

fn scan(store: &Store, parts: &[Part], range: TimeRange) -> usize {
    let (mut scratch, mut samples) = (Scratch::new(&LIMITS), 0);
    for part in parts {
        let visit = &mut |_: &Labels, times: &[i64], _: &[f64]| {
            samples += times.len();
            Ok(())
        };
        store.scan(part, range, &mut scratch, visit).expect("scanned");
    }
    assert!(0 < samples);
    samples
}

fn reading(criterion: &mut Criterion<CpuTime>) {
    // Fewer for a profiler that is slow.
    let hosts = std::env::var("STROBE_BENCH_HOSTS").ok().and_then(|hosts| hosts.parse().ok());
    let fleet = Fleet::new(&Plan {
        name: "fleet",
        hosts: hosts.unwrap_or(1_000),
        others_from: 1_800,
        seconds: 3_600,
        sections: &[("host", 0), ("cpu", 3_480)],
    });
    let store = &fleet.store;
    let range = TimeRange { start_ms: END - 1_800_000, end_ms: END };
    let column = [equal("__name__", "node_load1")];
    let one = [&column[..], &[equal("instance", "host-0001")]].concat();
    let mut group = criterion.benchmark_group("store");
    group.sample_size(20);
    group.bench_function("select 1 of 1000 hosts", |bench| {
        bench.iter(|| store.select(black_box(&one), range, &LIMITS).expect("found"));
    });
    group.bench_function("select 1 column of 1000 hosts", |bench| {
        bench.iter(|| store.select(black_box(&column), range, &LIMITS).expect("found"));
    });
    let which: [(&str, &[Matcher]); 2] = [("1 host", &one), ("1000 hosts", &column)];
    for (name, matchers) in which {
        let parts = store.select(matchers, range, &LIMITS).expect("found");
        group.bench_function(format!("scan 1 column of {name}, 30 min"), |bench| {
            bench.iter(|| scan(store, &parts, range));
        });
    }
    group.finish();
    questions(criterion, &Engine::new(store.clone()));
}

fn questions(criterion: &mut Criterion<CpuTime>, engine: &Engine) {
    let limits = QueryLimits { samples_max: u64::MAX, ..QueryLimits::usual() };
    let mut group = criterion.benchmark_group("query");
    group.sample_size(20);
    for (name, text, from) in [
        ("1 host, 1 h", r#"node_load1{instance="host-0001"}"#, END - 3_600_000),
        ("avg of 1000 hosts, 30 min", r"avg(node_load1)", END - 1_800_000),
    ] {
        let range = TimeRange { start_ms: from, end_ms: END };
        let ask = || engine.range(black_box(text), range, 15_000, &limits, Deadline::never());
        let answer = format!("{:?}", ask().expect("answered"));
        assert!(answer.contains("values: ["), "nobody answers: {answer:.300}");
        group.bench_function(name, |bench| bench.iter(|| ask().expect("answered")));
    }
    let top = r#"topk(10, sum by (instance) (rate(node_cpu_seconds_total{mode!="idle"}[1m])))"#;
    let ask = || engine.instant(black_box(top), END, &limits, Deadline::never());
    let answer = format!("{:?}", ask().expect("answered"));
    assert!(answer.contains("host-"), "nobody is on top: {answer:.300}");
    group.bench_function("top 10 of 1000 hosts by 1 min CPU rate", |bench| {
        bench.iter(|| ask().expect("answered"));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = blocks, reading
}
criterion_main!(benches);
