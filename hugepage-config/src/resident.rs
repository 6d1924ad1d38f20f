//! What a program keeps in memory without using it.

use std::fs;

/// Gives back to the kernel what starting took and living does not: whole pages that the allocator
/// holds and nobody uses (only glibc's keeps any), and pages of code and constants, which come back
/// from the page cache when they are next touched, 64 KiB at a time.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes the allocator's own locks and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
    let Ok(smaps) = fs::read_to_string("/proc/self/smaps") else { return };
    for (start, bytes) in clean_files(&smaps) {
        // SAFETY: the mapping is of a file, cannot be written, and none of its pages differs from
        // the file (`Anonymous: 0 kB`): what is dropped reads the same when it is next touched.
        // An error leaves things as they were.
        unsafe {
            libc::madvise(start as *mut libc::c_void, bytes, libc::MADV_DONTNEED);
        }
    }
}

/// Address and length of each mapping of a file that cannot be written and of which no page has
/// been changed in memory (relocations change some of the read-only ones), as smaps lists them.
fn clean_files(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut file = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:"), Some("0")) => found.extend(file.take()),
            (Some(range), Some(access)) if !range.ends_with(':') => {
                let path = words.nth(3).is_some_and(|path| path.starts_with('/'));
                let fixed = access.starts_with("r-") && access.ends_with('p');
                file = span(range).filter(|_| path && fixed);
            }
            _ => {}
        }
    }
    found
}

fn span(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of a real agent (Linux 6.1): constants, code, relocated constants, a heap, the vDSO.
    const SMAPS: &str = "\
56016dc12000-56016dd60000 r--p 00000000 fe:00 393255   /usr/bin/strobe agent
Rss:                 568 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
56016dd60000-56016df77000 r-xp 0014d000 fe:00 393255   /usr/bin/strobe agent
Rss:                2140 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
56016df77000-56016df8c000 r--p 00363000 fe:00 393255   /usr/bin/strobe agent
Anonymous:            84 kB
560191bda000-560191c67000 rw-p 00000000 00:00 0        [heap]
Anonymous:           480 kB
7f34d3900000-7f34d3901000 rw-p 00363000 fe:00 393255   /usr/bin/strobe agent
Anonymous:             0 kB
7f34d3902000-7f34d3903000 r--s 00000000 fe:00 393256   /usr/share/zone info
Anonymous:             0 kB
7ffd327ff000-7ffd32801000 r-xp 00000000 00:00 0        [vdso]
Anonymous:             0 kB
";

    #[test]
    fn only_what_reads_the_same_from_its_file_is_dropped() {
        let expected = vec![(0x5601_6dc1_2000, 0x14_e000), (0x5601_6dd6_0000, 0x21_7000)];
        assert_eq!(clean_files(SMAPS), expected);
        assert_eq!(clean_files("garbage\nx-y r-xp 0 0 0 /x\nAnonymous: 0 kB\n"), vec![]);
    }

    #[test]
    fn code_and_constants_that_were_dropped_come_back() {
        let held = vec![b'x'; 1 << 20];
        give_back();
        assert!(held.iter().all(|byte| *byte == b'x'));
        assert_eq!(clean_files(SMAPS).len(), 2);
        // This program's own code is among what was dropped.
        let smaps = fs::read_to_string("/proc/self/smaps").expect("smaps");
        let here = give_back as *const () as usize;
        let holds = |(start, bytes): &(usize, usize)| (*start..start + bytes).contains(&here);
        assert!(clean_files(&smaps).iter().any(holds));
    }
}
