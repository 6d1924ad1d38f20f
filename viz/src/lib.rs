//! How a person sees a fleet: HTTP API, WebSocket stream, dashboard.

pub mod assets;
pub mod backend;
mod client;
pub mod config;
pub mod counters;
pub mod fleet;
pub mod front;
pub mod link_run;
pub mod live;
mod out;
pub mod relay;
pub mod remote;
mod run;
mod session;
mod transport;
pub mod web_socket;
mod workers;

pub use config::Config;
pub use run::{Viz, VizError};
