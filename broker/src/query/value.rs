//! What an expression evaluates to: whole columns of steps, not one step at a time.
//!
//! A [`Vector`] is a list of series, each with one `f64` a step. A step without a sample holds
//! [`ABSENT`], the bit pattern of a stale marker: arithmetic never makes it (it is a signalling
//! NaN, results are quiet ones), and stale samples never get this far.

use std::fmt;

/// The labels of one series, sorted by name, no name twice, no value empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct Labels {
    pairs: Vec<(String, String)>,
}

/// The steps an expression is evaluated at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Steps {
    /// The first one, ms since 1970.
    pub start_ms: i64,
    /// From one to the next, ms; at least 1.
    pub step_ms: i64,
    /// How many.
    pub count: usize,
}

/// One series over all steps.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Series {
    /// Its labels, `__name__` among them unless it was dropped.
    pub labels: Labels,
    /// One value a step, [`ABSENT`] where there is none.
    pub values: Vec<f64>,
}

/// Instant vectors over all steps.
pub(crate) type Vector = Vec<Series>;

/// A value of one of PromQL's types; range vectors exist only as arguments and as final results.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Value {
    /// One number a step.
    Scalar(Vec<f64>),
    /// Any number of series.
    Vector(Vector),
    /// A string literal.
    Text(String),
}

/// The metric name's label.
pub const NAME: &str = "__name__";
/// No sample at this step; Prometheus' stale marker.
pub(crate) const ABSENT: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// Whether a step holds no sample (or a stored sample is a stale marker).
#[must_use]
pub(crate) fn is_absent(value: f64) -> bool {
    value.to_bits() == ABSENT.to_bits()
}

/// A number as Prometheus prints it in labels: shortest, never an exponent.
#[must_use]
pub fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value == f64::INFINITY {
        "+Inf".to_owned()
    } else if value == f64::NEG_INFINITY {
        "-Inf".to_owned()
    } else {
        format!("{value}")
    }
}

impl Value {
    /// How many values it holds.
    #[must_use]
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Scalar(values) => values.len(),
            Self::Vector(vector) => vector.iter().map(|series| series.values.len()).sum(),
            Self::Text(_) => 1,
        }
    }
}

impl Labels {
    /// From pairs in any order; empty values are left out, the last of a name wins.
    #[must_use]
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let pairs: Vec<_> = pairs.into_iter().collect();
        // What the store gives out is so already.
        if pairs.is_sorted_by(|a, b| a.0 < b.0) && pairs.iter().all(|pair| !pair.1.is_empty()) {
            return Self { pairs };
        }
        let mut labels = Self::default();
        for (name, value) in pairs {
            labels.set(&name, value);
        }
        labels
    }

    /// All pairs, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of a name; `""` if it is missing, which PromQL does not tell apart.
    #[must_use]
    pub fn value(&self, name: &str) -> &str {
        self.position(name).ok().and_then(|at| self.pairs.get(at)).map_or("", |pair| &pair.1)
    }

    /// Sets a label; an empty value removes it.
    pub fn set(&mut self, name: &str, value: String) {
        match (self.position(name), value.is_empty()) {
            (Ok(at), true) => drop(self.pairs.remove(at)),
            (Ok(at), false) => {
                if let Some(pair) = self.pairs.get_mut(at) {
                    pair.1 = value;
                }
            }
            (Err(_), true) => {}
            (Err(at), false) => self.pairs.insert(at, (name.to_owned(), value)),
        }
    }

    /// Only the named ones.
    #[must_use]
    pub fn only(&self, names: &[String]) -> Self {
        let pairs = self.pairs.iter().filter(|(name, _)| names.contains(name));
        Self { pairs: pairs.cloned().collect() }
    }

    /// All but the named ones and the metric name.
    #[must_use]
    pub fn without(&self, names: &[String]) -> Self {
        let pairs = self.pairs.iter().filter(|(name, _)| name != NAME && !names.contains(name));
        Self { pairs: pairs.cloned().collect() }
    }

    /// All but the metric name.
    #[must_use]
    pub fn without_name(&self) -> Self {
        self.without(&[])
    }

    fn position(&self, name: &str) -> Result<usize, usize> {
        self.pairs.binary_search_by(|pair| pair.0.as_str().cmp(name))
    }
}

/// As PromQL writes a series: `name{a="b"}`.
impl fmt::Display for Labels {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.value(NAME))?;
        out.write_str("{")?;
        let mut comma = "";
        for (name, value) in self.iter().filter(|(name, _)| *name != NAME) {
            write!(out, "{comma}{name}={value:?}")?;
            comma = ", ";
        }
        out.write_str("}")
    }
}

impl Steps {
    /// One moment.
    #[must_use]
    pub(crate) fn once(at_ms: i64) -> Self {
        Self { start_ms: at_ms, step_ms: 1, count: 1 }
    }

    /// The time of a step.
    #[must_use]
    pub(crate) fn at(&self, index: usize) -> i64 {
        let index = i64::try_from(index).unwrap_or(i64::MAX);
        self.start_ms.saturating_add(self.step_ms.saturating_mul(index))
    }

    /// The time of the last step.
    #[must_use]
    pub(crate) fn end_ms(&self) -> i64 {
        self.at(self.count.saturating_sub(1))
    }

    /// All times, in seconds.
    #[must_use]
    pub(crate) fn seconds(&self) -> Vec<f64> {
        (0..self.count).map(|index| seconds(self.at(index))).collect()
    }
}

/// Milliseconds as seconds. Exact below 2^53 ms, which is the year 287396.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "times are far below 2^53 ms")]
pub(crate) fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

/// A count as a number.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub(crate) fn count(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stay_sorted_and_drop_empty_values() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let mut labels =
            Labels::from_pairs([pair("z", "1"), pair("a", "2"), pair("m", ""), pair(NAME, "up")]);
        assert_eq!(labels.to_string(), r#"up{a="2", z="1"}"#);
        labels.set("a", String::new());
        labels.set("b", "x".to_owned());
        assert_eq!(labels.without_name().to_string(), r#"{b="x", z="1"}"#);
        assert_eq!(labels.only(&["z".to_owned()]).to_string(), r#"{z="1"}"#);
        assert_eq!(labels.value("nope"), "");
    }

    #[test]
    fn numbers_print_as_prometheus_does() {
        for (value, wanted) in
            [(0.5, "0.5"), (1e21, "1000000000000000000000"), (f64::INFINITY, "+Inf"), (-0.0, "-0")]
        {
            assert_eq!(number(value), wanted);
        }
        assert!(is_absent(ABSENT) && !is_absent(f64::NAN));
    }
}
