//! Tables of requests and their fate, time-outs on a virtual clock, and any bytes in any cuts.

#![expect(clippy::indexing_slicing, reason = "tests may panic")]

use super::*;
use proptest::prelude::*;

fn limits() -> FrontLimits {
    FrontLimits {
        head_bytes_max: 16 << 10,
        headers_max: 64,
        target_bytes_max: 8 << 10,
        body_bytes_max: 16 << 20,
        head_timeout_ms: 10_000,
        body_timeout_ms: 30_000,
        idle_timeout_ms: 60_000,
        requests_max: 3,
    }
}

fn policy() -> HostPolicy {
    HostPolicy { names: vec!["strobe.example".into()] }
}

fn poll(front: &mut Front, now_ms: u64) -> Option<Event> {
    front.poll(now_ms, &limits(), &policy(), 1 << 20)
}

/// Everything a client gets for `bytes` at once.
fn run(bytes: &[u8]) -> Vec<Event> {
    let limits = limits();
    let mut front = Front::new(0, &limits);
    let mut events = Vec::new();
    let mut rest = bytes;
    loop {
        let taken = front.push(rest, &limits);
        rest = &rest[taken..];
        match poll(&mut front, 1) {
            Some(event) => {
                let request = matches!(event, Event::Request(_));
                events.push(event);
                if request && front.answered(1, &limits) == Next::Close {
                    return events;
                }
            }
            None if rest.is_empty() || taken == 0 => return events,
            None => {}
        }
    }
}

fn fate(bytes: &[u8]) -> String {
    let name = |event: &Event| match event {
        Event::Continue => "100".to_owned(),
        Event::Request(r) => format!("{} {} {}", r.method.text(), r.target, r.body.len()),
        Event::Upgrade { rest, .. } => format!("101 {}", rest.len()),
        Event::Refused(r) => r.status.to_string(),
        Event::Close => "close".to_owned(),
    };
    run(bytes).iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The bound holds to the byte, whether the head ends behind it or not at all.
#[test]
fn a_head_may_be_as_long_as_the_bound_and_no_longer() {
    let head = |length: usize| {
        let before = "GET / HTTP/1.1\r\nHost: localhost\r\nX: ";
        format!("{before}{}\r\n\r\n", "x".repeat(length - before.len() - 4))
    };
    let max = limits().head_bytes_max;
    assert!(matches!(&run(head(max).as_bytes())[..], [Event::Request(_)]));
    for bytes in [head(max + 1).as_bytes(), &head(max + 5).as_bytes()[..=max]] {
        let refused = run(bytes);
        assert!(
            matches!(&refused[..], [Event::Refused(Refusal { status: 431, .. })]),
            "{refused:?}"
        );
    }
}

#[test]
fn requests_and_their_fate() {
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(64));
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(17 << 10));
    let target = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "y".repeat(9 << 10));
    let table: &[(&str, &str)] = &[
        ("GET /a?b HTTP/1.1\r\nHost: localhost:7800\r\n\r\n", "GET /a?b 0"),
        ("\r\nGET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "GET / 0"),
        ("GET / HTTP/1.1\r\nHost: [::1]:7800\r\n\r\n", "GET / 0"),
        ("GET / HTTP/1.1\r\nHost: Strobe.Example\r\n\r\n", "GET / 0"),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: localhost:x\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", "400"),
        ("GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("GET / HTTP/1.1\nHost: localhost\n\n\r\n\r\n", "400"),
        ("GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", "505"),
        ("PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n", "405"),
        ("\x16\x03\x01", "400"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", "POST / 3"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", "411"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16777217\r\n\r\n", "413"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n", "503"),
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18446744073709551615\r\n\r\n",
            "413",
        ),
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "413",
        ),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\n", "400"),
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n",
            "100",
        ),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nExpect: tea\r\n\r\n", "417"),
        (&many, "431"),
        (&long, "431"),
        (&target, "414"),
        // Three requests are the connection's limit here: the fourth is not read.
        (&"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(4), "GET / 0, GET / 0, GET / 0"),
        (
            "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\n",
            "GET / 0",
        ),
        ("GET / HTTP/1.0\r\nHost: localhost\r\n\r\nGET / HTTP/1.0\r\n", "GET / 0"),
    ];
    for (bytes, wanted) in table {
        assert_eq!(
            fate(bytes.as_bytes()),
            *wanted,
            "{}",
            bytes.chars().take(90).collect::<String>()
        );
    }
}

#[test]
fn websockets_of_other_sites_are_refused() {
    let ask = |host: &str, more: &str| {
        fate(
            format!(
                "GET /live HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: keep-alive, \
                 Upgrade\r\nSec-WebSocket-Version: 13\r\n{more}\r\n\r\nxy"
            )
            .as_bytes(),
        )
    };
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let table: &[(&str, &str, &str)] = &[
        ("localhost:7800", "", "101 2"),
        ("localhost:7800", "\r\nOrigin: http://localhost:7800", "101 2"),
        ("strobe.example", "\r\nOrigin: https://strobe.example", "101 2"),
        ("strobe.example", "\r\nOrigin: https://strobe.example:443", "101 2"),
        ("localhost:7800", "\r\nOrigin: http://localhost:3000", "403"),
        ("localhost:7800", "\r\nOrigin: http://evil.example", "403"),
        ("localhost:7800", "\r\nOrigin: null", "403"),
        ("localhost:7800", "\r\nOrigin: file://localhost:7800", "403"),
        ("127.0.0.1:7800", "\r\nOrigin: http://localhost:7800", "403"),
        ("evil.example", "\r\nOrigin: http://evil.example", "421"),
    ];
    for (host, more, wanted) in table {
        assert_eq!(ask(host, &format!("{key}{more}")), *wanted, "{host} {more}");
    }
    assert_eq!(ask("localhost", "Sec-WebSocket-Key: short"), "400");
    assert_eq!(fate(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"), "426");
}

#[test]
fn a_slow_head_is_given_up_at_its_deadline_however_it_drips() {
    let limits = limits();
    let mut front = Front::new(0, &limits);
    let mut drip =
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".iter().chain(std::iter::repeat(&b'y'));
    for now in (0..10_000).step_by(100) {
        front.push(&[*drip.next().unwrap()], &limits);
        assert_eq!(poll(&mut front, now), None, "at {now}");
    }
    assert_eq!(front.timeout(), Some(10_000));
    assert!(matches!(poll(&mut front, 10_000), Some(Event::Refused(Refusal { status: 408, .. }))));
    assert_eq!(front.timeout(), None);
}

#[test]
fn a_silent_or_idle_client_is_closed_and_a_slow_body_given_up() {
    let limits = limits();
    let mut front = Front::new(5, &limits);
    assert_eq!(poll(&mut front, 10_004), None);
    assert_eq!(poll(&mut front, 10_005), Some(Event::Close));

    let mut front = Front::new(0, &limits);
    front.push(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &limits);
    assert!(matches!(poll(&mut front, 0), Some(Event::Request(_))));
    assert_eq!(front.timeout(), None, "the worker's time is the loop's to watch");
    assert_eq!(front.answered(100, &limits), Next::Poll);
    assert_eq!(front.timeout(), Some(60_100));
    front.push(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\na", &limits);
    assert_eq!(poll(&mut front, 50_000), None);
    assert_eq!(front.timeout(), Some(80_000));
    assert!(matches!(poll(&mut front, 80_000), Some(Event::Refused(Refusal { status: 408, .. }))));
}

#[test]
fn pipelining_is_bounded_while_a_request_is_out() {
    let limits = limits();
    let mut front = Front::new(0, &limits);
    front.push(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &limits);
    assert!(matches!(poll(&mut front, 0), Some(Event::Request(_))));
    let flood = vec![b'G'; 1 << 20];
    assert_eq!(front.push(&flood, &limits), limits.head_bytes_max + 1);
    assert!(!front.wants_read(&limits));
    assert_eq!(front.push(&flood, &limits), 0);
    assert_eq!(poll(&mut front, 0), None);
}

proptest! {
    #[test]
    fn any_bytes_in_any_cuts_are_bounded_and_never_panic(
        start in prop_oneof![
            Just(&b""[..]),
            Just(&b"GET / HTTP/1.1\r\nHost: localhost\r\n"[..]),
            Just(&b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"[..]),
            Just(&b"GET /live HTTP/1.1\r\nHost: localhost\r\nOrigin: "[..]),
        ],
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
    ) {
        let limits = limits();
        let mut front = Front::new(0, &limits);
        front.push(start, &limits);
        for (index, part) in parts.iter().enumerate() {
            front.push(part, &limits);
            prop_assert!(front.buffer.len() <= limits.head_bytes_max + 1);
            while let Some(event) = poll(&mut front, u64::try_from(index).unwrap()) {
                if let Event::Request(_) = event { front.answered(0, &limits); }
            }
        }
    }

    #[test]
    fn cuts_do_not_change_the_fate(cuts in prop::collection::vec(0_usize..140, 0..6)) {
        let bytes = b"POST /w HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello\
            GET /2 HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n";
        let limits = limits();
        let mut front = Front::new(0, &limits);
        let mut events = Vec::new();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            let mut rest = &bytes[pair[0]..pair[1]];
            loop {
                let taken = front.push(rest, &limits);
                rest = &rest[taken..];
                let event = poll(&mut front, 0);
                if let Some(Event::Request(_)) = &event { front.answered(0, &limits); }
                let none = event.is_none();
                events.extend(event);
                if none && rest.is_empty() { break; }
            }
        }
        prop_assert_eq!(events, run(bytes));
    }
}
