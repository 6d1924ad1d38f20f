//! Bugs that are put in on purpose, to see that they are found. Only with the feature `plant`, which this
//! crate's tests turn on, can a run be told to.

/// A bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// Acknowledged when it is handed to the writer.
    AckEarly,
    /// A sync returns and nothing is durable.
    NoSync,
    /// The numbers in the WAL are not taken in at start.
    ForgetLog,
    /// The windows that were kept are not taken in at start.
    ForgetWindows,
    /// The writer takes a batch twice.
    StoreTwice,
    /// Entries of the loss ledger are not stored.
    NoLedger,
    /// Owners that change are not told to the network loop.
    DeafToMaps,
    /// Versions of the configuration are not told to the network loop after the first.
    DeafToVersions,
    /// An agent takes over a version without its last value.
    HalfApply,
    /// A broker takes over a version without one of its limits.
    HalfTune,
    /// One of the writers to Redis.
    Redis(strobe_broker::store::redis::Plant),
    /// One of the control plane's.
    Control(strobe_cluster::Plant),
}
