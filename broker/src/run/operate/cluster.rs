//! `strobe cluster …`, as the control socket hears it.

use super::super::Broker;
use super::super::clock::wall_ms;
use crate::api::Form;
use crate::cluster::findings::{self, Finding};
use crate::cluster::{Answer, Asked, Known, Report, join_hash};
use crate::own;
use serde_json::json;
use std::time::Duration;
use strobe_cluster::kinds::members::Stage;
use strobe_cluster::kinds::{Command, members, tokens};
use strobe_cluster::{Outcome, Role};
use strobe_wire::ids::HostId;
use strobe_wire::limits::SHARDS;
use strobe_wire::message::{ApiRequest, ApiResponse, HostInfo};
use strobe_wire::pki::Token;
use strobe_wire::shard::{Shard, capacity};

/// What an operator is answered instead of what was wanted.
type Refused = ApiResponse;

impl Broker {
    /// What stands behind `/api/strobe/v1/cluster/` in the request's path.
    pub(super) fn cluster(&self, what: &str, request: &ApiRequest) -> ApiResponse {
        let answer = Form::of(request).map_err(|why| bad(&why)).and_then(|form| match what {
            "status" => self.cluster_report().map(|report| own::json_answer(200, &report.json())),
            "doctor" => self.cluster_report().map(|report| {
                let found = findings::of_cluster(&report, &self.all_vitals(report.me));
                let list: Vec<_> = found.iter().map(Finding::json).collect();
                own::json_answer(200, &json!(list))
            }),
            "init" => self.cluster_init(&form),
            "join" => self.cluster_join(&form),
            "share" => self.cluster_share(&form),
            "token" => self.cluster_token(&form),
            "transfer-leader" => self.cluster_transfer(&form),
            "add" => self.cluster_add(&form),
            "drain" => self.cluster_drain(&form),
            "move" => self.cluster_move(&form),
            "remove" => self.cluster_remove(&form),
            _ => Err(own::error(404, "not_found", "no such cluster command")),
        });
        answer.unwrap_or_else(|refused| refused)
    }

    fn cluster_report(&self) -> Result<Report, Refused> {
        match self.shared.cluster.ask(Asked::Report).map_err(|why| unavailable(&why))? {
            Answer::Report(report) => Ok(*report),
            _ => Err(unavailable(BUSY)),
        }
    }

    /// Has a command applied, or says why it is not, or that nobody knows.
    pub(super) fn agree(&self, command: Command) -> Result<u64, Refused> {
        self.agreed(command).map_err(refused)
    }

    /// The same in words.
    pub(super) fn agreed(&self, command: Command) -> Result<u64, (u16, String)> {
        self.outcome(Asked::Propose(command))
    }

    fn outcome(&self, asked: Asked) -> Result<u64, (u16, String)> {
        outcome(&self.shared.cluster.ask(asked).map_err(|why| (503, why))?)
    }

    fn cluster_init(&self, form: &Form) -> Result<ApiResponse, Refused> {
        if let Some(url) = form.optional("store") {
            self.may_attach(url).map_err(|why| unfit(&why))?;
        }
        let identity = self.shared.cluster.init(form.optional("address")).map_err(|w| unfit(&w))?;
        log::warn!("this broker made a cluster and is broker 1 of it");
        let shared = self.share(form)?;
        let (secret, address) = (self.join_token(INIT_TOKEN)?, self.cluster_report()?);
        let address = address.members.first().map(|known| known.address.clone());
        let text = format!(
            "This broker is broker 1 of cluster {:032x}. Another one joins with\n\n  strobe cluster \
             join {} --token {secret}\n\nThe token is good once, for an hour; `strobe cluster \
             token` makes more.{shared}",
            identity.cluster,
            address.unwrap_or_default(),
        );
        Ok(own::text(200, &text))
    }

    /// What is to be run on the machine of a broker that shall join.
    fn cluster_add(&self, form: &Form) -> Result<ApiResponse, Refused> {
        let report = self.cluster_report()?;
        let me = report.members.iter().find(|known| known.id == report.me);
        let me = me.filter(|_| !report.left).ok_or_else(|| unfit(LEFT))?;
        let lifetime = lifetime(form)?;
        let token = self.join_token(lifetime)?;
        let text = format!(
            "On the machine of the new broker, where strobe-broker runs on an empty state \
             directory:\n\n  strobe cluster join {} --token {token}\n\nThe token is good once, \
             for {}, and worth as much as the fleet's private key.",
            me.address,
            spoken(lifetime),
        );
        Ok(own::text(200, &text))
    }

    fn cluster_drain(&self, form: &Form) -> Result<ApiResponse, Refused> {
        let (id, report) = (broker(form)?, self.cluster_report()?);
        let known = member(&report, id)?;
        if known.down {
            let why = format!(
                "broker {id} ({}) is not heard of, so it gives nothing away: start it first, or, if it \
                 is gone for good, `strobe cluster remove {id}`",
                known.address
            );
            return Err(unfit(&why));
        }
        match known.stage {
            Stage::Learner => {
                let why = format!(
                    "broker {id} is still catching up and owns nothing: wait until it votes, or \
                     `strobe cluster remove {id} --force`"
                );
                return Err(unfit(&why));
            }
            Stage::Draining => {
                let text = format!(
                    "Broker {id} is draining already: it has {} shards left.",
                    known.shards
                );
                return Ok(own::text(200, &text));
            }
            Stage::Voter | Stage::Left => {}
        }
        not_the_last(&report, id)?;
        self.agree(members::Change::drain(id))?;
        let text = format!(
            "Broker {id} gives its shards away and then leaves. Stop it when `strobe cluster \
             status` does not list it any more."
        );
        Ok(own::text(200, &text))
    }

    fn cluster_join(&self, form: &Form) -> Result<ApiResponse, Refused> {
        let seed = form.optional("seed").ok_or_else(|| bad("seed=HOST:PORT is wanted"))?;
        let token = form.optional("token").ok_or_else(|| bad("token=TOKEN is wanted"))?;
        let token: Token = token.parse().map_err(|why| bad(&format!("--token: {why}")))?;
        let own = self.shared.cluster.own.get();
        let hosts = self.shared.registry.hosts();
        // Those that were read from a shared Redis have no certificate of this broker's authority.
        let enrolled = |info: &&HostInfo| {
            let id = HostId(info.hello.host);
            Some(&info.hello.instance) != own && self.shared.registry.standing(id).expires_s != 0
        };
        let hosts = hosts.iter().filter(enrolled).count();
        if 0 < hosts && form.optional("force").is_none() && !self.shared.is_clustered() {
            let why = format!(
                "{hosts} hosts are enrolled here, and know only this broker's own authority, which \
                 joining replaces: they would have to enrol anew, with a token each. Join with an \
                 empty state directory, or say --force"
            );
            return Err(unfit(&why));
        }
        if let Some(url) = form.optional("store") {
            self.may_attach(url).map_err(|why| unfit(&why))?;
        }
        let address = form.optional("address");
        let joined = self.shared.cluster.join(seed, token, address).map_err(|why| unfit(&why))?;
        log::warn!("this broker is broker {} of a cluster", joined.broker);
        let text = format!(
            "This broker is broker {} of cluster {:032x}: a learner now, and a voter with shards of \
             its own when it has caught up. `strobe cluster status` shows it.{}",
            joined.broker,
            joined.cluster,
            self.share(form)?
        );
        Ok(own::text(200, &text))
    }

    fn cluster_share(&self, form: &Form) -> Result<ApiResponse, Refused> {
        match self.share(form)?.trim() {
            "" => Err(bad("store=URL is wanted")),
            said => Ok(own::text(200, said)),
        }
    }

    /// Gives this broker the Redis that was named, if one was; what to say of it.
    fn share(&self, form: &Form) -> Result<String, Refused> {
        let Some(url) = form.optional("store") else { return Ok(String::new()) };
        let import = form.optional("import").is_some();
        self.attach(url, import).map(|said| format!("\n\n{said}")).map_err(|why| unfit(&why))
    }

    fn cluster_token(&self, form: &Form) -> Result<ApiResponse, Refused> {
        Ok(own::text(200, &self.join_token(lifetime(form)?)?.to_string()))
    }

    fn join_token(&self, lifetime: Duration) -> Result<Token, Refused> {
        let token = Token::create(self.shared.cluster.authority().fingerprint());
        let token = token.map_err(|why| unavailable(&why.to_string()))?;
        self.issue(join_hash(&token.secret), lifetime)?;
        Ok(token)
    }

    /// Has the cluster know a token.
    pub(super) fn issue(&self, hash: [u8; 32], lifetime: Duration) -> Result<u64, Refused> {
        let lifetime_ms = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        if !(1_000..=LIFETIME_MAX_MS).contains(&lifetime_ms) {
            return Err(bad("a token lives for 1 second to 7 days"));
        }
        let now_ms = wall_ms();
        self.agree(tokens::Change::issue(hash, now_ms.saturating_add(lifetime_ms), now_ms))
    }

    fn cluster_transfer(&self, form: &Form) -> Result<ApiResponse, Refused> {
        let (to, before) = (broker(form)?, self.cluster_report()?);
        able(member(&before, to)?)?;
        if before.leader == Some(to) {
            return Ok(own::text(200, &format!("Broker {to} leads already.")));
        }
        if before.role != Role::Leader {
            let leader = before.leader.and_then(|id| before.members.iter().find(|k| k.id == id));
            let at = leader.map_or_else(
                || "nobody, as far as this broker knows".to_owned(),
                |leader| format!("broker {} ({}); ask there", leader.id, leader.address),
            );
            return Err(unfit(&format!("only the leader hands its part over, and that is {at}")));
        }
        let asked = self.shared.cluster.ask(Asked::Transfer(to));
        asked.map_err(|why| unavailable(&why))?;
        Ok(own::text(
            200,
            &format!("Broker {to} is asked to lead; `strobe cluster status` shows it."),
        ))
    }

    /// It would come back at once from a broker that has its share already.
    fn cluster_move(&self, form: &Form) -> Result<ApiResponse, Refused> {
        let asked = form.optional("shard").ok_or_else(|| bad("shard=NUMBER or HOST is wanted"))?;
        let shard = match asked.parse().ok().filter(|number| *number < SHARDS) {
            Some(number) => Shard(number),
            None => self.shard_of(asked)?,
        };
        let (to, report) = (broker(form)?, self.cluster_report()?);
        let known = member(&report, to)?;
        able(known)?;
        let fit = |known: &&Known| known.stage == Stage::Voter && !known.down;
        let most = capacity(report.members.iter().filter(fit).count());
        let moved = self.outcome(Asked::Move(shard, to)).map_err(refused)?;
        Ok(own::text(
            200,
            &match moved {
                0 => format!("Shard {} is broker {to}'s already.", shard.0),
                _ if most <= known.shards => format!(
                    "Shard {} is broker {to}'s now. It has more than its share ({most}) by that, so \
                     the cluster moves one of its shards away.",
                    shard.0
                ),
                _ => format!("Shard {} is broker {to}'s now; its agents are sent there.", shard.0),
            },
        ))
    }

    fn shard_of(&self, host: &str) -> Result<Shard, Refused> {
        let fleet = self.fleet();
        let named = fleet.iter().map(|(info, _)| &info.hello);
        let named = named.filter(|hello| hello.instance == host).map(|hello| HostId(hello.host));
        let mut ids: Vec<HostId> = named.chain(host.parse()).collect();
        match (ids.pop(), ids.is_empty()) {
            (Some(id), true) => Ok(Shard::of(id)),
            (None, _) => Err(unfit(&format!(
                "{host:?} is no shard's number (0 to 255), and no host that `strobe hosts` lists"
            ))),
            (Some(_), false) => {
                Err(unfit(&format!("{host:?} are several hosts; name one by its id")))
            }
        }
    }

    fn cluster_remove(&self, form: &Form) -> Result<ApiResponse, Refused> {
        let (id, report) = (broker(form)?, self.cluster_report()?);
        let known = member(&report, id)?;
        if !known.down && form.optional("force").is_none() {
            let why = format!(
                "broker {id} is alive: `strobe cluster drain {id}` lets it go without a gap; --force \
                 removes it all the same"
            );
            return Err(unfit(&why));
        }
        not_the_last(&report, id)?;
        self.agree(members::Change::remove(id))?;
        Ok(own::text(
            200,
            &format!("Broker {id} is no member any more; its shards go to the others."),
        ))
    }
}

/// The outcome of a command, or a status and why there is none.
pub(super) fn outcome(answer: &Answer) -> Result<u64, (u16, String)> {
    match answer {
        Answer::Outcome(Outcome::Applied(value)) => Ok(*value),
        Answer::Outcome(Outcome::Refused(refusal)) => {
            Err((422, format!("it is refused: {refusal}")))
        }
        Answer::Outcome(Outcome::Unknown) => Err((503, UNKNOWN.to_owned())),
        _ => Err((503, BUSY.to_owned())),
    }
}

fn refused((status, why): (u16, String)) -> Refused {
    match status {
        422 => unfit(&why),
        _ => unavailable(&why),
    }
}

fn broker(form: &Form) -> Result<u64, Refused> {
    let id = form.optional("broker").and_then(|id| id.parse().ok());
    id.ok_or_else(|| bad("broker=NUMBER is wanted, as `strobe cluster status` lists them"))
}

/// The member that is meant, of those that this broker knows.
fn member(report: &Report, id: u64) -> Result<&Known, Refused> {
    if report.left {
        return Err(unfit(LEFT));
    }
    report.members.iter().find(|known| known.id == id).ok_or_else(|| {
        let ids: Vec<String> = report.members.iter().map(|known| known.id.to_string()).collect();
        let ids = ids.join(", ");
        unfit(&format!(
            "no broker {id} is in this cluster, only {ids}: see `strobe cluster status`"
        ))
    })
}

/// That somebody else can take what it has.
fn not_the_last(report: &Report, id: u64) -> Result<(), Refused> {
    let votes = |known: &Known| known.stage == Stage::Voter;
    if !report.members.iter().any(|known| known.id == id && votes(known)) {
        return Ok(());
    }
    match report.members.iter().filter(|known| votes(known)).count() {
        1 => Err(unfit(&format!(
            "broker {id} is the only one that votes, and there would be no cluster without it: `strobe \
             cluster add` says how another one joins; wait until that one votes"
        ))),
        _ => Ok(()),
    }
}

/// That it can lead, or take shards.
fn able(known: &Known) -> Result<(), Refused> {
    let Known { id, address, .. } = known;
    Err(unfit(&match known.stage {
        _ if known.down => format!("broker {id} ({address}) is not heard of: start it first"),
        Stage::Learner => format!("broker {id} is still catching up: wait until it votes"),
        Stage::Draining => format!("broker {id} is draining, and about to leave"),
        Stage::Left => format!("broker {id} has left"),
        Stage::Voter => return Ok(()),
    }))
}

fn lifetime(form: &Form) -> Result<Duration, Refused> {
    let ms = form.optional("lifetime_ms").and_then(|ms| ms.parse().ok());
    ms.map(Duration::from_millis).ok_or_else(|| bad("lifetime_ms=NUMBER is wanted"))
}

/// `1 h`, `90 min`, `30 s`.
fn spoken(time: Duration) -> String {
    match time.as_secs() {
        s if s % 3_600 == 0 => format!("{} h", s / 3_600),
        s if s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

pub(super) fn bad(why: &str) -> Refused {
    own::error(400, "bad_data", why)
}

pub(super) fn unfit(why: &str) -> Refused {
    own::error(422, "execution", why)
}

pub(super) fn unavailable(why: &str) -> Refused {
    own::error(503, "unavailable", why)
}

const INIT_TOKEN: Duration = Duration::from_secs(3600);
const LIFETIME_MAX_MS: i64 = 7 * 86_400_000;
const LEFT: &str = "this broker is no member of the cluster any more: ask one that `strobe cluster \
     status` lists";
const BUSY: &str = "too many changes are waiting for the cluster; try again later";
const UNKNOWN: &str = "the outcome is unknown: the cluster did not agree within 10 s (is more than half \
     of it down? `strobe cluster doctor`), and may still do so. Look at `strobe cluster status` before \
     you try again";
