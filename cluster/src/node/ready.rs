//! What raft has ready: sent, written, applied, sent.

use super::{Event, Node, NodeError};
use crate::codec;
use crate::command;
use crate::peer::Body;
use crate::plant::Plant;
use crate::proposals::Outcome;
use crate::state::State;
use crate::store::{Batch, Place, place_of};
use raft::StateRole;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};
use std::time::Instant;

impl Node {
    /// Takes the next Ready; what a leader may send before it is on its own disk goes out.
    pub(super) fn begin(&mut self, now: Instant) {
        let mut ready = self.raft.ready();
        self.send_all(now, ready.take_messages());
        if self.plants.has(Plant::SendBeforePersist) {
            self.send_all(now, ready.take_persisted_messages());
        }
        self.ready = Some(ready);
    }

    /// Writes the Ready that is under way, if any, and does what had to wait for it.
    pub(super) fn settle(&mut self, now: Instant) -> Result<(), NodeError> {
        if self.failed {
            return Err(NodeError::Over);
        }
        let Some(mut ready) = self.ready.take() else { return Ok(()) };
        self.failed = true;
        let mut batch = Batch {
            hard: ready.hs().cloned(),
            entries: ready.take_entries(),
            sync: ready.must_sync(),
            ..Batch::default()
        };
        if !ready.snapshot().is_empty() {
            let meta = ready.snapshot().get_metadata();
            let place = Place { index: meta.index, term: meta.term };
            let state = State::of_image(&ready.snapshot().data).map_err(crate::StoreError::from)?;
            batch.conf = Some(meta.get_conf_state().clone());
            batch.snapshot = Some((place, state));
        }
        let taken_over = batch.snapshot.as_ref().map(|(place, _)| *place);
        let committed = ready.take_committed_entries();
        let events = self.apply(&committed, &mut batch)?;
        let applied = batch.applied;
        if batch.hard.is_some()
            || !batch.entries.is_empty()
            || applied.is_some()
            || taken_over.is_some()
        {
            self.raft.mut_store().commit(batch)?;
        }
        for read in ready.take_read_states() {
            self.on_read_state(&read);
        }
        let persisted = ready.take_persisted_messages();
        let number = ready.number();
        self.raft.advance_append_async(ready);
        self.raft.on_persist_ready(number);
        if let Some(applied) = applied.or(taken_over) {
            self.raft.advance_apply_to(applied.index);
        }
        self.failed = false;
        self.send_all(now, persisted);
        for event in events {
            match event {
                Event::Outcome(id, outcome) => self.outcome(id, outcome),
                event => self.event(event),
            }
        }
        if taken_over.is_some() {
            let settled = self.proposals.settle_by(self.raft.store().state());
            settled.into_iter().for_each(|(id, outcome)| self.outcome(id, outcome));
        }
        if taken_over.is_some() || applied.is_some() {
            self.event(Event::Changed);
            self.answer_reads();
        }
        self.after(now);
        Ok(())
    }

    /// Takes agreed entries into the state; they are on disk since an earlier Ready.
    fn apply(&mut self, entries: &[Entry], batch: &mut Batch) -> Result<Vec<Event>, NodeError> {
        let mut events = Vec::new();
        for entry in entries {
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {}
                EntryType::EntryNormal => {
                    let state = self.raft.mut_store().state_mut();
                    let Some(applied) = command::apply(state, &entry.data)? else { continue };
                    let outcome = Outcome::of(applied.outcome);
                    if applied.fresh {
                        events.push(Event::Taken(entry.index, applied.id, outcome));
                    }
                    if self.proposals.settle(applied.id) {
                        events.push(Event::Outcome(applied.id, outcome));
                    }
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    let change =
                        codec::change(&entry.data).unwrap_or_else(|_| ConfChangeV2::default());
                    // What does not fit changes nothing, on any node.
                    if let Ok(conf) = self.raft.apply_conf_change(&change) {
                        batch.conf = Some(conf);
                        self.step_down_if_removed();
                    }
                }
            }
        }
        if let Some(last) = entries.last() {
            batch.applied = Some(place_of(last));
            let cut = last.index.saturating_sub(self.config.log_keep);
            // Not with every entry: a cut touches more pages than an append.
            let store_cut = self.raft.store().cut();
            batch.cut = (store_cut + self.config.log_keep / 2 < cut).then_some(cut);
        }
        Ok(events)
    }

    /// Raft leaves a leader that was removed in its place, and ends the process when a peer answers it.
    fn step_down_if_removed(&mut self) {
        let raft = &mut self.raft.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
    }

    fn on_read_state(&mut self, read: &raft::ReadState) {
        let number = |from: usize| {
            let bytes = read.request_ctx.get(from..from + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let own = (Some(self.id()), Some(self.raft.store().life()));
        let Some(ticket) = number(16).filter(|_| (number(0), number(8)) == own) else { return };
        if let Some(waiting) = self.reads.get_mut(&ticket) {
            waiting.index = Some(read.index);
        }
    }

    fn send_all(&mut self, now: Instant, messages: Vec<Message>) {
        for message in messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.begin_snapshot(now, message);
            } else {
                self.send(message.to, Body::Raft(codec::Message::of(&message)));
            }
        }
    }
}
