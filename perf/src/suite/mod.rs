//! The measurements, one file each: what is started, what is asked of it, and what is told.

pub mod bytes;
pub mod cluster;
pub mod live;
pub mod load;
pub mod peers;
pub mod queries;
pub mod summary;

use crate::report::Table;
use crate::run;
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where programs are found and results go.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Strobe's programs.
    pub programs: PathBuf,
    /// JSON and Markdown.
    pub results: PathBuf,
    /// State directories of what is measured; on a real disk.
    pub scratch: PathBuf,
}

/// What a measurement found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its files' name.
    pub name: String,
    /// For programs.
    pub value: Value,
    /// For people.
    pub table: Table,
    /// Why it counts as failed, if it does: what was found is kept all the same.
    pub failed: Option<String>,
}

impl Bench {
    /// One of Strobe's programs.
    ///
    /// # Errors
    /// It is not built.
    pub fn program(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.programs.join(name);
        if path.exists() {
            return Ok(path);
        }
        Err(format!("{} is not there; build it: cargo build --release", path.display()))
    }

    /// A fresh directory of this process, removed by [`Self::clean`].
    ///
    /// # Errors
    /// It cannot be made.
    pub fn scratch(&self, name: &str) -> Result<PathBuf, String> {
        let dir = self.own_scratch().join(name);
        fs::create_dir_all(&dir).map_err(|why| format!("making {}: {why}", dir.display()))?;
        Ok(dir)
    }

    /// Removes what the measurements left.
    pub fn clean(&self) {
        // Nothing in it is worth keeping, and it may never have been made.
        let _ = fs::remove_dir_all(self.own_scratch());
    }

    /// Writes `found`, and on what it was found.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn keep(&self, found: &Found, command: &str) -> io::Result<()> {
        let mut value = found.value.clone();
        value["at_ms"] = json!(u64::try_from(run::wall_ms()).unwrap_or(0));
        value["command"] = json!(command);
        value["machine"] = machine();
        value["versions"] = versions();
        value["failed"] = json!(found.failed);
        crate::report::write(&self.results, &found.name, &value, &found.table)
    }

    fn own_scratch(&self) -> PathBuf {
        self.scratch.join(format!("strobe-perf-{}", std::process::id()))
    }
}

/// Cores, processor, kernel: numbers mean nothing without.
#[must_use]
pub fn machine() -> Value {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = text("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let memory = text("/proc/meminfo");
    let kib: Option<u64> = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok());
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "processor": model.map(|(_, name)| name),
        "memory_mib": kib.map(|kib| kib / 1024),
        "kernel": text("/proc/sys/kernel/osrelease").trim(),
        "load_1m": text("/proc/loadavg").split(' ').next(),
    })
}

/// Of what is compared, where it is installed.
fn versions() -> Value {
    let mut versions = json!({ "strobe": env!("CARGO_PKG_VERSION") });
    for name in ["victoria-metrics", "prometheus", "prometheus-node-exporter"] {
        let said = version_of(&Path::new("/usr/bin").join(name));
        versions[name] = json!(said);
    }
    versions
}

/// What a program says to `--version`, on one line.
#[must_use]
pub fn version_of(program: &Path) -> Option<String> {
    let output = std::process::Command::new(program).arg("--version").output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&said).into_owned();
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// A row of two cells.
pub(crate) fn row(what: &str, found: impl Into<String>) -> Vec<String> {
    vec![what.into(), found.into()]
}

/// A number of so many digits behind the point, or a dash.
pub(crate) fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.digits$}"))
}
