//! Which sequence numbers of one boot have been taken: everything up to a point, and a bounded set
//! beyond it.
//!
//! ```text
//!  1 ───────────────── through │ hole │ beyond … │ hole │ beyond …
//!       └ missing: holes behind `through` that a session skipped and may still come late
//! ```
//!
//! A number is *taken* once: [`Window::admit`] says `New` the first time and `Duplicate` ever after.
//! Both sets are ranges and bounded; when `beyond` is full the frame is refused (the agent keeps
//! it), when `missing` is full the oldest hole is given up.

use std::collections::BTreeMap;

/// What became of a sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admitted {
    /// Never seen before; taken now.
    New,
    /// Taken before.
    Duplicate,
    /// Too many holes are open; not taken.
    Full,
}

/// The numbers of one boot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Window {
    through: u64,
    beyond: Ranges,
    missing: Ranges,
}

/// Disjoint, non-adjacent closed ranges.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Window {
    /// A window that starts before `first`, as when a log is replayed from its middle.
    #[must_use]
    pub fn before(first: u64) -> Self {
        let mut window = Self::default();
        window.skip_to(first);
        window
    }

    /// Everything up to this number is taken or given up: what an acknowledgement may say.
    #[must_use]
    pub fn through(&self) -> u64 {
        self.through
    }

    /// The first frame of a session is `seq`: a session sends in order from the oldest it still
    /// has, so holes before `seq` will not be filled by it. They stay open for latecomers.
    pub fn skip_to(&mut self, seq: u64) {
        while self.through + 1 < seq {
            let hole_end = self.beyond.first().map_or(seq, |(first, _)| first.min(seq)) - 1;
            self.missing.insert(self.through + 1, hole_end);
            self.through = hole_end;
            self.join();
        }
        while MISSING_MAX < self.missing.0.len() {
            self.missing.0.pop_first();
        }
    }

    /// Takes `seq`.
    pub fn admit(&mut self, seq: u64) -> Admitted {
        if seq <= self.through {
            return if self.missing.remove(seq) { Admitted::New } else { Admitted::Duplicate };
        }
        if self.beyond.contains(seq) {
            return Admitted::Duplicate;
        }
        if BEYOND_MAX <= self.beyond.0.len() && seq != self.through + 1 {
            return Admitted::Full;
        }
        self.beyond.insert(seq, seq);
        self.join();
        Admitted::New
    }

    /// A loss entry says that `first..=last` will never come: closes the holes there.
    pub fn cover(&mut self, first: u64, last: u64) {
        if first == 0 || last < first {
            return;
        }
        if self.through < last && self.beyond.0.len() < BEYOND_MAX {
            self.beyond.insert(first.max(self.through + 1), last);
            self.join();
        }
    }

    /// Takes all of `first..=last`, as found in the log at start.
    pub fn take(&mut self, first: u64, last: u64) {
        self.missing.remove_range(first, last);
        self.cover(first, last);
    }

    /// `seq` was taken but could not be stored: it may come again.
    pub fn forget(&mut self, seq: u64) {
        if self.through < seq {
            self.beyond.remove(seq);
            return;
        }
        let old = std::mem::replace(&mut self.through, seq.saturating_sub(1));
        if seq < old {
            self.beyond.insert(seq + 1, old);
        }
        for (first, last) in self.missing.split_off(seq) {
            self.beyond.remove_range(first, last);
        }
        self.join();
    }

    /// As it is kept on disk: `through`, then the two lists of ranges.
    #[must_use]
    #[expect(clippy::type_complexity, reason = "said once, and taken apart at once")]
    pub fn to_parts(&self) -> (u64, Vec<(u64, u64)>, Vec<(u64, u64)>) {
        let list = |ranges: &Ranges| ranges.0.iter().map(|(a, b)| (*a, *b)).collect();
        (self.through, list(&self.beyond), list(&self.missing))
    }

    /// From what [`Self::to_parts`] gave.
    #[must_use]
    pub fn from_parts(through: u64, beyond: &[(u64, u64)], missing: &[(u64, u64)]) -> Self {
        let mut window = Self { through, ..Self::default() };
        for (first, last) in beyond.iter().take(BEYOND_MAX) {
            if through < *first && first <= last {
                window.beyond.insert(*first, *last);
            }
        }
        for (first, last) in missing.iter().take(MISSING_MAX) {
            if 0 < *first && first <= last && *last <= through {
                window.missing.insert(*first, *last);
            }
        }
        window.join();
        window
    }

    fn join(&mut self) {
        while let Some((first, last)) = self.beyond.first() {
            if self.through + 1 < first {
                break;
            }
            self.through = self.through.max(last);
            self.beyond.0.pop_first();
        }
    }
}

impl Ranges {
    fn first(&self) -> Option<(u64, u64)> {
        self.0.first_key_value().map(|(a, b)| (*a, *b))
    }

    fn contains(&self, seq: u64) -> bool {
        self.0.range(..=seq).next_back().is_some_and(|(_, last)| seq <= *last)
    }

    fn insert(&mut self, mut first: u64, mut last: u64) {
        if let Some((a, b)) = self.0.range(..=first).next_back().map(|(a, b)| (*a, *b))
            && first <= b.saturating_add(1)
        {
            first = a;
            last = last.max(b);
        }
        while let Some((a, b)) = self.0.range(first..=last.saturating_add(1)).next() {
            let (a, b) = (*a, *b);
            last = last.max(b);
            self.0.remove(&a);
        }
        self.0.insert(first, last);
    }

    fn remove(&mut self, seq: u64) -> bool {
        let had = self.contains(seq);
        self.remove_range(seq, seq);
        had
    }

    fn remove_range(&mut self, first: u64, last: u64) {
        while let Some((a, b)) = self.0.range(..=last).next_back().map(|(a, b)| (*a, *b)) {
            if b < first {
                break;
            }
            self.0.remove(&a);
            if last < b {
                self.0.insert(last + 1, b);
            }
            if a < first {
                self.0.insert(a, first - 1);
                break;
            }
        }
    }

    /// Takes out everything from `seq` on.
    fn split_off(&mut self, seq: u64) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = self.0.split_off(&seq).into_iter().collect();
        if let Some((a, b)) = self.0.range(..seq).next_back().map(|(a, b)| (*a, *b))
            && seq <= b
        {
            self.0.insert(a, seq - 1);
            out.push((seq, b));
        }
        out
    }
}

/// Ranges beyond the first hole. An agent with one writer has at most one hole at a time.
const BEYOND_MAX: usize = 1024;
/// Holes that may still be filled late.
const MISSING_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Step {
        Admit(u64),
        Cover(u64, u64),
        Forget(u64),
        Skip(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (1..60_u64).prop_map(Step::Admit),
            1 => (1..60_u64, 0..9_u64).prop_map(|(a, n)| Step::Cover(a, a + n)),
            1 => (1..60_u64).prop_map(Step::Forget),
            1 => (1..60_u64).prop_map(Step::Skip),
        ]
    }

    proptest! {
        /// Against a plain set: nothing is taken twice, and `through` never passes an open hole
        /// that no session skipped and no loss covered.
        #[test]
        fn like_a_set(steps in prop::collection::vec(step(), 0..200)) {
            let mut window = Window::default();
            let (mut taken, mut given_up) = (BTreeSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Admit(seq) => {
                        let fresh = window.admit(seq) == Admitted::New;
                        if fresh {
                            prop_assert!(taken.insert(seq), "{seq} was taken twice");
                        } else {
                            prop_assert!(taken.contains(&seq) || given_up.contains(&seq));
                        }
                    }
                    Step::Cover(first, last) => {
                        window.cover(first, last);
                        given_up.extend(first..=last);
                    }
                    Step::Forget(seq) => {
                        if taken.remove(&seq) {
                            window.forget(seq);
                            prop_assert!(window.through() < seq);
                            prop_assert_eq!(window.clone().admit(seq), Admitted::New);
                        }
                    }
                    Step::Skip(seq) => {
                        window.skip_to(seq);
                        given_up.extend(1..seq);
                    }
                }
                let (through, beyond, missing) = window.to_parts();
                prop_assert_eq!(&Window::from_parts(through, &beyond, &missing), &window);
                let open = (1..=through).find(|s| !taken.contains(s) && !given_up.contains(s));
                prop_assert_eq!(open, None, "acknowledged, but neither stored nor given up");
            }
        }
    }

    #[test]
    fn a_late_frame_fills_a_skipped_hole_once() {
        let mut window = Window::default();
        assert_eq!(window.admit(1), Admitted::New);
        window.skip_to(5);
        assert_eq!((window.admit(5), window.through()), (Admitted::New, 5));
        assert_eq!((window.admit(3), window.admit(3)), (Admitted::New, Admitted::Duplicate));
        assert_eq!(window.admit(1), Admitted::Duplicate);
    }

    #[test]
    fn too_many_holes_are_refused_and_filling_the_first_is_not() {
        let mut window = Window::default();
        let most = 2 * u64::try_from(BEYOND_MAX).unwrap();
        for seq in (2..=most).step_by(2) {
            assert_eq!(window.admit(seq + 1), Admitted::New);
        }
        assert_eq!(window.admit(most + 9), Admitted::Full);
        assert_eq!((window.admit(1), window.through()), (Admitted::New, 1));
        assert_eq!((window.admit(2), window.through()), (Admitted::New, 3));
    }
}
