//! The schemas of the frames in the ring: written by the sampler when a set changes, read by the
//! uplink before the first frame of a schema it has not sent yet.
//!
//! The lock is taken only when a set changes and when a frame names a schema the uplink has not
//! seen. What a section uses now is always there. What it has outgrown is there for as long as rows of it may be
//! in the ring, up to `NEEDED_COLUMNS_MAX` columns, which are some 160 bytes each; beside that, because sets
//! come back, `OUTGROWN_COLUMNS_MAX` columns and `SCHEMAS_MAX` schemas. The oldest goes first.

use crate::config::SMALL;
use crate::ring::Marks;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use strobe_wire::ids::SchemaId;
use strobe_wire::schema::Schema;

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    schemas: Mutex<VecDeque<Entry>>,
    /// Of the ring that the rows go to.
    marks: Option<Marks>,
}

#[derive(Debug)]
struct Entry {
    id: SchemaId,
    schema: Arc<Schema>,
    /// Of one that its section has outgrown: slots of the ring before this may hold rows of it.
    until: Option<u64>,
}

impl Table {
    /// Empty; no rows of it are in any ring.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty; rows go to this ring.
    #[must_use]
    pub fn of(ring: Marks) -> Self {
        Self { marks: Some(ring), ..Self::default() }
    }

    /// Adds a schema, or makes it its section's newest again; returns its name.
    pub fn publish(&self, schema: &Arc<Schema>) -> SchemaId {
        let id = schema.id();
        self.put(id, schema);
        id
    }

    /// The same, of which the name is known.
    pub fn put(&self, id: SchemaId, schema: &Arc<Schema>) {
        let claimed = self.marks.as_ref().map_or(0, |ring| ring.claimed() + QUEUED_MAX);
        let released = self.marks.as_ref().map_or(u64::MAX, Marks::released);
        let mut schemas = self.lock();
        schemas.retain(|entry| entry.id != id);
        for entry in schemas.iter_mut().filter(|entry| entry.until.is_none()) {
            if entry.schema.section == schema.section {
                entry.until = Some(claimed);
            }
        }
        schemas.push_back(Entry { id, schema: Arc::clone(schema), until: None });
        while let Some(at) = over(&schemas, released) {
            schemas.remove(at);
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

/// Which one has to go, if the bounds are exceeded.
fn over(schemas: &VecDeque<Entry>, released: u64) -> Option<usize> {
    let of = |needed: bool| {
        let is = move |entry: &Entry| entry.until.is_some_and(|until| (released < until) == needed);
        let columns = schemas.iter().filter(move |entry| is(entry));
        let columns: usize = columns.map(|entry| entry.schema.columns.len()).sum();
        (columns, schemas.iter().position(is))
    };
    let ((needed, first_needed), (outgrown, first)) = (of(true), of(false));
    if NEEDED_COLUMNS_MAX < needed {
        first_needed
    } else if OUTGROWN_COLUMNS_MAX < outgrown || SCHEMAS_MAX < schemas.len() {
        // So many may be needed, or even used: then these go.
        first.or(first_needed).or(Some(0))
    } else {
        None
    }
}

/// Sections (at most 16 parts of each of a handful of families) and a good many former sets.
const SCHEMAS_MAX: usize = 512;
/// Of sets that come back: some minutes of a family that changes every ten seconds.
const OUTGROWN_COLUMNS_MAX: usize = 8192;
/// Of rows that wait: 5 MiB, or 1.3 in the small build, where a set changes each second and no broker answers.
const NEEDED_COLUMNS_MAX: usize = if SMALL { 8192 } else { 32_768 };
/// Rows of inputs that are still on their way to the ring.
const QUEUED_MAX: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Ring;
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
        let region = hugepage_config::Region::map(4 * 4096, hugepage_config::Want::Plain).unwrap();
        let Ring { mut writer, mut reader } = Ring::new(4, region).unwrap();
        let table = Table::of(writer.marks());
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
        // ... and do not any more once the ring has come so far.
        for _ in 0..QUEUED_MAX {
            writer.claim().unwrap().publish(1);
            let ticket = reader.next().unwrap().ticket();
            reader.release(ticket);
        }
        table.publish(&schema(99));
        assert_eq!(kept(), 1 + OUTGROWN_COLUMNS_MAX / 400);
        assert!(table.schema(ids[99]).is_some() && table.schema(ids[80]).is_some());
    }
}
