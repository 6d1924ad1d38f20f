//! The flight recorder: the hot subset a hundred times a second, kept for the last minute, and sent
//! when something happens.
//!
//! ```text
//! recorder's thread   read ─▶ pack ─▶ block full ─▶ shelf (a fixed ring of blocks)
//!                       └──▶ second's statistics        │
//!   bell: somebody rang ─▶ policy ─▶ a burst begins     │
//! sampler's thread, each tick:  statistics' row, burst's row, at most BLOCKS_A_TICK blocks ─▶ ring
//! ```
//!
//! A burst is every block from the oldest on the shelf to the one of `AFTER_NS` later; what another
//! burst has sent already is not sent again. The sampler numbers all frames, so (boot, seq) has no
//! hole; it takes the shelf only if nobody holds it, and waits for nothing. The shelf has a fixed
//! number of blocks: a host that changes a lot keeps fewer seconds, and blocks that go before they
//! were sent are counted in `strobe_recorder_blocks_lost`.
//!
//! By itself a burst begins on pressure, an anomaly or an OOM kill, `COOL_NS` apart at least for each
//! reason; a person's or a broker's request is always met.

mod hot;
pub mod pressure;
mod second;
mod shelf;
mod shipper;
pub mod throttle;
mod top;

pub use shipper::Shipper;

use crate::sampler::{Tick, Trees};
use crate::schemas::Table;
use hot::Hot;
use pressure::Pressure;
use second::Second;
use shelf::{Shelf, Tag};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use strobe_wire::burst::Packer;
use strobe_wire::ids::SchemaId;
use strobe_wire::schema::Schema;
use top::Places;

/// Why a burst was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reason {
    /// A broker asked.
    Request,
    /// SIGUSR2.
    Signal,
    /// Many columns at once did what they seldom do.
    Anomaly,
    /// The kernel killed a process for want of memory.
    OutOfMemory,
    /// Tasks waited for a CPU.
    CpuPressure,
    /// Tasks waited for a disk.
    IoPressure,
    /// Tasks waited for memory.
    MemoryPressure,
}

/// Rung by any thread, heard by the recorder's.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<AtomicU32>);

/// The recorder's own side.
#[derive(Debug)]
pub struct Recorder {
    hot: Hot,
    packer: Packer,
    /// Of the block that is being packed.
    tag: Tag,
    schema: SchemaId,
    columns: Option<Arc<Schema>>,
    table: Arc<Table>,
    shelf: Arc<Mutex<Shelf>>,
    bell: Bell,
    pressure: Pressure,
    policy: Policy,
}

/// Which of those who ring are heard.
#[derive(Debug, Default)]
struct Policy {
    /// When each reason began a burst last.
    last_ns: [Option<u64>; Reason::ALL.len()],
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Request,
        Self::Signal,
        Self::Anomaly,
        Self::OutOfMemory,
        Self::CpuPressure,
        Self::IoPressure,
        Self::MemoryPressure,
    ];

    /// As a label has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Signal => "signal",
            Self::Anomaly => "anomaly",
            Self::OutOfMemory => "out_of_memory",
            Self::CpuPressure => "cpu_pressure",
            Self::IoPressure => "io_pressure",
            Self::MemoryPressure => "memory_pressure",
        }
    }

    fn bit(self) -> u32 {
        1 << self as u8
    }
}

impl Bell {
    /// Asks for a burst; it is heard with the next sample.
    pub fn ring(&self, reason: Reason) {
        // Relaxed: a bit by itself, which carries nothing else.
        self.0.fetch_or(reason.bit(), Relaxed);
    }

    fn heard(&self) -> u32 {
        // Most of the time nobody rang, and a load is not a write.
        if self.0.load(Relaxed) == 0 { 0 } else { self.0.swap(0, Relaxed) }
    }
}

impl Recorder {
    /// With a window of so many ms. The other side of it is the sampler's. `clock` is a monotonic
    /// clock in ns.
    #[must_use]
    pub fn new(
        trees: &Trees,
        window_ms: u64,
        clock: fn() -> u64,
        table: Arc<Table>,
        bell: Bell,
    ) -> (Self, Shipper) {
        let shelf = Arc::new(Mutex::new(Shelf::new(window_ms)));
        let (procfs, cgroups) = (trees.procfs.clone(), trees.sysfs.join("fs/cgroup"));
        let places = Places { procfs, cgroups, clock };
        let shipper = Shipper::new(Arc::clone(&shelf), Arc::clone(&table), places, bell.clone());
        let recorder = Self {
            hot: Hot::new(&trees.procfs, &trees.sysfs),
            packer: Packer::new(1),
            tag: Tag::default(),
            schema: SchemaId(0),
            columns: None,
            table,
            shelf,
            bell,
            pressure: Pressure::default(),
            policy: Policy::default(),
        };
        (recorder, shipper)
    }

    /// Whether nothing moved between the last two samples: no CPU was busy, nobody waited for a disk, and
    /// no disk and no link had a byte.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.hot.is_quiet()
    }

    /// Takes a sample.
    pub fn sample(&mut self, now: Tick) {
        if self.hot.read(now.boottime_ns) {
            self.learn();
        }
        let at_us = now.boottime_ns / 1000;
        if self.packer.push(at_us, self.hot.values()).is_err() {
            self.close_block();
            // An empty block has room for any sample.
            let _ = self.packer.push(at_us, self.hot.values());
        }
        if self.packer.samples() == 1 {
            self.tag = Tag { first: now, schema: self.schema, ..Tag::default() };
        }
        self.tag.last_ns = now.boottime_ns;
        let pressures = self.pressure.look(now.boottime_ns, self.hot.values());
        pressures.for_each(|reason| self.bell.ring(reason));
        let heard = self.bell.heard();
        let heard = Reason::ALL.into_iter().filter(|reason| heard & reason.bit() != 0);
        let begins = heard.filter(|reason| self.policy.hears(*reason, now.boottime_ns)).last();
        let mut shelf = lock(&self.shelf);
        shelf.second_add(now.boottime_ns, self.hot.values());
        if let Some(reason) = begins {
            shelf.begin(reason, now, self.tag.first.boottime_ns);
        }
        if shelf.ends(now.boottime_ns) {
            drop(shelf);
            self.close_block();
            lock(&self.shelf).end();
        }
    }

    /// The kernel's own watch of this resource said that there is pressure.
    pub fn pressed(&mut self, resource: usize) {
        let reasons = [Reason::CpuPressure, Reason::IoPressure, Reason::MemoryPressure];
        if let Some(reason) = reasons.get(resource) {
            self.bell.ring(*reason);
        }
    }

    /// Whether the kernel watches this resource, so that its totals need not be.
    pub fn is_watched(&mut self, resource: usize, watched: bool) {
        self.pressure.is_watched(resource, watched);
    }

    /// Other columns: a block has one schema.
    fn learn(&mut self) {
        self.close_block();
        let schema = Schema { section: "burst".to_owned(), columns: self.hot.columns() };
        self.packer.clear(schema.columns.len());
        let schema = Arc::new(schema);
        self.schema = self.table.publish(&schema);
        self.columns = Some(schema);
        let mut second = Second::default();
        second.learn(&self.hot);
        lock(&self.shelf).set_second(second, &self.table);
    }

    fn close_block(&mut self) {
        if 0 < self.packer.samples() {
            lock(&self.shelf).put(self.tag, self.columns.as_ref(), &self.packer);
        }
        let columns = self.hot.values().len();
        self.packer.clear(columns);
    }
}

impl Policy {
    fn hears(&mut self, reason: Reason, now_ns: u64) -> bool {
        let always = matches!(reason, Reason::Request | Reason::Signal);
        let Some(last_ns) = self.last_ns.get_mut(usize::from(reason as u8)) else { return false };
        if !always && last_ns.is_some_and(|last_ns| now_ns < last_ns.saturating_add(COOL_NS)) {
            return false;
        }
        *last_ns = Some(now_ns);
        true
    }
}

fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    // Nothing under the lock leaves the shelf half-changed.
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much is sent of what comes after.
const AFTER_NS: u64 = 10_000_000_000;
/// Between two bursts for the same reason, unless somebody asks.
const COOL_NS: u64 = 300_000_000_000;

#[cfg(test)]
mod tests;
