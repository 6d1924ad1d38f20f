//! A network that loses, doubles, delays, reorders and damages datagrams, parts one way or both, flaps,
//! and clogs. Times are microseconds of the world's clock.

use super::dice::Die;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// What is under way.
pub(crate) struct Network {
    flying: BTreeMap<(u64, u64), Flying>,
    seed: u64,
    /// One for each sender, so that one more datagram here does not move what happens there.
    dice: BTreeMap<u64, Die>,
    pub(crate) loss_percent: u64,
    pub(crate) delay_ms: u64,
    pub(crate) damage_percent: u64,
    cuts: BTreeMap<(u64, u64), Cut>,
    clogs: BTreeMap<(u64, u64), Clog>,
    pub(crate) datagrams: u64,
    pub(crate) lost: u64,
    /// Of the time, the place and the length of each.
    pub(crate) digest: u64,
}

/// A datagram.
#[derive(Clone)]
pub(crate) struct Flying {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) ecn: u8,
    pub(crate) bytes: Vec<u8>,
}

struct Cut {
    until_us: u64,
    flapping: bool,
}

/// So many milliseconds a datagram, one after the other, and some that wait.
struct Clog {
    until_us: u64,
    each_us: u64,
    free_us: u64,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            flying: BTreeMap::new(),
            seed,
            dice: BTreeMap::new(),
            loss_percent: 0,
            delay_ms: 5,
            damage_percent: 0,
            cuts: BTreeMap::new(),
            clogs: BTreeMap::new(),
            datagrams: 0,
            lost: 0,
            digest: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// Nothing goes from one to the other until then; if it flaps, every other 100 ms something does.
    pub(crate) fn cut(&mut self, (from, to): (u64, u64), until_us: u64, flapping: bool) {
        self.cuts.insert((from, to), Cut { until_us, flapping });
    }

    pub(crate) fn clog(&mut self, (from, to): (u64, u64), until_us: u64, each_us: u64) {
        self.clogs.insert((from, to), Clog { until_us, each_us, free_us: 0 });
    }

    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        self.clogs.clear();
        (self.loss_percent, self.delay_ms, self.damage_percent) = (0, 5, 0);
    }

    pub(crate) fn send(&mut self, now_us: u64, datagram: &Flying) {
        self.datagrams += 1;
        self.note(now_us, datagram);
        let ends = (machine(datagram.from), machine(datagram.to));
        let seed = self.seed;
        let die = self.dice.entry(ends.0).or_insert_with(|| Die::new(seed, 64 + ends.0));
        let loss = self.loss_percent;
        let cut = self.cuts.get(&ends).is_some_and(|cut| {
            now_us < cut.until_us && (!cut.flapping || (now_us / 100_000).is_multiple_of(2))
        });
        let mut copies = match die.below(100) {
            _ if cut => 0,
            n if n < loss => 0,
            n if n < loss * 3 / 2 => 2,
            _ => 1,
        };
        let mut at = now_us + 500;
        if let Some(clog) = self.clogs.get_mut(&ends).filter(|clog| now_us < clog.until_us) {
            clog.free_us = clog.free_us.max(now_us) + clog.each_us;
            at = clog.free_us;
            if now_us + CLOGGED_US_MAX < at {
                (clog.free_us, copies) = (at - clog.each_us, 0);
            }
        }
        self.lost += u64::from(copies == 0);
        for copy in 0..copies {
            let mut flying = datagram.clone();
            let mut at = at + die.below(1_000 * self.delay_ms);
            if 0 < loss && die.chance(60) {
                // One that went another way, and comes when nobody thinks of it any more.
                at += die.below(5_000_000);
            }
            if die.below(100) < self.damage_percent {
                let byte = die.index(flying.bytes.len());
                flying.bytes[byte] ^= 1 << die.below(8);
            }
            self.flying.insert((at, 2 * self.datagrams + copy), flying);
        }
    }

    /// It waits in the buffer of a machine that stands still.
    pub(crate) fn keep(&mut self, until_us: u64, datagram: Flying) {
        self.datagrams += 1;
        self.flying.insert((until_us, 2 * self.datagrams), datagram);
    }

    pub(crate) fn due(&mut self, now_us: u64) -> Option<Flying> {
        let first = self.flying.first_entry().filter(|first| first.key().0 <= now_us)?;
        Some(first.remove())
    }

    pub(crate) fn timeout(&self) -> Option<u64> {
        self.flying.first_key_value().map(|((at, _), _)| *at)
    }

    /// FNV-1a.
    fn note(&mut self, now_us: u64, datagram: &Flying) {
        let ports = machine(datagram.from) << 32 | machine(datagram.to);
        for word in [now_us, ports, datagram.bytes.len() as u64] {
            self.digest = (self.digest ^ word).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Where broker `id` is.
pub(crate) fn broker_address(id: u64) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(id).expect("few brokers")], 7801))
}

/// Where the agent of host `number` is in its life of that number.
pub(crate) fn agent_address(number: u64, life: u64) -> SocketAddr {
    let port = u16::try_from(10_000 + life % 50_000).expect("a port");
    SocketAddr::from(([10, 0, 1, u8::try_from(number).expect("few hosts")], port))
}

/// Brokers are themselves, the agent of host 1 is 257.
pub(crate) fn machine(address: SocketAddr) -> u64 {
    match address.ip() {
        IpAddr::V4(ip) => u64::from(ip.to_bits() & 0xffff),
        IpAddr::V6(_) => 0,
    }
}

/// Of the machine of host `number`.
pub(crate) const AGENTS: u64 = 256;
/// What waits longer in a clogged link is dropped by it.
const CLOGGED_US_MAX: u64 = 2_000_000;
