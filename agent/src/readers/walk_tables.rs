//! Walks for tables of /proc that few hosts have, or few want.

use super::cgroups::Groups;
use super::engine::Call;
use super::exits::Exits;
use super::kept::Shape;
use super::latency::Latency;
use super::leaf::{Found, Read, Spec, names, numbered, text_of};
use super::mountstats::Mountstats;
use super::processes::Processes;
use super::sockets::{Question, Sockets};
use super::tasks::Tasks;
use super::textfile::Textfiles;
use super::units::Units;
use super::{Format, GAUGE, Roots, column, page_bytes};
use crate::config::SMALL;

pub(crate) fn interrupts(roots: &Roots, found: &mut Found) {
    // A line has a number a CPU, so a page may hold less than one: read to the end.
    found.table(roots.procfs.join("interrupts"), ENDLESS, Format::Interrupts, "");
}

pub(crate) fn softirqs(roots: &Roots, found: &mut Found) {
    found.table(roots.procfs.join("softirqs"), ENDLESS, Format::Softirqs, "");
}

pub(crate) fn buddyinfo(roots: &Roots, found: &mut Found) {
    found.table(roots.procfs.join("buddyinfo"), ENDLESS, Format::Buddy, "");
}

pub(crate) fn zoneinfo(roots: &Roots, found: &mut Found) {
    found.table(roots.procfs.join("zoneinfo"), ENDLESS, Format::Zones, "");
}

pub(crate) fn slabinfo(roots: &Roots, found: &mut Found) {
    found.table(roots.procfs.join("slabinfo"), ENDLESS, Format::Slabs, "");
}

pub(crate) fn cgroups(roots: &Roots, found: &mut Found) {
    found.table(roots.procfs.join("cgroups"), Shape::Whole, Format::Cgroups, "");
}

pub(crate) fn mdadm(roots: &Roots, found: &mut Found) {
    found.table(roots.procfs.join("mdstat"), ENDLESS, Format::Raid, "");
}

pub(crate) fn ipvs(roots: &Roots, found: &mut Found) {
    found.table(roots.procfs.join("net/ip_vs_stats"), ENDLESS, Format::IpvsStats, "");
    found.table(roots.procfs.join("net/ip_vs"), ENDLESS, Format::Ipvs, "");
}

pub(crate) fn nfs(roots: &Roots, found: &mut Found) {
    found.table(roots.procfs.join("net/rpc/nfs"), Shape::Whole, Format::NfsClient, "");
}

pub(crate) fn nfsd(roots: &Roots, found: &mut Found) {
    found.table(roots.procfs.join("net/rpc/nfsd"), Shape::Whole, Format::NfsServer, "");
}

/// NFS mounts, one by one.
pub(crate) fn mountstats(roots: &Roots, found: &mut Found) {
    if SMALL {
        return;
    }
    if roots.procfs.join("self/mountstats").exists() {
        found.engine(|| Call::Mountstats(Box::new(Mountstats::new(&roots.procfs))));
    }
}

/// Processes that ended.
pub(crate) fn exits(roots: &Roots, found: &mut Found) {
    if SMALL {
        return;
    }
    found.engine(|| Call::Exits(Box::new(Exits::new(&roots.sysfs))));
}

/// How long disks take.
pub(crate) fn latency(roots: &Roots, found: &mut Found) {
    if SMALL {
        return;
    }
    found.engine(|| Call::Latency(Box::new(Latency::new(&roots.procfs))));
}

/// The busiest and largest processes.
pub(crate) fn tasks(roots: &Roots, found: &mut Found) {
    if SMALL {
        return;
    }
    let (procfs, page_bytes) = (&roots.procfs, page_bytes());
    found.engine(|| Call::Tasks(Box::new(Tasks::new(procfs, page_bytes))));
}

/// What control groups use.
pub(crate) fn groups(roots: &Roots, found: &mut Found) {
    if SMALL {
        return;
    }
    let groups = Groups::new(&roots.sysfs);
    if groups.is_there() {
        found.engine(|| Call::Groups(Box::new(groups)));
    }
}

/// systemd's units.
pub(crate) fn units(roots: &Roots, found: &mut Found) {
    if SMALL {
        return;
    }
    found.engine(|| Call::Units(Box::new(Units::new(&roots.rootfs))));
}

/// How many sockets are in each state.
pub(crate) fn tcp_states(_roots: &Roots, found: &mut Found) {
    found.engine(|| Call::Sockets(Sockets::new(Question::States)));
}

/// How full the queues of listening sockets are.
pub(crate) fn tcp_listen(_roots: &Roots, found: &mut Found) {
    found.engine(|| Call::Sockets(Sockets::new(Question::Listeners)));
}

/// What others leave, if a directory is named for it.
pub(crate) fn textfiles(roots: &Roots, found: &mut Found) {
    if let Some(dir) = &roots.textfiles {
        found.engine(|| Call::Textfiles(Textfiles::new(dir)));
    }
}

pub(crate) fn processes(roots: &Roots, found: &mut Found) {
    found.object(
        &roots.procfs.join("sys/kernel"),
        &[
            Spec("threads-max", "node_processes_max_threads", GAUGE, Read::Level(1)),
            Spec("pid_max", "node_processes_max_processes", GAUGE, Read::Level(1)),
        ],
        &[],
    );
    found.engine(|| Call::Processes(Processes::new(&roots.procfs)));
}

/// Memory of each NUMA node.
pub(crate) fn numa(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("devices/system/node");
    for name in names(&base) {
        let Some(node) = numbered(&name, "node") else { continue };
        let dir = base.join(&name);
        found.table(dir.join("meminfo"), Shape::Whole, Format::NodeMemory, node);
        found.table(dir.join("numastat"), Shape::Whole, Format::NodeStat, node);
    }
}

pub(crate) fn zfs(roots: &Roots, found: &mut Found) {
    let base = roots.procfs.join("spl/kstat/zfs");
    for (file, metric) in ZFS {
        found.table(base.join(file), ENDLESS, Format::Kstat, metric);
    }
    for pool in names(&base).iter().filter(|name| base.join(name).is_dir()) {
        let dir = base.join(pool);
        found.table(dir.join("io"), ENDLESS, Format::Pool, pool);
        if dir.join("state").exists() {
            for state in ["online", "degraded", "faulted", "offline", "removed", "unavail"] {
                let labels = [("zpool", &**pool), ("state", state)];
                let column = column("node_zfs_zpool_state", &labels, GAUGE);
                found.leaf(dir.join("state"), Read::IsAnyCase(state), column);
            }
        }
        for set in names(&dir).iter().filter(|name| name.starts_with("objset-")) {
            let text = text_of(&dir.join(set)).unwrap_or_default();
            let mut lines = text.lines().map(str::split_whitespace);
            let named = lines
                .find_map(|mut words| (words.next()? == "dataset_name").then(|| words.nth(1))?);
            let Some(dataset) = named else { continue };
            let about = format!("zfs_zpool_dataset\n{pool}\n{dataset}");
            found.table(dir.join(set), ENDLESS, Format::Kstat, &about);
        }
    }
}

/// Read until the kernel says that there is no more.
const ENDLESS: Shape = Shape::Records(usize::MAX / 2);
const ZFS: [(&str, &str); 11] = [
    ("abdstats", "zfs_abd"),
    ("arcstats", "zfs_arc"),
    ("dbuf_stats", "zfs_dbuf"),
    ("dmu_tx", "zfs_dmu_tx"),
    ("dnodestats", "zfs_dnode"),
    ("fm", "zfs_fm"),
    ("vdev_cache_stats", "zfs_vdev_cache"),
    ("vdev_mirror_stats", "zfs_vdev_mirror"),
    ("xuio_stats", "zfs_xuio"),
    ("zfetchstats", "zfs_zfetch"),
    ("zil", "zfs_zil"),
];
