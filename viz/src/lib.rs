//! How a person sees a fleet: HTTP API, WebSocket stream, dashboard.

pub mod assets;
pub mod backend;
pub mod config;
pub mod counters;
pub mod fleet;
pub mod front;
pub mod live;
pub mod relay;
pub mod remote;
mod workers;
