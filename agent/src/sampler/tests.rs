//! The sampler on trees that change.

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
