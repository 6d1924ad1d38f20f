//! The loop of all other inputs: one thread, there only if one of them is configured.
//!
//! ```text
//! wait (stop, sockets, pipes, the next thing due) -> read what is ready, each a bounded part
//!   -> time out -> start what is due -> rows into the outbox
//! ```
//!
//! Events are edges: a source that was not read to its end is read on in the next turn, which does not
//! wait then. Names are resolved on threads of their own, one for a name at a time.

mod commands;
mod doors;
mod scrapes;
mod streams;
mod writes;

use super::{AgentError, Stop, io_error, spawn};
use crate::clock;
use crate::input::board::{Absent, Board, Room};
use crate::input::{Inputs, Outbox};
use crate::sampler::Tick;
use crate::schemas::Table;
use commands::Commands;
use doors::Doors;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use scrapes::Scrapes;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;
use streams::Listeners;
use strobe_wire::schema::Labels;
use writes::Writes;

/// What a turn works with.
struct Turn<'l> {
    now: Tick,
    outbox: &'l Outbox,
    registry: &'l Registry,
    waker: &'l Arc<Waker>,
    buffer: &'l mut [u8],
}

/// What was counted of an input since the start.
struct Counted {
    input: String,
    taken: Option<u64>,
    refused: [(&'static str, u64); 4],
}

struct Loop {
    poll: Poll,
    waker: Arc<Waker>,
    outbox: Outbox,
    buffer: Vec<u8>,
    scrapes: Scrapes,
    commands: Commands,
    doors: Doors,
    writes: Writes,
    streams: Listeners,
    own: Board,
    told_ns: u64,
}

/// Starts the thread, if there is anything for it to do; returns where its rows come.
pub(super) fn start(
    inputs: &Inputs,
    table: &Arc<Table>,
    stop: &Stop,
) -> Result<Option<Outbox>, AgentError> {
    if inputs.is_empty() {
        return Ok(None);
    }
    let outbox = Outbox::default();
    let mut all = Loop::new(inputs, table, outbox.clone(), stop)?;
    let stop = stop.clone();
    // It ends with the others; what it started is ended by it.
    spawn("strobe-inputs", move || {
        if let Err(error) = all.run(&stop) {
            log::error!("no other input is read any more: {error}");
        }
        all.commands.kill_all();
    })?;
    Ok(Some(outbox))
}

impl Loop {
    fn new(
        inputs: &Inputs,
        table: &Arc<Table>,
        outbox: Outbox,
        stop: &Stop,
    ) -> Result<Self, AgentError> {
        let poll = Poll::new().map_err(io_error("make a poll"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(io_error("make a waker"))?;
        let end = stop.0.event.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&end), STOP, Interest::READABLE)
            .map_err(io_error("register with the poll"))?;
        let now_ns = clock::boottime_ns();
        let room = Room::new(inputs.series_max);
        let own =
            Board::new("inputs".to_owned(), OWN_SERIES, Room::new(OWN_SERIES), Arc::clone(table));
        Ok(Self {
            poll,
            waker: Arc::new(waker),
            outbox,
            buffer: vec![0; BUFFER_BYTES],
            scrapes: Scrapes::new(inputs, &room, table, now_ns),
            commands: Commands::new(inputs, &room, table, now_ns),
            doors: Doors::new(inputs, &room, table, now_ns),
            writes: Writes::new(inputs, &room, table),
            streams: Listeners::new(inputs, &room, table),
            own,
            told_ns: now_ns,
        })
    }

    fn run(&mut self, stop: &Stop) -> Result<(), AgentError> {
        let mut events = Events::with_capacity(64);
        let mut wait = Some(Duration::ZERO);
        loop {
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(io_error("wait for other inputs")(error));
                }
                _ => {}
            }
            if stop.is_stopped() {
                return Ok(());
            }
            for event in &events {
                self.ready(event.token());
            }
            wait = self.turn();
        }
    }

    fn ready(&mut self, Token(token): Token) {
        let index = token & INDEX_MASK;
        match token & !INDEX_MASK {
            SCRAPE => self.scrapes.ready(index),
            COMMAND => self.commands.ready(index),
            DOOR => self.doors.ready(index),
            WRITE => self.writes.ready(index),
            STREAM => self.streams.ready(index),
            _ => {}
        }
    }

    /// Does what there is to do; how long there is nothing more.
    fn turn(&mut self) -> Option<Duration> {
        let now = Tick { wall_ns: clock::wall_ns(), boottime_ns: clock::boottime_ns() };
        let (registry, waker) = (self.poll.registry(), &self.waker);
        let (outbox, buffer) = (&self.outbox, &mut self.buffer[..]);
        let mut turn = Turn { now, outbox, registry, waker, buffer };
        let due = [
            self.scrapes.turn(&mut turn),
            self.commands.turn(&mut turn),
            self.doors.turn(&mut turn),
            self.writes.turn(&mut turn),
            self.streams.turn(&mut turn),
            Some(self.told_ns + TELL_NS),
        ];
        if self.told_ns + TELL_NS <= now.boottime_ns {
            self.tell(now);
        }
        let next_ns = due.into_iter().flatten().min();
        // A millisecond is epoll's own; less would be no wait at all.
        next_ns.map(|at| match at.saturating_sub(now.boottime_ns) {
            0 => Duration::ZERO,
            ns => Duration::from_nanos(ns).max(Duration::from_millis(1)),
        })
    }

    /// What became of everything, as series of this host.
    fn tell(&mut self, now: Tick) {
        self.told_ns = now.boottime_ns;
        self.own.begin();
        let mut all = self.scrapes.counted();
        all.extend(self.commands.counted());
        all.extend(self.doors.counted());
        all.extend(self.writes.counted());
        all.extend(self.streams.counted());
        for Counted { input, taken, refused } in all {
            let own = &mut self.own;
            let mut put = |name: &str, why: Option<&str>, count: u64| {
                let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
                let key = format!("{name} {input} {}", why.unwrap_or(""));
                own.put(&key, count, |_| {
                    let mut labels = vec![("input".to_owned(), input.clone())];
                    labels.extend(why.map(|why| ("why".to_owned(), why.to_owned())));
                    Some((name.to_owned(), Labels::new(labels)))
                });
            };
            if let Some(taken) = taken {
                put("strobe_input_samples_total", None, taken);
            }
            for (why, count) in refused.into_iter().filter(|(why, _)| !why.is_empty()) {
                put("strobe_input_refused_total", Some(why), count);
            }
        }
        self.own.finish(now, Absent::Stale, &self.outbox);
    }
}

/// A source's place in the poll.
fn token(kind: usize, index: usize) -> Token {
    debug_assert!(index <= INDEX_MASK, "every list has a bound below it");
    Token(kind | index)
}

/// The next moment of something that is due every so often: what was missed is not made up for.
fn after(due_ns: u64, every_ms: u64, now_ns: u64) -> u64 {
    let every_ns = every_ms.saturating_mul(1_000_000).max(1);
    let missed = now_ns.saturating_sub(due_ns) / every_ns;
    due_ns.saturating_add(every_ns.saturating_mul(missed + 1))
}

/// Inputs of one interval begin apart from each other, the same way in each life.
fn first_ns(name: &str, every_ms: u64, now_ns: u64) -> u64 {
    let hash = name.bytes().fold(17_u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    now_ns + hash % every_ms.clamp(1, SPREAD_MS) * 1_000_000
}

const INDEX_MASK: usize = 0xffff;
const STOP: Token = Token(1 << 16);
const WAKER: Token = Token(2 << 16);
const SCRAPE: usize = 3 << 16;
const COMMAND: usize = 4 << 16;
const DOOR: usize = 5 << 16;
const WRITE: usize = 6 << 16;
const STREAM: usize = 7 << 16;
/// The largest datagram.
const BUFFER_BYTES: usize = 64 << 10;
const TELL_NS: u64 = 15_000_000_000;
const SPREAD_MS: u64 = 1_000;
/// Five of each of 131 inputs.
const OWN_SERIES: usize = 800;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_not_made_up_for() {
        let second = 1_000_000_000;
        assert_eq!(after(5 * second, 1_000, 5 * second), 6 * second);
        assert_eq!(after(5 * second, 1_000, 9 * second + 1), 10 * second);
        assert_eq!(after(5 * second, 1_000, 2 * second), 6 * second, "early is no reason");
        let first = first_ns("node", 15_000, 7);
        assert!((7..7 + SPREAD_MS * 1_000_000).contains(&first));
    }
}
