//! Who sees to it that a trial of a version ends: whoever leads, so long after it first saw it.
//!
//! By its own clock's passing, not by anybody's time of day: a clock that is set ends no trial. A leader
//! that dies leaves the trial in the state, and the next one gives it as long again.

use std::time::{Duration, Instant};
use strobe_cluster::State;
use strobe_cluster::kinds::{Command, rollouts, versions};

/// The trial that is under way.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    seen: Option<(u64, Instant)>,
}

impl Keeper {
    /// What is to be proposed now, if anything.
    pub(super) fn due(&mut self, now: Instant, state: &State, leads: bool) -> Option<Command> {
        let trial = versions::on_trial(state).filter(|_| leads);
        let Some(number) = trial.map(|version| version.number) else {
            self.seen = None;
            return None;
        };
        let since = match self.seen {
            Some((seen, since)) if seen == number => since,
            _ => now,
        };
        self.seen = Some((number, since));
        if now < since + TRIAL_MAX {
            return None;
        }
        // If nobody hears it, it is said again.
        self.seen = Some((number, since + AGAIN));
        Some(rollouts::Change::end(
            number,
            Err(&format!(
                "within {} s it was not heard that the canary runs it well",
                TRIAL_MAX.as_secs()
            )),
        ))
    }
}

/// An agent takes up to a minute to find that it runs well.
const TRIAL_MAX: Duration = Duration::from_secs(90);
const AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use strobe_cluster::kinds::versions::Version;

    #[test]
    fn a_trial_that_nobody_ends_is_taken_back_by_whoever_leads() {
        #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut state = State::default();
        let canary = "host:1".to_owned();
        let begin = rollouts::Change::begin(Version { canary, ..Version::default() });
        assert_eq!(state.run(&begin), Ok(1));
        let (mut first, mut second) = (Keeper::default(), Keeper::default());
        assert_eq!(first.due(at(0), &state, true), None);
        assert_eq!(first.due(at(80), &state, true), None);
        // The first one dies; the next knows nothing of its 80 s.
        assert_eq!(second.due(at(80), &state, false), None);
        assert_eq!(second.due(at(81), &state, true), None);
        assert_eq!(second.due(at(170), &state, true), None);
        let end = second.due(at(171), &state, true).expect("90 s are over");
        assert_eq!(second.due(at(172), &state, true), None, "once is enough for a while");
        assert!(second.due(at(176), &state, true).is_some());
        assert_eq!(state.run(&end), Ok(1));
        assert_eq!(second.due(at(177), &state, true), None);
        assert!(versions::last(&state).unwrap().told.contains("90 s"));
    }
}
