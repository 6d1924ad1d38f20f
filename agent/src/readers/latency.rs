//! How long disks take, as histograms: of each second's requests their mean time, as often as there were
//! requests.
//!
//! /proc/diskstats counts requests and the time they took in all (admin-guide/iostats.rst, fields 1, 4, 5
//! and 8), so what one second's requests took on average is known and what each took is not: a quantile of
//! these buckets is one of seconds, weighted by what they did. That a disk was slow for three
//! seconds in an hour is in it, which it is not in an average over a minute.
//!
//! Bound: [`DISKS_MAX`] disks by name; the requests of all others are `other`'s.

use super::kept::{Buffer, Kept, Shape};
use super::sheet::{Repair, Sheet};
use super::text::{lines, next, words};
use super::{COUNTER, column, disk};
use std::path::Path;
use strobe_wire::schema::{Column, Kind};

/// The histograms of all disks.
#[derive(Debug)]
pub(crate) struct Latency {
    file: Kept,
    buffer: Buffer,
    disks: Vec<Disk>,
    other: [Histogram; OPS.len()],
}

#[derive(Debug)]
struct Disk {
    name: Box<[u8]>,
    /// Requests and ms of each kind at the last reading.
    last: [Option<(u64, u64)>; OPS.len()],
    histograms: [Histogram; OPS.len()],
    seen: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Histogram {
    /// Requests by the first bucket they fit; the last has what fits none.
    counts: [u64; BOUNDS.len() + 1],
    ms: u64,
}

impl Latency {
    pub(crate) fn new(procfs: &Path) -> Self {
        let file = Kept::new(procfs.join("diskstats"), Shape::Records(512));
        let (disks, other) = (Vec::new(), [Histogram::default(); OPS.len()]);
        Self { file, buffer: Buffer::new(), disks, other }
    }

    pub(super) fn read(&mut self) {
        self.disks.iter_mut().for_each(|disk| disk.seen = false);
        let Some(text) = self.file.read(&mut self.buffer) else { return };
        for line in lines(text) {
            let mut words = words(line).skip(2);
            let Some(name) = words.next().filter(|name| !disk::is_ignored(name)) else { continue };
            let mut numbers = [None; 8];
            numbers.iter_mut().for_each(|number| *number = next(&mut words));
            let [reads, _, _, read_ms, writes, _, _, write_ms] = numbers;
            let now = [reads.zip(read_ms), writes.zip(write_ms)];
            let known = self.disks.iter().position(|disk| *disk.name == *name);
            let at = known.unwrap_or_else(|| {
                self.disks.push(Disk::new(name));
                self.disks.len() - 1
            });
            let Some(disk) = self.disks.get_mut(at) else { continue };
            disk.seen = true;
            for (op, now) in now.into_iter().enumerate() {
                let Some(last) = disk.last.get_mut(op) else { continue };
                let before = std::mem::replace(last, now);
                let own = disk.histograms.get_mut(op);
                let place = if at < DISKS_MAX { own } else { self.other.get_mut(op) };
                if let (Some(before), Some(now), Some(histogram)) = (before, now, place) {
                    histogram.observe(before, now);
                }
            }
        }
        // One that comes back begins anew, as its counters do. The order of the others stays.
        self.disks.retain(|disk| disk.seen);
    }

    pub(super) fn put(&self, sheet: &mut Sheet) {
        for disk in self.disks.iter().take(DISKS_MAX) {
            for (op, histogram) in OPS.iter().zip(&disk.histograms) {
                histogram.put(op.0, &disk.name, sheet);
            }
        }
        if DISKS_MAX < self.disks.len() {
            for (op, histogram) in OPS.iter().zip(&self.other) {
                histogram.put(op.0 + OTHERS, b"other", sheet);
            }
        }
    }
}

impl Disk {
    fn new(name: &[u8]) -> Self {
        let histograms = [Histogram::default(); OPS.len()];
        Self { name: name.into(), last: [None; OPS.len()], histograms, seen: true }
    }
}

impl Histogram {
    /// Requests and their ms before and now. What fell, or wrapped, says nothing.
    fn observe(&mut self, before: (u64, u64), now: (u64, u64)) {
        let (Some(requests), Some(ms)) = (now.0.checked_sub(before.0), now.1.checked_sub(before.1))
        else {
            return;
        };
        if requests == 0 {
            return;
        }
        let mean_us = ms.saturating_mul(1000) / requests;
        let bucket = BOUNDS.iter().position(|(bound_us, _)| mean_us <= *bound_us);
        if let Some(count) = self.counts.get_mut(bucket.unwrap_or(BOUNDS.len())) {
            *count = count.saturating_add(requests);
        }
        self.ms = self.ms.saturating_add(ms);
    }

    fn put(&self, shape: u8, name: &[u8], sheet: &mut Sheet) {
        let mut values = [None; BOUNDS.len() + 3];
        let mut sum = 0_u64;
        for (value, count) in values.iter_mut().zip(self.counts) {
            sum = sum.saturating_add(count);
            *value = Some(sum);
        }
        let [.., total, all] = &mut values;
        (*total, *all) = (Some(self.ms), Some(sum));
        sheet.put(shape, name, &values, Repair::None);
    }
}

pub(super) fn columns(shape: u8, key: &[u8]) -> Vec<Column> {
    let device = String::from_utf8_lossy(key);
    let op = OPS.iter().find(|(op, _)| *op == shape % OTHERS).map_or("", |(_, name)| name);
    let labels = [("device", &*device), ("op", op)];
    let bounds = BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
    let bucket = |bound| {
        let labels = [labels[0], labels[1], ("le", bound)];
        column("strobe_disk_io_latency_seconds_bucket", &labels, COUNTER)
    };
    let mut columns: Vec<Column> = bounds.map(bucket).collect();
    let ms = Kind::Counter { scale: 3 };
    columns.push(column("strobe_disk_io_latency_seconds_sum", &labels, ms));
    columns.push(column("strobe_disk_io_latency_seconds_count", &labels, COUNTER));
    columns
}

const OPS: [(u8, &str); 2] = [(0, "read"), (1, "write")];
/// Added to the shape of what is of all other disks: one may be called so.
const OTHERS: u8 = 2;
const DISKS_MAX: usize = 16;
/// In µs, and as they are told.
const BOUNDS: [(u64, &str); 13] = [
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1000, "0.001"),
    (2500, "0.0025"),
    (5000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
];

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::readers::sheet::{Outcome, Vanish};
    use std::collections::BTreeMap;

    fn read(latency: &mut Latency, sheet: &mut Sheet) -> BTreeMap<String, u64> {
        latency.read();
        sheet.begin();
        latency.put(sheet);
        if sheet.end() == Outcome::Changed {
            sheet.learn();
            latency.put(sheet);
            sheet.learned();
        }
        let columns = sheet.entries().iter().flat_map(|entry| {
            let columns = columns(entry.shape, &entry.key);
            assert_eq!(columns.len(), entry.count);
            columns
        });
        let named = columns.enumerate().map(|(at, column)| {
            let labels: Vec<_> = column.labels.0.iter().map(|(_, value)| &**value).collect();
            let name = column.name.strip_prefix("strobe_disk_io_latency_seconds_").unwrap();
            (format!("{name}{{{}}}", labels.join(",")), sheet.value(at).unwrap())
        });
        named.collect()
    }

    #[test]
    fn a_seconds_requests_are_in_the_bucket_of_their_mean() {
        let root = std::env::temp_dir().join(format!("strobe-latency-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let write = |sda: &str| {
            let others: String =
                (0..20).map(|n| format!("8 {n} d{n} {n} 0 0 {n} 0 0 0 0 0\n")).collect();
            let text = format!("7 0 loop0 9 9 9 9 9 9 9 9\n8 0 sda {sda}\n{others}");
            std::fs::write(root.join("diskstats"), text).unwrap();
        };
        let (mut latency, mut sheet) = (Latency::new(&root), Sheet::new(Vanish::Go));
        write("100 0 0 1000 10 0 0 50 0 0 0");
        let first = read(&mut latency, &mut sheet);
        assert_eq!(first["count{sda,read}"], 0, "{first:?}");
        // Twenty reads of 0.2 ms, and no write.
        write("120 0 0 1004 10 0 0 50 0 0 0");
        read(&mut latency, &mut sheet);
        // Two reads of 3 s, three writes of 10 ms; then a disk that began anew.
        write("122 0 0 7004 13 0 0 80 0 0 0");
        read(&mut latency, &mut sheet);
        // Milliseconds of 32 bits that wrapped, then counters that began anew.
        write("123 0 0 5 13 0 0 80 0 0 0");
        read(&mut latency, &mut sheet);
        write("1 0 0 1 0 0 0 0 0 0 0");
        let values = read(&mut latency, &mut sheet);
        for (name, wanted) in [
            ("bucket{sda,0.0001,read}", 0),
            ("bucket{sda,0.00025,read}", 20),
            ("bucket{sda,1,read}", 20),
            ("bucket{sda,+Inf,read}", 22),
            ("count{sda,read}", 22),
            ("sum{sda,read}", 6004),
            ("bucket{sda,0.005,write}", 0),
            ("bucket{sda,0.01,write}", 3),
            ("sum{sda,write}", 30),
            ("count{other,read}", 0),
        ] {
            assert_eq!(values[name], wanted, "{name} {values:?}");
        }
        assert!(!values.keys().any(|name| name.contains("loop0")));
        assert_eq!(values.keys().filter(|name| name.starts_with("count")).count(), 2 * 17);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
