//! /proc/meminfo and /proc/vmstat.

use super::sheet::{Repair, Sheet};
use super::text::{lines, next, number, words};
use super::{COUNTER, GAUGE, column, metric_text};
use strobe_wire::schema::Column;

/// `Active(anon):  1556 kB` and `HugePages_Total:  0`.
pub(super) fn parse_meminfo(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes) {
        if let Some((shape, [b':', rest @ ..])) = sheet.expected(line) {
            let kib = rest.strip_suffix(b" kB");
            if shape == if kib.is_some() { KIB } else { PLAIN } {
                let value = number(kib.unwrap_or(rest).trim_ascii());
                let factor = if kib.is_some() { 1024 } else { 1 };
                sheet.put_expected(value.and_then(|value| value.checked_mul(factor)));
                continue;
            }
        }
        let mut words = words(line);
        let Some(key) = words.next().and_then(|key| key.strip_suffix(b":")) else { continue };
        let value = next(&mut words);
        match words.next() {
            Some(b"kB") => {
                let bytes = value.and_then(|kib| kib.checked_mul(1024));
                sheet.put(KIB, key, &[bytes], Repair::None);
            }
            _ => sheet.put(PLAIN, key, &[value], Repair::None),
        }
    }
}

pub(super) fn meminfo_columns(shape: u8, key: &str) -> Vec<Column> {
    let key = metric_text(&key.replace(')', ""));
    let unit = if shape == KIB { "_bytes" } else { "" };
    vec![column(&format!("node_memory_{key}{unit}"), &[], GAUGE)]
}

/// `pgfault 17153072`, of which node_exporter's default filter keeps a few.
pub(super) fn parse_vmstat(bytes: &[u8], sheet: &mut Sheet) {
    let mut end = 0;
    for line in lines(bytes) {
        end += line.len() + 1;
        // Most lines are not wanted, which their first letters tell.
        if !is_wanted(line) {
            continue;
        }
        let mut words = words(line);
        let Some(key) = words.next().filter(|key| is_wanted(key)) else { continue };
        sheet.put(0, key, &[next(&mut words)], Repair::None);
        sheet.reach = end;
    }
}

pub(super) fn vmstat_columns(key: &str) -> Vec<Column> {
    vec![column(&format!("node_vmstat_{}", metric_text(key)), &[], COUNTER)]
}

/// `^(oom_kill|pgpg|pswp|pg.*fault).*`
fn is_wanted(key: &[u8]) -> bool {
    match key {
        [b'o', ..] => key.starts_with(b"oom_kill"),
        [b'p', b's', ..] => key.starts_with(b"pswp"),
        [b'p', b'g', rest @ ..] => {
            rest.starts_with(b"pg") || rest.windows(5).any(|part| part == b"fault")
        }
        _ => false,
    }
}

const KIB: u8 = 0;
const PLAIN: u8 = 1;
