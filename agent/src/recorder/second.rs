//! What happened inside a second: least, most, mean, 99th percentile and the worst 100 ms of CPU,
//! run queue, disks and links, from the samples since the tick before.
//!
//! A rate is known between two samples that both have the value and of which the later is not less;
//! where it is not known there is no sample of it. Of samples there are none, there is no statistic.
#![deny(clippy::indexing_slicing)]

use super::hot::{BUSY, BYTES_IN, BYTES_OUT, DISK_BUSY, Hot, MODES, RUNNING};
use crate::readers::column;
use std::time::Duration;
use strobe_wire::schema::{Column, Kind};

/// The samples of the last second.
#[derive(Debug, Default)]
pub(super) struct Second {
    metrics: Vec<Metric>,
    before: Vec<Option<u64>>,
    before_ns: u64,
    seconds: Vec<f64>,
    /// Scratch, for what has to be sorted.
    sorted: Vec<f64>,
}

#[derive(Debug)]
struct Metric {
    /// Its value's place among the hot values.
    place: usize,
    how: How,
    name: &'static str,
    device: Option<String>,
    /// A value a sample; NaN where it is not known.
    samples: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// Busy ticks of all ticks.
    Cpu,
    Gauge,
    /// Growth a second.
    Rate,
    /// Growth in ms, of the time.
    Busy,
}

impl Second {
    /// The columns of `hot` are others.
    pub(super) fn learn(&mut self, hot: &Hot) {
        let metric = |(place, how, name, device)| {
            let samples = Vec::with_capacity(SAMPLES_MAX);
            Metric { place, how, name, device, samples }
        };
        let mut all = vec![
            (0, How::Cpu, "strobe_cpu_busy_ratio", None),
            (RUNNING, How::Gauge, "strobe_run_queue_length", None),
        ];
        for (name, at) in hot.disks() {
            let of = |place, how, metric| (at + place, how, metric, Some(name.clone()));
            all.push(of(DISK_BUSY, How::Busy, "strobe_disk_busy_ratio"));
            all.push(of(BYTES_IN, How::Rate, "strobe_disk_read_bytes_per_second"));
            all.push(of(BYTES_OUT, How::Rate, "strobe_disk_written_bytes_per_second"));
        }
        for (name, at) in hot.links() {
            let of = |place, metric| (at + place, How::Rate, metric, Some(name.clone()));
            all.push(of(BYTES_IN, "strobe_network_receive_bytes_per_second"));
            all.push(of(BYTES_OUT, "strobe_network_transmit_bytes_per_second"));
        }
        self.metrics = all.into_iter().map(metric).collect();
        self.before.clear();
        self.before.reserve(hot.values().len());
        self.seconds = Vec::with_capacity(SAMPLES_MAX);
        self.sorted = Vec::with_capacity(SAMPLES_MAX);
    }

    pub(super) fn columns(&self) -> Vec<Column> {
        let columns = self.metrics.iter().flat_map(|metric| {
            STATISTICS.map(|statistic| {
                let scale = if metric.how == How::Rate { 0 } else { 4 };
                let mut labels = vec![("stat", statistic)];
                labels.extend(metric.device.as_deref().map(|device| ("device", device)));
                column(metric.name, &labels, Kind::Gauge { scale })
            })
        });
        columns.collect()
    }

    /// Samples since the last time.
    pub(super) fn samples(&self) -> usize {
        self.seconds.len()
    }

    /// A sample.
    pub(super) fn add(&mut self, now_ns: u64, values: &[Option<u64>]) {
        let passed = Duration::from_nanos(now_ns.saturating_sub(self.before_ns)).as_secs_f64();
        if self.before.len() == values.len() && 0.0 < passed {
            if self.seconds.len() == SAMPLES_MAX {
                // Nobody takes them as often as that; the oldest half goes.
                self.forget(SAMPLES_MAX / 2);
            }
            self.seconds.push(passed);
            for metric in &mut self.metrics {
                let known = metric.how.value(metric.place, &self.before, values, passed);
                metric.samples.push(known.unwrap_or(f64::NAN));
            }
        }
        self.before.clear();
        self.before.extend_from_slice(values);
        self.before_ns = now_ns;
    }

    /// The statistics of the samples since the last call, [`STATISTICS`] of each metric, as raw
    /// values of their columns.
    pub(super) fn take(&mut self, mut put: impl FnMut(usize, Option<u64>)) {
        for (index, metric) in self.metrics.iter().enumerate() {
            let unit = if metric.how == How::Rate { 1.0 } else { 10_000.0 };
            let found = statistics(&metric.samples, &self.seconds, &mut self.sorted);
            for (at, value) in found.into_iter().enumerate() {
                put(index * STATISTICS.len() + at, value.map(|value| raw(value * unit)));
            }
        }
        self.forget(self.seconds.len());
    }

    fn forget(&mut self, samples: usize) {
        self.seconds.drain(..samples.min(self.seconds.len()));
        for metric in &mut self.metrics {
            metric.samples.drain(..samples.min(metric.samples.len()));
        }
    }
}

impl How {
    /// What is between two samples, if that can be known.
    fn value(
        self,
        place: usize,
        before: &[Option<u64>],
        now: &[Option<u64>],
        seconds: f64,
    ) -> Option<f64> {
        let now_at = |place: usize| now.get(place).copied().flatten();
        let grown = |place: usize| {
            now_at(place)?.checked_sub(before.get(place).copied().flatten()?).map(as_f64)
        };
        match self {
            Self::Gauge => now_at(place).map(as_f64),
            Self::Rate => Some(grown(place)? / seconds),
            Self::Busy => Some((grown(place)? / 1000.0 / seconds).min(1.0)),
            Self::Cpu => {
                let busy: f64 = BUSY.into_iter().map(grown).sum::<Option<f64>>()?;
                let all: f64 = (0..MODES.len()).map(grown).sum::<Option<f64>>()?;
                (0.0 < all).then(|| busy / all)
            }
        }
    }
}

/// Least, most, mean, 99th percentile, and the mean of the worst 100 ms.
fn statistics(
    samples: &[f64],
    seconds: &[f64],
    sorted: &mut Vec<f64>,
) -> [Option<f64>; STATISTICS.len()] {
    sorted.clear();
    sorted.extend(samples.iter().copied().filter(|sample| !sample.is_nan()));
    sorted.sort_unstable_by(f64::total_cmp);
    let (Some(least), Some(most)) = (sorted.first().copied(), sorted.last().copied()) else {
        return [None; STATISTICS.len()];
    };
    // The least that 99 of 100 samples do not exceed.
    let rank = (sorted.len() * 99).div_ceil(100).saturating_sub(1);
    let high = sorted.get(rank).copied();
    let mut all = (0.0, 0.0);
    let (mut slot, mut worst) = ((0.0, 0.0, 0.0), None);
    for (sample, seconds) in samples.iter().zip(seconds) {
        slot.2 += seconds;
        if !sample.is_nan() {
            all = (all.0 + sample * seconds, all.1 + seconds);
            slot = (slot.0 + sample * seconds, slot.1 + seconds, slot.2);
        }
        if SLOT_S <= slot.2 + SLOT_SLACK_S {
            let found = mean(slot.0, slot.1);
            worst = match (found, worst) {
                (Some(a), Some(b)) => Some(f64::max(a, b)),
                (found, worst) => found.or(worst),
            };
            slot = (0.0, 0.0, 0.0);
        }
    }
    [Some(least), Some(most), mean(all.0, all.1), high, worst]
}

fn mean(sum: f64, seconds: f64) -> Option<f64> {
    (0.0 < seconds).then(|| sum / seconds)
}

#[expect(clippy::cast_precision_loss, reason = "differences of a hundredth of a second are small")]
fn as_f64(raw: u64) -> f64 {
    raw as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative")]
fn raw(value: f64) -> u64 {
    value.round() as u64
}

pub(super) const STATISTICS: [&str; 5] = ["min", "max", "mean", "p99", "worst_100ms"];
/// Of a metric; two seconds and more.
const SAMPLES_MAX: usize = 256;
const SLOT_S: f64 = 0.1;
/// Timers are a little early or late.
const SLOT_SLACK_S: f64 = 0.005;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(samples: &[f64]) -> [Option<f64>; 5] {
        statistics(samples, &vec![0.01; samples.len()], &mut Vec::new())
    }

    #[test]
    fn a_burst_of_100_ms_is_in_the_worst_slot_and_the_mean_is_right() {
        let mut samples = [0.1; 100];
        samples[30..40].fill(1.0);
        samples[77] = 0.0;
        let [least, most, mean, high, worst] = of(&samples).map(Option::unwrap);
        assert_eq!((least, most, high), (0.0, 1.0, 1.0));
        assert!((mean - 0.189).abs() < 1e-9, "{mean}");
        assert!((worst - 1.0).abs() < 1e-9, "{worst}");
    }

    #[test]
    fn what_is_not_known_is_absent() {
        assert_eq!(of(&[]), [None; 5]);
        assert_eq!(of(&[f64::NAN; 100]), [None; 5]);
        let mut samples = [f64::NAN; 100];
        samples[5] = 3.0;
        assert_eq!(of(&samples), [Some(3.0); 5]);
    }

    #[test]
    fn falls_and_absences_are_no_samples() {
        let value = |before, now| How::Rate.value(0, &[before], &[now], 0.01);
        assert_eq!(value(Some(10), Some(30)), Some(2000.0));
        assert_eq!(value(Some(30), Some(10)), None);
        assert_eq!((value(None, Some(1)), value(Some(1), None)), (None, None));
        // No CPU had two lines to compare.
        let ticks = [Some(5); 6];
        assert_eq!(How::Cpu.value(0, &ticks, &ticks, 0.01), None);
        let mut later = ticks;
        (later[0], later[5]) = (Some(6), Some(6));
        assert_eq!(How::Cpu.value(0, &ticks, &later, 0.01), Some(0.5));
    }
}
