//! How a person sees a fleet: HTTP API, WebSocket stream, dashboard.

pub mod front;
