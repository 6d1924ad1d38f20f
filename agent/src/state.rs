//! What an agent keeps between its lives: `host.toml`, `identity.pem`, `brokers`, `configuration`,
//! `agent.lock`.
//!
//! ```text
//! host.toml   id = "32 hex"               this host's random identity
//!             machine = "64 hex"          SHA-256 of the id and /etc/machine-id, or ""
//!             hardware = "part:16 hex …"  the same of each thing its hardware says, cut off
//!             cloned_from = "32 hex"      where the disk came from, or ""
//! ```
//!
//! The digests bind the id to the machine: on a disk that was cloned to another machine they do
//! not fit, and the clone gets an id of its own and must enrol for it. It is another machine if
//! it has another `/etc/machine-id`, or if of the hardware that was known then and can be seen now
//! ([`Machine`]) nothing is the same: a card or a board that is replaced makes no new host, both at
//! once do. What cannot be seen (some containers have neither) is not held against it. `agent.lock`
//! is held while an agent runs: a second one on the same directory is refused, because two sessions
//! of one id would be forked.

use crate::machine::{Fact, Machine};
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
    /// Locks `dir` (made if missing) and reads it; a new host gets an id.
    ///
    /// # Errors
    /// The first thing that fails.
    pub fn open(dir: &Path, machine: &Machine) -> Result<Self, StateError> {
        let lock = lock(dir)?;
        let path = dir.join(HOST_FILE);
        let kept = match fs::read_to_string(&path) {
            Ok(text) => {
                let kept = Kept::parse(&text).ok_or(StateError::Content(path))?;
                kept.go_on(dir, machine)?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let new = Kept::new(HostId(random()?), machine, None);
                new.save(dir)?;
                new
            }
            Err(source) => return Err(StateError::File { what: "read", path, source }),
        };
        let Kept { host, cloned_from, .. } = kept;
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

#[derive(Clone, PartialEq, Eq)]
struct Kept {
    host: HostId,
    machine: String,
    hardware: Vec<String>,
    cloned_from: Option<HostId>,
}

impl Kept {
    fn new(host: HostId, machine: &Machine, cloned_from: Option<HostId>) -> Self {
        let id = machine.id.as_deref().map(|id| digest(host, id));
        let fact = |Fact { part, text }: &Fact| {
            format!("{}:{:.FACT_DIGITS$}", part.word(), digest(host, text))
        };
        let hardware = machine.hardware.iter().map(fact).collect();
        Self { host, machine: id.unwrap_or_default(), hardware, cloned_from }
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once('=')?;
                (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
            })
        };
        let cloned_from = value("cloned_from").and_then(|text| text.parse().ok());
        let host = value("id")?.parse().ok()?;
        let hardware = value("hardware").unwrap_or_default();
        let hardware = hardware.split_ascii_whitespace().map(str::to_owned).collect();
        Some(Self { host, machine: value("machine").unwrap_or_default(), hardware, cloned_from })
    }

    /// The host as it is on `machine`: the same with what is new of it, or a clone.
    fn go_on(mut self, dir: &Path, machine: &Machine) -> Result<Self, StateError> {
        let now = Self::new(self.host, machine, self.cloned_from);
        if let Some(what) = self.differs(&now) {
            let clone = Self::new(HostId(random()?), machine, Some(self.host));
            log::warn!(
                "this disk was cloned from host {} ({what}): now host {}",
                self.host,
                clone.host
            );
            forget_identity(dir)?;
            clone.save(dir)?;
            return Ok(clone);
        }
        let before = self.clone();
        if !now.machine.is_empty() {
            self.machine = now.machine;
        }
        // What cannot be seen now, as by another user, is still believed.
        self.hardware.retain(|fact| !now.hardware.iter().any(|other| part(other) == part(fact)));
        self.hardware.extend(now.hardware);
        if self != before
            && let Err(why) = self.save(dir)
        {
            log::warn!("what is new of this machine is not kept: {why}");
        }
        Ok(self)
    }

    /// Why `now` is another machine, if it is one.
    fn differs(&self, now: &Self) -> Option<&'static str> {
        let both_known = !self.machine.is_empty() && !now.machine.is_empty();
        if both_known && self.machine != now.machine {
            return Some("another machine-id");
        }
        let any = |same: fn(&str, &str) -> bool| {
            now.hardware.iter().any(|fact| self.hardware.iter().any(|before| same(before, fact)))
        };
        let is_other = any(|a, b| part(a) == part(b)) && !any(|a, b| a == b);
        is_other.then_some("other hardware")
    }

    fn save(&self, dir: &Path) -> Result<(), StateError> {
        let cloned_from = self.cloned_from.map(|id| id.to_string()).unwrap_or_default();
        let text = format!(
            "id = \"{}\"\nmachine = \"{}\"\nhardware = \"{}\"\ncloned_from = \"{cloned_from}\"\n",
            self.host,
            self.machine,
            self.hardware.join(" ")
        );
        Ok(write_private(dir, HOST_FILE, text.as_bytes())?)
    }
}

/// Of what part a kept fact is.
fn part(fact: &str) -> Option<&str> {
    fact.split_once(':').map(|(part, _)| part)
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
fn digest(host: HostId, text: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(host.0.to_le_bytes());
    hash.update(text.as_bytes());
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
/// Of a digest; facts of one host are few.
const FACT_DIGITS: usize = 16;

#[cfg(test)]
mod tests;
