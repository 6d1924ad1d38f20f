//! What every program of Strobe does in the same way when it starts: finding its settings, and
//! saying on standard error what goes wrong while it runs.

use log::{LevelFilter, Log, Metadata, Record};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use std::io::{ErrorKind, Write as _};
use std::process::{Child, Command};
use std::sync::OnceLock;

use crate::settings::{Key, Settings, SettingsError};

/// The settings of a program: the file that `--config` or `STROBE_CONFIG` names, the environment,
/// and `args` (without the program's name).
///
/// # Errors
/// The file cannot be read, or the first key that is unknown or has no value.
pub fn settings(keys: &[Key], args: &[String]) -> Result<Settings, SettingsError> {
    let env = |name: &str| std::env::var(name).ok();
    let mut args = args.to_vec();
    let path = take_config(&mut args)?.or_else(|| env("STROBE_CONFIG"));
    let text = match &path {
        None => None,
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|why| SettingsError::File { path: path.clone(), why: why.to_string() })?,
        ),
    };
    Settings::load(keys, path.as_deref().zip(text.as_deref()), &env, &args)
}

/// From now on log records down to `level` are lines on standard error, `name` before each.
pub fn log_to_stderr(name: &'static str, level: LevelFilter) {
    // Only the first name counts: a process is one program.
    if log::set_logger(STDERR.get_or_init(|| Stderr { name })).is_ok() {
        log::set_max_level(level);
    }
}

/// Starts somebody else's program. Strobe's own threads block SIGTERM and SIGINT and read them from a descriptor,
/// a child inherits that, and then `kill` in a script ends nothing. So they are let through for as long as the
/// start takes; one that comes just then ends this program at once, which is what it is for.
///
/// # Errors
/// The program cannot be started.
pub fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let ends: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    let before = ends.thread_swap_mask(SigmaskHow::SIG_UNBLOCK)?;
    let child = command.spawn();
    before.thread_set_mask()?;
    child
}

/// A line on standard output. Who reads it may have heard enough (`--help | head -1`), and a disk it
/// goes to may be full: neither is a reason to end, and only the second one to say so.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(why) if why.kind() != ErrorKind::BrokenPipe => {
            complain(&format!("standard output: {why}"));
        }
        _ => {}
    }
}

/// A line on standard error, likewise.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What `--help` says of `keys`, and of the flags every program has.
#[must_use]
pub fn help(keys: &[Key]) -> String {
    let mut out = "A flag wins over its environment variable, which wins over the file.\n\n\
         \u{20} --config FILE\n      TOML file (STROBE_CONFIG).\n"
        .to_owned();
    for Key { name, flag, env, default, help } in keys {
        let form = if *default == "false" { "" } else { " VALUE" };
        let default = if default.is_empty() { "unset" } else { default };
        out += &format!("  --{flag}{form}\n      {help}\n");
        out += &format!("      {name} in the file, {env}; default: {default}\n");
    }
    out + "  --version, --help\n"
}

/// Takes `--config FILE` out of the arguments.
fn take_config(args: &mut Vec<String>) -> Result<Option<String>, SettingsError> {
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
        Err(SettingsError::NoValue("config".to_owned()))
    }
}

struct Stderr {
    name: &'static str,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_lowercase();
            // Without a standard error there is nowhere to say that there is none.
            drop(writeln!(std::io::stderr(), "{}: {level}: {}", self.name, record.args()));
        }
    }

    fn flush(&self) {}
}

static STDERR: OnceLock<Stderr> = OnceLock::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_taken_out_of_the_arguments() {
        let take = |args: &[&str]| {
            let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            take_config(&mut args).map(|path| (path, args.join(" ")))
        };
        assert_eq!(take(&["--a", "1"]), Ok((None, "--a 1".to_owned())));
        assert_eq!(take(&["--a", "--config", "f", "1"]), Ok((Some("f".into()), "--a 1".into())));
        assert_eq!(take(&["--config=f", "--a"]), Ok((Some("f".into()), "--a".into())));
        assert_eq!(take(&["--config"]), Err(SettingsError::NoValue("config".to_owned())));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = settings(&[], &["--config=/nowhere/s.toml".to_owned()]).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("/nowhere/s.toml") && said.contains("No such file"), "{said}");
    }
}
