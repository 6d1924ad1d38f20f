//! One HTTP/1.1 connection as a state machine: bytes and `now` in, whole requests or a refusal out.
//!
//! ```text
//!          bytes            CRLF CRLF           body whole
//!  Idle ─────────▶ Head ──────────────▶ Body ──────────────▶ Busy ── answered ──▶ Idle …
//!    │ 60 s          │ 10 s               │ 30 s               └─ Upgraded (WebSocket)
//!    ▼               ▼                    ▼
//!  closed           408                  408
//! ```
//!
//! Invariants: at most one request is out at a time; what is pipelined behind it is bounded by one
//! head ([`Front::wants_read`] turns false); a body's memory grows with the bytes that came, never
//! with what Content-Length claims; every failure is a [`Refusal`], after which the connection ends.
//! No clock and no socket: `now_ms` is monotonic and any start will do.

#![deny(clippy::indexing_slicing)]

mod head;

use head::Head;

/// What a connection may cost.
#[derive(Clone, Debug)]
pub struct FrontLimits {
    /// Bytes of request line and headers.
    pub head_bytes_max: usize,
    /// Headers of one request, at most [`HEADERS_MAX`].
    pub headers_max: usize,
    /// Bytes of the request target.
    pub target_bytes_max: usize,
    /// Bytes of one body.
    pub body_bytes_max: usize,
    /// From a request's first byte (or the accept) to the end of its head.
    pub head_timeout_ms: u64,
    /// From the end of the head to the end of the body.
    pub body_timeout_ms: u64,
    /// Between two requests.
    pub idle_timeout_ms: u64,
    /// Requests of one connection.
    pub requests_max: u32,
}

/// Which `Host` a request may name: anything else is another site that was pointed here by DNS.
#[derive(Clone, Debug, Default)]
pub struct HostPolicy {
    /// Names besides `localhost` and IP literals, lower case.
    pub names: Vec<String>,
}

/// A whole request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// What is asked.
    pub method: Method,
    /// Path and query as sent; begins with `/`.
    pub target: String,
    /// `Content-Type`, or empty.
    pub content_type: String,
    /// `Content-Encoding`, or empty.
    pub content_encoding: String,
    /// `Accept-Encoding`, or empty.
    pub accept_encoding: String,
    /// `If-None-Match`, or empty.
    pub if_none_match: String,
    /// The body.
    pub body: Vec<u8>,
    /// Whether the connection may go on behind the answer.
    pub keep_alive: bool,
}

/// The methods that are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// `GET`.
    Get,
    /// `HEAD`: as GET, without the body.
    Head,
    /// `POST`.
    Post,
}

/// What happened on the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Send `HTTP/1.1 100 Continue`: the client waits for it before its body.
    Continue,
    /// Answer this, then call [`Front::answered`].
    Request(Request),
    /// Answer 101 with this `Sec-WebSocket-Accept`; `rest` are the first bytes of the WebSocket.
    Upgrade {
        /// The key the client sent.
        key: String,
        /// Bytes behind the head.
        rest: Vec<u8>,
    },
    /// Answer this status and reason, then close.
    Refused(Refusal),
    /// Close without a word: the client is gone or was idle for too long.
    Close,
}

/// A request that is not served: the status and the reason in a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// What is wrong and what to do.
    pub why: String,
}

/// One connection.
#[derive(Debug)]
pub struct Front {
    state: State,
    /// Bytes not consumed yet: a head (or a pipelined one).
    buffer: Vec<u8>,
    /// How far `buffer` was searched for the end of the head.
    searched: usize,
    requests: u32,
    /// The client has sent its last byte.
    ended: bool,
}

#[derive(Debug)]
enum State {
    /// Waits for a request's first byte or, at `buffer` not empty, for the end of its head.
    Head { deadline_ms: u64, begun: bool },
    /// Has the head, collects the body.
    Body { deadline_ms: u64, request: Request, need: usize, ask: bool },
    /// A request is out.
    Busy { keep_alive: bool },
    /// Nothing more comes: refused, upgraded or closed.
    Over,
}

impl Front {
    /// A connection accepted at `now_ms`.
    #[must_use]
    pub fn new(now_ms: u64, limits: &FrontLimits) -> Self {
        let deadline_ms = now_ms.saturating_add(limits.head_timeout_ms);
        Self {
            state: State::Head { deadline_ms, begun: false },
            buffer: Vec::new(),
            searched: 0,
            requests: 0,
            ended: false,
        }
    }

    /// More bytes of the client; call [`Self::poll`] behind it. Takes no more than is wanted and
    /// returns how many it took.
    pub fn push(&mut self, bytes: &[u8], limits: &FrontLimits) -> usize {
        match &mut self.state {
            State::Body { request, need, .. } => {
                let taken = bytes.len().min(need.saturating_sub(request.body.len()));
                request.body.extend_from_slice(bytes.get(..taken).unwrap_or_default());
                taken
            }
            State::Head { .. } | State::Busy { .. } => {
                let room = (limits.head_bytes_max + 1).saturating_sub(self.buffer.len());
                let taken = bytes.len().min(room);
                self.buffer.extend_from_slice(bytes.get(..taken).unwrap_or_default());
                taken
            }
            State::Over => bytes.len(),
        }
    }

    /// The client has sent its last byte.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether more bytes are of use now.
    #[must_use]
    pub fn wants_read(&self, limits: &FrontLimits) -> bool {
        match &self.state {
            State::Head { .. } | State::Busy { .. } => self.buffer.len() <= limits.head_bytes_max,
            State::Body { request, need, .. } => request.body.len() < *need,
            State::Over => false,
        }
    }

    /// Body bytes this connection may still grow to: what the loop counts against its budget.
    #[must_use]
    pub fn claimed(&self) -> usize {
        match &self.state {
            State::Body { need, .. } => *need,
            State::Head { .. } | State::Busy { .. } | State::Over => 0,
        }
    }

    /// When [`Self::poll`] must be called even if no byte comes.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        match &self.state {
            State::Head { deadline_ms, .. } | State::Body { deadline_ms, .. } => Some(*deadline_ms),
            State::Busy { .. } | State::Over => None,
        }
    }

    /// The next event, or `None` until bytes or time come. `body_room` is what the loop can still
    /// keep of bodies in all; a body over it is refused with 503.
    pub fn poll(
        &mut self,
        now_ms: u64,
        limits: &FrontLimits,
        policy: &HostPolicy,
        body_room: usize,
    ) -> Option<Event> {
        match &mut self.state {
            State::Head { begun, deadline_ms } => {
                if !*begun && !self.buffer.is_empty() {
                    *begun = true;
                    if 0 < self.requests {
                        *deadline_ms = now_ms.saturating_add(limits.head_timeout_ms);
                    }
                }
                let late = *deadline_ms <= now_ms;
                let event = self.head(now_ms, limits, policy, body_room);
                if event.is_some() || !matches!(self.state, State::Head { .. }) {
                    return event.or_else(|| self.body(now_ms));
                }
                self.unfinished_head(late)
            }
            State::Body { .. } => self.body(now_ms),
            State::Busy { .. } | State::Over => None,
        }
    }

    /// The answer to the request that was out is on its way.
    pub fn answered(&mut self, now_ms: u64, limits: &FrontLimits) -> Next {
        let State::Busy { keep_alive: true } = self.state else {
            self.state = State::Over;
            return Next::Close;
        };
        let deadline_ms = now_ms.saturating_add(limits.idle_timeout_ms);
        self.state = State::Head { deadline_ms, begun: false };
        Next::Poll
    }

    fn unfinished_head(&mut self, late: bool) -> Option<Event> {
        if self.ended || (late && self.buffer.is_empty()) {
            self.state = State::Over;
            return Some(Event::Close);
        }
        if late {
            return Some(self.refuse(408, "the request's head did not come in time"));
        }
        None
    }

    fn head(
        &mut self,
        now_ms: u64,
        limits: &FrontLimits,
        policy: &HostPolicy,
        body_room: usize,
    ) -> Option<Event> {
        // An empty line before a request line is allowed (RFC 9112, 2.2).
        while self.searched == 0 && self.buffer.starts_with(b"\r\n") {
            self.buffer.drain(..2);
        }
        let end = self.head_end();
        let letter = |first: &u8| first.is_ascii_uppercase() || *first == b'\r';
        if end.is_none() && !self.buffer.first().is_none_or(letter) {
            return Some(self.refuse(400, "this is not HTTP/1.1 (is the client speaking TLS?)"));
        }
        if limits.head_bytes_max < end.unwrap_or(self.buffer.len()) {
            let why = format!("the head is over {} bytes", limits.head_bytes_max);
            return Some(self.refuse(431, &why));
        }
        let end = end?;
        let rest = self.buffer.split_off(end);
        let bytes = std::mem::replace(&mut self.buffer, rest);
        self.searched = 0;
        self.requests += 1;
        let last = limits.requests_max <= self.requests;
        match head::parse(&bytes, limits, policy) {
            Err(refusal) => {
                self.state = State::Over;
                Some(Event::Refused(refusal))
            }
            Ok(Head::Upgrade { key }) => {
                self.state = State::Over;
                Some(Event::Upgrade { key, rest: std::mem::take(&mut self.buffer) })
            }
            Ok(Head::Request { mut request, need, ask }) => {
                request.keep_alive &= !last;
                if body_room < need {
                    return Some(self.refuse(503, "too many large requests at once: try later"));
                }
                let taken = need.min(self.buffer.len());
                request.body.extend(self.buffer.drain(..taken));
                let deadline_ms = now_ms.saturating_add(limits.body_timeout_ms);
                self.state = State::Body { deadline_ms, request, need, ask };
                None
            }
        }
    }

    fn body(&mut self, now_ms: u64) -> Option<Event> {
        let State::Body { deadline_ms, request, need, ask } = &mut self.state else { return None };
        if request.body.len() == *need {
            let keep_alive = request.keep_alive;
            let state = std::mem::replace(&mut self.state, State::Busy { keep_alive });
            let State::Body { request, .. } = state else { return None };
            return Some(Event::Request(request));
        }
        if self.ended {
            self.state = State::Over;
            return Some(Event::Close);
        }
        if *deadline_ms <= now_ms {
            return Some(self.refuse(408, "the request's body did not come in time"));
        }
        if std::mem::take(ask) && request.body.is_empty() {
            return Some(Event::Continue);
        }
        None
    }

    fn head_end(&mut self) -> Option<usize> {
        let from = self.searched.saturating_sub(3);
        let found = self.buffer.get(from..)?.windows(4).position(|four| four == b"\r\n\r\n");
        self.searched = self.buffer.len();
        found.map(|at| from + at + 4)
    }

    fn refuse(&mut self, status: u16, why: &str) -> Event {
        self.state = State::Over;
        Event::Refused(Refusal { status, why: why.to_owned() })
    }
}

/// What follows an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// The connection goes on: poll again, a request may wait already.
    Poll,
    /// Close when the answer is out.
    Close,
}

impl Method {
    /// As it stands in a request line.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
        }
    }
}

/// The most headers that can be configured: the parser's array on the stack.
pub const HEADERS_MAX: usize = 64;

#[cfg(test)]
mod tests;
