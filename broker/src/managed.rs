//! Hosts that are managed from here: which version of the configuration each runs, and what people ask
//! them. In memory only: a host says what it runs whenever it comes.
//!
//! Bounded: a record a host that was connected, [`WAITING_MAX`] questions without an answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use strobe_wire::ids::HostId;
use strobe_wire::message::Question;

/// What is known of them; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Managed {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    /// `Release` behind a new question, `Acquire` before a look for one.
    asked: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    running: BTreeMap<HostId, Running>,
    /// Not sent yet.
    asks: Vec<Asking>,
    waiting: BTreeMap<u64, SyncSender<Result<String, String>>>,
    next: u64,
}

/// What a host runs.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Running {
    /// Whether it knows of versions at all.
    pub managed: bool,
    /// The version; 0 is its own configuration.
    pub version: u64,
    /// It has run so for long enough, and well.
    pub proven: bool,
    /// The version that it refused, or took back; 0: none.
    pub refused: u64,
    /// Why.
    pub why: String,
    /// Keys that its own file has locked.
    pub locked: String,
}

/// A question on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asking {
    /// To whom.
    pub host: HostId,
    /// What the answer is known by.
    pub id: u64,
    /// What.
    pub what: Question,
}

impl Managed {
    /// A host says what it runs.
    pub fn tell(&self, host: HostId, running: Running) {
        self.lock().running.insert(host, running);
    }

    /// What a host runs, as far as it was heard here.
    #[must_use]
    pub fn running(&self, host: HostId) -> Option<Running> {
        self.lock().running.get(&host).cloned()
    }

    /// What every host runs that was heard here.
    #[must_use]
    pub fn all(&self) -> BTreeMap<HostId, Running> {
        self.lock().running.clone()
    }

    /// Asks a host; the network loop is to be woken.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn ask(
        &self,
        host: HostId,
        what: Question,
    ) -> Result<(u64, Receiver<Result<String, String>>), String> {
        let (reply, answer) = sync_channel(1);
        let mut inner = self.lock();
        if WAITING_MAX <= inner.waiting.len() {
            return Err("too many questions wait for their answers; ask again later".to_owned());
        }
        inner.next += 1;
        let id = inner.next;
        inner.waiting.insert(id, reply);
        inner.asks.push(Asking { host, id, what });
        drop(inner);
        self.shared.asked.store(true, Ordering::Release);
        Ok((id, answer))
    }

    /// Nobody waits for this answer any more.
    pub fn forget(&self, id: u64) {
        self.lock().waiting.remove(&id);
    }

    /// The questions that are to be sent, once.
    #[must_use]
    pub fn asked(&self) -> Vec<Asking> {
        if !self.shared.asked.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.shared.asked.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.lock().asks)
    }

    /// An answer, or why there is none.
    pub fn answer(&self, id: u64, answer: Result<String, String>) {
        let reply = self.lock().waiting.remove(&id);
        if let Some(reply) = reply {
            // Who asked may have left.
            drop(reply.try_send(answer));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const WAITING_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_sent_once_answered_once_and_bounded() {
        let managed = Managed::default();
        let (id, answer) = managed.ask(HostId(7), Question::Top).unwrap();
        let what = Question::Top;
        assert_eq!(managed.asked(), [Asking { host: HostId(7), id, what }]);
        assert_eq!(managed.asked(), []);
        managed.answer(id, Ok("fine".to_owned()));
        managed.answer(id, Ok("again".to_owned()));
        assert_eq!(answer.recv().unwrap().as_deref(), Ok("fine"));
        let kept: Vec<_> = (0..64).map(|_| managed.ask(HostId(1), what).unwrap()).collect();
        assert!(managed.ask(HostId(1), what).is_err());
        managed.forget(kept[0].0);
        assert!(managed.ask(HostId(1), what).is_ok());
    }
}
