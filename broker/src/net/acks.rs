//! How long frames waited for their acknowledgement: from the turn that took them in to the word that
//! they are on disk.
//!
//! Counts of frames below some bounds, in two generations of ten seconds, so that what is read is of the
//! last ten to twenty. Whoever connects the agent adds the way there and back.

use std::time::{Duration, Instant};

/// Waits of the last seconds.
#[derive(Debug)]
pub(super) struct Waits {
    since: Instant,
    young: [u64; BOUNDS_MS.len() + 1],
    old: [u64; BOUNDS_MS.len() + 1],
}

impl Waits {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, young: Default::default(), old: Default::default() }
    }

    /// So many frames waited since `from`.
    pub(super) fn add(&mut self, from: Instant, now: Instant, frames: usize) {
        let waited = now.saturating_duration_since(from).as_millis();
        let bucket = BOUNDS_MS.iter().position(|bound| waited <= u128::from(*bound));
        if let Some(count) = self.young.get_mut(bucket.unwrap_or(BOUNDS_MS.len())) {
            *count = count.saturating_add(u64::try_from(frames).unwrap_or(u64::MAX));
        }
    }

    /// At most so long, in ms, 99 of 100 frames waited; none without frames.
    pub(super) fn p99_ms(&self) -> Option<u64> {
        let both = self.young.iter().zip(&self.old);
        let counts: Vec<u64> = both.map(|(young, old)| young.saturating_add(*old)).collect();
        let all: u64 = counts.iter().sum();
        let mut below = 0;
        let bucket = counts.iter().position(|count| {
            below += count;
            all <= below.saturating_add(all / 100)
        });
        (0 < all).then(|| bucket.and_then(|at| BOUNDS_MS.get(at)).copied().unwrap_or(BEYOND_MS))
    }

    /// Lets go of what is old.
    pub(super) fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if GENERATION <= age {
            self.old = if age < 2 * GENERATION { self.young } else { Default::default() };
            self.young = Default::default();
            self.since = now;
        }
    }
}

const GENERATION: Duration = Duration::from_secs(10);
const BOUNDS_MS: [u64; 19] =
    [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1_000, 2_000, 5_000];
/// Longer than the last bound.
const BEYOND_MS: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_frame_of_a_hundred_is_not_the_99th() {
        #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut waits = Waits::new(begin);
        assert_eq!(waits.p99_ms(), None);
        waits.add(begin, at(12), 99);
        waits.add(begin, at(400), 1);
        assert_eq!(waits.p99_ms(), Some(15));
        waits.add(begin, at(9_000), 5);
        waits.turn(at(10_000));
        assert_eq!(waits.p99_ms(), Some(10_000));
        waits.turn(at(20_000));
        assert_eq!(waits.p99_ms(), None, "what is old is not told");
        waits.add(at(20_000), at(20_001), 1);
        assert_eq!(waits.p99_ms(), Some(1));
    }
}
