//! Another configuration while the agent runs: a sampler and a recorder made beside those that work, and
//! handed over between two ticks.
//!
//! ```text
//! network's thread: make -> Desk -> set the timer          sampler's thread: tick, Desk?, take over, tick
//! ```
//!
//! The sampler's thread looks at one atomic a tick and never waits: the slot is locked by the other one
//! only while it puts something there.

use super::{AgentError, Pace, Stop, aim, io_error, recording, spawn};
use crate::clock::{self, moment};
use crate::config::{self, Config};
use crate::managed::Pulse;
use crate::recorder::pressure::Watches;
use crate::recorder::{Bell, Recorder, Shipper};
use crate::sampler::Sampler;
use crate::schemas::Table;
use crate::uplink::Status;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the sampler's thread is to go on with.
pub(super) struct Remade {
    pub(super) sampler: Sampler,
    pub(super) pace: Pace,
    /// Another one, or none; `None`: the one that there is.
    pub(super) shipper: Option<Option<Shipper>>,
}

/// Where it is put, and what the sampler's thread says of itself.
#[derive(Default)]
pub(super) struct Desk {
    /// `Release` behind a change of the slot, `Acquire` before a look at it.
    fresh: AtomicBool,
    slot: Mutex<Option<Box<Remade>>>,
    /// Relaxed, both: counts by themselves.
    ticks: AtomicU64,
    cost_ns: AtomicU64,
}

/// Makes it.
pub(super) struct Remaker {
    table: Arc<Table>,
    bell: Bell,
    desk: Arc<Desk>,
    stop: Stop,
    host: u128,
    recorder: Option<config::Pace>,
    recording: Option<Recording>,
}

/// A recorder's thread; it ends when this is dropped.
struct Recording(Arc<EventFd>);

impl Desk {
    /// What there is, once.
    pub(super) fn take(&self) -> Option<Box<Remade>> {
        if !self.fresh.load(Acquire) {
            return None;
        }
        // Both under the lock: what is put a moment later is not taken for what was.
        let mut slot = self.slot.try_lock().ok()?;
        self.fresh.store(false, Relaxed);
        slot.take()
    }

    /// A tick is over.
    pub(super) fn ticked(&self) {
        self.ticks.fetch_add(1, Relaxed);
        self.cost_ns.store(recording::used_ns(), Relaxed);
    }

    /// With what the uplink knows.
    pub(super) fn pulse(&self, status: &Status) -> Pulse {
        Pulse {
            streaming: status.streaming,
            ticks: self.ticks.load(Relaxed),
            acknowledged_seq: status.acknowledged_seq,
            cost_ns: self.cost_ns.load(Relaxed),
        }
    }

    fn put(&self, remade: Remade) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        // What nobody took has a shipper that the recorder which there is writes to.
        let shipper = match (remade.shipper, slot.take()) {
            (None, Some(before)) => before.shipper,
            (shipper, _) => shipper,
        };
        *slot = Some(Box::new(Remade { shipper, ..remade }));
        self.fresh.store(true, Release);
    }
}

impl Remaker {
    pub(super) fn new(table: Arc<Table>, bell: Bell, stop: Stop, host: u128) -> Self {
        let (desk, recorder, recording) = (Arc::default(), None, None);
        Self { table, bell, desk, stop, host, recorder, recording }
    }

    pub(super) fn desk(&self) -> Arc<Desk> {
        Arc::clone(&self.desk)
    }

    /// When to tick.
    pub(super) fn pace(&self, config: &Config) -> Pace {
        let every = Duration::from_millis(config.interval_ms);
        Pace { every, after: moment(every, self.host) }
    }

    /// The recorder that is wanted; the one before ends.
    pub(super) fn record(&mut self, config: &Config) -> Result<Option<Shipper>, AgentError> {
        (self.recorder, self.recording) = (None, None);
        let Some(of) = config.recorder else { return Ok(None) };
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let end = EventFd::from_value_and_flags(0, flags).map_err(io_error("make an eventfd"))?;
        let end = Arc::new(end);
        let (table, bell) = (Arc::clone(&self.table), self.bell.clone());
        let (recorder, shipper) =
            Recorder::new(&config.trees(), of.window_ms, clock::monotonic_ns, table, bell);
        let watches = Watches::new(&config.procfs);
        let every = Duration::from_millis(of.interval_ms);
        let (stop, bell, ends) = (self.stop.clone(), self.bell.clone(), Arc::clone(&end));
        // It ends with the others, and has nothing that would have to be waited for.
        spawn("strobe-record", move || {
            if let Err(error) = recording::record(recorder, &bell, watches, every, (&stop, &ends)) {
                log::error!("the flight recorder has ended: {error}");
            }
        })?;
        (self.recorder, self.recording) = (Some(of), Some(Recording(end)));
        Ok(Some(shipper))
    }

    /// Makes what another configuration wants and hands it over.
    pub(super) fn remake(&mut self, config: &Config) -> Result<(), AgentError> {
        let shipper = match config.recorder == self.recorder {
            true => None,
            false => Some(self.record(config)?),
        };
        let sampler = Sampler::new(&config.trees(), clock::monotonic_ns, Arc::clone(&self.table));
        let pace = self.pace(config);
        self.desk.put(Remade { sampler, pace, shipper });
        // It may be waiting for a moment that is far away.
        aim(&self.stop.0.timer, pace)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Full is as good as one.
        let _ = self.0.write(1);
    }
}
