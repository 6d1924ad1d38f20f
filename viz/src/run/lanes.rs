//! The loop's side of the workers: who gets which request, and where its answer goes.

use mio::net::UnixStream;
use mio::{Interest, Token};
use std::io::{self, ErrorKind, Read as _};

use super::{LANES, Loop};
use crate::front::{Next, Refusal};
use crate::relay::{Relay, request_bytes};
use crate::transport::some;
use crate::workers::Workers;

/// A connection to a worker: one request at a time.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) stream: Option<UnixStream>,
    pub(super) job: Option<Job>,
}

#[derive(Debug)]
pub(super) struct Job {
    /// The client, unless it went away: then the answer is thrown away.
    pub(super) client: Option<usize>,
    request: Vec<u8>,
    sent: usize,
    pub(super) relay: Relay,
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
            let Some((slot, request)) = self.waiting.pop_front() else { return };
            let relay = Relay::new(request.method, request.keep_alive);
            let request = request_bytes(&request);
            self.lanes[index].job = Some(Job { client: Some(slot), request, sent: 0, relay });
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
            let client = job.client.and_then(|slot| self.clients.get_mut(slot)?.as_mut());
            let out = client.map_or(&mut thrown, |client| client.out.tail());
            job.relay.push(&self.buffer[..length], out).map_err(io::Error::other)?;
            let (client, done) = (job.client, job.relay.is_done());
            if done {
                lane.job = None;
            }
            if let Some(slot) = client {
                self.relayed(slot, done);
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

    /// The lane is of no more use: its client gets 502 or, if it has part of the answer, the end.
    pub(super) fn fail_lane(&mut self, index: usize) {
        if let Some(mut stream) = self.lanes[index].stream.take()
            && let Err(error) = self.poll.registry().deregister(&mut stream)
        {
            log::debug!("closing a worker's connection: {error}");
        }
        let Some(job) = self.lanes[index].job.take() else { return };
        let Some(slot) = job.client else { return };
        if job.relay.is_untouched() {
            let why = "the worker failed on this request".to_owned();
            self.refuse(slot, &Refusal { status: 502, why }, self.now_ms());
            self.ready.push(slot);
        } else {
            self.close(slot);
        }
    }
}
