//! Whether huge pages pay on this host: the same walk over a region on plain pages and on huge ones.
//!
//! The walk goes through all cache lines of the region in one random circle, each line naming the next, so
//! that neither prefetching nor overlapping hides what an address costs: with more pages than the TLB
//! holds, most steps on plain pages look up a page table first. A ring is read in order, which is the
//! friendliest case; so what is found here is the most that there is to gain.

use crate::{Got, Region, Want};

/// One size, measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Measured {
    /// Bytes of the region.
    pub bytes: usize,
    /// A step on plain pages, in ns: the median of the rounds.
    pub plain_ns: f64,
    /// A step on huge pages, in ns, if any were had.
    pub huge_ns: Option<f64>,
    /// What kind those were.
    pub got: Got,
    /// Whether the plain region lay on huge pages too, because the kernel makes them unasked.
    pub plain_is_huge: bool,
}

impl Measured {
    /// What huge pages save, as a share of the time on plain ones; less than 0 if they cost.
    #[must_use]
    pub fn gain(&self) -> Option<f64> {
        self.huge_ns.map(|huge_ns| 1.0 - huge_ns / self.plain_ns).filter(|gain| gain.is_finite())
    }
}

/// Walks over `bytes` on both kinds of pages; `clock` is a monotonic clock in ns.
///
/// # Errors
/// There is not so much memory.
pub fn measure(bytes: usize, clock: fn() -> u64) -> Result<Measured, crate::RegionError> {
    let mut plain = Region::map(bytes, Want::Plain)?;
    let mut huge = Region::map(bytes, Want::Hugetlb)?;
    for region in [&mut plain, &mut huge] {
        region.prefault();
        lay(region.as_mut_slice());
    }
    let got = huge.got();
    let is_huge = got != Got::Plain && bytes / 2 <= huge.huge_bytes();
    let plain_is_huge = 0 < plain.huge_bytes();
    let (mut plain_ns, mut huge_ns) = (Vec::new(), Vec::new());
    // In turns, so that a busy moment of the machine hits both.
    for _ in 0..ROUNDS {
        plain_ns.push(walk(plain.as_mut_slice(), clock));
        huge_ns.push(walk(huge.as_mut_slice(), clock));
    }
    let huge_ns = is_huge.then(|| median(huge_ns));
    Ok(Measured { bytes, plain_ns: median(plain_ns), huge_ns, got, plain_is_huge })
}

/// Each line gets the number of the next: one circle through all of them (Sattolo's shuffle).
fn lay(bytes: &mut [u8]) {
    let lines = u32::try_from(bytes.len() / LINE).unwrap_or(u32::MAX);
    let mut next: Vec<u32> = (0..lines).collect();
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..next.len()).rev() {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let other = usize::try_from(dice % u64::try_from(last).unwrap_or(1)).unwrap_or(0);
        next.swap(last, other);
    }
    for (line, next) in bytes.chunks_exact_mut(LINE).zip(next) {
        if let Some(place) = line.first_chunk_mut() {
            *place = next.to_le_bytes();
        }
    }
}

/// Ns a step.
fn walk(bytes: &mut [u8], clock: fn() -> u64) -> f64 {
    let mut line = 0_usize;
    let began = clock();
    for _ in 0..STEPS {
        let at = line * LINE;
        let number = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        line = usize::try_from(u32::from_le_bytes(number)).unwrap_or(0);
    }
    std::hint::black_box(line);
    let took_ns = clock().saturating_sub(began);
    f64::from(u32::try_from(took_ns).unwrap_or(u32::MAX)) / f64::from(STEPS)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

const LINE: usize = 64;
const STEPS: u32 = 1_000_000;
const ROUNDS: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_goes_through_every_line_once() {
        let mut bytes = vec![0; 1000 * LINE];
        lay(&mut bytes);
        let (mut line, mut seen) = (0_usize, vec![false; 1000]);
        for _ in 0..1000 {
            assert!(!std::mem::replace(&mut seen[line], true), "twice at {line}");
            line = u32::from_le_bytes(*bytes[line * LINE..].first_chunk().unwrap()) as usize;
        }
        assert_eq!(line, 0, "and back");
    }

    #[test]
    fn a_gain_is_a_share_of_the_plain_time() {
        let of = |plain_ns, huge_ns| {
            Measured { bytes: 1, plain_ns, huge_ns, got: Got::Hugetlb, plain_is_huge: false }.gain()
        };
        assert_eq!((of(4.0, Some(3.0)), of(4.0, Some(5.0))), (Some(0.25), Some(-0.25)));
        assert_eq!((of(4.0, None), of(0.0, Some(0.0))), (None, None));
    }
}
