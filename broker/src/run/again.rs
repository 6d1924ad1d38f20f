//! The control plane after its disk failed it: it lives again as soon as the disk takes what is agreed on.

use super::clock::{monotonic, wall_s};
use super::cluster::open;
use crate::cluster::{Order, Plane};
use crate::database;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use strobe_cluster::{Config, Pace, Store};

/// Another life of a plane whose disk failed it, as soon as the disk takes one; none if this is the end.
pub(super) fn live_again(path: &Path, pace: Pace, orders: &Receiver<Order>) -> Option<Plane> {
    let mut said = String::new();
    loop {
        let until = monotonic() + LIVE_AGAIN;
        loop {
            // Whoever asks hears that nobody answers.
            match orders.recv_timeout(until.saturating_duration_since(monotonic())) {
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        let renewed = database::renew(path).map_err(|why| format!("{}: {why}", path.display()));
        let database = renewed.and_then(|()| open(path).map_err(|why| why.to_string()));
        let store = database.and_then(|found| Store::open(found).map_err(|why| why.to_string()));
        let plane = store.and_then(|store| {
            let seed = store.identity().disk ^ wall_s();
            let config = Config::paced(seed, pace);
            Plane::new(store, config, monotonic()).map_err(|why| why.to_string())
        });
        match plane {
            Ok(plane) => {
                log::info!("the control plane goes on: its disk takes what is agreed on again");
                return Some(plane);
            }
            Err(why) if why == said => {}
            Err(why) => {
                log::error!("the control plane cannot go on yet: {why}");
                said = why;
            }
        }
    }
}

/// Between two tries.
const LIVE_AGAIN: Duration = Duration::from_secs(2);
