//! What a simulated host reports: the sections, names, units and kinds of Strobe's own agent, with
//! values that move as a small busy server's do.
//!
//! Of a real host's series about three in ten differ from one second to the next (measured with
//! `strobe-agent --once`, a second apart, on a machine that was compiling); the rest are errors
//! that do not happen, sizes that do not change, and modes that no core is in. The model here has
//! the same share: each column has its way to move, each host its own pace.

use bytes::Bytes;
use std::sync::Arc;
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};
use strobe_wire::limits::{FRAME_BYTES_MAX, SECTION_COLUMNS_MAX};
use strobe_wire::message::frame_prefix;
use strobe_wire::schema::{Column, Kind, Labels, Schema};

/// How a host's series lie in sections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// As Strobe's agent sends them: `host`, `disk`, `net`, `cost`, and cores for the rest.
    Host,
    /// All of them cores, in as few rows as they need.
    Row,
}

/// The columns of one kind of host, and how each moves.
#[derive(Debug)]
pub struct Model {
    /// A section each.
    pub schemas: Vec<Schema>,
    moves: Vec<Moves>,
}

/// How a column's number goes on from one second to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moves {
    /// Never.
    Still,
    /// Up by about so much a second.
    Rate(u64),
    /// Up by one or a few, in one second of so many.
    Events(u64),
    /// A core's hundredths in a mode: up by up to so many, in one second of so many.
    Share(u64, u64),
    /// Up and down by so many pages at most.
    Pages(u64),
    /// Up and down by a few, in one second of so many.
    Level(u64),
    /// Around so much, anew each second.
    Noise(u64),
    /// The wall clock, ns.
    Clock,
}

impl Model {
    /// A model of so many series.
    #[must_use]
    pub fn new(shape: Shape, series: usize) -> Self {
        let mut columns: Vec<(&str, Column, Moves)> = Vec::new();
        if shape == Shape::Host {
            for (section, kind, moves, names) in FAMILIES {
                let names = names.split_whitespace();
                columns.extend(names.map(|name| (*section, column(name, *kind), *moves)));
            }
        }
        columns.truncate(series);
        for index in 0..series - columns.len() {
            let (mode, moves) = MODES[index % MODES.len()];
            let cpu = (index / MODES.len()).to_string();
            let name = format!("node_cpu_seconds_total cpu={cpu} mode={mode}");
            columns.push(("cpu", column_of(&name, HUNDREDTHS), moves));
        }
        let mut model = Self { schemas: Vec::new(), moves: Vec::new() };
        for section in columns.chunk_by(|a, b| a.0 == b.0) {
            for (number, part) in section.chunks(SECTION_COLUMNS_MAX).enumerate() {
                let name = part[0].0;
                model.schemas.push(Schema {
                    section: if number == 0 { name.into() } else { format!("{name}.{number}") },
                    columns: part.iter().map(|(_, column, _)| column.clone()).collect(),
                });
            }
        }
        model.moves = columns.iter().map(|(_, _, moves)| *moves).collect();
        model
    }

    /// Each section's part of a host's values.
    pub fn sections<'a>(&'a self, values: &'a [u64]) -> impl Iterator<Item = &'a [u64]> {
        let mut rest = values;
        self.schemas.iter().map(move |schema| {
            let (front, behind) = rest.split_at(schema.columns.len());
            rest = behind;
            front
        })
    }

    /// For hosts whose rows are made elsewhere.
    #[must_use]
    pub fn given(schemas: Vec<Schema>) -> Self {
        Self { schemas, moves: Vec::new() }
    }
}

/// One host's numbers.
#[derive(Debug)]
pub struct Values {
    model: Arc<Model>,
    /// Of all sections.
    pub(crate) values: Vec<u64>,
    random: u64,
    /// This host's pace, a hundred is the usual.
    pace: u64,
}

impl Values {
    /// `seed` makes each host its own.
    #[must_use]
    pub fn new(model: Arc<Model>, seed: u64) -> Self {
        let mut new = Self { values: vec![0; model.moves.len()], model, random: seed | 1, pace: 0 };
        new.pace = 20 + new.random() % 180;
        for index in 0..new.values.len() {
            let random = new.random();
            new.values[index] = match new.model.moves[index] {
                Moves::Still => [0, 0, 1, 4096 * (random % 1_000_000)][index % 4],
                Moves::Rate(rate) => random % (rate * 1_000_000).max(1),
                Moves::Events(_) | Moves::Share(..) => random % 1_000_000,
                Moves::Pages(_) => 4096 * (random % 4_000_000),
                Moves::Level(_) => random % 500,
                Moves::Noise(around) => around,
                Moves::Clock => 0,
            };
        }
        new
    }

    /// One interval later, at `wall_ns`.
    pub fn tick(&mut self, wall_ns: i64) {
        for index in 0..self.values.len() {
            let random = self.random();
            // Two draws of one number: whether it moves, and how far.
            let (whether, far) = (random >> 40, random & 0xffff_ffff);
            let value = &mut self.values[index];
            *value = match self.model.moves[index] {
                Moves::Still => continue,
                Moves::Rate(rate) => {
                    value.wrapping_add(rate * self.pace / 100 * (far % 64 + 68) / 100)
                }
                Moves::Events(one_of) if whether % one_of == 0 => value.wrapping_add(1 + far % 3),
                Moves::Share(most, one_of) if whether % one_of == 0 => {
                    value.wrapping_add(1 + far % most * self.pace / 200)
                }
                Moves::Pages(most) => {
                    let step = 4096 * (far % (2 * most + 1));
                    value.wrapping_add(step).saturating_sub(4096 * most)
                }
                Moves::Level(one_of) if whether % one_of == 0 => {
                    value.wrapping_add(far % 7).saturating_sub(3)
                }
                Moves::Events(_) | Moves::Share(..) | Moves::Level(_) => continue,
                Moves::Noise(around) => around / 2 + far % around,
                Moves::Clock => wall_ns.cast_unsigned(),
            };
        }
    }

    /// Each section's values, in order.
    pub fn sections(&self) -> impl Iterator<Item = &[u64]> {
        self.model.sections(&self.values)
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

/// `name label=value …`, joined by commas in [`FAMILIES`].
fn column(text: &str, kind: Kind) -> Column {
    column_of(&text.replace(',', " "), kind)
}

fn column_of(text: &str, kind: Kind) -> Column {
    let mut words = text.split(' ');
    let name = words.next().unwrap_or_default().to_owned();
    let labels = words.filter_map(|word| word.split_once('='));
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Column { name, labels: Labels::new(labels), kind }
}

const COUNTER: Kind = Kind::Counter { scale: 0 };
const GAUGE: Kind = Kind::Gauge { scale: 0 };
const HUNDREDTHS: Kind = Kind::Counter { scale: 2 };
const MILLISECONDS: Kind = Kind::Counter { scale: 3 };
const MICROSECONDS: Kind = Kind::Counter { scale: 6 };
const NANOSECONDS: Kind = Kind::Gauge { scale: 9 };

const MODES: [(&str, Moves); 8] = [
    ("user", Moves::Share(30, 2)),
    ("nice", Moves::Still),
    ("system", Moves::Share(12, 2)),
    ("idle", Moves::Share(100, 1)),
    ("iowait", Moves::Share(4, 12)),
    ("irq", Moves::Still),
    ("softirq", Moves::Share(2, 6)),
    ("steal", Moves::Share(2, 20)),
];

/// Section, kind, how they move, and the names with their labels.
const FAMILIES: &[(&str, Kind, Moves, &str)] = &[
    (
        "host",
        GAUGE,
        Moves::Still,
        "node_boot_time_seconds node_memory_MemTotal_bytes
        node_memory_SwapTotal_bytes node_memory_SwapFree_bytes node_memory_SwapCached_bytes
        node_memory_HugePages_Total node_memory_HugePages_Free node_memory_HugePages_Rsvd
        node_memory_HugePages_Surp node_memory_Hugepagesize_bytes node_memory_Hugetlb_bytes
        node_memory_VmallocTotal_bytes node_memory_VmallocChunk_bytes node_memory_Bounce_bytes
        node_memory_NFS_Unstable_bytes node_memory_WritebackTmp_bytes node_memory_Writeback_bytes
        node_memory_HardwareCorrupted_bytes node_memory_CommitLimit_bytes node_filefd_maximum
        node_memory_Percpu_bytes node_memory_DirectMap4k_bytes node_memory_DirectMap2M_bytes
        node_sockstat_FRAG_inuse node_sockstat_FRAG_memory node_sockstat_RAW_inuse
        node_sockstat_UDPLITE_inuse node_netstat_Ip_Forwarding node_uname_info,release=6.1.0",
    ),
    (
        "host",
        COUNTER,
        Moves::Still,
        "node_vmstat_oom_kill node_vmstat_pswpin node_vmstat_pswpout
        node_netstat_Icmp_InErrors node_netstat_Icmp6_InErrors node_netstat_Icmp6_InMsgs
        node_netstat_Ip6_InOctets node_netstat_Ip6_OutOctets node_netstat_TcpExt_ListenDrops
        node_netstat_TcpExt_ListenOverflows node_netstat_TcpExt_SyncookiesFailed
        node_netstat_TcpExt_SyncookiesRecv node_netstat_TcpExt_SyncookiesSent
        node_netstat_TcpExt_TCPRcvQDrop node_netstat_Tcp_InErrs node_netstat_UdpLite_InErrors
        node_netstat_Udp_InErrors node_netstat_Udp_NoPorts node_netstat_Udp_RcvbufErrors
        node_netstat_Udp_SndbufErrors",
    ),
    (
        "host",
        GAUGE,
        Moves::Pages(300),
        "node_memory_MemFree_bytes node_memory_MemAvailable_bytes
        node_memory_Active_bytes node_memory_Active_anon_bytes node_memory_AnonPages_bytes
        node_memory_Cached_bytes node_memory_Committed_AS_bytes node_memory_Inactive_bytes",
    ),
    (
        "host",
        GAUGE,
        Moves::Pages(8),
        "node_memory_Dirty_bytes node_memory_Slab_bytes
        node_memory_PageTables_bytes node_memory_KernelStack_bytes node_memory_Mapped_bytes",
    ),
    (
        "host",
        GAUGE,
        Moves::Level(3),
        "node_procs_running node_filefd_allocated
        node_sockstat_sockets_used node_sockstat_TCP_alloc node_sockstat_TCP_inuse
        node_sockstat_TCP_tw node_netstat_Tcp_CurrEstab node_procs_blocked",
    ),
    ("host", Kind::Gauge { scale: 2 }, Moves::Level(5), "node_load1 node_load5 node_load15"),
    ("host", COUNTER, Moves::Rate(4_000), "node_context_switches_total node_intr_total"),
    (
        "host",
        COUNTER,
        Moves::Rate(900),
        "node_vmstat_pgfault node_netstat_Tcp_InSegs
        node_netstat_Tcp_OutSegs",
    ),
    (
        "host",
        COUNTER,
        Moves::Rate(400_000),
        "node_netstat_IpExt_InOctets
        node_netstat_IpExt_OutOctets",
    ),
    (
        "host",
        COUNTER,
        Moves::Events(4),
        "node_forks_total node_netstat_Tcp_ActiveOpens
        node_netstat_Tcp_PassiveOpens node_netstat_Udp_InDatagrams node_netstat_Udp_OutDatagrams
        node_vmstat_pgpgout",
    ),
    (
        "host",
        COUNTER,
        Moves::Events(60),
        "node_netstat_Tcp_RetransSegs node_vmstat_pgmajfault
        node_netstat_TcpExt_TCPTimeouts node_netstat_Tcp_OutRsts node_vmstat_pgpgin",
    ),
    ("host", MICROSECONDS, Moves::Rate(9_000), "node_pressure_cpu_waiting_seconds_total"),
    (
        "host",
        MICROSECONDS,
        Moves::Events(6),
        "node_pressure_io_waiting_seconds_total
        node_pressure_io_stalled_seconds_total",
    ),
    (
        "host",
        MICROSECONDS,
        Moves::Still,
        "node_pressure_memory_waiting_seconds_total
        node_pressure_memory_stalled_seconds_total",
    ),
    ("host", NANOSECONDS, Moves::Clock, "node_time_seconds"),
    (
        "disk",
        COUNTER,
        Moves::Events(3),
        "node_disk_writes_completed_total,device=sda
        node_disk_writes_merged_total,device=sda node_disk_flush_requests_total,device=sda",
    ),
    (
        "disk",
        COUNTER,
        Moves::Events(40),
        "node_disk_reads_completed_total,device=sda
        node_disk_read_bytes_total,device=sda",
    ),
    ("disk", COUNTER, Moves::Rate(60_000), "node_disk_written_bytes_total,device=sda"),
    (
        "disk",
        MILLISECONDS,
        Moves::Events(3),
        "node_disk_io_time_seconds_total,device=sda
        node_disk_io_time_weighted_seconds_total,device=sda
        node_disk_write_time_seconds_total,device=sda
        node_disk_flush_requests_time_seconds_total,device=sda",
    ),
    (
        "disk",
        MILLISECONDS,
        Moves::Still,
        "node_disk_read_time_seconds_total,device=sda
        node_disk_discard_time_seconds_total,device=sda",
    ),
    (
        "disk",
        COUNTER,
        Moves::Still,
        "node_disk_discards_completed_total,device=sda
        node_disk_discards_merged_total,device=sda node_disk_discarded_sectors_total,device=sda
        node_disk_reads_merged_total,device=sda",
    ),
    (
        "net",
        COUNTER,
        Moves::Rate(400_000),
        "node_network_receive_bytes_total,device=eth0
        node_network_transmit_bytes_total,device=eth0",
    ),
    (
        "net",
        COUNTER,
        Moves::Rate(700),
        "node_network_receive_packets_total,device=eth0
        node_network_transmit_packets_total,device=eth0",
    ),
    (
        "net",
        COUNTER,
        Moves::Still,
        "node_network_receive_errs_total,device=eth0
        node_network_receive_drop_total,device=eth0 node_network_receive_fifo_total,device=eth0
        node_network_receive_frame_total,device=eth0
        node_network_receive_compressed_total,device=eth0
        node_network_receive_multicast_total,device=eth0
        node_network_transmit_errs_total,device=eth0 node_network_transmit_drop_total,device=eth0
        node_network_transmit_fifo_total,device=eth0 node_network_transmit_colls_total,device=eth0
        node_network_transmit_carrier_total,device=eth0
        node_network_transmit_compressed_total,device=eth0",
    ),
    (
        "cost",
        NANOSECONDS,
        Moves::Noise(35_000),
        "node_scrape_collector_duration_seconds,collector=cpu
        node_scrape_collector_duration_seconds,collector=diskstats
        node_scrape_collector_duration_seconds,collector=filefd
        node_scrape_collector_duration_seconds,collector=loadavg
        node_scrape_collector_duration_seconds,collector=meminfo
        node_scrape_collector_duration_seconds,collector=netdev
        node_scrape_collector_duration_seconds,collector=netstat
        node_scrape_collector_duration_seconds,collector=pressure
        node_scrape_collector_duration_seconds,collector=sockstat
        node_scrape_collector_duration_seconds,collector=vmstat",
    ),
    (
        "cost",
        GAUGE,
        Moves::Still,
        "node_scrape_collector_success,collector=cpu
        node_scrape_collector_success,collector=diskstats
        node_scrape_collector_success,collector=filefd
        node_scrape_collector_success,collector=loadavg
        node_scrape_collector_success,collector=meminfo
        node_scrape_collector_success,collector=netdev
        node_scrape_collector_success,collector=netstat
        node_scrape_collector_success,collector=pressure
        node_scrape_collector_success,collector=sockstat
        node_scrape_collector_success,collector=vmstat",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_pass_the_brokers_check_and_no_series_is_there_twice() {
        for shape in [Shape::Host, Shape::Row] {
            for series in [1, 112, 175, 400, 401, 1000] {
                let schemas = Model::new(shape, series).schemas;
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
        let sections = Model::new(Shape::Host, 175).schemas;
        let names: Vec<&str> = sections.iter().map(|schema| schema.section.as_str()).collect();
        assert_eq!(names, ["host", "disk", "net", "cost", "cpu"], "five frames a tick");
        assert_eq!(Model::new(Shape::Row, 112).schemas.len(), 1);
    }

    #[test]
    fn about_a_third_of_the_series_moves_in_a_second() {
        let model = Arc::new(Model::new(Shape::Host, 175));
        let mut moved = 0;
        for seed in 1..=20 {
            let mut values =
                Values::new(Arc::clone(&model), u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
            let before = values.values.clone();
            values.tick(1);
            moved += before.iter().zip(&values.values).filter(|(a, b)| a != b).count();
        }
        let share = moved as f64 / (20.0 * 175.0);
        assert!((0.25..0.4).contains(&share), "{share}");
    }

    #[test]
    fn messages_carry_frames_that_open() {
        let values = Values::new(Arc::new(Model::new(Shape::Row, 400)), 7);
        let section = values.sections().next().unwrap();
        let bytes = message(HostId(1), BootId(2), 3, 4, (SchemaId(5), section));
        assert!(strobe_wire::frame::open(&bytes[5..]).is_ok());
    }
}
