//! Scrapes in, in pieces and with holes; every sample out, once, bit for bit.

use super::super::head::Source;
use super::super::tests::{Place, T0, dump};
use super::super::{RemoteSeries, Store, StoreConfig, Writer};
use super::*;
use proptest::prelude::*;
use strobe_wire::schema::Labels;

type Samples = Vec<(i64, f64)>;

fn series(job: &str, number: usize, samples: Samples) -> RemoteSeries {
    let (name, z) = (format!("m{number:03}"), number.to_string());
    let labels = [("__name__", &*name), ("instance", "i"), ("job", job), ("z", &*z)];
    RemoteSeries { labels: Labels::of(&labels), samples }
}

fn value(number: usize, time: i64) -> f64 {
    let number = f64::from(u32::try_from(number).unwrap());
    number * 1000.0 + f64::from(u32::try_from(time - T0).unwrap())
}

/// What a store that was told all of these answers.
fn wanted(all: &[RemoteSeries]) -> Vec<(Labels, Vec<(i64, u64)>)> {
    let mut by_labels: BTreeMap<Labels, BTreeMap<i64, u64>> = BTreeMap::new();
    for one in all {
        let known = by_labels.entry(one.labels.clone()).or_default();
        one.samples
            .iter()
            .for_each(|(time, value)| _ = known.entry(*time).or_insert_with(|| value.to_bits()));
    }
    by_labels.into_iter().map(|(labels, samples)| (labels, samples.into_iter().collect())).collect()
}

fn found(store: &Store) -> Vec<(Labels, Vec<(i64, u64)>)> {
    let mut found = dump(store);
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn send(writer: &mut Writer, all: &mut Vec<RemoteSeries>, request: Vec<RemoteSeries>) {
    writer.samples(&request).unwrap();
    writer.commit(T0).unwrap();
    all.extend(request);
}

/// Sections of the only source: their names and columns.
fn sections(store: &Store) -> Vec<(String, usize)> {
    let sources = store.shared.sources();
    let source: &Source = &sources[0];
    let state = source.read();
    state.sections.values().map(|s| (s.schema.section.clone(), s.schema.columns.len())).collect()
}

/// Ten minutes of a target of 40 series at 15 s, sealed: one block with one time column, a tenth of
/// what times of their own took (2.5 bytes a sample for this).
#[test]
fn series_of_one_scrape_share_their_times() {
    let place = Place::new("scrape");
    let (store, mut writer, _) = place.open();
    let mut all = Vec::new();
    for scrape in 0..40 {
        // Not to the millisecond: jitter is what a time column of each series costs most for.
        let time = T0 + scrape * 15_000 + scrape * scrape * 7 % 13;
        let request = (0..40).filter(|number| *number != 7 || scrape % 5 != 0);
        let request = request.map(|n| series("j", n, vec![(time, value(n, time))])).collect();
        send(&mut writer, &mut all, request);
        assert_eq!(found(&store), wanted(&all), "scrape {scrape}");
    }
    assert_eq!(sections(&store), [("remote-write-rows".to_owned(), 40)]);
    assert_eq!(store.shared.sources()[0].read().remote.homeless, 0);
    let held: usize = store.shared.sources()[0].read().remote.bytes();
    assert!(held <= 40 * 16 * 2 * FOLD_ROWS, "{held} bytes wait");
    writer.settle(T0 + 1_300_000).unwrap();
    assert_eq!(found(&store), wanted(&all));
    let samples: usize = all.iter().map(|one| one.samples.len()).sum();
    let counts = store.counts();
    assert_eq!(counts.blocks_sealed, 1, "a window's rows are a block");
    let bytes = usize::try_from(counts.segment_bytes).unwrap();
    assert!(bytes < samples * 3, "{bytes} bytes for {samples} samples");
    drop((store, writer));
    assert_eq!(found(&place.open().0), wanted(&all));
}

/// A request ends in the middle of a scrape, and what is there is folded before the rest comes.
#[test]
fn a_row_that_comes_in_two_parts_is_one() {
    let place = Place::new("parts");
    let (store, mut writer, _) = place.open();
    let mut all = Vec::new();
    let times: Vec<i64> = (0..30).map(|scrape| T0 + scrape * 1000).collect();
    for part in [0..20, 20..40] {
        let of = |n| times.iter().map(|time| (*time, value(n, *time))).collect();
        // Twice, so that the first is folded when the second comes.
        send(&mut writer, &mut all, part.clone().map(|n| series("j", n, of(n))).collect());
        let late = |n| series("j", n, vec![(T0 + 40_000, value(n, T0 + 40_000))]);
        send(&mut writer, &mut all, part.map(late).collect());
    }
    assert_eq!(found(&store), wanted(&all));
    writer.settle(T0 + 1_300_000).unwrap();
    assert_eq!(found(&store), wanted(&all));
}

/// Series that nothing has in common keep their own times, and cost no section each.
#[test]
fn series_without_common_times_stay_apart() {
    let place = Place::new("apart");
    let (store, mut writer, _) = place.open();
    let mut all = Vec::new();
    for round in 0..60 {
        let at = |n: usize| T0 + round * 5_000 + i64::try_from(n * 31).unwrap();
        let request = (0..50).map(|n| series("j", n, vec![(at(n), value(n, at(n)))])).collect();
        send(&mut writer, &mut all, request);
    }
    assert_eq!(found(&store), wanted(&all));
    assert_eq!(sections(&store), []);
    writer.settle(T0 + 1_300_000).unwrap();
    assert_eq!(sections(&store), [("remote-write".to_owned(), 50)]);
    assert_eq!(found(&store), wanted(&all));
}

/// Targets come and go: what is gone is forgotten here and found in its blocks.
#[test]
fn a_series_that_ended_leaves_memory() {
    let place = Place::new("ended");
    let (store, mut writer, _) = place.open();
    let mut all = Vec::new();
    for scrape in 0..200 {
        let time = T0 + scrape * 15_000;
        let living = if scrape < 60 { 0..20 } else { 10..30 };
        let request = living.map(|n| series("j", n, vec![(time, value(n, time))])).collect();
        send(&mut writer, &mut all, request);
        writer.settle(time).unwrap();
    }
    assert_eq!(found(&store), wanted(&all));
    let sources = store.shared.sources();
    assert_eq!(sources[0].read().remote.columns.len(), 20);
    drop(sources);
    drop((store, writer));
    assert_eq!(found(&place.open().0), wanted(&all));
}

/// Seals under memory pressure begin at any sample: what is folded while one runs is in it, or in
/// the WAL that it leaves, and never in both.
#[test]
fn what_is_folded_while_a_seal_runs_is_stored_once() {
    let place = Place::new("fold-seal");
    let config = StoreConfig { head_bytes_max: 5_000, ..place.config() };
    let (store, mut writer, _) = Store::open(config, T0).unwrap();
    let mut all = Vec::new();
    for scrape in 0..120 {
        let time = T0 + scrape * 5_000;
        let job = |job: usize| format!("j{job:02}");
        let of = |j| (0..3).map(move |n| series(&job(j), n, vec![(time, value(n, time))]));
        send(&mut writer, &mut all, (0..40).flat_map(of).collect());
        writer.tick(time).unwrap();
    }
    assert!(3 < store.counts().blocks_sealed / 40, "{:?}", store.counts());
    assert_eq!(found(&store), wanted(&all));
    drop((store, writer));
    let (store, mut writer, _) = place.open();
    assert_eq!(found(&store), wanted(&all));
    writer.settle(T0 + 3_600_000).unwrap();
    assert_eq!(found(&store), wanted(&all));
    drop((store, writer));
    let report = super::super::check::check(&place.0).unwrap();
    let raw = report.files.iter().filter(|file| file.step_ms == 0);
    assert_eq!(raw.map(|file| file.samples).sum::<u64>(), 120 * 40 * 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_lost_whatever_comes_when(
        steps in prop::collection::vec((0..5_usize, 0..60_i64, 1..12_i64, any::<u8>()), 1..120),
    ) {
        let place = Place::new("any");
        let (store, mut writer, _) = place.open();
        let mut all = Vec::new();
        for (kind, start, count, mask) in steps {
            let at = |step: i64| T0 + (start + step) * 10_000;
            match kind {
                // A seal of what there is.
                0 => writer.settle(T0 + start * 20_000).unwrap(),
                1 => {
                    let n = usize::from(mask % 8);
                    let samples = (0..count).map(|s| (at(s), value(n, at(s)))).collect();
                    send(&mut writer, &mut all, vec![series("j", n, samples)]);
                }
                _ => {
                    let some = (0..8).filter(|n| mask >> n & 1 == 1);
                    let of = |n| (0..count).map(|s| (at(s), value(n, at(s)))).collect();
                    let request = some.map(|n| series("j", n, of(n))).collect();
                    send(&mut writer, &mut all, request);
                }
            }
        }
        prop_assert_eq!(found(&store), wanted(&all));
        writer.settle(T0 + 5_000_000).unwrap();
        prop_assert_eq!(found(&store), wanted(&all));
        drop((store, writer));
        prop_assert_eq!(found(&place.open().0), wanted(&all));
    }
}
