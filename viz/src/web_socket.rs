//! A WebSocket over in-memory buffers: the loop moves the bytes, tungstenite speaks the protocol.

use std::io::{self, ErrorKind, Read, Write};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Bytes, Error, Message, Utf8Bytes, WebSocket};

use crate::live::REQUEST_BYTES_MAX;

/// One browser's.
#[derive(Debug)]
pub struct Socket {
    inner: WebSocket<Pipe>,
    state: State,
}

/// Whether the two still talk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// They do.
    Open,
    /// Send what is left, then close.
    Closing,
}

#[derive(Debug, Default)]
struct Pipe {
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

impl Socket {
    /// After the 101; `rest` came behind the handshake.
    #[must_use]
    pub fn new(rest: Vec<u8>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(REQUEST_BYTES_MAX))
            .max_frame_size(Some(REQUEST_BYTES_MAX));
        let pipe = Pipe::default();
        let inner = WebSocket::from_partially_read(pipe, rest, Role::Server, Some(config));
        Self { inner, state: State::Open }
    }

    /// Bytes of the client; its texts are put behind `texts`.
    pub fn push(&mut self, bytes: &[u8], texts: &mut Vec<Utf8Bytes>) -> State {
        self.inner.get_mut().inbox.extend_from_slice(bytes);
        while self.state == State::Open {
            match self.inner.read() {
                Ok(Message::Text(text)) => texts.push(text),
                Ok(Message::Binary(_)) => {
                    self.close_for(CloseCode::Unsupported, "texts are spoken here");
                }
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    log::debug!("a WebSocket ended: {error}");
                    let code = match error {
                        Error::Capacity(_) => CloseCode::Size,
                        Error::Utf8(_) => CloseCode::Invalid,
                        _ => CloseCode::Protocol,
                    };
                    self.close_for(code, &error.to_string());
                }
            }
        }
        self.flush();
        self.state
    }

    /// Whether a text may be sent: [`text_frame`]'s bytes, behind what [`Self::take`] gave.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Asks whether the client is still there.
    pub fn ping(&mut self) {
        self.send(Message::Ping(Bytes::new()));
    }

    /// Says goodbye.
    pub fn close(&mut self) {
        self.close_for(CloseCode::Away, "nothing was heard");
    }

    fn close_for(&mut self, code: CloseCode, why: &str) {
        self.state = State::Closing;
        // A control frame holds 125 bytes, two of them the code (RFC 6455, 5.5).
        let why = why.chars().take(60).filter(char::is_ascii).collect::<String>().into();
        if let Err(error) = self.inner.close(Some(CloseFrame { code, reason: why })) {
            log::trace!("closing a WebSocket: {error}");
        }
        self.flush();
    }

    /// Moves what is to be sent behind `out`.
    pub fn take(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.inner.get_mut().outbox);
    }

    fn send(&mut self, message: Message) {
        if self.state == State::Open && self.inner.send(message).is_err() {
            self.state = State::Closing;
        }
    }

    fn flush(&mut self) {
        if self.inner.flush().is_err() {
            self.state = State::Closing;
        }
    }
}

/// A server's text as it goes over the wire: one for all who get it, for it is not masked
/// (RFC 6455, 5.1).
#[must_use]
pub fn text_frame(text: &str) -> Bytes {
    let mut frame = Vec::with_capacity(text.len() + 10);
    frame.push(0x81); // The last fragment (and the first) of a text.
    match (u16::try_from(text.len()), u64::try_from(text.len())) {
        (Ok(length @ 0..126), _) => frame.push(length.to_le_bytes()[0]),
        (Ok(length), _) => {
            frame.push(126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        (Err(_), length) => {
            frame.push(127);
            frame.extend_from_slice(&length.unwrap_or(u64::MAX).to_be_bytes());
        }
    }
    frame.extend_from_slice(text.as_bytes());
    frame.into()
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.inbox.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let taken = self.inbox.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.inbox[..taken]);
        self.inbox.drain(..taken);
        Ok(taken)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outbox.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const READ_BUFFER_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame =
            vec![0x80 | opcode, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        frame
    }

    fn fate(bytes: &[u8]) -> (State, usize, Vec<u8>) {
        let mut socket = Socket::new(Vec::new());
        let mut texts = Vec::new();
        let state = socket.push(bytes, &mut texts);
        let mut out = Vec::new();
        socket.take(&mut out);
        (state, texts.len(), out)
    }

    #[test]
    fn good_frames_are_read_and_bad_ones_end_it() {
        assert_eq!(fate(&masked(1, b"hello")), (State::Open, 1, vec![]));
        assert_eq!(fate(&masked(9, b"p")), (State::Open, 0, vec![0x8a, 1, b'p']));
        // With the code of the goodbye (RFC 6455, 7.4.1).
        let bad: &[(&[u8], u16)] = &[
            (&masked(2, b"binary"), 1003),
            (&masked(3, b"reserved opcode"), 1002),
            (&masked(1, b"\xff\xfe"), 1007),
            (b"\x81\x05hello", 1002),    // not masked
            (b"\xf1\x80\0\0\0\0", 1002), // reserved bits
            (b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1009), // 2^64 - 1 bytes
            (b"\x81\xff\0\0\0\0\x10\0\0\0\0\0\0\0", 1009), // 256 MiB
        ];
        for (bytes, code) in bad {
            let (state, texts, out) = fate(bytes);
            assert_eq!((state, texts), (State::Closing, 0), "{bytes:?}");
            assert_eq!((out[0], &out[2..4]), (0x88, &code.to_be_bytes()[..]), "{bytes:?}");
        }
        assert_eq!(fate(&masked(8, b"")), (State::Closing, 0, vec![0x88, 0]));
    }

    /// tungstenite's client reads what we frame ourselves, at each form of the length.
    #[test]
    fn our_frames_are_read_by_the_other_side() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 200_000] {
            let text = "x".repeat(length);
            let mut pipe = Pipe::default();
            pipe.inbox.extend_from_slice(&text_frame(&text));
            pipe.inbox.extend_from_slice(&text_frame("next"));
            let mut client = WebSocket::from_raw_socket(pipe, Role::Client, None);
            assert_eq!(client.read().unwrap(), Message::text(text), "{length}");
            assert_eq!(client.read().unwrap(), Message::text("next"), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..9)) {
            let mut socket = Socket::new(Vec::new());
            for part in &parts {
                socket.push(part, &mut Vec::new());
                socket.ping();
            }
            prop_assert!(socket.inner.get_ref().inbox.len() <= 80 * 9);
        }
    }
}
