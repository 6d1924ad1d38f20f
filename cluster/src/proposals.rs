//! Commands of this life that have no outcome yet: sent again until they have one or patience ends.
//!
//! An outcome is known when the command is applied *here*, or is in a state that was taken over: every
//! node applies everything, so nobody has to be asked. Sending again is harmless, a command counts
//! once. When patience ends the outcome is [`Outcome::Unknown`]: it may have been applied, or be
//! applied later.

use crate::command::{self, COMMAND_BYTES_MAX, CommandId, Envelope, IN_FLIGHT_MAX, Refusal};
use crate::kinds::Command;
use crate::state::State;
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What became of a proposal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was applied; what that is depends on the kind.
    Applied(u64),
    /// It changed nothing, for this reason.
    Refused(Refusal),
    /// Nobody knows.
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Proposals {
    broker: u64,
    life: u64,
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    command: Command,
    again: Instant,
    until: Instant,
}

impl Proposals {
    pub(crate) fn new(broker: u64, life: u64) -> Self {
        Self { broker, life, next: 1, waiting: BTreeMap::new() }
    }

    /// Takes a command in; `None` when too many wait, or it is too large.
    pub(crate) fn add(
        &mut self,
        now: Instant,
        command: Command,
        patience: Duration,
    ) -> Option<CommandId> {
        // Those that end unknown are settled too, but the state hears so only with the next command:
        // numbers, not only those waiting, stay within the window.
        let oldest = self.waiting.first_key_value().map_or(self.next, |(&number, _)| number);
        if oldest + IN_FLIGHT_MAX <= self.next || COMMAND_BYTES_MAX < command.body.len() {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, Waiting { command, again: now, until: now + patience });
        Some(self.id(number))
    }

    /// The next one to be sent, again or for the first time.
    pub(crate) fn due(&mut self, now: Instant, pause: Duration) -> Option<Bytes> {
        let settled = self.waiting.first_key_value().map_or(self.next, |(&number, _)| number);
        let (&number, waiting) =
            self.waiting.iter_mut().find(|(_, waiting)| waiting.again <= now)?;
        waiting.again = now + pause;
        let Command { kind, ref body } = waiting.command;
        let (broker, life, body) = (self.broker, self.life, body.clone());
        let envelope = Envelope { broker, life, number, settled, kind, body };
        Some(envelope.encode_to_vec().into())
    }

    /// There is another leader: it is to hear all.
    pub(crate) fn all_again(&mut self, now: Instant) {
        self.waiting.values_mut().for_each(|waiting| waiting.again = now);
    }

    /// It was applied here; whether somebody waited for it.
    pub(crate) fn settle(&mut self, id: CommandId) -> bool {
        self.is_own(id) && self.waiting.remove(&id.number).is_some()
    }

    /// Those that a state which was taken over knows about.
    pub(crate) fn settle_by(&mut self, state: &State) -> Vec<(CommandId, Outcome)> {
        let waiting: Vec<u64> = self.waiting.keys().copied().collect();
        let of = |number| {
            let id = self.id(number);
            Some((id, Outcome::of(command::outcome(state, id)?)))
        };
        let settled: Vec<(CommandId, Outcome)> = waiting.into_iter().filter_map(of).collect();
        for (id, _) in &settled {
            self.waiting.remove(&id.number);
        }
        settled
    }

    /// One whose patience is over.
    pub(crate) fn give_up(&mut self, now: Instant) -> Option<CommandId> {
        let (&number, _) = self.waiting.iter().find(|(_, waiting)| waiting.until <= now)?;
        self.waiting.remove(&number);
        Some(self.id(number))
    }

    pub(crate) fn waits(&self, id: CommandId) -> bool {
        self.is_own(id) && self.waiting.contains_key(&id.number)
    }

    fn is_own(&self, id: CommandId) -> bool {
        (id.broker, id.life) == (self.broker, self.life)
    }

    fn id(&self, number: u64) -> CommandId {
        CommandId { broker: self.broker, life: self.life, number }
    }
}

impl Outcome {
    pub(crate) fn of(outcome: Result<u64, Refusal>) -> Self {
        match outcome {
            Ok(value) => Self::Applied(value),
            Err(refusal) => Self::Refused(refusal),
        }
    }
}
