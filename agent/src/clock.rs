//! The agent's clocks: the one place that asks the kernel what time it is.
//!
//! Everything else takes time as an argument. A clock the kernel does not have reads 0.

use nix::time::{ClockId, clock_gettime};

/// Wall time in ns since 1970-01-01 UTC.
#[must_use]
pub fn wall_ns() -> i64 {
    i64::try_from(read(ClockId::CLOCK_REALTIME)).unwrap_or(i64::MAX)
}

/// Time since the machine started, suspended time included, in ns.
#[must_use]
pub fn boottime_ns() -> u64 {
    read(ClockId::CLOCK_BOOTTIME)
}

/// A clock that never steps, in ns, for measuring how long something took.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

fn read(clock: ClockId) -> u64 {
    let Ok(time) = clock_gettime(clock) else { return 0 };
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
