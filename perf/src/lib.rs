//! How fast Strobe is, in the large, against what one would otherwise use.
//!
//! [`load`] is a fleet in one process: thousands of agents, each its own connection with its own
//! certificate, sending real frames at their interval and holding every one until it is
//! acknowledged. [`agents`] runs Strobe's agent beside other agents on this host, in the same
//! seconds. [`report`] writes what came out as JSON and as a Markdown table. Only [`run`] reads
//! the clock.

pub mod agents;
pub mod broker;
pub mod churn;
pub mod families;
pub mod floor;
pub mod gaps;
pub mod http;
pub mod load;
pub mod peers;
pub mod process;
pub mod report;
pub mod rows;
pub mod run;
pub mod suite;
