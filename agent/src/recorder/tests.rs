//! The recorder on /proc trees that change, and what it hands to the ring.

use super::shelf::BEGUN_MAX;
use super::throttle::Throttle;
use super::*;
use crate::clock;
use crate::ring::{Reader, Ring};
use crate::sampler::{Choice, Sampler};
use crate::sealer::Sealer;
use hugepage_config::{Region, Want};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use strobe_wire::frame::{self, Payload};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::limits::FRAME_BYTES_MAX;

/// A recorder with all that stands around it, on a tree of /proc.
struct World {
    recorder: Recorder,
    shipper: Shipper,
    sealer: Sealer,
    ring: Reader,
    table: Arc<Table>,
    bell: Bell,
    /// Samples that came over the ring: time in ms and values by name and first label.
    bursts: Vec<(i64, BTreeMap<String, u64>)>,
    /// Values of rows, by the same names.
    rows: BTreeMap<String, Option<f64>>,
}

impl World {
    fn new(procfs: &Path) -> Self {
        let trees = Trees {
            procfs: procfs.to_owned(),
            sysfs: "/no-sys".into(),
            rootfs: "/".into(),
            filesystem_interval_ms: 1000,
            choice: Choice::default(),
        };
        let (table, bell) = (Arc::new(Table::new()), Bell::default());
        let made =
            Recorder::new(&trees, 60_000, clock::monotonic_ns, Arc::clone(&table), bell.clone());
        let region = Region::map(512 * FRAME_BYTES_MAX, Want::Plain).unwrap();
        let ring = Ring::new(512, region).unwrap();
        Self {
            recorder: made.0,
            shipper: made.1,
            sealer: Sealer::new(HostId(1), BootId(1), ring.writer),
            ring: ring.reader,
            table,
            bell,
            bursts: Vec::new(),
            rows: BTreeMap::new(),
        }
    }

    fn sample(&mut self, at_ms: u64) {
        self.recorder.sample(at(at_ms));
    }

    /// The sampler's tick, and what it put into the ring; the time in ms of the burst's row, if any.
    fn tick(&mut self, at_ms: u64) -> Option<i64> {
        self.shipper.tick(at(at_ms), &mut self.sealer);
        self.rows.clear();
        let mut begun = None;
        while let Some(slot) = self.ring.next() {
            let opened = frame::open(&slot).unwrap();
            let schema = self.table.schema(opened.header.schema);
            let name = |index: usize| {
                let column = &schema.as_ref().unwrap().columns[index];
                let labels: Vec<_> = column.labels.0.iter().map(|(_, value)| &**value).collect();
                format!("{}{{{}}}", column.name, labels.join(","))
            };
            match opened.payload {
                Payload::Burst(burst) => burst.each(|wall_ns, values, valid| {
                    let is_valid = |n: &usize| valid[n / 8] >> (n % 8) & 1 == 1;
                    let known = (0..values.len()).filter(is_valid);
                    let known = known.map(|n| (name(n), values[n])).collect();
                    self.bursts.push((wall_ns / 1_000_000, known));
                }),
                Payload::Row(row) => {
                    let schema = schema.as_ref().unwrap();
                    if schema.section == "bursts" {
                        begun = Some(opened.header.wall_ns / 1_000_000);
                    }
                    for (n, raw) in row.values().enumerate() {
                        let value = raw.map(|raw| schema.columns[n].kind.value(raw));
                        self.rows.insert(name(n), value);
                    }
                }
                Payload::Event(_) | Payload::Loss(_) => {}
            }
            let ticket = slot.ticket();
            self.ring.release(ticket);
        }
        begun
    }
}

fn at(ms: u64) -> Tick {
    let ns = ms * 1_000_000;
    Tick { wall_ns: ns.cast_signed(), boottime_ns: ns }
}

/// A tree of /proc that a test writes.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("strobe-hot-{name}-{}", std::process::id()));
        for part in ["pressure", "net"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
        }
        let tree = Self(dir);
        tree.cpus(&[[0; 8], [0; 8]]);
        tree.write("meminfo", "MemTotal: 9 kB\nMemFree: 5 kB\nMemAvailable: 7 kB\n");
        tree.write("pressure/cpu", "some avg10=0.00 total=50\nfull avg10=0.00 total=0\n");
        tree.write("diskstats", " 254 0 vda 1 0 8 0 2 0 16 0 0 3 0\n");
        tree.write("net/dev", "a|b\nc|d\neth0: 100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n");
        tree
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn cpus(&self, ticks: &[[u64; 8]]) {
        let mut text = "cpu 1 2 3 4 5 6 7 8 0 0\n".to_owned();
        for (cpu, ticks) in ticks.iter().enumerate() {
            // CPU 9 stands for one that is off line.
            if ticks[0] != 9_999 {
                let ticks: Vec<_> = ticks.iter().map(u64::to_string).collect();
                text += &format!("cpu{cpu} {} 0 0\n", ticks.join(" "));
            }
        }
        text += "intr 1 2 3\nctxt 77\nbtime 1\nprocesses 5\nprocs_running 3\nprocs_blocked 1\n";
        self.write("stat", &text);
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One CPU a tick further, user or idle.
fn busy(ticks: u64, is_busy: bool) -> [u64; 8] {
    if is_busy { [ticks, 0, 0, 50, 0, 0, 0, 0] } else { [50, 0, 0, ticks, 0, 0, 0, 0] }
}

#[test]
fn a_second_has_its_statistics_and_a_burst_has_the_past_and_what_comes() {
    let tree = Tree::new("second");
    let mut world = World::new(&tree.0);
    for n in 0..=100_u64 {
        // Of a second, 200 ms are busy.
        let used = n.clamp(30, 50) - 30;
        tree.cpus(&[[50 + used, 0, 0, 50 + n - used, 0, 0, 0, 0]]);
        tree.write("diskstats", &format!(" 254 0 vda 1 0 8 0 2 0 {} 0 0 3 0\n", 16 + n * 2));
        world.sample(1_000 + n * 10);
    }
    assert_eq!(world.tick(2_010), None);
    let row = |name: &str| world.rows[name];
    assert_eq!(row("strobe_cpu_busy_ratio{max}"), Some(1.0));
    assert_eq!(row("strobe_cpu_busy_ratio{min}"), Some(0.0));
    assert_eq!(row("strobe_cpu_busy_ratio{worst_100ms}"), Some(1.0));
    assert_eq!(row("strobe_cpu_busy_ratio{mean}").map(|mean| (mean * 100.0).round()), Some(20.0));
    assert_eq!(row("strobe_run_queue_length{p99}"), Some(3.0));
    assert_eq!(row("strobe_disk_written_bytes_per_second{vda,mean}"), Some(102_400.0));
    assert_eq!(row("strobe_recorder_samples{}"), Some(100.0));
    world.bell.ring(Reason::Request);
    for n in 101..=1_400_u64 {
        world.sample(1_000 + n * 10);
        if n % 100 == 0 {
            let begun = world.tick(1_000 + n * 10);
            assert_eq!(begun, (n == 200).then_some(2_010), "at {n}");
        }
    }
    world.tick(16_000);
    let times: Vec<i64> = world.bursts.iter().map(|(ms, _)| *ms).collect();
    let wanted: Vec<i64> = (100..=1_201).map(|n| n * 10).collect();
    assert_eq!(times, wanted, "everything from the start to ten seconds after, once");
    let user = "strobe_burst_cpu_seconds_total{user}";
    let of = |ms: i64| world.bursts[usize::try_from(ms - 1_000).unwrap() / 10].1.get(user).copied();
    assert_eq!(
        (of(1_000), of(1_290), of(1_400), of(1_990)),
        (Some(0), Some(0), Some(10), Some(20))
    );
    assert!(lock(&world.recorder.shelf).is_idle());
}

#[test]
fn what_falls_or_vanishes_is_absent_and_never_negative() {
    let tree = Tree::new("falls");
    let mut world = World::new(&tree.0);
    tree.cpus(&[busy(100, false), busy(100, false)]);
    world.sample(1_000);
    tree.cpus(&[busy(101, false), busy(101, false)]);
    world.sample(1_010);
    world.tick(1_010);
    assert_eq!(world.rows["strobe_cpu_busy_ratio{max}"], Some(0.0));
    // One CPU goes off line, the other's idle steps back, the disk is gone, the link's counters fell.
    tree.cpus(&[busy(90, false), [9_999; 8]]);
    tree.write("diskstats", "");
    tree.write("net/dev", "a|b\nc|d\neth0: 1 1 0 0 0 0 0 0 2 2 0 0 0 0 0 0\n");
    world.sample(1_020);
    world.tick(1_020);
    let known: Vec<_> = world.rows.iter().filter(|(_, value)| value.is_some()).collect();
    let said = |name: &str| known.iter().any(|(known, _)| known.starts_with(name));
    assert!(!said("strobe_cpu") && !said("strobe_disk") && !said("strobe_network"), "{known:?}");
    // CPU 1 is back and far ahead: it counts from the next sample on.
    tree.cpus(&[busy(91, false), [5_000, 0, 0, 9_000, 0, 0, 0, 0]]);
    world.sample(1_030);
    world.tick(1_030);
    assert_eq!(world.rows["strobe_cpu_busy_ratio{max}"], Some(0.0));
    tree.cpus(&[busy(92, false), [5_001, 0, 0, 9_000, 0, 0, 0, 0]]);
    world.sample(1_040);
    world.tick(1_040);
    assert_eq!(world.rows["strobe_cpu_busy_ratio{max}"], Some(0.5));
}

#[test]
fn by_itself_a_burst_begins_seldom_and_on_request_always() {
    let mut policy = Policy::default();
    let second = 1_000_000_000;
    assert!(policy.hears(Reason::Anomaly, second));
    assert!(!policy.hears(Reason::Anomaly, 200 * second));
    assert!(policy.hears(Reason::IoPressure, 200 * second));
    assert!(policy.hears(Reason::Anomaly, 301 * second));
    for reason in [Reason::Request, Reason::Signal] {
        assert!(policy.hears(reason, second) && policy.hears(reason, second + 1));
    }
}

#[test]
fn the_window_is_bounded_and_what_could_not_be_sent_is_counted() {
    let mut shelf = Shelf::new(10_000);
    let mut packer = Packer::new(1);
    packer.push(0, &[Some(1)]).unwrap();
    let put = |shelf: &mut Shelf, second: u64| {
        let tag =
            Tag { first: at(second * 1000), last_ns: second * 1_000_000_000, ..Tag::default() };
        shelf.put(tag, None, &packer);
    };
    let sent = |shelf: &mut Shelf| {
        let mut sent = Vec::new();
        while let Some(block) = shelf.ship() {
            sent.push(block.tag.first.boottime_ns / 1_000_000_000);
        }
        sent
    };
    (1..=20).for_each(|second| put(&mut shelf, second));
    shelf.begin(Reason::Signal, at(21_000), 20_500_000_000);
    assert_eq!(sent(&mut shelf), (11..=20).collect::<Vec<_>>(), "ten seconds before");
    // Sixteen blocks are kept, and nobody ships while forty come.
    (21..=60).for_each(|second| put(&mut shelf, second));
    shelf.end();
    assert_eq!(sent(&mut shelf), (45..=60).collect::<Vec<_>>());
    assert_eq!((shelf.lost(), shelf.is_idle()), (24, false));
    // What was sent is not sent again.
    assert_eq!(shelf.begun().len(), 1);
    put(&mut shelf, 61);
    shelf.begin(Reason::Request, at(62_000), 61_900_000_000);
    shelf.begin(Reason::Signal, at(62_010), 61_900_000_000);
    shelf.end();
    assert_eq!(sent(&mut shelf), [61]);
    // Each is told, whoever comes second.
    let begun: Vec<_> = shelf.begun().iter().map(|begun| begun.reason).collect();
    assert_eq!(begun, [Reason::Request, Reason::Signal]);
    (0..100).for_each(|n| shelf.begin(Reason::Signal, at(62_020 + n), 61_900_000_000));
    assert_eq!(shelf.begun().len(), BEGUN_MAX);
    // With no full block yet, what is in the open one is of the time before.
    let mut fresh = Shelf::new(10_000);
    fresh.begin(Reason::Signal, at(3_000), 500_000_000);
    assert_eq!(fresh.begun()[0].before_ns, 2_500_000_000);
}

#[test]
fn an_oom_kill_and_an_anomaly_ring() {
    let tree = Tree::new("rings");
    let mut world = World::new(&tree.0);
    let row = |world: &mut World, section: &str, name: &str, value: u64| {
        let column =
            crate::readers::column(name, &[], strobe_wire::schema::Kind::Gauge { scale: 4 });
        let schema = Arc::new(Schema { section: section.to_owned(), columns: vec![column] });
        let (values, valid, scores) = (&[value][..], &[1][..], &[][..]);
        let id = schema.id();
        let row = crate::sampler::SectionRow { schema: &schema, id, values, valid, scores };
        world.shipper.watch(&row);
        world.bell.heard()
    };
    let kills = "node_vmstat_oom_kill";
    assert_eq!(row(&mut world, "kernel", kills, 7), 0, "what was before the start");
    assert_eq!(row(&mut world, "kernel", kills, 7), 0);
    assert_eq!(row(&mut world, "kernel", kills, 8), Reason::OutOfMemory.bit());
    assert_eq!(
        row(&mut world, "vmstat", kills, 9),
        Reason::OutOfMemory.bit(),
        "on its own interval"
    );
    let rate = "strobe_agent_anomaly_rate";
    assert_eq!(row(&mut world, "edge", rate, 900), 0);
    assert_eq!(row(&mut world, "edge", rate, 1100), Reason::Anomaly.bit());
    assert_eq!(row(&mut world, "edge", rate, 1500), 0, "it is the same one");
    assert_eq!((row(&mut world, "edge", rate, 100), row(&mut world, "edge", rate, 2000)), (0, 4));
}

/// Whichever section the sampler has the count in, by default and on an interval of its own.
#[test]
fn an_oom_kill_that_the_sampler_reads_rings() {
    for intervals in [vec![], vec![("vmstat".to_owned(), 1_000)]] {
        let tree = Tree::new("kills");
        let mut world = World::new(&tree.0);
        let trees = Trees {
            procfs: tree.0.clone(),
            sysfs: "/no-sys".into(),
            rootfs: "/".into(),
            filesystem_interval_ms: 1000,
            choice: Choice { intervals, ..Choice::default() },
        };
        let mut sampler = Sampler::new(&trees, clock::monotonic_ns, Arc::clone(&world.table));
        for (second, kills, rung) in [(1, 7, 0), (6, 7, 0), (11, 8, Reason::OutOfMemory.bit())] {
            std::fs::write(tree.0.join("vmstat"), format!("pgpgin 1\noom_kill {kills}\n")).unwrap();
            sampler.tick(at(second * 1_000), |row| world.shipper.watch(&row));
            assert_eq!(world.bell.heard(), rung, "at {second} s");
        }
    }
}

/// A minute in which so many sets of links were outgrown that the table of schemas has forgotten those
/// the minute began with.
#[test]
fn a_block_has_its_schema_however_long_it_waited() {
    let tree = Tree::new("outgrown");
    let mut world = World::new(&tree.0);
    for second in 0..50_u64 {
        let links = (0..4).map(|n| format!("l{second}x{n}: 1 1 0 0 0 0 0 0 2 2 0 0 0 0 0 0\n"));
        tree.write("net/dev", &format!("a|b\nc|d\n{}", links.collect::<String>()));
        if second % 5 == 0 {
            tree.write(
                "diskstats",
                &format!(" 254 0 d{second}x 1 0 8 0 2 0 16 0 0 3 0\n")
                    .repeat(usize::try_from(1 + second / 5 % 2).unwrap()),
            );
        }
        (0..10).for_each(|n| world.sample(1_000 + second * 1_000 + n * 100));
        let column = |n: usize| strobe_wire::schema::Column {
            name: format!("other_{second}_{n}"),
            labels: strobe_wire::schema::Labels::of(&[]),
            kind: strobe_wire::schema::Kind::Float,
        };
        let columns = (0..1000).map(column).collect();
        world.table.publish(&Arc::new(Schema { section: "net".to_owned(), columns }));
    }
    world.bell.ring(Reason::Request);
    world.sample(51_000);
    (52..70).for_each(|second| {
        world.sample(second * 1_000);
        world.tick(second * 1_000);
    });
    let seconds: std::collections::BTreeSet<_> =
        world.bursts.iter().map(|(ms, _)| ms / 1_000).collect();
    assert!((1..51).all(|second| seconds.contains(&second)), "{seconds:?}");
}

/// What is read in turn is never older than five turns of 20 ms, or than five samples where these are slower.
#[test]
fn what_goes_in_turns_goes_by_time() {
    for (step_ms, samples_max) in [(10, 10), (13, 10), (20, 5), (160, 5)] {
        let tree = Tree::new(&format!("turns-{step_ms}"));
        let mut world = World::new(&tree.0);
        let mut at_ms = 1_000;
        for kib in [6, 11, 17] {
            tree.write(
                "meminfo",
                &format!("MemTotal: 9 kB\nMemFree: {kib} kB\nMemAvailable: 7 kB\n"),
            );
            tree.write("pressure/cpu", &format!("some avg10=0.00 total={}\n", kib * 1000));
            let mut samples = 0;
            let is_new = |world: &World| {
                let values = world.recorder.hot.values();
                [kib * 1024, kib * 1000].iter().all(|new| values.contains(&Some(*new)))
            };
            while !is_new(&world) {
                samples += 1;
                at_ms += step_ms;
                world.sample(at_ms);
                assert!(
                    samples <= samples_max,
                    "each {step_ms} ms: not after {samples_max} samples"
                );
            }
        }
    }
}

/// The promise of the recorder: 200 ms of a real process on real /proc are 20 samples, of which at
/// least 15 show it. Content is asked for, not speed: a sampler that is late has fewer.
#[test]
#[expect(clippy::disallowed_methods, reason = "a real burst takes real time")]
fn a_real_burst_of_200_ms_is_in_the_recording() {
    let mut world = World::new(Path::new("/proc"));
    let start = clock::monotonic_ns();
    let (from_ms, to_ms) = (1_000, 1_200);
    let mut burst: Option<std::process::Child> = None;
    let mut beside = Vec::new();
    // Samples are as dear as they may be: where nothing moves, half of them are left out.
    let mut throttle = Throttle::of(Duration::from_millis(10), 150_000);
    let mut due = start;
    while due < start + 1_600_000_000 {
        std::thread::sleep(Duration::from_nanos(due.saturating_sub(clock::monotonic_ns())));
        let now = Tick { wall_ns: clock::wall_ns(), boottime_ns: clock::boottime_ns() };
        let after_ms = (clock::monotonic_ns() - start) / 1_000_000;
        if burst.is_none() && from_ms <= after_ms {
            let script = "i=0; while :; do i=$((i+1)); done";
            let mut sh = std::process::Command::new("sh");
            burst = Some(sh.args(["-c", script]).spawn().unwrap());
        }
        if let Some(child) = burst.as_mut().filter(|_| to_ms <= after_ms) {
            let _ = child.kill();
            let _ = child.wait();
        }
        beside.push((after_ms, now.wall_ns / 1_000_000));
        world.recorder.sample(now);
        due += throttle.step_ns(now.boottime_ns, world.recorder.is_quiet());
    }
    world.bell.ring(Reason::Signal);
    let end = Tick { wall_ns: clock::wall_ns(), boottime_ns: clock::boottime_ns() };
    world.recorder.sample(end);
    let later = |ms: u64| Tick {
        wall_ns: end.wall_ns + (ms * 1_000_000).cast_signed(),
        boottime_ns: end.boottime_ns + ms * 1_000_000,
    };
    world.recorder.sample(later(10_001));
    for _ in 0..4 {
        world.tick(0);
    }
    let (first, last) = (beside.iter().find(|(ms, _)| from_ms <= *ms), beside.iter());
    let last = last.rev().find(|(ms, _)| *ms < to_ms).unwrap().1;
    let first = first.unwrap().1;
    let inside = world.bursts.iter().filter(|(ms, _)| (first..=last).contains(ms));
    let inside: Vec<_> = inside.map(|(_, values)| values).collect();
    // This thread runs whenever it samples: two are it and the burst.
    let with = inside.iter().filter(|values| 2 <= values["strobe_burst_procs_running{}"]);
    let found = with.count();
    assert!(15 <= found, "{found} of 20 samples show the burst");
    let used = |values: &BTreeMap<String, u64>| {
        let of = |mode: &str| values[&format!("strobe_burst_cpu_seconds_total{{{mode}}}")];
        of("user") + of("system")
    };
    let grown = used(inside[inside.len() - 1]) - used(inside[0]);
    assert!(10 <= grown, "{grown} ticks of CPU time in 200 ms of a busy process");
}
