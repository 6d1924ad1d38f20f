//! systemd's units over the system's message bus (org.freedesktop.systemd1(5)): the state of each that is
//! loaded, connections of sockets, last triggers of timers.
//!
//! ```text
//! ListUnits ─▶ units by name ─ of sockets and timers what they count, of new services their type ─▶ rows
//! ```
//!
//! As node_exporter has it, units of kinds that come by the hundred (automount, device, mount, scope, slice)
//! are counted only. A bus that does not answer is no answer: nothing is told, and it is asked anew.
#![deny(clippy::indexing_slicing)]

use super::bus::{Body, Bus, Call};
use super::sheet::{Repair, Sheet};
use super::{COUNTER, GAUGE, column};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use strobe_wire::schema::{Column, Kind};

/// The units, and what they said last.
#[derive(Debug)]
pub(crate) struct Units {
    socket: PathBuf,
    bus: Option<Bus>,
    /// Of services, asked once while they are loaded: another one after a `daemon-reload` is not seen before that ends.
    types: BTreeMap<String, String>,
    seen: Option<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    units: Vec<Unit>,
    /// How many there are in each state, of all kinds.
    states: BTreeMap<String, u64>,
    running: Option<bool>,
    version: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Unit {
    name: String,
    loaded: bool,
    state: String,
    path: String,
    /// Of a socket: accepted, current and refused connections; of a timer: its last trigger.
    counts: [Option<u64>; 3],
}

impl Units {
    /// Of the host whose root this is.
    pub(crate) fn new(rootfs: &Path) -> Self {
        let socket = rootfs.join("run/dbus/system_bus_socket");
        Self { socket, bus: None, types: BTreeMap::new(), seen: None }
    }

    /// Asks.
    pub(super) fn read(&mut self) {
        self.seen = self.ask().ok();
        if self.seen.is_none() {
            // Whatever is still to come on it answers what nobody waits for.
            self.bus = None;
        }
    }

    fn ask(&mut self) -> io::Result<Seen> {
        let bus = match &mut self.bus {
            Some(bus) => bus,
            none => none.insert(Bus::connect(&self.socket)?),
        };
        let property = |name| ["org.freedesktop.systemd1.Manager", name];
        let [version, state] = [property("Version"), property("SystemState")];
        let manager = |interface, member, strings| Call {
            destination: SYSTEMD,
            path: "/org/freedesktop/systemd1",
            interface,
            member,
            strings,
        };
        let replies = bus.ask(&[
            manager("org.freedesktop.systemd1.Manager", "ListUnits", &[]),
            manager(PROPERTIES, "Get", &version),
            manager(PROPERTIES, "Get", &state),
        ])?;
        let mut replies = replies.into_iter();
        let list = replies.next().flatten().ok_or(io::ErrorKind::NotFound)?;
        let mut text = || replies.next().flatten().and_then(|mut body| body.variant_text());
        let (version, state) = (text(), text());
        let mut units = parse(list).ok_or(io::ErrorKind::InvalidData)?;
        let mut states: BTreeMap<String, u64> = STATES.map(|state| (state.into(), 0)).into();
        for unit in &units {
            *states.entry(unit.state.clone()).or_default() += 1;
        }
        units.retain(|unit| unit.loaded && !UNTOLD.iter().any(|kind| unit.is(kind)));
        units.sort_by(|a, b| a.name.cmp(&b.name));
        units.truncate(UNITS_MAX);
        self.types.retain(|name, _| units.binary_search_by(|unit| unit.name.cmp(name)).is_ok());
        let wanted: Vec<_> = (units.iter().enumerate())
            .flat_map(|(at, unit)| {
                let known = self.types.contains_key(&unit.name);
                let asked = QUESTIONS.iter().filter(move |(kind, ..)| unit.is(kind));
                asked.filter(move |(.., place)| *place != TYPE || !known).map(move |of| (at, of))
            })
            .collect();
        let arguments: Vec<_> = wanted.iter().map(|(_, of)| [of.1, of.2]).collect();
        let calls: Vec<_> = (wanted.iter().zip(&arguments))
            .filter_map(|((at, _), strings)| {
                let path = &*units.get(*at)?.path;
                Some(Call {
                    destination: SYSTEMD,
                    path,
                    interface: PROPERTIES,
                    member: "Get",
                    strings,
                })
            })
            .collect();
        let replies = bus.ask(&calls)?;
        for ((at, (.., place)), reply) in wanted.into_iter().zip(replies) {
            // A unit that has gone between the two has no answer.
            let (Some(unit), Some(mut body)) = (units.get_mut(at), reply) else { continue };
            if *place == TYPE {
                self.types.insert(unit.name.clone(), body.variant_text().unwrap_or_default());
            } else if let Some(count) = unit.counts.get_mut(*place) {
                *count = body.variant_number();
            }
        }
        let running = state.map(|state| state == "running");
        Ok(Seen { units, states, running, version })
    }

    pub(super) fn put(&self, sheet: &mut Sheet) {
        let Some(seen) = &self.seen else { return };
        let known = |unit: &&Unit| unit.counts.iter().any(Option::is_some);
        for unit in &seen.units {
            let kind = self.types.get(&unit.name).map_or("", |kind| kind);
            let key = format!("{}\0{kind}", unit.name);
            let is = STATES.map(|state| Some(u64::from(unit.state == state)));
            sheet.put(STATE, key.as_bytes(), &is, Repair::None);
        }
        for unit in seen.units.iter().filter(known) {
            let (shape, counts) =
                if unit.is(".timer") { (TIMER, 0..1) } else { (SOCKET, 0..unit.counts.len()) };
            let counts = unit.counts.get(counts).unwrap_or(&[]);
            sheet.put(shape, unit.name.as_bytes(), counts, Repair::None);
        }
        for (state, count) in &seen.states {
            sheet.put(SUMMARY, state.as_bytes(), &[Some(*count)], Repair::None);
        }
        if let Some(running) = seen.running {
            sheet.put(RUNNING, b"", &[Some(u64::from(running))], Repair::None);
        }
        if let Some(version) = &seen.version {
            let number = leading(version).to_bits();
            sheet.put(VERSION, version.as_bytes(), &[Some(number)], Repair::None);
        }
    }
}

pub(super) fn columns(shape: u8, key: &[u8]) -> Vec<Column> {
    let text = String::from_utf8_lossy(key);
    let one = |name: &str, label: &str, kind| vec![column(name, &[(label, &text)], kind)];
    match shape {
        STATE => {
            let (name, kind) = text.split_once('\0').unwrap_or((&text, ""));
            let of = |state| {
                let mut labels = vec![("name", name), ("state", state), ("type", kind)];
                labels.retain(|(_, value)| !value.is_empty());
                column("node_systemd_unit_state", &labels, GAUGE)
            };
            STATES.map(of).into()
        }
        SOCKET => [
            ("node_systemd_socket_accepted_connections_total", COUNTER),
            ("node_systemd_socket_current_connections", GAUGE),
            ("node_systemd_socket_refused_connections_total", GAUGE),
        ]
        .map(|(name, kind)| column(name, &[("name", &text)], kind))
        .into(),
        TIMER => one("node_systemd_timer_last_trigger_seconds", "name", Kind::Gauge { scale: 6 }),
        SUMMARY => one("node_systemd_units", "state", GAUGE),
        RUNNING => vec![column("node_systemd_system_running", &[], GAUGE)],
        _ => one("node_systemd_version", "version", Kind::Float),
    }
}

impl Unit {
    fn is(&self, kind: &str) -> bool {
        self.name.ends_with(kind)
    }
}

/// `a(ssssssouso)`.
fn parse(mut list: Body) -> Option<Vec<Unit>> {
    let (end, mut units) = (list.array()?, Vec::new());
    while list.at() < end {
        list.align(8);
        let (name, _description) = (list.text()?, list.text()?);
        let (load, state, _sub, _following) =
            (list.text()?, list.text()?, list.text()?, list.text()?);
        let path = list.text()?;
        let (_job, _job_type, _job_path) = (list.number()?, list.text()?, list.text()?);
        units.push(Unit { name, loaded: load == "loaded", state, path, counts: [None; 3] });
    }
    Some(units)
}

/// The first number of three digits and more, with one fraction: `252.38` of `252.38-1~deb12u1`; 0 if there is none.
fn leading(version: &str) -> f64 {
    let mut rest = version;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = rest.get(at..).unwrap_or("");
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let whole = digits(rest);
        if 3 <= whole {
            let fraction = rest
                .get(whole + 1..)
                .filter(|_| rest.get(whole..).is_some_and(|r| r.starts_with('.')));
            let fraction = fraction.map_or(0, digits);
            let length = if fraction == 0 { whole } else { whole + 1 + fraction };
            return rest.get(..length).and_then(|number| number.parse().ok()).unwrap_or(0.0);
        }
        rest = rest.get(whole..).unwrap_or("");
    }
    0.0
}

/// What a bus may say, as the list of units.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    let Some(body) = super::bus::fuzz(bytes) else { return };
    for unit in parse(body).unwrap_or_default() {
        columns(STATE, unit.name.as_bytes());
        leading(&unit.name);
    }
}

const SYSTEMD: &str = "org.freedesktop.systemd1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const STATES: [&str; 5] = ["active", "activating", "deactivating", "inactive", "failed"];
const UNTOLD: [&str; 5] = [".automount", ".device", ".mount", ".scope", ".slice"];
/// Of units of a kind: interface, property, and where the answer goes.
const QUESTIONS: &[(&str, &str, &str, usize)] = &[
    (".service", "org.freedesktop.systemd1.Service", "Type", TYPE),
    (".socket", "org.freedesktop.systemd1.Socket", "NAccepted", 0),
    (".socket", "org.freedesktop.systemd1.Socket", "NConnections", 1),
    (".socket", "org.freedesktop.systemd1.Socket", "NRefused", 2),
    (".timer", "org.freedesktop.systemd1.Timer", "LastTriggerUSec", 0),
];
const TYPE: usize = usize::MAX;
const UNITS_MAX: usize = 1024;
const STATE: u8 = 0;
const SOCKET: u8 = 1;
const TIMER: u8 = 2;
const SUMMARY: u8 = 3;
const RUNNING: u8 = 4;
const VERSION: u8 = 5;

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    /// A reply's message with a list of one unit, little-endian.
    fn list(texts: [&str; 9]) -> Vec<u8> {
        let mut body = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            body.resize(usize::next_multiple_of(body.len(), 4), 0_u8);
            if at == 7 {
                body.extend(7_u32.to_le_bytes());
            }
            body.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
            body.extend(text.bytes().chain([0]));
        }
        let mut out = b"l\x02\0\x01".to_vec();
        out.extend(u32::try_from(body.len() + 8).unwrap().to_le_bytes());
        out.extend([1, 0, 0, 0, 8, 0, 0, 0, 5, 1, b'u', 0, 1, 0, 0, 0]);
        out.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        out.extend([0; 4]);
        out.extend(body);
        out
    }

    #[test]
    fn a_list_is_its_units_and_a_torn_one_is_nothing() {
        let bytes = list(["a.service", "A", "loaded", "failed", "failed", "", "/a", "", "/"]);
        let unit = Unit {
            name: "a.service".into(),
            loaded: true,
            state: "failed".into(),
            path: "/a".into(),
            counts: [None; 3],
        };
        let parsed = |bytes: &[u8]| super::super::bus::fuzz(bytes).and_then(parse);
        assert_eq!(parsed(&bytes), Some(vec![unit]));
        for cut in 0..bytes.len() {
            assert_eq!(parsed(&bytes[..cut]), None);
        }
        for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            fuzz(&bytes);
        }
    }

    #[test]
    fn versions_are_the_first_number_of_three_digits() {
        for (version, number) in [
            ("252.38-1~deb12u1", 252.38),
            ("249.11-0ubuntu3.12", 249.11),
            ("systemd 219", 219.0),
            ("v255-rc1", 255.0),
            ("256.", 256.0),
            ("1.22.333", 333.0),
            ("", 0.0),
            ("12", 0.0),
        ] {
            assert_eq!(leading(version).to_bits(), f64::to_bits(number), "{version:?}");
        }
    }
}
