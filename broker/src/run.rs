//! The broker's threads, and the only place that reads the clock.
//!
//! ```text
//! network loop ──Order (bounded)──▶ writer ──Report──▶ network loop
//!      └──request (bounded)──▶ query pool ──answer──▶ network loop
//! control socket: a thread, one short-lived thread a connection
//! ```
//!
//! Who loses: when the writer is behind, agents are not read (they keep their frames) and
//! remote-write is answered 503; when the query pool is behind, a request is answered 503.

use crate::api::{self, Answer};
use crate::certificates::Certificates;
use crate::config::{Config, StoreChoice};
use crate::control;
use crate::dir::{self, DirError, StateDir};
use crate::hub::{Hub, Subscription};
use crate::ingest::Ingest;
use crate::net::{Ask, Net, NetCounts, Parts, Place};
use crate::own;
use crate::query::{Engine, Limits};
use crate::registry::{Registry, RegistryError};
use crate::store::redis::{Mirror, MirrorCounts, UrlError};
use crate::store::{RemoteSeries, Store, StoreConfig, StoreError};
use crate::writer::{Next, Order, Report, Scribe};
use mio::{Events, Interest, Poll, Token as Source, Waker};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use strobe_wire::ids::Seq;
use strobe_wire::link::{
    Accept, Link, LinkConfig, LinkError, Offload, Progress, Side, Socket, SocketConfig,
};
use strobe_wire::message::{ApiRequest, ApiResponse};
use strobe_wire::pki::{PkiError, Token};

/// A running broker; clones share it. It runs until [`Broker::stop`].
#[derive(Clone, Debug)]
pub struct Broker {
    shared: Arc<Shared>,
}

/// Why a broker cannot start or do something.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The state directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The UDP port.
    #[error("cannot listen on UDP {address}: {source}; choose another --broker-listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The URL of Redis.
    #[error("broker.store: {0}")]
    Redis(#[from] UrlError),
    /// The system refused something else.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
}

#[derive(Debug)]
struct Shared {
    config: Config,
    store: Store,
    engine: Engine,
    registry: Registry,
    hub: Hub,
    fingerprint: [u8; 32],
    quic_addr: SocketAddr,
    orders: SyncSender<Order>,
    waker: Arc<Waker>,
    counts: Arc<Mutex<NetCounts>>,
    /// `Release` by [`Broker::stop`], `Acquire` by the loops: it carries nothing but itself.
    stopping: Arc<AtomicBool>,
    mirror: Option<Arc<Mutex<MirrorCounts>>>,
    writes_waiting: AtomicUsize,
    threads: Mutex<Threads>,
}

#[derive(Debug, Default)]
struct Threads {
    network: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    state: Option<StateDir>,
}

/// What the network thread owns.
struct Loop {
    poll: Poll,
    socket: Socket,
    net: Net,
    orders: SyncSender<Order>,
    reports: Receiver<Report>,
    questions: Option<SyncSender<(Place, ApiRequest)>>,
    answers: Receiver<(Place, ApiResponse)>,
    counts: Arc<Mutex<NetCounts>>,
    stopping: Arc<AtomicBool>,
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
        let (store, writer, recovery) = Store::open(store_config(&config), now_ms)?;
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
            accept: Some(Accept { secret: authority.derive("strobe link"), grace_s }),
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
        let hub = Hub::default();
        let fingerprint = authority.fingerprint();
        let stopping = Arc::default();
        let mirror = mirror(&config, &store, &fingerprint, &stopping)?;
        let scribe = Scribe::new(writer, registry.clone(), hub.clone());
        let parts =
            Parts { link, ingest, registry: registry.clone(), hub: hub.clone(), certificates };
        let shared = Arc::new(Shared {
            config,
            engine: Engine::new(store.clone()),
            store,
            registry,
            hub,
            fingerprint,
            quic_addr,
            orders: orders.clone(),
            waker,
            counts: Arc::default(),
            stopping,
            mirror: mirror.as_ref().map(Mirror::counts),
            writes_waiting: AtomicUsize::new(0),
            threads: Mutex::default(),
        });
        let broker = Self { shared };
        let network = Loop {
            poll,
            socket,
            net: Net::new(parts),
            orders,
            reports,
            questions: Some(questions),
            answers,
            counts: Arc::clone(&broker.shared.counts),
            stopping: Arc::clone(&broker.shared.stopping),
        };
        let mut others = broker.answerers(questions_in, &answers_out)?;
        others.push(broker.writer(scribe, orders_in, reports_out)?);
        others.push(broker.control()?);
        if let Some(mirror) = mirror {
            let stopping = Arc::clone(&broker.shared.stopping);
            others.push(spawn("strobe-redis", move || mirror_loop(mirror, &stopping))?);
        }
        let network = spawn("strobe-net", move || network.run())?;
        *broker.threads() = Threads { network: Some(network), others, state: Some(state) };
        Ok(broker)
    }

    /// Answers a request; blocks while it is computed.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "the caller has no more use for it")]
    pub fn api(&self, request: ApiRequest) -> ApiResponse {
        self.respond(&request)
    }

    fn respond(&self, request: &ApiRequest) -> ApiResponse {
        let shared = &self.shared;
        match request.path.as_str() {
            "/-/healthy" => own::text(200, "Strobe is healthy."),
            "/-/ready" if shared.stopping.load(Ordering::Acquire) => {
                own::text(503, "Strobe is stopping.")
            }
            "/-/ready" => own::text(200, "Strobe is ready."),
            "/metrics" => {
                let net = self.counts();
                let mirror = shared.mirror.as_deref();
                let mirror = mirror.map(|m| *m.lock().unwrap_or_else(PoisonError::into_inner));
                let (store, hosts) = (shared.store.counts(), shared.registry.hosts());
                own::metrics(&net, &store, mirror.as_ref(), &hosts, wall_ms())
            }
            "/api/strobe/v1/hosts" => own::hosts(&shared.registry.hosts(), wall_ms()),
            path if path.starts_with("/api/v1/") => {
                let limits = Limits::usual();
                match api::handle(&shared.engine, &limits, request, wall_ms()) {
                    Answer::Response(response) => response,
                    Answer::Write(series) => api::written(self.write(series)),
                }
            }
            path => own::error(404, "not_found", &format!("{path} is not a path of this API")),
        }
    }

    /// Every stored frame from now on; first what is known of hosts and schemas.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.shared.hub.subscribe(self.shared.registry.hosts(), None)
    }

    /// A token with which one agent or dashboard may enrol within `lifetime`.
    ///
    /// # Errors
    /// The lifetime is out of bounds, or the token cannot be kept.
    pub fn enrolment_token(&self, lifetime: Duration) -> Result<Token, BrokerError> {
        let token = Token::create(self.shared.fingerprint)?;
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
        join(threads.network);
        // The network loop's last batch stands before this in the queue.
        let told = self.shared.orders.send(Order::Stop);
        debug_assert!(told.is_ok() || threads.others.is_empty(), "the writer ended by itself");
        // Wakes the control thread; if it fails there is none.
        drop(control::ask(&self.shared.config.dir, ApiRequest::default(), Duration::from_secs(1)));
        for thread in threads.others {
            join(Some(thread));
        }
        self.shared.hub.close();
        drop(threads.state);
    }

    /// What only the owner of the state directory may ask, and everything else.
    fn operate(&self, request: &ApiRequest) -> ApiResponse {
        if request.path != "/api/strobe/v1/tokens" {
            return self.respond(request);
        }
        let lifetime = request.query.strip_prefix("lifetime_ms=").and_then(|ms| ms.parse().ok());
        let Some(lifetime_ms) = lifetime else {
            return own::error(400, "bad_data", "lifetime_ms=NUMBER is wanted");
        };
        match self.enrolment_token(Duration::from_millis(lifetime_ms)) {
            Ok(token) => own::text(200, &token.to_string()),
            Err(why) => own::error(422, "execution", &why.to_string()),
        }
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
        let outcome = match self.shared.orders.try_send(Order::Samples(series, reply)) {
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
        questions: Receiver<(Place, ApiRequest)>,
        answers: &Sender<(Place, ApiResponse)>,
    ) -> Result<Vec<JoinHandle<()>>, BrokerError> {
        let questions = Arc::new(Mutex::new(questions));
        (0..QUERY_THREADS)
            .map(|_| {
                let (broker, answers) = (self.clone(), answers.clone());
                let questions = Arc::clone(&questions);
                spawn("strobe-query", move || {
                    loop {
                        let next = questions.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok((place, request)) = next else { return };
                        if answers.send((place, broker.api(request))).is_err() {
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
        let every = Duration::from_millis(self.shared.config.commit_ms);
        spawn("strobe-writer", move || write_loop(scribe, &orders, &reports, &waker, every))
    }

    fn control(&self) -> Result<JoinHandle<()>, BrokerError> {
        let listener = control::bind(&self.shared.config.dir)
            .map_err(|source| BrokerError::Io { doing: "open the control socket", source })?;
        let broker = self.clone();
        spawn("strobe-control", move || {
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
                    if let Err(why) = control::serve(&mut stream, |ask| broker.operate(&ask)) {
                        log::debug!("control socket: {why}");
                    }
                    counted.fetch_sub(1, Ordering::Relaxed);
                };
                if spawn("strobe-operate", serve).is_err() {
                    busy.fetch_sub(1, Ordering::Relaxed);
                }
            }
        })
    }

    fn counts(&self) -> NetCounts {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Threads> {
        self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loop {
    /// Wait, read, time out, act, write.
    fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let mut again = false;
        let (mut keep_at, mut count_at) = (monotonic() + KEEP_EVERY, monotonic());
        while !self.stopping.load(Ordering::Acquire) {
            let wait = if again { Duration::ZERO } else { self.patience(keep_at) };
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!("cannot wait for the network: {error}");
            }
            let (now, now_ms) = (monotonic(), wall_ms());
            self.net.link.set_wall_s(wall_s());
            let received = self.socket.receive(now, &mut self.net.link).unwrap_or_else(|error| {
                log::error!("cannot receive: {error}");
                Progress::Idle
            });
            self.net.link.on_timeout(now);
            self.turn(now, now_ms);
            if keep_at <= now {
                keep_at = now + KEEP_EVERY;
                let (failures, windows) = self.net.windows();
                self.order(Order::Windows { failures, windows });
            }
            if count_at <= now {
                count_at = now + COUNT_EVERY;
                let counts = self.net.counts();
                *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
            }
            let sent = self.socket.transmit(now, &mut self.net.link);
            again = received == Progress::More || sent == Progress::More || self.net.is_busy();
        }
        self.end();
    }

    fn patience(&self, keep_at: Instant) -> Duration {
        let until = self.net.link.timeout().map_or(keep_at, |at| at.min(keep_at));
        until.saturating_duration_since(monotonic()).min(COUNT_EVERY)
    }

    fn turn(&mut self, now: Instant, now_ms: i64) {
        while let Ok(report) = self.reports.try_recv() {
            self.net.on_report(report, now);
        }
        while let Ok((place, response)) = self.answers.try_recv() {
            self.net.answer(place, response);
        }
        let mut refused = Vec::new();
        let questions = &self.questions;
        self.net.advance(now, now_ms, &mut |Ask::Api(place, request)| {
            let asked = questions.as_ref().is_some_and(|to| to.try_send((place, request)).is_ok());
            if !asked {
                refused.push(place);
            }
        });
        for place in refused {
            let busy = "too many queries are waiting; ask again later";
            self.net.answer(place, own::error(503, "unavailable", busy));
        }
        if let Some(batch) = self.net.end_turn(now_ms) {
            self.order(Order::Batch(batch));
        }
        self.net.pump();
    }

    /// The queue has room for every turn in flight, so this does not wait.
    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            log::error!("the writer has ended; nothing is stored any more");
        }
    }

    fn end(&mut self) {
        let now = monotonic();
        let (failures, windows) = self.net.windows();
        self.order(Order::Windows { failures, windows });
        self.net.link.close_all(now, "the broker is stopping");
        // One turn's good-byes; who does not hear it finds out by silence.
        self.socket.transmit(now, &mut self.net.link);
        self.questions = None;
    }
}

fn write_loop(
    mut scribe: Scribe,
    orders: &Receiver<Order>,
    reports: &Sender<Report>,
    waker: &Waker,
    every: Duration,
) {
    let mut committed = monotonic();
    let mut next = Next::Gather;
    while next != Next::End {
        next = match orders.recv_timeout(PROBE_EVERY) {
            Ok(order) => scribe.take(order),
            Err(RecvTimeoutError::Timeout) => Next::Gather,
            Err(RecvTimeoutError::Disconnected) => Next::End,
        };
        // At once after a quiet time, else at most one commit an interval.
        while next == Next::Gather {
            let left = (committed + every).saturating_duration_since(monotonic());
            match orders.recv_timeout(left) {
                Ok(order) => next = scribe.take(order),
                Err(_) => break,
            }
            if left.is_zero() {
                break;
            }
        }
        if scribe.is_idle() && !scribe.is_failing() {
            continue;
        }
        scribe.commit(wall_ms(), &mut |report| {
            // The network loop may have ended before the writer: then nobody is acknowledged.
            drop(reports.send(report));
        });
        committed = monotonic();
        wake(waker);
    }
}

/// The mirror that the settings want.
fn mirror(
    config: &Config,
    store: &Store,
    fingerprint: &[u8; 32],
    stopping: &Arc<AtomicBool>,
) -> Result<Option<Mirror>, UrlError> {
    let StoreChoice::Redis(url) = &config.store else { return Ok(None) };
    let owner: String = fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    Mirror::new(store, url, &owner, Arc::clone(stopping)).map(Some)
}

fn mirror_loop(mut mirror: Mirror, stopping: &AtomicBool) {
    while !stopping.load(Ordering::Acquire) {
        let until = monotonic() + mirror.pass(wall_ms());
        while !stopping.load(Ordering::Acquire) {
            let left = until.saturating_duration_since(monotonic());
            if left.is_zero() {
                break;
            }
            // `Broker::stop` is not kept waiting for the rest of a back-off.
            std::thread::park_timeout(left.min(STOP_SEEN));
        }
    }
}

fn listen(address: SocketAddr) -> Result<(Socket, SocketAddr), BrokerError> {
    let fail = |source| BrokerError::Listen { address, source };
    let config = SocketConfig {
        bind: address,
        offload: Offload::Auto,
        batch: SOCKET_BATCH,
        kernel_bytes: KERNEL_BYTES,
    };
    let socket = Socket::bind(&config).map_err(fail)?;
    let bound = socket.local_addr().map_err(fail)?;
    Ok((socket, bound))
}

fn store_config(config: &Config) -> StoreConfig {
    StoreConfig {
        dir: config.dir.join("store"),
        raw_retention_ms: config.raw_retention_ms,
        minute_retention_ms: config.minute_retention_ms,
        hour_retention_ms: config.hour_retention_ms,
        bytes_max: config.bytes_max,
        free_bytes_min: config.free_bytes_min,
        head_bytes_max: config.head_bytes_max,
    }
}

fn spawn(
    name: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, BrokerError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|source| BrokerError::Io { doing: "start a thread", source })
}

fn join(thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        log::error!("a thread of the broker had panicked");
    }
}

fn wake(waker: &Waker) {
    if let Err(error) = waker.wake() {
        log::error!("cannot wake the network loop: {error}");
    }
}

#[expect(clippy::disallowed_methods, reason = "run.rs is where the clock is read")]
fn monotonic() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "run.rs is where the clock is read")]
fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn wall_s() -> u64 {
    u64::try_from(wall_ms() / 1000).unwrap_or(0)
}

const SOCKET: Source = Source(0);
const WAKE: Source = Source(1);
/// Connections at once: ten thousand agents, and as many in their handshake.
const CONNECTIONS_MAX: usize = 20_000;
const SOCKET_BATCH: usize = 32;
const KERNEL_BYTES: usize = 8 << 20;
/// Orders waiting for the writer: turns in flight, writes and windows.
const ORDERS_MAX: usize = crate::net::TURNS_MAX + WRITES_MAX + 64;
const QUESTIONS_MAX: usize = 64;
const QUERY_THREADS: usize = 2;
const WRITES_MAX: usize = 64;
const WRITE_WAIT: Duration = Duration::from_secs(30);
const CONTROLS_MAX: usize = 8;
/// Windows and housekeeping.
const KEEP_EVERY: Duration = Duration::from_secs(10);
const COUNT_EVERY: Duration = Duration::from_millis(500);
/// How often a store that refuses is tried again.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How soon the mirror's thread sees that it shall end.
const STOP_SEEN: Duration = Duration::from_millis(200);
