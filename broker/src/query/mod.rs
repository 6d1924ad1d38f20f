//! PromQL: parsed by `promql-parser`, evaluated over columns of steps.
//!
//! ```text
//! text ──parse──► syntax tree ──eval──► Vector (series × steps) ──► Output
//!                     │ leaves                    ▲
//!                     └─► store.select, store.scan: one pass a series, one value a step kept
//! ```
//!
//! Semantics are those of Prometheus 2.42, the release this is tested against: range windows are
//! closed at both ends (`t - range ≤ ts ≤ t`; version 3 leaves the start out), an instant
//! selector looks back five minutes, both ends included, and ends at a stale marker.
//!
//! What is not supported (native histograms, experimental functions) is an error that says so.
//! Everything is bounded by [`Limits`]; an error names the limit.

mod aggregate;
mod binary;
mod calendar;
mod deadline;
mod engine;
mod evaluation;
mod fleet;
mod functions;
mod locate;
mod parse;
mod rolled;
mod selectors;
mod value;
mod window;

pub use calendar::Date;
pub use deadline::{Caller, Deadline, Pulse};
pub use engine::{Engine, Limits, Output, QueryError, Sample};
pub use parse::{parse, selector};
pub use selectors::Raw;
pub use value::{Labels, NAME, number};
