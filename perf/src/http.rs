//! Just enough of an HTTP client for loopback: one connection, one request after the other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// A connection to a port of this host, kept open.
#[derive(Debug)]
pub struct Http {
    stream: BufReader<TcpStream>,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// `GET` or `POST`.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// More head lines, each with its line end.
    pub head: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// A status and a body.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Http {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks, and reads the answer to its end.
    ///
    /// # Errors
    /// The connection broke, or what came is no HTTP.
    pub fn ask(&mut self, ask: &Ask<'_>) -> io::Result<Answer> {
        let Ask { method, path, head, body } = ask;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{head}\r\n"
        );
        let to = self.stream.get_mut();
        to.write_all(&[head.as_bytes(), body].concat())?;
        self.answer()
    }

    /// As [`Self::ask`]; another status than 2xx is an error.
    ///
    /// # Errors
    /// See above.
    pub fn must(&mut self, ask: &Ask<'_>) -> io::Result<Vec<u8>> {
        let answer = self.ask(ask)?;
        if answer.status / 100 == 2 {
            return Ok(answer.body);
        }
        let said = String::from_utf8_lossy(&answer.body);
        Err(io::Error::other(format!("{} {}: {}: {said}", ask.method, ask.path, answer.status)))
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let bad = |what: &str| io::Error::other(format!("an answer without {what}"));
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| bad("a status"))?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                None => break,
                Some(("content-length", value)) => {
                    length = value.trim().parse().map_err(|_| bad("a length"))?;
                }
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(_) => {}
            }
        }
        let mut body = Vec::new();
        if !chunked {
            body.resize(length, 0);
            self.stream.read_exact(&mut body)?;
            return Ok(Answer { status, body });
        }
        loop {
            let size = usize::from_str_radix(&self.line()?, 16).map_err(|_| bad("a chunk"))?;
            let start = body.len();
            body.resize(start + size, 0);
            self.stream.read_exact(&mut body[start..])?;
            self.line()?;
            if size == 0 {
                return Ok(Answer { status, body });
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

const PATIENCE: Duration = Duration::from_secs(120);
