//! Writes that carry their owner's epoch: Redis refuses those of an older one than it has seen.
//!
//! All writes to one shard in a batch are one script, which looks at the shard's epoch first. In a
//! Cluster a slot that is on its way answers it with TRYAGAIN while its keys are in two places.

use super::batch::Writes;
use super::keys::{Keys, SHARDS, jittered};
use super::link::Link;
use super::plant::{Plant, has};
use super::slots::slot;
use crate::cluster::{Map, Owner};
use redis::{Arg, Cmd, RedisResult, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sends writes, and knows which shards are no longer ours.
#[derive(Debug)]
pub(super) struct Fence {
    keys: Keys,
    pub(super) epochs: Arc<Epochs>,
    /// Of an epoch in Redis.
    life_s: u64,
    /// Shards whose writes were refused, with the epoch that they carried.
    refused: BTreeMap<usize, u64>,
}

/// The epoch of each shard's ownership, as the one who decides on owners says. Redis refuses the
/// writes of an older one. One broker alone has 0 everywhere.
#[derive(Debug)]
pub struct Epochs {
    shards: Vec<AtomicU64>,
    /// The broker that owns each; 0: none that is known.
    owners: Vec<AtomicU64>,
    /// Whose writes they are: a broker's number in its cluster, 0 of one by itself.
    broker: AtomicU64,
}

impl Epochs {
    /// All 0.
    #[must_use]
    pub fn none() -> Self {
        let none = || (0..SHARDS).map(|_| AtomicU64::new(0)).collect();
        Self { shards: none(), owners: none(), broker: AtomicU64::new(0) }
    }

    /// Writes carry what is agreed on from now on. Of one that has left its cluster, who owns nothing any
    /// more, they carry that: what it took in while it was there is to be there too.
    pub fn follow(&self, map: &Map) {
        self.set_broker(map.me);
        for (shard, Owner { broker, epoch }) in map.owned() {
            self.set(shard, if epoch == 0 { LEFT } else { epoch });
            self.set_owner(shard, broker);
        }
    }

    /// This broker owns `shard` from now on.
    pub fn set_owner(&self, shard: usize, broker: u64) {
        // Relaxed: who takes something in for it says by its epoch that it is his.
        if let Some(owner) = self.owners.get(shard) {
            owner.store(broker, Ordering::Relaxed);
        }
    }

    /// The shards that a broker owns.
    pub(super) fn of_broker(&self, broker: u64) -> impl Iterator<Item = usize> {
        let owners = self.owners.iter().enumerate();
        owners.filter(move |(_, o)| o.load(Ordering::Relaxed) == broker).map(|(shard, _)| shard)
    }

    /// Writes to `shard` carry `epoch` from now on.
    pub fn set(&self, shard: usize, epoch: u64) {
        // Relaxed: the number is all there is to see; Redis judges each write by what it carries.
        if let Some(of) = self.shards.get(shard) {
            of.store(epoch, Ordering::Relaxed);
        }
    }

    /// Whose writes they are from now on.
    pub fn set_broker(&self, broker: u64) {
        // Relaxed: a number by itself.
        self.broker.store(broker, Ordering::Relaxed);
    }

    /// Whose writes they are.
    #[must_use]
    pub fn broker(&self) -> u64 {
        self.broker.load(Ordering::Relaxed)
    }

    /// What writes to `shard` carry.
    #[must_use]
    pub fn of(&self, shard: usize) -> u64 {
        self.shards.get(shard).map_or(0, |epoch| epoch.load(Ordering::Relaxed))
    }
}

impl Fence {
    pub(super) fn new(keys: &Keys, epochs: &Arc<Epochs>, life_s: u64) -> Self {
        let (keys, epochs) = (keys.clone(), Arc::clone(epochs));
        Self { keys, epochs, life_s, refused: BTreeMap::new() }
    }

    /// Whether writes to it are refused, for all that is known.
    pub(super) fn is_refused(&self, shard: usize) -> bool {
        self.refused.contains_key(&shard)
    }

    /// How many are.
    pub(super) fn refused(&self) -> usize {
        self.refused.len()
    }

    /// Tries those again whose epoch is another one now, or all.
    pub(super) fn retry(&mut self, all: bool) {
        let epochs = &self.epochs;
        self.refused.retain(|shard, epoch| !all && epochs.of(*shard) == *epoch);
    }

    /// Carries writes out, but those to shards that are refused.
    ///
    /// # Errors
    /// What else Redis says: some writes may be there.
    pub(super) fn send(&mut self, link: &mut Link, writes: Writes) -> RedisResult<()> {
        let mut batch = writes.free;
        let free = batch.commands.len();
        let mut sent = Vec::with_capacity(writes.shards.len());
        for (shard, commands) in writes.shards {
            if self.is_refused(shard) {
                continue;
            }
            let (key, epoch) = (self.keys.epoch(shard), self.epochs.of(shard));
            let said = i64::try_from(epoch).unwrap_or(-1);
            let script = script(&key, (said, jittered(self.life_s, &key)), &commands);
            batch.push(slot(key.as_bytes()), script);
            sent.push((shard, epoch));
        }
        let answers = link.answers(&batch)?;
        for (at, answer) in answers.into_iter().enumerate() {
            let Value::ServerError(said) = answer else { continue };
            match at.checked_sub(free).and_then(|at| sent.get(at)) {
                Some(&(shard, epoch)) if said.code() == FENCED => {
                    self.refused.insert(shard, epoch);
                }
                _ => return Err(said.into()),
            }
        }
        Ok(())
    }
}

/// Every key is named, as a Cluster wants it.
fn script(fence: &str, (epoch, life_s): (i64, u64), commands: &[Cmd]) -> Cmd {
    let args = |cmd: &Cmd| {
        let args = cmd.args_iter().filter_map(|arg| match arg {
            Arg::Simple(bytes) => Some(bytes.to_vec()),
            _ => None,
        });
        args.collect::<Vec<Vec<u8>>>()
    };
    let commands: Vec<Vec<Vec<u8>>> = commands.iter().map(args).collect();
    let keys: BTreeSet<&[u8]> =
        commands.iter().filter_map(|args| args.get(1).map(Vec::as_slice)).collect();
    let mut cmd = ::redis::cmd("EVAL");
    let script = if has(Plant::NoFence) {
        SCRIPT.replace("0 <= mine and", "false and")
    } else {
        SCRIPT.to_owned()
    };
    cmd.arg(script).arg(1 + keys.len()).arg(fence);
    for key in keys {
        cmd.arg(key);
    }
    cmd.arg(epoch).arg(life_s);
    for args in &commands {
        cmd.arg(args.len());
        for arg in args {
            cmd.arg(arg.as_slice());
        }
    }
    cmd
}

pub(super) const FENCED: &str = "FENCED";
/// In place of an epoch, of one that has left: -1 in the script, which lets it write and stays as it is.
const LEFT: u64 = u64::MAX;
/// The fence stands as long as hosts are kept; numbers up to 2^53 are exact.
const SCRIPT: &str = "local held = tonumber(redis.call('GET', KEYS[1]) or '0')
local mine = tonumber(ARGV[1])
if 0 <= mine and mine < held then
  return redis.error_reply('FENCED by epoch ' .. held .. ', this is of epoch ' .. mine)
end
if 0 < mine then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end
local at = 3
while ARGV[at] do
  local count = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + count))
  at = at + 1 + count
end
return 1";
