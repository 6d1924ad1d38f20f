//! Which files are read, how, and whether they can be.

use super::Finding;
use crate::config::Config;
use crate::sampler::kept_files;
use std::fs::File;
use std::io::{ErrorKind, Read};

/// Each file of every tick or every few, and those that only root may read.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut found: Vec<Finding> = kept_files()
        .map(|(path, method, needed)| {
            let path = config.procfs.join(path);
            let finding = |found: String| Finding::new("files", path.display().to_string(), found);
            match read(&path) {
                Ok(bytes) => finding(format!("{bytes} bytes, kept open, {method}")),
                Err(kind) if needed => finding(said(kind)).less(advice(kind)),
                Err(kind) => finding(format!("{}; not needed", said(kind))),
            }
        })
        .collect();
    for (path, what) in ROOTS_ONLY {
        let path = config.sysfs.join(path);
        if let Err(ErrorKind::PermissionDenied) = read(&path) {
            let name = path.display().to_string();
            let denied = Finding::new("files", name, format!("denied: {what}"));
            found.push(denied.less(advice(ErrorKind::PermissionDenied)));
        }
    }
    found
}

fn read(path: &std::path::Path) -> Result<usize, ErrorKind> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes));
    opened.map_err(|error| error.kind())
}

fn said(kind: ErrorKind) -> String {
    match kind {
        ErrorKind::NotFound => "is not there".to_owned(),
        ErrorKind::PermissionDenied => "denied".to_owned(),
        other => format!("cannot be read: {other}"),
    }
}

fn advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "this kernel is built without it, or hides it in this container",
        ErrorKind::PermissionDenied => {
            "AmbientCapabilities=CAP_DAC_READ_SEARCH in the unit lets the agent read it"
        }
        _ => "look at it with cat, as the agent's user",
    }
}

/// What is readable for root alone on most kernels, and what is missing without it.
const ROOTS_ONLY: [(&str, &str); 3] = [
    ("class/powercap/intel-rapl:0/energy_uj", "no energy of the processors (rapl)"),
    ("class/dmi/id/product_serial", "no serial numbers (dmi)"),
    ("class/dmi/id/product_uuid", "no machine's uuid (dmi)"),
];
const BYTES_MAX: u64 = 16 << 20;
