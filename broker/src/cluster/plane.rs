//! The control plane of one broker: its node, who waits for what, and what the network loop is told.
//!
//! A state machine that writes its redb store in [`Plane::poll`]; its thread owns it and nobody
//! else waits for it. After an error it is over, and the broker goes on by its last map.

mod asked;

pub use asked::{Answer, Asked, Look};

use super::keeper::Keeper;
use super::{Desired, Map, Report};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::kinds::{Command, hosts, placement, revocations, rollouts, versions};
use strobe_cluster::{
    CommandId, Config, Event, Identity, Node, NodeError, Outcome, Output, Role, Store, Ticket,
};
use strobe_wire::ids::HostId;

/// The state machine.
#[derive(Debug)]
pub struct Plane {
    node: Node,
    identity: Identity,
    waiting: BTreeMap<CommandId, Waiter>,
    reading: BTreeMap<Ticket, Reader>,
    /// Hosts that said hello and are not in the state as they say; each is proposed in turn.
    hosts: BTreeMap<u128, Host>,
    posts: VecDeque<Post>,
    mapped: Option<[u128; 2]>,
    /// The revocations that the network loop knows.
    revoked: Option<u128>,
    /// The versions of the configuration that it knows.
    configured: Option<u128>,
    keeper: Keeper,
    map: Arc<Map>,
    names: BTreeMap<u64, (String, Option<SocketAddr>)>,
    /// The state here was as new as any once in this life: until then the map in it is history.
    confirmed: bool,
    /// This broker has left, as this one says; what is in the store here ends before that.
    left_to: Option<(u64, Instant)>,
    look_at: Instant,
    names_at: Instant,
    dropped: u64,
}

/// What a plane is told.
#[derive(Debug)]
pub enum Order {
    /// A peer's bytes.
    Heard {
        /// From whom, by its certificate.
        from: u64,
        /// One message.
        bytes: Bytes,
    },
    /// What was sent to a peer may be lost.
    Unreachable(u64),
    /// A message to a peer found its queue full.
    Dropped,
    /// The network loop wants a command applied; [`Post::Outcome`] follows.
    Propose(u64, Command),
    /// A host said hello here.
    Host {
        /// Which.
        host: u128,
        /// What people call it.
        instance: String,
        /// Its labels.
        tags: String,
        /// When.
        now_ms: i64,
    },
    /// A canary runs a version of the configuration well, or not.
    Verdict(u64, Result<String, String>),
    /// An operator wants something, and listens.
    Ask(Asked, SyncSender<Answer>),
    /// It shall end.
    Stop,
}

/// Bytes for a peer.
#[derive(Debug)]
pub struct Mail {
    /// Which.
    pub to: u64,
    /// One message.
    pub bytes: Vec<u8>,
}

/// What the network loop is told.
#[derive(Debug)]
pub enum Post {
    /// From now on this is how it is.
    Map(Arc<Map>),
    /// What became of a command of its own.
    Outcome(u64, Outcome),
    /// Certificates of these hosts that end up to then are refused.
    Revoked(Vec<(HostId, u64)>),
    /// What hosts and brokers are to run.
    Desired(Arc<Desired>),
}

#[derive(Debug)]
enum Waiter {
    Network(u64),
    Operator(SyncSender<Answer>),
    /// A host was put into the state.
    Host(u128),
    /// Whoever wants to know looks at the state.
    Nobody,
}

#[derive(Debug)]
enum Reader {
    /// Is the map in the store still the map?
    Confirm,
    /// An operator wants it as it is.
    Operator(Asked, SyncSender<Answer>),
}

#[derive(Debug)]
struct Host {
    instance: String,
    tags: String,
    now_ms: i64,
    /// Its command is under way.
    asked: bool,
}

impl Plane {
    /// Begins a life of the node on `store`.
    ///
    /// # Errors
    /// The store or the settings do not fit.
    pub fn new(store: Store, config: Config, now: Instant) -> Result<Self, NodeError> {
        let identity = store.identity();
        let node = Node::new(store, config, now)?;
        let mut plane = Self {
            node,
            identity,
            waiting: BTreeMap::new(),
            reading: BTreeMap::new(),
            hosts: BTreeMap::new(),
            posts: VecDeque::new(),
            mapped: None,
            revoked: None,
            configured: None,
            keeper: Keeper::default(),
            map: Arc::default(),
            names: BTreeMap::new(),
            confirmed: false,
            left_to: None,
            look_at: now,
            names_at: now,
            dropped: 0,
        };
        // Nobody else could have changed anything.
        plane.confirmed = plane.node.status().voters == [identity.broker];
        plane.draw();
        Ok(plane)
    }

    /// Which broker of which cluster this is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Its node, to be looked at.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// When [`Self::on_timeout`] wants to be called at the latest.
    #[must_use]
    pub fn timeout(&self) -> Instant {
        self.node.timeout()
    }

    /// Takes an order in.
    ///
    /// # Errors
    /// The node is over.
    pub fn take(&mut self, now: Instant, order: Order) -> Result<(), NodeError> {
        match order {
            Order::Heard { from, bytes } => self.node.step(now, from, &bytes),
            Order::Unreachable(peer) => self.node.unreachable(now, peer),
            Order::Dropped => {
                self.dropped += 1;
                Ok(())
            }
            Order::Propose(ticket, command) => self.propose(now, command, Waiter::Network(ticket)),
            Order::Host { host, instance, tags, now_ms } => {
                let known = hosts::host(self.node.state(), HostId(host));
                let news =
                    known.is_none_or(|k| (k.instance, k.tags) != (instance.clone(), tags.clone()));
                if news && self.hosts.len() < HOSTS_MAX {
                    self.hosts.insert(host, Host { instance, tags, now_ms, asked: false });
                }
                Ok(())
            }
            Order::Verdict(number, outcome) => {
                let told = outcome.as_ref().map(String::as_str).map_err(String::as_str);
                self.propose(now, rollouts::Change::end(number, told), Waiter::Nobody)
            }
            Order::Ask(asked, reply) => self.ask(now, asked, reply),
            Order::Stop => Ok(()),
        }
    }

    /// Does what is due.
    ///
    /// # Errors
    /// The node is over.
    pub fn on_timeout(&mut self, now: Instant) -> Result<(), NodeError> {
        if self.node.timeout() <= now {
            self.node.on_timeout(now)?;
        }
        if self.look_at <= now {
            self.look_at = now + LOOK_EVERY;
            let confirms = |reader: &Reader| matches!(reader, Reader::Confirm);
            if !self.confirmed && !self.reading.values().any(confirms) {
                // Its answer may be there at once: it is to be known before.
                if let Some(ticket) = self.node.read(now)? {
                    self.reading.insert(ticket, Reader::Confirm);
                }
            }
            if self.names_at <= now && self.names.values().any(|(_, at)| at.is_none()) {
                (self.names_at, self.mapped) = (now + NAMES_EVERY, None);
                self.draw();
            }
            self.put_hosts(now)?;
            let leads = self.node.status().role == Role::Leader;
            if let Some(command) = self.keeper.due(now, self.node.state(), leads) {
                self.propose(now, command, Waiter::Nobody)?;
            }
        }
        Ok(())
    }

    /// The next thing for peers and the network loop; writes the store where that has to come first.
    ///
    /// # Errors
    /// The node is over.
    pub fn poll(
        &mut self,
        now: Instant,
        mail: &mut dyn FnMut(Mail) -> bool,
    ) -> Result<Option<Post>, NodeError> {
        while let Some(output) = self.node.poll(now)? {
            match output {
                Output::Send { to, bytes } => {
                    if !mail(Mail { to, bytes }) {
                        self.dropped += 1;
                        self.node.unreachable(now, to)?;
                    }
                }
                Output::Event(event) => self.hear(now, &event)?,
            }
            if let Some(post) = self.posts.pop_front() {
                return Ok(Some(post));
            }
        }
        Ok(self.posts.pop_front())
    }

    fn hear(&mut self, now: Instant, event: &Event) -> Result<(), NodeError> {
        match *event {
            Event::Outcome(id, outcome) => match self.waiting.remove(&id) {
                Some(Waiter::Network(ticket)) => {
                    self.posts.push_back(Post::Outcome(ticket, outcome));
                }
                // Who asked may have left.
                Some(Waiter::Operator(reply)) => drop(reply.try_send(Answer::Outcome(outcome))),
                Some(Waiter::Host(host)) => match outcome {
                    Outcome::Unknown => {
                        self.hosts.entry(host).and_modify(|host| host.asked = false);
                    }
                    _ => drop(self.hosts.remove(&host)),
                },
                Some(Waiter::Nobody) | None => {}
            },
            Event::Read(ticket, answered) => match self.reading.remove(&ticket) {
                Some(Reader::Confirm) if answered => {
                    (self.confirmed, self.mapped) = (true, None);
                    self.draw();
                }
                Some(Reader::Operator(asked, reply)) if answered => {
                    self.ask(now, asked, reply)?;
                }
                Some(Reader::Operator(_, reply)) => drop(reply.try_send(Answer::Busy)),
                Some(Reader::Confirm) | None => {}
            },
            Event::Leader(leader, term) => match leader {
                Some(id) => log::info!("broker {id} leads the cluster in term {term}"),
                None => log::warn!("no broker leads the cluster (term {term})"),
            },
            Event::Changed => self.draw(),
            Event::Gone(peer) => {
                // Each says so to whatever it hears: one of them is enough as long as it goes on.
                let keeps =
                    |(kept, said): &(u64, Instant)| *kept != peer && now < *said + LEFT_TO_KEPT;
                if self.left_to.as_ref().is_some_and(keeps) {
                    return Ok(());
                }
                let before = self.left_to.replace((peer, now));
                if before.is_none_or(|(kept, _)| kept != peer) {
                    log::warn!("broker {peer} says that this one has left the cluster");
                    self.mapped = None;
                    self.draw();
                }
            }
            Event::Taken(..) => {}
        }
        Ok(())
    }

    /// Tells the network loop if owners, members or revocations are others than it knows.
    fn draw(&mut self) {
        let revoked = revocations::mark(self.node.state());
        if self.revoked.replace(revoked) != Some(revoked) {
            let all = revocations::revocations(self.node.state()).into_iter();
            let all: Vec<_> = all.map(|(host, refused_s)| (HostId(host), refused_s)).collect();
            self.posts.push_back(Post::Revoked(all));
        }
        // What is in the store may be long over until it is known to be as new as any.
        let configured = versions::mark(self.node.state());
        if self.confirmed && self.configured.replace(configured) != Some(configured) {
            self.posts.push_back(Post::Desired(Arc::new(Desired::of(self.node.state()))));
        }
        let placed = placement(self.node.state());
        if self.mapped == Some(placed) {
            return;
        }
        self.mapped = Some(placed);
        let mut map = Map::of(self.identity.broker, self.node.state());
        for (id, address) in map.addresses.iter().filter(|(id, _)| *id != map.me) {
            let known = self.names.get(id).filter(|(name, at)| name == address && at.is_some());
            if known.is_none() {
                // Plain addresses are not asked anybody for. A name's server may keep this thread
                // waiting, which is why it is done here and not in the network loop.
                let at = address.to_socket_addrs().ok().and_then(|mut found| found.next());
                self.names.insert(*id, (address.clone(), at));
            }
        }
        self.names.retain(|id, _| map.addresses.iter().any(|(known, _)| known == id));
        let resolved = |(id, (_, at)): (&u64, &(String, Option<SocketAddr>))| Some((*id, (*at)?));
        map.peers = self.names.iter().filter_map(resolved).collect();
        if !self.confirmed {
            map.forget_owners();
        }
        if let Some(peer) = self.left_to.map(|(peer, _)| peer).or_else(|| self.left_by_log()) {
            map.leave_to(peer);
        }
        if *self.map != map {
            self.map = Arc::new(map);
            self.posts.push_back(Post::Map(Arc::clone(&self.map)));
        }
    }

    /// Somebody who stayed, if this broker has left by what is in the store here: nobody comes back from
    /// there, so that holds however old it is. Who owns what by it does not: no peer says any more.
    fn left_by_log(&self) -> Option<u64> {
        let known = members::members(self.node.state());
        let gone = known.iter().any(|m| m.id == self.identity.broker && m.stage() == Stage::Left);
        let stays = known.iter().find(|member| member.stage() == Stage::Voter);
        stays.filter(|_| gone).map(|member| member.id)
    }

    fn propose(&mut self, now: Instant, command: Command, who: Waiter) -> Result<(), NodeError> {
        match (self.node.propose(now, command)?, who) {
            (Some(id), who) => drop(self.waiting.insert(id, who)),
            (None, Waiter::Network(ticket)) => {
                self.posts.push_back(Post::Outcome(ticket, Outcome::Unknown));
            }
            (None, Waiter::Operator(reply)) => drop(reply.try_send(Answer::Busy)),
            (None, Waiter::Host(host)) => {
                self.hosts.entry(host).and_modify(|host| host.asked = false);
            }
            (None, Waiter::Nobody) => {}
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let mut report =
            Report::of(self.identity, self.node.status(), self.node.state(), self.dropped);
        report.left = self.left_to.is_some() || self.left_by_log().is_some();
        report
    }

    /// A few of the hosts that are news; the rest is for the next time.
    fn put_hosts(&mut self, now: Instant) -> Result<(), NodeError> {
        let waiting = self.hosts.iter().filter(|(_, host)| !host.asked);
        let next: Vec<u128> = waiting.take(HOSTS_AT_ONCE).map(|(id, _)| *id).collect();
        for id in next {
            let Some(host) = self.hosts.get_mut(&id) else { continue };
            host.asked = true;
            let command = hosts::Change::put(id, &host.instance, &host.tags, host.now_ms);
            self.propose(now, command, Waiter::Host(id))?;
        }
        Ok(())
    }
}

/// Orders waiting for a plane.
pub const ORDERS_MAX: usize = 4096;
/// Messages waiting for the network loop.
pub const MAIL_MAX: usize = 4096;
/// Hosts waiting to be put into the state; more are put when they say hello again.
const HOSTS_MAX: usize = 20_000;
const HOSTS_AT_ONCE: usize = 16;
/// Who said that this broker has left says it again within an election or two, if it is there.
const LEFT_TO_KEPT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A name that had no address is asked for again.
const NAMES_EVERY: Duration = Duration::from_secs(5);
