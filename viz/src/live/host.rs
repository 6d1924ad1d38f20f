//! One host of the live view: the newest row of each section, and what the fleet table shows of it.
//!
//! What is shown is rounded as the table prints it, so that two ticks that look the same are the
//! same, and nobody is told of a change that nobody would see.

#![deny(clippy::indexing_slicing)]

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use strobe_wire::frame::{self, RowView};
use strobe_wire::health::Health;
use strobe_wire::ids::{BootId, HostId, SchemaId};
use strobe_wire::message::HostInfo;
use strobe_wire::schema::Schema;

use crate::fleet::{Parts, Plan, Previous};

/// A schema and what the fleet table takes of it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) schema: Arc<Schema>,
    pub(super) plan: Plan,
}

/// A host.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) info: HostInfo,
    sections: BTreeMap<String, Section>,
    /// As last sent to the fleet's watchers.
    sent: Option<Shown>,
}

#[derive(Debug)]
struct Section {
    boot: BootId,
    boottime_ns: u64,
    schema: SchemaId,
    previous: Previous,
    parts: Parts,
}

/// What the fleet table shows of a host, rounded as it is printed.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Shown {
    state: &'static str,
    /// While a host is fresh nobody needs it, and it would change every second.
    last_seen_ms: Option<i64>,
    cpu: Option<f64>,
    load1: Option<f64>,
    cores: Option<u32>,
    mem: Option<f64>,
    swap: Option<f64>,
    disk_busy: Option<f64>,
    fs: Option<f64>,
    rx: Option<f64>,
    tx: Option<f64>,
    pressure: Pressure,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Pressure {
    cpu: Option<f64>,
    memory: Option<f64>,
    io: Option<f64>,
}

#[derive(Serialize)]
struct FleetRow<'a> {
    id: String,
    instance: &'a str,
    version: &'a str,
    kernel: &'a str,
    #[serde(flatten)]
    shown: Shown,
}

/// What became of a row.
pub(super) enum Taken {
    Newer,
    Older,
    OverBound,
}

impl Host {
    /// Takes a row of the host's.
    pub(super) fn row(
        &mut self,
        header: &frame::Header,
        known: &Known,
        row: RowView<'_>,
        sections_max: usize,
    ) -> Taken {
        let name = &known.schema.section;
        if let Some(section) = self.sections.get_mut(name) {
            let same_boot = section.boot == header.boot;
            if same_boot && header.boottime_ns <= section.boottime_ns {
                return Taken::Older;
            }
            let elapsed_ns = header.boottime_ns.saturating_sub(section.boottime_ns);
            let same = same_boot && section.schema == header.schema;
            let before = same.then_some((&section.previous, elapsed_ns));
            let (previous, parts) = known.plan.reduce(row, &known.schema, before);
            // After a change of columns the rates stay as they were for this one tick.
            section.parts = if same { parts } else { parts.or(&section.parts) };
            section.previous = previous;
            section.boot = header.boot;
            section.boottime_ns = header.boottime_ns;
            section.schema = header.schema;
            return Taken::Newer;
        }
        if sections_max <= self.sections.len() {
            return Taken::OverBound;
        }
        let (previous, parts) = known.plan.reduce(row, &known.schema, None);
        let section = Section {
            boot: header.boot,
            boottime_ns: header.boottime_ns,
            schema: header.schema,
            previous,
            parts,
        };
        self.sections.insert(name.clone(), section);
        Taken::Newer
    }

    /// What is known of the host besides its rows.
    pub(super) fn tell(&mut self, info: HostInfo) {
        if info.hello != self.info.hello {
            self.sent = None;
        }
        self.info = info;
    }

    /// The schemas its sections use now.
    pub(super) fn schemas(&self) -> impl Iterator<Item = SchemaId> {
        self.sections.values().map(|section| section.schema)
    }

    /// Its row of the table if that looks other than when it was last taken by this.
    pub(super) fn changed(&mut self, now_ms: i64, id: HostId) -> Option<String> {
        let shown = self.shown(now_ms);
        if self.sent == Some(shown) {
            return None;
        }
        self.sent = Some(shown);
        Some(self.json(id, shown))
    }

    /// Its row of the table.
    pub(super) fn whole(&self, now_ms: i64, id: HostId) -> String {
        self.json(id, self.shown(now_ms))
    }

    fn json(&self, id: HostId, shown: Shown) -> String {
        let hello = &self.info.hello;
        let row = FleetRow {
            id: id.to_string(),
            instance: &hello.instance,
            version: &hello.version,
            kernel: &hello.kernel,
            shown,
        };
        serde_json::to_string(&row).unwrap_or_else(|_| "null".to_owned())
    }

    fn shown(&self, now_ms: i64) -> Shown {
        let mut all = Parts::default();
        for section in self.sections.values() {
            all.add(&section.parts);
        }
        let state = Health::of(&self.info, now_ms);
        let tenths = |share: f64| round(share, 1e3);
        let whole = |share: f64| round(share, 1e2);
        Shown {
            state: state.word(),
            last_seen_ms: (state != Health::Fresh).then_some(self.info.last_seen_ms),
            cpu: all.cpu().map(tenths),
            load1: all.load1.map(digits),
            cores: all.cores(),
            mem: Parts::used(all.memory_total, all.memory_available).map(tenths),
            swap: Parts::used(all.swap_total, all.swap_free).map(tenths),
            disk_busy: all.disk_busy.map(whole),
            fs: all.filesystem.map(whole),
            rx: all.rx.map(bytes),
            tx: all.tx.map(bytes),
            pressure: Pressure {
                cpu: all.pressure_cpu.map(tenths),
                memory: all.pressure_memory.map(tenths),
                io: all.pressure_io.map(tenths),
            },
        }
    }
}

/// To a multiple of `1 / per`.
fn round(value: f64, per: f64) -> f64 {
    (value * per).round() / per
}

/// As the dashboard's `digits`: three of them, the whole ones first.
fn digits(value: f64) -> f64 {
    match value.abs() {
        size if 99.95 <= size => value.round(),
        size if 9.995 <= size => round(value, 10.0),
        _ => round(value, 100.0),
    }
}

/// Three digits of the binary unit it is printed in.
fn bytes(value: f64) -> f64 {
    let mut unit = 1.0;
    while unit * KIB * 0.9995 <= value.abs() && unit < UNIT_MAX {
        unit *= KIB;
    }
    if unit < KIB { value.round() } else { (digits(value / unit) * unit).round() }
}

const KIB: f64 = 1024.0;
/// The dashboard's largest unit is PiB.
const UNIT_MAX: f64 = KIB * KIB * KIB * KIB * KIB;
