//! Several stores read as one.

use super::super::tests::{HOST, Place, T0, dump, expected, write};
use super::super::*;
use super::*;
use crate::store::page::{Depth, Wanted};
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
            version: PAGE_VERSION,
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
        version: PAGE_VERSION,
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
    for (asked, answered) in [(old.version, 1), (PAGE_VERSION, PAGE_VERSION), (99, PAGE_VERSION)] {
        let page = store.page(&Wanted { version: asked, ..old.clone() }, &|| false).unwrap();
        assert_eq!(page[0], answered);
        let elsewhere = Elsewhere::new(ALL, false);
        elsewhere.take(&page).unwrap();
        assert_eq!(elsewhere.sources().len(), 1, "form {answered} is read");
        let mut newer = page;
        newer[0] = PAGE_VERSION + 1;
        let why = Elsewhere::new(ALL, false).take(&newer).unwrap_err();
        assert!(why.contains("of version 3, this broker reads 1 to 2"), "{why}");
    }
}
