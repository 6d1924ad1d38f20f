//! The least that reading a host once a second can cost: a process that preads files which stay
//! open, as often as an agent does, looks at none of their bytes, and does nothing else.

use crate::run;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The files that process `pid` keeps open and an agent reads every second, every five or fifteen.
///
/// # Errors
/// The process is gone, or another user's.
pub fn files_of(pid: u32) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        if seconds(&target).is_some() {
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
    let open = |path: &PathBuf| Ok((File::open(path)?, most(path), seconds(path).unwrap_or(1)));
    let files: Vec<_> = files.iter().map(open).collect::<io::Result<_>>()?;
    let mut buffer = vec![0; 64 << 10];
    let mut next = run::now();
    for second in 0_u64.. {
        for (file, most, _) in files.iter().filter(|(_, _, every)| second.is_multiple_of(*every)) {
            let end = buffer.len().min(*most);
            let _ = file.read_at(buffer.get_mut(..end).unwrap_or_default(), 0)?;
        }
        next += Duration::from_secs(1);
        run::sleep_until(next);
    }
    Ok(())
}

/// How often it is read (docs/collectors.md).
fn seconds(path: &Path) -> Option<u64> {
    // A disk's own file, if few have one.
    if path.starts_with("/sys/devices") && path.ends_with("stat") {
        return path.iter().any(|part| part == "block").then_some(1);
    }
    let of = FILES.iter().find(|(name, _)| path.starts_with("/proc") && path.ends_with(name));
    of.map(|(_, seconds)| *seconds)
}

const FILES: [(&str, u64); 17] = [
    ("stat", 1),
    ("loadavg", 1),
    ("meminfo", 1),
    ("pressure/cpu", 1),
    ("pressure/io", 1),
    ("pressure/memory", 1),
    ("pressure/irq", 1),
    ("net/dev", 1),
    ("diskstats", 5),
    ("net/softnet_stat", 5),
    ("vmstat", 5),
    ("net/netstat", 15),
    ("net/snmp", 15),
    ("fs/file-nr", 15),
    ("net/sockstat", 15),
    ("net/sockstat6", 15),
    ("net/snmp6", 15),
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
        let disk = Path::new("/sys/devices/virtio5/block/vda/stat");
        assert_eq!(seconds(disk), Some(1));
        assert_eq!(seconds(Path::new("/sys/devices/virtual/net/lo/statistics/rx_bytes")), None);
    }
}
