//! The state directory: made, locked, of this version, with its certificate authority.
//!
//! ```text
//! lock            held (flock) while a broker runs
//! version         what wrote this directory
//! ca/             the fleet's certificate authority
//! link.secret     the same in every life, so that peers learn at once of the next one
//! registry.redb   hosts, windows, tokens
//! cluster.redb    what this broker promised to its cluster, if it is in one
//! store/          log and segments
//! control.sock    the operator's door
//! ```

use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use strobe_wire::pki::{Authority, PkiError, write_private};

/// A directory that is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct StateDir {
    _lock: Flock<File>,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The system refused.
    #[error("cannot {doing} {}: {source}; is the directory writable by this user?", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "{} is in use by another broker (or `strobe up`); stop it, or choose another --dir",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// Another version wrote it.
    #[error(
        "{} was written by {found:?}, and this is {VERSION:?}; use the version that wrote it, or \
         another --dir",
        path.display()
    )]
    Version {
        /// The directory.
        path: PathBuf,
        /// What its version file says.
        found: String,
    },
    /// The authority.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

impl StateDir {
    /// Makes and locks `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, DirError> {
        let fail = |doing, path: &Path, source| DirError::Io { doing, path: path.into(), source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| fail("make", dir, e))?;
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| fail("open", &path, e))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| DirError::Locked { path: dir.into() })?;
        let path = dir.join("version");
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim_end() == VERSION => {}
            Ok(text) => {
                let found = text.trim_end().chars().take(80).collect();
                return Err(DirError::Version { path: dir.into(), found });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut file = File::create(&path).map_err(|e| fail("make", &path, e))?;
                file.write_all(format!("{VERSION}\n").as_bytes())
                    .and_then(|()| file.sync_all())
                    .map_err(|e| fail("write", &path, e))?;
            }
            Err(error) => return Err(fail("read", &path, error)),
        }
        Ok(Self { _lock: lock })
    }
}

/// What this broker's link derives its secrets from, made at the first start. Not of the authority's
/// key: that is another one once this broker has joined a cluster, and the next life's stateless resets
/// would not be believed.
pub(crate) fn link_secret(dir: &Path) -> Result<[u8; 32], DirError> {
    let path = dir.join(LINK_SECRET);
    match std::fs::read(&path) {
        Ok(bytes) => {
            if let Ok(secret) = bytes.try_into() {
                return Ok(secret);
            }
        }
        Err(source) if source.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(DirError::Io { doing: "read", path, source }),
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|why| DirError::Io {
        doing: "make",
        path,
        source: io::Error::other(why.to_string()),
    })?;
    write_private(dir, LINK_SECRET, &secret)?;
    Ok(secret)
}

/// The authority kept in `dir`, made at the first start.
pub(crate) fn authority(dir: &Path, now_s: u64) -> Result<Authority, DirError> {
    let dir = dir.join("ca");
    if let Some(authority) = Authority::load(&dir)? {
        return Ok(authority);
    }
    let authority = Authority::create(now_s)?;
    authority.save(&dir)?;
    Ok(authority)
}

const VERSION: &str = "strobe state 2";
const LINK_SECRET: &str = "link.secret";

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("strobe-dir-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        dir
    }

    #[test]
    fn a_directory_belongs_to_one() {
        let dir = dir("lock");
        let first = StateDir::open(&dir).unwrap();
        assert!(matches!(StateDir::open(&dir), Err(DirError::Locked { .. })));
        drop(first);
        assert!(StateDir::open(&dir).is_ok());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let dir = dir("version");
        drop(StateDir::open(&dir).unwrap());
        std::fs::write(dir.join("version"), "strobe state 9\n").unwrap();
        let said = StateDir::open(&dir).unwrap_err().to_string();
        assert!(said.contains("strobe state 9") && said.contains("strobe state 2"), "{said}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_authority_stays_the_same() {
        let dir = dir("ca");
        let first = authority(&dir, 1_800_000_000).unwrap().fingerprint();
        assert_eq!(authority(&dir, 1_900_000_000).unwrap().fingerprint(), first);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
