//! Sealing while rows go on coming.

use super::check::check;
use super::tests::{Place, T0, row, schema};
use super::*;
use strobe_wire::schema::Labels;

/// The story: a seal under memory pressure, which has no cut in time, took eight hosts a tick; rows
/// that came meanwhile for hosts it had not reached went into the segment too, though their WAL
/// file was not one that the segment covers. After a restart they came from the WAL once more: of
/// 336 million samples of 10,000 hosts, 371 million were stored.
#[test]
fn what_comes_while_a_seal_runs_is_sealed_once() {
    let place = Place::new("seal-once");
    let config = StoreConfig { head_bytes_max: 50, ..place.config() };
    let (_, mut writer, _) = Store::open(config, T0).unwrap();
    let schema = schema(2);
    writer.schema(&schema).unwrap();
    for step in 0..STEPS {
        let time_ms = T0 + i64::try_from(step).unwrap() * 1000;
        for host in 1..=HOSTS {
            let frame = row(&schema, HostId(host.into()), step + 1, time_ms, &[step, step]);
            writer.frame(&frame).unwrap();
        }
        let remote = (1..=HOSTS).map(|host| RemoteSeries {
            labels: Labels::of(&[("__name__", "m"), ("instance", &host.to_string())]),
            samples: vec![(time_ms, f64::from(host))],
        });
        writer.samples(&remote.collect::<Vec<_>>()).unwrap();
        writer.commit(T0).unwrap();
        writer.tick(T0).unwrap();
    }
    drop(writer);
    let (_, mut writer, recovery) = place.open();
    assert_eq!(recovery.damage, Vec::<String>::new());
    writer.settle(T0 + 3_600_000).unwrap();
    drop(writer);
    let report = check(&place.0).unwrap();
    let raw = report.files.iter().filter(|file| file.step_ms == 0);
    assert_eq!(raw.map(|file| file.samples).sum::<u64>(), STEPS * u64::from(HOSTS) * 3);
}

const HOSTS: u32 = 40;
/// Long enough for several seals, and for young blocks that begin before one and end after it.
const STEPS: u64 = 200;
