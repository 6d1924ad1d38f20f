//! Acknowledgements that wait for Redis: of hosts of class `wal+redis` alone.
//!
//! ```text
//!  Stored at P --wal----------------------------------> acknowledged
//!       └-----wal+redis--> first: waits for P --Copied--> acknowledged, and the next one is the first
//!                          next: the newest behind it
//! ```
//!
//! Bounded: two of each boot of a session, [`COPIES_MAX`] sessions' boots in all. Over it, who is of this
//! class is not read, and keeps its frames; others go on. What waits for a session that ends is dropped:
//! its agent sends again, and its frames are known by their numbers.

use super::Net;
use super::agents::Reached;
use super::streams::Place;
use crate::class::{Classes, Durability};
use crate::ingest::SessionId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use strobe_journal::Position;
use strobe_wire::ids::BootId;
use strobe_wire::message::Hello;

/// What waits, and for what.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pub(super) classes: Arc<Classes>,
    /// Whether the classes are known: until then nobody is read, because `Welcome` tells of what is safe.
    pub(super) unknown: bool,
    /// Redis has what it has to have of the log before this.
    through: Position,
    /// The log's end when this life began.
    began: Position,
    waiting: BTreeMap<(SessionId, BootId), Waiting>,
    /// By what the first one waits for.
    order: BTreeSet<(Position, (SessionId, BootId))>,
}

#[derive(Debug)]
struct Waiting {
    first: (Position, Reached),
    next: Option<(Position, Reached)>,
}

impl Copies {
    /// Whether something of this class that lies before `at` waits for Redis.
    pub(super) fn holds(&self, class: Durability, at: Position) -> bool {
        class.is_copied() && self.through < at
    }

    /// Until Redis is at `at`.
    pub(super) fn hold(&mut self, at: Position, reached: Reached) {
        let key = (reached.session, reached.boot);
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.next = Some((at, reached));
        } else {
            self.waiting.insert(key, Waiting { first: (at, reached), next: None });
            self.order.insert((at, key));
        }
    }

    /// Redis is there: what may be acknowledged by now.
    fn release(&mut self, through: Position) -> Vec<Reached> {
        self.through = self.through.max(through);
        let mut free = Vec::new();
        while let Some((at, key)) = self.order.first().copied().filter(|(at, _)| *at <= through) {
            self.order.remove(&(at, key));
            let Some(Waiting { first, next }) = self.waiting.remove(&key) else { continue };
            match next {
                Some(next) if next.0 <= through => free.push(next.1),
                Some(next) => {
                    free.push(first.1);
                    self.hold(next.0, next.1);
                }
                None => free.push(first.1),
            }
        }
        free
    }

    /// A session's, whether Redis has it or not.
    pub(super) fn take(&mut self, session: SessionId) -> Vec<Reached> {
        let of = (session, BootId(u128::MIN))..=(session, BootId(u128::MAX));
        let keys: Vec<_> = self.waiting.range(of).map(|(key, _)| *key).collect();
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(Waiting { first, next }) = self.waiting.remove(&key) else { continue };
            self.order.remove(&(first.0, key));
            all.push(next.unwrap_or(first).1);
        }
        all
    }

    pub(super) fn is_full(&self) -> bool {
        COPIES_MAX <= self.waiting.len()
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> {
        self.waiting.keys().map(|(session, _)| *session)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl Net {
    /// The log's end when this life begins: what is before it, of class `wal+redis`, is named as stored only
    /// when Redis has it. Nobody is read until classes are known.
    pub fn begin_at(&mut self, at: Position) {
        (self.copies.began, self.copies.unknown) = (at, true);
    }

    /// What acknowledgements are worth from now on. What waits for Redis and has not to any more goes.
    pub fn set_classes(&mut self, classes: Arc<Classes>) {
        let known = !std::mem::replace(&mut self.copies.unknown, false);
        if known && self.copies.classes == classes {
            return;
        }
        self.copies.classes = classes;
        let all: Vec<_> =
            self.sessions.iter().chain(&self.replays).map(|(s, p)| (*s, *p)).collect();
        for (session, place) in all {
            let Some((host, _)) = self.ingest.whose(session) else { continue };
            let Some(info) = self.registry.host(host) else { continue };
            let class = self.copies.classes.of(&info.hello);
            let Some(stream) = self.streams.get_mut(&place) else { continue };
            if std::mem::replace(&mut stream.class, class) != class && !class.is_copied() {
                let free = self.copies.take(session);
                free.into_iter().for_each(|reached| self.acknowledge(reached));
            }
        }
        self.readable.extend(self.parked.drain(..));
    }

    /// What `Welcome` may name of what is stored here.
    pub(super) fn named(&self, hello: &Hello, stored: u64) -> u64 {
        let class = self.copies.classes.of(hello);
        if self.copies.holds(class, self.copies.began) { 0 } else { stored }
    }

    /// Redis has what it has to have of the log before this.
    pub(super) fn on_copied(&mut self, through: Position) {
        let free = self.copies.release(through);
        free.into_iter().for_each(|reached| self.acknowledge(reached));
    }

    /// The class of a session's host.
    pub(super) fn class_of(&self, session: SessionId) -> Durability {
        let place = self.sessions.get(&session).or_else(|| self.replays.get(&session));
        let stream = place.and_then(|place| self.streams.get(place));
        stream.map_or(self.copies.classes.usual, |stream| stream.class)
    }

    /// Whether nothing of an agent's stream is to be read for now.
    pub(super) fn is_withheld(&self, place: Place) -> bool {
        let is_copied = || self.streams.get(&place).is_some_and(|s| s.class.is_copied());
        self.copies.unknown || self.copies.is_full() && is_copied()
    }
}

/// Boots of sessions that wait at once.
const COPIES_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;
    use strobe_wire::ids::HostId;

    fn at(offset: u64) -> Position {
        Position { file: 1, offset }
    }

    fn reached(session: u64, through: u64) -> Reached {
        let session = SessionId(session);
        Reached { host: HostId(7), boot: BootId(1), session, through, acknowledged: through }
    }

    /// A host that sends all the time would wait for ever, if only its newest row were waited for.
    #[test]
    fn what_waits_is_acknowledged_as_far_as_redis_is() {
        let mut copies = Copies::default();
        for step in 1..=5 {
            copies.hold(at(10 * step), reached(1, step));
        }
        copies.hold(at(20), reached(2, 1));
        let free = |copies: &mut Copies, offset| {
            let free = copies.release(at(offset));
            free.iter().map(|of| (of.session.0, of.through)).collect::<Vec<_>>()
        };
        assert_eq!(free(&mut copies, 9), []);
        assert_eq!(free(&mut copies, 25), [(1, 1), (2, 1)]);
        assert_eq!((copies.len(), free(&mut copies, 49)), (1, vec![]));
        assert_eq!(free(&mut copies, 50), [(1, 5)]);
        copies.hold(at(60), reached(3, 1));
        copies.hold(at(70), reached(3, 2));
        let left: Vec<_> = copies.take(SessionId(3)).iter().map(|of| of.through).collect();
        assert_eq!((left, copies.len(), copies.order.len()), (vec![2], 0, 0));
        let (wal, redis) = (Durability::Wal, Durability::WalRedis);
        assert!(copies.holds(redis, at(51)) && !copies.holds(redis, at(50)));
        assert!(!copies.holds(wal, at(51)));
    }
}
