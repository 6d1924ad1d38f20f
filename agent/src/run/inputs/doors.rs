//! StatsD's doors: datagrams by UDP and by Unix sockets.

use super::{Counted, DOOR, Turn, after, token};
use crate::input::Inputs;
use crate::input::board::Room;
use crate::input::config::Door;
use crate::input::statsd::Statsd;
use crate::schemas::Table;
use mio::net::{UdpSocket, UnixDatagram};
use mio::{Interest, Registry, Token};
use nix::sys::socket::{setsockopt, sockopt};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

/// All of them, and what came in.
pub(super) struct Doors {
    doors: Vec<Opening>,
    statsd: Statsd,
    interval_ms: u64,
    due_ns: u64,
}

struct Opening {
    door: Door,
    socket: Option<Socket>,
    ready: bool,
    complained: bool,
    retry_ns: u64,
}

enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Doors {
    pub(super) fn new(inputs: &Inputs, room: &Room, table: &Arc<Table>, now_ns: u64) -> Self {
        let opening = |door: &Door| Opening {
            door: door.clone(),
            socket: None,
            ready: false,
            complained: false,
            retry_ns: now_ns,
        };
        let interval_ms = inputs.statsd_interval_ms;
        Self {
            doors: inputs.statsd.iter().take(DOORS_MAX).map(opening).collect(),
            statsd: Statsd::new(inputs.series_max, room.clone(), Arc::clone(table)),
            interval_ms,
            due_ns: now_ns + interval_ms * 1_000_000,
        }
    }

    pub(super) fn ready(&mut self, index: usize) {
        if let Some(opening) = self.doors.get_mut(index) {
            opening.ready = true;
        }
    }

    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) -> Option<u64> {
        if self.doors.is_empty() {
            return None;
        }
        let (now, mut next_ns) = (turn.now, u64::MAX);
        for (index, opening) in self.doors.iter_mut().enumerate() {
            if opening.socket.is_none() && opening.retry_ns <= now.boottime_ns {
                opening.open(token(DOOR, index), turn.registry, now.boottime_ns);
            }
            if opening.ready {
                opening.drain(turn.buffer, &mut |datagram| {
                    self.statsd.heard(now.boottime_ns, datagram);
                });
            }
            let waits = if opening.socket.is_none() { opening.retry_ns } else { u64::MAX };
            next_ns = next_ns.min(if opening.ready { 0 } else { waits });
        }
        if self.due_ns <= now.boottime_ns {
            self.statsd.flush(now, turn.outbox);
            self.due_ns = after(self.due_ns, self.interval_ms, now.boottime_ns);
        }
        Some(next_ns.min(self.due_ns))
    }

    pub(super) fn counted(&self) -> Option<Counted> {
        let numbers = self.statsd.numbers;
        (!self.doors.is_empty()).then(|| Counted {
            input: "statsd".to_owned(),
            taken: Some(numbers.taken),
            refused: [
                ("malformed", numbers.bad),
                ("series", numbers.refused),
                ("queue", numbers.dropped),
                ("", 0),
            ],
        })
    }
}

impl Opening {
    fn open(&mut self, token: Token, registry: &Registry, now_ns: u64) {
        match listen(&self.door, token, registry) {
            Ok(socket) => (self.socket, self.ready) = (Some(socket), true),
            Err(why) => {
                self.retry_ns = now_ns + RETRY_NS;
                if !std::mem::replace(&mut self.complained, true) {
                    log::error!("statsd {:?} is not heard: {why}", self.door);
                }
            }
        }
    }

    /// Hands out datagrams, a bounded number.
    fn drain(&mut self, buffer: &mut [u8], each: &mut dyn FnMut(&[u8])) {
        for _ in 0..DATAGRAMS_MAX {
            let received = match &self.socket {
                None => Err(ErrorKind::WouldBlock.into()),
                Some(Socket::Udp(socket)) => socket.recv(buffer),
                Some(Socket::Unix(socket)) => socket.recv(buffer),
            };
            match received {
                Ok(length) => each(buffer.get(..length).unwrap_or(&[])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.ready = false;
                    return;
                }
                // An answer to nobody, or a signal: the next one may be good.
                Err(_) => {}
            }
        }
    }
}

fn listen(door: &Door, token: Token, registry: &Registry) -> io::Result<Socket> {
    match door {
        Door::Udp(address) => {
            let mut socket = UdpSocket::bind(*address)?;
            // More than the default for a burst between two turns; the kernel may give less.
            let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BYTES);
            registry.register(&mut socket, token, Interest::READABLE)?;
            Ok(Socket::Udp(socket))
        }
        Door::Unix(path) => {
            clear(path)?;
            let mut socket = UnixDatagram::bind(path)?;
            // As open to this machine's users as a UDP port would be.
            fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
            registry.register(&mut socket, token, Interest::READABLE)?;
            Ok(Socket::Unix(socket))
        }
    }
}

/// A socket's file that a life before left behind is in the way; anything else stays.
pub(super) fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(ErrorKind::AlreadyExists, "a file that is no socket is there")),
        Err(_) => Ok(()),
    }
}

const DOORS_MAX: usize = 16;
const DATAGRAMS_MAX: usize = 512;
const RECEIVE_BYTES: usize = 1 << 20;
pub(super) const RETRY_NS: u64 = 10_000_000_000;
