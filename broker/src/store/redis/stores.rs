//! Who has written to this Redis: every store, up to which time, and whose it is or was.
//!
//! A query reads what the stores of brokers that did not answer it have written, and only theirs: what
//! a broker that answers has written, it has itself. So nothing is read twice, and a cluster that is well
//! asks Redis for nothing.

use super::batch::{Batch, Writes};
use super::keys::{Keys, jittered};
use redis::Cmd;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What one store has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Written {
    /// The end of its newest raw block.
    pub(super) last_ms: i64,
    /// Its broker's number in a cluster; 0: of one by itself.
    pub(super) broker: u64,
    /// How many of its segments: changes when hosts may have come.
    pub(super) segments: u64,
}

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Stores(BTreeMap<u64, Written>);

/// Which of them a query reads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Skipped {
    /// Their brokers answered.
    pub(super) answered: Arc<BTreeSet<u64>>,
    /// Everything but the own one: who asks reads the rest itself.
    pub(super) others: bool,
}

impl Skipped {
    /// Whether blocks of `store` are not to be read by the one whose own is `me`.
    pub(super) fn has(&self, store: u64, me: u64) -> bool {
        store != me && (self.others || self.answered.contains(&store))
    }
}

impl Stores {
    pub(super) fn ask(batch: &mut Batch, keys: &Keys) {
        batch.cmd("HGETALL", &keys.stores());
    }

    pub(super) fn read(answer: &BTreeMap<String, String>) -> Self {
        let one = |(id, text): (&String, &String)| {
            let mut words = text.split(' ');
            let last_ms = words.next()?.parse().ok()?;
            let mut number = || words.next()?.parse().ok();
            let (broker, segments) = (number()?, number()?);
            let written = Written { last_ms, broker, segments };
            Some((u64::from_str_radix(id, 16).ok()?, written))
        };
        Self(answer.iter().filter_map(one).collect())
    }

    pub(super) fn of(&self, store: u64) -> Option<Written> {
        self.0.get(&store).copied()
    }

    /// The end of what a query may find that does not skip it, but for the store `me`.
    pub(super) fn beyond_ms(&self, skipped: &Skipped, me: u64) -> i64 {
        let read = |store: &&u64| **store != me && !skipped.has(**store, me);
        let read = self.0.keys().filter(read).filter_map(|store| self.of(*store));
        read.map(|written| written.last_ms).max().unwrap_or(i64::MIN)
    }

    /// Whether anybody but `me` has written.
    pub(super) fn has_others(&self, me: u64) -> bool {
        self.0.keys().any(|store| *store != me)
    }

    /// Changes when others wrote something.
    pub(super) fn of_others(&self, me: u64) -> Self {
        Self(self.0.iter().filter(|(id, _)| **id != me).map(|(id, w)| (*id, *w)).collect())
    }

    /// Up to where a broker has written.
    pub(super) fn of_broker(&self, broker: u64) -> Option<i64> {
        self.0.values().filter(|written| written.broker == broker).map(|of| of.last_ms).max()
    }

    /// Tells of a store, and forgets those whose blocks no longer live.
    pub(super) fn tell(
        &self,
        (me, written): (u64, Written),
        gone_ms: i64,
        life_s: u64,
        (writes, keys): (&mut Writes, &Keys),
    ) {
        let key = keys.stores();
        let Written { last_ms, broker, segments } = written;
        let text = format!("{last_ms} {broker} {segments}");
        writes.free("HSET", &key).arg(name(me)).arg(text);
        writes.free("EXPIRE", &key).arg(jittered(life_s, &key));
        let gone = self.0.iter().filter(|(id, of)| **id != me && of.last_ms < gone_ms);
        let gone: Vec<String> = gone.map(|(id, _)| name(*id)).collect();
        if !gone.is_empty() {
            let _: &mut Cmd = writes.free("HDEL", &key).arg(gone);
        }
    }
}

fn name(store: u64) -> String {
    format!("{store:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_reads_those_who_did_not_answer() {
        let text = [(7_u64, "500 1 3"), (8, "900 2 1"), (9, "nonsense")];
        let text = text.map(|(id, text)| (name(id), text.to_owned()));
        let stores = Stores::read(&BTreeMap::from(text));
        assert_eq!(stores.of(7), Some(Written { last_ms: 500, broker: 1, segments: 3 }));
        assert_eq!((stores.of(9), stores.of_broker(2)), (None, Some(900)));
        let answered = |of: &[u64]| Skipped {
            answered: Arc::new(of.iter().copied().collect()),
            others: false,
        };
        assert_eq!(stores.beyond_ms(&answered(&[]), 7), 900, "the own one is here");
        assert_eq!(stores.beyond_ms(&answered(&[8]), 7), i64::MIN);
        assert_eq!(stores.beyond_ms(&answered(&[8]), 1), 500);
        let all = Skipped { others: true, ..Skipped::default() };
        assert_eq!(stores.beyond_ms(&all, 7), i64::MIN);
        assert!(
            all.has(8, 7) && !all.has(7, 7),
            "never the own one's, which retention removed here"
        );
    }
}
