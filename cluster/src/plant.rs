//! Bugs that are put in on purpose, to see that the simulation finds them.
//!
//! Without the feature `plant`, which only this crate's tests turn on, [`Plants::has`] is always
//! false and the branches behind it are compiled away.

/// A bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// What a follower promises is sent before it is on disk.
    SendBeforePersist,
    /// A command counts as applied, and its outcome is told, when it is in the leader's log.
    AckEarly,
    /// Transactions are never made durable.
    NoSync,
    /// The applied index is kept, what was applied is not.
    ApplyApart,
    /// A command that comes twice is applied twice.
    ForgetDedup,
    /// A move is applied whatever epoch it was planned in.
    ForgetEpoch,
    /// A shard changes hands without a new epoch.
    KeepEpoch,
    /// Peers do not look at which disk a broker speaks from.
    ReuseId,
    /// The vote is not kept over a restart.
    ForgetVote,
    /// A snapshot replaces the entries but not the state.
    SnapshotWithoutState,
    /// The configuration of a snapshot or of the log is not kept with the state.
    ForgetConf,
    /// A read is answered from what is applied here, without asking who leads.
    ReadStale,
    /// The outcome of a proposal that got no answer is told as refused.
    GuessOutcome,
}

/// The bugs in force.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Plants {
    #[cfg(feature = "plant")]
    planted: Option<Plant>,
}

impl Plants {
    #[cfg(feature = "plant")]
    pub(crate) fn new(planted: Option<Plant>) -> Self {
        Self { planted }
    }

    #[cfg(not(feature = "plant"))]
    pub(crate) fn new(_: Option<Plant>) -> Self {
        Self {}
    }

    #[cfg(feature = "plant")]
    pub(crate) fn has(self, plant: Plant) -> bool {
        self.planted == Some(plant)
    }

    #[cfg(not(feature = "plant"))]
    #[expect(clippy::unused_self, reason = "with the feature it is used")]
    pub(crate) fn has(self, _: Plant) -> bool {
        false
    }
}
