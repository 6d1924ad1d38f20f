//! What the owner asked for: proposals and reads, asked again until they are answered or late.

use super::{Event, Node, Ticket};
use crate::command::{COMMAND_BYTES_MAX, CommandId, Envelope as Wrapped, Refusal};
use crate::peer::Body;
use crate::plant::Plant;
use crate::proposals::Outcome;
use bytes::Bytes;
use prost::Message as _;
use std::time::Instant;

/// A read that waits.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) again: Instant,
    pub(super) until: Instant,
    pub(super) attempt: u32,
    /// The index that has to be applied.
    pub(super) index: Option<u64>,
}

impl Node {
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(id) = self.proposals.give_up(now) {
            let guess = self.plants.has(Plant::GuessOutcome);
            let refused = Outcome::Refused(Refusal::Stale);
            self.outcome(id, if guess { refused } else { Outcome::Unknown });
        }
        let over = |read: &Reading| read.until <= now;
        let late: Vec<u64> =
            self.reads.iter().filter(|(_, read)| over(read)).map(|(&t, _)| t).collect();
        for ticket in late {
            self.reads.remove(&ticket);
            self.event(Event::Read(Ticket(ticket), false));
        }
    }

    pub(super) fn outcome(&mut self, id: CommandId, outcome: Outcome) {
        if self.controlled == Some(id) {
            self.controlled = None;
        } else {
            self.event(Event::Outcome(id, outcome));
        }
    }

    pub(super) fn send_proposals(&mut self, now: Instant) {
        let leader = self.raft.raft.leader_id;
        if leader == raft::INVALID_ID {
            return;
        }
        while let Some(command) = self.proposals.due(now, self.config.election_min) {
            if self.is_leader() {
                self.append(&command);
            } else {
                self.send(leader, Body::Propose(command));
            }
        }
    }

    /// A refusal is not told: whoever wants it sends it again.
    pub(super) fn append(&mut self, command: &Bytes) {
        let appended = self.raft.propose(Vec::new(), command.to_vec()).is_ok();
        if self.plants.has(Plant::AckEarly)
            && appended
            && let Ok(wrapped) = Wrapped::decode(command.clone())
        {
            let Wrapped { broker, life, number, .. } = wrapped;
            let id = CommandId { broker, life, number };
            if self.proposals.settle(id) {
                self.outcome(id, Outcome::Applied(0));
            }
        }
    }

    pub(super) fn on_propose(&mut self, from: u64, command: &Bytes) {
        let own = Wrapped::decode(command.clone()).is_ok_and(|wrapped| wrapped.broker == from);
        if own && self.is_leader() && command.len() <= COMMAND_BYTES_MAX + HEAD_BYTES {
            self.append(command);
        } else {
            self.refused += 1;
        }
    }

    pub(super) fn ask_reads(&mut self, now: Instant) {
        let (id, life, pause) = (self.id(), self.raft.store().life(), self.config.election_min);
        for (&ticket, read) in &mut self.reads {
            if read.index.is_none() && read.again <= now {
                read.again = now + pause;
                read.attempt += 1;
                let mut context = Vec::with_capacity(28);
                context.extend_from_slice(&id.to_le_bytes());
                context.extend_from_slice(&life.to_le_bytes());
                context.extend_from_slice(&ticket.to_le_bytes());
                context.extend_from_slice(&read.attempt.to_le_bytes());
                self.raft.read_index(context);
            }
        }
        self.answer_reads();
    }

    pub(super) fn answer_reads(&mut self) {
        let applied = self.raft.store().disk.applied.index;
        let done = |read: &Reading| read.index.is_some_and(|index| index <= applied);
        let done: Vec<u64> =
            self.reads.iter().filter(|(_, read)| done(read)).map(|(&t, _)| t).collect();
        for ticket in done {
            self.reads.remove(&ticket);
            self.event(Event::Read(Ticket(ticket), true));
        }
    }
}

/// What an envelope adds to a command.
const HEAD_BYTES: usize = 64;
