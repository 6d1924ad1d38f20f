//! Whose host is whose: who says hello at the wrong broker is sent on, and who loses a shard lets its
//! agents go.
//!
//! ```text
//!  hello --mine--> welcomed -------- the shard moved --------> leaving: not read any more,
//!    |  another's: Redirect                                    what was taken is stored and
//!    |  the agent left the owner in silence, or there is none  acknowledged, then Redirect
//!    +--> waits for a new map, at most WAIT_MAX; for the owner to be heard here: Redirect
//! ```
//!
//! An agent that lost a few datagrams takes an owner for silent that is well. So the owner is asked
//! for a sign of life, and the agent is sent back to it with the first that comes.
//!
//! So a frame is taken by the owner alone, and none is stored by two because its shard moved. What an
//! agent was acknowledged by another broker is no hole here: it says so when it comes (`Resume`).

use super::Net;
use super::streams::{Place, StreamRole};
use crate::cluster::{Map, Order};
use crate::ingest::SessionId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::message::{Hello, Message};

/// What is known of owners, and who waits for more.
#[derive(Debug, Default)]
pub(super) struct Owners {
    map: Arc<Map>,
    waiting: BTreeMap<Place, Waiting>,
    /// Sessions whose shard is another's by now.
    leaving: BTreeMap<SessionId, Place>,
    redirects: u64,
}

/// What an agent says before its hello.
#[derive(Clone, Debug, Default)]
pub(super) struct Resumed {
    pub(super) acknowledged_seq: u64,
    pub(super) silent: String,
    /// The first and the last frame of its boot that wait in its spool.
    pub(super) spooled: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Waiting {
    hello: Hello,
    until: Instant,
    /// The owner that the agent left in silence, and since when it is listened for here.
    blamed: Option<(u64, Instant)>,
}

/// Where a host belongs.
enum Claim {
    Here,
    At { owner: u64, address: String },
    Unknown,
}

impl Owners {
    pub(super) fn timeout(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.until).min()
    }

    pub(super) fn redirects(&self) -> u64 {
        self.redirects
    }

    pub(super) fn is_leaving(&self, session: SessionId) -> bool {
        self.leaving.contains_key(&session)
    }

    fn claim(&self, host: HostId) -> Claim {
        let map = &self.map;
        match map.owner(host) {
            Some(owner) if owner.broker == map.me => Claim::Here,
            Some(owner) => map.address(owner.broker).map_or(Claim::Unknown, |address| Claim::At {
                owner: owner.broker,
                address: address.to_owned(),
            }),
            // A cluster of one that has given out no shards yet.
            None if map.me != 0 && map.addresses.len() == 1 && map.address(map.me).is_some() => {
                Claim::Here
            }
            None => Claim::Unknown,
        }
    }
}

impl Net {
    /// An agent's hello, in a cluster: it is welcomed, sent on, or kept waiting.
    pub(super) fn on_claim(
        &mut self,
        place: Place,
        hello: Hello,
        times: (Instant, i64),
    ) -> Result<(), String> {
        let stream = self.streams.get(&place).ok_or("the stream is gone")?;
        let silent = &stream.resumed.silent;
        let Some(seat) = &mut self.seat else { return self.on_hello(place, hello, times) };
        match seat.owners.claim(HostId(hello.host)) {
            Claim::Here => self.welcome(place, hello, times),
            Claim::At { address, .. } if *silent != address => self.redirect(place, address),
            claim => {
                let until = times.0 + WAIT_MAX;
                let blamed = match claim {
                    Claim::At { owner, .. } => Some((owner, times.0)),
                    Claim::Here | Claim::Unknown => None,
                };
                seat.owners.waiting.insert(place, Waiting { hello, until, blamed });
                if let Some((owner, _)) = blamed {
                    self.ask_peer(owner, times.0);
                }
                Ok(())
            }
        }
    }

    fn welcome(&mut self, place: Place, hello: Hello, times: (Instant, i64)) -> Result<(), String> {
        let (host, boot) = (HostId(hello.host), BootId(hello.boot));
        let labels = hello.labels.iter().map(|(name, value)| format!("{name}={value}"));
        let tags = labels.collect::<Vec<_>>().join(",");
        let (instance, now_ms) = (hello.instance.clone(), times.1);
        self.on_hello(place, hello, times)?;
        // With a spool it is told already, and is not all up to there.
        if let Some(Resumed { acknowledged_seq, spooled: None, .. }) =
            self.streams.get(&place).map(|stream| &stream.resumed)
        {
            self.ingest.elsewhere(host, boot, *acknowledged_seq);
        }
        let Some(seat) = &mut self.seat else { return Ok(()) };
        seat.tell(Order::Host { host: host.0, instance, tags, now_ms });
        let brokers = seat.owners.addresses();
        self.say(place, &Message::Brokers(brokers))
    }

    fn redirect(&mut self, place: Place, broker: String) -> Result<(), String> {
        if let Some(seat) = &mut self.seat {
            seat.owners.redirects += 1;
        }
        self.say(place, &Message::Redirect { broker })
    }

    /// The agreed owners or members are others than before.
    pub(super) fn on_map(&mut self, map: Arc<Map>, times: (Instant, i64)) {
        let Some(seat) = &mut self.seat else { return };
        let moved = seat.owners.map.addresses != map.addresses;
        seat.owners.map = map;
        let owners = &mut seat.owners;
        let waiting = std::mem::take(&mut owners.waiting);
        for (session, place) in &self.sessions {
            let Some((host, _)) = self.ingest.whose(*session) else { continue };
            match owners.claim(host) {
                Claim::At { .. } => drop(owners.leaving.insert(*session, *place)),
                Claim::Here => {
                    // It came back before it had gone; what it sent meanwhile is to be read.
                    self.readable.extend(owners.leaving.remove(session));
                }
                Claim::Unknown => {}
            }
        }
        let brokers = Message::Brokers(owners.addresses());
        for (place, Waiting { hello, until, .. }) in waiting {
            if let Err(why) = self.on_claim(place, hello, times) {
                self.refuse(place.conn, &why, times.0);
            } else if let Some(seat) = &mut self.seat
                && let Some(waiting) = seat.owners.waiting.get_mut(&place)
            {
                waiting.until = until;
            }
        }
        let told: Vec<Place> =
            if moved { self.sessions.values().copied().collect() } else { vec![] };
        for place in told {
            if let Err(why) = self.say(place, &brokers) {
                log::debug!("an agent is not told of the brokers: {why}");
            }
        }
    }

    /// Lets those go whose frames are all acknowledged, and does not let anybody wait for ever.
    pub(super) fn tend_owners(&mut self, now: Instant) {
        let mut going = self.waited_enough(now);
        let Some(seat) = &mut self.seat else { return };
        let owners = &mut seat.owners;
        // Both sessions of a connection: a spool's frames, too, are acknowledged before it goes.
        let conn = |session: &SessionId| {
            let place = self.sessions.get(session).or_else(|| self.replays.get(session));
            place.map(|place| place.conn)
        };
        let done = |session: &SessionId| {
            let is_ours = |other: &SessionId| other == session || conn(other) == conn(session);
            let busy = self.touched.iter().any(|(_, _, touched)| is_ours(touched))
                || self.turns.iter().any(|t| t.reached.iter().any(|of| is_ours(&of.session)))
                || self.copies.sessions().any(|waiting| is_ours(&waiting));
            !busy
        };
        let free: Vec<SessionId> = owners.leaving.keys().copied().filter(done).collect();
        for session in free {
            let Some(place) = owners.leaving.remove(&session) else { continue };
            let Some((host, _)) = self.ingest.whose(session) else { continue };
            if let Claim::At { address, .. } = owners.claim(host) {
                going.push((place, Some(address)));
            }
        }
        for (place, broker) in going {
            let said = match broker {
                Some(broker) => self.redirect(place, broker),
                None => Err(NO_OWNER.to_owned()),
            };
            if let Err(why) = said {
                self.refuse(place.conn, &why, now);
            }
        }
    }

    /// Who is not kept waiting any more, and where it is sent.
    fn waited_enough(&mut self, now: Instant) -> Vec<(Place, Option<String>)> {
        let blamed = self.seat.iter().flat_map(|seat| seat.owners.waiting.values());
        let blamed: BTreeSet<u64> = blamed.filter_map(|w| Some(w.blamed?.0)).collect();
        blamed.into_iter().for_each(|owner| self.listen_to_peer(owner, now));
        let Some(seat) = &mut self.seat else { return Vec::new() };
        let heard = |(owner, since): (u64, Instant)| seat.heard(owner).is_some_and(|at| since < at);
        let over = |(place, waiting): (&Place, &Waiting)| {
            (waiting.until <= now || waiting.blamed.is_some_and(heard)).then_some(*place)
        };
        let over: Vec<Place> = seat.owners.waiting.iter().filter_map(over).collect();
        let mut going = Vec::new();
        for place in over {
            let Some(waiting) = seat.owners.waiting.remove(&place) else { continue };
            let to = match seat.owners.claim(HostId(waiting.hello.host)) {
                Claim::At { address, .. } => Some(address),
                Claim::Here | Claim::Unknown => None,
            };
            going.push((place, to));
        }
        going
    }

    /// Whether nothing of this stream is to be read: its host is another broker's by now.
    pub(super) fn is_leaving(&self, place: Place) -> bool {
        let Some(seat) = &self.seat else { return false };
        match self.streams.get(&place).map(|stream| &stream.role) {
            Some(StreamRole::Agent(session)) => seat.owners.is_leaving(*session),
            Some(StreamRole::Replay(_)) => {
                seat.owners.leaving.values().any(|live| live.conn == place.conn)
            }
            _ => false,
        }
    }

    /// The stream is gone, and what was kept for it.
    pub(super) fn forget_claim(&mut self, place: Place) {
        if let Some(seat) = &mut self.seat {
            seat.owners.waiting.remove(&place);
            seat.owners.leaving.retain(|_, leaving| *leaving != place);
        }
    }
}

impl Owners {
    fn addresses(&self) -> Vec<String> {
        self.map.addresses.iter().map(|(_, address)| address.clone()).collect()
    }
}

/// How long a hello waits for an owner that answers: three heartbeats, an election and a bit.
const WAIT_MAX: Duration = Duration::from_secs(4);
const NO_OWNER: &str = "this host's shard has no owner now: the brokers of the cluster do not agree \
     on one, or have just started";
