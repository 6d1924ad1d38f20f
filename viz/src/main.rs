//! `strobe-viz`: the dashboard of a broker on another machine or in another process.

use nix::sys::signal::{SigSet, Signal};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use strobe_viz::Viz;
use strobe_viz::backend::Backend;
use strobe_viz::config::{Config, KEYS};
use strobe_viz::link_run::{BrokerLink, Enrolment, LinkSettings};
use strobe_wire::program;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let asks = |names: [&str; 2]| args.iter().any(|arg| names.contains(&arg.as_str()));
    if asks(["--help", "-h"]) {
        program::say(&help());
        return ExitCode::SUCCESS;
    }
    if asks(["--version", "-V"]) {
        program::say(concat!("strobe-viz ", env!("CARGO_PKG_VERSION")));
        return ExitCode::SUCCESS;
    }
    program::log_to_stderr("strobe-viz", log::LevelFilter::Info);
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            program::complain(&format!("strobe-viz: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs until a signal.
fn run(args: &[String]) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let settings = program::settings(KEYS, args)?;
    let dir = match settings.text("viz.dir") {
        "" | "auto" => default_dir(),
        dir => PathBuf::from(dir),
    };
    let config = Config::from_settings(&settings, dir.clone())?;
    let token = settings.parse("viz.token", |text| {
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|e| format!("{e}")) }
    })?;
    let broker = settings.text("viz.broker").to_owned();
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    make(&dir)?;
    // Blocked before any thread starts, so that every thread inherits it and only we hear them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let (link, remote) = BrokerLink::start(LinkSettings { broker: broker.clone(), token, dir })?;
    match link.enrolment(ENROL_WAIT) {
        Enrolment::Done => {}
        Enrolment::Pending => {
            log::warn!("not enrolled with the broker at {broker} yet; going on trying");
        }
        Enrolment::Refused => return Ok(ExitCode::FAILURE),
    }
    let viz = Viz::start(config, Backend::Remote(remote))?;
    program::say(&format!("Strobe's dashboard: {scheme}://{}", viz.addr()));
    signals.wait()?;
    // The link first: it answers what the dashboard's workers wait for.
    drop(link);
    viz.stop();
    Ok(ExitCode::SUCCESS)
}

fn make(dir: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|why| {
        format!(
            "cannot make the state directory {}: {why}; choose another with --dir",
            dir.display()
        )
    })
}

fn default_dir() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match home {
        Some(home) if !nix::unistd::geteuid().is_root() => home.join(".local/share/strobe/viz"),
        _ => PathBuf::from("/var/lib/strobe/viz"),
    }
}

fn help() -> String {
    "strobe-viz: the dashboard of a Strobe broker.\n\n\
     Usage: strobe-viz [--config FILE] [FLAGS]\n\n"
        .to_owned()
        + program::help(KEYS).trim_end()
}

/// How long the first start waits for the broker's yes or no.
const ENROL_WAIT: Duration = Duration::from_secs(5);
