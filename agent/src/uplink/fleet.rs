//! What a broker says that is for others than the uplink: versions of the configuration, and questions. It
//! only carries them, and what is said to them.
//!
//! Bounds: one version, the newest; [`ASKED_MAX`] questions, further ones are answered with a refusal.

use super::{State, Uplink};
use crate::managed::Pushed;
use crate::ring::Reader as Ring;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use strobe_wire::link::Link;
use strobe_wire::message::{Hello, Message, Question, encode};

#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// The broker that takes frames now understands answers.
    speaks: bool,
    /// How this host stands to the fleet's configuration; said whenever a broker is new.
    standing: Option<Message>,
    pub(super) pushed: Option<Pushed>,
    asked: VecDeque<(u64, Question)>,
    refused: Vec<u64>,
}

impl Fleet {
    /// What a broker is told first.
    pub(super) fn welcomed(&mut self) -> Option<Bytes> {
        self.speaks = true;
        self.standing.as_ref().map(encode)
    }

    pub(super) fn asks(&mut self, id: u64, what: Question) {
        if self.asked.len() < ASKED_MAX {
            self.asked.push_back((id, what));
        } else if self.refused.len() < ASKED_MAX {
            self.refused.push(id);
        }
    }

    pub(super) fn gone(&mut self) {
        *self = Self { standing: self.standing.take(), ..Self::default() };
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.pushed.is_none() && self.asked.is_empty() && self.refused.is_empty()
    }
}

impl Uplink {
    /// The version that a broker offers, once.
    pub fn pushed(&mut self) -> Option<Pushed> {
        self.fleet.pushed.take()
    }

    /// The next question, once; its number is 0 where no answer is heard.
    pub fn asked(&mut self) -> Option<(u64, Question)> {
        for id in std::mem::take(&mut self.fleet.refused) {
            self.answer(
                id,
                Err("too much is being asked of this host; ask again later".to_owned()),
            );
        }
        self.fleet.asked.pop_front()
    }

    /// How this host stands to the fleet's configuration, for this broker and those to come.
    pub fn stands(&mut self, standing: Message) {
        if self.fleet.speaks {
            self.chunks.push_back(encode(&standing));
        }
        self.fleet.standing = Some(standing);
    }

    /// An answer; nobody hears it any more if the broker that asked is gone.
    pub fn answer(&mut self, id: u64, answer: Result<String, String>) {
        if self.fleet.speaks && id != 0 {
            let good = answer.is_ok();
            let text = answer.unwrap_or_else(|why| why);
            self.chunks.push_back(encode(&Message::Answer { id, good, text }));
        }
    }

    /// From now on this is who greets a broker; the one that is there is greeted anew, soon.
    pub fn introduce(&mut self, now: Instant, hello: Hello, link: &mut Link, ring: &mut Ring) {
        if self.hello == hello {
            return;
        }
        self.hello = hello;
        if let Some(conn) = self.conn() {
            link.close(now, conn, "another configuration; connecting anew");
            self.forget_connection(ring);
            // A fleet that is configured does not come back in step.
            self.state = State::Waiting { until: now + self.back_off.spread(SPREAD) };
        }
    }
}

const ASKED_MAX: usize = 4;
const SPREAD: Duration = Duration::from_millis(500);
