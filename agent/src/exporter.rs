//! `/metrics` for Prometheus: a small HTTP/1.1 server on one mio loop.
//!
//! Each scrape is a fresh sample of its own sampler, as node_exporter's is. Bounds: `PEERS_MAX`
//! connections (a further one is closed at once), `HEAD_BYTES_MAX` of request head, and
//! `PEER_NS` for a whole request and answer; a connection serves one request and is closed.

use crate::clock::{boottime_ns, monotonic_ns, wall_ns};
use crate::exposition::{CONTENT_TYPE, sample};
use crate::sampler::{Sampler, Tick};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

/// A bound listener and its connections.
#[derive(Debug)]
pub struct Exporter {
    poll: Poll,
    listener: TcpListener,
    peers: Vec<Option<Peer>>,
    sampler: Sampler,
}

/// One connection: its request so far, then its answer from here on.
#[derive(Debug)]
struct Peer {
    stream: TcpStream,
    since_ns: u64,
    head: Vec<u8>,
    answer: Vec<u8>,
    sent: usize,
}

/// What a request is, as far as its head has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Request {
    Partial,
    Metrics,
    Index,
    Healthy,
    NotFound,
    Method,
    Malformed,
    TooLarge,
}

impl Exporter {
    /// Listens on `address`.
    ///
    /// # Errors
    /// The kernel's, with the address.
    pub fn bind(address: SocketAddr, sampler: Sampler) -> io::Result<Self> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("listening on {address}: {error}"))
        };
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(address).map_err(named)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self { poll, listener, peers: (0..PEERS_MAX).map(|_| None).collect(), sampler })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the poll fails.
    ///
    /// # Errors
    /// The poll's.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(PEERS_MAX + 1);
        loop {
            let busy = self.peers.iter().any(Option::is_some);
            match self.poll.poll(&mut events, busy.then_some(SWEEP)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            self.drop_late(monotonic_ns());
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    Token(index) => self.serve(index),
                }
            }
        }
    }

    fn drop_late(&mut self, now_ns: u64) {
        for peer in &mut self.peers {
            if peer.as_ref().is_some_and(|peer| PEER_NS < now_ns.saturating_sub(peer.since_ns)) {
                *peer = None;
            }
        }
    }

    fn accept(&mut self) {
        // Any error ends the round: WouldBlock is the end, and out of descriptors must not spin.
        while let Ok((mut stream, _)) = self.listener.accept() {
            let Some(index) = self.peers.iter().position(Option::is_none) else { continue };
            let interest = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().register(&mut stream, Token(index), interest).is_err() {
                continue;
            }
            if let Some(peer) = self.peers.get_mut(index) {
                *peer = Some(Peer::new(stream, monotonic_ns()));
            }
            self.serve(index);
        }
    }

    fn serve(&mut self, index: usize) {
        let Some(Some(peer)) = self.peers.get_mut(index) else { return };
        let done = match peer.step() {
            Ok(Request::Partial) => false,
            Ok(request) => {
                peer.answer = answer(request, &mut self.sampler);
                peer.flush().unwrap_or(true)
            }
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        if done && let Some(peer) = self.peers.get_mut(index) {
            *peer = None;
        }
    }
}

impl Peer {
    fn new(stream: TcpStream, since_ns: u64) -> Self {
        Self { stream, since_ns, head: Vec::new(), answer: Vec::new(), sent: 0 }
    }

    /// Reads on, or writes on; an error other than `WouldBlock` is the end.
    fn step(&mut self) -> io::Result<Request> {
        if !self.answer.is_empty() {
            return match self.flush()? {
                true => Err(io::ErrorKind::ConnectionAborted.into()),
                false => Ok(Request::Partial),
            };
        }
        let mut chunk = [0; 2048];
        loop {
            let length = self.stream.read(&mut chunk)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.head.extend_from_slice(chunk.get(..length).unwrap_or(&[]));
            let request = parse(&self.head);
            if request != Request::Partial {
                return Ok(request);
            }
        }
    }

    /// Whether all of the answer is out.
    fn flush(&mut self) -> io::Result<bool> {
        while let Some(rest) = self.answer.get(self.sent..).filter(|rest| !rest.is_empty()) {
            #[expect(
                clippy::disallowed_methods,
                reason = "the socket is non-blocking: short writes are the rule, and `sent` counts them"
            )]
            match self.stream.write(rest) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn parse(head: &[u8]) -> Request {
    let ended = head.windows(4).any(|part| part == b"\r\n\r\n");
    if HEAD_BYTES_MAX < head.len() {
        return Request::TooLarge;
    }
    if !ended {
        return Request::Partial;
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or(&[]);
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, words.next())
    else {
        return Request::Malformed;
    };
    if !version.starts_with(b"HTTP/1.") || !target.starts_with(b"/") {
        return Request::Malformed;
    }
    let path = target.split(|byte| *byte == b'?').next().unwrap_or(target);
    match (method, path) {
        (b"GET", b"/metrics") => Request::Metrics,
        (b"GET", b"/") => Request::Index,
        (b"GET", b"/-/healthy") => Request::Healthy,
        (b"GET", _) => Request::NotFound,
        _ => Request::Method,
    }
}

fn answer(request: Request, sampler: &mut Sampler) -> Vec<u8> {
    let plain = "text/plain; charset=utf-8";
    let (status, kind, body) = match request {
        Request::Metrics => {
            let now = Tick { wall_ns: wall_ns(), boottime_ns: boottime_ns() };
            ("200 OK", CONTENT_TYPE, sample(sampler, now, SETTLE))
        }
        Request::Index => {
            let page = "<!doctype html><title>Strobe agent</title><a href=\"/metrics\">Metrics</a>";
            ("200 OK", "text/html; charset=utf-8", page.to_owned())
        }
        Request::Healthy => ("200 OK", plain, "healthy\n".to_owned()),
        Request::NotFound => ("404 Not Found", plain, "there is /metrics\n".to_owned()),
        Request::Method => ("405 Method Not Allowed", plain, "GET is served\n".to_owned()),
        Request::TooLarge => {
            ("431 Request Header Fields Too Large", plain, "at most 8 KiB\n".to_owned())
        }
        Request::Malformed | Request::Partial => {
            ("400 Bad Request", plain, "not an HTTP/1 request\n".to_owned())
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\
         X-Content-Type-Options: nosniff\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

const LISTENER: Token = Token(usize::MAX - 1);
const PEERS_MAX: usize = 32;
const HEAD_BYTES_MAX: usize = 8 << 10;
const PEER_NS: u64 = 5_000_000_000;
const SWEEP: Duration = Duration::from_secs(1);
/// How long a scrape waits for file systems.
const SETTLE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let long = vec![b'x'; HEAD_BYTES_MAX + 1];
        for (head, wanted) in [
            (&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..], Request::Metrics),
            (b"GET /metrics?a=b HTTP/1.0\r\n\r\n", Request::Metrics),
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n", Request::Partial),
            (b"POST /metrics HTTP/1.1\r\n\r\n", Request::Method),
            (b"GET /x HTTP/1.1\r\n\r\n", Request::NotFound),
            (b"\x16\x03\x01\x00\r\n\r\n", Request::Malformed),
            (b"GET http://x/ HTTP/1.1\r\n\r\n", Request::Malformed),
            (&long, Request::TooLarge),
        ] {
            assert_eq!(parse(head), wanted, "{}", head.escape_ascii());
        }
    }
}
