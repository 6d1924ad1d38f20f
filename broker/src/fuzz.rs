//! What the fuzz targets may call of what is private otherwise. Not part of any normal build.

pub use crate::store::fuzz::{
    BlockParts, Recovered, WalOp, block, block_of, block_round_trip, segment, wal,
};

use crate::api::{self, Answer};
use crate::query::{Deadline, Engine, Limits};
use crate::store::{RemoteSeries, Store, StoreConfig, TimeRange};
use std::sync::LazyLock;
use strobe_wire::message::ApiRequest;
use strobe_wire::schema::Labels;

/// A query at once and over a range, or a request with any path (before the first space), any
/// query string (before the second) and any body.
///
/// # Panics
/// If an answer is not what the API may send.
pub fn promql(kind: u8, text: &str) {
    let engine = &*ENGINE;
    if kind.is_multiple_of(2) {
        let at_ms = T0_MS + i64::from(kind) * 1000;
        let _ = engine.instant(text, at_ms, &LIMITS, Deadline::never());
        let range = TimeRange { start_ms: T0_MS, end_ms: at_ms };
        let _ = engine.range(text, range, 7_000, &LIMITS, Deadline::never());
        return;
    }
    let mut parts = text.splitn(3, ' ');
    let mut part = || parts.next().unwrap_or("").to_owned();
    let request = ApiRequest {
        method: if kind & 2 == 0 { "GET" } else { "POST" }.to_owned(),
        path: format!("/api/v1/{}", part()),
        query: part(),
        content_type: "application/x-www-form-urlencoded".to_owned(),
        body: part().into_bytes(),
        ..ApiRequest::default()
    };
    if let Answer::Response(response) =
        api::handle(engine, &LIMITS, &request, T0_MS, Deadline::never())
    {
        assert!((200..600).contains(&response.status), "{}", response.status);
        if response.content_type == "application/json" {
            let read = serde_json::from_slice::<serde_json::Value>(&response.body);
            assert!(read.is_ok(), "{read:?}");
        }
    }
}

/// Counters, gauges, a histogram, a stale marker and a gap, of three instances.
static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("strobe-fuzz-promql-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.clone()) };
    let (store, mut writer, _) =
        Store::open(config, T0_MS).expect("the temporary directory can be written");
    let stale = f64::from_bits(0x7ff0_0000_0000_0002);
    let mut all = Vec::new();
    for instance in ["a", "b", "c"] {
        for (name, le) in
            [("up", ""), ("reqs", ""), ("temp", ""), ("h_bucket", "1"), ("h_bucket", "+Inf")]
        {
            let labels = [("__name__", name), ("job", "j"), ("instance", instance), ("le", le)];
            let labels = labels.iter().filter(|(_, value)| !value.is_empty());
            let labels = labels.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let sample = |n: i32| {
                let value = match (name, n) {
                    (_, 20) => stale,
                    ("temp", n) => f64::from(n % 7) - 3.0,
                    // A reset at 25.
                    (_, n) => f64::from(n % 25),
                };
                (T0_MS + i64::from(n) * 5_000, value)
            };
            let samples = (0..50).filter(|n| !(30..35).contains(n)).map(sample).collect();
            all.push(RemoteSeries { labels: Labels::new(labels.collect()), samples });
        }
    }
    writer.samples(&all).expect("there is room");
    writer.commit(T0_MS).expect("there is room");
    // Open files and memory are enough from here on.
    drop(std::fs::remove_dir_all(&dir));
    Engine::new(store)
});

const T0_MS: i64 = 1_700_000_000_000;
const LIMITS: Limits = Limits {
    steps_max: 100,
    series_max: 100,
    samples_max: 100_000,
    values_max: 10_000,
    output_bytes_max: 1 << 16,
    time_ms_max: 1_000,
};
