//! A broker's hot settings: the real state machine that puts a version in force, and what is looked at.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;
use strobe_broker::Config;
use strobe_broker::cluster::{Desired, Order};
use strobe_broker::config::{Hot, KEYS};
use strobe_broker::managed::Running;
use strobe_broker::store::{Store, StoreConfig};
use strobe_broker::tune::{Tuned, Tuner, retune, tried};
use strobe_wire::fleet::Document;
use strobe_wire::settings::Settings;

/// Of one life of a broker.
pub(crate) struct Tuning {
    config: Config,
    store: Store,
    tuned: Tuned,
    tuner: Tuner,
    /// A planted bug: one of the limits stays.
    pub(crate) halves: bool,
    /// The version that was looked at last.
    looked: u64,
}

impl Tuning {
    pub(crate) fn new(store: &Store, (me, agreed): (u64, SyncSender<Order>)) -> Self {
        let settings = ["--dir".to_owned(), "/nowhere".to_owned()];
        let settings = Settings::load(KEYS, None, &|_| None, &settings).expect("good settings");
        let config = Config::of(&settings, None, false).expect("good settings");
        let tuned = Tuned::new(&config);
        let mut tuner = Tuner::new(&config, store, &tuned);
        tuner.set_agreed(me, agreed);
        Self { config, store: store.clone(), tuned, tuner, halves: false, looked: 0 }
    }

    pub(crate) fn on_desired(&mut self, now: Instant, desired: &Arc<Desired>) {
        let before = self.tuned.hot();
        self.tuner.on_desired(now, desired);
        if self.halves {
            self.store.retune(|config| config.head_bytes_max = before.head_bytes_max);
        }
    }

    pub(crate) fn on_timeout(&mut self, now: Instant, storing: bool) {
        self.tuner.on_timeout(now, storing);
    }

    pub(crate) fn running(&self) -> Running {
        self.tuned.running()
    }

    /// The version that it runs, if that is news.
    pub(crate) fn news(&mut self) -> Option<u64> {
        let version = self.running().version;
        (std::mem::replace(&mut self.looked, version) != version).then_some(version)
    }

    /// What holds here is what this text says, whole, wherever it is looked at.
    pub(crate) fn look(&self, id: u64, text: &str) {
        let document = Document::read(text).expect("it was read before");
        let version = self.looked;
        let wanted = tried(&self.config, version, &document.of_brokers());
        let (hot, _) = wanted.expect("nobody runs what nobody can");
        assert_eq!(self.tuned.hot(), hot, "broker {id} runs half of version {version}");
        let mut held = StoreConfig::at("/nowhere".into());
        self.store.retune(|config| held = config.clone());
        let mut whole = held.clone();
        retune(&mut whole, &hot);
        // As long as no version said anything of brokers, the store has the run's own limits.
        let own = hot == self.own();
        assert!(own || held == whole, "the store of broker {id} has half of version {version}");
    }

    fn own(&self) -> Hot {
        self.config.hot
    }
}
