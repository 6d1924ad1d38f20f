//! Whether a history of registers is linearizable: whether every operation can have happened at one moment
//! between its call and its answer, so that each answer is what a single register would have said.
//!
//! ```text
//! history --by key--> search: linearize one that may be next --> all that were answered: yes
//!                        ^   |  none fits: take the last one back  --> nothing left: no
//!                        +---+  (what was done, value) was seen before: no need to look again
//! ```
//!
//! After Wing and Gong (1993) and Lowe (2017). An operation may be next if no other one that is not done
//! was answered before it was called. What was not answered may have happened at any time after its call,
//! or never. Three shortcuts change no verdict: what fits and changes nothing is taken at once; a value that
//! somebody has still to see, and nobody will write again, is not overwritten; and an unanswered operation is
//! left out where nobody saw its value and nobody was refused.
//!
//! Bounded: the search gives up after a number of steps, and says so; that is no verdict.

use std::collections::{BTreeMap, BTreeSet, HashSet};

/// One operation, as the one who asked saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Which register; nothing is said about two of them together.
    pub key: u64,
    /// When it was called, by one clock for all.
    pub called: u64,
    /// When it was answered; `None`: never, or with "unknown".
    pub answered: Option<u64>,
    /// What it was.
    pub what: What,
}

/// What an operation did, and was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The register was read and had this value.
    Read(u64),
    /// A value was put there.
    Write(u64),
    /// A value was put in the place of another.
    Swap(u64, u64),
    /// It was refused, for the register had another value than this.
    Refused(u64),
}

/// What is wrong with a history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// No order explains this register's answers.
    NotLinearizable {
        /// Which.
        key: u64,
        /// The most operations that an order explains, and the first answers that it does not.
        explained: usize,
        /// The latter.
        left: Vec<Operation>,
    },
    /// The search was given up.
    Undecided {
        /// Which.
        key: u64,
    },
}

/// Looks at every register by itself, each holding 0 at first; at most so many steps for each.
///
/// # Errors
/// The first register whose answers no order explains, or that takes too long.
pub fn check(history: &[Operation], steps_max: usize) -> Result<(), Fault> {
    let mut by_key: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for operation in history {
        by_key.entry(operation.key).or_default().push(*operation);
    }
    by_key.into_iter().try_for_each(|(key, operations)| {
        Search::new(operations).run(steps_max).map_err(|fault| match fault {
            None => Fault::Undecided { key },
            Some((explained, left)) => Fault::NotLinearizable { key, explained, left },
        })
    })
}

/// The search for one register.
struct Search {
    /// By the time of their call.
    operations: Vec<Operation>,
    done: Vec<bool>,
    /// Operations before this one are all done.
    first: usize,
    /// How many that were answered are not done.
    open: usize,
    value: u64,
    path: Vec<Step>,
    seen: HashSet<(Vec<u64>, u64)>,
}

/// What was chosen.
struct Step {
    at: usize,
    /// The value before it.
    value: u64,
    /// What else could have been, the best last.
    others: Vec<usize>,
}

impl Search {
    fn new(mut operations: Vec<Operation>) -> Self {
        let told = operations.iter().filter_map(|of| match of.what {
            What::Swap(from, _) => Some(from),
            _ => wanted(of),
        });
        let told: BTreeSet<u64> = told.collect();
        let refused = operations.iter().any(|of| matches!(of.what, What::Refused(_)));
        operations.retain(|of| match of.what {
            _ if of.answered.is_some() => true,
            What::Read(_) | What::Refused(_) => false,
            What::Write(value) | What::Swap(_, value) => refused || told.contains(&value),
        });
        operations.sort_by_key(|of| (of.called, of.answered));
        let open = operations.iter().filter(|of| of.answered.is_some()).count();
        let done = vec![false; operations.len()];
        Self { operations, done, first: 0, open, value: 0, path: Vec::new(), seen: HashSet::new() }
    }

    /// `None`: given up.
    fn run(mut self, steps_max: usize) -> Result<(), Option<(usize, Vec<Operation>)>> {
        let mut best = (0, self.left());
        let mut choice = self.choice();
        for _ in 0..steps_max {
            if self.open == 0 {
                return Ok(());
            }
            if let Some(at) = choice.pop() {
                if self.is_new(at) {
                    self.take(at, choice);
                    choice = self.choice();
                }
                continue;
            }
            if best.0 < self.path.len() {
                best = (self.path.len(), self.left());
            }
            match self.take_back() {
                Some(others) => choice = others,
                None => return Err(Some(best)),
            }
        }
        Err(None)
    }

    /// The operations that may be next and fit, the best last.
    fn choice(&self) -> Vec<usize> {
        let mut until = u64::MAX;
        let mut fit = Vec::new();
        let urgent = self.urgent();
        for at in self.first..self.operations.len() {
            let of = self.operations[at];
            if until < of.called {
                break;
            }
            if self.done[at] {
                continue;
            }
            until = until.min(of.answered.unwrap_or(u64::MAX));
            match self.value_after(of.what) {
                Some(_) if matches!(of.what, What::Read(_) | What::Refused(_)) => return vec![at],
                Some(value) if value == self.value || !self.is_wanted(self.value, at) => {
                    let unread = !self.is_wanted(value, at);
                    let answered = of.answered.is_some();
                    let rank = if Some(value) == urgent { 2 } else { u8::from(unread && answered) };
                    fit.push((rank, at));
                }
                _ => {}
            }
        }
        fit.sort_unstable();
        fit.into_iter().map(|(_, at)| at).collect()
    }

    /// The value that is to be seen next.
    fn urgent(&self) -> Option<u64> {
        let open = (self.first..self.done.len()).filter(|at| !self.done[*at]);
        let open = open.map(|at| &self.operations[at]).filter(|of| wanted(of).is_some());
        open.min_by_key(|of| of.answered).and_then(wanted)
    }

    /// Whether somebody but `except` still has to see this value, which nobody else will write.
    fn is_wanted(&self, value: u64, except: usize) -> bool {
        let open = (self.first..self.done.len()).filter(|at| !self.done[*at] && *at != except);
        let mut sees = false;
        for of in open.map(|at| &self.operations[at]) {
            sees |= wanted(of) == Some(value);
            if matches!(of.what, What::Write(to) | What::Swap(_, to) if to == value) {
                return false;
            }
        }
        sees
    }

    fn value_after(&self, what: What) -> Option<u64> {
        match what {
            What::Read(value) => (value == self.value).then_some(value),
            What::Write(value) => Some(value),
            What::Swap(from, to) => (from == self.value).then_some(to),
            What::Refused(from) => (from != self.value).then_some(self.value),
        }
    }

    fn is_new(&mut self, at: usize) -> bool {
        let value = self.value_after(self.operations[at].what).unwrap_or(self.value);
        let mut bits = vec![0_u64; self.done.len().div_ceil(64)];
        for (of, _) in self.done.iter().enumerate().filter(|(of, done)| **done || *of == at) {
            bits[of / 64] |= 1 << (of % 64);
        }
        self.seen.insert((bits, value))
    }

    fn take(&mut self, at: usize, others: Vec<usize>) {
        let of = self.operations[at];
        let value = self.value_after(of.what).expect("it fits");
        self.path.push(Step { at, value: std::mem::replace(&mut self.value, value), others });
        self.done[at] = true;
        self.open -= usize::from(of.answered.is_some());
        while self.done.get(self.first) == Some(&true) {
            self.first += 1;
        }
    }

    /// What could have been done instead.
    fn take_back(&mut self) -> Option<Vec<usize>> {
        let Step { at, value, others } = self.path.pop()?;
        (self.value, self.done[at]) = (value, false);
        self.open += usize::from(self.operations[at].answered.is_some());
        self.first = self.first.min(at);
        Some(others)
    }

    /// The next answers that would have to be explained.
    fn left(&self) -> Vec<Operation> {
        let mut left: Vec<Operation> = self
            .operations
            .iter()
            .zip(&self.done)
            .filter(|(of, done)| !**done && of.answered.is_some())
            .map(|(of, _)| *of)
            .collect();
        left.sort_by_key(|of| of.answered);
        left.truncate(LEFT_MAX);
        left
    }
}

/// The value that somebody saw, or put another in the place of.
fn wanted(of: &Operation) -> Option<u64> {
    match of.what {
        _ if of.answered.is_none() => None,
        What::Read(value) | What::Swap(value, _) => Some(value),
        What::Write(_) | What::Refused(_) => None,
    }
}

const LEFT_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use What::{Read, Refused, Swap, Write};

    fn all(of: &[(u64, Option<u64>, What)]) -> Result<(), Fault> {
        let of =
            of.iter().map(|&(called, answered, what)| Operation { key: 7, called, answered, what });
        check(&of.collect::<Vec<_>>(), 100_000)
    }

    #[test]
    fn what_one_register_could_say_is_accepted() {
        let good: &[&[(u64, Option<u64>, What)]] = &[
            &[],
            &[(0, Some(1), Read(0)), (2, Some(3), Write(5)), (4, Some(5), Read(5))],
            // Both at once: either order.
            &[(0, Some(9), Write(1)), (0, Some(9), Write(2)), (10, Some(11), Read(1))],
            // Read before the writer was told.
            &[(0, Some(9), Write(1)), (2, Some(3), Read(1)), (4, Some(5), Read(1))],
            // Nobody knows whether it was written, until somebody reads it.
            &[(0, None, Write(1)), (5, Some(6), Read(0)), (7, Some(8), Read(1))],
            &[(0, None, Write(1)), (5, Some(6), Read(0)), (7, Some(8), Read(0))],
            &[(0, Some(1), Swap(0, 4)), (0, Some(1), Refused(0)), (2, Some(3), Read(4))],
            // What is unknown explains the refusal.
            &[(0, None, Swap(0, 4)), (2, Some(3), Refused(0))],
        ];
        for history in good {
            assert_eq!(all(history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn what_no_register_could_say_is_found() {
        let bad: &[&[(u64, Option<u64>, What)]] = &[
            // Stale.
            &[(0, Some(1), Write(1)), (2, Some(3), Read(0))],
            &[(0, Some(1), Write(1)), (2, Some(3), Write(2)), (4, Some(5), Read(1))],
            // There, and gone again.
            &[(0, Some(9), Write(1)), (2, Some(3), Read(1)), (4, Some(5), Read(0))],
            &[(0, None, Write(1)), (2, Some(3), Read(1)), (4, Some(5), Read(0))],
            // Nobody wrote it, or not yet.
            &[(0, Some(1), Read(3))],
            &[(0, Some(1), Read(3)), (2, Some(3), Write(3))],
            // Both won.
            &[(0, Some(1), Swap(0, 4)), (0, Some(1), Swap(0, 5))],
            // Told as refused, and done.
            &[(0, Some(1), Refused(0))],
        ];
        for history in bad {
            let fault = all(history);
            assert!(
                matches!(fault, Err(Fault::NotLinearizable { key: 7, .. })),
                "{history:?}: {fault:?}"
            );
        }
    }

    /// Every order of a few operations, one after the other.
    fn explained(left: &[Operation], value: u64) -> bool {
        let first = left.iter().filter_map(|of| of.answered).min().unwrap_or(u64::MAX);
        left.iter().all(|of| of.answered.is_none())
            || left.iter().enumerate().any(|(at, of)| {
                let after = match of.what {
                    Read(seen) => (seen == value).then_some(value),
                    Write(to) => Some(to),
                    Swap(from, to) => (from == value).then_some(to),
                    Refused(from) => (from != value).then_some(value),
                };
                let rest = || [&left[..at], &left[at + 1..]].concat();
                of.called <= first && after.is_some_and(|after| explained(&rest(), after))
            })
    }

    #[test]
    fn it_says_what_trying_every_order_says() {
        let mut die = crate::dice::Die::new(7, 0);
        let mut verdicts = [0, 0];
        for _ in 0..20_000 {
            let history: Vec<Operation> = (0..1 + die.below(7))
                .map(|_| {
                    let called = die.below(12);
                    let answered = (!die.chance(4)).then(|| called + die.below(8));
                    let (one, other) = (die.below(4), die.below(4));
                    let what = [Read(one), Write(one), Swap(one, other), Refused(one), Read(one)];
                    Operation { key: 1, called, answered, what: what[die.index(5)] }
                })
                .collect();
            let (found, wanted) = (check(&history, 100_000).is_ok(), explained(&history, 0));
            assert_eq!(found, wanted, "{history:?}");
            verdicts[usize::from(found)] += 1;
        }
        assert!(verdicts.iter().all(|count| 2_000 < *count), "{verdicts:?}");
    }

    /// A hundred writers at once, of which half never hear, and readers who see them in order.
    #[test]
    fn many_at_once_are_decided_and_a_search_is_bounded() {
        let mut history = Vec::new();
        for of in 0..100 {
            let answered = (of % 2 == 0).then_some(10_000);
            history.push((0, answered, Write(of + 1)));
            history.push((10 * of + 1, Some(10 * of + 5), Read(of + 1)));
        }
        assert_eq!(all(&history), Ok(()));
        history.push((20_000, Some(20_001), Read(3)));
        let of = |&(called, answered, what)| Operation { key: 1, called, answered, what };
        let long: Vec<Operation> = history.iter().map(of).collect();
        assert_eq!(check(&long, 50), Err(Fault::Undecided { key: 1 }));
    }
}
