//! Connections and their streams: what comes off them, and what waits to go onto them.

use super::owners::Resumed;
use super::{Ask, FRAMES_IN_FLIGHT_MAX, Net, Storing};
use crate::certificates::{Enrolment, seconds};
use crate::class::Durability;
use crate::hub::{Subscription, Update};
use crate::ingest::SessionId;
use crate::managed::Running;
use crate::own;
use crate::query::Caller;
use crate::writer::Item;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use strobe_wire::ids::HostId;
use strobe_wire::link::{Alpn, ConnId, Distrust, Event, Received, StreamId};
use strobe_wire::message::{Incoming, Message, Reader, encode, frame_prefix};
use strobe_wire::pki::Subject;

/// A stream of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    pub(super) conn: ConnId,
    pub(super) stream: StreamId,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) alpn: Alpn,
    pub(super) subject: Option<Subject>,
    /// The last second of its certificate.
    pub(super) expires_s: u64,
    pub(super) streams: Vec<StreamId>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) role: StreamRole,
    reader: Reader,
    pub(super) out: VecDeque<Bytes>,
    /// The newest acknowledgement, until `out` takes it.
    pub(super) ack: Option<Bytes>,
    pub(super) end: End,
    /// What an agent said before its hello.
    pub(super) resumed: Resumed,
    /// Of an agent's host, from its hello on.
    pub(super) class: Durability,
}

#[derive(Debug)]
pub(super) enum StreamRole {
    /// Nothing was said yet.
    New,
    Agent(SessionId),
    /// What waited in an agent's spool.
    Replay(SessionId),
    /// A request is being answered to this one.
    Asking(Caller),
    Subscriber(Subscription),
    /// Another broker was asked; its answer is known by this.
    Questioned(u64),
    /// What comes in at this other broker.
    Feed(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Open,
    /// Say that nothing follows when everything is sent, and wait for an answer.
    Half,
    /// Finish the stream when everything is sent.
    AfterOut,
}

impl Stream {
    pub(super) fn new() -> Self {
        let (reader, out) = (Reader::default(), VecDeque::new());
        let resumed = Resumed::default();
        let class = Durability::Wal;
        Self { role: StreamRole::New, reader, out, ack: None, end: End::Open, resumed, class }
    }
}

impl Net {
    #[expect(clippy::needless_pass_by_value, reason = "an event is handled once")]
    pub(super) fn on_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Connected { conn, subject, .. } if self.peer_connected(conn, subject, now) => {}
            Event::Connected { conn, alpn, subject, expires_s, .. } => {
                let expires_s = expires_s.unwrap_or(u64::MAX);
                self.conns.insert(conn, Conn { alpn, subject, expires_s, streams: Vec::new() });
                self.close_if_revoked(conn, now);
            }
            Event::Opened { conn, stream } => {
                if let Some(known) = self.conns.get_mut(&conn) {
                    known.streams.push(stream);
                    self.streams.insert(Place { conn, stream }, Stream::new());
                }
            }
            Event::Readable { conn, stream } => self.readable.push_back(Place { conn, stream }),
            Event::Writable { conn, stream } => self.flush(Place { conn, stream }),
            Event::Room { .. } => {}
            Event::Closed { conn, .. } => {
                self.forget_conn(conn);
                self.peer_gone(conn, now);
            }
        }
    }

    pub(super) fn read(
        &mut self,
        place: Place,
        now: Instant,
        now_ms: i64,
        ask: &mut dyn FnMut(Ask),
    ) {
        let full = self.storing == Storing::No
            || FRAMES_IN_FLIGHT_MAX <= self.frames_in_flight + self.items.len();
        let Some(conn) = self.conns.get(&place.conn) else { return };
        if (full || self.is_withheld(place)) && conn.alpn == Alpn::Agent {
            self.parked.push(place);
            return;
        }
        if self.is_leaving(place) {
            return;
        }
        let Some(stream) = self.streams.get_mut(&place) else { return };
        let received = self.link.recv(place.conn, place.stream, &mut stream.reader);
        let outcome = loop {
            if self.is_leaving(place) {
                break Ok(());
            }
            let Some(stream) = self.streams.get_mut(&place) else { return };
            match stream.reader.pull() {
                Ok(Some(incoming)) => {
                    if let Err(why) = self.on_message(place, incoming, (now, now_ms), ask) {
                        break Err(why);
                    }
                }
                Ok(None) => break Ok(()),
                Err(why) => break Err(why.to_string()),
            }
        };
        if let Err(why) = outcome {
            if self.is_replay(place) {
                log::warn!("a spool from {:?} is refused: {why}", self.link.remote(place.conn));
                // What is live goes on.
                self.link.reset(place.conn, place.stream);
                return self.forget_stream(place);
            }
            log::warn!("connection from {:?} closed: {why}", self.link.remote(place.conn));
            self.refuse(place.conn, &why, now);
            return;
        }
        match received {
            Ok(Received::More) => self.readable.push_back(place),
            Ok(Received::Blocked) => {}
            Ok(Received::Finished) => self.on_finished(place),
            Err(_) => self.forget_stream(place),
        }
    }

    fn on_message(
        &mut self,
        place: Place,
        incoming: Incoming,
        (now, now_ms): (Instant, i64),
        ask: &mut dyn FnMut(Ask),
    ) -> Result<(), String> {
        let message = match incoming {
            Incoming::Frame(bytes) => {
                let conn = self.conns.get(&place.conn).ok_or("the connection is gone")?;
                return match conn.alpn {
                    Alpn::Peer => self.on_peer_bytes(place, bytes, now),
                    _ => self.on_frame(place, bytes, now_ms),
                };
            }
            Incoming::Control(message) => *message,
        };
        let now_s = seconds(now_ms);
        let conn = self.conns.get(&place.conn).ok_or("the connection is gone")?;
        let (alpn, is_past) = (conn.alpn, conn.expires_s < now_s);
        match (alpn, message) {
            (Alpn::Agent | Alpn::Viz, Message::Renew { csr }) => {
                let subject = conn.subject.ok_or("no certificate")?;
                let standing = self.registry.standing(subject.host);
                let signed = self.certificates.renew(place, &csr, standing, now_s)?;
                self.say(place, &signed)
            }
            // Past its end it may renew, for which it is asked, and nothing else.
            (Alpn::Agent, Message::Hello(_)) | (Alpn::Viz, Message::Subscribe) if is_past => {
                self.watch(place, now_s)
            }
            (Alpn::Viz, Message::ApiRequest(_)) if is_past => {
                self.answer(place, own::error(503, "unavailable", &Distrust::Expired.to_string()));
                Ok(())
            }
            (Alpn::Agent | Alpn::Viz, _) if is_past => Err(Distrust::Expired.to_string()),
            (Alpn::Agent, Message::Hello(hello)) => {
                self.watch(place, now_s)?;
                self.on_claim(place, hello, (now, now_ms))
            }
            (Alpn::Agent, message) => self.on_agent(place, message, now),
            (Alpn::Viz, Message::ApiRequest(request)) => {
                self.on_request(place, request, Ask::Api, ask)
            }
            (Alpn::Viz, Message::Subscribe) => {
                self.watch(place, now_s)?;
                let subscription = self.hub.subscribe(self.registry.hosts(), None);
                let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
                stream.role = StreamRole::Subscriber(subscription);
                self.subscribers.insert(place);
                Ok(())
            }
            (Alpn::Peer, message) => self.on_peer_message(place, message, ask),
            (Alpn::Enrol, Message::Enrol { secret, host, role, csr }) => {
                let ask = Enrolment { secret, host: HostId(host), role, csr };
                self.on_enrol(place, ask, now_ms)
            }
            (Alpn::Enrol, Message::Join { secret, address, disk }) => {
                self.on_join(place, &secret, (address, disk), now_ms)
            }
            _ => Err(MISPLACED.to_owned()),
        }
    }

    /// What an agent says before its hello and after it.
    fn on_agent(&mut self, place: Place, message: Message, now: Instant) -> Result<(), String> {
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        match message {
            Message::Resume { acknowledged_seq, silent } => {
                let spooled = stream.resumed.spooled;
                stream.resumed = Resumed { acknowledged_seq, silent, spooled };
                Ok(())
            }
            Message::Spooled { first_seq, last_seq } => {
                stream.resumed.spooled = Some((first_seq, last_seq));
                Ok(())
            }
            Message::Configured { running, proven, refused, why, locked, digest } => {
                let managed = true;
                let said = Running { managed, version: running, proven, refused, why, locked };
                self.on_configured(place, (said, digest), now)
            }
            Message::Answer { id, good, text } => {
                self.registry.managed().answer(id, if good { Ok(text) } else { Err(text) });
                Ok(())
            }
            Message::Replay => self.on_replay(place),
            Message::Schema(schema) => {
                let session = self.session(place)?;
                self.ingest.schema(session, &schema).map_err(|why| why.to_string())?;
                self.items.push(Item::Schema(Arc::new(schema)));
                Ok(())
            }
            _ => Err(MISPLACED.to_owned()),
        }
    }

    fn on_finished(&mut self, place: Place) {
        let Some(stream) = self.streams.get_mut(&place) else { return };
        match stream.role {
            // A request is one message; its answer is still to come.
            StreamRole::Asking(_) => {}
            StreamRole::New if stream.out.is_empty() => self.forget_stream(place),
            StreamRole::New => stream.end = End::AfterOut,
            StreamRole::Questioned(_) | StreamRole::Feed(_) => self.forget_stream(place),
            StreamRole::Agent(_) | StreamRole::Replay(_) | StreamRole::Subscriber(_) => {
                self.link.finish(place.conn, place.stream);
                self.forget_stream(place);
            }
        }
    }

    pub(super) fn say(&mut self, place: Place, message: &Message) -> Result<(), String> {
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        stream.out.push_back(encode(message));
        self.flush(place);
        Ok(())
    }

    pub(super) fn flush(&mut self, place: Place) {
        let Some(stream) = self.streams.get_mut(&place) else { return };
        stream.out.extend(stream.ack.take());
        let sent = self.link.send(place.conn, place.stream, stream.out.make_contiguous());
        stream.out.retain(|chunk| !chunk.is_empty());
        if sent.is_err() {
            self.forget_stream(place);
        } else if stream.out.is_empty() && stream.end != End::Open {
            self.link.finish(place.conn, place.stream);
            if std::mem::replace(&mut stream.end, End::Open) == End::AfterOut {
                self.forget_stream(place);
            }
        }
    }

    pub(super) fn refuse(&mut self, conn: ConnId, why: &str, now: Instant) {
        self.link.close(now, conn, why);
        self.forget_conn(conn);
    }

    pub(super) fn forget_conn(&mut self, conn: ConnId) {
        let Some(gone) = self.conns.remove(&conn) else { return };
        for stream in gone.streams {
            self.forget_stream(Place { conn, stream });
        }
    }

    pub(super) fn forget_stream(&mut self, place: Place) {
        if let Some(conn) = self.conns.get_mut(&place.conn) {
            conn.streams.retain(|stream| *stream != place.stream);
        }
        self.subscribers.remove(&place);
        self.certificates.forget(place);
        self.forget_claim(place);
        let Some(stream) = self.streams.remove(&place) else { return };
        let session = match stream.role {
            StreamRole::Agent(session) => session,
            StreamRole::Replay(session) => {
                self.copies.take(session);
                self.ingest.close(session);
                self.replays.remove(&session);
                return;
            }
            StreamRole::Asking(caller) => return caller.leave(),
            StreamRole::Questioned(ticket) => return self.unanswered(ticket),
            StreamRole::Feed(id) => return self.feed_gone(id, place),
            StreamRole::New | StreamRole::Subscriber(_) => return,
        };
        let whose = self.ingest.whose(session);
        self.copies.take(session);
        self.ingest.close(session);
        self.sessions.remove(&session);
        self.managing.forget(session);
        if let Some((host, _)) = whose
            && let Some(info) = self.registry.gone(host)
        {
            self.hub.publish(&[Update::Host(info)]);
        }
    }
}

/// Puts an update where it waits for the stream.
pub(super) fn push_update(out: &mut VecDeque<Bytes>, update: Update) {
    match update {
        Update::Host(info) => out.push_back(encode(&Message::Host(info))),
        Update::Schema(schema) => out.push_back(encode(&Message::Schema((*schema).clone()))),
        Update::Frame(bytes) => {
            out.push_back(Bytes::copy_from_slice(&frame_prefix(bytes.len())));
            out.push_back(bytes);
        }
        // The frames' own sequence numbers show the gap to the other side.
        Update::Lagged(_) => {}
    }
}

const MISPLACED: &str = "this message is not for this kind of connection";
