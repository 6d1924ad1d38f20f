//! (being written)

pub mod enrol;
#[expect(unsafe_code, reason = "slots are handed from thread to thread in place, by ticket")]
pub mod ring;
pub mod state;
pub mod uplink;
