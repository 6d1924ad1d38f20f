//! The recorder's loop: a hundred times a second one look at the hot files.
//!
//! ```text
//! wait (timer, stop, SIGUSR2, the kernel's watches of pressure) -> sample
//! ```
//!
//! A loop that costs more than [`COST_MAX`] of a core goes half as often, down to
//! [`INTERVAL_MAX`]: on a machine whose /proc/stat takes a millisecond the recorder is coarser, not
//! dearer. `strobe_recorder_samples` says how often it went.

use super::{AgentError, Stop, io_error};
use crate::clock;
use crate::recorder::pressure::Watches;
use crate::recorder::{Bell, Reason, Recorder};
use crate::sampler::Tick;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::signalfd::SignalFd;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// What a wake-up was for.
#[derive(Default)]
struct Woken {
    stop: bool,
    due: bool,
    signal: bool,
    /// Resources under pressure, and watches that are broken.
    pressed: [bool; 3],
    broken: [bool; 3],
}

/// Samples until it is stopped.
pub(super) fn record(
    mut recorder: Recorder,
    bell: &Bell,
    mut watches: Watches,
    every: Duration,
    (stop, end): (&Stop, &EventFd),
) -> Result<(), AgentError> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(io_error("make a timer"))?;
    let mut interval = every;
    aim(&timer, interval)?;
    watches.files().for_each(|(resource, _)| recorder.is_watched(resource, true));
    let waiter = Waiter::new(&timer, &watches, stop, end)?;
    let mut cost = Cost::new();
    loop {
        let woken = waiter.wait(&timer, stop)?;
        if woken.stop {
            return Ok(());
        }
        if woken.signal {
            bell.ring(Reason::Signal);
        }
        for resource in 0..woken.pressed.len() {
            if woken.broken[resource] {
                watches.close(resource);
                recorder.is_watched(resource, false);
            } else if woken.pressed[resource] {
                recorder.pressed(resource);
            }
        }
        if woken.due {
            let now = Tick { wall_ns: clock::wall_ns(), boottime_ns: clock::boottime_ns() };
            recorder.sample(now);
            if cost.is_high(now.boottime_ns) && interval < INTERVAL_MAX {
                interval *= 2;
                aim(&timer, interval)?;
                log::warn!(
                    "recorder: a sample every {interval:?} from now on, as it cost too much"
                );
            }
        }
    }
}

/// What the loop waits for, in one epoll: poll(2) would ask each descriptor anew, a hundred times a second.
struct Waiter(Epoll);

impl Waiter {
    fn new(
        timer: &TimerFd,
        watches: &Watches,
        stop: &Stop,
        end: &EventFd,
    ) -> Result<Self, AgentError> {
        let make = || -> nix::Result<Self> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let add = |fd: BorrowedFd<'_>, flags, what| epoll.add(fd, EpollEvent::new(flags, what));
            add(timer.as_fd(), EpollFlags::EPOLLIN, DUE)?;
            add(stop.0.event.as_fd(), EpollFlags::EPOLLIN, STOP)?;
            add(end.as_fd(), EpollFlags::EPOLLIN, STOP)?;
            if let Some(burst) = &stop.0.burst {
                add(burst.as_fd(), EpollFlags::EPOLLIN, SIGNAL)?;
            }
            for (resource, file) in watches.files() {
                add(file.as_fd(), EpollFlags::EPOLLPRI, PRESSED + resource as u64)?;
            }
            Ok(Self(epoll))
        };
        make().map_err(io_error("make the recorder's epoll"))
    }

    /// Waits for the next sample or whatever comes before it.
    fn wait(&self, timer: &TimerFd, stop: &Stop) -> Result<Woken, AgentError> {
        let mut events = [EpollEvent::empty(); 8];
        let count = match self.0.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(io_error("wait for the recorder's timer")(error)),
        };
        let mut woken = Woken::default();
        for event in events.get(..count).unwrap_or_default() {
            match event.data() {
                DUE => {
                    woken.due = match nix::unistd::read(timer, &mut [0; 8]) {
                        Ok(_) => true,
                        Err(Errno::EAGAIN | Errno::EINTR) => false,
                        Err(error) => return Err(io_error("read the recorder's timer")(error)),
                    }
                }
                STOP => woken.stop = true,
                SIGNAL => {
                    let signals = stop.0.burst.as_ref().map(SignalFd::read_signal);
                    woken.signal |= matches!(signals, Some(Ok(Some(_))));
                }
                resource => {
                    let at = usize::try_from(resource - PRESSED).unwrap_or(usize::MAX);
                    if let (Some(pressed), Some(broken)) =
                        (woken.pressed.get_mut(at), woken.broken.get_mut(at))
                    {
                        *pressed = event.events().contains(EpollFlags::EPOLLPRI);
                        *broken = event.events().contains(EpollFlags::EPOLLERR);
                    }
                }
            }
        }
        Ok(woken)
    }
}

fn aim(timer: &TimerFd, every: Duration) -> Result<(), AgentError> {
    timer
        .set(Expiration::Interval(TimeSpec::from(every)), TimerSetTimeFlags::empty())
        .map_err(io_error("set the recorder's timer"))
}

/// The thread's own time on a CPU.
struct Cost {
    since_ns: u64,
    used_ns: u64,
}

impl Cost {
    fn new() -> Self {
        Self { since_ns: 0, used_ns: used_ns() }
    }

    /// Whether it was too much for all of [`COST_OVER_NS`].
    fn is_high(&mut self, now_ns: u64) -> bool {
        let passed_ns = now_ns.saturating_sub(self.since_ns);
        if passed_ns < COST_OVER_NS {
            return false;
        }
        let first = self.since_ns == 0;
        let used = used_ns();
        let cost_ns = used.saturating_sub(std::mem::replace(&mut self.used_ns, used));
        self.since_ns = now_ns;
        !first && passed_ns < cost_ns.saturating_mul(COST_MAX)
    }
}

pub(super) fn used_ns() -> u64 {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    let used = nix::time::clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    u64::try_from(used.as_nanos()).unwrap_or(u64::MAX)
}

const DUE: u64 = 0;
const STOP: u64 = 1;
const SIGNAL: u64 = 2;
/// Of the first resource; the others follow.
const PRESSED: u64 = 3;
/// One part in so many of a core: 1 %.
const COST_MAX: u64 = 100;
/// Ten seconds: a start, or a busy moment of the machine, is no cost.
const COST_OVER_NS: u64 = 10_000_000_000;
const INTERVAL_MAX: Duration = Duration::from_millis(160);
