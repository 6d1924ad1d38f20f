//! The live view of the whole fleet: what comes in at other brokers, for the dashboards of this one.
//!
//! While anybody looks at a dashboard of this broker, it subscribes at each peer that it is connected to, by a
//! stream of its own, and hands on what comes. A peer is told only what came to this broker itself, so
//! nothing goes round. Of a host the account counts of who has it now, or had it last; of a peer that is
//! gone all hosts are. Who loses: a peer that cannot send as fast as rows come drops the newest, and the
//! dashboard sees the gap by the rows' numbers.

use super::Net;
use super::streams::{Place, Stream, StreamRole};
use crate::hub::Update;
use crate::peers;
use std::collections::BTreeMap;
use std::sync::Arc;
use strobe_wire::message::{ApiRequest, HostInfo, Message, encode};

/// Streams of other brokers' rows.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    open: BTreeMap<u64, Place>,
    /// What each said of hosts.
    hosts: BTreeMap<u64, BTreeMap<u128, HostInfo>>,
}

impl Net {
    /// Subscribes where it is not, or no more.
    pub(super) fn tend_feeds(&mut self) {
        let Some(seat) = &self.seat else { return };
        let wanted = self.hub.is_watched();
        let peers: Vec<u64> = seat.connected().collect();
        if !wanted {
            for place in self.feeds.open.values().copied().collect::<Vec<_>>() {
                self.link.reset(place.conn, place.stream);
                self.forget_stream(place);
            }
            return;
        }
        for id in peers {
            if !self.feeds.open.contains_key(&id) {
                self.open_feed(id);
            }
        }
    }

    fn open_feed(&mut self, id: u64) {
        let conn = self.seat.as_ref().and_then(|seat| seat.connection(id));
        let place = conn.and_then(|conn| Some(Place { conn, stream: self.link.open(conn)? }));
        let Some(place) = place else { return };
        if let Some(known) = self.conns.get_mut(&place.conn) {
            known.streams.push(place.stream);
        }
        let mut stream = Stream::new();
        stream.role = StreamRole::Feed(id);
        stream.out.push_back(encode(&Message::Subscribe));
        self.streams.insert(place, stream);
        self.feeds.open.insert(id, place);
        self.flush(place);
    }

    /// A peer says something else than bytes of the control plane.
    pub(super) fn on_peer_message(
        &mut self,
        place: Place,
        message: Message,
        ask: &mut dyn FnMut(super::Ask),
    ) -> Result<(), String> {
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        match (message, &stream.role) {
            (Message::ApiRequest(request), _) => self.on_peer_request(place, request, ask),
            (Message::ApiResponse(answer), _) => self.on_answer(place, answer),
            (Message::Subscribe, StreamRole::New) => {
                let subscription = self.hub.subscribe_own(self.registry.hosts());
                stream.role = StreamRole::Subscriber(subscription);
                self.subscribers.insert(place);
                Ok(())
            }
            (Message::Schema(schema), StreamRole::Feed(_)) => {
                self.hub.schema(&Arc::new(schema));
                Ok(())
            }
            (Message::Host(info), &StreamRole::Feed(id)) => {
                let host = info.hello.host;
                let known = self.feeds.hosts.entry(id).or_default();
                if known.len() < HOSTS_MAX || known.contains_key(&host) {
                    known.insert(host, info);
                    self.tell_of(&[host]);
                }
                Ok(())
            }
            _ => Err("this message is not for another broker".to_owned()),
        }
    }

    fn on_peer_request(
        &mut self,
        place: Place,
        request: ApiRequest,
        ask: &mut dyn FnMut(super::Ask),
    ) -> Result<(), String> {
        self.on_request(place, request, super::Ask::Peer, ask)
    }

    /// A row that came to another broker; `false` if that stream is none of a feed.
    pub(super) fn on_feed(&self, place: Place, bytes: &bytes::Bytes) -> bool {
        let role = self.streams.get(&place).map(|stream| &stream.role);
        let is_feed = matches!(role, Some(StreamRole::Feed(_)));
        if is_feed {
            self.hub.publish_elsewhere(&[Update::Frame(bytes.clone())]);
        }
        is_feed
    }

    /// The stream is gone; its hosts are with nobody until somebody else says so.
    pub(super) fn feed_gone(&mut self, id: u64, place: Place) {
        if self.feeds.open.get(&id) != Some(&place) {
            return;
        }
        self.feeds.open.remove(&id);
        let mut left = Vec::new();
        for (host, info) in self.feeds.hosts.get_mut(&id).into_iter().flatten() {
            if std::mem::replace(&mut info.connected, false) {
                left.push(*host);
            }
        }
        self.tell_of(&left);
    }

    /// Dashboards hear the best that is known of these hosts.
    fn tell_of(&self, hosts: &[u128]) {
        for host in hosts {
            let told = self.feeds.hosts.values().filter_map(|known| known.get(host));
            let own = self.registry.host(strobe_wire::ids::HostId(*host));
            let best = peers::newest(told.cloned().chain(own));
            best.into_iter().for_each(|info| self.hub.host_elsewhere(info));
        }
    }
}

/// Hosts that one broker may tell of.
const HOSTS_MAX: usize = 100_000;
