//! What goes wrong, and how it ends.

use super::World;
use crate::network::AGENTS;
use crate::plan::{Trouble, What};
use strobe_agent::sampler::Tick;

impl World<'_> {
    /// A trouble comes.
    pub(super) fn suffer(&mut self, trouble: &Trouble) {
        let until = self.now + 1_000 * trouble.for_ms;
        match trouble.what {
            What::PartAgent => return self.part_agent(trouble, until),
            What::RestartAgent => return self.restart_agent(trouble),
            What::AgentClock => return self.agent_clock(trouble, until),
            What::BadNetwork => return self.bad_network(trouble),
            What::GoodNetwork => {
                self.trace.say(self.now, || "the network is well again".to_owned());
                return self.network.heal();
            }
            _ => {}
        }
        if self.suffer_redis(trouble) {
            return;
        }
        let Some(id) = self.any_broker(trouble.who) else { return };
        let clustered = 1 < self.plan.brokers;
        match trouble.what {
            What::Kill => {
                self.tally.count("brokers killed", 1);
                self.crash(id, "is killed");
            }
            What::Part => self.part(id, trouble, until),
            What::Clog => self.clog(id, trouble, until),
            What::Move if clustered => self.move_shard(trouble),
            What::Join if clustered => self.want_another(),
            What::Drain if clustered => self.drain(trouble),
            What::Transfer if clustered => self.transfer(trouble),
            What::Configure if clustered => self.configure(trouble),
            What::Register if clustered => self.register(trouble),
            _ => self.hurt(id, trouble, until),
        }
    }

    /// A machine's process, disks and clock.
    fn hurt(&mut self, id: u64, trouble: &Trouble, until: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let (count, what) = match trouble.what {
            What::DieAtStore => {
                machine.disk.die_in(trouble.much % 40);
                ("deaths planned", "will die at a call to its store's disk")
            }
            What::DieAtControl if machine.joined => {
                machine.platter.die_in(trouble.much % 60);
                ("deaths planned", "will die at a call to its control plane's disk")
            }
            What::Stop => {
                machine.stopped_until = until;
                ("machines stopped", "stands still")
            }
            What::FullDisk => {
                machine.disk.set_full(true);
                machine.platter.set_full(true);
                machine.full_until = until;
                ("full disks", "has a full disk")
            }
            What::LowDisk => {
                machine.disk.set_low(true);
                machine.low_until = until;
                ("low disks", "has little room")
            }
            What::SlowDisk => {
                machine.slow_until = until;
                ("slow disks", "has a slow disk")
            }
            What::FailSync => {
                machine.disk.fail_a_sync();
                ("failed syncs", "fails a sync of its store")
            }
            What::FailDirectory => {
                machine.disk.fail_a_directory();
                ("failed directories", "fails a sync of a directory")
            }
            What::FailControl if machine.joined => {
                machine.platter.fail_a_sync();
                ("failed control syncs", "fails a sync of its control plane")
            }
            What::BrokerClock => {
                let seconds = i64::try_from(trouble.much % 41).expect("small") - 20;
                machine.clock.skew_ns = seconds * 1_000_000_000;
                machine.skewed_until = until;
                ("clock steps", "has its clock set wrong")
            }
            _ => return,
        };
        self.tally.count(count, 1);
        self.trace.say(self.now, || format!("broker {id} {what}"));
    }

    /// One way, both ways, or flapping; towards one or all others, agents too.
    fn part(&mut self, id: u64, trouble: &Trouble, until: u64) {
        self.tally.count("partitions", 1);
        let others: Vec<u64> = self
            .machines
            .iter()
            .filter(|(other, machine)| **other != id && machine.lives != 0)
            .map(|(&other, _)| other)
            .chain((1..=self.plan.hosts).map(|host| AGENTS + host))
            .collect();
        let one = others[usize::try_from(trouble.whom).expect("small") % others.len()];
        let (ways, flapping, all) = (
            trouble.much % 3,
            (trouble.much / 3).is_multiple_of(4),
            (trouble.much / 12).is_multiple_of(2),
        );
        let ways_said = ["both ways", "so that it is not heard", "so that it does not hear"];
        let ways_said = ways_said[usize::try_from(ways).expect("small")];
        let flaps = if flapping { ", flapping," } else { "" };
        let from = if all { "all".to_owned() } else { one.to_string() };
        self.trace.say(self.now, || {
            format!(
                "broker {id} is parted from {from}{flaps} {ways_said} for {} ms",
                trouble.for_ms
            )
        });
        for other in others.into_iter().filter(|&other| all || other == one) {
            if ways != 2 {
                self.network.cut((id, other), until, flapping);
            }
            if ways != 1 {
                self.network.cut((other, id), until, flapping);
            }
        }
    }

    fn part_agent(&mut self, trouble: &Trouble, until: u64) {
        self.tally.count("partitions", 1);
        let host = AGENTS + 1 + trouble.who % self.plan.hosts;
        let text = format!("the agent of host {} is cut off", host - AGENTS);
        self.trace.say(self.now, || text);
        let machines: Vec<u64> = self.machines.keys().copied().collect();
        for id in machines {
            match trouble.much % 4 {
                1 => self.network.cut((id, host), until, false),
                2 => self.network.cut((host, id), until, false),
                _ => {
                    self.network.cut((id, host), until, false);
                    self.network.cut((host, id), until, false);
                }
            }
        }
    }

    fn clog(&mut self, id: u64, trouble: &Trouble, until: u64) {
        self.tally.count("clogged links", 1);
        let other = 1 + trouble.whom % (self.plan.brokers + self.plan.hosts);
        let other =
            if self.plan.brokers < other { AGENTS + other - self.plan.brokers } else { other };
        let each_us = 1_000 * (1 + trouble.much % 200);
        self.trace.say(self.now, || format!("the links of {id} and {other} clog"));
        self.network.clog((id, other), until, each_us);
        self.network.clog((other, id), until, each_us);
    }

    fn bad_network(&mut self, trouble: &Trouble) {
        self.tally.count("bad networks", 1);
        let network = &mut self.network;
        network.loss_percent = trouble.much % 30;
        network.delay_ms = 5 + trouble.whom % 200;
        network.damage_percent = if trouble.who.is_multiple_of(3) { trouble.who % 10 } else { 0 };
        let (loss, delay) = (network.loss_percent, network.delay_ms);
        self.trace.say(self.now, || format!("{loss} % are lost, others take {delay} ms"));
    }

    fn restart_agent(&mut self, trouble: &Trouble) {
        self.tally.count("agents restarted", 1);
        let number = 1 + trouble.who % self.plan.hosts;
        let index = usize::try_from(number - 1).expect("few hosts");
        let host = &mut self.hosts[index];
        let life = u64::try_from(host.agent.boot.0).expect("few lives") + 1;
        let kept = (host.agent.brokers.clone(), host.agent.kept.clone());
        let now = host.clock.at(self.now);
        self.trace.say(self.now, || format!("the agent of host {number} starts again"));
        let agent = self.agent(number, life, kept, now);
        let host = &mut self.hosts[index];
        (host.agent, host.wake_at) = (agent, self.now);
    }

    /// Somebody sets an agent's wall clock an hour forth or long back.
    fn agent_clock(&mut self, trouble: &Trouble, until: u64) {
        self.tally.count("clock steps", 1);
        let index = usize::try_from(trouble.who % self.plan.hosts).expect("few hosts");
        // So long back that no time comes twice.
        let back = 3_600 + i64::try_from(self.plan.suffering_ms / 1_000).expect("a bounded run");
        let seconds = if trouble.much.is_multiple_of(2) { 3_600 } else { -back };
        let host = &mut self.hosts[index];
        host.clock.skew_ns = seconds * 1_000_000_000;
        host.skewed_until = until;
        let number = index + 1;
        self.trace.say(self.now, || format!("host {number}'s clock is {seconds} s wrong"));
    }

    /// What was wrong for a while is right again.
    pub(super) fn recover(&mut self) {
        let now = self.now;
        for host in self.hosts.iter_mut().filter(|host| host.skewed_until <= now) {
            host.clock.skew_ns = 0;
        }
        let mut again = Vec::new();
        for (&id, machine) in &mut self.machines {
            if machine.full_until <= now {
                machine.disk.set_full(false);
                machine.platter.set_full(false);
            }
            if machine.low_until <= now {
                machine.disk.set_low(false);
            }
            if machine.skewed_until <= now {
                machine.clock.skew_ns = 0;
            }
            if machine.restart_at.is_some_and(|at| at <= now) {
                machine.restart_at = None;
                again.push(id);
            }
        }
        for id in again {
            self.crash(id, "is started again, for its control plane had ended");
        }
    }

    /// Nothing goes wrong any more.
    pub(super) fn heal(&mut self) {
        self.trace.say(self.now, || "all is healed".to_owned());
        self.faults = false;
        self.network.heal();
        if let Some(place) = &self.shared {
            place.redis.heal();
        }
        let now = self.now;
        for host in &mut self.hosts {
            (host.skewed_until, host.clock.skew_ns) = (0, 0);
            let tick = Tick {
                wall_ns: host.clock.wall_ns(now, self.base_ns),
                boottime_ns: host.clock.boottime_ns(now),
            };
            host.agent.settle(tick, &mut self.ledger);
        }
        for machine in self.machines.values_mut() {
            machine.disk.heal();
            machine.platter.heal();
            (machine.full_until, machine.low_until, machine.slow_until) = (0, 0, 0);
            (machine.skewed_until, machine.clock.skew_ns) = (0, 0);
            machine.stopped_until = machine.stopped_until.min(now);
            machine.restart_at = machine.restart_at.map(|at| at.min(now + 1_000_000));
            if machine.broker.is_none() && machine.back_at != u64::MAX {
                machine.back_at = machine.back_at.min(now + 100_000);
            }
            machine.wake_at = machine.wake_at.min(machine.back_at.max(now));
        }
    }
}
