//! What a query costs besides reading blocks: parsing, windows, grouping, operators, JSON.
//!
//! 100 hosts of 12 series, an hour at 15 s, in memory; every question goes through the HTTP API's
//! own entry, so that what is measured is what a client waits for.

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use strobe_broker::api::{Answer, handle};
use strobe_broker::query::{Deadline, Engine, Limits, parse};
use strobe_broker::store::{RemoteSeries, Store, StoreConfig, Writer};
use strobe_wire::message::ApiRequest;
use strobe_wire::schema::Labels;

/// A window's start.
const T0: i64 = 1_699_999_200_000;
const END_S: i64 = T0 / 1000 + 3_600;

fn fleet() -> (Engine, Writer, std::path::PathBuf) {
    let dir = std::env::temp_dir().join(format!("bench-query-{}", std::process::id()));
    let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.clone()) };
    let (store, mut writer, _) = Store::open(config, T0).expect("a new store");
    for host in 0..100 {
        let series = |name: &str, extra: &[(&str, String)], slope: f64| {
            let mut pairs = vec![
                ("__name__".to_owned(), name.to_owned()),
                ("instance".to_owned(), format!("host-{host:03}")),
                ("job".to_owned(), "node".to_owned()),
            ];
            pairs.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            pairs.sort();
            let value = |tick: i32| f64::from(tick * 37 % 101) + slope * f64::from(tick);
            let samples = (0..240).map(|tick| (T0 + i64::from(tick) * 15_000, value(tick)));
            RemoteSeries { labels: Labels(pairs), samples: samples.collect() }
        };
        let mut all: Vec<_> = (0..8)
            .map(|cpu| series("node_cpu_seconds_total", &[("cpu", format!("{cpu}"))], 150.0))
            .collect();
        for name in ["node_load1", "used", "total", "free"] {
            all.push(series(name, &[], 0.0));
        }
        writer.samples(&all).expect("room");
    }
    writer.commit(T0).expect("a commit");
    (Engine::new(store), writer, dir)
}

fn kernels(criterion: &mut Criterion) {
    let (engine, _writer, dir) = fleet();
    let mut group = criterion.benchmark_group("query");
    group.sample_size(30);
    for (name, expr) in [
        ("selector of 100 series", "node_load1"),
        ("rate of 800 series", "rate(node_cpu_seconds_total[5m])"),
        ("sum by of rate", "sum by (instance) (rate(node_cpu_seconds_total[5m]))"),
        ("quantile over time", "quantile_over_time(0.9, node_load1[5m])"),
        ("top 10", "topk(10, node_load1)"),
        ("one to one", "used / total"),
        ("and on", "used and on (instance) total > 50"),
        ("subquery", "max_over_time(sum(node_load1)[10m:1m])"),
    ] {
        let encoded: String = expr.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let request = ApiRequest {
            method: "GET".to_owned(),
            path: "/api/v1/query_range".to_owned(),
            query: format!("query={encoded}&start={}&end={END_S}&step=15", END_S - 1_800),
            ..ApiRequest::default()
        };
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let limits = Limits::usual();
                let never = Deadline::never();
                let Answer::Response(answer) =
                    handle(&engine, &limits, black_box(&request), T0, never)
                else {
                    panic!("a query is no write");
                };
                assert_eq!(answer.status, 200);
                answer.body.len()
            });
        });
    }
    let good = "histogram_quantile(0.9, sum by (le, job) (rate(x_bucket{a=~\"b.*\"}[5m]))) > 1";
    group.bench_function("parse", |bench| bench.iter(|| parse(black_box(good)).is_ok()));
    let bad = "histogram_quantile(0.9, sum by (le, job) (rate(x_bucket{a=~\"b.*\"}))) > 1";
    group.bench_function("parse, refused", |bench| bench.iter(|| parse(black_box(bad)).is_err()));
    group.finish();
    // Nothing in it is worth keeping.
    let _ = std::fs::remove_dir_all(dir);
}

criterion_group!(benches, kernels);
criterion_main!(benches);
