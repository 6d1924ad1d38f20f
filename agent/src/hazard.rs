//! Calls that may never return, kept away from the sampler: statfs(2) on mounts.
//!
//! ```text
//!   sampler ── ask ──▶ queue ──▶ at most THREADS_MAX workers ── statfs ──▶ answer ──▶ sampler
//!            never waits                one call in flight a mount
//! ```
//!
//! A call that has not come back within [`DEADLINE_NS`] is *hung*: its mount is in quarantine and is
//! not asked again until the call returns. Mounts that are not trusted (network file systems, and
//! what hung before) never hold the last worker, so that a dead server cannot hide the root
//! file system. When the queue cannot move, its mounts are past their deadline and hung as well.
//! The lock is held for moments only, never during a call, and the sampler only tries it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How full a file system is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Space {
    pub(crate) size_bytes: u64,
    pub(crate) free_bytes: u64,
    pub(crate) available_bytes: u64,
    pub(crate) files: u64,
    pub(crate) files_free: u64,
}

/// What is known of a mount now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// Nothing yet.
    Pending,
    /// The call's result.
    Space(Space),
    /// The call failed.
    Failed,
    /// The call has not returned in time.
    Hung,
}

/// A mount to ask about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub(crate) path: PathBuf,
    /// Whether its kind answers from memory.
    pub(crate) trusted: bool,
}

/// The workers and what they are asked.
#[derive(Debug)]
pub(crate) struct Hazard {
    shared: Arc<Shared>,
    call: fn(&Path) -> Result<Space, i32>,
    threads: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    asked: Condvar,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    objects: Vec<Object>,
    /// Workers waiting for something to do.
    idle: usize,
    /// Workers in a call on a mount that is not trusted.
    distrusted_running: usize,
    closed: bool,
}

#[derive(Debug)]
struct Object {
    path: Arc<Path>,
    trusted: bool,
    hung_before: bool,
    status: Status,
    answer: Answer,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Idle,
    Queued { since_ns: u64 },
    Running { since_ns: u64 },
}

impl Hazard {
    /// Workers are started when there is something to ask.
    pub(crate) fn new(call: fn(&Path) -> Result<Space, i32>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            asked: Condvar::new(),
            answered: Condvar::new(),
        });
        Self { shared, call, threads: 0 }
    }

    /// The mounts from now on; those that stay keep their answers. For when the set changes.
    pub(crate) fn aim(&self, targets: &[Target]) {
        let mut state = lock(&self.shared.state);
        let mut former = std::mem::take(&mut state.objects);
        for target in targets {
            let known = former.iter().position(|object| *object.path == *target.path);
            let object = match known {
                Some(index) => former.swap_remove(index),
                None => Object {
                    path: target.path.as_path().into(),
                    trusted: target.trusted,
                    hung_before: false,
                    status: Status::Idle,
                    answer: Answer::Pending,
                },
            };
            state.objects.push(object);
        }
        // A call in flight on a mount that went away still blocks its worker.
        former.retain(|object| matches!(object.status, Status::Running { .. }));
        state.objects.append(&mut former);
    }

    /// Asks about every mount that is not being asked about already.
    pub(crate) fn ask(&mut self, now_ns: u64) {
        let Ok(mut state) = self.shared.state.try_lock() else { return };
        let mut queued = 0;
        for object in &mut state.objects {
            if object.status == Status::Idle {
                object.status = Status::Queued { since_ns: now_ns };
            }
            queued += usize::from(matches!(object.status, Status::Queued { .. }));
        }
        let idle = state.idle;
        drop(state);
        self.shared.asked.notify_all();
        if idle == 0 && 0 < queued && self.threads < THREADS_MAX {
            self.start();
        }
    }

    /// Hands out the answers in the order of [`aim`](Self::aim); false if the workers hold the
    /// lock at this moment.
    pub(crate) fn answers(&self, now_ns: u64, mut each: impl FnMut(usize, Answer)) -> bool {
        let Ok(mut state) = self.shared.state.try_lock() else { return false };
        for (index, object) in state.objects.iter_mut().enumerate() {
            each(index, object.now(now_ns));
        }
        true
    }

    /// Whether every mount has answered or is hung.
    pub(crate) fn is_settled(&self, now_ns: u64) -> bool {
        let Ok(mut state) = self.shared.state.try_lock() else { return false };
        state.is_settled(now_ns)
    }

    /// Waits for all answers, for those who may wait (`--once`, a scrape), not for the sampler.
    pub(crate) fn wait(&self, now_ns: u64, timeout: Duration) {
        let state = lock(&self.shared.state);
        let unsettled = |state: &mut State| !state.is_settled(now_ns);
        drop(self.shared.answered.wait_timeout_while(state, timeout, unsettled));
    }

    /// Workers started.
    pub(crate) fn threads(&self) -> u64 {
        u64::try_from(self.threads).unwrap_or(u64::MAX)
    }

    fn start(&mut self) {
        let (shared, call) = (Arc::clone(&self.shared), self.call);
        let name = format!("strobe-hazard-{}", self.threads);
        let worker = std::thread::Builder::new().name(name).stack_size(STACK_BYTES);
        if worker.spawn(move || work(&shared, call)).is_ok() {
            self.threads += 1;
        }
    }
}

impl Drop for Hazard {
    /// Workers end when their call returns; nobody waits for them.
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.asked.notify_all();
    }
}

impl State {
    fn is_settled(&mut self, now_ns: u64) -> bool {
        self.objects
            .iter_mut()
            .all(|object| object.status == Status::Idle || object.now(now_ns) == Answer::Hung)
    }

    /// The next mount a worker may take.
    fn take(&mut self) -> Option<(Arc<Path>, bool)> {
        let room = self.distrusted_running + 1 < THREADS_MAX;
        let mut queued = self.objects.iter_mut();
        let object = queued.find(|object| {
            let may = room || !object.is_distrusted();
            may && matches!(object.status, Status::Queued { .. })
        })?;
        let Status::Queued { since_ns } = object.status else { return None };
        object.status = Status::Running { since_ns };
        let distrusted = object.is_distrusted();
        let path = Arc::clone(&object.path);
        self.distrusted_running += usize::from(distrusted);
        Some((path, distrusted))
    }
}

impl Object {
    fn is_distrusted(&self) -> bool {
        !self.trusted || self.hung_before
    }

    fn now(&mut self, now_ns: u64) -> Answer {
        let (Status::Queued { since_ns } | Status::Running { since_ns }) = self.status else {
            return self.answer;
        };
        if now_ns.saturating_sub(since_ns) < DEADLINE_NS {
            return self.answer;
        }
        self.hung_before |= matches!(self.status, Status::Running { .. });
        self.answer = Answer::Hung;
        Answer::Hung
    }
}

fn work(shared: &Shared, call: fn(&Path) -> Result<Space, i32>) {
    let mut state = lock(&shared.state);
    while !state.closed {
        let Some((path, distrusted)) = state.take() else {
            state.idle += 1;
            state = shared.asked.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        drop(state);
        let result = call(&path);
        state = lock(&shared.state);
        state.distrusted_running -= usize::from(distrusted);
        if let Some(object) = state.objects.iter_mut().find(|object| object.path == path) {
            object.status = Status::Idle;
            object.hung_before = object.answer == Answer::Hung;
            object.answer = result.map_or(Answer::Failed, Answer::Space);
        }
        shared.answered.notify_all();
    }
}

/// statfs(2).
pub(crate) fn space(path: &Path) -> Result<Space, i32> {
    let found = nix::sys::statfs::statfs(path).map_err(|error| error as i32)?;
    let block = u64::try_from(found.block_size()).unwrap_or(0);
    Ok(Space {
        size_bytes: found.blocks().saturating_mul(block),
        free_bytes: found.blocks_free().saturating_mul(block),
        available_bytes: found.blocks_available().saturating_mul(block),
        files: found.files(),
        files_free: found.files_free(),
    })
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A worker does nothing under the lock that can panic half-way.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

const THREADS_MAX: usize = 4;
/// node_exporter's `--collector.filesystem.mount-timeout`.
const DEADLINE_NS: u64 = 5_000_000_000;
const STACK_BYTES: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    static GATE: Mutex<Option<(Sender<()>, Receiver<()>)>> = Mutex::new(None);

    fn call(path: &Path) -> Result<Space, i32> {
        if path.starts_with("/dead") {
            // Returns only when the test lets go of the gate.
            while GATE.lock().unwrap().is_some() {
                std::thread::yield_now();
            }
        }
        if path.starts_with("/bad") { Err(5) } else { Ok(Space { files: 7, ..Space::default() }) }
    }

    fn answers(hazard: &Hazard, now_ns: u64) -> Vec<Answer> {
        let mut out = Vec::new();
        while !hazard.answers(now_ns, |_, answer| out.push(answer)) {}
        out
    }

    /// Six mounts of one dead server took all four workers, and with them the root file system.
    #[test]
    fn dead_mounts_hide_nothing_and_come_back() {
        *GATE.lock().unwrap() = Some(channel());
        let mut hazard = Hazard::new(call);
        let mut targets: Vec<_> =
            (0..6).map(|n| Target { path: format!("/dead/{n}").into(), trusted: false }).collect();
        targets.push(Target { path: "/".into(), trusted: true });
        targets.push(Target { path: "/bad".into(), trusted: true });
        hazard.aim(&targets);
        let good = Answer::Space(Space { files: 7, ..Space::default() });
        for round in 0.. {
            assert!(round < 5000, "the dead mounts hold every worker");
            hazard.ask(0);
            hazard.wait(0, Duration::from_millis(1));
            if answers(&hazard, 1)[6..] == [good, Answer::Failed] {
                break;
            }
        }
        assert!(answers(&hazard, 1)[..6].iter().all(|answer| *answer == Answer::Pending));
        assert!(answers(&hazard, DEADLINE_NS)[..6].iter().all(|answer| *answer == Answer::Hung));
        assert!(hazard.threads <= THREADS_MAX);
        *GATE.lock().unwrap() = None;
        while answers(&hazard, DEADLINE_NS)[..6].iter().any(|answer| *answer != good) {
            hazard.ask(DEADLINE_NS);
            hazard.wait(DEADLINE_NS, Duration::from_millis(1));
        }
    }
}
