//! What happened in a run, counted.

/// How often what happened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) frames: u64,
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) strays: u64,
    pub(crate) duplicates: u64,
    pub(crate) restarts: u64,
    pub(crate) kills: u64,
    pub(crate) deaths_at_the_disk: u64,
    pub(crate) full_disks: u64,
    pub(crate) low_disks: u64,
    pub(crate) failed_syncs: u64,
    pub(crate) failed_directories: u64,
    pub(crate) clock_steps: u64,
    pub(crate) expired: u64,
    pub(crate) capped: u64,
    pub(crate) partitions: u64,
    pub(crate) blocks_sealed: u64,
    pub(crate) rollups: u64,
    pub(crate) logs_released: u64,
    pub(crate) datagrams: u64,
    pub(crate) digest: u64,
    pub(crate) virtual_ms: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.strays += other.strays;
        self.duplicates += other.duplicates;
        self.restarts += other.restarts;
        self.kills += other.kills;
        self.deaths_at_the_disk += other.deaths_at_the_disk;
        self.full_disks += other.full_disks;
        self.low_disks += other.low_disks;
        self.failed_syncs += other.failed_syncs;
        self.failed_directories += other.failed_directories;
        self.clock_steps += other.clock_steps;
        self.expired += other.expired;
        self.capped += other.capped;
        self.partitions += other.partitions;
        self.blocks_sealed += other.blocks_sealed;
        self.rollups += other.rollups;
        self.logs_released += other.logs_released;
        self.datagrams += other.datagrams;
        self.digest ^= other.digest;
        self.virtual_ms += other.virtual_ms;
    }
}
