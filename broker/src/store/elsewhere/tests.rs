//! Several stores read as one.

use super::super::tests::{HOST, Place, T0, dump, expected, write, write_one};
use super::super::*;
use super::*;
use crate::store::page::{Depth, Wanted};
use proptest::prelude::*;
use std::collections::BTreeSet;
use strobe_wire::ids::HostId;

const LIMITS: Limits = Limits { series_max: 1000, samples_max: 10_000_000 };
const ALL: TimeRange = TimeRange { start_ms: T0, end_ms: T0 + 10_000_000 };

/// `store` with every page of `others`, of at most about so many bytes each; and how many they were.
fn together(store: &Store, others: &[&Store], depth: Depth, bytes_max: usize) -> (Store, usize) {
    let elsewhere = Elsewhere::new(ALL, matches!(depth, Depth::Rolled(_)));
    let mut pages = 0;
    for other in others {
        let matchers = Vec::new();
        let mut wanted = Wanted {
            matchers,
            range: ALL,
            depth,
            limits: LIMITS,
            next: None,
            version: newest_page(),
            shares: false,
        };
        loop {
            pages += 1;
            let page = other.page_within(&wanted, bytes_max, &|| false).unwrap();
            let said = elsewhere.take(&page).unwrap();
            assert_eq!((said.notes, said.coarser_ms), (Vec::new(), None));
            let Some(next) = said.next else { break };
            wanted.next = Some(next);
        }
    }
    (store.for_query().with(elsewhere), pages)
}

/// A host went from one broker to a second and to a third; what it sent again to the next one because
/// nobody had acknowledged it is in both.
#[test]
fn rows_in_several_stores_are_each_there_once() {
    let places = ["a", "b", "c", "all"].map(|name| Place::new(&format!("elsewhere-{name}")));
    let [mut a, mut b, mut c, mut all] = places.each_ref().map(Place::open);
    write(&mut a.1, HOST, 0..700);
    write(&mut b.1, HOST, 690..1500);
    write(&mut c.1, HOST, 1498..1600);
    write(&mut all.1, HOST, 0..1600);
    for (writer, host) in [(&mut b.1, HostId(9)), (&mut c.1, HostId(10))] {
        write(writer, host, 0..70);
        write(&mut all.1, host, 0..70);
    }
    // Some of it sealed, some of it young or plain rows.
    a.1.settle(T0 + 1_300_000).unwrap();
    b.1.settle(T0 + 1_240_000).unwrap();
    let mut wanted = dump(&all.0);
    assert_eq!(wanted[0].1, expected(0..1600));
    wanted.sort();
    for bytes_max in [1, 3000, 1 << 20] {
        let (seen, pages) = together(&a.0, &[&b.0, &c.0], Depth::Samples(None), bytes_max);
        assert!(bytes_max != 1 || 8 <= pages, "{pages} pages");
        let mut found = dump(&seen);
        found.sort();
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(&wanted) {
            assert_eq!(found.0, wanted.0);
            let differ = found.1.iter().zip(&wanted.1).find(|(found, wanted)| found != wanted);
            assert_eq!((differ, found.1.len()), (None, wanted.1.len()), "{:?}", found.0);
        }
        assert_eq!(seen.warnings(), Vec::<String>::new());
        let (seen, _) = together(&a.0, &[&b.0, &c.0], Depth::Names, bytes_max);
        let names = |store: &Store| {
            store.series(&[], ALL, &LIMITS).unwrap().into_iter().collect::<BTreeSet<_>>()
        };
        assert_eq!(names(&seen), names(&all.0));
        let instances = seen.label_values("instance", &[], ALL, &LIMITS).unwrap();
        assert_eq!(instances, ["h10", "h7", "h9"]);
    }
    // One part a source: an aggregation over a fleet needs that.
    let (seen, _) = together(&a.0, &[&b.0, &c.0], Depth::Samples(None), 1 << 20);
    assert_eq!(seen.select(&[], ALL, &LIMITS).unwrap().len(), 3);
    assert_eq!(dump(&a.0)[0].1, expected(0..700), "nothing of it stays");
}

#[test]
fn rollups_of_several_stores_are_those_of_all_rows() {
    let places = ["a", "b", "all"].map(|name| Place::new(&format!("elsewhere-rolled-{name}")));
    let [mut a, mut b, mut all] = places.each_ref().map(Place::open);
    write(&mut a.1, HOST, 0..1000);
    write(&mut b.1, HOST, 1000..2400);
    write(&mut a.1, HOST, 2400..3333);
    write(&mut all.1, HOST, 0..3333);
    b.1.settle(T0 + 3_900_000).unwrap();
    let rolled = |store: &Store| {
        let (mut out, mut scratch) = (Vec::new(), Scratch::new(&LIMITS));
        for part in store.select(&[], ALL, &LIMITS).unwrap() {
            let visit = &mut |series, rows: &Rolled| {
                // A sum depends on the order of what is added, in its last digits.
                let sums: Vec<String> = rows.sum.iter().map(|sum| format!("{sum:.6}")).collect();
                let rest = (&rows.times, &rows.min, &rows.max, &rows.count, &rows.last);
                out.push((part.labels(series), sums, format!("{rest:?}")));
                Ok(())
            };
            store.scan_rolled(&part, ALL, 60_000, &mut scratch, visit).unwrap();
        }
        out
    };
    let wanted = rolled(&all.0);
    for (here, other) in [(&a.0, &b.0), (&b.0, &a.0)] {
        for bytes_max in [1, 1 << 20] {
            let (seen, _) = together(here, &[other], Depth::Rolled(60_000), bytes_max);
            assert!(rolled(&seen) == wanted, "pages of {bytes_max} bytes");
        }
    }
}

/// What a query of rollups sees: of each series its labels and rows, sums as far as their order does not count.
fn rolled(store: &Store, step_ms: i64) -> Vec<(String, Vec<String>)> {
    let (mut out, mut scratch) = (Vec::new(), Scratch::new(&LIMITS));
    for part in store.select(&[], ALL, &LIMITS).unwrap() {
        let visit = &mut |series, rows: &Rolled| {
            let fields = [&rows.min, &rows.max, &rows.sum, &rows.count, &rows.last];
            let row = |at: usize| {
                let fields: Vec<String> = fields.iter().map(|f| format!("{:.4}", f[at])).collect();
                format!("{} {fields:?}", (rows.times[at] - T0) / 1000)
            };
            // The row that ends behind the range is nobody's window.
            let within = 0..rows.times.partition_point(|time| *time <= ALL.end_ms);
            out.push((format!("{:?}", part.labels(series)), within.map(row).collect()));
            Ok(())
        };
        store.scan_rolled(&part, ALL, step_ms, &mut scratch, visit).unwrap();
    }
    out
}

fn assert_same(found: &[(String, Vec<String>)], wanted: &[(String, Vec<String>)], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert_eq!(found.0, wanted.0);
        let differ = found.1.iter().zip(&wanted.1).find(|(found, wanted)| found != wanted);
        assert_eq!((differ, found.1.len()), (None, wanted.1.len()), "{what}: {}", found.0);
    }
}

/// Broker A was killed before its acknowledgement came back: the agent sent the rows again, B took them in too,
/// and `count_over_time` over rollups said 70 samples a minute.
#[test]
fn a_row_that_two_stores_took_in_counts_once_in_rollups() {
    let places = ["a", "b", "all"].map(|name| Place::new(&format!("elsewhere-twice-{name}")));
    let [mut a, mut b, mut all] = places.each_ref().map(Place::open);
    write(&mut a.1, HOST, 0..4000);
    write(&mut b.1, HOST, 3990..8000);
    write(&mut all.1, HOST, 0..8000);
    let wanted = [60_000, 3_600_000].map(|step| rolled(&all.0, step));
    assert!(wanted[0][0].1[30].contains("\"60.0000\""), "{}", wanted[0][0].1[30]);
    // Not rolled up yet, in one of them, in both.
    for round in 0..3 {
        for (here, other) in [(&a.0, &b.0), (&b.0, &a.0)] {
            for (step, wanted) in [60_000, 3_600_000].into_iter().zip(&wanted) {
                let (seen, _) = together(here, &[other], Depth::Rolled(step), 1 << 20);
                assert_same(&rolled(&seen, step), wanted, &format!("round {round}, step {step}"));
            }
        }
        let next = if round == 0 { &mut a.1 } else { &mut b.1 };
        next.settle(T0 + 90_000_000).unwrap();
    }
    // A store that starts again knows what it has, without the log of it.
    let cover = |store: &Store| store.shared.source(HOST.0).read().cover.clone();
    let (known, none) = (cover(&b.0), Default::default());
    assert_ne!(known, none);
    drop((b.0, b.1));
    std::fs::remove_dir_all(places[1].0.join("wal")).unwrap();
    let b = places[1].open();
    assert_eq!(cover(&b.0), known);
    let (seen, _) = together(&a.0, &[&b.0], Depth::Rolled(60_000), 1 << 20);
    assert_same(&rolled(&seen, 60_000), &wanted[0], "after a restart");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    /// A host goes from store to store, and each time sends again what it cannot know the last one to have.
    #[test]
    fn rollups_of_several_stores_are_those_of_one_that_had_all(
        moves in proptest::collection::vec((0_usize..3, 1_u64..5000, 0_u64..400, any::<bool>()), 1..8),
        here in 0_usize..3,
    ) {
        let names = ["a", "b", "c", "all"];
        let places = names.map(|name| Place::new(&format!("elsewhere-any-{name}")));
        let mut stores = places.each_ref().map(Place::open);
        let mut have: [BTreeSet<u64>; 3] = Default::default();
        let mut end = 0_u64;
        for (to, rows, again, settles) in moves {
            let from = end.saturating_sub(again);
            end += rows;
            // What a store has already it knows by its number, and does not take in twice.
            for step in from..end {
                if have[to].insert(step) {
                    write_one(&mut stores[to].1, step);
                }
            }
            stores[to].1.commit(T0).unwrap();
            if settles {
                stores[to].1.settle(T0 + i64::try_from(end).unwrap() * 1000).unwrap();
            }
        }
        write(&mut stores[3].1, HOST, 0..end);
        stores[3].1.settle(T0 + 90_000_000).unwrap();
        let others: Vec<&Store> = (0..3).filter(|n| *n != here).map(|n| &stores[n].0).collect();
        for step in [60_000, 3_600_000] {
            let (seen, _) = together(&stores[here].0, &others, Depth::Rolled(step), 1 << 20);
            assert_same(&rolled(&seen, step), &rolled(&stores[3].0, step), &format!("step {step}"));
        }
    }
}

#[test]
fn a_page_that_does_not_check_is_refused() {
    let place = Place::new("elsewhere-broken");
    let (store, mut writer, _) = place.open();
    write(&mut writer, HOST, 0..100);
    let depth = Depth::Samples(Some(60_000));
    let wanted = Wanted {
        matchers: vec![],
        range: ALL,
        depth,
        limits: LIMITS,
        next: None,
        version: newest_page(),
        shares: false,
    };
    let page = store.page(&wanted, &|| false).unwrap();
    assert!(Elsewhere::new(ALL, false).take(&page).is_ok());
    for at in 0..page.len() {
        let mut broken = page.clone();
        broken[at] ^= 1 << (at % 8);
        // Nothing may panic; what is refused is refused with a sentence.
        if let Err(why) = Elsewhere::new(ALL, false).take(&broken) {
            assert!(!why.is_empty());
        }
        assert!(Elsewhere::new(ALL, false).take(&page[..at]).is_err(), "cut at {at}");
    }
}

/// Brokers of neighbouring versions run side by side: who asks names the newest form that it reads, and who
/// never heard of forms is answered in the first one. A form from the future is refused in words.
#[test]
fn pages_are_of_a_form_that_both_know() {
    let place = Place::new("elsewhere-versions");
    let (store, mut writer, _) = place.open();
    write(&mut writer, HOST, 0..100);
    // As the last version asks: it has no word for forms.
    let old = format!(
        r#"{{"matchers":[],"range":{{"start_ms":{T0},"end_ms":{}}},"depth":{{"Samples":null}},
            "limits":{{"series_max":1000,"samples_max":100000}},"next":null}}"#,
        T0 + 10_000_000
    );
    let old: Wanted = serde_json::from_str(&old).unwrap();
    let newest = newest_page();
    for (asked, answered) in [(old.version, 1), (2, 2), (newest, newest), (99, newest)] {
        let page = store.page(&Wanted { version: asked, ..old.clone() }, &|| false).unwrap();
        assert_eq!(page[0], answered);
        let elsewhere = Elsewhere::new(ALL, false);
        elsewhere.take(&page).unwrap();
        assert_eq!(elsewhere.sources().len(), 1, "form {answered} is read");
        let mut newer = page;
        newer[0] = newest + 1;
        let why = Elsewhere::new(ALL, false).take(&newer).unwrap_err();
        assert!(why.contains("of version 4, this broker reads 1 to 3"), "{why}");
    }
}
