//! What of the host is seen, and what its kernel lets us use.

use super::Finding;
use crate::adjust::adjustment;
use crate::config::Config;
use crate::recorder::pressure::Watches;
use std::fs;
use std::path::Path;

/// The host, or a container's view of it.
pub(super) fn sight(config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    let of = |what: &str| fs::read_link(format!("/proc/self/ns/{what}")).unwrap_or_default();
    let whole = of("pid").as_os_str() == HOSTS_PIDS && of("cgroup").as_os_str() == HOSTS_CGROUPS;
    let marks = ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"];
    let mark = marks.into_iter().find(|mark| Path::new(mark).exists());
    let trees = [&config.procfs, &config.sysfs, &config.rootfs].map(|path| path.display());
    let [procfs, sysfs, rootfs] = trees;
    let said = format!("reads {procfs}, {sysfs} and the file systems of {rootfs}");
    let is_given = config.procfs != Path::new("/proc") || config.rootfs != Path::new("/");
    found.push(match (mark, whole) {
        _ if is_given => Finding::new("sight", "another tree", said),
        (None, true) => Finding::new("sight", "the host", said),
        (mark, _) => {
            let why = mark.unwrap_or("namespaces of its own");
            Finding::new("sight", "a container", format!("{said} ({why})")).less(
                "run it with --pid=host and -v /:/host:ro, and --procfs /host/proc --sysfs /host/sys \
                 --rootfs /host, to see the host",
            )
        }
    });
    let ours = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = ours.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    for (bit, name, what) in CAPABILITIES {
        let finding = |found| Finding::new("sight", name, found);
        found.push(if held & 1 << bit != 0 {
            finding("held")
        } else {
            finding("not held").less(format!("with it {what}"))
        });
    }
    found
}

/// Whether the kernel watches pressure for us.
pub(super) fn pressure(config: &Config) -> Vec<Finding> {
    let watches = Watches::new(&config.procfs);
    let watched: Vec<usize> = watches.files().map(|(resource, _)| resource).collect();
    let one = |(index, name): (usize, &str)| {
        let name = name.to_owned();
        if !config.procfs.join("pressure").join(&name).exists() {
            return Finding::new("pressure", name, "the kernel has none")
                .less("CONFIG_PSI, and psi=1 on the kernel's command line");
        }
        if watched.contains(&index) {
            return Finding::new("pressure", name, "by a trigger of the kernel");
        }
        Finding::new("pressure", name, "by its totals, once a second: the trigger is refused").less(
            "CAP_SYS_RESOURCE allows windows of one second, Linux 6.5 those of two without it",
        )
    };
    ["cpu", "io", "memory"].into_iter().enumerate().map(one).collect()
}

/// Pages.
pub(super) fn memory(config: &Config) -> Vec<Finding> {
    let bytes = config.ring_slots * strobe_wire::limits::FRAME_BYTES_MAX;
    let ring = format!("{} KiB on plain pages: huge ones gain nothing at this size", bytes >> 10);
    let setting = hugepage_config::host::transparent_setting("enabled");
    let pools = hugepage_config::host::pools();
    let reserved: usize = pools.iter().map(|pool| pool.total).sum();
    let setting = setting.unwrap_or_else(|| "not built in".to_owned());
    vec![
        Finding::new("memory", "ring", ring),
        Finding::new("memory", "huge pages", format!("transparent {setting}, {reserved} reserved")),
    ]
}

/// What tells the time.
pub(super) fn clock(config: &Config) -> Vec<Finding> {
    let path = "devices/system/clocksource/clocksource0/current_clocksource";
    let source = fs::read_to_string(config.sysfs.join(path)).unwrap_or_default();
    let source = source.trim();
    let mut found = Vec::new();
    let finding =
        Finding::new("clock", "source", if source.is_empty() { "unknown" } else { source });
    found.push(if SLOW_CLOCKS.contains(&source) {
        finding.less(
            "reading it is a system call, and slow: tsc, kvm-clock or arch_sys_counter is not",
        )
    } else {
        finding
    });
    found.push(match adjustment() {
        None => {
            Finding::new("clock", "discipline", "denied").less("allow the system call adjtimex")
        }
        Some((state, _)) if state == libc::TIME_ERROR => {
            Finding::new("clock", "discipline", "not synchronised")
                .less("run chrony or systemd-timesyncd: rows more than 10 min ahead are not stored")
        }
        Some((_, time)) => Finding::new(
            "clock",
            "discipline",
            format!("synchronised, within {} us", time.maxerror),
        ),
    });
    found
}

/// The initial namespaces' numbers (`include/linux/proc_ns.h`).
const HOSTS_PIDS: &str = "pid:[4026531836]";
const HOSTS_CGROUPS: &str = "cgroup:[4026531835]";
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (
        2,
        "CAP_DAC_READ_SEARCH",
        "files of root alone are read: rapl, dmi's serial numbers, slabinfo",
    ),
    (12, "CAP_NET_ADMIN", "taskstats and the proc connector tell of processes that live shortly"),
    (24, "CAP_SYS_RESOURCE", "the kernel watches pressure over one second instead of two"),
];
const SLOW_CLOCKS: [&str; 3] = ["hpet", "acpi_pm", "jiffies"];
