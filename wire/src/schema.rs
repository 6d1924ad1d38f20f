//! What the columns of a section are.
//!
//! A [`Schema`] is the ordered list of one section's columns. It is named by its content
//! ([`SchemaId`]), sent once a connection before the first row that uses it, and never changes:
//! another set of columns is another schema.

use crate::ids::SchemaId;
use crate::limits::{LABEL_NAME_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, SECTION_COLUMNS_MAX};
use rkyv::{Archive, Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Label pairs, sorted by name, no name twice, no empty value.
#[derive(
    Archive, Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default,
)]
pub struct Labels(pub Vec<(String, String)>);

/// How a column's 64 bits are read.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// u64 that only grows; the value is `raw × 10^-scale`.
    Counter {
        /// Decimal digits behind the point, 0 to 9.
        scale: u8,
    },
    /// i64; the value is `raw × 10^-scale`.
    Gauge {
        /// Decimal digits behind the point, 0 to 9.
        scale: u8,
    },
    /// The bits of an f64, kept exactly.
    Float,
}

/// One series of a section. The broker adds the host's `job` and `instance` where it has none of its own,
/// as what an agent scraped elsewhere has.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Column {
    /// Metric name, as node_exporter has it where it has it.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// How its bits are read.
    pub kind: Kind,
}

/// The ordered columns of one section.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Schema {
    /// The section: `host`, `cpu`, `disk`, `net`, `filesystem`, …, and `cpu.1` where one is not enough.
    pub section: String,
    /// Its columns, in the order of a row's values.
    pub columns: Vec<Column>,
}

/// Why a schema from a peer is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    /// Too many or no columns.
    #[error("a section has {found} columns; 1 to {SECTION_COLUMNS_MAX} are allowed")]
    Columns {
        /// How many it had.
        found: usize,
    },
    /// A section name that is empty, long or not `[a-z0-9_.]`.
    #[error("{section:?} is not a section name: 1 to 64 of a-z, 0-9, '_' and '.'")]
    Section {
        /// The name.
        section: String,
    },
    /// A column that breaks the data model.
    #[error("column {index}: {why}")]
    Column {
        /// Its place.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
}

impl Labels {
    /// Sorted label pairs; an empty value is the same as no label (Prometheus data model).
    #[must_use]
    pub fn new(mut pairs: Vec<(String, String)>) -> Self {
        pairs.retain(|(_, value)| !value.is_empty());
        pairs.sort();
        pairs.dedup_by(|a, b| a.0 == b.0);
        Self(pairs)
    }

    /// From literals.
    #[must_use]
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    /// The value of label `name`; `None` if it has none.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Kind {
    /// The number that `raw` stands for.
    #[must_use]
    pub fn value(self, raw: u64) -> f64 {
        match self {
            // Division keeps 12.34 the nearest f64 to 12.34, which multiplying by 0.01 does not.
            Self::Counter { scale } => as_f64(raw) / POWERS[usize::from(scale.min(9))],
            Self::Gauge { scale } => {
                signed_f64(raw.cast_signed()) / POWERS[usize::from(scale.min(9))]
            }
            Self::Float => f64::from_bits(raw),
        }
    }
}

impl Schema {
    /// Its name: a hash of its content that does not depend on rkyv's layout.
    #[must_use]
    pub fn id(&self) -> SchemaId {
        let mut hash = Sha256::new();
        let mut text = |part: &str| {
            hash.update(u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            hash.update(part.as_bytes());
        };
        text(&self.section);
        for column in &self.columns {
            text(&column.name);
            for (name, value) in &column.labels.0 {
                text(name);
                text(value);
            }
            text(match column.kind {
                Kind::Counter { .. } => "|c",
                Kind::Gauge { .. } => "|g",
                Kind::Float => "|f",
            });
            if let Kind::Counter { scale } | Kind::Gauge { scale } = column.kind {
                text(["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"][usize::from(scale.min(9))]);
            }
        }
        let digest = hash.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        SchemaId(u64::from_le_bytes(first))
    }

    /// Checks a schema that came from a peer.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn check(&self) -> Result<(), SchemaError> {
        if self.columns.is_empty() || SECTION_COLUMNS_MAX < self.columns.len() {
            return Err(SchemaError::Columns { found: self.columns.len() });
        }
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'.';
        if self.section.is_empty() || 64 < self.section.len() || !self.section.bytes().all(plain) {
            return Err(SchemaError::Section { section: self.section.chars().take(80).collect() });
        }
        for (index, column) in self.columns.iter().enumerate() {
            if let Some(why) = column.fault() {
                return Err(SchemaError::Column { index, why });
            }
        }
        Ok(())
    }
}

impl Column {
    fn fault(&self) -> Option<&'static str> {
        if !is_metric_name(&self.name) {
            return Some("its name is not a metric name ([a-zA-Z_:][a-zA-Z0-9_:]*, 256 bytes)");
        }
        if LABELS_MAX < self.labels.0.len() {
            return Some("it has more than 64 labels");
        }
        if !self.labels.0.iter().all(|(name, _)| is_label_name(name)) {
            return Some("a label's name is not [a-zA-Z_][a-zA-Z0-9_]*, 256 bytes");
        }
        if self.labels.0.iter().any(|(_, v)| v.is_empty() || LABEL_VALUE_BYTES_MAX < v.len()) {
            return Some("a label's value is empty or longer than 4096 bytes");
        }
        if !self.labels.0.is_sorted_by(|a, b| a.0 < b.0) {
            return Some("its labels are not sorted or one stands twice");
        }
        if let Kind::Counter { scale } | Kind::Gauge { scale } = self.kind
            && 9 < scale
        {
            return Some("its scale is more than 9");
        }
        None
    }
}

/// `[a-zA-Z_:][a-zA-Z0-9_:]*`, at most 256 bytes.
#[must_use]
pub fn is_metric_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b':';
    name.len() <= LABEL_NAME_BYTES_MAX
        && name.bytes().all(inner)
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`, at most 256 bytes.
#[must_use]
pub fn is_label_name(name: &str) -> bool {
    is_metric_name(name) && !name.contains(':')
}

#[expect(clippy::cast_precision_loss, reason = "PromQL's numbers are f64; above 2^53 they round")]
fn as_f64(raw: u64) -> f64 {
    raw as f64
}

#[expect(clippy::cast_precision_loss, reason = "PromQL's numbers are f64; above 2^53 they round")]
fn signed_f64(raw: i64) -> f64 {
    raw as f64
}

const POWERS: [f64; 10] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        Schema {
            section: "cpu".into(),
            columns: vec![Column {
                name: "node_cpu_seconds_total".into(),
                labels: Labels::of(&[("mode", "idle"), ("cpu", "0")]),
                kind: Kind::Counter { scale: 2 },
            }],
        }
    }

    #[test]
    fn the_id_depends_on_every_part() {
        let base = schema().id();
        let mut other = schema();
        other.columns[0].kind = Kind::Counter { scale: 3 };
        assert_ne!(base, other.id());
        let mut other = schema();
        other.columns[0].labels = Labels::of(&[("mode", "user"), ("cpu", "0")]);
        assert_ne!(base, other.id());
        assert_eq!(base, schema().id());
    }

    #[test]
    fn values_are_scaled_to_the_nearest_f64() {
        assert_eq!(Kind::Counter { scale: 2 }.value(1234).to_bits(), 12.34_f64.to_bits());
        assert_eq!(
            Kind::Gauge { scale: 0 }.value((-5_i64).cast_unsigned()).to_bits(),
            (-5.0_f64).to_bits()
        );
    }

    #[test]
    fn hostile_schemas_are_named() {
        let mut bad = schema();
        bad.columns[0].name = "1x".into();
        assert!(matches!(bad.check(), Err(SchemaError::Column { index: 0, .. })));
        bad.columns.clear();
        assert_eq!(bad.check(), Err(SchemaError::Columns { found: 0 }));
        let mut bad = schema();
        bad.section = "../x".into();
        assert!(matches!(bad.check(), Err(SchemaError::Section { .. })));
        assert_eq!(schema().check(), Ok(()));
    }
}
