//! `/api/strobe/v1/hosts`: every machine of the fleet, whether its agent says so, an operator, or how it
//! was found.
//!
//! ```text
//!   known ──certificate──> enrolled ──first frame──> fresh ⇄ late ⇄ lost
//!     └───────────────────────── retired, until its agent sends again ──┘
//! ```

use super::{Known, json_answer};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use strobe_cluster::kinds::targets::Target;
use strobe_wire::health::Health;
use strobe_wire::ids::HostId;
use strobe_wire::message::ApiResponse;

/// What the list is made of.
#[derive(Debug, Default)]
pub(crate) struct Machines {
    /// Hosts with an agent.
    pub(crate) hosts: Vec<Known>,
    /// What each of them says of its configuration, in their order.
    pub(crate) configurations: Vec<Value>,
    /// Machines as agreed.
    pub(crate) targets: Vec<Target>,
    /// Hosts that have a certificate and never said hello.
    pub(crate) enrolled: Vec<HostId>,
    /// By machine: its checks, and how often in a row each failed.
    pub(crate) checks: BTreeMap<String, Vec<(String, f64)>>,
    /// Failures in a row that count as down.
    pub(crate) strikes_max: u32,
}

impl Machines {
    /// The answer.
    pub(crate) fn answer(&self, now_ms: i64) -> ApiResponse {
        json_answer(200, &Value::Array(self.list(now_ms)))
    }

    fn list(&self, now_ms: i64) -> Vec<Value> {
        let mut targets: BTreeMap<&str, &Target> =
            self.targets.iter().map(|target| (target.name.as_str(), target)).collect();
        let mut list: Vec<Value> = Vec::new();
        for (at, known) in self.hosts.iter().enumerate() {
            let target = targets.remove(known.0.hello.instance.as_str());
            let mut host = self.host(known, target, now_ms);
            host["configuration"] = self.configurations.get(at).cloned().unwrap_or_default();
            list.push(host);
        }
        for target in targets.into_values() {
            let state = if target.retired_ms == 0 { "known" } else { "retired" };
            let mut one = Map::new();
            one.insert("instance".to_owned(), json!(target.name));
            one.insert("state".to_owned(), json!(state));
            self.describe(&mut one, Some(target), &target.name);
            list.push(Value::Object(one));
        }
        let enrolled = self
            .enrolled
            .iter()
            .map(|id| json!({ "id": id.to_string(), "instance": "", "state": "enrolled" }));
        list.extend(enrolled);
        list
    }

    fn host(&self, (info, standing): &Known, target: Option<&Target>, now_ms: i64) -> Value {
        let hello = &info.hello;
        let labels: BTreeMap<&str, &str> =
            hello.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        // Who sends again is in use again.
        let retired = target
            .is_some_and(|target| target.retired_ms != 0 && info.last_seen_ms <= target.retired_ms);
        let state = if retired { "retired" } else { Health::of(info, now_ms).word() };
        let mut one = json!({
            "id": HostId(hello.host).to_string(),
            "instance": hello.instance,
            "job": hello.job,
            "state": state,
            "version": hello.version,
            "kernel": hello.kernel,
            "labels": labels,
            "interval_ms": hello.interval_ms,
            "first_seen_ms": info.first_seen_ms,
            "last_seen_ms": info.last_seen_ms,
            "certificate_expires_s": Some(standing.expires_s).filter(|end| *end != 0),
            "revoked": standing.is_revoked(),
        });
        if let Value::Object(one) = &mut one {
            self.describe(one, target, &hello.instance);
        }
        one
    }

    /// What an operator said, and what checks say.
    fn describe(&self, one: &mut Map<String, Value>, target: Option<&Target>, name: &str) {
        if let Some(target) = target {
            one.insert("source".to_owned(), json!(target.source));
            one.insert("address".to_owned(), json!(target.address));
            one.insert("group".to_owned(), json!(target.group));
            one.insert("tags".to_owned(), json!(target.tags));
            one.entry("first_seen_ms").or_insert(json!(target.first_ms));
        }
        let Some(checks) = self.checks.get(name) else { return };
        let state = |strikes: f64| match strikes {
            _ if f64::from(self.strikes_max) <= strikes => "down",
            _ if 0.0 < strikes => "failing",
            _ => "up",
        };
        let told =
            |(check, strikes): &(String, f64)| json!({ "check": check, "state": state(*strikes) });
        one.insert("checks".to_owned(), checks.iter().map(told).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Standing;
    use strobe_wire::message::{Hello, HostInfo};

    #[test]
    fn machines_are_told_once_with_all_that_is_known_of_them() {
        let host = |id: u128, name: &str, last_seen_ms| {
            let hello =
                Hello { host: id, instance: name.into(), interval_ms: 1000, ..Hello::default() };
            (HostInfo { hello, last_seen_ms, ..HostInfo::default() }, Standing::default())
        };
        let target = |name: &str, retired_ms| Target {
            name: name.into(),
            group: "web".into(),
            tags: vec!["eu".into()],
            retired_ms,
            ..Target::default()
        };
        let checks =
            [("tcp:22".to_owned(), 3.0), ("tcp:80".to_owned(), 1.0), ("quic:1".to_owned(), 0.0)];
        let machines = Machines {
            configurations: vec![json!({ "version": 3 })],
            hosts: vec![host(1, "a", 99_000), host(2, "b", 50_000), host(3, "c", 99_000)],
            targets: vec![target("a", 0), target("b", 60_000), target("c", 60_000), target("d", 0)],
            enrolled: vec![HostId(9)],
            checks: [("d".to_owned(), checks.to_vec())].into(),
            strikes_max: 3,
        };
        let list = machines.list(100_000);
        let told: Vec<(&str, &str)> = list
            .iter()
            .map(|one| (one["instance"].as_str().unwrap(), one["state"].as_str().unwrap()))
            .collect();
        let wanted =
            [("a", "fresh"), ("b", "retired"), ("c", "fresh"), ("d", "known"), ("", "enrolled")];
        assert_eq!(told, wanted);
        assert_eq!((&list[0]["group"], &list[0]["tags"][0]), (&json!("web"), &json!("eu")));
        assert_eq!(list[0]["configuration"]["version"], 3);
        assert_eq!(list[0]["id"], "00000000000000000000000000000001");
        let states: Vec<&Value> = (0..3).map(|at| &list[3]["checks"][at]["state"]).collect();
        assert_eq!(states, ["down", "failing", "up"]);
    }
}
