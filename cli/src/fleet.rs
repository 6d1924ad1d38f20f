//! `strobe config` of a fleet, `strobe host` and `strobe audit`: what is asked of a running broker.

use crate::ask::{self, To, encoded, get, send};
use crate::output::{self, table};
use crate::settings::check_fleet;
use clap::Subcommand;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use strobe_wire::fleet::Document;

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print a version of the fleet's configuration.
    Show {
        #[command(flatten)]
        to: To,
        /// Its number [default: the one in force].
        number: Option<u64>,
    },
    /// Say what a configuration would change, for whom, and what that costs; nothing is changed.
    Try {
        #[command(flatten)]
        to: To,
        /// The configuration (TOML).
        file: PathBuf,
    },
    /// Make a configuration the next version: one host or broker tries it first, then all run it.
    Apply {
        #[command(flatten)]
        to: To,
        /// The configuration (TOML).
        file: PathBuf,
        /// Why, for those who read the history.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// The version that it was made from; refused if another one is in force by now.
        #[arg(long, value_name = "NUMBER")]
        base: Option<u64>,
        /// Who tries it: a host by its instance or id, or broker:NUMBER [default: one it concerns].
        #[arg(long, value_name = "WHO", conflicts_with = "now")]
        canary: Option<String>,
        /// For all at once, tried by nobody.
        #[arg(long)]
        now: bool,
        /// Do not wait for the end of the trial.
        #[arg(long)]
        no_wait: bool,
    },
    /// List the versions: who made each, when, why, and what became of it.
    History {
        #[command(flatten)]
        to: To,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// What differs between two versions [default: the one in force and the one before it].
    Diff {
        #[command(flatten)]
        to: To,
        /// From this one.
        a: Option<u64>,
        /// To this one.
        b: Option<u64>,
    },
    /// Go back to an earlier version, for all at once.
    Rollback {
        #[command(flatten)]
        to: To,
        /// Which [default: the one before the one in force].
        number: Option<u64>,
        /// Why.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Which version is in force or on trial, and who does not run it.
    Status {
        #[command(flatten)]
        to: To,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// A question to a host.
#[derive(Debug, clap::Args)]
pub(crate) struct Host {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The processes that use most of CPU and memory.
    Top(Whom),
    /// Sockets that listen or are connected.
    Ss(Whom),
    /// Mounts with their space.
    Mounts(Whom),
    /// What `strobe-agent doctor` finds there.
    Doctor(Whom),
}

#[derive(Debug, clap::Args)]
struct Whom {
    #[command(flatten)]
    to: To,
    /// Its instance, or its id as `strobe hosts` lists it.
    host: String,
}

/// The audit log.
#[derive(Debug, clap::Args)]
pub(crate) struct Audit {
    #[command(flatten)]
    to: To,
    /// Check that nothing in it was changed or cut off; exit code 1 if it was.
    #[arg(long)]
    verify: bool,
    /// So many of the last entries.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    last: usize,
}

/// `strobe host`.
pub(crate) fn host(args: &Host) -> Result<String, String> {
    let (what, whom) = match &args.what {
        What::Top(whom) => ("top", whom),
        What::Ss(whom) => ("ss", whom),
        What::Mounts(whom) => ("mounts", whom),
        What::Doctor(whom) => ("doctor", whom),
    };
    ask::host(&whom.to, what, &whom.host)
}

/// `strobe audit`.
pub(crate) fn audit(args: &Audit) -> Result<ExitCode, String> {
    if !args.verify {
        output::print(&get(&args.to, "GET", AUDIT, &format!("last={}", args.last))?);
        return Ok(ExitCode::SUCCESS);
    }
    let said = json(&get(&args.to, "GET", AUDIT, "verify=1")?)?;
    let broken = said.get("broken").and_then(Value::as_array).cloned().unwrap_or_default();
    for why in &broken {
        output::complain(why.as_str().unwrap_or_default());
    }
    let number = |key: &str| said.get(key).and_then(Value::as_u64).unwrap_or_default();
    let (entries, agreed) = (number("entries"), number("agreed"));
    output::print(&match broken.is_empty() {
        true => {
            format!("{entries} entries, each as it was written; the brokers agreed on {agreed}.")
        }
        false => format!("{entries} entries, and {} places are wrong.", broken.len()),
    });
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `strobe config` of a fleet.
pub(crate) fn config(command: &Config) -> Result<ExitCode, String> {
    let number =
        |name: &str, of: &Option<u64>| of.map_or(String::new(), |n| format!("{name}={n}&"));
    output::print(&match command {
        Config::Show { to, number: of } => call(to, "show", &number("number", of))?,
        Config::Diff { to, a, b } => call(to, "diff", &(number("a", a) + &number("b", b)))?,
        Config::Try { to, file } => {
            let text = read(file)?;
            send(to, ("POST", &path("try"), ""), &text)?
        }
        Config::History { to, json: true } => call(to, "history", "")?,
        Config::History { to, json: false } => history(&json(&call(to, "history", "")?)?),
        Config::Status { to, json: true } => call(to, "status", "")?,
        Config::Status { to, json: false } => status(&json(&call(to, "status", "")?)?),
        Config::Rollback { to, number: of, reason } => {
            let reason =
                reason.as_deref().map_or(String::new(), |r| format!("reason={}", encoded(r)));
            let said = get(to, "POST", &path("rollback"), &(number("number", of) + &reason))?;
            let made = json(&said)?.get("number").and_then(Value::as_u64).unwrap_or_default();
            format!("Version {made} is in force.")
        }
        Config::Apply { .. } => return apply(command),
    });
    Ok(ExitCode::SUCCESS)
}

fn apply(command: &Config) -> Result<ExitCode, String> {
    let Config::Apply { to, file, reason, base, canary, now, no_wait } = command else {
        return Err("not apply".to_owned());
    };
    let text = read(file)?;
    output::print(&send(to, ("POST", &path("try"), ""), &text)?);
    let mut query = format!("reason={}", encoded(reason));
    if let Some(base) = base {
        query += &format!("&base={base}");
    }
    if let Some(canary) = canary {
        query += &format!("&canary={}", encoded(canary));
    }
    if *now {
        query += "&now=1";
    }
    let said = json(&send(to, ("POST", &path("apply"), &query), &text)?)?;
    let number = said.get("number").and_then(Value::as_u64).ok_or("the broker's answer is none")?;
    let Some(canary) = said.get("canary").and_then(Value::as_str) else {
        output::print(&format!("Version {number} is in force."));
        return Ok(ExitCode::SUCCESS);
    };
    output::print(&format!("Version {number} is on trial with {canary}."));
    if *no_wait {
        return Ok(ExitCode::SUCCESS);
    }
    wait_for(to, number)
}

#[expect(clippy::disallowed_methods, reason = "a command that waits for a person")]
fn wait_for(to: &To, number: u64) -> Result<ExitCode, String> {
    let mut failures = 0;
    loop {
        std::thread::sleep(LOOK_EVERY);
        let all = match call(to, "history", "").and_then(|text| json(&text)) {
            Ok(all) => all,
            // A broker that starts again has not forgotten the trial.
            Err(_) if failures < FAILURES_MAX => {
                failures += 1;
                continue;
            }
            Err(why) => return Err(why),
        };
        let versions = all.as_array().into_iter().flatten();
        let mut mine = versions.filter(|v| v.get("number").and_then(Value::as_u64) == Some(number));
        let version = mine.next().ok_or_else(|| format!("version {number} is gone"))?;
        let text = |key: &str| version.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("stage") {
            "on trial" => {}
            "taken back" => {
                output::complain(&format!("version {number} is taken back: {}", text("told")));
                return Ok(ExitCode::FAILURE);
            }
            _ => {
                output::print(&format!("Version {number} is in force: {}.", text("told")));
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

fn read(file: &Path) -> Result<String, String> {
    let fail = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
    let text = std::fs::read_to_string(file).map_err(|why| fail(&why))?;
    let document = Document::read(&text).map_err(|why| fail(&why))?;
    check_fleet(&document).map_err(|why| fail(&why))?;
    Ok(text)
}

fn history(all: &Value) -> String {
    let rows: Vec<Vec<String>> = all
        .as_array()
        .into_iter()
        .flatten()
        .map(|version| {
            let text =
                |key: &str| version.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let number = |key: &str| version.get(key).and_then(Value::as_i64).unwrap_or_default();
            let told = text("told");
            let stage =
                if told.is_empty() { text("stage") } else { format!("{}: {told}", text("stage")) };
            vec![
                number("number").to_string(),
                moment(number("at_ms")),
                text("author"),
                format!("+{} -{}", number("added"), number("removed")),
                text("reason"),
                stage,
            ]
        })
        .collect();
    if rows.is_empty() {
        return "There is no version yet: every host runs its own configuration.".to_owned();
    }
    table(&["VERSION", "MADE", "BY", "LINES", "REASON", "STATE"], &rows)
}

fn status(said: &Value) -> String {
    let number = |of: &Value, key: &str| of.get(key).and_then(Value::as_u64).unwrap_or_default();
    let list = |key: &str| said.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let text =
        |of: &Value, key: &str| of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut out = match number(said, "in_force") {
        0 => "No version is in force: every host runs its own configuration.\n".to_owned(),
        version => format!("Version {version} is in force.\n"),
    };
    if let Some(trial) = said.get("trial").filter(|trial| trial.is_object()) {
        out += &format!(
            "Version {} is on trial with {}.\n",
            number(trial, "number"),
            text(trial, "canary")
        );
    }
    if let Some(last) = said.get("last").filter(|last| text(last, "stage") == "taken back") {
        out +=
            &format!("Version {} was taken back: {}\n", number(last, "number"), text(last, "told"));
    }
    let mut rows: Vec<Vec<String>> = list("brokers")
        .iter()
        .map(|broker| {
            let name = format!("broker:{}", number(broker, "id"));
            vec![
                name,
                number(broker, "version").to_string(),
                text(broker, "locked"),
                text(broker, "why"),
            ]
        })
        .collect();
    rows.extend(list("hosts").iter().map(|host| {
        let of = host.get("configuration").cloned().unwrap_or_default();
        let runs = ask::configuration(Some(&of));
        vec![text(host, "instance"), runs, text(&of, "locked"), text(&of, "why")]
    }));
    out + &table(&["WHO", "RUNS", "LOCKED", "WHY NOT"], &rows)
}

/// In UTC, to the second.
fn moment(at_ms: i64) -> String {
    let (days, second) = (at_ms.div_euclid(86_400_000), at_ms.div_euclid(1_000).rem_euclid(86_400));
    // Civil from days: the algorithm of Howard Hinnant's date library.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

fn call(to: &To, what: &str, query: &str) -> Result<String, String> {
    get(to, "GET", &path(what), query)
}

fn path(what: &str) -> String {
    format!("/api/strobe/v1/config/{what}")
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|why| format!("the broker's answer is none: {why}"))
}

const AUDIT: &str = "/api/strobe/v1/audit";
const LOOK_EVERY: Duration = Duration::from_millis(300);
const FAILURES_MAX: u32 = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_tables() {
        assert_eq!(moment(0), "1970-01-01 00:00:00");
        assert_eq!(moment(1_709_210_096_789), "2024-02-29 12:34:56");
        let all = serde_json::json!([{
            "number": 2, "at_ms": 0, "author": "ann (uid 0)", "reason": "why", "stage": "taken back",
            "told": "it fell", "added": 1, "removed": 0,
        }]);
        let text = history(&all);
        assert!(text.contains("taken back: it fell") && text.contains("+1 -0"), "{text}");
    }

    #[test]
    fn names_of_collectors_are_known_before_a_host_is_asked() {
        let document =
            Document::read("[label.\"a=b\".agent]\ncollectors.enable = [\"netclas\"]").unwrap();
        let why = check_fleet(&document).unwrap_err();
        assert!(why.contains("hosts with a=b") && why.contains("netclass"), "{why}");
        let document = Document::read("[broker]\nretention = \"2d\"").unwrap();
        assert_eq!(check_fleet(&document), Ok(()));
    }
}
