//! What things are called in Redis, and how long they live there.

use super::super::rollup::{HOURS, MINUTES};
use super::super::segment::Entry;
use std::fmt;
use std::str::FromStr;
use strobe_wire::ids::HostId;
use strobe_wire::shard::Shard;

/// Names of keys, all below one prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

/// Where a block is: its field in its window's hash, and its member in the index.
///
/// `<first ms>:<last ms>:<schema>:<store>.<segment>.<offset>`; store, segment and offset say which
/// file of which state directory it is a copy of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Place {
    pub(super) first_ms: i64,
    pub(super) last_ms: i64,
    pub(super) schema: u64,
    pub(super) store: u64,
    pub(super) segment: u64,
    pub(super) offset: u64,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The hash of a window's blocks.
    pub(super) fn blocks(&self, source: u128, step_ms: u32, first_ms: i64) -> String {
        let window = window_ms(step_ms);
        let t = first_ms.div_euclid(window) * window;
        match step_ms {
            0 => format!("{}:{t}", self.of("metrics", source)),
            step => format!("{}:{step}:{t}", self.of("rollup", source)),
        }
    }

    /// Places by their first millisecond.
    pub(super) fn index(&self, source: u128, step_ms: u32) -> String {
        match step_ms {
            0 => self.of("index:metrics", source),
            step => format!("{}:{step}", self.of("index:rollup", source)),
        }
    }

    /// Places of blocks that are longer than [`span_ms`], by their last millisecond.
    pub(super) fn late(&self, source: u128) -> String {
        self.of("index:late", source)
    }

    /// Hosts of a shard by their last sample.
    pub(super) fn hosts(&self, shard: usize) -> String {
        self.shard("index:hosts", shard)
    }

    pub(super) fn host(&self, source: u128) -> String {
        self.of("hosts", source)
    }

    /// Schemas of a host by their last sample.
    pub(super) fn sections(&self, source: u128) -> String {
        self.of("sections", source)
    }

    pub(super) fn schema(&self, id: u64) -> String {
        format!("{}schema:{id:016x}", self.prefix)
    }

    /// The stream of a shard's fresh rows.
    pub(super) fn queue(&self, shard: usize) -> String {
        self.shard("queue:metrics", shard)
    }

    pub(super) fn mark(&self, shard: usize, store: u64) -> String {
        format!("{}:{store:016x}", self.shard("mark", shard))
    }

    /// Who has written, and up to when.
    pub(super) fn stores(&self) -> String {
        format!("{}stores", self.prefix)
    }

    /// The newest owner's epoch.
    pub(super) fn epoch(&self, shard: usize) -> String {
        self.shard("epoch", shard)
    }

    /// The newest records of a shard's part of the log.
    pub(super) fn log(&self, shard: usize) -> String {
        self.shard("log", shard)
    }

    /// Up to where a store's log is in it.
    pub(super) fn log_mark(&self, shard: usize, store: &str) -> String {
        format!("{}:{store}", self.shard("mark:log", shard))
    }

    /// Up to where all of a store's log is there.
    pub(super) fn log_of(&self, store: &str) -> String {
        format!("{}logs:{store}", self.prefix)
    }

    /// Whose logs there are.
    pub(super) fn logs(&self) -> String {
        format!("{}logs", self.prefix)
    }

    /// What of lost brokers' logs a shard's owner has taken in.
    pub(super) fn taken(&self, shard: usize) -> String {
        self.shard("taken", shard)
    }

    fn of(&self, what: &str, source: u128) -> String {
        format!("{}:{}", self.shard(what, shard(source)), HostId(source))
    }

    fn shard(&self, what: &str, shard: usize) -> String {
        format!("{}{what}:{{s{shard:03}}}", self.prefix)
    }
}

impl Place {
    pub(super) fn of(entry: &Entry, store: u64, segment: u64) -> Self {
        let Entry { schema, first_ms, last_ms, offset, .. } = *entry;
        Self { first_ms, last_ms, schema, store, segment, offset }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first_ms, last_ms, schema, store, segment, offset } = self;
        write!(f, "{first_ms}:{last_ms}:{schema:016x}:{store:016x}.{segment:x}.{offset:x}")
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split([':', '.']);
        let mut decimal = || parts.next()?.parse().ok();
        let (first_ms, last_ms) = (decimal().ok_or(())?, decimal().ok_or(())?);
        let mut hex = || u64::from_str_radix(parts.next()?, 16).ok();
        let (schema, store) = (hex().ok_or(())?, hex().ok_or(())?);
        let (segment, offset) = (hex().ok_or(())?, hex().ok_or(())?);
        let place = Self { first_ms, last_ms, schema, store, segment, offset };
        if parts.next().is_none() { Ok(place) } else { Err(()) }
    }
}

pub(super) fn shard(source: u128) -> usize {
    usize::from(Shard::of(HostId(source)).0)
}

/// One key holds the blocks that begin in so much time.
fn window_ms(step_ms: u32) -> i64 {
    match step_ms {
        0 => RAW_WINDOW_MS,
        step if step == HOURS.step_ms => HOURS.window_ms,
        _ => MINUTES.window_ms,
    }
}

/// From its first to its last sample a block of the index is no longer than this; one that is (late
/// rows of days in one block) stands in the late index instead.
pub(super) fn span_ms(step_ms: u32) -> i64 {
    if step_ms == 0 { RAW_SPAN_MS } else { window_ms(step_ms) }
}

/// ±5 %, the same for the same key: what was written at once does not end at once.
pub(super) fn jittered(seconds: u64, key: &str) -> u64 {
    let share = u64::from(crc32fast::hash(key.as_bytes()) % 1001);
    (seconds.saturating_mul(9500 + share) / 10_000).max(1)
}

pub(super) const SHARDS: usize = strobe_wire::limits::SHARDS as usize;
const RAW_WINDOW_MS: i64 = 600_000;
const RAW_SPAN_MS: i64 = 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn lives_are_within_five_percent_and_differ() {
        let lives: BTreeSet<u64> = (0..1000).map(|n| jittered(604_800, &format!("k{n}"))).collect();
        assert!(100 < lives.len(), "{}", lives.len());
        assert!(lives.iter().all(|s| (574_560..=635_040).contains(s)), "{lives:?}");
        assert_eq!(jittered(1, "a"), 1);
    }

    #[test]
    fn a_place_is_read_as_it_was_written() {
        let place = Place {
            first_ms: -5,
            last_ms: 1_700_000_000_123,
            schema: 0xab,
            store: u64::MAX,
            segment: 17,
            offset: 0x1f0,
        };
        assert_eq!(place.to_string().parse(), Ok(place));
        for wrong in ["", "1:2:3", "1:2:ab:cd.1.2.3", "x:2:ab:cd.1.2"] {
            assert_eq!(wrong.parse::<Place>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn names_are_as_documented() {
        let keys = Keys::new("monitor:");
        let host = HostId(7);
        let shard = shard(7);
        let check = |found: String, wanted: &str| {
            assert_eq!(found, wanted.replace("S", &format!("{{s{shard:03}}}:{host}")));
        };
        check(keys.blocks(7, 0, 1_200_001), "monitor:metrics:S:1200000");
        check(keys.blocks(7, 60_000, 7_200_001), "monitor:rollup:S:60000:7200000");
        check(keys.index(7, 0), "monitor:index:metrics:S");
        check(keys.index(7, 60_000), "monitor:index:rollup:S:60000");
        check(keys.host(7), "monitor:hosts:S");
        assert_eq!(Keys::new("x").mark(7, 10), "xmark:{s007}:000000000000000a");
        assert_eq!(keys.epoch(7), "monitor:epoch:{s007}");
    }
}
