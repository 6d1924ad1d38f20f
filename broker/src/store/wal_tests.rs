//! The WAL files of a store: how large, how many, how long.

use super::tests::{HOST, Place, T0, dump, expected, files, schema, settle, write};
use super::*;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use strobe_journal::disk::{Call, Fate, watch};

/// A day of a large fleet stood in one WAL file; now a file is closed when it is full and removed
/// when its rows are sealed.
#[test]
fn wal_files_are_bounded_and_go_when_their_rows_are_sealed() {
    let place = Place::new("rotate");
    let config = StoreConfig { wal_file_bytes: 16 << 10, ..place.config() };
    let (store, mut writer, _) = Store::open(config.clone(), T0).unwrap();
    for second in 0..700 {
        write(&mut writer, HOST, second..second + 1);
    }
    let wal = place.0.join("wal");
    let sizes = |wal: &Path| -> Vec<u64> {
        files(wal, "log").iter().map(|path| fs::metadata(path).unwrap().len()).collect()
    };
    let before = sizes(&wal);
    assert!(5 < before.len(), "{before:?}");
    assert!(before.iter().all(|bytes| *bytes < 17 << 10), "{before:?}");
    assert_eq!(store.counts().wal_bytes, before.iter().sum::<u64>());
    // Every file stands alone: each has the schema and the labels that its rows need.
    drop((store, writer));
    for path in &files(&wal, "log")[..2] {
        fs::remove_file(path).unwrap();
    }
    let (store, mut writer, recovery) = Store::open(config, T0).unwrap();
    assert_eq!(recovery.damage, Vec::<String>::new());
    let left = dump(&store)[0].1.len();
    assert!(400 < left && left < 700, "{left}");
    // Sealed up to the window's end: what lies behind it holds its file only.
    settle(&mut writer, T0 + 640_000);
    let after = sizes(&wal);
    assert!(after.len() <= 4, "{after:?}");
    assert_eq!(dump(&store)[0].1.len(), left);
    assert_eq!(store.counts().wal_bytes, after.iter().sum::<u64>());
    drop((store, writer));
    let (store, mut writer, _) = place.open();
    assert_eq!(dump(&store)[0].1.len(), left, "rows behind the cut are in the log only");
    // However often it is looked at, a file with a row that is not sealed stays.
    settle(&mut writer, T0 + 1_239_000);
    settle(&mut writer, T0 + 1_239_900);
    writer.schema(&schema(2)).unwrap();
    drop((store, writer));
    let (store, _, _) = place.open();
    assert_eq!(dump(&store)[0].1.len(), left);
}

#[test]
fn the_size_cap_counts_the_wal_and_seals_it_away() {
    let place = Place::new("cap-wal");
    let config = StoreConfig { bytes_max: 64 << 10, wal_file_bytes: 8 << 10, ..place.config() };
    let (store, mut writer, _) = Store::open(config, T0).unwrap();
    for second in 0..2_000 {
        write(&mut writer, HOST, second..second + 1);
        settle(&mut writer, T0 + i64::try_from(second).unwrap() * 1000);
        let counts = store.counts();
        let bytes = counts.wal_bytes + counts.segment_bytes;
        assert!(bytes <= 64 << 10, "{bytes} at {second}: {counts:?}");
    }
    assert_eq!(dump(&store)[0].1.last(), expected(1999..2000).last());
}

#[test]
fn a_seal_that_fails_leaves_nothing_behind() {
    let place = Place::new("part");
    let (_store, mut writer, _) = place.open();
    write(&mut writer, HOST, 0..700);
    watch(|call| match call {
        Call::Sync(path) if path.extension().is_some_and(|e| e == "part") => {
            Fate::Fail(ErrorKind::StorageFull)
        }
        _ => Fate::Pass,
    });
    assert!(writer.settle(T0 + 640_000).is_err());
    assert!(files(&place.0.join("segments"), "part").is_empty());
}

/// The directory's sync failed behind the rename: the segment had its name, its rows were sealed
/// anew into another, and a restart found both.
#[test]
fn a_segment_whose_name_is_not_safe_is_sealed_once() {
    let place = Place::new("name");
    let (store, mut writer, _) = place.open();
    write(&mut writer, HOST, 0..700);
    let wanted = dump(&store);
    let mut failures = 1;
    watch(move |call| match call {
        Call::SyncDir(path) if path.ends_with("segments") && 0 < failures => {
            failures -= 1;
            Fate::Fail(ErrorKind::Other)
        }
        _ => Fate::Pass,
    });
    assert!(writer.settle(T0 + 640_000).is_err());
    assert!(files(&place.0.join("segments"), "seg").is_empty());
    writer.settle(T0 + 660_000).unwrap();
    drop((store, writer));
    let report = check(&place.0).unwrap();
    let raw = report.files.iter().filter(|file| file.step_ms == 0);
    assert_eq!(raw.map(|file| file.samples).sum::<u64>(), 2 * 600);
    assert_eq!(dump(&place.open().0), wanted);
}
