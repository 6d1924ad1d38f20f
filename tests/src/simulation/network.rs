//! A network that loses, doubles, delays and reorders datagrams, and parts.

use super::dice::Die;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What is under way.
pub(crate) struct Network {
    flying: BTreeMap<(Instant, u64), Flying>,
    /// A die for each direction.
    there: Die,
    back: Die,
    pub(crate) loss_percent: u64,
    pub(crate) parted_until: Instant,
    pub(crate) datagrams: u64,
    /// Of the time, the place and the length of each.
    pub(crate) digest: u64,
    start: Instant,
}

/// A datagram.
pub(crate) struct Flying {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) ecn: u8,
    pub(crate) bytes: Vec<u8>,
}

impl Network {
    pub(crate) fn new(start: Instant, there: Die, back: Die) -> Self {
        Self {
            flying: BTreeMap::new(),
            there,
            back,
            loss_percent: 0,
            parted_until: start,
            datagrams: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            start,
        }
    }

    pub(crate) fn send(&mut self, now: Instant, datagram: &Flying, to_broker: bool) {
        self.datagrams += 1;
        self.note(now, datagram);
        let die = if to_broker { &mut self.there } else { &mut self.back };
        let copies = match die.below(100) {
            _ if now < self.parted_until => 0,
            n if n < self.loss_percent => 0,
            n if n < self.loss_percent * 3 / 2 => 2,
            _ => 1,
        };
        for copy in 0..copies {
            let jitter = if self.loss_percent == 0 { 0 } else { die.below(30) };
            let at = now + Duration::from_millis(5 + jitter);
            let &Flying { from, to, ecn, .. } = datagram;
            let bytes = datagram.bytes.clone();
            self.flying.insert((at, 2 * self.datagrams + copy), Flying { from, to, ecn, bytes });
        }
    }

    pub(crate) fn due(&mut self, now: Instant) -> Option<Flying> {
        let first = self.flying.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    pub(crate) fn timeout(&self) -> Option<Instant> {
        self.flying.first_key_value().map(|((at, _), _)| *at)
    }

    /// FNV-1a.
    fn note(&mut self, now: Instant, datagram: &Flying) {
        let at = u64::try_from((now - self.start).as_nanos()).expect("a short run");
        let ports = u64::from(datagram.from.port()) << 16 | u64::from(datagram.to.port());
        for word in [at, ports, datagram.bytes.len() as u64] {
            for byte in word.to_le_bytes() {
                self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
}
