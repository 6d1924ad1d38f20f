//! Walks for disks and file systems: nvme, tapes, btrfs, bcache, xfs.

use super::kept::Shape;
use super::leaf::{Found, Read, Spec, names, numbered, text_of};
use super::sheet::{Repair, Sheet};
use super::text::{lines, number, words};
use super::{COUNTER, Format, GAUGE, NANOSECONDS, Roots, column};
use crate::config::SMALL;
use strobe_wire::schema::{Column, Kind};

pub(crate) fn nvme(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("class/nvme");
    for device in names(&base).iter().filter(|name| numbered(name, "nvme").is_some()) {
        let texts = [
            ("firmware_revision", "firmware_rev"),
            ("model", "model"),
            ("serial", "serial"),
            ("state", "state"),
        ];
        let texts = texts.map(|(label, file)| (label, base.join(device).join(file)));
        found.info("node_nvme_info", &[("device", device)], &texts);
    }
}

/// Tape drives (`st0`, without the modes `st0a` and `nst0`).
pub(crate) fn tapes(roots: &Roots, found: &mut Found) {
    // No such thing is where the small build is.
    if SMALL {
        return;
    }
    let base = roots.sysfs.join("class/scsi_tape");
    for device in names(&base).iter().filter(|name| numbered(name, "st").is_some()) {
        found.object(&base.join(device).join("stats"), TAPE, &[("device", device)]);
    }
}

/// What sysfs says of each btrfs; errors of a device would take an ioctl on its mount point.
pub(crate) fn btrfs(roots: &Roots, found: &mut Found) {
    if SMALL {
        return;
    }
    let base = roots.sysfs.join("fs/btrfs");
    for name in names(&base) {
        let dir = base.join(&name);
        let allocation = dir.join("allocation");
        if !allocation.is_dir() {
            continue;
        }
        // Before Linux 5.0 there is no metadata_uuid, and node_exporter has an empty label.
        let uuid = text_of(&dir.join("metadata_uuid")).unwrap_or_default();
        found.info("node_btrfs_info", &[("uuid", &uuid)], &[("label", dir.join("label"))]);
        let reserve = column("node_btrfs_global_rsv_size_bytes", &[("uuid", &uuid)], GAUGE);
        found.leaf(allocation.join("global_rsv_size"), Read::Level(1), reserve);
        let devices = names(&dir.join("devices"));
        for device in &devices {
            let labels = [("uuid", &*uuid), ("device", &**device)];
            let size = column("node_btrfs_device_size_bytes", &labels, GAUGE);
            found.leaf(dir.join("devices").join(device).join("size"), Read::Level(512), size);
        }
        for group in ["data", "metadata", "system"] {
            let labels = [("uuid", &*uuid), ("block_group_type", group)];
            let reserved = column("node_btrfs_reserved_bytes", &labels, GAUGE);
            let dir = allocation.join(group);
            found.leaf(dir.join("bytes_reserved"), Read::Level(1), reserved);
            for mode in names(&dir).iter().filter(|name| dir.join(name).is_dir()) {
                let labels = [labels[0], labels[1], ("mode", &**mode)];
                found.object(&dir.join(mode), LAYOUT, &labels);
                let ratio = column("node_btrfs_allocation_ratio", &labels, Kind::Float);
                found.constant(ratio_of(mode, devices.len()).to_bits(), ratio);
            }
        }
    }
}

/// Each set of caches, its disks and its caches; `priority_stats` reads every bucket and is left alone, as
/// node_exporter does unless it is told otherwise.
pub(crate) fn bcache(roots: &Roots, found: &mut Found) {
    if SMALL {
        return;
    }
    let base = roots.sysfs.join("fs/bcache");
    for uuid in names(&base).iter().filter(|name| name.contains('-')) {
        let dir = base.join(uuid);
        found.object(&dir, CACHE_SET, &[("uuid", uuid)]);
        for device in names(&dir) {
            let path = dir.join(&device);
            if numbered(&device, "bdev").is_some() {
                found.object(&path, BACKING, &[("uuid", uuid), ("backing_device", &device)]);
                let (file, about) =
                    (path.join("writeback_rate_debug"), format!("{uuid}\n{device}"));
                found.table(file, Shape::Whole, Format::Writeback, &about);
            } else if numbered(&device, "cache").is_some() {
                found.object(&path, CACHE, &[("uuid", uuid), ("cache_device", &device)]);
            }
        }
    }
}

/// The counters of each XFS.
pub(crate) fn xfs(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("fs/xfs");
    for device in names(&base).iter().filter(|name| *name != "stats") {
        found.table(base.join(device).join("stats/stats"), Shape::Whole, Format::Xfs, device);
    }
}

/// `extent_alloc 4260849 125170297 4618726 131131897`, a line a kind of operation.
pub(super) fn parse_xfs(bytes: &[u8], sheet: &mut Sheet) {
    let mut values = [None; XFS.len()];
    for line in lines(bytes) {
        let mut words = words(line);
        let Some(label) = words.next() else { continue };
        for (at, word) in words.enumerate() {
            let is =
                |(line, field, _): &(&str, usize, &str)| line.as_bytes() == label && *field == at;
            if let Some(value) = XFS.iter().position(is).and_then(|at| values.get_mut(at)) {
                *value = number(word);
            }
        }
    }
    if values.iter().any(Option::is_some) {
        sheet.put(0, b"", &values, Repair::None);
    }
}

pub(super) fn xfs_columns(device: &str) -> Vec<Column> {
    let labels = [("device", device)];
    XFS.iter()
        .map(|(_, _, name)| column(&format!("node_xfs_{name}_total"), &labels, COUNTER))
        .collect()
}

/// Bytes on disk for a byte of data.
fn ratio_of(mode: &str, devices: usize) -> f64 {
    let devices = f64::from(u32::try_from(devices).unwrap_or(u32::MAX));
    match mode {
        "single" | "raid0" => 1.0,
        "dup" | "raid1" | "raid10" => 2.0,
        "raid5" => devices / (devices - 1.0),
        "raid6" => devices / (devices - 2.0),
        _ => 0.0,
    }
}

const LAYOUT: &[Spec] = &[
    Spec("used_bytes", "node_btrfs_used_bytes", GAUGE, Read::Level(1)),
    Spec("total_bytes", "node_btrfs_size_bytes", GAUGE, Read::Level(1)),
];
const TAPE: &[Spec] = &[
    Spec("in_flight", "node_tape_io_now", GAUGE, Read::Level(1)),
    Spec("io_ns", "node_tape_io_time_seconds_total", NANOSECONDS, Read::Whole(1)),
    Spec("other_cnt", "node_tape_io_others_total", COUNTER, Read::Whole(1)),
    Spec("read_byte_cnt", "node_tape_read_bytes_total", COUNTER, Read::Whole(1)),
    Spec("read_cnt", "node_tape_reads_completed_total", COUNTER, Read::Whole(1)),
    Spec("read_ns", "node_tape_read_time_seconds_total", NANOSECONDS, Read::Whole(1)),
    Spec("resid_cnt", "node_tape_residual_total", COUNTER, Read::Whole(1)),
    Spec("write_byte_cnt", "node_tape_written_bytes_total", COUNTER, Read::Whole(1)),
    Spec("write_cnt", "node_tape_writes_completed_total", COUNTER, Read::Whole(1)),
    Spec("write_ns", "node_tape_write_time_seconds_total", NANOSECONDS, Read::Whole(1)),
];
const CACHE_SET: &[Spec] = &[
    Spec("average_key_size", "node_bcache_average_key_size_sectors", GAUGE, Read::Human),
    Spec("btree_cache_size", "node_bcache_btree_cache_size_bytes", GAUGE, Read::Human),
    Spec("cache_available_percent", "node_bcache_cache_available_percent", GAUGE, Read::Human),
    Spec("congested", "node_bcache_congested", GAUGE, Read::Human),
    Spec("root_usage_percent", "node_bcache_root_usage_percent", GAUGE, Read::Human),
    Spec("tree_depth", "node_bcache_tree_depth", GAUGE, Read::Human),
    Spec(
        "internal/active_journal_entries",
        "node_bcache_active_journal_entries",
        GAUGE,
        Read::Human,
    ),
    Spec("internal/btree_nodes", "node_bcache_btree_nodes", GAUGE, Read::Human),
    // Microseconds, which node_exporter tells as nanoseconds; its users' rules are made for that.
    Spec(
        "internal/btree_read_average_duration_us",
        "node_bcache_btree_read_average_duration_seconds",
        Kind::Gauge { scale: 9 },
        Read::Human,
    ),
    Spec("internal/cache_read_races", "node_bcache_cache_read_races_total", COUNTER, Read::Human),
];
const BACKING: &[Spec] = &[
    Spec("dirty_data", "node_bcache_dirty_data_bytes", GAUGE, Read::Human),
    Spec("stats_total/bypassed", "node_bcache_bypassed_bytes_total", COUNTER, Read::Human),
    Spec("stats_total/cache_hits", "node_bcache_cache_hits_total", COUNTER, Read::Human),
    Spec("stats_total/cache_misses", "node_bcache_cache_misses_total", COUNTER, Read::Human),
    Spec(
        "stats_total/cache_bypass_hits",
        "node_bcache_cache_bypass_hits_total",
        COUNTER,
        Read::Human,
    ),
    Spec(
        "stats_total/cache_bypass_misses",
        "node_bcache_cache_bypass_misses_total",
        COUNTER,
        Read::Human,
    ),
    Spec(
        "stats_total/cache_miss_collisions",
        "node_bcache_cache_miss_collisions_total",
        COUNTER,
        Read::Human,
    ),
    Spec(
        "stats_total/cache_readaheads",
        "node_bcache_cache_readaheads_total",
        COUNTER,
        Read::Human,
    ),
];
const CACHE: &[Spec] = &[
    Spec("io_errors", "node_bcache_io_errors", GAUGE, Read::Human),
    Spec("metadata_written", "node_bcache_metadata_written_bytes_total", COUNTER, Read::Human),
    Spec("written", "node_bcache_written_bytes_total", COUNTER, Read::Human),
];
/// Line, field of it, metric.
const XFS: [(&str, usize, &str); 39] = [
    ("extent_alloc", 0, "extent_allocation_extents_allocated"),
    ("extent_alloc", 1, "extent_allocation_blocks_allocated"),
    ("extent_alloc", 2, "extent_allocation_extents_freed"),
    ("extent_alloc", 3, "extent_allocation_blocks_freed"),
    ("abt", 0, "allocation_btree_lookups"),
    ("abt", 1, "allocation_btree_compares"),
    ("abt", 2, "allocation_btree_records_inserted"),
    ("abt", 3, "allocation_btree_records_deleted"),
    ("blk_map", 0, "block_mapping_reads"),
    ("blk_map", 1, "block_mapping_writes"),
    ("blk_map", 2, "block_mapping_unmaps"),
    ("blk_map", 3, "block_mapping_extent_list_insertions"),
    ("blk_map", 4, "block_mapping_extent_list_deletions"),
    ("blk_map", 5, "block_mapping_extent_list_lookups"),
    ("blk_map", 6, "block_mapping_extent_list_compares"),
    ("bmbt", 0, "block_map_btree_lookups"),
    ("bmbt", 1, "block_map_btree_compares"),
    ("bmbt", 2, "block_map_btree_records_inserted"),
    ("bmbt", 3, "block_map_btree_records_deleted"),
    ("dir", 0, "directory_operation_lookup"),
    ("dir", 1, "directory_operation_create"),
    ("dir", 2, "directory_operation_remove"),
    ("dir", 3, "directory_operation_getdents"),
    ("ig", 0, "inode_operation_attempts"),
    ("ig", 1, "inode_operation_found"),
    ("ig", 2, "inode_operation_recycled"),
    ("ig", 3, "inode_operation_missed"),
    ("ig", 4, "inode_operation_duplicates"),
    ("ig", 5, "inode_operation_reclaims"),
    ("ig", 6, "inode_operation_attribute_changes"),
    ("rw", 0, "write_calls"),
    ("rw", 1, "read_calls"),
    ("vnodes", 0, "vnode_active"),
    ("vnodes", 1, "vnode_allocate"),
    ("vnodes", 2, "vnode_get"),
    ("vnodes", 3, "vnode_hold"),
    ("vnodes", 4, "vnode_release"),
    ("vnodes", 5, "vnode_reclaim"),
    ("vnodes", 6, "vnode_remove"),
];
