//! The loop that keeps the link to a broker: enrols once, connects, subscribes, carries calls.
//!
//! One bidirectional stream a call and one for the subscription. When the connection ends, waiting
//! calls are answered with 502 and it connects again, after a pause that doubles up to 5 s, half of
//! it random.

use mio::{Events, Interest, Poll, Token, Waker};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use strobe_wire::back_off::BackOff;
use strobe_wire::enrol::{Enrol, EnrolError};
use strobe_wire::ids::HostId;
use strobe_wire::link::{
    Distrust, Link, LinkConfig, LinkError, Offload, Progress, Side, Socket, SocketConfig, Why,
};
use strobe_wire::pki::{self, Identity, PkiError, Role, Subject};

use crate::remote::{Remote, RemoteEnd, pair};
use crate::session::{Parts, Session};

/// What the link needs.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// `host:port` of the broker; of several of one cluster, by commas.
    pub broker: String,
    /// Enrolment token; needed while there is no identity in `dir`, or one that is refused.
    pub token: Option<pki::Token>,
    /// Where the identity is kept.
    pub dir: PathBuf,
}

/// The running link. Dropping it ends it.
#[derive(Debug)]
pub struct BrokerLink {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// How enrolling ended; nothing comes if there was an identity already.
    enrolment: Option<Receiver<Enrolment>>,
}

/// How far this dashboard is known to the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enrolment {
    /// It has its certificate.
    Done,
    /// The broker has not answered yet.
    Pending,
    /// The broker said no, for a reason that is logged: it will not be asked again.
    Refused,
}

/// Why there can be no link.
#[derive(Debug, thiserror::Error)]
pub enum BrokerLinkError {
    /// No identity and no way to one.
    #[error(
        "this dashboard has not enrolled yet: give --token, as printed by `strobe token create`"
    )]
    NoToken,
    /// Keys.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The system.
    #[error("the link to the broker: {0}")]
    Io(#[from] io::Error),
    /// No identity was given.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
}

impl BrokerLink {
    /// Starts the loop; the other end is the backend. Connecting goes on in the background.
    ///
    /// # Errors
    /// It could never work this way.
    pub fn start(settings: LinkSettings) -> Result<(Self, Remote), BrokerLinkError> {
        let identity = Identity::load(&settings.dir, Role::Viz)?;
        if identity.is_none() && settings.token.is_none() {
            return Err(BrokerLinkError::NoToken);
        }
        let (remote, end) = pair();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let poll = Poll::new()?;
        end.wake_by(Waker::new(poll.registry(), WAKER)?);
        let (told, enrolment) = sync_channel(1);
        let enrolment = identity.is_none().then_some(enrolment);
        let line = Line { settings, at: 0, identity, poll, end, told, stop: stopped };
        let thread =
            std::thread::Builder::new().name("viz-link".to_owned()).spawn(move || line.run())?;
        Ok((Self { stop, thread: Some(thread), enrolment }, remote))
    }

    /// How enrolling stands, now or within `wait`.
    #[must_use]
    pub fn enrolment(&self, wait: Duration) -> Enrolment {
        let Some(enrolment) = &self.enrolment else { return Enrolment::Done };
        enrolment.recv_timeout(wait).unwrap_or(Enrolment::Pending)
    }
}

impl Drop for BrokerLink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                log::error!("the link's thread panicked");
            }
        }
    }
}

/// What outlives a connection.
struct Line {
    settings: LinkSettings,
    /// How many brokers were left so far: the next one's turn.
    at: usize,
    identity: Option<Identity>,
    poll: Poll,
    end: RemoteEnd,
    told: SyncSender<Enrolment>,
    stop: Arc<AtomicBool>,
}

impl Line {
    fn run(mut self) {
        // The standard library's hash keys are random: enough for a pause.
        let seed = RandomState::new().hash_one(std::process::id());
        let mut back_off = BackOff::new(PAUSE_MIN, PAUSE_MAX, seed);
        while !self.is_stopping() {
            let began = clock();
            let ended = self.session();
            self.end.connected(false);
            let broker = self.broker().to_owned();
            self.at = self.at.wrapping_add(1);
            match ended {
                Ok(_) if self.is_stopping() => return,
                // The token pins its broker: to try it at another one gives nothing away.
                Ok(
                    why @ Why::Distrust(
                        Distrust::Expired | Distrust::Foreign | Distrust::BrokerForeign,
                    ),
                ) if self.settings.token.is_some() => {
                    log::warn!("the link to {broker} ended: {why}; trying the token");
                    self.identity = None;
                }
                Ok(why) => {
                    log::warn!("the link to {broker} ended: {why}");
                    self.end.trouble(&format!("the link to {broker} ended: {why}"));
                }
                Err(BrokerLinkError::Enrol(
                    error @ (EnrolError::Refused(_) | EnrolError::Foreign(_)),
                )) => {
                    // A certificate on disk may be good again one day; a token is good once, and
                    // another broker's never.
                    log::error!("{error}");
                    self.end.trouble(&error.to_string());
                    self.settings.token = None;
                    self.identity = Identity::load(&self.settings.dir, Role::Viz).ok().flatten();
                    if self.identity.is_none() {
                        self.tell(Enrolment::Refused);
                        return;
                    }
                }
                Err(error) => {
                    log::warn!("the broker at {broker}: {error}");
                    self.end.trouble(&format!("the broker at {broker}: {error}"));
                }
            }
            if began.elapsed() > PAUSE_MAX {
                back_off.succeeded();
            }
            std::thread::park_timeout(back_off.failed());
        }
    }

    /// Whose turn it is.
    fn broker(&self) -> &str {
        let all = self.settings.broker.split(',').map(str::trim);
        let count = all.clone().count().max(1);
        all.clone().nth(self.at % count).unwrap_or_default()
    }

    /// Nobody may wait for it any more, and more than the first is no news.
    fn tell(&self, enrolment: Enrolment) {
        let _ = self.told.try_send(enrolment);
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// From the first datagram to the last; enrols first if it must.
    fn session(&mut self) -> Result<Why, BrokerLinkError> {
        let broker = self.broker().to_socket_addrs()?.next();
        let broker = broker.ok_or_else(|| io::Error::other("the name has no address"))?;
        let any: SocketAddr = match broker {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let config =
            SocketConfig { bind: any, offload: Offload::Auto, batch: 8, kernel_bytes: 1 << 20 };
        let mut socket = Socket::bind(&config)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(socket.source(), SOCKET, both)?;
        let mut link = Link::new(&LinkConfig {
            identity: self.identity.clone(),
            side: Side::Viz,
            connections_max: 4,
            whole_datagrams: socket.keeps_datagrams_whole(),
            wall_s: wall_s(),
            seed: None,
            accept: None,
        })?;
        if self.identity.is_none() {
            let identity = self.enrol(&mut socket, &mut link, broker)?;
            identity.save(&self.settings.dir)?;
            log::info!("enrolled at {broker}");
            link.set_identity(identity.clone())?;
            self.identity = Some(identity);
            self.settings.token = None;
            self.tell(Enrolment::Done);
        }
        let identity = self.identity.clone().ok_or(BrokerLinkError::NoToken)?;
        let parts = Parts { link, broker, identity, dir: &self.settings.dir, end: &self.end };
        let mut session = Session::dial(clock(), parts)?;
        let ended = carry(&mut self.poll, &self.stop, &mut socket, &mut session);
        self.identity = Some(session.leave());
        Ok(ended?)
    }

    fn enrol(
        &mut self,
        socket: &mut Socket,
        link: &mut Link,
        broker: SocketAddr,
    ) -> Result<Identity, BrokerLinkError> {
        let token = self.settings.token.ok_or(BrokerLinkError::NoToken)?;
        let subject = Subject { role: Role::Viz, host: HostId(0) };
        let mut enrol = Enrol::begin(clock(), link, broker, token, subject)?;
        let mut events = Events::with_capacity(16);
        loop {
            let now = clock();
            let received = receive(socket, link, now)?;
            while let Some(event) = link.poll() {
                if let Some(identity) = enrol.told(now, &event, link)? {
                    socket.transmit(now, link);
                    return Ok(identity);
                }
            }
            enrol.on_timeout(now)?;
            if self.is_stopping() {
                return Err(EnrolError::Lost("stopped".to_owned()).into());
            }
            let sent = socket.transmit(now, link);
            wait(&mut self.poll, &mut events, link, now, [received, sent])?;
        }
    }
}

/// Wait, read, act, write, until it is over.
fn carry(
    poll: &mut Poll,
    stop: &AtomicBool,
    socket: &mut Socket,
    session: &mut Session<'_>,
) -> io::Result<Why> {
    let mut events = Events::with_capacity(16);
    loop {
        let now = clock();
        let received = receive(socket, &mut session.link, now)?;
        session.turn(now);
        let stopping = stop.load(Ordering::Acquire);
        let over = session.over().or_else(|| stopping.then(|| Why::Failed("stopped".to_owned())));
        if let Some(why) = over {
            session.link.close_all(now, "this dashboard stops");
            socket.transmit(now, &mut session.link);
            return Ok(why);
        }
        let sent = socket.transmit(now, &mut session.link);
        wait(poll, &mut events, &session.link, now, [received, sent])?;
    }
}

fn receive(socket: &mut Socket, link: &mut Link, now: Instant) -> io::Result<Progress> {
    link.set_wall_s(wall_s());
    let received = socket.receive(now, link)?;
    link.on_timeout(now);
    Ok(received)
}

fn wait(
    poll: &mut Poll,
    events: &mut Events,
    link: &Link,
    now: Instant,
    progress: [Progress; 2],
) -> io::Result<()> {
    let until = link.timeout().map(|at| at.saturating_duration_since(now));
    let wait = match progress.contains(&Progress::More) {
        true => Duration::ZERO,
        false => until.unwrap_or(WAIT).min(WAIT),
    };
    match poll.poll(events, Some(wait)) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the loop is where time comes from")]
fn clock() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the loop is where time comes from")]
fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

const SOCKET: Token = Token(0);
const WAKER: Token = Token(1);
const WAIT: Duration = Duration::from_millis(250);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
