//! The fleet that is asked about: hosts of 150 series with node_exporter's names, as remote-write.

use strobe_broker::remote_write::encode;
use strobe_broker::store::RemoteSeries;
use strobe_wire::schema::Labels;

/// Hosts whose series go on from request to request.
#[derive(Debug)]
pub struct Fleet {
    hosts: Vec<Vec<One>>,
    random: Random,
}

#[derive(Debug)]
struct One {
    labels: Labels,
    value: f64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
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
        Self { hosts, random }
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
                    one.go_on(&mut self.random, span.step_ms);
                    samples.push((at_ms, one.value));
                    at_ms += span.step_ms;
                }
                all.push(RemoteSeries { labels: one.labels.clone(), samples });
            }
        }
        encode(&all)
    }
}

/// A host's name.
#[must_use]
pub fn instance(host: usize) -> String {
    format!("host-{host:04}:9100")
}

impl One {
    fn go_on(&mut self, random: &mut Random, step_ms: i64) {
        let whole = |random: &mut Random, most: u32| f64::from(random.below(most));
        match self.kind {
            Kind::Seconds => {
                let most = u32::try_from(step_ms / 20).unwrap_or(1).max(1);
                self.value = ((self.value * 100.0).round() + whole(random, most)) / 100.0;
            }
            Kind::Count => self.value += whole(random, 20_000),
            Kind::Bytes => {
                let pages = whole(random, 2_001) - 1_000.0;
                self.value = (self.value + pages * 4096.0).max(0.0);
            }
            Kind::Load => self.value = whole(random, 400) / 100.0,
        }
    }
}

fn series(instance: &str, random: &mut Random) -> Vec<One> {
    let mut all = Vec::with_capacity(150);
    let mut push = |name: &str, extra: &[(&str, &str)], kind| {
        let mut pairs = vec![("__name__", name), ("instance", instance), ("job", "node")];
        pairs.extend_from_slice(extra);
        pairs.sort_unstable();
        let pairs = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let value = f64::from(random.below(1_000_000)) * 4096.0;
        all.push(One { labels: Labels(pairs), value, kind });
    };
    for cpu in ["0", "1", "2", "3"] {
        for mode in ["idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user"] {
            push("node_cpu_seconds_total", &[("cpu", cpu), ("mode", mode)], Kind::Seconds);
        }
    }
    for device in ["eth0", "eth1", "lo", "docker0"] {
        for way in ["receive", "transmit"] {
            for what in ["bytes", "packets", "errs", "drop"] {
                let name = format!("node_network_{way}_{what}_total");
                push(&name, &[("device", device)], Kind::Count);
            }
        }
    }
    for device in ["sda", "sdb", "nvme0n1"] {
        for what in ["reads_completed", "writes_completed", "read_bytes", "written_bytes"] {
            push(&format!("node_disk_{what}_total"), &[("device", device)], Kind::Count);
        }
        push("node_disk_io_time_seconds_total", &[("device", device)], Kind::Seconds);
    }
    for load in ["node_load1", "node_load5", "node_load15"] {
        push(load, &[], Kind::Load);
    }
    for index in 0..48 {
        push(&format!("node_memory_Part{index}_bytes"), &[], Kind::Bytes);
    }
    for index in 0..20 {
        push(&format!("node_vmstat_part{index}"), &[], Kind::Count);
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
}
