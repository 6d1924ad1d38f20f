//! Whose turn it is: the network's thread and the sampler's take turns at one [`Network`].
//!
//! ```text
//!           streaming, and every tick acknowledged before the next, calm_wanted times
//!   Busy ---------------------------------------------------------------------------> Quiet
//!     ^    the network's thread listens                 the sampler's thread reads what came,  |
//!     |    and is woken by every tick                   and sends, once a tick                 |
//!     +------------------------------------------------------------------------------------+
//!       an acknowledgement late, a datagram lost, a full socket, an event other than of the stream,
//!       a renewal, the end of the agent, a sampler that is OVERDUE
//! ```
//!
//! A wake-up costs more than what is done in it (a few µs of QUIC in 60 to 100 µs of a switch with
//! cold caches), so while nothing happens there is one a tick: the sampler's. In `Quiet` the
//! socket is not in the poll, the network's thread sleeps, and datagrams wait in the kernel for the
//! next tick but one. The link hears of them as of when they came (`Socket::receive_late`), so its round
//! trips and time-outs are right; that it acknowledges with a later tick, the broker knows
//! ([`Hello::patience`](strobe_wire::message::Hello::patience)). A row that is lost is missed when
//! the socket is read next, and sent again then.
//!
//! The sampler's thread never waits here: it tries the lock, reads and sends without blocking and at
//! most a bounded number of datagrams, and leaves to the other thread what may take long (names,
//! handshakes, files, the log).

use super::network::{Network, Parts, SOCKET, Work};
use super::{AgentError, Stop, io_error};
use crate::clock;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Waker};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use strobe_wire::link::{Event, Late, Progress};

/// The network's loop with what it is about, until it is run.
pub(super) struct Errand {
    poll: Poll,
    shared: Arc<Shared>,
    stop: Stop,
    sampling: Option<JoinHandle<Result<(), AgentError>>>,
}

/// The sampler's end of it. Dropping it says that the sampler has ended.
pub(super) struct Handover(Arc<Shared>);

struct Shared {
    turns: Mutex<Turns>,
    waker: Arc<Waker>,
    /// The sampler has ended. `Release` by it and `Acquire` by the network's thread: what it sealed
    /// last is seen in the ring.
    ended: AtomicBool,
}

/// The network, and whose it is.
struct Turns {
    network: Network,
    work: Work,
    mode: Mode,
    /// When the socket was read last.
    looked: Instant,
    /// The tick before did not read it.
    skipped: bool,
    /// Ticks in a row that found all before them acknowledged, and no datagram lost.
    calm: u32,
    /// How many are wanted.
    calm_wanted: u32,
    /// Something is left over from the turn before.
    more: Progress,
    drain_until: Option<Instant>,
    /// It has been quiet once.
    settled: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Busy,
    Quiet,
}

/// What a poll said.
#[derive(Clone, Copy)]
struct Heard {
    socket: bool,
    tick: bool,
    stop: bool,
}

/// What becomes of the network's thread.
enum Next {
    /// It waits so long at most.
    Wait(Duration),
    Done,
}

impl Errand {
    #[expect(clippy::disallowed_methods, reason = "this is the loop that reads the clock")]
    pub(super) fn new(parts: Parts, stop: Stop) -> Result<Self, AgentError> {
        let poll = Poll::new().map_err(io_error("make a poll"))?;
        let registry = poll.registry().try_clone().map_err(io_error("make a poll"))?;
        let ends = [Some(stop.0.event.as_fd()), stop.0.signals.as_ref().map(AsFd::as_fd)];
        for end in ends.into_iter().flatten() {
            registry
                .register(&mut SourceFd(&end.as_raw_fd()), STOP, Interest::READABLE)
                .map_err(io_error("register with the poll"))?;
        }
        let waker = Arc::new(Waker::new(&registry, TICK).map_err(io_error("make a waker"))?);
        let now = Instant::now();
        let network = Network::new(parts, registry, Arc::clone(&waker))?;
        let turns = Turns {
            work: network.work(now),
            network,
            mode: Mode::Busy,
            looked: now,
            skipped: false,
            calm: 0,
            calm_wanted: CALM_TICKS,
            more: Progress::Idle,
            drain_until: None,
            settled: false,
        };
        let shared = Shared { turns: Mutex::new(turns), waker, ended: AtomicBool::new(false) };
        Ok(Self { poll, shared: Arc::new(shared), stop, sampling: None })
    }

    /// For the sampler.
    pub(super) fn handover(&self) -> Handover {
        Handover(Arc::clone(&self.shared))
    }

    /// With the sampler's thread, to be ended with the network's.
    pub(super) fn with(mut self, sampling: JoinHandle<Result<(), AgentError>>) -> Self {
        self.sampling = Some(sampling);
        self
    }

    /// Runs until it is stopped, and ends the sampler.
    pub(super) fn run(mut self) -> Result<(), AgentError> {
        let ended = self.work();
        // Whatever ended the loop, nobody would read what the sampler writes.
        self.stop.stop();
        match (ended, self.sampling.map(JoinHandle::join)) {
            (Ok(()), None | Some(Ok(Ok(())))) => Ok(()),
            (Err(error), _) | (Ok(()), Some(Ok(Err(error)))) => Err(error),
            (Ok(()), Some(Err(_))) => Err(AgentError::Panicked("sampler")),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the loop that reads the clock")]
    fn work(&mut self) -> Result<(), AgentError> {
        let mut events = Events::with_capacity(8);
        let mut wait = Duration::ZERO;
        // Here, because the sampler does not wait for it.
        lock(&self.shared.turns).network.open_spool();
        loop {
            let heard = self.listen(&mut events, wait)?;
            let ended = self.shared.ended.load(Acquire);
            let mut turns = lock(&self.shared.turns);
            match turns.networks(Instant::now(), heard, ended, &self.stop)? {
                Next::Wait(most) => wait = most,
                Next::Done => return Ok(()),
            }
        }
    }

    /// Waits for the socket, a tick, the end, or so long.
    fn listen(&mut self, events: &mut Events, wait: Duration) -> Result<Heard, AgentError> {
        match self.poll.poll(events, Some(wait)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(io_error("wait for the network")(error));
            }
            _ => {}
        }
        let heard = |token| events.iter().any(|event| event.token() == token);
        Ok(Heard { socket: heard(SOCKET), tick: heard(TICK), stop: heard(STOP) })
    }
}

impl Handover {
    /// A tick's rows are in the ring: they are sent here, or the network's thread is woken to.
    pub(super) fn ticked(&self, now: Instant) {
        // The network's thread may hold the lock for long: while it resolves a name.
        let sent = self.0.turns.try_lock().is_ok_and(|mut turns| turns.samplers(now));
        if !sent {
            // It fails only if the poll is gone, and with it the one to be woken.
            let _ = self.0.waker.wake();
        }
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        self.0.ended.store(true, Release);
        let _ = self.0.waker.wake();
    }
}

impl Turns {
    /// The network's thread was woken.
    fn networks(
        &mut self,
        now: Instant,
        heard: Heard,
        ended: bool,
        stop: &Stop,
    ) -> Result<Next, AgentError> {
        let mut readable = heard.socket || self.more == Progress::More;
        if self.mode == Mode::Quiet {
            let overdue = self.looked + OVERDUE * self.interval();
            if !heard.stop && !heard.tick && now < overdue {
                return Ok(Next::Wait(LOOK_AFTER));
            }
            self.take_back()?;
            readable = true;
        }
        if heard.stop && self.drain_until.is_none() {
            stop.stop();
            self.drain_until = Some(now + DRAIN);
        }
        if heard.tick {
            self.count();
        }
        let received = if readable { self.receive(now)? } else { Progress::Idle };
        self.network.link.on_timeout(now);
        if let Some(other) = self.network.act(now, &mut self.work)? {
            self.work = other;
            self.network.act(now, &mut self.work)?;
        }
        self.more = self.network.transmit(now)?;
        if received == Progress::More {
            self.more = Progress::More;
        }
        let idle = self.network.publish(&self.work);
        if ended && self.drain_until.is_none() {
            // It ended by itself; its thread says why.
            self.network.keep_rest(now);
            return Ok(Next::Done);
        }
        if self.drain_until.is_some_and(|at| at <= now || (idle && ended)) {
            self.network.keep_rest(now);
            self.network.link.close_all(now, "the agent stops");
            self.network.socket.transmit(now, &mut self.network.link);
            return Ok(Next::Done);
        }
        if self.calm_wanted <= self.calm && idle && self.may_rest(now) {
            self.calm_wanted = CALM_TICKS;
            return self.hand_over();
        }
        Ok(Next::Wait(self.wait(now)))
    }

    /// The sampler's thread has put a tick's rows into the ring; whether all is well. If not, the
    /// other thread sees to it.
    fn samplers(&mut self, now: Instant) -> bool {
        if self.mode != Mode::Quiet {
            return false;
        }
        // Where there is another broker to go to, a silent one is to be noticed soon.
        let choice = matches!(&self.work, Work::Send(uplink) if uplink.has_choice());
        self.skipped = !self.skipped && !choice && self.interval() <= SKIP_INTERVAL_MAX;
        if !self.skipped && !self.look(now) {
            return false;
        }
        let network = &mut self.network;
        let Work::Send(uplink) = &mut self.work else { return false };
        uplink.pump(now, &mut network.link, &mut network.parts.ring, &network.parts.table);
        self.more = network.socket.transmit(now, &mut network.link);
        if let Ok(mut status) = network.parts.status.try_lock() {
            uplink.show(&mut status);
            status.quiet_ticks += 1;
        }
        // What QUIC did not take waits for acknowledgements.
        uplink.is_calm(now, Duration::MAX) && self.more == Progress::Idle
    }

    /// Reads what came since the last look, without waiting; whether that was all, and all well.
    fn look(&mut self, now: Instant) -> bool {
        let late = (self.interval() * 3 / 4).max(LATE_MIN);
        // A socket that is broken is met again by the other thread, which says so.
        let Ok(received) = self.receive(now) else { return false };
        let network = &mut self.network;
        network.link.on_timeout(now);
        let Work::Send(uplink) = &mut self.work else { return false };
        uplink.listen(now, &mut network.link);
        while let Some(event) = network.link.poll() {
            match event {
                Event::Readable { .. } | Event::Writable { .. } => {
                    uplink.told(now, &event, &mut network.link, &mut network.parts.ring);
                }
                _ => {
                    network.held = Some(event);
                    return false;
                }
            }
        }
        let lost = uplink.has_lost(&mut network.link);
        if lost || !uplink.is_calm(now, late) {
            self.calm_wanted = CALM_TICKS_AFTER_LOSS;
            return false;
        }
        received == Progress::Idle
    }

    fn receive(&mut self, now: Instant) -> Result<Progress, AgentError> {
        let wall_ns = u64::try_from(clock::wall_ns()).unwrap_or(0);
        let wall = Duration::from_nanos(wall_ns);
        self.network.link.set_wall_s(wall.as_secs());
        let late = Late { now, since: self.looked.min(now), wall };
        self.looked = now;
        self.network.socket.receive_late(late, &mut self.network.link).map_err(io_error("receive"))
    }

    /// A tick while the network's thread is at it: were all the ones before acknowledged?
    fn count(&mut self) {
        let (settled, lost) = match &mut self.work {
            Work::Send(uplink) => (uplink.is_settled(), uplink.has_lost(&mut self.network.link)),
            Work::Enrol { .. } => (false, false),
        };
        if lost {
            self.calm_wanted = CALM_TICKS_AFTER_LOSS;
        }
        self.calm = if settled && !lost { self.calm + 1 } else { 0 };
    }

    /// Whether the network's thread is not needed until something goes wrong.
    fn may_rest(&self, now: Instant) -> bool {
        let often = self.network.parts.hello.patience().is_some();
        let calm = match &self.work {
            Work::Send(uplink) => uplink.is_calm(now, Duration::ZERO),
            Work::Enrol { .. } => false,
        };
        let proving = self.network.parts.managed.is_proving();
        often && calm && !proving && self.drain_until.is_none() && self.more == Progress::Idle
    }

    fn hand_over(&mut self) -> Result<Next, AgentError> {
        self.network
            .registry
            .deregister(self.network.socket.source())
            .map_err(io_error("leave the poll"))?;
        (self.mode, self.skipped) = (Mode::Quiet, false);
        if !self.settled {
            // Keys, a handshake and the first walk of everything leave more behind than all that comes.
            self.settled = true;
            hugepage_config::resident::give_back();
        }
        Ok(Next::Wait(LOOK_AFTER))
    }

    fn take_back(&mut self) -> Result<(), AgentError> {
        self.network
            .registry
            .register(self.network.socket.source(), SOCKET, Interest::READABLE)
            .map_err(io_error("register with the poll"))?;
        self.mode = Mode::Busy;
        self.calm = 0;
        self.network.blocked = false;
        Ok(())
    }

    /// How long there is nothing to do: who is woken by every tick has only time-outs to look for.
    fn wait(&self, now: Instant) -> Duration {
        if self.more == Progress::More {
            return Duration::ZERO;
        }
        let next = [self.network.timeout(&self.work), self.drain_until].into_iter().flatten().min();
        next.map_or(LOOK_AFTER, |at| at.saturating_duration_since(now)).min(LOOK_AFTER)
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.network.parts.hello.interval_ms)
    }
}

fn lock(turns: &Mutex<Turns>) -> MutexGuard<'_, Turns> {
    // A thread that panicked at it ends the agent; this one may still say good-bye.
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

const STOP: mio::Token = mio::Token(1);
const TICK: mio::Token = mio::Token(2);
/// A connection's first ticks, or those after trouble, show how the path is.
const CALM_TICKS: u32 = 3;
/// Who rests finds out late what is lost: over a path that loses nobody rests.
const CALM_TICKS_AFTER_LOSS: u32 = 30;
/// Intervals after which a sampler that took no turn takes none: it hangs in a reading.
const OVERDUE: u32 = 4;
/// How often a resting network looks whether that is so; a connection lives through a silence of
/// `IDLE_TIMEOUT`, which is longer.
const LOOK_AFTER: Duration = Duration::from_secs(10);
/// Where a tick is at most this far from the next, every second one reads: half the decrypting, and
/// what is lost is still missed within two seconds.
const SKIP_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// A broker's disk is given this long, however often the host ticks.
const LATE_MIN: Duration = Duration::from_millis(500);
/// How long a stopping agent waits for acknowledgements.
const DRAIN: Duration = Duration::from_secs(2);
const _: () = assert!(LOOK_AFTER.as_secs() < strobe_wire::link::IDLE_TIMEOUT.as_secs());
