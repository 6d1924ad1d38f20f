//! What each collector costs on this host, measured: `strobe-agent --costs`.

use crate::sampler::{CATALOG, Choice, Sampler, SectionRow, Tick};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Reads for an hour of the sampler's time and prints a line a collector: the mean of its readings,
/// walks and looks for what is not there included, and what that is a second.
#[must_use]
pub fn table(sampler: &mut Sampler, choice: &Choice, now: Tick) -> String {
    let mut now = now;
    let mut each_tick: BTreeMap<String, u64> = BTreeMap::new();
    let mut begun: BTreeMap<&str, u64> = BTreeMap::new();
    for reading in 0..=READINGS {
        if 0 < reading {
            sampler.settle(now, WAIT);
        }
        sampler.tick(now, |row| add(&row, &mut each_tick));
        if reading == 0 {
            // The first reading learns, which is no reading like the others.
            each_tick.clear();
            begun = sampler.spent().collect();
        }
        now.boottime_ns = now.boottime_ns.saturating_add(STEP_NS);
        now.wall_ns = now.wall_ns.saturating_add_unsigned(STEP_NS);
    }
    let slow: BTreeMap<_, _> = sampler.spent().collect();
    let heading = ["collector", "interval", "us/reading", "us/second"];
    let [name, interval, reading, second] = heading;
    let mut text = format!("{name:<20} {interval:>8} {reading:>12} {second:>12}\n");
    let mut sum = 0.0;
    for collector in CATALOG {
        let seconds = seconds(choice.interval_ms(collector));
        let spent = slow.get(collector.name).map(|spent| {
            let spent = spent - begun.get(collector.name).unwrap_or(&0);
            us(spent) / (f64::from(READINGS) * Duration::from_nanos(STEP_NS).as_secs_f64())
        });
        let each_tick = each_tick.get(collector.name);
        let each_tick = each_tick.map(|spent| us(*spent) / f64::from(READINGS));
        let Some(second_us) = spent.or(each_tick) else {
            let _ = writeln!(text, "{:<20} {:>8}", collector.name, "off");
            continue;
        };
        sum += second_us;
        let every = match choice.interval_ms(collector) {
            0 => "tick".to_owned(),
            ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
            ms => format!("{}s", ms / 1000),
        };
        let reading_us = second_us * seconds;
        let name = collector.name;
        let _ = writeln!(text, "{name:<20} {every:>8} {reading_us:>12.1} {second_us:>12.2}");
    }
    let _ = writeln!(text, "{:<20} {:>8} {:>12} {sum:>12.2}", "all, a tick a second", "", "");
    text
}

/// Adds what the collectors of each tick say of themselves.
fn add(row: &SectionRow<'_>, each_tick: &mut BTreeMap<String, u64>) {
    if row.schema.section != "host" {
        return;
    }
    for (column, value) in row.schema.columns.iter().zip(row.values) {
        let collector = column.labels.value("collector").unwrap_or("");
        if column.name == "node_scrape_collector_duration_seconds" {
            *each_tick.entry(collector.to_owned()).or_default() += value;
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
