//! The Redis of a broker: from its configuration, or given to it while it runs.

use super::Broker;
use super::clock::{monotonic, wall_ms};
use super::loops::{log_loop, mirror_loop, spawn};
use crate::config::{self, Config, StoreChoice};
use crate::registry::Registry;
use crate::store::redis::{self, Attached, Epochs, Import, Mirror, RedisConfig, RedisError};
use crate::store::{Recovery, Store, Writer};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};

/// What was acknowledged before the directory was lost.
pub(super) fn restore(
    config: &Config,
    writer: &mut Writer,
    recovery: &mut Recovery,
    now_ms: i64,
) -> Result<(), RedisError> {
    if config.store != StoreChoice::Redis {
        return Ok(());
    }
    let records = match redis::restore(&config.redis, writer, recovery, now_ms) {
        Err(RedisError::Restore { .. }) if !config.hot.durability.is_copied() => {
            // Of some hosts the fleet's configuration may say otherwise, which was lost as well. Who
            // mirrors says what is the matter with Redis.
            log::warn!("what Redis may have of a lost log is taken in by the next start");
            return Ok(());
        }
        done => done?,
    };
    if 0 < records {
        log::info!("{records} records of the log were taken from Redis");
    }
    Ok(())
}

/// The mirror that the settings want, or that this directory was given in an earlier life.
pub(super) fn mirror(
    config: &Config,
    store: &Store,
    registry: &Registry,
    (stopping, epochs): (&Arc<AtomicBool>, &Arc<Epochs>),
    now_ms: i64,
) -> Result<Option<Mirror>, RedisError> {
    let given = Attached::load(&config.dir)?;
    let (url, import) = match (config.store, given) {
        (StoreChoice::Redis, given) => {
            let url = config.redis.url.clone();
            // Another one than was given: all goes there.
            let same = given.filter(|given| given.url == url);
            (url, same.map_or_else(Import::default, |given| given.import))
        }
        (StoreChoice::Local, Some(Attached { url, import })) => (url, import),
        (StoreChoice::Local, None) => return Ok(None),
    };
    let (registry, stopping) = (Some(registry.clone()), Arc::clone(stopping));
    let parts = redis::Parts { store, registry, stopping, now_ms, clock: monotonic };
    let mirror = Mirror::new(RedisConfig { url, ..config.redis.clone() }, parts)?;
    Ok(Some(mirror.attached(import, epochs)))
}

impl Broker {
    /// Whether a Redis can be given to this broker, which has to answer now.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn may_attach(&self, url: &str) -> Result<(), String> {
        let shared = &self.shared;
        let wanted = config::store(url).map_err(|why| format!("{url:?} is no Redis: {why}"))?;
        if wanted.is_none() {
            return Err("a Redis is wanted: --store redis://HOST:PORT or the like".to_owned());
        }
        if shared.mirror.get().is_some() {
            return Err("this broker has a Redis already (broker.store, or `shared-store` in its \
                        state directory); it is changed with broker.store and a restart"
                .to_owned());
        }
        let config = RedisConfig { url: url.to_owned(), ..shared.config.redis.clone() };
        redis::reach(&config).map_err(|why| why.to_string())
    }

    /// What was there before this very Redis was given, and stayed, goes there now; nothing if it has none.
    fn import_later(&self, url: &str) -> Result<Option<String>, String> {
        let shared = &self.shared;
        let given = Attached::load(&shared.config.dir).map_err(|why| why.to_string())?;
        let configured = match shared.config.store {
            StoreChoice::Redis => Some(shared.config.redis.url.as_str()),
            StoreChoice::Local => None,
        };
        let same = given
            .filter(|given| given.url == url && configured.is_none_or(|runs| runs == given.url));
        let Some((mirror, Attached { import, .. })) = shared.mirror.get().zip(same) else {
            return Ok(None);
        };
        let attached = Attached { url: url.to_owned(), import: Import { wanted: true, ..import } };
        attached.save(&shared.config.dir).map_err(|why| why.to_string())?;
        mirror.lock().unwrap_or_else(PoisonError::into_inner).import_wanted = true;
        log::warn!("what was here before Redis was goes there too from now on");
        Ok(Some(
            "This broker has that Redis already; what was here before it goes there too, in the background: \
             `strobe cluster doctor` and strobe_broker_redis_import_segments say how far."
                .to_owned(),
        ))
    }

    /// Gives it a Redis, while it runs. What is sealed from now on goes there, and what was before if
    /// `import` says so; after a restart too.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn attach(&self, url: &str, import: bool) -> Result<String, String> {
        if import && let Some(said) = self.import_later(url)? {
            return Ok(said);
        }
        self.may_attach(url)?;
        let shared = &self.shared;
        let config = RedisConfig { url: url.to_owned(), ..shared.config.redis.clone() };
        let (until, segments) = shared.store.newest_segment();
        let import = Import { until, wanted: import };
        let attached = Attached { url: url.to_owned(), import };
        let (stopping, now_ms) = (Arc::clone(&shared.stopping), wall_ms());
        let registry = Some(shared.registry.clone());
        let parts = redis::Parts {
            store: &shared.store,
            registry,
            stopping: Arc::clone(&stopping),
            now_ms,
            clock: monotonic,
        };
        let mirror = Mirror::new(config, parts).map_err(|why| why.to_string())?;
        let mirror = mirror.attached(import, &shared.epochs);
        let log = mirror.log(shared.confirmed.clone());
        if shared.mirror.set(mirror.counts()).is_err() {
            return Err("this broker was given a Redis just now".to_owned());
        }
        attached.save(&shared.config.dir).map_err(|why| why.to_string())?;
        let stop = Arc::clone(&stopping);
        let thread = spawn("strobe-redis", move || mirror_loop(mirror, &stopping));
        self.threads().others.push(thread.map_err(|why| why.to_string())?);
        let thread = spawn("strobe-log", move || log_loop(log, &stop));
        self.threads().others.push(thread.map_err(|why| why.to_string())?);
        log::warn!("this broker writes to a Redis from now on");
        Ok(match (segments, import.wanted) {
            (0, _) => "Everything that this broker has stored goes to Redis.".to_owned(),
            (count, true) => format!(
                "What is sealed from now on goes to Redis, and {count} older segments in the background: \
                 `strobe cluster doctor` and strobe_broker_redis_import_segments say how far."
            ),
            (count, false) => format!(
                "What is sealed from now on goes to Redis; {count} older segments stay here (--import would \
                 move them)."
            ),
        })
    }
}
