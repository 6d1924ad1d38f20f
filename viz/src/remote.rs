//! A broker over QUIC, as the workers see it: calls go into a bounded queue that the link's thread
//! takes from, updates come out of another. Full calls are refused (503), full updates are dropped
//! and counted ([`Update::Lagged`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use strobe_wire::message::{ApiRequest, ApiResponse};

use crate::backend::{Caller, Update, unavailable};

/// The workers' end.
#[derive(Clone, Debug)]
pub struct Remote {
    calls: SyncSender<Call>,
    shared: Arc<Shared>,
}

/// The link's end.
#[derive(Debug)]
pub struct RemoteEnd {
    calls: Receiver<Call>,
    updates: SyncSender<Update>,
    shared: Arc<Shared>,
}

/// A request on its way, and where its answer goes.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: ApiRequest,
    caller: Caller,
    answer: SyncSender<ApiResponse>,
}

#[derive(Debug)]
struct Shared {
    /// Relaxed: a hint for /-/ready and an early 503; the queues carry the data.
    connected: AtomicBool,
    /// Relaxed: a count.
    lagged: AtomicU64,
    updates: Mutex<Option<Receiver<Update>>>,
    /// Why the link is down, in words.
    trouble: Mutex<String>,
    waker: Mutex<Option<mio::Waker>>,
}

/// Both ends. The link's thread owns the second; `waker` of its loop is set by [`RemoteEnd::wake_by`].
#[must_use]
pub fn pair() -> (Remote, RemoteEnd) {
    let (calls, taken) = sync_channel(CALLS_MAX);
    let (updates, kept) = sync_channel(UPDATES_MAX);
    let shared = Arc::new(Shared {
        connected: AtomicBool::new(false),
        lagged: AtomicU64::new(0),
        updates: Mutex::new(Some(kept)),
        trouble: Mutex::new("it was not reached yet".to_owned()),
        waker: Mutex::new(None),
    });
    let end = RemoteEnd { calls: taken, updates, shared: Arc::clone(&shared) };
    (Remote { calls, shared }, end)
}

impl Remote {
    /// Asks and waits, while the caller does.
    #[must_use]
    pub fn api(&self, request: ApiRequest, caller: &Caller) -> ApiResponse {
        if let Some(why) = self.trouble() {
            return unavailable(503, &why);
        }
        let (answer, answered) = sync_channel(1);
        match self.calls.try_send(Call { request, caller: caller.clone(), answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return unavailable(503, "too many requests wait for the broker");
            }
            Err(TrySendError::Disconnected(_)) => {
                return unavailable(503, "the link to the broker has ended");
            }
        }
        self.wake();
        for _ in 0..CALL_WAITS {
            match answered.recv_timeout(CALL_WAIT) {
                Ok(answer) => return answer,
                // The link lets go of a call whose caller has left, maybe before this looks.
                Err(_) if caller.has_left() => {
                    self.wake();
                    return unavailable(503, "the caller hung up");
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return unavailable(503, "the link to the broker has ended");
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        // The link gives up on the call as well.
        caller.leave();
        unavailable(504, "the broker did not answer in time")
    }

    fn wake(&self) {
        if let Some(waker) = &*self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner)
            && let Err(error) = waker.wake()
        {
            log::warn!("waking the link to the broker: {error}");
        }
    }

    /// The updates, once.
    #[must_use]
    pub fn updates(&self) -> Option<Receiver<Update>> {
        self.shared.updates.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Why there is no link, if there is none.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let why = || self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (!self.is_connected()).then(|| format!("the broker is not connected: {}", why()))
    }

    /// Whether the link is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Relaxed)
    }
}

impl RemoteEnd {
    /// What wakes the link's loop when a call waits.
    pub fn wake_by(&self, waker: mio::Waker) {
        *self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    /// Whether calls are taken: the link is up.
    pub fn connected(&self, connected: bool) {
        self.shared.connected.store(connected, Ordering::Relaxed);
    }

    /// Why the link is down.
    pub fn trouble(&self, why: &str) {
        why.clone_into(&mut self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The next call, if one waits.
    #[must_use]
    pub fn call(&self) -> Option<Call> {
        self.calls.try_recv().ok()
    }

    /// Hands an update on; drops and counts it when the viewer is too slow.
    pub fn update(&self, update: Update) {
        let lagged = self.shared.lagged.load(Ordering::Relaxed);
        if 0 < lagged && self.updates.try_send(Update::Lagged(lagged)).is_ok() {
            self.shared.lagged.fetch_sub(lagged, Ordering::Relaxed);
        }
        if self.updates.try_send(update).is_err() {
            self.shared.lagged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Call {
    /// Whether nobody waits for its answer any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.caller.has_left()
    }

    /// Answers it; the asker may have given up.
    pub fn answer(self, response: ApiResponse) {
        if self.answer.try_send(response).is_err() {
            log::debug!("an answer of the broker came too late");
        }
    }
}

/// Calls that wait for the link.
pub const CALLS_MAX: usize = 64;
/// Updates that wait for the viewer.
pub const UPDATES_MAX: usize = 8192;
/// A minute, and how often it is looked whether somebody still waits.
const CALL_WAITS: u32 = 240;
const CALL_WAIT: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_queues_refuse_and_count() {
        let (remote, end) = pair();
        assert_eq!(remote.api(ApiRequest::default(), &Caller::default()).status, 503);
        let feed = remote.updates().unwrap();
        assert!(remote.updates().is_none());
        for _ in 0..UPDATES_MAX + 7 {
            end.update(Update::Lagged(0));
        }
        assert_eq!(feed.try_iter().count(), UPDATES_MAX);
        end.update(Update::Lagged(0));
        assert!(matches!(feed.try_recv(), Ok(Update::Lagged(7))));
    }
}
