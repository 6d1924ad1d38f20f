//! `strobe hosts`: which machines there are, and what an operator says of them.

use crate::ask::{self, To, encoded, get};
use crate::output::{print, table};
use clap::Subcommand;
use serde_json::Value;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use strobe_discovery::scan::{Plan, scan};

/// `strobe hosts`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Hosts {
    #[command(flatten)]
    to: To,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Only those of this group.
    #[arg(long)]
    group: Option<String>,
    /// Only those with this tag; several: with all of them.
    #[arg(long = "tag")]
    tags: Vec<String>,
    #[command(subcommand)]
    act: Option<Act>,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Say that there is a machine, or how it is: what was said of it before is replaced.
    Add {
        #[command(flatten)]
        to: To,
        /// Its name; of an agent's host: its instance.
        host: String,
        /// Where it is, if the name does not say it.
        #[arg(long)]
        address: Option<String>,
        /// The group that it belongs to.
        #[arg(long)]
        group: Option<String>,
        /// A word by which it is found again.
        #[arg(long = "tag", value_delimiter = ',')]
        tags: Vec<String>,
        /// What is checked of it, with commas between: tcp:PORT, http:PORT/PATH, quic:PORT or script:NAME.
        #[arg(long = "check", value_delimiter = ',')]
        checks: Vec<String>,
    },
    /// Forget what was said or found of a machine.
    Remove {
        #[command(flatten)]
        to: To,
        /// Its name.
        host: String,
    },
    /// Take a machine out of use: it is not checked, and does not count as lost.
    Retire {
        #[command(flatten)]
        to: To,
        /// Its name.
        host: String,
        /// It is in use again.
        #[arg(long)]
        undo: bool,
    },
    /// Look for machines now, in the ways that the broker is told of.
    Find {
        #[command(flatten)]
        to: To,
    },
    /// Scan ranges from here, once: says what it will do, and does it with --yes.
    Scan {
        /// As 10.0.0.0/24; a /16 in all at most. Scan only what is yours.
        #[arg(required = true)]
        ranges: Vec<String>,
        /// TCP ports that are tried, up to eight, with commas between.
        #[arg(long = "port", default_value = "22", value_delimiter = ',')]
        ports: Vec<u16>,
        /// Connections a second, up to 1000.
        #[arg(long, default_value_t = 50)]
        rate: u32,
        /// How long a connection may take, up to 5s.
        #[arg(long, default_value = "1s")]
        timeout: String,
        /// Do it.
        #[arg(long)]
        yes: bool,
    },
    /// Refuse every certificate a host has, at once and for good; a new token lets it in again.
    Revoke {
        #[command(flatten)]
        to: To,
        /// Its instance, or its id as `strobe hosts` lists it; 32 zeros are all dashboards.
        host: String,
    },
}

/// Does what is asked; what is to be printed.
pub(crate) fn run(hosts: &Hosts) -> Result<String, String> {
    let post = |to: &To, what: &str, form: &[(&str, &str)]| {
        let pair = |(name, value): &(&str, &str)| format!("{name}={}", encoded(value));
        let form: Vec<String> = form.iter().map(pair).collect();
        get(to, "POST", &format!("/api/strobe/v1/hosts/{what}"), &form.join("&"))
    };
    match &hosts.act {
        None => list(hosts),
        Some(Act::Add { to, host, address, group, tags, checks }) => {
            let mut form = vec![("host", host.as_str())];
            form.extend(address.iter().map(|address| ("address", address.as_str())));
            form.extend(group.iter().map(|group| ("group", group.as_str())));
            form.extend(tags.iter().map(|tag| ("tag", tag.as_str())));
            form.extend(checks.iter().map(|check| ("check", check.as_str())));
            post(to, "add", &form)
        }
        Some(Act::Remove { to, host }) => post(to, "remove", &[("host", host)]),
        Some(Act::Retire { to, host, undo: false }) => post(to, "retire", &[("host", host)]),
        Some(Act::Retire { to, host, undo: true }) => {
            post(to, "retire", &[("host", host), ("undo", "1")])
        }
        Some(Act::Find { to }) => post(to, "find", &[]),
        Some(Act::Scan { ranges, ports, rate, timeout, yes }) => {
            let wait = strobe_wire::settings::duration_ms(timeout);
            let wait = Duration::from_millis(wait.map_err(|why| format!("--timeout: {why}"))?);
            let parsed: Result<_, String> =
                ranges.iter().map(|range| range.parse().map_err(|why| format!("{why}"))).collect();
            let plan = Plan::new(parsed?, ports.clone(), *rate, wait);
            scan_here(&plan.map_err(|why| why.to_string())?, *yes)
        }
        Some(Act::Revoke { to, host }) => ask::revoke(to, host),
    }
}

fn list(hosts: &Hosts) -> Result<String, String> {
    let body = get(&hosts.to, "GET", "/api/strobe/v1/hosts", "")?;
    let all: Vec<Value> = serde_json::from_str(&body).map_err(|why| why.to_string())?;
    let all: Vec<Value> = all.into_iter().filter(|host| fits(host, hosts)).collect();
    if hosts.json {
        return Ok(Value::Array(all).to_string());
    }
    let told = match (all.is_empty(), &hosts.group, hosts.tags.is_empty()) {
        (true, None, true) => "No host has sent anything yet, and no machine is known.".to_owned(),
        (true, ..) => "No host fits.".to_owned(),
        _ => table(&ask::HOSTS_HEAD, &ask::host_rows(&all)),
    };
    // Whoever may see hosts may see this too; a broker of before does not know it.
    let cluster = get(&hosts.to, "GET", "/api/strobe/v1/cluster", "").unwrap_or_default();
    let cluster: Value = serde_json::from_str(&cluster).unwrap_or_default();
    Ok([told].into_iter().chain(silent(&cluster)).collect::<Vec<_>>().join("\n"))
}

/// A sentence for each broker that does not answer: of hosts that only it has heard of nobody can tell.
fn silent(cluster: &Value) -> Vec<String> {
    let members = cluster.get("members").and_then(Value::as_array);
    let silent = members.into_iter().flatten().filter(|member| member["vitals"].is_null());
    let told = |member: &Value| {
        let (id, address) = (&member["id"], member["address"].as_str().unwrap_or_default());
        format!(
            "Broker {id} ({address}) does not answer: its hosts are as it told them last, and some may be \
             missing from this list."
        )
    };
    silent.map(told).collect()
}

fn fits(host: &Value, hosts: &Hosts) -> bool {
    let group = host.get("group").and_then(Value::as_str).unwrap_or_default();
    let tags = host.get("tags").and_then(Value::as_array);
    let has = |tag: &String| tags.is_some_and(|tags| tags.iter().any(|one| one == tag.as_str()));
    hosts.group.as_deref().is_none_or(|wanted| wanted == group) && hosts.tags.iter().all(has)
}

fn scan_here(plan: &Plan, yes: bool) -> Result<String, String> {
    if !yes {
        return Ok(format!("{plan}. Nothing was sent; --yes does it. Scan only what is yours."));
    }
    print(&format!("{plan}"));
    let scanned =
        scan(plan, clock, &AtomicBool::new(false), |ip, port| print(&format!("{ip}\t{port}")));
    let done = scanned.map_err(|why| format!("the scan ended early: {why}"))?;
    Ok(format!(
        "{} open, {} refused, {} silent, {} not tried",
        done.open,
        done.refused,
        done.tried - done.open - done.refused,
        done.failed
    ))
}

#[expect(clippy::disallowed_methods, reason = "the command is where time comes from")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        hosts: Hosts,
    }

    fn said(line: &str) -> Result<String, String> {
        let words = ["hosts"].into_iter().chain(line.split(' '));
        run(&Program::try_parse_from(words).map_err(|why| why.to_string())?.hosts)
    }

    #[test]
    fn a_scan_is_told_before_it_is_done() {
        let told = said("scan 127.0.0.0/30 --port 1,2").unwrap();
        assert!(told.starts_with("127.0.0.0/30 on TCP port 1, 2: 4 connections"), "{told}");
        assert!(told.contains("Nothing was sent"), "{told}");
        assert!(said("scan 10.0.0.0/8").unwrap_err().contains("more than 65,536 addresses"));
        assert!(said("scan 10.0.0.0/24 --rate 5000").unwrap_err().contains("1 to 1,000"));
        let done = said("scan 127.0.0.1 --port 1 --yes").unwrap();
        assert!(done.ends_with("0 silent, 0 not tried"), "{done}");
    }

    #[test]
    fn a_silent_broker_is_told() {
        let cluster = serde_json::json!({ "members": [
            { "id": 1, "address": "a:1", "vitals": { "sessions": 3 } },
            { "id": 2, "address": "b:1", "vitals": null },
        ] });
        let told = silent(&cluster);
        assert!(
            told.len() == 1 && told[0].starts_with("Broker 2 (b:1) does not answer"),
            "{told:?}"
        );
        assert!(silent(&Value::Null).is_empty());
    }

    #[test]
    fn hosts_are_told_by_group_and_tags() {
        let host = serde_json::json!({ "group": "web", "tags": ["eu", "new"] });
        let asked = |line: &str| {
            let words = ["hosts"].into_iter().chain(line.split(' '));
            Program::try_parse_from(words).unwrap().hosts
        };
        assert!(fits(&host, &asked("--group web --tag eu --tag new")));
        assert!(!fits(&host, &asked("--tag us")) && !fits(&host, &asked("--group db")));
    }
}
