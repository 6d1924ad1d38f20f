//! `strobe-viz`: the dashboard of a broker on another machine or in another process.

use std::path::PathBuf;
use std::process::ExitCode;
use strobe_viz::Viz;
use strobe_viz::backend::Backend;
use strobe_viz::config::{Config, KEYS};
use strobe_viz::link_run::{BrokerLink, LinkSettings};
use strobe_wire::settings::Settings;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--help" | "-h") => {
            say(&help());
            return ExitCode::SUCCESS;
        }
        Some("--version" | "-V") => {
            say(concat!("strobe-viz ", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    match run(&args) {
        Ok(never) => never,
        Err(error) => {
            complain(&format!("strobe-viz: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let env = |name: &str| std::env::var(name).ok();
    let settings = Settings::load(KEYS, None, &env, args)?;
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
    std::fs::create_dir_all(&dir)?;
    let (link, remote) = BrokerLink::start(LinkSettings { broker, token, dir })?;
    let viz = Viz::start(config, Backend::Remote(remote))?;
    say(&format!("Strobe's dashboard: {scheme}://{}", viz.addr()));
    let mut signals = nix::sys::signal::SigSet::empty();
    signals.add(nix::sys::signal::Signal::SIGHUP);
    // Nothing is kept in memory that must be saved: SIGINT and SIGTERM may end the process as is.
    signals.thread_block()?;
    let signal = signals.wait()?;
    log::info!("{signal}: stopping");
    viz.stop();
    drop(link);
    Ok(ExitCode::SUCCESS)
}

fn default_dir() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match home {
        Some(home) if !nix::unistd::geteuid().is_root() => home.join(".local/share/strobe/viz"),
        _ => PathBuf::from("/var/lib/strobe/viz"),
    }
}

fn help() -> String {
    let mut text =
        "strobe-viz: the dashboard of a Strobe broker\n\nOptions (with their environment \
        variables and defaults):\n"
            .to_owned();
    for key in KEYS {
        text.push_str(&format!("  --{:<18} {}\n", key.flag, key.help));
        text.push_str(&format!("  {:<20} {} [{}]\n", "", key.env, key.default));
    }
    text
}

#[expect(clippy::print_stdout, reason = "the binary's one way to standard output")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "the binary's one way to standard error")]
fn complain(text: &str) {
    eprintln!("{text}");
}
