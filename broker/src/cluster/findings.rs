//! What an operator should look at, each with the place in `docs/runbooks.md` that says what to do.

use super::{Known, Report};
use crate::scaling::Proposal;
use crate::vitals::Vitals;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use strobe_cluster::kinds::members::Stage;
use strobe_wire::limits::SHARDS;

/// One thing to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad.
    pub kind: Kind,
    /// What it is called in `docs/runbooks.md`: one of [`CODES`].
    pub code: &'static str,
    /// A sentence.
    pub why: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Somebody has to act.
    Bad,
    /// It is good to know.
    Note,
}

impl Finding {
    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let kind = if self.kind == Kind::Bad { "bad" } else { "note" };
        let runbook = format!("docs/runbooks.md#{}", self.code);
        json!({ "kind": kind, "code": self.code, "why": self.why, "runbook": runbook })
    }
}

/// Everything that can be found. Each has a heading in `docs/runbooks.md`.
pub const CODES: [&str; 20] = [
    STALLED,
    NOT_A_MEMBER,
    NO_LEADER,
    BROKER_DOWN,
    BROKER_MUTE,
    NO_OWNER,
    CATCHING_UP,
    ONE_VOTER,
    EVEN_VOTERS,
    MESSAGES_DROPPED,
    STORE_REFUSES,
    ACKS_SLOW,
    REDIS_AWAY,
    REDIS_BEHIND,
    REDIS_FENCED,
    IMPORTING,
    REDIS_NOT_SHARED,
    VERSIONS_DIFFER,
    SCALE_OUT,
    SCALE_IN,
];

/// What is found in a cluster; `vitals` are of the brokers that answered.
#[must_use]
pub fn of_cluster(report: &Report, vitals: &BTreeMap<u64, Vitals>) -> Vec<Finding> {
    let mut found = Vec::new();
    if report.left {
        // What else it believes of the cluster is of the day when it left.
        bad(&mut found, NOT_A_MEMBER, "this broker is no member of the cluster any more: stop it");
        if let Some(of) = vitals.get(&report.me) {
            of_broker("this broker", of, &mut found);
        }
        return found;
    }
    if !report.members.iter().any(|known| known.id == report.me) {
        let why = "this broker has joined and waits for the cluster's state";
        note(&mut found, CATCHING_UP, why.to_owned());
        return found;
    }
    if report.leader.is_none() {
        let why = "no leader is known: less than half of the voters can be reached, or an \
                   election is under way. Ingest goes on; nothing can be changed";
        bad(&mut found, NO_LEADER, why);
    }
    of_members(report, vitals, &mut found);
    of_votes(report, &mut found);
    if 0 < report.dropped {
        let dropped = report.dropped;
        let why = format!("{dropped} messages to peers were dropped: they do not keep up");
        note(&mut found, MESSAGES_DROPPED, why);
    }
    let name = |id: &u64| format!("broker {id}");
    vitals.iter().for_each(|(id, of)| of_broker(&name(id), of, &mut found));
    let without: Vec<String> =
        vitals.iter().filter(|(_, of)| of.redis.is_none()).map(|(id, _)| name(id)).collect();
    if !without.is_empty() && without.len() < vitals.len() {
        let why = format!(
            "{} has no broker.store: what it stores is only on its disk",
            without.join(" and ")
        );
        note(&mut found, REDIS_NOT_SHARED, why);
    }
    let versions: BTreeMap<&str, u64> =
        vitals.iter().map(|(id, of)| (of.version.as_str(), *id)).collect();
    if 1 < versions.len() {
        let of: Vec<String> = versions.iter().map(|(v, id)| format!("{v} (broker {id})")).collect();
        let why = format!("brokers of several versions run: {}", of.join(", "));
        note(&mut found, VERSIONS_DIFFER, why);
    }
    for proposal in vitals.values().filter_map(|of| of.scaling.as_ref()) {
        let code = match proposal {
            Proposal::Out { .. } => SCALE_OUT,
            Proposal::In { .. } => SCALE_IN,
        };
        note(&mut found, code, proposal.why().to_owned());
    }
    found
}

/// The control plane of this broker does not answer.
#[must_use]
pub fn stalled() -> Finding {
    let why = "the control plane of this broker does not answer or has ended: ingest goes on by the \
               last map that it knew";
    Finding { kind: Kind::Bad, code: STALLED, why: why.to_owned() }
}

/// What is found at one broker, called `name` in a sentence.
pub fn of_broker(name: &str, vitals: &Vitals, found: &mut Vec<Finding>) {
    if !vitals.storing {
        let why = format!(
            "{name} takes no frames: its disk is full, below the free-space floor or failing; agents \
             keep theirs and go to others"
        );
        bad(found, STORE_REFUSES, &why);
    }
    if let Some(ms) = vitals.ack_ms_p99.filter(|ms| ACK_MS_MAX < *ms) {
        let why = format!("{name} acknowledges slowly: one frame in a hundred waits about {ms} ms");
        note(found, ACKS_SLOW, why);
    }
    let Some(redis) = vitals.redis else { return };
    if !redis.connected {
        let why = format!("{name} cannot write to Redis; samples are kept on its disk meanwhile");
        bad(found, REDIS_AWAY, &why);
    } else if LAG_SEGMENTS_MAX < redis.lag_segments {
        let why = format!(
            "Redis lacks {} segments of {name}, the oldest of {} min ago",
            redis.lag_segments,
            redis.lag_ms / 60_000
        );
        note(found, REDIS_BEHIND, why);
    }
    if 0 < redis.import_left {
        let left = redis.import_left;
        note(
            found,
            IMPORTING,
            format!("{name} moves its older history to Redis: {left} segments are left"),
        );
    }
    if 0 < redis.fenced_shards {
        let shards = redis.fenced_shards;
        let why = format!("{name} is refused by {shards} shards in Redis that have newer owners");
        note(found, REDIS_FENCED, why);
    }
}

fn of_members(report: &Report, vitals: &BTreeMap<u64, Vitals>, found: &mut Vec<Finding>) {
    for Known { id, address, down, .. } in &report.members {
        if *down {
            let why = format!(
                "broker {id} ({address}) is not heard of: start it, or `strobe cluster remove {id}`"
            );
            bad(found, BROKER_DOWN, &why);
        } else if !vitals.contains_key(id) {
            let why = format!("broker {id} ({address}) did not answer this one just now");
            note(found, BROKER_MUTE, why);
        }
    }
    let owned: usize = report.members.iter().map(|known| known.shards).sum();
    if owned < usize::from(SHARDS) {
        let why = format!("{} shards have no owner", usize::from(SHARDS) - owned);
        bad(found, NO_OWNER, &why);
    }
    for known in report.members.iter().filter(|known| known.stage == Stage::Learner) {
        note(found, CATCHING_UP, format!("broker {} is still catching up", known.id));
    }
}

fn of_votes(report: &Report, found: &mut Vec<Finding>) {
    match report.members.iter().filter(|known| report.voters.contains(&known.id)).count() {
        1 => note(found, ONE_VOTER, "one voter: it is not survived by anybody".to_owned()),
        count if count % 2 == 0 => {
            let (loss, fewer) = (count.saturating_sub(1) / 2, count.saturating_sub(1));
            let why =
                format!("{count} voters survive the loss of {loss}, as {fewer} would: add one");
            note(found, EVEN_VOTERS, why);
        }
        _ => {}
    }
}

fn bad(found: &mut Vec<Finding>, code: &'static str, why: &str) {
    found.push(Finding { kind: Kind::Bad, code, why: why.to_owned() });
}

fn note(found: &mut Vec<Finding>, code: &'static str, why: String) {
    found.push(Finding { kind: Kind::Note, code, why });
}

const STALLED: &str = "control-plane-stalled";
const NOT_A_MEMBER: &str = "not-a-member";
const NO_LEADER: &str = "no-leader";
const BROKER_DOWN: &str = "broker-down";
const BROKER_MUTE: &str = "broker-mute";
const NO_OWNER: &str = "shards-without-owner";
const CATCHING_UP: &str = "catching-up";
const ONE_VOTER: &str = "one-voter";
const EVEN_VOTERS: &str = "even-voters";
const MESSAGES_DROPPED: &str = "messages-dropped";
const STORE_REFUSES: &str = "store-refuses";
const ACKS_SLOW: &str = "acks-slow";
const REDIS_AWAY: &str = "redis-away";
const REDIS_BEHIND: &str = "redis-behind";
const REDIS_FENCED: &str = "redis-fenced";
const IMPORTING: &str = "importing";
const REDIS_NOT_SHARED: &str = "redis-not-shared";
const VERSIONS_DIFFER: &str = "versions-differ";
const SCALE_OUT: &str = "scale-out";
const SCALE_IN: &str = "scale-in";
/// What the fleet is promised at its largest.
const ACK_MS_MAX: u64 = 500;
/// A seal makes two or three at a time.
const LAG_SEGMENTS_MAX: u64 = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vitals::Redis;

    fn codes(found: &[Finding]) -> Vec<&'static str> {
        found.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_broker_that_is_well_is_not_told_of() {
        let redis = Some(Redis { connected: true, lag_segments: 3, ..Redis::default() });
        let well = Vitals { storing: true, ack_ms_p99: Some(30), redis, ..Vitals::default() };
        let mut found = Vec::new();
        of_broker("broker 1", &well, &mut found);
        assert_eq!(found, []);
        let away = Some(Redis { fenced_shards: 2, ..Redis::default() });
        let ill = Vitals { ack_ms_p99: Some(700), redis: away, ..Vitals::default() };
        of_broker("broker 1", &ill, &mut found);
        assert_eq!(codes(&found), [STORE_REFUSES, ACKS_SLOW, REDIS_AWAY, REDIS_FENCED]);
        assert!(codes(&found).iter().all(|code| CODES.contains(code)));
        assert_eq!(found[0].json()["runbook"], "docs/runbooks.md#store-refuses");
    }

    /// A broker that had just joined called itself "no member any more: stop it", and one that was removed
    /// while it was away went on about a majority that it had lost.
    #[test]
    fn who_comes_and_who_has_left_are_told_apart() {
        let mut report = Report {
            cluster: 1,
            me: 2,
            role: strobe_cluster::Role::Follower,
            term: 0,
            leader: None,
            committed: 0,
            applied: 0,
            voters: Vec::new(),
            members: Vec::new(),
            refused: 0,
            dropped: 0,
            owners: Vec::new(),
            left: false,
        };
        assert_eq!(codes(&of_cluster(&report, &BTreeMap::new())), [CATCHING_UP]);
        report.left = true;
        assert_eq!(codes(&of_cluster(&report, &BTreeMap::new())), [NOT_A_MEMBER]);
    }
}
