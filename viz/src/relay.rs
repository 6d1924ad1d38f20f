//! Between the loop and a worker: the request as tiny_http gets it, and the worker's answer made
//! into the client's. Sans-IO.
//!
//! tiny_http only ever sees a head that we wrote ourselves: a method, a target, the few headers a
//! worker needs and a plain Content-Length. Nothing of the client's head reaches it unchecked.

#![deny(clippy::indexing_slicing)]

use crate::front::{Method, Refusal, Request};

/// An answer being relayed.
#[derive(Debug)]
pub struct Relay {
    /// The worker's head as far as it came.
    head: Vec<u8>,
    method: Method,
    keep_alive: bool,
    state: State,
    /// Bytes of the client's head.
    head_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Body { left: usize },
    Done,
}

/// The worker broke the protocol.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a worker's answer is malformed: {0}")]
pub struct RelayError(&'static str);

/// The bytes that carry `request` to the worker behind `lane`, its body behind them.
#[must_use]
pub fn request_bytes(request: &Request, lane: usize) -> Vec<u8> {
    let mut out = format!(
        "{} {} HTTP/1.1\r\nHost: viz\r\n{LANE}: {lane}\r\nContent-Length: {}\r\n",
        request.method.text(),
        request.target,
        request.body.len()
    )
    .into_bytes();
    for (name, value) in [
        ("Content-Type", &request.content_type),
        ("Content-Encoding", &request.content_encoding),
        ("Accept-Encoding", &request.accept_encoding),
        ("If-None-Match", &request.if_none_match),
    ] {
        if !value.is_empty() && value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&request.body);
    out
}

/// A whole answer of the front door's own.
#[must_use]
pub fn refusal_bytes(refusal: &Refusal) -> Vec<u8> {
    let body = format!("{}\n", refusal.why);
    let mut out = head(refusal.status, Some(body.len()), false);
    for (status, line) in [
        (405, "Allow: GET, HEAD, POST\r\n"),
        (426, "Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n"),
        (503, "Retry-After: 1\r\n"),
    ] {
        if refusal.status == status {
            out.push_str(line);
        }
    }
    out.push_str("Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n\r\n");
    out.push_str(&body);
    out.into_bytes()
}

/// The answer to a WebSocket handshake with this key.
#[must_use]
pub fn upgrade_bytes(key: &str) -> Vec<u8> {
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes()
}

impl Relay {
    /// For the answer to a request of `method`.
    #[must_use]
    pub fn new(method: Method, keep_alive: bool) -> Self {
        Self { head: Vec::new(), method, keep_alive, state: State::Head, head_bytes: 0 }
    }

    /// Whether the answer is whole.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the client has got nothing of the answer yet.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.state == State::Head
    }

    /// Bytes of the head that the client got before the body.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// More bytes of the worker; what the client gets is put behind `out`.
    ///
    /// # Errors
    /// The worker's bytes are no answer; its connection is of no more use.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), RelayError> {
        let mut rest = bytes;
        let buffered;
        if self.state == State::Head {
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
                if HEAD_BYTES_MAX < self.head.len() {
                    return Err(RelayError("its head does not end"));
                }
                return Ok(());
            };
            buffered = self.head.split_off(end + 4);
            self.begin(out)?;
            rest = &buffered;
        }
        if let State::Body { left } = &mut self.state {
            let Some(body) = rest.get(..rest.len().min(*left)) else { return Ok(()) };
            out.extend_from_slice(body);
            *left -= body.len();
            rest = rest.get(body.len()..).unwrap_or_default();
            if *left == 0 {
                self.state = State::Done;
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(RelayError("bytes behind its end")) }
    }

    fn begin(&mut self, out: &mut Vec<u8>) -> Result<(), RelayError> {
        let mut room = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut room);
        match answer.parse(&self.head) {
            Ok(httparse::Status::Complete(length)) if length == self.head.len() => {}
            _ => return Err(RelayError("its head does not parse")),
        }
        let status = answer.code.ok_or(RelayError("it has no status"))?;
        let value = |name: &str| {
            let header = answer.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok()
        };
        let bare = matches!(status, 100..=199 | 204 | 304);
        let length = value("content-length").and_then(|text| text.trim().parse::<usize>().ok());
        let length = match length {
            _ if bare => None,
            Some(length) => Some(length),
            None => return Err(RelayError("it has no Content-Length")),
        };
        let mut text = head(status, length, self.keep_alive);
        for name in PASSED {
            if let Some(value) = value(name) {
                text.push_str(name);
                text.push_str(": ");
                text.push_str(value);
                text.push_str("\r\n");
            }
        }
        text.push_str("\r\n");
        out.extend_from_slice(text.as_bytes());
        self.head_bytes = text.len();
        self.state = match length {
            Some(left) if 0 < left && self.method != Method::Head => State::Body { left },
            _ => State::Done,
        };
        Ok(())
    }
}

fn head(status: u16, length: Option<usize>, keep_alive: bool) -> String {
    let length = length.map_or_else(String::new, |length| format!("Content-Length: {length}\r\n"));
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!(
        "HTTP/1.1 {status} {}\r\n{length}Connection: {connection}\r\n{SECURITY}",
        reason(status)
    )
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

/// Tells a worker which lane a request came by, and so who waits for its answer.
pub(crate) const LANE: &str = "X-Strobe-Lane";

/// On every answer: nothing but our own files runs, nobody frames us, no type is guessed.
const SECURITY: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; \
style-src 'self'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; \
base-uri 'none'; form-action 'none'\r\nX-Content-Type-Options: nosniff\r\n\
X-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\n\
Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\n";

/// Headers of a worker's answer that the client gets.
const PASSED: [&str; 6] =
    ["Content-Type", "Content-Encoding", "Cache-Control", "ETag", "Vary", "Retry-After"];

const HEAD_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests may panic")]
mod tests {
    use super::*;

    fn relay(method: Method, bytes: &[u8], cut: usize) -> Result<(String, bool), RelayError> {
        let mut relay = Relay::new(method, true);
        let mut out = Vec::new();
        relay.push(&bytes[..cut], &mut out)?;
        relay.push(&bytes[cut..], &mut out)?;
        Ok((String::from_utf8(out).unwrap(), relay.is_done()))
    }

    #[test]
    fn answers_survive_any_cut_and_lose_what_is_not_ours() {
        let bytes = b"HTTP/1.1 200 OK\r\nServer: tiny-http\r\nETag: \"1\"\r\nContent-Length: 5\r\n\r\nhello";
        for cut in 0..=bytes.len() {
            let (text, done) = relay(Method::Get, bytes, cut).unwrap();
            assert!(done && text.ends_with("\r\nETag: \"1\"\r\n\r\nhello"), "{cut}: {text}");
            assert!(text.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"));
            assert!(!text.contains("tiny-http") && text.contains("default-src 'none'"));
        }
        let head = &bytes[..bytes.len() - 5];
        assert!(relay(Method::Head, head, 0).unwrap().1);
        assert!(!relay(Method::Get, head, 0).unwrap().1);
        let (text, done) = relay(Method::Get, b"HTTP/1.1 304 X\r\n\r\n", 0).unwrap();
        assert!(done && !text.contains("Content-Length"));
    }

    #[test]
    fn a_worker_that_breaks_the_protocol_is_named() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhello",
            b"nonsense\r\n\r\n",
            &vec![b'x'; HEAD_BYTES_MAX + 1],
        ] {
            assert!(relay(Method::Get, bytes, 0).is_err());
        }
    }
}
