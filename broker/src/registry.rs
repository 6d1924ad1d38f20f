//! Who is known: hosts with what they said and when they were seen, the windows of what is stored of
//! them, enrolment tokens, and whose certificates are believed. All of it in memory; on disk in one
//! redb file.
//!
//! A token is on disk before it is given out and before it is honoured, and so is a revocation. Hosts and windows are
//! written together, now and then and before the log lets go of what they tell, so that a restart
//! knows every stored (host, boot, seq) from the two.

use crate::database;
use crate::managed::Managed;
use crate::tokens::{Entry, TokenError, TokenHash, Tokens};
use crate::trust::{Standing, Trust};
use crate::window::Window;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use rkyv::rancor::Failure;
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::message::{Hello, HostInfo};

/// The registry; clones share it.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
}

/// What the registry could not do.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// redb refused.
    #[error("cannot {doing} {}: {why}", path.display())]
    Database {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// redb's words.
        why: String,
    },
    /// A token is not good.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// The windows of one boot, as kept.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct BootRecord {
    boot: u128,
    through: u64,
    beyond: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// None after it failed, until it is opened again: redb refuses for good after one failure.
    database: Mutex<Option<Database>>,
    memory: Mutex<Memory>,
    /// `Release` behind a change of the memory, `Acquire` before a look at it.
    revocations: AtomicU64,
    managed: Managed,
}

#[derive(Debug, Default)]
struct Memory {
    hosts: BTreeMap<HostId, HostInfo>,
    tokens: Tokens,
    trust: Trust,
    /// Hosts whose record on disk is behind, and the same in the order in which they fell behind.
    dirty: BTreeSet<HostId>,
    behind: VecDeque<HostId>,
}

impl Registry {
    /// Opens or makes `registry.redb` in `dir`, and gives the windows kept there.
    ///
    /// # Errors
    /// The file cannot be opened or read.
    #[expect(clippy::type_complexity, reason = "said once, and taken apart at once")]
    pub fn open(dir: &Path) -> Result<(Self, Vec<(HostId, BootId, Window)>), RegistryError> {
        let path = dir.join("registry.redb");
        let fail = |doing, why: String| RegistryError::Database { doing, path: path.clone(), why };
        let database =
            database::open(&path, CACHE_BYTES).map_err(|e| fail("open", e.to_string()))?;
        let mut memory = Memory::default();
        let windows = load(&database, &mut memory).map_err(|e| fail("read", e.to_string()))?;
        let (memory, revocations) = (Mutex::new(memory), AtomicU64::new(0));
        let database = Mutex::new(Some(database));
        let managed = Managed::default();
        let shared = Shared { path, database, memory, revocations, managed };
        let shared = Arc::new(shared);
        Ok((Self { shared }, windows))
    }

    /// Writes all that is on disk into another file.
    ///
    /// # Errors
    /// One of the two cannot be read or written.
    pub(crate) fn copy_to(&self, path: &Path) -> Result<(), RegistryError> {
        let fail = |why: String| RegistryError::Database {
            doing: "copy the registry to",
            path: path.to_owned(),
            why,
        };
        self.with(|database| copy(database, path)).map_err(|why| fail(why.to_string()))
    }

    /// A host said hello.
    pub fn hello(&self, hello: &Hello, now_ms: i64) -> HostInfo {
        let id = HostId(hello.host);
        let mut memory = self.lock();
        memory.touch(id);
        let info = memory.hosts.entry(id).or_insert_with(|| HostInfo {
            first_seen_ms: now_ms,
            last_seen_ms: now_ms,
            ..HostInfo::default()
        });
        info.hello = hello.clone();
        info.connected = true;
        info.clone()
    }

    /// A host that an earlier life of this broker knew; what it says itself stands above that.
    pub fn restore(&self, info: HostInfo) {
        let id = HostId(info.hello.host);
        let mut memory = self.lock();
        memory.touch(id);
        match memory.hosts.get_mut(&id) {
            Some(known) => {
                known.first_seen_ms = known.first_seen_ms.min(info.first_seen_ms);
                known.last_seen_ms = known.last_seen_ms.max(info.last_seen_ms);
            }
            None => drop(memory.hosts.insert(id, info)),
        }
    }

    /// A frame of the host came.
    pub fn seen(&self, host: HostId, now_ms: i64) {
        let mut memory = self.lock();
        if let Some(info) = memory.hosts.get_mut(&host) {
            info.last_seen_ms = info.last_seen_ms.max(now_ms);
            memory.touch(host);
        }
    }

    /// The host's session is gone.
    pub fn gone(&self, host: HostId) -> Option<HostInfo> {
        let mut memory = self.lock();
        let info = memory.hosts.get_mut(&host)?;
        info.connected = false;
        Some(info.clone())
    }

    /// One host.
    #[must_use]
    pub fn host(&self, host: HostId) -> Option<HostInfo> {
        self.lock().hosts.get(&host).cloned()
    }

    /// Every host, by id.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostInfo> {
        self.lock().hosts.values().cloned().collect()
    }

    /// Hosts with a certificate that is good and who never said hello.
    #[must_use]
    pub fn enrolled(&self) -> Vec<HostId> {
        let memory = self.lock();
        let good = memory.trust.standings().filter(|(_, standing)| !standing.is_revoked());
        let ids = good.map(|(id, _)| id).filter(|id| id.0 != 0);
        ids.filter(|id| !memory.hosts.contains_key(id)).collect()
    }

    /// A certificate of the host ends then.
    pub fn certificate(&self, host: HostId, expires_s: u64) {
        let mut memory = self.lock();
        if memory.trust.note(host, expires_s) {
            memory.touch(host);
        }
    }

    /// How the host's certificates stand.
    #[must_use]
    pub fn standing(&self, host: HostId) -> Standing {
        self.lock().trust.of(host)
    }

    /// Whether a certificate of the host that ends then is refused.
    #[must_use]
    pub fn is_refused(&self, host: HostId, expires_s: u64) -> bool {
        self.lock().trust.is_refused(host, expires_s)
    }

    /// Refuses every certificate that the host has; that is on disk when this returns.
    ///
    /// # Errors
    /// It could not be written; until the next start it holds all the same.
    pub fn revoke(&self, host: HostId, now_s: u64, life_s: u64) -> Result<(), RegistryError> {
        let standing = self.lock().trust.revoke(host, now_s, life_s);
        self.shared.revocations.fetch_add(1, Ordering::Release);
        self.write(|tables| {
            tables.certificates.insert(host.0, (standing.expires_s, standing.refused_s))?;
            Ok(())
        })
    }

    /// Others revoked these, up to these ends; those that were not known are on disk when this returns.
    ///
    /// # Errors
    /// They could not be written; until the next start they hold all the same.
    pub fn refuse(&self, all: &[(HostId, u64)]) -> Result<(), RegistryError> {
        let mut memory = self.lock();
        let news: Vec<(HostId, Standing)> = all
            .iter()
            .filter_map(|&(host, refused_s)| Some((host, memory.trust.refuse(host, refused_s)?)))
            .collect();
        drop(memory);
        if news.is_empty() {
            return Ok(());
        }
        self.shared.revocations.fetch_add(1, Ordering::Release);
        self.write(|tables| {
            for (host, standing) in &news {
                tables.certificates.insert(host.0, (standing.expires_s, standing.refused_s))?;
            }
            Ok(())
        })
    }

    /// How many revocations there were in this life: whoever holds connections looks at them anew.
    #[must_use]
    pub fn revocations(&self) -> u64 {
        self.shared.revocations.load(Ordering::Acquire)
    }

    /// What its hosts run, and what they are asked.
    #[must_use]
    pub fn managed(&self) -> &Managed {
        &self.shared.managed
    }

    /// How many hosts changed since they were written.
    #[must_use]
    pub fn behind(&self) -> usize {
        self.lock().behind.len()
    }

    /// Writes these windows, and so many of the hosts that changed, those first that wait longest,
    /// in one transaction.
    ///
    /// # Errors
    /// Nothing of it was written.
    pub fn save(
        &self,
        windows: &[(HostId, Vec<BootRecord>)],
        hosts_max: usize,
    ) -> Result<(), RegistryError> {
        let mut memory = self.lock();
        let count = hosts_max.min(memory.behind.len());
        let taken: Vec<HostId> = memory.behind.drain(..count).collect();
        let mut hosts: Vec<(HostId, HostInfo)> = Vec::with_capacity(count);
        let mut standings: Vec<(HostId, Standing)> = Vec::with_capacity(count);
        for id in &taken {
            memory.dirty.remove(id);
            hosts.extend(memory.hosts.get(id).map(|info| (*id, info.clone())));
            standings.push((*id, memory.trust.of(*id)));
        }
        drop(memory);
        let written = self.write(|tables| {
            for (id, info) in &hosts {
                tables.hosts.insert(id.0, bytes_of(info).as_slice())?;
            }
            for (id, standing) in standings.iter().filter(|(_, of)| *of != Standing::default()) {
                tables.certificates.insert(id.0, (standing.expires_s, standing.refused_s))?;
            }
            for (id, boots) in windows {
                let bytes = rkyv::to_bytes::<Failure>(boots).unwrap_or_default();
                tables.windows.insert(id.0, bytes.as_slice())?;
            }
            Ok(())
        });
        if written.is_err() {
            let mut memory = self.lock();
            taken.into_iter().for_each(|id| memory.touch(id));
        }
        written
    }

    /// Keeps a token's hash until it expires.
    ///
    /// # Errors
    /// The list is full, the lifetime out of bounds, or it cannot be written.
    pub fn issue_token(
        &self,
        secret: &[u8],
        lifetime_ms: u64,
        now_ms: i64,
    ) -> Result<(), RegistryError> {
        let hash = TokenHash::of(secret);
        let mut memory = self.lock();
        let gone = memory.tokens.expire(now_ms);
        let entry = memory.tokens.issue(hash, lifetime_ms, now_ms)?;
        drop(memory);
        self.write(|tables| {
            for old in &gone {
                tables.tokens.remove(old.0)?;
            }
            tables.tokens.insert(hash.0, (entry.expires_ms, entry.used_ms))?;
            Ok(())
        })
    }

    /// Whether a token was made here, good or not.
    #[must_use]
    pub fn knows_token(&self, secret: &[u8]) -> bool {
        self.lock().tokens.knows(TokenHash::of(secret))
    }

    /// Whether a token that was made here could be used now.
    #[must_use]
    pub fn is_good_token(&self, secret: &[u8], now_ms: i64) -> bool {
        self.lock().tokens.is_good(TokenHash::of(secret), now_ms)
    }

    /// Uses a token up; that is on disk when this returns.
    ///
    /// # Errors
    /// Why it is not good, or it could not be written (it is used up all the same).
    pub fn redeem_token(&self, secret: &[u8], now_ms: i64) -> Result<(), RegistryError> {
        let hash = TokenHash::of(secret);
        let entry = self.lock().tokens.redeem(hash, now_ms)?;
        self.write(|tables| {
            tables.tokens.insert(hash.0, (entry.expires_ms, entry.used_ms))?;
            Ok(())
        })
    }

    fn write(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::StorageError>,
    ) -> Result<(), RegistryError> {
        let run = |database: &Database| -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            change(&mut Tables {
                hosts: transaction.open_table(HOSTS)?,
                windows: transaction.open_table(WINDOWS)?,
                tokens: transaction.open_table(TOKENS)?,
                certificates: transaction.open_table(CERTIFICATES)?,
            })?;
            transaction.commit()?;
            Ok(())
        };
        self.with(run).map_err(|why| RegistryError::Database {
            doing: "write",
            path: self.shared.path.clone(),
            why: why.to_string(),
        })
    }

    /// With the database; one that failed before is written anew and opened again.
    fn with(
        &self,
        act: impl FnOnce(&Database) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let path = &self.shared.path;
        let mut kept = self.shared.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match kept.take() {
            Some(database) => database,
            None => {
                database::renew(path)?;
                let database = database::open(path, CACHE_BYTES)?;
                log::info!("{}: it failed, and is written to again", path.display());
                database
            }
        };
        act(&database)?;
        *kept = Some(database);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one transaction may change.
struct Tables<'a> {
    hosts: redb::Table<'a, u128, &'static [u8]>,
    windows: redb::Table<'a, u128, &'static [u8]>,
    tokens: redb::Table<'a, [u8; 32], (i64, i64)>,
    /// Of each host, as [`Standing`]: the last end there was, and up to which end they are refused.
    certificates: redb::Table<'a, u128, (u64, u64)>,
}

impl Memory {
    fn touch(&mut self, id: HostId) {
        if self.dirty.insert(id) {
            self.behind.push_back(id);
        }
    }
}

impl BootRecord {
    /// Of a window.
    #[must_use]
    pub fn of(boot: BootId, window: &Window) -> Self {
        let (through, beyond) = window.to_parts();
        Self { boot: boot.0, through, beyond }
    }
}

fn load(
    database: &Database,
    memory: &mut Memory,
) -> Result<Vec<(HostId, BootId, Window)>, redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(HOSTS)?;
    transaction.open_table(WINDOWS)?;
    transaction.open_table(TOKENS)?;
    transaction.open_table(CERTIFICATES)?;
    transaction.commit()?;
    let transaction = database.begin_read()?;
    for entry in transaction.open_table(HOSTS)?.iter()? {
        let (id, bytes) = entry?;
        if let Ok(info) = rkyv::from_bytes::<HostInfo, Failure>(bytes.value()) {
            memory.hosts.insert(HostId(id.value()), HostInfo { connected: false, ..info });
        }
    }
    for entry in transaction.open_table(TOKENS)?.iter()? {
        let (hash, entry) = entry?;
        let (expires_ms, used_ms) = entry.value();
        memory.tokens.load(TokenHash(hash.value()), Entry { expires_ms, used_ms });
    }
    for entry in transaction.open_table(CERTIFICATES)?.iter()? {
        let (id, standing) = entry?;
        let (expires_s, refused_s) = standing.value();
        memory.trust.load(HostId(id.value()), Standing { expires_s, refused_s });
    }
    let mut windows = Vec::new();
    for entry in transaction.open_table(WINDOWS)?.iter()? {
        let (id, bytes) = entry?;
        let boots = rkyv::from_bytes::<Vec<BootRecord>, Failure>(bytes.value());
        for record in boots.unwrap_or_default() {
            let window = Window::from_parts(record.through, &record.beyond);
            windows.push((HostId(id.value()), BootId(record.boot), window));
        }
    }
    Ok(windows)
}

fn bytes_of(info: &HostInfo) -> Vec<u8> {
    rkyv::to_bytes::<Failure>(info).map(|b| b.to_vec()).unwrap_or_default()
}

fn copy(from: &Database, path: &Path) -> Result<(), redb::Error> {
    let to = Database::create(path)?;
    let (from, to) = (from.begin_read()?, to.begin_write()?);
    for table in [HOSTS, WINDOWS] {
        let mut copied = to.open_table(table)?;
        for row in from.open_table(table)?.iter()? {
            let (key, value) = row?;
            copied.insert(key.value(), value.value())?;
        }
    }
    let mut tokens = to.open_table(TOKENS)?;
    for row in from.open_table(TOKENS)?.iter()? {
        let (key, value) = row?;
        tokens.insert(key.value(), value.value())?;
    }
    let mut certificates = to.open_table(CERTIFICATES)?;
    for row in from.open_table(CERTIFICATES)?.iter()? {
        let (key, value) = row?;
        certificates.insert(key.value(), value.value())?;
    }
    drop((tokens, certificates));
    to.commit()?;
    Ok(())
}

/// Of redb's pages; what is asked for often is in memory by itself.
const CACHE_BYTES: usize = 16 << 20;
const HOSTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("hosts");
const WINDOWS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("windows");
const TOKENS: TableDefinition<'_, [u8; 32], (i64, i64)> = TableDefinition::new("tokens");
const CERTIFICATES: TableDefinition<'_, u128, (u64, u64)> = TableDefinition::new("certificates");

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("strobe-reg-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_replayed_token_is_refused_after_a_restart_too() {
        let dir = dir("token");
        let (registry, _) = Registry::open(&dir).unwrap();
        registry.issue_token(b"one", 60_000, 1_000).unwrap();
        registry.issue_token(b"two", 60_000, 1_000).unwrap();
        registry.redeem_token(b"one", 2_000).unwrap();
        drop(registry);
        let (registry, _) = Registry::open(&dir).unwrap();
        let said = |secret: &[u8], now_ms| registry.redeem_token(secret, now_ms).unwrap_err();
        assert!(matches!(said(b"one", 3_000), RegistryError::Token(TokenError::Used)));
        assert!(matches!(said(b"two", 61_000), RegistryError::Token(TokenError::Expired)));
        assert!(matches!(said(b"three", 3_000), RegistryError::Token(TokenError::Unknown)));
        assert!(registry.redeem_token(b"two", 3_000).is_ok());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn hosts_and_windows_come_back() {
        let dir = dir("hosts");
        let (registry, _) = Registry::open(&dir).unwrap();
        let hello = Hello { host: 7, instance: "a".into(), interval_ms: 1000, ..Hello::default() };
        registry.hello(&hello, 5_000);
        registry.seen(HostId(7), 9_000);
        let mut window = Window::default();
        window.admit(1);
        window.admit(3);
        registry.save(&[(HostId(7), vec![BootRecord::of(BootId(2), &window)])], 1).unwrap();
        drop(registry);
        let (registry, windows) = Registry::open(&dir).unwrap();
        assert_eq!(windows, [(HostId(7), BootId(2), window)]);
        let info = registry.host(HostId(7)).unwrap();
        assert_eq!((info.first_seen_ms, info.last_seen_ms, info.connected), (5_000, 9_000, false));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_revocation_is_kept() {
        let dir = dir("revoked");
        let (registry, _) = Registry::open(&dir).unwrap();
        registry.certificate(HostId(7), 500);
        registry.certificate(HostId(8), 500);
        registry.revoke(HostId(7), 100, 50).unwrap();
        registry.save(&[], 9).unwrap();
        drop(registry);
        let (registry, _) = Registry::open(&dir).unwrap();
        assert!(registry.is_refused(HostId(7), 500) && !registry.is_refused(HostId(7), 501));
        assert_eq!(registry.standing(HostId(8)), Standing { expires_s: 500, refused_s: 0 });
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// A slice at a time, whoever changes again goes to the end: nobody waits for ever.
    #[test]
    fn hosts_are_written_in_the_order_in_which_they_fell_behind() {
        let dir = dir("slices");
        let (registry, _) = Registry::open(&dir).unwrap();
        for host in [3, 1, 2] {
            registry.hello(&Hello { host, ..Hello::default() }, 5_000);
        }
        for _ in 0..3 {
            registry.save(&[], 1).unwrap();
            // These two are behind again at once.
            registry.seen(HostId(2), 9_000);
            registry.seen(HostId(3), 9_000);
        }
        assert_eq!(registry.behind(), 2);
        drop(registry);
        let (registry, _) = Registry::open(&dir).unwrap();
        let known: Vec<HostId> = registry.hosts().iter().map(|i| HostId(i.hello.host)).collect();
        assert_eq!(known, [HostId(1), HostId(2), HostId(3)]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
