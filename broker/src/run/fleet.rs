//! What this broker tells others of itself, and what they tell of the rest of the fleet.

use super::Broker;
use super::clock::monotonic;
use crate::own;
use crate::peers;
use crate::query::{Caller, Deadline, Pulse};
use serde_json::Value;
use std::collections::BTreeMap;
use strobe_cluster::kinds::targets;
use strobe_wire::ids::HostId;
use strobe_wire::message::{ApiRequest, ApiResponse, HostInfo};

impl Broker {
    /// The instance of an agent that is run beside this broker and enrols anew by itself whenever
    /// [`Self::authority`] changes: it does not keep the broker from joining a cluster.
    pub fn own_instance(&self, instance: &str) {
        // The first stays.
        drop(self.shared.cluster.own.set(instance.to_owned()));
    }

    /// The fingerprint of the fleet's authority; joining a cluster changes it.
    #[must_use]
    pub fn authority(&self) -> [u8; 32] {
        self.shared.cluster.authority().fingerprint()
    }

    /// Answers another broker, from what is here alone: it waits for nobody else.
    pub(super) fn respond_to_peer(&self, request: &ApiRequest, caller: &Caller) -> ApiResponse {
        let shared = &self.shared;
        match request.path.as_str() {
            peers::PATH => peers::page(&shared.store, &request.body, &|| caller.has_left()),
            peers::HOSTS_PATH => peers::hosts(shared.registry.hosts()),
            path => {
                own::error(404, "not_found", &format!("{path} is nothing that a broker is asked"))
            }
        }
    }

    /// Every host of the fleet.
    pub(super) fn fleet(&self) -> Vec<own::Known> {
        let registry = &self.shared.registry;
        let hosts = peers::newest(registry.hosts().into_iter().chain(self.elsewhere()));
        let standing = |info: &HostInfo| registry.standing(HostId(info.hello.host));
        hosts.into_iter().map(|info| (standing(&info), info)).map(|(s, info)| (info, s)).collect()
    }

    /// Every machine of the fleet, with or without an agent.
    pub(super) fn machines(&self, caller: &Caller) -> own::Machines {
        let shared = &self.shared;
        let targets = shared.cluster.look(targets::targets);
        let targets = targets.unwrap_or_else(|why| {
            log::warn!("the list of hosts has only those with an agent: {why}");
            Vec::new()
        });
        own::Machines {
            hosts: self.fleet(),
            // Without machines there are no checks, and nobody is asked for them.
            checks: if targets.is_empty() { BTreeMap::new() } else { self.strikes(caller) },
            targets,
            enrolled: shared.registry.enrolled(),
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

    /// The hosts that other brokers know.
    pub(super) fn elsewhere(&self) -> Vec<HostInfo> {
        let since = monotonic();
        let pulse = || {
            let elapsed = monotonic().saturating_duration_since(since).as_millis();
            Pulse::Elapsed(u64::try_from(elapsed).unwrap_or(u64::MAX))
        };
        self.shared.peers.hosts(Deadline::new(&pulse, HOSTS_MS_MAX))
    }
}

/// A list of hosts is not waited for as long as samples are.
const HOSTS_MS_MAX: u64 = 1_000;
