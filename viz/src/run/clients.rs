//! The loop's side of the clients: they come, ask, get texts, go.

use bytes::Bytes;
use mio::net::TcpStream;
use mio::{Interest, Token};
use std::io::ErrorKind;
use tungstenite::Utf8Bytes;

use super::lanes::To;
use super::{LANES, Loop, wall_ms};
use crate::client::{Client, Phase};
use crate::counters::Counters;
use crate::front::{Event, Refusal};
use crate::live::{Outgoing, Room, WatcherId};
use crate::relay::{refusal_bytes, upgrade_bytes};
use crate::transport::{Transport, some};
use crate::web_socket::{Socket, State, text_frame};

impl Loop {
    pub(super) fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // EMFILE, ENFILE, ENOMEM: they wait in the backlog until some close.
                    Counters::add(&self.counters.accept_failed);
                    log::warn!("accepting a connection: {error}; trying again");
                    self.accept_at_ms = Some(self.now_ms() + ACCEPT_AGAIN_MS);
                    return;
                }
            }
        }
    }

    pub(super) fn admit(&mut self, mut stream: TcpStream) {
        Counters::add(&self.counters.accepted);
        let open = self.clients.len() - self.free.len();
        if self.config.connections_max <= open {
            Counters::add(&self.counters.over_limit);
            if self.tls.is_none() {
                let why = "too many connections: close some dashboards or raise \
                    viz.connections_max"
                    .to_owned();
                let bytes = refusal_bytes(&Refusal { status: 503, why });
                // One short write into an empty socket buffer; what does not fit is not owed.
                if let Err(error) = some(&mut stream, &bytes) {
                    log::debug!("refusing a connection: {error}");
                }
            }
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() - 1
        });
        let token = Token(LANES + self.lanes.len() + slot);
        let both = Interest::READABLE | Interest::WRITABLE;
        let made = stream
            .set_nodelay(true)
            .and_then(|()| self.poll.registry().register(&mut stream, token, both))
            .and_then(|()| Transport::new(stream, self.tls.as_ref()));
        match made {
            Ok(transport) => {
                let now = self.now_ms();
                self.clients[slot] = Some(Client::new(transport, now, &self.config.front));
                Counters::set(&self.counters.open, open + 1);
                self.drive(slot);
            }
            Err(error) => {
                log::debug!("a connection ended at once: {error}");
                self.free.push(slot);
            }
        }
    }

    /// Moves one client on as far as it goes.
    pub(super) fn drive(&mut self, slot: usize) {
        for _ in 0..DRIVE_TURNS_MAX {
            let now = self.now_ms();
            let Some(Some(client)) = self.clients.get_mut(slot) else { return };
            let flushed = client.flush(now);
            let pulled = client.pull(now, &self.config.front, &mut self.buffer);
            let (Ok(flushed), Ok(pulled)) = (flushed, pulled) else { return self.close(slot) };
            if client.has_ended() {
                self.hung_up(slot);
            }
            let handled = self.handle(slot, now);
            let Some(Some(client)) = self.clients.get_mut(slot) else { return };
            if client.is_finished() {
                return self.close(slot);
            }
            if !flushed && !pulled && !handled {
                return;
            }
        }
        // A busy client must not starve the rest: it goes on at the next turn of the loop.
        let Some(Some(client)) = self.clients.get_mut(slot) else { return };
        let token = Token(LANES + self.lanes.len() + slot);
        let both = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().reregister(client.transport.socket(), token, both).is_err() {
            self.close(slot);
        }
    }

    /// Acts on what the client said; whether there was anything.
    pub(super) fn handle(&mut self, slot: usize, now: u64) -> bool {
        let room = self.config.memory_bytes_max.saturating_sub(self.memory());
        let Some(Some(client)) = self.clients.get_mut(slot) else { return false };
        if let Phase::WebSocket(_) = client.phase {
            return self.handle_texts(slot);
        }
        let Some(event) = client.front.poll(now, &self.config.front, &self.policy, room) else {
            return false;
        };
        match event {
            Event::Continue => client.out.tail().extend_from_slice(CONTINUE),
            Event::Close => client.finish(now),
            Event::Refused(refusal) => self.refuse(slot, &refusal, now),
            Event::Upgrade { key, rest } => self.upgrade(slot, &key, rest, now),
            Event::Request(request) => {
                Counters::add(&self.counters.requests);
                client.answer_due_ms = Some(now + ANSWER_MS);
                self.waiting.push_back((To::Client(slot), request));
                self.assign();
            }
        }
        true
    }

    pub(super) fn refuse(&mut self, slot: usize, refusal: &Refusal, now: u64) {
        Counters::add(&self.counters.refused);
        if let Some(Some(client)) = self.clients.get_mut(slot) {
            client.out.tail().extend_from_slice(&refusal_bytes(refusal));
            client.finish(now);
        }
    }

    pub(super) fn upgrade(&mut self, slot: usize, key: &str, rest: Vec<u8>, now: u64) {
        let sockets = self.clients.iter().flatten().filter(|c| c.is_web_socket()).count();
        if self.config.web_sockets_max <= sockets {
            let why = "too many live dashboards: close some or raise viz.web_sockets_max";
            return self.refuse(slot, &Refusal { status: 503, why: why.to_owned() }, now);
        }
        let Some(Some(client)) = self.clients.get_mut(slot) else { return };
        client.out.tail().extend_from_slice(&upgrade_bytes(key));
        let mut socket = Box::new(Socket::new(rest));
        socket.push(&[], &mut client.texts);
        client.phase = Phase::WebSocket(socket);
        client.heard_ms = now;
        self.live.open(WatcherId(slot));
        Counters::set(&self.counters.web_sockets, sockets + 1);
    }

    pub(super) fn handle_texts(&mut self, slot: usize) -> bool {
        let Some(Some(client)) = self.clients.get_mut(slot) else { return false };
        let texts = std::mem::take(&mut client.texts);
        for text in &texts {
            self.live.request(wall_ms(), WatcherId(slot), text, &mut self.outgoing);
        }
        self.deliver();
        self.ask();
        !texts.is_empty()
    }

    /// Hands the live view's texts to their sockets and tells it who is full.
    pub(super) fn deliver(&mut self) {
        for _ in 0..2 {
            let mut touched = Vec::new();
            // Those who get the same text stand in a row: it is framed once.
            let mut last: Option<(Utf8Bytes, Bytes)> = None;
            for Outgoing { to, text } in std::mem::take(&mut self.outgoing) {
                let Some(Some(client)) = self.clients.get_mut(to.0) else { continue };
                let Phase::WebSocket(socket) = &mut client.phase else { continue };
                if !socket.is_open() {
                    continue;
                }
                let frame = match &last {
                    Some((known, frame)) if known.as_ptr() == text.as_ptr() => frame.clone(),
                    _ => text_frame(&text),
                };
                last = Some((text, frame.clone()));
                socket.take(client.out.tail());
                client.out.share(frame);
                if touched.last() != Some(&to.0) {
                    touched.push(to.0);
                }
            }
            for slot in touched {
                self.flush_socket(slot);
            }
            if self.outgoing.is_empty() {
                return;
            }
        }
    }

    pub(super) fn flush_socket(&mut self, slot: usize) {
        let now = self.now_ms();
        let Some(Some(client)) = self.clients.get_mut(slot) else { return };
        if client.flush(now).is_err() {
            return self.close(slot);
        }
        self.report_room(slot);
    }

    pub(super) fn report_room(&mut self, slot: usize) {
        let Some(Some(client)) = self.clients.get_mut(slot) else { return };
        if !client.is_web_socket() {
            return;
        }
        let room = if client.unsent() < SOCKET_OUT_BYTES_MAX { Room::Free } else { Room::Full };
        self.live.room(wall_ms(), WatcherId(slot), room, &mut self.outgoing);
    }

    pub(super) fn close(&mut self, slot: usize) {
        let Some(mut client) = self.clients.get_mut(slot).and_then(Option::take) else { return };
        client.transport.shutdown();
        if let Err(error) = self.poll.registry().deregister(client.transport.socket()) {
            log::debug!("closing a connection: {error}");
        }
        if client.is_web_socket() {
            self.live.close(WatcherId(slot));
            let sockets = self.clients.iter().flatten().filter(|c| c.is_web_socket()).count();
            Counters::set(&self.counters.web_sockets, sockets);
        }
        self.hung_up(slot);
        self.waiting.retain(|(to, _)| !to.is_of(slot));
        for job in self.lanes.iter_mut().filter_map(|lane| lane.job.as_mut()) {
            if job.to.is_of(slot) {
                job.abandon();
            }
        }
        self.free.push(slot);
        Counters::set(&self.counters.open, self.clients.len() - self.free.len());
    }

    pub(super) fn expire(&mut self, now: u64) {
        if self.accept_at_ms.is_some_and(|at| at <= now) {
            self.accept_at_ms = None;
            self.accept();
        }
        for slot in 0..self.clients.len() {
            let Some(Some(client)) = self.clients.get_mut(slot) else { continue };
            if client.is_stalled(now) {
                Counters::add(&self.counters.stalled);
                self.close(slot);
                continue;
            }
            if client.answer_due_ms.is_some_and(|due| due <= now) {
                self.give_up(slot, now);
                continue;
            }
            client.keep_alive(now);
            let due = client.front.timeout().is_some_and(|due| due <= now);
            let flush = 0 < client.unsent() || client.is_web_socket();
            if due || flush || client.is_finished() {
                self.drive(slot);
                self.report_room(slot);
            }
        }
        self.deliver();
        self.ask();
        // Lanes that waited for memory.
        for index in 0..self.lanes.len() {
            self.drive_lane(index);
        }
    }

    /// No answer in time: 504 if nothing of it went out yet, else the end.
    pub(super) fn give_up(&mut self, slot: usize, now: u64) {
        let mut untouched = true;
        for index in 0..self.lanes.len() {
            if let Some(job) = self.lanes[index].job.take_if(|job| job.to == To::Client(slot)) {
                job.caller.leave();
                untouched = job.relay.is_untouched();
                // Its worker may never answer: the next request gets a new connection.
                self.fail_lane(index);
            }
        }
        self.waiting.retain(|(to, _)| *to != To::Client(slot));
        self.assign();
        if !untouched {
            return self.close(slot);
        }
        if let Some(Some(client)) = self.clients.get_mut(slot) {
            client.answer_due_ms = None;
        }
        let why = "no answer in time: narrow the query".to_owned();
        self.refuse(slot, &Refusal { status: 504, why }, now);
        self.drive(slot);
    }
}

impl Client {
    /// Whether the WebSocket's client must prove that it is there.
    fn keep_alive(&mut self, now: u64) {
        let Phase::WebSocket(socket) = &mut self.phase else { return };
        if self.heard_ms + GONE_MS <= now {
            socket.close();
        } else if self.heard_ms + PING_MS <= now && self.pinged_ms < self.heard_ms + PING_MS {
            self.pinged_ms = now;
            socket.ping();
        }
        socket.take(self.out.tail());
        if self.heard_ms + GONE_MS <= now || socket.push(&[], &mut self.texts) == State::Closing {
            self.finish(now);
        }
    }
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const ACCEPT_AGAIN_MS: u64 = 200;
const ANSWER_MS: u64 = 75_000;
const PING_MS: u64 = 30_000;
const GONE_MS: u64 = 75_000;
const DRIVE_TURNS_MAX: usize = 16;
/// Bytes of a WebSocket's unsent texts from which on it skips.
const SOCKET_OUT_BYTES_MAX: usize = 256 << 10;
