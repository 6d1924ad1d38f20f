//! The sampler on trees that change.

#[path = "../../tests/tree/mod.rs"]
mod tree;

use super::*;
use std::collections::BTreeMap;
use std::fs;

/// A copy of the fixture tree that a test may change.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let to = std::env::temp_dir().join(format!("strobe-{name}-{}", std::process::id()));
        let from = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/proc/6.18");
        copy(from.as_ref(), &to);
        Self(to)
    }

    fn sampler(&self) -> Sampler {
        let trees = Trees {
            procfs: self.0.clone(),
            sysfs: self.0.join("no-sys"),
            rootfs: "/".into(),
            filesystem_interval_ms: 1000,
            choice: Choice::default(),
        };
        Sampler::new(&trees, || 0, Arc::new(Table::new()))
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Section → schema, and `name{device or cpu or collector}` → value.
fn read(sampler: &mut Sampler) -> (BTreeMap<String, Arc<Schema>>, BTreeMap<String, Option<f64>>) {
    read_at(sampler, 1)
}

fn read_at(
    sampler: &mut Sampler,
    boottime_ns: u64,
) -> (BTreeMap<String, Arc<Schema>>, BTreeMap<String, Option<f64>>) {
    let (mut schemas, mut values) = (BTreeMap::new(), BTreeMap::new());
    let now = Tick { wall_ns: 1_500_000_000, boottime_ns };
    sampler.tick(now, |row| {
        assert_eq!(row.schema.check(), Ok(()));
        assert_eq!(row.values.len(), row.schema.columns.len());
        assert_eq!(row.schema.id(), row.id);
        // File systems come a tick later, when their workers are quick, and others more seldom.
        let section = row.schema.section.split('.').next().unwrap();
        if ["host", "cpu", "disk", "net"].contains(&section) {
            schemas.insert(row.schema.section.clone(), Arc::clone(row.schema));
        }
        for (index, column) in row.schema.columns.iter().enumerate() {
            let first = column.labels.0.first().map_or("", |(_, value)| value);
            let valid = row.valid[index / 8] >> (index % 8) & 1 == 1;
            let value = valid.then(|| column.kind.value(row.values[index]));
            values.insert(format!("{}{{{first}}}", column.name), value);
        }
    });
    (schemas, values)
}

#[test]
fn a_disk_that_comes_and_goes_changes_its_section_only() {
    let tree = Tree::new("disks");
    let mut sampler = tree.sampler();
    let (before, values) = read(&mut sampler);
    assert_eq!(values["node_time_seconds{}"], Some(1.5));
    let vda = "node_disk_reads_completed_total{vda}";
    assert_eq!(values[vda], Some(59_896.0));
    let disks = tree.text("diskstats");
    tree.write("diskstats", &format!("8 0 sdx {}\n{disks}", "3 ".repeat(17)));
    let (with, values) = read(&mut sampler);
    assert_eq!(values["node_disk_reads_completed_total{sdx}"], Some(3.0));
    assert_eq!(values[vda], Some(59_896.0));
    tree.write("diskstats", &disks);
    let (after, _) = read(&mut sampler);
    assert!(after == before);
    for (section, schema) in &with {
        assert_eq!(section == "disk", *schema != before[section], "{section}");
    }
}

#[test]
fn a_source_that_cannot_be_read_has_no_values_and_says_so() {
    let tree = Tree::new("missing");
    let mut sampler = tree.sampler();
    let (before, values) = read(&mut sampler);
    assert_eq!(values["node_scrape_collector_success{meminfo}"], Some(1.0));
    tree.write("meminfo", "");
    let (after, values) = read(&mut sampler);
    assert_eq!(values["node_memory_MemTotal_bytes{}"], None);
    assert_eq!(values["node_scrape_collector_success{meminfo}"], Some(0.0));
    assert_eq!(values["node_scrape_collector_success{cpu}"], Some(1.0));
    assert_eq!(values["node_load1{}"], Some(0.08));
    assert!(after == before);
}

#[test]
fn many_cores_are_cut_into_sections() {
    let tree = Tree::new("cores");
    let cores: String = (0..100).map(|core| format!("cpu{core} 1 2 3 4 5 6 7 8 9 10\n")).collect();
    tree.write("stat", &format!("cpu 1 2 3 4\n{cores}ctxt 5\n"));
    let (schemas, values) = read(&mut tree.sampler());
    let columns = |section: &str| schemas[section].columns.len();
    assert_eq!([columns("cpu"), columns("cpu.1"), columns("cpu.2")], [400, 400, 200]);
    assert_eq!(values["node_cpu_guest_seconds_total{99}"], Some(0.1));
    assert_eq!(values["node_context_switches_total{}"], Some(5.0));
}

/// Two names that differ only in bytes no label can show were two columns of one series, and
/// the broker refused the schema.
#[test]
fn columns_that_would_be_the_same_series_are_refused_and_counted() {
    let tree = Tree::new("twins");
    tree.write("meminfo", "A-b: 1 kB\nA.b: 2 kB\n");
    let mut sampler = tree.sampler();
    let (_, values) = read(&mut sampler);
    assert_eq!(values["node_memory_A_b_bytes{}"], Some(1024.0));
    let (_, values) = read(&mut sampler);
    assert_eq!(values["strobe_sampler_columns_refused{}"], Some(1.0));
}

#[test]
fn another_tree_is_another_host() {
    let tree = Tree::new("hosts");
    tree.write("sys/kernel/hostname", "fake-7\n");
    tree.write("mounts", "/dev/vda / ext4 ro 0 0\n");
    let mut sampler = tree.sampler();
    sampler.settle(Tick { wall_ns: 0, boottime_ns: 1 }, Duration::from_secs(5));
    let (schemas, values) = read(&mut sampler);
    assert_eq!(sampler.uname().nodename, "fake-7");
    let info = |column: &&Column| column.name == "node_uname_info";
    let uname = schemas["host"].columns.iter().find(info).unwrap();
    assert_eq!(uname.labels.value("nodename"), Some("fake-7"));
    assert_eq!(values["node_filesystem_readonly{/dev/vda}"], Some(1.0));
    assert!(values["node_filesystem_size_bytes{/dev/vda}"] > Some(0.0));
    tree.write("sys/kernel/hostname", "renamed\n");
    // It is looked for every ten seconds.
    for (boottime_ns, name) in [(9_000_000_000, "fake-7"), (10_000_000_001, "renamed")] {
        let (schemas, _) = read_at(&mut sampler, boottime_ns);
        let uname = schemas["host"].columns.iter().find(info).unwrap();
        assert_eq!(uname.labels.value("nodename"), Some(name));
    }
}

/// A sampler of the server's tree, and the rows of a tick: section → columns with their values.
fn server(name: &str, choice: Choice) -> (tree::Tree, Sampler) {
    let text = include_str!("../../../tests/fixtures/trees/server.tree");
    let tree = tree::Tree::unpack(name, text);
    let trees = Trees {
        procfs: tree.path("proc").into(),
        sysfs: tree.path("sys").into(),
        rootfs: tree.0.clone(),
        filesystem_interval_ms: 1000,
        choice,
    };
    let sampler = Sampler::new(&trees, || 0, Arc::new(Table::new()));
    (tree, sampler)
}

fn rows(sampler: &mut Sampler, second: u64) -> BTreeMap<String, BTreeMap<String, f64>> {
    let mut rows = BTreeMap::new();
    let now = Tick { wall_ns: 0, boottime_ns: second * 1_000_000_000 };
    sampler.tick(now, |row| {
        assert_eq!(row.schema.check(), Ok(()));
        let mut values = BTreeMap::new();
        for (index, column) in row.schema.columns.iter().enumerate() {
            if row.valid[index / 8] >> (index % 8) & 1 == 1 {
                let labels: Vec<_> = column.labels.0.iter().map(|(_, value)| &**value).collect();
                let name = format!("{}{{{}}}", column.name, labels.join(","));
                values.insert(name, column.kind.value(row.values[index]));
            }
        }
        rows.insert(row.schema.section.clone(), values);
    });
    rows
}

#[test]
fn each_group_is_read_on_its_own_interval_and_all_of_them_at_first() {
    let (_tree, mut sampler) = server("intervals", Choice::default());
    let first = rows(&mut sampler, 1000);
    for section in ["slow", "link", "identity", "edac", "rapl", "xfs", "zfs", "collectors"] {
        assert!(first.contains_key(section), "{section}");
    }
    let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for second in 1001..1121 {
        for section in rows(&mut sampler, second).into_keys() {
            seen.entry(section).or_default().push(second);
        }
    }
    let gaps = |section: &str| {
        let times = &seen[section];
        times.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>()
    };
    assert!(gaps("slow").iter().chain(&gaps("link")).all(|gap| *gap == 15), "{seen:?}");
    assert!(gaps("identity").iter().all(|gap| *gap == 60) && seen["identity"].len() == 2);
    assert_eq!(seen["schedstat"].len(), 24);
    // Not all in one tick.
    let slow: HashSet<_> = ["slow", "link", "edac", "rapl"].map(|name| seen[name][0]).into();
    assert_eq!(slow.len(), 4, "{seen:?}");
}

#[test]
fn a_link_that_comes_and_goes_and_a_file_that_vanishes() {
    let intervals = vec![("netclass".to_owned(), 1000)];
    let (tree, mut sampler) = server("links", Choice { intervals, ..Choice::default() });
    let net = tree.0.join("sys/class/net");
    let speed = |device: &str| format!("node_network_speed_bytes{{{device}}}");
    let first = &rows(&mut sampler, 1)["netclass"];
    assert_eq!(first.get(&speed("ens3f0")), Some(&3.125e9));
    fs::create_dir(net.join("eth9")).unwrap();
    fs::write(net.join("eth9/speed"), "1000\n").unwrap();
    fs::write(net.join("eth9/operstate"), "up\n").unwrap();
    fs::write(net.join("ens3f0/mtu"), "9000").unwrap();
    fs::write(net.join("ens3f0/operstate"), "down\n").unwrap();
    let second = &rows(&mut sampler, 2)["netclass"];
    assert_eq!(second.get(&speed("eth9")), Some(&1.25e8));
    assert_eq!(second.get("node_network_up{eth9}"), Some(&1.0));
    assert_eq!(second.get("node_network_mtu_bytes{ens3f0}"), Some(&9000.0));
    let info = |text: &str| second.keys().any(|name| name.ends_with(text));
    assert!(info("ens3f0,full,down}") && !info("ens3f0,full,up}"), "{second:?}");
    // Gone, and nothing of it is told as 0.
    fs::remove_dir_all(net.join("eth9")).unwrap();
    fs::write(net.join("ens3f0/mtu"), "x").unwrap();
    let third = &rows(&mut sampler, 3)["netclass"];
    assert!(third.keys().all(|name| !name.contains("eth9")));
    assert!(!third.contains_key("node_network_mtu_bytes{ens3f0}"));
    assert_eq!(third.get(&speed("ens3f0")), Some(&3.125e9));
}

#[test]
fn five_thousand_links_stay_within_the_budget_and_are_counted() {
    let (tree, mut sampler) = server("many-links", Choice::default());
    for link in 0..5000 {
        let dir = tree.0.join(format!("sys/class/net/veth{link}"));
        fs::create_dir(&dir).unwrap();
        if 1000 < link {
            continue;
        }
        fs::write(dir.join("mtu"), "1500").unwrap();
        fs::write(dir.join("ifindex"), "7").unwrap();
    }
    let first = rows(&mut sampler, 1);
    let links: usize =
        first.iter().filter(|(name, _)| name.starts_with("link")).map(|(_, row)| row.len()).sum();
    assert!((1500..=1602).contains(&links), "{links}");
    assert!(first["host"]["strobe_sampler_columns_refused{}"] < 1.0);
    assert!(13_000.0 < rows(&mut sampler, 2)["host"]["strobe_sampler_columns_refused{}"]);
}

#[test]
fn hostile_files_give_nothing_and_stop_nobody() {
    let (tree, mut sampler) = server("hostile", Choice::default());
    let put = |path: &str, bytes: &[u8]| fs::write(tree.0.join(path), bytes).unwrap();
    put("sys/class/net/ens3f0/mtu", b"99999999999999999999999");
    put("sys/class/net/ens3f0/ifalias", b"\xff\xfe\0 name");
    put("sys/class/net/ens3f0/carrier", b"");
    put("sys/class/net/ens3f1/flags", b"0x");
    put("sys/class/powercap/intel-rapl:0/energy_uj", b"-5");
    put("proc/net/arp", &[0xff; 9000]);
    let pipe = tree.0.join("sys/class/net/ens3f1/mtu");
    fs::remove_file(&pipe).unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let found = rows(&mut sampler, 1);
    for name in ["mtu_bytes{ens3f0}", "mtu_bytes{ens3f1}", "carrier{ens3f0}", "flags{ens3f1}"] {
        assert!(!found["link"].contains_key(&format!("node_network_{name}")), "{name}");
    }
    assert!(found["link"].contains_key("node_network_flags{ens3f0}"));
    assert_eq!(found["rapl"].len(), 3);
}

#[test]
fn what_is_disabled_is_not_read_and_what_is_enabled_is() {
    let choice = Choice {
        enable: vec!["buddyinfo".to_owned()],
        disable: vec!["netclass".to_owned(), "meminfo".to_owned()],
        intervals: vec![("loadavg".to_owned(), 5000)],
        ..Choice::default()
    };
    let (tree, mut sampler) = server("choice", choice);
    fs::write(tree.0.join("proc/loadavg"), "0.10 0.20 0.30 1/2 3\n").unwrap();
    let first = rows(&mut sampler, 1);
    assert_eq!(first["buddyinfo"].get("node_buddyinfo_blocks{0,0,DMA}"), Some(&1.0));
    assert!(!first["link"].keys().any(|name| name.starts_with("node_network_")));
    assert_eq!(first["loadavg"].get("node_load5{}"), Some(&0.2));
    assert!(first["host"].keys().all(|name| !name.contains("meminfo") && !name.contains("load")));
    assert!(!rows(&mut sampler, 2).contains_key("loadavg"));
}

/// What may hang is read by a thread, and its rows come at a later tick.
#[test]
fn patient_families_come_when_they_are_ready() {
    let (_tree, mut sampler) = server("patient", Choice::default());
    let mut found = rows(&mut sampler, 1);
    for _ in 0..5000 {
        if ["hwmon", "cpufreq", "thermal_zone", "bcache"]
            .iter()
            .all(|name| found.contains_key(*name))
        {
            break;
        }
        found.append(&mut rows(&mut sampler, 1));
        std::thread::yield_now();
    }
    assert_eq!(
        found["hwmon"].get("node_hwmon_temp_celsius{platform_coretemp_0,temp3}"),
        Some(&-3.5)
    );
    assert_eq!(found["cpufreq"].get("node_cpu_scaling_frequency_hertz{3}"), Some(&2.100126e9));
    assert_eq!(
        found["thermal_zone"].get("node_cooling_device_cur_state{1,intel_powerclamp}"),
        Some(&-1.0)
    );
    let change = "node_bcache_writeback_change{bdev1,3c9d5b1e-7f42-4a86-b0d1-95e2c4f8a637}";
    assert_eq!(found["bcache"].get(change), Some(&-2948.0));
}

/// Nanoseconds that each look at the clock takes.
static STEP_NS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

fn slow_clock() -> u64 {
    static NOW: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let step_ns = STEP_NS.load(std::sync::atomic::Ordering::Relaxed);
    NOW.fetch_add(step_ns, std::sync::atomic::Ordering::Relaxed) + step_ns
}

/// What a tick's files cost is measured in the tick that tells it, once a minute.
#[test]
fn costs_are_measured_when_they_are_told() {
    static LOOKS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let clock = || LOOKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let tree = Tree::new("costs");
    let mut sampler = tree.sampler();
    sampler.clock = clock;
    let looks = || LOOKS.load(std::sync::atomic::Ordering::Relaxed);
    let stat = "node_scrape_collector_duration_seconds{stat}";
    for second in 1000..1121 {
        let before = looks();
        let rows = rows(&mut sampler, second);
        let told = rows.get("collectors").and_then(|values| values.get(stat));
        assert_eq!(told.is_some_and(|cost| 0.0 < *cost), second % 60 == 40, "{second}");
        assert_eq!(before != looks(), second % 60 == 40, "{second}");
    }
}

/// Readings that take 3 ms are made every 4 minutes in the end, and every 15 s again when they are quick.
#[test]
fn a_dear_collector_is_read_less_often_until_it_is_cheap_again() {
    let (tree, _) = server("governor", Choice::default());
    let trees = Trees {
        procfs: tree.0.join("proc"),
        sysfs: tree.0.join("sys"),
        rootfs: tree.0.clone(),
        filesystem_interval_ms: 1000,
        choice: Choice::default(),
    };
    let mut sampler = Sampler::new(&trees, slow_clock, Arc::new(Table::new()));
    let available = "sys/kernel/random/entropy_avail";
    fs::create_dir_all(tree.0.join("proc/sys/kernel/random")).unwrap();
    let set = |second: u64| {
        fs::write(tree.0.join("proc").join(available), format!("{second}\n")).unwrap();
    };
    // How old what is told is, at most, in this many seconds from there on.
    let mut age = |from: u64, seconds: u64, step_ns: u64| {
        STEP_NS.store(step_ns, std::sync::atomic::Ordering::Relaxed);
        let mut oldest = 0.0_f64;
        let mut told = None;
        for second in from..from + seconds {
            set(second);
            let found = rows(&mut sampler, second);
            let of = |section: &str, name: &str| found.get(section)?.get(name).copied();
            if let Some(value) = of("slow", "node_entropy_available_bits{}") {
                oldest = oldest.max(second as f64 - value);
            }
            let factor = "strobe_collector_interval_factor{entropy}";
            told = of("collectors", factor).or(told);
        }
        (oldest, told)
    };
    assert_eq!(age(1, 120, 100_000), (0.0, None));
    age(121, 1000, 3_000_000);
    assert_eq!(age(1121, 900, 3_000_000), (225.0, Some(16.0)));
    age(2021, 2500, 100_000);
    assert_eq!(age(4521, 300, 100_000), (0.0, Some(1.0)));
}
