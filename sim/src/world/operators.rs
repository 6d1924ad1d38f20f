//! Who works with the cluster: it is made, it grows and shrinks, and things are agreed on.

use super::{DISKS, HOSTS, World};
use crate::keys::BROKERS_MAX;
use crate::machine::Wish;
use crate::network::broker_address;
use crate::plan::Trouble;
use strobe_broker::cluster::{Answer, Asked, Canary};
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::kinds::versions::Version;
use strobe_cluster::kinds::{Command, hosts, rollouts, shards, versions};
use strobe_cluster::{Outcome, Role, State};
use strobe_wire::shard::Shard;

impl World<'_> {
    /// One broker, or a cluster that grew from one.
    pub(super) fn grow(&mut self) {
        self.network.loss_percent = 0;
        let clustered = 1 < self.plan.brokers;
        if clustered {
            self.make_store(1);
        }
        self.start(1);
        for id in 2..=self.plan.brokers {
            let until = self.now + 20_000_000;
            while !self.machines[&id].joined {
                assert!(self.now < until, "broker {id} cannot join in peace");
                self.want_another();
                self.go_until(self.now + 1_000_000);
            }
        }
        if clustered {
            self.go_until(self.now + 2_000_000);
        }
    }

    /// Asks whoever is there for a place for one more broker.
    pub(super) fn want_another(&mut self) {
        let next = (2..=u64::from(BROKERS_MAX)).find(|id| !self.machines[id].joined);
        let Some(next) = next else { return };
        // Ids are given out in turn, so the next machine is the next broker.
        let command = members::Change::add(&broker_address(next).to_string(), DISKS + next);
        self.ask(None, Wish::Join(next), command);
    }

    /// Who was added and did not hear of it asks again.
    pub(super) fn ask_again(&mut self) {
        let Some(state) = self.newest() else { return };
        let known = members::members(state);
        if known.iter().any(|m| m.stage() == Stage::Learner && !self.machines[&m.id].joined) {
            self.want_another();
        }
    }

    /// An operator drains a broker, while enough are left to go on.
    pub(super) fn drain(&mut self, trouble: &Trouble) {
        let Some(state) = self.newest() else { return };
        let voters = members::members(state).into_iter().filter(|m| m.stage() == Stage::Voter);
        let voters: Vec<u64> = voters.map(|member| member.id).collect();
        if 3 < voters.len() {
            let id = voters[usize::try_from(trouble.who).expect("small") % voters.len()];
            self.trace.say(self.now, || format!("broker {id} is drained"));
            self.ask(None, Wish::Other, members::Change::drain(id));
            self.tally.count("drains", 1);
        }
    }

    pub(super) fn configure(&mut self, trouble: &Trouble) {
        let from = self.newest().and_then(versions::in_force).map_or(0, |version| version.number);
        let number = trouble.number;
        // Sometimes it cannot be run, sometimes it makes the host connect anew.
        let of_brokers = self.is_plain() && trouble.who.is_multiple_of(3);
        let text = match trouble.much % 4 {
            _ if of_brokers => {
                let (head, samples) = (1 + number % 50, 1_000 + number);
                format!("# {number}\n[broker]\nhead_max = \"{head}MiB\"\nquery_samples = {samples}")
            }
            0 => format!("# {number}\n[agent]\ncollectors.enable = [\"nothing{number}\"]"),
            1 => format!("# {number}\n[agent]\nscores = false\ninterval = \"250ms\""),
            _ => format!("[agent]\nlabels = \"v=n{number}\"\nscores = true"),
        };
        let host = HOSTS[usize::try_from(trouble.whom % self.plan.hosts).expect("few")];
        let bad = trouble.much.is_multiple_of(4);
        let brokers: Vec<u64> = self.nodes().map(strobe_cluster::Node::id).collect();
        let broker = usize::try_from(trouble.whom).expect("small").checked_rem(brokers.len());
        let broker = broker.map(|at| brokers[at]).filter(|_| of_brokers);
        if let Some(machine) = broker.and_then(|id| self.machines.get_mut(&id)).filter(|_| bad) {
            // It can run that, and does not run well.
            machine.disk.set_full(true);
            machine.full_until = self.now + 9_000_000;
        }
        let canary = broker.map_or(Canary::Host(host), Canary::Broker);
        // What nobody could run is not put in force by anybody who is asked to look at it first.
        let command = if bad || !trouble.much.is_multiple_of(3) {
            self.trace.say(self.now, || format!("{canary} shall try {text:?}"));
            rollouts::Change::begin(Version {
                number: from,
                text: text.clone(),
                canary: canary.to_string(),
                ..Version::default()
            })
        } else {
            self.trace.say(self.now, || format!("{text:?} shall be in force"));
            versions::Change::put(from, "somebody", "why not", &text, 1)
        };
        self.ask(Some(trouble.who), Wish::Version(from, text), command);
    }

    pub(super) fn register(&mut self, trouble: &Trouble) {
        let host = 1_000 + trouble.number as u128;
        let command = hosts::Change::put(host, "a host", "tags", 1);
        self.ask(Some(trouble.who), Wish::Register(host), command);
    }

    /// The shard of one of the hosts goes to another broker, as far as the operator knows them.
    pub(super) fn move_shard(&mut self, trouble: &Trouble) {
        let Some(state) = self.newest() else { return };
        let host = HOSTS[usize::try_from(trouble.whom % self.plan.hosts).expect("few")];
        let owned = shards::owned(state, Shard::of(host));
        let others = members::members(state).into_iter();
        let others: Vec<u64> = others
            .filter(|member| member.stage() == Stage::Voter && member.id != owned.owner)
            .map(|member| member.id)
            .collect();
        if others.is_empty() {
            return;
        }
        let to = others[usize::try_from(trouble.much).expect("small") % others.len()];
        let shard = Shard::of(host).0;
        let command = shards::Change::moves(&[(shard, owned.epoch, to)]);
        self.trace.say(self.now, || format!("host {}'s shard shall move to broker {to}", host.0));
        self.ask(Some(trouble.who), Wish::Other, command);
        self.tally.count("moves", 1);
    }

    pub(super) fn transfer(&mut self, trouble: &Trouble) {
        let to = 1 + trouble.whom % self.plan.brokers;
        let Some(id) = self.any_broker(trouble.who) else { return };
        if let Some(seat) = self.seat(id) {
            drop(seat.ask(Asked::Transfer(to)));
            self.tally.count("transfers", 1);
        }
    }

    /// Asks a broker, or the one that leads.
    fn ask(&mut self, who: Option<u64>, wish: Wish, command: Command) {
        let id = match who {
            Some(who) => self.any_broker(who),
            None => self.leader().or_else(|| self.any_broker(0)),
        };
        if let Some(id) = id {
            self.ask_broker(id, Asked::Propose(command), wish);
        }
    }

    /// Asks one that runs; false: it does not listen.
    pub(super) fn ask_at(&mut self, who: u64, asked: Asked, wish: Wish) -> bool {
        self.any_broker(who).is_some_and(|id| self.ask_broker(id, asked, wish))
    }

    fn ask_broker(&mut self, id: u64, asked: Asked, wish: Wish) -> bool {
        let answer = self.seat(id).and_then(|seat| seat.ask(asked));
        let (Some(answer), Some(machine)) = (answer, self.machines.get_mut(&id)) else {
            return false;
        };
        machine.asked.push_back((answer, wish));
        machine.wake_at = machine.wake_at.min(self.now);
        true
    }

    /// What came of what was asked here.
    pub(super) fn hear_answers(&mut self, id: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let (mut done, mut seen_now) = (Vec::new(), Vec::new());
        for (answer, wish) in std::mem::take(&mut machine.asked) {
            match answer.try_recv() {
                Ok(answer) => done.push((answer, wish)),
                Err(std::sync::mpsc::TryRecvError::Empty) => {
                    machine.asked.push_back((answer, wish));
                }
                Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                    if let Wish::Seen(number, seen) = wish {
                        seen_now.push((number, seen));
                    }
                }
            }
        }
        for (number, seen) in seen_now {
            self.hear_of_look(number, &seen);
        }
        for (answer, wish) in done {
            if let (Wish::Put(number), Answer::Outcome(outcome)) = (&wish, &answer)
                && *outcome != Outcome::Unknown
            {
                self.hear_of_put(*number, matches!(outcome, Outcome::Applied(_)));
            }
            let Answer::Outcome(Outcome::Applied(value)) = answer else {
                self.tally.count("wishes refused or unknown", 1);
                continue;
            };
            self.tally.count("wishes granted", 1);
            match wish {
                Wish::Join(number) if !self.machines[&number].joined => {
                    assert_eq!(value, number, "ids are given out in turn");
                    self.make_store(number);
                    self.tally.count("joins", 1);
                    self.start(number);
                }
                Wish::Version(from, text) => {
                    assert!(from < value, "a version of another number");
                    let other = self.agreed.versions.insert(value, text);
                    assert_eq!(other, None, "version {value} was acknowledged twice");
                }
                Wish::Register(host) => self.agreed.hosts.push(host),
                Wish::Join(_) | Wish::Put(_) | Wish::Seen(..) | Wish::Other => {}
            }
        }
    }

    /// Who leads in the latest term.
    pub(super) fn leader(&self) -> Option<u64> {
        let leads = self.nodes().filter(|node| node.status().role == Role::Leader);
        leads.max_by_key(|node| node.status().term).map(strobe_cluster::Node::id)
    }

    /// The state of whoever leads, or knows most.
    pub(super) fn newest(&self) -> Option<&State> {
        let rank = |node: &&strobe_cluster::Node| {
            let status = node.status();
            (status.role == Role::Leader, status.term, status.applied)
        };
        self.nodes().max_by_key(rank).map(strobe_cluster::Node::state)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &strobe_cluster::Node> {
        let brokers = self.machines.values().filter_map(|machine| machine.broker.as_ref());
        let seats = brokers.filter_map(|broker| broker.seat.as_ref());
        seats.filter_map(|seat| seat.plane.as_ref()).map(strobe_broker::cluster::Plane::node)
    }

    /// One that runs.
    pub(super) fn any_broker(&self, who: u64) -> Option<u64> {
        let up = self.machines.iter().filter(|(_, machine)| machine.broker.is_some());
        let ids: Vec<u64> = up.map(|(&id, _)| id).collect();
        let index = usize::try_from(who).expect("small").checked_rem(ids.len())?;
        Some(ids[index])
    }

    fn seat(&self, id: u64) -> Option<&crate::broker::Seat> {
        self.machines.get(&id)?.broker.as_ref()?.seat.as_ref()
    }
}
