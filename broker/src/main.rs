//! `strobe-broker`: a broker by itself.

use log::{LevelFilter, Log, Metadata, Record};
use nix::sys::signal::{SigSet, Signal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use strobe_broker::config::KEYS;
use strobe_broker::{Broker, Config};
use strobe_wire::settings::Settings;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say_error(&why);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<(), String> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        say(&help());
        return Ok(());
    }
    if args.iter().any(|arg| arg == "--version" || arg == "-V") {
        say(concat!("strobe-broker ", env!("CARGO_PKG_VERSION")));
        return Ok(());
    }
    log::set_logger(&STDERR).map_err(|why| why.to_string())?;
    log::set_max_level(LevelFilter::Info);
    let config = config(args)?;
    // Blocked before any thread starts, so that every thread inherits it and only we hear them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(|why| format!("cannot block signals: {why}"))?;
    let broker = Broker::start(config).map_err(|why| why.to_string())?;
    let dir = broker.config().dir.display();
    say(&format!("strobe-broker: QUIC on {}, state in {dir}", broker.quic_addr()));
    let waited = signals.wait();
    broker.stop();
    waited.map(|_| ()).map_err(|why| format!("cannot wait for signals: {why}"))
}

/// The settings: `--config FILE`, the environment, the command line.
fn config(args: &[String]) -> Result<Config, String> {
    let mut rest = args.to_vec();
    let mut path = std::env::var("STROBE_CONFIG").ok();
    if let Some(at) = rest.iter().position(|arg| arg == "--config") {
        if rest.len() <= at + 1 {
            return Err("--config needs a value".to_owned());
        }
        path = rest.drain(at..at + 2).next_back();
    }
    let text = path
        .as_ref()
        .map(|path| {
            std::fs::read_to_string(path).map_err(|why| format!("cannot read {path}: {why}"))
        })
        .transpose()?;
    let file = path.as_deref().zip(text.as_deref());
    let settings = Settings::load(KEYS, file, &|name| std::env::var(name).ok(), &rest)
        .map_err(|why| why.to_string())?;
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let root = nix::unistd::geteuid().is_root();
    Config::of(&settings, home.as_deref().map(Path::new), root).map_err(|why| why.to_string())
}

fn help() -> String {
    let mut out = "strobe-broker: keeps what agents send and answers questions about it.\n\n\
                   Usage: strobe-broker [--config FILE] [OPTIONS]\n\nOptions:\n"
        .to_owned();
    for key in KEYS {
        let (flag, default, help) = (key.flag, key.default, key.help);
        out += &format!("  --{flag:<18} {help} [{default}; {}]\n", key.env);
    }
    out
}

/// Warnings and news go to standard error, a line each.
struct Stderr;

static STDERR: Stderr = Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            say_error(&format!("{}: {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "a program's complaints")]
fn say_error(line: &str) {
    eprintln!("strobe-broker: {line}");
}
