//! A browser: what it looks at, and what it still lacks.

#![deny(clippy::indexing_slicing)]

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use strobe_wire::frame;
use strobe_wire::ids::{HostId, SchemaId};
use strobe_wire::schema::{Column, Schema};

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
}

/// What it looks at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Watch {
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

impl Watcher {
    /// One that looks at nothing yet.
    pub(super) fn new() -> Self {
        Self {
            watch: Watch::Nothing,
            room: Room::Free,
            skipped: 0,
            whole: false,
            sent: BTreeMap::new(),
        }
    }

    /// Whether it looks at `host`.
    pub(super) fn wants(&self, host: HostId) -> bool {
        matches!(&self.watch, Watch::Host { id, .. } if *id == host)
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
            out.push(Outgoing { to: id, text: text::columns(header, schema, &places) });
        }
        self.sent.insert(schema.section.clone(), (header.schema, Arc::clone(&places)));
        (!places.is_empty()).then_some(places)
    }
}

impl Watch {
    /// What a request asks for, or why it cannot be.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if REQUEST_BYTES_MAX < text.len() {
            return Err(format!("a request is at most {REQUEST_BYTES_MAX} bytes"));
        }
        let request: Request = serde_json::from_str(text).map_err(|error| {
            format!(
                "{error}; {{\"watch\":{{\"fleet\":true}}}} or {{\"watch\":{{\"host\":id}}}} is wanted"
            )
        })?;
        match request.watch {
            WatchRequest { fleet: true, host: None, .. } => Ok(Self::Fleet),
            WatchRequest { fleet: false, host: None, .. } => Ok(Self::Nothing),
            WatchRequest { fleet: false, host: Some(host), names } => {
                let id =
                    host.parse().map_err(|error: strobe_wire::ids::IdError| error.to_string())?;
                Ok(Self::Host { id, names: names.into_iter().collect() })
            }
            WatchRequest { fleet: true, host: Some(_), .. } => {
                Err("either the fleet or one host is watched".to_owned())
            }
        }
    }
}
