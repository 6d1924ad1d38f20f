//! How long a query may go on, and whether anybody still waits for its answer.
//!
//! The evaluator has no clock. Whoever owns one hands in a pulse, and every loop over samples or
//! values reports its work to a [`Meter`], which takes the pulse once in [`WORK_A_PULSE`] units. So
//! a query stops within that much work (about a millisecond) of its time's end or of being left.

use crate::query::engine::{QueryError, wide};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Who waits for an answer; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Relaxed: it carries nothing but itself.
    left: Arc<AtomicBool>,
}

/// What the owner of the clock says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pulse {
    /// So many milliseconds have gone since the query came.
    Elapsed(u64),
    /// Nobody waits for the answer any more.
    Abandoned,
}

/// When a query has to be answered.
#[derive(Clone, Copy)]
pub struct Deadline<'a> {
    pulse: &'a (dyn Fn() -> Pulse + Sync),
    ms_max: u64,
}

/// Counts the work of one query, whose threads share it, and bounds what it holds.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    deadline: Deadline<'a>,
    values_max: usize,
    work: AtomicU64,
}

impl Caller {
    /// It hung up: what is computed for it may stop.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Whether it hung up.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }
}

impl<'a> Deadline<'a> {
    /// After `ms_max` milliseconds of `pulse`.
    #[must_use]
    pub fn new(pulse: &'a (dyn Fn() -> Pulse + Sync), ms_max: u64) -> Self {
        Self { pulse, ms_max }
    }

    /// The same, or `ms_max` if that is sooner.
    #[must_use]
    pub fn within(self, ms_max: u64) -> Self {
        Self { ms_max: self.ms_max.min(ms_max), ..self }
    }

    /// # Errors
    /// The time is over, or nobody waits.
    pub(crate) fn check(&self) -> Result<(), QueryError> {
        self.elapsed_ms().map(|_| ())
    }

    /// How long the query has been going on.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(crate) fn elapsed_ms(&self) -> Result<u64, QueryError> {
        match (self.pulse)() {
            Pulse::Elapsed(ms) if ms < self.ms_max => Ok(ms),
            Pulse::Elapsed(_) => Err(QueryError::Timeout { ms_max: self.ms_max }),
            Pulse::Abandoned => Err(QueryError::Abandoned),
        }
    }
}

impl Deadline<'static> {
    /// None: for tests and benches.
    #[must_use]
    pub fn never() -> Self {
        Self { pulse: &|| Pulse::Elapsed(0), ms_max: u64::MAX }
    }
}

impl std::fmt::Debug for Deadline<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Deadline").field("ms_max", &self.ms_max).finish_non_exhaustive()
    }
}

impl<'a> Meter<'a> {
    pub(crate) fn new(deadline: Deadline<'a>, values_max: usize) -> Self {
        Self { deadline, values_max, work: AtomicU64::new(0) }
    }

    /// When it has to stop.
    pub(crate) fn deadline(&self) -> Deadline<'a> {
        self.deadline
    }

    /// So much work (samples, values, comparisons) is about to be done, or was.
    ///
    /// # Errors
    /// The query has to stop.
    pub(crate) fn spend(&self, work: usize) -> Result<(), QueryError> {
        let work = wide(work);
        // Relaxed: a sum; nothing is read through it.
        let before = self.work.fetch_add(work, Ordering::Relaxed);
        if before / WORK_A_PULSE == before.wrapping_add(work) / WORK_A_PULSE {
            return Ok(());
        }
        self.deadline.check()
    }

    /// So many series of so many steps are about to be held.
    ///
    /// # Errors
    /// They are too many.
    pub(crate) fn hold(&self, series: usize, steps: usize) -> Result<(), QueryError> {
        let found = series.saturating_mul(steps);
        if self.values_max < found {
            return Err(QueryError::Limit {
                what: "series times steps",
                found: wide(found),
                name: "values_max",
                max: wide(self.values_max),
                advice: "take a larger step, a shorter range or fewer series",
            });
        }
        Ok(())
    }
}

/// Units of 1 to 20 ns each; reading a clock costs some 25 ns.
const WORK_A_PULSE: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pulse_is_taken_once_in_a_while() {
        let taken = AtomicU64::new(0);
        let pulse = || {
            let ms = taken.fetch_add(1, Ordering::Relaxed);
            if ms == 8 { Pulse::Abandoned } else { Pulse::Elapsed(ms) }
        };
        let meter = Meter::new(Deadline::new(&pulse, 100), 10);
        let mut spent = 0;
        let stopped = loop {
            spent += 1000;
            if let Err(why) = meter.spend(1000) {
                break why;
            }
        };
        assert!(matches!(stopped, QueryError::Abandoned));
        assert!((9 * WORK_A_PULSE..10 * WORK_A_PULSE).contains(&spent), "{spent}");
        let meter = Meter::new(Deadline::new(&pulse, 100).within(5), 10);
        assert!(matches!(meter.spend(1 << 20), Err(QueryError::Timeout { ms_max: 5 })));
    }
}
