//! How a fleet is remembered: ingest, registry, the store of samples, and the answers about them.

pub mod query;
pub mod store;
