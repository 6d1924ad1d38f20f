//! The least that reading a host once a second can cost: a process that preads files which stay
//! open, each as often as an agent does, looks at none of their bytes, and does nothing else.

use crate::run;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The files of /proc that process `pid` keeps open and an agent reads every few seconds at least.
///
/// # Errors
/// The process is gone, or another user's.
pub fn files_of(pid: u32) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        if target.starts_with("/proc") && every(&target).is_some() {
            files.push(target);
        }
    }
    files.sort();
    Ok(files)
}

/// Every how many seconds an agent reads this.
fn every(path: &Path) -> Option<u32> {
    READ.iter().find(|(name, _)| path.ends_with(name)).map(|(_, seconds)| *seconds)
}

/// Reads `files` until it is killed: one call a file, which most are read whole by.
///
/// # Errors
/// A file cannot be read.
pub fn read_for_ever(files: &[PathBuf]) -> io::Result<()> {
    // Of a sysctl the kernel allocates and zeroes as much as is asked for.
    let most =
        |path: &PathBuf| if path.starts_with("/proc/sys") { SYSCTL_BYTES } else { usize::MAX };
    let open = |path: &PathBuf| Ok((File::open(path)?, most(path), every(path).unwrap_or(1)));
    let files: Vec<_> = files.iter().map(open).collect::<io::Result<_>>()?;
    let mut buffer = vec![0; 64 << 10];
    let mut next = run::now();
    for second in 0_u32.. {
        for (file, most, every) in &files {
            if !second.is_multiple_of(*every) {
                continue;
            }
            let end = buffer.len().min(*most);
            let _ = file.read_at(buffer.get_mut(..end).unwrap_or_default(), 0)?;
        }
        next += Duration::from_secs(1);
        run::sleep_until(next);
    }
    Ok(())
}

/// docs/collectors.md: those whose interval is the tick, two seconds or five.
const READ: [(&str, u32); 18] = [
    ("stat", 1),
    ("meminfo", 1),
    ("vmstat", 1),
    ("diskstats", 1),
    ("net/softnet_stat", 1),
    ("net/dev", 1),
    ("pressure/cpu", 2),
    ("pressure/io", 2),
    ("pressure/memory", 2),
    ("pressure/irq", 2),
    ("loadavg", 1),
    ("fs/file-nr", 5),
    ("net/sockstat", 5),
    ("net/sockstat6", 5),
    ("net/netstat", 5),
    ("net/snmp", 5),
    ("net/snmp6", 5),
    ("schedstat", 5),
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
