//! The schemas of the frames in the ring: written by the sampler when a set changes, read by the
//! uplink before the first frame of a schema it has not sent yet.
//!
//! The lock is taken only when a set changes and when a frame names a schema the uplink has not
//! seen. At most `SCHEMAS_MAX` are kept; the oldest that its section has outgrown goes first, so
//! what a section uses now is always there.

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
        while SCHEMAS_MAX < schemas.len() {
            let outgrown = (0..schemas.len()).find(|index| {
                let section = schemas.get(*index).map(|(_, schema)| &schema.section);
                schemas.iter().skip(index + 1).any(|(_, later)| Some(&later.section) == section)
            });
            schemas.remove(outgrown.unwrap_or(0));
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
}
