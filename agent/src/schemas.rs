//! The schemas of the frames in the ring: written by the sampler when a set changes, read by the
//! uplink before the first frame of a schema it has not sent yet.
//!
//! The lock is taken only when a set changes, when a frame names a schema the uplink has not seen, and when the
//! ring is empty for the first time since a set changed. What a section uses now is always there. What it has outgrown
//! is there for as long as rows of it may be in the ring, up to `NEEDED_COLUMNS_MAX` columns, which are some 160
//! bytes each; beside that, because sets come back, `OUTGROWN_COLUMNS_MAX` columns and `SCHEMAS_MAX` schemas. The
//! oldest goes first.

use crate::config::SMALL;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use strobe_wire::ids::SchemaId;
use strobe_wire::schema::Schema;

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    schemas: Mutex<VecDeque<Entry>>,
    /// Whether any was outgrown since the ring was empty.
    has_needed: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    id: SchemaId,
    schema: Arc<Schema>,
    standing: Standing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    Used,
    /// Outgrown, and rows of it may be in the ring.
    Needed,
    Outgrown,
}

impl Table {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a schema, or makes it its section's newest again; returns its name.
    pub fn publish(&self, schema: &Arc<Schema>) -> SchemaId {
        let id = schema.id();
        self.put(id, schema);
        id
    }

    /// The same, of which the name is known.
    pub fn put(&self, id: SchemaId, schema: &Arc<Schema>) {
        let mut schemas = self.lock();
        schemas.retain(|entry| entry.id != id);
        for entry in schemas.iter_mut() {
            if entry.schema.section == schema.section && entry.standing == Standing::Used {
                entry.standing = Standing::Needed;
                // Relaxed: what it is about is under the lock.
                self.has_needed.store(true, Relaxed);
            }
        }
        schemas.push_back(Entry { id, schema: Arc::clone(schema), standing: Standing::Used });
        forget(&mut schemas);
    }

    /// The ring is empty: no row needs what has been outgrown.
    pub fn rest(&self) {
        if self.has_needed.swap(false, Relaxed) {
            let mut schemas = self.lock();
            for entry in schemas.iter_mut().filter(|entry| entry.standing == Standing::Needed) {
                entry.standing = Standing::Outgrown;
            }
            forget(&mut schemas);
        }
    }

    /// The schema of this name.
    #[must_use]
    pub fn schema(&self, id: SchemaId) -> Option<Arc<Schema>> {
        let schemas = self.lock();
        schemas.iter().find(|entry| entry.id == id).map(|entry| Arc::clone(&entry.schema))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        // Nothing under the lock leaves the list half-changed.
        self.schemas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of what is over the bounds.
fn forget(schemas: &mut VecDeque<Entry>) {
    loop {
        let columns = |standing: Standing| {
            let of = schemas.iter().filter(move |entry| entry.standing == standing);
            of.map(|entry| entry.schema.columns.len()).sum::<usize>()
        };
        let over = if NEEDED_COLUMNS_MAX < columns(Standing::Needed) {
            Standing::Needed
        } else if OUTGROWN_COLUMNS_MAX < columns(Standing::Outgrown) || SCHEMAS_MAX < schemas.len()
        {
            Standing::Outgrown
        } else {
            return;
        };
        let first = |standing| schemas.iter().position(|entry: &Entry| entry.standing == standing);
        // So many schemas may be needed, or even used: then these go.
        let at = first(over).or_else(|| first(Standing::Needed)).unwrap_or(0);
        schemas.remove(at);
    }
}

/// Sections (at most 16 parts of each of a handful of families) and a good many former sets.
const SCHEMAS_MAX: usize = 512;
/// Of sets that come back: some minutes of a family that changes every ten seconds.
const OUTGROWN_COLUMNS_MAX: usize = 8192;
/// Of rows that wait: 5 MiB, or 1.3 in the small build, where a set changes each second and no broker answers.
const NEEDED_COLUMNS_MAX: usize = if SMALL { 8192 } else { 32_768 };

#[cfg(test)]
mod tests {
    use super::*;
    use strobe_wire::schema::{Column, Kind, Labels};

    #[test]
    fn churn_in_one_section_keeps_the_others() {
        let table = Table::new();
        let schema = |section: &str, device: usize| {
            let device = device.to_string();
            let labels = Labels::of(&[("device", &device)]);
            let columns = vec![Column { name: "x".to_owned(), labels, kind: Kind::Float }];
            Arc::new(Schema { section: section.to_owned(), columns })
        };
        let host = table.publish(&schema("host", 0));
        let first = table.publish(&schema("net", 0));
        let last = (1..=SCHEMAS_MAX).map(|n| table.publish(&schema("net", n))).last().unwrap();
        assert!(table.schema(host).is_some() && table.schema(last).is_some());
        assert!(table.schema(first).is_none());
        assert_eq!(table.lock().len(), SCHEMAS_MAX);
    }

    /// A family of hundreds of columns whose set changed every ten seconds would have kept 512 sets.
    #[test]
    fn what_is_outgrown_is_bounded_by_its_columns() {
        let table = Table::new();
        let schema = |number: usize| {
            let number = number.to_string();
            let column = |at: usize| {
                let labels = Labels::of(&[("at", &at.to_string()), ("set", &number)]);
                Column { name: "x".to_owned(), labels, kind: Kind::Float }
            };
            let columns = (0..400).map(column).collect();
            Arc::new(Schema { section: "cgroup".to_owned(), columns })
        };
        let ids: Vec<_> = (0..100).map(|number| table.publish(&schema(number))).collect();
        let kept = || ids.iter().filter(|id| table.schema(**id).is_some()).count();
        // Rows of them may wait ...
        assert_eq!(kept(), 1 + NEEDED_COLUMNS_MAX / 400);
        // ... and do not any more.
        table.rest();
        assert_eq!(kept(), 1 + OUTGROWN_COLUMNS_MAX / 400);
        assert!(table.schema(ids[99]).is_some() && table.schema(ids[80]).is_some());
    }
}
