//! What of this agent's configuration the fleet decides: versions come from the broker, are checked, tried,
//! kept or taken back.
//!
//! ```text
//!            offered: other values             PROVE_MIN.. later: it sampled, a broker took it, it was cheap
//!  Settled ------------------------> Proving ----------------------------------------> Settled, kept on disk
//!     ^   \-- wrong: refused, told         |  not so, or no broker for LOST
//!     +------------------------------------+  what ran before runs again; refused, told
//! ```
//!
//! A state machine: time and what is seen come in, [`Act`]s go out. Only what has proven itself is kept for
//! the next start, so an agent that a version kills starts again with the one before. Keys that the host's
//! own file locks (`agent.locked`) stay as they are there, and the broker is told which.

use crate::config::Config;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use strobe_wire::message::{Message, digest};

/// The state machine.
#[derive(Debug)]
pub struct Managed {
    /// The host's own, under all that comes.
    own: Config,
    /// What has proven itself last.
    kept: Pushed,
    running: Pushed,
    stayed: Vec<String>,
    proving: Option<Proving>,
    refused: Option<(u64, String)>,
    acts: VecDeque<Act>,
}

/// A version as a broker said it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pushed {
    /// Its number; 0 is the host's own configuration.
    pub version: u64,
    /// By key.
    pub values: Vec<(String, String)>,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// From now on this configuration runs.
    Run(Box<Config>),
    /// The next start begins with this.
    Keep(Pushed),
    /// The broker is to hear how it stands.
    Tell(Message),
}

/// What an agent looks like from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pulse {
    /// Whether a broker takes frames.
    pub streaming: bool,
    /// Ticks so far.
    pub ticks: u64,
    /// The last frame that a broker acknowledged.
    pub acknowledged_seq: u64,
    /// CPU time of the sampler's thread.
    pub cost_ns: u64,
}

#[derive(Debug)]
struct Proving {
    since: Instant,
    until: Instant,
    before: Pulse,
    /// When a broker was last seen.
    heard: Instant,
    look_at: Instant,
}

impl Managed {
    /// Begins with what the life before kept, if that fits `own` still.
    #[must_use]
    pub fn new(own: Config, kept: Pushed) -> (Self, Config) {
        let (mut kept, mut refused, mut stayed) = (kept, None, Vec::new());
        let config = match effective(&own, &kept) {
            Ok((config, left)) => {
                stayed = left;
                config
            }
            Err(why) => {
                log::warn!("version {} of the fleet's configuration: {why}", kept.version);
                refused = Some((kept.version, why));
                kept = Pushed::default();
                own.clone()
            }
        };
        let running = kept.clone();
        let acts = VecDeque::new();
        (Self { own, kept, running, stayed, proving: None, refused, acts }, config)
    }

    /// What is to be done next.
    pub fn poll(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    /// A broker offers a version.
    pub fn offered(&mut self, now: Instant, pushed: Pushed, pulse: Pulse) {
        let version = pushed.version;
        match effective(&self.own, &pushed) {
            Err(why) => {
                log::warn!("version {version} of the fleet's configuration is refused: {why}");
                self.refused = Some((version, why));
            }
            Ok((config, stayed)) => {
                self.refused = None;
                self.stayed = stayed;
                let same = pushed.values == self.running.values;
                self.running = pushed;
                if same && self.proving.is_none() {
                    self.keep();
                } else if !same {
                    let interval = Duration::from_millis(config.interval_ms);
                    let prove = (interval * 3).clamp(PROVE_MIN, PROVE_MAX);
                    let (since, until) = (now, now + prove);
                    self.proving =
                        Some(Proving { since, until, before: pulse, heard: now, look_at: now });
                    log::info!("version {version} of the fleet's configuration is tried");
                    self.acts.push_back(Act::Run(Box::new(config)));
                }
            }
        }
        self.tell();
    }

    /// What was to run cannot.
    pub fn failed(&mut self, why: &str) {
        self.take_back(why.to_owned());
    }

    /// When [`Self::on_timeout`] wants to be called at the latest.
    #[must_use]
    pub fn timeout(&self) -> Option<Instant> {
        self.proving.as_ref().map(|proving| proving.look_at)
    }

    /// Whether a version is being tried.
    #[must_use]
    pub fn is_proving(&self) -> bool {
        self.proving.is_some()
    }

    /// Looks how it goes.
    pub fn on_timeout(&mut self, now: Instant, pulse: Pulse) {
        let cost_max_ppm = u128::from(self.own.cost_max_ppm);
        let Some(proving) = &mut self.proving else { return };
        proving.look_at = now + LOOK_EVERY;
        if pulse.streaming {
            proving.heard = now;
        }
        if proving.heard + LOST <= now {
            let why = format!("no broker took anything for {} s", LOST.as_secs());
            return self.take_back(why);
        }
        let elapsed = now.saturating_duration_since(proving.since);
        if now < proving.until || elapsed.is_zero() {
            return;
        }
        let Proving { before, until, .. } = *proving;
        let interval = effective(&self.own, &self.running).map_or(0, |(c, _)| c.interval_ms).max(1);
        let fit = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX) / interval;
        let ticks = pulse.ticks.saturating_sub(before.ticks);
        let wanted = fit.saturating_sub(1).min(TICKS_MIN);
        let cost_ns = pulse.cost_ns.saturating_sub(before.cost_ns);
        let cost_ppm = u128::from(cost_ns) * 1_000_000 / elapsed.as_nanos();
        let taken = before.acknowledged_seq < pulse.acknowledged_seq || wanted == 0;
        if ticks < wanted || !taken {
            if until + LOST <= now {
                self.take_back(format!(
                    "in {} s it sampled {ticks} times, and a broker took {}",
                    elapsed.as_secs(),
                    if taken { "what came of it" } else { "nothing of it" }
                ));
            }
            return;
        }
        if cost_max_ppm < cost_ppm {
            return self.take_back(format!(
                "sampling takes {}.{:02} % of a core, and agent.cost_max is {}.{:02} %",
                cost_ppm / 10_000,
                cost_ppm / 100 % 100,
                cost_max_ppm / 10_000,
                cost_max_ppm / 100 % 100
            ));
        }
        if pulse.streaming {
            self.proving = None;
            self.keep();
            self.tell();
        }
    }

    /// What it runs.
    #[must_use]
    pub fn running(&self) -> &Pushed {
        &self.running
    }

    /// How it stands, as a broker is told.
    #[must_use]
    pub fn standing(&self) -> Message {
        let (refused, why) = self.refused.clone().unwrap_or_default();
        Message::Configured {
            running: self.running.version,
            proven: self.proving.is_none(),
            refused,
            why,
            locked: self.stayed.join(","),
            digest: digest(&self.running.values),
        }
    }

    fn keep(&mut self) {
        if self.kept != self.running {
            self.kept = self.running.clone();
            self.acts.push_back(Act::Keep(self.kept.clone()));
        }
    }

    fn take_back(&mut self, why: String) {
        let version = self.running.version;
        log::warn!("version {version} of the fleet's configuration is taken back: {why}");
        self.proving = None;
        self.running = self.kept.clone();
        self.refused = Some((version, why));
        // It was checked when it came.
        if let Ok((config, stayed)) = effective(&self.own, &self.running) {
            self.stayed = stayed;
            self.acts.push_back(Act::Run(Box::new(config)));
        }
        self.tell();
    }

    fn tell(&mut self) {
        self.acts.push_back(Act::Tell(self.standing()));
    }
}

impl Pushed {
    /// As [`Self::text`] wrote it; anything else is no version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let version = lines.next()?.strip_prefix("version ")?.parse().ok()?;
        let values = lines.map(|line| {
            let (key, value) = line.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        });
        Some(Self { version, values: values.collect::<Option<Vec<_>>>()? })
    }

    /// For a file.
    #[must_use]
    pub fn text(&self) -> String {
        let lines = self.values.iter().map(|(key, value)| format!("{key}={value}\n"));
        format!("version {}\n{}", self.version, lines.collect::<String>())
    }
}

/// The configuration with what a version says above it, and the keys that it says in vain.
fn effective(own: &Config, pushed: &Pushed) -> Result<(Config, Vec<String>), String> {
    if VALUES_MAX < pushed.values.len() || pushed.values.iter().any(|(_, v)| v.contains('\n')) {
        return Err("more or other values than an agent takes".to_owned());
    }
    let settable = |key: &str| strobe_wire::fleet::AGENT.iter().any(|known| known.name == key);
    if let Some((key, _)) = pushed.values.iter().find(|(key, _)| !settable(key)) {
        return Err(format!("{key} is nothing that this agent lets the fleet decide"));
    }
    own.with_fleet(pushed.version, &pushed.values).map_err(|why| why.to_string())
}

/// So long at least does a version run before it counts as good.
const PROVE_MIN: Duration = Duration::from_secs(5);
const PROVE_MAX: Duration = Duration::from_secs(60);
/// A broker that restarts, or an owner that changes, is back within this.
const LOST: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Ticks that are to be seen, where so many fit.
const TICKS_MIN: u64 = 3;
const VALUES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KEYS;
    use strobe_wire::settings::Settings;

    fn own(args: &[&str]) -> Config {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let settings = Settings::load(KEYS, None, &|_| None, &args).unwrap();
        Config::new(&settings, &|_| Some("/home/me".to_owned())).unwrap()
    }

    fn pushed(version: u64, values: &[(&str, &str)]) -> Pushed {
        let values = values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Pushed { version, values }
    }

    fn acts(managed: &mut Managed) -> Vec<Act> {
        std::iter::from_fn(|| managed.poll()).collect()
    }

    fn told(act: &Act) -> (u64, bool, u64, &str, &str) {
        let Act::Tell(Message::Configured { running, proven, refused, why, locked, .. }) = act
        else {
            panic!("{act:?}")
        };
        (*running, *proven, *refused, why, locked)
    }

    struct Bench {
        now: Instant,
        pulse: Pulse,
        managed: Managed,
    }

    impl Bench {
        fn new(args: &[&str]) -> Self {
            #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
            let now = Instant::now();
            let (managed, config) = Managed::new(own(args), Pushed::default());
            assert_eq!(config, own(args));
            let pulse = Pulse { streaming: true, ..Pulse::default() };
            Self { now, pulse, managed }
        }

        /// Seconds go by with a tick each that costs so much and is taken if somebody is there.
        fn live(&mut self, seconds: u64, cost_ns: u64) -> Vec<Act> {
            let mut all = Vec::new();
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                self.pulse.ticks += 1;
                self.pulse.cost_ns += cost_ns;
                self.pulse.acknowledged_seq += u64::from(self.pulse.streaming);
                self.managed.on_timeout(self.now, self.pulse);
                all.extend(acts(&mut self.managed));
            }
            all.extend(acts(&mut self.managed));
            all
        }

        fn offer(&mut self, pushed: Pushed) -> Vec<Act> {
            self.managed.offered(self.now, pushed, self.pulse);
            acts(&mut self.managed)
        }
    }

    #[test]
    fn what_proves_itself_is_kept_and_what_changes_nothing_is_so_at_once() {
        let mut bench = Bench::new(&[]);
        let first = pushed(1, &[("agent.scores", "false")]);
        let acts = bench.offer(first.clone());
        assert!(matches!(&acts[0], Act::Run(config) if config.choice != own(&[]).choice));
        assert_eq!(told(&acts[1]), (1, false, 0, "", ""));
        assert_eq!(bench.live(4, 1_000_000), []);
        let acts = bench.live(2, 1_000_000);
        assert_eq!(acts[0], Act::Keep(first.clone()));
        assert_eq!(told(&acts[1]), (1, true, 0, "", ""));
        let acts = bench.offer(Pushed { version: 2, ..first.clone() });
        assert!(matches!(&acts[0], Act::Keep(Pushed { version: 2, .. })), "{acts:?}");
        assert_eq!(told(&acts[1]), (2, true, 0, "", ""));
        // A text that it kept is what the next life begins with.
        let kept = Pushed::parse(&first.text()).unwrap();
        assert_eq!(kept, first);
        let (managed, config) = Managed::new(own(&[]), kept);
        assert_ne!(config.choice, own(&[]).choice);
        assert!(matches!(managed.standing(), Message::Configured { running: 1, .. }));
        let (managed, config) = Managed::new(own(&[]), pushed(9, &[("agent.interval", "soon")]));
        assert_eq!(config, own(&[]));
        let standing = managed.standing();
        assert!(matches!(standing, Message::Configured { running: 0, refused: 9, .. }));
    }

    #[test]
    fn what_is_wrong_is_refused_and_locked_keys_stay() {
        let mut bench = Bench::new(&["--locked", "agent.interval,agent.labels"]);
        let acts = bench.offer(pushed(1, &[("agent.interval", "5s"), ("agent.scores", "false")]));
        assert!(matches!(&acts[0], Act::Run(config) if config.interval_ms == 1_000));
        assert_eq!(told(&acts[1]).4, "agent.interval");
        for (key, value) in [
            ("agent.collectors.enable", "xyzzy"),
            ("agent.dir", "/tmp"),
            ("agent.commands", "top"),
            ("agent.scores", "a\nb"),
        ] {
            let acts = bench.offer(pushed(2, &[(key, value)]));
            let (running, _, refused, why, _) = told(&acts[0]);
            assert_eq!((running, refused, acts.len()), (1, 2, 1), "{key}: {why}");
        }
    }

    #[test]
    fn what_makes_it_fail_is_taken_back() {
        // Too dear.
        let mut bench = Bench::new(&[]);
        bench.offer(pushed(1, &[("agent.scores", "false")]));
        bench.live(6, 1_000_000);
        bench.offer(pushed(2, &[("agent.interval", "100ms")]));
        let acts = bench.live(6, 30_000_000);
        assert!(matches!(&acts[0], Act::Run(config) if config.interval_ms == 1_000));
        let (running, proven, refused, why, _) = told(&acts[1]);
        assert!(
            (running, proven, refused) == (1, true, 2) && why.contains("3.00 % of a core"),
            "{why}"
        );
        // No broker.
        bench.offer(pushed(3, &[("agent.interval", "2s")]));
        bench.pulse.streaming = false;
        let acts = bench.live(25, 0);
        assert!(told(&acts[1]).3.contains("no broker"), "{acts:?}");
        // No ticks.
        bench.pulse.streaming = true;
        bench.offer(pushed(4, &[("agent.interval", "2s")]));
        for _ in 0..40 {
            bench.now += Duration::from_secs(1);
            bench.managed.on_timeout(bench.now, bench.pulse);
        }
        let acts = bench.live(0, 0);
        assert!(told(&acts[1]).3.contains("sampled 0 times"), "{acts:?}");
        // What cannot run at all.
        bench.offer(pushed(5, &[("agent.interval", "2s")]));
        bench.managed.failed("no thread");
        let acts = bench.live(0, 0);
        assert_eq!((told(&acts[1]).0, told(&acts[1]).2), (1, 5));
    }
}
