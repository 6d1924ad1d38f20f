//! A seeded data set: counters with resets, gauges, gaps, stale markers, several hosts.

use strobe_broker::store::RemoteSeries;
use strobe_wire::schema::Labels;

/// 2023-11-14 22:10:00 UTC; the data covers 55 minutes of it.
pub(crate) const START_MS: i64 = 1_699_999_800_000;
pub(crate) const END_MS: i64 = START_MS + 55 * 60_000;

pub(crate) fn series(seed: u64) -> Vec<RemoteSeries> {
    let mut random = Random(seed);
    let mut all = Vec::new();
    for (index, host) in HOSTS.into_iter().enumerate() {
        let job = if index < 3 { "node" } else { "edge" };
        let times = times(index, &mut random);
        let mut push = |name: &str, extra: &[(&str, &str)], value: &mut dyn FnMut(usize) -> f64| {
            let mut pairs = vec![("__name__", name), ("instance", host), ("job", job)];
            pairs.extend_from_slice(extra);
            all.push(one(&pairs, &times, host, value));
        };
        for cpu in ["0", "1"] {
            for mode in ["idle", "system", "user"] {
                let mut total = random.below(1000) * 0.25;
                push("node_cpu_seconds_total", &[("cpu", cpu), ("mode", mode)], &mut |at| {
                    total += random.below(64) * 0.25;
                    if at == 60 + index * 7 || at == 150 {
                        total = random.below(3);
                    }
                    total
                });
            }
        }
        push("node_load1", &[], &mut |_| random.below(4000) / 100.0);
        push("node_memory_MemTotal_bytes", &[], &mut |_| 8_589_934_592.0);
        push("node_memory_MemFree_bytes", &[], &mut |_| 1e9 + random.below(1_000_000) * 4096.0);
        push("node_uname_info", &[("release", "6.1"), ("sysname", "Linux")], &mut |_| 1.0);
        push("node_time_seconds", &[], &mut |at| 1.7e9 + at as f64 * 15.25);
        push("temperature", &[("unit", "c")], &mut |_| random.below(80) - 40.0);
        push("stepped", &[], &mut |at| (at / 20) as f64);
        histogram(&mut push, &mut random);
    }
    odd(&mut all, &mut random);
    all
}

fn one(
    pairs: &[(&str, &str)],
    times: &[i64],
    host: &str,
    value: &mut dyn FnMut(usize) -> f64,
) -> RemoteSeries {
    let mut labels: Vec<_> =
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    labels.sort();
    let samples = times.iter().enumerate().map(|(at, &time)| {
        let minute = (time - START_MS) / 60_000;
        // delta disappears at minute 30 and comes back at 40.
        let value = if host == "delta" && minute == 30 { STALE } else { value(at) };
        (time, value)
    });
    RemoteSeries { labels: Labels(labels), samples: samples.collect() }
}

fn times(host: usize, random: &mut Random) -> Vec<i64> {
    let mut times = Vec::new();
    let mut at = START_MS + i64::try_from(host).expect("ten hosts") * 1000;
    while at < END_MS {
        let minute = (at - START_MS) / 60_000;
        let gap =
            host == 2 && (12..19).contains(&minute) || host == 3 && (31..40).contains(&minute);
        if !gap {
            // Host 0 is exact to the millisecond, so that samples lie on windows' ends.
            times.push(if host == 0 { at } else { at + i64::from(random.whole(900)) });
        }
        at += if host == 1 { 30_000 } else { 15_000 };
    }
    times
}

fn histogram(push: &mut Push<'_>, random: &mut Random) {
    let seed = random.0;
    for (rank, le) in ["0.1", "0.5", "1", "5", "+Inf"].into_iter().enumerate() {
        let mut shared = Random(seed);
        let mut total = 0.0;
        push("request_seconds_bucket", &[("le", le)], &mut |_| {
            let mut below = 0.0;
            for other in 0..5 {
                let here = shared.below(20);
                below += if other <= rank { here } else { 0.0 };
            }
            total += below;
            total
        });
    }
}

/// Values at the edge of what numbers can be.
fn odd(all: &mut Vec<RemoteSeries>, random: &mut Random) {
    let kinds: [(&str, &[f64]); 8] = [
        ("nan", &[f64::NAN]),
        ("inf", &[f64::INFINITY]),
        ("minus", &[f64::NEG_INFINITY, -1.0]),
        ("mixed", &[1.0, f64::NAN, 3.0, f64::INFINITY]),
        ("tiny", &[1.5e-9, 2.25e-9]),
        ("huge", &[1e25, 3e25]),
        ("zero", &[0.0]),
        ("negative", &[-3.5, -2.5, -0.5]),
    ];
    for (kind, values) in kinds {
        let times: Vec<i64> =
            (0..220).map(|at| START_MS + at * 15_000 + i64::from(random.whole(5))).collect();
        all.push(one(&[("__name__", "odd"), ("kind", kind)], &times, "", &mut |at| {
            values[at % values.len()]
        }));
    }
}

type Push<'a> = dyn FnMut(&str, &[(&str, &str)], &mut dyn FnMut(usize) -> f64) + 'a;

struct Random(u64);

impl Random {
    /// A whole number in `0..n`.
    fn below(&mut self, n: u32) -> f64 {
        f64::from(self.whole(n))
    }

    fn whole(&mut self, n: u32) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let high = u32::try_from(self.0 >> 33).expect("31 bits");
        high % n
    }
}

/// Ten, so that scans run on two threads.
const HOSTS: [&str; 10] =
    ["alpha", "beta", "gamma", "delta", "eta", "iota", "kappa", "lambda", "mu", "nu"];
const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);
