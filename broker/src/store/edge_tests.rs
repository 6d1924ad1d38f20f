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
