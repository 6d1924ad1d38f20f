//! The only place in the broker that reads a clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

#[expect(clippy::disallowed_methods, reason = "the one place where the clock is read")]
pub(super) fn monotonic() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the one place where the clock is read")]
pub(super) fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn wall_s() -> u64 {
    u64::try_from(wall_ms() / 1000).unwrap_or(0)
}

/// Datagrams that come in a moment are taken together: to wake up for each costs more than all
/// that is done with it.
#[expect(clippy::disallowed_methods, reason = "the one place where a loop rests")]
pub(super) fn rest_until(at: Instant) {
    let rest = at.saturating_duration_since(monotonic());
    if !rest.is_zero() {
        std::thread::sleep(rest);
    }
}
