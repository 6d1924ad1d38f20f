//! Hosts in a store: each with the 175 series of the load generator's model, at 1 Hz.
//!
//! Of a host's five rows a second a fleet may be given some only, by section, so that a thousand
//! hosts are made in seconds; what is measured on it reads these sections.

use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use strobe_broker::store::{MatchOp, Matcher, Store, StoreConfig, Writer};
use strobe_perf::rows::{Model, Shape, Values, message};
use strobe_wire::ids::{BootId, HostId, SchemaId};
use strobe_wire::schema::{Labels, Schema};

/// Series of a host.
pub const SERIES: usize = 175;

/// The first row's time, ms: a window of ten minutes starts there, and an hour.
pub const T0: i64 = 1_699_999_200_000;

/// What a fleet is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Names its directory.
    pub name: &'static str,
    /// Hosts 1 to so many.
    pub hosts: u128,
    /// Host 1 has rows from the first second on, the others from this one on.
    pub others_from: i64,
    /// Seconds of rows.
    pub seconds: i64,
    /// The sections that are written, each from a second on; all if none is named.
    pub sections: &'static [(&'static str, i64)],
}

/// A directory of its own, removed when it is dropped.
#[derive(Debug)]
pub struct Dir(PathBuf);

/// A store with hosts in it.
#[derive(Debug)]
pub struct Fleet {
    /// For readers.
    pub store: Store,
    /// For more rows.
    pub writer: Writer,
    model: Arc<Model>,
    ids: Vec<SchemaId>,
    sections: &'static [(&'static str, i64)],
    values: Vec<Values>,
    /// Second of the next row.
    second: i64,
    dir: Dir,
}

impl Fleet {
    /// Hosts without rows.
    ///
    /// # Panics
    /// If the temporary directory cannot be written.
    #[must_use]
    pub fn empty(plan: &Plan) -> Self {
        let name = format!("strobe-bench-{}-{}", plan.name, std::process::id());
        let dir = std::env::temp_dir().join(name);
        // Of an earlier process with this number.
        let _ = std::fs::remove_dir_all(&dir);
        let (store, mut writer, _) = Store::open(config(&dir), T0).expect("a new store");
        let model = Arc::new(Model::new(Shape::Host, SERIES));
        for schema in &model.schemas {
            writer.schema(schema).expect("a good schema");
        }
        let mut values = Vec::new();
        for host in 1..=plan.hosts {
            let name = format!("host-{host:04}");
            writer.host(HostId(host), "node", &name, &Labels::default()).expect("a good name");
            values.push(Values::new(Arc::clone(&model), u64::try_from(host).unwrap_or(0)));
        }
        let (sections, dir) = (plan.sections, Dir(dir));
        let ids = model.schemas.iter().map(Schema::id).collect();
        Self { store, writer, model, ids, sections, values, second: 0, dir }
    }

    /// With rows, sealed as a running broker seals them: the newest minutes are in memory, as young
    /// blocks and rows.
    ///
    /// # Panics
    /// If the temporary directory cannot be written.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let mut fleet = Self::empty(plan);
        for second in 0..plan.seconds {
            fleet.step(if second < plan.others_from { 1 } else { plan.hosts });
            if second % 10 == 9 {
                fleet.commit();
                fleet.writer.settle(fleet.now_ms()).expect("a seal");
            }
        }
        fleet
    }

    /// The next second of the first so many hosts, appended.
    ///
    /// # Panics
    /// If the store refuses.
    pub fn step(&mut self, hosts: u128) {
        let seq = u64::try_from(self.second).unwrap_or(0) + 1;
        let now_ns = self.now_ms() * 1_000_000;
        for (host, values) in (1..=hosts).zip(&mut self.values) {
            values.tick(now_ns);
            // Hosts do not tick in the same millisecond.
            let wall_ns = now_ns + i64::try_from(host).unwrap_or(0) * 37 % 1_000 * 1_000_000;
            let sections = self.model.schemas.iter().zip(&self.ids).zip(values.sections());
            for ((schema, id), row) in sections {
                let wanted =
                    |(name, from): &(&str, i64)| *name == schema.section && *from <= self.second;
                if self.sections.is_empty() || self.sections.iter().any(wanted) {
                    let row = message(HostId(host), BootId(1), seq, wall_ns, (*id, row));
                    let frame: Bytes = row.slice(PREFIX_BYTES..);
                    self.writer.frame(&frame).expect("a row");
                }
            }
        }
        self.second += 1;
    }

    /// Makes what was appended visible; the log may be let go of.
    ///
    /// # Panics
    /// If the store refuses.
    pub fn commit(&mut self) {
        self.writer.commit(self.now_ms()).expect("a commit");
        self.writer.windows_kept(self.writer.wal_closed());
    }

    /// Seals the ten minutes that are over, and nothing else: no rollup.
    ///
    /// # Panics
    /// If the store refuses.
    pub fn seal(&mut self) {
        let (before, now_ms) = (self.store.counts().blocks_sealed, self.now_ms() + SEALS_AFTER_MS);
        while self.store.counts().blocks_sealed == before {
            self.writer.tick(now_ms).expect("a seal");
        }
    }

    /// Ten minutes of all hosts, in memory as a broker has them when they are over.
    pub fn fill(&mut self) {
        for second in 0..600 {
            self.step(u128::MAX);
            if second % 30 == 29 {
                self.commit();
            }
        }
    }

    /// When the next row is.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        T0 + self.second * 1_000
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// Closes the store, for others to open it.
    #[must_use]
    pub fn close(self) -> Dir {
        self.dir
    }
}

impl Dir {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // What stays in the temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A store of a bench, whatever room there is.
#[must_use]
pub fn config(dir: &Path) -> StoreConfig {
    StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.to_owned()) }
}

/// A label that is equal.
#[must_use]
pub fn equal(name: &str, value: &str) -> Matcher {
    Matcher { name: name.to_owned(), op: MatchOp::Equal, value: value.to_owned() }
}

/// Before a frame on a stream.
const PREFIX_BYTES: usize = 5;
/// A window is sealed so long after its end.
const SEALS_AFTER_MS: i64 = 30_000;
