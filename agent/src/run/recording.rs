//! The recorder's loop: a hundred times a second one look at the hot files.
//!
//! ```text
//! sleep until the next is due -> every LOOK_NS: stop, SIGUSR2, the kernel's watches of pressure -> sample
//! ```
//!
//! It sleeps by one `clock_nanosleep`, and looks at its descriptors ten times a second: one epoll for them
//! and a timer would be two more calls in each sample. What a sample costs is judged by [`Throttle`].

use super::{AgentError, Stop, io_error};
use crate::clock;
use crate::recorder::pressure::Watches;
use crate::recorder::throttle::Throttle;
use crate::recorder::{Bell, Reason, Recorder};
use crate::sampler::Tick;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::signalfd::SignalFd;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// What the descriptors say.
#[derive(Default)]
struct Seen {
    stop: bool,
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
    let mut throttle = Throttle::new(every);
    watches.files().for_each(|(resource, _)| recorder.is_watched(resource, true));
    let look = Look::new(&watches, stop, end)?;
    let (mut due_ns, mut looked_ns) = (clock::boottime_ns(), 0);
    loop {
        sleep_until(due_ns)?;
        let now = Tick { wall_ns: clock::wall_ns(), boottime_ns: clock::boottime_ns() };
        if looked_ns + LOOK_NS <= now.boottime_ns {
            looked_ns = now.boottime_ns;
            let seen = look.at(stop)?;
            if seen.stop {
                return Ok(());
            }
            if seen.signal {
                bell.ring(Reason::Signal);
            }
            for resource in 0..seen.pressed.len() {
                if seen.broken[resource] {
                    watches.close(resource);
                    recorder.is_watched(resource, false);
                } else if seen.pressed[resource] {
                    recorder.pressed(resource);
                }
            }
        }
        recorder.sample(now);
        let step_ns = throttle.step_ns(now.boottime_ns, recorder.is_quiet());
        // What was slept through, as while the machine was suspended, is not made up for.
        due_ns = due_ns.max(now.boottime_ns.saturating_sub(step_ns)).saturating_add(step_ns);
        if throttle.is_due(now.boottime_ns) && throttle.judge(now.boottime_ns, used_ns()) {
            log::info!("recorder: {}", throttle.words());
        }
    }
}

fn sleep_until(due_ns: u64) -> Result<(), AgentError> {
    let due = TimeSpec::from(Duration::from_nanos(due_ns));
    loop {
        match clock_nanosleep(ClockId::CLOCK_BOOTTIME, ClockNanosleepFlags::TIMER_ABSTIME, &due) {
            Err(Errno::EINTR) => {}
            slept => return slept.map(drop).map_err(io_error("sleep until the next sample")),
        }
    }
}

/// What the loop looks at besides, in one epoll.
struct Look(Epoll);

impl Look {
    fn new(watches: &Watches, stop: &Stop, end: &EventFd) -> Result<Self, AgentError> {
        let make = || -> nix::Result<Self> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let add = |fd: BorrowedFd<'_>, flags, what| epoll.add(fd, EpollEvent::new(flags, what));
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

    /// What there is now.
    fn at(&self, stop: &Stop) -> Result<Seen, AgentError> {
        let mut events = [EpollEvent::empty(); 8];
        let count = match self.0.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(io_error("look at the recorder's descriptors")(error)),
        };
        let mut seen = Seen::default();
        for event in events.get(..count).unwrap_or_default() {
            match event.data() {
                STOP => seen.stop = true,
                SIGNAL => {
                    let signals = stop.0.burst.as_ref().map(SignalFd::read_signal);
                    seen.signal |= matches!(signals, Some(Ok(Some(_))));
                }
                resource => {
                    let at = usize::try_from(resource - PRESSED).unwrap_or(usize::MAX);
                    if let (Some(pressed), Some(broken)) =
                        (seen.pressed.get_mut(at), seen.broken.get_mut(at))
                    {
                        *pressed = event.events().contains(EpollFlags::EPOLLPRI);
                        *broken = event.events().contains(EpollFlags::EPOLLERR);
                    }
                }
            }
        }
        Ok(seen)
    }
}

/// The thread's own time on a CPU.
pub(super) fn used_ns() -> u64 {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    let used = nix::time::clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    u64::try_from(used.as_nanos()).unwrap_or(u64::MAX)
}

const STOP: u64 = 0;
const SIGNAL: u64 = 1;
/// Of the first resource; the others follow.
const PRESSED: u64 = 2;
const LOOK_NS: u64 = 100_000_000;
