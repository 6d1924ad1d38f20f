//! What an acknowledgement is worth, host by host.
//!
//! A host's class is the last of these that is said: `broker.durability` of this broker's own settings, of
//! the fleet's configuration, of a label of the host there, of the host itself there. Remote-write has
//! the broker's: one request brings the series of many, and is answered as a whole.

use std::str::FromStr;
use strobe_wire::fleet::Scope;
use strobe_wire::message::Hello;

/// When a row is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// When it is in the log on this disk.
    #[default]
    Wal,
    /// When Redis took it as well.
    WalRedis,
}

/// Of every host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Classes {
    /// The broker's own.
    pub usual: Durability,
    /// Of some hosts; the last one that is of a host counts.
    pub some: Vec<(Scope, Durability)>,
}

impl Durability {
    /// Whether Redis has to take a row of it.
    #[must_use]
    pub fn is_copied(self) -> bool {
        self == Self::WalRedis
    }
}

impl Classes {
    /// One for all.
    #[must_use]
    pub fn all(usual: Durability) -> Self {
        Self { usual, some: Vec::new() }
    }

    /// A host's.
    #[must_use]
    pub fn of(&self, hello: &Hello) -> Durability {
        let mine = self.some.iter().rev().find(|(scope, _)| scope.is_of(hello));
        mine.map_or(self.usual, |(_, class)| *class)
    }

    /// Whether Redis may have to take rows of anybody.
    #[must_use]
    pub fn any_is_copied(&self) -> bool {
        self.usual.is_copied() || self.some.iter().any(|(_, class)| class.is_copied())
    }
}

impl FromStr for Durability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "wal" => Ok(Self::Wal),
            "wal+redis" => Ok(Self::WalRedis),
            _ => Err("wal or wal+redis is wanted".to_owned()),
        }
    }
}

/// What is wanted cannot be without a Redis.
pub const NO_REDIS: &str = "broker.durability \"wal+redis\" is wanted, and this broker has no Redis: set \
     broker.store to one, or give it one with `strobe cluster share`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_fewer_hosts_counts() {
        let label = Scope::Label("class".into(), "gold".into());
        let (gold, wal) = (Durability::WalRedis, Durability::Wal);
        let some = vec![(label, gold), (Scope::Host("b".into()), wal)];
        let classes = Classes { usual: wal, some };
        let host = |instance: &str, labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            classes.of(&Hello { instance: instance.into(), labels, ..Hello::default() })
        };
        assert_eq!(host("a", &[]), wal);
        assert_eq!(host("a", &[("class", "gold")]), gold);
        assert_eq!(host("b", &[("class", "gold")]), wal);
        assert!(classes.any_is_copied() && !Classes::all(wal).any_is_copied());
    }
}
