//! Backups: what a running broker has at one moment, in a folder that says what is in it; checked, and
//! made into a state directory again.
//!
//! ```text
//! TO/manifest.json        last: what is here, with a CRC32C each; without it this is no backup
//!    version, ca/, link.secret, shared-store, agent/,
//!    viz.pem, agreed.state, audit.log                    copied as they are
//!    store/, registry.redb                               as at the mark (`Order::Link`)
//!    cluster.image                                       what the cluster had agreed on
//! ```
//!
//! The mark: whatever was acknowledged before it was made is in it. `store/store-id` is not: what Redis has
//! of the store that goes on is not what the restored one will write. Nor is `cluster.redb`: an old vote must
//! not be cast again, so a restored broker is a cluster of its own, with what was agreed on.

use crate::dir::{DirError, StateDir};
use crate::store::redis::RESTORING;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use strobe_cluster::{Identity, Store};

/// What is in a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this form.
    pub version: u32,
    /// When it was made, ms since 1970.
    pub made_ms: i64,
    /// Where it is restored as part of a cluster.
    pub cluster: Option<Seat>,
    /// Every file.
    pub files: Vec<Item>,
}

/// Which broker of which cluster it is of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seat {
    /// The cluster, 32 digits.
    pub cluster: String,
    /// The broker's number.
    pub broker: u64,
    /// Where it was reached.
    pub address: String,
}

/// A file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Item {
    /// Below the backup's folder.
    pub path: String,
    /// How long.
    pub bytes: u64,
    /// Of its bytes.
    pub crc32c: u32,
}

/// Why there is no backup, or no restoring it.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is something in it.
    #[error("{} is not empty: name a folder that is, or is not there", .0.display())]
    NotEmpty(PathBuf),
    /// No manifest, or one that cannot be read.
    #[error("{} is no whole backup: {why}", path.display())]
    NoBackup {
        /// Which folder.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A newer one.
    #[error("the backup is of form {0}, this program knows {VERSION}: use a newer one")]
    Version(u32),
    /// Files are not as they were.
    #[error("the backup is damaged: {}", .0.join("; "))]
    Damaged(Vec<String>),
    /// The state directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// What was agreed on.
    #[error(transparent)]
    Cluster(#[from] strobe_cluster::StoreError),
}

/// Copies what nobody changes while a broker runs, and moves what was linked in `staging` to `to`.
pub(crate) fn gather(dir: &Path, staging: &Path, to: &Path) -> Result<(), BackupError> {
    for folder in ["store/segments", "store/wal"] {
        make(&to.join(folder))?;
    }
    for name in ["version", "link.secret", "shared-store", "viz.pem", "agreed.state", "audit.log"] {
        take(&dir.join(name), &to.join(name))?;
    }
    for folder in ["ca", "agent"] {
        let Ok(entries) = fs::read_dir(dir.join(folder)) else { continue };
        make(&to.join(folder))?;
        for entry in entries.flatten() {
            take(&entry.path(), &to.join(folder).join(entry.file_name()))?;
        }
    }
    for path in files(staging)? {
        let rest = path.strip_prefix(staging).unwrap_or(&path);
        let to = to.join(rest);
        to.parent().map_or(Ok(()), make)?;
        if fs::rename(&path, &to).is_err() {
            // Another disk.
            copy(&path, &to)?;
        }
    }
    fs::remove_dir_all(staging).map_err(io("remove", staging))
}

/// Writes down what is in a backup; from now on it is one.
pub(crate) fn seal(
    to: &Path,
    made_ms: i64,
    cluster: Option<Seat>,
) -> Result<Manifest, BackupError> {
    let mut items = Vec::new();
    for path in files(to)? {
        let (bytes, crc32c) = sum(&path)?;
        let rest = path.strip_prefix(to).unwrap_or(&path);
        items.push(Item { path: rest.display().to_string(), bytes, crc32c });
    }
    items.sort_by(|a, b| a.path.cmp(&b.path));
    let manifest = Manifest { version: VERSION, made_ms, cluster, files: items };
    let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    write(&to.join(MANIFEST), &text)?;
    File::open(to).and_then(|folder| folder.sync_all()).map_err(io("sync", to))?;
    Ok(manifest)
}

/// Whether every file of a backup is there, as it was, and every block in it can be read.
///
/// # Errors
/// What is wrong with it.
pub fn check(from: &Path) -> Result<Manifest, BackupError> {
    let fail = |why: String| BackupError::NoBackup { path: from.into(), why };
    let path = from.join(MANIFEST);
    let text = fs::read(&path).map_err(|why| fail(format!("{}: {why}", path.display())))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|why| fail(why.to_string()))?;
    if manifest.version != VERSION {
        return Err(BackupError::Version(manifest.version));
    }
    let mut wrong = Vec::new();
    // Whoever made the manifest says where files go when it is restored: below the directory only.
    let is_below = |path: &str| {
        let mut parts = Path::new(path).components().peekable();
        parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    if let Some(item) = manifest.files.iter().find(|item| !is_below(&item.path)) {
        return Err(BackupError::Damaged(vec![format!("{:?} is no file of a backup", item.path)]));
    }
    for item in &manifest.files {
        match sum(&from.join(&item.path)) {
            Ok(found) if found == (item.bytes, item.crc32c) => {}
            Ok((bytes, _)) => {
                let Item { path, bytes: wanted, .. } = item;
                wrong.push(format!("{path} is not as it was ({bytes} bytes, {wanted} then)"));
            }
            Err(why) => wrong.push(why.to_string()),
        }
    }
    if wrong.is_empty() {
        match crate::store::check(&from.join("store")) {
            Ok(report) => wrong.extend(report.damage),
            Err(why) => wrong.push(why.to_string()),
        }
    }
    if wrong.is_empty() { Ok(manifest) } else { Err(BackupError::Damaged(wrong)) }
}

/// Makes a backup into a state directory again. One of a cluster becomes a cluster of one, reached at
/// `address` or where it was; other brokers join it anew.
///
/// # Errors
/// The backup is not good, or `dir` is not empty.
pub fn restore(from: &Path, dir: &Path, address: Option<&str>) -> Result<Manifest, BackupError> {
    let manifest = check(from)?;
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(BackupError::NotEmpty(dir.into()));
    }
    let parts = manifest.files.iter().filter(|item| item.path != IMAGE);
    for item in parts {
        let to = dir.join(&item.path);
        to.parent().map_or(Ok(()), make)?;
        copy(&from.join(&item.path), &to)?;
    }
    // What Redis has of the log of the day since the backup is taken in at the start.
    let store = dir.join("store");
    make(&store)?;
    write(&store.join(RESTORING), b"")?;
    // Of this version, and of nobody else while it is made.
    let _state = StateDir::open(dir)?;
    if let Some(seat) = &manifest.cluster {
        let path = from.join(IMAGE);
        let image = fs::read(&path).map_err(io("read", &path))?;
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|why| BackupError::Io {
            doing: "make a number for",
            path: dir.into(),
            source: io::Error::other(why.to_string()),
        })?;
        let (cluster, disk) = random.split_first_chunk::<16>().unwrap_or((&[0; 16], &[]));
        let disk = disk.try_into().map_or(1, u64::from_le_bytes).max(1);
        let cluster = u128::from_le_bytes(*cluster);
        let identity = Identity { cluster, broker: seat.broker, disk };
        let path = dir.join("cluster.redb");
        let database = redb::Database::create(&path).map_err(|why| BackupError::Io {
            doing: "make",
            path: path.clone(),
            source: io::Error::other(why.to_string()),
        })?;
        Store::restore(&database, identity, address.unwrap_or(&seat.address), &image)?;
    }
    Ok(manifest)
}

/// Keeps the cluster's image.
pub(crate) fn keep_image(to: &Path, image: &[u8]) -> Result<(), BackupError> {
    write(&to.join(IMAGE), image)
}

/// A folder that only its owner may look into, and that is empty.
pub(crate) fn make_empty(to: &Path) -> Result<(), BackupError> {
    make(to)?;
    let mut entries = fs::read_dir(to).map_err(io("list", to))?;
    if entries.next().is_some() { Err(BackupError::NotEmpty(to.into())) } else { Ok(()) }
}

pub(crate) fn make(path: &Path) -> Result<(), BackupError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("make", path))
}

/// A file that may not be there; folders and sockets are left out.
fn take(from: &Path, to: &Path) -> Result<(), BackupError> {
    let is_file = fs::symlink_metadata(from).is_ok_and(|of| of.is_file());
    if is_file { copy(from, to) } else { Ok(()) }
}

fn copy(from: &Path, to: &Path) -> Result<(), BackupError> {
    let mut source = File::open(from).map_err(io("read", from))?;
    let mut options = OpenOptions::new();
    let options = options.create_new(true).write(true).mode(0o600);
    let mut file = options.open(to).map_err(io("make", to))?;
    let copied = io::copy(&mut source, &mut file).and_then(|_| file.sync_all());
    copied.map_err(io("write", to))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let mut options = OpenOptions::new();
    let options = options.create_new(true).write(true).mode(0o600);
    let mut file = options.open(path).map_err(io("make", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write", path))
}

fn sum(path: &Path) -> Result<(u64, u32), BackupError> {
    let mut file = File::open(path).map_err(io("read", path))?;
    let (mut bytes, mut crc, mut buffer) = (0, 0, vec![0; 1 << 16]);
    loop {
        let count = file.read(&mut buffer).map_err(io("read", path))?;
        if count == 0 {
            return Ok((bytes, crc));
        }
        bytes += u64::try_from(count).unwrap_or(0);
        crc = crc32c::crc32c_append(crc, buffer.get(..count).unwrap_or_default());
    }
}

fn files(root: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let (mut todo, mut found) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(&folder).map_err(io("list", &folder))? {
            let path = entry.map_err(io("list", &folder))?.path();
            if path.is_dir() { todo.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}

fn io(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { doing, path: path.clone(), source }
}

const VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";
const IMAGE: &str = "cluster.image";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_puts_nothing_outside_the_directory() {
        let top = std::env::temp_dir().join(format!("strobe-backup-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        let (from, to) = (top.join("backup"), top.join("restored"));
        make(&from.join("store/segments")).unwrap();
        make(&from.join("store/wal")).unwrap();
        // Whole in itself, and this file is there for whoever checks it.
        write(&top.join("escaped"), b"x").unwrap();
        write(&from.join("escaped"), b"x").unwrap();
        let (bytes, crc32c) = sum(&top.join("escaped")).unwrap();
        let absolute = top.join("escaped").display().to_string();
        for path in ["../escaped", "ca/../../escaped", absolute.as_str(), "./../escaped", ""] {
            let files = vec![Item { path: path.into(), bytes, crc32c }];
            let manifest = Manifest { version: VERSION, made_ms: 0, cluster: None, files };
            let _ = fs::remove_file(from.join(MANIFEST));
            write(&from.join(MANIFEST), &serde_json::to_vec(&manifest).unwrap()).unwrap();
            let said = restore(&from, &to, None).unwrap_err().to_string();
            assert!(said.contains("is no file of a backup"), "{path:?}: {said}");
            assert!(!to.exists(), "{path:?}: nothing was begun");
        }
        fs::remove_dir_all(&top).unwrap();
    }
}
