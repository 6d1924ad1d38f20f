//! What stays when a process ends: a broker's machine with its disks and clock, and a host's.

use super::agent::Agent;
use super::broker::Broker;
use super::clock::Clock;
use super::disk::Disk;
use super::platter::Platter;
use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use strobe_broker::cluster::Answer;
use strobe_broker::store::StoreConfig;

/// A broker's.
pub(crate) struct Machine {
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    pub(crate) platter: Platter,
    pub(crate) config: StoreConfig,
    /// It belongs to the cluster.
    pub(crate) joined: bool,
    pub(crate) broker: Option<Broker>,
    pub(crate) lives: u64,
    /// Times of the world, in microseconds.
    pub(crate) back_at: u64,
    pub(crate) stopped_until: u64,
    pub(crate) wake_at: u64,
    pub(crate) turned_at: u64,
    pub(crate) slow_until: u64,
    pub(crate) full_until: u64,
    pub(crate) low_until: u64,
    pub(crate) skewed_until: u64,
    /// Somebody starts it again, for its control plane ended.
    pub(crate) restart_at: Option<u64>,
    /// Who asked what here.
    pub(crate) asked: VecDeque<(Receiver<Answer>, Wish)>,
}

/// What an operator waits for.
pub(crate) enum Wish {
    /// A broker with a disk of this number.
    Join(u64),
    /// A version of the configuration, made of the one before.
    Version(u64, String),
    /// A host.
    Register(u128),
    /// The write of this number in the history.
    Put(usize),
    /// The read of this number, and where it is seen.
    Seen(usize, Receiver<u64>),
    /// Anything else.
    Other,
}

/// A host's.
pub(crate) struct Host {
    pub(crate) agent: Agent,
    pub(crate) clock: Clock,
    pub(crate) wake_at: u64,
    pub(crate) skewed_until: u64,
}
