//! What only the owner of the state directory may ask, by the control socket: tokens, revocations.

mod backup;
mod cluster;

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
    pub(super) fn operate(&self, request: &ApiRequest) -> ApiResponse {
        let answer = match request.path.as_str() {
            "/api/strobe/v1/tokens" => self.create_token(request),
            "/api/strobe/v1/revoke" => self.revoke(request),
            "/api/strobe/v1/backup" => self.back_up(request),
            "/api/strobe/v1/burst" => self.ask_burst(request),
            path => match path.strip_prefix("/api/strobe/v1/cluster/") {
                Some(what) => return self.cluster(what, request),
                None => return self.respond(request, &Caller::default()),
            },
        };
        answer.unwrap_or_else(|refused| refused)
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

    /// Asks a connected host for what its flight recorder has.
    fn ask_burst(&self, request: &ApiRequest) -> Result<ApiResponse, ApiResponse> {
        let (asked, id) = self.named(request)?;
        if !self.burst_of(id) && !self.burst_elsewhere(id) {
            let why = format!("{asked} ({id}) is not connected, so nobody can be asked");
            return Err(own::error(422, "execution", &why));
        }
        let text = format!(
            "{asked} ({id}) is asked for the last minute and the next ten seconds, \
             which it has if its flight recorder is on."
        );
        Ok(own::text(200, &text))
    }

    /// Asks a host that is connected here; false if it is not.
    pub(super) fn burst_of(&self, id: HostId) -> bool {
        let here = self.shared.registry.host(id).is_some_and(|info| info.connected);
        if here {
            self.shared.registry.ask_burst(id);
            wake(&self.shared.waker);
            log::info!("{id} is asked for a burst");
        }
        here
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
