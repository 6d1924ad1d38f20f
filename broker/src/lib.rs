//! How a fleet is remembered: ingest, registry, write-ahead log and segment store, queries.

pub mod config;
pub mod hub;
pub mod ingest;
pub mod registry;
pub mod tokens;
pub mod window;
