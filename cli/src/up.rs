//! `strobe up`: agent, broker and dashboard in one process, until Ctrl-C.

use crate::output;
use crate::settings::Loaded;
use nix::sys::signal::{SigSet, Signal};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use strobe_broker::Broker;

/// What to start, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Do not watch this host.
    #[arg(long, env = "STROBE_NO_AGENT")]
    no_agent: bool,
    /// Do not serve the dashboard and the HTTP API.
    #[arg(long, env = "STROBE_NO_VIZ")]
    no_viz: bool,
    /// Where browsers connect [default: 127.0.0.1:7800].
    #[arg(long, value_name = "ADDR", env = "STROBE_LISTEN")]
    listen: Option<String>,
    /// Where agents and dashboards connect, UDP [default: 127.0.0.1:7801].
    #[arg(long, value_name = "ADDR")]
    broker_listen: Option<String>,
    /// Where samples go: local or redis://HOST:PORT.
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// State directory [default: /var/lib/strobe for root, else ~/.local/share/strobe].
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// TOML file.
    #[arg(long, value_name = "FILE", env = "STROBE_CONFIG")]
    config: Option<PathBuf>,
    /// Any key, as in --set agent.interval=500ms; `strobe config explain` lists them.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs until a signal.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let loaded = Loaded::of(args.config.as_deref(), &overrides(args))?;
    loaded.check()?;
    // Blocked before any thread starts, so that every thread inherits it and only we hear them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(|why| format!("cannot block signals: {why}"))?;
    let broker = Broker::start(loaded.broker()?).map_err(|why| why.to_string())?;
    output::print(&format!("Strobe's broker is ready at {}", broker.quic_addr()));
    let waited = signals.wait();
    broker.stop();
    waited.map(|_| ()).map_err(|why| format!("cannot wait for signals: {why}"))
}

fn overrides(args: &Args) -> Vec<String> {
    let mut out = Vec::new();
    let mut put = |key: &str, value: Option<String>| {
        out.extend(value.map(|value| format!("--{key}={value}")));
    };
    put("broker.dir", args.dir.as_ref().map(|dir| dir.display().to_string()));
    put("broker.listen", args.broker_listen.clone());
    put("broker.store", args.store.clone());
    out.extend(args.set.iter().map(|pair| format!("--{pair}")));
    out
}

/// Milliseconds since the epoch.
#[expect(clippy::disallowed_methods, reason = "a command is a moment; the clock is read once")]
pub(crate) fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
