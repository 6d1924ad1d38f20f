//! viz's HTTP front door and the WebSocket behind it: bytes of any cut, time, answers and the end,
//! in any order.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use strobe_viz::front::{Event, Front, FrontLimits, HostPolicy, Next};
use strobe_viz::web_socket::{Socket, State};

#[derive(Arbitrary, Debug)]
enum Op {
    Bytes(Vec<u8>),
    Wait(u16),
    End,
    Answered,
}

/// One client.
struct Client {
    front: Front,
    socket: Option<Socket>,
    now_ms: u64,
    busy: bool,
    over: bool,
    sent: usize,
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let mut client = Client {
        front: Front::new(0, &LIMITS),
        socket: None,
        now_ms: 0,
        busy: false,
        over: false,
        sent: 0,
    };
    if kind.is_multiple_of(2) {
        // As a file of seeds has it: the bytes of a connection, answered as they come.
        for piece in rest.chunks(usize::from(kind / 2).max(1)) {
            client.bytes(piece);
            client.answered();
        }
        client.front.end();
        client.poll();
        return;
    }
    let mut ops = Unstructured::new(rest);
    while let Ok(op) = Op::arbitrary(&mut ops) {
        match op {
            Op::Bytes(bytes) => client.bytes(&bytes),
            Op::Wait(ms) => {
                client.now_ms += u64::from(ms);
                client.poll();
            }
            Op::End => {
                client.front.end();
                client.poll();
            }
            Op::Answered => drop(client.answered()),
        }
        if ops.is_empty() {
            break;
        }
    }
});

impl Client {
    fn bytes(&mut self, mut bytes: &[u8]) {
        self.sent += bytes.len();
        while !bytes.is_empty() {
            if let Some(socket) = &mut self.socket {
                talk(socket, bytes);
                return;
            }
            let taken = self.front.push(bytes, &LIMITS);
            assert!(taken <= bytes.len());
            bytes = &bytes[taken..];
            self.poll();
            if taken == 0 && !self.answered() {
                return;
            }
        }
    }

    fn poll(&mut self) {
        while let Some(event) = self.front.poll(self.now_ms, &LIMITS, &HostPolicy::default(), 4096)
        {
            assert!(!self.over, "an event behind the end: {event:?}");
            match event {
                Event::Continue => assert!(!self.busy),
                Event::Request(request) => {
                    assert!(!self.busy, "two requests at a time");
                    assert!(request.target.starts_with('/'));
                    assert!(request.target.len() <= LIMITS.target_bytes_max);
                    assert!(request.body.len() <= LIMITS.body_bytes_max.min(self.sent));
                    self.busy = true;
                }
                Event::Upgrade { key, rest } => {
                    assert!(!key.is_empty());
                    let mut socket = Socket::new(rest);
                    talk(&mut socket, &[]);
                    self.socket = Some(socket);
                    self.over = true;
                }
                Event::Refused(refusal) => {
                    assert!((400..600).contains(&refusal.status), "{refusal:?}");
                    self.over = true;
                }
                Event::Close => self.over = true,
            }
        }
    }

    fn answered(&mut self) -> bool {
        if !std::mem::take(&mut self.busy) {
            return false;
        }
        if self.front.answered(self.now_ms, &LIMITS) == Next::Close {
            self.over = true;
            return false;
        }
        self.poll();
        true
    }
}

fn talk(socket: &mut Socket, bytes: &[u8]) {
    let mut texts = Vec::new();
    let mut out = Vec::new();
    if socket.push(bytes, &mut texts) == State::Open {
        for text in texts {
            socket.text(text);
        }
        socket.ping();
    }
    socket.take(&mut out);
}

const LIMITS: FrontLimits = FrontLimits {
    head_bytes_max: 1024,
    headers_max: 16,
    target_bytes_max: 256,
    body_bytes_max: 2048,
    head_timeout_ms: 1000,
    body_timeout_ms: 3000,
    idle_timeout_ms: 6000,
    requests_max: 4,
};
