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
//! `strobe_input_…` series.

pub(crate) mod text;

pub(crate) mod board;
pub mod outbox;

pub mod config;
pub(crate) mod http;
pub(crate) mod scrape;

pub(crate) mod exec;
pub(crate) mod statsd;
pub(crate) mod stream;
pub(crate) mod write;

pub use config::Inputs;
pub use outbox::Outbox;

#[cfg(fuzzing)]
pub mod fuzz;
