//! What a process costs, as /proc has it.

use std::fs;

/// A process that is measured over a while.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    pid: u32,
    /// CPU time when it began.
    pub begun_ns: u64,
    /// CPU time since.
    pub cpu_ns: u64,
    /// Proportional set size at the last look.
    pub pss_kib: u64,
    /// The largest seen.
    pub pss_kib_peak: u64,
    /// Resident set size, the largest ever (the kernel's own mark).
    pub rss_kib_peak: u64,
}

impl Watch {
    /// Begins now; `None` if there is no such process.
    #[must_use]
    pub fn begin(pid: u32) -> Option<Self> {
        let begun_ns = cpu_ns(pid)?;
        let new = Self { pid, begun_ns, cpu_ns: 0, pss_kib: 0, pss_kib_peak: 0, rss_kib_peak: 0 };
        Some(new)
    }

    /// Brings all of it up to now; a process that has ended keeps its last numbers.
    pub fn look(&mut self) {
        if let Some(now_ns) = cpu_ns(self.pid) {
            self.cpu_ns = now_ns.saturating_sub(self.begun_ns);
        }
        self.pss_kib = pss_kib(self.pid).unwrap_or(self.pss_kib);
        self.pss_kib_peak = self.pss_kib_peak.max(self.pss_kib);
        self.rss_kib_peak = rss_peak_kib(self.pid).unwrap_or(self.rss_kib_peak);
    }
}

/// CPU time of all threads, in ns: the scheduler's own sum where the kernel keeps it, else the
/// clock ticks of `stat`.
#[must_use]
pub fn cpu_ns(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = ticks_of(&stat)?.checked_mul(1_000_000_000 / CLOCK_TICKS)?;
    // Never the one now and the other later: `stat` counts in steps of 10 ms. What threads that
    // ended have used is in `stat` only; the processes measured here keep theirs.
    Some(threads_ns(pid).unwrap_or(ticks))
}

/// Proportional set size, KiB.
#[must_use]
pub fn pss_kib(pid: u32) -> Option<u64> {
    field_kib(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:")
}

/// What of it is the process's own and no file's: heap, stacks, anonymous maps. KiB.
#[must_use]
pub fn anonymous_kib(pid: u32) -> Option<u64> {
    field_kib(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Anonymous:")
}

/// The largest resident set size there was, KiB.
#[must_use]
pub fn rss_peak_kib(pid: u32) -> Option<u64> {
    field_kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmHWM:")
}

/// Threads.
#[must_use]
pub fn threads(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:"))?;
    line.trim().parse().ok()
}

/// How often its threads of this name have gone to sleep by themselves; `None` if it has none.
#[must_use]
pub fn switches(pid: u32, thread: &str) -> Option<u64> {
    let text = |dir: &fs::DirEntry, file| fs::read_to_string(dir.path().join(file)).ok();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let named =
        tasks.filter(|task| text(task, "comm").is_some_and(|name| name.starts_with(thread)));
    let slept = named.filter_map(|task| {
        let status = text(&task, "status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    });
    slept.reduce(|a, b| a + b)
}

fn threads_ns(pid: u32) -> Option<u64> {
    let mut sum = 0u64;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        sum = sum.saturating_add(text.split(' ').next()?.parse().ok()?);
    }
    (sum != 0).then_some(sum)
}

/// utime + stime of a `stat` line; the command in parentheses may hold anything.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// USER_HZ, which is 100 on every architecture that Strobe is built for.
const CLOCK_TICKS: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read_behind_any_command_name() {
        let stat = "7 (a) R 9 (b)) S 1 7 7 0 -1 4194560 9 0 0 0 31 11 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks_of(stat), Some(42));
        assert_eq!(ticks_of("7 (a"), None);
    }

    #[test]
    fn this_process_costs_something() {
        let me = std::process::id();
        assert!(cpu_ns(me).is_some() && threads(me).is_some_and(|count| 0 < count));
        assert!(pss_kib(me).is_some_and(|kib| 100 < kib));
        assert!(anonymous_kib(me).is_some_and(|kib| 0 < kib));
        assert!(switches(me, "").is_some() && switches(me, "no thread of this name").is_none());
        assert!(rss_peak_kib(me).is_some_and(|kib| 100 < kib));
        assert_eq!(cpu_ns(u32::MAX), None);
    }
}
