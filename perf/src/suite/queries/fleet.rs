//! The fleet that is asked about: hosts of 150 series with node_exporter's names, as remote-write
//! and as the rows of Strobe's own agents.
//!
//! Each series draws its own numbers, so that both have the same whatever the order they are
//! asked for in.

use crate::run::Past;
use strobe_broker::remote_write::encode;
use strobe_broker::store::RemoteSeries;
use strobe_wire::schema::{Column, Kind, Labels, Schema};

/// Hosts whose series go on from request to request.
#[derive(Debug)]
pub struct Fleet {
    hosts: Vec<Vec<One>>,
}

#[derive(Debug)]
struct One {
    labels: Labels,
    raw: i64,
    moves: Moves,
    random: Random,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moves {
    /// Grows by up to so many hundredths a second.
    Seconds,
    /// Grows by whole numbers.
    Count,
    /// Pages that come and go.
    Bytes,
    /// Hundredths.
    Load,
}

/// Which samples: `count` from `start_ms` on, every `step_ms`.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The first one's time.
    pub start_ms: i64,
    /// From one to the next.
    pub step_ms: i64,
    /// How many.
    pub count: usize,
}

impl Fleet {
    /// So many hosts, always the same.
    #[must_use]
    pub fn new(hosts: usize) -> Self {
        let mut random = Random(0x5eed);
        let hosts = (0..hosts).map(|host| series(&instance(host), &mut random)).collect();
        Self { hosts }
    }

    /// The series of all hosts.
    #[must_use]
    pub fn series(&self) -> usize {
        self.hosts.iter().map(Vec::len).sum()
    }

    /// One request: the next samples of some hosts.
    pub fn request(&mut self, first: usize, hosts: usize, span: Span) -> Vec<u8> {
        let mut all = Vec::with_capacity(hosts * 150);
        for host in self.hosts.iter_mut().skip(first).take(hosts) {
            for one in host {
                let mut samples = Vec::with_capacity(span.count);
                let mut at_ms = span.start_ms;
                for _ in 0..span.count {
                    one.go_on(span.step_ms);
                    samples.push((at_ms, one.value()));
                    at_ms += span.step_ms;
                }
                all.push(RemoteSeries { labels: one.labels.clone(), samples });
            }
        }
        encode(&all)
    }

    /// What an agent on each host would call its series: sections as Strobe's own has them.
    #[must_use]
    pub fn schemas(&self) -> Vec<Schema> {
        let section = |one: &One| match one.labels.value("__name__").unwrap_or_default() {
            name if name.starts_with("node_cpu_") => "cpu",
            name if name.starts_with("node_network_") => "net",
            name if name.starts_with("node_disk_") => "disk",
            _ => "host",
        };
        let column = |one: &One| {
            let own = |name: &str| !["__name__", "instance", "job"].contains(&name);
            let labels = one.labels.0.iter().filter(|(name, _)| own(name)).cloned().collect();
            let name = one.labels.value("__name__").unwrap_or_default().to_owned();
            Column { name, labels: Labels(labels), kind: one.kind() }
        };
        let first = self.hosts.first().map_or(&[][..], Vec::as_slice);
        let parts = first.chunk_by(|a, b| section(a) == section(b));
        parts
            .map(|part| Schema {
                section: part.first().map_or("", section).to_owned(),
                columns: part.iter().map(column).collect(),
            })
            .collect()
    }

    /// The next rows of some hosts.
    pub fn rows(&mut self, first: usize, hosts: usize, span: Span) -> Vec<Past> {
        let some = self.hosts.iter_mut().enumerate().skip(first).take(hosts);
        some.map(|(number, host)| {
            let row = |at: usize| {
                host.iter_mut().for_each(|one| one.go_on(span.step_ms));
                let at_ms = span.start_ms + i64::try_from(at).unwrap_or(0) * span.step_ms;
                (at_ms, host.iter().map(|one| one.raw.cast_unsigned()).collect())
            };
            Past { instance: instance(number), rows: (0..span.count).map(row).collect() }
        })
        .collect()
    }
}

/// A host's name.
#[must_use]
pub fn instance(host: usize) -> String {
    format!("host-{host:04}:9100")
}

impl One {
    fn go_on(&mut self, step_ms: i64) {
        let mut whole = |most: u32| i64::from(self.random.below(most));
        match self.moves {
            Moves::Seconds => self.raw += whole(u32::try_from(step_ms / 20).unwrap_or(1).max(1)),
            Moves::Count => self.raw += whole(20_000),
            Moves::Bytes => self.raw = (self.raw + (whole(2_001) - 1_000) * 4096).max(0),
            Moves::Load => self.raw = whole(400),
        }
    }

    fn kind(&self) -> Kind {
        match self.moves {
            Moves::Seconds => Kind::Counter { scale: 2 },
            Moves::Count => Kind::Counter { scale: 0 },
            Moves::Bytes => Kind::Gauge { scale: 0 },
            Moves::Load => Kind::Gauge { scale: 2 },
        }
    }

    fn value(&self) -> f64 {
        self.kind().value(self.raw.cast_unsigned())
    }
}

fn series(instance: &str, random: &mut Random) -> Vec<One> {
    let mut all = Vec::with_capacity(150);
    let mut push = |name: &str, extra: &[(&str, &str)], moves| {
        let mut pairs = vec![("__name__", name), ("instance", instance), ("job", "node")];
        pairs.extend_from_slice(extra);
        pairs.sort_unstable();
        let pairs = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let raw = i64::from(random.below(1_000_000)) * 4096;
        let random = Random(u64::from(random.below(u32::MAX)));
        all.push(One { labels: Labels(pairs), raw, moves, random });
    };
    for cpu in ["0", "1", "2", "3"] {
        for mode in ["idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user"] {
            push("node_cpu_seconds_total", &[("cpu", cpu), ("mode", mode)], Moves::Seconds);
        }
    }
    for device in ["eth0", "eth1", "lo", "docker0"] {
        for way in ["receive", "transmit"] {
            for what in ["bytes", "packets", "errs", "drop"] {
                let name = format!("node_network_{way}_{what}_total");
                push(&name, &[("device", device)], Moves::Count);
            }
        }
    }
    for device in ["sda", "sdb", "nvme0n1"] {
        for what in ["reads_completed", "writes_completed", "read_bytes", "written_bytes"] {
            push(&format!("node_disk_{what}_total"), &[("device", device)], Moves::Count);
        }
        push("node_disk_io_time_seconds_total", &[("device", device)], Moves::Seconds);
    }
    for load in ["node_load1", "node_load5", "node_load15"] {
        push(load, &[], Moves::Load);
    }
    for index in 0..48 {
        push(&format!("node_memory_Part{index}_bytes"), &[], Moves::Bytes);
    }
    for index in 0..20 {
        push(&format!("node_vmstat_part{index}"), &[], Moves::Count);
    }
    all
}

#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, most: u32) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 33).unwrap_or(0) % most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strobe_broker::remote_write::decode;

    #[test]
    fn hosts_have_150_series_that_go_on() {
        let mut fleet = Fleet::new(3);
        assert_eq!(fleet.series(), 450);
        let span = Span { start_ms: 1_000, step_ms: 15_000, count: 4 };
        let first = decode(&fleet.request(1, 2, span)).unwrap();
        assert_eq!(first.len(), 300);
        assert!(first.iter().all(|one| one.labels.value("instance") != Some("host-0000:9100")));
        let next = Span { start_ms: 61_000, ..span };
        let second = decode(&fleet.request(1, 2, next)).unwrap();
        assert_eq!(second[0].samples[0].0, 61_000);
        assert!(first[0].samples[3].1 <= second[0].samples[0].1, "a counter does not fall");
    }

    #[test]
    fn rows_are_what_remote_write_has() {
        let span = Span { start_ms: 1_000, step_ms: 15_000, count: 3 };
        let written = decode(&Fleet::new(2).request(1, 1, span)).unwrap();
        let mut fleet = Fleet::new(2);
        let schemas = fleet.schemas();
        assert_eq!(schemas.iter().map(|s| s.section.as_str()).collect::<Vec<_>>().len(), 4);
        let columns: Vec<&Column> = schemas.iter().flat_map(|schema| &schema.columns).collect();
        let past = fleet.rows(1, 1, span);
        assert_eq!(past[0].instance, "host-0001:9100");
        for (place, (one, column)) in written.iter().zip(&columns).enumerate() {
            assert_eq!(one.labels.value("__name__"), Some(column.name.as_str()));
            let rows = past[0].rows.iter();
            let same: Vec<_> =
                rows.map(|(at, raws)| (*at, column.kind.value(raws[place]))).collect();
            assert_eq!(one.samples, same, "{column:?}");
        }
    }
}
