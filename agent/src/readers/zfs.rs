//! ZFS: the kstats below /proc/spl/kstat/zfs, and the NUMA nodes' memory, which have a file a node.

use super::sheet::{Repair, Sheet};
use super::text::{lines, next, number, words};
use super::{COUNTER, GAUGE, column, metric_text};
use strobe_wire::schema::Column;

/// `hits  4  8772612`, name, type and value below a heading; type 4 is a u64.
pub(super) fn parse_kstat(bytes: &[u8], sheet: &mut Sheet) {
    let mut begun = false;
    for line in lines(bytes) {
        let mut words = words(line);
        let (Some(name), Some(kind), Some(value)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if begun && kind == b"4" {
            // Counters and sizes stand side by side; all are told as node_exporter's `untyped`.
            sheet.put(
                0,
                name,
                &[number(value).filter(|v| i64::try_from(*v).is_ok())],
                Repair::None,
            );
        }
        begun |= (name, kind, value) == (&b"name"[..], &b"type"[..], &b"data"[..]);
    }
}

/// `about` is the metric's beginning, and for a dataset its pool and name.
pub(super) fn kstat_columns(about: &str, name: &str) -> Vec<Column> {
    let mut about = about.split('\n');
    let mut part = || about.next().unwrap_or("");
    let (prefix, pool, dataset) = (part(), part(), part());
    let labels = [("zpool", pool), ("dataset", dataset)];
    vec![column(&format!("node_{prefix}_{}", metric_text(name)), &labels, GAUGE)]
}

/// A line of names from `nread` on and a line of values.
pub(super) fn parse_pool(bytes: &[u8], sheet: &mut Sheet) {
    let mut lines = lines(bytes).skip_while(|line| !line.starts_with(b"nread"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return };
    for (name, value) in words(names).zip(words(values)) {
        sheet.put(0, name, &[number(value)], Repair::None);
    }
}

pub(super) fn pool_columns(pool: &str, name: &str) -> Vec<Column> {
    vec![column(&format!("node_zfs_zpool_{}", metric_text(name)), &[("zpool", pool)], GAUGE)]
}

/// `Node 0 MemTotal:  32927252 kB`.
pub(super) fn parse_node_memory(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes) {
        let mut words = words(line);
        let (Some(b"Node"), Some(_), Some(key)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Some(key) = key.strip_suffix(b":") else { continue };
        let value = next(&mut words);
        let unit = if words.next() == Some(b"kB") { 1024 } else { 1 };
        sheet.put(0, key, &[value.and_then(|value| value.checked_mul(unit))], Repair::None);
    }
}

pub(super) fn node_memory_columns(node: &str, key: &str) -> Vec<Column> {
    let name = metric_text(&key.replace(')', ""));
    vec![column(&format!("node_memory_numa_{name}"), &[("node", node)], GAUGE)]
}

/// `numa_hit 193460335812`.
pub(super) fn parse_node_stat(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes) {
        let mut words = words(line);
        let Some(key) = words.next() else { continue };
        sheet.put(0, key, &[next(&mut words)], Repair::None);
    }
}

pub(super) fn node_stat_columns(node: &str, key: &str) -> Vec<Column> {
    let name = format!("node_memory_numa_{}_total", metric_text(key));
    vec![column(&name, &[("node", node)], COUNTER)]
}
