//! Inputs besides the host's own files: scrapes, commands, StatsD, remote-write, and a socket for collectors
//! of the user's own.
//!
//! ```text
//! sockets, pipes ─▶ bytes ─▶ parser ─▶ board (series ─▶ columns) ─▶ outbox ─▶ sampler ─▶ ring
//!                        strobe-inputs, one thread (`run/inputs`)
//! ```
//!
//! Each is off by default, and with none there is no thread and no memory. They are state machines of bytes
//! and times; their rows are numbered and sealed by the sampler like its own, so that spool, ledger,
//! deduplication and queries know no difference. Everything is bounded, and what is refused is counted in
//! `strobe_input_…` series. Without the feature `inputs` there is the text format alone.

pub(crate) mod text;

#[cfg(feature = "inputs")]
pub(crate) mod board;
#[cfg(feature = "inputs")]
pub(crate) mod line;
#[cfg(feature = "inputs")]
pub mod outbox;

#[cfg(feature = "inputs")]
pub mod config;
#[cfg(feature = "inputs")]
pub(crate) mod http;
#[cfg(feature = "inputs")]
pub(crate) mod scrape;

#[cfg(feature = "inputs")]
pub(crate) mod exec;
#[cfg(feature = "inputs")]
pub(crate) mod statsd;
#[cfg(feature = "inputs")]
pub(crate) mod stream;
#[cfg(feature = "inputs")]
pub(crate) mod write;

#[cfg(feature = "inputs")]
pub use config::Inputs;
#[cfg(feature = "inputs")]
pub use outbox::Outbox;

#[cfg(fuzzing)]
pub mod fuzz;
