//! `strobe config …` of a fleet, as the control socket hears it.

use super::super::Broker;
use super::super::clock::wall_ms;
use super::cluster::{bad, outcome, unavailable, unfit};
use crate::api::Form;
use crate::cluster::{Answer, Asked, Canary, Versions};
use crate::fleet::{Concerned, concerned, diff};
use crate::own;
use crate::tune::{classes, tried};
use serde_json::json;
use strobe_cluster::kinds::versions::{self, Stage, Version};
use strobe_cluster::kinds::{Command, rollouts};
use strobe_wire::fleet::Document;
use strobe_wire::ids::HostId;
use strobe_wire::message::{ApiRequest, ApiResponse};

type Refused = ApiResponse;

/// A text that is to be a version.
pub(super) struct Draft {
    pub(super) text: String,
    pub(super) before: Document,
    pub(super) after: Document,
    pub(super) versions: Versions,
    pub(super) concerned: Vec<Concerned>,
}

impl Broker {
    /// What stands behind `/api/strobe/v1/config/` in the request's path.
    pub(super) fn config_of_fleet(
        &self,
        what: &str,
        request: &ApiRequest,
        who: &str,
    ) -> Result<ApiResponse, Refused> {
        // The body is a text, and no form.
        let form = Form::of(&ApiRequest { body: Vec::new(), ..request.clone() });
        let form = form.map_err(|why| bad(&why))?;
        match what {
            "show" => {
                let versions = self.versions()?;
                let wanted = number(&form, "number")?.unwrap_or(versions.in_force.number);
                Ok(own::text(200, &text_of(&versions, wanted)?))
            }
            "history" => {
                let versions = match form.optional("agreed") {
                    Some(_) => self.versions_agreed()?,
                    None => self.versions()?,
                };
                Ok(own::json_answer(200, &history(&versions)))
            }
            "diff" => {
                let versions = self.versions()?;
                let to = number(&form, "b")?.unwrap_or(versions.in_force.number);
                let from = match number(&form, "a")? {
                    Some(from) => from,
                    None => before(&versions, to),
                };
                let text = diff(&text_of(&versions, from)?, &text_of(&versions, to)?);
                Ok(own::text(
                    200,
                    if text.is_empty() { "They are equal." } else { text.trim_end() },
                ))
            }
            "status" => Ok(own::json_answer(200, &self.config_status()?)),
            "try" => {
                let draft = self.draft(&request.body)?;
                Ok(own::text(200, &self.plan(&draft)))
            }
            "apply" => {
                let draft = self.draft(&request.body)?;
                self.apply(&draft, &form, who)
            }
            "rollback" => {
                let versions = self.versions_agreed()?;
                let from = versions.in_force.number;
                let to = number(&form, "number")?.unwrap_or_else(|| before(&versions, from));
                let draft = self.draft(text_of(&versions, to)?.as_bytes())?;
                let reason =
                    form.optional("reason").map_or(String::new(), |why| format!(": {why}"));
                let reason = format!("back to version {to}{reason}");
                self.put(&draft, &reason, None, who)
            }
            _ => Err(own::error(404, "not_found", "no such command of the configuration")),
        }
    }

    /// As this broker knows them.
    fn versions(&self) -> Result<Versions, Refused> {
        self.versions_by(Asked::Versions)
    }

    /// As they are, if a quorum says so: what a change is decided by.
    fn versions_agreed(&self) -> Result<Versions, Refused> {
        self.versions_by(Asked::Read(Box::new(Asked::Versions)))
    }

    fn versions_by(&self, asked: Asked) -> Result<Versions, Refused> {
        match self.shared.cluster.ask_any(asked).map_err(|why| unavailable(&why))? {
            Answer::Versions(versions) => Ok(*versions),
            _ => Err(unavailable("the control plane is busy, or has no quorum; try again later")),
        }
    }

    /// Has a command applied, by the cluster or by this broker alone.
    pub(in crate::run) fn settle(&self, command: Command) -> Result<u64, Refused> {
        let answer = self.shared.cluster.ask_any(Asked::Propose(command));
        outcome(&answer.map_err(|why| unavailable(&why))?).map_err(|(status, why)| match status {
            422 => unfit(&why),
            _ => unavailable(&why),
        })
    }

    fn draft(&self, body: &[u8]) -> Result<Draft, Refused> {
        let text = str::from_utf8(body).map_err(|_| bad("the configuration is not UTF-8"))?;
        let after = Document::read(text).map_err(|why| bad(&why.to_string()))?;
        let versions = self.versions_agreed()?;
        let next = versions.all.last().map_or(0, |last| last.number) + 1;
        let config = &self.shared.config;
        let (hot, _) = tried(config, next, &after.of_brokers()).map_err(|why| bad(&why))?;
        let has_redis = self.shared.mirror.get().is_some();
        let classes = classes(config, &hot, &after.promises(), has_redis);
        if classes.map_err(|why| bad(&why))?.any_is_copied() {
            self.all_have_redis(versions.me)?;
        }
        let before = Document::read(&versions.in_force.text).unwrap_or_default();
        let hosts: Vec<_> = self.fleet().into_iter().map(|(info, _)| info).collect();
        let concerned = concerned(&before, &after, &hosts);
        Ok(Draft { text: text.to_owned(), before, after, versions, concerned })
    }

    /// That no other broker would refuse to promise what Redis has to keep. Who does not answer is not asked
    /// twice: `config status` tells of it.
    fn all_have_redis(&self, me: u64) -> Result<(), Refused> {
        let mut others = self.all_vitals(me);
        others.retain(|id, of| *id != me && of.redis.is_none());
        if others.is_empty() {
            return Ok(());
        }
        let without: Vec<String> = others.keys().map(|id| format!("broker {id}")).collect();
        Err(bad(&format!(
            "broker.durability \"wal+redis\" is wanted, and there is no Redis at {}: give one there with \
             `strobe cluster share`",
            without.join(" and ")
        )))
    }

    fn apply(&self, draft: &Draft, form: &Form, who: &str) -> Result<ApiResponse, Refused> {
        let reason = form.optional("reason").ok_or_else(|| bad("a reason is wanted: --reason"))?;
        let in_force = &draft.versions.in_force;
        if let Some(base) = number(form, "base")?
            && base != in_force.number
        {
            let why = format!(
                "version {} was made meanwhile by {} ({}); this one was made from {base}. `strobe config \
                 diff {base} {}` shows it",
                in_force.number, in_force.author, in_force.reason, in_force.number
            );
            return Err(unfit(&why));
        }
        if draft.text == in_force.text {
            return Err(unfit(&format!("that is version {}, which is in force", in_force.number)));
        }
        let canary = match form.optional("now") {
            Some(_) => None,
            None => self.canary(draft, form)?,
        };
        self.put(draft, reason, canary, who)
    }

    /// The version is put, or begins with its canary.
    fn put(
        &self,
        draft: &Draft,
        reason: &str,
        canary: Option<Canary>,
        who: &str,
    ) -> Result<ApiResponse, Refused> {
        if let Some(trial) = draft.versions.all.iter().find(|v| v.stage() == Stage::OnTrial) {
            let why = format!(
                "version {} by {} ({}) is on trial with {}; when that is over, try again",
                trial.number, trial.author, trial.reason, trial.canary
            );
            return Err(unfit(&why));
        }
        let (from, at_ms) = (draft.versions.in_force.number, wall_ms());
        let number = self.settle(match canary {
            None => versions::Change::put(from, who, reason, &draft.text, at_ms),
            Some(canary) => rollouts::Change::begin(Version {
                number: from,
                author: who.to_owned(),
                reason: reason.to_owned(),
                text: draft.text.clone(),
                at_ms,
                canary: canary.to_string(),
                ..Version::default()
            }),
        })?;
        let canary = canary.map(|canary| self.name_of(canary));
        Ok(own::json_answer(200, &json!({ "number": number, "canary": canary })))
    }

    /// Who is to try it: whom the operator named, a connected host that it concerns, or this broker; nobody
    /// if it concerns nobody who is here.
    fn canary(&self, draft: &Draft, form: &Form) -> Result<Option<Canary>, Refused> {
        let brokers = draft.before.of_brokers() != draft.after.of_brokers()
            || draft.before.promises() != draft.after.promises();
        let runs = self.running_of_fleet(&self.fleet());
        let able = |of: &&Concerned| {
            let running = runs.hosts.get(&HostId(of.hello.host));
            of.connected && running.is_some_and(|running| running.managed)
        };
        match form.optional("canary") {
            Some(text) if text.starts_with("broker") => {
                let me = draft.versions.me;
                let id = match text.strip_prefix("broker:") {
                    Some(id) => id.parse().map_err(|_| bad("broker:NUMBER is wanted"))?,
                    None => me,
                };
                // One that is not heard of would be waited for until the trial is over.
                if id != me && !runs.brokers.contains_key(&id) {
                    return Err(unfit(&format!(
                        "broker {id} cannot try it: no broker of that number answers"
                    )));
                }
                Ok(Some(Canary::Broker(id)))
            }
            Some(name) => {
                let is = |of: &&Concerned| {
                    of.hello.instance == name || name.parse().ok() == Some(HostId(of.hello.host))
                };
                let named = draft.concerned.iter().filter(is).find(able);
                let named = named.ok_or_else(|| {
                    unfit(&format!(
                        "{name:?} cannot try it: no host of that name is connected, managed, and \
                         concerned by the change"
                    ))
                })?;
                Ok(Some(Canary::Host(HostId(named.hello.host))))
            }
            None => Ok(match draft.concerned.iter().find(able) {
                Some(host) => Some(Canary::Host(HostId(host.hello.host))),
                None => brokers.then_some(Canary::Broker(draft.versions.me)),
            }),
        }
    }

    /// As people know it.
    fn name_of(&self, canary: Canary) -> String {
        let Canary::Host(id) = canary else { return canary.to_string() };
        let fleet = self.fleet();
        let known = fleet.iter().find(|(info, _)| HostId(info.hello.host) == id);
        known.map_or_else(
            || canary.to_string(),
            |(info, _)| format!("{} ({id})", info.hello.instance),
        )
    }

    fn config_status(&self) -> Result<serde_json::Value, Refused> {
        let versions = self.versions()?;
        let fleet = self.fleet();
        let runs = self.running_of_fleet(&fleet);
        let trial = versions.all.iter().find(|version| version.stage() == Stage::OnTrial);
        let name = |text: &str| {
            text.parse().map_or_else(|_| text.to_owned(), |canary| self.name_of(canary))
        };
        let trial = trial.map(|v| json!({ "number": v.number, "canary": name(&v.canary) }));
        let brokers = runs.brokers.iter().map(|(id, running)| {
            json!({ "id": id, "version": running.version, "refused": running.refused,
                    "why": running.why, "locked": running.locked })
        });
        let brokers = brokers.collect::<Vec<_>>();
        let last = versions.all.last().map(|last| one(&versions, last));
        Ok(json!({
            "in_force": versions.in_force.number,
            "trial": trial,
            "last": last,
            "brokers": brokers,
            "hosts": self.host_versions(&fleet, &runs),
        }))
    }
}

/// Of the version before it that was in force.
fn before(versions: &Versions, number: u64) -> u64 {
    let older = versions.all.iter().rev().filter(|version| version.number < number);
    older.filter(|v| v.stage() == Stage::InForce).map(|version| version.number).next().unwrap_or(0)
}

fn text_of(versions: &Versions, number: u64) -> Result<String, Refused> {
    // Before the first there was nothing.
    if number == 0 {
        return Ok(String::new());
    }
    let found = versions.all.iter().find(|version| version.number == number);
    found.map(|version| version.text.clone()).ok_or_else(|| {
        let why =
            format!("there is no version {number}, or none any more; see `strobe config history`");
        own::error(404, "not_found", &why)
    })
}

fn history(versions: &Versions) -> serde_json::Value {
    versions.all.iter().map(|version| one(versions, version)).collect::<Vec<_>>().into()
}

fn one(versions: &Versions, version: &Version) -> serde_json::Value {
    let from = text_of(versions, before(versions, version.number)).unwrap_or_default();
    let lines = diff(&from, &version.text);
    let count = |sign| lines.lines().filter(|line| line.starts_with(sign)).count();
    let stage = match version.stage() {
        Stage::InForce if version.number == versions.in_force.number => "in force",
        Stage::InForce => "replaced",
        Stage::OnTrial => "on trial",
        Stage::TakenBack => "taken back",
    };
    json!({
        "number": version.number,
        "at_ms": version.at_ms,
        "author": version.author,
        "reason": version.reason,
        "stage": stage,
        "canary": version.canary,
        "told": version.told,
        "added": count('+'),
        "removed": count('-'),
        "diff": lines,
    })
}

fn number(form: &Form, name: &str) -> Result<Option<u64>, Refused> {
    let Some(text) = form.optional(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| bad(&format!("{name}={text:?} is no number of a version")))
}
