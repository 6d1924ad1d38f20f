//! Two hours of a host whose links and disks come and go, each with a name that was never there: the second
//! hour's heap is never larger than the first one's.
#![expect(unsafe_code, reason = "a global allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use strobe_agent::clock::monotonic_ns;
use strobe_agent::ring::Ring;
use strobe_agent::sampler::{Choice, Sampler, Tick, Trees};
use strobe_agent::schemas::Table;
use strobe_agent::sealer::Sealer;
use strobe_wire::ids::{BootId, HostId};

struct Counting;

/// Bytes that are allocated now.
static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        LIVE.fetch_add(bytes, Relaxed);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A /proc whose links and disks a test writes.
struct Tree(PathBuf);

impl Tree {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("strobe-growth-{}", std::process::id()));
        fs::create_dir_all(dir.join("net")).expect("a directory");
        fs::create_dir_all(dir.join("pressure")).expect("a directory");
        for name in ["stat", "meminfo", "loadavg", "vmstat", "net/netstat", "net/snmp"] {
            let text = fs::read(Path::new("/proc").join(name)).expect("this host's own");
            fs::write(dir.join(name), text).expect("a file");
        }
        Self(dir)
    }

    /// Each five seconds another one of eight links, each seven another one of four disks.
    fn second(&self, second: usize) {
        let (mut links, mut disks) = ("a|b\nc|d\n".to_owned(), String::new());
        for n in 0..8 {
            let name = (second / 5 + n) / 8 * 8 + 7 - n;
            writeln!(links, "v{name:06}: {second} 1 0 0 0 0 0 0 {second} 2 0 0 0 0 0 0")
                .expect("text");
        }
        for n in 0..4 {
            let name = (second / 7 + n) / 4 * 4 + 3 - n;
            writeln!(disks, " 254 {n} d{name:06}x {second} 0 8 0 2 0 16 0 0 3 0").expect("text");
        }
        fs::write(self.0.join("net/dev"), links).expect("a file");
        fs::write(self.0.join("diskstats"), disks).expect("a file");
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_hour_of_churn_leaves_nothing_behind() {
    let tree = Tree::new();
    tree.second(0);
    let trees = Trees {
        procfs: tree.0.clone(),
        sysfs: tree.0.join("no-sys"),
        rootfs: tree.0.clone(),
        filesystem_interval_ms: 1_000_000_000,
        choice: Choice::default(),
    };
    let mut sampler = Sampler::new(&trees, monotonic_ns, Arc::new(Table::new()));
    let region = hugepage_config::Region::map(64 * 4096, hugepage_config::Want::Plain);
    let Ring { writer, mut reader } = Ring::new(64, region.expect("memory")).expect("a ring");
    let mut sealer = Sealer::new(HostId(1), BootId(1), writer);
    let mut most = [0; 2];
    for second in 0..7200 {
        tree.second(second);
        let boottime_ns = (1 + second as u64) * 1_000_000_000;
        let now = Tick { wall_ns: boottime_ns.cast_signed(), boottime_ns };
        sealer.begin(now);
        sampler.tick(now, |row| sealer.row(now, &row));
        let mut last = None;
        while let Some(slot) = reader.next() {
            last = Some(slot.ticket());
        }
        if let Some(last) = last {
            reader.release(last);
        }
        let hour = &mut most[second / 3600];
        *hour = LIVE.load(Relaxed).max(*hour);
    }
    assert!(2_000 < sampler.changes(), "{} changes", sampler.changes());
    let [first, second] = most;
    assert!(second <= first, "{first} bytes at most in the first hour, {second} in the second");
}
