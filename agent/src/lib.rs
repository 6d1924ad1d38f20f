//! How a host is watched: /proc readers, the sampler, the ring and the uplink.
//!
//! The sampler's thread reads and seals, the network loop sends; the ring between them is the only
//! thing they share beside the table of schemas.

pub mod config;
#[cfg(fuzzing)]
pub mod fuzz;

mod readers;

#[expect(unsafe_code, reason = "adjtimex(2) has no safe wrapper in nix")]
mod adjust;

mod hazard;
pub mod input;
pub mod sampler;
pub mod schemas;

#[expect(unsafe_code, reason = "slots are handed from thread to thread in place, by ticket")]
pub mod ring;
pub mod sealer;

pub mod score;

pub mod recorder;

mod answers;
pub mod managed;

pub mod spool;

pub mod machine;
pub mod state;
pub mod uplink;

pub mod run;

#[cfg(feature = "inputs")]
pub mod announce;
pub mod clock;
pub mod costs;
pub mod doctor;
pub mod exporter;
pub mod exposition;
