//! Restarting with a large write-ahead log takes bounded memory: what does not fit is sealed
//! while the log is read.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::path::{Path, PathBuf};
use std::process::Command;
use strobe_broker::store::{Limits, Scratch, Store, StoreConfig, TimeRange};
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::schema::{Column, Kind, Labels, Schema};

const T0: i64 = 1_699_999_200_000;
const HOSTS: u128 = 100;
const SECONDS: u64 = 300;
const COLUMNS: usize = 100;
/// Set for the process that only fills the log: its memory is not what is measured.
const FILL: &str = "STROBE_TEST_FILL";

fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        free_bytes_min: 0,
        head_bytes_max: 4 << 20,
        wal_file_bytes: 2 << 20,
        ..StoreConfig::at(dir.to_owned())
    }
}

/// Rows that do not compress, and nobody who seals them: 25 MB of log.
fn fill(dir: &Path) {
    let (_, mut writer, _) = Store::open(config(dir), T0).unwrap();
    let column =
        |n: usize| Column { name: format!("c{n}"), labels: Labels::default(), kind: Kind::Float };
    let schema = Schema { section: "s".into(), columns: (0..COLUMNS).map(column).collect() };
    writer.schema(&schema).unwrap();
    let mut random = 1_u64;
    let mut values = [0; COLUMNS];
    let mut slot = [0; FRAME_BYTES_MAX];
    for second in 0..SECONDS {
        for host in 1..=HOSTS {
            for value in &mut values {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                *value = random >> 2;
            }
            let header = Header {
                kind: FrameKind::Row,
                host: HostId(host),
                boot: BootId(1),
                seq: Seq(second + 1),
                wall_ns: (T0 + i64::try_from(second).unwrap() * 1000) * 1_000_000,
                boottime_ns: 0,
                schema: schema.id(),
            };
            let row = Row { values: &values, valid: &[255; COLUMNS.div_ceil(8)], scores: &[] };
            let length = seal_row(&mut slot, &header, &row).unwrap();
            writer.frame(&bytes::Bytes::copy_from_slice(&slot[..length])).unwrap();
        }
        writer.commit(T0).unwrap();
    }
}

/// The most memory that was resident since the last reset, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_large_log_is_replayed_in_bounded_memory_and_nothing_is_lost() {
    if let Some(dir) = std::env::var_os(FILL) {
        return fill(&PathBuf::from(dir));
    }
    let dir = std::env::temp_dir().join(format!("replay-memory-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let filled =
        Command::new(std::env::current_exe().unwrap()).env(FILL, &dir).output().unwrap().status;
    assert!(filled.success());
    let logs = std::fs::read_dir(dir.join("wal")).unwrap().flatten();
    let log: u64 = logs.map(|entry| entry.metadata().unwrap().len()).sum();
    assert!(23 << 20 < log, "{log}");
    // 5: the peak is counted from here.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak();
    let (store, _writer, recovery) = Store::open(config(&dir), T0).unwrap();
    let grown = peak() - before;
    assert_eq!(recovery.damage, Vec::<String>::new());
    // The bound of the head, a file's rows, and what encoding and reading need: 12 MB. Without a
    // bound it was 29.
    assert!(grown < 16 << 20, "{grown} bytes of memory for {log} bytes of log");
    let all = TimeRange { start_ms: i64::MIN, end_ms: i64::MAX };
    let limits = Limits { series_max: 1_000_000, samples_max: u64::MAX };
    let mut scratch = Scratch::new(&limits);
    for part in store.select(&[], all, &limits).unwrap() {
        store.scan(&part, all, &mut scratch, &mut |_, _, _| Ok(())).unwrap();
    }
    assert_eq!(scratch.samples(), u64::try_from(HOSTS).unwrap() * SECONDS * COLUMNS as u64);
    std::fs::remove_dir_all(&dir).unwrap();
}
