//! The sampler's tick allocates nothing once it has learned the host, nor do the threads of the
//! families that take their time.
#![expect(unsafe_code, reason = "a global allocator that counts is an unsafe trait")]

#[expect(clippy::unwrap_used, reason = "helpers of a test may panic as it may")]
mod tree;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use strobe_agent::clock::{boottime_ns, monotonic_ns, wall_ns};
use strobe_agent::ring::Ring;
use strobe_agent::sampler::{CATALOG, Choice, Sampler, Tick, Trees};
use strobe_agent::schemas::Table;
use strobe_agent::sealer::Sealer;
use strobe_wire::ids::{BootId, HostId};

struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Of all threads.
static ALL_CALLS: AtomicU64 = AtomicU64::new(0);

fn count() {
    ALL_CALLS.fetch_add(1, Relaxed);
    // A thread that is ending has no cell any more, and nobody counts its calls.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test, because the second half counts what all threads do.
#[test]
fn nothing_is_allocated() {
    a_tick_reads_seals_and_allocates_nothing();
    groups_and_processes_are_read_without_allocating();
    mounts_and_caches_are_read_without_allocating();
}

/// On a server that has them: this machine has neither.
fn mounts_and_caches_are_read_without_allocating() {
    let wanted = ["bcache", "mountstats"];
    let server = include_str!("../../tests/fixtures/trees/server.tree");
    let tree = tree::Tree::unpack("allocation", server);
    let others = |name: &&str| !wanted.contains(name);
    let names = CATALOG.iter().map(|collector| collector.name);
    let trees = Trees {
        procfs: tree.path("proc").into(),
        sysfs: tree.path("sys").into(),
        rootfs: tree.path("").into(),
        filesystem_interval_ms: 100,
        choice: Choice {
            enable: wanted.map(str::to_owned).into(),
            disable: names.filter(others).map(str::to_owned).collect(),
            intervals: wanted.map(|name| (name.to_owned(), 1000)).into(),
            ..Choice::default()
        },
    };
    let mut sampler = Sampler::new(&trees, monotonic_ns, Arc::new(Table::new()));
    let (mut rows, mut plain, mut calls) = (0, 0, 0);
    for second in 0..60 {
        let now = Tick { wall_ns: wall_ns(), boottime_ns: boottime_ns() + second * 1_000_000_000 };
        let (before, changes) = (ALL_CALLS.load(Relaxed), sampler.changes());
        sampler.settle(now, Duration::from_secs(10));
        sampler.tick(now, |row| {
            rows += u64::from(wanted.contains(&row.schema.section.as_str()));
        });
        if sampler.changes() == changes {
            plain += 1;
            calls += u64::from(ALL_CALLS.load(Relaxed) != before);
        }
    }
    assert!(100 <= rows && 50 <= plain, "{rows} rows, {plain} plain ticks");
    assert!(calls <= 1, "{calls} of {plain} plain ticks allocated");
}

fn groups_and_processes_are_read_without_allocating() {
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let others =
        |name: &String| !["cgroup", "process", "disk_latency", "process_exits"].contains(&&**name);
    let trees = Trees {
        procfs: "/proc".into(),
        sysfs: "/sys".into(),
        rootfs: "/".into(),
        filesystem_interval_ms: 100,
        choice: Choice {
            enable: named(&["cgroup", "process", "disk_latency", "process_exits"]),
            // What others do on their threads, and when they look for what is not there, is not
            // what is counted here.
            disable: CATALOG
                .iter()
                .map(|collector| collector.name.to_owned())
                .filter(others)
                .collect(),
            intervals: ["cgroup", "process"].map(|name| (name.to_owned(), 1000)).into(),
            ..Choice::default()
        },
    };
    let mut sampler = Sampler::new(&trees, monotonic_ns, Arc::new(Table::new()));
    let (mut rows, mut plain, mut calls) = (0, 0, 0);
    for second in 0..120 {
        let at_ns = second * 1_000_000_000;
        let now = Tick { wall_ns: wall_ns(), boottime_ns: boottime_ns() + at_ns };
        let (before, changes) = (ALL_CALLS.load(Relaxed), sampler.changes());
        sampler.settle(now, Duration::from_secs(10));
        sampler.tick(now, |row| {
            rows += u64::from(["cgroup", "process"].contains(&&*row.schema.section));
        });
        // Whoever is told anew is learned, as at the start; a table doubles when a host grows.
        if sampler.changes() == changes {
            plain += 1;
            calls += u64::from(ALL_CALLS.load(Relaxed) != before);
        }
    }
    assert!(120 <= rows && 60 <= plain, "{rows} rows, {plain} plain ticks");
    assert!(calls <= 3, "{calls} of {plain} plain ticks allocated");
}

#[expect(clippy::unwrap_used, reason = "a test may panic")]
fn a_tick_reads_seals_and_allocates_nothing() {
    let trees = Trees {
        procfs: "/proc".into(),
        sysfs: "/sys".into(),
        rootfs: "/".into(),
        filesystem_interval_ms: 100,
        choice: Choice::default(),
    };
    let mut sampler = Sampler::new(&trees, monotonic_ns, Arc::new(Table::new()));
    let region = hugepage_config::Region::map(64 * 4096, hugepage_config::Want::Plain).unwrap();
    let Ring { writer, mut reader } = Ring::new(64, region).unwrap();
    let mut sealer = Sealer::new(HostId(1), BootId(1), writer);
    let mut rows = 0;
    let mut calls = Vec::with_capacity(1000);
    for _ in 0..1000 {
        let now = Tick { wall_ns: wall_ns(), boottime_ns: boottime_ns() };
        let (before, changes) = (CALLS.with(Cell::get), sampler.changes());
        sealer.begin(now);
        sampler.tick(now, |row| {
            rows += 1;
            sealer.row(now, &row);
        });
        // A disk or mount that appears on this host while the test runs is learned, as at the start.
        let plain = sampler.changes() == changes;
        calls.push((CALLS.with(Cell::get) - before, plain));
        let mut last = None;
        while let Some(slot) = reader.next() {
            last = Some(slot.ticket());
        }
        if let Some(last) = last {
            reader.release(last);
        }
    }
    assert!(4000 < rows);
    assert_eq!(sealer.lost(), 0);
    let (first, plain) = calls[0];
    assert!(0 < first && !plain, "the first tick learns, and the counter counts");
    let plain: Vec<u64> =
        calls.iter().filter(|(_, plain)| *plain).map(|(calls, _)| *calls).collect();
    assert!(900 < plain.len(), "{} of 1000 ticks learned nothing", plain.len());
    assert_eq!(plain.iter().sum::<u64>(), 0, "plain ticks allocated: {plain:?}");
}
