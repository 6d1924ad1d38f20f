//! Scrapes: a connection for each that is due, read as it comes, ended at its deadline.

use super::{Counted, SCRAPE, Turn, after, first_ns, token};
use crate::input::Inputs;
use crate::input::board::Room;
use crate::input::http::{From, Message};
use crate::input::scrape::Target;
use crate::sampler::Tick;
use crate::schemas::Table;
use mio::net::TcpStream;
use mio::{Interest, Waker};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};

/// All of them.
pub(super) struct Scrapes(Vec<Scraping>);

struct Scraping {
    target: Target,
    due_ns: u64,
    state: State,
    /// Where it was found, and until when that is believed.
    known: Option<(SocketAddr, u64)>,
    /// The answer of a resolver that was asked; one at a time, however long it takes.
    resolving: Option<Arc<Mutex<Found>>>,
}

type Found = Option<Result<SocketAddr, String>>;

enum State {
    Idle,
    /// Its name is looked up.
    Resolving {
        began: Tick,
    },
    Open(Box<Open>),
}

struct Open {
    stream: TcpStream,
    began: Tick,
    request: Vec<u8>,
    sent: usize,
    message: Message,
    ready: bool,
}

impl Scrapes {
    pub(super) fn new(inputs: &Inputs, room: &Room, table: &Arc<Table>, now_ns: u64) -> Self {
        let scraping = |config: &crate::input::config::ScrapeConfig| Scraping {
            due_ns: first_ns(&config.name, config.interval_ms, now_ns),
            target: Target::new(config.clone(), room.clone(), Arc::clone(table)),
            state: State::Idle,
            known: None,
            resolving: None,
        };
        Self(inputs.scrapes.iter().map(scraping).collect())
    }

    pub(super) fn ready(&mut self, index: usize) {
        if let Some(Scraping { state: State::Open(open), .. }) = self.0.get_mut(index) {
            open.ready = true;
        }
    }

    /// When the next is due.
    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) -> Option<u64> {
        let turns = self.0.iter_mut().enumerate();
        turns.map(|(index, scraping)| scraping.turn(index, turn)).min()
    }

    pub(super) fn counted(&self) -> Vec<Counted> {
        let counted = |Scraping { target, .. }: &Scraping| Counted {
            input: format!("scrape/{}", target.config.name),
            taken: None,
            refused: [
                ("failed", target.failed),
                ("series", target.refused()),
                ("queue", target.dropped),
                ("", 0),
            ],
        };
        self.0.iter().map(counted).collect()
    }
}

impl Scraping {
    /// When it is due.
    fn turn(&mut self, index: usize, turn: &mut Turn<'_>) -> u64 {
        let now_ns = turn.now.boottime_ns;
        if self.due_ns <= now_ns {
            self.due_ns = after(self.due_ns, self.target.config.interval_ms, now_ns);
            if matches!(self.state, State::Idle) {
                self.begin(turn);
            }
        }
        self.go_on(index, turn);
        match &self.state {
            State::Idle => self.due_ns,
            State::Open(open) if open.ready => 0,
            State::Open(open) => self.due_ns.min(self.deadline_ns(open.began)),
            State::Resolving { began } => self.due_ns.min(self.deadline_ns(*began)),
        }
    }

    fn begin(&mut self, turn: &Turn<'_>) {
        self.state = State::Resolving { began: turn.now };
        let known = self.known.is_some_and(|(_, until_ns)| turn.now.boottime_ns < until_ns);
        if known || self.resolving.is_some() {
            return;
        }
        let authority = &self.target.config.authority;
        let near = authority.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        if let Ok(address) = near.as_ref().unwrap_or(authority).parse() {
            self.known = Some((address, u64::MAX));
        } else {
            self.resolving = resolve(authority.clone(), Arc::clone(turn.waker));
        }
    }

    fn go_on(&mut self, index: usize, turn: &mut Turn<'_>) {
        let now_ns = turn.now.boottime_ns;
        if let State::Resolving { began } = self.state {
            if let Some(found) = self.found() {
                self.resolving = None;
                match found {
                    Ok(address) => self.known = Some((address, now_ns + KNOWN_NS)),
                    Err(why) => return self.answered(turn, Err(why), began),
                }
            }
            match self.known.filter(|(_, until_ns)| now_ns < *until_ns) {
                Some((address, _)) => match self.open(address, began, index, turn) {
                    Ok(open) => self.state = State::Open(Box::new(open)),
                    Err(error) => return self.answered(turn, Err(error.to_string()), began),
                },
                None if self.resolving.is_none() => {
                    return self.answered(turn, Err("no thread to look it up".to_owned()), began);
                }
                None => {}
            }
        }
        let began = match &self.state {
            State::Idle => return,
            State::Resolving { began } => *began,
            State::Open(open) => open.began,
        };
        if let State::Open(open) = &mut self.state
            && open.ready
        {
            match open.exchange(turn.buffer) {
                Ok(false) => {}
                Ok(true) => return self.whole(turn),
                Err(why) => return self.answered(turn, Err(why), began),
            }
        }
        if self.deadline_ns(began) <= now_ns {
            let why = format!("no answer within {} ms", self.target.config.timeout_ms);
            self.answered(turn, Err(why), began);
        }
    }

    /// The answer is here.
    fn whole(&mut self, turn: &Turn<'_>) {
        let State::Open(open) = std::mem::replace(&mut self.state, State::Idle) else { return };
        let Open { message, began, .. } = *open;
        let answer = match message.status() {
            200 => Ok((&*message.content_type, message.body())),
            status => Err(format!("it answered with status {status}")),
        };
        self.answered(turn, answer, began);
    }

    fn answered(&mut self, turn: &Turn<'_>, answer: Result<(&str, &[u8]), String>, began: Tick) {
        self.state = State::Idle;
        let took_ns = turn.now.boottime_ns.saturating_sub(began.boottime_ns);
        let was_up = self.target.why.is_none();
        // The row's time is when it was asked, as Prometheus has it.
        self.target.answered(began, answer, took_ns, turn.outbox);
        let name = &self.target.config.name;
        match &self.target.why {
            Some(why) if was_up => log::warn!("scrape {name}: {why}"),
            None if !was_up => log::info!("scrape {name}: up again"),
            _ => {}
        }
    }

    fn open(
        &self,
        address: SocketAddr,
        began: Tick,
        index: usize,
        turn: &Turn<'_>,
    ) -> io::Result<Open> {
        let mut stream = TcpStream::connect(address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        turn.registry.register(&mut stream, token(SCRAPE, index), interest)?;
        let (request, message) =
            (self.target.request(), Message::new(self.target.config.bytes_max));
        Ok(Open { stream, began, request, sent: 0, message, ready: false })
    }

    fn found(&self) -> Option<Result<SocketAddr, String>> {
        let slot = self.resolving.as_ref()?;
        slot.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn deadline_ns(&self, began: Tick) -> u64 {
        began.boottime_ns.saturating_add(self.target.config.timeout_ms * 1_000_000)
    }
}

impl Open {
    /// Sends and reads as far as it goes; whether the answer is whole.
    fn exchange(&mut self, buffer: &mut [u8]) -> Result<bool, String> {
        let words = |error: io::Error| error.to_string();
        while let Some(rest) = self.request.get(self.sent..).filter(|rest| !rest.is_empty()) {
            #[expect(clippy::disallowed_methods, reason = "non-blocking: `sent` counts what went")]
            match self.stream.write(rest) {
                Ok(length) => self.sent += length,
                Err(error) if is_later(&error) => {
                    self.ready = false;
                    return Ok(false);
                }
                Err(error) => return Err(words(error)),
            }
        }
        for _ in 0..READS_MAX {
            match self.stream.read(buffer) {
                Ok(0) => return self.message.close().map(|()| true).map_err(|why| why.to_string()),
                Ok(length) => {
                    let bytes = buffer.get(..length).unwrap_or(&[]);
                    match self.message.feed(From::Server, bytes) {
                        Ok(false) => {}
                        Ok(true) => return Ok(true),
                        Err(why) => return Err(why.to_string()),
                    }
                }
                Err(error) if is_later(&error) => {
                    self.ready = false;
                    return Ok(false);
                }
                Err(error) => return Err(words(error)),
            }
        }
        Ok(false)
    }
}

/// A connection that is not made yet says `NotConnected`.
fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected)
}

/// Asks the system where a host is, which may take as long as it likes.
fn resolve(authority: String, waker: Arc<Waker>) -> Option<Arc<Mutex<Found>>> {
    let slot = Arc::new(Mutex::new(None));
    let answer = Arc::clone(&slot);
    let thread = std::thread::Builder::new().name("strobe-resolve".to_owned());
    let asked = thread.stack_size(256 << 10).spawn(move || {
        let found = authority.to_socket_addrs().map(|mut all| all.next());
        let found = match found {
            Ok(Some(address)) => Ok(address),
            Ok(None) => Err(format!("{authority} has no address")),
            Err(why) => Err(format!("{authority}: {why}")),
        };
        *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        // It fails only if the poll is gone, and with it the one to be woken.
        let _ = waker.wake();
    });
    asked.is_ok().then_some(slot)
}

/// Reads of one target in one turn: 1 MiB.
const READS_MAX: usize = 16;
const KNOWN_NS: u64 = 60_000_000_000;
