//! The window: a fixed number of blocks, of which the oldest goes when another comes; and what is
//! to be sent of it.

use super::second::Second;
use super::{AFTER_NS, Reason};
use crate::sampler::Tick;
use crate::schemas::Table;
use std::sync::Arc;
use strobe_wire::burst::{BURST_BYTES_MAX, Packer};
use strobe_wire::ids::SchemaId;
use strobe_wire::schema::{Column, Kind, Schema};

/// See the module.
#[derive(Debug)]
pub(super) struct Shelf {
    blocks: Vec<Block>,
    /// Number of the block that comes next; a block's place is its number modulo their count.
    next: u64,
    window_ns: u64,
    ship: Option<Ship>,
    /// Blocks up to this one were sent.
    shipped: u64,
    /// Bursts that began and were not told yet, [`BEGUN_MAX`] at most.
    begun: Vec<Begun>,
    lost: u64,
    second: Second,
    pub(super) row: Option<SecondRow>,
}

/// A block that is full.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) tag: Tag,
    /// The table of schemas does not keep it for as long as a block is here.
    pub(super) schema: Option<Arc<Schema>>,
    pub(super) columns: u16,
    pub(super) samples: u16,
    length: usize,
    bytes: Box<[u8]>,
}

/// What a block is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    pub(super) first: Tick,
    pub(super) last_ns: u64,
    pub(super) schema: SchemaId,
}

#[derive(Clone, Copy, Debug)]
struct Ship {
    next: u64,
    until_ns: u64,
    /// Everything that is to be sent is on the shelf.
    ended: bool,
}

/// A burst's beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Begun {
    pub(super) reason: Reason,
    pub(super) at: Tick,
    /// How much of the time before is sent.
    pub(super) before_ns: u64,
}

/// A row of the second's statistics.
#[derive(Debug)]
pub(super) struct SecondRow {
    pub(super) schema: Arc<Schema>,
    pub(super) id: SchemaId,
    pub(super) values: Vec<u64>,
    pub(super) valid: Vec<u8>,
}

impl Default for Tag {
    fn default() -> Self {
        let first = Tick { wall_ns: 0, boottime_ns: 0 };
        Self { first, last_ns: 0, schema: SchemaId(0) }
    }
}

impl Block {
    pub(super) fn packed(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

impl Shelf {
    pub(super) fn new(window_ms: u64) -> Self {
        // A block for each 625 ms, 6 KiB a second: three times what a busy host of 50 columns packs.
        let blocks = usize::try_from(window_ms / BLOCK_MS).unwrap_or(usize::MAX);
        let block = Block {
            tag: Tag::default(),
            schema: None,
            columns: 0,
            samples: 0,
            length: 0,
            bytes: vec![0; BURST_BYTES_MAX].into(),
        };
        Self {
            blocks: vec![block; blocks.clamp(4, BLOCKS_MAX)],
            next: 1,
            window_ns: window_ms.saturating_mul(1_000_000),
            ship: None,
            shipped: 0,
            begun: Vec::new(),
            lost: 0,
            second: Second::default(),
            row: None,
        }
    }

    /// Keeps a block.
    pub(super) fn put(&mut self, tag: Tag, schema: Option<&Arc<Schema>>, packer: &Packer) {
        let count = self.count();
        if let Some(ship) = &mut self.ship
            && ship.next + count <= self.next
        {
            // It was to be sent, and the sampler did not come.
            ship.next += 1;
            self.lost += 1;
        }
        let place = self.place(self.next);
        if let Some(block) = self.blocks.get_mut(place) {
            let packed = packer.packed();
            if let Some(bytes) = block.bytes.get_mut(..packed.len()) {
                bytes.copy_from_slice(packed);
            }
            block.schema = schema.cloned();
            (block.tag, block.length, block.samples) = (tag, packed.len(), packer.samples());
            block.columns = u16::try_from(packer.columns()).unwrap_or(0);
        }
        self.next += 1;
    }

    /// A burst begins, or goes on for longer. The block that is not full yet begins at `open_ns`.
    pub(super) fn begin(&mut self, reason: Reason, now: Tick, open_ns: u64) {
        let from_ns = now.boottime_ns.saturating_sub(self.window_ns);
        let oldest = self.next.saturating_sub(self.count()).max(1);
        let inside =
            |number: &u64| self.block(*number).is_some_and(|block| from_ns <= block.tag.last_ns);
        let first = (oldest..self.next).find(inside).unwrap_or(self.next);
        let first_ns = self.block(first).filter(|_| first < self.next);
        let first_ns = first_ns.map_or(open_ns, |block| block.tag.first.boottime_ns);
        let before_ns = now.boottime_ns.saturating_sub(first_ns.max(from_ns));
        let next = self.ship.map_or_else(|| first.max(self.shipped + 1), |ship| ship.next);
        let until_ns = now.boottime_ns.saturating_add(AFTER_NS);
        self.ship = Some(Ship { next, until_ns, ended: false });
        // One more goes on with the last: nobody needs to be told of it as well.
        if self.begun.len() < BEGUN_MAX {
            self.begun.push(Begun { reason, at: now, before_ns });
        }
    }

    /// Whether the last sample that is to be sent has come.
    pub(super) fn ends(&self, now_ns: u64) -> bool {
        self.ship.is_some_and(|ship| !ship.ended && ship.until_ns <= now_ns)
    }

    /// Its block is on the shelf.
    pub(super) fn end(&mut self) {
        if let Some(ship) = &mut self.ship {
            ship.ended = true;
        }
    }

    /// The next block to be sent; the caller sends it.
    pub(super) fn ship(&mut self) -> Option<&Block> {
        let ship = self.ship.as_mut()?;
        if ship.next < self.next {
            let number = ship.next;
            ship.next += 1;
            self.shipped = number;
            return self.block(number);
        }
        if ship.ended {
            self.ship = None;
        }
        None
    }

    #[cfg(test)]
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ship.is_none() && self.begun.is_empty()
    }

    pub(super) fn begun(&mut self) -> Vec<Begun> {
        std::mem::take(&mut self.begun)
    }

    pub(super) fn set_second(&mut self, second: Second, table: &Table) {
        let mut columns = second.columns();
        let gauge = Kind::Gauge { scale: 0 };
        columns.push(crate::readers::column("strobe_recorder_samples", &[], gauge));
        columns.push(crate::readers::column("strobe_recorder_blocks_lost", &[], gauge));
        let (values, valid) = (vec![0; columns.len()], vec![0; columns.len().div_ceil(8)]);
        let schema = Arc::new(Schema { section: "second".to_owned(), columns });
        let id = table.publish(&schema);
        self.second = second;
        self.row = Some(SecondRow { schema, id, values, valid });
    }

    pub(super) fn second_add(&mut self, now_ns: u64, values: &[Option<u64>]) {
        self.second.add(now_ns, values);
    }

    /// The statistics of the time since the last call.
    pub(super) fn second(&mut self) -> Option<&SecondRow> {
        let row = self.row.as_mut()?;
        row.valid.fill(0);
        let samples = u64::try_from(self.second.samples()).unwrap_or(0);
        let mut put = |index: usize, value: Option<u64>| {
            if let Some(place) = row.values.get_mut(index) {
                *place = value.unwrap_or(0);
            }
            if let Some(byte) = row.valid.get_mut(index / 8) {
                *byte |= u8::from(value.is_some()) << (index % 8);
            }
        };
        self.second.take(&mut put);
        let last = row.schema.columns.len().saturating_sub(2);
        put(last, Some(samples));
        put(last + 1, Some(self.lost));
        self.row.as_ref()
    }

    fn block(&self, number: u64) -> Option<&Block> {
        self.blocks.get(self.place(number))
    }

    fn count(&self) -> u64 {
        u64::try_from(self.blocks.len()).unwrap_or(u64::MAX)
    }

    fn place(&self, number: u64) -> usize {
        usize::try_from(number % self.count()).unwrap_or(0)
    }
}

const BLOCK_MS: u64 = 625;
/// 375 KiB.
const BLOCKS_MAX: usize = 96;
/// Bursts that may begin in one tick and be told one by one.
pub(super) const BEGUN_MAX: usize = 8;

/// Of one column, for the rows that tell of a burst.
pub(super) fn seconds(name: &str, reason: Reason) -> Column {
    crate::readers::column(name, &[("reason", reason.word())], Kind::Gauge { scale: 3 })
}
