//! What browsers look at: frames in, JSON texts for each watcher out. No socket, no clock.
//!
//! ```text
//! Update ──▶ Host rows (latest values and rates) ── once a second ──▶ fleet, fleet_delta
//!        └─▶ rows of watched hosts, encoded once for all who chose the same columns
//! ```
//!
//! A watcher without room gets nothing but a count: its rows are skipped, and when there is room
//! again it learns how many (`skipped`) and, for the fleet, gets the whole table anew. Nothing
//! queues up here. Hosts, schemas and watchers are bounded; what is over the bound is counted.

#![deny(clippy::indexing_slicing)]

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use strobe_wire::frame::{self, Payload, RowView};
use strobe_wire::health::Health;
use strobe_wire::ids::{BootId, HostId, SchemaId};
use strobe_wire::message::HostInfo;
use strobe_wire::schema::{Column, Kind, Schema};
use tungstenite::Utf8Bytes;

use crate::backend::Update;
use crate::fleet::{Parts, Plan, Previous};

/// A browser's connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WatcherId(pub usize);

/// What a live view may keep.
#[derive(Clone, Copy, Debug)]
pub struct LiveLimits {
    /// Hosts of the fleet table.
    pub hosts_max: usize,
    /// Schemas known at once.
    pub schemas_max: usize,
    /// Sections of one host.
    pub sections_max: usize,
}

/// What was not shown, and why.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct LiveCounts {
    /// Rows seen.
    pub rows: u64,
    /// Row messages handed to watchers.
    pub sent: u64,
    /// Row messages a slow watcher did not get.
    pub skipped: u64,
    /// Frames that did not open.
    pub malformed: u64,
    /// Rows whose schema is not known.
    pub schema_unknown: u64,
    /// Hosts, schemas or sections over the bound.
    pub over_bound: u64,
    /// Updates the backend dropped because we were too slow.
    pub lagged: u64,
}

/// A text for a watcher.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// For whom.
    pub to: WatcherId,
    /// JSON; shared between all who get the same.
    pub text: Utf8Bytes,
}

/// The live view of the fleet.
#[derive(Debug)]
pub struct Live {
    limits: LiveLimits,
    hosts: BTreeMap<HostId, Host>,
    schemas: HashMap<SchemaId, Arc<Known>>,
    watchers: BTreeMap<WatcherId, Watcher>,
    counts: LiveCounts,
}

#[derive(Debug)]
struct Known {
    schema: Arc<Schema>,
    plan: Plan,
}

#[derive(Debug, Default)]
struct Host {
    info: HostInfo,
    sections: BTreeMap<String, Section>,
    /// As last sent to the fleet's watchers.
    json: String,
}

#[derive(Debug)]
struct Section {
    boot: BootId,
    boottime_ns: u64,
    schema: SchemaId,
    previous: Previous,
    parts: Parts,
}

#[derive(Debug)]
struct Watcher {
    watch: Watch,
    room: Room,
    /// Row messages not sent since there was room last.
    skipped: u64,
    /// The fleet's whole table is due (first, and after a delta was skipped).
    whole: bool,
    /// Per section: the schema whose columns were sent, and the chosen ones' places.
    sent: BTreeMap<String, (SchemaId, Arc<[usize]>)>,
}

/// Whether a watcher's outgoing buffer takes more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It does.
    Free,
    /// It is full until the client reads.
    Full,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Watch {
    Nothing,
    Fleet,
    Host { id: HostId, names: BTreeSet<String> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    watch: WatchRequest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WatchRequest {
    #[serde(default)]
    fleet: bool,
    host: Option<String>,
    #[serde(default)]
    names: Vec<String>,
}

impl Live {
    /// An empty view.
    #[must_use]
    pub fn new(limits: LiveLimits) -> Self {
        Self {
            limits,
            hosts: BTreeMap::new(),
            schemas: HashMap::new(),
            watchers: BTreeMap::new(),
            counts: LiveCounts::default(),
        }
    }

    /// What was shown and what was not.
    #[must_use]
    pub fn counts(&self) -> LiveCounts {
        self.counts
    }

    /// Hosts in the view.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// A browser is there; it looks at nothing yet.
    pub fn open(&mut self, id: WatcherId) {
        let watcher = Watcher {
            watch: Watch::Nothing,
            room: Room::Free,
            skipped: 0,
            whole: false,
            sent: BTreeMap::new(),
        };
        self.watchers.insert(id, watcher);
    }

    /// A browser is gone.
    pub fn close(&mut self, id: WatcherId) {
        self.watchers.remove(&id);
    }

    /// A text of the browser's: what it looks at from now on.
    pub fn request(&mut self, now_ms: i64, id: WatcherId, text: &str, out: &mut Vec<Outgoing>) {
        match parse_request(text) {
            Ok(watch) => {
                let Some(watcher) = self.watchers.get_mut(&id) else { return };
                watcher.whole = watch == Watch::Fleet;
                watcher.watch = watch;
                watcher.sent.clear();
                self.catch_up(now_ms, id, out);
            }
            Err(why) => {
                let text = serde_json::json!({ "type": "error", "error": why }).to_string();
                out.push(Outgoing { to: id, text: text.into() });
            }
        }
    }

    /// Whether watcher `id`'s outgoing buffer takes more. Becoming free sends what was missed.
    pub fn room(&mut self, now_ms: i64, id: WatcherId, room: Room, out: &mut Vec<Outgoing>) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        if std::mem::replace(&mut watcher.room, room) != room && room == Room::Free {
            self.catch_up(now_ms, id, out);
        }
    }

    /// What the backend says.
    pub fn update(&mut self, now_ms: i64, update: Update, out: &mut Vec<Outgoing>) {
        match update {
            Update::Host(info) => self.host(info),
            Update::Schema(schema) => self.schema(schema),
            Update::Frame(bytes) => self.frame(now_ms, &bytes, out),
            Update::Lagged(count) => {
                self.counts.lagged += count;
                for (id, watcher) in &mut self.watchers {
                    if !matches!(watcher.watch, Watch::Host { .. }) {
                        continue;
                    }
                    watcher.skipped += count;
                    watcher.report_skipped(*id, out);
                }
            }
        }
    }

    /// Once a second: the hosts that changed go to all who watch the fleet.
    pub fn tick(&mut self, now_ms: i64, out: &mut Vec<Outgoing>) {
        let watched = self.watchers.values().any(|watcher| watcher.watch == Watch::Fleet);
        if !watched {
            return;
        }
        let mut changed = String::new();
        for (id, host) in &mut self.hosts {
            let json = host.json(now_ms, *id);
            if json != host.json {
                separate(&mut changed);
                changed.push_str(&json);
                host.json = json;
            }
        }
        if changed.is_empty() {
            return;
        }
        let delta = fleet_text("fleet_delta", now_ms, &changed);
        for (id, watcher) in &mut self.watchers {
            if watcher.watch != Watch::Fleet || watcher.whole {
                continue;
            }
            match watcher.room {
                Room::Free => out.push(Outgoing { to: *id, text: delta.clone() }),
                Room::Full => {
                    watcher.whole = true;
                    watcher.skipped += 1;
                    self.counts.skipped += 1;
                }
            }
        }
    }

    fn catch_up(&mut self, now_ms: i64, id: WatcherId, out: &mut Vec<Outgoing>) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        watcher.report_skipped(id, out);
        if watcher.watch != Watch::Fleet || !watcher.whole || watcher.room == Room::Full {
            return;
        }
        watcher.whole = false;
        let mut all = String::new();
        for (host_id, host) in &mut self.hosts {
            separate(&mut all);
            // A text made here is not kept as "last sent": the others would miss the change.
            all.push_str(&host.json(now_ms, *host_id));
        }
        out.push(Outgoing { to: id, text: fleet_text("fleet", now_ms, &all) });
    }

    fn host(&mut self, info: HostInfo) {
        let id = HostId(info.hello.host);
        let full = self.limits.hosts_max <= self.hosts.len();
        if full && !self.hosts.contains_key(&id) {
            self.counts.over_bound += 1;
            return;
        }
        self.hosts.entry(id).or_default().info = info;
    }

    fn schema(&mut self, schema: Arc<Schema>) {
        let id = schema.id();
        if schema.check().is_err() {
            self.counts.malformed += 1;
            return;
        }
        if self.limits.schemas_max <= self.schemas.len() && !self.schemas.contains_key(&id) {
            self.forget_schemas();
        }
        if self.limits.schemas_max <= self.schemas.len() {
            self.counts.over_bound += 1;
            return;
        }
        self.schemas.entry(id).or_insert_with(|| {
            let plan = Plan::of(&schema);
            Arc::new(Known { schema, plan })
        });
    }

    /// Keeps the schemas that a host's section uses now.
    fn forget_schemas(&mut self) {
        let used: BTreeSet<SchemaId> =
            self.hosts.values().flat_map(|h| h.sections.values().map(|s| s.schema)).collect();
        self.schemas.retain(|id, _| used.contains(id));
    }

    fn frame(&mut self, now_ms: i64, bytes: &Bytes, out: &mut Vec<Outgoing>) {
        let Ok(frame) = frame::open(bytes) else {
            self.counts.malformed += 1;
            return;
        };
        let Payload::Row(row) = frame.payload else { return };
        let header = frame.header;
        self.counts.rows += 1;
        let Some(known) = self.schemas.get(&header.schema).cloned() else {
            self.counts.schema_unknown += 1;
            return;
        };
        if row.len() != known.schema.columns.len() {
            self.counts.malformed += 1;
            return;
        }
        if self.limits.hosts_max <= self.hosts.len() && !self.hosts.contains_key(&header.host) {
            self.counts.over_bound += 1;
            return;
        }
        let host = self.hosts.entry(header.host).or_default();
        host.info.last_seen_ms = host.info.last_seen_ms.max(now_ms);
        match host.row(&header, &known, row, self.limits.sections_max) {
            Taken::Newer => {}
            // Replayed or late: history has it, the live view does not go back.
            Taken::Older => return,
            Taken::OverBound => {
                self.counts.over_bound += 1;
                return;
            }
        }
        self.send_row(&header, &known, row, out);
    }

    fn send_row(
        &mut self,
        header: &frame::Header,
        known: &Known,
        row: RowView<'_>,
        out: &mut Vec<Outgoing>,
    ) {
        // One text for each choice of columns; nearly always there is one choice.
        let mut texts: Vec<(Arc<[usize]>, Utf8Bytes)> = Vec::new();
        for (id, watcher) in &mut self.watchers {
            if !watcher.wants(header.host) {
                continue;
            }
            if watcher.room == Room::Full {
                watcher.skipped += 1;
                self.counts.skipped += 1;
                continue;
            }
            let Some(places) = watcher.columns(*id, header, &known.schema, out) else { continue };
            let text = match texts.iter().find(|(of, _)| *of == places) {
                Some((_, text)) => text.clone(),
                None => {
                    let text = row_text(header, &known.schema, &places, row);
                    texts.push((places, text.clone()));
                    text
                }
            };
            self.counts.sent += 1;
            out.push(Outgoing { to: *id, text });
        }
    }
}

enum Taken {
    Newer,
    Older,
    OverBound,
}

impl Host {
    fn row(
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

    fn json(&self, now_ms: i64, id: HostId) -> String {
        let mut all = Parts::default();
        for section in self.sections.values() {
            all.add(&section.parts);
        }
        let hello = &self.info.hello;
        let row = FleetRow {
            id: id.to_string(),
            instance: &hello.instance,
            state: Health::of(&self.info, now_ms).word(),
            version: &hello.version,
            kernel: &hello.kernel,
            last_seen_ms: self.info.last_seen_ms,
            cpu: all.cpu().map(short),
            load1: all.load1.map(short),
            cores: all.cores(),
            mem: Parts::used(all.memory_total, all.memory_available).map(short),
            swap: Parts::used(all.swap_total, all.swap_free).map(short),
            disk_busy: all.disk_busy.map(short),
            fs: all.filesystem.map(short),
            rx: all.rx.map(f64::round),
            tx: all.tx.map(f64::round),
            pressure: Pressure {
                cpu: all.pressure_cpu.map(short),
                memory: all.pressure_memory.map(short),
                io: all.pressure_io.map(short),
            },
        };
        serde_json::to_string(&row).unwrap_or_else(|_| "null".to_owned())
    }
}

#[derive(Serialize)]
struct FleetRow<'a> {
    id: String,
    instance: &'a str,
    state: &'static str,
    version: &'a str,
    kernel: &'a str,
    last_seen_ms: i64,
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

#[derive(Serialize)]
struct Pressure {
    cpu: Option<f64>,
    memory: Option<f64>,
    io: Option<f64>,
}

impl Watcher {
    fn wants(&self, host: HostId) -> bool {
        matches!(&self.watch, Watch::Host { id, .. } if *id == host)
    }

    fn report_skipped(&mut self, id: WatcherId, out: &mut Vec<Outgoing>) {
        if self.room == Room::Free && 0 < self.skipped {
            let text = format!("{{\"type\":\"skipped\",\"n\":{}}}", self.skipped);
            out.push(Outgoing { to: id, text: text.into() });
            self.skipped = 0;
        }
    }

    /// The chosen columns' places; sends their description first where the watcher lacks it.
    fn columns(
        &mut self,
        id: WatcherId,
        header: &frame::Header,
        schema: &Schema,
        out: &mut Vec<Outgoing>,
    ) -> Option<Arc<[usize]>> {
        let Watch::Host { names, .. } = &self.watch else { return None };
        if let Some((sent, places)) = self.sent.get(&schema.section)
            && *sent == header.schema
        {
            return (!places.is_empty()).then(|| Arc::clone(places));
        }
        let chosen = |column: &Column| names.is_empty() || names.contains(&column.name);
        let places: Arc<[usize]> = schema
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| chosen(column))
            .map(|(place, _)| place)
            .collect();
        if !places.is_empty() {
            out.push(Outgoing { to: id, text: columns_text(header, schema, &places) });
        }
        self.sent.insert(schema.section.clone(), (header.schema, Arc::clone(&places)));
        (!places.is_empty()).then_some(places)
    }
}

fn parse_request(text: &str) -> Result<Watch, String> {
    if REQUEST_BYTES_MAX < text.len() {
        return Err(format!("a request is at most {REQUEST_BYTES_MAX} bytes"));
    }
    let request: Request = serde_json::from_str(text).map_err(|error| {
        format!(
            "{error}; {{\"watch\":{{\"fleet\":true}}}} or {{\"watch\":{{\"host\":id}}}} is wanted"
        )
    })?;
    match request.watch {
        WatchRequest { fleet: true, host: None, .. } => Ok(Watch::Fleet),
        WatchRequest { fleet: false, host: None, .. } => Ok(Watch::Nothing),
        WatchRequest { fleet: false, host: Some(host), names } => {
            let id = host.parse().map_err(|error: strobe_wire::ids::IdError| error.to_string())?;
            Ok(Watch::Host { id, names: names.into_iter().collect() })
        }
        WatchRequest { fleet: true, host: Some(_), .. } => {
            Err("either the fleet or one host is watched".to_owned())
        }
    }
}

fn fleet_text(kind: &str, now_ms: i64, hosts: &str) -> Utf8Bytes {
    format!("{{\"type\":\"{kind}\",\"now_ms\":{now_ms},\"hosts\":[{hosts}]}}").into()
}

fn columns_text(header: &frame::Header, schema: &Schema, places: &[usize]) -> Utf8Bytes {
    let columns: Vec<serde_json::Value> = places
        .iter()
        .filter_map(|place| schema.columns.get(*place))
        .map(|column| {
            let labels: serde_json::Map<String, serde_json::Value> =
                column.labels.0.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
            let kind = match column.kind {
                Kind::Counter { .. } => "counter",
                Kind::Gauge { .. } => "gauge",
                Kind::Float => "float",
            };
            serde_json::json!({ "name": column.name, "labels": labels, "kind": kind })
        })
        .collect();
    serde_json::json!({
        "type": "columns",
        "id": header.host.to_string(),
        "section": schema.section,
        "schema": header.schema.to_string(),
        "columns": columns,
    })
    .to_string()
    .into()
}

fn row_text(
    header: &frame::Header,
    schema: &Schema,
    places: &[usize],
    row: RowView<'_>,
) -> Utf8Bytes {
    let mut text = String::with_capacity(160 + places.len() * 12);
    // A section's name is [a-z0-9_.] (Schema::check), so nothing here needs escaping.
    let _ = write!(
        text,
        "{{\"type\":\"row\",\"id\":\"{}\",\"section\":\"{}\",\"schema\":\"{}\",\"t\":{},\"v\":[",
        header.host,
        schema.section,
        header.schema,
        header.wall_ns.div_euclid(1_000_000)
    );
    for (index, place) in places.iter().enumerate() {
        if 0 < index {
            text.push(',');
        }
        let value = row
            .value(*place)
            .zip(schema.columns.get(*place))
            .map(|(raw, column)| column.kind.value(raw))
            .filter(|value| value.is_finite());
        match value {
            Some(value) => {
                let _ = write!(text, "{value}");
            }
            None => text.push_str("null"),
        }
    }
    text.push_str("]}");
    text.into()
}

fn separate(list: &mut String) {
    if !list.is_empty() {
        list.push(',');
    }
}

/// Four digits behind the point are enough for a bar.
fn short(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// Bytes of one text a browser may send.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
