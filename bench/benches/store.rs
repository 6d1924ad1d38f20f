//! The store's read path: one block of one host, one column of a thousand hosts, and the three
//! queries that a fleet page is made of. The write path: a host's ten minutes sealed.
//!
//! The fleet is a thousand hosts of 96 series at 1 Hz for 30 min (host 1: 60 min), sealed as a
//! running broker seals it; the newest minutes are in memory as young blocks and rows.
//!
//! What is shown is CPU time of the whole process, which does not depend on who else uses the
//! machine; a query over many hosts uses two threads, so it takes about half of it.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, criterion_group, criterion_main};
use nix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use strobe_broker::query::{Deadline, Engine, Limits as QueryLimits};
use strobe_broker::store::{
    Limits, MatchOp, Matcher, Scratch, Store, StoreConfig, TimeRange, Writer,
};
use strobe_perf::rows::{Model, Shape, Values, message};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::schema::{Labels, Schema};

const HOSTS: u128 = 1_000;
const SERIES: usize = 96;
/// A window's start.
const T0: i64 = 1_699_999_200_000;
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

struct Fleet {
    dir: PathBuf,
    store: Store,
    _writer: Writer,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn place(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("bench-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

fn frame(host: u128, schema: &Schema, values: &Values, step: i64) -> bytes::Bytes {
    let row = values.sections().next().expect("one section");
    // Hosts do not tick in the same millisecond.
    let offset = i64::try_from(host).unwrap_or(0) * 37 % 1000;
    let wall_ns = (T0 + step * 1000 + offset) * 1_000_000;
    let seq = u64::try_from(step).unwrap_or(0) + 1;
    message(HostId(host), BootId(1), seq, wall_ns, (schema.id(), row)).slice(5..)
}

fn fleet(hosts: u128) -> Fleet {
    let dir = place("fleet");
    let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.clone()) };
    let (store, mut writer, _) = Store::open(config, T0).expect("a new store");
    let model = Arc::new(Model::new(Shape::Host, SERIES));
    let schema = model.schemas[0].clone();
    writer.schema(&schema).expect("a schema");
    let mut values = Vec::new();
    for host in 1..=hosts {
        let name = format!("host-{host:04}");
        writer.host(HostId(host), "node", &name, &Labels::default()).expect("a host");
        values.push(Values::new(Arc::clone(&model), u64::try_from(host).unwrap_or(0)));
    }
    for step in 0..3_600 {
        let first_half = step < 1_800;
        for (host, values) in (1..).zip(&mut values) {
            if first_half && host != 1 {
                continue;
            }
            values.tick((T0 + step * 1000) * 1_000_000);
            writer.frame(&frame(host, &schema, values, step)).expect("a frame");
        }
        let now_ms = T0 + step * 1000;
        writer.commit(now_ms).expect("a commit");
        if step % 5 == 0 {
            writer.settle(now_ms).expect("a seal");
        }
    }
    Fleet { dir, store, _writer: writer }
}

fn matcher(name: &str, value: &str) -> Matcher {
    Matcher { name: name.into(), op: MatchOp::Equal, value: value.into() }
}

fn reading(criterion: &mut Criterion<CpuTime>) {
    // Fewer for a profiler that is slow.
    let hosts = std::env::var("STROBE_BENCH_HOSTS").ok().and_then(|hosts| hosts.parse().ok());
    let fleet = fleet(hosts.unwrap_or(HOSTS));
    let store = &fleet.store;
    let range = TimeRange { start_ms: END - 1_800_000, end_ms: END };
    let column = [matcher("__name__", "node_load1")];
    let one = [&column[..], &[matcher("instance", "host-0001")]].concat();
    let mut group = criterion.benchmark_group("store");
    group.sample_size(20);
    group.bench_function("select 1 of 1000 hosts", |bench| {
        bench.iter(|| store.select(black_box(&one), range, &LIMITS).expect("found"));
    });
    group.bench_function("select 1 column of 1000 hosts", |bench| {
        bench.iter(|| store.select(black_box(&column), range, &LIMITS).expect("found"));
    });
    for (name, matchers) in [("1 host", &one[..]), ("1000 hosts", &column[..])] {
        let parts = store.select(matchers, range, &LIMITS).expect("found");
        group.bench_function(format!("scan 1 column of {name}, 30 min"), |bench| {
            let mut scratch = Scratch::new(&LIMITS);
            bench.iter(|| {
                let mut samples = 0;
                for part in &parts {
                    let visit = &mut |_: &Labels, times: &[i64], _: &[f64]| {
                        samples += times.len();
                        Ok(())
                    };
                    store.scan(part, range, &mut scratch, visit).expect("scanned");
                }
                assert!(0 < samples);
                samples
            });
        });
    }
    group.finish();
    let engine = Engine::new(store.clone());
    let limits = QueryLimits { samples_max: u64::MAX, ..QueryLimits::usual() };
    let mut group = criterion.benchmark_group("query");
    group.sample_size(20);
    for (name, text, from) in [
        ("1 host, 1 h", r#"node_load1{instance="host-0001"}"#, END - 3_600_000),
        ("avg of 1000 hosts, 30 min", r#"avg(node_load1)"#, END - 1_800_000),
    ] {
        let range = TimeRange { start_ms: from, end_ms: END };
        group.bench_function(name, |bench| {
            bench.iter(|| {
                engine
                    .range(black_box(text), range, 15_000, &limits, Deadline::never())
                    .expect("answered")
            });
        });
    }
    let top = r#"topk(10, sum by (instance) (rate(node_cpu_seconds_total{mode!="idle"}[1m])))"#;
    group.bench_function("top 10 of 1000 hosts by 1 min CPU rate", |bench| {
        bench.iter(|| {
            engine.instant(black_box(top), END, &limits, Deadline::never()).expect("answered")
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = reading
}
criterion_main!(benches);
