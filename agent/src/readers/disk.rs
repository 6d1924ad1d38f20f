//! /proc/diskstats, and `/sys/class/block/*/stat`, which has a disk's line without its name.

use super::few::Few;
use super::kept::{Kept, Shape};
use super::sheet::{Repair, Sheet};
use super::text::{lines, number, words};
use super::{COUNTER, GAUGE, column};
use std::path::Path;
use strobe_wire::schema::{Column, Kind};

/// The file. Where most of its lines are left out here, as those of loop devices and partitions are, the
/// others are read from sysfs, and the list itself once in so many readings: what is new is in it, and
/// what has gone has no file.
pub(crate) fn kept(procfs: &Path, sysfs: &Path, list_reads: u32) -> Kept {
    let list = Kept::new(procfs.join("diskstats"), Shape::Records(LINE_BYTES_MAX));
    list.with_few(Few::new(sysfs.join("class/block"), list_reads, head))
}

/// What stands before the numbers of a line that is wanted, and the disk's name.
fn head(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let head = key(line.trim_ascii_start());
    let name = words(head).nth(2).filter(|name| !is_ignored(name))?;
    Some((head, name))
}

/// `254 0 vda` and 11 fields, 15 since Linux 4.18 (discards), 17 since 5.5 (flushes).
pub(super) fn parse(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes) {
        let line = line.trim_ascii();
        let mut words = words(line);
        let (Some(major), Some(minor), Some(name)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if number(major).is_none() || number(minor).is_none() || is_ignored(name) {
            continue;
        }
        let mut values = [Some(1); 1 + FIELDS.len()];
        let mut count = 0;
        for (value, (_, _, factor)) in values.iter_mut().skip(1).zip(&FIELDS) {
            let Some(word) = words.next() else { break };
            *value = number(word).and_then(|found| found.checked_mul(*factor));
            count += 1;
        }
        let count = GENERATIONS.into_iter().rfind(|fields| *fields <= count);
        let Some(values) = count.and_then(|count| values.get(..=count)) else { continue };
        // The key is `254 0 vda`, as the line has it: another number is another disk.
        sheet.put(0, key(line), values, Repair::None);
    }
}

/// The columns of one disk with `count` values.
pub(super) fn columns(key: &str, count: usize) -> Vec<Column> {
    let mut words = key.split_ascii_whitespace();
    let (major, minor) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let device = words.next().unwrap_or("");
    let info = [("device", device), ("major", major), ("minor", minor)];
    let fields = FIELDS.iter().take(count.saturating_sub(1));
    std::iter::once(column("node_disk_info", &info, GAUGE))
        .chain(fields.map(|(name, kind, _)| column(name, &[("device", device)], *kind)))
        .collect()
}

/// `^(z?ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+$`
pub(crate) fn is_ignored(name: &[u8]) -> bool {
    let digits = name.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let stem = name.get(..name.len() - digits).unwrap_or(name);
    if stem.len() == name.len() {
        return false;
    }
    match stem {
        b"ram" | b"zram" | b"loop" | b"fd" => true,
        [b'h' | b's' | b'v', b'd', b'a'..=b'z'] | [b'x', b'v', b'd', b'a'..=b'z'] => true,
        [b'n', b'v', b'm', b'e', middle @ .., b'p'] => {
            let mut parts = middle.split(|byte| *byte == b'n');
            let digits = |part: Option<&[u8]>| {
                part.is_some_and(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit))
            };
            digits(parts.next()) && digits(parts.next()) && parts.next().is_none()
        }
        _ => false,
    }
}

/// The first three words of a line.
fn key(line: &[u8]) -> &[u8] {
    let mut words = 0;
    let mut before = b' ';
    for (index, byte) in line.iter().enumerate() {
        let blank = matches!(byte, b' ' | b'\t');
        words += usize::from(blank && !matches!(before, b' ' | b'\t'));
        if words == 3 {
            return line.get(..index).unwrap_or(line);
        }
        before = *byte;
    }
    line
}

/// A disk's name and twenty numbers of twenty digits.
const LINE_BYTES_MAX: usize = 512;
const MILLISECONDS: Kind = Kind::Counter { scale: 3 };
/// What the kernel calls a sector here, whatever the disk.
const SECTOR_BYTES: u64 = 512;
const GENERATIONS: [usize; 3] = [11, 15, 17];
const FIELDS: [(&str, Kind, u64); 17] = [
    ("node_disk_reads_completed_total", COUNTER, 1),
    ("node_disk_reads_merged_total", COUNTER, 1),
    ("node_disk_read_bytes_total", COUNTER, SECTOR_BYTES),
    ("node_disk_read_time_seconds_total", MILLISECONDS, 1),
    ("node_disk_writes_completed_total", COUNTER, 1),
    ("node_disk_writes_merged_total", COUNTER, 1),
    ("node_disk_written_bytes_total", COUNTER, SECTOR_BYTES),
    ("node_disk_write_time_seconds_total", MILLISECONDS, 1),
    ("node_disk_io_now", GAUGE, 1),
    ("node_disk_io_time_seconds_total", MILLISECONDS, 1),
    ("node_disk_io_time_weighted_seconds_total", MILLISECONDS, 1),
    ("node_disk_discards_completed_total", COUNTER, 1),
    ("node_disk_discards_merged_total", COUNTER, 1),
    ("node_disk_discarded_sectors_total", COUNTER, 1),
    ("node_disk_discard_time_seconds_total", MILLISECONDS, 1),
    ("node_disk_flush_requests_total", COUNTER, 1),
    ("node_disk_flush_requests_time_seconds_total", MILLISECONDS, 1),
];

#[cfg(test)]
mod tests {
    use super::is_ignored;

    #[test]
    fn partitions_and_pseudo_disks_are_left_out() {
        for name in ["ram0", "zram1", "loop7", "fd0", "sda1", "xvda12", "hdb2", "nvme0n1p1"] {
            assert!(is_ignored(name.as_bytes()), "{name}");
        }
        for name in
            ["vda", "sdaa", "sdaa1", "nvme0n1", "nvme0n1n2p1", "dm-0", "md0", "mmcblk0p1", "", "7"]
        {
            assert!(!is_ignored(name.as_bytes()), "{name}");
        }
    }
}
