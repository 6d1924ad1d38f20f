//! The network: one socket, one link, and what they are used for.
//!
//! ```text
//!          token                          frames, renewals
//! Enrol -----------> identity.pem -----> Send
//!   ^------------ the broker does not believe the certificate, and there is a token
//! ```
//!
//! A renewed certificate is used at once and saved; if it cannot be saved, the old one, which is
//! good for some time still, is what the next start finds.

use super::answering::Answering;
use super::remake::Remaker;
use super::{AgentError, io_error};
use crate::clock;
use crate::config::Config;
use crate::managed::{Act, Managed};
use crate::recorder::Bell;
use crate::ring::Reader;
use crate::schemas::Table;
use crate::spool::{Numbers, Spool, SpoolConfig};
use crate::state::{State, StateError};
use crate::uplink::{Renewed, Status, Uplink, UplinkConfig};
use mio::{Interest, Registry, Waker};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use strobe_wire::enrol::{Enrol, EnrolError};
use strobe_wire::link::{
    Distrust, Event, Link, LinkConfig, LinkError, Offload, Progress, Side, Socket, SocketConfig,
};
use strobe_wire::message::Hello;
use strobe_wire::pki::{Identity, Role, Subject, Token, fingerprint};

/// The network: all that a turn is about.
pub(super) struct Network {
    pub(super) parts: Parts,
    uplink: UplinkConfig,
    pub(super) registry: Registry,
    pub(super) socket: Socket,
    pub(super) link: Link,
    /// From the first turn on, if there is to be one.
    pub(super) spool: Option<Spool>,
    /// An event that the sampler's thread left to the network's.
    pub(super) held: Option<Event>,
    /// Whether the poll tells when the socket can take more: only while it could not.
    pub(super) blocked: bool,
    answering: Answering,
}

/// What a [`Network`] is given.
pub(super) struct Parts {
    pub(super) broker: String,
    pub(super) state: State,
    pub(super) identity: Option<Identity>,
    /// For an enrolment, or for one anew.
    pub(super) token: Option<Token>,
    pub(super) hello: Hello,
    pub(super) ring: Reader,
    pub(super) table: Arc<Table>,
    pub(super) spool: Option<SpoolConfig>,
    pub(super) spool_numbers: Arc<Numbers>,
    pub(super) status: Arc<Mutex<Status>>,
    /// Rung when the broker asks for a burst.
    pub(super) bell: Bell,
    /// As it is now.
    pub(super) config: Config,
    pub(super) managed: Managed,
    pub(super) remaker: Remaker,
}

/// What the loop is about.
pub(super) enum Work {
    /// Getting an identity: the conversation, or when to begin the next.
    Enrol { token: Token, asking: Option<Box<Enrol>>, next: Instant, wait: Duration },
    /// Sending frames.
    Send(Box<Uplink>),
}

impl Network {
    pub(super) fn new(
        parts: Parts,
        registry: Registry,
        waker: Arc<Waker>,
    ) -> Result<Self, AgentError> {
        let mut socket = bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
        registry
            .register(socket.source(), SOCKET, Interest::READABLE)
            .map_err(io_error("register with the poll"))?;
        let link = link(&socket, parts.identity.clone())?;
        let mut uplink = uplink_config(&parts.broker, &parts.hello);
        let known = parts.state.brokers().into_iter().filter(|known| *known != parts.broker);
        uplink.brokers.extend(known);
        let answering = Answering::new(waker, parts.bell.clone());
        let (spool, held, blocked) = (None, None, false);
        Ok(Self { parts, uplink, registry, socket, link, spool, held, blocked, answering })
    }

    /// Takes up what the life before left in the spool; this reads all of it.
    pub(super) fn open_spool(&mut self) {
        let State { host, boot, .. } = self.parts.state;
        let numbers = Arc::clone(&self.parts.spool_numbers);
        self.spool =
            self.parts.spool.clone().map(|config| Spool::open(config, (host, boot), numbers));
    }

    /// What to begin with.
    pub(super) fn work(&self, now: Instant) -> Work {
        match self.parts.token {
            Some(token) if self.parts.identity.is_none() => enrolment(token, now),
            _ => self.send(now),
        }
    }

    /// When there is something to do at the latest.
    pub(super) fn timeout(&self, work: &Work) -> Option<Instant> {
        let works = match work {
            Work::Enrol { asking: Some(enrol), .. } => Some(enrol.timeout()),
            Work::Enrol { next, .. } => Some(*next),
            Work::Send(uplink) => uplink.timeout(),
        };
        let managed = self.parts.managed.timeout();
        [works, self.link.timeout(), managed].into_iter().flatten().min()
    }

    /// Sends; the poll is asked to tell of room for more only while the kernel has none, because
    /// it would also tell of every datagram that has left.
    pub(super) fn transmit(&mut self, now: Instant) -> Result<Progress, AgentError> {
        let progress = self.socket.transmit(now, &mut self.link);
        let blocked = progress == Progress::Blocked;
        if blocked != self.blocked {
            let interest = if blocked { WRITABLE } else { Interest::READABLE };
            self.registry
                .reregister(self.socket.source(), SOCKET, interest)
                .map_err(io_error("register with the poll"))?;
            self.blocked = blocked;
        }
        Ok(progress)
    }

    /// Events, timers, dials; what to go on with if that is something else.
    pub(super) fn act(
        &mut self,
        now: Instant,
        work: &mut Work,
    ) -> Result<Option<Work>, AgentError> {
        self.spill(now, work);
        let Work::Send(uplink) = work else { return self.enrol(now, work) };
        while let Some(event) = self.held.take().or_else(|| self.link.poll()) {
            uplink.told(now, &event, &mut self.link, &mut self.parts.ring);
        }
        if let Some(renewed) = uplink.renewed() {
            match self.renew(renewed) {
                Ok(()) => uplink.reconnect(now, &mut self.link, &mut self.parts.ring),
                Err(why) => log::warn!("the certificate is not renewed: {why}"),
            }
        }
        if let Some(brokers) = uplink.brokers() {
            if let Err(why) = self.parts.state.keep_brokers(&brokers) {
                log::warn!("the list of brokers is not kept: {why}");
            }
            self.uplink.brokers = brokers;
        }
        if let (Some(why), Some(token)) = (uplink.distrust(), self.parts.token)
            && would_help(why, &token, self.parts.identity.as_ref())
        {
            log::warn!("enrolling anew with the token: {}", uplink.status().last_error);
            return Ok(Some(enrolment(token, now)));
        }
        uplink.on_timeout(now, &mut self.link, &mut self.parts.ring);
        if let Some(why) = uplink.complaint() {
            log::warn!("uplink: {why}");
        }
        if let Some(broker) = uplink.wants(now) {
            let remote = resolve(&broker).and_then(|remote| self.reach(remote));
            uplink.dial(now, &mut self.link, remote);
        }
        self.manage(now, uplink);
        uplink.pump(now, &mut self.link, &mut self.parts.ring, &self.parts.table);
        if let Some(spool) = &mut self.spool {
            uplink.replay(now, &mut self.link, spool, &self.parts.table);
            if let Some(why) = spool.complaint() {
                log::warn!("{why}");
            }
        }
        Ok(None)
    }

    /// Brings the older part of a ring that fills up to the spool.
    fn spill(&mut self, now: Instant, work: &mut Work) {
        let (Some(spool), ring) = (&mut self.spool, &mut self.parts.ring) else { return };
        match work {
            Work::Send(uplink) => uplink.spill(now, &mut self.link, ring, spool, &self.parts.table),
            Work::Enrol { .. } => spool.spill(now, ring, &self.parts.table),
        }
    }

    /// At the end: what nobody has acknowledged waits on the disk for the next life.
    pub(super) fn keep_rest(&mut self, now: Instant) {
        if let Some(spool) = &mut self.spool {
            spool.keep(&mut self.parts.ring, &self.parts.table, u64::MAX);
            spool.close(now);
        }
    }

    fn enrol(&mut self, now: Instant, work: &mut Work) -> Result<Option<Work>, AgentError> {
        let Work::Enrol { token, asking, next, wait } = work else { return Ok(None) };
        let outcome = match asking {
            Some(enrol) => enrolling(now, enrol, &mut self.link),
            None if now < *next => return Ok(None),
            None => resolve(&self.parts.broker)
                .and_then(|remote| self.reach(remote))
                .map_err(EnrolError::Lost)
                .and_then(|remote| {
                    let subject = Subject { role: Role::Agent, host: self.parts.state.host };
                    Enrol::begin(now, &mut self.link, remote, *token, subject)
                })
                .map(|enrol| {
                    *asking = Some(Box::new(enrol));
                    None
                }),
        };
        match outcome {
            Ok(None) => Ok(None),
            Ok(Some(identity)) => {
                identity.save(&self.parts.state.dir).map_err(StateError::from)?;
                log::info!("enrolled as host {}", self.parts.state.host);
                self.link.set_identity(identity.clone())?;
                self.parts.identity = Some(identity);
                // It is good once.
                self.parts.token = None;
                Ok(Some(self.send(now)))
            }
            Err(error @ EnrolError::Refused(_)) if self.parts.identity.is_none() => {
                Err(error.into())
            }
            Err(error @ EnrolError::Refused(_)) => {
                // The certificate may be good again one day: a broker's clock that is put right.
                log::error!("{error}; going on with the certificate there is");
                self.link.close_all(now, "enrolling failed");
                self.parts.token = None;
                Ok(Some(self.send(now)))
            }
            Err(error) => {
                log::warn!("{error}; again in {wait:?}");
                self.link.close_all(now, "enrolling failed");
                (*asking, *next) = (None, now + *wait);
                *wait = (*wait * 2).min(RETRY_MAX);
                let mut status = self.parts.status.lock().unwrap_or_else(PoisonError::into_inner);
                status.last_error = error.to_string();
                Ok(None)
            }
        }
    }

    fn send(&self, now: Instant) -> Work {
        let mut uplink = Uplink::new(self.uplink.clone(), now);
        uplink.stands(self.parts.managed.standing());
        Work::Send(Box::new(uplink))
    }

    /// What the fleet wants of this host: another configuration, and answers.
    fn manage(&mut self, now: Instant, uplink: &mut Uplink) {
        let pushed = uplink.pushed();
        if pushed.is_some() || self.parts.managed.is_proving() {
            let pulse = self.parts.remaker.desk().pulse(&uplink.status());
            if let Some(pushed) = pushed {
                self.parts.managed.offered(now, pushed, pulse);
            }
            self.parts.managed.on_timeout(now, pulse);
        }
        while let Some(act) = self.parts.managed.poll() {
            match act {
                Act::Run(config) => {
                    if let Err(why) = self.reconfigure(now, &config, uplink) {
                        log::error!("the configuration is not changed: {why}");
                        if self.parts.managed.is_proving() {
                            self.parts.managed.failed(&why.to_string());
                        }
                    }
                }
                Act::Keep(pushed) => {
                    if let Err(why) = self.parts.state.keep_configuration(&pushed) {
                        log::warn!("the configuration is not kept for the next start: {why}");
                    }
                }
                Act::Tell(standing) => uplink.stands(standing),
            }
        }
        while let Some((id, what)) = uplink.asked() {
            if let Some(answer) = self.answering.ask(id, what, &self.parts.config) {
                uplink.answer(id, answer);
            }
        }
        while let Some((id, answer)) = self.answering.poll() {
            uplink.answer(id, answer);
        }
    }

    /// From now on this configuration is what runs.
    fn reconfigure(
        &mut self,
        now: Instant,
        config: &Config,
        uplink: &mut Uplink,
    ) -> Result<(), AgentError> {
        self.parts.remaker.remake(config)?;
        self.parts.config = config.clone();
        let hello = &mut self.parts.hello;
        (hello.labels, hello.interval_ms) = (config.labels.0.clone(), config.interval_ms);
        self.uplink.hello = hello.clone();
        uplink.introduce(now, hello.clone(), &mut self.link, &mut self.parts.ring);
        if let Some(spool) = &mut self.spool {
            spool.resize(config.spool_bytes);
        }
        Ok(())
    }

    /// The new identity, in use for the connections to come and kept.
    fn renew(&mut self, new: Renewed) -> Result<(), LinkError> {
        let old = self.parts.identity.as_ref().ok_or(LinkError::NoIdentity("a renewal"))?;
        let identity = old.renewed(new.key_der, new.certificate_der, &new.ca_der)?;
        self.link.set_identity(identity.clone())?;
        match identity.save(&self.parts.state.dir) {
            Ok(()) => log::info!("the certificate is renewed"),
            Err(why) => log::warn!("the renewed certificate is used but not kept: {why}"),
        }
        self.parts.identity = Some(identity);
        Ok(())
    }

    /// Makes the socket one of `remote`'s family.
    fn reach(&mut self, remote: SocketAddr) -> Result<SocketAddr, String> {
        let bound = self.socket.local_addr().map_err(|error| error.to_string())?;
        if bound.is_ipv4() != remote.is_ipv4() {
            let any = match remote {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            };
            let mut socket = bind(any).map_err(|error| error.to_string())?;
            self.registry
                .register(socket.source(), SOCKET, Interest::READABLE)
                .map_err(|error| error.to_string())?;
            self.blocked = false;
            self.socket = socket;
        }
        Ok(remote)
    }

    /// Shows the status; whether there is nothing left to be acknowledged, or nobody to do it.
    pub(super) fn publish(&self, work: &Work) -> bool {
        let Work::Send(uplink) = work else { return true };
        let mut status = self.parts.status.lock().unwrap_or_else(PoisonError::into_inner);
        uplink.show(&mut status);
        !status.streaming || status.unacknowledged == 0
    }
}

fn enrolment(token: Token, now: Instant) -> Work {
    Work::Enrol { token, asking: None, next: now, wait: RETRY_MIN }
}

fn enrolling(
    now: Instant,
    enrol: &mut Enrol,
    link: &mut Link,
) -> Result<Option<Identity>, EnrolError> {
    while let Some(event) = link.poll() {
        if let Some(identity) = enrol.told(now, &event, link)? {
            return Ok(Some(identity));
        }
    }
    enrol.on_timeout(now)?;
    Ok(None)
}

fn uplink_config(broker: &str, hello: &Hello) -> UplinkConfig {
    let [low, high] = [hello.boot, hello.boot >> 64]
        .map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(1));
    UplinkConfig { brokers: vec![broker.to_owned()], hello: hello.clone(), seed: low ^ high }
}

pub(super) fn bind(any: SocketAddr) -> Result<Socket, AgentError> {
    // An agent hears acknowledgements: of the second buffer it only learns that it stayed empty.
    // One more than the answers to two ticks, which are read together: no call only to hear that
    // there is no third.
    Socket::bind(&SocketConfig { bind: any, offload: Offload::Auto, batch: 3, kernel_bytes: 0 })
        .map_err(io_error("bind a UDP socket"))
}

/// Whether enrolling anew would: the broker does not believe this side, or the token is of another
/// authority than the one that this side believes so far, and the operator means that one.
fn would_help(why: Distrust, token: &Token, identity: Option<&Identity>) -> bool {
    match why {
        Distrust::Expired | Distrust::Foreign => true,
        Distrust::BrokerForeign => {
            identity.is_some_and(|own| fingerprint(&own.ca_der) != token.fingerprint)
        }
        Distrust::BrokerExpired | Distrust::NotBroker => false,
    }
}

pub(super) fn link(socket: &Socket, identity: Option<Identity>) -> Result<Link, AgentError> {
    let wall_s = u64::try_from(clock::wall_ns() / 1_000_000_000).unwrap_or(0);
    Ok(Link::new(&LinkConfig {
        identity,
        side: Side::Agent,
        connections_max: CONNECTIONS_MAX,
        whole_datagrams: socket.keeps_datagrams_whole(),
        wall_s,
        seed: None,
        accept: None,
    })?)
}

/// Blocks for as long as the resolver does; the sampler does not wait for it.
pub(super) fn resolve(broker: &str) -> Result<SocketAddr, String> {
    let mut found = broker.to_socket_addrs().map_err(|e| format!("resolving {broker}: {e}"))?;
    found.next().ok_or_else(|| format!("{broker} has no address"))
}

pub(super) const SOCKET: mio::Token = mio::Token(0);
const WRITABLE: Interest = Interest::READABLE.add(Interest::WRITABLE);
/// The one in use, and those saying good-bye.
const CONNECTIONS_MAX: usize = 8;
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
