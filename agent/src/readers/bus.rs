//! A client of the system's message bus, as much of it as asking for values takes: method calls with strings
//! as arguments, and their replies (D-Bus Specification 0.42, "Message Protocol", "Authentication
//! Protocol"). Calls are sent in batches and answered in any order; signals are skipped.
//!
//! What a peer sends is read within [`DEADLINE`] and [`MESSAGE_BYTES_MAX`], and [`Body`] gives `None` behind
//! the end of what came.
#![deny(clippy::indexing_slicing)]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection, past its greeting.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
}

/// One method of one object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    /// Its arguments, all of them strings.
    pub(super) strings: &'a [&'a str],
}

/// The arguments of a reply, read from front to back.
#[derive(Clone, Debug)]
pub(super) struct Body {
    bytes: Vec<u8>,
    at: usize,
    is_big: bool,
}

/// A message: what it answers, and whether it is an error.
#[derive(Debug)]
struct Message {
    kind: u8,
    answers: u32,
    body: Body,
}

impl Bus {
    /// Connects as the user that asks, and says hello.
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        // The credentials travel with the first byte; the name is the number's digits, as hex.
        let user = nix::unistd::geteuid().to_string();
        let user: String = user.bytes().map(|digit| format!("{digit:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let mut said = Vec::new();
        while !said.ends_with(b"\r\n") && said.len() < LINE_BYTES_MAX {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            said.extend(byte);
        }
        if !said.starts_with(b"OK") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        stream.write_all(b"BEGIN\r\n")?;
        let mut bus = Self { stream, serial: 0 };
        let (path, member) = ("/org/freedesktop/DBus", "Hello");
        let name = "org.freedesktop.DBus";
        bus.ask(&[Call { destination: name, path, interface: name, member, strings: &[] }])?;
        Ok(bus)
    }

    /// Calls all of them; of each its reply, or `None` where that is an error.
    pub(super) fn ask(&mut self, calls: &[Call<'_>]) -> io::Result<Vec<Option<Body>>> {
        let mut replies = Vec::with_capacity(calls.len());
        for batch in calls.chunks(BATCH) {
            let first = self.serial.wrapping_add(1);
            let mut out = Vec::new();
            for call in batch {
                // 0 is no serial; after four thousand million calls a new connection is due.
                self.serial = self.serial.checked_add(1).ok_or(io::ErrorKind::ConnectionReset)?;
                encode(call, self.serial, &mut out);
            }
            self.stream.write_all(&out)?;
            let from = replies.len();
            replies.resize(from + batch.len(), None);
            let (mut missing, mut others) = (batch.len(), 0);
            while 0 < missing {
                let message = self.receive()?;
                let at = message.answers.checked_sub(first).and_then(|at| usize::try_from(at).ok());
                let place = at.and_then(|at| replies.get_mut(from..)?.get_mut(at));
                match (message.kind, place) {
                    (RETURN, Some(place)) => (*place, missing) = (Some(message.body), missing - 1),
                    (ERROR, Some(_)) => missing -= 1,
                    _ if others == OTHERS_MAX => return Err(io::ErrorKind::InvalidData.into()),
                    _ => others += 1,
                }
            }
        }
        Ok(replies)
    }

    fn receive(&mut self) -> io::Result<Message> {
        let mut bytes = vec![0; HEAD_BYTES];
        self.stream.read_exact(&mut bytes)?;
        let rest = length(&bytes).ok_or(io::ErrorKind::InvalidData)?;
        bytes.resize(HEAD_BYTES + rest, 0);
        self.stream.read_exact(bytes.get_mut(HEAD_BYTES..).unwrap_or(&mut []))?;
        decode(bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// How many bytes follow the first [`HEAD_BYTES`] of a message.
fn length(head: &[u8]) -> Option<usize> {
    let mut head = Body::of(head)?;
    head.at = 4;
    let body = head.number()?;
    head.at = 12;
    let fields = head.number()?;
    let all = usize::try_from(fields).ok()?.checked_next_multiple_of(8)?;
    let all = all.checked_add(usize::try_from(body).ok()?)?;
    (all <= MESSAGE_BYTES_MAX).then_some(all)
}

fn decode(bytes: Vec<u8>) -> Option<Message> {
    let kind = *bytes.get(1)?;
    let mut body = Body::of(&bytes)?;
    body.bytes = bytes;
    body.at = 12;
    let fields = usize::try_from(body.number()?).ok()?;
    let end = HEAD_BYTES.checked_add(fields)?;
    let mut answers = 0;
    while body.at < end {
        body.align(8);
        let code = body.byte()?;
        match &*body.signature()? {
            b"u" => {
                let number = body.number()?;
                if code == REPLY_SERIAL {
                    answers = number;
                }
            }
            b"s" | b"o" => drop(body.text()?),
            b"g" => drop(body.signature()?),
            _ => return None,
        }
    }
    body.bytes.drain(..end.checked_next_multiple_of(8)?.min(body.bytes.len()));
    body.at = 0;
    Some(Message { kind, answers, body })
}

/// A message in little-endian order.
fn encode(call: &Call<'_>, serial: u32, out: &mut Vec<u8>) {
    let begin = out.len();
    let pad = |out: &mut Vec<u8>, to: usize| {
        out.resize(begin + (out.len() - begin).next_multiple_of(to), 0);
    };
    let number = |out: &mut Vec<u8>, number: usize| {
        out.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    };
    let mut body = Vec::new();
    for text in call.strings {
        body.resize(body.len().next_multiple_of(4), 0);
        number(&mut body, text.len());
        body.extend(text.bytes().chain([0]));
    }
    out.extend([b'l', METHOD_CALL, 0, VERSION]);
    number(out, body.len());
    out.extend(serial.to_le_bytes());
    let fields_at = out.len();
    number(out, 0);
    let fields = [
        (PATH, b'o', call.path),
        (INTERFACE, b's', call.interface),
        (MEMBER, b's', call.member),
        (DESTINATION, b's', call.destination),
    ];
    for (code, kind, text) in fields {
        pad(out, 8);
        out.extend([code, 1, kind, 0]);
        number(out, text.len());
        out.extend(text.bytes().chain([0]));
    }
    if !call.strings.is_empty() {
        pad(out, 8);
        let count = u8::try_from(call.strings.len()).unwrap_or(u8::MAX);
        out.extend([SIGNATURE, 1, b'g', 0, count]);
        out.extend(call.strings.iter().map(|_| b's').chain([0]));
    }
    let fields = u32::try_from(out.len() - fields_at - 4).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(fields_at..fields_at + 4) {
        place.copy_from_slice(&fields.to_le_bytes());
    }
    pad(out, 8);
    out.extend(body);
}

impl Body {
    /// Of a message, whose first byte is its order.
    fn of(message: &[u8]) -> Option<Self> {
        let is_big = match message.first()? {
            b'l' => false,
            b'B' => true,
            _ => return None,
        };
        Some(Self { bytes: message.get(..HEAD_BYTES)?.to_vec(), at: 0, is_big })
    }

    pub(super) fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// `u`.
    pub(super) fn number(&mut self) -> Option<u32> {
        self.align(4);
        let is_big = self.is_big;
        let bytes = self.take(4)?.try_into().ok()?;
        Some(if is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// `t`.
    fn long(&mut self) -> Option<u64> {
        self.align(8);
        let is_big = self.is_big;
        let bytes = self.take(8)?.try_into().ok()?;
        Some(if is_big { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
    }

    /// `s` or `o`.
    pub(super) fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    fn signature(&mut self) -> Option<Vec<u8>> {
        let length = usize::from(self.byte()?);
        let text = self.take(length)?.to_vec();
        (self.byte()? == 0).then_some(text)
    }

    /// `v` of `s`.
    pub(super) fn variant_text(&mut self) -> Option<String> {
        if *self.signature()? == *b"s" { self.text() } else { None }
    }

    /// `v` of `u` or `t`.
    pub(super) fn variant_number(&mut self) -> Option<u64> {
        match &*self.signature()? {
            b"u" => self.number().map(u64::from),
            b"t" => self.long(),
            _ => None,
        }
    }

    /// `a(…)`: where the array ends, its first structure next.
    pub(super) fn array(&mut self) -> Option<usize> {
        let length = usize::try_from(self.number()?).ok()?;
        self.align(8);
        self.at.checked_add(length).filter(|end| *end <= self.bytes.len())
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }
}

/// A message as it came, and all that it may be read as.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) -> Option<Body> {
    let head = bytes.get(..HEAD_BYTES)?;
    length(head)?;
    let message = decode(bytes.to_vec())?;
    for read in [Body::variant_text, |body: &mut Body| body.variant_number().map(|n| n.to_string())]
    {
        read(&mut message.body.clone());
    }
    Some(message.body)
}

/// Of a read or a write.
const DEADLINE: Duration = Duration::from_secs(3);
/// A thousand units are 300 KiB.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
const LINE_BYTES_MAX: usize = 1024;
/// A bus lets a connection wait for so many replies and more (128 by default).
const BATCH: usize = 64;
/// Signals and the like that come between.
const OTHERS_MAX: usize = 1000;
const HEAD_BYTES: usize = 16;
const VERSION: u8 = 1;
const METHOD_CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const GET: Call<'_> = Call {
        destination: "a.b",
        path: "/x",
        interface: "a.b.Properties",
        member: "Get",
        strings: &["one", "three"],
    };

    /// A reply in either order: what it answers, and a body.
    fn reply(is_big: bool, answers: u32, kind: u8, signature: &[u8], body: &[u8]) -> Vec<u8> {
        let number = |n: u32| if is_big { n.to_be_bytes() } else { n.to_le_bytes() };
        let mut out = vec![if is_big { b'B' } else { b'l' }, kind, 0, 1];
        out.extend(number(u32::try_from(body.len()).unwrap()));
        out.extend(number(77));
        let mut fields = vec![5, 1, b'u', 0];
        fields.extend(number(answers));
        fields.extend([8, 1, b'g', 0, u8::try_from(signature.len()).unwrap()]);
        fields.extend(signature.iter().chain(&[0]));
        out.extend(number(u32::try_from(fields.len()).unwrap()));
        out.extend(fields);
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend(body);
        out
    }

    #[test]
    fn a_call_is_what_the_specification_says() {
        let mut out = b"before that".to_vec();
        encode(&GET, 9, &mut out);
        let out = &out[11..];
        assert_eq!(&out[..16], b"l\x01\0\x01\x12\0\0\0\x09\0\0\0\x50\0\0\0");
        let fields = [
            &b"\x01\x01o\0\x02\0\0\0/x\0\0\0\0\0\0"[..],
            b"\x02\x01s\0\x0e\0\0\0a.b.Properties\0\0",
            b"\x03\x01s\0\x03\0\0\0Get\0\0\0\0\0",
            b"\x06\x01s\0\x03\0\0\0a.b\0\0\0\0\0",
            b"\x08\x01g\0\x02ss\0",
        ];
        assert_eq!(out[16..96], fields.concat());
        assert_eq!(&out[96..], b"\x03\0\0\0one\0\x05\0\0\0three\0");
        assert_eq!(length(&out[..16]), Some(out.len() - 16));
    }

    #[test]
    fn replies_are_read_in_both_orders_and_never_past_their_end() {
        for is_big in [false, true] {
            let number = |n: u32| if is_big { n.to_be_bytes() } else { n.to_le_bytes() };
            let mut body = vec![1, b's', 0, 0];
            body.extend(number(3));
            body.extend(b"abc\0");
            let bytes = reply(is_big, 5, RETURN, b"v", &body);
            let message = decode(bytes.clone()).unwrap();
            assert_eq!((message.kind, message.answers), (RETURN, 5));
            assert_eq!(message.body.clone().variant_text().as_deref(), Some("abc"));
            assert_eq!(message.body.clone().variant_number(), None);
            for cut in 0..bytes.len() {
                let cut = fuzz(&bytes[..cut]).and_then(|mut body| body.variant_text());
                assert_eq!(cut, None);
            }
            for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                fuzz(&bytes);
            }
            let mut long = vec![1, b't', 0, 0, 0, 0, 0, 0];
            let value = 7_u64 << 40;
            long.extend(if is_big { value.to_be_bytes() } else { value.to_le_bytes() });
            let message = decode(reply(is_big, 5, RETURN, b"v", &long)).unwrap();
            assert_eq!(message.body.clone().variant_number(), Some(value));
        }
    }

    /// A bus that says what it is told to say, once it was greeted.
    fn bus(name: &str, greeting: &'static str, says: Vec<u8>) -> io::Result<Bus> {
        let path = std::env::temp_dir().join(format!("strobe-bus-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while byte != *b"\n" {
                stream.read_exact(&mut byte).unwrap();
            }
            // The other side may have gone by then.
            let _ = stream.write_all(greeting.as_bytes());
            let _ = stream.write_all(&says);
            let mut rest = Vec::new();
            let _ = stream.take(1 << 20).read_to_end(&mut rest);
        });
        let bus = Bus::connect(&path);
        drop((peer, std::fs::remove_file(&path)));
        bus
    }

    #[test]
    fn replies_come_in_any_order_among_signals_and_errors() {
        let mut says = reply(false, 1, RETURN, b"s", b"\x03\0\0\0:1.\0");
        says.extend(reply(false, 0, 4, b"", b""));
        says.extend(reply(false, 4, RETURN, b"u", &4_u32.to_le_bytes()));
        says.extend(reply(true, 2, RETURN, b"u", &2_u32.to_be_bytes()));
        says.extend(reply(false, 3, ERROR, b"", b""));
        let mut bus = bus("order", "OK 1234\r\n", says).unwrap();
        let replies = bus.ask(&[GET, GET, GET]).unwrap();
        let found: Vec<_> = replies.into_iter().map(|body| body?.number()).collect();
        assert_eq!(found, [Some(2), None, Some(4)]);
    }

    #[test]
    fn a_bus_that_refuses_or_speaks_nonsense_is_an_error() {
        let refused = bus("refused", "REJECTED EXTERNAL\r\n", Vec::new()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        let mut endless = reply(false, 1, RETURN, b"", b"");
        endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            bus("endless", "OK 1\r\n", endless).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let noise: Vec<_> = (0..=OTHERS_MAX).flat_map(|_| reply(false, 0, 4, b"", b"")).collect();
        assert_eq!(bus("noise", "OK 1\r\n", noise).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(Bus::connect(Path::new("/nonexistent/bus")).is_err());
    }
}
