//! A spool's numbers, for its status and as series.
//!
//! They are told by the sampler's thread: all are plain counts of one writer, the network's thread, and
//! a tick may see some of them a little later than others, which `Relaxed` allows.

use crate::readers::{COUNTER, GAUGE, column};
use crate::sampler::SectionRow;
use crate::schemas::Table;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use strobe_wire::ids::SchemaId;
use strobe_wire::schema::Schema;

/// What became of frames since the start, and what is held now.
#[derive(Debug, Default)]
pub struct Numbers {
    disk_bytes: AtomicU64,
    memory_bytes: AtomicU64,
    kept: AtomicU64,
    sent: AtomicU64,
    lost: AtomicU64,
}

/// [`Numbers`] at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Bytes of its files.
    pub disk_bytes: u64,
    /// Bytes that no disk took yet.
    pub memory_bytes: u64,
    /// Frames that were taken from the ring.
    pub kept: u64,
    /// Frames that a broker has acknowledged.
    pub sent: u64,
    /// Frames that were thinned or dropped because it was full.
    pub lost: u64,
}

/// The section of a spool that was ever used; told while anything of it changes, and not before.
#[derive(Debug)]
pub struct SpoolSection {
    numbers: Arc<Numbers>,
    table: Arc<Table>,
    schema: Option<(Arc<Schema>, SchemaId)>,
}

impl Numbers {
    /// As they are now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            disk_bytes: self.disk_bytes.load(Relaxed),
            memory_bytes: self.memory_bytes.load(Relaxed),
            kept: self.kept.load(Relaxed),
            sent: self.sent.load(Relaxed),
            lost: self.lost.load(Relaxed),
        }
    }

    pub(super) fn hold(&self, disk_bytes: u64, memory_bytes: u64) {
        self.disk_bytes.store(disk_bytes, Relaxed);
        self.memory_bytes.store(memory_bytes, Relaxed);
    }

    pub(super) fn kept(&self, frames: u64) {
        self.kept.fetch_add(frames, Relaxed);
    }

    pub(super) fn sent(&self, frames: u64) {
        self.sent.fetch_add(frames, Relaxed);
    }

    pub(super) fn lost(&self, frames: u64) {
        self.lost.fetch_add(frames, Relaxed);
    }
}

impl SpoolSection {
    /// Nothing is told yet.
    #[must_use]
    pub fn new(numbers: Arc<Numbers>, table: Arc<Table>) -> Self {
        Self { numbers, table, schema: None }
    }

    /// Hands out a row, if the spool was ever used in this life.
    pub fn tick(&mut self, sink: impl FnOnce(SectionRow<'_>)) {
        let now = self.numbers.snapshot();
        if now == Snapshot::default() {
            return;
        }
        let (schema, id) = self.schema.get_or_insert_with(|| {
            let frames = |what| column("strobe_spool_frames_total", &[("what", what)], COUNTER);
            let bytes = |at| column("strobe_spool_bytes", &[("where", at)], GAUGE);
            let columns = vec![
                bytes("disk"),
                bytes("memory"),
                frames("kept"),
                frames("sent"),
                frames("lost"),
            ];
            let schema = Arc::new(Schema { section: "spool".to_owned(), columns });
            let id = self.table.publish(&schema);
            (schema, id)
        });
        let values = [now.disk_bytes, now.memory_bytes, now.kept, now.sent, now.lost];
        sink(SectionRow { schema, id: *id, values: &values, valid: &[0b1_1111], scores: &[] });
    }
}
