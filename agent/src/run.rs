//! The agent's two loops: the sampler's thread and the network's.
//!
//! ```text
//! sample:  wait (timerfd, stop) -> tick -> seal into the ring -> wake
//! network: wait (UDP socket, ring's eventfd, stop, timers) -> read -> time out -> act -> send
//! ```
//!
//! The sampler never waits for the network. The network loop enrols first if there is no identity
//! yet, retrying for as long as it takes unless the broker refuses the token. On a stop, the
//! sampler seals its last event, and the network loop gives the broker `DRAIN` to acknowledge.

use crate::clock;
use crate::config::Config;
use crate::enrol::{Enrol, EnrolError};
use crate::ring::{Reader, Ring, RingError};
use crate::sampler::{Sampler, Tick, Trees};
use crate::schemas::Table;
use crate::sealer::Sealer;
use crate::state::{State, StateError};
use crate::uplink::{Status, Uplink, UplinkConfig};
use hugepage_config::{Region, Want};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::link::{
    Link, LinkConfig, LinkError, Offload, Progress, Side, Socket, SocketConfig,
};
use strobe_wire::message::Hello;
use strobe_wire::pki::{Identity, Role, Subject, Token};

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    stop: Stop,
    network: JoinHandle<Result<(), AgentError>>,
    status: Arc<Mutex<Status>>,
}

/// Ends an agent; clone it for a signal handler or another thread.
#[derive(Clone, Debug)]
pub struct Stop(Arc<EventFd>);

/// Why an agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is nobody to send to.
    #[error("no broker: set --broker HOST:PORT")]
    NoBroker,
    /// The first start needs a token.
    #[error("this host has not enrolled yet: set --token, as printed by `strobe token create`")]
    NoToken,
    /// The token is no token.
    #[error("--token: {0}")]
    Token(String),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The ring's memory.
    #[error("the ring of {slots} slots: {why}")]
    Memory {
        /// Slots wanted.
        slots: usize,
        /// Why there are none.
        why: String,
    },
    /// The ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The broker said no.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// A descriptor, a socket or a thread.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// A thread ended in a way it must not.
    #[error("the agent's {0} thread panicked; this is a bug")]
    Panicked(&'static str),
}

impl Agent {
    /// Starts both threads.
    ///
    /// # Errors
    /// What is wrong with the configuration, the state or the system.
    pub fn start(config: &Config) -> Result<Self, AgentError> {
        Self::start_with(config, Stop::new()?)
    }

    fn start_with(config: &Config, stop: Stop) -> Result<Self, AgentError> {
        let broker = config.broker.clone().ok_or(AgentError::NoBroker)?;
        let machine = std::fs::read_to_string(config.rootfs.join("etc/machine-id")).ok();
        let state = State::open(&config.dir, machine.as_deref())?;
        let identity = state.identity()?;
        let token = match (&identity, &config.token) {
            (Some(_), _) => None,
            (None, None) => return Err(AgentError::NoToken),
            (None, Some(text)) => {
                Some(text.parse::<Token>().map_err(|e| AgentError::Token(e.to_string()))?)
            }
        };
        let region = Region::map(config.ring_slots * FRAME_BYTES_MAX, Want::Transparent)
            .map_err(|e| AgentError::Memory { slots: config.ring_slots, why: e.to_string() })?;
        let ring = Ring::new(config.ring_slots, region)?;
        let table = Arc::new(Table::new());
        let trees = Trees {
            procfs: config.procfs.clone(),
            rootfs: config.rootfs.clone(),
            filesystem_interval_ms: config.filesystem_interval_ms,
        };
        let sampler = Sampler::new(&trees, clock::monotonic_ns, Arc::clone(&table));
        let hello = hello(config, &state, &sampler);
        let sealer = Sealer::new(state.host, state.boot, ring.writer);
        let sampling = spawn("strobe-sample", {
            let (stop, interval_ms) = (stop.clone(), config.interval_ms);
            move || sample(sampler, sealer, interval_ms, &stop)
        })?;
        let status = Arc::new(Mutex::new(Status::default()));
        let mut network = Network::new(broker, state, identity, ring.reader, &stop)?;
        (network.table, network.status) = (table, Arc::clone(&status));
        let network = spawn("strobe-uplink", {
            let stop = stop.clone();
            move || {
                let ended = network.run(hello, token, &sampling, &stop);
                // Whatever ended this loop, nobody would read what the sampler writes.
                stop.stop();
                match (ended, sampling.join()) {
                    (Ok(()), Ok(Ok(()))) => Ok(()),
                    (Err(error), _) | (Ok(()), Ok(Err(error))) => Err(error),
                    (Ok(()), Err(_)) => Err(AgentError::Panicked("sampler")),
                }
            }
        })?;
        Ok(Self { stop, network, status })
    }

    /// What the uplink does.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it has ended by itself: [`Self::wait`] says why.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.network.is_finished()
    }

    /// Ends it and waits for that, at most a few seconds.
    ///
    /// # Errors
    /// Why it had ended before.
    pub fn stop(self) -> Result<(), AgentError> {
        self.stop.stop();
        self.wait()
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// Why it ended, if nobody stopped it.
    pub fn wait(self) -> Result<(), AgentError> {
        self.network.join().map_err(|_| AgentError::Panicked("uplink"))?
    }
}

/// Runs an agent until `stop`.
///
/// # Errors
/// See [`AgentError`].
pub fn run(config: &Config, stop: &Stop) -> Result<(), AgentError> {
    Agent::start_with(config, stop.clone())?.wait()
}

impl Stop {
    /// Not stopped.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> Result<Self, AgentError> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let event = EventFd::from_value_and_flags(0, flags).map_err(io_error("make an eventfd"))?;
        Ok(Self(Arc::new(event)))
    }

    /// Stops; it may be called any number of times, from anywhere.
    pub fn stop(&self) {
        // Nobody reads it, so it stays readable; full is as good as one.
        let _ = self.0.write(1);
    }
}

fn hello(config: &Config, state: &State, sampler: &Sampler) -> Hello {
    let uname = sampler.uname();
    Hello {
        host: state.host.0,
        boot: state.boot.0,
        instance: config.instance.clone().unwrap_or_else(|| uname.nodename.clone()),
        job: config.job.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: uname.release.clone(),
        labels: config.labels.0.clone(),
        interval_ms: config.interval_ms,
    }
}

/// The sampler's loop.
fn sample(
    mut sampler: Sampler,
    mut sealer: Sealer,
    interval_ms: u64,
    stop: &Stop,
) -> Result<(), AgentError> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer =
        TimerFd::new(timerfd::ClockId::CLOCK_MONOTONIC, flags).map_err(io_error("make a timer"))?;
    let every = TimeSpec::from(Duration::from_millis(interval_ms));
    let soon = TimeSpec::from(Duration::from_millis(1));
    timer
        .set(Expiration::IntervalDelayed(soon, every), TimerSetTimeFlags::empty())
        .map_err(io_error("set the timer"))?;
    let tick = || Tick { wall_ns: clock::wall_ns(), boottime_ns: clock::boottime_ns() };
    sealer.event(tick(), "start", concat!("strobe-agent ", env!("CARGO_PKG_VERSION")));
    loop {
        let mut wait = [
            PollFd::new(timer.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.0.as_fd(), PollFlags::POLLIN),
        ];
        match nix::poll::poll(&mut wait, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(io_error("wait for the timer")(error)),
        }
        let [timed, stopped] = wait.map(|fd| fd.any() == Some(true));
        if stopped {
            sealer.event(tick(), "stop", "the agent was stopped");
            sealer.wake();
            return Ok(());
        }
        if timed {
            // EAGAIN: the timer was looked at too early; the next turn waits again.
            if timer.wait().is_err() {
                continue;
            }
            let now = tick();
            sealer.begin(now);
            sampler.tick(now, |row| sealer.row(now, &row));
            sealer.wake();
        }
    }
}

/// The network's loop and all it owns.
struct Network {
    broker: String,
    state: State,
    poll: Poll,
    socket: Socket,
    link: Link,
    ring: Reader,
    table: Arc<Table>,
    status: Arc<Mutex<Status>>,
    enrolled: bool,
}

/// What the loop is about.
enum Work {
    /// Getting an identity: the conversation, or when to begin the next.
    Enrol { token: Token, asking: Option<Box<Enrol>>, next: Instant, wait: Duration },
    /// Sending frames.
    Send(Box<Uplink>),
}

impl Network {
    fn new(
        broker: String,
        state: State,
        identity: Option<Identity>,
        ring: Reader,
        stop: &Stop,
    ) -> Result<Self, AgentError> {
        let poll = Poll::new().map_err(io_error("make a poll"))?;
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let mut socket = bind(any)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        let register = |source: &mut dyn mio::event::Source, token, interest| {
            poll.registry()
                .register(source, mio::Token(token), interest)
                .map_err(io_error("register with the poll"))
        };
        register(socket.source(), SOCKET, both)?;
        register(&mut SourceFd(&ring.as_fd().as_raw_fd()), RING, Interest::READABLE)?;
        register(&mut SourceFd(&stop.0.as_fd().as_raw_fd()), STOP, Interest::READABLE)?;
        let enrolled = identity.is_some();
        let link = link(&socket, identity)?;
        let (table, status) = (Arc::default(), Arc::default());
        Ok(Self { broker, state, poll, socket, link, ring, table, status, enrolled })
    }

    #[expect(clippy::disallowed_methods, reason = "this is the loop that reads the clock")]
    fn run(
        &mut self,
        hello: Hello,
        token: Option<Token>,
        sampling: &JoinHandle<Result<(), AgentError>>,
        stop: &Stop,
    ) -> Result<(), AgentError> {
        let mut now = Instant::now();
        let uplink = uplink_config(&self.broker, hello);
        let uplink = |now| Box::new(Uplink::new(uplink.clone(), now));
        let mut work = match token {
            Some(token) if !self.enrolled => {
                Work::Enrol { token, asking: None, next: now, wait: RETRY_MIN }
            }
            _ => Work::Send(uplink(now)),
        };
        let mut events = Events::with_capacity(8);
        let mut drain_until = None;
        let mut more = Progress::Idle;
        loop {
            let wait = self.wait(now, &work, more, drain_until);
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(io_error("wait for the network")(error));
                }
                _ => {}
            }
            now = Instant::now();
            let wall_ns = clock::wall_ns();
            self.link.set_wall_s(u64::try_from(wall_ns / 1_000_000_000).unwrap_or(0));
            if drain_until.is_none() && stop_asked(stop) {
                drain_until = Some(now + DRAIN);
            }
            self.ring.clear_wake();
            more = self.socket.receive(now, &mut self.link).map_err(io_error("receive"))?;
            self.link.on_timeout(now);
            if let Some(identity) = self.act(now, &mut work)? {
                identity.save(&self.state.dir).map_err(StateError::from)?;
                log::info!("enrolled as host {}", self.state.host);
                self.socket.transmit(now, &mut self.link);
                self.link = link(&self.socket, Some(identity))?;
                work = Work::Send(uplink(now));
                self.act(now, &mut work)?;
            }
            if self.socket.transmit(now, &mut self.link) == Progress::More {
                more = Progress::More;
            }
            let idle = self.publish(&work);
            if drain_until.is_some_and(|at| at <= now || (idle && sampling.is_finished())) {
                self.link.close_all(now, "the agent stops");
                self.socket.transmit(now, &mut self.link);
                return Ok(());
            }
        }
    }

    fn wait(
        &self,
        now: Instant,
        work: &Work,
        more: Progress,
        drain_until: Option<Instant>,
    ) -> Option<Duration> {
        if more == Progress::More {
            return Some(Duration::ZERO);
        }
        let mine = match work {
            Work::Enrol { asking: Some(enrol), .. } => Some(enrol.timeout()),
            Work::Enrol { next, .. } => Some(*next),
            Work::Send(uplink) => uplink.timeout(),
        };
        // While it drains, the sampler's end is looked for; nothing else would tell of it.
        let drain = drain_until.map(|at| at.min(now + DRAIN_LOOK));
        let next = [mine, self.link.timeout(), drain].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }

    /// Events, timers, dials; the identity when there is one.
    fn act(&mut self, now: Instant, work: &mut Work) -> Result<Option<Identity>, AgentError> {
        match work {
            Work::Send(uplink) => {
                while let Some(event) = self.link.poll() {
                    uplink.told(now, &event, &mut self.link, &mut self.ring);
                }
                uplink.on_timeout(now, &mut self.link, &mut self.ring);
                if let Some(broker) = uplink.wants(now) {
                    let remote = resolve(&broker).and_then(|remote| self.reach(remote));
                    uplink.dial(now, &mut self.link, remote);
                }
                let table = &self.table;
                uplink.pump(now, &mut self.link, &mut self.ring, table);
                Ok(None)
            }
            Work::Enrol { token, asking, next, wait } => {
                let outcome = match asking {
                    Some(enrol) => enrolling(now, enrol, &mut self.link),
                    None if now < *next => return Ok(None),
                    None => resolve(&self.broker)
                        .and_then(|remote| self.reach(remote))
                        .map_err(EnrolError::Lost)
                        .and_then(|remote| {
                            let subject = Subject { role: Role::Agent, host: self.state.host };
                            Enrol::begin(now, &mut self.link, remote, *token, subject)
                        })
                        .map(|enrol| {
                            *asking = Some(Box::new(enrol));
                            None
                        }),
                };
                match outcome {
                    Err(error @ EnrolError::Refused(_)) => Err(error.into()),
                    Err(error) => {
                        log::warn!("{error}; again in {wait:?}");
                        self.link.close_all(now, "enrolling failed");
                        (*asking, *next) = (None, now + *wait);
                        *wait = (*wait * 2).min(RETRY_MAX);
                        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
                        status.last_error = error.to_string();
                        Ok(None)
                    }
                    Ok(identity) => Ok(identity),
                }
            }
        }
    }

    /// Makes the socket one of `remote`'s family.
    fn reach(&mut self, remote: SocketAddr) -> Result<SocketAddr, String> {
        let bound = self.socket.local_addr().map_err(|error| error.to_string())?;
        if bound.is_ipv4() != remote.is_ipv4() {
            let any = match remote {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            };
            let mut socket = bind(any).map_err(|error| error.to_string())?;
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(socket.source(), mio::Token(SOCKET), both)
                .map_err(|error| error.to_string())?;
            self.socket = socket;
        }
        Ok(remote)
    }

    /// Shows the status; whether there is nothing left to be acknowledged, or nobody to do it.
    fn publish(&self, work: &Work) -> bool {
        let Work::Send(uplink) = work else { return true };
        let now = uplink.status();
        let idle = !now.streaming || now.unacknowledged == 0;
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = now;
        idle
    }
}

fn enrolling(
    now: Instant,
    enrol: &mut Enrol,
    link: &mut Link,
) -> Result<Option<Identity>, EnrolError> {
    while let Some(event) = link.poll() {
        if let Some(identity) = enrol.told(now, &event, link)? {
            return Ok(Some(identity));
        }
    }
    enrol.on_timeout(now)?;
    Ok(None)
}

fn uplink_config(broker: &str, hello: Hello) -> UplinkConfig {
    let [low, high] = [hello.boot, hello.boot >> 64]
        .map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(1));
    UplinkConfig { brokers: vec![broker.to_owned()], hello, seed: low ^ high }
}

fn bind(any: SocketAddr) -> Result<Socket, AgentError> {
    // One 64 KiB receive buffer: an agent hears acknowledgements.
    Socket::bind(&SocketConfig { bind: any, offload: Offload::Auto, batch: 1, kernel_bytes: 0 })
        .map_err(io_error("bind a UDP socket"))
}

fn link(socket: &Socket, identity: Option<Identity>) -> Result<Link, AgentError> {
    let wall_s = u64::try_from(clock::wall_ns() / 1_000_000_000).unwrap_or(0);
    Ok(Link::new(&LinkConfig {
        identity,
        side: Side::Agent,
        connections_max: CONNECTIONS_MAX,
        whole_datagrams: socket.keeps_datagrams_whole(),
        wall_s,
        seed: None,
        accept: None,
    })?)
}

/// Blocks for as long as the resolver does; the sampler does not wait for it.
fn resolve(broker: &str) -> Result<SocketAddr, String> {
    let mut found = broker.to_socket_addrs().map_err(|e| format!("resolving {broker}: {e}"))?;
    found.next().ok_or_else(|| format!("{broker} has no address"))
}

fn stop_asked(stop: &Stop) -> bool {
    let mut wait = [PollFd::new(stop.0.as_fd(), PollFlags::POLLIN)];
    matches!(nix::poll::poll(&mut wait, PollTimeout::ZERO), Ok(1))
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, AgentError> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(body)
        .map_err(io_error("start a thread"))
}

fn io_error<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> AgentError {
    move |source| AgentError::Io { what, source: source.into() }
}

const SOCKET: usize = 0;
const RING: usize = 1;
const STOP: usize = 2;
/// The one in use, and those saying good-bye.
const CONNECTIONS_MAX: usize = 8;
/// How long a stopping agent waits for acknowledgements.
const DRAIN: Duration = Duration::from_secs(2);
const DRAIN_LOOK: Duration = Duration::from_millis(20);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// The handshake's signatures are the deepest; only what is touched costs memory.
const STACK_BYTES: usize = 512 << 10;
