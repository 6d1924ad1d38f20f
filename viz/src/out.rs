//! What a connection still has to send: bytes of its own, and frames shared with other connections.
//!
//! A text for a hundred dashboards is framed once and queued a hundred times without a copy.

use bytes::Bytes;
use std::collections::VecDeque;

/// A queue of bytes in order.
#[derive(Debug, Default)]
pub(crate) struct Out {
    /// Sent first.
    queue: VecDeque<Bytes>,
    queued: usize,
    /// Own bytes behind the queue.
    tail: Vec<u8>,
    /// How much of the first piece is sent.
    sent: usize,
}

impl Out {
    /// Where own bytes are put.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Puts shared bytes behind all others.
    pub(crate) fn share(&mut self, bytes: Bytes) {
        if !self.tail.is_empty() {
            let own = Bytes::from(std::mem::take(&mut self.tail));
            self.queued += own.len();
            self.queue.push_back(own);
        }
        self.queued += bytes.len();
        self.queue.push_back(bytes);
    }

    /// Bytes that are not sent yet.
    pub(crate) fn unsent(&self) -> usize {
        self.queued + self.tail.len() - self.sent
    }

    /// The next bytes to send; empty if there are none.
    pub(crate) fn next(&self) -> &[u8] {
        let first = self.queue.front().map_or(&self.tail[..], |bytes| &bytes[..]);
        &first[self.sent..]
    }

    /// So many of them went out.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent += count;
        if let Some(first) = self.queue.front() {
            if first.len() == self.sent {
                self.queued -= self.sent;
                self.sent = 0;
                self.queue.pop_front();
            }
        } else if self.sent == self.tail.len() {
            self.tail.clear();
            self.tail.shrink_to(KEPT_BYTES);
            self.sent = 0;
        } else if KEPT_BYTES < self.sent {
            self.tail.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// Memory a quiet connection keeps for its output.
const KEPT_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_out_in_order_whatever_the_socket_takes() {
        for step in 1..40 {
            let mut out = Out::default();
            out.tail().extend_from_slice(b"own ");
            out.share(Bytes::from_static(b"shared "));
            out.share(Bytes::from_static(b"twice "));
            out.tail().extend_from_slice(b"last");
            assert_eq!(out.unsent(), 21);
            let mut sent = Vec::new();
            while !out.next().is_empty() {
                let taken = out.next().len().min(step);
                sent.extend_from_slice(&out.next()[..taken]);
                out.advance(taken);
                assert_eq!(out.unsent(), 21 - sent.len());
            }
            assert_eq!(sent, b"own shared twice last");
        }
    }
}
