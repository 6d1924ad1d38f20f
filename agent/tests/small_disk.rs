//! Disks that take nothing, for real: a small tmpfs in a mount namespace of its own, full to the last
//! byte and then read-only.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use strobe_agent::machine::Machine;
use strobe_agent::schemas::Table;
use strobe_agent::spool::{Mark, Numbers, Spool, SpoolConfig, Spooled};
use strobe_agent::state::{State, StateError};
use strobe_wire::frame::{Event, FrameKind, Header, seal_event};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};

/// Set inside the namespace: where the small file system is to be mounted.
const INSIDE: &str = "STROBE_TEST_SMALL_DISK";

/// Runs the test of this name again in its own user and mount namespace. Where that is denied the
/// test fails: a full disk that was never met is no proof.
fn in_namespace(name: &str, test: fn(&Path)) {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return test(&PathBuf::from(dir));
    }
    let dir = std::env::temp_dir().join(format!("spool-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let script = r#"mount -t tmpfs -o size=1m small "$STROBE_TEST_SMALL_DISK" && exec "$@""#;
    let outcome = Command::new("unshare")
        .args(["-Urm", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, &dir)
        .output()
        .expect("unshare (util-linux) is needed");
    fs::remove_dir(&dir).unwrap();
    let said = String::from_utf8_lossy(&outcome.stderr);
    assert!(
        outcome.status.success(),
        "failed inside `unshare -Urm` (if it says that it is not permitted, allow unprivileged \
         user namespaces or run as root):\n{said}"
    );
}

struct World {
    config: SpoolConfig,
    numbers: Arc<Numbers>,
    spool: Spool,
    table: Table,
    seq: u64,
    flushes: u32,
}

impl World {
    fn open(dir: &Path, boot: u128) -> Self {
        let dir = dir.join("spool");
        let config = SpoolConfig { dir, disk_bytes_max: 64 << 20, memory_bytes_max: 8 << 20 };
        let numbers = Arc::new(Numbers::default());
        let spool = Spool::open(config.clone(), (HostId(1), BootId(boot)), Arc::clone(&numbers));
        Self { config, numbers, spool, table: Table::new(), seq: 0, flushes: 0 }
    }

    fn put(&mut self, count: usize, boot: u128) {
        for _ in 0..count {
            self.seq += 1;
            let header = Header {
                kind: FrameKind::Event,
                host: HostId(1),
                boot: BootId(boot),
                seq: Seq(self.seq),
                wall_ns: 1,
                boottime_ns: 1,
                schema: SchemaId(0),
            };
            let event = Event { name: "e".to_owned(), text: "x".repeat(500) };
            self.spool.put(&seal_event(&header, &event).unwrap(), &self.table);
        }
        self.flush();
    }

    /// As if the time had come to try the disk again.
    #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
    fn flush(&mut self) {
        self.flushes += 1;
        let later = std::time::Duration::from_secs(60) * self.flushes;
        self.spool.flush(std::time::Instant::now() + later);
    }

    fn take(&mut self) -> Vec<Mark> {
        self.spool.rewind();
        let next = std::iter::from_fn(|| self.spool.next());
        next.filter_map(|next| match next {
            Spooled::Frame { mark, .. } => Some(mark),
            Spooled::Schema(..) => None,
        })
        .collect()
    }

    /// Every frame is there, in order.
    fn assert_whole(&mut self, boot: u128, last: u64) {
        let seqs: Vec<_> = self.take().iter().map(|mark| (mark.boot.0, mark.seq)).collect();
        assert_eq!(seqs, (1..=last).map(|seq| (boot, seq)).collect::<Vec<_>>());
    }
}

fn remount(dir: &Path, how: &str) {
    let done = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(dir).status();
    assert!(done.unwrap().success());
}

#[test]
fn a_full_or_read_only_disk_costs_no_frame_and_no_start() {
    in_namespace("a_full_or_read_only_disk_costs_no_frame_and_no_start", |dir| {
        let state = State::open(dir, &Machine::default()).unwrap();
        let host = state.host;
        let mut world = World::open(dir, 5);
        world.put(500, 5);
        assert_eq!(world.numbers.snapshot().memory_bytes, 0, "the disk takes it");
        // Full to the last byte: what does not fit stays in memory, behind the rest.
        world.put(2_000, 5);
        let full = world.numbers.snapshot();
        assert!(0 < full.memory_bytes && full.lost == 0, "{full:?}");
        world.assert_whole(5, 2_500);
        // Room is made by what is acknowledged, and the disk is taken again.
        for mark in world.take().into_iter().take(600) {
            world.spool.release(mark);
        }
        remount(dir, "size=8m");
        world.flush();
        assert_eq!(world.numbers.snapshot().memory_bytes, 0);
        let seqs: Vec<_> = world.take().iter().map(|mark| mark.seq).collect();
        assert_eq!(seqs, (601..=2_500).collect::<Vec<_>>());
        drop((world, state));
        // Read-only: the host is known, what waits is read, what comes stays in memory.
        remount(dir, "ro");
        let state = State::open(dir, &Machine::default()).unwrap();
        assert_eq!(state.host, host);
        assert!(
            matches!(State::open(dir, &Machine::default()), Err(StateError::Locked(_))),
            "locked all the same"
        );
        let mut world = World::open(dir, 6);
        world.put(100, 6);
        let held = world.numbers.snapshot();
        assert!(0 < held.memory_bytes && held.lost == 0, "{held:?}");
        world.assert_whole(6, 100);
        drop(world);
        remount(dir, "rw");
        let mut world = World::open(dir, 7);
        assert!(world.config.dir.exists());
        let seqs: Vec<_> = world.take().iter().map(|mark| mark.seq).collect();
        assert_eq!(seqs.last(), Some(&2_500), "all of it is still there");
        for mark in world.take() {
            world.spool.release(mark);
        }
        assert!(world.spool.is_empty() && !world.config.dir.exists());
    });
}
