//! What goes wrong, and what operators do meanwhile.

use super::{Asked, CLUSTER, World, database};
use strobe_cluster::kinds::members;
use strobe_cluster::{Identity, Store};

impl World {
    /// Something goes wrong, or somebody does something.
    pub(super) fn harm(&mut self) {
        let Some(id) = self.any_broker() else { return };
        match self.die.below(24) {
            0..=3 => {
                self.crash(id);
                self.tally.crashes += 1;
            }
            4..=7 => {
                let calls = self.die.below(60);
                self.brokers[&id].disk.die_in(calls);
            }
            8..=11 => self.part(id),
            12 | 13 => {
                self.tally.stops += 1;
                let until = self.now + 200 + self.die.below(4_000);
                self.broker(id).stopped_until = until;
            }
            14 | 15 => {
                self.network.loss_percent = self.die.below(30);
                self.network.delay_ms = 5 + self.die.below(200);
            }
            16 => self.network.heal(),
            17 => {
                let to = 1 + self.die.below(self.brokers.len() as u64);
                self.tally.transfers += 1;
                self.with(id, |node, now| node.transfer_leader(now, to));
            }
            18 | 19 => self.shrink(id),
            20 => self.wipe(id),
            21 if self.brokers.len() + self.joining.len() < 8 => self.want_another(),
            _ => {
                let peer = 1 + self.die.below(self.brokers.len() as u64);
                self.with(id, |node, now| node.unreachable(now, peer));
            }
        }
    }

    /// One way, both ways, or flapping; towards one or all others.
    fn part(&mut self, id: u64) {
        self.tally.cuts += 1;
        let others: Vec<u64> = self.brokers.keys().copied().filter(|&o| o != id).collect();
        if others.is_empty() {
            return;
        }
        let until = self.now + 500 + self.die.below(6_000);
        let (kind, flapping) = (self.die.below(3), self.die.one_in(4));
        let one = others[self.die.index(others.len())];
        let all = self.die.one_in(2);
        for other in others.into_iter().filter(|&other| all || other == one) {
            if kind != 1 {
                self.network.cut(id, other, until, flapping);
            }
            if kind != 0 {
                self.network.cut(other, id, until, flapping);
            }
        }
    }

    /// An operator drains or removes a broker, while enough are left to go on.
    fn shrink(&mut self, id: u64) {
        let voters = self.voters();
        let staying =
            voters.iter().filter(|v| !self.leaving.contains(v) && self.wiped != Some(**v));
        let enough = 3 < staying.count();
        let wiped = self.wiped.filter(|wiped| voters.contains(wiped));
        let command = match wiped {
            Some(wiped) => {
                self.tally.removals += 1;
                self.leaving.insert(wiped);
                members::Change::remove(wiped)
            }
            None if enough && voters.contains(&id) => {
                self.tally.drains += 1;
                self.leaving.insert(id);
                members::Change::drain(id)
            }
            None => return,
        };
        if let Some(through) = self.any_broker() {
            self.ask(through, Asked::Other, command);
        }
    }

    /// A disk is replaced by an empty one, and somebody starts the broker on it under its old id.
    fn wipe(&mut self, id: u64) {
        let staying = self.voters().into_iter().filter(|voter| !self.leaving.contains(voter));
        if self.wiped.is_some() || staying.count() < 4 || self.leaving.contains(&id) {
            return;
        }
        self.tally.wipes += 1;
        self.wiped = Some(id);
        self.crash(id);
        let (number, disk) = self.new_disk();
        disk.wipe();
        let identity = Identity { cluster: CLUSTER, broker: id, disk: number };
        Store::join(&database(&disk).expect("new"), identity).expect("new");
        self.broker(id).disk = disk;
    }

    pub(super) fn heal(&mut self) {
        self.healed = true;
        self.network.heal();
        let now = self.now;
        for broker in self.brokers.values_mut() {
            broker.stopped_until = 0;
            if broker.back_at != u64::MAX {
                broker.back_at = broker.back_at.min(now + 100);
            }
            broker.disk.die_in(u64::MAX);
        }
    }
}
