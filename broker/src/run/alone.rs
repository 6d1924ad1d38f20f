//! The thread of a broker in no cluster that agrees with itself: it writes the file, which the network
//! loop must not wait for.

use super::clock::monotonic;
use super::cluster::{Running, Told};
use super::error::BrokerError;
use super::loops::{spawn, wake};
use crate::cluster::{ALONE_FILE, Alone, ORDERS_MAX, Order};
use mio::Waker;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, sync_channel};

/// Starts it on the file in `dir`.
pub(super) fn start(
    dir: &Path,
    told: Sender<Told>,
    waker: Arc<Waker>,
) -> Result<Running, BrokerError> {
    let alone = Alone::open(dir, monotonic()).map_err(BrokerError::Agreed)?;
    let (orders, orders_in) = sync_channel(ORDERS_MAX);
    let run = move || run(alone, &orders_in, &told, &waker);
    let thread = Some(spawn("strobe-agreed", run)?);
    Ok(Running { orders, thread })
}

/// A cluster has the state now: the file of before is kept beside, and not read any more.
pub(super) fn retire(dir: &Path) {
    let path = dir.join(ALONE_FILE);
    let aside = dir.join(format!("{ALONE_FILE}.before-cluster"));
    match std::fs::rename(&path, aside) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
            log::warn!("{} stays, and is not used: {why}", path.display());
        }
        _ => {}
    }
}

/// Wait for an order, take it, do what is due, tell.
fn run(mut alone: Alone, orders: &Receiver<Order>, told: &Sender<Told>, waker: &Waker) {
    loop {
        while let Some(post) = alone.poll() {
            drop(told.send(Told::Post(post)));
            wake(waker);
        }
        match orders.recv_timeout(alone.timeout().saturating_duration_since(monotonic())) {
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(order) => alone.take(order),
            Err(RecvTimeoutError::Timeout) => {}
        }
        alone.on_timeout(monotonic());
    }
}
