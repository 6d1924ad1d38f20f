//! Who listens: frames that were taken in, handed on to subscribers, each behind a bounded queue.
//!
//! A subscriber first gets every known host and schema, then everything new. When its queue is full
//! the new update is dropped, counted, and said ([`Update::Lagged`]) before the next one it gets.

use crate::peers::newest;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use strobe_wire::ids::SchemaId;
use strobe_wire::message::HostInfo;
use strobe_wire::schema::Schema;

/// What a subscriber gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Update {
    /// What is known of a host, at first and when it changes.
    Host(HostInfo),
    /// Columns, before the first frame that uses them.
    Schema(Arc<Schema>),
    /// A frame that was taken in; a moment later it is on disk, or it comes again.
    Frame(Bytes),
    /// So many updates were dropped here.
    Lagged(u64),
}

/// A subscriber's end. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
}

/// The publisher's end; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    schemas: BTreeMap<SchemaId, Arc<Schema>>,
    /// Hosts that other brokers told of.
    elsewhere: BTreeMap<u128, HostInfo>,
    queues: Vec<Weak<Queue>>,
}

struct Queue {
    scope: Scope,
    inner: Mutex<Inner>,
    ready: Condvar,
    wake: Option<Box<dyn Fn() + Send + Sync>>,
}

/// What a subscriber gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    /// Everything.
    Fleet,
    /// What came to this broker itself: it is for another one.
    Own,
}

#[derive(Default)]
struct Inner {
    /// What there was at the start; not counted against the bound.
    first: VecDeque<Update>,
    updates: VecDeque<Update>,
    lagged: u64,
    closed: bool,
}

impl Hub {
    /// A subscriber that begins with `hosts` and every known schema. `wake` is called when its
    /// queue stops being empty.
    #[must_use]
    pub fn subscribe(
        &self,
        hosts: Vec<HostInfo>,
        wake: Option<Box<dyn Fn() + Send + Sync>>,
    ) -> Subscription {
        self.subscribe_to(Scope::Fleet, hosts, wake)
    }

    /// A subscriber to what comes to this broker itself; `hosts` are its own.
    #[must_use]
    pub fn subscribe_own(&self, hosts: Vec<HostInfo>) -> Subscription {
        self.subscribe_to(Scope::Own, hosts, None)
    }

    fn subscribe_to(
        &self,
        scope: Scope,
        hosts: Vec<HostInfo>,
        wake: Option<Box<dyn Fn() + Send + Sync>>,
    ) -> Subscription {
        let mut state = self.lock();
        let elsewhere = state.elsewhere.values().filter(|_| scope == Scope::Fleet).cloned();
        let hosts = newest(hosts.into_iter().chain(elsewhere));
        let mut first: VecDeque<_> = hosts.into_iter().map(Update::Host).collect();
        first.extend(state.schemas.values().cloned().map(Update::Schema));
        let inner = Mutex::new(Inner { first, ..Inner::default() });
        let queue = Arc::new(Queue { scope, inner, ready: Condvar::new(), wake });
        state.queues.push(Arc::downgrade(&queue));
        Subscription { queue }
    }

    /// A schema came. `true` if it is new.
    pub fn schema(&self, schema: &Arc<Schema>) -> bool {
        let mut state = self.lock();
        if state.schemas.insert(schema.id(), Arc::clone(schema)).is_some() {
            return false;
        }
        if SCHEMAS_MAX < state.schemas.len() {
            state.schemas.pop_first();
        }
        drop(state);
        self.publish(&[Update::Schema(Arc::clone(schema))]);
        true
    }

    /// Hands `updates` to everyone.
    pub fn publish(&self, updates: &[Update]) {
        self.lock().push(updates, |_| true);
    }

    /// Hands on what came to another broker, but not to other brokers.
    pub fn publish_elsewhere(&self, updates: &[Update]) {
        self.lock().push(updates, |scope| scope == Scope::Fleet);
    }

    /// What is known of a host that is another broker's, or was.
    pub fn host_elsewhere(&self, info: HostInfo) {
        let mut state = self.lock();
        let host = info.hello.host;
        if HOSTS_MAX <= state.elsewhere.len() && !state.elsewhere.contains_key(&host) {
            return;
        }
        state.elsewhere.insert(host, info.clone());
        state.push(&[Update::Host(info)], |scope| scope == Scope::Fleet);
    }

    /// Whether anyone listens to the whole fleet.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        let queues = &self.lock().queues;
        queues.iter().filter_map(Weak::upgrade).any(|queue| queue.scope == Scope::Fleet)
    }

    /// Whether anyone listens.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.lock().queues.iter().any(|queue| queue.strong_count() != 0)
    }

    /// No more will come.
    pub fn close(&self) {
        for queue in self.lock().queues.iter().filter_map(Weak::upgrade) {
            queue.lock().closed = true;
            queue.ready.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, updates: &[Update], wanted: impl Fn(Scope) -> bool) {
        self.queues.retain(|weak| {
            let Some(queue) = weak.upgrade() else { return false };
            if wanted(queue.scope) {
                queue.push(updates);
            }
            true
        });
    }
}

impl Subscription {
    /// The next update; `None` when none came in `wait` or the broker stopped.
    #[must_use]
    pub fn recv_timeout(&self, wait: Duration) -> Option<Update> {
        let inner = self.queue.lock();
        let empty = |inner: &mut Inner| inner.is_empty() && !inner.closed;
        let waited = self.queue.ready.wait_timeout_while(inner, wait, empty);
        waited.unwrap_or_else(PoisonError::into_inner).0.pop()
    }

    /// The next update, if there is one.
    #[must_use]
    pub fn try_recv(&self) -> Option<Update> {
        self.queue.lock().pop()
    }

    /// Whether the broker stopped and everything was taken.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let inner = self.queue.lock();
        inner.closed && inner.is_empty()
    }
}

impl Queue {
    fn push(&self, updates: &[Update]) {
        let mut inner = self.lock();
        let was_empty = inner.is_empty();
        for update in updates {
            if inner.updates.len() < UPDATES_MAX {
                inner.updates.push_back(update.clone());
            } else {
                inner.lagged += 1;
            }
        }
        drop(inner);
        if was_empty {
            self.ready.notify_one();
            if let Some(wake) = &self.wake {
                wake();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.updates.is_empty()
    }

    fn pop(&mut self) -> Option<Update> {
        if let Some(update) = self.first.pop_front() {
            return Some(update);
        }
        // What was dropped came after what is queued: it is said when the queue has drained.
        if self.updates.is_empty() && self.lagged != 0 {
            return Some(Update::Lagged(std::mem::take(&mut self.lagged)));
        }
        self.updates.pop_front()
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

/// Updates waiting for one subscriber: a second of a thousand hosts with eight sections.
const UPDATES_MAX: usize = 8_192;
/// Hosts of other brokers.
const HOSTS_MAX: usize = 100_000;
/// Schemas a new subscriber is told.
const SCHEMAS_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_subscriber_is_told_what_it_missed() {
        let hub = Hub::default();
        let slow = hub.subscribe(vec![HostInfo::default()], None);
        let frame = Update::Frame(Bytes::from_static(b"x"));
        for _ in 0..UPDATES_MAX + 5 {
            hub.publish(std::slice::from_ref(&frame));
        }
        assert_eq!(slow.try_recv(), Some(Update::Host(HostInfo::default())));
        for _ in 0..UPDATES_MAX {
            assert_eq!(slow.try_recv().as_ref(), Some(&frame));
        }
        assert_eq!(slow.try_recv(), Some(Update::Lagged(5)));
        assert_eq!(slow.try_recv(), None);
        drop(slow);
        hub.publish(&[frame]);
        assert!(!hub.is_heard());
    }
}
