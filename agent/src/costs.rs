//! What each collector costs on this host, measured: `strobe-agent --costs`.

use crate::sampler::{CATALOG, Choice, Collector, Sampler, SectionRow, Tick};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// What a collector costs.
#[derive(Clone, PartialEq, Debug)]
pub struct Cost {
    /// Its name.
    pub name: &'static str,
    /// Time between two readings; 0 is every tick.
    pub interval_ms: u64,
    /// The mean of a reading; none if it is off.
    pub reading_us: Option<f64>,
    /// Whether it could be read at last; what was not due is taken to be.
    pub success: bool,
}

impl Cost {
    /// What that is a second.
    #[must_use]
    pub fn second_us(&self) -> Option<f64> {
        Some(self.reading_us? / seconds(self.interval_ms))
    }

    /// `tick`, `15s`, `1m`.
    #[must_use]
    pub fn interval(&self) -> String {
        match self.interval_ms {
            0 => "tick".to_owned(),
            ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
            ms => format!("{}s", ms / 1000),
        }
    }
}

/// Prints a line a collector.
#[must_use]
pub fn table(sampler: &mut Sampler, choice: &Choice, now: Tick) -> String {
    let heading = ["collector", "interval", "us/reading", "us/second"];
    let [name, interval, reading, second] = heading;
    let mut text = format!("{name:<20} {interval:>8} {reading:>12} {second:>12}\n");
    let mut sum = 0.0;
    for cost in measure(sampler, choice, now) {
        let name = cost.name;
        let (Some(reading_us), Some(second_us)) = (cost.reading_us, cost.second_us()) else {
            let _ = writeln!(text, "{name:<20} {:>8}", "off");
            continue;
        };
        sum += second_us;
        let every = cost.interval();
        let _ = writeln!(text, "{name:<20} {every:>8} {reading_us:>12.1} {second_us:>12.2}");
    }
    let _ = writeln!(text, "{:<20} {:>8} {:>12} {sum:>12.2}", "all, a tick a second", "", "");
    text
}

/// Reads for an hour of the sampler's time: of each collector the mean of its readings, walks and looks
/// for what is not there included.
#[must_use]
pub fn measure(sampler: &mut Sampler, choice: &Choice, now: Tick) -> Vec<Cost> {
    let mut now = now;
    sampler.tell_all();
    let mut success: BTreeMap<String, bool> = BTreeMap::new();
    let mut begun: BTreeMap<&str, u64> = BTreeMap::new();
    for reading in 0..=READINGS {
        if 0 < reading {
            sampler.settle(now, WAIT);
        }
        sampler.tick(now, |row| add(&row, &mut success));
        if reading == 0 {
            // The first reading learns, which is no reading like the others.
            begun = sampler.spent().collect();
        }
        now.boottime_ns = now.boottime_ns.saturating_add(STEP_NS);
        now.wall_ns = now.wall_ns.saturating_add_unsigned(STEP_NS);
    }
    let spent: BTreeMap<_, _> = sampler.spent().collect();
    let cost = |collector: &Collector| {
        let (name, interval_ms) = (collector.name, choice.interval_ms(collector));
        let reading_us = spent.get(name).map(|spent| {
            let spent = us(spent - begun.get(name).unwrap_or(&0));
            // What is read more often than that is read once a step here.
            let step = Duration::from_nanos(STEP_NS).as_secs_f64();
            spent / f64::from(READINGS) / step * seconds(interval_ms).max(step)
        });
        let success = success.get(name).copied().unwrap_or(true);
        Cost { name, interval_ms, reading_us, success }
    };
    CATALOG.iter().map(cost).collect()
}

/// Adds what all say of their success.
fn add(row: &SectionRow<'_>, success: &mut BTreeMap<String, bool>) {
    for (column, value) in row.schema.columns.iter().zip(row.values) {
        if column.name == "node_scrape_collector_success" {
            let collector = column.labels.value("collector").unwrap_or("");
            success.insert(collector.to_owned(), *value == 1);
        }
    }
}

fn us(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64() * 1e6
}

fn seconds(interval_ms: u64) -> f64 {
    if interval_ms == 0 { 1.0 } else { Duration::from_millis(interval_ms).as_secs_f64() }
}

const READINGS: u32 = 240;
/// The usual interval of what is read seldom: an hour in all.
const STEP_NS: u64 = 15_000_000_000;
const WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Trees;
    use crate::schemas::Table;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Each look at this clock takes a microsecond.
    fn clock() -> u64 {
        static LOOKS: AtomicU64 = AtomicU64::new(0);
        1_000 * LOOKS.fetch_add(1, Ordering::Relaxed)
    }

    #[test]
    fn a_reading_costs_the_same_whatever_its_interval() {
        let choice = Choice::default();
        let trees = Trees {
            procfs: "/proc".into(),
            sysfs: "/sys".into(),
            rootfs: "/".into(),
            filesystem_interval_ms: 5_000,
            choice: choice.clone(),
        };
        let mut sampler = Sampler::new(&trees, clock, Arc::new(Table::new()));
        let costs = measure(&mut sampler, &choice, Tick { wall_ns: 0, boottime_ns: STEP_NS });
        // One file at each tick, one every 5 s, one every 15 s.
        for (name, every, second_us) in
            [("loadavg", "tick", 1.0), ("softnet", "5s", 0.2), ("arp", "15s", 1.0 / 15.0)]
        {
            let cost = costs.iter().find(|cost| cost.name == name).unwrap();
            let told = (cost.interval(), cost.reading_us, cost.second_us());
            assert_eq!(told, (every.to_owned(), Some(1.0), Some(second_us)), "{name}");
        }
    }
}
