//! What happened in a run, counted.

/// What happened in a run.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Tally {
    pub(super) digest: u64,
    pub(super) simulated_ms: u64,
    pub(super) messages_lost: u64,
    pub(super) syncs: u64,
    pub(super) crashes: u64,
    pub(super) deaths_at_the_disk: u64,
    pub(super) cuts: u64,
    pub(super) stops: u64,
    pub(super) leaders: u64,
    pub(super) applied: u64,
    pub(super) refused: u64,
    pub(super) unknown: u64,
    pub(super) reads: u64,
    pub(super) reads_late: u64,
    pub(super) joins: u64,
    pub(super) drains: u64,
    pub(super) removals: u64,
    pub(super) wipes: u64,
    pub(super) moves: u64,
    pub(super) transfers: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in self.each().into_iter().zip(other.clone().each()) {
            *sum = sum.wrapping_add(*more);
        }
    }

    pub(crate) fn assert_all_happened(mut self) {
        let shown = format!("{self:?}");
        assert!(self.each().into_iter().all(|count| 0 < *count), "{shown}");
    }

    fn each(&mut self) -> [&mut u64; 20] {
        [
            &mut self.digest,
            &mut self.simulated_ms,
            &mut self.messages_lost,
            &mut self.syncs,
            &mut self.crashes,
            &mut self.deaths_at_the_disk,
            &mut self.cuts,
            &mut self.stops,
            &mut self.leaders,
            &mut self.applied,
            &mut self.refused,
            &mut self.unknown,
            &mut self.reads,
            &mut self.reads_late,
            &mut self.joins,
            &mut self.drains,
            &mut self.removals,
            &mut self.wipes,
            &mut self.moves,
            &mut self.transfers,
        ]
    }
}
