//! What hosts run, what they are asked, and what the audit log says of it.

use super::super::Broker;
use super::super::clock::{monotonic, wall_ms};
use super::super::loops::wake;
use super::cluster::{bad, unavailable, unfit};
use crate::api::Form;
use crate::audit::Entry;
use crate::cluster::{Answer, Asked};
use crate::managed::Running;
use crate::own;
use crate::peers::{ASK_PATH, VERSIONS_PATH};
use crate::query::{Deadline, Pulse};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use strobe_cluster::kinds::audit;
use strobe_wire::ids::HostId;
use strobe_wire::message::{ApiRequest, ApiResponse, Question};

/// What brokers and hosts run.
#[derive(Debug, Default)]
pub(in crate::run) struct Runs {
    pub(super) brokers: BTreeMap<u64, Running>,
    pub(super) hosts: BTreeMap<HostId, Running>,
}

/// The same of one broker, as it tells others.
#[derive(Serialize, Deserialize)]
struct Told {
    me: u64,
    broker: Running,
    hosts: Vec<(String, Running)>,
}

/// A question to another broker's host, and its answer.
#[derive(Serialize, Deserialize)]
struct Asks {
    host: String,
    what: String,
}

#[derive(Serialize, Deserialize)]
struct Says {
    here: bool,
    answer: Result<String, String>,
}

impl Broker {
    /// What all that are known run.
    /// `fleet` is what [`Self::fleet`] has just said: it asks every broker.
    pub(in crate::run) fn running_of_fleet(&self, fleet: &[own::Known]) -> Runs {
        let mut runs = Runs::default();
        let since = monotonic();
        let pulse = || Pulse::Elapsed(elapsed_ms(since));
        let told =
            self.shared.peers.gather(VERSIONS_PATH, &[], Deadline::new(&pulse, GATHER_MS_MAX));
        let told = told.iter().filter_map(|(_, body)| serde_json::from_slice::<Told>(body).ok());
        let connected = fleet.iter().filter(|(info, _)| info.connected);
        let connected: BTreeSet<u128> = connected.map(|(info, _)| info.hello.host).collect();
        let is_connected = |id: HostId| {
            let info = self.shared.registry.host(id);
            info.is_some_and(|info| info.connected)
        };
        for told in told.chain([self.told_versions()]) {
            runs.brokers.insert(told.me, told.broker);
            for (id, running) in told.hosts {
                let Ok(id) = id.parse() else { continue };
                runs.hosts.insert(id, running);
            }
        }
        // What a host told here counts where it is; what it told before it left does not.
        for (id, running) in self.shared.registry.managed().all() {
            if is_connected(id) || !connected.contains(&id.0) {
                runs.hosts.insert(id, running);
            }
        }
        runs
    }

    fn told_versions(&self) -> Told {
        let connected = |id: &HostId| self.shared.registry.host(*id).is_some_and(|i| i.connected);
        let hosts =
            self.shared.registry.managed().all().into_iter().filter(|(id, _)| connected(id));
        let hosts = hosts.map(|(id, running)| (id.to_string(), running)).collect();
        Told { me: self.shared.tuned.me(), broker: self.shared.tuned.running(), hosts }
    }

    /// Answers another broker.
    pub(in crate::run) fn versions_here(&self) -> ApiResponse {
        own::json_answer(200, &json!(self.told_versions()))
    }

    /// The same as rows of hosts, with what each is to run.
    pub(super) fn host_versions(&self, fleet: &[own::Known], runs: &Runs) -> serde_json::Value {
        let row = |(info, _): &own::Known| {
            let mut row = json!({
                "id": HostId(info.hello.host).to_string(),
                "instance": info.hello.instance,
                "connected": info.connected,
            });
            row["configuration"] = self.configuration(runs, info);
            row
        };
        fleet.iter().map(row).collect::<Vec<_>>().into()
    }

    /// What a host runs and is to run.
    pub(in crate::run) fn configuration(
        &self,
        runs: &Runs,
        info: &strobe_wire::message::HostInfo,
    ) -> serde_json::Value {
        let wanted = self.shared.tuned.desired().of_host(&info.hello).map(|(version, _)| version);
        match runs.hosts.get(&HostId(info.hello.host)) {
            Some(of) if of.managed => json!({
                "managed": true,
                "version": of.version,
                "wanted": wanted,
                "lags": wanted.is_some_and(|wanted| wanted != of.version),
                "proven": of.proven,
                "refused": of.refused,
                "why": of.why,
                "locked": of.locked,
            }),
            Some(_) => json!({ "managed": false }),
            // It has not been here since this broker started.
            None => serde_json::Value::Null,
        }
    }

    /// Asks a host something, and tells the audit log before it tells the answer.
    pub(super) fn question(&self, request: &ApiRequest, who: &str) -> ApiResponse {
        let asked = Form::of(request).map_err(|why| bad(&why)).and_then(|form| {
            let words = || Question::ALL.map(Question::word).join(", ");
            let what = form.optional("what").and_then(Question::of);
            let what = what.ok_or_else(|| bad(&format!("what= one of {} is wanted", words())))?;
            let (name, id) = self.named(request)?;
            Ok((what, name, id))
        });
        let (what, name, id) = match asked {
            Ok(asked) => asked,
            Err(refused) => return refused,
        };
        let answer = self.ask_host(id, what);
        let outcome = match &answer {
            Ok(_) => "answered".to_owned(),
            Err(why) => format!("not answered: {why}"),
        };
        if let Err(why) = self.record(who, what.word(), &format!("{name} ({id})"), &outcome) {
            let why = format!("nothing is told that the audit log does not say: {why}");
            return unavailable(&why);
        }
        match answer {
            Ok(text) if what == Question::Burst => {
                own::text(200, &format!("{name} ({id}) is {text}."))
            }
            Ok(text) => own::text(200, text.trim_end()),
            Err(why) => unfit(&format!("{name} ({id}): {why}")),
        }
    }

    fn ask_host(&self, host: HostId, what: Question) -> Result<String, String> {
        if self.shared.registry.host(host).is_some_and(|info| info.connected) {
            return self.ask_here(host, what, ANSWER);
        }
        let since = monotonic();
        let pulse = || Pulse::Elapsed(elapsed_ms(since));
        let asks = Asks { host: host.to_string(), what: what.word().to_owned() };
        let body = serde_json::to_vec(&asks).unwrap_or_default();
        let deadline = Deadline::new(&pulse, GATHER_MS_MAX * 2);
        let told = self.shared.peers.gather(ASK_PATH, &body, deadline);
        let says = told.iter().filter_map(|(_, body)| serde_json::from_slice::<Says>(body).ok());
        let here = says.filter(|says| says.here).map(|says| says.answer).next();
        here.unwrap_or_else(|| Err("not connected, so nobody can be asked".to_owned()))
    }

    fn ask_here(&self, host: HostId, what: Question, wait: Duration) -> Result<String, String> {
        let managed = self.shared.registry.managed();
        let (id, answer) = managed.ask(host, what)?;
        wake(&self.shared.waker);
        answer.recv_timeout(wait).unwrap_or_else(|_| {
            managed.forget(id);
            Err(format!("its agent did not answer within {wait:?}"))
        })
    }

    /// Answers another broker, whose operator asks one of the hosts here.
    pub(in crate::run) fn asked_here(&self, request: &ApiRequest) -> ApiResponse {
        let asks = serde_json::from_slice::<Asks>(&request.body).ok();
        let asks = asks.and_then(|asks| Some((asks.host.parse().ok()?, Question::of(&asks.what)?)));
        let says = match asks {
            Some((host, what)) if self.shared.registry.host(host).is_some_and(|i| i.connected) => {
                Says { here: true, answer: self.ask_here(host, what, ANSWER_FOR_PEER) }
            }
            _ => Says { here: false, answer: Err(String::new()) },
        };
        own::json_answer(200, &json!(says))
    }

    /// One more entry of the audit log; all brokers are to know that it has it.
    pub(super) fn record(
        &self,
        who: &str,
        what: &str,
        on: &str,
        outcome: &str,
    ) -> Result<(), String> {
        let (who, what) = (who.to_owned(), what.to_owned());
        let (on, outcome) = (on.to_owned(), outcome.to_owned());
        let entry = Entry { n: 0, at_ms: wall_ms(), who, what, on, outcome, hash: String::new() };
        let end = self.shared.audit.append(entry).map_err(|why| why.to_string())?;
        // Nobody waits for it: without a quorum it is said with the next entry.
        self.shared.cluster.tell_any(Asked::Propose(audit::Change::grown(
            end.log,
            end.entries,
            end.hash,
        )));
        Ok(())
    }

    /// `strobe audit`.
    pub(super) fn audited(&self, request: &ApiRequest) -> ApiResponse {
        let form = match Form::of(request) {
            Ok(form) => form,
            Err(why) => return bad(&why),
        };
        let io = |why: std::io::Error| unavailable(&format!("the audit log cannot be read: {why}"));
        let audit = &self.shared.audit;
        if form.optional("verify").is_none() {
            let count = form.optional("last").and_then(|n| n.parse().ok()).unwrap_or(100);
            return audit.last(count).map_or_else(io, |lines| own::text(200, &lines));
        }
        let agreed = match self.shared.cluster.ask_any(Asked::AuditHead(audit.end().log)) {
            Ok(Answer::AuditHead(head)) => head,
            Ok(_) => return unavailable("the control plane is busy; try again later"),
            Err(why) => return unavailable(&why),
        };
        let agreed = agreed.as_ref().map(|head| (head.entries, head.hash.as_slice()));
        audit.verify(agreed).map_or_else(io, |broken| {
            let entries = audit.end().entries;
            own::json_answer(
                200,
                &json!({
                    "entries": entries,
                    "agreed": agreed.map(|(entries, _)| entries),
                    "broken": broken,
                }),
            )
        })
    }
}

fn elapsed_ms(since: std::time::Instant) -> u64 {
    let elapsed = monotonic().saturating_duration_since(since).as_millis();
    u64::try_from(elapsed).unwrap_or(u64::MAX)
}

const GATHER_MS_MAX: u64 = 1_000;
const ANSWER: Duration = Duration::from_secs(10);
/// A broker that is silent for 2 s is not waited for.
const ANSWER_FOR_PEER: Duration = Duration::from_millis(1_500);
