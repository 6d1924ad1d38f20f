//! Agents' sessions: hello, frames, and what the writer's reports mean for them.

use super::Net;
use super::streams::{Place, StreamRole};
use crate::class::Durability;
use crate::hub::Update;
use crate::ingest::{Proof, SessionId, Verdict};
use crate::writer::{Item, Unstored};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Instant;
use strobe_journal::Position;
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::message::{Hello, Message, encode};

/// What one turn handed to the writer.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) number: u64,
    pub(super) at: Instant,
    /// Failures that were heard of when it was made.
    pub(super) failures: u64,
    pub(super) frames: usize,
    pub(super) reached: Vec<Reached>,
}

/// How far a boot will be stored when a turn is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    pub(super) host: HostId,
    pub(super) boot: BootId,
    pub(super) session: SessionId,
    /// From its first frame on.
    pub(super) through: u64,
    /// From the session's first frame on.
    pub(super) acknowledged: u64,
}

impl Net {
    pub(super) fn on_hello(
        &mut self,
        place: Place,
        hello: Hello,
        (now, now_ms): (Instant, i64),
    ) -> Result<(), String> {
        let subject = self.conns.get(&place.conn).and_then(|conn| conn.subject);
        let host = subject.ok_or("no certificate")?.host;
        let certificate = self.link.certificate(place.conn).ok_or("no certificate")?;
        let session = SessionId(self.session_next);
        let welcomed = self
            .ingest
            .hello(session, Proof { host, certificate }, &hello, now_ms)
            .map_err(|refusal| refusal.to_string())?;
        self.session_next += 1;
        if let Some(patience) = hello.patience() {
            self.link.be_patient(place.conn, patience);
        }
        let replaced = welcomed.replaced.and_then(|replaced| self.sessions.remove(&replaced));
        if let Some(old) = replaced.filter(|old| old.conn != place.conn) {
            self.refuse(old.conn, "another session of this host took its place", now);
        }
        let stored_seq = self.named(&hello, welcomed.stored.0);
        let class = self.copies.classes.of(&hello);
        let info = self.registry.hello(&hello, now_ms);
        self.hub.publish(&[Update::Host(info)]);
        self.changed.insert(host);
        self.items.push(Item::Host(Box::new(hello)));
        self.sessions.insert(session, place);
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        (stream.role, stream.class) = (StreamRole::Agent(session), class);
        if let Some(spooled) = stream.resumed.spooled {
            // By itself, nobody else can have acknowledged what is not here.
            let elsewhere = self.seat.as_ref().map(|_| stream.resumed.acknowledged_seq);
            self.ingest.spooled(session, spooled, elsewhere);
        }
        if !self.link.is_newest(place.conn) {
            self.on_unmanaged(host);
        }
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.say(place, &Message::Welcome { stored_seq, version })
    }

    pub(super) fn on_frame(
        &mut self,
        place: Place,
        bytes: Bytes,
        now_ms: i64,
    ) -> Result<(), String> {
        let (session, class) = self.session_of(place)?;
        let verdict =
            self.ingest.frame(session, &bytes, now_ms).map_err(|refusal| refusal.to_string())?;
        if let Some((host, boot)) = self.ingest.whose(session) {
            self.touched.insert((host, boot, session));
        }
        let losses = std::iter::from_fn(|| self.ingest.poll_loss());
        self.items.extend(losses.map(|bytes| Item::Frame(bytes, class)));
        if verdict == Verdict::Store && self.is_replay(place) {
            self.late.insert(self.items.len());
        }
        if verdict == Verdict::Store {
            self.items.push(Item::Frame(bytes, class));
        }
        Ok(())
    }

    pub(super) fn on_stored(&mut self, turn: u64, at: Position, now: Instant) {
        let mut acks: BTreeMap<(SessionId, BootId), Reached> = BTreeMap::new();
        while let Some(done) = self.turns.front().filter(|t| t.number <= turn) {
            self.frames_in_flight -= done.frames;
            self.waits.add(done.at, now, done.frames);
            acks.extend(done.reached.iter().map(|of| ((of.session, of.boot), *of)));
            self.turns.pop_front();
        }
        let some_wait = self.copies.classes.any_is_copied();
        for reached in acks.into_values() {
            if some_wait && self.copies.holds(self.class_of(reached.session), at) {
                self.copies.hold(at, reached);
            } else {
                self.acknowledge(reached);
            }
        }
    }

    /// It is where its class wants it.
    pub(super) fn acknowledge(&mut self, reached: Reached) {
        let Reached { host, boot, session, through, acknowledged } = reached;
        self.ingest.stored(host, boot, through);
        // A spool's boots come one behind the other: the last one's word is for all before.
        if self.ingest.whose(session) != Some((host, boot)) {
            return;
        }
        let place = self.sessions.get(&session).or_else(|| self.replays.get(&session)).copied();
        let Some(place) = place else { return };
        let Some(stream) = self.streams.get_mut(&place) else { return };
        // A peer that does not read its acknowledgements gets only the newest, and everything
        // else that was said to it.
        stream.ack = Some(encode(&Message::Ack { boot: boot.0, seq: acknowledged }));
        self.acks += 1;
        if stream.out.is_empty() {
            self.flush(place);
        }
    }

    pub(super) fn on_failed(&mut self, turn: u64, frames: &[Unstored], why: &str, now: Instant) {
        for frame in frames {
            self.ingest.forget(frame.host, frame.boot, frame.first, frame.last);
        }
        let Some(at) = self.turns.iter().position(|t| t.number == turn) else { return };
        let Some(failed) = self.turns.remove(at) else { return };
        self.frames_in_flight -= failed.frames;
        // They resend from what is stored when they come back.
        for Reached { session, .. } in failed.reached {
            let place = self.sessions.get(&session).or_else(|| self.replays.get(&session)).copied();
            if let Some(place) = place {
                self.refuse(place.conn, why, now);
            }
        }
    }

    /// An agent sends its spool beside what is live.
    pub(super) fn on_replay(&mut self, place: Place) -> Result<(), String> {
        let beside = self.sessions.iter().find(|(_, live)| live.conn == place.conn);
        let live = *beside.ok_or("a spool before the hello")?.0;
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        if !matches!(stream.role, StreamRole::New) {
            return Err("a second meaning of one stream".to_owned());
        }
        let session = SessionId(self.session_next);
        self.ingest.replay_begins(session, live).map_err(|refusal| refusal.to_string())?;
        self.session_next += 1;
        stream.role = StreamRole::Replay(session);
        let class = self.class_of(live);
        if let Some(stream) = self.streams.get_mut(&place) {
            stream.class = class;
        }
        self.replays.insert(session, place);
        Ok(())
    }

    pub(super) fn is_replay(&self, place: Place) -> bool {
        let role = self.streams.get(&place).map(|stream| &stream.role);
        matches!(role, Some(StreamRole::Replay(_)))
    }

    pub(super) fn session(&self, place: Place) -> Result<SessionId, String> {
        self.session_of(place).map(|(session, _)| session)
    }

    fn session_of(&self, place: Place) -> Result<(SessionId, Durability), String> {
        match self.streams.get(&place).map(|stream| (&stream.role, stream.class)) {
            Some((StreamRole::Agent(session) | StreamRole::Replay(session), class)) => {
                Ok((*session, class))
            }
            _ => Err("an agent says hello first".to_owned()),
        }
    }
}
