//! What a broker is made of that is more than a line: its socket, its Redis, and what was only there.

use super::BrokerError;
use super::clock::monotonic;
use crate::config::{Config, Durability, StoreChoice};
use crate::registry::Registry;
use crate::store::redis::{self, Mirror, RedisError};
use crate::store::{Recovery, Store, Writer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use strobe_wire::link::{Offload, Socket, SocketConfig};

/// What was acknowledged before the directory was lost.
pub(super) fn restore(
    config: &Config,
    writer: &mut Writer,
    recovery: &mut Recovery,
    now_ms: i64,
) -> Result<(), RedisError> {
    let (StoreChoice::Redis(redis), Durability::WalRedis) = (&config.store, config.durability)
    else {
        return Ok(());
    };
    let records = redis::restore(redis, writer, recovery, now_ms)?;
    if 0 < records {
        log::info!("{records} records of the log were taken from Redis");
    }
    Ok(())
}

/// The mirror that the settings want.
pub(super) fn mirror(
    config: &Config,
    store: &Store,
    registry: &Registry,
    stopping: &Arc<AtomicBool>,
    now_ms: i64,
) -> Result<Option<Mirror>, RedisError> {
    let StoreChoice::Redis(redis) = &config.store else { return Ok(None) };
    let (registry, stopping) = (Some(registry.clone()), Arc::clone(stopping));
    let parts = redis::Parts { store, registry, stopping, now_ms, clock: monotonic };
    Mirror::new(redis.clone(), parts).map(Some)
}

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
