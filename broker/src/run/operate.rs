//! What only the owner of the state directory may ask, by the control socket: tokens, revocations, the
//! configuration, the cluster, questions to hosts. Whatever changes something, or looks into a host, is
//! written to the audit log.

mod backup;
mod cluster;
mod config;
mod hosts;
mod plan;
mod targets;

use super::Broker;
use super::clock::wall_s;
use super::loops::wake;
use crate::api::Form;
use crate::own;
use crate::query::Caller;
use crate::tokens::TokenHash;
use std::time::Duration;
use strobe_cluster::kinds::revocations;
use strobe_wire::ids::HostId;
use strobe_wire::message::{ApiRequest, ApiResponse};
use strobe_wire::pki::Token;

impl Broker {
    /// Answers the owner, and everything that others may ask.
    pub(super) fn operate(&self, request: &ApiRequest, who: &str) -> ApiResponse {
        let path = request.path.as_str();
        let Some(what) = path.strip_prefix("/api/strobe/v1/") else {
            return self.respond(request, &Caller::default());
        };
        let answer = match what {
            "tokens" => self.create_token(request),
            "revoke" => self.revoke(request),
            "backup" => self.back_up(request),
            "ask" => return self.question(request, who),
            "audit" => return self.audited(request),
            _ => match (what.strip_prefix("cluster/"), what.strip_prefix("config/")) {
                (Some(what), _) => Ok(self.cluster(what, request)),
                (_, Some(what)) => self.config_of_fleet(what, request, who),
                _ => match what.strip_prefix("hosts/") {
                    Some(what) => Ok(self.targets(what, request)),
                    None => return self.respond(request, &Caller::default()),
                },
            },
        };
        let answer = answer.unwrap_or_else(|refused| refused);
        if CHANGING.contains(&what) {
            self.recorded(request, who, what, &answer);
        }
        answer
    }

    /// Tells the audit log of a change; what is done is done, so a log that cannot grow is told loudly.
    fn recorded(&self, request: &ApiRequest, who: &str, what: &str, answer: &ApiResponse) {
        let form =
            Form::of(&ApiRequest { body: Vec::new(), ..request.clone() }).unwrap_or_default();
        // Not the rest: there are tokens in it.
        let on =
            ["host", "broker", "shard", "address", "base", "number", "reason", "canary", "now"];
        let on = on.iter().filter_map(|name| Some(format!("{name}={}", form.optional(name)?)));
        let on = on.collect::<Vec<_>>().join(" ");
        let said = String::from_utf8_lossy(&answer.body);
        let outcome = match answer.status {
            200 if what.contains("token") => "done".to_owned(),
            200 => format!("done: {}", said.lines().next().unwrap_or_default()),
            status => format!("refused ({status}): {said}"),
        };
        if let Err(why) = self.record(who, what, &on, &outcome) {
            log::error!("{who} did {what} {on}, and the audit log does not say so: {why}");
        }
    }

    fn create_token(&self, request: &ApiRequest) -> Result<ApiResponse, ApiResponse> {
        let lifetime = request.query.strip_prefix("lifetime_ms=").and_then(|ms| ms.parse().ok());
        let wanted = || own::error(400, "bad_data", "lifetime_ms=NUMBER is wanted");
        let lifetime = Duration::from_millis(lifetime.ok_or_else(wanted)?);
        if self.shared.is_clustered() {
            // Any broker of the cluster is to know it.
            let token = Token::create(self.shared.cluster.authority().fingerprint());
            let token = token.map_err(|why| own::error(503, "unavailable", &why.to_string()))?;
            self.issue(TokenHash::of(&token.secret).0, lifetime)?;
            return Ok(own::text(200, &token.to_string()));
        }
        let token = self.enrolment_token(lifetime);
        let token = token.map_err(|why| own::error(422, "execution", &why.to_string()))?;
        Ok(own::text(200, &token.to_string()))
    }

    /// Refuses the certificates of a host, named by its instance or id, from now on.
    fn revoke(&self, request: &ApiRequest) -> Result<ApiResponse, ApiResponse> {
        let (asked, id) = self.named(request)?;
        let life_s = self.shared.config.certificate_life_s;
        let kept = self.shared.registry.revoke(id, wall_s(), life_s);
        wake(&self.shared.waker);
        kept.map_err(|why| own::error(503, "unavailable", &why.to_string()))?;
        log::warn!("the certificates of {id} are revoked");
        if self.shared.is_clustered() {
            let refused_s = self.shared.registry.standing(id).refused_s;
            let told = self.agreed(revocations::Change::refuse(id.0, refused_s));
            told.map_err(|(status, why)| {
                let why = format!("revoked at this broker; the others may not know: {why}");
                own::error(status, "unavailable", &why)
            })?;
        }
        let text =
            format!("The certificates of {asked} ({id}) are revoked; a new token lets it in.");
        Ok(own::text(200, &text))
    }

    /// The host that a request names by its instance or id, as it was named.
    fn named(&self, request: &ApiRequest) -> Result<(String, HostId), ApiResponse> {
        let bad = |why: &str| own::error(400, "bad_data", why);
        let form = Form::of(request).map_err(|why| bad(&why))?;
        let asked = form.optional("host").ok_or_else(|| bad("host=INSTANCE or ID is wanted"))?;
        let hosts = self.fleet();
        let named = hosts.iter().filter(|(info, _)| info.hello.instance == asked);
        let mut ids: Vec<HostId> = named.map(|(info, _)| HostId(info.hello.host)).collect();
        // One that enrolled and never said hello is known by its id alone.
        if ids.is_empty() {
            ids.extend(asked.parse::<HostId>().ok());
        }
        match ids.as_slice() {
            [id] => Ok((asked.to_owned(), *id)),
            [] => {
                let why = format!("no host {asked:?} is known; `strobe hosts` lists them");
                Err(own::error(404, "not_found", &why))
            }
            several => {
                let ids: Vec<String> = several.iter().map(HostId::to_string).collect();
                let why = format!("{asked:?} are several hosts; name one: {}", ids.join(", "));
                Err(own::error(422, "execution", &why))
            }
        }
    }

    /// Every host and how its certificates stand.
    pub(super) fn known(&self) -> Vec<own::Known> {
        let registry = &self.shared.registry;
        let hosts = registry.hosts().into_iter();
        hosts
            .map(|info| (registry.standing(HostId(info.hello.host)), info))
            .map(|(s, i)| (i, s))
            .collect()
    }
}

/// What the audit log is told of besides questions.
const CHANGING: [&str; 14] = [
    "tokens",
    "backup",
    "cluster/share",
    "revoke",
    "config/apply",
    "config/rollback",
    "cluster/init",
    "cluster/join",
    "cluster/token",
    "cluster/transfer-leader",
    "cluster/drain",
    "cluster/move",
    "cluster/remove",
    "cluster/add",
];
