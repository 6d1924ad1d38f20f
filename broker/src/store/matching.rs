//! Matchers, compiled, and what they say of a label.

use super::head::NAME;
use super::{MatchOp, Matcher, StoreError};
use regex::{Regex, RegexBuilder};
use strobe_wire::schema::Labels;

/// A compiled [`Matcher`].
#[derive(Debug)]
pub(super) struct Test {
    pub(super) name: String,
    is: Is,
}

#[derive(Debug)]
enum Is {
    Equal(String),
    NotEqual(String),
    Regex(Regex),
    NotRegex(Regex),
}

impl Test {
    pub(super) fn new(matcher: &Matcher) -> Result<Self, StoreError> {
        let regex = || {
            RegexBuilder::new(&format!("^(?s:{})$", matcher.value))
                .size_limit(PATTERN_BYTES_MAX)
                .build()
                .map_err(|error| StoreError::Pattern {
                    name: matcher.name.clone(),
                    value: matcher.value.clone(),
                    why: error.to_string(),
                })
        };
        let is = match matcher.op {
            MatchOp::Equal => Is::Equal(matcher.value.clone()),
            MatchOp::NotEqual => Is::NotEqual(matcher.value.clone()),
            MatchOp::Regex => Is::Regex(regex()?),
            MatchOp::NotRegex => Is::NotRegex(regex()?),
        };
        Ok(Self { name: matcher.name.clone(), is })
    }

    /// The one value of the label `name` that it holds for, if there is one.
    pub(super) fn only(&self, name: &str) -> Option<&str> {
        match &self.is {
            Is::Equal(value) if self.name == name && !value.is_empty() => Some(value),
            _ => None,
        }
    }

    pub(super) fn holds(&self, value: &str) -> bool {
        match &self.is {
            Is::Equal(wanted) => wanted == value,
            Is::NotEqual(wanted) => wanted != value,
            Is::Regex(pattern) => pattern.is_match(value),
            Is::NotRegex(pattern) => !pattern.is_match(value),
        }
    }

    /// A series' value of the label: the column's, else the source's.
    pub(super) fn holds_for(&self, name: &str, labels: &Labels, source: &Labels) -> bool {
        let value = if self.name == NAME {
            name
        } else {
            labels.value(&self.name).or_else(|| source.value(&self.name)).unwrap_or("")
        };
        self.holds(value)
    }
}

/// A pattern's compiled program; Prometheus' RE2 has a bound of the same order.
const PATTERN_BYTES_MAX: usize = 1 << 20;
