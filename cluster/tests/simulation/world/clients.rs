//! Who works with the brokers: what they ask for, and where.

use super::{Asked, World};
use strobe_cluster::kinds::{Command, hosts, members, shards, tokens, versions};
use strobe_wire::limits::SHARDS;
use strobe_wire::shard::Shard;

impl World {
    /// A client does something, somewhere.
    pub(super) fn work(&mut self) {
        let Some(id) = self.any_broker() else { return };
        let joining = self.joining.keys().next().copied();
        let (asked, command) = match self.die.below(20) {
            0..=6 => {
                self.host_next += 1;
                let put = hosts::Change::put(self.host_next, "a host", "tags", 1);
                (Asked::Put(self.host_next), put)
            }
            7 | 8 if !self.oracle.hosts.is_empty() => {
                let at = self.die.index(self.oracle.hosts.len());
                let host = self.oracle.hosts.swap_remove(at);
                (Asked::Forget(host), hosts::Change::forget(host))
            }
            9 | 10 => {
                let state = self.state_of(id);
                let from = state.and_then(versions::last).map_or(0, |version| version.number);
                let text = format!("text {}", self.host_next);
                self.host_next += 1;
                let put = versions::Change::put(from, "somebody", "why not", &text, 1);
                (Asked::Version(from, text), put)
            }
            11 => {
                let hash = [u8::try_from(self.die.below(250)).expect("small"); 32];
                let command = match self.die.below(3) {
                    0 => tokens::Change::issue(hash, i64::MAX, 1),
                    1 => tokens::Change::redeem(hash, 2),
                    _ => tokens::Change::revoke(hash, 3),
                };
                (Asked::Other, command)
            }
            // An operator who knows the state as it is here moves a shard.
            12 => (Asked::Other, self.a_move(id)),
            13..=16 => return self.read(id),
            _ => match joining {
                Some(number) => (Asked::Join(number), members::Change::add("a broker", number)),
                None => return,
            },
        };
        self.ask(id, asked, command);
    }

    fn a_move(&mut self, id: u64) -> Command {
        let shard = Shard(u16::try_from(self.die.below(u64::from(SHARDS))).expect("a shard"));
        let to = 1 + self.die.below(self.brokers.len() as u64);
        let epoch = self.state_of(id).map_or(0, |state| shards::owned(state, shard).epoch);
        self.tally.moves += 1;
        shards::Change::moves(&[(shard.0, epoch, to)])
    }

    pub(super) fn ask(&mut self, id: u64, asked: Asked, command: Command) {
        let number = self.with(id, |node, now| node.propose(now, command)).flatten();
        if let Some(number) = number
            && let Some(broker) = self.brokers.get_mut(&id)
        {
            broker.asked.insert(number, asked);
        }
    }

    fn read(&mut self, id: u64) {
        let skipped = self.oracle.hosts.len().saturating_sub(10);
        let before: Vec<u128> = self.oracle.hosts.iter().skip(skipped).copied().collect();
        let Some(broker) = self.brokers.get_mut(&id) else { return };
        let now = broker.local(self.start, self.now);
        // Its answer may come at once: it is to be known before.
        let asked = broker.node.as_mut().map(|node| node.read(now));
        if let Some(Ok(Some(ticket))) = asked {
            broker.reads.insert(ticket, before);
        }
        self.with(id, |_, _| Ok(()));
    }
}
