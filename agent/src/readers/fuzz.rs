//! What the fuzz targets call of readers that have no [`Format`](super::Format): what the kernel says of
//! control groups, of processes, of NFS mounts and of sockets and links in its own binary answers.

use super::{cgroups, exits, link_stats, mountstats, sockets, tasks, units};

/// One answer, or one file.
///
/// # Panics
/// If what was parsed does not belong together.
pub(crate) fn answer(which: u8, bytes: &[u8]) {
    match which % 7 {
        0 => tasks::fuzz(bytes),
        1 => exits::fuzz(bytes),
        2 => link_stats::fuzz(bytes),
        3 => sockets::fuzz(bytes),
        4 => units::fuzz(bytes),
        5 => mountstats::fuzz(bytes),
        _ => cgroups::fuzz(which / 7, bytes),
    }
}
