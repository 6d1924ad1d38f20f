//! How a fleet is remembered: ingest, registry, the store of samples, and the answers about them.

pub mod api;
pub mod query;
pub mod remote_write;
pub mod store;
