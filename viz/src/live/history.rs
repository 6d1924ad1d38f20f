//! The history a watcher looks at, which comes before its rows: when to ask for it, and what waits.
//!
//! ```text
//!           room         answer          read by the client
//!   Due ─────────▶ Asked ───────▶ Sent ─────────────────────▶ Shown
//!    ▲               rows are held ┘                            │
//!    └────────────── rows were missed: too slow, or lagged ─────┘
//! ```
//!
//! So a browser that falls behind gets one new snapshot, however long it was away, and what waits
//! for it is bounded: a snapshot, and [`HELD_MAX`] texts that came since it was asked for.

#![deny(clippy::indexing_slicing)]

use serde_json::{Map, Value};
use strobe_wire::ids::HostId;
use tungstenite::Utf8Bytes;

/// What one watcher sees of the past.
#[derive(Debug)]
pub(super) struct History {
    /// The browser's number of this question, which its snapshots carry.
    ask: u64,
    /// What the broker is asked, JSON.
    question: String,
    state: State,
    held: Vec<Utf8Bytes>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Due,
    /// Under this number.
    Asked(u64),
    /// It is on its way; until there is room rows go behind it.
    Sent,
    Shown,
}

/// What is to be done with a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It goes to the browser.
    Send,
    /// It waits ([`History::hold`]).
    Hold,
    /// Nobody will miss it: a snapshot is to come that has it.
    Drop,
}

impl History {
    /// Of the browser's `wish`, the broker's to judge, for `host` or for all.
    pub(super) fn new(ask: u64, mut wish: Map<String, Value>, host: Option<HostId>) -> Self {
        if let Some(host) = host {
            wish.insert("host".to_owned(), host.to_string().into());
        }
        let question = Value::Object(wish).to_string();
        Self { ask, question, state: State::Due, held: Vec::new() }
    }

    /// What to ask the broker now, if anything; its answer comes under `number`.
    pub(super) fn question(&mut self, number: u64) -> Option<String> {
        if self.state != State::Due {
            return None;
        }
        self.state = State::Asked(number);
        Some(self.question.clone())
    }

    /// The snapshot's text and what was held behind it, if `number` is what was asked last.
    pub(super) fn answer(&mut self, number: u64, body: &[u8]) -> Option<Vec<Utf8Bytes>> {
        if self.state != State::Asked(number) {
            return None;
        }
        self.state = State::Sent;
        let body = str::from_utf8(body).unwrap_or_default().trim();
        let answer = match body.starts_with('{') {
            true => body.to_owned(),
            false => serde_json::json!({ "status": "error", "error": body }).to_string(),
        };
        let text = format!("{{\"type\":\"snapshot\",\"ask\":{},\"answer\":{answer}}}", self.ask);
        let mut texts = vec![text.into()];
        texts.append(&mut self.held);
        Some(texts)
    }

    /// Where a row goes while the browser has room, or has not.
    pub(super) fn row(&mut self, has_room: bool) -> Fate {
        match (self.state, has_room) {
            (State::Due, _) => Fate::Drop,
            (State::Asked(_), _) | (State::Sent, false) => Fate::Hold,
            (State::Sent | State::Shown, true) => {
                self.state = State::Shown;
                Fate::Send
            }
            (State::Shown, false) => {
                self.miss();
                Fate::Drop
            }
        }
    }

    /// Keeps a text for later; false if there were too many and all are given up. A browser that
    /// is too slow then gets a new snapshot; with a broker that is too slow, one with a hole behind
    /// it is better than none ever.
    pub(super) fn hold(&mut self, text: Utf8Bytes) -> bool {
        if self.held.len() < HELD_MAX {
            self.held.push(text);
            return true;
        }
        self.held.clear();
        if self.state == State::Sent {
            self.state = State::Due;
        }
        false
    }

    /// There is room: what was held behind a snapshot that was read.
    pub(super) fn release(&mut self) -> Vec<Utf8Bytes> {
        if self.state == State::Sent {
            self.state = State::Shown;
            return std::mem::take(&mut self.held);
        }
        Vec::new()
    }

    /// Rows were missed.
    pub(super) fn miss(&mut self) {
        self.held.clear();
        self.state = State::Due;
    }

    /// None is wanted.
    pub(super) fn leave_out(&mut self) {
        self.state = State::Shown;
    }
}

/// Texts that wait for a snapshot: at 1 Hz and ten sections, a quarter of a minute.
const HELD_MAX: usize = 256;
