//! The lookout's threads: one that goes round, one that looks for machines, and as many as checks need.
//!
//! ```text
//!   strobe-lookout: wait, hear, know, do what is due, act
//!        | Job (bounded)            ^ Told: outcomes, machines found, look now, stop
//!        v                          |
//!   strobe-check × 0…64        strobe-find, while machines are looked for
//! ```
//!
//! A broker that has nothing to look after wakes once in [`IDLE`], and has none of the other threads.

use super::Broker;
use super::clock::{monotonic, wall_ms};
use super::error::BrokerError;
use super::loops::spawn;
use crate::cluster::{Answer, Asked, Report};
use crate::lookout::{Act, Job, Lookout, LookoutConfig, LookoutCounts, Outcome};
use crate::scaling::{self, Proposal, Scaling};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use strobe_cluster::Role;
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::kinds::targets::{self, Target};
use strobe_discovery::mdns::{self, Place};
use strobe_discovery::probe::Probe;
use strobe_discovery::resolver::Resolver;
use strobe_discovery::{Found, is_name, scan};

/// What the lookout's thread is told.
#[derive(Debug)]
pub(super) enum Told {
    /// What came of a check.
    Checked(Outcome),
    /// Machines, found by one way.
    Found(&'static str, Vec<Found>),
    /// All ways were gone.
    FoundAll,
    /// What the fleet knows has changed, or is to be looked for now.
    Look {
        /// Machines are to be looked for.
        find: bool,
    },
    /// It shall end.
    Stop,
}

/// How others reach the lookout.
#[derive(Debug)]
pub(super) struct LookoutDoor {
    told: Sender<Told>,
    counts: Arc<Mutex<LookoutCounts>>,
    proposal: Mutex<Option<Proposal>>,
}

struct Watch {
    broker: Broker,
    lookout: Lookout,
    since: Instant,
    told: Receiver<Told>,
    reply: Sender<Told>,
    counts: Arc<Mutex<LookoutCounts>>,
    jobs: SyncSender<Job>,
    open: Arc<Mutex<Receiver<Job>>>,
    workers: usize,
    under_way: usize,
    /// What of the agreed state is known.
    mark: Option<u128>,
    look_at: Instant,
    scaling: Scaling,
    scale_at: Instant,
    /// A machine that was found is not kept, and that was said.
    complained: bool,
}

impl LookoutDoor {
    /// The door, and what stands behind it.
    pub(super) fn new() -> (Self, Receiver<Told>) {
        let (told, behind) = channel();
        (Self { told, counts: Arc::default(), proposal: Mutex::default() }, behind)
    }

    /// What it counts.
    pub(super) fn counts(&self) -> LookoutCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this broker proposes.
    pub(super) fn proposal(&self) -> Option<Proposal> {
        self.proposal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn propose(&self, proposal: Option<Proposal>) {
        *self.proposal.lock().unwrap_or_else(PoisonError::into_inner) = proposal;
    }

    /// Says something to the thread, if it is still there.
    pub(super) fn say(&self, told: Told) {
        drop(self.told.send(told));
    }
}

impl Broker {
    /// Starts the thread that goes round.
    pub(super) fn lookout(&self, told: Receiver<Told>) -> Result<JoinHandle<()>, BrokerError> {
        let now = monotonic();
        let (jobs, open) = sync_channel(WORKERS_MAX);
        let watch = Watch {
            broker: self.clone(),
            lookout: Lookout::new(self.shared.config.lookout.clone(), 0),
            since: now,
            told,
            reply: self.shared.lookout.told.clone(),
            counts: Arc::clone(&self.shared.lookout.counts),
            jobs,
            open: Arc::new(Mutex::new(open)),
            workers: 0,
            under_way: 0,
            mark: None,
            look_at: now,
            scaling: Scaling::default(),
            scale_at: now,
            complained: false,
        };
        spawn("strobe-lookout", move || watch.run())
    }

    /// How the cluster stands, if this broker leads it.
    fn leads(&self) -> Option<Report> {
        match self.shared.cluster.ask(Asked::Report) {
            Ok(Answer::Report(report)) if report.role == Role::Leader => Some(*report),
            _ => None,
        }
    }
}

impl Watch {
    /// Wait, hear, know, do what is due, act.
    fn run(mut self) {
        loop {
            let first = match self.told.recv_timeout(self.patience()) {
                Ok(Told::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(told) => Some(told),
                Err(RecvTimeoutError::Timeout) => None,
            };
            let mut stops = false;
            let more: Vec<Told> = self.told.try_iter().take(HEARD_MAX).collect();
            for told in first.into_iter().chain(more) {
                stops |= matches!(told, Told::Stop);
                self.hear(told);
            }
            if stops {
                break;
            }
            if self.look_at <= monotonic() {
                self.know();
            }
            let free = WORKERS_MAX - self.under_way.min(WORKERS_MAX);
            let now_ms = self.now_ms();
            self.lookout.on_timeout(now_ms, wall_ms(), free);
            while let Some(act) = self.lookout.poll() {
                self.act(act);
            }
            *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = self.lookout.counts();
        }
        // The other threads end by themselves when nobody listens; a name server, or a machine that does
        // not answer, does not keep the broker from ending.
    }

    fn patience(&self) -> Duration {
        let due = self.lookout.timeout_ms().map(|ms| self.since + Duration::from_millis(ms));
        // Without a free worker nothing can begin before something ends.
        let due = due.filter(|_| self.under_way < WORKERS_MAX);
        let at = due.map_or(self.look_at, |due| due.min(self.look_at));
        at.saturating_duration_since(monotonic())
    }

    fn now_ms(&self) -> u64 {
        let passed = monotonic().saturating_duration_since(self.since).as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Checked(outcome) => {
                self.under_way = self.under_way.saturating_sub(1);
                self.lookout.checked(&outcome);
            }
            Told::Found(way, found) => self.lookout.found(way, found),
            Told::FoundAll => {
                self.complained = false;
                let now_ms = self.now_ms();
                self.lookout.found_all(now_ms);
            }
            Told::Look { find } => {
                self.look_at = monotonic();
                if find {
                    self.lookout.find_now();
                }
            }
            Told::Stop => {}
        }
    }

    /// Looks at what is agreed on, if that is this broker's part.
    fn know(&mut self) {
        let cluster = &self.broker.shared.cluster;
        let mark = cluster.look(targets::mark).ok();
        // One broker looks after the fleet's machines: it is alone, or leads.
        let leads = self.broker.shared.is_clustered().then(|| self.broker.leads());
        let wanted = mark.filter(|_| !matches!(leads, Some(None)));
        if self.mark != wanted {
            let now: Result<Vec<Target>, String> = match wanted {
                Some(_) => cluster.look(targets::targets),
                None => Ok(Vec::new()),
            };
            match now {
                Ok(targets) => {
                    self.mark = wanted;
                    let now_ms = self.now_ms();
                    self.lookout.know(targets, now_ms, wall_ms());
                }
                Err(why) => log::warn!("the machines that are agreed on are not known: {why}"),
            }
        }
        self.scale(leads.flatten());
        let counts = self.lookout.counts();
        let busy = 0 < counts.targets || self.lookout.config().finds();
        self.look_at = monotonic() + if busy { LOOK_EVERY } else { IDLE };
    }

    /// Looks whether the cluster should have more brokers or fewer.
    fn scale(&mut self, leads: Option<Report>) {
        let shared = &self.broker.shared;
        let Some(report) = leads else {
            self.scaling.forget();
            shared.lookout.propose(None);
            return;
        };
        if monotonic() < self.scale_at {
            return;
        }
        self.scale_at = monotonic() + SCALE_EVERY;
        let votes = report.members.iter().filter(|m| m.stage == Stage::Voter && !m.down);
        let votes: BTreeSet<u64> = votes.map(|known| known.id).collect();
        let mut vitals = self.broker.all_vitals(report.me);
        vitals.retain(|id, _| votes.contains(id));
        let (config, now_ms) = (&shared.config.scaling, self.now_ms());
        let proposal = self.scaling.look(config, now_ms, (report.me, &votes), vitals);
        shared.lookout.propose(self.scaling.standing().cloned());
        let Some(proposal) = proposal else { return };
        log::warn!("{}", proposal.why());
        let told = config.command.is_some() || config.webhook.is_some();
        let mut address = String::new();
        if let Proposal::In { broker, .. } = &proposal {
            let known = report.members.iter().find(|known| known.id == *broker);
            address = known.map(|known| known.address.clone()).unwrap_or_default();
            // Who removes its machine is told when it gives its shards away, and not before.
            if told && let Err(refused) = self.broker.settle(members::Change::drain(*broker)) {
                let why = String::from_utf8_lossy(&refused.body);
                log::warn!("broker {broker} is not drained: {why}");
                return;
            }
        }
        let config = config.clone();
        let hook = spawn("strobe-scale", move || {
            if let Err(why) = scaling::tell(&config, &proposal, &address, monotonic) {
                log::warn!("what makes and removes machines was not told: {why}");
            }
        });
        if let Err(why) = hook {
            log::error!("no thread to tell what is proposed: {why}");
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            // Another broker does it.
            Act::Find if self.mark.is_none() => {
                let now_ms = self.now_ms();
                self.lookout.found_all(now_ms);
            }
            Act::Find => self.find(),
            Act::Propose(found, way) => {
                let address = found.address.map(|a| a.to_string()).unwrap_or_default();
                let change = targets::Change::found(&found.name, &address, way, wall_ms());
                match self.broker.settle(change) {
                    Ok(_) => log::info!("{} was found by {way} {address}", found.name),
                    // A range may have more machines than the fleet keeps: one sentence is enough.
                    Err(refused) if !std::mem::replace(&mut self.complained, true) => {
                        let why = String::from_utf8_lossy(&refused.body);
                        log::warn!(
                            "{} was found and is not kept, as others may be: {why}",
                            found.name
                        );
                    }
                    Err(_) => {}
                }
                self.look_at = monotonic();
            }
            Act::Check(job) => {
                self.under_way += 1;
                if self.workers < self.under_way.min(WORKERS_MAX) {
                    self.work();
                }
                // There are never more than the queue takes.
                let sent = self.jobs.try_send(job).is_ok();
                debug_assert!(sent, "a check found the queue full");
            }
            Act::Store(series) => {
                let count = series.len();
                if let Err(why) = self.broker.write(series) {
                    log::warn!("{count} samples of checks are not stored: {why}");
                    self.lookout.lost(count);
                }
            }
        }
    }

    /// One more thread for checks.
    fn work(&mut self) {
        let (open, reply) = (Arc::clone(&self.open), self.reply.clone());
        let config = self.lookout.config().clone();
        let worker = spawn("strobe-check", move || {
            loop {
                let next = open.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(job) = next else { return };
                let begun = monotonic();
                let result = try_check(&job, &config);
                let seconds = monotonic().saturating_duration_since(begun).as_secs_f64();
                let outcome = Outcome { job, at_ms: wall_ms(), seconds, result };
                if reply.send(Told::Checked(outcome)).is_err() {
                    return;
                }
            }
        });
        match worker {
            Ok(_) => self.workers += 1,
            Err(why) => log::error!("no thread for checks: {why}"),
        }
    }

    fn find(&mut self) {
        let (config, reply) = (self.lookout.config().clone(), self.reply.clone());
        let stopping = Arc::clone(&self.broker.shared.stopping);
        let finder = spawn("strobe-find", move || {
            let tell = |way, found: Vec<Found>| drop(reply.send(Told::Found(way, found)));
            find_named(&config, &tell);
            if !config.mdns.is_empty() {
                let place = Place { interface: config.mdns_interface, port: mdns::PORT };
                match mdns::browse(place, &config.mdns, MDNS_WAIT) {
                    Ok(found) => tell("mdns", found),
                    Err(why) => log::warn!("{why}"),
                }
            }
            if let Some(plan) = &config.scan {
                log::info!("scanning {plan}");
                let mut found = BTreeMap::new();
                let scanned = scan::scan(plan, monotonic, &stopping, |address, port| {
                    found.entry(address).or_insert(port);
                });
                match scanned {
                    Ok(done) => log::info!("{} of {} connections were open", done.open, done.tried),
                    Err(why) => log::warn!("the scan ended early: {why}"),
                }
                let machine = |(address, port): (IpAddr, u16)| Found {
                    name: address.to_string(),
                    address: Some(address),
                    port,
                };
                tell("scan", found.into_iter().map(machine).collect());
            }
            drop(reply.send(Told::FoundAll));
        });
        if let Err(why) = finder {
            log::error!("no thread to look for machines: {why}");
            let now_ms = self.now_ms();
            self.lookout.found_all(now_ms);
        }
    }
}

/// Those of the settings, and those that DNS names.
fn find_named(config: &LookoutConfig, tell: &dyn Fn(&'static str, Vec<Found>)) {
    let named = config.named.iter().cloned();
    tell("static", named.map(|(name, address)| Found { name, address, port: 0 }).collect());
    if config.srv.is_empty() {
        return;
    }
    let resolver = Resolver::of_file(Path::new("/etc/resolv.conf"));
    let mut found = Vec::new();
    for name in &config.srv {
        match resolver.srv(name) {
            Ok(services) => found.extend(services.into_iter().map(|service| Found {
                name: service.target,
                address: None,
                port: service.port,
            })),
            Err(why) => log::warn!("{why}"),
        }
    }
    found.retain(|one| is_name(&one.name));
    found.sort();
    found.dedup_by(|a, b| a.name == b.name);
    tell("srv", found);
}

fn try_check(job: &Job, config: &LookoutConfig) -> Result<(), String> {
    let address = match job.address.parse() {
        Ok(address) => address,
        Err(_) => {
            let found = (job.address.as_str(), 0).to_socket_addrs();
            let mut found = found.map_err(|why| format!("{}: {why}", job.address))?;
            let first = found.next().as_ref().map(SocketAddr::ip);
            first.ok_or_else(|| format!("{} has no address", job.address))?
        }
    };
    let probe = Probe {
        name: &job.name,
        address,
        patience: config.patience,
        scripts: config.scripts.as_deref(),
        clock: monotonic,
    };
    probe.try_check(&job.check)
}

/// Checks that wait for an answer at once; a thread each.
const WORKERS_MAX: usize = 64;
const HEARD_MAX: usize = 1024;
/// How soon a change of what is agreed on is seen.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same while there is nothing to look after.
const IDLE: Duration = Duration::from_secs(5);
const SCALE_EVERY: Duration = Duration::from_secs(10);
const MDNS_WAIT: Duration = Duration::from_secs(2);
