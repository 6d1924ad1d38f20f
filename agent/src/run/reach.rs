//! One try to reach the broker, for `doctor`: a handshake, and good-bye.

use super::network::{bind, link, resolve};
use crate::config::Config;
use mio::{Events, Interest, Poll, Token};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use strobe_wire::link::{Alpn, Dial, Event, Progress};
use strobe_wire::pki::{Identity, Role};

/// Whether the configured broker answers, and how soon; no session begins, so an agent that runs is not
/// disturbed.
///
/// # Errors
/// Why it does not, in words.
#[expect(clippy::disallowed_methods, reason = "this is a loop that reads the clock")]
pub fn reach(config: &Config) -> Option<Result<String, String>> {
    let broker = config.broker.as_ref()?;
    let remote = match resolve(broker) {
        Ok(remote) => remote,
        Err(why) => return Some(Err(why)),
    };
    let identity = Identity::load(&config.dir, Role::Agent).ok().flatten();
    if identity.is_none() {
        return Some(Ok(format!(
            "is {remote}; whether it answers is known once this host enrolled"
        )));
    }
    Some(handshake(remote, identity, Instant::now()))
}

#[expect(clippy::disallowed_methods, reason = "this is a loop that reads the clock")]
fn handshake(
    remote: SocketAddr,
    identity: Option<Identity>,
    begun: Instant,
) -> Result<String, String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let any = match remote {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let mut socket = bind(any).map_err(|error| words(&error))?;
    let mut link = link(&socket, identity).map_err(|error| words(&error))?;
    let mut poll = Poll::new().map_err(|error| words(&error))?;
    poll.registry()
        .register(socket.source(), Token(0), Interest::READABLE)
        .map_err(|error| words(&error))?;
    let dial = Dial::With(Alpn::Agent);
    let conn = link.connect(begun, remote, &dial).map_err(|error| words(&error))?;
    let mut events = Events::with_capacity(4);
    let mut connected = None;
    loop {
        let now = Instant::now();
        link.on_timeout(now);
        while let Some(event) = link.poll() {
            match event {
                Event::Connected { conn: ours, .. } if ours == conn => connected = Some(now),
                Event::Closed { conn: ours, why } if ours == conn => return Err(why.to_string()),
                _ => {}
            }
        }
        // The broker's word on our certificate comes behind its handshake.
        if let Some(at) = connected.filter(|at| *at + VERDICT <= now) {
            link.close(now, conn, "the doctor was here");
            socket.transmit(now, &mut link);
            return Ok(format!("{remote} took the handshake in {:?}", at - begun));
        }
        if begun + PATIENCE <= now {
            return Err(format!("{remote} does not answer within {} s", PATIENCE.as_secs()));
        }
        socket.transmit(now, &mut link);
        poll.poll(&mut events, Some(STEP)).map_err(|error| words(&error))?;
        let received = |socket: &mut strobe_wire::link::Socket, link: &mut _| {
            socket.receive(now, link).map_err(|error| words(&error))
        };
        while received(&mut socket, &mut link)? == Progress::More {}
    }
}

const PATIENCE: Duration = Duration::from_secs(4);
const VERDICT: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(20);
