//! Answers to what is asked of this host, each on a thread of its own that ends with it: what is read may
//! hang, and nothing else waits for it.
//!
//! Bounds: [`BUSY_MAX`] at once, those that hang included; further questions are refused.

use super::spawn;
use crate::answers::{bounded, mounts, sockets, top, used};
use crate::clock;
use crate::config::Config;
use crate::doctor::examine;
use crate::readers::page_bytes;
use crate::recorder::{Bell, Reason};
use crate::sampler::Tick;
use mio::Waker;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use strobe_wire::message::Question;

/// An answer to the question of this number.
type Answered = (u64, Result<String, String>);

/// Who answers.
pub(super) struct Answering {
    waker: Arc<Waker>,
    bell: Bell,
    answered: SyncSender<Answered>,
    answers: Receiver<Answered>,
    /// Relaxed: a count by itself.
    busy: Arc<AtomicUsize>,
}

impl Answering {
    pub(super) fn new(waker: Arc<Waker>, bell: Bell) -> Self {
        let (answered, answers) = sync_channel(BUSY_MAX);
        Self { waker, bell, answered, answers, busy: Arc::default() }
    }

    /// The next answer.
    pub(super) fn poll(&self) -> Option<Answered> {
        self.answers.try_recv().ok()
    }

    /// What is said at once; otherwise [`Self::poll`] has it later.
    pub(super) fn ask(
        &self,
        id: u64,
        what: Question,
        config: &Config,
    ) -> Option<Result<String, String>> {
        if !config.commands.contains(&what) {
            let word = what.word();
            return Some(Err(format!(
                "{word} is not in agent.commands of this host, so it is not told"
            )));
        }
        if what == Question::Burst {
            if config.recorder.is_none() {
                return Some(Err("its flight recorder is off (agent.recorder.on)".to_owned()));
            }
            self.bell.ring(Reason::Request);
            return Some(Ok(BURST.to_owned()));
        }
        if BUSY_MAX <= self.busy.fetch_add(1, Relaxed) {
            self.busy.fetch_sub(1, Relaxed);
            return Some(Err("it is still at what it was asked before".to_owned()));
        }
        let (config, answered) = (config.clone(), self.answered.clone());
        let (busy, waker) = (Arc::clone(&self.busy), Arc::clone(&self.waker));
        let begun = spawn("strobe-answer", move || {
            let text = bounded(answer(what, &config));
            busy.fetch_sub(1, Relaxed);
            // There is room for as many as may be busy; who asked may be gone.
            drop(answered.try_send((id, Ok(text))));
            let _ = waker.wake();
        });
        begun.err().map(|why| {
            self.busy.fetch_sub(1, Relaxed);
            Err(why.to_string())
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "this is a thread that reads the clock, and waits")]
fn answer(what: Question, config: &Config) -> String {
    let now = Tick { wall_ns: clock::wall_ns(), boottime_ns: clock::boottime_ns() };
    match what {
        Question::Top => {
            let (begun, before) = (Instant::now(), used(&config.procfs));
            std::thread::sleep(TOP_OVER);
            let (after, ms) = (used(&config.procfs), begun.elapsed().as_millis());
            top(&before, &after, u64::try_from(ms).unwrap_or(u64::MAX), page_bytes())
        }
        Question::Sockets => sockets(&config.procfs),
        Question::Mounts => mounts(config, clock::monotonic_ns, now, MOUNTS_WAIT),
        Question::Doctor => examine(config, now, clock::monotonic_ns, None).text(),
        Question::Burst => String::new(),
    }
}

const BUSY_MAX: usize = 2;
const TOP_OVER: Duration = Duration::from_millis(500);
const MOUNTS_WAIT: Duration = Duration::from_millis(900);
const BURST: &str = "asked for the last minute and the next ten seconds of its flight recorder";
