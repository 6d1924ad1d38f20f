//! What the parts say to each other: identities, bounds, the schema and the frame, messages,
//! settings, certificates, and the QUIC link that carries them.
//!
//! No clock (time is an argument), no unsafe, and a socket only in [`link`].

pub mod back_off;
pub mod burst;
pub mod enrol;
pub mod fleet;
pub mod frame;
pub mod health;
pub mod ids;
pub mod limits;
pub mod link;
pub mod message;
pub mod pki;
pub mod program;
pub mod schema;
pub mod score;
pub mod settings;
pub mod shard;
