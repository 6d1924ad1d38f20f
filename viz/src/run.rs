//! The loop: accepts, moves bytes, keeps time. Everything it decides is decided by [`crate::front`],
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

use mio::net::{TcpListener, TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::backend::{Backend, Feed, Update, Waited};
use crate::client::{Client, Phase};
use crate::config::{Config, ConfigError};
use crate::counters::Counters;
use crate::front::{Event, HostPolicy, Next, Refusal, Request};
use crate::live::{Live, Outgoing, Room, WatcherId};
use crate::relay::{Relay, refusal_bytes, request_bytes, upgrade_bytes};
use crate::transport::{Transport, some, tls_config};
use crate::web_socket::{Socket, State};
use crate::workers::Workers;

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
        let workers = Workers::start(&config.dir, config.workers, &backend, &counters)?;
        let mut threads = Vec::new();
        let mut inner = Loop::new(config, listener, poll, Arc::clone(&waker), counters);
        inner.tls = tls;
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

/// A connection to a worker: one request at a time.
#[derive(Debug)]
struct Lane {
    stream: Option<UnixStream>,
    job: Option<Job>,
}

#[derive(Debug)]
struct Job {
    /// The client, unless it went away: then the answer is thrown away.
    client: Option<usize>,
    request: Vec<u8>,
    sent: usize,
    relay: Relay,
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
    waiting: VecDeque<(usize, Request)>,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    updates: Option<Receiver<Update>>,
    live: Live,
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
        listener: TcpListener,
        poll: Poll,
        waker: Arc<Waker>,
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
            waiting: VecDeque::new(),
            clients: Vec::new(),
            free: Vec::new(),
            updates: None,
            live: Live::new(config.live),
            outgoing: Vec::new(),
            counters,
            start: clock(),
            buffer: vec![0; READ_BYTES],
            config,
        }
    }

    fn open_lanes(&mut self, workers: &Workers) -> io::Result<()> {
        for index in 0..self.config.workers {
            self.lanes.push(Lane { stream: None, job: None });
            let stream = workers.proven()?;
            stream.set_nonblocking(true)?;
            self.watch_lane(index, UnixStream::from_std(stream))?;
        }
        Ok(())
    }

    fn open_lane(&mut self, index: usize) -> io::Result<()> {
        let stream = UnixStream::connect(&self.socket)?;
        self.watch_lane(index, stream)
    }

    fn watch_lane(&mut self, index: usize, mut stream: UnixStream) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(LANES + index), both)?;
        self.lanes[index].stream = Some(stream);
        Ok(())
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
                self.live.tick(wall_ms(), &mut self.outgoing);
                self.deliver();
                self.counters.live(self.live.counts());
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // EMFILE, ENFILE, ENOMEM: they wait in the backlog until some close.
                    Counters::add(&self.counters.accept_failed);
                    log::warn!("accepting a connection: {error}; trying again");
                    self.accept_at_ms = Some(self.now_ms() + ACCEPT_AGAIN_MS);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: TcpStream) {
        Counters::add(&self.counters.accepted);
        let open = self.clients.len() - self.free.len();
        if self.config.connections_max <= open {
            Counters::add(&self.counters.over_limit);
            if self.tls.is_none() {
                let why = "too many connections: close some dashboards or raise \
                    viz.connections_max"
                    .to_owned();
                let bytes = refusal_bytes(&Refusal { status: 503, why });
                // One short write into an empty socket buffer; what does not fit is not owed.
                if let Err(error) = some(&mut stream, &bytes) {
                    log::debug!("refusing a connection: {error}");
                }
            }
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() - 1
        });
        let token = Token(LANES + self.lanes.len() + slot);
        let both = Interest::READABLE | Interest::WRITABLE;
        let made = stream
            .set_nodelay(true)
            .and_then(|()| self.poll.registry().register(&mut stream, token, both))
            .and_then(|()| Transport::new(stream, self.tls.as_ref()));
        match made {
            Ok(transport) => {
                let now = self.now_ms();
                self.clients[slot] = Some(Client::new(transport, now, &self.config.front));
                Counters::set(&self.counters.open, open + 1);
                self.drive(slot);
            }
            Err(error) => {
                log::debug!("a connection ended at once: {error}");
                self.free.push(slot);
            }
        }
    }

    /// Moves one client on as far as it goes.
    fn drive(&mut self, slot: usize) {
        for _ in 0..DRIVE_TURNS_MAX {
            let now = self.now_ms();
            let Some(Some(client)) = self.clients.get_mut(slot) else { return };
            let flushed = client.flush(now);
            let pulled = client.pull(now, &self.config.front, &mut self.buffer);
            let (Ok(flushed), Ok(pulled)) = (flushed, pulled) else { return self.close(slot) };
            let handled = self.handle(slot, now);
            let Some(Some(client)) = self.clients.get_mut(slot) else { return };
            if client.is_finished() {
                return self.close(slot);
            }
            if !flushed && !pulled && !handled {
                return;
            }
        }
        // A busy client must not starve the rest: it goes on at the next turn of the loop.
        let Some(Some(client)) = self.clients.get_mut(slot) else { return };
        let token = Token(LANES + self.lanes.len() + slot);
        let both = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().reregister(client.transport.socket(), token, both).is_err() {
            self.close(slot);
        }
    }

    /// Acts on what the client said; whether there was anything.
    fn handle(&mut self, slot: usize, now: u64) -> bool {
        let room = self.config.memory_bytes_max.saturating_sub(self.memory());
        let Some(Some(client)) = self.clients.get_mut(slot) else { return false };
        if let Phase::WebSocket(_) = client.phase {
            return self.handle_texts(slot);
        }
        let Some(event) = client.front.poll(now, &self.config.front, &self.policy, room) else {
            return false;
        };
        match event {
            Event::Continue => client.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"),
            Event::Close => client.finish(now),
            Event::Refused(refusal) => self.refuse(slot, &refusal, now),
            Event::Upgrade { key, rest } => self.upgrade(slot, &key, rest, now),
            Event::Request(request) => {
                Counters::add(&self.counters.requests);
                client.answer_due_ms = Some(now + ANSWER_MS);
                self.waiting.push_back((slot, request));
                self.assign();
            }
        }
        true
    }

    fn refuse(&mut self, slot: usize, refusal: &Refusal, now: u64) {
        Counters::add(&self.counters.refused);
        if let Some(Some(client)) = self.clients.get_mut(slot) {
            client.out.extend_from_slice(&refusal_bytes(refusal));
            client.finish(now);
        }
    }

    fn upgrade(&mut self, slot: usize, key: &str, rest: Vec<u8>, now: u64) {
        let sockets = self.clients.iter().flatten().filter(|c| c.is_web_socket()).count();
        if self.config.web_sockets_max <= sockets {
            let why = "too many live dashboards: close some or raise viz.web_sockets_max";
            return self.refuse(slot, &Refusal { status: 503, why: why.to_owned() }, now);
        }
        let Some(Some(client)) = self.clients.get_mut(slot) else { return };
        client.out.extend_from_slice(&upgrade_bytes(key));
        let mut socket = Box::new(Socket::new(rest));
        socket.push(&[], &mut client.texts);
        client.phase = Phase::WebSocket(socket);
        client.heard_ms = now;
        self.live.open(WatcherId(slot));
        Counters::set(&self.counters.web_sockets, sockets + 1);
    }

    fn handle_texts(&mut self, slot: usize) -> bool {
        let Some(Some(client)) = self.clients.get_mut(slot) else { return false };
        let texts = std::mem::take(&mut client.texts);
        for text in &texts {
            self.live.request(wall_ms(), WatcherId(slot), text, &mut self.outgoing);
        }
        self.deliver();
        !texts.is_empty()
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

    /// Hands the live view's texts to their sockets and tells it who is full.
    fn deliver(&mut self) {
        for _ in 0..2 {
            let mut touched = Vec::new();
            for Outgoing { to, text } in std::mem::take(&mut self.outgoing) {
                let Some(Some(client)) = self.clients.get_mut(to.0) else { continue };
                if let Phase::WebSocket(socket) = &mut client.phase {
                    socket.text(text);
                    socket.take(&mut client.out);
                    if touched.last() != Some(&to.0) {
                        touched.push(to.0);
                    }
                }
            }
            for slot in touched {
                self.flush_socket(slot);
            }
            if self.outgoing.is_empty() {
                return;
            }
        }
    }

    fn flush_socket(&mut self, slot: usize) {
        let now = self.now_ms();
        let Some(Some(client)) = self.clients.get_mut(slot) else { return };
        if client.flush(now).is_err() {
            return self.close(slot);
        }
        self.report_room(slot);
    }

    fn report_room(&mut self, slot: usize) {
        let Some(Some(client)) = self.clients.get_mut(slot) else { return };
        if !client.is_web_socket() {
            return;
        }
        let room = if client.unsent() < SOCKET_OUT_BYTES_MAX { Room::Free } else { Room::Full };
        self.live.room(wall_ms(), WatcherId(slot), room, &mut self.outgoing);
    }

    fn close(&mut self, slot: usize) {
        let Some(mut client) = self.clients.get_mut(slot).and_then(Option::take) else { return };
        client.transport.shutdown();
        if let Err(error) = self.poll.registry().deregister(client.transport.socket()) {
            log::debug!("closing a connection: {error}");
        }
        if client.is_web_socket() {
            self.live.close(WatcherId(slot));
            let sockets = self.clients.iter().flatten().filter(|c| c.is_web_socket()).count();
            Counters::set(&self.counters.web_sockets, sockets);
        }
        self.waiting.retain(|(of, _)| *of != slot);
        for job in self.lanes.iter_mut().filter_map(|lane| lane.job.as_mut()) {
            if job.client == Some(slot) {
                job.client = None;
            }
        }
        self.free.push(slot);
        Counters::set(&self.counters.open, self.clients.len() - self.free.len());
    }

    /// Gives waiting requests to idle lanes.
    fn assign(&mut self) {
        while let Some(index) = self.lanes.iter().position(|lane| lane.job.is_none()) {
            let Some((slot, request)) = self.waiting.pop_front() else { return };
            let relay = Relay::new(request.method, request.keep_alive);
            let request = request_bytes(&request);
            self.lanes[index].job = Some(Job { client: Some(slot), request, sent: 0, relay });
            if self.lanes[index].stream.is_none()
                && let Err(error) = self.open_lane(index)
            {
                log::error!("connecting to a worker: {error}");
                self.fail_lane(index);
                continue;
            }
            self.ready_lanes.push(index);
        }
    }

    fn drive_lane(&mut self, index: usize) {
        match self.turn_lane(index) {
            Ok(()) => {}
            Err(error) => {
                log::error!("a worker's connection: {error}");
                self.fail_lane(index);
                self.assign();
            }
        }
    }

    fn turn_lane(&mut self, index: usize) -> io::Result<()> {
        loop {
            if self.config.memory_bytes_max <= self.memory() {
                // The worker waits until clients have read.
                return Ok(());
            }
            let lane = &mut self.lanes[index];
            let Some(stream) = &mut lane.stream else { return Ok(()) };
            if let Some(job) = &mut lane.job {
                while job.sent < job.request.len() {
                    match some(stream, &job.request[job.sent..]) {
                        Ok(sent) => job.sent += sent,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
            }
            let length = match stream.read(&mut self.buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let Some(job) = &mut lane.job else {
                return Err(io::Error::other("bytes without a request"));
            };
            let mut thrown = Vec::new();
            let client = job.client.and_then(|slot| self.clients.get_mut(slot)?.as_mut());
            let out = client.map_or(&mut thrown, |client| &mut client.out);
            job.relay.push(&self.buffer[..length], out).map_err(io::Error::other)?;
            let (client, done) = (job.client, job.relay.is_done());
            if done {
                lane.job = None;
            }
            if let Some(slot) = client {
                self.relayed(slot, done);
            }
            if done {
                self.assign();
            }
        }
    }

    fn relayed(&mut self, slot: usize, done: bool) {
        let now = self.now_ms();
        if let Some(Some(client)) = self.clients.get_mut(slot)
            && done
        {
            client.answer_due_ms = None;
            if client.front.answered(now, &self.config.front) == Next::Close {
                client.finish(now);
            }
        }
        self.ready.push(slot);
    }

    /// The lane is of no more use: its client gets 502 or, if it has part of the answer, the end.
    fn fail_lane(&mut self, index: usize) {
        if let Some(mut stream) = self.lanes[index].stream.take()
            && let Err(error) = self.poll.registry().deregister(&mut stream)
        {
            log::debug!("closing a worker's connection: {error}");
        }
        let Some(job) = self.lanes[index].job.take() else { return };
        let Some(slot) = job.client else { return };
        if job.relay.is_untouched() {
            let why = "the worker failed on this request".to_owned();
            self.refuse(slot, &Refusal { status: 502, why }, self.now_ms());
            self.ready.push(slot);
        } else {
            self.close(slot);
        }
    }

    /// Bytes of answers and bodies that are held for clients.
    fn memory(&self) -> usize {
        self.clients.iter().flatten().map(|c| c.unsent() + c.front.claimed()).sum()
    }

    fn expire(&mut self, now: u64) {
        if self.accept_at_ms.is_some_and(|at| at <= now) {
            self.accept_at_ms = None;
            self.accept();
        }
        for slot in 0..self.clients.len() {
            let Some(Some(client)) = self.clients.get_mut(slot) else { continue };
            if client.is_stalled(now) {
                Counters::add(&self.counters.stalled);
                self.close(slot);
                continue;
            }
            if client.answer_due_ms.is_some_and(|due| due <= now) {
                self.give_up(slot, now);
                continue;
            }
            client.keep_alive(now);
            let due = client.front.timeout().is_some_and(|due| due <= now);
            let flush = 0 < client.unsent() || client.is_web_socket();
            if due || flush || client.is_finished() {
                self.drive(slot);
                self.report_room(slot);
            }
        }
        self.deliver();
        // Lanes that waited for memory.
        for index in 0..self.lanes.len() {
            self.drive_lane(index);
        }
    }

    /// No answer in time: 504 if nothing of it went out yet, else the end.
    fn give_up(&mut self, slot: usize, now: u64) {
        let mut untouched = true;
        for index in 0..self.lanes.len() {
            if let Some(job) = self.lanes[index].job.take_if(|job| job.client == Some(slot)) {
                untouched = job.relay.is_untouched();
                // Its worker may never answer: the next request gets a new connection.
                self.fail_lane(index);
            }
        }
        self.waiting.retain(|(of, _)| *of != slot);
        self.assign();
        if !untouched {
            return self.close(slot);
        }
        if let Some(Some(client)) = self.clients.get_mut(slot) {
            client.answer_due_ms = None;
        }
        let why = "no answer in time: narrow the query".to_owned();
        self.refuse(slot, &Refusal { status: 504, why }, now);
        self.drive(slot);
    }
}

impl Client {
    /// Whether the WebSocket's client must prove that it is there.
    fn keep_alive(&mut self, now: u64) {
        let Phase::WebSocket(socket) = &mut self.phase else { return };
        if self.heard_ms + GONE_MS <= now {
            socket.close();
        } else if self.heard_ms + PING_MS <= now && self.pinged_ms < self.heard_ms + PING_MS {
            self.pinged_ms = now;
            socket.ping();
        }
        socket.take(&mut self.out);
        if self.heard_ms + GONE_MS <= now || socket.push(&[], &mut self.texts) == State::Closing {
            self.finish(now);
        }
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
const ACCEPT_AGAIN_MS: u64 = 200;
const ANSWER_MS: u64 = 75_000;
const PING_MS: u64 = 30_000;
const GONE_MS: u64 = 75_000;
const READ_BYTES: usize = 64 << 10;
const DRIVE_TURNS_MAX: usize = 16;
const UPDATES_MAX: usize = 4096;
const UPDATES_A_TURN_MAX: usize = 1024;
/// Bytes of a WebSocket's unsent texts from which on it skips.
const SOCKET_OUT_BYTES_MAX: usize = 256 << 10;
