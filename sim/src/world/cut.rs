//! A broker that is away for long, and agents that keep all of it on their disks.

use super::World;
use crate::network::AGENTS;

impl World<'_> {
    /// So many milliseconds without a broker, and then one: nothing is lost, and what is live does not
    /// wait for what is not. How long the newest row waited at most while the spool was sent, and how
    /// long that took, in milliseconds.
    pub(crate) fn cut(mut self, cut_ms: u64) -> (u64, u64) {
        for machine in self.machines.values_mut() {
            (machine.config.bytes_max, machine.config.raw_retention_ms) = (u64::MAX, i64::MAX / 4);
        }
        for host in &mut self.hosts {
            host.agent.set_spool(self.root.join(format!("spool-{}", host.agent.host.0)));
        }
        self.calm = true;
        self.grow();
        self.go_until(self.now + 10_000_000);
        let back = self.now + 1_000 * cut_ms;
        for number in 1..=self.plan.hosts {
            self.network.cut((1, AGENTS + number), back, false);
            self.network.cut((AGENTS + number, 1), back, false);
        }
        self.go_until(back);
        while !self.hosts.iter().all(|host| host.agent.is_streaming()) {
            self.go_until(self.now + 10_000);
        }
        // One round trip after the welcome, the ring is sent.
        let back = self.now;
        self.go_until(back + 1_000_000);
        let (mut late, mut since) = (0, vec![(0, self.now); self.hosts.len()]);
        while !self.hosts.iter().all(|host| host.agent.is_drained()) {
            self.go_until(self.now + 10_000);
            for (host, since) in self.hosts.iter().zip(&mut since) {
                if since.0 <= host.agent.newest_acknowledged() {
                    *since = (host.agent.seq(), self.now);
                }
                late = late.max(self.now - since.1);
            }
            assert!(self.now < back + 600_000_000, "the spool is not sent");
        }
        let took = self.now - back;
        self.heal();
        self.settle();
        assert_eq!(self.ledger.lost(), 0, "nothing was given up");
        self.judge();
        (late / 1_000, took / 1_000)
    }
}
