//! `strobe up`: agent, broker and dashboard in one process, until Ctrl-C.

use crate::output;
use crate::settings::Loaded;
use clap::builder::BoolishValueParser;
use nix::sys::signal::{SigSet, Signal};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use strobe_agent::run::Agent;
use strobe_broker::Broker;
use strobe_viz::Viz;
use strobe_viz::backend::Backend;
use strobe_wire::program;

/// What to start, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Do not watch this host.
    #[arg(long, env = "STROBE_NO_AGENT", value_parser = BoolishValueParser::new())]
    no_agent: bool,
    /// Do not serve the dashboard and the HTTP API.
    #[arg(long, env = "STROBE_NO_VIZ", value_parser = BoolishValueParser::new())]
    no_viz: bool,
    /// Where browsers connect [default: 127.0.0.1:7800].
    #[arg(long, value_name = "ADDR", env = "STROBE_LISTEN")]
    listen: Option<String>,
    /// Where agents and dashboards connect, UDP [default: 127.0.0.1:7801] [env: STROBE_BROKER_LISTEN].
    #[arg(long, value_name = "ADDR")]
    broker_listen: Option<String>,
    /// Where samples go: local, redis://HOST:PORT, redis+sentinel://… or redis+cluster://… [default: local] [env: STROBE_STORE].
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// State directory [default: /var/lib/strobe for root, else ~/.local/share/strobe]
    /// [env: STROBE_DIR].
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
    program::log_to_stderr("strobe", log::LevelFilter::Warn);
    let loaded = Loaded::of(args.config.as_deref(), &overrides(args))?;
    loaded.check()?;
    // Blocked before any thread starts, so that every thread inherits it and only we hear them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(|why| format!("cannot block signals: {why}"))?;
    let broker = Broker::start(loaded.broker()?).map_err(|why| why.to_string())?;
    let outcome = serve(args, &loaded, &broker, &signals);
    broker.stop();
    outcome
}

fn serve(args: &Args, loaded: &Loaded, broker: &Broker, signals: &SigSet) -> Result<(), String> {
    let viz = if args.no_viz { None } else { Some(start_viz(loaded, broker)?) };
    let agent = if args.no_agent { None } else { Some(start_agent(loaded, broker)?) };
    output::print(&match &viz {
        Some((viz, scheme)) => format!("Strobe is ready: {scheme}://{}", viz.addr()),
        None => format!("Strobe is ready: QUIC on {}", broker.quic_addr()),
    });
    let over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let agent = agent.map(|agent| scope.spawn(|| keep_agent(agent, loaded, broker, &over)));
        let waited = signals.wait().map_err(|why| format!("cannot wait for signals: {why}"));
        over.store(true, Ordering::Release);
        let agent = agent.map_or(Ok(Ok(())), |agent| {
            agent.thread().unpark();
            agent.join()
        });
        let agent = agent.unwrap_or_else(|_| Err("the agent's keeper panicked".to_owned()));
        waited.and(agent)
    });
    if let Some((viz, _)) = viz {
        viz.stop();
    }
    outcome
}

/// Until it is `over` (`Acquire`: it carries nothing but itself): where this broker joins a cluster, whose
/// authority is another one, its own host enrols there.
fn keep_agent(
    agent: Agent,
    loaded: &Loaded,
    broker: &Broker,
    over: &AtomicBool,
) -> Result<(), String> {
    let (mut agent, mut fleet) = (agent, broker.authority());
    while !over.load(Ordering::Acquire) {
        std::thread::park_timeout(LOOK_EVERY);
        let now = broker.authority();
        if now != fleet {
            fleet = now;
            agent.stop().map_err(|why| why.to_string())?;
            agent = start_agent(loaded, broker)?;
            log::warn!("this host enrols at the cluster that its broker joined");
        }
    }
    agent.stop().map_err(|why| why.to_string())
}

/// This host's agent: enrolled here by a token that is used at once or expires.
fn start_agent(loaded: &Loaded, broker: &Broker) -> Result<Agent, String> {
    let mut config = loaded.agent()?;
    let token = broker.enrolment_token(TOKEN_LIFETIME).map_err(|why| why.to_string())?;
    config.dir = broker.config().dir.join("agent");
    config.broker = Some(reachable(broker.quic_addr()).to_string());
    config.token = Some(token.to_string());
    config.listen = None;
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    config.instance = config.instance.or_else(|| named.map(|name| name.trim().to_owned()));
    if let Some(instance) = &config.instance {
        broker.own_instance(instance);
    }
    Agent::start(&config).map_err(|why| why.to_string())
}

fn start_viz(loaded: &Loaded, broker: &Broker) -> Result<(Viz, &'static str), String> {
    let config = loaded.viz(broker.config().dir.clone())?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let viz = Viz::start(config, Backend::Local(broker.clone())).map_err(|why| why.to_string())?;
    Ok((viz, scheme))
}

/// An address of this machine that reaches a socket bound to `bound`.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

fn overrides(args: &Args) -> Vec<String> {
    let mut out = Vec::new();
    let mut put = |key: &str, value: Option<String>| {
        out.extend(value.map(|value| format!("--{key}={value}")));
    };
    put("viz.listen", args.listen.clone());
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

/// How soon a broker's joining is seen.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
