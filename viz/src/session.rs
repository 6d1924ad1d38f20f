//! One conversation with a broker: the subscription, the calls, the renewal of the certificate.
//!
//! When the broker says on the subscription that the certificate nears its end, another is asked
//! for there, and with it a second connection is made. Calls go to the second from then on; the
//! first is left `OVERLAP` after the second subscribed and when its calls are answered, so that
//! no update and no answer is missed. What comes twice in between the viewer knows by its number.
//!
//! A state machine: the loop in `link_run.rs` moves the link's datagrams and reads the clock.

use bytes::Bytes;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strobe_wire::link::{Alpn, ConnId, Dial, Event, Link, LinkError, Received, StreamId, Why};
use strobe_wire::message::{Incoming, Message, Reader, encode};
use strobe_wire::pki::{self, Identity};

use crate::backend::{Update, unavailable};
use crate::remote::{Call, RemoteEnd};

/// A connection, and for a while two.
pub(crate) struct Session<'a> {
    pub(crate) link: Link,
    broker: SocketAddr,
    identity: Identity,
    dir: &'a Path,
    end: &'a RemoteEnd,
    /// Where calls go.
    conn: ConnId,
    /// Made with a new certificate, not there yet.
    next: Option<ConnId>,
    /// The one before, and until when its updates are wanted.
    old: Option<(ConnId, Instant)>,
    streams: HashMap<Place, Stream>,
    /// The private key (PKCS#8) of the request that is with the broker.
    renewing: Option<Vec<u8>>,
    over: Option<Why>,
}

/// What a [`Session`] is made of.
pub(crate) struct Parts<'a> {
    /// With the identity, and no connection.
    pub(crate) link: Link,
    pub(crate) broker: SocketAddr,
    pub(crate) identity: Identity,
    /// Where the identity is kept.
    pub(crate) dir: &'a Path,
    pub(crate) end: &'a RemoteEnd,
}

type Place = (ConnId, StreamId);

struct Stream {
    out: Bytes,
    reader: Reader,
    /// `None` is a subscription.
    call: Option<Call>,
}

impl<'a> Session<'a> {
    /// Begins to connect.
    pub(crate) fn dial(now: Instant, parts: Parts<'a>) -> Result<Self, LinkError> {
        let Parts { mut link, broker, identity, dir, end } = parts;
        let conn = link.connect(now, broker, &Dial::With(Alpn::Viz))?;
        let (next, old, renewing, over) = (None, None, None, None);
        let streams = HashMap::new();
        Ok(Self { link, broker, identity, dir, end, conn, next, old, streams, renewing, over })
    }

    /// Events, calls, and what time has brought.
    pub(crate) fn turn(&mut self, now: Instant) {
        while let Some(event) = self.link.poll() {
            self.told(now, &event);
        }
        self.take_calls();
        self.drop_calls();
        self.leave_old(now);
    }

    /// Why it is over, if it is.
    pub(crate) fn over(&self) -> Option<Why> {
        self.over.clone()
    }

    /// Answers what is left with the loss; the identity it ended with.
    pub(crate) fn leave(mut self) -> Identity {
        self.abandon(None);
        self.identity
    }

    fn told(&mut self, now: Instant, event: &Event) {
        match event {
            Event::Connected { conn, .. } => self.subscribe(now, *conn),
            Event::Closed { conn, why } if *conn == self.conn => self.over = Some(why.clone()),
            Event::Closed { conn, why } if Some(*conn) == self.next => {
                // The one there is goes on, and the broker asks again.
                log::warn!("no connection with the new certificate: {why}");
                self.next = None;
            }
            Event::Closed { conn, .. } => self.abandon(Some(*conn)),
            Event::Readable { conn, stream } => self.read(now, (*conn, *stream)),
            Event::Writable { conn, stream } => self.write((*conn, *stream)),
            Event::Opened { .. } | Event::Room { .. } => {}
        }
    }

    fn subscribe(&mut self, now: Instant, conn: ConnId) {
        if Some(conn) == self.next {
            self.next = None;
            self.old = Some((self.conn, now + OVERLAP));
            self.conn = conn;
        }
        match self.link.open(conn) {
            Some(stream) => self.begin((conn, stream), &Message::Subscribe, None),
            None => self.over = Some(Why::Failed("the broker allows no stream".to_owned())),
        }
        self.end.connected(true);
    }

    /// Lets the connection before go, when nobody misses it.
    fn leave_old(&mut self, now: Instant) {
        let Some((old, until)) = self.old else { return };
        let called =
            self.streams.iter().any(|((conn, _), stream)| *conn == old && stream.call.is_some());
        if until <= now && !called {
            self.link.close(now, old, "renewed");
            self.abandon(Some(old));
        }
    }

    /// Sends a new stream's first message.
    fn begin(&mut self, place: Place, message: &Message, call: Option<Call>) {
        let stream = Stream { out: encode(message), reader: Reader::default(), call };
        self.streams.insert(place, stream);
        self.write(place);
    }

    fn take_calls(&mut self) {
        while let Some(call) = self.end.call() {
            match self.link.open(self.conn) {
                Some(stream) => {
                    let message = Message::ApiRequest(call.request.clone());
                    self.begin((self.conn, stream), &message, Some(call));
                }
                None => call.answer(unavailable(503, "too many requests are with the broker")),
            }
        }
    }

    /// Calls whose caller hung up: the broker is told to stop working on them.
    fn drop_calls(&mut self) {
        let over = |stream: &mut Stream| stream.call.as_ref().is_some_and(Call::is_over);
        for (place, _) in self.streams.extract_if(|_, stream| over(stream)) {
            self.link.reset(place.0, place.1);
        }
    }

    fn write(&mut self, place: Place) {
        let Some(stream) = self.streams.get_mut(&place) else { return };
        if stream.out.is_empty() {
            return;
        }
        let mut chunks = [std::mem::take(&mut stream.out)];
        let sent = self.link.send(place.0, place.1, &mut chunks);
        let [left] = chunks;
        match sent {
            Ok(_) if left.is_empty() && stream.call.is_some() => {
                self.link.finish(place.0, place.1);
            }
            Ok(_) => stream.out = left,
            Err(error) => self.end_stream(place, &error.to_string()),
        }
    }

    fn read(&mut self, now: Instant, place: Place) {
        loop {
            let Some(stream) = self.streams.get_mut(&place) else { return };
            let received = match self.link.recv(place.0, place.1, &mut stream.reader) {
                Ok(received) => received,
                Err(error) => return self.end_stream(place, &error.to_string()),
            };
            loop {
                let Some(stream) = self.streams.get_mut(&place) else { return };
                match stream.reader.pull() {
                    Ok(Some(incoming)) => self.said(now, place, incoming),
                    Ok(None) => break,
                    Err(error) => {
                        self.link.reset(place.0, place.1);
                        return self.end_stream(place, &error.to_string());
                    }
                }
            }
            match received {
                Received::More => {}
                Received::Blocked => return,
                Received::Finished => {
                    return self.end_stream(place, "the broker ended the stream");
                }
            }
        }
    }

    fn said(&mut self, now: Instant, place: Place, incoming: Incoming) {
        let end = self.end;
        let message = match incoming {
            Incoming::Frame(bytes) => return end.update(Update::Frame(bytes)),
            Incoming::Control(message) => *message,
        };
        match message {
            Message::Host(info) => end.update(Update::Host(info)),
            Message::Schema(schema) => end.update(Update::Schema(Arc::new(schema))),
            Message::ApiResponse(response) => {
                if let Some(call) = self.streams.remove(&place).and_then(|stream| stream.call) {
                    call.answer(response);
                }
            }
            Message::RenewDue if place.0 == self.conn => self.ask(place),
            // Of the connection before, which has its successor.
            Message::RenewDue => {}
            Message::Enrolled { certificate, ca } => self.renewed(now, certificate, &ca),
            Message::Refused { why } => self.end_stream(place, &why),
            _ => {
                let why = "the broker said what only an agent hears".to_owned();
                self.over = Some(Why::Failed(why));
            }
        }
    }

    fn ask(&mut self, place: Place) {
        if self.renewing.is_some() || self.next.is_some() {
            return;
        }
        let Some(stream) = self.streams.get_mut(&place) else { return };
        match pki::request() {
            Ok((key_der, csr)) if stream.out.is_empty() => {
                self.renewing = Some(key_der);
                stream.out = encode(&Message::Renew { csr });
                self.write(place);
            }
            // The broker asks again.
            Ok(_) => {}
            Err(why) => log::warn!("the certificate is not renewed: {why}"),
        }
    }

    fn renewed(&mut self, now: Instant, certificate: Vec<u8>, ca: &[u8]) {
        let Some(key) = self.renewing.take() else { return };
        let dialled =
            self.identity.renewed(key, certificate, ca).map_err(LinkError::from).and_then(
                |identity| {
                    self.link.set_identity(identity.clone())?;
                    Ok((identity, self.link.connect(now, self.broker, &Dial::With(Alpn::Viz))?))
                },
            );
        match dialled {
            Ok((identity, conn)) => {
                if let Err(why) = identity.save(self.dir) {
                    log::warn!("the renewed certificate is used but not kept: {why}");
                }
                log::info!("the certificate is renewed");
                self.identity = identity;
                self.next = Some(conn);
            }
            Err(why) => log::warn!("the certificate is not renewed: {why}"),
        }
    }

    fn end_stream(&mut self, place: Place, why: &str) {
        match self.streams.remove(&place).map(|stream| stream.call) {
            Some(Some(call)) => call.answer(unavailable(502, why)),
            // The subscription: without it there is nothing to show.
            Some(None) if self.over.is_none() && place.0 == self.conn => {
                self.over = Some(Why::Failed(why.to_owned()));
            }
            Some(None) | None => {}
        }
    }

    /// Ends the streams of a connection that is over, or of all.
    fn abandon(&mut self, conn: Option<ConnId>) {
        if conn.is_some() && conn == self.old.map(|(old, _)| old) {
            self.old = None;
        }
        let gone = |place: &Place| conn.is_none_or(|conn| conn == place.0);
        for (_, stream) in self.streams.extract_if(|place, _| gone(place)) {
            if let Some(call) = stream.call {
                call.answer(unavailable(502, "the link to the broker was lost; try again"));
            }
        }
    }
}

/// What a broker published before the second subscription has come by the first by then.
const OVERLAP: Duration = Duration::from_secs(1);
