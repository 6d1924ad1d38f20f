//! The broker's own part of the fleet's configuration: what may change while it runs.
//!
//! A state machine of the network loop: it hears what is desired, puts it in force here, and where this
//! broker is the canary says after `PROVE` whether it still stores.

use crate::class::{Classes, Durability, NO_REDIS};
use crate::cluster::{Canary, Desired, Order};
use crate::config::{Config, Hot};
use crate::managed::Running;
use crate::query::Limits;
use crate::store::{Store, StoreConfig};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use strobe_wire::fleet::{DURABILITY, Scope};

/// What is in force here, for whoever asks; clones share it.
#[derive(Clone, Debug)]
pub struct Tuned {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    running: Running,
    hot: Hot,
    classes: Arc<Classes>,
    desired: Arc<Desired>,
    me: u64,
}

/// Puts it in force.
#[derive(Debug)]
pub struct Tuner {
    config: Config,
    store: Store,
    tuned: Tuned,
    /// This broker's number and to whom verdicts go; 0 in no cluster.
    me: u64,
    agreed: Option<SyncSender<Order>>,
    trial: Option<Trial>,
}

#[derive(Debug)]
struct Trial {
    number: u64,
    refused: Option<String>,
    say_at: Instant,
}

impl Tuned {
    /// As the broker's own settings have it.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let running = Running { managed: true, proven: true, ..Running::default() };
        let classes = Arc::new(Classes::all(config.hot.durability));
        let inner = Inner { running, hot: config.hot, classes, desired: Arc::default(), me: 0 };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The limits that hold here.
    #[must_use]
    pub fn hot(&self) -> Hot {
        self.lock().hot
    }

    /// What acknowledgements are worth here.
    #[must_use]
    pub fn classes(&self) -> Arc<Classes> {
        Arc::clone(&self.lock().classes)
    }

    /// Which version this broker runs.
    #[must_use]
    pub fn running(&self) -> Running {
        self.lock().running.clone()
    }

    /// What hosts and brokers are to run.
    #[must_use]
    pub fn desired(&self) -> Arc<Desired> {
        Arc::clone(&self.lock().desired)
    }

    /// Which broker this is; 0 in no cluster.
    #[must_use]
    pub fn me(&self) -> u64 {
        self.lock().me
    }

    /// What one query may use.
    pub(crate) fn limits(&self) -> Limits {
        let hot = self.lock().hot;
        Limits {
            time_ms_max: hot.query_ms_max,
            samples_max: hot.query_samples_max,
            ..Limits::usual()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What these values would make of a broker's settings.
///
/// # Errors
/// The first that is wrong.
pub fn tried(
    config: &Config,
    version: u64,
    values: &[(String, String)],
) -> Result<(Hot, Vec<String>), String> {
    let (settings, stayed) = config.settings.with_fleet(version, values, &config.locked);
    Hot::of(&settings).map(|hot| (hot, stayed)).map_err(|why| why.to_string())
}

/// What acknowledgements are worth by these limits, and by what is said of some hosts.
///
/// # Errors
/// A Redis is wanted for it, and there is none.
pub fn classes(
    config: &Config,
    hot: &Hot,
    promises: &[(Scope, String)],
    has_redis: bool,
) -> Result<Classes, String> {
    let mut classes = Classes::all(hot.durability);
    if !config.locked.iter().any(|lock| lock == "*" || lock == DURABILITY) {
        for (scope, text) in promises {
            classes.some.push((scope.clone(), text.parse::<Durability>()?));
        }
    }
    if classes.any_is_copied() && !has_redis {
        return Err(NO_REDIS.to_owned());
    }
    Ok(classes)
}

/// Puts limits into a store's.
pub fn retune(config: &mut StoreConfig, hot: &Hot) {
    config.raw_retention_ms = hot.raw_retention_ms;
    config.minute_retention_ms = hot.minute_retention_ms;
    config.hour_retention_ms = hot.hour_retention_ms;
    config.bytes_max = hot.bytes_max;
    config.free_bytes_min = hot.free_bytes_min;
    config.head_bytes_max = hot.head_bytes_max;
}

/// A store's, to begin with.
#[must_use]
pub fn store_config(config: &Config) -> StoreConfig {
    let mut store = StoreConfig::at(config.dir.join("store"));
    retune(&mut store, &config.hot);
    store
}

impl Tuner {
    /// Of the store whose limits they are.
    #[must_use]
    pub fn new(config: &Config, store: &Store, tuned: &Tuned) -> Self {
        let (config, store, tuned) = (config.clone(), store.clone(), tuned.clone());
        Self { config, store, tuned, me: 0, agreed: None, trial: None }
    }

    /// Where what is agreed on goes, and which broker this is there.
    pub fn set_agreed(&mut self, me: u64, agreed: SyncSender<Order>) {
        (self.me, self.agreed) = (me, Some(agreed));
    }

    /// What acknowledgements are worth here.
    #[must_use]
    pub fn classes(&self) -> Arc<Classes> {
        self.tuned.classes()
    }

    /// Other versions are in force or on trial.
    pub fn on_desired(&mut self, now: Instant, desired: &Arc<Desired>) {
        let mut inner = self.tuned.lock();
        (inner.desired, inner.me) = (Arc::clone(desired), self.me);
        let Some((version, values)) = desired.of_broker(self.me) else { return };
        let tried = tried(&self.config, version, &values).and_then(|(hot, stayed)| {
            let promises = desired.promises(self.me);
            let classes = classes(&self.config, &hot, &promises, self.store.has_redis())?;
            Ok((hot, stayed, classes))
        });
        let refused = match tried {
            Ok((hot, stayed, classes)) => {
                inner.classes = Arc::new(classes);
                if inner.hot != hot {
                    log::info!("version {version} of the configuration changes limits here");
                    self.store.retune(|config| retune(config, &hot));
                }
                let locked = stayed.join(",");
                let proven = true;
                inner.running =
                    Running { managed: true, version, proven, locked, ..Running::default() };
                inner.hot = hot;
                None
            }
            Err(why) => {
                log::error!("version {version} of the configuration is not put in force: {why}");
                (inner.running.refused, inner.running.why) = (version, why.clone());
                Some(why)
            }
        };
        drop(inner);
        let mine = desired.trial() == Some((version, Canary::Broker(self.me)));
        if !mine {
            self.trial = None;
        } else if self.trial.as_ref().is_none_or(|trial| trial.number != version) {
            let say_at = if refused.is_some() { now } else { now + PROVE };
            self.trial = Some(Trial { number: version, refused, say_at });
        }
    }

    /// Says what became of a trial, until it is over.
    pub fn on_timeout(&mut self, now: Instant, storing: bool) {
        let Some(trial) = self.trial.as_mut().filter(|trial| trial.say_at <= now) else { return };
        trial.say_at = now + SAY_AGAIN;
        let outcome = match &trial.refused {
            Some(why) => Err(format!("broker {} refused it: {why}", self.me)),
            None if !storing => Err(format!("broker {} stores nothing any more", self.me)),
            None => Ok(format!("broker {} runs it well", self.me)),
        };
        if let Some(agreed) = &self.agreed {
            drop(agreed.try_send(Order::Verdict(trial.number, outcome)));
        }
    }
}

/// Whether it stores shows with its next rows.
const PROVE: Duration = Duration::from_secs(5);
const SAY_AGAIN: Duration = Duration::from_secs(1);
