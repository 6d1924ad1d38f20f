//! The broker's socket.

use super::BrokerError;
use std::net::SocketAddr;
use strobe_wire::link::{Offload, Socket, SocketConfig};

pub(super) fn listen(address: SocketAddr) -> Result<(Socket, SocketAddr), BrokerError> {
    let fail = |source| BrokerError::Listen { address, source };
    let config = SocketConfig {
        bind: address,
        offload: Offload::Auto,
        batch: SOCKET_BATCH,
        kernel_bytes: KERNEL_BYTES,
    };
    let socket = Socket::bind(&config).map_err(fail)?;
    let bound = socket.local_addr().map_err(fail)?;
    Ok((socket, bound))
}

const SOCKET_BATCH: usize = 32;
const KERNEL_BYTES: usize = 8 << 20;
