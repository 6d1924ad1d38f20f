//! The upper tail of one kind of evidence, in two numbers.

/// Where the tail begins and how it falls, both of ln(1 + |evidence|).
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    /// What [`TAIL_PART`] of the samples exceed.
    from: f64,
    /// Mean excess over it: the tail's index.
    excess: f64,
}

impl Default for Tail {
    fn default() -> Self {
        Self { from: 0.0, excess: EXCESS_FIRST }
    }
}

impl Tail {
    /// How likely it is that evidence is this large or larger, 1 where that is nothing special;
    /// `count` samples have been seen, this one among them. Learns from it.
    pub(super) fn p(&mut self, evidence: f64, count: f64) -> f64 {
        let evidence = evidence.abs();
        // ln(1 + x) is at most x, so most evidence needs no logarithm to be known as usual.
        let height =
            if evidence <= self.from { evidence } else { libm::log1p(evidence).min(HEIGHT_MAX) };
        let over = height - self.from;
        let p = if over <= 0.0 { 1.0 } else { TAIL_PART * libm::exp(-over / self.excess) };
        // Stochastic approximation of a quantile: up by much seldom, down by little often.
        let step = 1.5 * self.excess * (1.0 / count.clamp(1.0, TAIL_SAMPLES));
        if over <= 0.0 {
            self.from = (self.from - step.min(STEP_MAX * TAIL_PART)).max(0.0);
        } else {
            self.from += (step * (1.0 - TAIL_PART) / TAIL_PART).min(STEP_MAX);
            let rate = 1.0 / (count * TAIL_PART).clamp(RATE_SAMPLES_MIN, TAIL_SAMPLES * TAIL_PART);
            self.excess += rate * (over.min(EXCESS_CLIP * self.excess) - self.excess);
            self.excess = self.excess.max(EXCESS_MIN);
        }
        p.max(1.0 / (count * count))
    }
}

/// The part of the samples that make the tail.
pub(super) const TAIL_PART: f64 = 0.05;
/// Samples it is an average of.
const TAIL_SAMPLES: f64 = 5000.0;
const EXCESS_FIRST: f64 = 0.3;
const EXCESS_MIN: f64 = 0.02;
const EXCESS_CLIP: f64 = 8.0;
const RATE_SAMPLES_MIN: f64 = 4.0;
const STEP_MAX: f64 = 0.5;
/// ln of the largest float.
const HEIGHT_MAX: f64 = 709.0;
