//! A broker that is away for long, and agents that keep all of it on their disks.

use super::super::agent::Agent;
use super::World;
use std::time::Duration;

impl World {
    /// An hour without a broker, and then one: nothing is lost, and what is live does not wait for what
    /// is not. How long the newest row waited at most while the spool was sent, and how long that took.
    pub(crate) fn cut(mut self, cut: Duration) -> (Duration, Duration) {
        self.calm = true;
        self.disk.heal();
        self.network.loss_percent = 0;
        self.config.bytes_max = u64::MAX;
        self.config.raw_retention_ms = i64::MAX / 4;
        let root = self.root.clone();
        let agents = std::mem::take(&mut self.agents).into_iter();
        let spool = |agent: Agent| {
            let dir = root.join(format!("spool-{}", agent.host.0));
            agent.with_spool(dir)
        };
        self.agents = agents.map(spool).collect();
        while self.now < self.start + Duration::from_secs(10) {
            self.step();
        }
        self.network.parted_until = self.now + cut;
        while self.now < self.network.parted_until || !self.agents.iter().all(Agent::is_streaming) {
            self.step();
        }
        let back = self.now;
        // One round trip after the welcome, the ring is sent.
        while self.now < back + Duration::from_secs(1) {
            self.step();
        }
        let (mut late, mut since) = (Duration::ZERO, vec![(0, self.now); self.agents.len()]);
        let drained = |world: &Self| world.agents.iter().all(Agent::is_drained);
        while !drained(&self) {
            self.step();
            for (agent, since) in self.agents.iter().zip(&mut since) {
                if since.0 <= agent.newest_acknowledged() {
                    *since = (agent.seq(), self.now);
                }
                late = late.max(self.now - since.1);
            }
            assert!(self.now < back + Duration::from_secs(600), "the spool is not sent");
        }
        let took = self.now - back;
        self.faults = false;
        while self.agents.iter().any(|a| a.acknowledged() < a.seq()) {
            self.step();
        }
        assert_eq!(self.oracle.lost(), 0, "nothing was given up");
        let broker = self.broker.take().expect("it acknowledged");
        self.count(&broker);
        let (dir, removed, buried) = (self.config.dir.clone(), self.disk.removed(), self.buried());
        self.oracle.judge(&broker.store, &dir, &removed, &buried);
        (late, took)
    }
}
