//! `strobe backup` and `strobe restore`.

use crate::ask::{To, encoded, get};
use std::path::PathBuf;
use strobe_broker::api::moment;
use strobe_broker::backup;

/// Where to, or what to check.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// A folder that is empty or not there yet; on the state directory's disk it takes no space at first.
    #[arg(value_name = "FOLDER", required = true)]
    to: Option<PathBuf>,
    /// State directory of the running broker (or `strobe up`).
    #[arg(long, value_name = "PATH", env = "STROBE_DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    act: Option<Act>,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Read every byte of a backup; says what is in it, or what is wrong.
    Check {
        /// The backup.
        #[arg(value_name = "FOLDER")]
        from: PathBuf,
    },
}

/// From where, and where to.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// The backup.
    #[arg(value_name = "FOLDER")]
    from: PathBuf,
    /// The state directory to be: empty, or not there yet.
    #[arg(long, value_name = "PATH")]
    dir: PathBuf,
    /// Where others will reach this broker, HOST:PORT, if it was in a cluster [default: where they did].
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
}

/// What to print.
pub(crate) fn run(args: &Args) -> Result<String, String> {
    if let Some(Act::Check { from }) = &args.act {
        let manifest = backup::check(from).map_err(|why| why.to_string())?;
        return Ok(format!("{} files, all as they were: {}", manifest.files.len(), of(&manifest)));
    }
    let to = args.to.as_ref().ok_or("name a folder for it")?;
    let to = std::path::absolute(to).map_err(|why| format!("{}: {why}", to.display()))?;
    let asked = To::of_dir(args.dir.clone());
    let to = encoded(&to.display().to_string());
    get(&asked, "POST", "/api/strobe/v1/backup", &format!("to={to}"))
}

/// What to print.
pub(crate) fn restore(args: &Restore) -> Result<String, String> {
    let Restore { from, dir, address } = args;
    let manifest = backup::restore(from, dir, address.as_deref()).map_err(|why| why.to_string())?;
    let more = match &manifest.cluster {
        None => "Start it with this --dir.".to_owned(),
        Some(seat) => format!(
            "Start it with this --dir and where it listened ({}). It is a cluster of its own now, with all that was \
             agreed on: stop what is left of the old one first, and join the others with empty directories.",
            address.as_ref().unwrap_or(&seat.address)
        ),
    };
    Ok(format!("{} is restored, {}. {more}", dir.display(), of(&manifest)))
}

fn of(manifest: &backup::Manifest) -> String {
    let seat = manifest.cluster.as_ref();
    let whose = seat.map_or_else(
        || "a broker by itself".to_owned(),
        |seat| format!("broker {} of cluster {}", seat.broker, seat.cluster),
    );
    format!("{whose}, as it was at {}", moment(manifest.made_ms))
}
