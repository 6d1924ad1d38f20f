//! A network that loses, doubles, delays and reorders messages, and parts: each direction by itself.

use super::dice::Die;
use std::collections::BTreeMap;

/// What is under way. Times are milliseconds of the world's clock.
#[derive(Debug)]
pub(crate) struct Network {
    flying: BTreeMap<(u64, u64), Flying>,
    die: Die,
    count: u64,
    pub(crate) loss_percent: u64,
    pub(crate) delay_ms: u64,
    /// From whom to whom nothing goes, until when; flapping ones go every other 100 ms.
    cuts: BTreeMap<(u64, u64), (u64, bool)>,
    pub(crate) lost: u64,
    /// Of the time, the ends and the bytes of each.
    pub(crate) digest: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Flying {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Network {
    pub(crate) fn new(die: Die) -> Self {
        Self {
            flying: BTreeMap::new(),
            die,
            count: 0,
            loss_percent: 0,
            delay_ms: 5,
            cuts: BTreeMap::new(),
            lost: 0,
            digest: 0xcbf2_9ce4_8422_2325,
        }
    }

    pub(crate) fn cut(&mut self, from: u64, to: u64, until: u64, flapping: bool) {
        self.cuts.insert((from, to), (until, flapping));
    }

    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        (self.loss_percent, self.delay_ms) = (0, 5);
    }

    pub(crate) fn is_cut(&self, now: u64, from: u64, to: u64) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|&(until, flapping)| {
            now < until && (!flapping || (now / 100).is_multiple_of(2))
        })
    }

    pub(crate) fn send(&mut self, now: u64, message: &Flying) {
        self.count += 1;
        self.note(now, message);
        let copies = match self.die.below(100) {
            _ if self.is_cut(now, message.from, message.to) => 0,
            n if n < self.loss_percent => 0,
            n if n < self.loss_percent * 3 / 2 => 2,
            _ => 1,
        };
        self.lost += u64::from(copies == 0);
        for copy in 0..copies {
            let mut delay = 1 + self.die.below(self.delay_ms);
            if 0 < self.loss_percent && self.die.one_in(40) {
                // One that went another way, and comes when nobody thinks of it any more.
                delay += self.die.below(5000);
            }
            self.flying.insert((now + delay, 2 * self.count + copy), message.clone());
        }
    }

    pub(crate) fn due(&mut self, now: u64) -> Option<Flying> {
        let first = self.flying.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    pub(crate) fn timeout(&self) -> Option<u64> {
        self.flying.first_key_value().map(|((at, _), _)| *at)
    }

    /// FNV-1a.
    fn note(&mut self, now: u64, message: &Flying) {
        let words = [now, message.from << 32 | message.to, message.bytes.len() as u64];
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        for byte in bytes.chain(message.bytes.iter().copied()) {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
