//! What of a plan is needed for its failure: the end is brought forward, then troubles are left out, many
//! at once first, as long as it still fails.

use super::plan::Plan;

/// A smaller plan that fails too; asks at most so often.
#[must_use]
pub fn shrink(plan: &Plan, asks_max: usize, fails: &mut dyn FnMut(&Plan) -> bool) -> Plan {
    let mut asks = 0;
    let mut fails = |plan: &Plan| {
        asks += 1;
        asks <= asks_max && fails(plan)
    };
    let mut best = plan.clone();
    // Shorter, by halves: what fails early fails with all that came before.
    let mut step = best.troubles.len() / 2;
    while 0 < step {
        let shorter = shortened(&best, best.troubles.len() - step);
        if fails(&shorter) {
            best = shorter;
        } else {
            step /= 2;
        }
        step = step.min(best.troubles.len().saturating_sub(1));
    }
    let mut chunk = best.troubles.len().div_ceil(2);
    while 0 < chunk {
        let mut at = 0;
        while at < best.troubles.len() {
            let mut less = best.clone();
            less.troubles.drain(at..(at + chunk).min(best.troubles.len()));
            if fails(&less) {
                best = less;
            } else {
                at += chunk;
            }
        }
        chunk = if chunk == 1 { 0 } else { chunk.div_ceil(2) };
    }
    let shorter = shortened(&best, best.troubles.len());
    if shorter.suffering_ms < best.suffering_ms && fails(&shorter) { shorter } else { best }
}

/// Only the first troubles, and healed soon after the last of them.
fn shortened(plan: &Plan, count: usize) -> Plan {
    let mut plan = plan.clone();
    plan.troubles.truncate(count);
    let last = plan.troubles.last().map_or(0, |trouble| trouble.at_ms);
    plan.suffering_ms = plan.suffering_ms.min(last + AFTER_MS);
    plan
}

/// A trouble may take so long to show.
const AFTER_MS: u64 = 3_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_left_out() {
        let plan = Plan::of(1, None);
        assert!(20 < plan.troubles.len());
        let mut asked = 0;
        let mut fails = |plan: &Plan| {
            asked += 1;
            let has = |number| plan.troubles.iter().any(|trouble| trouble.number == number);
            has(3) && has(8)
        };
        let small = shrink(&plan, 500, &mut fails);
        let numbers: Vec<usize> = small.troubles.iter().map(|trouble| trouble.number).collect();
        assert_eq!(numbers, [3, 8]);
        assert_eq!(small.suffering_ms, plan.troubles[7].at_ms + AFTER_MS);
        assert!(asked < 60, "{asked}");
    }

    #[test]
    fn it_gives_up_in_time_with_what_it_has() {
        let plan = Plan::of(1, None);
        let small = shrink(&plan, 2, &mut |plan| 3 < plan.troubles.len());
        assert!(3 < small.troubles.len() && small.troubles.len() < plan.troubles.len());
    }
}
