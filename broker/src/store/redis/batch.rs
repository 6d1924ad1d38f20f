//! Commands that go out together, each to where its key is.

use super::slots::slot;
use redis::Cmd;
use std::collections::BTreeMap;

/// Commands, each with its key's slot.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) commands: Vec<(u16, Cmd)>,
}

/// Writes by shard, which [`super::fence::Fence`] sends: those of one shard are carried out together
/// or not at all.
#[derive(Default)]
pub(super) struct Writes {
    pub(super) shards: BTreeMap<usize, Vec<Cmd>>,
    /// What is the same whoever writes it.
    pub(super) free: Batch,
    count: usize,
}

impl Batch {
    /// Adds a command; its key is its first argument.
    pub(super) fn cmd(&mut self, name: &str, key: &str) -> &mut Cmd {
        self.push(slot(key.as_bytes()), keyed(name, key))
    }

    pub(super) fn push(&mut self, slot: u16, cmd: Cmd) -> &mut Cmd {
        &mut self.commands.push_mut((slot, cmd)).1
    }

    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

impl Writes {
    /// Adds a write to a key of a shard.
    pub(super) fn cmd(&mut self, shard: usize, name: &str, key: &str) -> &mut Cmd {
        self.count += 1;
        self.shards.entry(shard).or_default().push_mut(keyed(name, key))
    }

    /// Adds a write that no epoch fences.
    pub(super) fn free(&mut self, name: &str, key: &str) -> &mut Cmd {
        self.count += 1;
        self.free.cmd(name, key)
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }
}

fn keyed(name: &str, key: &str) -> Cmd {
    let mut cmd = ::redis::cmd(name);
    cmd.arg(key);
    cmd
}
