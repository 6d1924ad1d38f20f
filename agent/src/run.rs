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
use crate::network::{self, Network, Parts};
use crate::ring::{Reader, Ring, RingError};
use crate::sampler::{Sampler, Tick, Trees};
use crate::schemas::Table;
use crate::sealer::Sealer;
use crate::state::{State, StateError};
use crate::uplink::Status;
use hugepage_config::{Region, Want};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use strobe_wire::enrol::EnrolError;
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::link::{LinkError, Progress};
use strobe_wire::message::Hello;
use strobe_wire::pki::Token;

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
        let token = config.token.as_deref().map(str::parse::<Token>).transpose();
        let token = token.map_err(|error| AgentError::Token(error.to_string()))?;
        if identity.is_none() && token.is_none() {
            return Err(AgentError::NoToken);
        }
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
        let poll = wakeable(&ring.reader, &stop)?;
        let registry = poll.registry().try_clone().map_err(io_error("share a poll"))?;
        let (ring, status_out) = (ring.reader, Arc::clone(&status));
        let parts =
            Parts { broker, state, identity, token, ring, table, status: status_out, registry };
        let network = spawn("strobe-uplink", {
            let stop = stop.clone();
            move || {
                let ended = send(poll, parts, hello, &sampling, &stop);
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

/// The network's loop.
#[expect(clippy::disallowed_methods, reason = "this is the loop that reads the clock")]
fn send(
    mut poll: Poll,
    parts: Parts,
    hello: Hello,
    sampling: &JoinHandle<Result<(), AgentError>>,
    stop: &Stop,
) -> Result<(), AgentError> {
    let mut now = Instant::now();
    let mut network = Network::new(parts, hello, now, wall_s())?;
    let mut events = Events::with_capacity(8);
    let mut drain_until = None;
    let mut more = Progress::Idle;
    loop {
        // While it drains, the sampler's end is looked for; nothing else would tell of it.
        let drain = drain_until.map(|at: Instant| at.min(now + DRAIN_LOOK));
        let next = [network.timeout(), drain].into_iter().flatten().min();
        let wait = match more {
            Progress::More => Some(Duration::ZERO),
            Progress::Idle | Progress::Blocked => next.map(|at| at.saturating_duration_since(now)),
        };
        match poll.poll(&mut events, wait) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(io_error("wait for the network")(error));
            }
            _ => {}
        }
        now = Instant::now();
        if drain_until.is_none() && stop_asked(stop) {
            drain_until = Some(now + DRAIN);
        }
        more = network.turn(now, wall_s())?;
        let idle = network.publish();
        if drain_until.is_some_and(|at| at <= now || (idle && sampling.is_finished())) {
            network.close(now);
            return Ok(());
        }
    }
}

/// Woken by the ring and the stop; the socket comes later.
fn wakeable(ring: &Reader, stop: &Stop) -> Result<Poll, AgentError> {
    let poll = Poll::new().map_err(io_error("make a poll"))?;
    for (fd, token) in [(ring.as_fd(), RING), (stop.0.as_fd(), STOP)] {
        poll.registry()
            .register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)
            .map_err(io_error("register with the poll"))?;
    }
    Ok(poll)
}

fn wall_s() -> u64 {
    u64::try_from(clock::wall_ns() / 1_000_000_000).unwrap_or(0)
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

pub(crate) fn io_error<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> AgentError {
    move |source| AgentError::Io { what, source: source.into() }
}

const RING: mio::Token = mio::Token(network::SOCKET.0 + 1);
const STOP: mio::Token = mio::Token(network::SOCKET.0 + 2);
/// How long a stopping agent waits for acknowledgements.
const DRAIN: Duration = Duration::from_secs(2);
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// The handshake's signatures are the deepest; only what is touched costs memory.
const STACK_BYTES: usize = 512 << 10;
