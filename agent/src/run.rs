//! The agent's two loops: the sampler's thread and the network's.
//!
//! ```text
//! sample:  wait (timer, stop) -> tick -> seal into the ring -> the network's turn, or wake it
//! network: wait (UDP socket, sampler, stop, signals, timers) -> read -> time out -> act -> send
//! ```
//!
//! While all goes well the network's thread sleeps, and the sampler's takes its turn once a tick
//! (`run/turns.rs` says when): that is one wake-up a tick instead of three. The sampler never waits
//! for the network: a turn is bounded, and if the other thread is at it, it is only woken. The
//! network loop enrols first if there is no identity yet, retrying for as long as it takes unless
//! the broker refuses the token. On a stop, the sampler seals its last event, and the network loop
//! gives the broker `DRAIN` to acknowledge.

mod answering;
#[cfg(feature = "inputs")]
mod inputs;
mod network;
mod reach;
mod recording;
mod remake;
mod turns;

pub use reach::reach;

use crate::clock::{self, until_multiple_ns};
use crate::config::Config;
#[cfg(feature = "inputs")]
use crate::input::Outbox;
use crate::machine::Machine;
use crate::managed::Managed;
use crate::recorder::{Bell, Shipper};
use crate::ring::{Ring, RingError};
use crate::sampler::{Sampler, Tick};
use crate::schemas::Table;
use crate::sealer::Sealer;
use crate::spool::{Numbers, SpoolSection};
use crate::state::{State, StateError};
use crate::uplink::Status;
use hugepage_config::{Region, Want};
use network::Parts;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use remake::{Desk, Remaker};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use strobe_wire::enrol::EnrolError;
use strobe_wire::ids::HostId;
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::link::LinkError;
use strobe_wire::message::Hello;
use strobe_wire::pki::Token;
use turns::{Errand, Handover};

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    stop: Stop,
    network: JoinHandle<Result<(), AgentError>>,
    status: Arc<Mutex<Status>>,
}

/// Ends one agent; clone it for another thread.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Ends>);

#[derive(Debug)]
struct Ends {
    /// What the sampler waits for, and for nothing else: stopping sets it off.
    timer: TimerFd,
    stopped: AtomicBool,
    /// Readable once it is over; nobody reads it.
    event: EventFd,
    /// Readable once a signal has come, which the network loop makes the event.
    signals: Option<SignalFd>,
    /// Readable when SIGUSR2 has come: a person wants a burst.
    burst: Option<SignalFd>,
}

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
        let stop = Stop::new()?;
        let status = Arc::new(Mutex::new(Status::default()));
        let errand = begin(config, stop.clone(), Arc::clone(&status))?;
        let network = spawn("strobe-uplink", move || errand.run())?;
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

/// Runs an agent until `stop`; the calling thread is its network loop.
///
/// # Errors
/// See [`AgentError`].
pub fn run(config: &Config, stop: &Stop) -> Result<(), AgentError> {
    begin(config, stop.clone(), Arc::default())?.run()
}

/// Starts the sampler; what is returned is the network loop, to be run.
fn begin(config: &Config, stop: Stop, status: Arc<Mutex<Status>>) -> Result<Errand, AgentError> {
    let broker = config.broker.clone().ok_or(AgentError::NoBroker)?;
    let trees = config.trees();
    let state = State::open(&config.dir, &Machine::read(&trees.rootfs, &trees.sysfs))?;
    let identity = state.identity()?;
    let token = config.token.as_deref().map(str::parse::<Token>).transpose();
    let token = token.map_err(|error| AgentError::Token(error.to_string()))?;
    if identity.is_none() && token.is_none() {
        return Err(AgentError::NoToken);
    }
    // Small ones lie on plain pages, which any host has: huge ones gain nothing there. All of them now: the
    // ring goes round in a minute, and until then each tick would stop for the kernel to find some.
    let bytes = config.ring_slots * FRAME_BYTES_MAX;
    let want = if bytes < HUGE_FROM_BYTES { Want::Plain } else { Want::Hugetlb };
    let mut region = Region::map(bytes, want)
        .map_err(|e| AgentError::Memory { slots: config.ring_slots, why: e.to_string() })?;
    region.prefault();
    let ring = Ring::new(config.ring_slots, region)?;
    let table = Arc::new(Table::of(ring.writer.marks()));
    let (managed, config) = Managed::new(config.clone(), state.configuration());
    let config = &config;
    let sampler = Sampler::new(&config.trees(), clock::monotonic_ns, Arc::clone(&table));
    let hello = hello(config, &state, &sampler);
    let cloned_from = state.cloned_from;
    let sealer = Sealer::new(state.host, state.boot, ring.writer);
    let bell = Bell::default();
    let mut remaker = Remaker::new(Arc::clone(&table), bell.clone(), stop.clone(), state.host.0);
    // Before the sampler's thread: what fails here must not leave one behind. The recorder's ends with
    // its remaker.
    let (pace, shipper) = (remaker.pace(config), remaker.record(config)?);
    let desk = remaker.desk();
    let ring = ring.reader;
    #[cfg(feature = "inputs")]
    let inputs_table = Arc::clone(&table);
    let spool_numbers = Arc::new(Numbers::default());
    let spool_section = SpoolSection::new(Arc::clone(&spool_numbers), Arc::clone(&table));
    let spool = config.spool();
    let parts = Parts {
        broker,
        state,
        identity,
        token,
        hello,
        ring,
        table,
        spool,
        spool_numbers,
        status,
        bell,
        config: config.clone(),
        managed,
        remaker,
    };
    let errand = Errand::new(parts, stop.clone())?;
    let handover = errand.handover();
    let sampled = Sampled {
        sampler,
        sealer,
        cloned_from,
        shipper,
        spool: spool_section,
        desk,
        #[cfg(feature = "inputs")]
        inputs: inputs::start(&config.inputs, &inputs_table, &stop)?,
    };
    let sampling = spawn("strobe-sample", move || sample(sampled, pace, &handover, &stop))?;
    Ok(errand.with(sampling))
}

impl Stop {
    /// Not stopped.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> Result<Self, AgentError> {
        Self::with(None, None)
    }

    /// Not stopped, but SIGTERM and SIGINT will, and SIGUSR2 is for the recorder: they are blocked
    /// in this thread and in all that it starts from now on.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn on_signals() -> Result<Self, AgentError> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGINT);
        let burst = SigSet::from(Signal::SIGUSR2);
        for set in [&signals, &burst] {
            set.thread_block().map_err(io_error("block signals"))?;
        }
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let open = |set| SignalFd::with_flags(set, flags).map_err(io_error("make a signalfd"));
        Self::with(Some(open(&signals)?), Some(open(&burst)?))
    }

    fn with(signals: Option<SignalFd>, burst: Option<SignalFd>) -> Result<Self, AgentError> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let event = EventFd::from_value_and_flags(0, flags).map_err(io_error("make an eventfd"))?;
        let timer = TimerFd::new(timerfd::ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC)
            .map_err(io_error("make a timer"))?;
        let stopped = AtomicBool::new(false);
        Ok(Self(Arc::new(Ends { timer, stopped, event, signals, burst })))
    }

    fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    /// Stops; it may be called any number of times, from anywhere.
    pub fn stop(&self) {
        // First, so that a sampler that sets its timer after this does not wait for it.
        self.0.stopped.store(true, Ordering::SeqCst);
        let at_once = Expiration::OneShot(TimeSpec::from(Duration::from_nanos(1)));
        // The descriptor is a timer and the time is a time: it cannot be refused.
        let _ = self.0.timer.set(at_once, TimerSetTimeFlags::TFD_TIMER_ABSTIME);
        // Nobody reads it, so it stays readable; full is as good as one.
        let _ = self.0.event.write(1);
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

/// When to tick: every so often on the wall clock, at the host's own moment.
#[derive(Clone, Copy)]
struct Pace {
    every: Duration,
    after: Duration,
}

/// What the sampler's loop is about.
struct Sampled {
    sampler: Sampler,
    sealer: Sealer,
    /// Told with each start: the host whose disk this one's is a copy of.
    cloned_from: Option<HostId>,
    shipper: Option<Shipper>,
    spool: SpoolSection,
    desk: Arc<Desk>,
    /// Rows of other inputs, if there are any.
    #[cfg(feature = "inputs")]
    inputs: Option<Outbox>,
}

/// The sampler's loop: one tick at once, then one at the host's moment of every interval.
#[expect(clippy::disallowed_methods, reason = "this is a loop that reads the clock")]
fn sample(of: Sampled, mut pace: Pace, handover: &Handover, stop: &Stop) -> Result<(), AgentError> {
    let Sampled { mut sampler, mut sealer, mut shipper, mut spool, desk, .. } = of;
    aim(&stop.0.timer, pace)?;
    let tick = || Tick { wall_ns: clock::wall_ns(), boottime_ns: clock::boottime_ns() };
    sealer.event(tick(), "start", concat!("strobe-agent ", env!("CARGO_PKG_VERSION")));
    if let Some(host) = of.cloned_from {
        sealer.event(tick(), "cloned", &format!("the disk is a copy of host {host}'s"));
    }
    loop {
        let now = tick();
        sealer.begin(now);
        sampler.tick(now, |row| {
            sealer.row(now, &row);
            if let Some(shipper) = &mut shipper {
                shipper.watch(&row);
            }
        });
        spool.tick(|row| sealer.row(now, &row));
        #[cfg(feature = "inputs")]
        if let Some(inputs) = &of.inputs {
            inputs.drain(|at, row| sealer.row(at, &row));
        }
        if let Some(shipper) = &mut shipper {
            shipper.tick(now, &mut sealer);
        }
        desk.ticked();
        handover.ticked(Instant::now());
        if wait(pace, stop)? == Woken::Stopped {
            sealer.event(tick(), "stop", "the agent was stopped");
            return Ok(());
        }
        if let Some(remade) = desk.take() {
            (sampler, pace) = (remade.sampler, remade.pace);
            shipper = remade.shipper.unwrap_or(shipper);
            sealer.event(tick(), "configured", "another configuration is in force");
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    Due,
    Stopped,
}

/// Waits for the next tick, in one system call.
fn wait(pace: Pace, stop: &Stop) -> Result<Woken, AgentError> {
    let timer = &stop.0.timer;
    while !stop.is_stopped() {
        match nix::unistd::read(timer, &mut [0; 8]) {
            Ok(_) if stop.is_stopped() => break,
            Ok(_) => return Ok(Woken::Due),
            // Somebody set the wall clock: its multiples are elsewhere now.
            Err(Errno::ECANCELED) => aim(timer, pace)?,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(io_error("read the timer")(error)),
        }
    }
    Ok(Woken::Stopped)
}

/// Sets the timer to the host's moment of every interval.
fn aim(timer: &TimerFd, Pace { every, after }: Pace) -> Result<(), AgentError> {
    let now_ns = clock::wall_ns();
    let first_ns = now_ns.saturating_add(until_multiple_ns(now_ns, every, after));
    let first = Duration::from_nanos(u64::try_from(first_ns).unwrap_or(0));
    timer
        .set(
            Expiration::IntervalDelayed(TimeSpec::from(first), TimeSpec::from(every)),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
        )
        .map_err(io_error("set the timer"))
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

/// Huge pages gain 5 to 27 % from here on (`strobe-hugepages plan` measures it).
const HUGE_FROM_BYTES: usize = 32 << 20;
/// The handshake's signatures are the deepest; only what is touched costs memory.
const STACK_BYTES: usize = 512 << 10;
