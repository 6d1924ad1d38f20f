//! How long an agent was without an acknowledgement while it made rows.

use std::time::{Duration, Instant};

/// Of one agent.
#[derive(Clone, Debug, Default)]
pub struct Gaps {
    /// The longest time between two acknowledgements.
    pub longest: Duration,
    /// When each was over that was clearly longer than a tick, and how long it was; the first [`GAPS_MAX`].
    pub long: Vec<(Instant, Duration)>,
}

impl Gaps {
    /// An acknowledgement came at `now`, so long after the one before.
    pub fn add(&mut self, now: Instant, gap: Duration, interval: Duration) {
        self.longest = self.longest.max(gap);
        if interval + interval / 5 < gap && self.long.len() < GAPS_MAX {
            self.long.push((now, gap));
        }
    }
}

/// Long gaps kept of each agent.
pub const GAPS_MAX: usize = 4096;
