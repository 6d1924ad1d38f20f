//! What lies on the disks of a cluster's brokers, against what agents were told.

use super::{Broker, Cluster};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use strobe_broker::store::{
    Limits, MatchOp, Matcher, Scratch, Seen, Store, StoreConfig, TimeRange,
};
use strobe_wire::ids::HostId;
use strobe_wire::schema::Labels;

impl Broker {
    /// Files of the log are removed once their rows are sealed; the judge wants to see them all the same.
    pub(super) fn keep_logs(&self) {
        let kept = self.folder.path().join(KEPT);
        std::fs::create_dir_all(&kept).expect("a folder");
        link_logs(&self.folder.path().join(LOG), &kept);
    }

    /// Every frame that is in a file of its log, or was.
    fn stored(&self) -> Vec<Seen> {
        link_logs(&self.folder.path().join(KEPT), &self.folder.path().join(LOG));
        let config = StoreConfig::at(self.folder.path().join("store"));
        let (_, _, recovery) = Store::open(config, 0).expect("it opens");
        assert_eq!(recovery.damage, Vec::<String>::new());
        recovery.seen
    }

    /// Every moment at which a host has this series, by its store alone.
    fn moments(&self, metric: &str) -> BTreeMap<String, BTreeSet<i64>> {
        let config = StoreConfig::at(self.folder.path().join("store"));
        let (store, _writer, _) = Store::open(config, 0).expect("it opens");
        let range = TimeRange { start_ms: 0, end_ms: i64::MAX };
        let limits = Limits { series_max: 10_000, samples_max: 10_000_000 };
        let (name, value) = ("__name__".to_owned(), metric.to_owned());
        let matcher = Matcher { name, op: MatchOp::Equal, value };
        let (mut scratch, mut all) = (Scratch::new(&limits), BTreeMap::new());
        for part in store.select(&[matcher], range, &limits).expect("it can be read") {
            let visit = &mut |labels: &Labels, times: &[i64], _: &[f64]| {
                let host = labels.value("instance").expect("a host's").to_owned();
                all.entry(host).or_insert_with(BTreeSet::new).extend(times);
                Ok(())
            };
            store.scan(&part, range, &mut scratch, visit).expect("it can be read");
        }
        all
    }
}

impl Cluster {
    /// How many moments each host has this series at, in all brokers' stores; they do not run.
    pub(crate) fn moments(&self, metric: &str) -> BTreeMap<String, u64> {
        let all = self.all_moments(metric);
        all.into_iter().map(|(host, moments)| (host, moments.len() as u64)).collect()
    }

    /// Of each host, when it was seen, by all stores.
    pub(crate) fn all_moments(&self, metric: &str) -> BTreeMap<String, BTreeSet<i64>> {
        let mut all: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
        for (host, moments) in self.brokers.iter().flat_map(|broker| broker.moments(metric)) {
            all.entry(host).or_default().extend(moments);
        }
        all
    }

    /// Of every host, each frame that was acknowledged is in the log of a broker; those that are in two
    /// were on their way when one of them was killed. How many there are of both.
    pub(crate) fn assert_stored(&self, acknowledged: &BTreeMap<HostId, u64>) -> (u64, usize) {
        let mut held: BTreeMap<HostId, BTreeMap<u64, usize>> = BTreeMap::new();
        for broker in &self.brokers {
            for seen in broker.stored() {
                let host = held.entry(seen.host).or_default();
                let frames = seen.ranges.iter().flat_map(|&(first, last)| first..=last);
                frames.for_each(|seq| *host.entry(seq).or_default() += 1);
            }
        }
        let (mut all, mut twice) = (0, 0);
        for (host, &through) in acknowledged {
            let held = held.get(host).unwrap_or_else(|| panic!("nothing of {host} is stored"));
            let missing: Vec<u64> = (1..=through).filter(|seq| !held.contains_key(seq)).collect();
            assert!(missing.is_empty(), "{host}: acknowledged and not stored: {missing:?}");
            all += through;
            twice += held.values().filter(|count| 1 < **count).count();
        }
        (all, twice)
    }
}

/// Links the files of one folder's log into another, where they are not.
fn link_logs(from: &Path, to: &Path) {
    for log in std::fs::read_dir(from).expect("a folder").flatten() {
        let log = log.path();
        if log.extension().is_some_and(|extension| extension == "log") {
            // It is there already, or it was removed meanwhile, and then it is there too.
            drop(std::fs::hard_link(&log, to.join(log.file_name().expect("a file"))));
        }
    }
}

const LOG: &str = "store/wal";
const KEPT: &str = "kept";
