//! The list of machines: what agents, the agreed state and the checks' series say.

use super::Broker;
use crate::own;
use crate::query::Caller;
use serde_json::Value;
use std::collections::BTreeMap;
use strobe_cluster::kinds::targets;
use strobe_wire::ids::HostId;
use strobe_wire::message::ApiRequest;

impl Broker {
    /// Every machine of the fleet, with or without an agent.
    pub(super) fn machines(&self, caller: &Caller) -> own::Machines {
        let shared = &self.shared;
        let targets = shared.cluster.look(targets::targets);
        let targets = targets.unwrap_or_else(|why| {
            log::warn!("the list of hosts has only those with an agent: {why}");
            Vec::new()
        });
        let hosts = self.fleet();
        let runs = self.running_of_fleet(&hosts);
        let configurations = hosts.iter().map(|(info, _)| self.configuration(&runs, info));
        // Another broker than the one that gave it a certificate may have it.
        let elsewhere = |id: &HostId| hosts.iter().any(|(info, _)| info.hello.host == id.0);
        let mut enrolled = shared.registry.enrolled();
        enrolled.retain(|id| !elsewhere(id));
        own::Machines {
            configurations: configurations.collect(),
            hosts,
            // Without machines there are no checks, and nobody is asked for them.
            checks: if targets.is_empty() { BTreeMap::new() } else { self.strikes(caller) },
            targets,
            enrolled,
            strikes_max: shared.config.lookout.strikes_max,
        }
    }

    /// By machine: its checks, and how often in a row each failed; as any broker's query knows it.
    fn strikes(&self, caller: &Caller) -> BTreeMap<String, Vec<(String, f64)>> {
        let request = ApiRequest {
            method: "GET".to_owned(),
            path: "/api/v1/query".to_owned(),
            query: "query=strobe_check_strikes".to_owned(),
            ..ApiRequest::default()
        };
        let answer = self.respond(&request, caller);
        let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let list = told.pointer("/data/result").and_then(Value::as_array);
        let mut checks: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
        for series in list.into_iter().flatten() {
            let label = |name| series.pointer(name).and_then(Value::as_str);
            let value = label("/value/1").and_then(|text| text.parse().ok());
            if let (Some(name), Some(check), Some(value)) =
                (label("/metric/instance"), label("/metric/check"), value)
            {
                checks.entry(name.to_owned()).or_default().push((check.to_owned(), value));
            }
        }
        checks
    }
}
