//! What the files of /proc say: one parser a file, bytes in, columns out.
//!
//! Parsers take any bytes: a line that is torn, foreign or malformed is left out or gives columns
//! without values. They allocate only in [`columns`](Format::columns), when a set changes.
#![deny(clippy::indexing_slicing)]

pub(crate) mod kept;
mod picks;
pub(crate) mod sheet;
pub(crate) mod text;

mod bcache;
mod bus;
mod cgroups;
mod cpu;
pub(crate) mod disk;
mod few;
pub(crate) mod filesystem;
pub(crate) mod host;
mod kernel_tables;
mod memory;
pub(crate) mod names;
mod net_tables;
mod network;
mod nfs;
mod zfs;

mod engine;
mod exits;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod latency;
pub(crate) mod leaf;
pub(crate) mod link_stats;
mod mountstats;
mod netlink;
mod processes;
mod ranks;
mod sockets;
mod table;
mod tasks;
mod textfile;
mod units;
pub(crate) mod walk_hardware;
pub(crate) mod walk_host;
pub(crate) mod walk_links;
pub(crate) mod walk_sensors;
pub(crate) mod walk_storage;
pub(crate) mod walk_tables;

#[cfg(test)]
mod tests;

use sheet::{Entry, Sheet};
use std::path::PathBuf;
use strobe_wire::limits::LABEL_VALUE_BYTES_MAX;
use strobe_wire::schema::{Column, Kind, Labels};

/// How a file is parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// /proc/stat, the cores.
    Cores,
    /// /proc/stat, the rest.
    Stat,
    /// /proc/loadavg.
    Load,
    /// /proc/meminfo.
    Meminfo,
    /// /proc/vmstat.
    Vmstat,
    /// /proc/pressure/*.
    Pressure(host::Resource),
    /// /proc/sys/fs/file-nr.
    Handles,
    /// /proc/net/sockstat and sockstat6.
    Sockstat {
        /// What `mem` counts in.
        page_bytes: u64,
    },
    /// /proc/net/netstat and snmp.
    Pairs,
    /// /proc/net/snmp6.
    Six,
    /// /proc/diskstats.
    Disks,
    /// /proc/net/dev.
    Devices,
    /// /proc/net/softnet_stat.
    Softnet,
    /// /proc/schedstat.
    Schedstat,
    /// /proc/net/stat/nf_conntrack.
    Conntrack,
    /// /proc/net/arp.
    Arp,
    /// /proc/net/udp and udp6.
    Udp,
    /// /sys/fs/xfs/*/stats/stats.
    Xfs,
    /// /proc/interrupts.
    Interrupts,
    /// /proc/softirqs.
    Softirqs,
    /// /proc/buddyinfo.
    Buddy,
    /// /proc/zoneinfo.
    Zones,
    /// /proc/slabinfo.
    Slabs,
    /// /proc/cgroups.
    Cgroups,
    /// /proc/mdstat.
    Raid,
    /// /proc/net/ip_vs_stats.
    IpvsStats,
    /// /proc/net/ip_vs.
    Ipvs,
    /// /proc/net/rpc/nfs.
    NfsClient,
    /// /proc/net/rpc/nfsd.
    NfsServer,
    /// /sys/devices/system/node/*/meminfo.
    NodeMemory,
    /// /sys/devices/system/node/*/numastat.
    NodeStat,
    /// /proc/spl/kstat/zfs/arcstats and its like.
    Kstat,
    /// /proc/spl/kstat/zfs/*/io.
    Pool,
    /// /sys/fs/bcache/*/bdev*/writeback_rate_debug.
    Writeback,
}

/// The trees that walks go through.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    pub(crate) procfs: PathBuf,
    pub(crate) sysfs: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// Where others leave their metrics.
    pub(crate) textfiles: Option<PathBuf>,
}

impl Format {
    pub(crate) fn parse(self, bytes: &[u8], sheet: &mut Sheet) {
        match self {
            Self::Cores => cpu::parse_cores(bytes, sheet),
            Self::Stat => cpu::parse_stat(bytes, sheet),
            Self::Load => host::parse_load(bytes, sheet),
            Self::Meminfo => memory::parse_meminfo(bytes, sheet),
            Self::Vmstat => memory::parse_vmstat(bytes, sheet),
            Self::Pressure(resource) => host::parse_pressure(bytes, resource, sheet),
            Self::Handles => host::parse_handles(bytes, sheet),
            Self::Sockstat { page_bytes } => network::parse_sockstat(bytes, page_bytes, sheet),
            Self::Pairs => network::parse_pairs(bytes, sheet),
            Self::Six => network::parse_six(bytes, sheet),
            Self::Disks => disk::parse(bytes, sheet),
            Self::Devices => network::parse_devices(bytes, sheet),
            Self::Softnet => net_tables::parse_softnet(bytes, sheet),
            Self::Schedstat => net_tables::parse_schedstat(bytes, sheet),
            Self::Conntrack => net_tables::parse_conntrack(bytes, sheet),
            Self::Arp => net_tables::parse_arp(bytes, sheet),
            Self::Udp => net_tables::parse_udp(bytes, sheet),
            Self::Xfs => walk_storage::parse_xfs(bytes, sheet),
            Self::Interrupts => kernel_tables::parse_by_cpu(bytes, sheet),
            Self::Softirqs => kernel_tables::parse_by_cpu(bytes, sheet),
            Self::Buddy => kernel_tables::parse_buddy(bytes, sheet),
            Self::Zones => kernel_tables::parse_zones(bytes, sheet),
            Self::Slabs => kernel_tables::parse_slabs(bytes, sheet),
            Self::Cgroups => kernel_tables::parse_cgroups(bytes, sheet),
            Self::Raid => kernel_tables::parse_raid(bytes, sheet),
            Self::IpvsStats => kernel_tables::parse_ipvs_stats(bytes, sheet),
            Self::Ipvs => kernel_tables::parse_ipvs(bytes, sheet),
            Self::NfsClient => nfs::parse_client(bytes, sheet),
            Self::NfsServer => nfs::parse_server(bytes, sheet),
            Self::NodeMemory => zfs::parse_node_memory(bytes, sheet),
            Self::NodeStat => zfs::parse_node_stat(bytes, sheet),
            Self::Kstat => zfs::parse_kstat(bytes, sheet),
            Self::Pool => zfs::parse_pool(bytes, sheet),
            Self::Writeback => bcache::parse_writeback(bytes, sheet),
        }
    }

    /// The columns of one entry, as many as its values.
    pub(crate) fn columns(self, entry: &Entry) -> Vec<Column> {
        self.columns_about(entry, "")
    }

    /// The same of a file that is about something it does not name itself.
    pub(crate) fn columns_about(self, entry: &Entry, about: &str) -> Vec<Column> {
        let key = &*String::from_utf8_lossy(&entry.key);
        match self {
            Self::Cores => cpu::core_columns(key),
            Self::Stat => cpu::stat_columns(),
            Self::Load => host::load_columns(),
            Self::Meminfo => memory::meminfo_columns(entry.shape, key),
            Self::Vmstat => memory::vmstat_columns(key),
            Self::Pressure(resource) => host::pressure_columns(resource),
            Self::Handles => host::handle_columns(),
            Self::Sockstat { .. } => network::sockstat_columns(entry.shape, key),
            Self::Pairs | Self::Six => network::field_columns(entry.shape, key),
            Self::Disks => disk::columns(key, entry.count),
            Self::Devices => network::device_columns(key),
            Self::Softnet => net_tables::softnet_columns(key),
            Self::Schedstat => net_tables::schedstat_columns(key),
            Self::Conntrack => net_tables::conntrack_columns(),
            Self::Arp => net_tables::arp_columns(key),
            Self::Udp => net_tables::udp_columns(about),
            Self::Xfs => walk_storage::xfs_columns(about),
            Self::Interrupts => {
                kernel_tables::by_cpu_columns("node_interrupts_total", entry.shape, key)
            }
            Self::Softirqs => {
                kernel_tables::by_cpu_columns("node_softirqs_functions_total", entry.shape, key)
            }
            Self::Buddy => kernel_tables::buddy_columns(key, entry.count),
            Self::Zones => kernel_tables::zone_columns(entry.shape, key, entry.count),
            Self::Slabs => kernel_tables::slab_columns(key),
            Self::Cgroups => kernel_tables::cgroup_columns(key),
            Self::Raid => kernel_tables::raid_columns(key),
            Self::IpvsStats => kernel_tables::ipvs_stats_columns(),
            Self::Ipvs => kernel_tables::ipvs_columns(key),
            Self::NfsClient => nfs::client_columns(key, entry.count),
            Self::NfsServer => nfs::server_columns(key, entry.count),
            Self::NodeMemory => zfs::node_memory_columns(about, key),
            Self::NodeStat => zfs::node_stat_columns(about, key),
            Self::Kstat => zfs::kstat_columns(about, key),
            Self::Pool => zfs::pool_columns(about, key),
            Self::Writeback => bcache::writeback_columns(about),
        }
    }
}

pub(crate) const NANOSECONDS: Kind = Kind::Counter { scale: 9 };
pub(crate) const COUNTER: Kind = Kind::Counter { scale: 0 };
pub(crate) const GAUGE: Kind = Kind::Gauge { scale: 0 };

pub(crate) fn column(name: &str, labels: &[(&str, &str)], kind: Kind) -> Column {
    let pairs = labels.iter().map(|(label, value)| ((*label).to_owned(), bounded(value)));
    Column { name: name.to_owned(), labels: Labels::new(pairs.collect()), kind }
}

/// The longest beginning of `value` that a label may hold.
fn bounded(value: &str) -> String {
    let end = (0..=LABEL_VALUE_BYTES_MAX.min(value.len())).rfind(|at| value.is_char_boundary(*at));
    value.get(..end.unwrap_or(0)).unwrap_or("").to_owned()
}

/// What the kernel counts memory in.
pub(crate) fn page_bytes() -> u64 {
    let found = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    found.ok().flatten().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096)
}

/// What a metric name may hold: `_` for every other character, at most 200 bytes.
fn metric_text(key: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    key.chars().take(200).map(plain).collect()
}
