//! How often what happened in a run.

use std::collections::BTreeMap;
use std::fmt;

/// Counts by name, and a digest of every datagram: two equal ones are the same run.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Tally {
    counts: BTreeMap<&'static str, u64>,
    /// Of the time, the ends and the length of each datagram.
    pub digest: u64,
    /// Virtual time.
    pub simulated_ms: u64,
}

impl Tally {
    /// How often it happened.
    #[must_use]
    pub fn of(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// All counts.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().map(|(&what, &count)| (what, count))
    }

    /// What went wrong, all kinds of it.
    #[must_use]
    pub fn troubles(&self) -> u64 {
        TROUBLES.iter().map(|what| self.of(what)).sum()
    }

    /// Another run's are counted with these.
    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.digest ^= other.digest;
        self.simulated_ms += other.simulated_ms;
    }

    pub(crate) fn count(&mut self, what: &'static str, more: u64) {
        *self.counts.entry(what).or_default() += more;
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.simulated_ms / 1_000)?;
        for (what, count) in &self.counts {
            write!(f, ", {count} {what}")?;
        }
        write!(f, ", digest {:016x}", self.digest)
    }
}

/// Counts of what goes wrong.
pub const TROUBLES: &[&str] = &[
    "agents restarted",
    "brokers killed",
    "machines stopped",
    "deaths at the disk",
    "full disks",
    "low disks",
    "slow disks",
    "failed syncs",
    "failed directories",
    "failed control syncs",
    "clock steps",
    "partitions",
    "clogged links",
    "bad networks",
];
