//! `strobe`: everything in one process, and the operator's commands.

mod ask;
mod backup;
mod cluster;
mod fleet;
mod hosts;
mod http;
mod output;
mod query;
mod score;
mod settings;
mod sim;
mod up;

use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(why) => {
            output::complain(&why);
            ExitCode::FAILURE
        }
    }
}

/// Strobe watches fleets of Linux servers, once a second.
#[derive(Debug, Parser)]
#[command(name = "strobe", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start agent, broker and dashboard in this process.
    Up(up::Args),
    /// Make enrolment tokens for agents and dashboards on other machines.
    #[command(subcommand)]
    Token(Token),
    /// List the machines that a running broker knows, and say what is to be known of them.
    Hosts(hosts::Hosts),
    /// Make one Strobe of several brokers, and look after it.
    Cluster(cluster::Args),
    /// Keep all that a running broker has at this moment in a folder, or check such a folder.
    Backup(backup::Args),
    /// Make a backup into a state directory again.
    Restore(backup::Restore),
    /// Ask a host for what its flight recorder has: the last minute at 100 Hz, and ten seconds more.
    Burst {
        #[command(flatten)]
        to: ask::To,
        /// Its instance, or its id as `strobe hosts` lists it.
        host: String,
    },
    /// Ask a host what is going on there, as far as its own configuration allows it.
    Host(fleet::Host),
    /// What people did with this broker and its hosts.
    Audit(fleet::Audit),
    /// Ask a PromQL expression.
    Query(query::Args),
    /// Score how unusual each value of a CSV file is, as agents do with what they sample.
    Score(score::Args),
    /// Simulate a whole cluster on virtual clocks, with faults from a seed.
    Sim(sim::Args),
    /// Configure the fleet, in versions; check a configuration file, or explain a key of it.
    #[command(subcommand)]
    Config(Config),
    /// Look after stored samples.
    #[command(subcommand)]
    Store(Store),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version,
}

#[derive(Debug, Subcommand)]
enum Token {
    /// Make a token, good for one enrolment.
    Create {
        #[command(flatten)]
        to: ask::To,
        /// How long it is good, up to 7d.
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        lifetime: String,
    },
}

#[derive(Debug, Subcommand)]
enum Config {
    #[command(flatten)]
    Fleet(fleet::Config),
    /// Check file and environment; says the first thing that is wrong.
    Check {
        /// The file.
        #[arg(long, value_name = "FILE", env = "STROBE_CONFIG")]
        config: Option<PathBuf>,
    },
    /// What a key does, its default, flag and environment variable, and who set it.
    Explain {
        /// As in the file: broker.retention. Without it, all keys.
        key: Option<String>,
        /// The file.
        #[arg(long, value_name = "FILE", env = "STROBE_CONFIG")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum Store {
    /// Verify every checksum of the store in a state directory; exit code 1 if one is wrong.
    Check {
        /// The state directory.
        dir: PathBuf,
    },
}

fn run(command: Command) -> Result<ExitCode, String> {
    match command {
        Command::Up(args) => up::run(&args)?,
        Command::Token(Token::Create { to, lifetime }) => {
            output::print(&ask::token(&to, &lifetime)?);
        }
        Command::Hosts(args) => output::print(&hosts::run(&args)?),
        Command::Cluster(args) => {
            let (text, well) = cluster::run(&args)?;
            output::print(&text);
            return Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Burst { to, host } => output::print(&ask::host(&to, "burst", &host)?),
        Command::Host(args) => output::print(&fleet::host(&args)?),
        Command::Audit(args) => return fleet::audit(&args),
        Command::Config(Config::Fleet(command)) => return fleet::config(&command),
        Command::Query(args) => output::print(&query::run(&args)?),
        Command::Score(args) => score::run(&args)?,
        Command::Sim(args) => return sim::run(&args),
        Command::Config(Config::Check { config }) => {
            settings::Loaded::of(config.as_deref(), &[])?.check()?;
            output::print("The configuration is good.");
        }
        Command::Config(Config::Explain { key, config }) => {
            output::print(&settings::explain(key.as_deref(), config.as_deref())?);
        }
        Command::Backup(args) => output::print(&backup::run(&args)?),
        Command::Restore(args) => output::print(&backup::restore(&args)?),
        Command::Store(Store::Check { dir }) => return store_check(&dir),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "strobe", &mut script);
            output::print(String::from_utf8_lossy(&script).trim_end());
        }
        Command::Version => output::print(concat!("strobe ", env!("CARGO_PKG_VERSION"))),
    }
    Ok(ExitCode::SUCCESS)
}

fn store_check(dir: &std::path::Path) -> Result<ExitCode, String> {
    let store = dir.join("store");
    if !store.is_dir() {
        return Err(format!("{} holds no store; name a state directory", dir.display()));
    }
    let report = strobe_broker::store::check(&store).map_err(|why| why.to_string())?;
    output::print(&format!(
        "{} segments, {} blocks, {} log records read; {} damaged places",
        report.segments,
        report.blocks,
        report.wal_records,
        report.damage.len()
    ));
    for damage in &report.damage {
        output::complain(damage);
    }
    Ok(if report.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
