//! The least that reading a host once a second can cost: a process that preads files which stay
//! open, looks at none of their bytes, and does nothing else.

use crate::run;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// The files of /proc that process `pid` keeps open, without those it reads less than every second.
///
/// # Errors
/// The process is gone, or another user's.
pub fn files_of(pid: u32) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let seldom = target.ends_with("mounts") || target.ends_with("hostname");
        if target.starts_with("/proc") && !seldom {
            files.push(target);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads `files` once a second until it is killed.
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
            let mut length = 0usize;
            // A `seq_file` hands out a page less what the next record needs; the longest is below
            // `RECORD_BYTES_MAX`. A shorter reading was the last.
            loop {
                let end = buffer.len().min(length.saturating_add(*most));
                let room = buffer.get_mut(length..end).unwrap_or_default();
                let taken = file.read_at(room, u64::try_from(length).unwrap_or(u64::MAX))?;
                length += taken;
                if taken < PAGE_BYTES - RECORD_BYTES_MAX {
                    break;
                }
            }
        }
        next += Duration::from_secs(1);
        run::sleep_until(next);
    }
}

const PAGE_BYTES: usize = 4096;
const SYSCTL_BYTES: usize = 512;
const RECORD_BYTES_MAX: usize = 512;

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
