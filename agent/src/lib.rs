//! How a host is watched: /proc readers, the sampler, the ring and the uplink.
//!
//! The sampler's thread reads and seals, the network loop sends; the ring between them is the only
//! thing they share beside the table of schemas.

pub mod clock;
pub mod schemas;
pub mod sampler;
mod hazard;
mod readers;
