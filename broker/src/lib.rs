//! How a fleet is remembered: ingest, registry, the store of samples, and the answers about them.

pub mod config;
pub mod hub;
pub mod ingest;
pub mod registry;
pub mod store;
pub mod tokens;
pub mod window;
