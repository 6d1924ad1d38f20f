//! The network's side of an agent: one socket, one link, and what it is used for: getting an
//! identity, then sending frames. The loop that calls it is in `run.rs`; no clock is read here.
//!
//! ```text
//!          token                          frames, renewals
//! Enrol -----------> identity.pem -----> Send
//!   ^------------ the broker does not believe the certificate, and there is a token
//! ```
//!
//! A renewed certificate is used at once and saved; if it cannot be saved, the old one, which is
//! good for some time still, is what the next start finds.

use crate::ring::Reader;
use crate::run::{AgentError, io_error};
use crate::schemas::Table;
use crate::state::{State, StateError};
use crate::uplink::{Renewed, Status, Uplink, UplinkConfig};
use mio::event::Source;
use mio::{Interest, Registry};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use strobe_wire::enrol::{Enrol, EnrolError};
use strobe_wire::link::{
    Link, LinkConfig, LinkError, Offload, Progress, Side, Socket, SocketConfig,
};
use strobe_wire::message::Hello;
use strobe_wire::pki::{Identity, Role, Subject, Token};

/// Everything between the ring and the broker.
pub(crate) struct Network {
    parts: Parts,
    socket: Socket,
    link: Link,
    uplink: UplinkConfig,
    work: Work,
}

/// What a [`Network`] is made of.
pub(crate) struct Parts {
    pub(crate) broker: String,
    pub(crate) state: State,
    pub(crate) identity: Option<Identity>,
    /// For an enrolment, or for one anew.
    pub(crate) token: Option<Token>,
    pub(crate) ring: Reader,
    pub(crate) table: Arc<Table>,
    pub(crate) status: Arc<Mutex<Status>>,
    pub(crate) registry: Registry,
}

/// What it is about.
enum Work {
    /// Getting an identity: the conversation, or when to begin the next.
    Enrol { token: Token, asking: Option<Box<Enrol>>, next: Instant, wait: Duration },
    /// Sending frames.
    Send(Box<Uplink>),
}

impl Network {
    pub(crate) fn new(
        parts: Parts,
        hello: Hello,
        now: Instant,
        wall_s: u64,
    ) -> Result<Self, AgentError> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let socket = bind(any, &parts.registry).map_err(io_error("bind a UDP socket"))?;
        let link = link(&socket, parts.identity.clone(), wall_s)?;
        let uplink = uplink_config(&parts.broker, hello);
        let work = match parts.token {
            Some(token) if parts.identity.is_none() => enrolment(token, now),
            _ => Work::Send(Box::new(Uplink::new(uplink.clone(), now))),
        };
        Ok(Self { parts, socket, link, uplink, work })
    }

    /// When [`Self::turn`] is to be called at the latest.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        let mine = match &self.work {
            Work::Enrol { asking: Some(enrol), .. } => Some(enrol.timeout()),
            Work::Enrol { next, .. } => Some(*next),
            Work::Send(uplink) => uplink.timeout(),
        };
        [mine, self.link.timeout()].into_iter().flatten().min()
    }

    /// Read, time out, act, send; [`Progress::More`] if there is more to do at once.
    pub(crate) fn turn(&mut self, now: Instant, wall_s: u64) -> Result<Progress, AgentError> {
        self.link.set_wall_s(wall_s);
        self.parts.ring.clear_wake();
        let more = self.socket.receive(now, &mut self.link).map_err(io_error("receive"))?;
        self.link.on_timeout(now);
        self.act(now, wall_s)?;
        let sent = self.socket.transmit(now, &mut self.link);
        Ok(if sent == Progress::More { sent } else { more })
    }

    /// Says good-bye.
    pub(crate) fn close(&mut self, now: Instant) {
        self.link.close_all(now, "the agent stops");
        self.socket.transmit(now, &mut self.link);
    }

    /// Shows the status; whether there is nothing left to be acknowledged, or nobody to do it.
    pub(crate) fn publish(&self) -> bool {
        let Work::Send(uplink) = &self.work else { return true };
        let now = uplink.status();
        let idle = !now.streaming || now.unacknowledged == 0;
        *self.parts.status.lock().unwrap_or_else(PoisonError::into_inner) = now;
        idle
    }

    /// Events, timers, dials; then what follows for the identity.
    fn act(&mut self, now: Instant, wall_s: u64) -> Result<(), AgentError> {
        let Work::Send(uplink) = &mut self.work else { return self.enrol(now, wall_s) };
        let ring = &mut self.parts.ring;
        while let Some(event) = self.link.poll() {
            uplink.told(now, &event, &mut self.link, ring);
        }
        if let Some(renewed) = uplink.renewed() {
            match self.parts.identity.as_ref().map(|old| renew(old, renewed, &mut self.link)) {
                Some(Ok(identity)) => {
                    if let Err(why) = identity.save(&self.parts.state.dir) {
                        log::warn!("the renewed certificate is used but not kept: {why}");
                    }
                    log::info!("the certificate is renewed");
                    self.parts.identity = Some(identity);
                    uplink.reconnect(now, &mut self.link, ring);
                }
                Some(Err(why)) => log::warn!("the certificate is not renewed: {why}"),
                None => {}
            }
        }
        if uplink.is_distrusted()
            && let Some(token) = self.parts.token
        {
            log::warn!("enrolling anew with the token: {}", uplink.status().last_error);
            self.work = enrolment(token, now);
            return Ok(());
        }
        uplink.on_timeout(now, &mut self.link, ring);
        if let Some(broker) = uplink.wants(now) {
            let remote = resolve(&broker)
                .and_then(|remote| reach(&mut self.socket, remote, &self.parts.registry));
            uplink.dial(now, &mut self.link, remote);
        }
        uplink.pump(now, &mut self.link, ring, &self.parts.table);
        Ok(())
    }

    fn enrol(&mut self, now: Instant, wall_s: u64) -> Result<(), AgentError> {
        let Work::Enrol { token, asking, next, wait } = &mut self.work else { return Ok(()) };
        let outcome = match asking {
            Some(enrol) => enrolling(now, enrol, &mut self.link),
            None if now < *next => return Ok(()),
            None => resolve(&self.parts.broker)
                .and_then(|remote| reach(&mut self.socket, remote, &self.parts.registry))
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
            Ok(None) => Ok(()),
            Ok(Some(identity)) => {
                identity.save(&self.parts.state.dir).map_err(StateError::from)?;
                log::info!("enrolled as host {}", self.parts.state.host);
                // Its last words, then a link that has the identity.
                self.socket.transmit(now, &mut self.link);
                self.link = link(&self.socket, Some(identity.clone()), wall_s)?;
                self.parts.identity = Some(identity);
                self.send(now);
                self.act(now, wall_s)
            }
            Err(error @ EnrolError::Refused(_)) if self.parts.identity.is_none() => {
                Err(error.into())
            }
            Err(error @ EnrolError::Refused(_)) => {
                // The certificate may be good again one day: a broker's clock that is put right.
                log::error!("{error}; going on with the certificate there is");
                self.link.close_all(now, "enrolling failed");
                self.send(now);
                Ok(())
            }
            Err(error) => {
                log::warn!("{error}; again in {wait:?}");
                self.link.close_all(now, "enrolling failed");
                (*asking, *next) = (None, now + *wait);
                *wait = (*wait * 2).min(RETRY_MAX);
                let mut status = self.parts.status.lock().unwrap_or_else(PoisonError::into_inner);
                status.last_error = error.to_string();
                Ok(())
            }
        }
    }

    /// Sends from now on. A token is good once: it is not tried again.
    fn send(&mut self, now: Instant) {
        self.parts.token = None;
        self.work = Work::Send(Box::new(Uplink::new(self.uplink.clone(), now)));
    }
}

fn enrolment(token: Token, now: Instant) -> Work {
    Work::Enrol { token, asking: None, next: now, wait: RETRY_MIN }
}

/// The new identity, in use for the connections to come.
fn renew(old: &Identity, new: Renewed, link: &mut Link) -> Result<Identity, LinkError> {
    let identity = old.renewed(new.key_der, new.certificate_der, &new.ca_der)?;
    link.set_identity(identity.clone())?;
    Ok(identity)
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

fn uplink_config(broker: &str, hello: Hello) -> UplinkConfig {
    let [low, high] = [hello.boot, hello.boot >> 64]
        .map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(1));
    UplinkConfig { brokers: vec![broker.to_owned()], hello, seed: low ^ high }
}

/// Makes the socket one of `remote`'s family.
fn reach(
    socket: &mut Socket,
    remote: SocketAddr,
    registry: &Registry,
) -> Result<SocketAddr, String> {
    let bound = socket.local_addr().map_err(|error| error.to_string())?;
    if bound.is_ipv4() != remote.is_ipv4() {
        let any = match remote {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        *socket = bind(any, registry).map_err(|error| error.to_string())?;
    }
    Ok(remote)
}

/// A socket that wakes the loop.
fn bind(any: SocketAddr, registry: &Registry) -> io::Result<Socket> {
    // One 64 KiB receive buffer: an agent hears acknowledgements.
    let config = SocketConfig { bind: any, offload: Offload::Auto, batch: 1, kernel_bytes: 0 };
    let mut socket = Socket::bind(&config)?;
    let both = Interest::READABLE | Interest::WRITABLE;
    socket.source().register(registry, SOCKET, both)?;
    Ok(socket)
}

fn link(socket: &Socket, identity: Option<Identity>, wall_s: u64) -> Result<Link, AgentError> {
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
fn resolve(broker: &str) -> Result<SocketAddr, String> {
    let mut found = broker.to_socket_addrs().map_err(|e| format!("resolving {broker}: {e}"))?;
    found.next().ok_or_else(|| format!("{broker} has no address"))
}

/// Of the socket's events; the loop's own are others.
pub(crate) const SOCKET: mio::Token = mio::Token(0);
/// The one in use, and those saying good-bye.
const CONNECTIONS_MAX: usize = 8;
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
