//! `strobe-agent`: watches one host.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use strobe_agent::clock::{boottime_ns, monotonic_ns, wall_ns};
use strobe_agent::config::{Config, KEYS, help};
use strobe_agent::exporter::Exporter;
use strobe_agent::exposition::sample;
use strobe_agent::run::{Stop, run};
use strobe_agent::sampler::{Sampler, Tick};
use strobe_agent::schemas::Table;
use strobe_wire::settings::Settings;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match act(args) {
        Ok(text) => print(&text),
        Err(error) => complain(&error.to_string()),
    }
}

/// Does what the command line says; what it returns is printed.
fn act(mut args: Vec<String>) -> Result<String, Box<dyn std::error::Error>> {
    if args.iter().any(|arg| matches!(arg.as_str(), "--help" | "-h" | "help")) {
        return Ok(help());
    }
    if args.iter().any(|arg| matches!(arg.as_str(), "--version" | "-V")) {
        return Ok(format!("strobe-agent {}\n", env!("CARGO_PKG_VERSION")));
    }
    let env = |name: &str| std::env::var(name).ok();
    let file = match config_file(&mut args)?.or_else(|| env("STROBE_CONFIG")) {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| format!("reading the configuration {path}: {error}"))?;
            Some((path, text))
        }
    };
    let file = file.as_ref().map(|(path, text)| (path.as_str(), text.as_str()));
    let settings = Settings::load(KEYS, file, &env, &args)?;
    let config = Config::new(&settings, &env)?;
    if config.once {
        let mut sampler = Sampler::new(&config.trees(), monotonic_ns, Arc::new(Table::new()));
        let now = Tick { wall_ns: wall_ns(), boottime_ns: boottime_ns() };
        return Ok(sample(&mut sampler, now, ONCE_WAIT));
    }
    watch(&config)?;
    Ok(String::new())
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
    log::set_logger(&LOGGER).map(|()| log::set_max_level(log::LevelFilter::Info))?;
    let exporter = match config.listen {
        None => None,
        Some(address) => {
            let sampler = Sampler::new(&config.trees(), monotonic_ns, Arc::new(Table::new()));
            let exporter = Exporter::bind(address, sampler)?;
            log::info!("serving http://{}/metrics", exporter.address()?);
            Some(exporter)
        }
    };
    match (exporter, &config.broker) {
        // Without a broker nothing is owed to anybody: a signal just ends the process.
        (Some(exporter), None) => exporter.run()?,
        (exporter, _) => {
            let stop = Stop::on_signals()?;
            if let Some(exporter) = exporter {
                serve_beside(exporter)?;
            }
            run(config, &stop)?;
        }
    }
    Ok(())
}

fn serve_beside(exporter: Exporter) -> std::io::Result<()> {
    std::thread::Builder::new().name("strobe-exporter".to_owned()).spawn(move || {
        if let Err(error) = exporter.run() {
            log::error!("/metrics is no longer served: {error}");
        }
    })?;
    Ok(())
}

/// Takes `--config FILE` out of the arguments.
fn config_file(args: &mut Vec<String>) -> Result<Option<String>, String> {
    let Some(at) = args.iter().position(|arg| arg == "--config" || arg.starts_with("--config="))
    else {
        return Ok(None);
    };
    let flag = args.remove(at);
    if let Some(path) = flag.strip_prefix("--config=") {
        return Ok(Some(path.to_owned()));
    }
    if at < args.len() {
        Ok(Some(args.remove(at)))
    } else {
        Err("--config needs a file".to_owned())
    }
}

fn print(text: &str) -> ExitCode {
    use std::io::Write;
    // A reader that went away (`| head`) is no failure.
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

#[expect(clippy::print_stderr, reason = "the binary's one place for errors")]
fn complain(error: &str) -> ExitCode {
    eprintln!("strobe-agent: {error}");
    ExitCode::FAILURE
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            complain(&format!("{}: {}", record.level().as_str().to_lowercase(), record.args()));
        }
    }

    fn flush(&self) {}
}

static LOGGER: Logger = Logger;
/// How long `--once` waits for file systems: node_exporter's mount time-out.
const ONCE_WAIT: Duration = Duration::from_secs(5);
