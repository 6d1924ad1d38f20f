//! What brokers of a cluster say to each other, on the QUIC stream that is theirs.
//!
//! Every envelope names the cluster, both brokers and the sender's disk: who was wiped and comes
//! back under an old id is not heard, since it would vote without knowing what it promised.

use crate::codec;
use crate::store::Identity;
use bytes::Bytes;
use prost::Message;

/// One message.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Envelope {
    #[prost(fixed64, tag = "1")]
    cluster_high: u64,
    #[prost(fixed64, tag = "2")]
    cluster_low: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) from: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) to: u64,
    #[prost(fixed64, tag = "5")]
    pub(crate) disk: u64,
    #[prost(oneof = "Body", tags = "6, 7, 8, 9, 10")]
    pub(crate) body: Option<Body>,
}

/// What it says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Body {
    /// Raft's own.
    #[prost(message, tag = "6")]
    Raft(codec::Message),
    /// A command for the leader's log.
    #[prost(bytes = "bytes", tag = "7")]
    Propose(Bytes),
    /// A piece of a snapshot.
    #[prost(message, tag = "8")]
    Chunk(Chunk),
    /// How far a snapshot came.
    #[prost(message, tag = "9")]
    Got(Got),
    /// To who has left and does not know: nobody sends it the log any more.
    #[prost(message, tag = "10")]
    Gone(Gone),
}

/// The receiver has left the cluster.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Gone {}

/// A piece of a snapshot.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Chunk {
    /// Raft's message, to be handed on when all is there.
    #[prost(message, optional, tag = "1")]
    pub(crate) message: Option<codec::Message>,
    #[prost(uint64, tag = "2")]
    pub(crate) total: u64,
    /// CRC32C of the whole.
    #[prost(fixed32, tag = "3")]
    pub(crate) crc: u32,
    #[prost(uint64, tag = "4")]
    pub(crate) offset: u64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) data: Bytes,
}

/// How far a snapshot came.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Got {
    #[prost(uint64, tag = "1")]
    pub(crate) index: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    /// Bytes from the beginning.
    #[prost(uint64, tag = "3")]
    pub(crate) through: u64,
    #[prost(enumeration = "Verdict", tag = "4")]
    pub(crate) verdict: i32,
}

/// What the receiver thinks of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Verdict {
    /// More is wanted.
    More = 0,
    /// It was whole and was handed to raft.
    Taken = 1,
    /// It is of no use: damaged, or too large.
    Refused = 2,
}

impl Envelope {
    pub(crate) fn new(identity: Identity, to: u64, body: Body) -> Self {
        let [high, low] = halves(identity.cluster);
        let Identity { broker: from, disk, .. } = identity;
        Self { cluster_high: high, cluster_low: low, from, to, disk, body: Some(body) }
    }

    /// Whether it is meant for this broker of this cluster.
    pub(crate) fn is_for(&self, identity: Identity) -> bool {
        [self.cluster_high, self.cluster_low] == halves(identity.cluster)
            && self.to == identity.broker
    }
}

fn halves(cluster: u128) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = cluster.to_be_bytes();
    [u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes(rest)]
}
