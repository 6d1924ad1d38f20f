//! What others may know of an uplink.

use super::{Sent, State, Uplink};
use std::time::{Duration, Instant};
use strobe_wire::link::Link;

/// What there is to know of an uplink.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Whether a broker takes frames now.
    pub streaming: bool,
    /// The broker dialled last.
    pub broker: String,
    /// Connections made.
    pub connections: u64,
    /// Frames handed to QUIC, repetitions included.
    pub frames_sent: u64,
    /// The last sequence number acknowledged.
    pub acknowledged_seq: u64,
    /// Frames waiting for an acknowledgement.
    pub unacknowledged: usize,
    /// Frames in the ring that could not be sent: nobody knows their schema any more, which is told as a loss, or
    /// they do not open, which is a bug.
    pub unsendable: u64,
    /// Ticks whose rows the sampler's thread sent, with the network's asleep.
    pub quiet_ticks: u64,
    /// Connections in a row that ended, or were not made, before anything was acknowledged.
    pub failures: u32,
    /// Why the last connection ended, or was not made.
    pub last_error: String,
}

impl Uplink {
    /// What there is to know.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = Status::default();
        self.show(&mut status);
        status
    }

    /// [`Self::status`] into one there is, which costs no memory.
    pub fn show(&self, status: &mut Status) {
        let mine = &self.status;
        status.broker.clone_from(&mine.broker);
        status.last_error.clone_from(&mine.last_error);
        status.connections = mine.connections;
        status.frames_sent = mine.frames_sent;
        status.acknowledged_seq = mine.acknowledged_seq;
        status.unsendable = mine.unsendable;
        status.streaming = matches!(self.state, State::Streaming { .. });
        status.unacknowledged = self.unacknowledged.len();
        status.failures = self.back_off.failures();
    }

    /// Whether nothing but rows and acknowledgements is on its way, and no row has waited for its
    /// acknowledgement for `late`.
    #[must_use]
    pub fn is_calm(&self, now: Instant, late: Duration) -> bool {
        let streaming = matches!(self.state, State::Streaming { .. });
        let waited = |sent: &Sent| now.saturating_duration_since(sent.at);
        let acknowledged = self.unacknowledged.front().is_none_or(|sent| waited(sent) < late);
        streaming
            && acknowledged
            && self.chunks.is_empty()
            && self.spooled.is_none()
            && self.replay.is_idle()
            && self.renewing.is_none()
            && self.renewed.is_none()
            && self.fleet.is_quiet()
    }

    /// Whether the path has lost something of what was sent since this was asked last.
    pub fn has_lost(&mut self, link: &mut Link) -> bool {
        let traffic = self.conn().and_then(|conn| Some((conn, link.traffic(conn)?.lost)));
        let before = std::mem::replace(&mut self.lost, traffic);
        before.zip(traffic).is_some_and(|(before, now)| before.0 == now.0 && before.1 < now.1)
    }

    /// Whether a broker takes rows and has acknowledged all that it was sent.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self.state, State::Streaming { .. }) && self.unacknowledged.is_empty()
    }
}
