//! What a broker in no cluster agrees on with itself: the same commands on the same kind of state as a
//! cluster's, in a file of the state directory that is replaced whole.
//!
//! A state machine that writes its file in [`Alone::take`] and [`Alone::on_timeout`]: its thread owns it.
//! Nothing is answered before it is on disk. `strobe cluster init` takes the state along; who joins a
//! cluster takes over that one's.

use super::keeper::Keeper;
use super::plane::{Answer, Asked, Order, Post};
use super::{Desired, Look, Versions};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use strobe_cluster::kinds::{Command, audit, rollouts, versions};
use strobe_cluster::{Outcome, State};
use strobe_wire::pki::write_private;

/// The state machine.
#[derive(Debug)]
pub struct Alone {
    dir: PathBuf,
    state: State,
    keeper: Keeper,
    posts: VecDeque<Post>,
    look_at: Instant,
}

/// The state that `dir` has; an empty one if there was none yet.
///
/// # Errors
/// The file cannot be read, or is damaged.
pub fn load(dir: &Path) -> Result<State, String> {
    let path = dir.join(FILE);
    let fail = |why: &dyn std::fmt::Display| {
        format!("{}: {why}; it has the configuration of the fleet: put back a copy", path.display())
    };
    match std::fs::read(&path) {
        Ok(image) => State::of_image(&image).map_err(|why| fail(&why)),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(State::default()),
        Err(why) => Err(fail(&why)),
    }
}

impl Alone {
    /// On the file in `dir`.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn open(dir: &Path, now: Instant) -> Result<Self, String> {
        let state = load(dir)?;
        let posts = [Post::Desired(Arc::new(Desired::of(&state)))].into();
        let keeper = Keeper::default();
        Ok(Self { dir: dir.to_owned(), state, keeper, posts, look_at: now })
    }

    /// When [`Self::on_timeout`] wants to be called at the latest.
    #[must_use]
    pub fn timeout(&self) -> Instant {
        self.look_at
    }

    /// Takes an order in.
    pub fn take(&mut self, order: Order) {
        match order {
            Order::Ask(Asked::Read(asked), reply) => self.take(Order::Ask(*asked, reply)),
            Order::Ask(asked, reply) => {
                let answer = match asked {
                    Asked::Propose(command) => Answer::Outcome(self.run(&command)),
                    Asked::Versions => Answer::Versions(Box::new(Versions::of(&self.state, 0))),
                    Asked::AuditHead(log) => Answer::AuditHead(audit::head(&self.state, log)),
                    Asked::Look(Look(look)) => return look(&self.state),
                    Asked::Image => Answer::Image(self.state.image()),
                    Asked::Report | Asked::Transfer(_) | Asked::Move(..) | Asked::Read(_) => {
                        Answer::Busy
                    }
                };
                // Who asked may have left.
                drop(reply.try_send(answer));
            }
            Order::Verdict(number, outcome) => {
                let told = outcome.as_ref().map(String::as_str).map_err(String::as_str);
                self.run(&rollouts::Change::end(number, told));
            }
            _ => {}
        }
    }

    /// Does what is due.
    pub fn on_timeout(&mut self, now: Instant) {
        if now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_EVERY;
        if let Some(command) = self.keeper.due(now, &self.state, true) {
            self.run(&command);
        }
    }

    /// The next thing for the network loop.
    pub fn poll(&mut self) -> Option<Post> {
        self.posts.pop_front()
    }

    /// On disk before it is so.
    fn run(&mut self, command: &Command) -> Outcome {
        let mut next = self.state.clone();
        let outcome = next.run(command);
        if outcome.is_ok() {
            if let Err(why) = write_private(&self.dir, FILE, &next.image()) {
                log::error!("what this broker agreed on is not kept: {why}");
                return Outcome::Unknown;
            }
            let changed = versions::mark(&next) != versions::mark(&self.state);
            self.state = next;
            if changed {
                self.posts.push_back(Post::Desired(Arc::new(Desired::of(&self.state))));
            }
        }
        match outcome {
            Ok(value) => Outcome::Applied(value),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }
}

/// In the state directory.
pub const FILE: &str = "agreed.state";
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn what_is_agreed_on_is_on_disk_and_a_damaged_file_is_named() {
        #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
        let now = Instant::now();
        let dir = std::env::temp_dir().join(format!("strobe-alone-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let mut alone = Alone::open(&dir, now).unwrap();
        let put = |from| versions::Change::put(from, "ann", "why", "[agent]\ninterval=\"2s\"", 1);
        let ask = |alone: &mut Alone, command| {
            let (reply, answer) = sync_channel(1);
            alone.take(Order::Ask(Asked::Propose(command), reply));
            answer.recv().unwrap()
        };
        assert!(matches!(ask(&mut alone, put(0)), Answer::Outcome(Outcome::Applied(1))));
        assert!(matches!(ask(&mut alone, put(0)), Answer::Outcome(Outcome::Refused(_))));
        drop(alone);
        let mut alone = Alone::open(&dir, now).unwrap();
        let Some(Post::Desired(desired)) = alone.poll() else { panic!("it says what is desired") };
        let hello = strobe_wire::message::Hello::default();
        assert_eq!(desired.of_host(&hello).unwrap().1, [("agent.interval".into(), "2s".into())]);
        let mut image = std::fs::read(dir.join(FILE)).unwrap();
        image[10] ^= 1;
        std::fs::write(dir.join(FILE), image).unwrap();
        let why = Alone::open(&dir, now).unwrap_err();
        assert!(why.contains("agreed.state") && why.contains("damaged"), "{why}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
