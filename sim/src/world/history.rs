//! What people asked the control plane, and were told: registers that are written by proposals and read by
//! ReadIndex, at any broker, at any time. In the end some order has to explain it.

use super::World;
use crate::dice::Die;
use crate::linear::{Fault, Operation, What, check};
use crate::machine::Wish;
use std::sync::mpsc::{Receiver, sync_channel};
use strobe_broker::cluster::{Asked, Look};
use strobe_cluster::State;
use strobe_cluster::kinds::hosts;
use strobe_wire::ids::HostId;

/// All of it.
pub(crate) struct History {
    die: Die,
    operations: Vec<Operation>,
    /// Those that were refused did not happen, whatever they were.
    refused: Vec<usize>,
}

impl History {
    pub(super) fn new(seed: u64) -> Self {
        Self { die: Die::new(seed, 5), operations: Vec::new(), refused: Vec::new() }
    }
}

impl World<'_> {
    /// Now and then somebody writes or reads.
    pub(super) fn go_on_with_history(&mut self) {
        if !self.faults || self.plan.brokers == 1 || !self.history.die.chance(2) {
            return;
        }
        let die = &mut self.history.die;
        let (who, key, writes) = (die.below(1 << 20), die.below(KEYS), die.chance(2));
        let number = self.history.operations.len();
        let value = number as u64 + 1;
        let (asked, wish) = if writes {
            let command = hosts::Change::put(host(key).0, &value.to_string(), "", 1);
            (Asked::Propose(command), Wish::Put(number))
        } else {
            let (tell, seen) = sync_channel(1);
            let look = Look(Box::new(move |state| tell.try_send(read(state, key)).unwrap_or(())));
            (Asked::Read(Box::new(Asked::Look(look))), Wish::Seen(number, seen))
        };
        if self.ask_at(who, asked, wish) {
            let what = if writes { What::Write(value) } else { What::Read(0) };
            let called = self.now;
            self.history.operations.push(Operation { key, called, answered: None, what });
        }
    }

    /// A write has come to something.
    pub(super) fn hear_of_put(&mut self, number: usize, applied: bool) {
        if applied {
            self.tally.count("writes answered", 1);
            self.history.operations[number].answered = Some(self.now);
        } else {
            self.history.refused.push(number);
        }
    }

    /// A read was answered, or is not going to be.
    pub(super) fn hear_of_look(&mut self, number: usize, seen: &Receiver<u64>) {
        if let Ok(value) = seen.try_recv() {
            self.tally.count("reads answered", 1);
            let operation = &mut self.history.operations[number];
            (operation.answered, operation.what) = (Some(self.now), What::Read(value));
        }
    }

    /// An order explains all of it, and the state at the end.
    pub(super) fn judge_history(&mut self) {
        let Some(state) = self.newest() else { return };
        let last = |key| Operation {
            key,
            called: self.now,
            answered: Some(self.now),
            what: What::Read(read(state, key)),
        };
        let last: Vec<Operation> = (0..KEYS).map(last).collect();
        let refused = |number: &usize| self.history.refused.contains(number);
        let happened = (0..self.history.operations.len()).filter(|number| !refused(number));
        let mut all: Vec<Operation> = happened.map(|at| self.history.operations[at]).collect();
        all.extend(last);
        match check(&all, STEPS_MAX) {
            Ok(()) => {}
            Err(Fault::Undecided { .. }) => self.tally.count("histories undecided", 1),
            Err(fault) => panic!("the control plane's history is not linearizable: {fault:?}"),
        }
    }
}

fn read(state: &State, key: u64) -> u64 {
    let known = hosts::host(state, host(key));
    known.map_or(0, |host| host.instance.parse().expect("only numbers are written"))
}

fn host(key: u64) -> HostId {
    HostId(0xfeed_0000 + u128::from(key))
}

const KEYS: u64 = 3;
const STEPS_MAX: usize = 200_000;
