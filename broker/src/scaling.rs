//! Whether the cluster has too few brokers, or one too many.
//!
//! ```text
//!   every 10 s: each broker's vitals ──> loads ──> too much | could do with one fewer | neither
//!                                                       └── for so long without a break ──> Proposal
//! ```
//!
//! What is too much of one broker alone is no reason for another one: shards are spread evenly, so a
//! broker that is slower than the others has a slower disk. Between the two bounds nothing is proposed, and
//! after a proposal, or a change of the members, nothing for a while.

use crate::vitals::Vitals;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use strobe_discovery::probe;
use strobe_discovery::webhook::{self, Url};
use strobe_wire::settings::{Settings, SettingsError, duration_ms, size_bytes};

/// When more brokers are proposed, and who is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScalingConfig {
    /// Agents a broker, on average, above which another one is proposed.
    pub agents_max: u64,
    /// Percent of a core a broker, on average.
    pub cpu_percent_max: u64,
    /// The p99 of acknowledgements, ms, of more than half of the brokers.
    pub ack_ms_max: u64,
    /// Resident memory of a broker, on average.
    pub memory_bytes_max: u64,
    /// Bytes of the log whose rows are in no segment yet, of more than half of the brokers.
    pub wal_bytes_max: u64,
    /// How long it has to last.
    pub hold_ms: u64,
    /// How long nothing is proposed after a proposal or a change of the members.
    pub cool_down_ms: u64,
    /// Never fewer.
    pub brokers_min: usize,
    /// Never more.
    pub brokers_max: usize,
    /// A program that makes and removes machines.
    pub command: Option<PathBuf>,
    /// An `http://` or `https://` URL that is told.
    pub webhook: Option<String>,
}

/// What is proposed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proposal {
    /// Another broker.
    Out {
        /// A sentence.
        why: String,
    },
    /// One fewer.
    In {
        /// Which may go.
        broker: u64,
        /// A sentence.
        why: String,
    },
}

/// The state machine.
#[derive(Debug, Default)]
pub struct Scaling {
    voters: BTreeSet<u64>,
    before: BTreeMap<u64, Vitals>,
    /// Which way, and since when without a break.
    leaning: Option<(Way, u64)>,
    rest_until_ms: u64,
    standing: Option<Proposal>,
}

/// What all brokers have to do.
#[derive(Clone, Copy, Debug)]
struct Used {
    agents: u64,
    /// Of a core.
    percent: u64,
    memory_bytes: u64,
    /// Brokers whose acknowledgements take long.
    slow: usize,
    /// Brokers whose logs are behind.
    behind: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Out,
    In,
}

impl ScalingConfig {
    /// Typed values.
    ///
    /// # Errors
    /// The first value that is wrong, who set it, and what is wanted.
    pub fn of(settings: &Settings) -> Result<Self, SettingsError> {
        let count = |name| {
            settings.parse(name, |text| match text.parse::<u64>() {
                Ok(number) if 0 < number => Ok(number),
                _ => Err("a number above 0 is wanted".to_owned()),
            })
        };
        let few = |name| count(name).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        Ok(Self {
            agents_max: count("broker.scale_agents")?,
            cpu_percent_max: count("broker.scale_cpu")?,
            ack_ms_max: settings.parse("broker.scale_ack", duration_ms)?,
            memory_bytes_max: settings.parse("broker.scale_memory", size_bytes)?,
            wal_bytes_max: settings.parse("broker.scale_wal", size_bytes)?,
            hold_ms: settings.parse("broker.scale_hold", duration_ms)?,
            cool_down_ms: settings.parse("broker.scale_cool_down", duration_ms)?,
            brokers_min: few("broker.scale_min")?,
            brokers_max: few("broker.scale_max")?,
            command: settings.parse("broker.scale_command", |text| {
                Ok((!text.is_empty()).then(|| PathBuf::from(text)))
            })?,
            webhook: settings.parse("broker.scale_webhook", |text| match text {
                "" => Ok(None),
                url => Url::of(url).map(|_| Some(url.to_owned())),
            })?,
        })
    }
}

impl Proposal {
    /// Why.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Out { why } | Self::In { why, .. } => why,
        }
    }
}

impl Scaling {
    /// Looks at the brokers that vote and are heard of, at `now_ms` of a clock that never steps; what is
    /// proposed now, once. `me` leads, and is not proposed to go. While one of them does not answer (it may
    /// have too much to do) nothing is known, and what has lasted goes on lasting.
    pub fn look(
        &mut self,
        config: &ScalingConfig,
        now_ms: u64,
        (me, voters): (u64, &BTreeSet<u64>),
        vitals: BTreeMap<u64, Vitals>,
    ) -> Option<Proposal> {
        if self.voters != *voters {
            // Shards are on the way: what is counted now says nothing.
            self.voters.clone_from(voters);
            self.before = vitals;
            self.rest(now_ms, config);
            return None;
        }
        if !voters.iter().eq(vitals.keys()) {
            return None;
        }
        let before = std::mem::replace(&mut self.before, vitals);
        let wanted = wanted(config, me, &before, &self.before);
        let Some((way, proposal)) = wanted else {
            (self.leaning, self.standing) = (None, None);
            return None;
        };
        let since_ms = match self.leaning {
            Some((leaning, since_ms)) if leaning == way => since_ms,
            _ => now_ms,
        };
        self.leaning = Some((way, since_ms));
        let lasts = config.hold_ms <= now_ms.saturating_sub(since_ms);
        if !lasts || now_ms < self.rest_until_ms {
            return None;
        }
        self.rest(now_ms, config);
        self.standing = Some(proposal.clone());
        Some(proposal)
    }

    /// What was proposed and still holds.
    #[must_use]
    pub fn standing(&self) -> Option<&Proposal> {
        self.standing.as_ref()
    }

    /// Another broker leads, or this one is alone.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    fn rest(&mut self, now_ms: u64, config: &ScalingConfig) {
        (self.leaning, self.standing) = (None, None);
        self.rest_until_ms = now_ms.saturating_add(config.cool_down_ms);
    }
}

fn wanted(
    config: &ScalingConfig,
    me: u64,
    before: &BTreeMap<u64, Vitals>,
    now: &BTreeMap<u64, Vitals>,
) -> Option<(Way, Proposal)> {
    let agents: u64 = now.values().map(|of| of.sessions).sum();
    let percents = now.iter().map(|(id, of)| {
        let then = before.get(id).unwrap_or(of);
        let passed_ms = u64::try_from(of.now_ms.saturating_sub(then.now_ms)).unwrap_or(0);
        of.cpu_ms
            .saturating_sub(then.cpu_ms)
            .saturating_mul(100)
            .checked_div(passed_ms)
            .unwrap_or(0)
    });
    let used = Used {
        agents,
        percent: percents.sum(),
        memory_bytes: now.values().map(|of| of.memory_bytes).sum(),
        slow: now
            .values()
            .filter(|of| of.ack_ms_p99.is_some_and(|ms| config.ack_ms_max < ms))
            .count(),
        behind: now.values().filter(|of| config.wal_bytes_max < of.wal_bytes).count(),
    };
    let Some(reason) = used.too_much(config, now.len()) else {
        return fewer(config, me, now, &used);
    };
    let more = now.len() < config.brokers_max;
    more.then_some((Way::Out, Proposal::Out { why: format!("{reason}: add a broker") }))
}

impl Used {
    /// What is too much for so many brokers.
    fn too_much(&self, config: &ScalingConfig, brokers: usize) -> Option<String> {
        let Self { agents, percent, memory_bytes, slow, behind } = *self;
        let count = u64::try_from(brokers).unwrap_or(u64::MAX);
        let over = |used: u64, most: u64| most.saturating_mul(count) < used;
        Some(if over(agents, config.agents_max) {
            format!(
                "{agents} agents are more than {} for each of {count} brokers",
                config.agents_max
            )
        } else if over(percent, config.cpu_percent_max) {
            let most = config.cpu_percent_max;
            format!("{count} brokers use {percent} % of a core, more than {most} % each")
        } else if over(memory_bytes, config.memory_bytes_max) {
            let (used, most) = (memory_bytes >> 20, config.memory_bytes_max >> 20);
            format!("{count} brokers have {used} MiB of memory, more than {most} MiB each")
        } else if brokers < slow * 2 {
            let most = config.ack_ms_max;
            format!(
                "{slow} of {count} brokers acknowledge one frame in a hundred after more than {most} ms"
            )
        } else if brokers < behind * 2 {
            let most = config.wal_bytes_max >> 20;
            format!("the logs of {behind} of {count} brokers are behind by more than {most} MiB")
        } else {
            return None;
        })
    }
}

/// Whether one broker fewer would have it easy.
fn fewer(
    config: &ScalingConfig,
    me: u64,
    now: &BTreeMap<u64, Vitals>,
    &Used { agents, percent, memory_bytes, slow, behind }: &Used,
) -> Option<(Way, Proposal)> {
    let left = u64::try_from(now.len().checked_sub(1)?).ok().filter(|left| 0 < *left)?;
    let easy = |used: u64, most: u64| {
        used.saturating_mul(100) < most.saturating_mul(left).saturating_mul(EASY_PERCENT)
    };
    let fits = easy(agents, config.agents_max)
        && easy(percent, config.cpu_percent_max)
        && easy(memory_bytes, config.memory_bytes_max);
    if now.len() <= config.brokers_min || !fits || 0 < slow + behind {
        return None;
    }
    let others = now.iter().filter(|(id, _)| **id != me);
    let (broker, _) = others.min_by_key(|(id, of)| (of.sessions, **id))?;
    let why = format!(
        "{left} brokers would have {agents} agents and use {percent} % of a core, well below what makes \
         another one worth it: broker {broker} may go"
    );
    Some((Way::In, Proposal::In { broker: *broker, why }))
}

/// Tells the program and the webhook, in the caller's thread, for a minute at most.
///
/// # Errors
/// Whom it could not tell, and why.
pub fn tell(
    config: &ScalingConfig,
    proposal: &Proposal,
    address: &str,
    clock: fn() -> Instant,
) -> Result<(), String> {
    let (way, broker) = match proposal {
        Proposal::Out { .. } => ("out", None),
        Proposal::In { broker, .. } => ("in", Some(broker.to_string())),
    };
    let mut wrong = Vec::new();
    if let Some(program) = &config.command {
        let mut args = vec![way, proposal.why()];
        args.extend(broker.iter().flat_map(|broker| [broker.as_str(), address]));
        let run = probe::run(program, &args, TELL_WITHIN, clock);
        wrong.extend(run.err().map(|why| format!("{}: {why}", program.display())));
    }
    if let Some(url) = &config.webhook {
        let body = json!({
            "scale": way, "why": proposal.why(), "broker": broker, "address": address,
        });
        let told = webhook::post(url, "application/json", &body.to_string(), TELL_WITHIN, clock);
        wrong.extend(told.err().map(|why| format!("{url}: {why}")));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

const TELL_WITHIN: Duration = Duration::from_secs(60);
/// Of what makes another broker worth it: below this with one fewer, one may go.
const EASY_PERCENT: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KEYS;

    fn config(args: &[&str]) -> Result<ScalingConfig, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let settings = Settings::load(KEYS, None, &|_| None, &args).map_err(|e| e.to_string())?;
        ScalingConfig::of(&settings).map_err(|why| why.to_string())
    }

    /// Of each broker: its agents, its CPU in percent of a core, and the p99 of its acknowledgements.
    fn at(now_ms: u64, brokers: &[(u64, u64, u64)]) -> BTreeMap<u64, Vitals> {
        let one = |(sessions, percent, ack): &(u64, u64, u64)| Vitals {
            sessions: *sessions,
            cpu_ms: now_ms * percent / 100,
            ack_ms_p99: Some(*ack),
            now_ms: i64::try_from(now_ms).unwrap(),
            ..Vitals::default()
        };
        (1..).zip(brokers.iter().map(one)).collect()
    }

    /// What is proposed, and when, if brokers are like this from one time to another.
    fn run(
        scaling: &mut Scaling,
        from_s: u64,
        to_s: u64,
        brokers: &[(u64, u64, u64)],
    ) -> Vec<(u64, Proposal)> {
        let config = config(&["--scale-hold", "1m", "--scale-cool-down", "5m"]).unwrap();
        let times = (from_s..to_s).step_by(10);
        times
            .filter_map(|s| {
                let vitals = at(s * 1000, brokers);
                let voters = vitals.keys().copied().collect();
                let found = scaling.look(&config, s * 1000, (1, &voters), vitals);
                Some((s, found?))
            })
            .collect()
    }

    #[test]
    fn what_lasts_is_proposed_once_in_a_while() {
        let busy = [(6_000, 10, 30), (5_500, 10, 30), (5_000, 10, 30)];
        let mut scaling = Scaling::default();
        let found = run(&mut scaling, 0, 1_000, &busy);
        let times: Vec<u64> = found.iter().map(|(s, _)| *s).collect();
        // The members are news at first, which is a change of them.
        assert_eq!(times, [300, 600, 900]);
        let Proposal::Out { why } = &found[0].1 else { panic!("{found:?}") };
        assert!(why.starts_with("16500 agents are more than 5000 for each of 3 brokers"), "{why}");
        assert_eq!(scaling.standing(), Some(&found[0].1));
        // A breath in between, and it has to last anew.
        assert_eq!(run(&mut scaling, 1_000, 1_010, &[(4_000, 10, 30); 3]), []);
        assert_eq!(scaling.standing(), None);
        assert_eq!(run(&mut scaling, 1_010, 1_060, &busy), []);
    }

    /// The one with too much to do may be the one that does not answer in time.
    #[test]
    fn a_silent_broker_does_not_begin_everything_anew() {
        let config = config(&["--scale-hold", "1m", "--scale-cool-down", "1m"]).unwrap();
        let voters = [1, 2, 3].into();
        let mut scaling = Scaling::default();
        let found: Vec<u64> = (0..30)
            .map(|turn| turn * 10_000)
            .filter(|now_ms| {
                let mut vitals = at(*now_ms, &[(6_000, 10, 30); 3]);
                if now_ms / 10_000 % 2 == 1 {
                    vitals.remove(&3);
                }
                scaling.look(&config, *now_ms, (1, &voters), vitals).is_some()
            })
            .collect();
        assert_eq!(found, [80_000, 160_000, 240_000]);
    }

    #[test]
    fn one_slow_broker_is_no_reason_and_most_of_them_are() {
        let said = |brokers: &[(u64, u64, u64)]| {
            let found = run(&mut Scaling::default(), 0, 500, brokers);
            found.first().map(|(_, proposal)| proposal.why().to_owned())
        };
        assert_eq!(said(&[(3_000, 50, 900), (3_000, 50, 30), (3_000, 50, 30)]), None);
        let slow = said(&[(3_000, 50, 900), (3_000, 50, 900), (3_000, 50, 30)]).unwrap();
        assert!(slow.starts_with("2 of 3 brokers acknowledge"), "{slow}");
        let busy = said(&[(3_000, 90, 30), (3_000, 90, 30), (3_000, 60, 30)]).unwrap();
        assert!(busy.contains("240 % of a core, more than 70 % each"), "{busy}");
    }

    #[test]
    fn memory_and_logs_count_too() {
        let config = config(&["--scale-hold", "1m", "--scale-cool-down", "1m"]).unwrap();
        let said = |memory_bytes: u64, logs: [u64; 4]| {
            let mut scaling = Scaling::default();
            let found = (0..20).find_map(|turn| {
                let mut vitals = at(turn * 10_000, &[(10, 1, 30); 4]);
                for (of, wal_bytes) in vitals.values_mut().zip(logs) {
                    (of.memory_bytes, of.wal_bytes) = (memory_bytes, wal_bytes);
                }
                scaling.look(&config, turn * 10_000, (1, &[1, 2, 3, 4].into()), vitals)
            });
            found.map(|proposal| proposal.why().to_owned()).unwrap_or_default()
        };
        assert!(said(5 << 30, [0; 4]).contains("20480 MiB of memory, more than 4096 MiB each"));
        assert_eq!(said(2 << 30, [0; 4]), "", "three would have too much of it");
        assert!(said(1 << 30, [0; 4]).contains("broker 2 may go"));
        assert!(said(1 << 20, [5 << 30, 5 << 30, 5 << 30, 0]).contains("logs of 3 of 4 brokers"));
        assert_eq!(
            said(1 << 20, [5 << 30, 0, 0, 0]),
            "",
            "one that is behind is no reason for either"
        );
    }

    #[test]
    fn the_emptiest_may_go_but_not_the_leader_and_not_below_three() {
        let idle = [(10, 1, 30), (200, 1, 30), (100, 1, 30), (150, 1, 30)];
        let mut scaling = Scaling::default();
        let found = run(&mut scaling, 0, 400, &idle);
        assert!(matches!(found.as_slice(), [(300, Proposal::In { broker: 3, .. })]), "{found:?}");
        assert_eq!(run(&mut Scaling::default(), 0, 1_000, &idle[..3]), []);
        // Neither too much nor little enough.
        assert_eq!(run(&mut Scaling::default(), 0, 1_000, &[(3_000, 20, 30); 4]), []);
        // A broker that comes, goes or is silent begins everything anew.
        let mut scaling = Scaling::default();
        for round in 0..20 {
            let brokers = if round % 2 == 0 { &idle[..] } else { &idle[..3] };
            assert_eq!(run(&mut scaling, round * 60, round * 60 + 60, brokers), []);
        }
    }

    #[test]
    fn settings_say_what_is_wanted() {
        assert!(config(&["--scale-webhook", "ftp://x"]).unwrap_err().contains("https://HOST:PORT"));
        assert!(config(&["--scale-agents", "0"]).unwrap_err().contains("above 0"));
        assert_eq!(config(&[]).unwrap().brokers_min, 3);
    }
}
