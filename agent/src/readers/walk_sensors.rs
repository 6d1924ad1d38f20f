//! The walk for hardware monitors. A sensor sits behind i2c, SMBus or firmware and may answer after
//! seconds or never: for a hazard thread.

use super::leaf::{Found, Read, line_of, names, text_of};
use super::{GAUGE, Roots, column};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use strobe_wire::schema::{Column, Kind};

/// One name of a file taken apart.
struct Name<'n> {
    kind: &'n str,
    sensor: String,
    property: &'n str,
}

/// Every chip of /sys/class/hwmon.
pub(crate) fn hwmon(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("class/hwmon");
    for name in names(&base) {
        let dir = base.join(&name);
        if !dir.is_dir() {
            continue;
        }
        let Some(chip) = chip(&dir, &name) else { continue };
        let mut sensors = BTreeMap::new();
        gather(&dir, &mut sensors);
        // Older drivers keep their sensors beside the device.
        gather(&dir.join("device"), &mut sensors);
        if let Some(text) = text_of(&dir.join("name")).map(|text| clean(&text))
            && !text.is_empty()
        {
            let labels = [("chip", &*chip), ("chip_name", &*text)];
            found.constant(1, column("node_hwmon_chip_names", &labels, GAUGE));
        }
        for (sensor, files) in &sensors {
            let labels = [("chip", &*chip), ("sensor", &**sensor)];
            if let Some(text) = files.get("label").and_then(|path| line_of(path)) {
                let labels = [labels[0], labels[1], ("label", &*text)];
                found.constant(1, column("node_hwmon_sensor_label", &labels, GAUGE));
            }
            for (property, path) in files.iter().filter(|(property, _)| *property != "label") {
                if let Some(column) = describe(sensor, property, files, &labels) {
                    let is_beep = sensor.starts_with("beep_enable");
                    let read = if is_beep { Read::Is("1") } else { Read::Level(1) };
                    found.leaf(path.clone(), read, column);
                }
            }
        }
    }
}

/// Metric and unit of one file, as node_exporter names them.
fn describe(
    sensor: &str,
    property: &str,
    files: &BTreeMap<String, PathBuf>,
    labels: &[(&str, &str)],
) -> Option<Column> {
    let kind = take_apart(sensor)?.kind;
    match kind {
        "beep_enable" => return Some(column("node_hwmon_beep_enabled", labels, GAUGE)),
        "vrm" => return Some(column("node_hwmon_voltage_regulator_version", labels, GAUGE)),
        "update_interval" => {
            let name = "node_hwmon_update_interval_seconds";
            return Some(column(name, labels, MILLI));
        }
        _ => {}
    }
    let suffix = match property {
        "input" if files.contains_key("") => "_input".to_owned(),
        "input" | "" => String::new(),
        other => format!("_{}", clean(other)),
    };
    let name = format!("node_hwmon_{kind}{suffix}");
    let (unit, scale) = match (kind, property) {
        (_, "fault" | "alarm") => ("", GAUGE),
        (_, "beep") => ("_enabled", GAUGE),
        ("in" | "cpu", _) => ("_volts", MILLI),
        ("temp", "type") => ("", GAUGE),
        ("temp", _) => ("_celsius", MILLI),
        ("curr", _) => ("_amps", MILLI),
        ("energy", _) => ("_joule_total", Kind::Counter { scale: 6 }),
        ("power", "accuracy") | ("humidity", _) => ("", MICRO),
        ("power", "average_interval" | "average_interval_min" | "average_interval_max") => {
            ("_seconds", MILLI)
        }
        ("power", _) => ("_watt", MICRO),
        ("fan", "input" | "min" | "max" | "target") => ("_rpm", GAUGE),
        _ => ("", GAUGE),
    };
    Some(column(&format!("{name}{unit}"), labels, scale))
}

/// Where the device is, which does not depend on the order drivers were loaded in; else what the
/// chip calls itself; else its number.
fn chip(dir: &Path, hwmon: &str) -> Option<String> {
    let part = |part: Option<&std::ffi::OsStr>| {
        part.map(|part| clean(&part.to_string_lossy())).filter(|text| !text.is_empty())
    };
    if let Ok(device) = dir.join("device").canonicalize() {
        let name = part(device.file_name());
        let bus = part(device.parent().and_then(Path::file_name));
        match (bus, name) {
            (Some(bus), Some(name)) => return Some(format!("{bus}_{name}")),
            (None, Some(name)) => return Some(name),
            _ => {}
        }
    }
    let named = text_of(&dir.join("name")).map(|text| clean(&text));
    let real = || dir.canonicalize().ok().and_then(|real| part(real.file_name()));
    named.filter(|name| !name.is_empty()).or_else(real).or_else(|| Some(clean(hwmon)))
}

/// Sensors (`temp1`) and their files by property (`input`, `max`).
fn gather(dir: &Path, sensors: &mut BTreeMap<String, BTreeMap<String, PathBuf>>) {
    for name in names(dir) {
        let Some(Name { kind, sensor, property }) = take_apart(&name) else { continue };
        // What cannot be read now (write-only, or a chip asleep) is looked for at the next walk.
        let path = dir.join(&name);
        if KINDS.contains(&kind) && path.is_file() && text_of(&path).is_some() {
            sensors.entry(sensor).or_default().insert(property.to_owned(), path);
        }
    }
}

/// `temp1_input` is `temp`, `temp1`, `input`; what has no number has the number 0.
fn take_apart(name: &str) -> Option<Name<'_>> {
    let kind_end = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
    let (kind, rest) = name.split_at_checked(kind_end)?;
    let digits_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, rest) = rest.split_at_checked(digits_end)?;
    let property = if rest.is_empty() { "" } else { rest.strip_prefix('_')? };
    let number: u64 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    (!kind.is_empty()).then(|| Name { kind, sensor: format!("{kind}{number}"), property })
}

/// Small letters, digits, `:` and `_`, without `_` at the ends.
fn clean(text: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, ':' | '_');
    let text: String =
        text.to_lowercase().chars().map(|c| if plain(c) { c } else { '_' }).take(200).collect();
    text.trim_matches('_').to_owned()
}

const MILLI: Kind = Kind::Gauge { scale: 3 };
const MICRO: Kind = Kind::Gauge { scale: 6 };
const KINDS: [&str; 13] = [
    "vrm",
    "beep_enable",
    "update_interval",
    "in",
    "cpu",
    "fan",
    "pwm",
    "temp",
    "curr",
    "power",
    "energy",
    "humidity",
    "intrusion",
];
