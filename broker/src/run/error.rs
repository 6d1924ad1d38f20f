//! Why a broker cannot start or do something.

use crate::dir::DirError;
use crate::registry::RegistryError;
use crate::store::StoreError;
use crate::store::redis::RedisError;
use std::io;
use std::net::SocketAddr;
use strobe_wire::link::LinkError;
use strobe_wire::pki::PkiError;

/// Why a broker cannot start or do something.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The state directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The UDP port.
    #[error("cannot listen on UDP {address}: {source}; choose another --broker-listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Redis.
    #[error("broker.store: {0}")]
    Redis(#[from] RedisError),
    /// What it keeps of its cluster.
    #[error(transparent)]
    Cluster(strobe_cluster::StoreError),
    /// What it agreed on with itself.
    #[error("{0}")]
    Agreed(String),
    /// Its node.
    #[error("the control plane cannot start: {0}")]
    ControlPlane(strobe_cluster::NodeError),
    /// The system refused something else.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
}
