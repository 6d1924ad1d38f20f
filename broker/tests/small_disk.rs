//! A file system that fills up, for real: a small tmpfs in a mount namespace of its own.
//!
//! At the free-space floor, and then at the last byte, nothing more is acknowledged, what was
//! acknowledged is answered, and when space is made the store goes on; a restart finds every
//! acknowledged row once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use strobe_broker::store::{Limits, Scratch, Store, StoreConfig, StoreError, TimeRange, Writer};
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::schema::{Column, Kind, Labels, Schema};

const T0: i64 = 1_699_999_200_000;
const COLUMNS: usize = 200;
const FLOOR: u64 = 2 << 20;
/// Set inside the namespace: where the small file system is to be mounted.
const INSIDE: &str = "STROBE_TEST_SMALL_DISK";

/// Runs the test of this name again in its own user and mount namespace. Where that is denied the
/// test fails: a full disk that was never met is no proof.
fn in_namespace(name: &str, test: fn(&Path)) {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return test(&PathBuf::from(dir));
    }
    let dir = std::env::temp_dir().join(format!("small-disk-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let script = r#"mount -t tmpfs -o size=12m small "$STROBE_TEST_SMALL_DISK" && exec "$@""#;
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

struct Host {
    schema: Schema,
    seq: u64,
    random: u64,
}

impl Host {
    fn new(writer: &mut Writer, seq: u64) -> Self {
        let column = |n: usize| Column {
            name: format!("c{n}"),
            labels: Labels::default(),
            kind: Kind::Float,
        };
        let schema = Schema { section: "s".into(), columns: (0..COLUMNS).map(column).collect() };
        writer.schema(&schema).unwrap();
        writer.host(HostId(7), "node", "h7", &Labels::default()).unwrap();
        Self { schema, seq, random: seq + 1 }
    }

    /// Appends the next row, which does not compress.
    fn append(&mut self, writer: &mut Writer) -> Result<(), StoreError> {
        let mut values = [0; COLUMNS];
        for value in &mut values {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            *value = self.random >> 2;
        }
        let header = Header {
            kind: FrameKind::Row,
            host: HostId(7),
            boot: BootId(1),
            seq: Seq(self.seq + 1),
            wall_ns: (T0 + i64::try_from(self.seq).unwrap() * 1000) * 1_000_000,
            boottime_ns: 0,
            schema: self.schema.id(),
        };
        let mut slot = [0; FRAME_BYTES_MAX];
        let row = Row { values: &values, valid: &[255; COLUMNS.div_ceil(8)], scores: &[] };
        let length = seal_row(&mut slot, &header, &row).unwrap();
        writer.frame(&bytes::Bytes::copy_from_slice(&slot[..length]))?;
        self.seq += 1;
        Ok(())
    }

    fn now_ms(&self) -> i64 {
        T0 + i64::try_from(self.seq).unwrap() * 1000
    }
}

/// Times of the rows, each in every column exactly once.
fn rows(store: &Store) -> Vec<i64> {
    let all = TimeRange { start_ms: i64::MIN, end_ms: i64::MAX };
    let limits = Limits { series_max: 1_000, samples_max: u64::MAX };
    let mut scratch = Scratch::new(&limits);
    let mut found: Option<Vec<i64>> = None;
    for part in store.select(&[], all, &limits).unwrap() {
        let visit = &mut |_: &Labels, times: &[i64], _: &[f64]| {
            assert!(found.as_ref().is_none_or(|found| found == times));
            found = Some(times.to_vec());
            Ok(())
        };
        store.scan(&part, all, &mut scratch, visit).unwrap();
    }
    found.unwrap_or_default()
}

fn expected(seq: u64) -> Vec<i64> {
    (0..seq).map(|seq| T0 + i64::try_from(seq).unwrap() * 1000).collect()
}

/// Commits row after row until the store refuses; returns how many are acknowledged.
fn until_full(host: &mut Host, writer: &mut Writer) -> u64 {
    let mut acknowledged = host.seq;
    loop {
        if let Err(error) = host.append(writer).and_then(|()| writer.commit(host.now_ms())) {
            let text = error.to_string();
            assert!(text.contains("space") || text.contains("free"), "{text}");
            return acknowledged;
        }
        acknowledged = host.seq;
        writer.windows_kept(writer.wal_closed());
        // Housekeeping may fail on a full disk; nothing is lost by it.
        let _ = writer.tick(host.now_ms());
        assert!(acknowledged < 100_000, "12 MiB are never full");
    }
}

fn fill_and_go_on(dir: &Path, floor: u64) {
    let config = StoreConfig {
        free_bytes_min: floor,
        wal_file_bytes: 1 << 20,
        ..StoreConfig::at(dir.join("store"))
    };
    let (store, mut writer, _) = Store::open(config.clone(), T0).unwrap();
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let mut host = Host::new(&mut writer, 0);
    let acknowledged = until_full(&mut host, &mut writer);
    assert!(1_000 < acknowledged, "{acknowledged}");
    let free = strobe_journal::free_bytes(dir).unwrap();
    assert!(floor.saturating_sub(1 << 20) <= free, "{free} bytes free at the floor of {floor}");
    // Refused again, and all that was acknowledged is answered.
    writer.commit(host.now_ms()).unwrap_err();
    assert_eq!(rows(&store), expected(acknowledged));
    // Space is made: the row that was refused is in the next commit.
    fs::remove_file(&ballast).unwrap();
    writer.commit(host.now_ms()).unwrap();
    assert_eq!(rows(&store), expected(host.seq));
    assert!(acknowledged < host.seq);
    let acknowledged = until_full(&mut host, &mut writer);
    drop((store, writer));
    // A restart on a full disk keeps what was acknowledged; it may keep the row that was not.
    fs::write(dir.join("last"), vec![1; 12 << 20]).unwrap_err();
    let (store, writer, recovery) = Store::open(config.clone(), T0).unwrap();
    assert_eq!(recovery.damage, Vec::<String>::new());
    let kept = rows(&store);
    assert!([acknowledged, acknowledged + 1].map(expected).contains(&kept), "{}", kept.len());
    drop((store, writer));
    fs::remove_file(dir.join("last")).unwrap();
    let (store, mut writer, _) =
        Store::open(StoreConfig { bytes_max: 4 << 20, free_bytes_min: 0, ..config }, T0)
            .unwrap_or_else(|error| panic!("{error}"));
    let kept = rows(&store).len() as u64;
    assert!(acknowledged <= kept, "{kept}");
    // The cap makes room by itself: the oldest go, and rows are taken again.
    let mut host = Host::new(&mut writer, kept);
    for _ in 0..1_000 {
        writer.windows_kept(writer.wal_closed());
        let _ = writer.tick(host.now_ms() + 700_000);
        host.append(&mut writer).unwrap();
        writer.commit(host.now_ms()).unwrap();
    }
    let times = rows(&store);
    let first = T0 + i64::try_from(kept).unwrap() * 1000;
    let mut new = expected(host.seq);
    new.retain(|time| first <= *time);
    assert!(times.ends_with(&new));
}

#[test]
fn at_the_floor_nothing_is_acknowledged_and_nothing_is_lost() {
    in_namespace("at_the_floor_nothing_is_acknowledged_and_nothing_is_lost", |dir| {
        fill_and_go_on(dir, FLOOR);
    });
}

#[test]
fn at_the_last_byte_nothing_is_acknowledged_and_nothing_is_lost() {
    in_namespace("at_the_last_byte_nothing_is_acknowledged_and_nothing_is_lost", |dir| {
        fill_and_go_on(dir, 0);
    });
}
