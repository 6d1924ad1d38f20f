//! One client's connection in the loop: its transport, where it is, and what is not sent yet.

use std::io::{self, ErrorKind};
use tungstenite::Utf8Bytes;

use crate::front::{Front, FrontLimits};
use crate::out::Out;
use crate::transport::Transport;
use crate::web_socket::{Socket, State};

/// A connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) transport: Transport,
    pub(crate) front: Front,
    pub(crate) phase: Phase,
    pub(crate) out: Out,
    /// Bytes read that the front did not take yet.
    pending: Vec<u8>,
    /// Texts of the WebSocket not handled yet.
    pub(crate) texts: Vec<Utf8Bytes>,
    /// When a worker's answer is overdue.
    pub(crate) answer_due_ms: Option<u64>,
    /// When the client last took bytes, while there were some to take.
    moved_ms: u64,
    /// When the client last said something.
    pub(crate) heard_ms: u64,
    pub(crate) pinged_ms: u64,
    end: End,
    /// The client has closed its half.
    ended: bool,
}

/// What the connection is.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Requests and answers.
    Http,
    /// The live stream.
    WebSocket(Box<Socket>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It goes on.
    Open,
    /// Send what is there, then close our half and wait for the client's, but not for long: closing
    /// at once would make the kernel reset the connection and the client lose the answer.
    Finishing {
        until_ms: u64,
    },
    Linger {
        until_ms: u64,
    },
    Over,
}

impl Client {
    pub(crate) fn new(transport: Transport, now_ms: u64, limits: &FrontLimits) -> Self {
        Self {
            transport,
            front: Front::new(now_ms, limits),
            phase: Phase::Http,
            out: Out::default(),
            pending: Vec::new(),
            texts: Vec::new(),
            answer_due_ms: None,
            moved_ms: now_ms,
            heard_ms: now_ms,
            pinged_ms: 0,
            end: End::Open,
            ended: false,
        }
    }

    pub(crate) fn is_web_socket(&self) -> bool {
        matches!(self.phase, Phase::WebSocket(_))
    }

    pub(crate) fn unsent(&self) -> usize {
        self.out.unsent()
    }

    /// No more is wanted of it: send what is there, then close.
    pub(crate) fn finish(&mut self, now_ms: u64) {
        if self.end == End::Open {
            self.end = End::Finishing { until_ms: now_ms + LINGER_MS };
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.end == End::Over
    }

    /// It closed its half: as servers do, we take it that it waits for no answer.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// It does not read what it asked for, or does not close after we did.
    pub(crate) fn is_stalled(&self, now_ms: u64) -> bool {
        let stuck = 0 < self.unsent() && self.moved_ms + STALL_MS <= now_ms;
        stuck || matches!(self.end, End::Linger { until_ms } if until_ms <= now_ms)
    }

    /// Sends what the socket takes; whether anything moved.
    pub(crate) fn flush(&mut self, now_ms: u64) -> io::Result<bool> {
        let mut moved = false;
        while 0 < self.out.unsent() {
            match self.transport.write(self.out.next()) {
                Ok(sent) => {
                    self.out.advance(sent);
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if moved || self.unsent() == 0 {
            self.moved_ms = now_ms;
        }
        if self.unsent() == 0 {
            if let End::Finishing { until_ms } = self.end
                && self.transport.is_flushed()?
            {
                self.transport.shutdown();
                let until_ms = until_ms.max(now_ms + LINGER_MS);
                self.end = if self.ended { End::Over } else { End::Linger { until_ms } };
            } else {
                self.transport.is_flushed()?;
            }
        }
        Ok(moved)
    }

    /// Reads what is wanted; whether anything came.
    pub(crate) fn pull(
        &mut self,
        now_ms: u64,
        limits: &FrontLimits,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let mut came = false;
        if !self.pending.is_empty() && !self.is_web_socket() {
            let taken = self.front.push(&self.pending, limits);
            self.pending.drain(..taken);
            came |= 0 < taken;
        }
        while self.wants_read(limits) {
            let length = match self.transport.read(buffer) {
                Ok(0) => {
                    self.ended();
                    return Ok(true);
                }
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(came),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            came = true;
            self.heard_ms = now_ms;
            let bytes = &buffer[..length];
            if self.end != End::Open {
                continue; // Thrown away until the client closes.
            }
            match &mut self.phase {
                Phase::Http => {
                    let taken = self.front.push(bytes, limits);
                    self.pending.extend_from_slice(&bytes[taken..]);
                }
                Phase::WebSocket(socket) => {
                    let state = socket.push(bytes, &mut self.texts);
                    socket.take(self.out.tail());
                    if state == State::Closing {
                        self.finish(now_ms);
                    }
                }
            }
            // One buffer a turn: the front must look at it before more is read.
            return Ok(true);
        }
        Ok(came)
    }

    fn wants_read(&self, limits: &FrontLimits) -> bool {
        if self.ended {
            return false;
        }
        match (&self.end, &self.phase) {
            (End::Over, _) => false,
            (End::Finishing { .. } | End::Linger { .. }, _) => true,
            (End::Open, Phase::Http) => self.pending.is_empty() && self.front.wants_read(limits),
            // A client that asks without reading the answers is not read from.
            (End::Open, Phase::WebSocket(_)) => {
                self.unsent() < PAUSE_BYTES && self.texts.is_empty()
            }
        }
    }

    /// The client closed its half. An answer on its way is still wanted, a further request not.
    fn ended(&mut self) {
        self.ended = true;
        self.front.end();
        let http = matches!(self.phase, Phase::Http);
        let wanted = http && (self.answer_due_ms.is_some() || 0 < self.unsent());
        self.end = match self.end {
            End::Linger { .. } | End::Over => End::Over,
            End::Open if !wanted => End::Over,
            End::Open if self.answer_due_ms.is_none() => {
                End::Finishing { until_ms: self.moved_ms + LINGER_MS }
            }
            other => other,
        };
    }
}

const STALL_MS: u64 = 30_000;
const LINGER_MS: u64 = 2_000;
/// Unsent bytes over which a WebSocket's client is not read from.
const PAUSE_BYTES: usize = 1 << 20;
