//! Micro-benchmarks: `make bench`. What they share is here: the row of 1 KiB that every queue
//! carries, hosts to sample, a fleet in a store, and two ends of a link.

pub mod fleet;
pub mod pair;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use strobe_agent::sampler::{Choice, Sampler, Tick, Trees};
use strobe_agent::schemas::Table;
use strobe_wire::frame::{FrameKind, Header, Row, open, seal_row};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};

/// Columns of the row: 80 header + 100 × 8 + 13 + 100 + 24 = 1,017 bytes sealed.
pub const COLUMNS: usize = 100;

/// Bytes of the sealed row.
pub const SEALED_BYTES: usize = 1017;

/// The same, rounded up: the smallest place that holds it.
pub const ROW_BYTES: usize = 1024;

/// Seals row `seq` into `out`, as the sampler does, and returns its length.
#[must_use]
pub fn seal(out: &mut [u8], seq: u64) -> usize {
    let header = Header {
        kind: FrameKind::Row,
        host: HostId(1),
        boot: BootId(2),
        seq: Seq(seq),
        wall_ns: 3,
        boottime_ns: 4,
        schema: SchemaId(5),
    };
    let mut values = [seq; COLUMNS];
    values[COLUMNS - 1] = !seq;
    let row = Row { values: &values, valid: &[0xff; COLUMNS.div_ceil(8)], scores: &[9; COLUMNS] };
    seal_row(out, &header, &row).unwrap_or(0)
}

/// What a consumer does with a row: opens it, as the uplink and the broker do, which reads every
/// byte of it (CRC) and checks its structure. 0 is no row.
#[must_use]
pub fn look(frame: &[u8]) -> u64 {
    open(frame).map_or(0, |frame| frame.header.seq.0 + 1)
}

/// A real kernel's /proc.
pub const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/proc/6.18");

/// The files of it that are read every tick.
pub const FILES: [&str; 15] = [
    "stat",
    "meminfo",
    "vmstat",
    "diskstats",
    "net/dev",
    "net/netstat",
    "net/snmp",
    "net/snmp6",
    "net/sockstat",
    "net/sockstat6",
    "loadavg",
    "pressure/cpu",
    "pressure/io",
    "pressure/memory",
    "sys/fs/file-nr",
];

/// A host that is sampled, on a clock of its own.
#[derive(Debug)]
pub struct Host {
    sampler: Sampler,
    now: Tick,
}

impl Host {
    /// With this /proc; its file systems are asked once only.
    #[must_use]
    pub fn new(procfs: &Path) -> Self {
        let trees = Trees {
            procfs: procfs.to_owned(),
            sysfs: procfs.join("none"),
            choice: Choice::default(),
            rootfs: PathBuf::from("/"),
            filesystem_interval_ms: 3_600_000,
        };
        let sampler = Sampler::new(&trees, || 0, Arc::new(Table::new()));
        Self { sampler, now: Tick { wall_ns: 0, boottime_ns: 0 } }
    }

    /// A second later; how many rows there were.
    pub fn tick(&mut self) -> usize {
        self.now.wall_ns += 1_000_000_000;
        self.now.boottime_ns += 1_000_000_000;
        let mut rows = 0;
        self.sampler.tick(self.now, |_| rows += 1);
        rows
    }
}

/// A copy of some files of [`FIXTURE`]; removed when dropped.
#[derive(Debug)]
pub struct Tree(PathBuf);

impl Tree {
    /// With these files.
    ///
    /// # Panics
    /// If they cannot be copied.
    #[must_use]
    pub fn of(files: &[&str]) -> Self {
        let name = format!("strobe-bench-{}-{}", std::process::id(), files.concat());
        let tree = Self(std::env::temp_dir().join(name.replace('/', "-")));
        for file in files {
            let to = tree.0.join(file);
            std::fs::create_dir_all(to.parent().unwrap_or(&tree.0)).expect("a directory");
            std::fs::copy(Path::new(FIXTURE).join(file), to).expect("a fixture");
        }
        tree
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // What stays in the temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_is_a_kibibyte() {
        let mut out = [0; ROW_BYTES];
        let length = seal(&mut out, 1);
        assert_eq!(length, SEALED_BYTES);
        assert_eq!(look(&out[..length]), 2);
        out[500] ^= 1;
        assert_eq!(look(&out[..length]), 0);
    }
}
