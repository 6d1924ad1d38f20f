//! A connection's streams: opened, written, read, ended.

use super::{CODE_RESET, ConnId, Link, RECV_BYTES, Received, StreamError, StreamId};
use crate::message::Reader;
use bytes::Bytes;
use quinn_proto::{Dir, ReadError, VarInt, WriteError};

impl Link {
    /// Opens a bidirectional stream; `None` while the peer allows no more, or it is over. The
    /// peer learns of it with the first `send`.
    pub fn open(&mut self, conn: ConnId) -> Option<StreamId> {
        self.slot(conn)?.quic.streams().open(Dir::Bi)
    }

    /// What is sent on the stream goes when the others of its connection have nothing to send.
    pub fn yield_to_others(&mut self, conn: ConnId, stream: StreamId) {
        if let Some(slot) = self.slot(conn) {
            // It fails when the stream is over, and then it is no matter.
            let _ = slot.quic.send_stream(stream).set_priority(-1);
        }
    }

    /// Gives the stream as much of `chunks` as it takes, in order, and returns how many bytes that
    /// was; taken chunks are left empty, one taken in part is advanced. Less than all: wait for
    /// `Event::Writable`.
    ///
    /// # Errors
    /// The stream or its connection is over.
    pub fn send(
        &mut self,
        conn: ConnId,
        stream: StreamId,
        chunks: &mut [Bytes],
    ) -> Result<usize, StreamError> {
        let slot = self.slot(conn).ok_or(StreamError::Gone)?;
        let mut taken = 0;
        // Until all is taken or it blocks: only who was blocked is told of room.
        loop {
            match slot.quic.send_stream(stream).write_chunks(chunks) {
                Ok(written) => taken += written.bytes,
                Err(WriteError::Blocked) => break,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                    return Err(StreamError::Closed);
                }
            }
            if chunks.iter().all(Bytes::is_empty) {
                break;
            }
        }
        slot.patience.spoken = true;
        self.enqueue(conn.index);
        Ok(taken)
    }

    /// Moves what has come into `reader`, at most [`RECV_BYTES`] at once.
    ///
    /// # Errors
    /// The stream was reset, or its connection is over.
    pub fn recv(
        &mut self,
        conn: ConnId,
        stream: StreamId,
        reader: &mut Reader,
    ) -> Result<Received, StreamError> {
        let slot = self.slot(conn).ok_or(StreamError::Gone)?;
        let mut from = slot.quic.recv_stream(stream);
        let mut chunks = from.read(true).map_err(|_| StreamError::Closed)?;
        let mut room = RECV_BYTES;
        let outcome = loop {
            if room == 0 {
                break Ok(Received::More);
            }
            match chunks.next(room) {
                Ok(Some(chunk)) => {
                    room = room.saturating_sub(chunk.bytes.len());
                    reader.push(&chunk.bytes);
                }
                Ok(None) => break Ok(Received::Finished),
                Err(ReadError::Blocked) => break Ok(Received::Blocked),
                Err(ReadError::Reset(_)) => break Err(StreamError::Closed),
            }
        };
        if chunks.finalize().should_transmit() {
            self.enqueue(conn.index);
        }
        outcome
    }

    /// What is sent on this stream goes before what waits on others of the connection.
    pub fn prefer(&mut self, conn: ConnId, stream: StreamId) {
        if let Some(slot) = self.slot(conn) {
            // It fails when the stream is over, and then nothing is sent on it.
            let _ = slot.quic.send_stream(stream).set_priority(PREFERRED);
        }
    }

    /// Says that nothing will follow on the stream; what was sent still arrives.
    pub fn finish(&mut self, conn: ConnId, stream: StreamId) {
        if let Some(slot) = self.slot(conn) {
            // It fails when the stream is over already, which is what was wanted.
            let _ = slot.quic.send_stream(stream).finish();
            self.enqueue(conn.index);
        }
    }

    /// Gives the stream up in both directions; what was not delivered is dropped.
    pub fn reset(&mut self, conn: ConnId, stream: StreamId) {
        if let Some(slot) = self.slot(conn) {
            // Both fail only when that direction is over already.
            let _ = slot.quic.send_stream(stream).reset(VarInt::from_u32(CODE_RESET));
            let _ = slot.quic.recv_stream(stream).stop(VarInt::from_u32(CODE_RESET));
            self.enqueue(conn.index);
        }
    }
}

/// Others have 0.
const PREFERRED: i32 = 1;
