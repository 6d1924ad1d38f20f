//! How a host is watched: /proc readers, the sampler, the ring and the uplink.
//!
//! The sampler's thread reads and seals, the network loop sends; the ring between them is the only
//! thing they share beside the table of schemas.

pub mod clock;
pub mod config;
pub mod enrol;
pub mod exposition;
mod hazard;
mod readers;
#[expect(unsafe_code, reason = "slots are handed from thread to thread in place, by ticket")]
pub mod ring;
pub mod run;
pub mod sampler;
pub mod schemas;
pub mod sealer;
pub mod state;
pub mod uplink;
