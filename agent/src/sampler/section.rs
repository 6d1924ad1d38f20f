//! A section: the columns that change together, cut into parts that fit a frame.

use super::SectionRow;
use crate::schemas::Table;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use strobe_wire::ids::SchemaId;
use strobe_wire::limits::SECTION_COLUMNS_MAX;
use strobe_wire::schema::{Column, Schema};

#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: &'static str,
    /// Source and column behind each column of the rows, over all parts.
    pub(super) plan: Vec<(usize, usize)>,
    pub(super) parts: Vec<Part>,
    pub(super) changed: bool,
    /// Whether this tick has a row of it.
    pub(super) due: bool,
    pub(super) refused: u64,
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) schema: Arc<Schema>,
    pub(super) id: SchemaId,
    pub(super) plan: Range<usize>,
    pub(super) values: Vec<u64>,
    pub(super) valid: Vec<u8>,
}

impl Section {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, plan: Vec::new(), parts: Vec::new(), changed: true, due: true, refused: 0 }
    }

    /// New schemas from all columns of all members: those of member `n` are `members[n]`.
    pub(super) fn rebuild(&mut self, members: Vec<Vec<Column>>, table: &Table) {
        let (mut columns, mut known) = (Vec::new(), HashSet::new());
        self.plan.clear();
        self.refused = 0;
        for (member, described) in members.into_iter().enumerate() {
            for (index, column) in described.into_iter().enumerate() {
                // Two keys may differ only in bytes that a name or label cannot show.
                let unique = known.insert((column.name.clone(), column.labels.clone()));
                if unique && self.plan.len() < PARTS_MAX * SECTION_COLUMNS_MAX {
                    self.plan.push((member, index));
                    columns.push(column);
                } else {
                    self.refused += 1;
                }
            }
        }
        self.parts = parts(self.name, columns, table);
        self.changed = false;
    }

    /// Hands out its rows; `value` knows the column of a member.
    pub(super) fn emit(
        &mut self,
        value: impl Fn(usize, usize) -> Option<u64>,
        sink: &mut impl FnMut(SectionRow<'_>),
    ) {
        for part in &mut self.parts {
            part.valid.fill(0);
            let plan = self.plan.get(part.plan.clone()).unwrap_or(&[]);
            let mut any = false;
            for (at, (member, column)) in plan.iter().enumerate() {
                let found = value(*member, *column);
                any |= found.is_some();
                if let Some(value) = part.values.get_mut(at) {
                    *value = found.unwrap_or(0);
                }
                if let Some(byte) = part.valid.get_mut(at / 8) {
                    *byte |= u8::from(found.is_some()) << (at % 8);
                }
            }
            // A row without a value says nothing.
            if any {
                let Part { schema, id, values, valid, .. } = &*part;
                sink(SectionRow { schema, id: *id, values, valid });
            }
        }
    }
}

pub(super) fn parts(name: &str, columns: Vec<Column>, table: &Table) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = columns.into_iter().peekable();
    let mut first = 0;
    while rest.peek().is_some() {
        let section = match parts.len() {
            0 => name.to_owned(),
            number => format!("{name}.{number}"),
        };
        let columns: Vec<_> = rest.by_ref().take(SECTION_COLUMNS_MAX).collect();
        let count = columns.len();
        let schema = Arc::new(Schema { section, columns });
        parts.push(Part {
            id: table.publish(&schema),
            schema,
            plan: first..first + count,
            values: vec![0; count],
            valid: vec![0; count.div_ceil(8)],
        });
        first += count;
    }
    parts
}

/// Sections of one family.
pub const PARTS_MAX: usize = 16;
