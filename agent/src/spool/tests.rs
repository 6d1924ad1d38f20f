//! The spool against disks of every kind.

mod dice;

use super::*;
use dice::Dice;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use strobe_journal::disk::{Call, Fate, watch};
use strobe_journal::{Bounds, Journal, Then};
use strobe_wire::frame::{Payload, Row};
use strobe_wire::ids::Seq;
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::schema::{Column, Kind, Labels};

/// A directory of its own, in memory where that is possible, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let shared = PathBuf::from("/dev/shm");
        let root = if shared.is_dir() { shared } else { std::env::temp_dir() };
        let dir = root.join(format!("strobe-spool-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn config(&self) -> SpoolConfig {
        SpoolConfig {
            dir: self.0.join("spool"),
            disk_bytes_max: 64 << 20,
            memory_bytes_max: 1 << 20,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        watch(|_| Fate::Pass);
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct World {
    config: SpoolConfig,
    table: Table,
    schemas: [SchemaId; 2],
    boot: BootId,
    seq: u64,
    spool: Spool,
}

const HOST: HostId = HostId(7);

fn schema(section: &str) -> Arc<Schema> {
    let column = |n: usize| Column {
        name: format!("{section}_{n}"),
        labels: Labels::default(),
        kind: Kind::Float,
    };
    Arc::new(Schema { section: section.to_owned(), columns: (0..12).map(column).collect() })
}

impl World {
    fn new(config: &SpoolConfig) -> Self {
        // A probe of io_uring for each would take most of the time.
        watch(|_| Fate::Pass);
        let table = Table::new();
        let schemas = ["a", "b"].map(|section| table.publish(&schema(section)));
        let (boot, config) = (BootId(1), config.clone());
        let spool = Spool::open(config.clone(), (HOST, boot), Arc::default());
        Self { config, table, schemas, boot, seq: 0, spool }
    }

    fn next_boot(&mut self) {
        self.boot = BootId(self.boot.0 + 1);
        self.seq = 0;
        let of = (HOST, self.boot);
        // The one before lets go of its lock.
        let nowhere = SpoolConfig { dir: self.config.dir.join("none/none"), ..self.config.clone() };
        self.spool = Spool::open(nowhere, of, Arc::default());
        self.spool = Spool::open(self.config.clone(), of, Arc::default());
    }

    fn frame(&mut self) -> Vec<u8> {
        self.seq += 1;
        let schema = self.schemas[usize::from(self.seq.is_multiple_of(2))];
        let header = Header {
            kind: FrameKind::Row,
            host: HOST,
            boot: self.boot,
            seq: Seq(self.seq),
            wall_ns: i64::try_from(self.seq / 2).unwrap() * 1_000_000_000,
            boottime_ns: self.seq,
            schema,
        };
        let values = [self.seq.wrapping_mul(0x9e37_79b9_7f4a_7c15); 12];
        let row = Row { values: &values, valid: &[0xff, 0x0f], scores: &[] };
        let mut out = vec![0; FRAME_BYTES_MAX];
        let length = frame::seal_row(&mut out, &header, &row).unwrap();
        out.truncate(length);
        out
    }

    fn put(&mut self, count: usize) {
        for _ in 0..count {
            let frame = self.frame();
            self.spool.put(&frame, &self.table);
        }
        self.spool.flush(now());
    }
}

#[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
fn now() -> Instant {
    Instant::now()
}

/// A frame that came out: its numbers, and whether it is a loss that stands for some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Came {
    boot: u128,
    first: u64,
    last: u64,
    loss: bool,
}

/// Rows whose schema does not come before them.
fn orphans(spool: &mut Spool) -> usize {
    let (mut known, mut orphans) = (BTreeSet::new(), 0);
    spool.rewind();
    while let Some(next) = spool.next() {
        match next {
            Spooled::Schema(id, _) => drop(known.insert(id)),
            Spooled::Frame { schema: Some(id), .. } => {
                orphans += usize::from(!known.contains(&id) && spool.schema(id).is_none());
            }
            Spooled::Frame { .. } => {}
        }
    }
    orphans
}

/// The next that come.
fn take(spool: &mut Spool, most: usize) -> Vec<(Came, Mark)> {
    let mut came = Vec::new();
    while came.len() < most
        && let Some(next) = spool.next()
    {
        match next {
            Spooled::Schema(..) => {}
            Spooled::Frame { bytes, mark, .. } => {
                let opened = frame::open(&bytes).unwrap();
                let (boot, seq) = (opened.header.boot.0, opened.header.seq.0);
                assert_eq!((boot, seq), (mark.boot.0, mark.seq));
                let (first, loss) = match opened.payload {
                    Payload::Loss(loss) => (loss.first.to_native(), true),
                    _ => (seq, false),
                };
                came.push((Came { boot, first, last: seq, loss }, mark));
            }
        }
    }
    came
}

fn seqs(came: &[(Came, Mark)]) -> Vec<(u128, u64)> {
    came.iter().map(|(came, _)| (came.boot, came.last)).collect()
}

fn all(boot: u128, seqs: std::ops::RangeInclusive<u64>) -> Vec<(u128, u64)> {
    seqs.map(|seq| (boot, seq)).collect()
}

#[test]
fn frames_come_in_order_across_lives_and_an_empty_spool_is_no_directory() {
    let folder = Folder::new("order");
    let mut world = World::new(&folder.config());
    assert!(world.spool.is_empty() && !world.config.dir.exists(), "nothing is made without need");
    world.put(150);
    assert_eq!(world.spool.mine(), Some((1, 150)));
    world.next_boot();
    assert_eq!(world.spool.mine(), None);
    world.put(70);
    let whole = [all(1, 1..=150), all(2, 1..=70)].concat();
    let came = take(&mut world.spool, usize::MAX);
    assert_eq!(seqs(&came), whole);
    // Another connection: what was not acknowledged comes again, and the rest with it.
    for (_, mark) in &came[..100] {
        world.spool.release(*mark);
    }
    world.spool.rewind();
    assert_eq!(seqs(&take(&mut world.spool, usize::MAX)), whole[100..]);
    // Another life: it was said how far it was acknowledged.
    world.spool.close(now());
    world.next_boot();
    let came = take(&mut world.spool, usize::MAX);
    assert_eq!(seqs(&came), whole[100..]);
    for (_, mark) in came {
        assert!(!world.spool.is_empty());
        world.spool.release(mark);
    }
    assert!(world.spool.is_empty() && !world.config.dir.exists());
    let told = Snapshot { sent: 120, ..Snapshot::default() };
    assert_eq!(world.spool.numbers.snapshot(), told);
}

/// A table's file system is read-only, full, or no directory at all; then it is there again.
#[test]
fn without_a_disk_frames_stay_in_memory_in_order_and_what_is_too_much_is_told() {
    let folder = Folder::new("memory");
    let mut config = folder.config();
    config.memory_bytes_max = 64 << 10;
    for kind in [ErrorKind::ReadOnlyFilesystem, ErrorKind::StorageFull] {
        let mut world = World::new(&config);
        world.put(10);
        watch(move |call| match call {
            Call::Create(_) | Call::Write(..) => Fate::Fail(kind),
            _ => Fate::Pass,
        });
        world.put(20);
        assert!(world.spool.complaint().unwrap().contains("stays in memory"));
        assert_eq!(seqs(&take(&mut world.spool, usize::MAX)), all(1, 1..=30), "{kind}");
        world.put(1_000);
        let held = world.spool.numbers.snapshot();
        assert!(held.memory_bytes <= 64 << 10 && 0 < held.lost, "{held:?}");
        let came = take(&mut world.spool, usize::MAX);
        let mut next = 1;
        for (came, _) in &came {
            assert_eq!(came.first, next, "no hole without a reason: {came:?}");
            next = came.last + 1;
        }
        assert_eq!(next, 1_031);
        let lost = came.iter().filter(|(came, _)| came.loss).map(|(c, _)| c.last - c.first + 1);
        assert_eq!(lost.sum::<u64>(), held.lost);
        // The disk takes something again: memory goes behind what is there.
        watch(|_| Fate::Pass);
        world.spool.retry = None;
        world.spool.flush(now());
        assert_eq!(world.spool.numbers.snapshot().memory_bytes, 0);
        assert_eq!(seqs(&take(&mut world.spool, usize::MAX)), seqs(&came));
        world.next_boot();
        assert_eq!(seqs(&take(&mut world.spool, usize::MAX)), seqs(&came));
        fs::remove_dir_all(&world.config.dir).unwrap();
    }
    // A file where the state directory should be.
    fs::write(folder.0.join("file"), "").unwrap();
    config.dir = folder.0.join("file/spool");
    let mut world = World::new(&config);
    world.put(20);
    let came = take(&mut world.spool, usize::MAX);
    assert_eq!(seqs(&came), all(1, 1..=20));
    came.iter().for_each(|(_, mark)| world.spool.release(*mark));
    assert!(world.spool.is_empty());
}

#[test]
fn full_is_thinned_then_dropped_and_every_number_is_accounted_for() {
    let folder = Folder::new("full");
    let mut config = folder.config();
    config.disk_bytes_max = 1 << 20;
    let mut world = World::new(&config);
    for _ in 0..250 {
        world.put(100);
        let bytes = world.spool.numbers.snapshot().disk_bytes;
        assert!(bytes <= config.disk_bytes_max, "{bytes}");
    }
    let came = take(&mut world.spool, usize::MAX);
    let (mut next, mut lost) = (1, 0);
    for (came, _) in &came {
        assert_eq!(came.first, next, "no hole without a reason, and none twice: {came:?}");
        next = came.last + 1;
        lost += if came.loss { came.last - came.first + 1 } else { 0 };
    }
    assert_eq!(next, 25_001);
    assert_eq!(world.spool.numbers.snapshot().lost, lost);
    let rows: Vec<u64> = came.iter().filter(|(came, _)| !came.loss).map(|(c, _)| c.last).collect();
    // The newest are all there; before them is one row of each section in 10 s, and in a minute.
    assert!(rows.ends_with(&(23_000..=25_000).collect::<Vec<_>>()));
    let gap = |range: Range<usize>| rows[range.start + 2] - rows[range.start];
    assert_eq!(gap(20..22), 120, "two rows a second: every minute");
    let tens = rows.windows(3).filter(|rows| rows[2] - rows[0] == 20).count();
    assert!(150 < tens, "{tens}");
    world.next_boot();
    let again = take(&mut world.spool, usize::MAX);
    let dropped = came.len() - again.len();
    assert!(dropped <= 1, "what went whole is told from memory: {dropped}");
    assert_eq!(seqs(&again), seqs(&came)[dropped..]);
}

/// Where each frame lies, file by file.
fn map(dir: &std::path::Path) -> Vec<(u64, Range<u64>, (u128, u64))> {
    let bounds = Bounds { record_bytes_max: 256 << 10, read_bytes: 64 << 10 };
    let (journal, damage) = Journal::open_within(dir, bounds, &mut |_, _| ()).unwrap();
    assert_eq!(damage, []);
    let mut found = Vec::new();
    let visit = &mut |at: Position, record: &[u8]| {
        if let record::Record::Frame(header, _) = record::Record::parse(record) {
            let start = at.offset - record.len() as u64 - 8;
            found.push((at.file, start..at.offset, (header.boot.0, header.seq.0)));
        }
        Then::More
    };
    journal.read(Position::default(), visit).unwrap();
    found
}

/// Truncations, bit flips, torn writes of any file of it, the version and the lock too: it starts each
/// time, and gives each frame whose record was not touched.
#[test]
fn ten_thousand_broken_spools_start_and_lose_what_was_hit() {
    let folder = Folder::new("broken");
    let mut config = folder.config();
    config.disk_bytes_max = 1 << 20;
    let mut world = World::new(&config);
    for _ in 0..3 {
        // Of some lives, and files of each.
        world.put(40);
        world.next_boot();
    }
    drop(world);
    let frames = map(&config.dir);
    assert_eq!(frames.len(), 120);
    let files: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(&config.dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    assert!(5 <= files.len(), "{}", files.len());
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let mut hits = 0;
    for turn in 0..10_000 {
        let _ = fs::remove_dir_all(&config.dir);
        let _ = fs::remove_dir_all(config.dir.with_extension("aside"));
        fs::create_dir_all(&config.dir).unwrap();
        let victim = dice.below(files.len());
        let mut touched = Vec::new();
        for (index, (path, bytes)) in files.iter().enumerate() {
            let mut bytes = bytes.clone();
            if index == victim && !bytes.is_empty() {
                touched = dice.spoil(&mut bytes, turn % 3);
            }
            fs::write(path, bytes).unwrap();
        }
        let number =
            u64::from_str_radix(files[victim].0.file_stem().unwrap().to_str().unwrap(), 16);
        let is_hit = |file: u64, of: &Range<u64>| {
            let of = usize::try_from(of.start).unwrap()..usize::try_from(of.end).unwrap();
            number.as_ref() == Ok(&file)
                && touched.iter().any(|hit| hit.start < of.end && of.start < hit.end)
        };
        let kept = frames.iter().filter(|(file, of, _)| !is_hit(*file, of)).map(|(.., id)| *id);
        let kept: Vec<(u128, u64)> = kept.collect();
        hits += frames.len() - kept.len();
        let mut spool = Spool::open(config.clone(), (HOST, BootId(9)), Arc::default());
        let came = seqs(&take(&mut spool, usize::MAX));
        // A record that was hit may have been hit without a change.
        let more: Vec<_> = came.iter().filter(|id| !kept.contains(id)).collect();
        assert!(more.iter().all(|id| frames.iter().any(|(.., known)| known == *id)));
        let came: Vec<_> = came.iter().filter(|id| kept.contains(id)).copied().collect();
        assert_eq!(came, kept, "turn {turn}: {:?} {touched:?}", files[victim].0);
        if turn % 3 == 1 && touched.len() == 1 {
            assert_eq!(orphans(&mut spool), 0, "each schema is there twice");
        }
    }
    assert!(20_000 < hits, "{hits}");
}

/// A file that is alone, whose first record is the schema of half its rows.
#[test]
fn a_broken_schema_costs_none_of_its_rows() {
    let folder = Folder::new("schema");
    let mut world = World::new(&folder.config());
    world.put(40);
    let path = world.config.dir.join("0000000000000001.log");
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(bytes[4 + 8], record::SCHEMA);
    bytes[4 + 8 + 20] ^= 1;
    fs::write(&path, bytes).unwrap();
    world.next_boot();
    assert_eq!(seqs(&take(&mut world.spool, usize::MAX)), all(1, 1..=40));
    assert_eq!(orphans(&mut world.spool), 0, "it is there twice");
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize),
    Take(usize),
    Release(usize),
    Reconnect,
    Restart,
    Disk(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..200_usize).prop_map(Step::Put),
        4 => (1..200_usize).prop_map(Step::Take),
        4 => (1..200_usize).prop_map(Step::Release),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
        1 => any::<bool>().prop_map(Step::Disk),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Against a list: nothing is lost, nothing comes out of order, and after a restart no more comes
    /// again than a file.
    #[test]
    fn like_a_list(steps in prop::collection::vec(step(), 1..60)) {
        let folder = Folder::new("list");
        let mut world = World::new(&folder.config());
        let (mut wanted, mut out) = (Vec::<(u128, u64)>::new(), Vec::<(Came, Mark)>::new());
        let mut disk = true;
        for step in steps {
            match step {
                Step::Put(count) => {
                    // As a connection that ends before anything is put.
                    out.clear();
                    let first = world.seq + 1;
                    world.spool.retry = None;
                    world.put(count);
                    wanted.extend(all(world.boot.0, first..=world.seq));
                }
                Step::Take(most) => {
                    let came = take(&mut world.spool, most);
                    let from = out.len();
                    let until = (from + most).min(wanted.len());
                    prop_assert_eq!(seqs(&came), &wanted[from..until]);
                    out.extend(came);
                }
                Step::Release(most) => {
                    for (_, mark) in out.drain(..most.min(out.len())) {
                        world.spool.release(mark);
                        wanted.remove(0);
                    }
                }
                Step::Reconnect => {
                    out.clear();
                    world.spool.rewind();
                }
                Step::Restart if disk => {
                    out.clear();
                    world.spool.retry = None;
                    world.spool.close(now());
                    world.next_boot();
                }
                Step::Restart => {}
                Step::Disk(takes) => {
                    disk = takes;
                    let full = ErrorKind::StorageFull;
                    watch(move |call| match call {
                        Call::Write(..) if !takes => Fate::Fail(full),
                        _ => Fate::Pass,
                    });
                }
            }
            if wanted.is_empty() {
                // That nothing follows is known when it was looked for.
                prop_assert_eq!(world.spool.next(), None);
            }
            prop_assert_eq!(world.spool.is_empty(), wanted.is_empty());
        }
        world.spool.rewind();
        prop_assert_eq!(seqs(&take(&mut world.spool, usize::MAX)), wanted);
    }
}
