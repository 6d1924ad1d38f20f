//! The loop that drives the fleet: the only place of this crate that reads the clock.

#![expect(clippy::disallowed_methods, reason = "the load generator's loop: it reads the clock")]

use crate::gaps::Gaps;
use crate::load::{Agent, Plan, Tally};
use crate::process;
use crate::process::Watch;
use crate::rows::{Model, Shape};
use mio::{Events, Interest, Poll, Token};
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::link::{
    Link, LinkConfig, LinkError, Offload, Progress, Side, Socket, SocketConfig,
};
use strobe_wire::pki::{Authority, Identity, PkiError, Role, Subject};
use strobe_wire::schema::Schema;

/// What to run.
#[derive(Clone, Debug)]
pub struct Load {
    /// The brokers.
    pub brokers: Vec<SocketAddr>,
    /// How many hosts.
    pub agents: usize,
    /// How a host's series lie in sections.
    pub shape: Shape,
    /// Series a host.
    pub series: usize,
    /// How long rows are made, after all are connected.
    pub lasting: Duration,
    /// Time between two ticks of a host.
    pub interval: Duration,
    /// How long the last acknowledgements are waited for.
    pub drain: Duration,
    /// The broker's process, to be measured.
    pub broker_pid: Option<u32>,
}

/// What a run found.
#[derive(Debug)]
pub struct Outcome {
    /// Counts and latencies.
    pub tally: Tally,
    /// Frames that were never acknowledged.
    pub lost: u64,
    /// Seconds in which rows were made.
    pub seconds: f64,
    /// Seconds until all were welcomed.
    pub connect_seconds: f64,
    /// CPU of this process in those seconds, ns.
    pub generator_cpu_ns: u64,
    /// What the broker cost while all connected.
    pub connect_cpu_ns: Option<u64>,
    /// What the broker cost in those seconds.
    pub broker: Option<Watch>,
    /// Of each host: frames made, and its times without an acknowledgement.
    pub hosts: Vec<(u64, Gaps)>,
}

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A socket or the poll.
    #[error("{what}: {why}; is the limit of open files (ulimit -n) above the number of agents?")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's reason.
        why: io::Error,
    },
    /// Certificates.
    #[error("making the agents' certificates: {0}")]
    Pki(#[from] PkiError),
    /// A link.
    #[error("making an agent's link: {0}")]
    Link(#[from] LinkError),
    /// Random numbers.
    #[error("the system gives no randomness: {0}")]
    Random(getrandom::Error),
    /// Not everything was acknowledged.
    #[error("{lost} frames were not acknowledged in {seconds} s: {reasons:?}")]
    Replay {
        /// How many.
        lost: u64,
        /// How long it was waited.
        seconds: u64,
        /// What was heard.
        reasons: Vec<String>,
    },
    /// Not all agents were welcomed.
    #[error("{welcomed} of {agents} agents were welcomed in {seconds} s: {reasons:?}")]
    Connect {
        /// How many were.
        welcomed: u64,
        /// Of how many.
        agents: usize,
        /// How long it was waited.
        seconds: u64,
        /// What was heard.
        reasons: Vec<String>,
    },
}

struct Fleet {
    poll: Poll,
    events: Events,
    members: Vec<Member>,
    /// When to look at which member; each at most once.
    timers: BTreeSet<(Instant, usize)>,
    tally: Tally,
    epoch: (Instant, SystemTime),
}

struct Member {
    agent: Agent,
    link: Link,
    socket: Socket,
    wake: Option<Instant>,
}

/// What a host has to tell of a time that is over, as a spool would.
#[derive(Clone, Debug)]
pub struct Past {
    /// Its name.
    pub instance: String,
    /// Times in ms, and the values of all sections at each.
    pub rows: Vec<(i64, Vec<u64>)>,
}

/// Who a simulated host is: its certificate and its ids.
#[derive(Debug)]
pub struct Host {
    /// Signed by the broker's authority.
    pub identity: Identity,
    /// In the certificate.
    pub host: HostId,
    /// This life.
    pub boot: BootId,
}

/// Certificates for `count` new hosts, signed here: a token is good for one enrolment only.
///
/// # Errors
/// No randomness, or the authority cannot sign.
pub fn hosts(authority: &Authority, count: usize) -> Result<Vec<Host>, RunError> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut hosts = Vec::with_capacity(count);
    for _ in 0..count {
        let (host, boot) = (HostId(random()?), BootId(random()?));
        let subject = Subject { role: Role::Agent, host };
        let identity = authority.issue(&subject, now_s, CERTIFICATE_S)?;
        hosts.push(Host { identity, host, boot });
    }
    Ok(hosts)
}

/// Connects all, makes rows, and waits until everything is acknowledged (or [`Load::drain`] is over).
///
/// # Errors
/// See [`RunError`]; frames that are not acknowledged are no error but [`Outcome::lost`].
pub fn load(load: &Load, hosts: Vec<Host>) -> Result<Outcome, RunError> {
    load_with(load, hosts, &mut || ControlFlow::Continue(()))
}

/// The same; `meanwhile` is asked again and again, from the first row on, whether to go on.
///
/// # Errors
/// As [`load`].
pub fn load_with(
    load: &Load,
    hosts: Vec<Host>,
    meanwhile: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Outcome, RunError> {
    let model = Model::new(load.shape, load.series);
    let mut fleet = Fleet::new(Plan::new(load.brokers.clone(), model, load.interval), hosts)?;
    let before = load.broker_pid.and_then(process::cpu_ns);
    let connect_seconds = fleet.connect()?;
    let mut broker = load.broker_pid.and_then(Watch::begin);
    let own = || process::cpu_ns(std::process::id()).unwrap_or(0);
    let own_before = own();
    let began = Instant::now();
    fleet.start(began, load.interval);
    let mut look = began + LOOK_EVERY;
    while began.elapsed() < load.lasting {
        fleet.turn(look.min(began + load.lasting))?;
        if look <= Instant::now() {
            look += LOOK_EVERY;
            broker.iter_mut().for_each(Watch::look);
        }
        if meanwhile().is_break() {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    broker.iter_mut().for_each(Watch::look);
    let generator_cpu_ns = own().saturating_sub(own_before);
    fleet.stop();
    let drained_by = Instant::now() + load.drain;
    while fleet.unacked() != 0 && Instant::now() < drained_by {
        fleet.turn(drained_by)?;
    }
    let lost = fleet.unacked();
    fleet.close();
    let connect_cpu_ns = broker.as_ref().zip(before).map(|(watch, before)| watch.begun_ns - before);
    let hosts =
        fleet.members.iter().map(|one| (one.agent.made(), one.agent.gaps().clone())).collect();
    let tally = fleet.tally;
    Ok(Outcome {
        tally,
        lost,
        seconds,
        connect_seconds,
        generator_cpu_ns,
        connect_cpu_ns,
        broker,
        hosts,
    })
}

/// Sends what each host has, and waits until all of it is acknowledged.
///
/// # Errors
/// See [`RunError`].
pub fn replay(
    broker: SocketAddr,
    schemas: Vec<Schema>,
    hosts: Vec<(Host, Past)>,
) -> Result<(), RunError> {
    let plan = Plan::new(vec![broker], Model::given(schemas), Duration::from_secs(15));
    let (hosts, past): (Vec<Host>, Vec<Past>) = hosts.into_iter().unzip();
    let mut fleet = Fleet::new(plan, hosts)?;
    let mut rest = Vec::with_capacity(past.len());
    for (member, past) in fleet.members.iter_mut().zip(past) {
        member.agent.name(past.instance);
        rest.push(past.rows.into_iter());
    }
    fleet.connect()?;
    let patience = Instant::now() + REPLAY;
    let mut done = false;
    while !done || fleet.unacked() != 0 {
        done = true;
        for (index, rows) in rest.iter_mut().enumerate() {
            let now = Instant::now();
            let agent = &mut fleet.members[index].agent;
            let before = rows.len();
            while agent.has_room()
                && let Some((at_ms, values)) = rows.next()
            {
                agent.push(now, at_ms * 1_000_000, &values, &mut fleet.tally);
            }
            done &= rows.len() == 0;
            if rows.len() != before {
                fleet.schedule(index, Some(now));
            }
        }
        if patience < Instant::now() {
            let (lost, reasons) = (fleet.unacked(), std::mem::take(&mut fleet.tally.reasons));
            return Err(RunError::Replay { lost, seconds: REPLAY.as_secs(), reasons });
        }
        fleet.turn(Instant::now() + Duration::from_millis(20))?;
    }
    fleet.close();
    Ok(())
}

impl Fleet {
    fn new(plan: Plan, hosts: Vec<Host>) -> Result<Self, RunError> {
        let epoch = (Instant::now(), SystemTime::now());
        let plan = Arc::new(plan);
        let mut fleet = Self {
            poll: Poll::new().map_err(io("making a poll"))?,
            events: Events::with_capacity(1024),
            members: Vec::with_capacity(hosts.len()),
            timers: BTreeSet::new(),
            tally: Tally::default(),
            epoch,
        };
        let wall_s = epoch.1.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        for (index, host) in hosts.into_iter().enumerate() {
            let mut socket = Socket::bind(&SocketConfig {
                bind: any_of(plan.brokers[0]),
                offload: Offload::Off,
                batch: 1,
                kernel_bytes: 0,
            })
            .map_err(io("binding an agent's socket"))?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registry = fleet.poll.registry();
            registry
                .register(socket.source(), Token(index), interest)
                .map_err(io("polling an agent's socket"))?;
            let link = Link::new(&LinkConfig {
                identity: Some(host.identity),
                side: Side::Agent,
                connections_max: 16, // those that were left linger for three round trips
                whole_datagrams: socket.keeps_datagrams_whole(),
                wall_s,
                seed: None,
                accept: None,
            })?;
            let agent = Agent::new(Arc::clone(&plan), host.host, host.boot);
            fleet.members.push(Member { agent, link, socket, wake: None });
        }
        Ok(fleet)
    }

    /// Until all were welcomed; the seconds it took.
    fn connect(&mut self) -> Result<f64, RunError> {
        let began = Instant::now();
        let agents = self.members.len();
        let patience = CONNECT + Duration::from_millis(5) * u32::try_from(agents).unwrap_or(0);
        let mut dialled = 0;
        while self.tally.welcomed < agents as u64 {
            let under_way = dialled - usize::try_from(self.tally.welcomed).unwrap_or(0);
            let first = dialled;
            dialled = agents.min(dialled + HANDSHAKES.saturating_sub(under_way));
            for index in first..dialled {
                self.members[index].agent.dial(Instant::now());
                self.schedule(index, Some(Instant::now()));
            }
            if patience < began.elapsed() {
                return Err(RunError::Connect {
                    welcomed: self.tally.welcomed,
                    agents,
                    seconds: patience.as_secs(),
                    reasons: std::mem::take(&mut self.tally.reasons),
                });
            }
            self.turn(began + patience)?;
        }
        Ok(began.elapsed().as_secs_f64())
    }

    /// Waits until something is due, at most until `until`, and does it.
    fn turn(&mut self, until: Instant) -> Result<(), RunError> {
        let now = Instant::now();
        let next = self.timers.first().map_or(until, |(at, _)| (*at).min(until));
        let wait = next.saturating_duration_since(now);
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(why) if why.kind() != io::ErrorKind::Interrupted => {
                return Err(RunError::Io { what: "polling", why });
            }
            _ => {}
        }
        let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        for index in ready {
            self.step(index)?;
        }
        // Those that are due now, once each: a step may make another timer that is due already.
        let now = Instant::now();
        let due: Vec<usize> =
            self.timers.range(..=(now, usize::MAX)).map(|(_, index)| *index).collect();
        for index in due {
            self.step(index)?;
        }
        Ok(())
    }

    fn step(&mut self, index: usize) -> Result<(), RunError> {
        let now = Instant::now();
        let wall_ns = self.wall_ns(now);
        let Some(Member { agent, link, socket, .. }) = self.members.get_mut(index) else {
            return Ok(());
        };
        let received = socket.receive(now, link).map_err(io("receiving"))?;
        link.on_timeout(now);
        agent.act(now, wall_ns, link, &mut self.tally);
        let sent = socket.transmit(now, link);
        // What sending freed is told as an event, which is seen to next time at the latest.
        let again = received == Progress::More || sent == Progress::More;
        let next = if again {
            Some(now)
        } else {
            [agent.timeout(), link.timeout()].into_iter().flatten().min()
        };
        self.schedule(index, next);
        Ok(())
    }

    fn schedule(&mut self, index: usize, at: Option<Instant>) {
        let Some(member) = self.members.get_mut(index) else { return };
        if let Some(before) = member.wake.take() {
            self.timers.remove(&(before, index));
        }
        if let Some(at) = at {
            member.wake = Some(at);
            self.timers.insert((at, index));
        }
    }

    /// Spreads the hosts' ticks evenly over the interval.
    fn start(&mut self, now: Instant, interval: Duration) {
        let count = u32::try_from(self.members.len()).unwrap_or(u32::MAX).max(1);
        for index in 0..self.members.len() {
            let offset =
                interval.mul_f64(f64::from(u32::try_from(index).unwrap_or(0)) / f64::from(count));
            self.members[index].agent.start(now + offset);
            self.schedule(index, Some(now));
        }
    }

    fn stop(&mut self) {
        for member in &mut self.members {
            member.agent.stop();
        }
    }

    fn unacked(&self) -> u64 {
        self.members.iter().map(|member| member.agent.unacked() as u64).sum()
    }

    fn close(&mut self) {
        let now = Instant::now();
        for Member { link, socket, .. } in &mut self.members {
            link.close_all(now, "the run is over");
            socket.transmit(now, link);
        }
    }

    fn wall_ns(&self, now: Instant) -> i64 {
        let (then, wall) = self.epoch;
        let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default() + (now - then);
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }
}

/// Milliseconds since the epoch, for names of results.
#[must_use]
pub fn wall_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis())
}

/// Microseconds since the epoch, for what other clocks of this machine wrote down.
#[must_use]
pub fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The clock, for [`crate::agents`].
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Sleeps, for [`crate::agents`].
pub fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}

fn any_of(broker: SocketAddr) -> SocketAddr {
    match broker {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn random() -> Result<u128, RunError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(RunError::Random)?;
    Ok(u128::from_le_bytes(bytes))
}

fn io(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |why| RunError::Io { what, why }
}

/// Time for one [`replay`].
const REPLAY: Duration = Duration::from_secs(180);
/// Handshakes at once: both ends' work for one is about a millisecond.
const HANDSHAKES: usize = 64;
/// Time for connecting, and 5 ms an agent more.
const CONNECT: Duration = Duration::from_secs(15);
/// How often memory is looked at: reading it walks the broker's pages, which is no small thing.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A simulated host's certificate lives a day.
const CERTIFICATE_S: u64 = 24 * 3600;
