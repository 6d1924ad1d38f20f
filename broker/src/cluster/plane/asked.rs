//! What an operator may want of a control plane, and is told.

use super::{Plane, Reader, Waiter};
use crate::cluster::{Report, Versions};
use std::fmt;
use std::sync::mpsc::SyncSender;
use std::time::Instant;
use strobe_cluster::kinds::{Command, audit, shards};
use strobe_cluster::{NodeError, Outcome, State};
use strobe_wire::shard::Shard;

/// What an operator may want.
#[derive(Debug)]
pub enum Asked {
    /// How it stands.
    Report,
    /// What was agreed on, for a backup.
    Image,
    /// A command applied.
    Propose(Command),
    /// Another leader.
    Transfer(u64),
    /// Another owner for a shard; applied with 0 where it is that already.
    Move(Shard, u64),
    /// The versions of the configuration.
    Versions,
    /// How far an audit log was, as all agreed.
    AuditHead(u64),
    /// To look at the agreed state, in the plane's thread.
    Look(Look),
    /// Any of these, once the state here is as new as it was anywhere when this was asked; nobody
    /// answers it without a quorum.
    Read(Box<Self>),
}

/// What somebody wants to see of the agreed state; it keeps what it saw by itself.
pub struct Look(pub Box<dyn FnOnce(&State) + Send>);

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Look")
    }
}

/// What an operator is told.
#[derive(Debug)]
pub enum Answer {
    /// What was agreed on.
    Image(Vec<u8>),
    /// How it stands.
    Report(Box<Report>),
    /// What became of a command.
    Outcome(Outcome),
    /// The versions of the configuration.
    Versions(Box<Versions>),
    /// How far an audit log was.
    AuditHead(Option<audit::Head>),
    /// Too much waits already.
    Busy,
}

impl Plane {
    pub(super) fn ask(
        &mut self,
        now: Instant,
        asked: Asked,
        reply: SyncSender<Answer>,
    ) -> Result<(), NodeError> {
        match asked {
            Asked::Propose(command) => self.propose(now, command, Waiter::Operator(reply)),
            Asked::Transfer(to) => {
                self.node.transfer_leader(now, to)?;
                drop(reply.try_send(Answer::Report(Box::new(self.report()))));
                Ok(())
            }
            Asked::Move(shard, to) => {
                let now_owned = shards::owned(self.node.state(), shard);
                if now_owned.owner == to {
                    drop(reply.try_send(Answer::Outcome(Outcome::Applied(0))));
                    return Ok(());
                }
                let moves = shards::Change::moves(&[(shard.0, now_owned.epoch, to)]);
                self.propose(now, moves, Waiter::Operator(reply))
            }
            Asked::Image => {
                drop(reply.try_send(Answer::Image(self.node.state().image())));
                Ok(())
            }
            Asked::Look(Look(look)) => {
                look(self.node.state());
                Ok(())
            }
            Asked::Read(asked) => {
                match self.node.read(now)? {
                    Some(ticket) => {
                        self.reading.insert(ticket, Reader::Operator(*asked, reply));
                    }
                    None => drop(reply.try_send(Answer::Busy)),
                }
                Ok(())
            }
            Asked::Versions => {
                let versions = Versions::of(self.node.state(), self.identity.broker);
                drop(reply.try_send(Answer::Versions(Box::new(versions))));
                Ok(())
            }
            Asked::AuditHead(log) => {
                let head = audit::head(self.node.state(), log);
                drop(reply.try_send(Answer::AuditHead(head)));
                Ok(())
            }
            Asked::Report => {
                drop(reply.try_send(Answer::Report(Box::new(self.report()))));
                Ok(())
            }
        }
    }
}
