//! A section: the columns that change together, cut into parts that fit a frame.

use crate::schemas::Table;
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
