//! /proc/stat: cores, and the counters below them.

use super::sheet::{Repair, Sheet};
use super::text::{lines, next, number, words};
use super::{COUNTER, GAUGE, column};
use strobe_wire::schema::{Column, Kind};

/// `cpu0 user nice system idle iowait irq softirq steal guest guest_nice`, in USER_HZ ticks.
pub(super) fn parse_cores(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes) {
        let Some(rest) = line.strip_prefix(b"cpu") else { break };
        let mut words = words(rest);
        if !rest.first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let Some(core) = words.next().filter(|core| number(core).is_some()) else { continue };
        // Kernels before 2.6.33 have fewer; a field that is not there has no value.
        let values: [Option<u64>; MODES.len()] = std::array::from_fn(|_| next(&mut words));
        if values.iter().any(Option::is_some) {
            sheet.put(0, core, &values, Repair::Cpu { idle: IDLE });
        }
    }
}

pub(super) fn core_columns(core: &str) -> Vec<Column> {
    MODES.iter().map(|(name, mode)| column(name, &[("cpu", core), ("mode", mode)], TICKS)).collect()
}

/// The lines below the cores.
pub(super) fn parse_stat(bytes: &[u8], sheet: &mut Sheet) {
    let mut values = [None; STAT.len()];
    for line in lines(bytes) {
        let mut words = words(line);
        let Some(name) = words.next() else { continue };
        let known = STAT.iter().position(|(line, _, _)| line.as_bytes() == name);
        if let Some(value) = known.and_then(|index| values.get_mut(index)) {
            *value = next(&mut words);
        }
    }
    sheet.put(0, b"", &values, Repair::None);
}

pub(super) fn stat_columns() -> Vec<Column> {
    STAT.iter().map(|(_, name, kind)| column(name, &[], *kind)).collect()
}

/// USER_HZ is 100 on every Linux that node_exporter runs on.
const TICKS: Kind = Kind::Counter { scale: 2 };
const IDLE: usize = 3;
const MODES: [(&str, &str); 10] = [
    ("node_cpu_seconds_total", "user"),
    ("node_cpu_seconds_total", "nice"),
    ("node_cpu_seconds_total", "system"),
    ("node_cpu_seconds_total", "idle"),
    ("node_cpu_seconds_total", "iowait"),
    ("node_cpu_seconds_total", "irq"),
    ("node_cpu_seconds_total", "softirq"),
    ("node_cpu_seconds_total", "steal"),
    ("node_cpu_guest_seconds_total", "user"),
    ("node_cpu_guest_seconds_total", "nice"),
];
const STAT: [(&str, &str, Kind); 6] = [
    ("intr", "node_intr_total", COUNTER),
    ("ctxt", "node_context_switches_total", COUNTER),
    ("btime", "node_boot_time_seconds", GAUGE),
    ("processes", "node_forks_total", COUNTER),
    ("procs_running", "node_procs_running", GAUGE),
    ("procs_blocked", "node_procs_blocked", GAUGE),
];
