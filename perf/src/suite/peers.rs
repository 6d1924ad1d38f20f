//! The same fleet's samples by remote-write into what one would otherwise use: 2,000 samples a
//! request (prometheus's own default), spread evenly over the second, one connection.
//!
//! In the peers' favour: they get large batches of whole hosts, nothing is encrypted, and a
//! prometheus of this age does no compaction within the run.

use crate::http::Http;
use crate::peers::{Kind, Peer};
use crate::process::Watch;
use crate::rows::{Model, Values};
use crate::run;
use hdrhistogram::Histogram;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strobe_wire::schema;

/// What a peer cost.
#[derive(Clone, Copy, Debug)]
pub struct Fed {
    /// Which.
    pub kind: Kind,
    /// Its CPU, µs a sample.
    pub cpu_us_per_sample: f64,
    /// Its memory.
    pub watch: Watch,
    /// Request → answer, p99.
    pub write_ms_p99: f64,
    /// How late the last requests were: above the interval, it did not keep up.
    pub late_ms_max: f64,
    /// On the disk, flushed and merged.
    pub stored_bytes_per_sample: f64,
}

/// The fleet as remote-write sees it.
struct Fleet {
    hosts: Vec<Values>,
    kinds: Vec<schema::Kind>,
    /// Of each host's series, the labels as protobuf.
    labels: Vec<Vec<Vec<u8>>>,
}

/// Feeds one for `lasting`, after a warm-up in which it learns the series.
///
/// # Errors
/// It cannot be started, or refuses a request.
pub fn feed(
    kind: Kind,
    model: &Arc<Model>,
    agents: usize,
    lasting: Duration,
    scratch: &Path,
) -> Result<Fed, String> {
    let mut peer = Peer::start(kind, scratch).map_err(|why| why.to_string())?;
    let mut http = Http::connect(peer.port).map_err(|why| why.to_string())?;
    let mut fleet = Fleet::new(model, agents);
    let mut samples = 0;
    let mut write_us = Histogram::<u64>::new_with_bounds(1, MICROS_MAX, 3).expect("valid bounds");
    let mut late = Duration::ZERO;
    let warm = u32::try_from(WARM_UP.as_secs()).unwrap_or(0);
    let seconds = u32::try_from(lasting.as_secs()).unwrap_or(u32::MAX);
    let began = run::now();
    let mut watch = None;
    for second in 0..warm + seconds {
        if second == warm {
            watch = Watch::begin(peer.pid());
        }
        let hosts_a_request = (REQUEST_SAMPLES / fleet.kinds.len()).max(1);
        let requests = agents.div_ceil(hosts_a_request);
        for (number, first) in (0..agents).step_by(hosts_a_request).enumerate() {
            let share = number as f64 / requests as f64;
            let due = began + Duration::from_secs(1) * second + Duration::from_secs_f64(share);
            run::sleep_until(due);
            let (body, count) = fleet.request(first..agents.min(first + hosts_a_request));
            let asked = run::now();
            http.must(&Peer::write(&body)).map_err(|why| format!("{}: {why}", kind.name()))?;
            samples += count;
            if warm <= second {
                write_us.saturating_record(micros(asked));
                late = late.max(asked.saturating_duration_since(due));
                watch.iter_mut().filter(|_| number == 0 && second % 5 == 0).for_each(Watch::look);
            }
        }
    }
    watch.iter_mut().for_each(Watch::look);
    let watch = watch.ok_or_else(|| format!("{} has ended", kind.name()))?;
    drop(http);
    let measured = f64::from(seconds) * (agents * fleet.kinds.len()) as f64;
    let stored = peer.stored_bytes().map_err(|why| why.to_string())?;
    Ok(Fed {
        kind,
        cpu_us_per_sample: watch.cpu_ns as f64 / 1000.0 / measured,
        watch,
        write_ms_p99: write_us.value_at_quantile(0.99) as f64 / 1000.0,
        late_ms_max: late.as_secs_f64() * 1000.0,
        stored_bytes_per_sample: stored as f64 / samples as f64,
    })
}

impl Fleet {
    fn new(model: &Arc<Model>, agents: usize) -> Self {
        let columns: Vec<_> = model.schemas.iter().flat_map(|schema| &schema.columns).collect();
        let host = |host: usize| {
            let instance = format!("load-{host:08x}");
            let own = [("instance", instance.as_str()), ("job", "node")];
            let series = columns.iter().map(|column| {
                let mut labels = vec![("__name__", column.name.as_str())];
                labels.extend(column.labels.0.iter().map(|(n, v)| (n.as_str(), v.as_str())));
                labels.extend(own);
                labels.sort_unstable();
                labels.iter().flat_map(|label| label_bytes(*label)).collect()
            });
            series.collect()
        };
        let seed = |host: usize| (host as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            hosts: (0..agents).map(|host| Values::new(Arc::clone(model), seed(host))).collect(),
            kinds: columns.iter().map(|column| column.kind).collect(),
            labels: (0..agents).map(host).collect(),
        }
    }

    /// The next second of some hosts, as a request's body; and how many samples it has.
    fn request(&mut self, hosts: std::ops::Range<usize>) -> (Vec<u8>, u64) {
        let wall_us = run::wall_us();
        let wall_ns = i64::try_from(wall_us * 1000).unwrap_or(i64::MAX);
        let (mut plain, mut count) = (Vec::new(), 0);
        for host in hosts {
            self.hosts[host].tick(wall_ns);
            let values = self.hosts[host].sections().flatten();
            for ((raw, kind), labels) in values.zip(&self.kinds).zip(&self.labels[host]) {
                let mut sample = vec![0x09];
                sample.extend(kind.value(*raw).to_le_bytes());
                sample.push(0x10);
                varint(&mut sample, wall_us / 1000);
                plain.push(0x0a);
                varint(&mut plain, (labels.len() + 2 + sample.len()) as u64);
                plain.extend_from_slice(labels);
                plain.extend([0x12, u8::try_from(sample.len()).unwrap_or(0)]);
                plain.extend(sample);
                count += 1;
            }
        }
        let body = snap::raw::Encoder::new().compress_vec(&plain);
        (body.expect("only more than 4 GiB cannot be compressed"), count)
    }
}

/// A label as it stands in a series: field 1, then name and value as fields 1 and 2.
fn label_bytes((name, value): (&str, &str)) -> Vec<u8> {
    let mut inner = Vec::new();
    for (tag, text) in [(0x0a, name), (0x12, value)] {
        inner.push(tag);
        varint(&mut inner, text.len() as u64);
        inner.extend_from_slice(text.as_bytes());
    }
    let mut out = vec![0x0a];
    varint(&mut out, inner.len() as u64);
    out.extend(inner);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [byte, ..] = (value & 0x7f).to_le_bytes();
        value >>= 7;
        if value == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from((run::now() - since).as_micros()).unwrap_or(u64::MAX)
}

/// Samples of one request.
const REQUEST_SAMPLES: usize = 2000;
/// Every series is new in the first seconds: the peers' indexes are made then.
const WARM_UP: Duration = Duration::from_secs(10);
const MICROS_MAX: u64 = 600_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Shape;
    use strobe_broker::remote_write::decode;

    #[test]
    fn a_request_is_remote_write() {
        let model = Arc::new(Model::new(Shape::Host, 175));
        let (body, count) = Fleet::new(&model, 3).request(1..3);
        let series = decode(&body).unwrap();
        assert_eq!((series.len(), count), (350, 350));
        let last = &series[349];
        assert_eq!(last.labels.value("__name__"), Some("node_cpu_seconds_total"));
        assert_eq!(last.labels.value("instance"), Some("load-00000002"));
        assert_eq!(last.samples.len(), 1);
    }
}
