//! Which node of a Cluster has which key.

use redis::{RedisResult, Value};
use std::collections::BTreeMap;

/// The owner of every slot, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// By their last slot.
    ranges: BTreeMap<u16, Range>,
    /// What was learned since, one by one.
    moved: BTreeMap<u16, String>,
}

#[derive(Debug)]
struct Range {
    first: u16,
    primary: String,
    replicas: Vec<String>,
}

/// Where an answer sends us.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Redirect {
    /// The slot is there from now on.
    Moved(String),
    /// This once: the slot is on its way.
    Ask(String),
}

impl Slots {
    /// Of an answer to `CLUSTER SLOTS` by `asked`.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn of(answer: Value, asked: &str) -> RedisResult<Self> {
        let mut slots = Self::default();
        let rows: Vec<Vec<Value>> = ::redis::from_redis_value(answer)?;
        for row in rows {
            let mut row = row.into_iter();
            let (Some(first), Some(last)) = (row.next(), row.next()) else { continue };
            let (first, last): (u16, u16) =
                (::redis::from_redis_value(first)?, ::redis::from_redis_value(last)?);
            let mut nodes = row.filter_map(|node| address(node, asked));
            let Some(primary) = nodes.next() else { continue };
            slots.ranges.insert(last, Range { first, primary, replicas: nodes.collect() });
        }
        Ok(slots)
    }

    /// Who has a slot; with `replica`, one of those that have a copy, if there is one.
    pub(super) fn owner(&self, slot: u16, replica: bool) -> Option<&str> {
        if let Some(node) = self.moved.get(&slot) {
            return Some(node);
        }
        let (_, range) = self.ranges.range(slot..).next()?;
        if slot < range.first {
            return None;
        }
        let copy = range.replicas.first().filter(|_| replica);
        Some(copy.unwrap_or(&range.primary))
    }

    pub(super) fn set(&mut self, slot: u16, node: String) {
        self.moved.insert(slot, node);
    }

    /// Every node that has slots, each once.
    pub(super) fn primaries(&self) -> Vec<String> {
        let mut nodes: Vec<String> = self.ranges.values().map(|r| r.primary.clone()).collect();
        nodes.sort();
        nodes.dedup();
        nodes
    }
}

impl Redirect {
    /// What an answer of `asked` says, if it sends us elsewhere.
    pub(super) fn of(answer: &Value, asked: &str) -> Option<Self> {
        let Value::ServerError(error) = answer else { return None };
        let node = |text: &str| {
            let address = text.split(' ').nth(1)?;
            let (host, port) = address.rsplit_once(':')?;
            Some(join(host, port.parse().ok()?, asked))
        };
        match error.code() {
            "MOVED" => node(error.details()?).map(Self::Moved),
            "ASK" => node(error.details()?).map(Self::Ask),
            _ => None,
        }
    }
}

/// The slot of a key: of what stands in its first braces, if anything does.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = key.get(open + 1..)?;
        let close = rest.iter().position(|byte| *byte == b'}').filter(|close| 0 < *close)?;
        rest.get(..close)
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM, as Redis Cluster has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

fn address(node: Value, asked: &str) -> Option<String> {
    let fields: Vec<Value> = ::redis::from_redis_value(node).ok()?;
    let mut fields = fields.into_iter();
    let host: Option<String> = ::redis::from_redis_value(fields.next()?).ok()?;
    let port: u16 = ::redis::from_redis_value(fields.next()?).ok()?;
    Some(join(&host.unwrap_or_default(), port, asked))
}

/// A node that does not know its own address is where it was asked.
fn join(host: &str, port: u16, asked: &str) -> String {
    match host {
        "" | "?" => {
            let asked = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
            format!("{asked}:{port}")
        }
        host if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        host => format!("{host}:{port}"),
    }
}

const SLOTS: u16 = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_as_redis_counts_them() {
        // As `CLUSTER KEYSLOT` says.
        for (key, wanted) in
            [("foo", 12182), ("123456789", 12739), ("{foo}x", 12182), ("a{foo}b{c}", 12182)]
        {
            assert_eq!(slot(key.as_bytes()), wanted, "{key}");
        }
        assert_eq!(slot(b"{}a"), crc16(b"{}a") % SLOTS);
    }

    #[test]
    fn owners_change_one_by_one() {
        let node = |port: i64| {
            Value::Array(vec![Value::BulkString(b"h".to_vec()), Value::Int(port), Value::Nil])
        };
        let row = |first, last, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
        };
        let rows = vec![row(0, 99, vec![node(1), node(2)]), row(200, 16_383, vec![node(3)])];
        let mut slots = Slots::of(Value::Array(rows), "x:9").unwrap();
        assert_eq!((slots.owner(99, false), slots.owner(99, true)), (Some("h:1"), Some("h:2")));
        assert_eq!((slots.owner(100, false), slots.owner(200, true)), (None, Some("h:3")));
        slots.set(99, "h:3".into());
        assert_eq!(slots.owner(99, true), Some("h:3"));
        assert_eq!(slots.primaries(), ["h:1", "h:3"]);
        assert!(Slots::of(Value::Int(1), "x:9").is_err());
    }

    #[test]
    fn nodes_without_an_address_are_where_they_were_asked() {
        assert_eq!(join("", 7, "10.0.0.1:6379"), "10.0.0.1:7");
        assert_eq!(join("::1", 7, "x:1"), "[::1]:7");
    }
}
