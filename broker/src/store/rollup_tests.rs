//! Rollups as a query sees them: what they answer is what the samples would have.

use super::tests::{HOST, Place, T0, dump, row, schema, settle};
use super::*;
use crate::query::{Deadline, Engine, Limits as QueryLimits, Output};
use strobe_wire::schema::Schema;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// A day's start.
const START: i64 = T0.div_euclid(DAY) * DAY + DAY;

struct World {
    store: Store,
    writer: Writer,
    schema: Schema,
    seq: u64,
    now_ms: i64,
    /// Every sample of the counter and of the gauge.
    samples: Vec<(i64, f64, f64)>,
}

impl World {
    fn new(config: StoreConfig) -> Self {
        let (store, mut writer, _) = Store::open(config, START).unwrap();
        let schema = schema(2);
        writer.schema(&schema).unwrap();
        writer.host(HOST, "node", "h7", &Labels::default()).unwrap();
        Self { store, writer, schema, seq: 0, now_ms: START, samples: Vec::new() }
    }

    /// Rows every ten seconds, sealed and rolled up as time goes.
    fn run_to(&mut self, end_ms: i64) {
        while self.now_ms < end_ms {
            self.put(self.now_ms);
            self.now_ms += 10_000;
            if self.now_ms % (10 * MINUTE) == 0 {
                self.pass(0);
            }
        }
    }

    fn pass(&mut self, ms: i64) {
        self.now_ms += ms;
        settle(&mut self.writer, self.now_ms + 31_000);
    }

    fn put(&mut self, time_ms: i64) {
        self.seq += 1;
        let counter = u64::try_from((time_ms - START) / 100 % 700_000).unwrap();
        let gauge = (time_ms.rem_euclid(977) as f64) - 300.0;
        let values = [counter, gauge.to_bits()];
        self.writer.frame(&row(&self.schema, HOST, self.seq, time_ms, &values)).unwrap();
        self.writer.commit(time_ms).unwrap();
        self.samples.push((time_ms, counter as f64 / 100.0, gauge));
    }

    /// The samples of the gauge in `(end - range, end]`.
    fn window(&self, end_ms: i64, range_ms: i64) -> Vec<f64> {
        let within = self.samples.iter().filter(|s| end_ms - range_ms < s.0 && s.0 <= end_ms);
        within.map(|sample| sample.2).collect()
    }

    fn ask(&self, text: &str, at_ms: i64) -> (Option<f64>, Vec<String>) {
        let engine = Engine::new(self.store.for_query());
        match engine.instant(text, at_ms, &QueryLimits::usual(), Deadline::never()).unwrap() {
            Output::Vector(series) => {
                (series.first().map(|one| one.1.value), engine.store().warnings())
            }
            other => panic!("{other:?}"),
        }
    }

    fn check(&self, text: &str, at_ms: i64, wanted: f64) {
        let (got, warnings) = self.ask(text, at_ms);
        let got = got.unwrap_or_else(|| panic!("{text} at {at_ms}: nothing, {warnings:?}"));
        let close = (got - wanted).abs() <= 1e-9 * wanted.abs().max(1.0);
        assert!(close, "{text} at {at_ms}: {got}, not {wanted}; {warnings:?}");
        assert_eq!(warnings, Vec::<String>::new(), "{text}");
    }

    fn check_windows(&self, end_ms: i64, minutes: i64) {
        let window = self.window(end_ms, minutes * MINUTE);
        let sum: f64 = window.iter().sum();
        let count = window.len() as f64;
        let of = |function: &str| format!("{function}_over_time(node_1[{minutes}m])");
        self.check(&of("sum"), end_ms, sum);
        self.check(&of("count"), end_ms, count);
        self.check(&of("avg"), end_ms, sum / count);
        self.check(&of("min"), end_ms, window.iter().copied().fold(f64::MAX, f64::min));
        self.check(&of("max"), end_ms, window.iter().copied().fold(f64::MIN, f64::max));
        self.check(&of("last"), end_ms, *window.last().unwrap());
    }
}

fn config(place: &Place) -> StoreConfig {
    StoreConfig { raw_retention_ms: 2 * HOUR, minute_retention_ms: 2 * DAY, ..place.config() }
}

/// `last` rows stood in for samples: avg_over_time was the mean of lasts, count_over_time of minutes.
#[test]
fn windows_behind_the_raw_samples_are_exact() {
    let place = Place::new("windows");
    let mut world = World::new(config(&place));
    world.run_to(START + 7 * HOUR);
    assert!(0 < world.store.counts().segments_expired);
    for (end_ms, minutes) in [
        (START + HOUR, 10),
        (START + 2 * HOUR + 17 * MINUTE, 1),
        (START + 3 * HOUR, 120),
        // From minutes into what is not rolled up yet.
        (START + 7 * HOUR, 300),
    ] {
        world.check_windows(end_ms, minutes);
    }
    // Within a minute the window ends at the last whole one.
    let window = world.window(START + HOUR, 10 * MINUTE);
    world.check("sum_over_time(node_1[10m])", START + HOUR + 31_000, window.iter().sum());
    // 0.1 a second, with a reset every 700,000 steps of a hundredth of it.
    world.check("rate(node_0[10m])", START + HOUR, 0.1);
    world.check("increase(node_0[30m])", START + 2 * HOUR, 180.0);
    world.check("node_1", START + HOUR, *window.last().unwrap());
    world.check("avg(avg_over_time(node_1[10m]))", START + HOUR, window.iter().sum::<f64>() / 60.0);
    // What cannot be had is not there, and says so; where samples are, it is.
    for text in ["stddev_over_time(node_1[10m])", "avg_over_time(node_1[90s])", "irate(node_0[5m])"]
    {
        let (value, warnings) = world.ask(text, START + HOUR);
        assert_eq!(value, None, "{text}");
        assert!(warnings[0].contains("rollups"), "{text}: {warnings:?}");
        assert!(world.ask(text, START + 7 * HOUR - 10_000).0.is_some(), "{text}");
    }
    // A restart knows what was removed.
    let before = world.ask("sum_over_time(node_1[120m])", START + 3 * HOUR);
    let World { store, writer, .. } = world;
    drop((store, writer));
    let (store, _, _) = Store::open(config(&place), START).unwrap();
    let engine = Engine::new(store);
    let again = engine.instant(
        "sum_over_time(node_1[120m])",
        START + 3 * HOUR,
        &QueryLimits::usual(),
        Deadline::never(),
    );
    match again.unwrap() {
        Output::Vector(series) => assert_eq!(Some(series[0].1.value), before.0),
        other => panic!("{other:?}"),
    }
}

/// A rollup was final: what a spool replayed later was in no answer once raw samples were gone.
#[test]
fn late_rows_are_in_the_rollups() {
    let place = Place::new("late");
    let mut world = World::new(config(&place));
    world.run_to(START + 3 * HOUR);
    // Rolled up already: where raw samples are whole still, and where they are not.
    for late in 0..60 {
        world.put(START + 2 * HOUR - 30 * MINUTE + late * 10_000 + 3_000);
    }
    world.run_to(START + 6 * HOUR);
    for late in 0..60 {
        world.put(START + 30 * MINUTE + late * 10_000 + 3_000);
    }
    world.run_to(START + 8 * HOUR);
    world.samples.sort_by_key(|sample| sample.0);
    world.check_windows(START + 2 * HOUR, 60);
    world.check_windows(START + HOUR, 60);
    world.check_windows(START + 6 * HOUR, 360);
}

/// A segment of nothing but late rows was older than the horizon, and its time was rolled up: it was
/// removed at once, and its rows were in no rollup.
#[test]
fn a_segment_of_late_rows_waits_for_its_rollup() {
    let place = Place::new("late-alone");
    let mut world = World::new(config(&place));
    world.run_to(START + 6 * HOUR);
    for late in 0..60 {
        world.put(START + 30 * MINUTE + late * 10_000 + 3_000);
    }
    world.pass(10 * MINUTE);
    world.run_to(START + 8 * HOUR);
    world.samples.sort_by_key(|sample| sample.0);
    world.check_windows(START + HOUR, 60);
}

/// A rollup's row stands behind its samples: a section whose last sample lay in the oldest minute was
/// older than everything stored, and was forgotten.
#[test]
fn a_section_within_the_oldest_minute_is_remembered() {
    let place = Place::new("oldest");
    let mut world = World::new(config(&place));
    world.now_ms = START + 10_000;
    let short = schema(3);
    world.writer.schema(&short).unwrap();
    let once = row(&short, HOST, 1_000_000, START + 20_000, &[1, 2, 3]);
    world.writer.frame(&once).unwrap();
    world.run_to(START + 7 * HOUR);
    assert!(0 < world.store.counts().segments_expired);
    assert!(world.ask("node_2", START + MINUTE).0.is_some());
}

#[test]
fn hours_answer_where_minutes_are_gone() {
    let place = Place::new("hours");
    let mut world = World::new(StoreConfig { minute_retention_ms: DAY, ..config(&place) });
    world.run_to(START + 3 * DAY + 2 * HOUR);
    let from = world.store.shared.horizon().minutes_ms;
    assert!(START < from, "{from}");
    world.check_windows(START + 5 * HOUR, 60);
    world.check_windows(START + 20 * HOUR, 600);
    world.check_windows(START + 3 * DAY + 2 * HOUR, 72 * 60);
    let (value, warnings) = world.ask("avg_over_time(node_1[10m])", START + 5 * HOUR);
    assert!(value.is_none(), "{value:?} {warnings:?}");
    assert_eq!(dump(&world.store)[1].1.first().map(|s| s.0), Some(START));
}
