//! Remote-write's door: HTTP/1.1 on an address of this machine alone.
//!
//! A web page may make a browser send requests here, but not with this content type without asking
//! first, which nobody answers.

use super::doors::RETRY_NS;
use super::{Counted, Turn, WRITE, token};
use crate::input::Inputs;
use crate::input::board::Room;
use crate::input::http::{From, HttpError, Message};
use crate::input::write::Written;
use crate::schemas::Table;
use mio::Interest;
use mio::net::{TcpListener, TcpStream};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

/// The listener and who is connected.
pub(super) struct Writes {
    address: Option<SocketAddr>,
    listener: Option<TcpListener>,
    accepts: bool,
    complained: bool,
    retry_ns: u64,
    peers: Vec<Option<Peer>>,
    written: Written,
    refused: u64,
}

struct Peer {
    stream: TcpStream,
    message: Message,
    answer: Vec<u8>,
    sent: usize,
    /// When it last said or took something.
    since_ns: u64,
    ready: bool,
}

impl Writes {
    pub(super) fn new(inputs: &Inputs, room: &Room, table: &Arc<Table>) -> Self {
        Self {
            address: inputs.remote_write,
            listener: None,
            accepts: false,
            complained: false,
            retry_ns: 0,
            peers: (0..PEERS_MAX).map(|_| None).collect(),
            written: Written::new(room.clone(), Arc::clone(table)),
            refused: 0,
        }
    }

    pub(super) fn ready(&mut self, index: usize) {
        match self.peers.get_mut(index) {
            Some(Some(peer)) => peer.ready = true,
            Some(None) => {}
            None => self.accepts = true,
        }
    }

    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) -> Option<u64> {
        let address = self.address?;
        let now_ns = turn.now.boottime_ns;
        if self.listener.is_none() && self.retry_ns <= now_ns {
            self.open(address, turn);
        }
        self.accept(turn);
        let mut next_ns = if self.listener.is_none() { self.retry_ns } else { u64::MAX };
        for place in &mut self.peers {
            let Some(peer) = place else { continue };
            let late_ns = peer.since_ns + PEER_NS;
            let stays = !peer.ready || peer.step(turn, &mut self.written);
            if !stays || late_ns <= now_ns {
                *place = None;
            } else {
                next_ns = next_ns.min(if peer.ready { 0 } else { peer.since_ns + PEER_NS });
            }
        }
        Some(next_ns)
    }

    pub(super) fn counted(&self) -> Option<Counted> {
        let numbers = self.written.numbers;
        self.address.map(|_| Counted {
            input: "remote_write".to_owned(),
            taken: Some(numbers.taken),
            refused: [
                ("malformed", numbers.bad),
                ("series", numbers.refused),
                ("queue", numbers.dropped),
                ("connections", self.refused),
            ],
        })
    }

    fn open(&mut self, address: SocketAddr, turn: &Turn<'_>) {
        let opened = TcpListener::bind(address).and_then(|mut listener| {
            let place = token(WRITE, PEERS_MAX);
            turn.registry.register(&mut listener, place, Interest::READABLE)?;
            Ok(listener)
        });
        match opened {
            Ok(listener) => (self.listener, self.accepts) = (Some(listener), true),
            Err(why) => {
                self.retry_ns = turn.now.boottime_ns + RETRY_NS;
                if !std::mem::replace(&mut self.complained, true) {
                    log::error!("remote-write on {address} is not heard: {why}");
                }
            }
        }
    }

    fn accept(&mut self, turn: &Turn<'_>) {
        if !std::mem::take(&mut self.accepts) {
            return;
        }
        // Any error ends the round: WouldBlock is the end, and out of descriptors must not spin.
        while let Some(Ok((mut stream, _))) = self.listener.as_ref().map(TcpListener::accept) {
            let Some(index) = self.peers.iter().position(Option::is_none) else {
                self.refused += 1;
                continue;
            };
            let interest = Interest::READABLE | Interest::WRITABLE;
            if turn.registry.register(&mut stream, token(WRITE, index), interest).is_ok()
                && let Some(place) = self.peers.get_mut(index)
            {
                *place = Some(Peer {
                    stream,
                    message: Message::new(BODY_BYTES_MAX),
                    answer: Vec::new(),
                    sent: 0,
                    since_ns: turn.now.boottime_ns,
                    ready: true,
                });
            }
        }
    }
}

impl Peer {
    /// Reads, answers, and reads on; whether it stays.
    fn step(&mut self, turn: &mut Turn<'_>, written: &mut Written) -> bool {
        for _ in 0..READS_MAX {
            if !self.flush() {
                return false;
            }
            if !self.answer.is_empty() {
                self.ready = false;
                return true;
            }
            match self.stream.read(turn.buffer) {
                Ok(0) => return false,
                Ok(length) => {
                    self.since_ns = turn.now.boottime_ns;
                    let bytes = turn.buffer.get(..length).unwrap_or(&[]);
                    match self.message.feed(From::Client, bytes) {
                        Ok(false) => {}
                        Ok(true) => self.answer(turn, written),
                        Err(why) => self.refuse(why),
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.ready = false;
                    return true;
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn answer(&mut self, turn: &Turn<'_>, written: &mut Written) {
        let message = std::mem::replace(&mut self.message, Message::new(BODY_BYTES_MAX));
        let mut words = message.line.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (status, why) = match (method, path.split('?').next()) {
            ("POST", Some("/api/v1/write")) => {
                let typed = message.content_type.starts_with("application/x-protobuf");
                if !typed || message.content_encoding != "snappy" {
                    let why = "application/x-protobuf, compressed by snappy, is taken\n";
                    ("415 Unsupported Media Type", why.to_owned())
                } else {
                    match written.heard(turn.now, message.body(), turn.outbox) {
                        Ok(()) => ("204 No Content", String::new()),
                        Err(why) => {
                            written.numbers.bad += 1;
                            ("400 Bad Request", format!("{why}\n"))
                        }
                    }
                }
            }
            (_, Some("/api/v1/write")) => ("405 Method Not Allowed", "POST it\n".to_owned()),
            _ => ("404 Not Found", "there is /api/v1/write\n".to_owned()),
        };
        self.say(status, &why, "keep-alive");
    }

    fn refuse(&mut self, why: HttpError) {
        let status = match why {
            HttpError::Large => "413 Content Too Large",
            HttpError::Length => "411 Length Required",
            _ => "400 Bad Request",
        };
        self.say(status, &format!("{why}\n"), "close");
        // What stands behind a message that is none is none either: it is answered, and closed.
        self.message = Message::new(0);
    }

    fn say(&mut self, status: &str, body: &str, connection: &str) {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nConnection: {connection}\r\n");
        // 204 has no body and no length.
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {length}\r\n") };
        self.answer = format!("{head}{length}\r\n{body}").into_bytes();
        self.sent = 0;
    }

    /// Whether the connection is good.
    fn flush(&mut self) -> bool {
        while let Some(rest) = self.answer.get(self.sent..).filter(|rest| !rest.is_empty()) {
            #[expect(clippy::disallowed_methods, reason = "non-blocking: `sent` counts what went")]
            match self.stream.write(rest) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        let closes = self.answer.windows(17).any(|part| part == b"Connection: close");
        self.answer.clear();
        !closes
    }
}

/// A sender uses one connection a shard.
const PEERS_MAX: usize = 16;
const BODY_BYTES_MAX: usize = 4 << 20;
const READS_MAX: usize = 16;
/// A connection that says nothing for so long is closed.
const PEER_NS: u64 = 90_000_000_000;
