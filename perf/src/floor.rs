//! The least that reading a host once a second can cost: a process that preads files which stay
//! open, looks at none of their bytes, and does nothing else.

use crate::run;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// The files of /proc that process `pid` keeps open and an agent reads every second.
///
/// # Errors
/// The process is gone, or another user's.
pub fn files_of(pid: u32) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let is_of = |name: &&str| target.starts_with("/proc") && target.ends_with(name);
        if EACH_SECOND.iter().any(is_of) {
            files.push(target);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads `files` once a second until it is killed: one call a file, which most are read whole by.
///
/// # Errors
/// A file cannot be read.
pub fn read_for_ever(files: &[PathBuf]) -> io::Result<()> {
    // Of a sysctl the kernel allocates and zeroes as much as is asked for.
    let most =
        |path: &PathBuf| if path.starts_with("/proc/sys") { SYSCTL_BYTES } else { usize::MAX };
    let files: Vec<_> =
        files.iter().map(|path| Ok((File::open(path)?, most(path)))).collect::<io::Result<_>>()?;
    let mut buffer = vec![0; 64 << 10];
    let mut next = run::now();
    loop {
        for (file, most) in &files {
            let end = buffer.len().min(*most);
            let _ = file.read_at(buffer.get_mut(..end).unwrap_or_default(), 0)?;
        }
        next += Duration::from_secs(1);
        run::sleep_until(next);
    }
}

/// docs/collectors.md: those whose interval is the tick.
const EACH_SECOND: [&str; 16] = [
    "stat",
    "loadavg",
    "meminfo",
    "vmstat",
    "pressure/cpu",
    "pressure/io",
    "pressure/memory",
    "pressure/irq",
    "fs/file-nr",
    "net/sockstat",
    "net/sockstat6",
    "net/netstat",
    "net/snmp",
    "diskstats",
    "net/softnet_stat",
    "net/dev",
];
const SYSCTL_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_asked_for_its_files() {
        let open = File::open("/proc/loadavg").unwrap();
        let files = files_of(std::process::id()).unwrap();
        assert!(files.contains(&PathBuf::from("/proc/loadavg")), "{files:?}");
        drop(open);
    }
}
