//! What a simulated host reports: counters that grow at their own pace and gauges that wander, under
//! node_exporter's names, so that blocks compress and queries find something.

use bytes::Bytes;
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};
use strobe_wire::limits::{FRAME_BYTES_MAX, SECTION_COLUMNS_MAX};
use strobe_wire::message::frame_prefix;
use strobe_wire::schema::{Column, Kind, Labels, Schema};

/// The columns of `series` series, in as many sections as they need.
#[must_use]
pub fn schemas(series: usize) -> Vec<Schema> {
    let indexes: Vec<usize> = (0..series).collect();
    let sections = indexes.chunks(SECTION_COLUMNS_MAX).enumerate();
    sections
        .map(|(number, indexes)| Schema {
            section: if number == 0 { "load".into() } else { format!("load.{number}") },
            columns: indexes.iter().map(|index| column(*index)).collect(),
        })
        .collect()
}

/// Two in three are CPU seconds as a many-core host has them; the rest is network and memory.
fn column(index: usize) -> Column {
    let owned = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let number = (index / 12).to_string();
    match index % 12 {
        mode @ 0..8 => Column {
            name: "node_cpu_seconds_total".into(),
            labels: Labels::new(vec![owned("cpu", &number), owned("mode", MODES[mode])]),
            kind: Kind::Counter { scale: 2 },
        },
        way @ 8..10 => Column {
            name: ["node_network_receive_bytes_total", "node_network_transmit_bytes_total"]
                [way - 8]
                .into(),
            labels: Labels::new(vec![owned("device", &format!("eth{number}"))]),
            kind: Kind::Counter { scale: 0 },
        },
        10 => Column {
            name: "node_memory_MemAvailable_bytes".into(),
            labels: Labels::new(vec![owned("bank", &number)]),
            kind: Kind::Gauge { scale: 0 },
        },
        _ => Column {
            name: "node_load1".into(),
            labels: Labels::new(vec![owned("group", &number)]),
            kind: Kind::Gauge { scale: 2 },
        },
    }
}

/// One host's numbers.
#[derive(Debug)]
pub struct Values {
    values: Vec<u64>,
    random: u64,
}

impl Values {
    /// `seed` makes each host its own.
    #[must_use]
    pub fn new(series: usize, seed: u64) -> Self {
        let mut new = Self { values: vec![0; series], random: seed | 1 };
        for index in 0..series {
            new.values[index] = new.random() % 1_000_000;
        }
        new
    }

    /// One interval later.
    pub fn tick(&mut self) {
        for index in 0..self.values.len() {
            let random = self.random();
            let value = &mut self.values[index];
            *value = match index % 12 {
                // Most modes of most cores stand still for a second.
                0..8 => value.wrapping_add(if random.is_multiple_of(4) { random % 100 } else { 0 }),
                8 | 9 => value.wrapping_add(random % 20_000),
                10 => value.wrapping_add(random % 8192 * 4096).wrapping_rem(64 << 30),
                _ => value.wrapping_add(random % 9).saturating_sub(4) % 6400,
            };
        }
    }

    /// Each section's values, in order.
    pub fn sections(&self) -> impl Iterator<Item = &[u64]> {
        self.values.chunks(SECTION_COLUMNS_MAX)
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// A row of `values`, sealed and with its prefix: as it goes on the stream.
#[must_use]
pub fn message(
    host: HostId,
    boot: BootId,
    seq: u64,
    wall_ns: i64,
    row: (SchemaId, &[u64]),
) -> Bytes {
    let (schema, values) = row;
    let header = Header {
        kind: FrameKind::Row,
        host,
        boot,
        seq: Seq(seq),
        wall_ns,
        boottime_ns: wall_ns.cast_unsigned(),
        schema,
    };
    let valid = [0xff; SECTION_COLUMNS_MAX.div_ceil(8)];
    let valid = &valid[..values.len().div_ceil(8)];
    let mut slot = [0; FRAME_BYTES_MAX];
    let length = seal_row(&mut slot, &header, &Row { values, valid, scores: &[] })
        .expect("a section has at most SECTION_COLUMNS_MAX values, which fit");
    let mut out = Vec::with_capacity(8 + length);
    out.extend_from_slice(&frame_prefix(length));
    out.extend_from_slice(&slot[..length]);
    out.into()
}

const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_pass_the_brokers_check_and_no_series_is_there_twice() {
        for series in [1, 150, 400, 401, 1000] {
            let schemas = schemas(series);
            assert!(schemas.iter().all(|schema| schema.check().is_ok()));
            let mut names: Vec<_> = schemas
                .iter()
                .flat_map(|schema| &schema.columns)
                .map(|column| (&column.name, &column.labels))
                .collect();
            assert_eq!(names.len(), series);
            names.sort();
            names.dedup();
            assert_eq!(names.len(), series);
        }
    }

    #[test]
    fn messages_carry_frames_that_open() {
        let values = Values::new(400, 7);
        let section = values.sections().next().unwrap();
        let bytes = message(HostId(1), BootId(2), 3, 4, (SchemaId(5), section));
        assert!(strobe_wire::frame::open(&bytes[5..]).is_ok());
    }
}
