//! Who owns which shard and where the brokers are, as the network loop needs it.

use std::net::SocketAddr;
use strobe_cluster::State;
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::kinds::shards;
use strobe_wire::ids::HostId;
use strobe_wire::shard::Shard;

/// A moment of the agreed state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Map {
    /// This broker.
    pub me: u64,
    /// By shard; none while nobody has it.
    owners: Vec<Option<Owner>>,
    /// Every member's address, this broker's included, by id.
    pub addresses: Vec<(u64, String)>,
    /// Where the other members are, as far as their names are known.
    pub peers: Vec<(u64, SocketAddr)>,
}

/// A shard's owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Which broker.
    pub broker: u64,
    /// Since which change of hands.
    pub epoch: u64,
}

impl Map {
    /// Of `state`; the peers' names are still to be resolved.
    #[must_use]
    pub fn of(me: u64, state: &State) -> Self {
        let owner = |shard| {
            let owned = shards::owned(state, shard);
            (owned.epoch != 0).then_some(Owner { broker: owned.owner, epoch: owned.epoch })
        };
        let here = members::members(state);
        let here = here.into_iter().filter(|member| member.stage() != Stage::Left);
        let addresses = here.map(|member| (member.id, member.address)).collect();
        Self { me, owners: Shard::all().map(owner).collect(), addresses, peers: Vec::new() }
    }

    /// What is not known to be so any more is not said.
    pub(super) fn forget_owners(&mut self) {
        self.owners.clear();
    }

    /// This broker has left: every agent is sent to `broker`, which knows more. Epoch 0 is of no shard.
    pub(super) fn leave_to(&mut self, broker: u64) {
        self.owners = Shard::all().map(|_| Some(Owner { broker, epoch: 0 })).collect();
    }

    /// Who owns the host's shard.
    #[must_use]
    pub fn owner(&self, host: HostId) -> Option<Owner> {
        self.owners.get(usize::from(Shard::of(host).0)).copied().flatten()
    }

    /// Each shard that somebody owns.
    pub fn owned(&self) -> impl Iterator<Item = (usize, Owner)> {
        let of = |(shard, owner): (usize, &Option<Owner>)| owner.map(|o| (shard, o));
        self.owners.iter().enumerate().filter_map(of)
    }

    /// Where a member is.
    #[must_use]
    pub fn address(&self, broker: u64) -> Option<&str> {
        let known = self.addresses.iter().find(|(id, _)| *id == broker);
        known.map(|(_, address)| address.as_str())
    }
}
