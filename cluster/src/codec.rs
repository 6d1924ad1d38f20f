//! What raft says and writes, as bytes: the fields of its messages, in protobuf, read by `prost`.
//!
//! The bytes are those of raft's own codec, but its parser (protobuf 2.28, which recurses without a
//! bound on unknown groups: RUSTSEC-2024-0437) never sees any that came from elsewhere.

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb;

/// An entry of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
}

/// Term, vote and commit index.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hard {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    vote: u64,
    #[prost(uint64, tag = "3")]
    commit: u64,
}

/// Who votes and who listens.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Conf {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    auto_leave: bool,
}

/// A change of the configuration.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Change {
    #[prost(int32, tag = "1")]
    transition: i32,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<Single>,
}

/// One node's part in it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Single {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    node: u64,
}

/// Up to where a snapshot goes; its data travels apart.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Meta {
    #[prost(message, optional, tag = "1")]
    conf: Option<Conf>,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(uint64, tag = "3")]
    term: u64,
}

/// A message of raft.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(uint64, tag = "3")]
    from: u64,
    #[prost(uint64, tag = "4")]
    term: u64,
    #[prost(uint64, tag = "5")]
    log_term: u64,
    #[prost(uint64, tag = "6")]
    index: u64,
    #[prost(message, repeated, tag = "7")]
    entries: Vec<Entry>,
    #[prost(uint64, tag = "8")]
    commit: u64,
    #[prost(message, optional, tag = "9")]
    meta: Option<Meta>,
    #[prost(bool, tag = "10")]
    reject: bool,
    #[prost(uint64, tag = "11")]
    reject_hint: u64,
    #[prost(bytes = "bytes", tag = "12")]
    context: Bytes,
    #[prost(uint64, tag = "13")]
    request_snapshot: u64,
    #[prost(sint64, tag = "14")]
    priority: i64,
    #[prost(uint64, tag = "15")]
    commit_term: u64,
}

/// Bytes that are none of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("these bytes are no {0} of raft")]
pub struct CodecError(&'static str);

/// An entry as it is kept.
#[must_use]
pub fn entry_bytes(entry: &eraftpb::Entry) -> Vec<u8> {
    Entry::of(entry).encode_to_vec()
}

/// A kept entry.
///
/// # Errors
/// It is none.
pub fn entry(bytes: &[u8]) -> Result<eraftpb::Entry, CodecError> {
    Entry::decode(bytes).map_err(|_| CodecError("entry"))?.into_raft()
}

/// A hard state as it is kept.
#[must_use]
pub fn hard_bytes(hard: &eraftpb::HardState) -> Vec<u8> {
    Hard { term: hard.term, vote: hard.vote, commit: hard.commit }.encode_to_vec()
}

/// A kept hard state.
///
/// # Errors
/// It is none.
pub fn hard(bytes: &[u8]) -> Result<eraftpb::HardState, CodecError> {
    let hard = Hard::decode(bytes).map_err(|_| CodecError("hard state"))?;
    let mut state = eraftpb::HardState::default();
    (state.term, state.vote, state.commit) = (hard.term, hard.vote, hard.commit);
    Ok(state)
}

/// A configuration as it is kept.
#[must_use]
pub fn conf_bytes(conf: &eraftpb::ConfState) -> Vec<u8> {
    Conf::of(conf).encode_to_vec()
}

/// A kept configuration.
///
/// # Errors
/// It is none.
pub fn conf(bytes: &[u8]) -> Result<eraftpb::ConfState, CodecError> {
    Ok(Conf::decode(bytes).map_err(|_| CodecError("configuration"))?.into_raft())
}

/// The change of configuration in an entry's data.
///
/// # Errors
/// It is none.
pub fn change(bytes: &[u8]) -> Result<eraftpb::ConfChangeV2, CodecError> {
    use eraftpb::{ConfChangeTransition as Transition, ConfChangeType as Type};
    let fail = CodecError("change of configuration");
    let change = Change::decode(bytes).map_err(|_| fail)?;
    let mut v2 = eraftpb::ConfChangeV2::default();
    v2.set_transition(match change.transition {
        0 => Transition::Auto,
        1 => Transition::Implicit,
        2 => Transition::Explicit,
        _ => return Err(fail),
    });
    let mut changes = Vec::with_capacity(change.changes.len());
    for single in change.changes {
        let mut one = eraftpb::ConfChangeSingle::default();
        one.set_change_type(match single.kind {
            0 => Type::AddNode,
            1 => Type::RemoveNode,
            2 => Type::AddLearnerNode,
            _ => return Err(fail),
        });
        one.node_id = single.node;
        changes.push(one);
    }
    v2.set_changes(changes.into());
    Ok(v2)
}

impl Entry {
    fn of(entry: &eraftpb::Entry) -> Self {
        let kind = entry.get_entry_type() as i32;
        Self { kind, term: entry.term, index: entry.index, data: entry.data.clone() }
    }

    fn into_raft(self) -> Result<eraftpb::Entry, CodecError> {
        use eraftpb::EntryType as Type;
        let mut entry = eraftpb::Entry::default();
        entry.set_entry_type(match self.kind {
            0 => Type::EntryNormal,
            2 => Type::EntryConfChangeV2,
            _ => return Err(CodecError("entry")),
        });
        (entry.term, entry.index, entry.data) = (self.term, self.index, self.data);
        Ok(entry)
    }
}

impl Conf {
    fn of(conf: &eraftpb::ConfState) -> Self {
        Self {
            voters: conf.voters.clone(),
            learners: conf.learners.clone(),
            voters_outgoing: conf.voters_outgoing.clone(),
            learners_next: conf.learners_next.clone(),
            auto_leave: conf.auto_leave,
        }
    }

    fn into_raft(self) -> eraftpb::ConfState {
        let mut conf = eraftpb::ConfState::from((self.voters, self.learners));
        (conf.voters_outgoing, conf.learners_next) = (self.voters_outgoing, self.learners_next);
        conf.auto_leave = self.auto_leave;
        conf
    }
}

impl Message {
    /// Of raft's; a snapshot's data is left out.
    #[must_use]
    pub fn of(message: &eraftpb::Message) -> Self {
        let meta = message.snapshot.as_ref().map(|snapshot| {
            let meta = snapshot.get_metadata();
            let conf = Some(Conf::of(meta.get_conf_state()));
            Meta { conf, index: meta.index, term: meta.term }
        });
        Self {
            kind: message.get_msg_type() as i32,
            to: message.to,
            from: message.from,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: message.entries.iter().map(Entry::of).collect(),
            commit: message.commit,
            meta,
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context.clone(),
            request_snapshot: message.request_snapshot,
            priority: message.priority,
            commit_term: message.commit_term,
        }
    }

    /// Raft's, with the data that its snapshot has.
    ///
    /// # Errors
    /// A part of it is nothing that brokers send each other.
    pub fn into_raft(self, data: Bytes) -> Result<eraftpb::Message, CodecError> {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(kind(self.kind).ok_or(CodecError("message"))?);
        message.to = self.to;
        message.from = self.from;
        message.term = self.term;
        message.log_term = self.log_term;
        message.index = self.index;
        let entries: Result<Vec<_>, _> = self.entries.into_iter().map(Entry::into_raft).collect();
        message.set_entries(entries?.into());
        message.commit = self.commit;
        if let Some(meta) = self.meta {
            let mut snapshot = eraftpb::Snapshot { data, ..eraftpb::Snapshot::default() };
            snapshot.mut_metadata().index = meta.index;
            snapshot.mut_metadata().term = meta.term;
            let conf = meta.conf.unwrap_or_default().into_raft();
            snapshot.mut_metadata().set_conf_state(conf);
            message.set_snapshot(snapshot);
        }
        message.reject = self.reject;
        message.reject_hint = self.reject_hint;
        message.context = self.context;
        message.request_snapshot = self.request_snapshot;
        message.priority = self.priority;
        message.commit_term = self.commit_term;
        Ok(message)
    }

    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    pub(crate) fn parties(&self) -> (u64, u64) {
        (self.from, self.to)
    }

    /// The (index, term) of the snapshot it carries.
    pub(crate) fn snapshot_at(&self) -> Option<(u64, u64)> {
        self.meta.as_ref().map(|meta| (meta.index, meta.term))
    }

    pub(crate) fn is_snapshot(&self) -> bool {
        self.kind == eraftpb::MessageType::MsgSnapshot as i32
    }
}

/// The kinds that brokers send each other. Proposals go another way, and the rest is local.
fn kind(kind: i32) -> Option<eraftpb::MessageType> {
    use eraftpb::MessageType as Kind;
    const KINDS: [Kind; 13] = [
        Kind::MsgAppend,
        Kind::MsgAppendResponse,
        Kind::MsgRequestVote,
        Kind::MsgRequestVoteResponse,
        Kind::MsgSnapshot,
        Kind::MsgHeartbeat,
        Kind::MsgHeartbeatResponse,
        Kind::MsgTransferLeader,
        Kind::MsgTimeoutNow,
        Kind::MsgReadIndex,
        Kind::MsgReadIndexResp,
        Kind::MsgRequestPreVote,
        Kind::MsgRequestPreVoteResponse,
    ];
    KINDS.into_iter().find(|&known| known as i32 == kind)
}
