//! The broker's threads; below here is the only place that reads the clock.
//!
//! ```text
//! network loop ──Order (bounded)──▶ writer ──Report──▶ network loop
//!      └──request (bounded)──▶ query pool ──answer──▶ network loop
//! control plane ◀──Order (bounded)──▶ network loop, only in a cluster (`run/cluster`)
//! control socket: a thread, one short-lived thread a connection
//! ```
//!
//! Who loses: when the writer is behind, agents are not read (they keep their frames) and
//! remote-write is answered 503; when the query pool is behind, a request is answered 503.

mod again;
mod alone;
mod attach;
mod begin;
mod clock;
mod cluster;
mod error;
mod fleet;
mod lookout;
mod loops;
mod machines;
mod operate;

pub use error::BrokerError;

use crate::api::{self, Answer};
use crate::audit::Audit;
use crate::certificates::Certificates;
use crate::config::Config;
use crate::control;
use crate::dir::{self, StateDir};
use crate::hub::{Hub, Subscription};
use crate::ingest::Ingest;
use crate::net::{Net, NetCounts, Parts, Place};
use crate::own;
use crate::peers::{LETTERS_MAX, Peers};
use crate::query::{Caller, Deadline, Engine, Pulse};
use crate::registry::Registry;
use crate::store::redis::{Confirmed, Epochs, Mirror, MirrorCounts};
use crate::store::{RemoteSeries, Store};
use crate::tune::{Tuned, Tuner, store_config};
use crate::writer::{HOSTS_AT_ONCE, Order, Report, Scribe};
use begin::listen;
use clock::{monotonic, wall_ms, wall_s};
use cluster::Cluster;
use lookout::{LookoutDoor, Told};
use loops::{Loop, Question, join, log_loop, mirror_loop, spawn, wake, write_loop};
use mio::{Interest, Poll, Token as Source, Waker};
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use strobe_wire::ids::{HostId, Seq};
use strobe_wire::link::{Accept, Link, LinkConfig, Side};
use strobe_wire::message::{ApiRequest, ApiResponse};
use strobe_wire::pki::Token;

/// A running broker; clones share it. It runs until [`Broker::stop`].
#[derive(Clone, Debug)]
pub struct Broker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    store: Store,
    engine: Engine,
    peers: Peers,
    registry: Registry,
    hub: Hub,
    cluster: Cluster,
    tuned: Tuned,
    audit: Audit,
    quic_addr: SocketAddr,
    orders: SyncSender<Order>,
    waker: Arc<Waker>,
    counts: Arc<Mutex<NetCounts>>,
    /// `Release` by [`Broker::stop`], `Acquire` by the loops: it carries nothing but itself.
    stopping: Arc<AtomicBool>,
    /// Empty while there is no Redis.
    mirror: OnceLock<Arc<Mutex<MirrorCounts>>>,
    /// What writes to Redis carry.
    epochs: Arc<Epochs>,
    /// How far Redis has the log.
    confirmed: Confirmed,
    lookout: LookoutDoor,
    writes_waiting: AtomicUsize,
    /// Relaxed: a count.
    queries_abandoned: AtomicU64,
    /// `Acquire` by who begins one, `Release` when it is done.
    backing_up: AtomicBool,
    threads: Mutex<Threads>,
}

#[derive(Debug, Default)]
struct Threads {
    network: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    door: Option<UnixListener>,
    state: Option<StateDir>,
}

impl Broker {
    /// Starts a broker on `config.dir`.
    ///
    /// # Errors
    /// What it cannot have, in a sentence.
    #[expect(clippy::too_many_lines, reason = "one flat list: every part is made once, in order")]
    pub fn start(config: Config) -> Result<Self, BrokerError> {
        let (now_ms, now_s) = (wall_ms(), wall_s());
        let state = StateDir::open(&config.dir)?;
        let authority = Arc::new(dir::authority(&config.dir, now_s)?);
        let (registry, windows) = Registry::open(&config.dir)?;
        let (store, mut writer, mut recovery) = Store::open(store_config(&config), now_ms)?;
        attach::restore(&config, &mut writer, &mut recovery, now_ms)?;
        for damage in &recovery.damage {
            log::warn!("damage found and left out: {damage}");
        }
        let mut ingest = Ingest::default();
        for (host, boot, window) in windows {
            ingest.restore(host, boot, window);
        }
        for seen in &recovery.seen {
            for (first, last) in &seen.ranges {
                ingest.replay(seen.host, seen.boot, Seq(*first), Seq(*last));
            }
        }
        let (mut socket, quic_addr) = listen(config.listen)?;
        let mut certificates = Certificates::new(Arc::clone(&authority), config.certificate_life_s);
        let identity = certificates.own(now_s).transpose()?;
        let grace_s = config.certificate_life_s;
        let link = Link::new(&LinkConfig {
            identity,
            side: Side::Broker,
            connections_max: CONNECTIONS_MAX,
            whole_datagrams: socket.keeps_datagrams_whole(),
            wall_s: now_s,
            seed: None,
            accept: Some(Accept { secret: dir::link_secret(&config.dir)?, grace_s }),
        })?;
        let io = |doing| move |source| BrokerError::Io { doing, source };
        let poll = Poll::new().map_err(io("make a poll"))?;
        poll.registry()
            .register(socket.source(), SOCKET, Interest::READABLE | Interest::WRITABLE)
            .map_err(io("watch the socket"))?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).map_err(io("make a waker"))?);
        let (orders, orders_in) = sync_channel(ORDERS_MAX);
        let (reports_out, reports) = channel();
        let (questions, questions_in) = sync_channel(QUESTIONS_MAX);
        let (answers_out, answers) = channel();
        let (letters_out, letters) = sync_channel(LETTERS_MAX);
        let peers = Peers::new(letters_out, Arc::clone(&waker));
        let (pages, pages_in) = sync_channel(PAGES_MAX);
        let hub = Hub::default();
        let (cluster, ears) =
            Cluster::new((&config.dir, config.pace), quic_addr, authority, Arc::clone(&waker));
        let stopping = Arc::default();
        let tuned = Tuned::new(&config);
        let tuner = Tuner::new(&config, &store, &tuned);
        let audit = Audit::open(&config.dir).map_err(io("open the audit log"))?;
        let epochs = Arc::new(Epochs::none());
        let mirror = attach::mirror(&config, &store, &registry, (&stopping, &epochs), now_ms)?;
        let every = Duration::from_millis(config.commit_ms);
        let (confirmed, began) = (Confirmed::default(), writer.synced());
        let log = mirror.as_ref().map(|mirror| mirror.log(confirmed.clone()));
        let scribe = Scribe::new(writer, registry.clone(), every, HOSTS_AT_ONCE, monotonic())
            .behind(confirmed.clone(), monotonic());
        let parts =
            Parts { link, ingest, registry: registry.clone(), hub: hub.clone(), certificates };
        let (lookout, lookout_told) = LookoutDoor::new();
        let shared = Arc::new(Shared {
            config,
            engine: Engine::new(store.clone()).with_peers(peers.clone()),
            peers: peers.clone(),
            store,
            registry,
            hub,
            cluster,
            tuned,
            audit,
            quic_addr,
            orders: orders.clone(),
            waker,
            counts: Arc::default(),
            stopping,
            mirror: mirror.as_ref().map(Mirror::counts).map_or_else(OnceLock::new, OnceLock::from),
            epochs: Arc::clone(&epochs),
            confirmed: confirmed.clone(),
            lookout,
            writes_waiting: AtomicUsize::new(0),
            queries_abandoned: AtomicU64::new(0),
            backing_up: AtomicBool::new(false),
            threads: Mutex::default(),
        });
        let broker = Self { shared };
        let mut net = Net::new(parts, monotonic());
        net.begin_at(began);
        let network = Loop {
            poll,
            socket,
            net,
            orders,
            reports,
            questions: Some(questions),
            answers,
            ears,
            pages: Some(pages),
            peers,
            letters,
            epochs,
            counts: Arc::clone(&broker.shared.counts),
            stopping: Arc::clone(&broker.shared.stopping),
            tuner,
            confirmed,
        };
        let mut others = broker.answerers(questions_in, &answers_out, Self::respond)?;
        others.extend(broker.answerers(pages_in, &answers_out, Self::respond_to_peer)?);
        others.push(broker.writer(scribe, orders_in, reports_out)?);
        let (control, door) = broker.control()?;
        others.push(control);
        if let Some(mirror) = mirror {
            let stopping = Arc::clone(&broker.shared.stopping);
            others.push(spawn("strobe-redis", move || mirror_loop(mirror, &stopping))?);
        }
        if let Some(log) = log {
            let stopping = Arc::clone(&broker.shared.stopping);
            others.push(spawn("strobe-log", move || log_loop(log, &stopping))?);
        }
        broker.shared.cluster.resume()?;
        others.push(broker.lookout(lookout_told)?);
        let network = spawn("strobe-net", move || network.run())?;
        let (network, door, state) = (Some(network), Some(door), Some(state));
        *broker.threads() = Threads { network, others, door, state };
        Ok(broker)
    }

    /// Answers a request; blocks while it is computed.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "the caller has no more use for it")]
    pub fn api(&self, request: ApiRequest) -> ApiResponse {
        self.respond(&request, &Caller::default())
    }

    /// Answers a request; blocks while it is computed, which ends soon after the caller left.
    #[must_use]
    pub fn respond(&self, request: &ApiRequest, caller: &Caller) -> ApiResponse {
        let shared = &self.shared;
        match request.path.as_str() {
            "/-/healthy" => own::text(200, "Strobe is healthy."),
            "/-/ready" if shared.stopping.load(Ordering::Acquire) => {
                own::text(503, "Strobe is stopping.")
            }
            "/-/ready" => own::text(200, "Strobe is ready."),
            "/metrics" => own::metrics(&self.numbers(), &self.known(), wall_ms()),
            "/api/strobe/v1/cluster" => self.overview(),
            "/api/strobe/v1/hosts" => self.machines(caller).answer(wall_ms()),
            REGISTER if request.method == "POST" => self.register(request),
            path if path.starts_with("/api/v1/") || [api::HISTORY, api::BURSTS].contains(&path) => {
                self.evaluate(request, caller)
            }
            path => own::error(404, "not_found", &format!("{path} is not a path of this API")),
        }
    }

    fn evaluate(&self, request: &ApiRequest, caller: &Caller) -> ApiResponse {
        let (shared, limits, since) = (&self.shared, self.shared.tuned.limits(), monotonic());
        let is_abandoned = || shared.stopping.load(Ordering::Acquire) || caller.has_left();
        let pulse = || match is_abandoned() {
            true => Pulse::Abandoned,
            false => {
                let elapsed = monotonic().saturating_duration_since(since).as_millis();
                Pulse::Elapsed(u64::try_from(elapsed).unwrap_or(u64::MAX))
            }
        };
        let (now_ms, deadline) = (wall_ms(), Deadline::new(&pulse, limits.time_ms_max));
        let engine = &shared.engine;
        let response = if request.path == api::HISTORY {
            let elsewhere = |id| self.elsewhere().into_iter().find(|i| HostId(i.hello.host) == id);
            let host = |id| shared.registry.host(id).or_else(|| elsewhere(id));
            api::history(engine, &limits, request, host, (now_ms, deadline))
        } else if request.path == api::BURSTS {
            api::bursts(engine, &limits, request, (now_ms, deadline))
        } else {
            match api::handle(engine, &limits, request, now_ms, deadline) {
                Answer::Response(response) => response,
                Answer::Write(series) => return api::written(self.write(series)),
            }
        };
        if caller.has_left() {
            shared.queries_abandoned.fetch_add(1, Ordering::Relaxed);
        }
        response
    }

    /// Every new frame from now on; first what is known of hosts and schemas.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.shared.hub.subscribe(self.shared.registry.hosts(), None)
    }

    /// A token with which one agent or dashboard may enrol within `lifetime`.
    ///
    /// # Errors
    /// The lifetime is out of bounds, or the token cannot be kept.
    pub fn enrolment_token(&self, lifetime: Duration) -> Result<Token, BrokerError> {
        let token = Token::create(self.shared.cluster.authority().fingerprint())?;
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        self.shared.registry.issue_token(&token.secret, lifetime_ms, wall_ms())?;
        Ok(token)
    }

    /// Where it listens for agents and dashboards.
    #[must_use]
    pub fn quic_addr(&self) -> SocketAddr {
        self.shared.quic_addr
    }

    /// The samples, for reading.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// What it was told.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Stops: everything taken in is on disk when this returns. The second call does nothing.
    pub fn stop(&self) {
        let threads = std::mem::take(&mut *self.threads());
        self.shared.stopping.store(true, Ordering::Release);
        wake(&self.shared.waker);
        self.shared.lookout.say(Told::Stop);
        join(threads.network);
        self.shared.cluster.stop();
        // The network loop's last batch stands before this in the queue.
        let told = self.shared.orders.send(Order::Stop);
        debug_assert!(told.is_ok() || threads.others.is_empty(), "the writer ended by itself");
        if let Some(door) = threads.door {
            control::close(&door);
        }
        for thread in threads.others {
            join(Some(thread));
        }
        self.shared.hub.close();
        drop(threads.state);
    }

    /// Stores samples; they are on disk when this says `Ok`.
    fn write(&self, series: Vec<RemoteSeries>) -> Result<(), String> {
        let waiting = &self.shared.writes_waiting;
        // Relaxed: the counter guards nothing but itself.
        if WRITES_MAX <= waiting.fetch_add(1, Ordering::Relaxed) {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err("too many writes are waiting; send again later".to_owned());
        }
        let (reply, answer) = sync_channel(1);
        let class = self.shared.tuned.classes().usual;
        let outcome = match self.shared.orders.try_send(Order::Samples(series, class, reply)) {
            Ok(()) => match answer.recv_timeout(WRITE_WAIT) {
                Ok(stored) => stored.map_err(|why| why.to_string()),
                Err(_) => Err("the store does not answer; send again later".to_owned()),
            },
            Err(_) => Err("the store is behind; send again later".to_owned()),
        };
        waiting.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    fn answerers(
        &self,
        questions: Receiver<Question>,
        answers: &Sender<(Place, ApiResponse)>,
        respond: fn(&Self, &ApiRequest, &Caller) -> ApiResponse,
    ) -> Result<Vec<JoinHandle<()>>, BrokerError> {
        let questions = Arc::new(Mutex::new(questions));
        (0..QUERY_THREADS)
            .map(|_| {
                let (broker, answers) = (self.clone(), answers.clone());
                let questions = Arc::clone(&questions);
                spawn("strobe-query", move || {
                    loop {
                        let next = questions.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok((place, request, caller)) = next else { return };
                        let answer = respond(&broker, &request, &caller);
                        if answers.send((place, answer)).is_err() {
                            return;
                        }
                        wake(&broker.shared.waker);
                    }
                })
            })
            .collect()
    }

    fn writer(
        &self,
        scribe: Scribe,
        orders: Receiver<Order>,
        reports: Sender<Report>,
    ) -> Result<JoinHandle<()>, BrokerError> {
        let waker = Arc::clone(&self.shared.waker);
        spawn("strobe-writer", move || write_loop(scribe, &orders, &reports, &waker))
    }

    fn control(&self) -> Result<(JoinHandle<()>, UnixListener), BrokerError> {
        let io = |source| BrokerError::Io { doing: "open the control socket", source };
        let listener = control::bind(&self.shared.config.dir).map_err(io)?;
        let door = listener.try_clone().map_err(io)?;
        let broker = self.clone();
        let thread = spawn("strobe-control", move || {
            let busy = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming() {
                if broker.shared.stopping.load(Ordering::Acquire) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                // Relaxed: the counter guards nothing but itself.
                if CONTROLS_MAX <= busy.fetch_add(1, Ordering::Relaxed) {
                    busy.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (broker, counted) = (broker.clone(), Arc::clone(&busy));
                let serve = move || {
                    if let Err(why) =
                        control::serve(&mut stream, |ask, who| broker.operate(&ask, who))
                    {
                        log::debug!("control socket: {why}");
                    }
                    counted.fetch_sub(1, Ordering::Relaxed);
                };
                if spawn("strobe-operate", serve).is_err() {
                    busy.fetch_sub(1, Ordering::Relaxed);
                }
            }
        })?;
        Ok((thread, door))
    }

    fn counts(&self) -> NetCounts {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Threads> {
        self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a machine is registered.
const REGISTER: &str = "/api/strobe/v1/hosts/register";
const SOCKET: Source = Source(0);
const WAKE: Source = Source(1);
/// Connections at once: ten thousand agents, and as many in their handshake.
const CONNECTIONS_MAX: usize = 20_000;
/// Orders waiting for the writer: turns in flight, writes and windows.
const ORDERS_MAX: usize = crate::net::TURNS_MAX + WRITES_MAX + 64;
const QUESTIONS_MAX: usize = 64;
const QUERY_THREADS: usize = 2;
/// Other brokers' questions that wait.
const PAGES_MAX: usize = 64;
const WRITES_MAX: usize = 64;
const WRITE_WAIT: Duration = Duration::from_secs(30);
const CONTROLS_MAX: usize = 32;
