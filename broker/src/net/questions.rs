//! Questions to other brokers for what they have stored, and theirs: one stream each, on the connection
//! that carries the control plane.
//!
//! A question that finds no connection, and one whose connection ends, is told so at once: who asked
//! goes on with what there is.

use super::streams::{End, Place, Stream, StreamRole};
use super::{Ask, Net};
use crate::query::Caller;
use std::collections::{BTreeMap, VecDeque};
use strobe_wire::message::{ApiRequest, ApiResponse, Message, encode};

/// Questions that are under way, and what came of others.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: BTreeMap<u64, Place>,
    answers: VecDeque<(u64, Option<ApiResponse>)>,
}

impl Net {
    /// Asks another broker; [`Self::poll_answer`] tells what it says.
    pub fn question(&mut self, to: u64, ticket: u64, request: ApiRequest) {
        let conn = self.seat.as_ref().and_then(|seat| seat.connection(to));
        let place = conn.and_then(|conn| Some(Place { conn, stream: self.link.open(conn)? }));
        let Some(place) = place else {
            self.questions.answers.push_back((ticket, None));
            return;
        };
        if let Some(known) = self.conns.get_mut(&place.conn) {
            known.streams.push(place.stream);
        }
        let mut stream = Stream::new();
        (stream.role, stream.end) = (StreamRole::Questioned(ticket), End::Half);
        stream.out.push_back(encode(&Message::ApiRequest(request)));
        self.streams.insert(place, stream);
        self.questions.open.insert(ticket, place);
        self.flush(place);
    }

    /// Nobody waits for this answer any more.
    pub fn forget_question(&mut self, ticket: u64) {
        if let Some(place) = self.questions.open.remove(&ticket) {
            self.link.reset(place.conn, place.stream);
            self.forget_stream(place);
        }
    }

    /// What came of a question; `None` for one that has no answer.
    pub fn poll_answer(&mut self) -> Option<(u64, Option<ApiResponse>)> {
        self.questions.answers.pop_front()
    }

    /// A dashboard's request, or another broker's.
    pub(super) fn on_request(
        &mut self,
        place: Place,
        request: ApiRequest,
        of: fn(Place, ApiRequest, Caller) -> Ask,
        ask: &mut dyn FnMut(Ask),
    ) -> Result<(), String> {
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        if !matches!(stream.role, StreamRole::New) {
            return Err("a second request on one stream".to_owned());
        }
        let caller = Caller::default();
        stream.role = StreamRole::Asking(caller.clone());
        ask(of(place, request, caller));
        Ok(())
    }

    pub(super) fn on_answer(&mut self, place: Place, answer: ApiResponse) -> Result<(), String> {
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        let StreamRole::Questioned(ticket) = stream.role else {
            return Err("an answer without a question".to_owned());
        };
        stream.role = StreamRole::New;
        self.questions.open.remove(&ticket);
        self.questions.answers.push_back((ticket, Some(answer)));
        Ok(())
    }

    /// The stream of a question is gone.
    pub(super) fn unanswered(&mut self, ticket: u64) {
        if self.questions.open.remove(&ticket).is_some() {
            self.questions.answers.push_back((ticket, None));
        }
    }
}
