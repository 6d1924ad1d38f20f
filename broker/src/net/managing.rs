//! Which version of the configuration each connected host is to run, and what people ask hosts.
//!
//! ```text
//!  Configured (what it runs) --other than desired--> due --so many a second--> Configure
//!      ^                                                                          |
//!      +---- applied, then proven, or refused <-----------------------------------+
//!            the canary's word on the version on trial --> Verdict, until the trial is over
//! ```
//!
//! A host that does not say what it runs, because it or this broker knows only the first version of the
//! protocol, is left alone. What is refused is offered again after [`AGAIN`]: the reason may be gone.

use super::Net;
use super::streams::Place;
use crate::cluster::{Canary, Desired, Order};
use crate::ingest::SessionId;
use crate::managed::{Asking, Running};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::message::{Message, Question, digest};

/// What is known of versions and of who runs them.
#[derive(Debug, Default)]
pub(super) struct Managing {
    desired: Arc<Desired>,
    /// To the control plane, or what stands for it.
    agreed: Option<SyncSender<Order>>,
    sessions: BTreeMap<SessionId, Standing>,
    /// Whose version is to be looked at.
    due: BTreeSet<SessionId>,
    push_at: Option<Instant>,
    /// When what was refused is offered again.
    again_at: Option<Instant>,
    verdict: Option<Verdict>,
    /// The boot of the canary that was given the version on trial.
    trying: Option<(u64, BootId)>,
}

#[derive(Debug)]
struct Standing {
    running: u64,
    digest: u32,
    /// It was offered this, and has not said anything since.
    offered: Option<(u64, u32)>,
    refused: Option<(u64, Instant)>,
}

#[derive(Debug)]
struct Verdict {
    number: u64,
    outcome: Result<String, String>,
    said: Option<Instant>,
}

impl Managing {
    /// When there is something to do without any news.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let due = if self.due.is_empty() { None } else { self.push_at };
        let verdict = self.verdict.as_ref().and_then(|verdict| verdict.said);
        [due, verdict.map(|said| said + SAY_AGAIN), self.again_at].into_iter().flatten().min()
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.due.remove(&session);
    }

    fn judge(&mut self, number: u64, outcome: Result<String, String>) {
        if self.verdict.as_ref().is_none_or(|verdict| verdict.number != number) {
            self.verdict = Some(Verdict { number, outcome, said: None });
        }
    }
}

impl Net {
    /// Where what is agreed on goes.
    pub fn set_agreed(&mut self, orders: SyncSender<Order>) {
        self.managing.agreed = Some(orders);
    }

    /// Other versions are in force or on trial.
    pub(super) fn on_desired(&mut self, desired: Arc<Desired>) {
        let managing = &mut self.managing;
        let trial = desired.trial().map(|(number, _)| number);
        managing.verdict.take_if(|verdict| Some(verdict.number) != trial);
        managing.trying.take_if(|(number, _)| Some(*number) != trial);
        managing.desired = desired;
        managing.due.extend(managing.sessions.keys().copied());
    }

    /// A host says what it runs.
    pub(super) fn on_configured(
        &mut self,
        place: Place,
        (said, digest): (Running, u32),
        now: Instant,
    ) -> Result<(), String> {
        let session = self.session(place)?;
        let (host, boot) = self.ingest.whose(session).ok_or("no session")?;
        let refused = (said.refused != 0).then_some((said.refused, now));
        let standing = Standing { running: said.version, digest, offered: None, refused };
        let known = self.registry.host(host);
        let name = known
            .map_or_else(|| host.to_string(), |info| format!("{} ({host})", info.hello.instance));
        let managing = &mut self.managing;
        managing.sessions.insert(session, standing);
        managing.due.insert(session);
        if let Some((number, Canary::Host(canary))) = managing.desired.trial()
            && canary == host
        {
            let restarted = managing.trying.is_some_and(|(_, tried)| tried != boot);
            if said.refused == number {
                managing.judge(number, Err(format!("{name} refused it: {}", said.why)));
            } else if restarted {
                let why = format!("the agent of {name} started again while it tried it");
                managing.judge(number, Err(why));
            } else if said.version == number && said.proven {
                managing.judge(number, Ok(format!("{name} runs it well")));
            }
        }
        self.registry.managed().tell(host, said);
        Ok(())
    }

    /// A host without versions said hello.
    pub(super) fn on_unmanaged(&mut self, host: HostId) {
        self.registry.managed().tell(host, Running::default());
    }

    /// Offers versions, says verdicts and asks questions, as far as it is time.
    pub(super) fn manage(&mut self, now: Instant) {
        self.ask_hosts();
        let managing = &mut self.managing;
        if let (Some(verdict), Some(agreed)) = (&mut managing.verdict, &managing.agreed)
            && verdict.said.is_none_or(|said| said + SAY_AGAIN <= now)
        {
            // Until the trial is over: nobody may lead just now.
            verdict.said = Some(now);
            drop(agreed.try_send(Order::Verdict(verdict.number, verdict.outcome.clone())));
        }
        if managing.again_at.take_if(|at| *at <= now).is_some() {
            let refused =
                managing.sessions.iter().filter(|(_, standing)| standing.refused.is_some());
            managing.due.extend(refused.map(|(session, _)| *session));
        }
        if managing.due.is_empty() || managing.push_at.is_some_and(|at| now < at) {
            return;
        }
        managing.push_at = Some(now + PUSH_EVERY);
        for _ in 0..PUSHES {
            let Some(session) = self.managing.due.pop_first() else { break };
            self.offer(session, now);
        }
    }

    /// Offers a session's host what it is to run, if that is another version than it runs.
    fn offer(&mut self, session: SessionId, now: Instant) {
        let Some((host, boot)) = self.ingest.whose(session) else { return };
        let (Some(place), Some(info)) =
            (self.sessions.get(&session).copied(), self.registry.host(host))
        else {
            return;
        };
        let is_clustered = self.seat.is_some();
        let managing = &mut self.managing;
        let Some(standing) = managing.sessions.get_mut(&session) else { return };
        let Some((version, values)) = managing.desired.of_host(&info.hello) else { return };
        let digest = digest(&values);
        let runs = (standing.running, standing.digest) == (version, digest);
        // A later version than any known here was agreed on by others, and they will say so here too.
        let ahead = is_clustered && managing.desired.newest < standing.running;
        let offered = standing.offered == Some((version, digest));
        if runs || ahead || offered {
            return;
        }
        if let Some((_, at)) = standing.refused.filter(|(refused, _)| *refused == version)
            && now < at + AGAIN
        {
            let before = managing.again_at.unwrap_or(at + AGAIN);
            managing.again_at = Some(before.min(at + AGAIN));
            return;
        }
        standing.offered = Some((version, digest));
        if managing.desired.trial() == Some((version, Canary::Host(host))) {
            managing.trying.get_or_insert((version, boot));
        }
        // A stream that is gone is the end of the session.
        drop(self.say(place, &Message::Configure { version, values }));
    }

    /// Sends what people ask.
    fn ask_hosts(&mut self) {
        for Asking { host, id, what } in self.registry.managed().asked() {
            let own = |session: &SessionId| self.ingest.whose(*session).map(|whose| whose.0);
            let of = |session: &&SessionId| own(session) == Some(host);
            let session = self.sessions.keys().find(of).copied();
            let place = session.and_then(|session| self.sessions.get(&session).copied());
            let said = match place {
                None => Err("the host is not connected to this broker".to_owned()),
                Some(place) if self.link.is_newest(place.conn) => {
                    self.say(place, &Message::Ask { id, what })
                }
                Some(place) if what == Question::Burst => {
                    let said = self.say(place, &Message::Burst);
                    self.registry.managed().answer(id, Ok(BURST_OF_OLD.to_owned()));
                    said
                }
                Some(_) => Err("its agent is too old to be asked".to_owned()),
            };
            if let Err(why) = said {
                self.registry.managed().answer(id, Err(why));
            }
        }
    }
}

/// Offers in one go, and between two goes: 500 hosts a second, each of which may connect anew for it.
const PUSHES: usize = 50;
const PUSH_EVERY: Duration = Duration::from_millis(100);
const SAY_AGAIN: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(60);
const BURST_OF_OLD: &str = "asked for the last minute and the next ten seconds, which it has if its \
     flight recorder is on";
