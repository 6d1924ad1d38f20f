//! The whole front door over real loopback sockets, with the other end of the backend's queues
//! played by the test.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use strobe_viz::backend::{Backend, Update, unavailable};
use strobe_viz::remote::{Call, RemoteEnd, pair};
use strobe_viz::{Config, Viz};
use strobe_wire::message::{ApiResponse, Hello, HostInfo};
use tungstenite::Message;

struct Door {
    viz: Option<Viz>,
    end: Option<std::thread::JoinHandle<RemoteEnd>>,
    stop: Arc<AtomicBool>,
    dir: PathBuf,
}

impl Door {
    /// A viz whose broker answers every request with its method, path, query and body's length.
    fn open(change: impl FnOnce(&mut Config)) -> Self {
        let (remote, end) = pair();
        end.connected(true);
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("viz-test-{}-{number}", std::process::id()));
        let mut config = Config::plain("127.0.0.1:0".parse().unwrap(), dir.clone());
        change(&mut config);
        let viz = Viz::start(config, Backend::Remote(remote)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let end = std::thread::spawn(move || {
            let mut told = false;
            let mut slow = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                while let Some(call) = end.call() {
                    let r = &call.request;
                    if r.path.ends_with("/slow") {
                        slow.push(call);
                        continue;
                    }
                    let body = format!("{} {} {} {}", r.method, r.path, r.query, r.body.len());
                    let body = if r.path.ends_with("/large") {
                        vec![b'x'; 8 << 20]
                    } else {
                        body.into_bytes()
                    };
                    let content_type = "text/plain".to_owned();
                    call.answer(ApiResponse { status: 200, content_type, body });
                }
                // Answered when nobody waits any more.
                let over = slow.extract_if(.., |call: &mut Call| call.is_over());
                over.for_each(|call| call.answer(unavailable(503, "canceled")));
                if !told {
                    let hello = Hello { host: 7, instance: "web-1".into(), ..Hello::default() };
                    end.update(Update::Host(HostInfo { hello, ..HostInfo::default() }));
                    told = true;
                }
                std::thread::park_timeout(Duration::from_millis(1));
            }
            end
        });
        Self { viz: Some(viz), end: Some(end), stop, dir }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.viz.as_ref().unwrap().addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// Everything that comes for `bytes` until the server closes.
    fn ask(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        let mut answer = Vec::new();
        // One that is refused at once is reset, for nobody read what it had to say.
        let said = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        drop(said.and_then(|()| stream.read_to_end(&mut answer)));
        String::from_utf8(answer).unwrap()
    }

    fn get(&self, target: &str) -> String {
        self.ask(
            format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.end.take().unwrap().join());
        drop(self.viz.take());
        assert_eq!(std::fs::read_dir(&self.dir).unwrap().count(), 0, "the socket is cleaned up");
        std::fs::remove_dir(&self.dir).unwrap();
    }
}

#[test]
fn pages_and_api_are_answered_with_the_policy() {
    let door = Door::open(|_| {});
    let page = door.get("/");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(page.contains("Content-Security-Policy: default-src 'none'; script-src 'self'"));
    assert!(page.contains("X-Content-Type-Options: nosniff") && page.contains("<!doctype html>"));
    let etag = page.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
    let again = door.ask(
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: {etag}\r\n\r\n").as_bytes(),
    );
    assert!(again.starts_with("HTTP/1.1 304 Not Modified\r\n"), "{again}");
    assert!(door.get("/nothing.js").starts_with("HTTP/1.1 404 "));
    assert!(door.get("/-/healthy").ends_with("Strobe viz is healthy.\n"));
    assert!(door.get("/-/ready").starts_with("HTTP/1.1 200 "));
    assert!(door.get("/metrics").contains("\nstrobe_viz_requests_total "));
    assert!(door.get("/api/v1/query?query=up").ends_with("\r\n\r\nGET /api/v1/query query=up 0"));
    let post = "POST /api/v1/write HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello";
    assert!(door.ask(post.as_bytes()).ends_with("POST /api/v1/write  5"));
    let head = door.ask(b"HEAD /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(head.contains("Content-Length: 23\r\n") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn a_connection_is_kept_and_pipelined_requests_are_answered_in_order() {
    let door = Door::open(|_| {});
    let mut bytes = Vec::new();
    for index in 0..100 {
        write!(bytes, "GET /api/{index} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    let answers = door.ask(&bytes);
    let mut rest = answers.as_str();
    for index in 0..100 {
        let at = rest.find(&format!("GET /api/{index}  0")).unwrap_or_else(|| panic!("{index}"));
        rest = rest.split_at(at).1;
    }
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 100);
}

#[test]
fn large_bodies_go_both_ways_and_huge_ones_are_refused() {
    let door = Door::open(|_| {});
    let mut bytes =
        b"POST /api/w HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16777216\r\n\r\n".to_vec();
    bytes.resize(bytes.len() + (16 << 20), b'x');
    assert!(door.ask(&bytes).ends_with("POST /api/w  16777216"));
    assert!(8 << 20 < door.get("/api/large").len());
    let huge = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18446744073709551615\r\n\r\n";
    assert!(door.ask(huge.as_bytes()).starts_with("HTTP/1.1 413 "));
    assert!(door.get("/-/healthy").starts_with("HTTP/1.1 200 "), "it lives on");
}

#[test]
fn foreign_hosts_and_origins_are_refused() {
    let door = Door::open(|_| {});
    let host = door.ask(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert!(host.starts_with("HTTP/1.1 421 "), "{host}");
    let origin = "GET /live HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\
        Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    assert!(door.ask(origin.as_bytes()).starts_with("HTTP/1.1 403 "));
}

#[test]
fn connections_over_the_limit_get_503_and_the_rest_go_on() {
    let door = Door::open(|config| config.connections_max = 3);
    let kept: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = door.connect();
            stream.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream
        })
        .collect();
    let mut answer = String::new();
    door.connect().read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("viz.connections_max"));
    drop(kept);
    // The places are free again once the loop has seen the ends.
    let free = (0..200).any(|_| door.get("/-/healthy").starts_with("HTTP/1.1 200 "));
    assert!(free);
}

/// tiny_http's pool of threads leaves a connection in its queue when several come at once: such a
/// worker never answered, and each took one request of a dashboard with it for 75 s.
#[test]
fn every_worker_answers_from_the_start() {
    for _ in 0..4 {
        let door = Door::open(|config| config.workers = 32);
        let mut streams = (0..64).map(|_| door.connect()).collect::<Vec<_>>();
        for stream in &mut streams {
            stream
                .write_all(
                    b"GET /api/v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                )
                .unwrap();
        }
        for mut stream in streams {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
}

#[test]
fn a_slow_head_gets_408() {
    let door = Door::open(|config| config.front.head_timeout_ms = 300);
    let mut stream = door.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn the_live_stream_shows_the_fleet_and_survives_bad_frames() {
    let door = Door::open(|_| {});
    let addr = door.viz.as_ref().unwrap().addr();
    let (mut socket, _) = tungstenite::client(format!("ws://{addr}/live"), door.connect()).unwrap();
    socket.send(Message::text("{\"watch\":{\"fleet\":true}}")).unwrap();
    let mut seen = String::new();
    while !seen.contains("web-1") {
        seen = socket.read().unwrap().into_text().unwrap().to_string();
    }
    assert!(seen.starts_with("{\"type\":\"fleet"), "{seen}");
    socket.send(Message::text("nonsense")).unwrap();
    while !seen.contains("\"type\":\"error\"") {
        seen = socket.read().unwrap().into_text().unwrap().to_string();
    }
    socket.get_mut().write_all(b"\xff\xff\xff\xff not a frame").unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    let gone = (0..500).any(|_| door.get("/metrics").contains("strobe_viz_web_sockets 0\n"));
    assert!(gone, "the place is free again");
}

/// A tab that is closed while its query runs: the broker is told, and the worker is free again.
#[test]
fn a_client_that_hangs_up_ends_its_query() {
    let door = Door::open(|config| config.workers = 1);
    let mut stream = door.connect();
    stream.write_all(b"GET /api/v1/query/slow HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    drop(stream);
    // Behind it on the one worker, and asked again until it comes: it waits for the slow one.
    let next = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = (0..100).map(|_| door.ask(next)).find(|text| text.starts_with("HTTP/1.1 200"));
    let answer = answer.expect("the worker is free");
    assert!(answer.contains("strobe_viz_requests_abandoned_total 1\n"), "{answer}");
}
