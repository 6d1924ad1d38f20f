//! What raft is not given: messages that cannot come from a peer in its right mind. Raft ends the
//! process on some of them.

use super::{Node, NodeError};
use crate::codec;
use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};

impl Node {
    /// Hands a peer's message to raft, if it can be true.
    pub(super) fn step_raft(
        &mut self,
        message: codec::Message,
        image: Bytes,
        from: u64,
    ) -> Result<(), NodeError> {
        let whole = !image.is_empty();
        let message = message.into_raft(image).ok().filter(|m| (m.from, m.to) == (from, self.id()));
        let Some(message) = message.filter(|message| whole == is_snapshot(message)) else {
            self.refused += 1;
            return Ok(());
        };
        if !self.can_be_true(&message)? {
            self.refused += 1;
            return Ok(());
        }
        // Raft's own refusals (a peer that is no longer one) need nothing done.
        drop(self.raft.step(message));
        Ok(())
    }

    fn can_be_true(&self, message: &Message) -> Result<bool, NodeError> {
        let raft = &self.raft.raft;
        let last = raft.raft_log.last_index();
        if message.term < raft.term {
            // Raft looks no further.
            return Ok(true);
        }
        let entries = &message.entries;
        Ok(match message.get_msg_type() {
            // The leader says what this node confirmed to it.
            MessageType::MsgHeartbeat if last < message.commit => return Err(NodeError::LostLog),
            MessageType::MsgAppend => {
                let mut index = message.index;
                let agreed = raft.raft_log.committed;
                entries.iter().all(|entry| {
                    index = index.saturating_add(1);
                    let same = || raft.raft_log.term(index).is_ok_and(|term| term == entry.term);
                    let cut = index < raft.raft_log.first_index();
                    entry.index == index
                        && entry.term <= message.term
                        && (agreed < index || cut || same())
                })
            }
            MessageType::MsgAppendResponse => message.index <= last || message.reject,
            MessageType::MsgHeartbeatResponse => true,
            MessageType::MsgReadIndex => {
                entries.len() == 1 && entries.first().is_some_and(|e| e.data.len() == 28)
            }
            MessageType::MsgSnapshot => message.get_snapshot().get_metadata().term <= message.term,
            _ => true,
        })
    }
}

fn is_snapshot(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgSnapshot
}
