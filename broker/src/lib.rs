//! How a fleet is remembered: ingest, registry, write-ahead log and segment store, queries.

pub mod ingest;
pub mod window;
