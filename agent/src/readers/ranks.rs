//! Which of many are told by name, and what the others come to.
//!
//! ```text
//! all ── by each measure the first TOP ──▶ wanted ──▶ told: who was told stays while there is room
//! total of all ── minus what the told grew by ──▶ other: a counter that never steps back
//! ```
//!
//! A set that changed with every tick would be a new schema with every tick, so it is chosen seldom,
//! whoever is told counts half as much again as it uses, and leaves only for one who needs the place.
//!
//! A counter's increase is told by name from the second sample of its series on. Whatever grew before
//! that, or after the last, is nobody's and so `other`'s: the increases of all named series and of
//! `other` add up to the total's, whoever comes, goes or dies. A name may be read a moment after the
//! total: what it is ahead is a debt that `other` pays off before it grows again.

use std::cmp::Reverse;

/// What things are ranked by, the most important first.
pub(crate) const MEASURES: usize = 3;

/// Chooses who is told.
#[derive(Debug)]
pub(crate) struct Ranks {
    rules: [Rule; MEASURES],
    all: Vec<Candidate>,
    chosen: Vec<u64>,
}

/// How many are told for one measure, and what is too little to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) top: usize,
    pub(crate) least: u64,
}

/// One of those to choose from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) key: u64,
    pub(crate) scores: [u64; MEASURES],
    pub(crate) told: bool,
}

impl Ranks {
    pub(crate) fn new(rules: [Rule; MEASURES]) -> Self {
        Self { rules, all: Vec::new(), chosen: Vec::new() }
    }

    /// Most that are told.
    pub(crate) fn most(&self) -> usize {
        self.rules.iter().map(|rule| rule.top).sum()
    }

    /// The keys of those who are told from now on, in no order.
    pub(crate) fn choose(&mut self, all: impl Iterator<Item = Candidate>) -> &[u64] {
        self.all.clear();
        self.all.extend(all);
        self.chosen.clear();
        for (measure, rule) in self.rules.into_iter().enumerate() {
            let weight = |candidate: &Candidate| {
                let score = candidate.scores.get(measure).copied().unwrap_or(0);
                // Keys break ties, so that equals do not take turns.
                (
                    if candidate.told { score.saturating_add(score / 2) } else { score },
                    candidate.key,
                )
            };
            let place = rule.top.min(self.all.len());
            if let Some(last) = place.checked_sub(1) {
                self.all.select_nth_unstable_by(last, |a, b| weight(b).cmp(&weight(a)));
            }
            for candidate in self.all.iter().take(place) {
                let enough =
                    candidate.scores.get(measure).is_some_and(|score| rule.least <= *score);
                if enough && !self.chosen.contains(&candidate.key) {
                    self.chosen.push(candidate.key);
                }
            }
        }
        // Room that is left is for those who were told: they may be back soon.
        let room = self.most().saturating_sub(self.chosen.len());
        let chosen = &self.chosen;
        self.all.retain(|candidate| candidate.told && !chosen.contains(&candidate.key));
        self.all.sort_unstable_by_key(|candidate| Reverse((candidate.scores, candidate.key)));
        self.chosen.extend(self.all.iter().take(room).map(|candidate| candidate.key));
        &self.chosen
    }
}

/// Moves a score towards what a thing used a second in the time that passed.
pub(crate) fn follow(score: &mut u64, rate: u64, passed_ns: u64) {
    let passed_ns = u128::from(passed_ns.min(MEMORY_NS));
    let rest_ns = u128::from(MEMORY_NS) - passed_ns;
    let sum = u128::from(*score) * rest_ns + u128::from(rate) * passed_ns;
    *score = u64::try_from(sum / u128::from(MEMORY_NS)).unwrap_or(u64::MAX);
}

/// What `grown` in this time is in a second.
pub(crate) fn rate(grown: u64, passed_ns: u64) -> u64 {
    let scaled = u128::from(grown) * 1_000_000_000 / u128::from(passed_ns.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// What a counter grew by, as PromQL has it: one that fell began anew.
pub(crate) fn growth(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// The counter of all who are not told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Remainder {
    /// The total when it was last known.
    total: Option<u64>,
    /// What the told grew by since.
    told: u64,
    /// What they are ahead of the total.
    debt: u64,
    /// The least of it in this window, and how many readings of the window there were.
    least: u64,
    readings: u32,
    value: u64,
}

impl Remainder {
    /// One who was told before and is told now grew by so much.
    pub(crate) fn told(&mut self, grown: u64) {
        self.told = self.told.saturating_add(grown);
    }

    /// All together are at `total` now; what the others are at.
    pub(crate) fn total(&mut self, total: Option<u64>) -> Option<u64> {
        let total = total?;
        let told = std::mem::take(&mut self.told);
        let Some(before) = self.total.replace(total) else {
            // From nothing: a restart that began higher would be an increase that never was.
            return Some(self.value);
        };
        let Some(grown) = total.checked_sub(before) else {
            self.debt = 0;
            return Some(self.value);
        };
        let due = told.saturating_add(self.debt);
        self.value = self.value.saturating_add(grown.saturating_sub(due));
        self.debt = due.saturating_sub(grown);
        self.forgive();
        Some(self.value)
    }

    /// What is not paid within a window never was in the total: writes to a server of files are a
    /// process's, and no disk's.
    fn forgive(&mut self) {
        self.least = if self.readings == 0 { self.debt } else { self.least.min(self.debt) };
        self.readings += 1;
        if self.readings == DEBT_READINGS {
            self.debt = self.debt.saturating_sub(self.least);
            self.readings = 0;
        }
    }
}

/// Scores forget what was before this.
const MEMORY_NS: u64 = 10_000_000_000;
const DEBT_READINGS: u32 = 60;

#[cfg(test)]
mod tests;
