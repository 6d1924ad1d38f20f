//! The control plane's thread, and how a broker comes to have one: it was in a cluster in its last life,
//! makes one, or joins one.
//!
//! `cluster.redb` in the state directory says that it is in one. What the network loop is told goes
//! through two queues: mail for peers, bounded, and the few things that must not be lost.

use super::Shared;
use super::again::live_again;
use super::alone;
use super::clock::{monotonic, rest_until, wall_s};
use super::error::BrokerError;
use super::loops::{spawn, wake};
use crate::cluster::{Answer, Asked, Look, MAIL_MAX, Mail, ORDERS_MAX, Order, Plane, Post};
use crate::database;
use crate::net::Seating;
use mio::Waker;
use redb::Database;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use strobe_cluster::{Config, Identity, NodeError, Pace, State, Store};
use strobe_wire::link::{Dial, Event, Link, LinkConfig, Offload, Side, Socket, SocketConfig};
use strobe_wire::message::{Incoming, Message, Reader, encode};
use strobe_wire::pki::{Authority, Token};

/// What the network loop is told besides mail.
#[derive(Debug)]
pub(super) enum Told {
    /// It belongs to a cluster.
    Seat(Seating),
    /// It belongs to none, and agrees with itself.
    Alone(SyncSender<Order>),
    /// The plane says something.
    Post(Post),
}

/// The network loop's ends of the queues.
#[derive(Debug)]
pub(super) struct Ears {
    pub(super) told: Receiver<Told>,
    pub(super) mail: Receiver<Mail>,
}

/// This broker's part in a cluster, if it has one.
#[derive(Debug)]
pub(super) struct Cluster {
    dir: PathBuf,
    /// Where it listens.
    listen: SocketAddr,
    pace: Pace,
    told: Sender<Told>,
    mail: SyncSender<Mail>,
    waker: Arc<Waker>,
    /// What the host of this very process is called: it enrols anew by itself.
    pub(super) own: OnceLock<String>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    authority: Arc<Authority>,
    running: Option<Running>,
    /// While it is in no cluster.
    alone: Option<Running>,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) orders: SyncSender<Order>,
    pub(super) thread: Option<JoinHandle<()>>,
}

impl Cluster {
    /// In no cluster yet, even if the directory says so: [`Self::resume`].
    pub(super) fn new(
        (dir, pace): (&Path, Pace),
        listen: SocketAddr,
        authority: Arc<Authority>,
        waker: Arc<Waker>,
    ) -> (Self, Ears) {
        let (told, told_in) = channel();
        let (mail, mail_in) = sync_channel(MAIL_MAX);
        let inner = Mutex::new(Inner { authority, running: None, alone: None });
        let dir = dir.to_owned();
        let own = OnceLock::new();
        let cluster = Self { dir, listen, pace, told, mail, waker, own, inner };
        (cluster, Ears { told: told_in, mail: mail_in })
    }

    /// Goes on as in the last life, if that was in a cluster.
    pub(super) fn resume(&self) -> Result<(), BrokerError> {
        let path = self.dir.join(FILE);
        if !path.exists() {
            return self.be_alone(&mut self.lock());
        }
        let database = open(&path)?;
        let store = Store::open(database).map_err(BrokerError::Cluster)?;
        let mut inner = self.lock();
        self.start(&mut inner, store)
    }

    /// The fleet's authority as it is now.
    pub(super) fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.lock().authority)
    }

    /// Whether it is in a cluster.
    pub(super) fn is_on(&self) -> bool {
        self.lock().running.is_some()
    }

    /// Makes a cluster of this broker alone.
    pub(super) fn init(&self, address: Option<&str>) -> Result<Identity, String> {
        let address = self.advertised(address)?;
        let mut inner = self.lock();
        if inner.running.is_some() {
            return Err(TAKEN.to_owned());
        }
        let identity = Identity { cluster: random()?, broker: 1, disk: small_random()? };
        let text = |why: BrokerError| why.to_string();
        let database = open(&self.dir.join(FILE)).map_err(text)?;
        // What this broker agreed on by itself is the cluster's from now on.
        end(inner.alone.take());
        let kept = crate::cluster::load_alone(&self.dir);
        let made = kept.and_then(|alone| {
            Store::init(&database, identity, &address, &alone).map_err(|why| why.to_string())?;
            alone::retire(&self.dir);
            Store::open(database).map_err(|why| why.to_string())
        });
        match made {
            Ok(store) => self.start(&mut inner, store).map_err(text).map(|()| identity),
            Err(why) => {
                self.be_alone(&mut inner).map_err(text)?;
                Err(why)
            }
        }
    }

    /// Joins the cluster of the broker at `seed`.
    pub(super) fn join(
        &self,
        seed: &str,
        token: Token,
        address: Option<&str>,
    ) -> Result<Identity, String> {
        let mut inner = self.lock();
        if inner.running.is_some() {
            return Err(TAKEN.to_owned());
        }
        let remote = seed.to_socket_addrs().ok().and_then(|mut found| found.next());
        let remote = remote.ok_or_else(|| format!("{seed:?} is no HOST:PORT with an address"))?;
        let address = match address {
            None if self.listen.ip().is_unspecified() => {
                // The address that this machine has towards the other.
                let any = SocketAddr::new(self.listen.ip(), 0);
                let towards = UdpSocket::bind(any).and_then(|socket| {
                    socket.connect(remote)?;
                    socket.local_addr()
                });
                let ip = towards.map_err(|why| format!("no way to {seed}: {why}"))?.ip();
                SocketAddr::new(ip, self.listen.port()).to_string()
            }
            given => self.advertised(given)?,
        };
        let disk = small_random()?;
        let joined = ask_to_join(remote, token, address, disk)?;
        let Joined { cluster, broker, authority } = joined;
        let identity = Identity { cluster, broker, disk };
        // The authority first: with it and no store this is a broker by itself that can try again.
        let ca = self.dir.join("ca");
        let kept = std::fs::rename(ca.join("authority.pem"), ca.join("authority.pem.before-join"));
        kept.map_err(|why| format!("cannot keep the old authority: {why}"))?;
        authority.save(&ca).map_err(|why| why.to_string())?;
        let database = open(&self.dir.join(FILE)).map_err(|why| why.to_string())?;
        Store::join(&database, identity).map_err(|why| why.to_string())?;
        let store = Store::open(database).map_err(|why| why.to_string())?;
        inner.authority = Arc::new(authority);
        end(inner.alone.take());
        alone::retire(&self.dir);
        self.start(&mut inner, store).map_err(|why| why.to_string())?;
        Ok(identity)
    }

    /// Asks the plane and waits for its answer.
    pub(super) fn ask(&self, asked: Asked) -> Result<Answer, String> {
        let orders = self.lock().running.as_ref().map(|running| running.orders.clone());
        Self::ask_by(asked, orders)
    }

    /// The same of what a broker by itself has too.
    pub(super) fn ask_any(&self, asked: Asked) -> Result<Answer, String> {
        let inner = self.lock();
        let running = inner.running.as_ref().or(inner.alone.as_ref());
        let orders = running.map(|running| running.orders.clone());
        drop(inner);
        Self::ask_by(asked, orders)
    }

    /// Has it done at some time, if it can be; nobody waits for it.
    pub(super) fn tell_any(&self, asked: Asked) {
        let inner = self.lock();
        if let Some(running) = inner.running.as_ref().or(inner.alone.as_ref()) {
            drop(running.orders.try_send(Order::Ask(asked, sync_channel(1).0)));
        }
    }

    fn ask_by(asked: Asked, orders: Option<SyncSender<Order>>) -> Result<Answer, String> {
        let orders = orders.ok_or(NONE)?;
        let (reply, answer) = sync_channel(1);
        if orders.try_send(Order::Ask(asked, reply)).is_err() {
            return Err(STUCK.to_owned());
        }
        answer.recv_timeout(ANSWER).map_err(|_| STUCK.to_owned())
    }

    /// Looks at what is agreed on, as far as this broker knows it.
    pub(super) fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, String> {
        let inner = self.lock();
        let running = inner.running.as_ref().or(inner.alone.as_ref());
        let orders = running.map(|running| running.orders.clone()).ok_or(NONE)?;
        drop(inner);
        let (reply, answer) = sync_channel(1);
        let (told, _) = sync_channel(1);
        let look = Look(Box::new(move |state| drop(reply.try_send(look(state)))));
        if orders.try_send(Order::Ask(Asked::Look(look), told)).is_err() {
            return Err(STUCK.to_owned());
        }
        answer.recv_timeout(ANSWER).map_err(|_| STUCK.to_owned())
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        let mut inner = self.lock();
        let (running, alone) = (inner.running.take(), inner.alone.take());
        drop(inner);
        end(running);
        end(alone);
    }

    fn be_alone(&self, inner: &mut Inner) -> Result<(), BrokerError> {
        let running = alone::start(&self.dir, self.told.clone(), Arc::clone(&self.waker))?;
        // The network loop may have ended; then so does all.
        drop(self.told.send(Told::Alone(running.orders.clone())));
        inner.alone = Some(running);
        Ok(())
    }

    fn start(&self, inner: &mut Inner, store: Store) -> Result<(), BrokerError> {
        let identity = store.identity();
        let seed = identity.disk ^ wall_s();
        let plane = Plane::new(store, Config::paced(seed, self.pace), monotonic());
        let plane = plane.map_err(BrokerError::ControlPlane)?;
        let (orders, orders_in) = sync_channel(ORDERS_MAX);
        let seating = Seating {
            authority: Arc::clone(&inner.authority),
            cluster: identity.cluster,
            me: identity.broker,
            orders: orders.clone(),
        };
        // The network loop may have ended; then so does all.
        drop(self.told.send(Told::Seat(seating)));
        let (told, mail, waker) = (self.told.clone(), self.mail.clone(), Arc::clone(&self.waker));
        let (path, pace) = (self.dir.join(FILE), self.pace);
        let thread = spawn("strobe-cluster", move || {
            let mut living = Some(plane);
            while let Some(plane) = living.take() {
                let Err(why) = run(plane, &orders_in, (&told, &mail), &waker) else { return };
                log::error!(
                    "the control plane ended: {why}; this broker goes on by what it knew last"
                );
                if matches!(why, NodeError::Store(_)) {
                    living = live_again(&path, pace, &orders_in);
                }
            }
        })?;
        inner.running = Some(Running { orders, thread: Some(thread) });
        Ok(())
    }

    fn advertised(&self, address: Option<&str>) -> Result<String, String> {
        match address {
            Some(address) => {
                let found = address.to_socket_addrs().map(|mut found| found.next());
                match found {
                    Ok(Some(_)) => Ok(address.to_owned()),
                    _ => Err(format!("--address {address:?} is no HOST:PORT that can be resolved")),
                }
            }
            None if self.listen.ip().is_unspecified() => Err(format!(
                "this broker listens on {}: say with --address HOST:PORT where others reach it",
                self.listen
            )),
            None => Ok(self.listen.to_string()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a thread.
fn end(running: Option<Running>) {
    if let Some(Running { orders, thread }) = running {
        // A full queue means that it is stuck: dropping this end of it ends it too.
        drop(orders.try_send(Order::Stop));
        drop(orders);
        super::loops::join(thread);
    }
}

/// Wait for an order, take what there is, do what is due, write and tell.
fn run(
    mut plane: Plane,
    orders: &Receiver<Order>,
    (told, mail): (&Sender<Told>, &SyncSender<Mail>),
    waker: &Waker,
) -> Result<(), NodeError> {
    loop {
        let wait = plane.timeout().saturating_duration_since(monotonic());
        let first = match orders.recv_timeout(wait) {
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(order) => Some(order),
            Err(RecvTimeoutError::Timeout) => None,
        };
        let now = monotonic();
        for order in first.into_iter().chain(orders.try_iter().take(ORDERS_GATHERED)) {
            if matches!(order, Order::Stop) {
                return Ok(());
            }
            plane.take(now, order)?;
        }
        plane.on_timeout(monotonic())?;
        let mut spoken = false;
        let mut send = |letter: Mail| {
            spoken = true;
            mail.try_send(letter).is_ok()
        };
        while let Some(post) = plane.poll(monotonic(), &mut send)? {
            drop(told.send(Told::Post(post)));
            wake(waker);
        }
        if spoken {
            wake(waker);
        }
    }
}

struct Joined {
    cluster: u128,
    broker: u64,
    authority: Authority,
}

/// The conversation of a broker that joins, on a socket of its own.
fn ask_to_join(
    remote: SocketAddr,
    token: Token,
    address: String,
    disk: u64,
) -> Result<Joined, String> {
    let any = if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let bind = any.parse().map_err(|_| "no address to bind")?;
    let config = SocketConfig { bind, offload: Offload::Off, batch: 1, kernel_bytes: 0 };
    let mut socket = Socket::bind(&config).map_err(|why| format!("no socket: {why}"))?;
    let mut link = Link::new(&LinkConfig {
        identity: None,
        side: Side::Viz,
        connections_max: 1,
        whole_datagrams: false,
        wall_s: wall_s(),
        seed: None,
        accept: None,
    })
    .map_err(|why| why.to_string())?;
    let until = monotonic() + JOINING;
    let conn = link
        .connect(monotonic(), remote, &Dial::Enrol { fingerprint: token.fingerprint })
        .map_err(|why| why.to_string())?;
    let (mut reader, mut asked) = (Reader::default(), None);
    let secret = token.secret.to_vec();
    let mut ask = [encode(&Message::Join { secret, address, disk })];
    while monotonic() < until {
        let now = monotonic();
        socket.receive(now, &mut link).map_err(|why| format!("cannot receive: {why}"))?;
        link.on_timeout(now);
        while let Some(event) = link.poll() {
            match event {
                Event::Connected { .. } => {
                    let stream = link.open(conn).ok_or("the broker allows no stream")?;
                    link.send(conn, stream, &mut ask).map_err(|why| why.to_string())?;
                    asked = Some(stream);
                }
                Event::Readable { stream, .. } if Some(stream) == asked => {
                    link.recv(conn, stream, &mut reader).map_err(|why| why.to_string())?;
                    let said = reader.pull().map_err(|why| why.to_string())?;
                    if let Some(Incoming::Control(message)) = said {
                        link.close(now, conn, "joined");
                        socket.transmit(now, &mut link);
                        return joined(*message, token);
                    }
                }
                Event::Closed { why, .. } => {
                    return Err(format!(
                        "the broker at {remote} cannot be asked: {why}. Does one run there, is its UDP \
                         port open, and is the token of its cluster?"
                    ));
                }
                _ => {}
            }
        }
        socket.transmit(now, &mut link);
        rest_until(now + POLL_EVERY);
    }
    Err(match asked {
        None => format!("no answer from {remote}: is a broker there, and its UDP port open?"),
        Some(_) => format!(
            "{remote} took the question and does not answer: the outcome is unknown. Look at \
             `strobe cluster status` there before you try again with another token"
        ),
    })
}

fn joined(message: Message, token: Token) -> Result<Joined, String> {
    match message {
        Message::Joined { cluster, broker, key, ca } => {
            let authority = Authority::of_parts(key, ca).map_err(|why| why.to_string())?;
            if authority.fingerprint() != token.fingerprint {
                return Err("the broker's answer is of another authority than the token".to_owned());
            }
            Ok(Joined { cluster, broker, authority })
        }
        Message::Refused { why } => Err(why),
        _ => Err("the broker's answer is none".to_owned()),
    }
}

pub(super) fn open(path: &Path) -> Result<Database, BrokerError> {
    let fail = |why: redb::DatabaseError| strobe_cluster::StoreError::Database {
        doing: "open",
        why: format!("{}: {why}", path.display()),
    };
    database::open(path, CACHE_BYTES).map_err(|why| BrokerError::Cluster(fail(why)))
}

fn random() -> Result<u128, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|why| format!("no randomness: {why}"))?;
    Ok(u128::from_le_bytes(bytes))
}

fn small_random() -> Result<u64, String> {
    random().map(|wide| u64::try_from(wide >> 64).unwrap_or(1).max(1))
}

impl Shared {
    /// Whether enrolments and revocations go through the cluster.
    pub(super) fn is_clustered(&self) -> bool {
        self.cluster.is_on()
    }
}

const FILE: &str = "cluster.redb";
const CACHE_BYTES: usize = 8 << 20;
const ORDERS_GATHERED: usize = 1024;
/// A proposal has its outcome, or is unknown, after 10 s.
const ANSWER: Duration = Duration::from_secs(15);
/// Two proposals at the other broker, at their slowest.
const JOINING: Duration = Duration::from_secs(25);
const POLL_EVERY: Duration = Duration::from_millis(5);
const TAKEN: &str = "this broker belongs to a cluster already; `strobe cluster status` shows it";
const NONE: &str = "this broker belongs to no cluster: `strobe cluster init` makes one of it, `strobe \
     cluster join` adds it to another broker's";
const STUCK: &str = "the control plane of this broker does not answer (a disk that hangs?): the outcome \
     is unknown. Ingest goes on";
