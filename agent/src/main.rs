//! `strobe-agent`: watches one host.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use strobe_agent::clock::{boottime_ns, monotonic_ns, wall_ns};
use strobe_agent::config::{Config, KEYS, help};
use strobe_agent::costs;
use strobe_agent::doctor::{Health, examine};
use strobe_agent::exporter::Exporter;
use strobe_agent::exposition::sample;
use strobe_agent::run::{Stop, reach, run};
use strobe_agent::sampler::{Sampler, Tick};
use strobe_agent::schemas::Table;
use strobe_wire::program;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match act(&args) {
        Ok((text, code)) => print(&text, code),
        Err(error) => complain(&error.to_string()),
    }
}

/// Does what the command line says; what it returns is printed.
fn act(args: &[String]) -> Result<(String, ExitCode), Box<dyn std::error::Error>> {
    let good = |text| Ok((text, ExitCode::SUCCESS));
    if args.iter().any(|arg| matches!(arg.as_str(), "--help" | "-h" | "help")) {
        return good(help());
    }
    if args.iter().any(|arg| matches!(arg.as_str(), "--version" | "-V")) {
        return good(format!("strobe-agent {}\n", env!("CARGO_PKG_VERSION")));
    }
    let env = |name: &str| std::env::var(name).ok();
    if let [word, rest @ ..] = args
        && word == "doctor"
    {
        return doctor(rest, &env);
    }
    let config = Config::new(&program::settings(KEYS, args)?, &env)?;
    if config.once {
        let mut sampler = Sampler::new(&config.trees(), monotonic_ns, Arc::new(Table::new()));
        let now = Tick { wall_ns: wall_ns(), boottime_ns: boottime_ns() };
        return good(sample(&mut sampler, now, ONCE_WAIT));
    }
    if config.costs {
        let mut sampler = Sampler::new(&config.trees(), monotonic_ns, Arc::new(Table::new()));
        let now = Tick { wall_ns: wall_ns(), boottime_ns: boottime_ns() };
        return good(costs::table(&mut sampler, &config.choice, now));
    }
    watch(&config)?;
    good(String::new())
}

/// `doctor [--json] [FLAGS]`: 0 if the agent does all it is there for, 2 if not.
fn doctor(
    args: &[String],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, ExitCode), Box<dyn std::error::Error>> {
    let (json, rest): (Vec<_>, Vec<_>) = args.iter().cloned().partition(|arg| arg == "--json");
    let config = Config::new(&program::settings(KEYS, &rest)?, env)?;
    let reached = reach(&config);
    let now = Tick { wall_ns: wall_ns(), boottime_ns: boottime_ns() };
    let report = examine(&config, now, monotonic_ns, reached.as_ref());
    let text = if json.is_empty() { report.text() } else { report.json() };
    let code = if report.worst() == Health::Bad { 2 } else { 0 };
    Ok((text, ExitCode::from(code)))
}

/// Serves and sends until it is stopped.
fn watch(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    if config.broker.is_none() && config.listen.is_none() {
        return Err(
            "nothing to do: --broker HOST:PORT sends to a broker, --listen ADDRESS serves \
                    /metrics, --once prints one sample (see --help)"
                .into(),
        );
    }
    program::log_to_stderr("strobe-agent", log::LevelFilter::Info);
    let exporter = match config.listen {
        None => None,
        Some(address) => {
            let mut sampler = Sampler::new(&config.trees(), monotonic_ns, Arc::new(Table::new()));
            sampler.tell_all();
            let exporter = Exporter::bind(address, sampler)?;
            log::info!("serving http://{}/metrics", exporter.address()?);
            Some(exporter)
        }
    };
    match (exporter, &config.broker) {
        // Without a broker nothing is owed to anybody: a signal just ends the process.
        (Some(exporter), None) => {
            announce(config)?;
            exporter.run()?;
        }
        (exporter, _) => {
            let stop = Stop::on_signals()?;
            // A thread that was there before would be ended by a signal, and all with it.
            announce(config)?;
            if let Some(exporter) = exporter {
                serve_beside(exporter)?;
            }
            run(config, &stop)?;
        }
    }
    Ok(())
}

/// Says on the link that this host is here, if that is wanted.
#[cfg(feature = "inputs")]
fn announce(config: &Config) -> std::io::Result<()> {
    let Some(interface) = config.announce else { return Ok(()) };
    let own = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let instance = config.instance.as_ref().unwrap_or(&own);
    let port = config.listen.map_or(0, |address| address.port());
    strobe_agent::announce::start(interface, instance, port)
}

#[cfg(not(feature = "inputs"))]
fn announce(config: &Config) -> std::io::Result<()> {
    match config.announce {
        None => Ok(()),
        Some(_) => Err(std::io::Error::other("--announce is not in the small build")),
    }
}

fn serve_beside(exporter: Exporter) -> std::io::Result<()> {
    std::thread::Builder::new().name("strobe-exporter".to_owned()).spawn(move || {
        if let Err(error) = exporter.run() {
            log::error!("/metrics is no longer served: {error}");
        }
    })?;
    Ok(())
}

fn print(text: &str, code: ExitCode) -> ExitCode {
    use std::io::Write;
    // A reader that went away (`| head`) is no failure.
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => code,
    }
}

fn complain(error: &str) -> ExitCode {
    program::complain(&format!("strobe-agent: {error}"));
    ExitCode::FAILURE
}

/// How long `--once` waits for file systems: node_exporter's mount time-out.
const ONCE_WAIT: Duration = Duration::from_secs(5);
