//! One broker's part in the cluster, as a state machine.
//!
//! ```text
//!   step, propose, read, on_timeout ... --> raft --> poll: 1. what a leader may send at once
//!                                                          2. one transaction of the store
//!                                                          3. what had to wait for it, events
//! ```
//!
//! The owner recites: hand in what came, `on_timeout` when [`Node::timeout`] is due, then `poll` until it
//! gives nothing. `poll` is where the disk is written; after an error from it the node is over, for
//! nobody knows what is on the disk: open the store again.
//!
//! **Bounds.** Proposals and reads that wait: refused beyond. Messages: raft's own bounds, and the owner
//! may drop any (it then says [`Node::unreachable`]). Snapshots: one piece a window and peer.

mod guard;
mod lead;
mod ready;
mod requests;
mod snapshots;

use crate::command::CommandId;
use crate::config::Config;
use crate::kinds::Command;
use crate::kinds::members;
use crate::peer::{Body, Envelope, Gone};
use crate::plant::{Plant, Plants};
use crate::proposals::{Outcome, Proposals};
use crate::state::State;
use crate::store::{Store, StoreError};
use crate::transfer::{Receiving, Sending};
use bytes::Bytes;
use prost::Message as _;
use raft::{RawNode, Ready, SnapshotStatus, StateRole};
use requests::Reading;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Instant;

/// The state machine.
pub struct Node {
    raft: RawNode<Store>,
    config: Config,
    plants: Plants,
    proposals: Proposals,
    reads: BTreeMap<u64, Reading>,
    read_next: u64,
    /// A Ready whose messages are out and whose transaction is not done.
    ready: Option<Ready>,
    outputs: VecDeque<Output>,
    sending: BTreeMap<u64, Sending>,
    receiving: Option<Receiving>,
    heard: BTreeMap<u64, Instant>,
    tick_at: Instant,
    seen: (Role, u64, u64),
    turns: u64,
    /// What the controller waits for, and when it may move shards again.
    controlled: Option<CommandId>,
    moves_at: Instant,
    /// The placement in which every shard was found where it belongs.
    balanced: Option<[u128; 2]>,
    refused: u64,
    failed: bool,
}

/// What comes out.
#[derive(Debug)]
pub enum Output {
    /// Bytes for a peer, best effort.
    Send {
        /// Which.
        to: u64,
        /// One message.
        bytes: Vec<u8>,
    },
    /// Something that concerns the owner.
    Event(Event),
}

/// What the owner is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A proposal has its outcome.
    Outcome(CommandId, Outcome),
    /// The state here is now as new as the read asked; false: nobody answered in time.
    Read(Ticket, bool),
    /// Who leads, as far as this node knows, and in which term.
    Leader(Option<u64>, u64),
    /// A command, of whatever broker, was taken into the state here, at this index of the log, with
    /// this outcome. After a crash the last ones are taken again.
    Taken(u64, CommandId, Outcome),
    /// The state is another one.
    Changed,
    /// This peer says that this broker has left the cluster, which may not be in its own log.
    Gone(u64),
}

/// Names a read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(u64);

/// What part a node plays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Follows, or listens as a learner.
    Follower,
    /// Wants to lead.
    Candidate,
    /// Leads.
    Leader,
}

/// How a node stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Its part.
    pub role: Role,
    /// In which term.
    pub term: u64,
    /// Who leads, if known.
    pub leader: Option<u64>,
    /// Agreed up to here.
    pub committed: u64,
    /// Taken into the state up to here.
    pub applied: u64,
    /// Who votes.
    pub voters: Vec<u64>,
    /// Who learns.
    pub learners: Vec<u64>,
    /// Messages that were refused.
    pub refused: u64,
}

/// Why a node is over, or does not begin.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Raft cannot work with what it is given.
    #[error("the cluster's state or settings do not fit: {0}")]
    Raft(String),
    /// The log has a command of a newer version.
    #[error(transparent)]
    Unknown(#[from] crate::command::UnknownKind),
    /// It forgot what it had promised to keep.
    #[error("this broker lost entries that it had confirmed: remove it and add it with a new disk")]
    LostLog,
    /// It was over before.
    #[error("the node ended with an error before")]
    Over,
}

impl Node {
    /// Begins a life on `store`.
    ///
    /// # Errors
    /// The settings do not fit.
    pub fn new(mut store: Store, config: Config, now: Instant) -> Result<Self, NodeError> {
        let plants = Plants::new(config.plant);
        store.state_mut().plants = plants;
        let (id, life) = (store.identity().broker, store.life());
        let raft = config.raft(id, store.disk.applied.index);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft =
            RawNode::new(&raft, store, &logger).map_err(|why| NodeError::Raft(why.to_string()))?;
        let mut node = Self {
            raft,
            plants,
            proposals: Proposals::new(id, life),
            reads: BTreeMap::new(),
            read_next: 1,
            ready: None,
            outputs: VecDeque::new(),
            sending: BTreeMap::new(),
            receiving: None,
            heard: BTreeMap::new(),
            tick_at: now + config.tick(),
            seen: (Role::Follower, 0, 0),
            turns: 0,
            controlled: None,
            moves_at: now,
            balanced: None,
            refused: 0,
            failed: false,
            config,
        };
        node.after(now);
        Ok(node)
    }

    /// A peer's bytes, from whom its certificate says it is.
    ///
    /// # Errors
    /// The node is over.
    pub fn step(&mut self, now: Instant, from: u64, bytes: &[u8]) -> Result<(), NodeError> {
        self.settle(now)?;
        let identity = self.raft.store().identity();
        let envelope = Envelope::decode(bytes).ok();
        let envelope = envelope.filter(|envelope| envelope.is_for(identity));
        let Some(Envelope { body: Some(body), .. }) = envelope
            .filter(|envelope| envelope.from == from && self.is_known_disk(from, envelope.disk))
        else {
            self.refused += 1;
            return Ok(());
        };
        self.heard.insert(from, now);
        if matches!(body, Body::Raft(_)) && self.has_let_go(from) {
            self.send(from, Body::Gone(Gone {}));
        }
        match body {
            Body::Gone(_) => self.event(Event::Gone(from)),
            Body::Raft(message) => self.step_raft(message, Bytes::new(), from)?,
            Body::Propose(command) => self.on_propose(from, &command),
            Body::Chunk(chunk) => self.on_chunk(from, chunk)?,
            Body::Got(got) => self.on_got(now, from, got),
        }
        self.after(now);
        Ok(())
    }

    /// Wants a command applied; [`Event::Outcome`] follows. `None`: too much waits already.
    ///
    /// # Errors
    /// The node is over.
    pub fn propose(
        &mut self,
        now: Instant,
        command: Command,
    ) -> Result<Option<CommandId>, NodeError> {
        self.settle(now)?;
        let id = self.proposals.add(now, command, self.config.patience);
        self.send_proposals(now);
        self.after(now);
        Ok(id)
    }

    /// Wants the state here to hold all that is agreed now; [`Event::Read`] follows. `None`: too many
    /// wait already.
    ///
    /// # Errors
    /// The node is over.
    pub fn read(&mut self, now: Instant) -> Result<Option<Ticket>, NodeError> {
        self.settle(now)?;
        if READS_MAX <= self.reads.len() {
            return Ok(None);
        }
        let ticket = self.read_next;
        self.read_next += 1;
        let until = now + self.config.patience;
        let index = self.plants.has(Plant::ReadStale).then_some(0);
        self.reads.insert(ticket, Reading { again: now, until, attempt: 0, index });
        self.ask_reads(now);
        self.after(now);
        Ok(Some(Ticket(ticket)))
    }

    /// Hands the lead to `to`, if this node has it.
    ///
    /// # Errors
    /// The node is over.
    pub fn transfer_leader(&mut self, now: Instant, to: u64) -> Result<(), NodeError> {
        self.settle(now)?;
        self.raft.transfer_leader(to);
        self.after(now);
        Ok(())
    }

    /// What was sent to `peer` may not have reached it.
    ///
    /// # Errors
    /// The node is over.
    pub fn unreachable(&mut self, now: Instant, peer: u64) -> Result<(), NodeError> {
        self.settle(now)?;
        self.raft.report_unreachable(peer);
        self.after(now);
        Ok(())
    }

    /// When [`Self::on_timeout`] wants to be called at the latest.
    #[must_use]
    pub fn timeout(&self) -> Instant {
        self.tick_at
    }

    /// Does what is due.
    ///
    /// # Errors
    /// The node is over.
    pub fn on_timeout(&mut self, now: Instant) -> Result<(), NodeError> {
        self.settle(now)?;
        let mut ticks = 0;
        while self.tick_at <= now {
            self.tick_at += self.config.tick();
            ticks += 1;
            // Who was stopped for long does not make up for it: it would think all others silent.
            if ticks <= TICKS_MAX {
                self.raft.tick();
                self.draw_timeout();
            } else {
                self.tick_at = now + self.config.tick();
            }
        }
        self.expire(now);
        self.send_proposals(now);
        self.ask_reads(now);
        self.tend_snapshots(now);
        self.control(now);
        self.after(now);
        Ok(())
    }

    /// What comes out next; writes the disk where that has to come first.
    ///
    /// # Errors
    /// The node is over.
    pub fn poll(&mut self, now: Instant) -> Result<Option<Output>, NodeError> {
        loop {
            if self.failed {
                return Err(NodeError::Over);
            }
            if let Some(output) = self.outputs.pop_front() {
                return Ok(Some(output));
            }
            if self.ready.is_some() {
                self.settle(now)?;
            } else if self.raft.has_ready() {
                self.begin(now);
            } else {
                return Ok(None);
            }
        }
    }

    /// The agreed state, as far as it is applied here.
    #[must_use]
    pub fn state(&self) -> &State {
        self.raft.store().state()
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.raft.raft.id
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let disk = &self.raft.store().disk;
        Status {
            role: role(self.raft.raft.state),
            term: self.raft.raft.term,
            leader: Some(self.raft.raft.leader_id).filter(|&id| id != raft::INVALID_ID),
            committed: self.raft.raft.raft_log.committed,
            applied: disk.applied.index,
            voters: disk.conf.voters.clone(),
            learners: disk.conf.learners.clone(),
            refused: self.refused,
        }
    }

    /// Term and index of an entry that is still in the log, to compare nodes.
    #[must_use]
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.raft.store().term_at(index)
    }

    fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    /// A broker that speaks from another disk than the one it was added with is not it. Who is not known
    /// here may be newer than this node's state.
    fn is_known_disk(&self, from: u64, disk: u64) -> bool {
        let known = members::member(self.state(), from);
        known.is_none_or(|member| member.disk == disk) || self.plants.has(Plant::ReuseId)
    }

    /// Who has left and is not sent the log any more; nobody comes back from there.
    fn has_let_go(&self, from: u64) -> bool {
        let known = members::member(self.state(), from);
        let left = known.is_some_and(|member| member.stage() == members::Stage::Left);
        left && self.raft.raft.prs().get(from).is_none()
    }

    fn send(&mut self, to: u64, body: Body) {
        let envelope = Envelope::new(self.raft.store().identity(), to, body);
        self.outputs.push_back(Output::Send { to, bytes: envelope.encode_to_vec() });
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Tells a change of leader, and does what follows from one.
    fn after(&mut self, now: Instant) {
        let raft = &self.raft.raft;
        let (role, term, leader) = (role(raft.state), raft.term, raft.leader_id);
        let before = std::mem::replace(&mut self.seen, (role, term, leader));
        let changed = before != self.seen;
        self.turns += u64::from(changed);
        self.draw_timeout();
        if !changed {
            return;
        }
        if (term, leader) != (before.1, before.2) {
            let known = Some(leader).filter(|&id| id != raft::INVALID_ID);
            self.event(Event::Leader(known, term));
            self.proposals.all_again(now);
            self.reads.values_mut().for_each(|read| read.again = now);
        }
        if role != Role::Leader {
            self.controlled = None;
            let gone: Vec<u64> = std::mem::take(&mut self.sending).into_keys().collect();
            gone.into_iter().for_each(|id| self.end_snapshot(id, SnapshotStatus::Failure));
        } else if before.0 != Role::Leader {
            // Who was heard lately, by whoever led, is given the time that is left of that.
            for (&id, _) in self.raft.raft.prs().iter() {
                self.heard.entry(id).or_insert(now);
            }
        }
    }

    /// Election timeouts come from the seed: raft draws its own from the system's randomness.
    fn draw_timeout(&mut self) {
        let config = self.config.raft(self.id(), 0);
        let (least, most) = (config.min_election_tick, config.max_election_tick);
        let seed = self.config.seed ^ self.id().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = self.raft.raft.term.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ self.turns;
        let mut x = seed ^ place.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        x ^= x >> 32;
        let spread = (most - least) as u64;
        let ticks = least + usize::try_from(x % spread).expect("less than the spread");
        self.raft.raft.set_randomized_election_timeout(ticks);
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

fn role(state: StateRole) -> Role {
    match state {
        StateRole::Follower => Role::Follower,
        StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        StateRole::Leader => Role::Leader,
    }
}

/// Ticks made up for at once: half a heartbeat's.
const TICKS_MAX: u32 = 5;
const READS_MAX: usize = 1024;
