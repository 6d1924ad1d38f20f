//! The loop: waits, moves bytes, keeps time. Everything it decides is decided by [`crate::front`],
//! [`crate::relay`] and [`crate::live`], which have neither clock nor socket.
//!
//! ```text
//! browser ⇄ Client{front, out} ── request ──▶ queue ──▶ Lane (Unix socket) ⇄ tiny_http worker
//!                 ▲                                        │ answer
//!                 └────────────────────────────────────────┘
//! backend's feed ── bounded channel ──▶ live ──▶ WebSockets
//! ```
//!
//! Who loses when full: connections over the limit get 503; answers over the memory budget wait in
//! the worker; a client that does not read for 30 s is closed; a slow WebSocket skips rows.

mod clients;
mod lanes;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::backend::{Backend, Feed, Update, Waited};
use crate::client::Client;
use crate::config::{Config, ConfigError};
use crate::counters::Counters;
use crate::front::{HostPolicy, Request};
use crate::live::{Live, Outgoing};
use crate::transport::tls_config;
use crate::workers::{Callers, Workers};
use lanes::{Job, Lane, To};

/// A running viz. Dropping it stops it.
#[derive(Debug)]
pub struct Viz {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    threads: Vec<JoinHandle<()>>,
    workers: Option<Workers>,
}

/// Why viz did not start.
#[derive(Debug, thiserror::Error)]
pub enum VizError {
    /// The configuration is not safe or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be bound.
    #[error("listening on {addr}: {source}; choose another with --listen or viz.listen")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
    /// Something that the system refused.
    #[error("starting the dashboard: {0}")]
    Io(#[from] io::Error),
}

impl Viz {
    /// Binds, starts the workers, the loop and the feed's thread.
    ///
    /// # Errors
    /// What could not be had; nothing runs then.
    #[expect(clippy::needless_pass_by_value, reason = "the threads share it; the caller is done")]
    pub fn start(config: Config, backend: Backend) -> Result<Self, VizError> {
        config.check()?;
        let tls = config.tls.as_ref().map(tls_config).transpose().map_err(VizError::Tls)?;
        let mut listener = TcpListener::bind(config.listen)
            .map_err(|source| VizError::Listen { addr: config.listen, source })?;
        let addr = listener.local_addr()?;
        let counters = Arc::new(Counters::default());
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, updates) = sync_channel(UPDATES_MAX);
        let callers = Arc::new(Callers::new(config.workers));
        let workers = Workers::start(&config.dir, &callers, &backend, &counters)?;
        let mut threads = Vec::new();
        let ends = (listener, poll, Arc::clone(&waker));
        let mut inner = Loop::new(config, backend.clone(), ends, counters);
        inner.tls = tls;
        inner.callers = callers;
        inner.socket = workers.socket();
        inner.updates = Some(updates);
        inner.open_lanes(&workers)?;
        let stopped = Arc::clone(&stop);
        let run = move || inner.run(&stopped);
        threads.push(std::thread::Builder::new().name("viz".to_owned()).spawn(run)?);
        if let Some(feed) = backend.subscribe() {
            let (stopped, waker) = (Arc::clone(&stop), Arc::clone(&waker));
            let run = move || pump(feed, &sender, &waker, &stopped);
            threads.push(std::thread::Builder::new().name("viz-feed".to_owned()).spawn(run)?);
        }
        Ok(Self { addr, stop, waker, threads, workers: Some(workers) })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends all threads and closes all connections.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Viz {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.waker.wake() {
            log::error!("waking the dashboard's loop: {error}");
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a thread of the dashboard panicked");
            }
        }
        if let Some(workers) = self.workers.take() {
            workers.stop();
        }
    }
}

/// The feed's thread: a full channel blocks it, so the backend's own bounded queue counts the loss.
fn pump(mut feed: Feed, to: &SyncSender<Update>, waker: &Waker, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        match feed.next(FEED_WAIT) {
            Waited::Update(update) => {
                if to.send(update).is_err() {
                    return;
                }
                if let Err(error) = waker.wake() {
                    log::error!("waking the dashboard's loop: {error}");
                }
            }
            Waited::TimedOut => {}
            Waited::Ended => return,
        }
    }
}

#[derive(Debug)]
struct Loop {
    config: Config,
    policy: HostPolicy,
    tls: Option<Arc<rustls::ServerConfig>>,
    listener: TcpListener,
    accept_at_ms: Option<u64>,
    poll: Poll,
    socket: PathBuf,
    lanes: Vec<Lane>,
    callers: Arc<Callers>,
    waiting: VecDeque<(To, Request)>,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    updates: Option<Receiver<Update>>,
    live: Live,
    backend: Backend,
    outgoing: Vec<Outgoing>,
    counters: Arc<Counters>,
    start: Instant,
    buffer: Vec<u8>,
    waker: Arc<Waker>,
    /// Clients and lanes to move on before the loop waits again: a list, not a recursion, because
    /// an answer may be followed by a pipelined request, and that by an answer.
    ready: Vec<usize>,
    ready_lanes: Vec<usize>,
}

impl Loop {
    fn new(
        config: Config,
        backend: Backend,
        (listener, poll, waker): (TcpListener, Poll, Arc<Waker>),
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            waker,
            ready: Vec::new(),
            ready_lanes: Vec::new(),
            policy: HostPolicy { names: config.names.clone() },
            tls: None,
            listener,
            accept_at_ms: None,
            poll,
            socket: PathBuf::new(),
            lanes: Vec::new(),
            callers: Arc::new(Callers::new(0)),
            waiting: VecDeque::new(),
            clients: Vec::new(),
            free: Vec::new(),
            updates: None,
            live: Live::new(config.live),
            backend,
            outgoing: Vec::new(),
            counters,
            start: clock(),
            buffer: vec![0; READ_BYTES],
            config,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(clock().duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    fn run(mut self, stop: &AtomicBool) {
        let mut events = Events::with_capacity(1024);
        let mut expired_ms = 0;
        let mut ticked_ms = 0;
        while !stop.load(Ordering::Acquire) {
            match self.poll.poll(&mut events, Some(CADENCE)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return log::error!("the dashboard's loop cannot wait: {error}"),
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => {}
                    Token(token) if token < LANES + self.lanes.len() => {
                        self.drive_lane(token - LANES);
                    }
                    Token(token) => self.drive(token - LANES - self.lanes.len()),
                }
            }
            self.settle();
            self.take_updates();
            let now = self.now_ms();
            if CADENCE_MS <= now - expired_ms {
                expired_ms = now;
                self.expire(now);
                self.settle();
            }
            if TICK_MS <= now - ticked_ms {
                ticked_ms = now;
                self.live.trouble(self.backend.trouble());
                self.live.tick(wall_ms(), &mut self.outgoing);
                self.deliver();
                self.ask();
                self.counters.live(self.live.counts());
            }
        }
    }

    fn take_updates(&mut self) {
        for _ in 0..UPDATES_A_TURN_MAX {
            let Some(Ok(update)) = self.updates.as_ref().map(Receiver::try_recv) else { return };
            Counters::add(&self.counters.updates);
            self.live.update(wall_ms(), update, &mut self.outgoing);
            if !self.outgoing.is_empty() {
                self.deliver();
            }
        }
        // More may wait: come back at once, behind the sockets that are ready.
        if let Err(error) = self.waker.wake() {
            log::error!("waking the dashboard's loop: {error}");
        }
    }

    /// Moves on who is ready; bounded by what the kernel and the workers have for us now.
    fn settle(&mut self) {
        loop {
            if let Some(index) = self.ready_lanes.pop() {
                self.drive_lane(index);
            } else if let Some(slot) = self.ready.pop() {
                self.drive(slot);
            } else {
                return;
            }
        }
    }

    /// Bytes of answers and bodies that are held for clients.
    fn memory(&self) -> usize {
        let clients = self.clients.iter().flatten().map(|c| c.unsent() + c.front.claimed());
        let jobs = self.lanes.iter().filter_map(|lane| lane.job.as_ref()).map(Job::held);
        clients.sum::<usize>() + jobs.sum::<usize>()
    }
}

#[expect(clippy::disallowed_methods, reason = "the loop is where time comes from")]
fn clock() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the loop is where time comes from")]
fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
/// Lanes' tokens, then clients'.
const LANES: usize = 2;
const CADENCE: Duration = Duration::from_millis(CADENCE_MS);
const CADENCE_MS: u64 = 250;
const TICK_MS: u64 = 1_000;
const FEED_WAIT: Duration = Duration::from_millis(200);
const READ_BYTES: usize = 64 << 10;
const UPDATES_MAX: usize = 4096;
const UPDATES_A_TURN_MAX: usize = 1024;
