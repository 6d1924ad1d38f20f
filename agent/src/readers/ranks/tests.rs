//! What holds of ranks, whatever comes and goes.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

const RULES: [Rule; MEASURES] =
    [Rule { top: 2, least: 10 }, Rule { top: 1, least: 1 }, Rule { top: 1, least: 1 }];

fn choose(ranks: &mut Ranks, told: &mut Vec<u64>, all: &[(u64, [u64; MEASURES])]) -> Vec<u64> {
    let all = all.iter().map(|(key, scores)| Candidate {
        key: *key,
        scores: *scores,
        told: told.contains(key),
    });
    let mut chosen = ranks.choose(all).to_vec();
    chosen.sort_unstable();
    told.clone_from(&chosen);
    chosen
}

#[test]
fn who_is_told_stays_until_another_needs_the_place() {
    let mut ranks = Ranks::new(RULES);
    let mut told = Vec::new();
    let mut now = |all: &[(u64, [u64; MEASURES])]| choose(&mut ranks, &mut told, all);
    // The first two by the first measure, one by each of the others; 9 is too little.
    assert_eq!(now(&[(1, [30, 0, 0]), (2, [20, 0, 0]), (3, [9, 0, 0])]), [1, 2]);
    assert_eq!(now(&[(1, [30, 0, 0]), (2, [20, 0, 0]), (3, [29, 0, 0])]), [1, 2], "half as much");
    assert_eq!(
        now(&[(1, [30, 0, 0]), (2, [20, 0, 0]), (3, [31, 0, 0])]),
        [1, 2, 3],
        "room is left"
    );
    assert_eq!(now(&[(1, [0; 3]), (2, [20, 0, 0]), (3, [31, 0, 0]), (4, [0, 5, 0])]), [1, 2, 3, 4]);
    let all = [(1, [0; 3]), (2, [20, 0, 0]), (3, [31, 0, 0]), (4, [0, 5, 0]), (5, [0, 0, 5])];
    assert_eq!(now(&all), [2, 3, 4, 5], "who uses nothing makes room");
    assert_eq!(now(&all[..3]), [2, 3], "who is gone is gone");
    assert_eq!(now(&[]), [0; 0]);
}

#[test]
fn scores_follow_what_is_used() {
    let mut score = 0;
    follow(&mut score, 1000, MEMORY_NS / 10);
    assert_eq!(score, 100);
    follow(&mut score, 50, 3 * MEMORY_NS);
    assert_eq!(score, 50, "what was before is forgotten");
    assert_eq!((rate(5, 500_000_000), rate(u64::MAX, 1)), (10, u64::MAX));
    assert_eq!((growth(3, 10), growth(10, 3)), (7, 3));
}

#[test]
fn a_total_that_is_missing_or_falls_gives_no_step() {
    let mut other = Remainder::default();
    assert_eq!(other.total(Some(1000)), Some(0));
    other.told(30);
    assert_eq!(other.total(None), None);
    other.told(30);
    assert_eq!(other.total(Some(1100)), Some(40), "both readings of the told are off the total");
    other.told(10);
    assert_eq!(other.total(Some(5)), Some(40));
    assert_eq!(other.total(Some(6)), Some(41));
    // Ahead by five, which is paid off before anything is added.
    other.told(6);
    assert_eq!(other.total(Some(7)), Some(41));
    assert_eq!(other.total(Some(17)), Some(41 + 10 - 5));
}

/// What one thing does in a reading.
#[derive(Clone, Debug)]
enum Step {
    /// It uses so much.
    Use(u8, u32),
    /// It ends, after using so much more than anybody saw.
    End(u8, u32),
    /// Another is told, or nobody is in its place.
    Tell(u8),
    Hush(u8),
    /// The told are read.
    Read,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0_u8..20;
    let step = prop_oneof![
        4 => (who.clone(), 0_u32..1_000_000).prop_map(|(who, much)| Step::Use(who, much)),
        1 => (who.clone(), 0_u32..1_000_000).prop_map(|(who, much)| Step::End(who, much)),
        2 => who.clone().prop_map(Step::Tell),
        1 => who.prop_map(Step::Hush),
        3 => Just(Step::Read),
    ];
    vec(step, 1..300)
}

proptest! {
    /// Whoever is told, forgotten or dies: the increases of all series, as PromQL sees them, add up to
    /// that of the total, and `other` never falls.
    #[test]
    fn named_and_other_add_up_to_the_total(steps in steps()) {
        let (mut used, mut total) = (BTreeMap::<u8, u64>::new(), 0_u64);
        let mut last: BTreeMap<u8, Option<u64>> = BTreeMap::new();
        let (mut other, mut named) = (Remainder::default(), 0_u64);
        let (mut first, mut before) = (None, 0);
        for step in steps {
            match step {
                Step::Use(who, much) => {
                    *used.entry(who).or_default() += u64::from(much);
                    total += u64::from(much);
                }
                Step::End(who, much) => {
                    used.remove(&who);
                    last.remove(&who);
                    total += u64::from(much);
                }
                Step::Tell(who) => {
                    last.entry(who).or_default();
                }
                Step::Hush(who) => {
                    last.remove(&who);
                }
                Step::Read => {
                    for (who, last) in &mut last {
                        let Some(now) = used.get(who).copied() else { continue };
                        if let Some(before) = last.replace(now) {
                            let grown = growth(before, now);
                            named += grown;
                            other.told(grown);
                        }
                    }
                    let now = other.total(Some(total)).unwrap();
                    let first = *first.get_or_insert(total);
                    prop_assert!(before <= now, "other fell from {before} to {now}");
                    prop_assert_eq!(named + now, total - first);
                    before = now;
                }
            }
        }
    }

    /// Read a moment apart, the sum is never ahead by more than what is owed, and `other` never falls.
    #[test]
    fn readings_apart_are_owed_and_never_a_fall(late in vec((0_u64..1000, 0_u64..1000), 1..200)) {
        let (mut other, mut value) = (Remainder::default(), 0);
        other.total(Some(0));
        let (mut total, mut told) = (0, 0);
        for (grown, ahead) in late {
            total += grown + ahead;
            other.told(total - told);
            told = total;
            // The total was read before `ahead` happened.
            let now = other.total(Some(total - ahead)).unwrap();
            prop_assert!(value <= now);
            prop_assert!(now <= 2000, "all of it was told by name: {now}");
            value = now;
        }
    }
}
