//! What viz counts about itself, shown at `/metrics`.
//!
//! All orderings are `Relaxed`: each number stands for itself and carries no other data.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::live::LiveCounts;

/// The counts; shared between the loop and the workers.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// WebSockets open now.
    pub web_sockets: AtomicU64,
    /// Connections refused because there were too many.
    pub over_limit: AtomicU64,
    /// Times that accepting failed for want of descriptors or memory.
    pub accept_failed: AtomicU64,
    /// Whole requests.
    pub requests: AtomicU64,
    /// Requests refused by the front door.
    pub refused: AtomicU64,
    /// Connections given up because the client did not read.
    pub stalled: AtomicU64,
    /// Requests whose client hung up before the answer.
    pub abandoned: AtomicU64,
    /// Histories asked of the broker for browsers.
    pub snapshots: AtomicU64,
    /// Updates of the backend.
    pub updates: AtomicU64,
    rows: AtomicU64,
    rows_sent: AtomicU64,
    rows_skipped: AtomicU64,
    frames_refused: AtomicU64,
    lagged: AtomicU64,
}

impl Counters {
    /// One more.
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// As many as there are.
    pub(crate) fn set(counter: &AtomicU64, count: usize) {
        counter.store(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What the live view counted so far.
    pub(crate) fn live(&self, counts: LiveCounts) {
        self.rows.store(counts.rows, Ordering::Relaxed);
        self.rows_sent.store(counts.sent, Ordering::Relaxed);
        self.rows_skipped.store(counts.skipped, Ordering::Relaxed);
        let refused = counts.malformed + counts.schema_unknown + counts.over_bound;
        self.frames_refused.store(refused, Ordering::Relaxed);
        self.lagged.store(counts.lagged, Ordering::Relaxed);
    }

    /// As Prometheus text.
    #[must_use]
    pub fn exposition(&self) -> String {
        let mut text = String::new();
        for (name, kind, counter, help) in [
            ("connections_accepted_total", "counter", &self.accepted, "Connections accepted."),
            ("connections", "gauge", &self.open, "Connections open now."),
            ("web_sockets", "gauge", &self.web_sockets, "WebSockets open now."),
            ("connections_over_limit_total", "counter", &self.over_limit, "Answered 503 at once."),
            ("accept_failed_total", "counter", &self.accept_failed, "Accepts that failed."),
            ("requests_total", "counter", &self.requests, "Whole requests."),
            ("requests_refused_total", "counter", &self.refused, "Refused by the front door."),
            ("connections_stalled_total", "counter", &self.stalled, "Clients that did not read."),
            ("requests_abandoned_total", "counter", &self.abandoned, "The client hung up first."),
            ("snapshots_total", "counter", &self.snapshots, "Histories asked for browsers."),
            ("updates_total", "counter", &self.updates, "Updates of the broker."),
            ("rows_total", "counter", &self.rows, "Rows seen."),
            ("rows_sent_total", "counter", &self.rows_sent, "Rows sent to browsers."),
            ("rows_skipped_total", "counter", &self.rows_skipped, "Not sent: a slow browser."),
            ("frames_refused_total", "counter", &self.frames_refused, "Frames not understood."),
            ("updates_lagged_total", "counter", &self.lagged, "Updates dropped: viz was slow."),
        ] {
            let value = counter.load(Ordering::Relaxed);
            let _ = write!(
                text,
                "# HELP strobe_viz_{name} {help}\n# TYPE strobe_viz_{name} {kind}\n\
                 strobe_viz_{name} {value}\n"
            );
        }
        text
    }
}
