//! `strobe hosts add|remove|retire|find`, as the control socket hears it.

use super::super::Broker;
use super::super::clock::wall_ms;
use super::super::lookout::Told;
use super::cluster::{bad, unavailable, unfit};
use crate::api::Form;
use crate::own;
use crate::tokens::TokenHash;
use strobe_cluster::kinds::targets::{self, Change, OPERATOR, Target};
use strobe_cluster::kinds::tokens;
use strobe_discovery::check::Check;
use strobe_discovery::is_name;
use strobe_wire::message::{ApiRequest, ApiResponse};
use strobe_wire::pki::Token;

impl Broker {
    /// What stands behind `/api/strobe/v1/hosts/` in the request's path.
    pub(super) fn targets(&self, what: &str, request: &ApiRequest) -> ApiResponse {
        let answer = Form::of(request).map_err(|why| bad(&why)).and_then(|form| match what {
            "add" => self.add(&form),
            "remove" => self.remove(&form),
            "retire" => self.retire(&form),
            "find" => {
                if !self.shared.config.lookout.finds() {
                    return Err(unfit(
                        "this broker is told of no way to find machines: see `strobe config explain \
                         broker.discover_static` and what follows it",
                    ));
                }
                self.shared.lookout.say(Told::Look { find: true });
                Ok(own::text(200, "Machines are looked for now; `strobe hosts` lists them."))
            }
            _ => Err(own::error(404, "not_found", "no such command for hosts")),
        });
        answer.unwrap_or_else(|refused| refused)
    }

    /// A machine registers itself, or a program registers it: whoever has a token with which a host could
    /// enrol. The token is not used up.
    pub(in crate::run) fn register(&self, request: &ApiRequest) -> ApiResponse {
        let answer = Form::of(request).map_err(|why| bad(&why)).and_then(|form| {
            let token: Result<Token, _> = form.optional("token").unwrap_or_default().parse();
            let now_ms = wall_ms();
            let hash = token.as_ref().ok().map(|token| TokenHash::of(&token.secret));
            let here = token
                .as_ref()
                .is_ok_and(|token| self.shared.registry.is_good_token(&token.secret, now_ms));
            let agreed = hash.and_then(|TokenHash(hash)| {
                let look = self.shared.cluster.look(move |state| tokens::token(state, hash));
                look.ok().flatten()
            });
            let agreed = agreed.is_some_and(|token| {
                !token.revoked && token.used_ms == 0 && now_ms < token.expires_ms
            });
            if !here && !agreed {
                let why = "token=TOKEN is wanted, one of `strobe token create` that is still good";
                return Err(own::error(403, "forbidden", why));
            }
            // What runs programs, or speaks to others, is an operator's to say.
            if form.all("check").next().is_some() {
                return Err(bad("check= is an operator's to say: `strobe hosts add`"));
            }
            self.add(&form)
        });
        answer.unwrap_or_else(|refused| refused)
    }

    fn add(&self, form: &Form) -> Result<ApiResponse, ApiResponse> {
        let name = named(form)?;
        let before = self.target(&name)?;
        let address = form.optional("address").unwrap_or_default().to_owned();
        if !address.is_empty() && !is_name(&address) {
            return Err(bad(&format!("--address {address:?} is neither an address nor a name")));
        }
        let group = word(form.optional("group").unwrap_or_default())?;
        let tags: Result<Vec<String>, ApiResponse> = form.all("tag").map(word).collect();
        let (mut tags, mut checks) = (tags?, Vec::new());
        for text in form.all("check") {
            let check: Check =
                text.parse().map_err(|why: strobe_discovery::check::CheckError| {
                    bad(&format!("--check {why}"))
                })?;
            checks.push(check.to_string());
        }
        tags.sort();
        tags.dedup();
        let (first_ms, retired_ms) = (wall_ms(), before.map_or(0, |before| before.retired_ms));
        let source = OPERATOR.to_owned();
        let target = Target { name, address, source, tags, group, checks, first_ms, retired_ms };
        let text = format!("{} is known.", target.name);
        self.put_target(target)?;
        Ok(own::text(200, &text))
    }

    fn remove(&self, form: &Form) -> Result<ApiResponse, ApiResponse> {
        let name = named(form)?;
        if self.target(&name)?.is_none() {
            return Err(unknown(&name));
        }
        self.settle(Change::remove(&name))?;
        self.shared.lookout.say(Told::Look { find: false });
        Ok(own::text(200, &format!("{name} is forgotten, until it is found again.")))
    }

    fn retire(&self, form: &Form) -> Result<ApiResponse, ApiResponse> {
        let name = named(form)?;
        let is_host = || self.fleet().iter().any(|(info, _)| info.hello.instance == name);
        let before = match self.target(&name)? {
            Some(before) => before,
            // An agent's host that nobody named is a machine as well.
            None if is_host() => Target {
                name: name.clone(),
                source: "agent".to_owned(),
                first_ms: wall_ms(),
                ..Target::default()
            },
            None => return Err(unknown(&name)),
        };
        let undo = form.optional("undo").is_some();
        let retired_ms = if undo { 0 } else { wall_ms() };
        self.put_target(Target { retired_ms, ..before })?;
        let text = match undo {
            true => format!("{name} is in use again."),
            false => format!(
                "{name} is retired: it is not checked, and not counted as lost. It is in use again when \
                 its agent sends something."
            ),
        };
        Ok(own::text(200, &text))
    }

    fn put_target(&self, target: Target) -> Result<(), ApiResponse> {
        self.settle(Change::put(target))?;
        self.shared.lookout.say(Told::Look { find: false });
        Ok(())
    }

    fn target(&self, name: &str) -> Result<Option<Target>, ApiResponse> {
        let name = name.to_owned();
        let looked = self.shared.cluster.look(move |state| targets::target(state, &name));
        looked.map_err(|why| unavailable(&why))
    }
}

fn named(form: &Form) -> Result<String, ApiResponse> {
    let name = form.optional("host").ok_or_else(|| bad("host=NAME is wanted"))?;
    if is_name(name) {
        return Ok(name.to_owned());
    }
    Err(bad(&format!("{name:?} is no name: at most 253 letters, digits and -_.: are wanted")))
}

/// A tag or a group.
fn word(text: &str) -> Result<String, ApiResponse> {
    if text.is_empty() || is_name(text) {
        return Ok(text.to_owned());
    }
    Err(bad(&format!("{text:?} is no tag and no group: letters, digits and -_.: are wanted")))
}

fn unknown(name: &str) -> ApiResponse {
    own::error(
        404,
        "not_found",
        &format!("no machine {name:?} is known; `strobe hosts` lists them"),
    )
}
