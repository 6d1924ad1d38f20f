//! The scores of a section's columns: what was there the last time, and a scorer a column.
//!
//! ```text
//! row ─▶ counter: rate since the last row │ gauge: value │ not known: nothing ─▶ scorer ─▶ a byte
//! ```
//!
//! Nothing is said of a column that has no value, that had none the last time (of a counter), or of
//! a counter that fell: the next row is compared with what is there then. Rates are by the boot
//! clock, so a step of the wall clock changes none. When a section gets other columns, those that
//! stay keep their scorers, and new ones start from nothing, which is quiet.
//!
//! The columns named in [`strobe_wire::score::HOT`] are scored with all evidence (496 B each,
//! [`HOT_MAX`] a section), the others in brief (64 B each), and [`UNSCORED`] are not scored.

use super::Tick;
use crate::score::{BriefScorer, Scorer, to_bits};
use std::collections::HashMap;
use std::time::Duration;
use strobe_wire::schema::{Column, Kind, Labels};
use strobe_wire::score::{ODD, is_hot};

/// Whether columns are scored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scoring {
    /// They are.
    #[default]
    On,
    /// Rows are without scores, and there is no anomaly rate.
    Off,
}

/// One tick's scoring.
#[derive(Debug)]
pub(super) struct Judging {
    pub(super) now: Tick,
    /// Columns that could be scored in this tick, and how many of them are odd.
    pub(super) scored: u64,
    pub(super) odd: u64,
}

/// The scorers of a part's columns.
#[derive(Debug, Default)]
pub(super) struct Scores {
    judges: Vec<Judge>,
    hot: Vec<Scorer>,
    brief: Vec<BriefScorer>,
    /// The row before.
    before: Vec<u64>,
    before_valid: Vec<u8>,
    before_ns: u64,
    pub(super) bits: Vec<u8>,
}

/// Who scores a column.
#[derive(Clone, Copy, Debug)]
struct Judge {
    who: Who,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Nobody,
    Hot(usize),
    Brief(usize),
}

impl Judging {
    pub(super) fn new(now: Tick) -> Self {
        Self { now, scored: 0, odd: 0 }
    }

    /// Of the columns that could be scored in this tick, the part that is odd, in ten thousandths.
    pub(super) fn rate(&self) -> Option<u64> {
        (self.odd * 10_000).checked_div(self.scored)
    }
}

impl Scores {
    /// For `columns`; those that `former` has scorers of, with their columns then, go on with them.
    pub(super) fn new(columns: &[Column], former: &mut [(&[Column], &mut Self)]) -> Self {
        let mut known = HashMap::new();
        for (part, (columns, _)) in former.iter().enumerate() {
            let names = columns.iter().enumerate();
            known.extend(names.map(|(at, column)| (name(column), (part, at))));
        }
        let mut scores = Self {
            before: vec![0; columns.len()],
            before_valid: vec![0; columns.len().div_ceil(8)],
            bits: vec![0; columns.len()],
            ..Self::default()
        };
        for (index, column) in columns.iter().enumerate() {
            let old = known.get(&name(column)).copied();
            let old = old.and_then(|(part, at)| Some((&mut *former.get_mut(part)?.1, at)));
            let who = scores.employ(index, column, old);
            scores.judges.push(Judge { who, kind: column.kind });
        }
        scores
    }

    /// Finds a scorer for a column: the one that it had, if any.
    fn employ(&mut self, index: usize, column: &Column, old: Option<(&mut Self, usize)>) -> Who {
        if UNSCORED.iter().any(|start| column.name.starts_with(start)) {
            return Who::Nobody;
        }
        let (mut hot, mut brief) = (None, None);
        if let Some((old, at)) = old {
            match old.judges.get(at).map(|judge| judge.who) {
                Some(Who::Hot(at)) => hot = old.hot.get_mut(at).map(std::mem::take),
                Some(Who::Brief(at)) => brief = old.brief.get_mut(at).map(std::mem::take),
                Some(Who::Nobody) | None => {}
            }
            if let Some(value) = old.value_before(at) {
                self.before_ns = old.before_ns;
                self.keep(index, Some(value));
            }
        }
        if is_hot(column) && self.hot.len() < HOT_MAX {
            self.hot.push(hot.unwrap_or_default());
            return Who::Hot(self.hot.len() - 1);
        }
        self.brief.push(brief.unwrap_or_default());
        Who::Brief(self.brief.len() - 1)
    }

    /// Scores a row.
    pub(super) fn judge(&mut self, values: &[u64], valid: &[u8], judging: &mut Judging) {
        let now = judging.now;
        let wall_s = Duration::from_nanos(u64::try_from(now.wall_ns).unwrap_or(0)).as_secs_f64();
        let passed = Duration::from_nanos(now.boottime_ns.saturating_sub(self.before_ns));
        let passed_s = passed.as_secs_f64();
        self.before_ns = now.boottime_ns;
        for index in 0..self.judges.len() {
            let Some(judge) = self.judges.get(index).copied() else { break };
            let byte = valid.get(index / 8).copied().unwrap_or(0);
            let value = values.get(index).copied().filter(|_| byte >> (index % 8) & 1 == 1);
            let told = value.and_then(|raw| self.told(index, raw, judge.kind, passed_s));
            self.keep(index, value);
            let score = match (judge.who, told) {
                (Who::Hot(at), Some(value)) => {
                    self.hot.get_mut(at).map(|scorer| scorer.score(wall_s, value))
                }
                (Who::Brief(at), Some(value)) => {
                    self.brief.get_mut(at).map(|scorer| scorer.score(value))
                }
                (Who::Nobody, _) | (_, None) => None,
            };
            let bits = score.map_or(0, to_bits);
            judging.scored += u64::from(score.is_some());
            judging.odd += u64::from(ODD <= bits);
            if let Some(place) = self.bits.get_mut(index) {
                *place = bits;
            }
        }
    }

    /// What a column says now: a counter its rate, in its own unit.
    fn told(&self, index: usize, raw: u64, kind: Kind, passed_s: f64) -> Option<f64> {
        match kind {
            // Scorers do not mind the unit, so the scale is left out.
            Kind::Gauge { .. } => Some(signed_f64(raw.cast_signed())),
            Kind::Float => Some(f64::from_bits(raw)).filter(|value| value.is_finite()),
            Kind::Counter { .. } => {
                let grown = raw.checked_sub(self.value_before(index)?)?;
                (0.0 < passed_s).then(|| as_f64(grown) / passed_s)
            }
        }
    }

    fn value_before(&self, index: usize) -> Option<u64> {
        let byte = self.before_valid.get(index / 8).copied().unwrap_or(0);
        self.before.get(index).copied().filter(|_| byte >> (index % 8) & 1 == 1)
    }

    fn keep(&mut self, index: usize, value: Option<u64>) {
        if let Some(before) = self.before.get_mut(index) {
            *before = value.unwrap_or(0);
        }
        if let Some(byte) = self.before_valid.get_mut(index / 8) {
            let bit = 1 << (index % 8);
            *byte = if value.is_some() { *byte | bit } else { *byte & !bit };
        }
    }
}

fn name(column: &Column) -> (&str, &Labels) {
    (&column.name, &column.labels)
}

#[expect(clippy::cast_precision_loss, reason = "a rate's last digits are no anomaly")]
fn as_f64(raw: u64) -> f64 {
    raw as f64
}

#[expect(clippy::cast_precision_loss, reason = "a value's last digits are no anomaly")]
fn signed_f64(raw: i64) -> f64 {
    raw as f64
}

/// Columns of one section with a large scorer; what is over is scored in brief.
const HOT_MAX: usize = strobe_wire::score::COLUMNS_MAX;
/// Time is no news, what does not change has none, and what the agent says of itself is not what
/// the host does. A name stands for all that begin so.
const UNSCORED: [&str; 9] = [
    "node_time_seconds",
    "node_boot_time_seconds",
    "node_timex_",
    "node_uname_info",
    "node_os_",
    "node_dmi_",
    "node_disk_info",
    "node_scrape_collector_",
    "strobe_",
];

#[cfg(test)]
mod tests;
