//! What a large host costs: a thousand control groups and five thousand processes, real ones.
//!
//! The processes are one shell's, each waiting for a pipe that ends with this one; some work a
//! little, and start short-lived ones while they do. The groups are made below the host's own where
//! that is permitted, otherwise a tree of version 2 in memory stands for them, and the result says which.
//! Two agents run over the same seconds, one with `cgroup` and `process` at the interval and
//! one without: the difference is what both families cost.

use crate::broker::Broker;
use crate::process;
use crate::report::Table;
use crate::run;
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the programs are.
    pub programs: PathBuf,
    /// Processes.
    pub processes: usize,
    /// Control groups.
    pub groups: usize,
    /// How long.
    pub lasting: Duration,
    /// The families' interval, as in `1s`.
    pub interval: String,
    /// Where state may go; removed by the caller.
    pub dir: PathBuf,
}

/// Control groups that are removed when this is dropped.
#[derive(Debug)]
struct Groups {
    /// Deepest last.
    made: Vec<PathBuf>,
    /// Another /sys, if the host's own could not be used.
    sysfs: Option<PathBuf>,
    what: &'static str,
}

/// Processes that end when this is dropped.
#[derive(Debug)]
struct Crowd(Vec<Child>);

/// Measures.
///
/// # Errors
/// Something cannot be started, or ended while it was measured.
pub fn measure(wanted: &Wanted) -> io::Result<(Value, Table)> {
    let groups = Groups::make(wanted.groups, &wanted.dir)?;
    let crowd = Crowd::start(wanted.processes, &groups)?;
    let broker = Broker::start(&wanted.programs.join("strobe-broker"), &wanted.dir);
    let broker = broker.map_err(io::Error::other)?;
    let interval = &wanted.interval;
    let families = [
        "--collector.cgroup".to_owned(),
        "--collector.process".to_owned(),
        format!("--interval.cgroup={interval}"),
        format!("--interval.process={interval}"),
    ];
    let without = ["--no-collector.cgroup".to_owned(), "--no-collector.process".to_owned()];
    let mut agents = Vec::new();
    for (name, arguments) in [("with", &families[..]), ("without", &without[..])] {
        let mut command = Command::new(wanted.programs.join("strobe-agent"));
        command.arg("--dir").arg(wanted.dir.join(name)).args(arguments);
        let token = broker.token().map_err(io::Error::other)?;
        command.args(["--broker", &broker.address.to_string(), "--token", &token]);
        command.args(groups.sysfs.iter().flat_map(|path| ["--sysfs".as_ref(), path.as_os_str()]));
        agents.push(spawn(command)?);
    }
    let mut crowd = crowd;
    crowd.0.append(&mut agents);
    let pids: Vec<u32> = crowd.0.iter().rev().take(2).rev().map(Child::id).collect();
    run::sleep_until(run::now() + WARM_UP);
    let cpu = |pids: &[u32]| -> io::Result<Vec<u64>> {
        let ended = || io::Error::other("an agent ended by itself");
        pids.iter().map(|pid| process::cpu_ns(*pid).ok_or_else(ended)).collect()
    };
    let (before, there) = (cpu(&pids)?, count_processes());
    run::sleep_until(run::now() + wanted.lasting);
    let after = cpu(&pids)?;
    let pss: Vec<u64> = pids.iter().map(|pid| process::pss_kib(*pid).unwrap_or(0)).collect();
    let percent: Vec<f64> = after
        .iter()
        .zip(&before)
        .map(|(after, before)| {
            let used = Duration::from_nanos(after.saturating_sub(*before)).as_secs_f64();
            100.0 * used / wanted.lasting.as_secs_f64()
        })
        .collect();
    Ok(told(wanted, &groups, (&percent, &pss, there)))
}

fn told(
    wanted: &Wanted,
    groups: &Groups,
    (percent, pss, there): (&[f64], &[u64], usize),
) -> (Value, Table) {
    let [with, without] = [0, 1].map(|at| percent.get(at).copied().unwrap_or(f64::NAN));
    let mib = |at: usize| pss.get(at).map_or(f64::NAN, |kib| *kib as f64 / 1024.0);
    let row = |what: &str, percent: f64, mib: f64| {
        vec![what.to_owned(), format!("{percent:.2}"), format!("{mib:.1}")]
    };
    let table = Table {
        head: ["strobe-agent", "% of a core", "PSS MiB"].map(String::from).to_vec(),
        rows: vec![
            row("with cgroup and process", with, mib(0)),
            row("without", without, mib(1)),
            row("both families", with - without, mib(0) - mib(1)),
        ],
    };
    let value = json!({
        "what": "families", "interval": wanted.interval, "seconds": wanted.lasting.as_secs(),
        "processes": there, "groups": wanted.groups, "groups_are": groups.what,
        "percent_with": with, "percent_without": without, "percent": with - without,
        "pss_kib_with": pss.first(), "pss_kib_without": pss.get(1),
    });
    (value, table)
}

impl Groups {
    fn make(count: usize, dir: &Path) -> io::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let unified = root.join("cgroup.controllers").exists();
        let bases: &[&str] =
            if unified { &["."] } else { &["cpuacct", "memory", "blkio", "pids", "unified"] };
        let what = if unified { "real, version 2" } else { "real, version 1 and hybrid" };
        let mut groups = Self { made: Vec::new(), sysfs: None, what };
        let name = format!("strobe-perf-{}", std::process::id());
        let there = bases.iter().map(|base| root.join(base)).filter(|base| base.is_dir());
        let permitted = there.map(|base| groups.fill(&base.join(&name), count, None));
        if permitted.collect::<io::Result<Vec<()>>>().is_ok_and(|made| !made.is_empty()) {
            return Ok(groups);
        }
        drop(groups);
        let what = "generated, version 2: none may be made here";
        let sysfs = dir.join("sys");
        let mut groups = Self { made: Vec::new(), sysfs: Some(sysfs.clone()), what };
        let root = sysfs.join("fs/cgroup");
        fs::create_dir_all(&root)?;
        fs::write(root.join("cgroup.controllers"), "cpu io memory pids\n")?;
        groups.fill(&root.join("perf"), count, Some(FILES))?;
        groups.made.clear();
        Ok(groups)
    }

    /// Forty to a slice, as a busy host has them.
    fn fill(&mut self, top: &Path, count: usize, files: Option<&[(&str, &str)]>) -> io::Result<()> {
        let mut make = |path: PathBuf| {
            fs::create_dir(&path)?;
            for (name, text) in files.unwrap_or_default() {
                fs::write(path.join(name), text)?;
            }
            self.made.push(path);
            Ok::<_, io::Error>(())
        };
        make(top.to_owned())?;
        for number in 0..count {
            let slice = top.join(format!("slice-{}", number / 40));
            if number % 40 == 0 {
                make(slice.clone())?;
            }
            make(slice.join(format!("group-{number}.scope")))?;
        }
        Ok(())
    }

    /// Moves a process into one of each hierarchy.
    fn put(&self, pid: u32, number: usize) {
        let ending = format!("group-{number}.scope");
        for group in self.made.iter().filter(|group| group.ends_with(&ending)) {
            // Where a hierarchy does not take it, it stays outside.
            let _ = fs::write(group.join("cgroup.procs"), pid.to_string());
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            for _ in 0..50 {
                // Its processes have been killed, and take a moment to be gone.
                let gone = fs::remove_dir(path);
                if !gone.is_err_and(|why| why.kind() == io::ErrorKind::ResourceBusy) {
                    break;
                }
                run::sleep_until(run::now() + Duration::from_millis(20));
            }
        }
    }
}

impl Crowd {
    fn start(count: usize, groups: &Groups) -> io::Result<Self> {
        let mut crowd = Self(Vec::new());
        let mut shell = Command::new("sh");
        // Standard input is /dev/null to what runs beside a shell, and the pipe is its third.
        let text =
            "exec 3<&0; i=0; while [ $i -lt \"$0\" ]; do (read line <&3) & i=$((i+1)); done; wait";
        shell.args(["-c", text, &count.to_string()]).stdin(Stdio::piped());
        shell.stdout(Stdio::null()).stderr(Stdio::null());
        crowd.0.push(shell.spawn()?);
        for number in 0..BUSY {
            let mut shell = Command::new("sh");
            let work =
                "while :; do i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; sleep 0.2; done";
            shell.args(["-c", work]);
            let child = spawn(shell)?;
            groups.put(child.id(), number * 7);
            crowd.0.push(child);
        }
        let until = run::now() + STARTING;
        while count_processes() < count && run::now() < until {
            run::sleep_until(run::now() + Duration::from_millis(200));
        }
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // The agents first, the pipe last.
        while let Some(mut child) = self.0.pop() {
            drop(child.stdin.take());
            if !self.0.is_empty() {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

fn spawn(mut command: Command) -> io::Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

fn count_processes() -> usize {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    names.filter(|name| name.file_name().to_string_lossy().parse::<u32>().is_ok()).count()
}

const WARM_UP: Duration = Duration::from_secs(12);
const STARTING: Duration = Duration::from_secs(60);
/// Processes that work a little.
const BUSY: usize = 8;
const FILES: &[(&str, &str)] = &[
    ("cpu.stat", "usage_usec 1000\nuser_usec 600\nsystem_usec 400\nnr_periods 0\nnr_throttled 0\n"),
    ("memory.current", "1048576\n"),
    ("memory.max", "max\n"),
    ("memory.stat", "anon 4096\nfile 8192\nkernel 4096\ninactive_file 4096\n"),
    ("io.stat", "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n"),
    ("pids.current", "1\n"),
    ("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_crowd_comes_and_goes() {
        let dir = std::env::temp_dir().join(format!("strobe-families-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let groups = Groups::make(45, &dir).unwrap();
        let made = groups.made.clone();
        assert!(groups.sysfs.is_some() || made.iter().all(|path| path.is_dir()));
        let crowd = Crowd::start(20, &groups).unwrap();
        assert_eq!(crowd.0.len(), 1 + BUSY);
        drop(crowd);
        drop(groups);
        assert!(made.iter().all(|path| !path.exists()), "they are gone");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_difference_is_the_families() {
        let (programs, dir, interval) = (PathBuf::new(), PathBuf::new(), "1s".to_owned());
        let lasting = Duration::from_secs(1);
        let wanted = Wanted { programs, processes: 1, groups: 2, lasting, interval, dir };
        let groups = Groups { made: Vec::new(), sysfs: None, what: "real" };
        let (value, table) = told(&wanted, &groups, (&[1.5, 0.25], &[2048, 1024], 9));
        assert_eq!((&value["percent"], &value["processes"]), (&json!(1.25), &json!(9)));
        assert_eq!(table.rows[2], ["both families", "1.25", "1.0"]);
    }
}
