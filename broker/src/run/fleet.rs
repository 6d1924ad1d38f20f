//! What this broker tells others of itself, and what they tell of the rest of the fleet.

use super::Broker;
use super::clock::monotonic;
use crate::own;
use crate::peers;
use crate::query::{Caller, Deadline, Pulse};
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
