//! How a fleet is remembered: ingest, registry, the store of samples, and the answers about them.

pub mod api;
pub mod audit;
pub mod backup;
pub mod certificates;
pub mod class;
pub mod cluster;
pub mod config;
pub mod control;
mod database;
mod dir;
mod fleet;
#[cfg(fuzzing)]
pub mod fuzz;
mod gate;
pub mod hub;
pub mod ingest;
pub mod lookout;
pub mod managed;
pub mod net;
mod own;
pub mod peers;
pub mod query;
pub mod registry;
pub mod remote_write;
mod run;
pub mod scaling;
pub mod store;
pub mod tokens;
pub mod trust;
pub mod tune;
pub mod vitals;
pub mod window;
pub mod writer;

pub use config::Config;
pub use dir::DirError;
pub use hub::{Subscription, Update};
pub use run::{Broker, BrokerError};
