//! The judge of tests with real processes: what was acknowledged is stored, and what is stored is answered,
//! once.

use super::{Agents, Cluster};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use strobe_broker::store::{Limits, MatchOp, Matcher, Scratch, Store, StoreConfig, TimeRange};
use strobe_journal::{Damage, Journal};
use strobe_tests::wait;
use strobe_wire::frame::{self, Payload};
use strobe_wire::ids::HostId;
use strobe_wire::schema::Labels;

/// A broker's directory.
struct Files<'a>(&'a Path);

impl Files<'_> {
    /// Files of the log are removed once their rows are sealed; the judge wants to see them all the same.
    fn keep_logs(&self) {
        let kept = self.0.join(KEPT);
        std::fs::create_dir_all(&kept).expect("a folder");
        link_logs(&self.0.join(LOG), &kept);
    }

    /// Every frame that is in a file of its log, or was.
    fn stored(&self) -> BTreeMap<HostId, Vec<u64>> {
        link_logs(&self.0.join(KEPT), &self.0.join(LOG));
        let (numbers, damage) = numbers(self.0);
        assert_eq!(damage, vec![]);
        numbers
    }

    /// Every moment at which a host has this series, by its store alone.
    fn moments(&self, metric: &str) -> BTreeMap<String, BTreeSet<i64>> {
        let config = StoreConfig::at(self.0.join("store"));
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
    /// The end of a test that hurt somebody: every broker answers for all of them, and answers what lies
    /// in their stores, each row once; and every frame that an agent was acknowledged is in a log.
    pub(crate) fn judge(self, agents: Agents) -> String {
        self.judge_with(agents, &[], || {})
    }

    /// The same of a cluster with brokers beside these, of which `end` ends them.
    pub(crate) fn judge_with(
        mut self,
        agents: Agents,
        beside: &[&Path],
        end: impl FnOnce(),
    ) -> String {
        self.keep_logs();
        beside.iter().for_each(|dir| Files(dir).keep_logs());
        let acknowledged = agents.stop();
        let count = "count_over_time(node_load1{instance=~\"host.*\"}[1h])";
        let all = 0..self.brokers.len();
        wait("every broker is connected to every other one", 20, || {
            all.clone().all(|at| self.query(at, count).1.is_empty())
        });
        let counted: Vec<_> = all.map(|at| self.query(at, count).0).collect();
        end();
        self.stop();
        let mut stored = self.moments_with("node_load1", beside);
        stored.retain(|host, _| host.starts_with("host"));
        assert_eq!(stored.len(), acknowledged.len());
        for (at, counted) in counted.iter().enumerate() {
            assert_eq!(*counted, stored, "as broker {} answers", at + 1);
        }
        let (all, twice) = self.assert_stored_with(&acknowledged, beside);
        format!("{all} frames were acknowledged, none is lost; {twice} are in two brokers' logs")
    }

    fn files<'a>(&'a self, beside: &[&'a Path]) -> Vec<Files<'a>> {
        let own = self.brokers.iter().map(|broker| Files(broker.folder.path()));
        own.chain(beside.iter().map(|dir| Files(dir))).collect()
    }

    /// How many moments each host has this series at, in all brokers' stores; they do not run.
    pub(crate) fn moments(&self, metric: &str) -> BTreeMap<String, u64> {
        self.moments_with(metric, &[])
    }

    fn moments_with(&self, metric: &str, beside: &[&Path]) -> BTreeMap<String, u64> {
        let all = self.moments_of(metric, beside);
        all.into_iter().map(|(host, moments)| (host, moments.len() as u64)).collect()
    }

    /// Of each host, when it was seen, by all stores.
    pub(crate) fn all_moments(&self, metric: &str) -> BTreeMap<String, BTreeSet<i64>> {
        self.moments_of(metric, &[])
    }

    fn moments_of(&self, metric: &str, beside: &[&Path]) -> BTreeMap<String, BTreeSet<i64>> {
        let mut all: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
        for (host, moments) in self.files(beside).iter().flat_map(|files| files.moments(metric)) {
            all.entry(host).or_default().extend(moments);
        }
        all
    }

    /// To be called more often than logs are sealed, which is every ten minutes.
    pub(crate) fn keep_logs(&self) {
        self.files(&[]).iter().for_each(Files::keep_logs);
    }

    /// Of every host, each frame that was acknowledged is in the log of a broker; those that are in two
    /// were on their way when one of them was killed. How many there are of both.
    pub(crate) fn assert_stored(&self, acknowledged: &BTreeMap<HostId, u64>) -> (u64, usize) {
        self.assert_stored_with(acknowledged, &[])
    }

    fn assert_stored_with(
        &self,
        acknowledged: &BTreeMap<HostId, u64>,
        beside: &[&Path],
    ) -> (u64, usize) {
        let mut held: BTreeMap<HostId, BTreeMap<u64, usize>> = BTreeMap::new();
        for files in self.files(beside) {
            for (host, numbers) in files.stored() {
                let host = held.entry(host).or_default();
                numbers.into_iter().for_each(|seq| *host.entry(seq).or_default() += 1);
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

/// The numbers of each host's frames that are in a broker's log, and what of it cannot be read. What an agent told
/// as lost, or came out of time, is as good as stored. What a broker was never sent is not: it tells that as lost
/// too, and knows it from then on, so a store that is opened says of it what it says of frames.
pub(crate) fn numbers(dir: &Path) -> (BTreeMap<HostId, Vec<u64>>, Vec<Damage>) {
    let mut held: BTreeMap<HostId, Vec<u64>> = BTreeMap::new();
    let visit = &mut |_: u64, record: &[u8]| {
        let Some((kind, bytes)) = record.split_first() else { return };
        if kind & OF_ANY_CLASS != FRAME {
            return;
        }
        let frame = frame::open(bytes).expect("a frame of the log opens");
        let (host, seq) = (frame.header.host, frame.header.seq.0);
        let numbers = held.entry(host).or_default();
        match frame.payload {
            Payload::Loss(loss) if loss.reason.as_str() == "skipped" => {}
            Payload::Loss(loss) => {
                let (first, last) = (loss.first.to_native(), loss.last.to_native());
                numbers.extend(first..=last);
                numbers.extend((last < seq).then_some(seq));
            }
            Payload::Row(_) | Payload::Event(_) | Payload::Burst(_) => numbers.push(seq),
        }
    };
    let (_, damage) = Journal::open(&dir.join(LOG), visit).expect("it opens");
    (held, damage)
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
/// Of a record of the log: a frame, and what is left of its kind whatever the class of its host.
const FRAME: u8 = 3;
const OF_ANY_CLASS: u8 = 0x7F;
