//! The whole sampler over trees of machines that nobody has at hand: kernels from 2.6.32 on, 1 to 1,152
//! CPUs, 0 to 5,000 links, and everything that may become of their files.
//!
//! Every counter of a tree grows by a number of its own each second, so that each column must grow by the same
//! amount at every tick at which it has a value: a false spike, a hole or a negative rate is another amount.

use super::*;
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

/// A machine, as its /proc has it.
#[derive(Clone, Copy)]
struct Machine {
    kernel: &'static str,
    cpus: usize,
    links: usize,
    disks: usize,
    /// Numbers of a line of `diskstats` behind the name.
    disk_fields: usize,
    /// Modes of a CPU's line.
    modes: usize,
    pressure: bool,
    /// Numbers of the `intr` line, and whether there is a /proc/interrupts of all CPUs.
    interrupts: usize,
}

const MACHINES: [Machine; 5] = [
    machine("2.6.32", (1, 0, 1), (11, 9), (false, 300)),
    machine("3.10.0", (8, 3, 4), (11, 10), (false, 600)),
    machine("4.18.0", (64, 300, 40), (15, 10), (false, 2_000)),
    machine("5.5.0", (16, 5_000, 12), (17, 10), (true, 2_000)),
    machine("6.18.0", (1_152, 4, 100), (17, 10), (true, 65_000)),
];

const fn machine(
    kernel: &'static str,
    (cpus, links, disks): (usize, usize, usize),
    (disk_fields, modes): (usize, usize),
    (pressure, interrupts): (bool, usize),
) -> Machine {
    Machine { kernel, cpus, links, disks, disk_fields, modes, pressure, interrupts }
}

/// What is the matter with a machine at one moment.
#[derive(Clone, Copy, Default)]
struct Trouble {
    /// A CPU that is off line.
    off: Option<usize>,
    /// A disk that is away.
    gone: Option<usize>,
    /// Counters of this disk and link began anew at this second.
    anew: Option<(usize, u64)>,
    /// Idle of all CPUs stepped back by so many ticks.
    back: u64,
}

struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let dir = if PathBuf::from("/dev/shm").is_dir() {
            "/dev/shm".into()
        } else {
            std::env::temp_dir()
        };
        let tree = Self(dir.join(format!("strobe-kernels-{name}-{}", std::process::id())));
        let _ = fs::remove_dir_all(&tree.0);
        tree
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn sampler(&self, enable: &[&str]) -> Sampler {
        let enable: Vec<String> = enable.iter().map(|name| (*name).to_owned()).collect();
        // What is read less often otherwise is to be right each time, too.
        let seldom = ["filefd", "netstat", "sockstat", "vmstat"].map(str::to_owned);
        let intervals = enable.iter().cloned().chain(seldom).map(|name| (name, 1_000)).collect();
        let choice = Choice { enable, intervals, scoring: Scoring::On, ..Choice::default() };
        let trees = Trees {
            procfs: self.0.clone(),
            sysfs: self.0.join("no-sys"),
            rootfs: "/".into(),
            filesystem_interval_ms: 1_000_000,
            choice,
        };
        Sampler::new(&trees, || 0, Arc::new(Table::new()))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A counter's value: `column` gives it a start and a pace of its own.
fn count(column: usize, second: u64) -> u64 {
    let column = column as u64;
    1_000_000 + column * 17 + (column % 5 + 1) * second
}

impl Machine {
    fn write(&self, tree: &Tree, second: u64, trouble: Trouble) {
        tree.write("sys/kernel/osrelease", self.kernel);
        tree.write("stat", &self.stat(second, trouble));
        tree.write("loadavg", "0.5 0.25 0.125 1/200 300\n");
        tree.write("meminfo", "MemTotal: 1000 kB\nMemFree: 500 kB\nBuffers: 1 kB\nCached: 2 kB\n");
        let pairs = |names: &[&str], from: usize| -> String {
            let line =
                |(at, name): (usize, &&str)| format!("{name} {}\n", count(from + at, second));
            names.iter().enumerate().map(line).collect()
        };
        tree.write(
            "vmstat",
            &pairs(&["pgpgin", "pgpgout", "pswpin", "pswpout", "pgfault", "pgmajfault"], 10),
        );
        tree.write("sys/fs/file-nr", "1 0 100\n");
        tree.write("net/sockstat", "sockets: used 10\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 1\n");
        let (a, b) = (count(20, second), count(21, second));
        tree.write(
            "net/snmp",
            &format!(
                "Ip: Forwarding InReceives\nIp: 1 {a}\nUdp: InDatagrams InErrors\nUdp: {a} {b}\n"
            ),
        );
        tree.write(
            "net/netstat",
            &format!("TcpExt: SyncookiesSent ListenDrops\nTcpExt: {a} {b}\n"),
        );
        tree.write("diskstats", &self.diskstats(second, trouble));
        tree.write("net/dev", &self.links(second, trouble));
        if self.pressure {
            for (at, name) in ["cpu", "io", "memory"].into_iter().enumerate() {
                let total = count(30 + at, second);
                let line =
                    |what| format!("{what} avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
                tree.write(&format!("pressure/{name}"), &(line("some") + &line("full")));
            }
        }
        if 64 < self.cpus {
            tree.write("interrupts", &self.interrupts(second));
        }
    }

    fn stat(&self, second: u64, trouble: Trouble) -> String {
        let mut out = String::from("cpu  1 1 1 1 1 1 1 1 1 1\n");
        for cpu in (0..self.cpus).filter(|cpu| trouble.off != Some(*cpu)) {
            let _ = write!(out, "cpu{cpu}");
            for mode in 0..self.modes {
                // Where idle steps back, iowait does too: a kernel that counts them anew.
                let back = if matches!(mode, 3 | 4) { trouble.back } else { 0 };
                let _ = write!(out, " {}", count(cpu * 10 + mode, second) - back);
            }
            out.push('\n');
        }
        let _ = write!(out, "intr {}", count(1, second));
        for number in 0..self.interrupts {
            let _ = write!(out, " {}", number % 10);
        }
        let _ = write!(
            out,
            "\nctxt {}\nbtime 1700000000\nprocesses {}\nprocs_running 2\nprocs_blocked 0\n",
            count(2, second),
            count(3, second)
        );
        out
    }

    fn diskstats(&self, second: u64, trouble: Trouble) -> String {
        let mut out = String::new();
        for disk in (0..self.disks).filter(|disk| trouble.gone != Some(*disk)) {
            let since = trouble.anew.filter(|(anew, _)| *anew == disk).map(|(_, since)| since);
            let _ = write!(out, "   8 {disk} nvme{disk}n1");
            for field in 0..self.disk_fields {
                let _ = match (field, since) {
                    (8, _) => write!(out, " 0"),
                    (_, Some(since)) => write!(out, " {}", second - since),
                    (_, None) => write!(out, " {}", count(disk * 20 + field, second)),
                };
            }
            out.push('\n');
        }
        out
    }

    fn links(&self, second: u64, trouble: Trouble) -> String {
        let mut out = "Inter-| Receive | Transmit\n face |bytes packets\n".to_owned();
        for link in 0..self.links {
            let since = trouble.anew.filter(|(anew, _)| *anew == link).map(|(_, since)| since);
            let _ = write!(out, "eth{link}:");
            for field in 0..16 {
                let value =
                    since.map_or_else(|| count(link * 16 + field, second), |at| second - at);
                let _ = write!(out, " {value}");
            }
            out.push('\n');
        }
        out
    }

    /// 13 MB on 1,152 CPUs.
    fn interrupts(&self, second: u64) -> String {
        let mut out = " ".repeat(12);
        (0..self.cpus).for_each(|cpu| out += &format!("CPU{cpu} "));
        let value = format!(" {:>10}", count(4, second));
        for number in 0..1_000 {
            let _ = writeln!(
                out,
                "\n{number:>4}:{} PCI-MSI {number}-edge nvme{number}",
                value.repeat(self.cpus)
            );
        }
        out
    }
}

/// Every counter that has a value, as raw bits.
fn counters(sampler: &mut Sampler, second: u64, wall_s: i64) -> BTreeMap<String, u64> {
    let now = Tick { wall_ns: wall_s * 1_000_000_000, boottime_ns: (second + 100) * 1_000_000_000 };
    let mut all = BTreeMap::new();
    sampler.tick(now, |row| {
        assert_eq!(row.schema.check(), Ok(()));
        for (index, column) in row.schema.columns.iter().enumerate() {
            let is_counter = matches!(column.kind, Kind::Counter { .. });
            if is_counter && row.valid[index / 8] >> (index % 8) & 1 == 1 {
                all.insert(format!("{} {:?}", column.name, column.labels.0), row.values[index]);
            }
        }
    });
    // The rest is this machine's own (adjtimex), or what the sampler counts of itself.
    const OURS: [&str; 10] = [
        "cpu_",
        "disk_",
        "network_",
        "intr",
        "interrupts",
        "context_switches",
        "forks",
        "vmstat_",
        "netstat_",
        "pressure_",
    ];
    all.retain(|name, _| {
        let name = name.strip_prefix("node_");
        name.is_some_and(|name| OURS.iter().any(|ours| name.starts_with(ours)))
    });
    all
}

#[test]
fn every_kernel_and_size_has_the_same_rate_at_every_tick() {
    for machine in MACHINES {
        let tree = Tree::new(machine.kernel);
        machine.write(&tree, 0, Trouble::default());
        let enable: &[&str] = if 64 < machine.cpus { &["interrupts"] } else { &[] };
        let mut sampler = tree.sampler(enable);
        let mut before = counters(&mut sampler, 0, 0);
        let is_large = before.keys().any(|name| name.starts_with("node_interrupts_total"));
        assert_eq!(is_large, 64 < machine.cpus, "13 MB of interrupts are told as sums");
        let mut paces: BTreeMap<String, u64> = BTreeMap::new();
        let (disk, cpu) = (machine.disks / 2, machine.cpus / 2);
        let mut anew = None;
        let troubles = [
            Trouble::default(),
            Trouble { off: Some(cpu), ..Trouble::default() },
            Trouble { gone: Some(disk), ..Trouble::default() },
            Trouble { back: 30, ..Trouble::default() },
            Trouble { anew: Some((disk, 5)), ..Trouble::default() },
            Trouble { anew: Some((disk, 5)), ..Trouble::default() },
        ];
        for (second, trouble) in (1..).zip(troubles) {
            machine.write(&tree, second, trouble);
            let now = counters(&mut sampler, second, 0);
            let (mut same, mut fell, mut lost) = (0, 0, 0);
            for (name, value) in &now {
                let Some(was) = before.get(name) else { continue };
                let Some(grown) = value.checked_sub(*was) else {
                    // Only what the machine itself counted anew: its one disk and its one link.
                    assert!(
                        trouble.anew.is_some() && anew.is_none(),
                        "{name} fell from {was} to {value}"
                    );
                    fell += 1;
                    continue;
                };
                let is_back = 0 < trouble.back && name.contains("\"mode\"");
                let after_back = second == 5 && name.contains("\"mode\"");
                if is_back || after_back {
                    // It stood still, and goes on from there.
                    assert!(grown <= 2 * paces[name], "{name}: {grown}");
                    continue;
                }
                if anew.is_some() && grown != paces[name] {
                    assert!(grown <= 512_000, "{name}: {grown}");
                    continue;
                }
                let pace = *paces.entry(name.clone()).or_insert(grown);
                assert_eq!(grown, pace, "{} at {second}: {name}", machine.kernel);
                same += 1;
            }
            before.keys().filter(|name| !now.contains_key(*name)).for_each(|_| lost += 1);
            let (few, most) = (second == 2 && machine.cpus == 1, before.len());
            assert!(few || 9 * most / 10 <= same + lost + fell || second >= 4, "{same} of {most}");
            let wanted_lost = match second {
                2 => machine.modes.min(10),
                // What a disk does at this moment is no counter.
                3 => machine.disk_fields - 1,
                _ => 0,
            };
            assert!(lost <= wanted_lost, "{} at {second}: {lost} are gone", machine.kernel);
            assert!((second == 5) == (0 < fell), "{} at {second}: {fell} fell", machine.kernel);
            if second == 5 {
                anew = trouble.anew;
            }
            before = now;
        }
    }
}

/// The wall clock is set by an hour and a day, forth and back: no row is missing, none is more, and no
/// value but the time is another.
#[test]
fn a_wall_clock_that_is_set_changes_nothing_but_the_time() {
    let (tree, machine) = (Tree::new("steps"), MACHINES[1]);
    machine.write(&tree, 0, Trouble::default());
    let (mut plain, mut stepped) = (tree.sampler(&[]), tree.sampler(&[]));
    let start_s = 1_700_000_000;
    let (mut wall_s, mut rates) = (start_s, Vec::new());
    for second in 0..400_u64 {
        machine.write(&tree, second, Trouble::default());
        wall_s += match second {
            100 => 3_600,
            150 => -3_600,
            200 => 86_400,
            250 => -86_400,
            300 => -86_400 - 3_600,
            _ => 1,
        };
        let tick = |sampler: &mut Sampler, wall_s: i64| {
            let boottime_ns = (second + 100) * 1_000_000_000;
            let (mut rows, mut rate) = (BTreeMap::new(), None);
            let now = Tick { wall_ns: wall_s * 1_000_000_000, boottime_ns };
            sampler.tick(now, |row| {
                for (index, column) in row.schema.columns.iter().enumerate() {
                    let valid = row.valid[index / 8] >> (index % 8) & 1 == 1;
                    match &*column.name {
                        "strobe_agent_anomaly_rate" => rate = valid.then_some(row.values[index]),
                        "node_time_seconds" => {}
                        // Threads answer when they answer.
                        name if name.starts_with("node_filesystem") => {}
                        name => {
                            let key = format!("{name} {:?}", column.labels.0);
                            rows.insert(key, valid.then_some(row.values[index]));
                        }
                    }
                }
            });
            rows.retain(|name, _| {
                !name.contains("node_scrape") && !name.starts_with("node_textfile")
            });
            (rows, rate)
        };
        let own_s = start_s + i64::try_from(second).unwrap();
        let ((wanted, calm), (found, rate)) = (tick(&mut plain, own_s), tick(&mut stepped, wall_s));
        assert_eq!(found, wanted, "at second {second}");
        rates.push((calm, rate));
    }
    let most = rates.iter().filter_map(|(_, rate)| *rate).max().unwrap_or(0);
    assert!(most <= 100, "an alarm of {most} of 10,000 columns by a step of the clock");
    assert!(rates.iter().any(|(_, rate)| rate.is_some()), "the rate is told");
}

/// A kernel of 32 bits counts bytes to 4 GiB and begins anew: the series falls as the counter did, which
/// `rate()` takes for a beginning, and never jumps by what a subtraction without a sign would give.
#[test]
fn a_counter_of_32_bits_that_wraps_falls_and_never_jumps() {
    let (tree, machine) = (Tree::new("wraps"), MACHINES[1]);
    machine.write(&tree, 0, Trouble::default());
    let mut sampler = tree.sampler(&[]);
    let (mut before, mut falls) = (None, 0);
    for second in 0..8_u64 {
        let bytes = (u64::from(u32::MAX) - 3_500 + 1_000 * second) % (1 << 32);
        let line =
            format!(" face |bytes packets\neth0: {bytes} 1 0 0 0 0 0 0 {bytes} 1 0 0 0 0 0 0\n");
        tree.write("net/dev", &format!("Inter-| Receive | Transmit\n{line}"));
        let now = counters(&mut sampler, second, 0);
        let name = "node_network_receive_bytes_total [(\"device\", \"eth0\")]";
        assert_eq!(now[name], bytes, "it is what the kernel says");
        match before.map(|before: u64| now[name].checked_sub(before)) {
            None | Some(Some(1_000)) => {}
            Some(None) => falls += 1,
            Some(Some(grown)) => panic!("it jumped by {grown}"),
        }
        before = Some(now[name]);
    }
    assert_eq!(falls, 1);
}

/// Whatever stands in a file, no value is another than what a whole file would give, and the next whole
/// file is read again.
#[test]
fn hostile_files_have_no_values_and_the_others_have() {
    let machine = MACHINES[1];
    let huge = "9".repeat(40);
    let files =
        ["stat", "diskstats", "net/dev", "vmstat", "net/snmp", "net/netstat", "meminfo", "loadavg"];
    for file in files {
        let tree = Tree::new(&format!("hostile-{}", file.replace('/', "-")));
        machine.write(&tree, 0, Trouble::default());
        let mut sampler = tree.sampler(&[]);
        let first = counters(&mut sampler, 0, 0);
        let whole = fs::read_to_string(tree.0.join(file)).unwrap();
        let half: String = whole.chars().take(whole.len() / 2).collect();
        let bad: Vec<Vec<u8>> = vec![
            Vec::new(),
            b"\n\n\n".to_vec(),
            vec![0xff; 5_000],
            whole.replace("00", &huge).into_bytes(),
            whole.replace('\n', " ").into_bytes(),
            whole.replace(' ', "").into_bytes(),
            whole.trim_end().as_bytes().to_vec(),
            half.into_bytes(),
            whole.replace("10", "-1").into_bytes(),
        ];
        for (number, bytes) in (1..).zip(bad) {
            fs::write(tree.0.join(file), &bytes).unwrap();
            let now = counters(&mut sampler, 2 * number, 0);
            for (name, value) in &now {
                // A torn number is a smaller one, which nobody can know; it is never a larger one.
                let most = first.get(name).copied().unwrap_or(u64::MAX);
                assert!(*value <= most, "{file} {number}: {name} is {value}, was {most}");
            }
            fs::write(tree.0.join(file), &whole).unwrap();
            let again = counters(&mut sampler, 2 * number + 1, 0);
            assert_eq!(again.len(), first.len(), "{file} after {number}");
        }
    }
}

/// A directory (EISDIR), a pipe (ESPIPE when it is read at an offset), nothing at all, and back.
#[test]
fn files_that_cannot_be_read_cost_their_own_values_only() {
    let machine = MACHINES[1];
    let tree = Tree::new("denied");
    machine.write(&tree, 0, Trouble::default());
    let mut sampler = tree.sampler(&[]);
    let first = counters(&mut sampler, 0, 0);
    let path = tree.0.join("diskstats");
    let without = first.iter().filter(|(name, _)| !name.starts_with("node_disk")).count();
    let whole = fs::read(&path).unwrap();
    // A descriptor that is kept open would go on reading what was there.
    let fresh = || tree.sampler(&[]);
    fs::remove_file(&path).unwrap();
    assert_eq!(counters(&mut fresh(), 1, 0).len(), without);
    fs::create_dir(&path).unwrap();
    assert_eq!(counters(&mut fresh(), 2, 0).len(), without);
    fs::remove_dir(&path).unwrap();
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    let both = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert_eq!(counters(&mut fresh(), 3, 0).len(), without);
    drop(both);
    fs::remove_file(&path).unwrap();
    fs::write(&path, whole).unwrap();
    assert_eq!(counters(&mut fresh(), 4, 0).len(), first.len());
}
