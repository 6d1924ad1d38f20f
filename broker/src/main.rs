//! `strobe-broker`: a broker by itself.

use nix::sys::signal::{SigSet, Signal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use strobe_broker::config::KEYS;
use strobe_broker::{Broker, Config};
use strobe_wire::program;

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
        program::say(&help());
        return Ok(());
    }
    if args.iter().any(|arg| arg == "--version" || arg == "-V") {
        program::say(concat!("strobe-broker ", env!("CARGO_PKG_VERSION")));
        return Ok(());
    }
    program::log_to_stderr("strobe-broker", log::LevelFilter::Info);
    let config = config(args)?;
    // Blocked before any thread starts, so that every thread inherits it and only we hear them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(|why| format!("cannot block signals: {why}"))?;
    let broker = Broker::start(config).map_err(|why| why.to_string())?;
    let dir = broker.config().dir.display();
    program::say(&format!("strobe-broker: QUIC on {}, state in {dir}", broker.quic_addr()));
    let waited = signals.wait();
    broker.stop();
    waited.map(|_| ()).map_err(|why| format!("cannot wait for signals: {why}"))
}

fn config(args: &[String]) -> Result<Config, String> {
    let settings = program::settings(KEYS, args).map_err(|why| why.to_string())?;
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let root = nix::unistd::geteuid().is_root();
    Config::of(&settings, home.as_deref().map(Path::new), root).map_err(|why| why.to_string())
}

fn help() -> String {
    "strobe-broker: keeps what agents send and answers questions about it.\n\n\
     Usage: strobe-broker [--config FILE] [FLAGS]\n\n"
        .to_owned()
        + program::help(KEYS).trim_end()
}

fn say_error(line: &str) {
    program::complain(&format!("strobe-broker: {line}"));
}
