//! What is going to happen in a run, drawn from its seed before it begins; so that what does not matter
//! for a failure can be left out one by one.

use super::dice::Die;

/// A run to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Of every decision that is not here: losses, delays, torn writes, how long a restart takes.
    pub seed: u64,
    /// Brokers at the beginning; 1 is a broker by itself, in no cluster.
    pub brokers: u64,
    /// Hosts, each with its agent.
    pub hosts: u64,
    /// What brokers share.
    pub shared: Shared,
    /// In order of time.
    pub troubles: Vec<Trouble>,
    /// So long after the beginning everything is healed.
    pub suffering_ms: u64,
}

/// Which Redis brokers write to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shared {
    /// None.
    Nothing,
    /// One server, with a replica.
    Server,
    /// Three, each with a part of the shards and a replica.
    Cluster,
    /// One server, and nothing is acknowledged before it is there: `durability = "wal+redis"`. A broker
    /// by itself, or a cluster, whose owners take in what lost ones have left there.
    Log,
}

/// Something that goes wrong, or is done by an operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// Its place in the whole plan of the seed.
    pub number: usize,
    /// When, after the beginning.
    pub at_ms: u64,
    /// What.
    pub what: What,
    /// To which machine; counted on from those that are there.
    pub who: u64,
    /// To which other one.
    pub whom: u64,
    /// For how long.
    pub for_ms: u64,
    /// How much of it: a percentage, a number of calls, a choice.
    pub much: u64,
}

/// A kind of trouble.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A machine with a broker loses power.
    Kill,
    /// The same at some call to the disk of its store.
    DieAtStore,
    /// The same at some call to the disk of its control plane.
    DieAtControl,
    /// A broker's process stands still, and goes on.
    Stop,
    /// A disk is full.
    FullDisk,
    /// A disk is nearly full.
    LowDisk,
    /// A disk takes its time.
    SlowDisk,
    /// A sync of the store fails once.
    FailSync,
    /// A sync of a directory fails once.
    FailDirectory,
    /// A sync of the control plane's store fails once.
    FailControl,
    /// A broker hears, or is heard by, nobody or one other no more.
    Part,
    /// The same for an agent.
    PartAgent,
    /// A link gets slow, and drops what waits too long.
    Clog,
    /// The whole network loses, delays and damages.
    BadNetwork,
    /// And is well again.
    GoodNetwork,
    /// An agent starts again.
    RestartAgent,
    /// An agent's wall clock is set an hour forth or back.
    AgentClock,
    /// A broker's wall clock is set some seconds forth or back.
    BrokerClock,
    /// An operator moves the shard of a host.
    Move,
    /// Another broker joins.
    Join,
    /// A broker is drained.
    Drain,
    /// The lead is handed over.
    Transfer,
    /// A version of the configuration is written.
    Configure,
    /// A host is registered.
    Register,
    /// A Redis fails over to a replica that lacks the last writes.
    LagRedis,
    /// A Redis starts again with nothing.
    EmptyRedis,
    /// A Redis closes its connections between two commands.
    CutRedis,
    /// A Redis answers nobody for a time.
    HangRedis,
    /// A Redis is out of memory.
    FullRedis,
}

impl Plan {
    /// The plan of a seed: a minute, or so many hours.
    #[must_use]
    pub fn of(seed: u64, hours: Option<u64>) -> Self {
        let mut die = Die::new(seed, 0);
        let brokers = if seed.is_multiple_of(4) { 1 } else { 3 + die.below(3) };
        let hosts = 1 + die.below(HOSTS_MAX);
        let shared = match seed % 16 {
            0 | 8 | 9 => Shared::Log,
            6 => Shared::Server,
            11 => Shared::Cluster,
            _ => Shared::Nothing,
        };
        let suffering_ms = hours.map_or(SUFFERING_MS, |hours| hours * 3_600_000);
        // Some runs are wild, some have a trouble now and then.
        let pause_ms = [300, 700, 2_000][die.index(3)];
        let mut troubles = drawn(&mut die, (KINDS, pause_ms), suffering_ms, 1);
        if shared != Shared::Nothing {
            let mut die = Die::new(seed, 3);
            let pause_ms = [1_000, 3_000, 8_000][die.index(3)];
            let first = 1 + troubles.len();
            troubles.extend(drawn(&mut die, (REDIS, pause_ms), suffering_ms, first));
            troubles.sort_by_key(|trouble| trouble.at_ms);
        }
        Self { seed, brokers, hosts, shared, troubles, suffering_ms }
    }

    /// Only these of the troubles, and no longer than so.
    #[must_use]
    pub fn only(mut self, numbers: &[usize], suffering_ms: u64) -> Self {
        self.troubles.retain(|trouble| numbers.contains(&trouble.number));
        self.suffering_ms = suffering_ms;
        self
    }
}

/// Troubles of these kinds, about so often, until then, numbered from `first` on.
fn drawn(
    die: &mut Die,
    (kinds, pause_ms): (&[What], u64),
    suffering_ms: u64,
    first: usize,
) -> Vec<Trouble> {
    let (mut troubles, mut at_ms) = (Vec::new(), 0);
    loop {
        at_ms += 1 + die.below(2 * pause_ms);
        if suffering_ms <= at_ms {
            return troubles;
        }
        let what = kinds[die.index(kinds.len())];
        let for_ms = match what {
            What::FullDisk | What::PartAgent => die.below(15_000),
            What::LowDisk | What::SlowDisk | What::AgentClock => die.below(8_000),
            _ => 200 + die.below(5_000),
        };
        let (who, whom, much) = (die.below(1 << 20), die.below(1 << 20), die.below(1 << 20));
        let number = first + troubles.len();
        troubles.push(Trouble { number, at_ms, what, who, whom, for_ms, much });
    }
}

/// The more often, the more often.
const KINDS: &[What] = &[
    What::Kill,
    What::Kill,
    What::DieAtStore,
    What::DieAtStore,
    What::DieAtControl,
    What::DieAtControl,
    What::Stop,
    What::Stop,
    What::FullDisk,
    What::LowDisk,
    What::SlowDisk,
    What::FailSync,
    What::FailSync,
    What::FailDirectory,
    What::FailControl,
    What::Part,
    What::Part,
    What::Part,
    What::PartAgent,
    What::PartAgent,
    What::Clog,
    What::BadNetwork,
    What::BadNetwork,
    What::GoodNetwork,
    What::RestartAgent,
    What::RestartAgent,
    What::AgentClock,
    What::BrokerClock,
    What::Move,
    What::Move,
    What::Move,
    What::Join,
    What::Drain,
    What::Transfer,
    What::Configure,
    What::Configure,
    What::Register,
];
/// The same of a Redis.
const REDIS: &[What] = &[
    What::LagRedis,
    What::LagRedis,
    What::EmptyRedis,
    What::CutRedis,
    What::CutRedis,
    What::HangRedis,
    What::FullRedis,
];
pub(crate) const HOSTS_MAX: u64 = 3;
const SUFFERING_MS: u64 = 30_000;
