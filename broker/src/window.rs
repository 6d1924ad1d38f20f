//! Which sequence numbers of one boot have been taken: everything up to a point, and a bounded set
//! beyond it.
//!
//! ```text
//!  1 ───────────────── through │ hole │ beyond … │ hole │ beyond …
//! ```
//!
//! A number is *taken* once: [`Window::admit`] says `New` the first time and `Duplicate` ever after.
//! `beyond` is bounded; when it is full the frame is refused (the agent keeps it). Holes that a
//! session skips are closed, and handed out to be told in the loss ledger.

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
}

/// Disjoint, non-adjacent closed ranges.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Window {
    /// Everything up to this number is taken or given up: what an acknowledgement may say.
    #[must_use]
    pub fn through(&self) -> u64 {
        self.through
    }

    /// The last number up to which nothing is open from `first` on; less than it if `first` is.
    #[must_use]
    pub fn through_from(&self, first: u64) -> u64 {
        if first <= self.through.saturating_add(1) {
            return self.through;
        }
        let range = self.beyond.0.range(..=first).next_back().map(|(_, last)| *last);
        range.filter(|last| first <= *last).unwrap_or(0)
    }

    /// The first frame of a session is `seq`: a session sends in order from the oldest it still
    /// has, so holes before `seq` will never be filled. Closes them and says which they were.
    pub fn skip_to(&mut self, seq: u64) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        while self.through + 1 < seq {
            let hole_end = self.beyond.first().map_or(seq, |(first, _)| first.min(seq)) - 1;
            holes.push((self.through + 1, hole_end));
            self.through = hole_end;
            self.join();
        }
        holes
    }

    /// Takes `seq`.
    pub fn admit(&mut self, seq: u64) -> Admitted {
        if seq <= self.through || self.beyond.contains(seq) {
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

    /// `first..=last` were taken but could not be stored: they may come again.
    pub fn forget(&mut self, first: u64, last: u64) {
        self.beyond.remove_range(first, last);
        if first <= self.through {
            let old = std::mem::replace(&mut self.through, first.saturating_sub(1));
            if last < old {
                self.beyond.insert(last + 1, old);
            }
        }
        self.join();
    }

    /// As it is kept on disk: `through`, then the ranges beyond.
    #[must_use]
    pub fn to_parts(&self) -> (u64, Vec<(u64, u64)>) {
        (self.through, self.beyond.0.iter().map(|(a, b)| (*a, *b)).collect())
    }

    /// From what [`Self::to_parts`] gave.
    #[must_use]
    pub fn from_parts(through: u64, beyond: &[(u64, u64)]) -> Self {
        let mut window = Self { through, beyond: Ranges::default() };
        for (first, last) in beyond.iter().take(BEYOND_MAX) {
            if through < *first && first <= last {
                window.beyond.insert(*first, *last);
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
}

/// Ranges beyond the first hole. An agent with one writer has at most one hole at a time.
const BEYOND_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Step {
        Admit(u64),
        Cover(u64, u64),
        Forget(u64, u64),
        Skip(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (1..60_u64).prop_map(Step::Admit),
            1 => (1..60_u64, 0..9_u64).prop_map(|(a, n)| Step::Cover(a, a + n)),
            1 => (1..60_u64, 0..4_u64).prop_map(|(a, n)| Step::Forget(a, a + n)),
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
                    Step::Forget(first, last) => {
                        window.forget(first, last);
                        for seq in first..=last {
                            taken.remove(&seq);
                            given_up.remove(&seq);
                            prop_assert_eq!(window.clone().admit(seq), Admitted::New);
                        }
                        prop_assert!(window.through() < first);
                    }
                    Step::Skip(seq) => {
                        for (first, last) in window.skip_to(seq) {
                            for hole in first..=last {
                                prop_assert!(!taken.contains(&hole), "{hole} is no hole");
                                prop_assert!(given_up.insert(hole), "{hole} is told already");
                            }
                        }
                    }
                }
                let (through, beyond) = window.to_parts();
                prop_assert_eq!(&Window::from_parts(through, &beyond), &window);
                let open = (1..=through).find(|s| !taken.contains(s) && !given_up.contains(s));
                prop_assert_eq!(open, None, "acknowledged, but neither stored nor given up");
            }
        }
    }

    #[test]
    fn holes_that_a_session_skips_are_handed_out_once() {
        let mut window = Window::default();
        for seq in [1, 4, 7] {
            assert_eq!(window.admit(seq), Admitted::New);
        }
        assert_eq!(window.skip_to(9), [(2, 3), (5, 6), (8, 8)]);
        assert_eq!((window.skip_to(9), window.through()), (vec![], 8));
        assert_eq!((window.admit(9), window.through()), (Admitted::New, 9));
        assert_eq!(window.admit(3), Admitted::Duplicate);
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
