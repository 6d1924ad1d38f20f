//! What one query asked of Redis: the time it took, what it could not have, and what it found last.

use super::archive::Far;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One query's business with what is not local. Its threads share it.
#[derive(Debug, Default)]
pub(in super::super) struct Errand {
    /// Who asks reads what others wrote by himself.
    peers: bool,
    inner: Mutex<Inner>,
}

/// A source, a range, and whose stores answered.
pub(super) type Of = (u128, (i64, i64), Arc<BTreeSet<u64>>);

#[derive(Debug, Default)]
struct Inner {
    warnings: BTreeSet<String>,
    spent: Duration,
    /// Of the sources being scanned; the series of a source come one group after the other.
    found: VecDeque<(Of, Arc<Far>)>,
}

impl Errand {
    /// Of another broker that shares this Redis.
    pub(super) fn of_a_peer() -> Self {
        Self { peers: true, ..Self::default() }
    }

    pub(super) fn is_a_peers(&self) -> bool {
        self.peers
    }

    /// Says what the answer lacks, once.
    pub(in super::super) fn warn(&self, text: String) {
        self.with(|inner| {
            if inner.warnings.len() < WARNINGS_MAX {
                inner.warnings.insert(text);
            }
        });
    }

    pub(in super::super) fn warnings(&self) -> Vec<String> {
        self.with(|inner| inner.warnings.iter().cloned().collect())
    }

    /// Adds time waited for Redis.
    pub(super) fn spend(&self, time: Duration) {
        self.with(|inner| inner.spent += time);
    }

    pub(super) fn is_spent(&self) -> bool {
        self.with(|inner| QUERY_WAIT_MAX < inner.spent)
    }

    pub(super) fn found(&self, of: &Of) -> Option<Arc<Far>> {
        self.with(|inner| inner.found.iter().find(|f| f.0 == *of).map(|f| Arc::clone(&f.1)))
    }

    pub(super) fn keep(&self, of: Of, far: &Arc<Far>) {
        self.with(|inner| {
            if FOUND_MAX <= inner.found.len() {
                inner.found.pop_front();
            }
            inner.found.push_back((of, Arc::clone(far)));
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Time that one query may wait for Redis in all.
const QUERY_WAIT_MAX: Duration = Duration::from_secs(5);
const WARNINGS_MAX: usize = 16;
/// Two threads scan a query's sources, each one at a time; a binary expression has two ranges.
const FOUND_MAX: usize = 8;
