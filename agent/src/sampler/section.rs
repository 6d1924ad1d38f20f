//! A section: the columns that change together, cut into parts that fit a frame.

use super::SectionRow;
use super::scores::{Judging, Scores, Scoring};
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
    pub(super) parts: Vec<Part>,
    pub(super) changed: bool,
    /// Whether this tick has a row of it.
    pub(super) due: bool,
    pub(super) refused: u64,
    scoring: Scoring,
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) schema: Arc<Schema>,
    pub(super) id: SchemaId,
    /// Where the values are, in the order of the columns.
    pub(super) runs: Vec<Run>,
    pub(super) values: Vec<u64>,
    pub(super) valid: Vec<u8>,
    /// Unless there are to be none.
    scores: Option<Scores>,
}

/// Columns of a source that follow each other in the row too.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) source: usize,
    pub(super) columns: Range<usize>,
}

impl Section {
    pub(super) fn new(name: &'static str, scoring: Scoring) -> Self {
        Self { name, parts: Vec::new(), changed: true, due: true, refused: 0, scoring }
    }

    /// New schemas from all columns of all members: those of member `n` are `members[n]`.
    pub(super) fn rebuild(&mut self, members: Vec<Vec<Column>>, table: &Table) {
        let (mut columns, mut plan, mut known) = (Vec::new(), Vec::new(), HashSet::new());
        self.refused = 0;
        for (member, described) in members.into_iter().enumerate() {
            for (index, column) in described.into_iter().enumerate() {
                // Two keys may differ only in bytes that a name or label cannot show.
                let unique = known.insert((column.name.clone(), column.labels.clone()));
                if unique && plan.len() < PARTS_MAX * SECTION_COLUMNS_MAX {
                    plan.push((member, index));
                    columns.push(column);
                } else {
                    self.refused += 1;
                }
            }
        }
        self.set(columns, &plan, table);
    }

    /// Takes new columns; `plan` has the source and its column behind each.
    pub(super) fn set(&mut self, columns: Vec<Column>, plan: &[(usize, usize)], table: &Table) {
        let mut former = std::mem::replace(&mut self.parts, parts(self.name, columns, plan, table));
        self.changed = false;
        if self.scoring == Scoring::Off {
            return;
        }
        let former = former.iter_mut();
        let mut former: Vec<_> = former
            .filter_map(|part| Some((&*part.schema.columns, part.scores.as_mut()?)))
            .collect();
        for part in &mut self.parts {
            part.scores = Some(Scores::new(&part.schema.columns, &mut former));
        }
    }

    /// Hands out its rows of the last time.
    pub(super) fn again(&self, sink: &mut impl FnMut(SectionRow<'_>)) {
        self.parts.iter().for_each(|part| sink(part.row()));
    }

    /// Hands out its rows; `value` knows the column of a member.
    pub(super) fn emit(
        &mut self,
        value: impl Fn(usize, usize) -> Option<u64>,
        judging: &mut Judging,
        sink: &mut impl FnMut(SectionRow<'_>),
    ) {
        for part in &mut self.parts {
            // A row without a value says nothing.
            if part.gather(&value) {
                part.judge(judging);
                sink(part.row());
            }
        }
    }
}

impl Part {
    /// Takes its values from where they are; whether there was any.
    pub(super) fn gather(&mut self, value: impl Fn(usize, usize) -> Option<u64>) -> bool {
        self.valid.fill(0);
        let (mut any, mut at) = (false, 0);
        for run in &self.runs {
            for column in run.columns.clone() {
                let found = value(run.source, column);
                any |= found.is_some();
                if let Some(value) = self.values.get_mut(at) {
                    *value = found.unwrap_or(0);
                }
                if let Some(byte) = self.valid.get_mut(at / 8) {
                    *byte |= u8::from(found.is_some()) << (at % 8);
                }
                at += 1;
            }
        }
        any
    }

    /// Scores what was gathered.
    pub(super) fn judge(&mut self, judging: &mut Judging) {
        if let Some(scores) = &mut self.scores {
            scores.judge(&self.values, &self.valid, judging);
        }
    }

    pub(super) fn row(&self) -> SectionRow<'_> {
        let Self { schema, id, values, valid, scores, .. } = self;
        let scores = scores.as_ref().map_or(&[][..], |scores| &scores.bits);
        SectionRow { schema, id: *id, values, valid, scores }
    }
}

/// `plan` has the source and its column behind each of `columns`.
fn parts(name: &str, columns: Vec<Column>, plan: &[(usize, usize)], table: &Table) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = columns.into_iter().peekable();
    let mut plans = plan.chunks(SECTION_COLUMNS_MAX);
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
            runs: runs(plans.next().unwrap_or(&[])),
            values: vec![0; count],
            valid: vec![0; count.div_ceil(8)],
            scores: None,
        });
    }
    parts
}

fn runs(plan: &[(usize, usize)]) -> Vec<Run> {
    let follows = |a: &(usize, usize), b: &(usize, usize)| a.0 == b.0 && a.1 + 1 == b.1;
    let run = |chunk: &[(usize, usize)]| {
        let &(source, first) = chunk.first()?;
        Some(Run { source, columns: first..first + chunk.len() })
    };
    plan.chunk_by(follows).filter_map(run).collect()
}

/// Sections of one family.
pub const PARTS_MAX: usize = 16;
