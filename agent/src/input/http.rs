//! As much of HTTP/1.1 as a scrape and a remote-write need: one answer read, one request read, each
//! within bounds, from bytes as they come.

/// An answer, or a request, as far as it has come.
#[derive(Debug)]
pub(crate) struct Message {
    /// Bytes that are not understood yet: the head, or the line before a chunk.
    held: Vec<u8>,
    state: State,
    body: Vec<u8>,
    body_max: usize,
    /// The first line.
    pub(crate) line: String,
    pub(crate) content_type: String,
    pub(crate) content_encoding: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Head,
    /// So many bytes of the body are missing.
    Sized(usize),
    /// The line with the next chunk's size.
    ChunkSize,
    /// So many bytes of this chunk, and the line's end behind it.
    Chunk(usize),
    /// Lines up to an empty one.
    Trailer,
    /// All up to the end of the connection.
    UntilClosed,
    Done,
}

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum From {
    Server,
    Client,
}

/// Why it is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("the head is no HTTP/1.1, or longer than 16 KiB")]
    Head,
    #[error("the body is larger than allowed")]
    Large,
    #[error("a chunk is none")]
    Chunk,
    #[error("a request needs a Content-Length")]
    Length,
    #[error("the connection ended in the middle")]
    Torn,
}

impl Message {
    pub(crate) fn new(body_max: usize) -> Self {
        Self {
            held: Vec::new(),
            state: State::Head,
            body: Vec::new(),
            body_max,
            line: String::new(),
            content_type: String::new(),
            content_encoding: String::new(),
        }
    }

    /// Takes bytes; whether the message is whole.
    pub(crate) fn feed(&mut self, from: From, mut bytes: &[u8]) -> Result<bool, HttpError> {
        while !bytes.is_empty() && self.state != State::Done {
            bytes = match self.state {
                State::Head => self.head(from, bytes)?,
                State::ChunkSize | State::Trailer => self.line(bytes)?,
                State::Sized(left) => {
                    let rest = self.take(left, bytes)?;
                    let left = left - (bytes.len() - rest.len());
                    self.state = if left == 0 { State::Done } else { State::Sized(left) };
                    rest
                }
                State::Chunk(left) => {
                    let rest = self.take(left, bytes)?;
                    let left = left - (bytes.len() - rest.len());
                    // The line's end behind a chunk is an empty line before the next size.
                    self.state = if left == 0 { State::ChunkSize } else { State::Chunk(left) };
                    rest
                }
                State::UntilClosed => self.take(bytes.len(), bytes)?,
                State::Done => &[],
            };
        }
        Ok(self.state == State::Done)
    }

    /// The connection has ended; whether the message was whole.
    pub(crate) fn close(&self) -> Result<(), HttpError> {
        match self.state {
            State::Done | State::UntilClosed => Ok(()),
            _ => Err(HttpError::Torn),
        }
    }

    /// The status of an answer.
    pub(crate) fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// The body, once it is whole.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    fn head<'b>(&mut self, from: From, bytes: &'b [u8]) -> Result<&'b [u8], HttpError> {
        let before = self.held.len();
        self.held
            .extend_from_slice(bytes.get(..bytes.len().min(HEAD_BYTES_MAX + 1)).unwrap_or(&[]));
        let start = before.saturating_sub(3);
        let end = self.held.windows(4).skip(start).position(|part| part == b"\r\n\r\n");
        let Some(end) = end.map(|end| end + start) else {
            return if HEAD_BYTES_MAX < self.held.len() { Err(HttpError::Head) } else { Ok(&[]) };
        };
        let rest = bytes.get((end + 4).saturating_sub(before)..).unwrap_or(&[]);
        let head = std::mem::take(&mut self.held);
        let head = head.get(..end).unwrap_or(&[]);
        let head = std::str::from_utf8(head).map_err(|_| HttpError::Head)?;
        self.state = self.headers(from, head)?;
        Ok(rest)
    }

    fn headers(&mut self, from: From, head: &str) -> Result<State, HttpError> {
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default();
        let is = match from {
            From::Server => line.starts_with("HTTP/1.") && line.split(' ').nth(1).is_some(),
            From::Client => line.ends_with(" HTTP/1.1") || line.ends_with(" HTTP/1.0"),
        };
        if !is {
            return Err(HttpError::Head);
        }
        line.clone_into(&mut self.line);
        let (mut length, mut chunked) = (None, false);
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { return Err(HttpError::Head) };
            let value = value.trim_ascii();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = Some(value.parse().map_err(|_| HttpError::Head)?),
                "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
                "content-type" => value.clone_into(&mut self.content_type),
                "content-encoding" => self.content_encoding = value.to_ascii_lowercase(),
                _ => {}
            }
        }
        match length {
            _ if chunked && from == From::Server => Ok(State::ChunkSize),
            Some(length) if self.body_max < length => Err(HttpError::Large),
            Some(0) => Ok(State::Done),
            Some(length) => Ok(State::Sized(length)),
            None if from == From::Server => Ok(State::UntilClosed),
            None => Err(HttpError::Length),
        }
    }

    /// A line of the chunks' frame.
    fn line<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], HttpError> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (line, rest) = match end {
            Some(end) => (bytes.get(..end).unwrap_or(&[]), bytes.get(end + 1..).unwrap_or(&[])),
            None => (bytes, &[][..]),
        };
        if CHUNK_LINE_BYTES_MAX < self.held.len() + line.len() {
            return Err(HttpError::Chunk);
        }
        self.held.extend_from_slice(line);
        if end.is_none() {
            return Ok(rest);
        }
        let held = std::mem::take(&mut self.held);
        let line = held.trim_ascii();
        if self.state == State::Trailer {
            if line.is_empty() {
                self.state = State::Done;
            }
            return Ok(rest);
        }
        if line.is_empty() {
            return if self.body.is_empty() { Err(HttpError::Chunk) } else { Ok(rest) };
        }
        let digits = line.split(|byte| *byte == b';').next().unwrap_or(&[]).trim_ascii();
        let digits = std::str::from_utf8(digits).map_err(|_| HttpError::Chunk)?;
        let size = usize::from_str_radix(digits, 16).map_err(|_| HttpError::Chunk)?;
        self.state = if size == 0 { State::Trailer } else { State::Chunk(size) };
        Ok(rest)
    }

    fn take<'b>(&mut self, most: usize, bytes: &'b [u8]) -> Result<&'b [u8], HttpError> {
        let (ours, rest) = bytes.split_at_checked(most).unwrap_or((bytes, &[]));
        if self.body_max < self.body.len() + ours.len() {
            return Err(HttpError::Large);
        }
        self.body.extend_from_slice(ours);
        Ok(rest)
    }
}

const HEAD_BYTES_MAX: usize = 16 << 10;
const CHUNK_LINE_BYTES_MAX: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// The same in every way of cutting it.
    fn read(from: From, text: &str) -> Result<(u16, String), HttpError> {
        let all = |step: usize| {
            let mut message = Message::new(20);
            for bytes in text.as_bytes().chunks(step) {
                if message.feed(from, bytes)? {
                    break;
                }
            }
            message.close()?;
            Ok((message.status(), String::from_utf8(message.body().to_vec()).unwrap()))
        };
        let whole = all(text.len());
        for step in 1..text.len() {
            assert_eq!(all(step), whole, "in pieces of {step}: {text}");
        }
        whole
    }

    #[test]
    fn answers_of_every_kind() {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n";
        for (rest, wanted) in [
            ("Content-Length: 3\r\n\r\nabc", Ok("abc")),
            ("content-length: 0\r\n\r\n", Ok("")),
            ("\r\nabc", Ok("abc")),
            (
                "Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n3\r\ncde\r\n0\r\nT: v\r\n\r\n",
                Ok("abcde"),
            ),
            ("Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", Err(HttpError::Torn)),
            ("Transfer-Encoding: chunked\r\n\r\nxy\r\n", Err(HttpError::Chunk)),
            (
                "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n123456789012345678901",
                Err(HttpError::Large),
            ),
            ("Content-Length: 4\r\n\r\nabc", Err(HttpError::Torn)),
            ("Content-Length: 21\r\n\r\n", Err(HttpError::Large)),
            ("\r\n123456789012345678901", Err(HttpError::Large)),
            ("Content-Length: x\r\n\r\n", Err(HttpError::Head)),
        ] {
            let found = read(From::Server, &format!("{head}{rest}"));
            assert_eq!(found, wanted.map(|body| (200, body.to_owned())), "{rest}");
        }
        assert_eq!(read(From::Server, "SSH-2.0-x\r\n\r\n"), Err(HttpError::Head));
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(20_000));
        assert_eq!(Message::new(1).feed(From::Server, long.as_bytes()), Err(HttpError::Head));
    }

    #[test]
    fn requests_say_how_long_they_are() {
        let of = |head: &str| read(From::Client, head).map(|(_, body)| body);
        assert_eq!(of("POST /w HTTP/1.1\r\nContent-Length: 2\r\n\r\nab").as_deref(), Ok("ab"));
        assert_eq!(of("POST /w HTTP/1.1\r\n\r\n"), Err(HttpError::Length));
        assert_eq!(of("POST /w\r\n\r\n"), Err(HttpError::Head));
    }
}
