//! Families whose files may answer late or never (sensors behind i2c, firmware, processors that are
//! asked for their frequency): each has a thread of its own, which lives only where there is
//! something to read.
//!
//! ```text
//!   sampler ── ask ──▶ worker: walk, read (may take seconds, may never end)
//!           ◀─ done ──         the sampler takes the values at a later tick
//! ```
//!
//! Two locks: `signal` is held for moments by both; `work` is the worker's during a reading and the
//! sampler's while it takes the values, which it only does when no reading is in flight. So the
//! sampler never waits. A reading that has not come back after [`DEADLINE_NS`] is a failure: the
//! family has no rows and says so, until it comes back.

use super::families::Family;
use crate::readers::Roots;
use crate::readers::kept::Buffer;
use crate::readers::leaf::Reader;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A family and its worker.
#[derive(Debug)]
pub(super) struct Patient {
    shared: Arc<Shared>,
    roots: Roots,
    clock: fn() -> u64,
    started: bool,
    asked_ns: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    signal: Mutex<Signal>,
    asked: Condvar,
    done: Condvar,
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct Signal {
    /// When the reading was asked for that nobody has taken up.
    ask: Option<u64>,
    done: bool,
    closed: bool,
}

/// What a reading needs and gives.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) family: Family,
    /// Whether its columns are others than when this was last taken.
    pub(super) changed: bool,
    reader: Reader,
    buffer: Buffer,
}

/// How a reading stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// Nothing was asked, or it has been taken.
    Idle,
    /// In flight.
    Busy,
    /// In flight for too long.
    Hung,
    /// To be taken with [`Patient::take`].
    Done,
}

impl Patient {
    pub(super) fn new(family: Family, roots: Roots, clock: fn() -> u64) -> Self {
        let (reader, buffer) = (Reader::new(), Buffer::new());
        let work = Mutex::new(Work { family, changed: false, reader, buffer });
        let (asked, done) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { signal: Mutex::default(), asked, done, work });
        Self { shared, roots, clock, started: false, asked_ns: None }
    }

    /// Whether it has been asked before.
    pub(super) fn is_started(&self) -> bool {
        self.started
    }

    /// Asks for a reading, unless one is in flight.
    pub(super) fn ask(&mut self, now_ns: u64) {
        if self.asked_ns.is_some() {
            return;
        }
        if !self.started {
            self.started = self.start();
        }
        lock(&self.shared.signal).ask = Some(now_ns);
        self.asked_ns = Some(now_ns);
        self.shared.asked.notify_one();
    }

    pub(super) fn standing(&self, now_ns: u64) -> Standing {
        let Some(asked_ns) = self.asked_ns else { return Standing::Idle };
        if lock(&self.shared.signal).done {
            return Standing::Done;
        }
        let late = DEADLINE_NS <= now_ns.saturating_sub(asked_ns);
        if late { Standing::Hung } else { Standing::Busy }
    }

    /// Hands out the reading that is done; nothing if none is.
    pub(super) fn take<T>(&mut self, with: impl FnOnce(&mut Work) -> T) -> Option<T> {
        let done = std::mem::take(&mut lock(&self.shared.signal).done);
        if !done {
            return None;
        }
        self.asked_ns = None;
        // Free: the worker holds it between taking up a question and saying `done` only.
        let mut work = lock(&self.shared.work);
        Some(with(&mut work))
    }

    /// Waits until nothing is in flight, for those who may wait (`--once`).
    pub(super) fn wait(&self, timeout: Duration) {
        if self.asked_ns.is_some() {
            let signal = lock(&self.shared.signal);
            drop(self.shared.done.wait_timeout_while(signal, timeout, |signal| !signal.done));
        }
    }

    fn start(&self) -> bool {
        let (shared, roots, clock) = (Arc::clone(&self.shared), self.roots.clone(), self.clock);
        let worker = std::thread::Builder::new().name("strobe-patient".to_owned());
        worker.stack_size(STACK_BYTES).spawn(move || serve(&shared, &roots, clock)).is_ok()
    }
}

impl Drop for Patient {
    /// The worker ends when its reading does; nobody waits for it.
    fn drop(&mut self) {
        lock(&self.shared.signal).closed = true;
        self.shared.asked.notify_one();
    }
}

fn serve(shared: &Shared, roots: &Roots, clock: fn() -> u64) {
    let mut signal = lock(&shared.signal);
    while !signal.closed {
        let Some(now_ns) = signal.ask.take() else {
            signal = shared.asked.wait(signal).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(signal);
        {
            let mut work = lock(&shared.work);
            let Work { family, changed, reader, buffer } = &mut *work;
            *changed |= family.read(roots, now_ns, clock, reader, buffer);
        }
        signal = lock(&shared.signal);
        signal.done = true;
        shared.done.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a reading is a bug, and leaves values of the last one at worst.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// That of the file systems.
const DEADLINE_NS: u64 = 5_000_000_000;
/// Walks hold a page of text on the stack.
const STACK_BYTES: usize = 128 << 10;
