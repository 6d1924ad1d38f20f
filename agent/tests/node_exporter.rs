//! Side by side with the real node_exporter: the same names, labels and values for our families.
//!
//! Needs `prometheus-node-exporter` on PATH (`make test` installs it); without it the test fails.
#![expect(clippy::unwrap_used, reason = "helpers of a test may panic as it may")]

mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

/// A series with its labels sorted and empty ones left out, and its value.
type Series = BTreeMap<String, f64>;

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Upstream's defaults where Debian's build has others, and only our collectors.
const FLAGS: &[&str] = &[
    "--collector.disable-defaults",
    "--collector.arp",
    "--collector.bcache",
    "--collector.bonding",
    "--collector.btrfs",
    "--collector.conntrack",
    "--collector.cpu",
    "--collector.cpufreq",
    "--collector.diskstats",
    "--collector.dmi",
    "--collector.edac",
    "--collector.entropy",
    "--collector.fibrechannel",
    "--collector.filefd",
    "--collector.filesystem",
    "--collector.hwmon",
    "--collector.infiniband",
    "--collector.ipvs",
    "--collector.loadavg",
    "--collector.mdadm",
    "--collector.meminfo",
    "--collector.netclass",
    "--collector.netdev",
    "--collector.netstat",
    "--collector.nfs",
    "--collector.nfsd",
    "--collector.nvme",
    "--collector.os",
    "--collector.powersupplyclass",
    "--collector.pressure",
    "--collector.rapl",
    "--collector.schedstat",
    "--collector.selinux",
    "--collector.sockstat",
    "--collector.softnet",
    "--collector.stat",
    "--collector.tapestats",
    "--collector.thermal_zone",
    "--collector.time",
    "--collector.timex",
    "--collector.udp_queues",
    "--collector.uname",
    "--collector.vmstat",
    "--collector.xfs",
    "--collector.zfs",
    r"--collector.diskstats.device-exclude=^(z?ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+$",
    "--collector.filesystem.mount-points-exclude=^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)",
    "--collector.netdev.device-exclude=^$",
];

/// What newer node_exporters have, or we have beside them.
const OURS_ONLY: &[&str] = &[
    "node_netstat_TcpExt_TCPOFOQueue",
    "node_netstat_TcpExt_TCPRcvQDrop",
    "node_pressure_irq_stalled_seconds_total",
    "strobe_",
];
/// The name of the time zone is for people.
const THEIRS_ONLY: &[&str] = &["node_time_zone_offset_seconds"];
/// Whatever differs from one reading to the next by nature.
const MOVING: &[&str] = &[
    "node_scrape_collector_duration_seconds",
    "node_procs_running",
    "node_procs_blocked",
    "node_disk_io_now",
    "node_load",
    "node_sockstat_",
    "node_netstat_Tcp_CurrEstab",
    "node_udp_queues",
    "node_entropy_available_bits",
    "node_timex_",
    "node_nf_conntrack_entries",
];
/// Collectors of ours that are part of one of theirs, told apart by what they cost.
const OUR_PARTS: [&str; 6] =
    ["clocksource", "cpu_isolated", "netstat6", "tcp_listen", "textfile", "thermal_throttle"];
/// Read from a tree: whatever does not ask the running kernel, those that are off by default too.
const TREE: &[&str] = &[
    "arp",
    "bcache",
    "bonding",
    "btrfs",
    "buddyinfo",
    "cgroups",
    "conntrack",
    "cpufreq",
    "dmi",
    "edac",
    "entropy",
    "fibrechannel",
    "hwmon",
    "infiniband",
    "interrupts",
    "ipvs",
    "ksmd",
    "mdadm",
    "meminfo_numa",
    "mountstats",
    "netclass",
    "nfs",
    "nfsd",
    "nvme",
    "powersupplyclass",
    "rapl",
    "schedstat",
    "selinux",
    "slabinfo",
    "softnet",
    "tapestats",
    "thermal_zone",
    "udp_queues",
    "xfs",
    "zfs",
    "zoneinfo",
];

/// Read from a captured kernel besides.
const CAPTURED: &[&str] = &[
    "cpu",
    "diskstats",
    "filefd",
    "loadavg",
    "meminfo",
    "netdev",
    "netstat",
    "pressure",
    "sockstat",
    "stat",
    "vmstat",
];

#[test]
fn names_labels_and_values_are_those_of_node_exporter() {
    let flags: Vec<String> = FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
    let (_running, address) = start(&flags);
    // Theirs between two of ours: a value lies between the two, or is the same.
    let first = series(&ours(&[]));
    let theirs = series(&scrape(&address));
    let second = series(&ours(&[]));
    let is = |list: &[&str], name: &str| list.iter().any(|prefix| name.starts_with(prefix));
    let mut wrong = Vec::new();
    let mut same = 0;
    for (name, value) in &theirs {
        if !name.starts_with("node_") || name.starts_with("node_exporter_") {
            continue;
        }
        if is(THEIRS_ONLY, name) {
            continue;
        }
        let (Some(before), Some(after)) = (first.get(name), second.get(name)) else {
            wrong.push(format!("missing: {name} {value}"));
            continue;
        };
        // A gauge may swing outside two readings of it, but not far.
        let slack = if is(&["node_memory_", "node_filesystem_", "node_filefd_"], name) {
            0.2 * value.abs().max(1e8)
        } else {
            1e-9 * value.abs()
        };
        let between = before.min(*after) - slack <= *value && *value <= before.max(*after) + slack;
        if between || is(MOVING, name) {
            same += 1;
        } else {
            wrong.push(format!("differs: {name} theirs {value}, ours {before} … {after}"));
        }
    }
    for name in second.keys() {
        let part = OUR_PARTS.iter().any(|part| name.contains(&format!("=\"{part}}}")));
        if !theirs.contains_key(name) && !is(OURS_ONLY, name) && !part {
            wrong.push(format!("not theirs: {name}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} series:\n{}", wrong.len(), theirs.len(), wrong.join("\n"));
    assert!(150 < same, "only {same} series were compared");
}

/// A server with hardware that this machine does not have: the same series with the same values,
/// all of them.
#[test]
fn a_tree_gives_what_it_gives_to_node_exporter() {
    let text = include_str!("../../tests/fixtures/trees/server.tree");
    let tree = tree::Tree::unpack("server", text);
    let texts = tree.path("textfile");
    std::fs::create_dir(&texts).unwrap();
    let metrics = "# TYPE backup_age gauge\nbackup_age{of=\"db, \\\"x\\\"\"} 12.5\nbackup_runs 3\n";
    std::fs::write(tree.path("textfile/backup.prom"), metrics).unwrap();
    std::fs::write(tree.path("textfile/broken.prom"), "broken{ 1\n").unwrap();
    std::fs::write(tree.path("textfile/other.txt"), "not_read 1\n").unwrap();
    let own = vec!["--textfiles".to_owned(), texts.clone()];
    let textfile = "--collector.textfile".to_owned();
    let their = vec![textfile.clone(), format!("{textfile}.directory={texts}")];
    let (same, _) = compare(&tree, TREE, (&own, &their), &[]);
    assert!(900 < same, "only {same} series were compared");
}

/// What kernels have said, from 4.4 to 6.12, of 32 and 64 bits and of either byte order: the same series with
/// the same values, in both moments; and no counter steps back between them, though a CPU went off line.
#[test]
fn captured_kernels_give_what_they_give_to_node_exporter() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/kernels");
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| {
            Some(entry.unwrap().file_name().to_str()?.strip_suffix(".tree")?.into())
        })
        .collect();
    names.sort();
    assert_eq!(9, names.len(), "{names:?}");
    let collectors: Vec<&str> = TREE.iter().chain(CAPTURED).copied().collect();
    let excluded =
        FLAGS.iter().filter(|flag| flag.contains("stats.device") || flag.contains("netdev.d"));
    let their: Vec<String> = ["--no-collector.netdev.netlink"]
        .iter()
        .chain(excluded)
        .map(|flag| (*flag).to_owned())
        .collect();
    for name in names {
        let read = |what: &str| std::fs::read_to_string(format!("{dir}/{name}.{what}")).unwrap();
        let mut uncompared = Vec::new();
        // Three lines of a mainframe have no words behind their numbers; they leave those out.
        uncompared.extend(name.contains("s390x").then_some("node_interrupts_total"));
        // A kernel without NUMA has no merge_across_nodes; they give up there, we tell the others.
        let ksmd = "node_scrape_collector_success{collector=\"ksmd";
        let tree_text = read("tree");
        uncompared.extend((!tree_text.contains("merge_across_nodes")).then_some(ksmd));
        let mut tree = tree::Tree::unpack(&name, &tree_text);
        // Nothing was captured of the mounts; theirs does not start without a /proc/self.
        tree.overlay("proc/self\t-> 1\nproc/1/none\t\n");
        let (same, before) = compare(&tree, &collectors, (&[], &their), &uncompared);
        assert!(400 < same, "{name}: only {same} series were compared");
        tree.overlay(&read("later"));
        // Of a CPU that is off line they make zeros, and its neighbours' numbers are given its name.
        uncompared.extend(["node_cpu_", "node_interrupts_total", "node_softnet_"]);
        let (same, after) = compare(&tree, &collectors, (&[], &their), &uncompared);
        assert!(400 < same, "{name}: only {same} series were compared later");
        let counters = before.iter().filter(|(series, _)| series.contains("_total"));
        let both: Vec<_> = counters.filter_map(|(s, was)| Some((s, was, after.get(s)?))).collect();
        // Before 5.10 only who has seen the CPU knows whose rows these are not; each of ours is a new one.
        let is_numbered = !name.starts_with("4.") && !name.starts_with("5.4");
        let steps = |s: &str| !is_numbered && s.starts_with("node_softnet_");
        let back: Vec<_> = both.iter().filter(|(s, was, is)| is < was && !steps(s)).collect();
        assert!(back.is_empty(), "{name}: {back:?}");
        assert!(both.iter().any(|(_, was, is)| was < is), "{name}: nothing has moved");
        let cpu = |of: &Series, cpu: &str| {
            of.keys().any(|s| s.starts_with("node_cpu_seconds_total{") && s.contains(cpu))
        };
        assert!(cpu(&before, "cpu=\"2") && cpu(&after, "cpu=\"3"), "{name}");
        assert!(!cpu(&after, "cpu=\"2"), "{name}: it is off line");
    }
}

/// A host that has nothing, and one whose lists are all empty: what of it is a failure.
#[test]
fn what_a_host_does_not_have_fails_as_it_does_in_node_exporter() {
    // Theirs does not start without a /proc/self.
    let nothing = "etc/none\t\nproc/self\t-> 1\nproc/1/none\t\nsys/none\t\n";
    let mut tree = tree::Tree::unpack("nothing", nothing);
    compare(&tree, TREE, (&[], &[]), &[]);
    let directories = [
        "class/dmi/id",
        "class/fc_host",
        "class/hwmon",
        "class/infiniband",
        "class/net",
        "class/nvme",
        "class/power_supply",
        "class/powercap",
        "class/scsi_tape",
        "class/thermal",
        "devices/system/cpu",
        "devices/system/edac/mc",
        "devices/system/node",
        "fs/bcache",
        "fs/btrfs",
        "fs/xfs",
    ];
    for directory in directories {
        tree.overlay(&format!("sys/{directory}/.none\t\n"));
        std::fs::remove_file(tree.path(&format!("sys/{directory}/.none"))).unwrap();
    }
    let files = [
        "1/mountinfo",
        "1/mountstats",
        "buddyinfo",
        "cgroups",
        "mdstat",
        "net/arp",
        "schedstat",
        "slabinfo",
        "zoneinfo",
    ];
    files.iter().for_each(|file| tree.overlay(&format!("proc/{file}\t\n")));
    compare(&tree, TREE, (&[], &[]), &[]);
}

/// Both read a tree: how many series of theirs we have with the same values, which is all of them; and ours.
fn compare(
    tree: &tree::Tree,
    collectors: &[&str],
    (own, their): (&[String], &[String]),
    uncompared: &[&str],
) -> (usize, Series) {
    let mut flags = vec!["--collector.disable-defaults".to_owned()];
    flags.extend(collectors.iter().map(|name| format!("--collector.{name}")));
    flags.push(format!("--path.procfs={}", tree.path("proc")));
    flags.push(format!("--path.sysfs={}", tree.path("sys")));
    flags.push(format!("--path.rootfs={}", tree.path("")));
    flags.extend_from_slice(their);
    let (_running, address) = start(&flags);
    let mut args = vec!["--procfs".to_owned(), tree.path("proc"), "--sysfs".to_owned()];
    args.extend([tree.path("sys"), "--rootfs".to_owned(), tree.path("")]);
    args.extend_from_slice(own);
    args.extend(TREE.iter().map(|name| format!("--collector.{name}")));
    let (theirs, ours) = (series(&scrape(&address)), series(&ours(&args)));
    let metric = |name: &str| name.split('{').next().unwrap_or("").to_owned();
    let compared = |name: &&String| {
        name.starts_with("node_")
            && !name.contains("_duration_")
            && !name.starts_with("node_exporter")
            && !uncompared.iter().any(|prefix| name.starts_with(prefix))
    };
    let names: Vec<_> = theirs.keys().filter(compared).collect();
    let metrics: BTreeSet<_> = names.iter().map(|name| metric(name)).collect();
    let mut wrong = Vec::new();
    for name in &names {
        let value = theirs[*name];
        match ours.get(*name) {
            Some(own) if (own - value).abs() <= 1e-9 * value.abs() => {}
            own => wrong.push(format!("{name}: theirs {value}, ours {own:?}")),
        }
    }
    for name in ours.keys().filter(|name| metrics.contains(&metric(name))) {
        let success = name.starts_with("node_scrape_collector_success");
        if !success && !theirs.contains_key(name) {
            wrong.push(format!("not theirs: {name}"));
        }
    }
    let of = tree.path("");
    assert!(wrong.is_empty(), "{of}: {} of {}:\n{}", wrong.len(), names.len(), wrong.join("\n"));
    (names.len(), ours)
}

fn ours(args: &[String]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strobe-agent"));
    let out = command.arg("--once").args(args).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn start(flags: &[String]) -> (Ended, String) {
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let started = Command::new("prometheus-node-exporter")
            .args(flags)
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(child) = started else {
            panic!("prometheus-node-exporter is not on PATH: install it (`make test` does)");
        };
        let mut running = Ended(child);
        let mut lines = BufReader::new(running.0.stderr.take().unwrap()).lines();
        if lines.any(|line| line.unwrap_or_default().contains("TLS is disabled")) {
            // Someone has to read what it says further, or it may block.
            std::thread::spawn(move || lines.count());
            return (running, address);
        }
    }
    panic!("prometheus-node-exporter did not start on five ports");
}

fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{head}");
    body.to_owned()
}

fn series(text: &str) -> Series {
    let mut out = BTreeMap::new();
    for line in text.split('\n').filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        let known = out.insert(sorted(name), value);
        assert_eq!(known, None, "{name} stands twice");
    }
    out
}

/// No value in our families holds a quote followed by a comma.
fn sorted(name: &str) -> String {
    let Some((name, labels)) = name.split_once('{') else { return name.to_owned() };
    let labels = labels.trim_end_matches('}');
    let mut pairs: Vec<String> = labels
        .split("\",")
        .map(|pair| pair.trim_end_matches('"').to_owned())
        .filter(|pair| !pair.ends_with("=\"") && !pair.ends_with('='))
        .collect();
    pairs.sort();
    format!("{name}{{{}}}", pairs.join("|"))
}

/// The exporter's own endpoint gives the same text, refuses what is hostile and goes on serving.
#[test]
fn metrics_are_served_and_hostile_peers_are_closed() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let child = Command::new(env!("CARGO_BIN_EXE_strobe-agent"))
        .args(["--listen", &address])
        .spawn()
        .unwrap();
    let _running = Ended(child);
    while TcpStream::connect(&address).is_err() {
        std::thread::yield_now();
    }
    let hold: Vec<_> = (0..10).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut huge = TcpStream::connect(&address).unwrap();
    huge.write_all(&[b'x'; 9000]).unwrap();
    let mut refused = String::new();
    let _ = huge.read_to_string(&mut refused);
    assert!(refused.starts_with("HTTP/1.1 431"), "{refused}");
    let served = series(&scrape(&address));
    assert!(served.contains_key("node_load1") && 100 < served.len());
    drop(hold);
    // The second answer has what is read once a minute too.
    assert!(series(&scrape(&address)).contains_key("node_selinux_enabled"));
    assert!(100 < series(&scrape(&address)).len());
}
