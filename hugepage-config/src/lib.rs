//! Memory regions on the largest pages the host will give, and what the host has to give.
//!
//! [`Region::map`] tries what is wanted and falls through: hugetlb → transparent huge pages →
//! plain pages. It always says which it got and why it got no better ([`Region::got`],
//! [`Region::refusals`]). [`host`] reads the host's settings for people. [`resident::give_back`] is for
//! programs whose start takes more memory than their life.

pub mod host;
pub mod measure;
pub mod plan;
#[expect(unsafe_code, reason = "mmap, madvise and munmap: the region owns what it maps")]
pub mod region;
#[expect(unsafe_code, reason = "malloc_trim, and madvise on code")]
pub mod resident;

pub use region::{Got, Refusal, Region, RegionError, Want};
