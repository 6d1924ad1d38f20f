//! What browsers look at: frames in, JSON texts for each watcher out. No socket, no clock.
//!
//! ```text
//! Update ──▶ Host rows (latest values and rates) ── once a second ──▶ fleet, fleet_delta
//!        └─▶ rows of watched hosts, encoded once for all who chose the same columns
//! watch ──▶ Ask ──▶ the broker ──▶ snapshot, then the rows
//! ```
//!
//! A watcher says what it looks at: the fleet or a host, which columns, and (`history`) which
//! window on how many pixels. It first gets a snapshot of that, at most two points a pixel, then
//! what comes in. A window that lies in the past is asked for in the same way, without rows, so
//! that a page has one way to its data.
//!
//! A watcher without room gets nothing: its rows are skipped, and when there is room again it gets
//! a new snapshot, and for the fleet the whole table; one that wanted no history learns how many
//! rows it missed (`skipped`). What waits for it is bounded (`history`). Hosts, schemas and
//! watchers are bounded; what is over the bound is counted.

#![deny(clippy::indexing_slicing)]

mod history;
mod host;
mod text;
mod watcher;

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use strobe_wire::frame::{self, Payload, RowView};
use strobe_wire::ids::{HostId, SchemaId};
use strobe_wire::message::HostInfo;
use strobe_wire::schema::Schema;
use tungstenite::Utf8Bytes;

use crate::backend::Update;
use crate::fleet::Plan;
use history::Fate;
use host::{Host, Known, Taken};
use watcher::{Watch, Watcher};

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
    asks: Vec<Ask>,
    asked: u64,
    /// Why nothing comes from the broker, if so.
    trouble: Option<String>,
}

/// A question to the broker; [`Live::answer`] takes what it says. It ends an earlier one of the
/// same watcher's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Who looks.
    pub watcher: WatcherId,
    /// Which question this is.
    pub number: u64,
    /// The body of a request for history.
    pub body: String,
}

/// Whether a watcher's outgoing buffer takes more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It does.
    Free,
    /// It is full until the client reads.
    Full,
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
            asks: Vec::new(),
            asked: 0,
            trouble: None,
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
        self.watchers.insert(id, Watcher::new());
    }

    /// A browser is gone.
    pub fn close(&mut self, id: WatcherId) {
        self.watchers.remove(&id);
    }

    /// A text of the browser's: what it looks at from now on.
    pub fn request(&mut self, now_ms: i64, id: WatcherId, text: &str, out: &mut Vec<Outgoing>) {
        match Watch::parse(text) {
            Ok((watch, history)) => {
                let Some(watcher) = self.watchers.get_mut(&id) else { return };
                watcher.look(watch, history);
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

    /// Why nothing comes from the broker, or that it does; those who watch the fleet are told with
    /// the next tick.
    pub fn trouble(&mut self, trouble: Option<String>) {
        self.trouble = trouble;
    }

    /// What is to be asked of the broker, if anything.
    pub fn poll_ask(&mut self) -> Option<Ask> {
        self.asks.pop()
    }

    /// The broker's answer to a question: JSON, or a reason in words.
    pub fn answer(&mut self, id: WatcherId, number: u64, body: &[u8], out: &mut Vec<Outgoing>) {
        let history = self.watchers.get_mut(&id).and_then(|watcher| watcher.history.as_mut());
        let texts = history.and_then(|history| history.answer(number, body));
        out.extend(texts.into_iter().flatten().map(|text| Outgoing { to: id, text }));
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
                    match &mut watcher.history {
                        // Asked for with the next tick: where we are slow, it does not help to
                        // ask more than once a second.
                        Some(history) => history.miss(),
                        None => {
                            watcher.skipped += count;
                            watcher.report_skipped(*id, out);
                        }
                    }
                }
            }
        }
    }

    /// Once a second: the hosts that look other than before go to all who watch the fleet, in one
    /// message. One without hosts still tells the time, by which silence is counted.
    pub fn tick(&mut self, now_ms: i64, out: &mut Vec<Outgoing>) {
        let ids: Vec<WatcherId> = self.watchers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.ask(id));
        let watched = self.watchers.values().any(|watcher| watcher.watch == Watch::Fleet);
        if !watched {
            return;
        }
        let mut changed = String::new();
        for (id, host) in &mut self.hosts {
            if let Some(json) = host.changed(now_ms, *id) {
                text::separate(&mut changed);
                changed.push_str(&json);
            }
        }
        let delta = text::fleet("fleet_delta", now_ms, &changed, self.trouble.as_deref());
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
        if watcher.room == Room::Free
            && let Some(history) = &mut watcher.history
        {
            out.extend(history.release().into_iter().map(|text| Outgoing { to: id, text }));
        }
        self.ask(id);
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        if watcher.watch != Watch::Fleet || !watcher.whole || watcher.room == Room::Full {
            return;
        }
        watcher.whole = false;
        let mut all = String::new();
        for (host_id, host) in &self.hosts {
            text::separate(&mut all);
            // This does not count as sent: the others would miss the change.
            all.push_str(&host.whole(now_ms, *host_id));
        }
        let text = text::fleet("fleet", now_ms, &all, self.trouble.as_deref());
        out.push(Outgoing { to: id, text });
    }

    /// Asks for the watcher's history, if that is due and it has room for it.
    fn ask(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        let Some(history) = &mut watcher.history else { return };
        if watcher.room == Room::Full {
            return;
        }
        if watcher.watch == Watch::Fleet && FLEET_HISTORY_HOSTS_MAX < self.hosts.len() {
            return history.leave_out();
        }
        if let Some(body) = history.question(self.asked + 1) {
            self.asked += 1;
            // Their description comes behind the snapshot, for a page that starts anew with it.
            watcher.sent.clear();
            self.asks.retain(|ask| ask.watcher != id);
            self.asks.push(Ask { watcher: id, number: self.asked, body });
        }
    }

    fn host(&mut self, info: HostInfo) {
        let id = HostId(info.hello.host);
        let full = self.limits.hosts_max <= self.hosts.len();
        if full && !self.hosts.contains_key(&id) {
            self.counts.over_bound += 1;
            return;
        }
        self.hosts.entry(id).or_default().tell(info);
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
        let used: BTreeSet<SchemaId> = self.hosts.values().flat_map(Host::schemas).collect();
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
            let fate = watcher.fate();
            if fate == Fate::Drop {
                watcher.skipped += u64::from(watcher.history.is_none());
                self.counts.skipped += 1;
                continue;
            }
            let places = watcher.columns((*id, fate), header, &known.schema, out);
            let Some(places) = places else { continue };
            let text = match texts.iter().find(|(of, _)| *of == places) {
                Some((_, text)) => text.clone(),
                None => {
                    let text = text::row(header, &known.schema, &places, row);
                    texts.push((places, text.clone()));
                    text
                }
            };
            self.counts.sent += 1;
            watcher.say(*id, fate, text, out);
        }
    }
}

/// Hosts over which a table's small lines begin empty: their history would be megabytes.
const FLEET_HISTORY_HOSTS_MAX: usize = 500;

/// Bytes of one text a browser may send.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests;
