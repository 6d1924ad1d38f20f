//! What is done to the processes of a run, on a thread of its own.

use super::site::{Site, election};
use super::{CALM, Harm, READY, Wanted};
use crate::gaps::Gaps;
use crate::run;
use crate::suite::row;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Wounds {
    pub(super) kills: u64,
    pub(super) stops: u64,
    /// Of these the Redis got.
    pub(super) of_redis: u64,
    /// One at a time, each healed before the next.
    pub(super) single: Vec<Single>,
}

/// A broker that was killed and came back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Single {
    led: bool,
    killed: Instant,
    back: Instant,
    healed: Instant,
    /// Where it led: until another one did.
    elected: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// SIGKILL, and another life later.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Stop,
}

/// Does what is wanted, until all of it is done or the run has ended.
pub(super) struct Hand<'a> {
    pub(super) site: &'a mut Site,
    pub(super) wanted: &'a Wanted,
    pub(super) ended: &'a AtomicBool,
    look: Instant,
    random: u64,
}

impl<'a> Hand<'a> {
    pub(super) fn new(site: &'a mut Site, wanted: &'a Wanted, ended: &'a AtomicBool) -> Self {
        Self { site, wanted, ended, look: run::now(), random: wanted.seed | 1 }
    }

    /// From the first row on.
    pub(super) fn work(mut self) -> Result<Wounds, String> {
        match self.wanted.harm {
            Harm::None => self.pass(run::now() + self.wanted.lasting),
            Harm::Some { every } => return self.strike(every, u64::MAX),
            Harm::Blows { count, every } => return self.strike(every, count),
            Harm::Kills { count } => return self.kill_singly(count),
        }
        Ok(Wounds::default())
    }

    /// Lets time pass, and looks at the brokers' memory now and then.
    fn pass(&mut self, until: Instant) {
        while run::now() < until && !self.ended.load(Ordering::Relaxed) {
            if self.look <= run::now() {
                self.look = run::now() + LOOK_EVERY;
                self.site.look();
            }
            run::sleep_until(until.min(run::now() + Duration::from_millis(20)));
        }
    }

    /// Blows at random. Those that are counted hit any process, however many are down already; the others one
    /// broker at a time, so that more than half stay.
    fn strike(&mut self, every: Duration, count: u64) -> Result<Wounds, String> {
        let any = count != u64::MAX;
        let (mut wounds, begun) = (Wounds::default(), run::now());
        let mut held: Vec<(usize, Instant, Blow)> = Vec::new();
        let mut next = begun + every;
        let last = if any { LASTING_MAX } else { self.wanted.lasting.saturating_sub(CALM) };
        while wounds.kills + wounds.stops < count
            && run::now() < begun + last
            && !self.ended.load(Ordering::Relaxed)
        {
            let wake = held.iter().map(|(_, back, _)| *back).min().map_or(next, |b| b.min(next));
            self.pass(wake);
            self.go_on(&mut held, run::now())?;
            if run::now() < next {
                continue;
            }
            next += every;
            let most = if any { self.site.processes() } else { (self.wanted.brokers - 1) / 2 };
            if held.len() < most {
                self.blow(any, &mut held, &mut wounds)?;
            }
        }
        let late = held.iter().map(|(_, back, _)| *back).max();
        self.pass(late.unwrap_or(begun));
        let far = run::now() + LASTING_MAX;
        self.go_on(&mut held, far)?;
        self.pass(if any { run::now() + CALM } else { begun + self.wanted.lasting });
        Ok(wounds)
    }

    fn blow(
        &mut self,
        any: bool,
        held: &mut Vec<(usize, Instant, Blow)>,
        wounds: &mut Wounds,
    ) -> Result<(), String> {
        let targets = if any { self.site.processes() } else { self.wanted.brokers };
        let mut victim = self.below(targets);
        while held.iter().any(|(at, ..)| *at == victim) {
            if !any {
                return Ok(());
            }
            victim = (victim + 1) % targets;
        }
        let blow = if self.below(2) == 0 { Blow::Kill } else { Blow::Stop };
        let most_ms = if any { 2_000 } else { 5_000 };
        let long = Duration::from_millis(500 + u64::try_from(self.below(most_ms)).unwrap_or(0));
        match blow {
            Blow::Kill => self.site.kill(victim),
            Blow::Stop => self.site.signal(victim, Signal::SIGSTOP)?,
        }
        wounds.kills += u64::from(blow == Blow::Kill);
        wounds.stops += u64::from(blow == Blow::Stop);
        wounds.of_redis += u64::from(self.wanted.brokers <= victim);
        held.push((victim, run::now() + long, blow));
        Ok(())
    }

    /// Those whose time has come live again.
    fn go_on(
        &mut self,
        held: &mut Vec<(usize, Instant, Blow)>,
        now: Instant,
    ) -> Result<(), String> {
        for (at, _, blow) in held.extract_if(.., |(_, back, _)| *back <= now) {
            match blow {
                Blow::Kill => self.site.begin_again(at)?,
                Blow::Stop => self.site.signal(at, Signal::SIGCONT)?,
            }
        }
        Ok(())
    }

    /// The leader and another one in turn; each is back and has its share before the next.
    fn kill_singly(&mut self, count: u64) -> Result<Wounds, String> {
        let mut wounds = Wounds::default();
        for number in 0..count {
            self.site.settle()?;
            // At any moment between two heartbeats, and of the hosts' second.
            let calm = QUIET + Duration::from_millis(u64::try_from(self.below(1_000)).unwrap_or(0));
            self.pass(run::now() + calm);
            if self.ended.load(Ordering::Relaxed) {
                break;
            }
            let leader = self.site.leader(0).ok_or("nobody leads a cluster that is well")?;
            let led = number % 2 == 0;
            let other = 1 + self.below(self.wanted.brokers - 1);
            let victim = if led { leader } else { (leader + other) % self.wanted.brokers };
            let others = self.site.brokers.iter().enumerate().filter(|(at, _)| *at != victim);
            let others: Vec<_> = others.map(|(_, broker)| broker.dir.clone()).collect();
            let killed = run::now();
            self.site.kill(victim);
            wounds.kills += 1;
            let elected = if led { election(&others, victim, killed) } else { None };
            self.pass(killed + AWAY);
            let back = run::now();
            self.site.begin_again(victim)?;
            self.site.settle()?;
            wounds.single.push(Single { led, killed, back, healed: run::now(), elected });
        }
        self.pass(run::now() + QUIET);
        Ok(wounds)
    }

    /// xorshift64.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 11).unwrap_or(0) % bound.max(1)
    }
}

impl Single {
    /// Of the hosts that were longer than a tick without an acknowledgement: how long, in order, and the
    /// same from its return until all had their share again.
    fn gaps(&self, hosts: &[(u64, Gaps)]) -> [Vec<Duration>; 2] {
        let within = |from: Instant, to: Instant| {
            let of = |(_, gaps): &(u64, Gaps)| {
                let begun = |(over, gap): &(Instant, Duration)| *over - *gap;
                let touches = |one: &&(Instant, Duration)| from < one.0 && begun(one) < to;
                gaps.long.iter().filter(touches).map(|(_, gap)| *gap).max()
            };
            let mut all: Vec<Duration> = hosts.iter().filter_map(of).collect();
            all.sort();
            all
        };
        [within(self.killed, self.back), within(self.back, self.healed + QUIET / 2)]
    }
}

/// A line of each kill, and of all together; the same as numbers.
pub(super) fn singly(single: &[Single], hosts: &[(u64, Gaps)]) -> (Vec<Vec<String>>, Value) {
    let (mut rows, mut kills) = (Vec::new(), Vec::new());
    let mut all = [Vec::new(), Vec::new()];
    let mut elections: Vec<f64> = Vec::new();
    for (number, one) in single.iter().enumerate() {
        let gaps = one.gaps(hosts);
        let elected = one.elected.map(|took| took.as_secs_f64());
        elections.extend(elected);
        let who = if one.led { "the leader" } else { "another one" };
        let led = elected.map(|s| format!("; another one led after {s:.2}")).unwrap_or_default();
        rows.push(row(
            &format!("{}: {who} killed: gaps of its hosts; in its return; s", number + 1),
            format!("{}; {}{led}", spread(&gaps[0]), spread(&gaps[1])),
        ));
        kills.push(json!({
            "led": one.led, "elected_s": elected, "hosts": gaps[0].len(),
            "gap_s_p50": at(&gaps[0], 50), "gap_s_p99": at(&gaps[0], 99), "gap_s_max": at(&gaps[0], 100),
            "return_hosts": gaps[1].len(), "return_gap_s_p99": at(&gaps[1], 99),
            "return_gap_s_max": at(&gaps[1], 100),
        }));
        all.iter_mut().zip(gaps).for_each(|(all, gaps)| all.extend(gaps));
    }
    all.iter_mut().for_each(|all| all.sort());
    elections.sort_by(f64::total_cmp);
    let longest = elections.last().copied();
    rows.push(row("All kills: gaps of their hosts, s", spread(&all[0])));
    rows.push(row("All returns: gaps of hosts, s", spread(&all[1])));
    let text: Vec<String> = elections.iter().map(|took| format!("{took:.2}")).collect();
    rows.push(row("Elections, s", text.join(", ")));
    let value = json!({
        "each": kills, "elected_s_max": longest, "gap_s_p50": at(&all[0], 50),
        "gap_s_p99": at(&all[0], 99), "gap_s_max": at(&all[0], 100), "return_gap_s_p99": at(&all[1], 99),
    });
    (rows, value)
}

fn spread(sorted: &[Duration]) -> String {
    let of = |percent| at(sorted, percent);
    let count = sorted.len();
    format!("{count} hosts, p50 {:.2}, p99 {:.2}, worst {:.2}", of(50), of(99), of(100))
}

fn at(sorted: &[Duration], percent: usize) -> f64 {
    let index = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(index).map_or(0.0, Duration::as_secs_f64)
}

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two that are killed singly.
const QUIET: Duration = Duration::from_secs(2);
/// How long one is away.
const AWAY: Duration = Duration::from_secs(6);
/// Longer than any run.
pub(super) const LASTING_MAX: Duration = Duration::from_secs(6 * 3600);
const _: () = assert!(READY.as_secs() < LASTING_MAX.as_secs());
