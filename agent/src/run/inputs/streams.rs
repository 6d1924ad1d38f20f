//! The socket for collectors of the user's own.

use super::doors::{RETRY_NS, clear};
use super::{Counted, STREAM, Turn, token};
use crate::input::Inputs;
use crate::input::board::Room;
use crate::input::stream::{Conversation, Streams};
use crate::schemas::Table;
use mio::Interest;
use mio::net::{UnixListener, UnixStream};
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The listener and who is connected.
pub(super) struct Listeners {
    path: Option<PathBuf>,
    listener: Option<UnixListener>,
    accepts: bool,
    complained: bool,
    retry_ns: u64,
    peers: Vec<Option<Peer>>,
    streams: Streams,
    refused: u64,
}

struct Peer {
    stream: UnixStream,
    said: Conversation,
    ready: bool,
}

impl Listeners {
    pub(super) fn new(inputs: &Inputs, room: &Room, table: &Arc<Table>) -> Self {
        Self {
            path: inputs.socket.clone(),
            listener: None,
            accepts: false,
            complained: false,
            retry_ns: 0,
            peers: (0..PEERS_MAX).map(|_| None).collect(),
            streams: Streams::new(room.clone(), Arc::clone(table)),
            refused: 0,
        }
    }

    pub(super) fn ready(&mut self, index: usize) {
        match self.peers.get_mut(index) {
            Some(Some(peer)) => peer.ready = true,
            Some(None) => {}
            None => self.accepts = true,
        }
    }

    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) -> Option<u64> {
        let path = self.path.clone()?;
        if self.listener.is_none() && self.retry_ns <= turn.now.boottime_ns {
            self.open(&path, turn);
        }
        self.accept(turn);
        let mut next_ns = if self.listener.is_none() { self.retry_ns } else { u64::MAX };
        for place in &mut self.peers {
            let Some(peer) = place.as_mut().filter(|peer| peer.ready) else { continue };
            if !peer.read(turn, &mut self.streams)
                && let Some(peer) = place.take()
            {
                self.streams.ended(turn.now, peer.said, turn.outbox);
            } else if place.as_ref().is_some_and(|peer| peer.ready) {
                next_ns = 0;
            }
        }
        let due_ns = self.streams.due_ns();
        if due_ns.is_some_and(|due_ns| due_ns <= turn.now.boottime_ns) {
            self.streams.flush(turn.now, turn.outbox);
        }
        Some(next_ns.min(self.streams.due_ns().unwrap_or(u64::MAX)))
    }

    pub(super) fn counted(&self) -> Option<Counted> {
        let numbers = self.streams.numbers;
        self.path.as_ref().map(|_| Counted {
            input: "socket".to_owned(),
            taken: Some(numbers.taken),
            refused: [
                ("malformed", numbers.bad),
                ("series", numbers.refused),
                ("queue", numbers.dropped),
                ("connections", self.refused),
            ],
        })
    }

    fn open(&mut self, path: &Path, turn: &Turn<'_>) {
        let opened = clear(path).and_then(|()| {
            let mut listener = UnixListener::bind(path)?;
            // Who may write here says what this host is: its user and group.
            fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
            let place = token(STREAM, PEERS_MAX);
            turn.registry.register(&mut listener, place, Interest::READABLE)?;
            Ok(listener)
        });
        match opened {
            Ok(listener) => (self.listener, self.accepts) = (Some(listener), true),
            Err(why) => {
                self.retry_ns = turn.now.boottime_ns + RETRY_NS;
                if !std::mem::replace(&mut self.complained, true) {
                    log::error!("the socket {} is not heard: {why}", path.display());
                }
            }
        }
    }

    fn accept(&mut self, turn: &Turn<'_>) {
        if !std::mem::take(&mut self.accepts) {
            return;
        }
        // Any error ends the round: WouldBlock is the end, and out of descriptors must not spin.
        while let Some(Ok((mut stream, _))) = self.listener.as_ref().map(UnixListener::accept) {
            let Some(index) = self.peers.iter().position(Option::is_none) else {
                self.refused += 1;
                continue;
            };
            let place = token(STREAM, index);
            if turn.registry.register(&mut stream, place, Interest::READABLE).is_ok()
                && let Some(place) = self.peers.get_mut(index)
            {
                *place = Some(Peer { stream, said: Conversation::default(), ready: true });
            }
        }
    }
}

impl Peer {
    /// Whether it stays.
    fn read(&mut self, turn: &mut Turn<'_>, streams: &mut Streams) -> bool {
        for _ in 0..READS_MAX {
            match self.stream.read(turn.buffer) {
                Ok(0) => return false,
                Ok(length) => {
                    let bytes = turn.buffer.get(..length).unwrap_or(&[]);
                    streams.heard(turn.now, &mut self.said, bytes, turn.outbox);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.ready = false;
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

const PEERS_MAX: usize = 64;
const READS_MAX: usize = 16;
