//! Whether the broker is still there: only asked where there is another one to go to.
//!
//! A broker that is slow acknowledges late, but its transport answers within a round trip. So silence
//! is that *nothing at all* came for [`DOUBT_AFTER`] although something waits for an answer; then it
//! is pinged, twice, and [`GRACE`] later it is left. Over a line on which an answer takes long, both are so
//! many round trips that one datagram may be lost.

use std::time::{Duration, Instant};
use strobe_wire::link::{ConnId, Link};

/// What was heard.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Datagrams of the connection.
    received: u64,
    heard: Option<Instant>,
    /// Since when, and how often it was pinged since.
    doubted: Option<(Instant, u32)>,
    /// The round trip, as estimated.
    rtt: Duration,
}

impl Silence {
    /// Looks whether something came.
    pub(super) fn listen(&mut self, now: Instant, link: &mut Link, conn: ConnId) {
        self.rtt = link.rtt(conn).unwrap_or_default().min(RTT_MAX);
        let received = link.traffic(conn).map_or(0, |traffic| traffic.received);
        if received != self.received {
            (self.received, self.heard, self.doubted) = (received, Some(now), None);
        }
    }

    /// When to look again, if something waits since `since`.
    pub(super) fn timeout(&self, since: Instant) -> Instant {
        let quiet = self.heard.map_or(since, |heard| heard.max(since));
        match self.doubted {
            None => quiet + DOUBT_AFTER.max(2 * self.rtt),
            Some((doubted, pings)) => doubted + GRACE.max(3 * self.rtt) * pings / PINGS,
        }
    }

    /// Whether it is to be left.
    pub(super) fn is_over(
        &mut self,
        now: Instant,
        link: &mut Link,
        (conn, since): (ConnId, Instant),
    ) -> bool {
        self.listen(now, link, conn);
        if now < self.timeout(since) {
            return false;
        }
        let (doubted, pings) = self.doubted.unwrap_or((now, 0));
        if PINGS <= pings {
            return true;
        }
        self.doubted = Some((doubted, pings + 1));
        link.ping(conn);
        false
    }
}

/// The transport answers within a round trip and 25 ms.
const DOUBT_AFTER: Duration = Duration::from_millis(400);
const GRACE: Duration = Duration::from_millis(300);
const PINGS: u32 = 2;
/// Who is as far away as the other side of the earth is not waited for longer.
const RTT_MAX: Duration = Duration::from_millis(400);
