//! `/api/strobe/v1/bursts`: the bursts that flight recorders sent, newest first.
//!
//! ```text
//! ?host=INSTANCE&start=…&end=…      all optional; the last day of all hosts
//! [{"instance":"a","at_ms":…,"reason":"cpu_pressure","from_ms":…,"to_ms":…,
//!   "processes":[{"pid":"7","comm":"x","cpus":0.97},…],"cgroups":[{"cgroup":"/y","cpus":1.2},…]},…]
//! ```
//!
//! The samples themselves are series (`strobe_burst_…`): ask for them from `from_ms` to `to_ms`, as in
//! `strobe_burst_procs_running{instance="a"}[70s]` at `to_ms`.

use super::{ApiError, Form, Source, time};
use crate::query::QueryError;
use crate::store::{Depth, MatchOp, Matcher, Scratch, TimeRange};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use strobe_wire::message::{ApiRequest, ApiResponse};
use strobe_wire::schema::Labels;

/// Where the answer is found.
pub const PATH: &str = "/api/strobe/v1/bursts";

/// Answers a request.
pub(super) fn answer(source: &Source<'_>, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
    if request.method != "GET" {
        return Err(ApiError::Method(format!("{PATH} takes a GET")));
    }
    let form = Form::of(request).map_err(ApiError::Bad)?;
    let end_ms = time::optional(&form, "end")?.unwrap_or(source.now_ms);
    let start_ms = time::optional(&form, "start")?.unwrap_or(end_ms - DAY_MS);
    let matcher = |name: &str, op, value: &str| {
        let (name, value) = (name.to_owned(), value.to_owned());
        Matcher { name, op, value }
    };
    let mut matchers = vec![matcher("__name__", MatchOp::Regex, NAMES)];
    if let Some(host) = form.optional("host") {
        matchers.push(matcher("instance", MatchOp::Equal, host));
    }
    let range = TimeRange { start_ms, end_ms };
    let mut found: BTreeMap<(i64, String), Value> = BTreeMap::new();
    let limits = source.limits.store();
    let (all, depth) = (source.limits, Depth::Samples(None));
    let store = source.engine.reaching((&matchers, range), depth, all, source.deadline)?;
    let mut scratch = Scratch::new(&limits);
    for part in store.select(&matchers, range, &limits).map_err(QueryError::from)? {
        let visit = &mut |labels: &Labels, times: &[i64], values: &[f64]| {
            for (time, value) in times.iter().zip(values) {
                let instance = labels.value("instance").unwrap_or_default().to_owned();
                let burst = found.entry((*time, instance)).or_insert_with(|| json!({}));
                tell(burst, labels, *time, *value);
            }
            Ok(())
        };
        store.scan(&part, range, &mut scratch, visit).map_err(QueryError::from)?;
    }
    let list = found.into_iter().rev().filter(|(_, burst)| burst.get("reason").is_some());
    let list: Vec<Value> = list
        .take(BURSTS_MAX)
        .map(|((at_ms, instance), mut burst)| {
            burst["at_ms"] = at_ms.into();
            burst["instance"] = instance.into();
            for users in ["processes", "cgroups"] {
                sort(&mut burst[users]);
            }
            burst
        })
        .collect();
    Ok(super::respond(200, Value::Array(list).to_string()))
}

/// What one sample says of its burst.
fn tell(burst: &mut Value, labels: &Labels, time_ms: i64, value: f64) {
    let label = |name| labels.value(name).unwrap_or_default();
    let user = match label("__name__") {
        "strobe_burst_before_seconds" => {
            burst["reason"] = label("reason").into();
            burst["from_ms"] = time_ms.saturating_sub(ms(value)).into();
            return;
        }
        "strobe_burst_after_seconds" => {
            burst["to_ms"] = time_ms.saturating_add(ms(value)).into();
            return;
        }
        "strobe_burst_process_cpu_ratio" => {
            let user = json!({ "pid": label("pid"), "comm": label("comm"), "cpus": value });
            ("processes", user)
        }
        _ => ("cgroups", json!({ "cgroup": label("cgroup"), "cpus": value })),
    };
    match burst[user.0].as_array_mut() {
        Some(users) => users.push(user.1),
        None => burst[user.0] = json!([user.1]),
    }
}

/// The busiest first; nobody is an empty list.
fn sort(users: &mut Value) {
    match users.as_array_mut() {
        Some(users) => users.sort_by(|a, b| {
            let cpus = |user: &Value| user["cpus"].as_f64().unwrap_or(0.0);
            cpus(b).total_cmp(&cpus(a))
        }),
        None => *users = json!([]),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
fn ms(seconds: f64) -> i64 {
    (seconds * 1000.0).round() as i64
}

const NAMES: &str =
    "strobe_burst_(before_seconds|after_seconds|process_cpu_ratio|cgroup_cpu_ratio)";
const BURSTS_MAX: usize = 1000;
const DAY_MS: i64 = 86_400_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_moment_are_one_burst() {
        let mut burst = json!({});
        let mut say = |name: &str, labels: &[(&str, &str)], value| {
            let mut pairs = labels.to_vec();
            pairs.push(("__name__", name));
            tell(&mut burst, &Labels::of(&pairs), 100_000, value);
        };
        say("strobe_burst_before_seconds", &[("reason", "signal")], 59.5);
        say("strobe_burst_after_seconds", &[("reason", "signal")], 10.0);
        say("strobe_burst_process_cpu_ratio", &[("pid", "7"), ("comm", "a")], 0.25);
        say("strobe_burst_process_cpu_ratio", &[("pid", "8"), ("comm", "b")], 0.5);
        sort(&mut burst["processes"]);
        sort(&mut burst["cgroups"]);
        let wanted = json!({
            "reason": "signal", "from_ms": 40_500, "to_ms": 110_000, "cgroups": [],
            "processes": [
                { "pid": "8", "comm": "b", "cpus": 0.5 }, { "pid": "7", "comm": "a", "cpus": 0.25 },
            ],
        });
        assert_eq!(burst, wanted);
    }
}
