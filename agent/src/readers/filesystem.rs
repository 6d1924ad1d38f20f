//! /proc/1/mounts: which file systems there are. How full they are is asked on a hazard thread
//! ([`crate::hazard`]), because statfs(2) on a dead mount never returns.

use super::text::lines;
use super::{GAUGE, column};
use crate::hazard::Answer;
use std::path::Path;
use strobe_wire::schema::Column;

/// One mount that counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mount {
    pub(crate) device: String,
    /// Where it is mounted, as the host sees it.
    pub(crate) point: String,
    pub(crate) kind: String,
    pub(crate) readonly: bool,
    /// What names it: device, mount point and type.
    key: Vec<u8>,
}

/// The mounts of node_exporter's default filters; the first of several equal ones.
pub(crate) fn parse(bytes: &[u8]) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for line in lines(bytes) {
        let mut words = line.split(|byte| *byte == b' ');
        let mut word = || words.next().map(unescape);
        let (Some(device), Some(point), Some(kind), Some(options)) =
            (word(), word(), word(), word())
        else {
            continue;
        };
        if is_point_ignored(&point) || KINDS_IGNORED.contains(&kind.as_str()) {
            continue;
        }
        let readonly = options.split(',').any(|option| option == "ro");
        let key = format!("{device}\0{point}\0{kind}").into_bytes();
        let mount = Mount { device, point, kind, readonly, key };
        if mounts.len() < MOUNTS_MAX && !mounts.iter().any(|known| known.key == mount.key) {
            mounts.push(mount);
        }
    }
    mounts
}

impl Mount {
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Takes the mount point out of `rootfs`, under which a container sees the host's tree.
    pub(crate) fn rebase(&mut self, rootfs: &Path) {
        let inner = Path::new(&self.point).strip_prefix(rootfs).ok();
        let inner = inner.filter(|_| rootfs != Path::new("/")).and_then(Path::to_str);
        if let Some(point) = inner.map(|inner| format!("/{inner}")) {
            self.key = format!("{}\0{point}\0{}", self.device, self.kind).into_bytes();
            self.point = point;
        }
    }

    /// Whether statfs on it needs no server and no other process.
    pub(crate) fn answers_from_memory(&self) -> bool {
        KINDS_TRUSTED.contains(&self.kind.as_str())
    }

    /// In the order of [`columns`](Self::columns).
    pub(crate) fn values(&self, answer: Answer) -> [Option<u64>; 7] {
        match answer {
            Answer::Pending => [None; 7],
            Answer::Failed | Answer::Hung => [Some(1), None, None, None, None, None, None],
            Answer::Space(space) => [
                Some(0),
                Some(u64::from(self.readonly)),
                Some(space.size_bytes),
                Some(space.free_bytes),
                Some(space.available_bytes),
                Some(space.files),
                Some(space.files_free),
            ],
        }
    }

    /// Error, read-only, then size, free, available, files and files free.
    pub(crate) fn columns(&self) -> Vec<Column> {
        let labels =
            [("device", self.device.as_str()), ("fstype", &self.kind), ("mountpoint", &self.point)];
        [
            "node_filesystem_device_error",
            "node_filesystem_readonly",
            "node_filesystem_size_bytes",
            "node_filesystem_free_bytes",
            "node_filesystem_avail_bytes",
            "node_filesystem_files",
            "node_filesystem_files_free",
        ]
        .map(|name| column(name, &labels, GAUGE))
        .into()
    }
}

/// The kernel writes space, tab, newline and backslash as `\040` and the like.
fn unescape(word: &[u8]) -> String {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|digits| {
            *first == b'\\' && digits.iter().all(|digit| matches!(digit, b'0'..=b'7'))
        });
        let code = octal.and_then(|digits| {
            digits.iter().try_fold(0_u8, |sum, digit| sum.checked_mul(8)?.checked_add(digit - b'0'))
        });
        match code {
            Some(code) => {
                out.push(code);
                rest = after.get(3..).unwrap_or(&[]);
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)`
fn is_point_ignored(point: &str) -> bool {
    let under = |root: &str| {
        point.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let inside = |root: &str| point.strip_prefix(root).is_some_and(|rest| !rest.is_empty());
    under("/dev")
        || under("/proc")
        || under("/sys")
        || inside("/run/credentials/")
        || inside("/var/lib/docker/")
        || inside("/var/lib/containers/storage/")
}

const KINDS_IGNORED: [&str; 24] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "mqueue",
    "nsfs",
    "overlay",
    "proc",
    "procfs",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tracefs",
];
const KINDS_TRUSTED: [&str; 10] =
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "ramfs", "vfat", "f2fs", "zfs"];
/// Two full sections of seven columns each.
const MOUNTS_MAX: usize = 114;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_that_count() {
        let mounts = parse(
            b"proc /proc proc rw 0 0\n/dev/vda / ext4 rw,relatime 0 0\n/dev/vda / ext4 ro 0 0\n\
              //nas/a\\040b /srv/a\\040b cifs ro,nosuid 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n\
              x /development ext4 rw 0 0\ntorn /half\nx /y\\999\\777 ext4 rw",
        );
        let found: Vec<_> =
            mounts.iter().map(|m| (m.device.as_str(), m.point.as_str(), m.readonly)).collect();
        assert_eq!(
            found,
            [
                ("/dev/vda", "/", false),
                ("//nas/a b", "/srv/a b", true),
                ("x", "/development", false),
                ("x", "/y\\999\\777", false),
            ]
        );
    }
}
