//! The broker's loops, each a thread: the network's, the writer's, the mirror's.

use super::clock::{monotonic, rest_until, wall_ms, wall_s};
use super::cluster::{Ears, Told};
use super::error::BrokerError;
use crate::cluster::{MAIL_MAX, Post};
use crate::net::{Ask, Net, NetCounts, Place};
use crate::own;
use crate::peers::{LETTERS_MAX, Letter, Peers};
use crate::query::Caller;
use crate::store::redis::{Confirmed, Epochs, Log, Mirror};
use crate::tune::Tuner;
use crate::writer::{Order, Report, Scribe};
use mio::{Events, Poll, Waker};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use strobe_wire::link::{Progress, Socket};
use strobe_wire::message::{ApiRequest, ApiResponse};

/// A request, where its answer goes, and who waits for it.
pub(super) type Question = (Place, ApiRequest, Caller);

/// What the network thread owns.
pub(super) struct Loop {
    pub(super) poll: Poll,
    pub(super) socket: Socket,
    pub(super) net: Net,
    pub(super) orders: SyncSender<Order>,
    pub(super) reports: Receiver<Report>,
    pub(super) questions: Option<SyncSender<Question>>,
    pub(super) answers: Receiver<(Place, ApiResponse)>,
    pub(super) ears: Ears,
    /// Other brokers' questions, for those who wait for nobody.
    pub(super) pages: Option<SyncSender<Question>>,
    pub(super) peers: Peers,
    pub(super) letters: Receiver<Letter>,
    /// Where Redis is written to.
    pub(super) epochs: Arc<Epochs>,
    pub(super) counts: Arc<Mutex<NetCounts>>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) tuner: Tuner,
    pub(super) confirmed: Confirmed,
}

impl Loop {
    /// Wait, read, time out, act, write.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let (mut again, mut turned) = (false, monotonic());
        let mut count_at = monotonic();
        while !self.stopping.load(Ordering::Acquire) {
            let wait = if again { Duration::ZERO } else { self.patience() };
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!("cannot wait for the network: {error}");
            }
            if !again {
                rest_until(turned + TURN_EVERY);
            }
            let (now, now_ms) = (monotonic(), wall_ms());
            turned = now;
            self.net.link.set_wall_s(wall_s());
            let received = self.socket.receive(now, &mut self.net.link).unwrap_or_else(|error| {
                log::error!("cannot receive: {error}");
                Progress::Idle
            });
            self.turn(now, now_ms);
            if count_at <= now {
                count_at = now + COUNT_EVERY;
                let counts = self.net.counts();
                self.tuner.on_timeout(now, counts.storing);
                *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
            }
            let sent = self.socket.transmit(now, &mut self.net.link);
            again = received == Progress::More || sent == Progress::More || self.net.is_busy();
        }
        self.end();
    }

    fn patience(&self) -> Duration {
        self.net.timeout().saturating_duration_since(monotonic()).min(COUNT_EVERY)
    }

    fn turn(&mut self, now: std::time::Instant, now_ms: i64) {
        while let Ok(report) = self.reports.try_recv() {
            self.net.on_report(report, now);
        }
        while let Ok(told) = self.ears.told.try_recv() {
            match told {
                Told::Seat(seating) => {
                    self.tuner.set_agreed(seating.me, seating.orders.clone());
                    self.net.take_seat(seating, now);
                }
                Told::Alone(agreed) => {
                    self.tuner.set_agreed(0, agreed.clone());
                    self.net.set_agreed(agreed);
                }
                Told::Post(post) => {
                    if let Post::Desired(desired) = &post {
                        self.tuner.on_desired(now, desired);
                        let classes = self.tuner.classes();
                        self.confirmed.want(classes.any_is_copied());
                        self.net.set_classes(classes);
                    }
                    if let Post::Map(map) = &post {
                        self.peers.set_members(map.me, &map.addresses);
                        // Of all shards: what it took in while it owned one is sealed, and written,
                        // when it may not any more. Whoever knows less than others is refused.
                        self.epochs.follow(map);
                    }
                    self.net.on_post(post, now, now_ms);
                }
            }
        }
        for mail in self.ears.mail.try_iter().take(MAIL_MAX) {
            self.net.on_mail(mail, now);
        }
        while let Ok((place, response)) = self.answers.try_recv() {
            self.net.answer(place, response);
        }
        for letter in self.letters.try_iter().take(LETTERS_MAX) {
            match letter {
                Letter::Ask { to, ticket, request } => self.net.question(to, ticket, request),
                Letter::Forget(ticket) => self.net.forget_question(ticket),
            }
        }
        let mut refused = Vec::new();
        let (questions, pages) = (&self.questions, &self.pages);
        self.net.advance(now, now_ms, &mut |ask| {
            let (to, question) = match ask {
                Ask::Api(place, request, caller) => (questions, (place, request, caller)),
                Ask::Peer(place, request, caller) => (pages, (place, request, caller)),
            };
            let place = question.0;
            let asked = to.as_ref().is_some_and(|to| to.try_send(question).is_ok());
            if !asked {
                refused.push(place);
            }
        });
        for place in refused {
            let busy = "too many queries are waiting; ask again later";
            self.net.answer(place, own::error(503, "unavailable", busy));
        }
        while let Some((ticket, answer)) = self.net.poll_answer() {
            self.peers.deliver(ticket, answer);
        }
        let orders = &self.orders;
        self.net.end_turn(now, now_ms, &mut |order| send(orders, order));
    }

    fn end(&mut self) {
        let now = monotonic();
        if let Some(windows) = self.net.windows() {
            send(&self.orders, Order::Windows(windows));
        }
        self.net.link.close_all(now, "the broker is stopping");
        // One turn's good-byes; who does not hear it finds out by silence.
        self.socket.transmit(now, &mut self.net.link);
        (self.questions, self.pages) = (None, None);
    }
}

/// The queue has room for every turn in flight, so this does not wait.
fn send(orders: &SyncSender<Order>, order: Order) {
    if orders.send(order).is_err() {
        log::error!("the writer has ended; nothing is stored any more");
    }
}

/// Wait for an order, take it, and do what is due.
pub(super) fn write_loop(
    mut scribe: Scribe,
    orders: &Receiver<Order>,
    reports: &Sender<Report>,
    waker: &Waker,
) {
    while !scribe.is_done() {
        let wait = scribe.timeout().saturating_duration_since(monotonic());
        match orders.recv_timeout(wait) {
            Ok(order) => {
                scribe.take(order);
                // What comes until something is due waits in the queue, not each with a wake-up.
                rest_until(scribe.timeout());
                orders.try_iter().take(ORDERS_GATHERED).for_each(|order| scribe.take(order));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => scribe.take(Order::Stop),
        }
        let now = monotonic();
        if now < scribe.timeout() {
            continue;
        }
        let mut reported = false;
        scribe.on_timeout(now, wall_ms(), &mut |report| {
            reported = true;
            // The network loop may have ended before the writer: then nobody is acknowledged.
            drop(reports.send(report));
        });
        if reported {
            wake(waker);
        }
    }
}

/// Fills Redis, pass after pass.
pub(super) fn mirror_loop(mut mirror: Mirror, stopping: &AtomicBool) {
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

/// Sends the log to Redis; a commit wakes it.
pub(super) fn log_loop(mut log: Log, stopping: &AtomicBool) {
    while !stopping.load(Ordering::Acquire) {
        let wait = log.pass(wall_ms());
        std::thread::park_timeout(wait.min(STOP_SEEN));
    }
}

/// A named thread.
pub(super) fn spawn(
    name: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, BrokerError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|source| BrokerError::Io { doing: "start a thread", source })
}

pub(super) fn join(thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        log::error!("a thread of the broker had panicked");
    }
}

pub(super) fn wake(waker: &Waker) {
    if let Err(error) = waker.wake() {
        log::error!("cannot wake the network loop: {error}");
    }
}

/// At most 500 turns a second. The kernel's buffer holds what comes meanwhile: 2 ms of 10,000
/// agents are 25 KB.
const TURN_EVERY: Duration = Duration::from_millis(2);
/// Orders taken before it is looked whether something is due.
const ORDERS_GATHERED: usize = 1024;
const COUNT_EVERY: Duration = Duration::from_millis(500);
/// How soon the mirror's thread sees that it shall end.
const STOP_SEEN: Duration = Duration::from_millis(200);
