//! Walks for processors, power, heat and memory errors.

use super::leaf::{Found, Read, Spec, names, numbered, text_of};
use super::{COUNTER, GAUGE, Roots, column, metric_text};
use crate::config::SMALL;
use std::path::PathBuf;
use strobe_wire::schema::Kind;

/// Frequencies are in kHz. Reading one makes some kernels (4.13 to 5.16 on x86) sleep for 10 ms, so
/// this is a walk for a hazard thread.
pub(crate) fn cpufreq(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("devices/system/cpu");
    for name in names(&base) {
        let Some(cpu) = numbered(&name, "cpu") else { continue };
        let hertz = Read::Level(1000);
        found.object(
            &base.join(&name).join("cpufreq"),
            &[
                Spec("cpuinfo_cur_freq", "node_cpu_frequency_hertz", GAUGE, hertz),
                Spec("cpuinfo_min_freq", "node_cpu_frequency_min_hertz", GAUGE, hertz),
                Spec("cpuinfo_max_freq", "node_cpu_frequency_max_hertz", GAUGE, hertz),
                Spec("scaling_cur_freq", "node_cpu_scaling_frequency_hertz", GAUGE, hertz),
                Spec("scaling_min_freq", "node_cpu_scaling_frequency_min_hertz", GAUGE, hertz),
                Spec("scaling_max_freq", "node_cpu_scaling_frequency_max_hertz", GAUGE, hertz),
            ],
            &[("cpu", cpu)],
        );
    }
}

/// How often a core or package was slowed down by heat; once a core, whatever its threads.
pub(crate) fn throttles(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("devices/system/cpu");
    let (mut cores, mut packages) = (Vec::new(), Vec::new());
    for name in names(&base).iter().filter(|name| numbered(name, "cpu").is_some()) {
        let dir = base.join(name);
        let id = |file: &str| text_of(&dir.join("topology").join(file));
        let (Some(package), Some(core)) = (id("physical_package_id"), id("core_id")) else {
            continue;
        };
        let count = dir.join("thermal_throttle/core_throttle_count");
        let key = (package.clone(), core.clone());
        if count.exists() && !cores.contains(&key) {
            let labels = [("package", &*package), ("core", &*core)];
            let column = column("node_cpu_core_throttles_total", &labels, COUNTER);
            found.leaf(count, Read::Whole(1), column);
            cores.push(key);
        }
        let count = dir.join("thermal_throttle/package_throttle_count");
        if count.exists() && !packages.contains(&package) {
            let labels = [("package", &*package)];
            let column = column("node_cpu_package_throttles_total", &labels, COUNTER);
            found.leaf(count, Read::Whole(1), column);
            packages.push(package);
        }
    }
}

/// A sensor may be an i2c chip or an embedded controller that answers late or never: for a hazard
/// thread.
pub(crate) fn thermal(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("class/thermal");
    for name in names(&base) {
        let dir = base.join(&name);
        let kind = text_of(&dir.join("type")).unwrap_or_default();
        if let Some(zone) = numbered(&name, "thermal_zone") {
            let labels = [("zone", zone), ("type", &*kind)];
            let celsius = column("node_thermal_zone_temp", &labels, Kind::Gauge { scale: 3 });
            found.leaf(dir.join("temp"), Read::Level(1), celsius);
        } else if let Some(number) = numbered(&name, "cooling_device") {
            found.object(
                &dir,
                &[
                    Spec("cur_state", "node_cooling_device_cur_state", GAUGE, Read::Level(1)),
                    Spec("max_state", "node_cooling_device_max_state", GAUGE, Read::Level(1)),
                ],
                &[("name", number), ("type", &*kind)],
            );
        }
    }
}

pub(crate) fn edac(roots: &Roots, found: &mut Found) {
    if SMALL {
        return;
    }
    let base = roots.sysfs.join("devices/system/edac/mc");
    for name in names(&base) {
        let Some(controller) = numbered(&name, "mc") else { continue };
        let dir = base.join(&name);
        let labels = [("controller", controller)];
        found.object(
            &dir,
            &[
                Spec("ce_count", "node_edac_correctable_errors_total", COUNTER, Read::Whole(1)),
                Spec("ue_count", "node_edac_uncorrectable_errors_total", COUNTER, Read::Whole(1)),
            ],
            &labels,
        );
        let row = |file: &'static str| {
            let what = if file.starts_with("ce") { "correctable" } else { "uncorrectable" };
            (file, format!("node_edac_csrow_{what}_errors_total"))
        };
        let unknown = [("controller", controller), ("csrow", "unknown")];
        for (file, metric) in [row("ce_noinfo_count"), row("ue_noinfo_count")] {
            found.leaf(dir.join(file), Read::Whole(1), column(&metric, &unknown, COUNTER));
        }
        for name in names(&dir) {
            let Some(csrow) = numbered(&name, "csrow") else { continue };
            let labels = [("controller", controller), ("csrow", csrow)];
            for (file, metric) in [row("ce_count"), row("ue_count")] {
                let path = dir.join(&name).join(file);
                found.leaf(path, Read::Whole(1), column(&metric, &labels, COUNTER));
            }
        }
    }
}

/// Energy in µJ; readable for root alone since Linux 5.10.
pub(crate) fn rapl(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("class/powercap");
    let mut used: Vec<(String, u64)> = Vec::new();
    // In the order of bytes: the index of a name that stands twice depends on it.
    let mut zones = names(&base);
    zones.sort();
    for zone in zones {
        let dir = base.join(&zone);
        let Some(text) = text_of(&dir.join("name")) else { continue };
        let mut parts = text.split('-');
        let split = (parts.next(), parts.next().and_then(|n| n.parse::<u64>().ok()), parts.next());
        let (name, index) = match split {
            (Some(name), Some(index), None) => (name.to_owned(), index),
            _ => {
                let known = used.iter().rfind(|(name, _)| *name == text);
                (text.clone(), known.map_or(0, |(_, next)| *next))
            }
        };
        used.push((name.clone(), index.saturating_add(1)));
        let (index, path) = (index.to_string(), dir.to_string_lossy().into_owned());
        let metric = format!("node_rapl_{}_joules_total", metric_text(&name));
        let labels = [("index", &*index), ("path", &*path)];
        let joules = column(&metric, &labels, Kind::Counter { scale: 6 });
        found.leaf(dir.join("energy_uj"), Read::Whole(1), joules);
    }
}

/// Batteries and mains, asked of firmware that may take its time: for a hazard thread.
pub(crate) fn power_supplies(roots: &Roots, found: &mut Found) {
    if SMALL {
        return;
    }
    let base = roots.sysfs.join("class/power_supply");
    for name in names(&base) {
        let dir = base.join(&name);
        let labels = [("power_supply", &*name)];
        let metric = |metric: &str| format!("node_power_supply_{metric}");
        for (file, name, kind) in SUPPLY {
            found.leaf(dir.join(file), Read::Level(1), column(&metric(name), &labels, *kind));
        }
        for file in SUPPLY_MICRO {
            let path = dir.join(file);
            found.leaf(path, Read::Level(1), column(&metric(file), &labels, MICRO));
        }
        for file in SUPPLY_TENTHS {
            let celsius = column(&metric(&format!("{file}_celsius")), &labels, TENTHS);
            found.leaf(dir.join(file), Read::Level(1), celsius);
        }
        let texts: Vec<(&str, PathBuf)> =
            SUPPLY_TEXTS.iter().map(|file| (*file, dir.join(file))).collect();
        found.info("node_power_supply_info", &[("power_supply", &name)], &texts);
    }
}

/// What both hosts of a fabric have: InfiniBand's ports.
pub(crate) fn infiniband(roots: &Roots, found: &mut Found) {
    // No such thing is where the small build is.
    if SMALL {
        return;
    }
    let base = roots.sysfs.join("class/infiniband");
    for device in names(&base) {
        let dir = base.join(&device);
        let texts =
            [("board_id", "board_id"), ("firmware_version", "fw_ver"), ("hca_type", "hca_type")];
        let texts = texts.map(|(label, file)| (label, dir.join(file)));
        found.info("node_infiniband_info", &[("device", &device)], &texts);
        for port in names(&dir.join("ports")) {
            found.object(
                &dir.join("ports").join(&port),
                INFINIBAND,
                &[("device", &*device), ("port", &*port)],
            );
        }
    }
}

pub(crate) fn fibre_channel(roots: &Roots, found: &mut Found) {
    // No such thing is where the small build is.
    if SMALL {
        return;
    }
    let base = roots.sysfs.join("class/fc_host");
    for host in names(&base) {
        let dir = base.join(&host);
        let labels = [("fc_host", &*host)];
        for (file, metric) in FIBRE {
            let metric = format!("node_fibrechannel_{metric}_total");
            let path = dir.join("statistics").join(file);
            found.leaf(path, Read::Hexadecimal, column(&metric, &labels, COUNTER));
        }
        let texts = FIBRE_TEXTS.map(|file| (file, dir.join(file)));
        // Numbers are told without their `0x`.
        found.info_bare("node_fibrechannel_info", &[("fc_host", &host)], &texts);
    }
}

const MICRO: Kind = Kind::Gauge { scale: 6 };
const TENTHS: Kind = Kind::Gauge { scale: 1 };
const SUPPLY: &[(&str, &str, Kind)] = &[
    ("authentic", "authentic", GAUGE),
    ("calibrate", "calibrate", GAUGE),
    ("capacity", "capacity", GAUGE),
    ("capacity_alert_max", "capacity_alert_max", GAUGE),
    ("capacity_alert_min", "capacity_alert_min", GAUGE),
    ("cycle_count", "cyclecount", GAUGE),
    ("online", "online", GAUGE),
    ("present", "present", GAUGE),
    ("time_to_empty_now", "time_to_empty_seconds", GAUGE),
    ("time_to_full_now", "time_to_full_seconds", GAUGE),
    ("current_now", "current_ampere", MICRO),
    ("energy_now", "energy_watthour", MICRO),
    ("voltage_now", "voltage_volt", MICRO),
    ("charge_now", "charge_ampere", MICRO),
    ("power_now", "power_watt", MICRO),
];
const SUPPLY_MICRO: [&str; 26] = [
    "current_boot",
    "current_max",
    "energy_empty",
    "energy_empty_design",
    "energy_full",
    "energy_full_design",
    "voltage_boot",
    "voltage_max",
    "voltage_max_design",
    "voltage_min",
    "voltage_min_design",
    "voltage_ocv",
    "charge_control_limit",
    "charge_control_limit_max",
    "charge_counter",
    "charge_empty",
    "charge_empty_design",
    "charge_full",
    "charge_full_design",
    "charge_term_current",
    "constant_charge_current",
    "constant_charge_current_max",
    "constant_charge_voltage",
    "constant_charge_voltage_max",
    "precharge_current",
    "input_current_limit",
];
const SUPPLY_TENTHS: [&str; 8] = [
    "temp",
    "temp_alert_max",
    "temp_alert_min",
    "temp_ambient",
    "temp_ambient_max",
    "temp_ambient_min",
    "temp_max",
    "temp_min",
];
const SUPPLY_TEXTS: [&str; 11] = [
    "capacity_level",
    "charge_type",
    "health",
    "manufacturer",
    "model_name",
    "scope",
    "serial_number",
    "status",
    "technology",
    "type",
    "usb_type",
];
/// `4: ACTIVE` is state 4; `40 Gb/sec (4X QDR)` is a rate; data is counted in words of four bytes.
const INFINIBAND: &[Spec] = &[
    Spec("state", "node_infiniband_state_id", GAUGE, Read::Leading(1)),
    Spec("phys_state", "node_infiniband_physical_state_id", GAUGE, Read::Leading(1)),
    Spec("rate", "node_infiniband_rate_bytes_per_second", GAUGE, Read::Leading(125_000_000)),
    Spec(
        "counters_ext/port_multicast_rcv_packets",
        "node_infiniband_legacy_multicast_packets_received_total",
        COUNTER,
        Read::Whole(1),
    ),
    Spec(
        "counters_ext/port_multicast_xmit_packets",
        "node_infiniband_legacy_multicast_packets_transmitted_total",
        COUNTER,
        Read::Whole(1),
    ),
    Spec(
        "counters_ext/port_rcv_data_64",
        "node_infiniband_legacy_data_received_bytes_total",
        COUNTER,
        Read::Whole(4),
    ),
    Spec(
        "counters_ext/port_rcv_packets_64",
        "node_infiniband_legacy_packets_received_total",
        COUNTER,
        Read::Whole(1),
    ),
    Spec(
        "counters_ext/port_unicast_rcv_packets",
        "node_infiniband_legacy_unicast_packets_received_total",
        COUNTER,
        Read::Whole(1),
    ),
    Spec(
        "counters_ext/port_unicast_xmit_packets",
        "node_infiniband_legacy_unicast_packets_transmitted_total",
        COUNTER,
        Read::Whole(1),
    ),
    Spec(
        "counters_ext/port_xmit_data_64",
        "node_infiniband_legacy_data_transmitted_bytes_total",
        COUNTER,
        Read::Whole(4),
    ),
    Spec(
        "counters_ext/port_xmit_packets_64",
        "node_infiniband_legacy_packets_transmitted_total",
        COUNTER,
        Read::Whole(1),
    ),
    ib(
        "counters/excessive_buffer_overrun_errors",
        "node_infiniband_excessive_buffer_overrun_errors_total",
    ),
    ib("counters/link_downed", "node_infiniband_link_downed_total"),
    ib("counters/link_error_recovery", "node_infiniband_link_error_recovery_total"),
    ib("counters/local_link_integrity_errors", "node_infiniband_local_link_integrity_errors_total"),
    ib("counters/multicast_rcv_packets", "node_infiniband_multicast_packets_received_total"),
    ib("counters/multicast_xmit_packets", "node_infiniband_multicast_packets_transmitted_total"),
    ib(
        "counters/port_rcv_constraint_errors",
        "node_infiniband_port_constraint_errors_received_total",
    ),
    ib(
        "counters/port_xmit_constraint_errors",
        "node_infiniband_port_constraint_errors_transmitted_total",
    ),
    Spec(
        "counters/port_rcv_data",
        "node_infiniband_port_data_received_bytes_total",
        COUNTER,
        Read::Whole(4),
    ),
    Spec(
        "counters/port_xmit_data",
        "node_infiniband_port_data_transmitted_bytes_total",
        COUNTER,
        Read::Whole(4),
    ),
    ib("counters/port_rcv_discards", "node_infiniband_port_discards_received_total"),
    ib("counters/port_xmit_discards", "node_infiniband_port_discards_transmitted_total"),
    ib("counters/port_rcv_errors", "node_infiniband_port_errors_received_total"),
    ib("counters/port_rcv_packets", "node_infiniband_port_packets_received_total"),
    ib("counters/port_xmit_packets", "node_infiniband_port_packets_transmitted_total"),
    ib("counters/port_xmit_wait", "node_infiniband_port_transmit_wait_total"),
    ib("counters/unicast_rcv_packets", "node_infiniband_unicast_packets_received_total"),
    ib("counters/unicast_xmit_packets", "node_infiniband_unicast_packets_transmitted_total"),
    ib(
        "counters/port_rcv_remote_physical_errors",
        "node_infiniband_port_receive_remote_physical_errors_total",
    ),
    ib(
        "counters/port_rcv_switch_relay_errors",
        "node_infiniband_port_receive_switch_relay_errors_total",
    ),
    ib("counters/symbol_error", "node_infiniband_symbol_error_total"),
    ib("counters/VL15_dropped", "node_infiniband_vl15_dropped_total"),
];

const fn ib(file: &'static str, name: &'static str) -> Spec {
    Spec(file, name, COUNTER, Read::Whole(1))
}

const FIBRE: [(&str, &str); 14] = [
    ("dumped_frames", "dumped_frames"),
    ("error_frames", "error_frames"),
    ("invalid_crc_count", "invalid_crc"),
    ("rx_frames", "rx_frames"),
    ("rx_words", "rx_words"),
    ("tx_frames", "tx_frames"),
    ("tx_words", "tx_words"),
    ("seconds_since_last_reset", "seconds_since_last_reset"),
    ("invalid_tx_word_count", "invalid_tx_words"),
    ("link_failure_count", "link_failure"),
    ("loss_of_sync_count", "loss_of_sync"),
    ("loss_of_signal_count", "loss_of_signal"),
    ("nos_count", "nos"),
    ("fcp_packet_aborts", "fcp_packet_aborts"),
];
const FIBRE_TEXTS: [&str; 10] = [
    "speed",
    "port_state",
    "port_type",
    "port_id",
    "port_name",
    "fabric_name",
    "symbolic_name",
    "supported_classes",
    "supported_speeds",
    "dev_loss_tmo",
];
