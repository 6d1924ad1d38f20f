//! A browser: what it looks at, and what it still lacks.

#![deny(clippy::indexing_slicing)]

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use strobe_wire::frame;
use strobe_wire::ids::{HostId, SchemaId};
use strobe_wire::schema::{Column, Schema};
use tungstenite::Utf8Bytes;

use super::history::{Fate, History};
use super::{Outgoing, REQUEST_BYTES_MAX, Room, WatcherId, text};

/// A browser's state.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) watch: Watch,
    pub(super) room: Room,
    /// Row messages not sent since there was room last.
    pub(super) skipped: u64,
    /// The fleet's whole table is due (first, and after a delta was skipped).
    pub(super) whole: bool,
    /// Per section: the schema whose columns were sent, and the chosen ones' places.
    pub(super) sent: BTreeMap<String, (SchemaId, Arc<[usize]>)>,
    /// What it sees of the past, if it wants to.
    pub(super) history: Option<History>,
}

/// What it looks at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Watch {
    Nothing,
    Fleet,
    Host { id: HostId, names: BTreeSet<String>, rows: Rows },
}

/// Whether a watcher of a host wants what comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rows {
    Wanted,
    /// It looks at the past.
    Unwanted,
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
    /// Rows as they come, behind the history.
    #[serde(default = "yes")]
    rows: bool,
    /// A number of the browser's, to know its snapshot by.
    #[serde(default)]
    ask: u64,
    /// As the broker's `/api/strobe/v1/history` takes it, but for the host.
    history: Option<serde_json::Map<String, serde_json::Value>>,
}

fn yes() -> bool {
    true
}

impl Watcher {
    /// One that looks at nothing yet.
    pub(super) fn new() -> Self {
        Self {
            watch: Watch::Nothing,
            room: Room::Free,
            skipped: 0,
            whole: false,
            sent: BTreeMap::new(),
            history: None,
        }
    }

    /// Looks at this from now on.
    pub(super) fn look(&mut self, watch: Watch, history: Option<History>) {
        self.whole = watch == Watch::Fleet;
        self.watch = watch;
        self.history = history;
        self.sent.clear();
    }

    /// Where a row goes.
    pub(super) fn fate(&mut self) -> Fate {
        let has_room = self.room == Room::Free;
        match &mut self.history {
            Some(history) => history.row(has_room),
            None if has_room => Fate::Send,
            None => Fate::Drop,
        }
    }

    /// Says a text, or keeps it behind the snapshot.
    pub(super) fn say(
        &mut self,
        id: WatcherId,
        fate: Fate,
        text: Utf8Bytes,
        out: &mut Vec<Outgoing>,
    ) {
        match (fate, &mut self.history) {
            (Fate::Hold, Some(history)) => {
                if !history.hold(text) {
                    self.sent.clear();
                }
            }
            _ => out.push(Outgoing { to: id, text }),
        }
    }

    /// Whether it looks at `host`.
    pub(super) fn wants(&self, host: HostId) -> bool {
        matches!(&self.watch, Watch::Host { id, rows: Rows::Wanted, .. } if *id == host)
    }

    /// Tells it what it missed, if it can hear it.
    pub(super) fn report_skipped(&mut self, id: WatcherId, out: &mut Vec<Outgoing>) {
        if self.room == Room::Free && 0 < self.skipped {
            let text = format!("{{\"type\":\"skipped\",\"n\":{}}}", self.skipped);
            out.push(Outgoing { to: id, text: text.into() });
            self.skipped = 0;
        }
    }

    /// The chosen columns' places; sends their description first where the watcher lacks it.
    pub(super) fn columns(
        &mut self,
        (id, fate): (WatcherId, Fate),
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
            self.say(id, fate, text::columns(header, schema, &places), out);
        }
        self.sent.insert(schema.section.clone(), (header.schema, Arc::clone(&places)));
        (!places.is_empty()).then_some(places)
    }
}

impl Watch {
    /// What a request asks for, or why it cannot be.
    pub(super) fn parse(text: &str) -> Result<(Self, Option<History>), String> {
        if REQUEST_BYTES_MAX < text.len() {
            return Err(format!("a request is at most {REQUEST_BYTES_MAX} bytes"));
        }
        let request: Request = serde_json::from_str(text).map_err(|error| {
            format!(
                "{error}; {{\"watch\":{{\"fleet\":true}}}} or {{\"watch\":{{\"host\":id}}}} is wanted"
            )
        })?;
        let WatchRequest { fleet, host, names, rows, ask, history } = request.watch;
        let host: Option<HostId> = host
            .map(|host| host.parse())
            .transpose()
            .map_err(|error: strobe_wire::ids::IdError| error.to_string())?;
        let history = history.map(|wish| History::new(ask, wish, host));
        let rows = if rows { Rows::Wanted } else { Rows::Unwanted };
        match (fleet, host) {
            (true, None) => Ok((Self::Fleet, history)),
            (false, None) => Ok((Self::Nothing, None)),
            (false, Some(id)) => {
                Ok((Self::Host { id, names: names.into_iter().collect(), rows }, history))
            }
            (true, Some(_)) => Err("either the fleet or one host is watched".to_owned()),
        }
    }
}
