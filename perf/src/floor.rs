//! The least that reading a host once a second can cost: a process that preads files which stay
//! open, as often as an agent does, looks at none of their bytes, and does nothing else.

use crate::run;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// The files of /proc that process `pid` keeps open and an agent reads every second or every five.
///
/// # Errors
/// The process is gone, or another user's.
pub fn files_of(pid: u32) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let is_of = |name: &&str| target.starts_with("/proc") && target.ends_with(name);
        if EACH_SECOND.iter().chain(&EACH_FIVE).any(is_of) {
            files.push(target);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads `files` as often as an agent until it is killed: one call a file, which most are read whole by.
///
/// # Errors
/// A file cannot be read.
pub fn read_for_ever(files: &[PathBuf]) -> io::Result<()> {
    // Of a sysctl the kernel allocates and zeroes as much as is asked for.
    let most =
        |path: &PathBuf| if path.starts_with("/proc/sys") { SYSCTL_BYTES } else { usize::MAX };
    let is_seldom = |path: &PathBuf| EACH_FIVE.iter().any(|name| path.ends_with(name));
    let open = |path: &PathBuf| Ok((File::open(path)?, most(path), is_seldom(path)));
    let files: Vec<_> = files.iter().map(open).collect::<io::Result<_>>()?;
    let mut buffer = vec![0; 64 << 10];
    let mut next = run::now();
    for second in 0_u64.. {
        let read = |seldom: bool| !seldom || second.is_multiple_of(5);
        for (file, most, _) in files.iter().filter(|(_, _, seldom)| read(*seldom)) {
            let end = buffer.len().min(*most);
            let _ = file.read_at(buffer.get_mut(..end).unwrap_or_default(), 0)?;
        }
        next += Duration::from_secs(1);
        run::sleep_until(next);
    }
    Ok(())
}

/// docs/collectors.md: those whose interval is the tick.
const EACH_SECOND: [&str; 10] = [
    "stat",
    "loadavg",
    "meminfo",
    "pressure/cpu",
    "pressure/io",
    "pressure/memory",
    "pressure/irq",
    "diskstats",
    "net/softnet_stat",
    "net/dev",
];
/// And those whose interval is 5 s.
const EACH_FIVE: [&str; 7] = [
    "vmstat",
    "fs/file-nr",
    "net/sockstat",
    "net/sockstat6",
    "net/netstat",
    "net/snmp",
    "net/snmp6",
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
