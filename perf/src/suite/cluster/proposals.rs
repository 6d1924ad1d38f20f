//! What the control plane agrees on in a second: operators' requests, each of them one proposal, at all
//! brokers at once and then one after another.
//!
//! A request is `strobe hosts add` at a broker's control socket. It is answered when the proposal is
//! in the synced logs of a majority and applied at the broker that was asked, and stands in that
//! broker's audit log, which is synced too: so this is less than the control plane alone could do.

use super::site::{Site, applied};
use super::{Harm, Wanted as OfCluster};
use crate::report::Table;
use crate::run;
use crate::suite::{Bench, Found, shown};
use hdrhistogram::Histogram;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use strobe_broker::control;
use strobe_wire::message::ApiRequest;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Brokers.
    pub brokers: usize,
    /// Operators at each, who ask anew when they are answered.
    pub operators: usize,
    /// How long each part takes.
    pub lasting: Duration,
}

/// What was answered in one part.
struct Part {
    seconds: f64,
    took_us: Histogram<u64>,
    refused: Option<String>,
}

/// Starts the brokers, and asks.
///
/// # Errors
/// What could not be started; a refusal is no error but [`Found::failed`].
pub fn measure(bench: &Bench, wanted: Wanted) -> Result<Found, String> {
    let scratch = bench.scratch("proposals")?;
    let of_cluster = OfCluster {
        brokers: wanted.brokers,
        agents: 0,
        series: 0,
        lasting: wanted.lasting,
        redis: false,
        harm: Harm::None,
        seed: 0,
    };
    let site = Site::start(bench, &of_cluster, &scratch)?;
    let dirs: Vec<PathBuf> = site.brokers.iter().map(|broker| broker.dir.clone()).collect();
    let many: Vec<_> = (0..wanted.operators).flat_map(|_| dirs.iter().cloned()).collect();
    let before = applied(&dirs[0]);
    let together = part(&many, wanted.lasting)?;
    let alone = part(&dirs[..1], wanted.lasting)?;
    let entries = applied(&dirs[0]).saturating_sub(before);
    drop(site);
    let answered = together.took_us.len() + alone.took_us.len();
    let too_few = (entries < answered)
        .then(|| format!("{answered} requests were answered, and {entries} entries applied"));
    let name = format!("proposals-{}", wanted.brokers);
    let operators = many.len();
    let rate = |part: &Part| part.took_us.len() as f64 / part.seconds;
    let ms = |part: &Part, q: f64| part.took_us.value_at_quantile(q) as f64 / 1e3;
    let rows = [("all at once", operators, &together), ("one after another", 1, &alone)];
    let rows = rows.map(|(what, operators, part)| {
        vec![
            what.into(),
            operators.to_string(),
            shown(Some(rate(part)), 0),
            shown(Some(ms(part, 0.5)), 1),
            shown(Some(ms(part, 0.99)), 1),
        ]
    });
    let head = ["requests", "operators", "proposals/s", "p50 ms", "p99 ms"];
    let table = Table { head: head.map(String::from).to_vec(), rows: rows.to_vec() };
    let value = json!({
        "what": "proposals", "brokers": wanted.brokers, "operators": operators, "entries": entries,
        "proposals_per_s": rate(&together), "p50_ms": ms(&together, 0.5), "p99_ms": ms(&together, 0.99),
        "alone_per_s": rate(&alone), "alone_p50_ms": ms(&alone, 0.5), "alone_p99_ms": ms(&alone, 0.99),
    });
    Ok(Found { name, value, table, failed: together.refused.or(alone.refused).or(too_few) })
}

/// Each operator asks until the time is over.
fn part(operators: &[PathBuf], lasting: Duration) -> Result<Part, String> {
    let begun = run::now();
    let asked: Vec<_> = std::thread::scope(|scope| {
        let start = |(number, dir)| scope.spawn(move || ask(number, dir, lasting));
        let threads: Vec<_> =
            operators.iter().map(PathBuf::as_path).enumerate().map(start).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let seconds = (run::now() - begun).as_secs_f64();
    let mut took_us = Histogram::new_with_max(60_000_000, 3).map_err(|why| why.to_string())?;
    let mut refused = None;
    for one in asked {
        let (took, why) = one.map_err(|_| "an operator panicked")?;
        for us in took {
            took_us.saturating_record(u64::try_from(us).unwrap_or(u64::MAX));
        }
        refused = refused.or(why);
    }
    Ok(Part { seconds, took_us, refused })
}

/// How many µs each request took, and why there are no more.
fn ask(number: usize, dir: &Path, lasting: Duration) -> (Vec<u128>, Option<String>) {
    let (mut took_us, until) = (Vec::new(), run::now() + lasting);
    while run::now() < until {
        // Each is a change: the machine does not have the tag already.
        let (machine, tag) = (took_us.len() % MACHINES, took_us.len() / MACHINES);
        let request = ApiRequest {
            method: "POST".into(),
            path: "/api/strobe/v1/hosts/add".into(),
            query: format!("host=m-{number}-{machine}&tag=t{tag}"),
            ..ApiRequest::default()
        };
        let before = run::now();
        match control::ask(dir, request, PATIENCE) {
            Ok(answer) if answer.status == 200 => took_us.push((run::now() - before).as_micros()),
            Ok(answer) => {
                return (took_us, Some(String::from_utf8_lossy(&answer.body).into_owned()));
            }
            Err(why) => return (took_us, Some(why.to_string())),
        }
    }
    (took_us, None)
}

/// Of one operator, so that the registry stays small.
const MACHINES: usize = 50;
const PATIENCE: Duration = Duration::from_secs(10);
