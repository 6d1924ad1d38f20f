//! Memory of a scan, and what is left of its limits.

use super::{Limits, StoreError};

/// Memory of a scan, used again for the next, and what is left of its sample limit.
#[derive(Debug)]
pub struct Scratch {
    limits: Limits,
    samples: u64,
    pub(super) times: Vec<i64>,
    pub(super) values: Vec<f64>,
    /// Of the series read at once.
    pub(super) pairs: Vec<Vec<(i64, f64)>>,
}

impl Scratch {
    /// For scans that together touch at most `limits.samples_max` samples.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            limits: *limits,
            samples: 0,
            times: Vec::new(),
            values: Vec::new(),
            pairs: Vec::new(),
        }
    }

    /// Samples scanned so far.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Makes `times` and `values` of one series: ascending, of one time the first. False if none.
    pub(super) fn settle(&mut self, series: usize) -> Result<bool, StoreError> {
        let Some(pairs) = self.pairs.get_mut(series) else { return Ok(false) };
        if !pairs.is_sorted_by(|a, b| a.0 < b.0) {
            pairs.sort_by_key(|pair| pair.0);
            pairs.dedup_by_key(|pair| pair.0);
        }
        self.times.clear();
        self.values.clear();
        self.times.extend(pairs.iter().map(|pair| pair.0));
        self.values.extend(pairs.iter().map(|pair| pair.1));
        self.take(self.times.len())?;
        Ok(!self.times.is_empty())
    }

    /// How many more samples may be held.
    pub(super) fn room(&self) -> usize {
        let room = self.limits.samples_max.saturating_sub(self.samples);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Whether so many more samples may be held.
    pub(super) fn fits(&self, held: usize) -> Result<(), StoreError> {
        let held = u64::try_from(held).unwrap_or(u64::MAX);
        if self.limits.samples_max < self.samples.saturating_add(held) {
            return Err(StoreError::SamplesMax { max: self.limits.samples_max });
        }
        Ok(())
    }

    pub(super) fn take(&mut self, samples: usize) -> Result<(), StoreError> {
        self.samples = self.samples.saturating_add(u64::try_from(samples).unwrap_or(u64::MAX));
        if self.limits.samples_max < self.samples {
            return Err(StoreError::SamplesMax { max: self.limits.samples_max });
        }
        Ok(())
    }
}
