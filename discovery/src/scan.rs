//! Looks for machines in given ranges by opening TCP connections, so many a second and no more.
//!
//! A connection that is accepted is closed at once, without a byte; one that is refused, or not
//! answered, finds nothing. Nothing is scanned that was not named.

use crate::range::Range;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is scanned, and how fast.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    ranges: Vec<Range>,
    ports: Vec<u16>,
    rate_per_s: u32,
    patience: Duration,
}

/// Why nothing is scanned.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// Together the ranges are too large.
    #[error("{addresses} addresses are more than the 65,536 that are scanned at once")]
    TooLarge {
        /// How many they are.
        addresses: u32,
    },
    /// A number is out of bounds.
    #[error("{0}")]
    Bounds(&'static str),
}

/// What came of a scan.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Scanned {
    /// Connections that were tried.
    pub tried: u64,
    /// Of them: accepted.
    pub open: u64,
    /// Of them: the machine itself said no.
    pub refused: u64,
    /// Connections that this machine could not try.
    pub failed: u64,
}

impl Plan {
    /// With at most 1,000 connections a second, and 8 ports.
    ///
    /// # Errors
    /// It is more than that, or nothing.
    pub fn new(
        ranges: Vec<Range>,
        ports: Vec<u16>,
        rate_per_s: u32,
        patience: Duration,
    ) -> Result<Self, PlanError> {
        let addresses = ranges.iter().map(|range| range.count()).fold(0, u32::saturating_add);
        if ADDRESSES_MAX < addresses {
            return Err(PlanError::TooLarge { addresses });
        }
        let say = |good: bool, why| if good { Ok(()) } else { Err(PlanError::Bounds(why)) };
        say(0 < addresses, "no range is named")?;
        say((1..=PORTS_MAX).contains(&ports.len()), "one to eight ports are scanned")?;
        say(!ports.contains(&0), "0 is no port")?;
        say((1..=RATE_MAX).contains(&rate_per_s), "1 to 1,000 connections a second are tried")?;
        say((1..=PATIENCE_MAX_MS).contains(&patience.as_millis()), "1ms to 5s are waited")?;
        Ok(Self { ranges, ports, rate_per_s, patience })
    }

    /// How many connections that is.
    #[must_use]
    pub fn count(&self) -> u64 {
        let addresses: u64 = self.ranges.iter().map(|range| u64::from(range.count())).sum();
        addresses * u64::try_from(self.ports.len()).unwrap_or(u64::MAX)
    }

    fn connections(&self) -> impl Iterator<Item = SocketAddr> {
        let each = self.ranges.iter().flat_map(|range| range.addresses());
        each.flat_map(|address| self.ports.iter().map(move |port| (address, *port).into()))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.ranges.iter().map(Range::to_string).collect();
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        let (count, rate) = (self.count(), u64::from(self.rate_per_s));
        write!(
            f,
            "{} on TCP port {}: {count} connections, at most {rate} a second, so {} s",
            ranges.join(", "),
            ports.join(", "),
            count.div_ceil(rate)
        )
    }
}

/// Does what the plan says, and tells each connection that was accepted.
///
/// # Errors
/// The kernel has no poll for us.
pub fn scan(
    plan: &Plan,
    clock: fn() -> Instant,
    stopping: &AtomicBool,
    mut found: impl FnMut(IpAddr, u16),
) -> io::Result<Scanned> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let mut scanned = Scanned::default();
    let mut open: BTreeMap<usize, (TcpStream, SocketAddr, Instant)> = BTreeMap::new();
    let mut left = plan.connections().enumerate().peekable();
    let begun = clock();
    while (left.peek().is_some() || !open.is_empty()) && !stopping.load(Ordering::Relaxed) {
        let now = clock();
        let allowed =
            now.saturating_duration_since(begun).as_millis() * u128::from(plan.rate_per_s) / 1000;
        while u128::from(scanned.tried + scanned.failed) <= allowed
            && let Some((token, to)) = left.next()
        {
            let begin = TcpStream::connect(to).and_then(|mut stream| {
                poll.registry().register(&mut stream, Token(token), Interest::WRITABLE)?;
                Ok(stream)
            });
            match begin {
                Ok(stream) => {
                    scanned.tried += 1;
                    open.insert(token, (stream, to, now + plan.patience));
                }
                Err(why) => {
                    scanned.failed += 1;
                    log::debug!("{to} cannot be tried: {why}");
                }
            }
        }
        match poll.poll(&mut events, Some(LOOK_EVERY)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            let Some((stream, to, _)) = open.remove(&event.token().0) else { continue };
            match stream.take_error() {
                Ok(None) if stream.peer_addr().is_ok() => {
                    scanned.open += 1;
                    found(to.ip(), to.port());
                }
                Ok(Some(why)) if why.kind() == io::ErrorKind::ConnectionRefused => {
                    scanned.refused += 1;
                }
                _ => {}
            }
        }
        let now = clock();
        open.retain(|_, (.., until)| now < *until);
    }
    Ok(scanned)
}

/// A /16 of IPv4.
const ADDRESSES_MAX: u32 = 65_536;
const PORTS_MAX: usize = 8;
/// With the longest patience 5,000 connections are open at once.
const RATE_MAX: u32 = 1_000;
const PATIENCE_MAX_MS: u128 = 5_000;
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[expect(clippy::disallowed_methods, reason = "a test of what runs in real time")]
    fn clock() -> Instant {
        Instant::now()
    }

    fn plan(ranges: &[&str], ports: &[u16], rate_per_s: u32) -> Result<Plan, PlanError> {
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        Plan::new(ranges, ports.to_vec(), rate_per_s, Duration::from_secs(1))
    }

    #[test]
    fn open_ports_are_found_at_the_given_rate() {
        let listener = TcpListener::bind("127.0.0.3:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = plan(&["127.0.0.0/28"], &[port], 20).unwrap();
        let mut found = Vec::new();
        let begun = clock();
        let scanned =
            scan(&plan, clock, &AtomicBool::new(false), |ip, port| found.push((ip, port)));
        let took = begun.elapsed();
        assert_eq!(found, [("127.0.0.3".parse().unwrap(), port)]);
        let told = Scanned { tried: 14, open: 1, refused: 13, failed: 0 };
        assert_eq!(scanned.unwrap(), told);
        // The first goes at once, the fourteenth 650 ms later.
        assert!(Duration::from_millis(640) <= took, "{took:?}");
    }

    #[test]
    fn a_scan_that_is_told_to_stop_stops() {
        let plan = plan(&["127.0.0.0/24"], &[1], 1).unwrap();
        let scanned = scan(&plan, clock, &AtomicBool::new(true), |_, _| {}).unwrap();
        assert_eq!(scanned, Scanned::default());
    }

    #[test]
    fn a_plan_says_what_it_will_do_and_refuses_too_much() {
        let told = plan(&["10.0.0.0/24", "10.0.2.1"], &[22, 9100], 50).unwrap().to_string();
        let wanted = "10.0.0.0/24, 10.0.2.1/32 on TCP port 22, 9100: 510 connections, at most 50 a \
                      second, so 11 s";
        assert_eq!(told, wanted);
        let why = plan(&["10.0.0.0/16", "10.1.0.0/24"], &[22], 50).unwrap_err().to_string();
        assert_eq!(why, "65788 addresses are more than the 65,536 that are scanned at once");
        for (ports, rate) in [(vec![], 1), (vec![0], 1), (vec![1; 9], 1), (vec![1], 0)] {
            assert!(plan(&["10.0.0.1"], &ports, rate).is_err(), "{ports:?} {rate}");
        }
        assert!(plan(&["10.0.0.1"], &[1], 1_001).is_err() && plan(&[], &[1], 1).is_err());
    }
}
