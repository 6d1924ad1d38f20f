//! What agents make of what they read: scores beside values, and bursts.

use super::tests::{HOST, Place, T0, dump, settle};
use super::*;
use bytes::Bytes;
use strobe_wire::burst::Packer;
use strobe_wire::frame::{Burst, FrameKind, Header, Row, seal_burst, seal_row};
use strobe_wire::ids::{BootId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::schema::{Column, Kind, Schema};

fn schema() -> Schema {
    let column = |name: &str| {
        let (name, labels) = (name.to_owned(), Labels::default());
        Column { name, labels, kind: Kind::Gauge { scale: 0 } }
    };
    let columns = vec![column("node_time_seconds"), column("node_load1")];
    Schema { section: "host".to_owned(), columns }
}

fn header(kind: FrameKind, seq: u64) -> Header {
    let wall_ns = (T0 + 1000 * i64::try_from(seq).unwrap()) * 1_000_000;
    let (seq, schema) = (Seq(seq), schema().id());
    Header { kind, host: HOST, boot: BootId(1), seq, wall_ns, boottime_ns: 0, schema }
}

#[test]
fn scores_that_come_with_a_row_are_a_series_from_memory_log_and_segment() {
    let place = Place::new("scores");
    let (store, mut writer, _) = place.open();
    writer.schema(&schema()).unwrap();
    // The third is of an agent that scores nothing, and the fourth has no value of that column.
    let rows = [(3, &[9, 255][..]), (3, &[0, 113]), (3, &[]), (1, &[0, 0])];
    for (seq, (valid, scores)) in (1..).zip(rows) {
        let mut slot = [0; FRAME_BYTES_MAX];
        let row = Row { values: &[seq, 5], valid: &[valid], scores };
        let length = seal_row(&mut slot, &header(FrameKind::Row, seq), &row).unwrap();
        writer.frame(&Bytes::copy_from_slice(&slot[..length])).unwrap();
    }
    writer.commit(T0).unwrap();
    let check = |store: &Store, place: &str| {
        let mut found = dump(store);
        found.retain(|(labels, _)| labels.value("__name__") == Some("strobe_anomaly_score"));
        let [(labels, samples)] = found.as_slice() else { panic!("{place}: {found:?}") };
        assert_eq!(labels.value("metric"), Some("node_load1"), "{place}");
        let wanted = [(T0 + 1000, 1.0_f64.to_bits()), (T0 + 2000, 0.443_f64.to_bits())];
        assert_eq!(*samples, wanted, "{place}");
    };
    check(&store, "memory");
    drop((store, writer));
    let (store, mut writer, _) = place.open();
    check(&store, "log");
    settle(&mut writer, T0 + 3_600_000);
    check(&store, "segment");
    drop((store, writer));
    let (store, ..) = place.open();
    check(&store, "segment after a restart");
}

#[test]
fn a_bursts_samples_are_rows_at_their_own_times_from_memory_log_and_segment() {
    let place = Place::new("bursts");
    let (store, mut writer, _) = place.open();
    writer.schema(&schema()).unwrap();
    let mut packer = Packer::new(2);
    for n in 0..100_u64 {
        let odd = (!n.is_multiple_of(2)).then_some(n);
        packer.push(n * 10_000, &[Some(5), odd]).unwrap();
    }
    let mut slot = [0; FRAME_BYTES_MAX];
    let burst = Burst { columns: 2, samples: packer.samples(), packed: packer.packed() };
    let length = seal_burst(&mut slot, &header(FrameKind::Burst, 1), &burst).unwrap();
    writer.frame(&Bytes::copy_from_slice(&slot[..length])).unwrap();
    writer.commit(T0).unwrap();
    let check = |store: &Store, place: &str| {
        let found = dump(store);
        assert_eq!(found.len(), 2, "{place}");
        let at = |n: i64| T0 + 1000 + n * 10;
        let odd = (1..100_u8).step_by(2);
        let odd: Vec<_> = odd.map(|n| (at(n.into()), f64::from(n).to_bits())).collect();
        assert_eq!(found[1].1, odd, "{place}");
        let all: Vec<_> = (0..100).map(|n| (at(n), 5.0_f64.to_bits())).collect();
        assert_eq!(found[0].1, all, "{place}");
    };
    check(&store, "memory");
    drop((store, writer));
    let (store, mut writer, _) = place.open();
    check(&store, "log");
    settle(&mut writer, T0 + 3_600_000);
    check(&store, "segment");
}

/// What a host's agent scraped has a `job` and `instance` of its own: it was found under those of the
/// host, and under no others.
#[test]
fn guests_are_found_under_their_own_names_from_memory_log_and_segment() {
    let place = Place::new("guests");
    let (store, mut writer, _) = place.open();
    let column = |name: &str, pairs: &[(&str, &str)]| {
        let kind = Kind::Gauge { scale: 0 };
        Column { name: name.to_owned(), labels: Labels::of(pairs), kind }
    };
    let columns = vec![
        column("up", &[("instance", "web:1"), ("job", "web")]),
        column("up", &[("job", "batch")]),
        column("free", &[]),
    ];
    let schemas = [schema(), Schema { section: "scrape.web".to_owned(), columns }];
    writer.host(HOST, "node", "h7", &Labels::of(&[("dc", "x")])).unwrap();
    for (seq, schema) in (1..).zip(&schemas) {
        writer.schema(schema).unwrap();
        let (mut slot, values) = ([0; FRAME_BYTES_MAX], vec![seq; schema.columns.len()]);
        let header = Header { schema: schema.id(), ..header(FrameKind::Row, seq) };
        let row = Row { values: &values, valid: &[(1 << values.len()) - 1], scores: &[] };
        let length = seal_row(&mut slot, &header, &row).unwrap();
        writer.frame(&Bytes::copy_from_slice(&slot[..length])).unwrap();
    }
    writer.commit(T0).unwrap();
    let check = |store: &Store, place: &str| {
        let limits = Limits { series_max: 100, samples_max: 100 };
        let all = TimeRange { start_ms: i64::MIN, end_ms: i64::MAX };
        for (pairs, wanted) in [
            (&[("__name__", "up")][..], &["batch/h7/x", "web/web:1/x"][..]),
            (&[("instance", "web:1")], &["web/web:1/x"]),
            (&[("instance", "web:1"), ("job", "node")], &[]),
            (&[("instance", "h7"), ("job", "node")], &["node/h7/x"; 3]),
            (&[("instance", "h7"), ("job", "batch")], &["batch/h7/x"]),
            (&[("job", "web"), ("dc", "x")], &["web/web:1/x"]),
            (&[("instance", "h8")], &[]),
        ] {
            let matcher = |(name, value): &(&str, &str)| Matcher {
                name: (*name).to_owned(),
                op: MatchOp::Equal,
                value: (*value).to_owned(),
            };
            let matchers: Vec<_> = pairs.iter().map(matcher).collect();
            let mut found = Vec::new();
            for part in store.select(&matchers, all, &limits).unwrap() {
                for series in 0..part.len() {
                    let labels = part.labels(series);
                    let of = |name: &str| labels.value(name).unwrap_or("none").to_owned();
                    assert_eq!(part.label(series, "job"), labels.value("job"));
                    found.push([of("job"), of("instance"), of("dc")].join("/"));
                }
            }
            found.sort();
            assert_eq!(found, wanted, "{place}: {pairs:?}");
        }
    };
    check(&store, "memory");
    drop((store, writer));
    let (store, mut writer, _) = place.open();
    check(&store, "log");
    settle(&mut writer, T0 + 3_600_000);
    check(&store, "segment");
    drop((store, writer));
    let (store, ..) = place.open();
    check(&store, "segment after a restart");
}
