//! The store as its users see it.

use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::Seq;
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::schema::{Column, Kind, Schema};

/// A directory of its own, removed at the end.
pub(super) struct Place(pub(super) PathBuf);

impl Place {
    pub(super) fn new(name: &str) -> Self {
        // Memory where there is some: thousands of fsyncs of a test are nobody's measurement.
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let dir = base.join(format!("store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Self(dir)
    }

    pub(super) fn config(&self) -> StoreConfig {
        StoreConfig { free_bytes_min: 0, ..StoreConfig::at(self.0.clone()) }
    }

    pub(super) fn open(&self) -> (Store, Writer, Recovery) {
        Store::open(self.config(), T0).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A window's start.
pub(super) const T0: i64 = 1_699_999_200_000;
pub(super) const HOST: HostId = HostId(7);
const LIMITS: Limits = Limits { series_max: 1000, samples_max: 10_000_000 };
const ALL: TimeRange = TimeRange { start_ms: i64::MIN, end_ms: i64::MAX };

pub(super) fn schema(columns: usize) -> Schema {
    let column = |n: usize| Column {
        name: format!("node_{}", n % 20),
        labels: Labels::of(&[("cpu", &n.to_string())]),
        kind: if n.is_multiple_of(2) { Kind::Counter { scale: 2 } } else { Kind::Float },
    };
    Schema { section: "cpu".into(), columns: (0..columns).map(column).collect() }
}

pub(super) fn row(schema: &Schema, host: HostId, seq: u64, time_ms: i64, values: &[u64]) -> Bytes {
    let header = Header {
        kind: FrameKind::Row,
        host,
        boot: BootId(1),
        seq: Seq(seq),
        wall_ns: time_ms * 1_000_000,
        boottime_ns: 0,
        schema: schema.id(),
    };
    let valid = vec![255; values.len().div_ceil(8)];
    let mut slot = [0; FRAME_BYTES_MAX];
    let row = Row { values, valid: &valid, scores: &[] };
    let length = seal_row(&mut slot, &header, &row).unwrap();
    Bytes::copy_from_slice(&slot[..length])
}

fn value(column: usize, step: u64) -> u64 {
    let step = step * (column as u64 + 1);
    if column.is_multiple_of(2) { step } else { (step as f64 / 10.0).to_bits() }
}

/// Rows `steps` of a host with two columns, one a second, committed.
pub(super) fn write(writer: &mut Writer, host: HostId, steps: std::ops::Range<u64>) {
    steps.for_each(|step| write_row(writer, host, step));
    writer.commit(T0).unwrap();
}

/// One of these of [`HOST`], not committed.
pub(super) fn write_one(writer: &mut Writer, step: u64) {
    write_row(writer, HOST, step);
}

fn write_row(writer: &mut Writer, host: HostId, step: u64) {
    let schema = schema(2);
    writer.schema(&schema).unwrap();
    writer.host(host, "node", &format!("h{}", host.0), &Labels::of(&[("dc", "x")])).unwrap();
    let time = T0 + i64::try_from(step).unwrap() * 1000;
    writer.frame(&row(&schema, host, step + 1, time, &[value(0, step), value(1, step)])).unwrap();
}

/// Settles as a broker does that keeps its windows elsewhere.
pub(super) fn settle(writer: &mut Writer, now_ms: i64) {
    for _ in 0..2 {
        writer.windows_kept(writer.wal_closed());
        // The second time the WAL of what the first time sealed is let go of.
        writer.settle(now_ms).unwrap();
    }
}

fn matcher(name: &str, op: MatchOp, value: &str) -> Matcher {
    Matcher { name: name.into(), op, value: value.into() }
}

/// Every sample, by series.
pub(super) fn dump(store: &Store) -> Vec<(Labels, Vec<(i64, u64)>)> {
    let mut out = Vec::new();
    let mut scratch = Scratch::new(&LIMITS);
    for part in store.select(&[], ALL, &LIMITS).unwrap() {
        let visit = &mut |labels: &Labels, times: &[i64], values: &[f64]| {
            let bits = values.iter().map(|value| value.to_bits());
            out.push((labels.clone(), times.iter().copied().zip(bits).collect()));
            Ok(())
        };
        store.scan(&part, ALL, &mut scratch, visit).unwrap();
    }
    out
}

pub(super) fn expected(steps: std::ops::Range<u64>) -> Vec<(i64, u64)> {
    let at = |step: u64| T0 + i64::try_from(step).unwrap() * 1000;
    steps.map(|step| (at(step), (step as f64 / 100.0).to_bits())).collect()
}

pub(super) fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == extension));
    files.sort();
    files
}

#[test]
fn a_row_is_visible_after_its_commit_and_not_before() {
    let place = Place::new("visible");
    let (store, mut writer, _) = place.open();
    let schema = schema(2);
    writer.schema(&schema).unwrap();
    writer.host(HOST, "node", "h7", &Labels::default()).unwrap();
    writer.frame(&row(&schema, HOST, 1, T0, &[1, 2])).unwrap();
    assert_eq!(dump(&store), []);
    writer.commit(T0).unwrap();
    let found = dump(&store);
    assert_eq!(found.len(), 2);
    let wanted = [("__name__", "node_0"), ("cpu", "0"), ("instance", "h7"), ("job", "node")];
    assert_eq!(found[0].0, Labels::of(&wanted));
    assert_eq!(found[0].1, [(T0, 0.01_f64.to_bits())]);
}

#[test]
fn what_is_sealed_is_the_same_as_before_and_after_a_restart() {
    let place = Place::new("seal");
    let (store, mut writer, _) = place.open();
    write(&mut writer, HOST, 0..1500);
    write(&mut writer, HostId(9), 0..70);
    let before = dump(&store);
    assert_eq!(before[0].1, expected(0..1500));
    writer.settle(T0 + 1_240_000).unwrap();
    assert_eq!(dump(&store), before);
    let raw = |path: &PathBuf| path.to_string_lossy().contains("raw-");
    let segments = files(&place.0.join("segments"), "seg");
    assert_eq!(segments.iter().filter(|path| raw(path)).count(), 1);
    // A late row goes into the next block and is merged at read.
    let late = row(&schema(2), HOST, 9000, T0 + 500, &[777, 1]);
    writer.frame(&late).unwrap();
    writer.commit(T0).unwrap();
    let with_late = dump(&store);
    assert_eq!(with_late[0].1[1], (T0 + 500, 7.77_f64.to_bits()));
    drop((store, writer));
    let (store, mut writer, recovery) = place.open();
    assert_eq!(dump(&store), with_late);
    assert_eq!(recovery.damage, Vec::<String>::new());
    let seen = recovery.seen.iter().find(|seen| seen.host == HOST).unwrap();
    assert_eq!(seen.ranges, [(1, 1500), (9000, 9000)]);
    writer.settle(T0 + 10_000_000).unwrap();
    let sealed = files(&place.0.join("segments"), "seg");
    assert_eq!(sealed.iter().filter(|path| raw(path)).count(), 2);
    assert_eq!(dump(&store), with_late);
    assert!(1 < files(&place.0.join("wal"), "log").len(), "the WAL still tells what was seen");
    writer.windows_kept(writer.wal_closed());
    writer.settle(T0 + 10_010_000).unwrap();
    assert_eq!(files(&place.0.join("wal"), "log").len(), 1, "the WAL is released");
    assert_eq!(check(&place.0).unwrap().damage, Vec::<String>::new());
    assert_eq!(store.counts().blocks_corrupt, 0);
}

/// A crash may leave the WAL cut at any byte: what was whole before the cut is all there.
#[test]
fn a_wal_cut_at_every_byte_keeps_every_whole_row() {
    let place = Place::new("crash");
    let (_, mut writer, _) = place.open();
    write(&mut writer, HOST, 0..2);
    drop(writer);
    let path = files(&place.0.join("wal"), "log").pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let mut kept_before = 0;
    for cut in 0..=whole.len() {
        let other = Place::new("crash-at");
        fs::create_dir_all(other.0.join("wal")).unwrap();
        fs::write(other.0.join("wal").join(path.file_name().unwrap()), &whole[..cut]).unwrap();
        let (store, _, recovery) = other.open();
        let found = dump(&store);
        let kept = found.first().map_or(0, |series| series.1.len());
        assert!(kept_before <= kept && kept <= 2, "cut at {cut}");
        kept_before = kept;
        if let Some(series) = found.first() {
            assert_eq!(series.1, expected(0..kept as u64), "cut at {cut}");
        }
        let durable = recovery.seen.first().map_or(0, |seen| seen.ranges[0].1);
        assert_eq!(durable, kept as u64, "cut at {cut}");
    }
    assert_eq!(kept_before, 2);
}

#[test]
fn same_rows_same_bytes() {
    let seal = |name: &str, chunks: &[(u64, u64)]| {
        let place = Place::new(name);
        let (_, mut writer, _) = place.open();
        for &(first, end) in chunks {
            write(&mut writer, HOST, first..end);
        }
        writer.settle(T0 + 700_000).unwrap();
        fs::read(&files(&place.0.join("segments"), "seg")[0]).unwrap()
    };
    assert!(seal("same-a", &[(0, 300)]) == seal("same-b", &[(130, 300), (0, 61), (61, 130)]));
}

#[test]
fn matchers_select_as_prometheus_does() {
    let place = Place::new("match");
    let (store, mut writer, _) = place.open();
    write(&mut writer, HOST, 0..3);
    write(&mut writer, HostId(8), 0..3);
    use MatchOp::{Equal, NotEqual, NotRegex, Regex};
    for (matchers, series) in [
        (vec![matcher("__name__", Equal, "node_0")], 2),
        (vec![matcher("instance", Equal, "h8")], 2),
        (vec![matcher("__name__", Regex, "node_[01]"), matcher("instance", NotEqual, "h8")], 2),
        (vec![matcher("__name__", Regex, "node")], 0),
        (vec![matcher("__name__", Regex, "node_.|x")], 4),
        (vec![matcher("instance", NotRegex, "h7|h9")], 2),
        (vec![matcher("none", Equal, "")], 4),
        (vec![matcher("none", NotEqual, "")], 0),
        (vec![matcher("dc", Equal, "x"), matcher("cpu", Equal, "1")], 2),
        (vec![matcher("dc", NotEqual, "x")], 0),
    ] {
        let found = store.series(&matchers, ALL, &LIMITS).unwrap();
        assert_eq!(found.len(), series, "{matchers:?}");
    }
    let bad = store.select(&[matcher("x", Regex, "(")], ALL, &LIMITS);
    assert!(matches!(bad, Err(StoreError::Pattern { .. })));
    let few = Limits { series_max: 3, samples_max: 5 };
    assert!(matches!(store.select(&[], ALL, &few), Err(StoreError::SeriesMax { max: 3 })));
    let part = &store.select(&[], ALL, &LIMITS).unwrap()[0];
    let scanned = store.scan(part, ALL, &mut Scratch::new(&few), &mut |_, _, _| Ok(()));
    assert!(matches!(scanned, Err(StoreError::SamplesMax { max: 5 })));
    let later = TimeRange { start_ms: T0 + 60_000, end_ms: T0 + 90_000 };
    assert!(store.select(&[], later, &LIMITS).unwrap().is_empty());
    assert_eq!(store.label_values("instance", &[], ALL, &LIMITS).unwrap(), ["h7", "h8"]);
    let names = store.label_names(&[], ALL, &LIMITS).unwrap();
    assert_eq!(names, ["__name__", "cpu", "dc", "instance", "job"]);
}

#[test]
fn remote_write_series_keep_their_own_times_and_bits() {
    let place = Place::new("remote");
    let (store, mut writer, _) = place.open();
    let stale = f64::from_bits(0x7ff0_0000_0000_0002);
    let series = |name: &str, samples: &[(i64, f64)]| RemoteSeries {
        labels: Labels::of(&[("__name__", name), ("job", "j"), ("instance", "i"), ("z", "1")]),
        samples: samples.to_vec(),
    };
    let a = series("a", &[(T0, 1.5), (T0 + 7, -0.0), (T0 + 9, stale)]);
    let b = series("b", &[(T0 + 3, f64::NAN)]);
    writer.samples(&[a.clone(), b.clone()]).unwrap();
    assert_eq!(dump(&store), []);
    writer.commit(T0).unwrap();
    let wanted: Vec<_> = [&a, &b]
        .iter()
        .map(|s| {
            let bits = s.samples.iter().map(|(time, value)| (*time, value.to_bits()));
            (s.labels.clone(), bits.collect::<Vec<_>>())
        })
        .collect();
    assert_eq!(dump(&store), wanted);
    writer.settle(T0 + 700_000).unwrap();
    assert_eq!(dump(&store), wanted);
    drop((store, writer));
    assert_eq!(dump(&place.open().0), wanted);
}

#[test]
fn the_size_cap_takes_the_oldest_and_says_so() {
    let place = Place::new("cap");
    let config = StoreConfig { bytes_max: 4_000, ..place.config() };
    let (store, mut writer, _) = Store::open(config, T0).unwrap();
    for window in 0..5_u64 {
        write(&mut writer, HOST, window * 600..window * 600 + 600);
        let now = T0 + i64::try_from(window + 1).unwrap() * 600_000 + 40_000;
        settle(&mut writer, now);
    }
    settle(&mut writer, T0 + 3_103_000);
    let counts = store.counts();
    assert!(0 < counts.segments_capped && counts.segments_capped < 5, "{counts:?}");
    assert!(counts.segment_bytes <= 4_000, "{counts:?}");
    let found = &dump(&store)[0].1;
    assert_eq!(found.last(), expected(2999..3000).last());
    assert!(T0 + 600_000 <= found[0].0);
}

#[test]
fn age_removes_raw_samples_and_the_rollups_answer() {
    let place = Place::new("age");
    let config = StoreConfig { raw_retention_ms: 7_200_000, ..place.config() };
    let (store, mut writer, _) = Store::open(config, T0).unwrap();
    // Two hours from a day's start, every ten seconds.
    let start = T0.div_euclid(86_400_000) * 86_400_000 + 86_400_000;
    let schema = schema(2);
    writer.schema(&schema).unwrap();
    writer.host(HOST, "node", "h7", &Labels::default()).unwrap();
    for step in 0..720_u64 {
        let time = start + i64::try_from(step).unwrap() * 10_000;
        writer.frame(&row(&schema, HOST, step + 1, time, &[step * 100, value(1, step)])).unwrap();
    }
    writer.commit(start).unwrap();
    let now = start + 7_200_000 + 700_000;
    writer.settle(now).unwrap();
    assert_eq!(dump(&store)[0].1.len(), 720, "raw is read where it is kept");
    writer.settle(now + 7_200_000).unwrap();
    assert!(0 < store.counts().segments_expired);
    let found = &dump(&store)[0].1;
    // Of its first and last minutes the store cannot know whether another one has samples of them too.
    let (first, last) = (start + 180_000, start + 6_970_000);
    let minutes: Vec<_> = found.iter().filter(|s| first < s.0 && s.0 < last).collect();
    assert_eq!(minutes.len(), 113, "a row a minute");
    // The minute's last sample stands at its end, which belongs to it.
    assert_eq!(*minutes[0], (start + 240_000, 24.0_f64.to_bits()));
    assert_eq!(found[0], (start, 0.0_f64.to_bits()));
    assert_eq!(*found.last().unwrap(), (start + 7_190_000, 719.0_f64.to_bits()));
    writer.settle(start + 2 * 86_400_000).unwrap();
    // The sample at midnight belongs to the hour and the day before it.
    let segments = files(&place.0.join("segments"), "seg");
    assert_eq!(segments.len(), 5, "three of minutes, two of hours");
}

#[test]
fn under_the_floor_nothing_is_accepted_and_reading_goes_on() {
    let place = Place::new("floor");
    let (_, mut writer, _) = place.open();
    write(&mut writer, HOST, 0..3);
    drop(writer);
    let config = StoreConfig { free_bytes_min: u64::MAX, ..place.config() };
    let (store, mut writer, _) = Store::open(config, T0).unwrap();
    let schema = schema(2);
    writer.frame(&row(&schema, HOST, 9, T0 + 9000, &[1, 2])).unwrap();
    assert!(matches!(writer.commit(T0), Err(StoreError::Full { .. })));
    assert_eq!(dump(&store)[0].1, expected(0..3));
    // Space is made: what was kept back is written.
    let (unknown, wrong) = (self::schema(3), row(&self::schema(2), HOST, 1, T0, &[1]));
    let refused = writer.frame(&row(&unknown, HOST, 1, T0, &[1, 2, 3]));
    assert!(matches!(refused, Err(StoreError::SchemaUnknown { .. })));
    assert!(matches!(writer.frame(&wrong), Err(StoreError::Columns { .. })));
}

/// A segment that retention removes while a query holds its list of segments is no error, and a
/// block that does not check is named to who asked.
#[test]
fn a_segment_that_goes_during_a_query_is_no_error_and_a_broken_block_is_named() {
    let place = Place::new("gone");
    let (store, mut writer, _) = place.open();
    write(&mut writer, HOST, 0..1300);
    writer.settle(T0 + 1_240_000).unwrap();
    let path = store.shared.segments().iter().find(|s| s.step_ms == 0).unwrap().path.clone();
    let sealed = fs::read(&path).unwrap();
    let query = store.for_query();
    dump(&query);
    assert_eq!(query.warnings(), Vec::<String>::new());
    let segments = store.shared.segments();
    let segment = segments.iter().find(|segment| segment.path == path).unwrap();
    let block = segment.loaded().unwrap().entries()[0];
    let at = usize::try_from(block.offset).unwrap() + block.length as usize - 1;
    let mut bytes = sealed.clone();
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    store.shared.pieces.clear();
    let query = store.for_query();
    dump(&query);
    let named = format!("{} at byte {}: ", path.display(), block.offset);
    assert!(query.warnings()[0].starts_with(&named), "{:?}", query.warnings());
    assert!(0 < store.counts().blocks_corrupt);
    // Open by now: unlinked, it is read all the same.
    fs::write(&path, &sealed).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(dump(&store)[0].1, expected(0..1300));
    // Not open: what is there is answered.
    store.shared.segments().iter().for_each(|segment| segment.unload());
    let query = store.for_query();
    let left = dump(&query)[0].1.len();
    assert!(0 < left && left < 1300, "{left}");
    assert_eq!(query.warnings(), Vec::<String>::new());
}

fn found_of(store: &Store, instance: &str) -> usize {
    let range = TimeRange { start_ms: T0, end_ms: T0 + 100_000 };
    let (name, value) = ("instance".to_owned(), instance.to_owned());
    let limits = Limits { series_max: 1000, samples_max: 1000 };
    store.select(&[Matcher { name, op: MatchOp::Equal, value }], range, &limits).unwrap().len()
}

/// A question about one instance looks at the sources of that name alone, and a host that is
/// named anew, or has no name but its columns', must not get lost.
#[test]
fn one_instance_is_found_under_its_newest_name() {
    let place = Place::new("renamed");
    let (store, mut writer, _) = place.open();
    write(&mut writer, HOST, 0..3);
    write(&mut writer, HostId(77), 0..3);
    let found = |value| found_of(&store, value);
    writer.host(HOST, "node", "old", &Labels::default()).unwrap();
    writer.host(HostId(77), "node", "other", &Labels::default()).unwrap();
    writer.commit(T0).unwrap();
    assert_eq!([found("old"), found("new"), found("other")], [1, 0, 1]);
    writer.host(HOST, "node", "new", &Labels::default()).unwrap();
    writer.commit(T0).unwrap();
    assert_eq!([found("old"), found("new"), found("other")], [0, 1, 1]);
    drop((store, writer));
    let (store, mut writer, _) = place.open();
    let labels = Labels::of(&[("__name__", "up"), ("job", "x"), ("instance", "new")]);
    writer.samples(&[RemoteSeries { labels, samples: vec![(T0, 1.0)] }]).unwrap();
    writer.commit(T0).unwrap();
    let found = |value| found_of(&store, value);
    assert_eq!([found("old"), found("new"), found("other")], [0, 2, 1]);
}

#[test]
fn a_second_store_on_the_directory_is_refused() {
    let place = Place::new("second");
    let (_store, _writer, _) = place.open();
    let error = Store::open(place.config(), T0).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
}

#[test]
fn memory_beyond_its_bound_is_sealed_early() {
    let place = Place::new("bound");
    let config = StoreConfig { head_bytes_max: 50, ..place.config() };
    let (store, mut writer, _) = Store::open(config, T0).unwrap();
    writer.settle(T0).unwrap();
    write(&mut writer, HOST, 0..50);
    writer.settle(T0 + 5_000).unwrap();
    assert_eq!(store.counts().head_bytes, 0);
    assert_eq!(store.counts().blocks_sealed, 1);
    assert_eq!(dump(&store)[0].1, expected(0..50));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// A broken place in a segment costs the blocks it is in; nothing panics, nothing is invented.
    #[test]
    fn a_broken_segment_keeps_its_other_blocks(
        at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>(),
    ) {
        let place = Place::new("flip");
        let (store, mut writer, _) = place.open();
        for host in 1..5 {
            write(&mut writer, HostId(host), 0..20);
        }
        let whole = dump(&store);
        writer.settle(T0 + 700_000).unwrap();
        drop((store, writer));
        let path = files(&place.0.join("segments"), "seg").pop().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        fs::write(&path, &bytes).unwrap();
        prop_assert!(!check(&place.0).unwrap().damage.is_empty(), "byte {}", at);
        let (store, _, _) = place.open();
        let found = dump(&store);
        for series in &found {
            prop_assert!(whole.iter().any(|w| w.1 == series.1), "invented: {:?}", series.0);
        }
        if !cut {
            // The one schema is needed by all: a flip in it is the worst there is.
            prop_assert!(found.len() >= 6 || found.is_empty(), "{} left", found.len());
        }
    }
}
