//! Every collector: its name (node_exporter's where that has it), whether it is on by default, how
//! often it is read, and which rows it shares. docs/collectors.md is this table for people.

use super::scores::Scoring;
use crate::readers::Roots;
use crate::readers::leaf::Found;
use crate::readers::{walk_hardware, walk_host, walk_links};
use crate::readers::{walk_sensors, walk_storage, walk_tables};
use std::path::PathBuf;
use strobe_wire::settings::nearest;

/// One collector.
#[derive(Debug)]
pub struct Collector {
    /// node_exporter's name of it.
    pub name: &'static str,
    /// Whether it is on unless the configuration says otherwise.
    pub on: bool,
    /// Time between two readings; 0 is every tick.
    pub interval_ms: u64,
    /// The section it shares on its default interval.
    pub(super) section: &'static str,
    pub(super) nothing: Nothing,
    /// The directory of sysfs without which nothing is read, for what may hang when it is.
    pub(super) patient: Option<&'static str>,
    /// Whether its columns are scored: of a set that changes with what is busy, all would be new.
    pub(super) scored: bool,
    pub(super) source: Source,
}

/// Where a collector's values come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// The sampler reads it itself, every tick ([`super::source::files`]).
    Tick,
    /// A walk, made again when one of these directories of sysfs lists other names.
    Walk { watch: &'static [&'static str], walk: fn(&Roots, &mut Found) },
}

/// What it means that a host has nothing of it, as node_exporter has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Nothing {
    IsFine,
    Fails,
    /// Fine where this is there, below /proc or below /sys: an empty list is an answer.
    NeedsProc(&'static str),
    NeedsSys(&'static str),
}

impl Nothing {
    pub(super) fn is_fine(self, roots: &Roots) -> bool {
        match self {
            Self::IsFine => true,
            Self::Fails => false,
            Self::NeedsProc(path) => roots.procfs.join(path).exists(),
            Self::NeedsSys(path) => roots.sysfs.join(path).exists(),
        }
    }
}

/// A collector that is read, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick {
    pub(super) collector: &'static Collector,
    pub(super) interval_ms: u64,
}

impl Pick {
    /// Whether it is this collector, read by the sampler itself.
    pub(super) fn is_each_tick(&self, name: &str) -> bool {
        let tick = matches!(self.collector.source, Source::Tick) && self.interval_ms == 0;
        tick && self.collector.name == name
    }
}

impl Collector {
    /// Whether it may be given an interval.
    #[must_use]
    pub fn has_interval(&self) -> bool {
        !matches!(self.name, "filesystem" | "time" | "uname")
    }
}

/// Which collectors are read, and how often: [`COLLECTORS`] and what the configuration changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// Read these too.
    pub enable: Vec<String>,
    /// Do not read these.
    pub disable: Vec<String>,
    /// Read these at other intervals, in ms.
    pub intervals: Vec<(String, u64)>,
    /// Where others leave their metrics.
    pub textfiles: Option<PathBuf>,
    /// Whether what is read is scored.
    pub scoring: Scoring,
}

impl Choice {
    /// Time between two readings of `collector`; 0 is every tick.
    #[must_use]
    pub fn interval_ms(&self, collector: &Collector) -> u64 {
        let set = self.intervals.iter().rfind(|(name, _)| name == collector.name);
        set.map_or(collector.interval_ms, |(_, interval_ms)| *interval_ms)
    }

    /// What is read.
    pub(super) fn picks(&self) -> Vec<Pick> {
        let is_on = |collector: &Collector| {
            let named = |list: &[String]| list.iter().any(|name| name == collector.name);
            (collector.on || named(&self.enable)) && !named(&self.disable)
        };
        let pick = |collector: &'static Collector| Pick {
            collector,
            interval_ms: self.interval_ms(collector),
        };
        COLLECTORS.iter().filter(|collector| is_on(collector)).map(pick).collect()
    }
}

/// The collector of this name.
///
/// # Errors
/// A sentence with the nearest one.
pub fn known(name: &str) -> Result<&'static Collector, String> {
    COLLECTORS.iter().find(|collector| collector.name == name).ok_or_else(|| {
        let nearest = nearest(COLLECTORS.iter().map(|collector| collector.name), name);
        let hint = nearest.map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
        format!("no collector is called {name:?}{hint}")
    })
}

const fn tick(name: &'static str) -> Collector {
    let source = Source::Tick;
    Collector {
        name,
        on: true,
        interval_ms: 0,
        section: "host",
        nothing: Nothing::Fails,
        patient: None,
        scored: true,
        source,
    }
}

/// On, every fifteen seconds, in rows of its own.
const fn walked(
    name: &'static str,
    watch: &'static [&'static str],
    walk: fn(&Roots, &mut Found),
) -> Collector {
    let source = Source::Walk { watch, walk };
    Collector {
        name,
        on: true,
        interval_ms: SLOW_MS,
        section: name,
        nothing: Nothing::IsFine,
        patient: None,
        scored: true,
        source,
    }
}

impl Collector {
    /// How its sections are scored, where others are so.
    pub(super) fn scoring(&self, scoring: Scoring) -> Scoring {
        if self.scored { scoring } else { Scoring::Off }
    }

    const fn within(self, section: &'static str) -> Self {
        Self { section, ..self }
    }

    /// There being nothing is no failure.
    const fn or_nothing(self) -> Self {
        Self { nothing: Nothing::IsFine, ..self }
    }

    /// There being nothing is a failure.
    const fn wanted(self) -> Self {
        Self { nothing: Nothing::Fails, ..self }
    }

    /// There being nothing is a failure unless this is there.
    const fn needs_proc(self, path: &'static str) -> Self {
        Self { nothing: Nothing::NeedsProc(path), ..self }
    }

    const fn needs_sys(self, path: &'static str) -> Self {
        Self { nothing: Nothing::NeedsSys(path), ..self }
    }

    /// On a thread of its own, which is there if this directory is.
    const fn patient(self, directory: &'static str) -> Self {
        Self { patient: Some(directory), ..self }
    }

    const fn unscored(self) -> Self {
        Self { scored: false, ..self }
    }

    const fn opt_in(self) -> Self {
        Self { on: false, ..self }
    }

    const fn every(self, interval_ms: u64) -> Self {
        Self { interval_ms, ..self }
    }
}

/// What the kernel counts over all: dearer to read than everything of a tick together (`--costs`).
const KERNEL: &str = "kernel";
const FIVE_MS: u64 = 5_000;
const SLOW_MS: u64 = 15_000;
const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;
const NONE: &[&str] = &[];

/// All of them.
pub const COLLECTORS: &[Collector] = &[
    tick("cpu"),
    tick("diskstats"),
    tick("filefd").within("slow").every(SLOW_MS),
    tick("filesystem"),
    tick("loadavg"),
    tick("meminfo"),
    tick("netdev"),
    tick("netstat").within("slow").every(SLOW_MS),
    tick("pressure"),
    tick("sockstat").within("slow").every(SLOW_MS),
    tick("softnet").within(KERNEL).every(FIVE_MS),
    tick("stat"),
    tick("time"),
    tick("uname"),
    tick("vmstat").within(KERNEL).every(FIVE_MS),
    // IPv6's own octets, ICMP and UDP; TCP's counters, of both, are netstat's.
    tick("netstat6").within("slow").or_nothing().every(SLOW_MS),
    walked("schedstat", NONE, walk_host::schedstat).needs_proc("schedstat").every(FIVE_MS),
    walked("arp", NONE, walk_host::arp).within("slow").needs_proc("net/arp"),
    walked("conntrack", NONE, walk_host::conntrack).within("slow").wanted(),
    walked("entropy", NONE, walk_host::entropy).within("slow").wanted(),
    walked("selinux", NONE, walk_host::selinux).within("slow"),
    walked("timex", NONE, walk_host::timex).within("slow").wanted(),
    walked("udp_queues", NONE, walk_host::udp_queues).within("slow").wanted(),
    walked("netclass", &["class/net"], walk_links::netclass).within("link").needs_sys("class/net"),
    walked("bonding", &["class/net"], walk_links::bonding).within("link").wanted(),
    walked("clocksource", NONE, walk_host::clock_sources).within("identity").every(HOUR_MS),
    walked("dmi", NONE, walk_host::dmi).within("identity").wanted().every(HOUR_MS),
    walked("os", NONE, walk_host::os).within("identity").wanted().every(HOUR_MS),
    // Its attributes wait for a lock that is held while a set of caches is registered, which reads its journal.
    walked("bcache", &["fs/bcache"], walk_storage::bcache).patient("fs/bcache"),
    walked("btrfs", &["fs/btrfs"], walk_storage::btrfs).every(MINUTE_MS),
    walked("cpufreq", NONE, walk_hardware::cpufreq).patient("devices/system/cpu/cpu0/cpufreq"),
    walked("edac", &["devices/system/edac/mc"], walk_hardware::edac),
    walked("fibrechannel", &["class/fc_host"], walk_hardware::fibre_channel)
        .needs_sys("class/fc_host"),
    walked("hwmon", &["class/hwmon"], walk_sensors::hwmon)
        .needs_sys("class/hwmon")
        .patient("class/hwmon"),
    walked("infiniband", &["class/infiniband"], walk_hardware::infiniband)
        .needs_sys("class/infiniband"),
    walked("nvme", &["class/nvme"], walk_storage::nvme).needs_sys("class/nvme").every(MINUTE_MS),
    walked("powersupplyclass", &["class/power_supply"], walk_hardware::power_supplies)
        .needs_sys("class/power_supply")
        .patient("class/power_supply"),
    walked("rapl", &["class/powercap"], walk_hardware::rapl).needs_sys("class/powercap"),
    walked("tapestats", &["class/scsi_tape"], walk_storage::tapes).needs_sys("class/scsi_tape"),
    walked("thermal_throttle", NONE, walk_hardware::throttles),
    walked("thermal_zone", &["class/thermal"], walk_hardware::thermal).patient("class/thermal"),
    walked("xfs", &["fs/xfs"], walk_storage::xfs),
    walked("ipvs", NONE, walk_tables::ipvs).wanted(),
    walked("mdadm", NONE, walk_tables::mdadm).needs_proc("mdstat"),
    walked("nfs", NONE, walk_tables::nfs).wanted(),
    walked("nfsd", NONE, walk_tables::nfsd).wanted(),
    walked("zfs", NONE, walk_tables::zfs).needs_proc("spl/kstat/zfs"),
    walked("cpu_isolated", NONE, walk_host::isolated).within("identity").every(HOUR_MS),
    walked("buddyinfo", NONE, walk_tables::buddyinfo).needs_proc("buddyinfo").opt_in(),
    walked("cgroups", NONE, walk_tables::cgroups).needs_proc("cgroups").opt_in(),
    walked("interrupts", NONE, walk_tables::interrupts).wanted().opt_in(),
    walked("meminfo_numa", NONE, walk_tables::numa).opt_in(),
    // A mount is some 4 kB of text, and a host may have hundreds: not for the sampler's thread.
    walked("mountstats", NONE, walk_tables::mountstats)
        .needs_proc("self/mountstats")
        .opt_in()
        .patient(""),
    // Whose directory it is may be a dead server's. `/sys` is always there.
    walked("textfile", NONE, walk_tables::textfiles).patient(""),
    // 5,000 processes are 40 ms: not for the sampler's thread.
    walked("processes", NONE, walk_tables::processes).opt_in().patient(""),
    walked("cgroup", NONE, walk_tables::groups)
        .every(FIVE_MS)
        .opt_in()
        .patient("fs/cgroup")
        .unscored(),
    // A set of histograms that changes only with the disks; a second is what a mean is taken over.
    walked("disk_latency", NONE, walk_tables::latency).every(1000).opt_in().unscored(),
    walked("process_exits", NONE, walk_tables::exits).wanted().every(1000).opt_in(),
    walked("process", NONE, walk_tables::tasks)
        .wanted()
        .every(FIVE_MS)
        .opt_in()
        .patient("")
        .unscored(),
    // A bus that hangs is not for the sampler's thread.
    walked("systemd", NONE, walk_tables::units).wanted().opt_in().patient(""),
    walked("tcpstat", NONE, walk_tables::tcp_states).wanted().opt_in(),
    walked("tcp_listen", NONE, walk_tables::tcp_listen).wanted(),
    walked("slabinfo", NONE, walk_tables::slabinfo).needs_proc("slabinfo").opt_in(),
    walked("softirqs", NONE, walk_tables::softirqs).wanted().opt_in(),
    walked("zoneinfo", NONE, walk_tables::zoneinfo).needs_proc("zoneinfo").opt_in(),
    walked("cpu_vulnerabilities", NONE, walk_host::vulnerabilities).every(HOUR_MS).opt_in(),
    walked("ksmd", NONE, walk_host::ksmd).wanted().opt_in(),
];
