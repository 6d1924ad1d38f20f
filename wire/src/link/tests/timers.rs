//! When a link wants to be woken.

use super::*;

/// Each keep-alive armed a loss timer, and its entry stayed when the acknowledgement came: the
/// agent woke once a tick for nothing.
#[test]
fn a_timer_that_is_needed_no_more_wakes_nobody() {
    let ca = authority();
    let mut pair = Pair::new(&server(&ca), &agent(&ca));
    pair.connect(&Dial::With(Alpn::Agent));
    pair.connected_at_server();
    let quiet = pair.now + Duration::from_secs(10);
    while pair.now < quiet {
        assert!(pair.step());
    }
    let (end, sent, mut steps) = (pair.now + Duration::from_secs(60), pair.sent, 0);
    while pair.now < end {
        assert!(pair.step());
        steps += 1;
    }
    // A datagram is a timer's and an arrival's.
    assert!(steps <= 2 * (pair.sent - sent), "{steps} steps for {} datagrams", pair.sent - sent);
}

/// An agent and its broker: the agent looks at its socket once a second, when it sends a row, and
/// the broker acknowledges 30 ms after that.
struct Seldom {
    pair: Pair,
    ends: [(ConnId, StreamId); 2],
    /// What came for the agent since it looked, and when.
    inbox: Vec<(Instant, Vec<u8>)>,
    looked: Instant,
    heard: Reader,
    read: Reader,
    rows: usize,
    acks: usize,
}

impl Seldom {
    fn new(patience: Option<Duration>) -> Self {
        let ca = authority();
        let mut pair = Pair::new(&server(&ca), &agent(&ca));
        let conn = pair.connect(&Dial::With(Alpn::Agent));
        let (at_server, ..) = pair.connected_at_server();
        let stream = pair.client.open(conn).unwrap();
        if let Some(patience) = patience {
            pair.server.be_patient(at_server, patience);
        }
        // The path's MTU is found, and all of that acknowledged.
        let settled = pair.now + Duration::from_secs(3);
        while pair.now < settled {
            assert!(pair.step());
        }
        let looked = pair.now;
        let ends = [(conn, stream), (at_server, stream)];
        let (heard, read) = (Reader::default(), Reader::default());
        Self { pair, ends, inbox: Vec::new(), looked, heard, read, rows: 0, acks: 0 }
    }

    fn traffic(&mut self) -> [Traffic; 2] {
        let [(conn, _), (at_server, _)] = self.ends;
        [self.pair.client.traffic(conn).unwrap(), self.pair.server.traffic(at_server).unwrap()]
    }

    /// A second at whose beginning the agent looks and sends; whether that arrives.
    fn tick(&mut self, arrives: bool) {
        self.look();
        self.send(arrives);
    }

    fn look(&mut self) {
        let (now, since) = (self.pair.now, self.looked);
        self.looked = now;
        let [(conn, stream), _] = self.ends;
        let client = &mut self.pair.client;
        for (at, bytes) in self.inbox.drain(..) {
            let bytes = BytesMut::from(&*bytes);
            let from = Pair::server_addr();
            client.handle(at.max(since), Datagram { from, to: None, ecn: 0, bytes });
        }
        client.on_timeout(now);
        let _ = client.recv(conn, stream, &mut self.heard);
        while self.heard.pull().unwrap().is_some() {
            self.acks += 1;
        }
    }

    fn send(&mut self, arrives: bool) {
        let now = self.pair.now;
        self.pair.now += Duration::from_secs(1);
        let [(conn, stream), (at_server, _)] = self.ends;
        let client = &mut self.pair.client;
        let row = Bytes::from(vec![7; 1000]);
        client.send(conn, stream, &mut [Bytes::copy_from_slice(&frame_prefix(1000)), row]).unwrap();
        let arrived = transmitted(client, now);
        let server = &mut self.pair.server;
        let arrival = now + Duration::from_millis(10);
        for bytes in arrived.into_iter().filter(|_| arrives) {
            let bytes = BytesMut::from(&*bytes);
            server.handle(arrival, Datagram { from: Pair::client_addr(), to: None, ecn: 0, bytes });
        }
        let _ = server.recv(at_server, stream, &mut self.read);
        let mut answer_at = Some(arrival + Duration::from_millis(30));
        let mut at = arrival;
        while at < now + Duration::from_secs(1) {
            server.on_timeout(at);
            if answer_at.is_some_and(|answer| answer <= at) {
                answer_at = None;
                while self.read.pull().unwrap().is_some() {
                    self.rows += 1;
                    let ack = encode(&Message::Ack { boot: 1, seq: self.rows as u64 });
                    server.send(at_server, stream, &mut [ack]).unwrap();
                }
            }
            let came = at + Duration::from_millis(10);
            self.inbox.extend(transmitted(server, at).into_iter().map(|bytes| (came, bytes)));
            let next = [answer_at, server.timeout()].into_iter().flatten().min();
            at = next.unwrap_or(now + Duration::from_secs(1)).max(at);
        }
    }
}

fn transmitted(link: &mut Link, now: Instant) -> Vec<Vec<u8>> {
    let (mut sent, mut out) = (Vec::new(), Vec::new());
    while let Some(transmit) = link.transmit(now, 1, &mut out) {
        sent.push(out[..transmit.bytes].to_vec());
        out.clear();
    }
    sent
}

/// An agent that reads its acknowledgements with the next tick costs one datagram each way a tick.
#[test]
fn an_agent_that_looks_once_a_tick_is_not_asked_again() {
    let mut seldom = Seldom::new(Some(Duration::from_millis(1500)));
    for _ in 0..5 {
        seldom.tick(true);
    }
    let before = seldom.traffic();
    for _ in 0..60 {
        seldom.tick(true);
    }
    assert_eq!((seldom.rows, seldom.acks), (65, 64));
    for (after, before) in seldom.traffic().iter().zip(before) {
        let sent = after.sent - before.sent;
        assert!((60..=62).contains(&sent) && after.lost == 0, "{sent}, {after:?}");
    }
    let [(conn, _), _] = seldom.ends;
    let rtt = seldom.pair.client.rtt(conn).unwrap();
    assert!(
        rtt < Duration::from_millis(60),
        "as of when it came, not of when it was read: {rtt:?}"
    );
}

#[test]
fn an_agent_that_looks_every_second_tick_is_not_asked_again() {
    let mut seldom = Seldom::new(Some(Duration::from_millis(2500)));
    for _ in 0..35 {
        seldom.tick(true);
        seldom.send(true);
    }
    assert_eq!((seldom.rows, seldom.acks), (70, 68));
    for traffic in seldom.traffic() {
        assert!(traffic.lost == 0 && traffic.sent < 95, "{traffic:?}");
    }
}

/// Without patience a broker sends its acknowledgement again and again.
#[test]
fn a_broker_without_patience_asks_again() {
    let mut seldom = Seldom::new(None);
    for _ in 0..5 {
        seldom.tick(true);
    }
    let [_, server] = seldom.traffic();
    assert!(15 < server.sent, "{server:?}");
}

/// The acknowledgement of the next tick tells of a row that was lost. An agent that reads it at
/// once, because it misses its own, sends the row again at once; this one a second later.
#[test]
fn a_row_that_is_lost_comes_again() {
    let mut seldom = Seldom::new(Some(Duration::from_millis(1500)));
    for tick in 0..60 {
        seldom.tick(tick % 20 != 9);
        let missing = matches!(tick % 20, 9 | 10);
        assert!(missing || seldom.rows == tick + 1, "{} rows at {tick}", seldom.rows);
    }
    let [_, server] = seldom.traffic();
    assert!(server.sent < 100, "{server:?}");
}
