//! What an agent keeps of a host on which nothing stays: for an hour each second a link, a control group in
//! each hierarchy and four processes come and as many go, each with a name that was never there, and
//! each tenth second a file system.
//!
//! The agent is a real one with its flight recorder and its families of control groups and processes, sending to
//! a broker of its own. Links and mounts are made in namespaces of this process's own, so that the
//! host has none of them. What it keeps is its anonymous memory, as `smaps_rollup` has it; the first sixth is not
//! looked at, because a recorder's window and a spool's have to fill, and the two halves of the rest
//! are held against each other.

use crate::broker::Broker;
use crate::process;
use crate::report::Table;
use crate::run;
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the programs are.
    pub programs: PathBuf,
    /// How long.
    pub lasting: Duration,
    /// Where state may go; removed by the caller.
    pub dir: PathBuf,
}

/// What a host has for a while; all of it goes when this is dropped.
#[derive(Debug)]
struct Host {
    dir: PathBuf,
    /// Directories below which control groups are made, one a hierarchy.
    tops: Vec<PathBuf>,
    links: VecDeque<String>,
    groups: VecDeque<Vec<PathBuf>>,
    mounts: VecDeque<PathBuf>,
    processes: VecDeque<Child>,
    /// How many of each there were: links, groups, file systems, processes.
    made: [u64; 4],
}

/// Memory at a moment, KiB.
#[derive(Clone, Copy, Debug)]
struct Sample {
    second: u64,
    anonymous_kib: u64,
    pss_kib: u64,
}

/// An agent that is ended by its id when this is dropped.
struct Agent(Child);

/// Measures. Call it before there is another thread: the namespaces are this one's.
///
/// # Errors
/// Something cannot be started or made, or the agent ended.
pub fn measure(wanted: &Wanted) -> io::Result<(Value, Table, Option<String>)> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|why| {
        io::Error::other(format!("namespaces for links and mounts: {why}; this wants root"))
    })?;
    tool("mount", &["--make-rprivate", "/"])?;
    tool("ip", &["link", "set", "lo", "up"])?;
    let broker = Broker::start(&wanted.programs.join("strobe-broker"), &wanted.dir);
    let broker = broker.map_err(io::Error::other)?;
    let mut host = Host::new(&wanted.dir)?;
    let mut command = Command::new(wanted.programs.join("strobe-agent"));
    command.arg("--dir").arg(wanted.dir.join("agent")).arg("--recorder");
    command.args(["--collector.cgroup", "--collector.process", "--collector.process_exits"]);
    let token = broker.token().map_err(io::Error::other)?;
    command.args(["--broker", &broker.address.to_string(), "--token", &token]);
    let log = fs::File::create(wanted.dir.join("agent.log"))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut agent = Agent(command.spawn()?);
    let pid = agent.0.id();
    let (begun, mut samples) = (run::now(), Vec::new());
    for second in 0..wanted.lasting.as_secs() {
        run::sleep_until(begun + Duration::from_secs(second));
        host.second(second)?;
        if second % BURST_S == BURST_S - 1 {
            // It may have ended, which the next look notices.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGUSR2);
        }
        if second % LOOK_S == LOOK_S - 1 {
            let (Some(anonymous_kib), Some(pss_kib), None) =
                (process::anonymous_kib(pid), process::pss_kib(pid), agent.0.try_wait()?)
            else {
                let said = fs::read_to_string(wanted.dir.join("agent.log")).unwrap_or_default();
                return Err(io::Error::other(format!("the agent ended: {said}")));
            };
            samples.push(Sample { second, anonymous_kib, pss_kib });
        }
    }
    Ok(told(wanted.lasting.as_secs(), &samples, host.made))
}

fn told(lasting_s: u64, samples: &[Sample], made: [u64; 4]) -> (Value, Table, Option<String>) {
    let parts: Vec<_> = (0..PARTS)
        .map(|part| {
            let here = samples.iter().filter(|sample| sample.second * PARTS / lasting_s == part);
            let most = |of: fn(&Sample) -> u64| here.clone().map(of).max().unwrap_or(0);
            (most(|sample| sample.anonymous_kib), most(|sample| sample.pss_kib))
        })
        .collect();
    let half =
        |part: usize| parts.iter().skip(1 + part * HALF).take(HALF).map(|(kib, _)| *kib).max();
    let (first, second) = (half(0).unwrap_or(0), half(1).unwrap_or(0));
    let grown_kib = second.cast_signed() - first.cast_signed();
    let from = |part: usize| format!("{:.1}", lasting_s as f64 / 60.0 / PARTS as f64 * part as f64);
    let row = |(part, (anonymous, pss)): (usize, &(u64, u64))| {
        vec![format!("{}–{}", from(part), from(part + 1)), anonymous.to_string(), pss.to_string()]
    };
    let table = Table {
        head: ["minutes", "anonymous KiB, most", "PSS KiB, most"].map(String::from).to_vec(),
        rows: parts.iter().enumerate().map(row).collect(),
    };
    let [links, groups, mounts, processes] = made;
    let value = json!({
        "what": "churn", "seconds": lasting_s, "links": links, "groups": groups, "mounts": mounts,
        "processes": processes, "anonymous_kib": first, "grown_kib": grown_kib,
        "parts": parts,
    });
    // A short run proves that this works, and no more.
    let failed = (HOUR_S <= lasting_s && GROWN_KIB_MAX < grown_kib)
        .then(|| format!("the second half's anonymous memory is {grown_kib} KiB more"));
    (value, table, failed)
}

impl Host {
    fn new(dir: &Path) -> io::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let unified = root.join("cgroup.controllers").exists();
        let bases: &[&str] =
            if unified { &["."] } else { &["cpuacct", "memory", "blkio", "pids", "unified"] };
        let name = format!("strobe-churn-{}", std::process::id());
        let tops: Vec<_> = bases
            .iter()
            .filter(|base| root.join(base).is_dir())
            .map(|base| root.join(base).join(&name))
            .collect();
        let dir = dir.join("host");
        fs::create_dir_all(&dir)?;
        let host = Self {
            dir,
            tops,
            links: VecDeque::new(),
            groups: VecDeque::new(),
            mounts: VecDeque::new(),
            processes: VecDeque::new(),
            made: [0; 4],
        };
        host.tops.iter().try_for_each(fs::create_dir)?;
        Ok(host)
    }

    fn second(&mut self, second: u64) -> io::Result<()> {
        let link = format!("c{second}");
        tool("ip", &["link", "add", &link, "type", "bridge"])?;
        self.links.push_back(link);
        if LINKS < self.links.len() {
            self.unlink()?;
        }
        let groups: Vec<_> = self.tops.iter().map(|top| top.join(format!("g{second}"))).collect();
        groups.iter().try_for_each(fs::create_dir)?;
        // One that stays for a while, and three that end at once.
        for number in 0..4 {
            let program = self.dir.join(format!("p{second}-{number}"));
            symlink("/bin/sleep", &program)?;
            let mut command = Command::new(&program);
            command.arg(if number == 0 { "30" } else { "0" });
            let mut child = command.stdin(Stdio::null()).spawn()?;
            if number == 0 {
                for group in &groups {
                    fs::write(group.join("cgroup.procs"), child.id().to_string())?;
                }
                self.processes.push_back(child);
            } else {
                child.wait()?;
            }
            fs::remove_file(program)?;
        }
        self.groups.push_back(groups);
        if PROCESSES < self.processes.len() {
            self.end_one()?;
        }
        if second.is_multiple_of(MOUNT_S) {
            let path = self.dir.join(format!("m{second}"));
            fs::create_dir(&path)?;
            tool("mount", &["-t", "tmpfs", "-o", "size=64k", "none", &path.to_string_lossy()])?;
            self.mounts.push_back(path);
            self.made[2] += 1;
            if MOUNTS < self.mounts.len() {
                self.unmount()?;
            }
        }
        let [links, groups, _, processes] = &mut self.made;
        (*links, *groups, *processes) = (*links + 1, *groups + 1, *processes + 4);
        Ok(())
    }

    fn unlink(&mut self) -> io::Result<()> {
        let Some(link) = self.links.pop_front() else { return Ok(()) };
        tool("ip", &["link", "del", &link])
    }

    fn unmount(&mut self) -> io::Result<()> {
        let Some(path) = self.mounts.pop_front() else { return Ok(()) };
        tool("umount", &[&*path.to_string_lossy()])?;
        fs::remove_dir(path)
    }

    /// The oldest process, and its groups.
    fn end_one(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.processes.pop_front() {
            // It may have ended by itself.
            let _ = child.kill();
            child.wait()?;
        }
        for group in self.groups.pop_front().into_iter().flatten() {
            remove_group(&group)?;
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        while !self.processes.is_empty() || !self.groups.is_empty() {
            let _ = self.end_one();
        }
        while !self.mounts.is_empty() {
            let _ = self.unmount();
        }
        for top in &self.tops {
            let _ = remove_group(top);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended; either way its exit is waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A group whose process has just ended is busy for a moment.
fn remove_group(path: &Path) -> io::Result<()> {
    for _ in 0..50 {
        match fs::remove_dir(path) {
            Err(why) if why.kind() == io::ErrorKind::ResourceBusy => {
                run::sleep_until(run::now() + Duration::from_millis(20));
            }
            done => return done,
        }
    }
    fs::remove_dir(path)
}

fn tool(name: &str, arguments: &[&str]) -> io::Result<()> {
    let why = |what: &str| io::Error::other(format!("{name} {}: {what}", arguments.join(" ")));
    let done = Command::new(name).args(arguments).output().map_err(|e| why(&e.to_string()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    done.status.success().then_some(()).ok_or_else(|| why(said.trim()))
}

/// At once.
const LINKS: usize = 8;
const PROCESSES: usize = 20;
const MOUNTS: usize = 4;
/// Seconds from one to the next.
const MOUNT_S: u64 = 10;
const LOOK_S: u64 = 5;
const BURST_S: u64 = 300;
const HOUR_S: u64 = 3600;
/// Of which the first is for filling up.
const PARTS: u64 = 7;
const HALF: usize = 3;
/// A stack that went one page deeper is no growth; a name kept of each link would be 300 KiB an hour.
const GROWN_KIB_MAX: i64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_of_the_halves_after_the_first_part() {
        let sample = |n: u64| Sample { second: n * 100, anonymous_kib: 4000, pss_kib: 7000 };
        let mut samples: Vec<_> = (0..70).map(sample).collect();
        samples[3].anonymous_kib = 9000;
        let (value, table, failed) = told(7000, &samples, [1, 2, 3, 4]);
        assert_eq!((&value["grown_kib"], &value["anonymous_kib"]), (&json!(0), &json!(4000)));
        assert_eq!((table.rows.len(), failed), (7, None));
        assert_eq!(table.rows[0][1], "9000");
        samples[65].anonymous_kib = 4065;
        let (value, _, failed) = told(7000, &samples, [1, 2, 3, 4]);
        assert_eq!(value["grown_kib"], json!(65));
        assert!(failed.is_some());
        samples.iter_mut().for_each(|sample| sample.second /= 100);
        assert_eq!(told(70, &samples, [1, 2, 3, 4]).2, None);
    }
}
