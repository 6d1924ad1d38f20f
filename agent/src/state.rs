//! What an agent keeps between its lives: `host.toml`, `identity.pem`, `brokers`, `configuration`,
//! `agent.lock`.
//!
//! ```text
//! host.toml   id = "32 hex"          this host's random identity
//!             machine = "64 hex"     SHA-256 of the id and /etc/machine-id, or ""
//!             cloned_from = "32 hex" where the disk came from, or ""
//! ```
//!
//! The digest binds the id to the machine: on a disk that was cloned to another machine it does
//! not fit, and the clone gets an id of its own and must enrol for it. A machine without
//! `/etc/machine-id` (some containers) is not checked. `agent.lock` is held while an agent runs:
//! a second one on the same directory is refused, because two sessions of one id would be forked.

use crate::managed::Pushed;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::pki::{Identity, PkiError, Role, write_private};

/// An agent's state directory, locked.
#[derive(Debug)]
pub struct State {
    /// Where it is.
    pub dir: PathBuf,
    /// This host.
    pub host: HostId,
    /// The host whose disk this one's was cloned from.
    pub cloned_from: Option<HostId>,
    /// This life, random.
    pub boot: BootId,
    /// None where nothing can be written and no life before has left the file.
    _lock: Option<Flock<fs::File>>,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another agent runs on it.
    #[error("another agent runs on {}: stop it, or choose another --dir", .0.display())]
    Locked(PathBuf),
    /// `host.toml` is not what this agent writes.
    #[error("{} holds no host id; remove it to give this host a new one", .0.display())]
    Content(PathBuf),
    /// The system gives no randomness.
    #[error("cannot make a random id: {0}")]
    Random(String),
    /// Writing.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

impl State {
    /// Locks `dir` (made if missing) and reads it; a new host gets an id. `machine` is the content
    /// of `/etc/machine-id`, if there is one.
    ///
    /// # Errors
    /// The first thing that fails.
    pub fn open(dir: &Path, machine: Option<&str>) -> Result<Self, StateError> {
        let lock = lock(dir)?;
        let path = dir.join(HOST_FILE);
        let machine = machine.map(str::trim).filter(|text| !text.is_empty());
        let (host, cloned_from) = match fs::read_to_string(&path) {
            Ok(text) => {
                let kept = Kept::parse(&text).ok_or(StateError::Content(path))?;
                if kept.fits(machine) {
                    (kept.host, kept.cloned_from)
                } else {
                    let host = HostId(random()?);
                    log::warn!("this disk was cloned from host {}: now host {host}", kept.host);
                    forget_identity(dir)?;
                    save(dir, host, machine, Some(kept.host))?;
                    (host, Some(kept.host))
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let host = HostId(random()?);
                save(dir, host, machine, None)?;
                (host, None)
            }
            Err(source) => return Err(StateError::File { what: "read", path, source }),
        };
        let began_ms = u64::try_from(crate::clock::wall_ns() / 1_000_000).unwrap_or(0);
        let boot = BootId::begun(began_ms, random()?);
        Ok(Self { dir: dir.to_owned(), host, cloned_from, boot, _lock: lock })
    }

    /// The identity, if this host has enrolled. One for another host is not used.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn identity(&self) -> Result<Option<Identity>, StateError> {
        let Some(identity) = Identity::load(&self.dir, Role::Agent)? else { return Ok(None) };
        let subject = identity.subject()?;
        if subject.host != self.host {
            log::warn!(
                "identity.pem is for host {}, this is {}: not used",
                subject.host,
                self.host
            );
            return Ok(None);
        }
        Ok(Some(identity))
    }
}

impl State {
    /// Where the brokers were that this agent heard of last; a file that is not there, or cannot be read,
    /// is none.
    #[must_use]
    pub fn brokers(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join(BROKERS_FILE)).unwrap_or_default();
        let known = text.lines().map(str::trim).filter(|line| !line.is_empty());
        known.take(BROKERS_MAX).map(str::to_owned).collect()
    }

    /// Keeps them for the next start.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_brokers(&self, brokers: &[String]) -> Result<(), StateError> {
        let text: String = brokers.iter().map(|broker| format!("{broker}\n")).collect();
        Ok(write_private(&self.dir, BROKERS_FILE, text.as_bytes())?)
    }
}

impl State {
    /// The version of the fleet's configuration that proved itself last; a file that is not there, or cannot
    /// be read, is none.
    #[must_use]
    pub fn configuration(&self) -> Pushed {
        let text = fs::read_to_string(self.dir.join(CONFIGURATION_FILE)).unwrap_or_default();
        Pushed::parse(&text).unwrap_or_default()
    }

    /// Keeps it for the next start.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_configuration(&self, pushed: &Pushed) -> Result<(), StateError> {
        Ok(write_private(&self.dir, CONFIGURATION_FILE, pushed.text().as_bytes())?)
    }
}

struct Kept {
    host: HostId,
    machine: String,
    cloned_from: Option<HostId>,
}

impl Kept {
    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once('=')?;
                (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
            })
        };
        let cloned_from = value("cloned_from").and_then(|text| text.parse().ok());
        let host = value("id")?.parse().ok()?;
        Some(Self { host, machine: value("machine").unwrap_or_default(), cloned_from })
    }

    fn fits(&self, machine: Option<&str>) -> bool {
        machine.is_none_or(|machine| {
            self.machine.is_empty() || self.machine == digest(self.host, machine)
        })
    }
}

/// A disk that takes nothing is no reason not to watch its host: then an identity of before is needed.
fn lock(dir: &Path) -> Result<Option<Flock<fs::File>>, StateError> {
    let error = |what, path: &Path| {
        let path = path.to_owned();
        move |source| StateError::File { what, path, source }
    };
    fs::create_dir_all(dir).map_err(error("make directory", dir))?;
    let path = dir.join(LOCK_FILE);
    let file = match fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path) {
        Err(why) if is_the_disks(why.kind()) => match fs::File::open(&path) {
            Ok(file) => file,
            Err(_) => return Ok(None),
        },
        opened => opened.map_err(error("open", &path))?,
    };
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map(Some)
        .map_err(|(_, _)| StateError::Locked(dir.to_owned()))
}

fn is_the_disks(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

fn save(
    dir: &Path,
    host: HostId,
    machine: Option<&str>,
    cloned_from: Option<HostId>,
) -> Result<(), StateError> {
    let machine = machine.map(|machine| digest(host, machine)).unwrap_or_default();
    let cloned_from = cloned_from.map(|id| id.to_string()).unwrap_or_default();
    let text =
        format!("id = \"{host}\"\nmachine = \"{machine}\"\ncloned_from = \"{cloned_from}\"\n");
    Ok(write_private(dir, HOST_FILE, text.as_bytes())?)
}

/// The clone's certificate is the other host's; kept aside, in case this was the original.
fn forget_identity(dir: &Path) -> Result<(), StateError> {
    let path = dir.join("identity.pem");
    match fs::rename(&path, dir.join("identity.pem.cloned")) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(StateError::File { what: "move away", path, source })
        }
        _ => Ok(()),
    }
}

/// Salted with the id: the file tells nobody the machine's id.
fn digest(host: HostId, machine: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(host.0.to_le_bytes());
    hash.update(machine.as_bytes());
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random() -> Result<u128, StateError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| StateError::Random(error.to_string()))?;
    Ok(u128::from_le_bytes(bytes))
}

const HOST_FILE: &str = "host.toml";
const BROKERS_FILE: &str = "brokers";
const CONFIGURATION_FILE: &str = "configuration";
/// Members of a cluster, and the one that is configured.
const BROKERS_MAX: usize = 129;
const LOCK_FILE: &str = "agent.lock";

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh_dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("strobe-state-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn the_id_stays_and_the_boot_changes() {
        let dir = fresh_dir("stays");
        let first = State::open(&dir, Some("m1\n")).unwrap();
        assert!(matches!(State::open(&dir, Some("m1")), Err(StateError::Locked(_))));
        let (host, boot) = (first.host, first.boot);
        drop(first);
        for machine in [Some("m1"), None, Some("")] {
            let again = State::open(&dir, machine).unwrap();
            assert_eq!((again.host, again.cloned_from), (host, None));
            assert_ne!(again.boot, boot);
        }
        assert!(!fs::read_to_string(dir.join(HOST_FILE)).unwrap().contains("m1"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_cloned_disk_gets_an_id_of_its_own_once() {
        let dir = fresh_dir("clone");
        let original = State::open(&dir, Some("m1")).unwrap().host;
        fs::write(dir.join("identity.pem"), "the original's").unwrap();
        let clone = State::open(&dir, Some("m2")).unwrap();
        assert_ne!(clone.host, original);
        assert_eq!(clone.cloned_from, Some(original));
        assert!(clone.identity().unwrap().is_none());
        let host = clone.host;
        drop(clone);
        let again = State::open(&dir, Some("m2")).unwrap();
        assert_eq!((again.host, again.cloned_from), (host, Some(original)));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_broken_file_is_named_and_never_replaced() {
        let dir = fresh_dir("broken");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(HOST_FILE), "id = \"x\"\n").unwrap();
        assert!(matches!(State::open(&dir, None), Err(StateError::Content(_))));
        assert_eq!(fs::read_to_string(dir.join(HOST_FILE)).unwrap(), "id = \"x\"\n");
        fs::remove_dir_all(&dir).unwrap();
    }
}
