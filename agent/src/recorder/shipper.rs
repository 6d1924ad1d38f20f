//! The sampler's side of the recorder: each tick a row of statistics, and of a burst at most
//! [`BLOCKS_A_TICK`] blocks, so that live rows always have room.

use super::shelf::{BEGUN_MAX, Begun, Shelf, seconds};
use super::top::{Places, Top, Use};
use super::{AFTER_NS, Bell, Reason, lock};
use crate::sampler::{SectionRow, Tick};
use crate::schemas::Table;
use crate::sealer::Sealer;
use std::sync::{Arc, Mutex, TryLockError};
use strobe_wire::frame::Burst;
use strobe_wire::ids::SchemaId;
use strobe_wire::schema::{Column, Kind, Schema};

/// See the module.
#[derive(Debug)]
pub struct Shipper {
    shelf: Arc<Mutex<Shelf>>,
    table: Arc<Table>,
    top: Top,
    /// Who used the CPUs at the moment of this burst is still being found out.
    asked: Vec<Tick>,
    bell: Bell,
    /// Where the rows of a schema have the kernel's count of OOM kills.
    kills_at: Option<(SchemaId, usize)>,
    kills: Option<u64>,
    /// The anomaly rate was high, and was not low since.
    odd: bool,
}

impl Shipper {
    pub(super) fn new(
        shelf: Arc<Mutex<Shelf>>,
        table: Arc<Table>,
        places: Places,
        bell: Bell,
    ) -> Self {
        let top = Top::new(places);
        Self { shelf, table, top, asked: Vec::new(), bell, kills_at: None, kills: None, odd: false }
    }

    /// Whether everything of the bursts so far has been handed over.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.asked.is_empty() && lock(&self.shelf).is_idle()
    }

    /// A row of this tick: it may say that something is wrong.
    pub fn watch(&mut self, row: &SectionRow<'_>) {
        if row.schema.section == "edge" {
            let rate = row.values.first().copied().unwrap_or(0);
            if !self.odd && ODD_E4 <= rate {
                self.bell.ring(Reason::Anomaly);
            }
            self.odd = ODD_E4 <= rate || (self.odd && ODD_E4 / 2 <= rate);
        }
        let Some(at) = self.kills_place(row) else { return };
        let valid = row.valid.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
        let Some(kills) = row.values.get(at).copied().filter(|_| valid) else { return };
        if self.kills.replace(kills).is_some_and(|before| before < kills) {
            self.bell.ring(Reason::OutOfMemory);
        }
    }

    fn kills_place(&mut self, row: &SectionRow<'_>) -> Option<usize> {
        match self.kills_at {
            Some((id, at)) if id == row.id => Some(at),
            // Only these have it: with the others of its interval, or on one of its own.
            _ if ["kernel", "vmstat"].iter().any(|of| row.schema.section.starts_with(of)) => {
                let named = |column: &Column| column.name == "node_vmstat_oom_kill";
                let at = row.schema.columns.iter().position(named)?;
                self.kills_at = Some((row.id, at));
                Some(at)
            }
            _ => None,
        }
    }

    /// A tick's part of it.
    pub fn tick(&mut self, now: Tick, sealer: &mut Sealer) {
        let begun = match self.shelf.try_lock() {
            Ok(mut shelf) => {
                if let Some(row) = shelf.second() {
                    let (schema, values, valid) = (&row.schema, &row.values[..], &row.valid[..]);
                    let scores = &[];
                    sealer.row(now, &SectionRow { schema, id: row.id, values, valid, scores });
                }
                for _ in 0..BLOCKS_A_TICK {
                    let Some(block) = shelf.ship() else { break };
                    if let Some(schema) = &block.schema {
                        self.table.put(block.tag.schema, schema);
                    }
                    let (columns, samples) = (block.columns, block.samples);
                    let burst = Burst { columns, samples, packed: block.packed() };
                    sealer.burst(now, block.tag.first, block.tag.schema, &burst);
                }
                shelf.begun()
            }
            // The recorder is at it; the next tick is as good.
            Err(TryLockError::WouldBlock) => Vec::new(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().begun(),
        };
        for begun in begun {
            self.tell(begun, sealer);
            self.top.ask();
            if self.asked.len() < BEGUN_MAX {
                self.asked.push(begun.at);
            }
        }
        if !self.asked.is_empty()
            && let Some(found) = self.top.found()
        {
            for at in std::mem::take(&mut self.asked) {
                self.tell_top(at, &found, sealer);
            }
        }
    }

    /// A row at the moment the burst began: why, and what is sent.
    fn tell(&self, begun: Begun, sealer: &mut Sealer) {
        let text = format!("the flight recorder sends a burst: {}", begun.reason.word());
        sealer.event(begun.at, "burst", &text);
        let columns = vec![
            seconds("strobe_burst_before_seconds", begun.reason),
            seconds("strobe_burst_after_seconds", begun.reason),
        ];
        let values = [begun.before_ns / 1_000_000, AFTER_NS / 1_000_000];
        self.row(begun.at, "bursts", columns, &values, sealer);
    }

    /// Who used the CPUs then.
    fn tell_top(&self, at: Tick, found: &[Use], sealer: &mut Sealer) {
        let column = |one: &Use| {
            let labels: Vec<_> = one.labels.iter().map(|(name, value)| (*name, &**value)).collect();
            crate::readers::column(one.metric, &labels, Kind::Gauge { scale: 4 })
        };
        let columns: Vec<Column> = found.iter().map(column).collect();
        let values: Vec<u64> = found.iter().map(|one| one.ratio_e4).collect();
        if !columns.is_empty() {
            self.row(at, "burst_top", columns, &values, sealer);
        }
    }

    fn row(
        &self,
        at: Tick,
        section: &str,
        columns: Vec<Column>,
        values: &[u64],
        sealer: &mut Sealer,
    ) {
        let schema = Arc::new(Schema { section: section.to_owned(), columns });
        let id = self.table.publish(&schema);
        let valid = vec![255; values.len().div_ceil(8)];
        sealer.row(at, &SectionRow { schema: &schema, id, values, valid: &valid, scores: &[] });
    }
}

/// A tenth of all columns at once.
const ODD_E4: u64 = 1000;
/// 32 KiB of a ring of 2 MiB: a minute goes out in ten seconds.
const BLOCKS_A_TICK: usize = 8;
