//! The loop's side of the workers: who gets which request, and where its answer goes.

use mio::net::UnixStream;
use mio::{Interest, Token};
use std::io::{self, ErrorKind, Read as _};

use super::{LANES, Loop};
use crate::backend::Caller;
use crate::counters::Counters;
use crate::front::{Method, Next, Refusal, Request};
use crate::live::{Ask, WatcherId};
use crate::relay::{Relay, request_bytes};
use crate::transport::some;
use crate::workers::Workers;
use strobe_broker::api::HISTORY;

/// A connection to a worker: one request at a time.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) stream: Option<UnixStream>,
    pub(super) job: Option<Job>,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) to: To,
    /// Told when nobody waits any more.
    pub(super) caller: Caller,
    request: Vec<u8>,
    sent: usize,
    pub(super) relay: Relay,
    /// A watcher's answer as far as it came.
    answer: Vec<u8>,
}

/// Where an answer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum To {
    /// To the client in this slot.
    Client(usize),
    /// Into the live view of this one, as the answer to this question.
    Watcher(WatcherId, u64),
    /// Whoever asked went away: it is thrown away.
    Nobody,
}

impl To {
    /// Whether it belongs to the connection in this slot.
    pub(super) fn is_of(self, slot: usize) -> bool {
        self == Self::Client(slot) || matches!(self, Self::Watcher(id, _) if id.0 == slot)
    }
}

impl Job {
    /// Whoever asked is gone: nobody needs to work on it any more.
    pub(super) fn abandon(&mut self) {
        self.to = To::Nobody;
        self.caller.leave();
        self.answer = Vec::new();
    }

    /// Bytes held for a watcher.
    pub(super) fn held(&self) -> usize {
        self.answer.len()
    }
}

impl Loop {
    pub(super) fn open_lanes(&mut self, workers: &Workers) -> io::Result<()> {
        for index in 0..self.config.workers {
            self.lanes.push(Lane { stream: None, job: None });
            let stream = workers.proven()?;
            stream.set_nonblocking(true)?;
            self.watch_lane(index, UnixStream::from_std(stream))?;
        }
        Ok(())
    }

    pub(super) fn open_lane(&mut self, index: usize) -> io::Result<()> {
        let stream = UnixStream::connect(&self.socket)?;
        self.watch_lane(index, stream)
    }

    pub(super) fn watch_lane(&mut self, index: usize, mut stream: UnixStream) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(LANES + index), both)?;
        self.lanes[index].stream = Some(stream);
        Ok(())
    }

    /// Gives waiting requests to idle lanes.
    pub(super) fn assign(&mut self) {
        while let Some(index) = self.lanes.iter().position(|lane| lane.job.is_none()) {
            let Some((to, request)) = self.waiting.pop_front() else { return };
            let relay = Relay::new(request.method, request.keep_alive);
            let request = request_bytes(&request, index);
            let caller = self.callers.begin(index);
            let answer = Vec::new();
            self.lanes[index].job = Some(Job { to, caller, request, sent: 0, relay, answer });
            if self.lanes[index].stream.is_none()
                && let Err(error) = self.open_lane(index)
            {
                log::error!("connecting to a worker: {error}");
                self.fail_lane(index);
                continue;
            }
            self.ready_lanes.push(index);
        }
    }

    pub(super) fn drive_lane(&mut self, index: usize) {
        match self.turn_lane(index) {
            Ok(()) => {}
            Err(error) => {
                log::error!("a worker's connection: {error}");
                self.fail_lane(index);
                self.assign();
            }
        }
    }

    pub(super) fn turn_lane(&mut self, index: usize) -> io::Result<()> {
        loop {
            if self.config.memory_bytes_max <= self.memory() {
                // The worker waits until clients have read.
                return Ok(());
            }
            let lane = &mut self.lanes[index];
            let Some(stream) = &mut lane.stream else { return Ok(()) };
            if let Some(job) = &mut lane.job {
                while job.sent < job.request.len() {
                    match some(stream, &job.request[job.sent..]) {
                        Ok(sent) => job.sent += sent,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
            }
            let length = match stream.read(&mut self.buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let Some(job) = &mut lane.job else {
                return Err(io::Error::other("bytes without a request"));
            };
            let mut thrown = Vec::new();
            let out = match job.to {
                To::Client(slot) => {
                    let client = self.clients.get_mut(slot).and_then(Option::as_mut);
                    client.map_or(&mut thrown, |client| client.out.tail())
                }
                To::Watcher(..) => &mut job.answer,
                To::Nobody => &mut thrown,
            };
            job.relay.push(&self.buffer[..length], out).map_err(io::Error::other)?;
            let (to, done) = (job.to, job.relay.is_done());
            let job = lane.job.take_if(|_| done);
            match to {
                To::Client(slot) => self.relayed(slot, done),
                To::Watcher(id, number) => {
                    if let Some(Job { answer, relay, .. }) = job {
                        let body = answer.get(relay.head_bytes()..).unwrap_or_default();
                        self.live.answer(id, number, body, &mut self.outgoing);
                        self.deliver();
                    }
                }
                To::Nobody => {}
            }
            if done {
                self.assign();
            }
        }
    }

    pub(super) fn relayed(&mut self, slot: usize, done: bool) {
        let now = self.now_ms();
        if let Some(Some(client)) = self.clients.get_mut(slot)
            && done
        {
            client.answer_due_ms = None;
            if client.front.answered(now, &self.config.front) == Next::Close {
                client.finish(now);
            }
        }
        self.ready.push(slot);
    }

    /// Asks the broker what the live view wants to know for watchers.
    pub(super) fn ask(&mut self) {
        while let Some(Ask { watcher, number, body }) = self.live.poll_ask() {
            Counters::add(&self.counters.snapshots);
            // Of a question before this one nobody needs the answer.
            let is_before = |to: To| matches!(to, To::Watcher(id, _) if id == watcher);
            self.waiting.retain(|(to, _)| !is_before(*to));
            for job in self.lanes.iter_mut().filter_map(|lane| lane.job.as_mut()) {
                if is_before(job.to) {
                    job.abandon();
                }
            }
            let request = Request {
                method: Method::Post,
                target: HISTORY.to_owned(),
                content_type: "application/json".to_owned(),
                content_encoding: String::new(),
                accept_encoding: String::new(),
                if_none_match: String::new(),
                body: body.into_bytes(),
                keep_alive: true,
            };
            self.waiting.push_back((To::Watcher(watcher, number), request));
            self.assign();
        }
    }

    /// The client in this slot hung up: what is computed for it may stop.
    pub(super) fn hung_up(&mut self, slot: usize) {
        for job in self.lanes.iter().filter_map(|lane| lane.job.as_ref()) {
            if job.to == To::Client(slot) && !job.caller.has_left() {
                Counters::add(&self.counters.abandoned);
                job.caller.leave();
            }
        }
    }

    /// The lane is of no more use: its client gets 502 or, if it has part of the answer, the end.
    pub(super) fn fail_lane(&mut self, index: usize) {
        if let Some(mut stream) = self.lanes[index].stream.take()
            && let Err(error) = self.poll.registry().deregister(&mut stream)
        {
            log::debug!("closing a worker's connection: {error}");
        }
        let Some(job) = self.lanes[index].job.take() else { return };
        let slot = match job.to {
            To::Client(slot) => slot,
            To::Watcher(id, number) => {
                let why = b"the worker failed on this request";
                self.live.answer(id, number, why, &mut self.outgoing);
                return self.deliver();
            }
            To::Nobody => return,
        };
        if job.relay.is_untouched() {
            let why = "the worker failed on this request".to_owned();
            self.refuse(slot, &Refusal { status: 502, why }, self.now_ms());
            self.ready.push(slot);
        } else {
            self.close(slot);
        }
    }
}
