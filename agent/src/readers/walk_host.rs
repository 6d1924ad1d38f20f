//! Walks for what the host as a whole has: entropy, conntrack, clock sources, os-release, DMI, SELinux,
//! vulnerabilities, and tables of /proc that are read less often than the rest.

use super::engine::Call;
use super::kept::Shape;
use super::leaf::{Found, Read, Spec, names, numbered, text_of};
use super::{COUNTER, Format, GAUGE, Roots, column};
use strobe_wire::schema::Kind;

pub(crate) fn entropy(roots: &Roots, found: &mut Found) {
    let random = roots.procfs.join("sys/kernel/random");
    found.object(
        &random,
        &[
            Spec("entropy_avail", "node_entropy_available_bits", GAUGE, Read::Level(1)),
            Spec("poolsize", "node_entropy_pool_size_bits", GAUGE, Read::Level(1)),
        ],
        &[],
    );
}

pub(crate) fn conntrack(roots: &Roots, found: &mut Found) {
    let limits = roots.procfs.join("sys/net/netfilter");
    // Without the count nothing tracks, whatever the table says, and node_exporter has none of it.
    if !limits.join("nf_conntrack_count").exists() {
        return;
    }
    found.object(
        &limits,
        &[
            Spec("nf_conntrack_count", "node_nf_conntrack_entries", GAUGE, Read::Level(1)),
            Spec("nf_conntrack_max", "node_nf_conntrack_entries_limit", GAUGE, Read::Level(1)),
        ],
        &[],
    );
    let path = roots.procfs.join("net/stat/nf_conntrack");
    found.lacks = !path.exists();
    found.table(path, Shape::Records(LINE_BYTES_MAX), Format::Conntrack, "");
}

pub(crate) fn schedstat(roots: &Roots, found: &mut Found) {
    let path = roots.procfs.join("schedstat");
    found.table(path, Shape::Records(LONG_BYTES_MAX), Format::Schedstat, "");
}

pub(crate) fn arp(roots: &Roots, found: &mut Found) {
    found.table(roots.procfs.join("net/arp"), Shape::Records(LINE_BYTES_MAX), Format::Arp, "");
}

pub(crate) fn udp_queues(roots: &Roots, found: &mut Found) {
    for (file, version) in [("net/udp", "v4"), ("net/udp6", "v6")] {
        let shape = Shape::Records(LINE_BYTES_MAX);
        found.table(roots.procfs.join(file), shape, Format::Udp, version);
    }
}

/// Its own clock, whatever the trees: there is no file that says it.
pub(crate) fn timex(_roots: &Roots, found: &mut Found) {
    found.engine(|| Call::Timex);
}

pub(crate) fn clock_sources(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("devices/system/clocksource");
    for name in names(&base) {
        let Some(device) = numbered(&name, "clocksource") else { continue };
        let available = text_of(&base.join(&name).join("available_clocksource"));
        for source in available.unwrap_or_default().split_whitespace() {
            let labels = [("device", device), ("clocksource", source)];
            found.constant(1, column("node_time_clocksource_available_info", &labels, GAUGE));
        }
        let current = base.join(&name).join("current_clocksource");
        let texts = [("clocksource", current)];
        found.info("node_time_clocksource_current_info", &[("device", device)], &texts);
    }
}

/// CPUs that the scheduler leaves alone, as in `1,3-5`.
pub(crate) fn isolated(roots: &Roots, found: &mut Found) {
    let text = text_of(&roots.sysfs.join("devices/system/cpu/isolated")).unwrap_or_default();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else { continue };
        for cpu in (first..=last).take(4096) {
            let labels = [("cpu", &*cpu.to_string())];
            found.constant(1, column("node_cpu_isolated", &labels, GAUGE));
        }
    }
}

/// os-release of the host; what a version has behind its first point is not told as a number.
pub(crate) fn os(roots: &Roots, found: &mut Found) {
    let paths = ["etc/os-release", "usr/lib/os-release"].map(|path| roots.rootfs.join(path));
    let Some(text) = paths.iter().find_map(|path| std::fs::read_to_string(path).ok()) else {
        return;
    };
    let value = |key: &str| {
        let line =
            |line: &'_ str| Some(line.trim().strip_prefix(key)?.strip_prefix('=')?.to_owned());
        let value = text.lines().rev().find_map(line).unwrap_or_default();
        let quoted = |mark: char| value.strip_prefix(mark).and_then(|v| v.strip_suffix(mark));
        quoted('"').or_else(|| quoted('\'')).unwrap_or(&value).to_owned()
    };
    let pairs: Vec<_> = OS.iter().map(|(label, key)| (*label, value(key))).collect();
    let labels: Vec<_> = pairs.iter().map(|(label, value)| (*label, value.as_str())).collect();
    found.constant(1, column("node_os_info", &labels, GAUGE));
    let version = value("VERSION_ID");
    let mut parts = version.split('.');
    let number = match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => format!("{major}.{minor}"),
        (major, _) => major.unwrap_or("").to_owned(),
    };
    let named = ["id", "id_like", "name"];
    let labels: Vec<_> = labels.into_iter().filter(|(label, _)| named.contains(label)).collect();
    if let Some(number) = number.parse::<f64>().ok().filter(|number| 0.0 < *number) {
        found.constant(number.to_bits(), column("node_os_version", &labels, Kind::Float));
    }
}

/// What the firmware says of the machine; serial numbers are readable for root alone.
pub(crate) fn dmi(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("class/dmi/id");
    let texts: Vec<_> = DMI
        .iter()
        .map(|(label, file)| (*label, base.join(file)))
        .filter(|(_, path)| text_of(path).is_some())
        .collect();
    if !texts.is_empty() {
        found.info("node_dmi_info", &[], &texts);
    }
}

/// SELinux is on where its file system is mounted.
pub(crate) fn selinux(roots: &Roots, found: &mut Found) {
    let enforce = roots.sysfs.join("fs/selinux/enforce");
    let enabled = enforce.exists();
    found.constant(u64::from(enabled), column("node_selinux_enabled", &[], GAUGE));
    if !enabled {
        return;
    }
    found.leaf(enforce, Read::Level(1), column("node_selinux_current_mode", &[], GAUGE));
    let config = std::fs::read_to_string(roots.rootfs.join("etc/selinux/config"));
    let config = config.unwrap_or_default();
    let mode = config.lines().find_map(|line| line.trim().strip_prefix("SELINUX="));
    let mode: i64 = match mode.map(str::trim) {
        Some("enforcing") => 1,
        Some("permissive") => 0,
        _ => -1,
    };
    found.constant(mode.cast_unsigned(), column("node_selinux_config_mode", &[], GAUGE));
}

/// One series a known flaw of the processor, as node_exporter has it since 1.6.
pub(crate) fn vulnerabilities(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("devices/system/cpu/vulnerabilities");
    for name in names(&base) {
        let Some(text) = text_of(&base.join(&name)) else { continue };
        let (state, mitigation) = match text.split_once(": ") {
            Some(("Mitigation", rest)) => ("mitigation", rest),
            _ if text.starts_with("Not affected") => ("not affected", ""),
            _ if text.starts_with("Vulnerable") => ("vulnerable", ""),
            _ => ("unknown", ""),
        };
        let labels = [("codename", &*name), ("state", state), ("mitigation", mitigation)];
        found.constant(1, column("node_cpu_vulnerabilities_info", &labels, GAUGE));
    }
}

/// Same-page merging.
pub(crate) fn ksmd(roots: &Roots, found: &mut Found) {
    let milliseconds = Kind::Gauge { scale: 3 };
    found.object(
        &roots.sysfs.join("kernel/mm/ksm"),
        &[
            Spec("full_scans", "node_ksmd_full_scans_total", COUNTER, Read::Whole(1)),
            Spec("merge_across_nodes", "node_ksmd_merge_across_nodes", GAUGE, Read::Level(1)),
            Spec("pages_shared", "node_ksmd_pages_shared", GAUGE, Read::Level(1)),
            Spec("pages_sharing", "node_ksmd_pages_sharing", GAUGE, Read::Level(1)),
            Spec("pages_to_scan", "node_ksmd_pages_to_scan", GAUGE, Read::Level(1)),
            Spec("pages_unshared", "node_ksmd_pages_unshared", GAUGE, Read::Level(1)),
            Spec("pages_volatile", "node_ksmd_pages_volatile", GAUGE, Read::Level(1)),
            Spec("run", "node_ksmd_run", GAUGE, Read::Level(1)),
            Spec("sleep_millisecs", "node_ksmd_sleep_seconds", milliseconds, Read::Level(1)),
        ],
        &[],
    );
}

/// A line of a table, at most.
const LINE_BYTES_MAX: usize = 512;
/// A line of scheduling domains has 36 numbers behind a mask of a bit a CPU.
const LONG_BYTES_MAX: usize = 2048;
const OS: [(&str, &str); 12] = [
    ("build_id", "BUILD_ID"),
    ("id", "ID"),
    ("id_like", "ID_LIKE"),
    ("image_id", "IMAGE_ID"),
    ("image_version", "IMAGE_VERSION"),
    ("name", "NAME"),
    ("pretty_name", "PRETTY_NAME"),
    ("variant", "VARIANT"),
    ("variant_id", "VARIANT_ID"),
    ("version", "VERSION"),
    ("version_codename", "VERSION_CODENAME"),
    ("version_id", "VERSION_ID"),
];
const DMI: [(&str, &str); 20] = [
    ("bios_date", "bios_date"),
    ("bios_release", "bios_release"),
    ("bios_vendor", "bios_vendor"),
    ("bios_version", "bios_version"),
    ("board_asset_tag", "board_asset_tag"),
    ("board_name", "board_name"),
    ("board_serial", "board_serial"),
    ("board_vendor", "board_vendor"),
    ("board_version", "board_version"),
    ("chassis_asset_tag", "chassis_asset_tag"),
    ("chassis_serial", "chassis_serial"),
    ("chassis_vendor", "chassis_vendor"),
    ("chassis_version", "chassis_version"),
    ("product_family", "product_family"),
    ("product_name", "product_name"),
    ("product_serial", "product_serial"),
    ("product_sku", "product_sku"),
    ("product_uuid", "product_uuid"),
    ("product_version", "product_version"),
    ("system_vendor", "sys_vendor"),
];
