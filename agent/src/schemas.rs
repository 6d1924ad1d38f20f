//! The schemas of the frames in the ring: written by the sampler when a set changes, read by the
//! uplink before the first frame of a schema it has not sent yet.
//!
//! The lock is taken only when a set changes and when a frame names a schema the uplink has not
//! seen. At most `SCHEMAS_MAX` are kept, and of those that their sections have outgrown at most
//! `OUTGROWN_COLUMNS_MAX` columns, which are some 160 bytes each; the oldest that its section has
//! outgrown goes first, so what a section uses now is always there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use strobe_wire::ids::SchemaId;
use strobe_wire::schema::Schema;

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    schemas: Mutex<VecDeque<(SchemaId, Arc<Schema>)>>,
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
        let mut schemas = self.lock();
        schemas.retain(|(known, _)| *known != id);
        schemas.push_back((id, Arc::clone(schema)));
        loop {
            let is_outgrown = |index: usize| {
                let section = schemas.get(index).map(|(_, schema)| &schema.section);
                schemas.iter().skip(index + 1).any(|(_, later)| Some(&later.section) == section)
            };
            let mut outgrown = (0..schemas.len()).filter(|index| is_outgrown(*index));
            let first = outgrown.next();
            let width = |index| schemas.get(index).map_or(0, |(_, schema)| schema.columns.len());
            let columns: usize = first.into_iter().chain(outgrown).map(width).sum();
            if schemas.len() <= SCHEMAS_MAX && columns <= OUTGROWN_COLUMNS_MAX {
                break;
            }
            schemas.remove(first.unwrap_or(0));
        }
        id
    }

    /// The schema of this name.
    #[must_use]
    pub fn schema(&self, id: SchemaId) -> Option<Arc<Schema>> {
        let schemas = self.lock();
        schemas.iter().find(|(known, _)| *known == id).map(|(_, schema)| Arc::clone(schema))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(SchemaId, Arc<Schema>)>> {
        // Nothing under the lock leaves the list half-changed.
        self.schemas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sections (at most 16 parts of each of a handful of families) and a good many former sets.
const SCHEMAS_MAX: usize = 512;
/// Of a family whose set changes every ten seconds, the sets of some minutes: as long as the ring
/// holds rows of them.
const OUTGROWN_COLUMNS_MAX: usize = 8192;

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
        let kept = ids.iter().filter(|id| table.schema(**id).is_some()).count();
        assert_eq!(kept, 1 + OUTGROWN_COLUMNS_MAX / 400);
        assert!(table.schema(ids[99]).is_some() && table.schema(ids[80]).is_some());
    }
}
