//! The door to Redis: every connection is made, and every byte sent and heard, here.
//!
//! A test may stand at the door of its own thread ([`watch`]) and be all the servers there are: it is
//! given the bytes that would go out and gives those that come back, so that a simulation decides what
//! a server keeps, forgets, refuses or never answers. Without a watcher a connection costs one
//! look at a thread's own memory when it is made, and nothing after that.

use redis::{Client, RedisResult, Value};
use std::cell::RefCell;
use std::io;
use std::time::Duration;

/// What is wanted of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call<'a> {
    /// A connection, by this number from now on, to the server at this address.
    Connect(u64, &'a str),
    /// Commands on a connection, as RESP has them.
    Send(u64, &'a [u8]),
    /// The next answer on a connection, as RESP has it: what the watcher gives back.
    Hear(u64),
}

/// Someone at the door; what it gives back is an answer's bytes, or nothing.
#[expect(clippy::type_complexity, reason = "read once, here")]
struct Watcher(Box<dyn FnMut(Call<'_>) -> io::Result<Vec<u8>>>);

thread_local! {
    /// With the last number that was given to anything.
    static WATCHER: RefCell<(Option<Watcher>, u64)> = const { RefCell::new((None, 0)) };
}

/// Puts a watcher at the door of this thread, in place of another; for tests.
pub fn watch(watcher: impl FnMut(Call<'_>) -> io::Result<Vec<u8>> + 'static) {
    WATCHER.set((Some(Watcher(Box::new(watcher))), 0));
}

/// One conversation, with every wait bounded.
pub(super) enum Connection {
    Wire(Box<::redis::Connection>),
    Watched(u64),
}

impl Connection {
    pub(super) fn open(client: &Client, wait: Duration) -> RedisResult<Self> {
        if let Some(number) = number() {
            let address = client.get_connection_info().addr().to_string();
            ask(Call::Connect(number, &address))?;
            return Ok(Self::Watched(number));
        }
        let connection = client.get_connection_with_timeout(wait)?;
        connection.set_read_timeout(Some(wait))?;
        connection.set_write_timeout(Some(wait))?;
        Ok(Self::Wire(Box::new(connection)))
    }

    pub(super) fn send(&mut self, packed: &[u8]) -> RedisResult<()> {
        match self {
            Self::Wire(connection) => connection.send_packed_command(packed),
            Self::Watched(number) => Ok(ask(Call::Send(*number, packed)).map(drop)?),
        }
    }

    pub(super) fn hear(&mut self) -> RedisResult<Value> {
        match self {
            Self::Wire(connection) => connection.recv_response(),
            Self::Watched(number) => ::redis::parse_redis_value(&ask(Call::Hear(*number))?),
        }
    }

    /// The crate's own pipelines would wait for each answer of a server that hangs, one time-out
    /// after the other.
    pub(super) fn ask(&mut self, cmd: &::redis::Cmd) -> RedisResult<Value> {
        self.send(&cmd.get_packed_command())?;
        match self.hear()? {
            Value::ServerError(refused) => Err(refused.into()),
            answer => Ok(answer),
        }
    }
}

/// A number that nothing else has at this door; `None`: nobody stands there.
pub(super) fn number() -> Option<u64> {
    WATCHER.with_borrow_mut(|(watcher, last)| {
        watcher.as_ref()?;
        *last += 1;
        Some(*last)
    })
}

fn ask(call: Call<'_>) -> io::Result<Vec<u8>> {
    WATCHER.with_borrow_mut(|(watcher, _)| match watcher {
        Some(watcher) => (watcher.0)(call),
        // Who stood there when the connection was made has left.
        None => Err(io::ErrorKind::NotConnected.into()),
    })
}
