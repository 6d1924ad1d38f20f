//! What this broker tells others of itself, and what they tell of the rest of the fleet.

use super::Broker;
use super::clock::{monotonic, wall_ms};
use crate::cluster::findings::{self, Finding};
use crate::cluster::{Answer, Asked, Report};
use crate::own;
use crate::peers;
use crate::query::{Caller, Deadline, Pulse};
use crate::vitals::Vitals;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use strobe_wire::health::Health;
use strobe_wire::ids::HostId;
use strobe_wire::message::{ApiRequest, ApiResponse, HostInfo};
use strobe_wire::shard::Shard;

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
            peers::VITALS_PATH => {
                let body = serde_json::to_vec(&self.vitals()).unwrap_or_default();
                let content_type = "application/json".to_owned();
                ApiResponse { status: 200, content_type, body }
            }
            peers::HOSTS_PATH => peers::hosts(shared.registry.hosts()),
            peers::VERSIONS_PATH => self.versions_here(),
            peers::ASK_PATH => self.asked_here(request),
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

    /// What it counts.
    pub(super) fn numbers(&self) -> own::Numbers {
        let shared = &self.shared;
        let mirror = shared.mirror.get();
        own::Numbers {
            net: self.counts(),
            store: shared.store.counts(),
            mirror: mirror.map(|m| *m.lock().unwrap_or_else(PoisonError::into_inner)),
            queries_abandoned: shared.queries_abandoned.load(Ordering::Relaxed),
            members_silent: shared.peers.silent(),
            lookout: shared.lookout.counts(),
        }
    }

    fn vitals(&self) -> Vitals {
        let own::Numbers { net, store, mirror, .. } = self.numbers();
        let scaling = self.shared.lookout.proposal();
        Vitals { scaling, ..Vitals::of(&net, &store, mirror.as_ref(), wall_ms()) }
    }

    /// How every broker is doing that answers.
    pub(super) fn all_vitals(&self, me: u64) -> BTreeMap<u64, Vitals> {
        let mut all = Self::briefly(|deadline| self.shared.peers.vitals(deadline));
        all.insert(me, self.vitals());
        all
    }

    /// How the cluster stands, for whoever may see the fleet: brokers, shards, hosts and findings. A
    /// broker by itself is one member without a number.
    pub(super) fn overview(&self) -> ApiResponse {
        let report = match self.shared.cluster.ask(Asked::Report) {
            Ok(Answer::Report(report)) => Some(*report),
            // Its control plane may have ended: its numbers are there all the same.
            Ok(_) | Err(_) => None,
        };
        let hosts = self.fleet();
        own::json_answer(
            200,
            &match report {
                Some(report) => clustered(&report, &self.all_vitals(report.me), &hosts),
                None => self.alone(&hosts),
            },
        )
    }

    fn alone(&self, hosts: &[own::Known]) -> Value {
        let vitals = self.vitals();
        let mut found = Vec::new();
        findings::of_broker("this broker", &vitals, &mut found);
        if self.shared.is_clustered() {
            found.push(findings::stalled());
        }
        let hosts: Vec<&HostInfo> = hosts.iter().map(|(info, _)| info).collect();
        let address = self.quic_addr().to_string();
        let member = json!({
            "id": null, "address": address, "me": true, "vitals": vitals, "hosts": states(&hosts),
        });
        json!({ "cluster": null, "now_ms": wall_ms(), "members": [member], "findings": list(&found) })
    }

    /// The hosts that other brokers know.
    pub(super) fn elsewhere(&self) -> Vec<HostInfo> {
        Self::briefly(|deadline| self.shared.peers.hosts(deadline))
    }

    /// A list is not waited for as long as samples are.
    fn briefly<T>(ask: impl FnOnce(Deadline<'_>) -> T) -> T {
        let since = monotonic();
        let pulse = || {
            let elapsed = monotonic().saturating_duration_since(since).as_millis();
            Pulse::Elapsed(u64::try_from(elapsed).unwrap_or(u64::MAX))
        };
        ask(Deadline::new(&pulse, LISTS_MS_MAX))
    }
}

fn clustered(report: &Report, vitals: &BTreeMap<u64, Vitals>, hosts: &[own::Known]) -> Value {
    let owner = |info: &HostInfo| {
        let shard = usize::from(Shard::of(HostId(info.hello.host)).0);
        report.owners.get(shard).copied().unwrap_or(0)
    };
    let mut of: BTreeMap<u64, Vec<&HostInfo>> = BTreeMap::new();
    hosts.iter().for_each(|(info, _)| of.entry(owner(info)).or_default().push(info));
    let mut json = report.json();
    let members = json.get_mut("members").and_then(Value::as_array_mut);
    for member in members.into_iter().flatten() {
        let id = member.get("id").and_then(Value::as_u64).unwrap_or(0);
        member["vitals"] = json!(vitals.get(&id));
        member["hosts"] = states(of.get(&id).map_or(&[][..], Vec::as_slice));
    }
    json["now_ms"] = json!(wall_ms());
    json["shards"] = json!(report.owners);
    json["findings"] = list(&findings::of_cluster(report, vitals));
    json
}

fn list(found: &[Finding]) -> Value {
    Value::Array(found.iter().map(Finding::json).collect())
}

/// How many hosts are in which state, and the first of their names.
fn states(hosts: &[&HostInfo]) -> Value {
    let now_ms = wall_ms();
    let mut counts: BTreeMap<&str, u64> = Health::ALL.map(|state| (state.word(), 0)).into();
    for info in hosts {
        *counts.entry(Health::of(info, now_ms).word()).or_default() += 1;
    }
    let mut names: Vec<&str> = hosts.iter().map(|info| info.hello.instance.as_str()).collect();
    names.sort_unstable();
    names.truncate(NAMES_MAX);
    let mut json = json!(counts);
    json["names"] = json!(names);
    json
}

const LISTS_MS_MAX: u64 = 1_000;
/// Names of a broker's hosts that are told.
const NAMES_MAX: usize = 48;
