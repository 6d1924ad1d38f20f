//! `strobe cluster …`: several brokers that are one Strobe.

use crate::ask::{To, encoded, get};
use crate::output::table;
use clap::Subcommand;
use serde_json::Value;
use std::path::PathBuf;
use strobe_wire::settings::duration_ms;

/// What to do, and with which broker.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// State directory of the running broker (or `strobe up`) that is asked.
    #[arg(long, value_name = "PATH", env = "STROBE_DIR", global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Make a cluster of one of this broker, while it runs; prints how others join.
    Init {
        /// Where other brokers and agents reach this one, HOST:PORT [default: where it listens].
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        #[command(flatten)]
        share: Share,
    },
    /// Give this broker a Redis that it shares with the others, while it runs.
    Share {
        /// redis://HOST:PORT, redis+sentinel://HOST:PORT,…/NAME or redis+cluster://HOST:PORT,…
        #[arg(value_name = "URL")]
        store: String,
        /// Move what is stored here already there too, in the background.
        #[arg(long)]
        import: bool,
    },
    /// Add this broker, while it runs, to the cluster of another one.
    Join {
        /// Any broker of the cluster.
        #[arg(value_name = "HOST:PORT")]
        seed: String,
        /// As printed by `strobe cluster init` or `strobe cluster token` there; good once.
        #[arg(long, env = "STROBE_JOIN_TOKEN")]
        token: String,
        /// Where other brokers and agents reach this one, HOST:PORT [default: where it listens].
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// Join although hosts are enrolled here, which then have to enrol anew.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        share: Share,
    },
    /// Let one more broker join: print the command, with a token, for its machine.
    Add {
        /// How long the token is good, up to 7d.
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        lifetime: String,
    },
    /// Make the token alone for another broker to join with. Who has it gets the fleet's authority.
    Token {
        /// How long it is good, up to 7d.
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        lifetime: String,
    },
    /// Show the brokers, who leads, and how many shards each owns.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what is wrong, and what to do; exit code 1 if something is.
    Doctor,
    /// Hand the lead to another broker; asked of the one that leads.
    TransferLeader {
        /// Its number, as `strobe cluster status` lists it.
        broker: u64,
    },
    /// Give a shard to another broker, without a gap; it stays there while shares are even.
    Move {
        /// Its number, 0 to 255, or a host (instance or id), whose shard is meant.
        shard: String,
        /// The number of the broker that gets it.
        broker: u64,
    },
    /// Let a broker go without a gap: its shards move first, then it leaves.
    Drain {
        /// Its number.
        broker: u64,
    },
    /// Remove a broker that is gone for good.
    Remove {
        /// Its number.
        broker: u64,
        /// Although it is alive.
        #[arg(long)]
        force: bool,
    },
}

/// The Redis that all brokers share.
#[derive(Debug, clap::Args)]
struct Share {
    /// Write to this Redis from now on: redis://HOST:PORT, redis+sentinel://… or redis+cluster://…
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Move what is stored here already there too, in the background.
    #[arg(long, requires = "store")]
    import: bool,
}

impl Share {
    fn query(&self) -> String {
        let import = if self.import { "&import=1" } else { "" };
        let store = self.store.as_ref().map(|url| format!("&store={}", encoded(url)));
        format!("{}{import}", store.unwrap_or_default())
    }
}

/// What to print, and whether all is well.
pub(crate) fn run(args: &Args) -> Result<(String, bool), String> {
    let to = To::of_dir(args.dir.clone());
    let post = |what: &str, query: &str| {
        get(&to, "POST", &format!("/api/strobe/v1/cluster/{what}"), query).map(|text| (text, true))
    };
    let option = |name: &str, value: &Option<String>| {
        value.as_ref().map_or(String::new(), |value| format!("&{name}={}", encoded(value)))
    };
    let force = |force: bool| if force { "&force=1" } else { "" };
    match &args.act {
        Act::Init { address, share } => {
            post("init", &format!("{}{}", option("address", address), share.query()))
        }
        Act::Share { store, import } => {
            let share = Share { store: Some(store.clone()), import: *import };
            post("share", &share.query())
        }
        Act::Join { seed, token, address, force: forced, share } => {
            let (seed, token) = (encoded(seed), encoded(token));
            let (address, force, share) =
                (option("address", address), force(*forced), share.query());
            post("join", &format!("seed={seed}&token={token}{address}{force}{share}"))
        }
        Act::Add { lifetime } => post("add", &of_lifetime(lifetime)?),
        Act::Token { lifetime } => post("token", &of_lifetime(lifetime)?),
        Act::Status { json } => {
            let body = get(&to, "GET", "/api/strobe/v1/cluster/status", "")?;
            if *json { Ok((body, true)) } else { status(&body).map(|text| (text, true)) }
        }
        Act::Doctor => doctor(&get(&to, "GET", "/api/strobe/v1/cluster/doctor", "")?),
        Act::TransferLeader { broker } => post("transfer-leader", &format!("broker={broker}")),
        Act::Move { shard, broker } => {
            post("move", &format!("shard={}&broker={broker}", encoded(shard)))
        }
        Act::Drain { broker } => post("drain", &format!("broker={broker}")),
        Act::Remove { broker, force: forced } => {
            post("remove", &format!("broker={broker}{}", force(*forced)))
        }
    }
}

fn of_lifetime(lifetime: &str) -> Result<String, String> {
    let ms = duration_ms(lifetime).map_err(|why| format!("--lifetime: {why}"))?;
    Ok(format!("lifetime_ms={ms}"))
}

fn status(body: &str) -> Result<String, String> {
    let status: Value = serde_json::from_str(body).map_err(|why| why.to_string())?;
    let number = |value: &Value, key: &str| {
        value.get(key).and_then(Value::as_u64).map_or_else(|| "-".to_owned(), |n| n.to_string())
    };
    let row = |member: &Value| {
        let text = |key: &str| member.get(key).and_then(Value::as_str).unwrap_or_default();
        let is = |key: &str| member.get(key).and_then(Value::as_bool).unwrap_or_default();
        let notes = [(is("leader"), "leads"), (is("me"), "asked")];
        let notes: Vec<&str> = notes.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
        vec![
            number(member, "id"),
            text("address").to_owned(),
            text("stage").to_owned(),
            if is("down") { "down" } else { "up" }.to_owned(),
            number(member, "shards"),
            notes.join(", "),
        ]
    };
    let members = status.get("members").and_then(Value::as_array);
    let rows: Vec<Vec<String>> = members.map_or(Vec::new(), |list| list.iter().map(row).collect());
    let id = status.get("cluster").and_then(Value::as_str).unwrap_or_default();
    let asked = number(&status, "broker");
    let old = match status.get("leader").and_then(Value::as_u64) {
        _ if status.get("left").and_then(Value::as_bool) == Some(true) => {
            format!("Broker {asked}, which was asked, is no member any more; this is old:\n")
        }
        None => format!("No leader is known, so this is what broker {asked} knew last:\n"),
        Some(_) => String::new(),
    };
    Ok(format!(
        "cluster {id}, term {}, agreed up to {}\n{old}{}",
        number(&status, "term"),
        number(&status, "committed"),
        table(&["BROKER", "ADDRESS", "STAGE", "STATE", "SHARDS", ""], &rows)
    ))
}

fn doctor(body: &str) -> Result<(String, bool), String> {
    let found: Vec<Value> = serde_json::from_str(body).map_err(|why| why.to_string())?;
    let text = |finding: &Value, key: &str| {
        finding.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let well = !found.iter().any(|finding| text(finding, "kind") == "bad");
    if found.is_empty() {
        return Ok(("The cluster is well.".to_owned(), true));
    }
    let line =
        |f: &Value| format!("{}: {} ({})", text(f, "kind"), text(f, "why"), text(f, "runbook"));
    let lines = found.iter().map(line);
    Ok((lines.collect::<Vec<_>>().join("\n"), well))
}
