//! What is looked after besides agents: machines that are known by name, and whether they answer.
//!
//! ```text
//!   Step in: time passed, machines as agreed, what was found, what came of checks
//!   Act out: look for machines, propose one, check one, samples
//! ```
//!
//! A state machine; `run/lookout.rs` has the threads. One broker does it: the one that is alone, or leads.
//! What comes of checks are series like others, so that rules, dashboards and any broker see them:
//! `strobe_check_up`, `strobe_check_strikes`, `strobe_check_duration_seconds` by `instance` and `check`,
//! and `strobe_target_info` with a machine's group and tags.

mod config;

pub use config::LookoutConfig;

use crate::store::RemoteSeries;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use strobe_cluster::kinds::targets::Target;
use strobe_discovery::Found;
use strobe_discovery::check::{Check, Rounds, Standing, Turn};
use strobe_wire::schema::Labels;

/// The state machine.
#[derive(Debug)]
pub struct Lookout {
    config: LookoutConfig,
    rounds: Rounds,
    targets: BTreeMap<String, Target>,
    /// Whether machines are being looked for now.
    finding: bool,
    find_at_ms: u64,
    told_at_ms: u64,
    acts: VecDeque<Act>,
    samples: Vec<RemoteSeries>,
    /// The series that it tells; of a check's, whose and which.
    live: BTreeMap<Labels, Option<(String, Check)>>,
    counts: LookoutCounts,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Act {
    /// Machines are to be looked for; [`Lookout::found`] follows.
    Find,
    /// The fleet is to know of this machine, found by this way.
    Propose(Found, &'static str),
    /// This is to be tried; [`Lookout::checked`] follows.
    Check(Job),
    /// These are to be stored.
    Store(Vec<RemoteSeries>),
}

/// A check of one machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Its name.
    pub name: String,
    /// Its address, or the name again.
    pub address: String,
    /// What is tried.
    pub check: Check,
}

/// What came of one.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// Of what.
    pub job: Job,
    /// Wall time, ms, when it ended.
    pub at_ms: i64,
    /// How long it took.
    pub seconds: f64,
    /// If it failed: why.
    pub result: Result<(), String>,
}

/// What the lookout counts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LookoutCounts {
    /// Checks that were tried.
    pub checked: u64,
    /// Of them: failed.
    pub failed: u64,
    /// Checks that there is no room for.
    pub refused: u64,
    /// Times that a check was due while it was still under way.
    pub passed_over: u64,
    /// Machines that are known.
    pub targets: u64,
    /// Checks that count as down.
    pub down: u64,
    /// Samples that the store did not take.
    pub samples_lost: u64,
}

impl Lookout {
    /// Looks for machines at once.
    #[must_use]
    pub fn new(config: LookoutConfig, now_ms: u64) -> Self {
        let every_ms = u64::try_from(config.check_every.as_millis()).unwrap_or(u64::MAX);
        let rounds = Rounds::new(every_ms, config.strikes_max);
        Self {
            config,
            rounds,
            targets: BTreeMap::new(),
            finding: false,
            find_at_ms: now_ms,
            told_at_ms: now_ms,
            acts: VecDeque::new(),
            samples: Vec::new(),
            live: BTreeMap::new(),
            counts: LookoutCounts::default(),
        }
    }

    /// The machines as the fleet knows them now; none, if another broker looks after them.
    pub fn know(&mut self, targets: Vec<Target>, now_ms: u64, wall_ms: i64) {
        self.targets = targets.into_iter().map(|target| (target.name.clone(), target)).collect();
        let used = self.targets.values().filter(|target| target.retired_ms == 0);
        let mut wanted: BTreeSet<(String, Check)> = BTreeSet::new();
        for target in used {
            // What an older version put and this one does not know is passed over.
            let own = target.checks.iter().filter_map(|text| text.parse().ok());
            let all = self.config.checks.iter().cloned().chain(own);
            wanted.extend(all.map(|check| (target.name.clone(), check)));
        }
        self.rounds.set(wanted, now_ms);
        self.told_at_ms = self.told_at_ms.min(now_ms);
        // What is not told any more ends now, not when a query's look-back is over.
        let used = self.targets.values().filter(|target| target.retired_ms == 0);
        let described: BTreeSet<Labels> = used.map(description).collect();
        let rounds = &self.rounds;
        let stays = |labels: &Labels, of: &Option<(String, Check)>| match of {
            Some((name, check)) => rounds.standing(name, check).is_some(),
            None => described.contains(labels),
        };
        let all = std::mem::take(&mut self.live);
        let (live, ended) = all.into_iter().partition(|(labels, of)| stays(labels, of));
        self.live = live;
        let ended: BTreeMap<Labels, Option<(String, Check)>> = ended;
        let stale = (wall_ms, f64::from_bits(STALE));
        self.samples
            .extend(ended.into_keys().map(|labels| RemoteSeries { labels, samples: vec![stale] }));
    }

    /// Machines were looked for by one way.
    pub fn found(&mut self, way: &'static str, found: Vec<Found>) {
        for one in found {
            let known = self.targets.get(&one.name);
            let address = one.address.map(|address| address.to_string()).unwrap_or_default();
            // An operator's word stands; a second way adds nothing to the first.
            let news = known.is_none_or(|known| known.source == way && known.address != address);
            if news && self.acts.len() < ACTS_MAX {
                self.acts.push_back(Act::Propose(one, way));
            }
        }
    }

    /// All ways were gone.
    pub fn found_all(&mut self, now_ms: u64) {
        self.finding = false;
        let every_ms = u64::try_from(self.config.find_every.as_millis()).unwrap_or(u64::MAX);
        self.find_at_ms = now_ms.saturating_add(every_ms);
    }

    /// What came of a check.
    pub fn checked(&mut self, outcome: &Outcome) {
        let Outcome { job: Job { name, check, .. }, at_ms, seconds, result } = outcome;
        self.counts.checked += 1;
        self.counts.failed += u64::from(result.is_err());
        match self.rounds.done(name, check, result.is_ok()) {
            Some(Turn::Down) => {
                let why = result.as_ref().err().map_or("", String::as_str);
                log::warn!("{name} is down by {check}: {why}");
            }
            Some(Turn::Up) => log::info!("{name} is up again by {check}"),
            None => {}
        }
        let strikes = match self.rounds.standing(name, check) {
            Some(Standing::Failing(strikes)) => f64::from(strikes),
            Some(Standing::Down) => f64::from(self.config.strikes_max),
            Some(Standing::Up | Standing::Untried) => 0.0,
            // Not wanted any more.
            None => return,
        };
        let text = check.to_string();
        let up = if result.is_ok() { 1.0 } else { 0.0 };
        for (metric, value) in [
            ("strobe_check_up", up),
            ("strobe_check_strikes", strikes),
            ("strobe_check_duration_seconds", *seconds),
        ] {
            let labels = labels(metric, &[("check", &text), ("instance", name)]);
            self.sample(labels, Some((name.clone(), check.clone())), (*at_ms, value));
        }
    }

    /// Does what is due: at `now_ms` of a clock that never steps, `wall_ms` of the time of day.
    /// `free` is how many checks may begin.
    pub fn on_timeout(&mut self, now_ms: u64, wall_ms: i64, free: usize) {
        if self.config.finds() && !self.finding && self.find_at_ms <= now_ms {
            self.finding = true;
            self.acts.push_back(Act::Find);
        }
        for (name, check) in self.rounds.due(now_ms, free) {
            let Some(target) = self.targets.get(&name) else { continue };
            let address = if target.address.is_empty() { &name } else { &target.address };
            let (address, name) = (address.clone(), name.clone());
            self.acts.push_back(Act::Check(Job { name, address, check }));
        }
        if self.told_at_ms <= now_ms {
            self.told_at_ms = now_ms + INFO_EVERY_MS;
            let used = self.targets.values().filter(|target| target.retired_ms == 0);
            let described: Vec<Labels> = used.map(description).collect();
            for labels in described {
                self.sample(labels, None, (wall_ms, 1.0));
            }
        }
        if !self.samples.is_empty() {
            self.acts.push_back(Act::Store(std::mem::take(&mut self.samples)));
        }
    }

    /// What is to be done next.
    pub fn poll(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    /// When [`Self::on_timeout`] wants to be called at the latest, if ever.
    #[must_use]
    pub fn timeout_ms(&self) -> Option<u64> {
        let find = Some(self.find_at_ms).filter(|_| self.config.finds() && !self.finding);
        let told = Some(self.told_at_ms).filter(|_| !self.targets.is_empty());
        [find, told, self.rounds.timeout_ms()].into_iter().flatten().min()
    }

    /// Machines are to be looked for now.
    pub fn find_now(&mut self) {
        self.find_at_ms = 0;
    }

    /// Samples were not stored.
    pub fn lost(&mut self, samples: usize) {
        let samples = u64::try_from(samples).unwrap_or(u64::MAX);
        self.counts.samples_lost = self.counts.samples_lost.saturating_add(samples);
    }

    /// What it is told.
    #[must_use]
    pub fn config(&self) -> &LookoutConfig {
        &self.config
    }

    /// What it counts.
    #[must_use]
    pub fn counts(&self) -> LookoutCounts {
        let is_down = |standing| standing == Standing::Down;
        let down = self.rounds.standings().filter(|(.., standing)| is_down(*standing)).count();
        LookoutCounts {
            refused: self.rounds.refused(),
            passed_over: self.rounds.passed_over(),
            targets: u64::try_from(self.targets.len()).unwrap_or(u64::MAX),
            down: u64::try_from(down).unwrap_or(u64::MAX),
            ..self.counts
        }
    }

    fn sample(&mut self, labels: Labels, of: Option<(String, Check)>, sample: (i64, f64)) {
        self.live.entry(labels.clone()).or_insert(of);
        self.samples.push(RemoteSeries { labels, samples: vec![sample] });
    }
}

fn description(target: &Target) -> Labels {
    let tags = target.tags.join(",");
    labels(
        "strobe_target_info",
        &[
            ("address", &target.address),
            ("group", &target.group),
            ("instance", &target.name),
            ("source", &target.source),
            ("tags", &tags),
        ],
    )
}

/// An empty label is none.
fn labels(metric: &str, more: &[(&str, &str)]) -> Labels {
    let told = more.iter().filter(|(_, value)| !value.is_empty());
    let named = [("__name__", metric), ("job", JOB)];
    let pairs = named.iter().chain(told);
    let mut pairs: Vec<(String, String)> =
        pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    pairs.sort();
    Labels::new(pairs)
}

/// Prometheus's marker: the series has ended.
const STALE: u64 = 0x7ff0_0000_0000_0002;
/// The `job` of the lookout's series.
pub const JOB: &str = "strobe-check";
/// A machine's group and tags are told so often: well within what a query looks back.
const INFO_EVERY_MS: u64 = 30_000;
/// Proposals waiting; what is more is found again next time.
const ACTS_MAX: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KEYS;
    use strobe_cluster::kinds::targets::OPERATOR;
    use strobe_wire::settings::Settings;

    fn config(args: &[&str]) -> Result<LookoutConfig, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let settings = Settings::load(KEYS, None, &|_| None, &args).map_err(|e| e.to_string())?;
        LookoutConfig::of(&settings).map_err(|why| why.to_string())
    }

    fn target(name: &str) -> Target {
        Target { name: name.into(), address: "10.0.0.1".into(), ..Target::default() }
    }

    fn drain(lookout: &mut Lookout) -> Vec<Act> {
        std::iter::from_fn(|| lookout.poll()).collect()
    }

    #[test]
    fn by_default_nothing_is_sent_to_anybody() {
        let mut lookout = Lookout::new(config(&[]).unwrap(), 0);
        lookout.on_timeout(1 << 40, 0, 9);
        assert_eq!((drain(&mut lookout), lookout.timeout_ms()), (vec![], None));
        // A machine that is only known is told about, and not spoken to.
        lookout.know(vec![target("a")], 0, 0);
        lookout.on_timeout(2 << 40, 7, 9);
        let acts = drain(&mut lookout);
        let [Act::Store(series)] = acts.as_slice() else { panic!("{acts:?}") };
        assert_eq!((series.len(), series[0].samples.as_slice()), (1, [(7, 1.0)].as_slice()));
    }

    #[test]
    fn settings_say_what_is_wanted() {
        let good = config(&[
            "--discover-static",
            "web1, db1=10.0.0.7",
            "--discover-scan",
            "10.0.0.0/28",
            "--checks",
            "tcp:22, http:80/x",
        ])
        .unwrap();
        assert_eq!(
            good.named,
            [("web1".to_owned(), None), ("db1".to_owned(), Some("10.0.0.7".parse().unwrap()))]
        );
        assert_eq!((good.scan.unwrap().count(), good.checks.len()), (14, 2));
        for (args, wanted) in [
            (["--discover-static", "a b"], "is no name"),
            (["--discover-static", "a=b"], "is no address"),
            (["--discover-scan", "10.0.0.0/8"], "more than 65,536 addresses"),
            (["--discover-scan-ports", "0"], "is no port"),
            (["--checks", "ping"], "is no check"),
            (["--check-strikes", "0"], "1 to 100"),
            (["--check-interval", "1ms"], "1000ms to"),
            (["--discover-mdns-interface", "eth0"], "an IPv4 address"),
        ] {
            let why = config(&args).unwrap_err();
            assert!(why.contains(wanted), "{why}");
        }
    }

    #[test]
    fn what_is_found_is_proposed_once_and_an_operators_word_stands() {
        let mut lookout = Lookout::new(config(&["--discover-static", "a"]).unwrap(), 5);
        lookout.on_timeout(5, 0, 9);
        lookout.on_timeout(6, 0, 9);
        assert_eq!(drain(&mut lookout), [Act::Find]);
        let found = |name: &str, last: u8| {
            let address = Some([10, 0, 0, last].into());
            Found { name: name.to_owned(), address, port: 0 }
        };
        let source = |source: &str, target| Target { source: source.into(), ..target };
        lookout.know(
            vec![
                source(OPERATOR, target("a")),
                source("mdns", target("b")),
                source("mdns", target("c")),
            ],
            6,
            0,
        );
        lookout.found("mdns", vec![found("a", 9), found("b", 1), found("c", 9), found("d", 4)]);
        lookout.found("scan", vec![found("c", 8)]);
        lookout.found_all(7);
        let wanted = [Act::Propose(found("c", 9), "mdns"), Act::Propose(found("d", 4), "mdns")];
        assert_eq!(drain(&mut lookout), wanted);
        assert_eq!(lookout.timeout_ms(), Some(6));
        lookout.on_timeout(7, 0, 9);
        assert_eq!(drain(&mut lookout).len(), 1, "what is known is told");
        lookout.on_timeout(300_007, 0, 9);
        assert_eq!(drain(&mut lookout)[0], Act::Find);
    }

    #[test]
    fn checks_become_series_and_three_strikes_count() {
        let mut lookout = Lookout::new(config(&["--checks", "tcp:22"]).unwrap(), 0);
        let own =
            Target { checks: vec!["http:80/".into(), "from the future".into()], ..target("a") };
        let retired = Target { retired_ms: 1, ..target("b") };
        lookout.know(vec![own, retired], 0, 0);
        lookout.on_timeout(30_000, 0, 9);
        let jobs: Vec<Job> = drain(&mut lookout)
            .into_iter()
            .filter_map(|act| if let Act::Check(job) = act { Some(job) } else { None })
            .collect();
        let told: Vec<String> =
            jobs.iter().map(|job| format!("{} {}", job.name, job.check)).collect();
        assert_eq!(told, ["a tcp:22", "a http:80/"]);
        assert_eq!(jobs[0].address, "10.0.0.1");
        let mut strikes = Vec::new();
        for good in [true, false, false, false, false, true] {
            let result = if good { Ok(()) } else { Err("why".to_owned()) };
            let job = jobs[0].clone();
            lookout.checked(&Outcome { job, at_ms: 9, seconds: 0.5, result });
            lookout.on_timeout(0, 0, 0);
            let acts = drain(&mut lookout);
            let [Act::Store(series)] = acts.as_slice() else { panic!("{acts:?}") };
            strikes.push((series[0].samples[0].1, series[1].samples[0].1));
            assert_eq!(series[2].samples, [(9, 0.5)]);
        }
        let wanted = [(1.0, 0.0), (0.0, 1.0), (0.0, 2.0), (0.0, 3.0), (0.0, 3.0), (1.0, 0.0)];
        assert_eq!(strikes, wanted);
        // What nobody looks after any more ends at once.
        lookout.know(vec![Target { retired_ms: 7, ..target("a") }], 31_000, 11);
        lookout.on_timeout(31_000, 11, 0);
        let acts = drain(&mut lookout);
        let [Act::Store(series)] = acts.as_slice() else { panic!("{acts:?}") };
        let ended = |one: &RemoteSeries| one.samples[0].1.to_bits() == STALE;
        assert!(series.len() == 4 && series.iter().all(ended), "{series:?}");
        assert_eq!((lookout.counts().checked, lookout.counts().failed), (6, 4));
    }
}
