//! Every parser on files of a real kernel, on handwritten hostile ones, and on any bytes.
#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use super::host::Resource;
use super::sheet::{Sheet, Vanish};
use super::*;
use proptest::prelude::*;
use strobe_wire::schema::Schema;

const PAGE: Format = Format::Sockstat { page_bytes: 4096 };
const FORMATS: [(Format, &[u8]); 15] = [
    (Format::Cores, include_bytes!("../../../tests/fixtures/proc/6.18/stat")),
    (Format::Stat, include_bytes!("../../../tests/fixtures/proc/6.18/stat")),
    (Format::Load, include_bytes!("../../../tests/fixtures/proc/6.18/loadavg")),
    (Format::Meminfo, include_bytes!("../../../tests/fixtures/proc/6.18/meminfo")),
    (Format::Vmstat, include_bytes!("../../../tests/fixtures/proc/6.18/vmstat")),
    (
        Format::Pressure(Resource::Cpu),
        include_bytes!("../../../tests/fixtures/proc/6.18/pressure/cpu"),
    ),
    (
        Format::Pressure(Resource::Io),
        include_bytes!("../../../tests/fixtures/proc/6.18/pressure/io"),
    ),
    (
        Format::Pressure(Resource::Irq),
        include_bytes!("../../../tests/fixtures/proc/6.18/pressure/memory"),
    ),
    (Format::Handles, include_bytes!("../../../tests/fixtures/proc/6.18/sys/fs/file-nr")),
    (PAGE, include_bytes!("../../../tests/fixtures/proc/6.18/net/sockstat")),
    (Format::Pairs, include_bytes!("../../../tests/fixtures/proc/6.18/net/netstat")),
    (Format::Pairs, include_bytes!("../../../tests/fixtures/proc/6.18/net/snmp")),
    (Format::Six, include_bytes!("../../../tests/fixtures/proc/6.18/net/snmp6")),
    (Format::Disks, include_bytes!("../../../tests/fixtures/proc/6.18/diskstats")),
    (Format::Devices, include_bytes!("../../../tests/fixtures/proc/6.18/net/dev")),
];

/// `name{labels} value` of each column; `-` is a column without a value.
fn read(format: Format, bytes: &[u8]) -> Vec<String> {
    let mut sheet = Sheet::new(Vanish::Go);
    sheet.learn();
    format.parse(bytes, &mut sheet);
    sheet.learned();
    sheet.begin();
    format.parse(bytes, &mut sheet);
    let columns: Vec<_> = sheet
        .entries()
        .iter()
        .flat_map(|entry| {
            let columns = format.columns(entry);
            assert_eq!(columns.len(), entry.count, "{format:?} {entry:?}");
            columns
        })
        .collect();
    assert_eq!(columns.len(), sheet.width());
    for chunk in columns.chunks(400) {
        let schema = Schema { section: "x".to_owned(), columns: chunk.to_vec() };
        assert_eq!(schema.check(), Ok(()));
    }
    let text = |(index, column): (usize, &Column)| {
        let labels: Vec<_> =
            column.labels.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let value = sheet.value(index).map(|raw| column.kind.value(raw).to_string());
        let value = value.unwrap_or_else(|| "-".to_owned());
        format!("{}{{{}}} {value}", column.name, labels.join(","))
    };
    columns.iter().enumerate().map(text).collect()
}

fn check(format: Format, bytes: &[u8], wanted: &[&str]) {
    let found = read(format, bytes);
    for line in wanted {
        assert!(found.iter().any(|found| found == line), "{line} is not in {found:#?}");
    }
}

/// The whole of it.
fn check_all(format: Format, bytes: &[u8], wanted: &[&str]) {
    assert_eq!(read(format, bytes), wanted, "{}", bytes.escape_ascii());
}

#[test]
fn a_real_kernel() {
    let fixture = |at: usize| FORMATS[at];
    let check = |at: usize, wanted: &[&str]| check(fixture(at).0, fixture(at).1, wanted);
    check(
        0,
        &[
            "node_cpu_seconds_total{cpu=0,mode=idle} 7132.4",
            "node_cpu_seconds_total{cpu=1,mode=iowait} 5.81",
            "node_cpu_guest_seconds_total{cpu=1,mode=nice} 0",
        ],
    );
    check(
        1,
        &[
            "node_context_switches_total{} 837794",
            "node_boot_time_seconds{} 1795234992",
            "node_forks_total{} 20619",
            "node_procs_running{} 1",
        ],
    );
    check(2, &["node_load1{} 0.08", "node_load5{} 0.18", "node_load15{} 0.23"]);
    check(
        3,
        &[
            "node_memory_MemTotal_bytes{} 25276510208",
            "node_memory_HugePages_Total{} 0",
            "node_memory_Hugepagesize_bytes{} 2097152",
        ],
    );
    assert!(read(fixture(3).0, fixture(3).1).iter().any(|l| l.contains("_Active_anon_bytes{}")));
    check(4, &["node_vmstat_pgfault{} 19512139", "node_vmstat_oom_kill{} 0"]);
    assert_eq!(read(fixture(4).0, fixture(4).1).len(), 7);
    check(5, &["node_pressure_cpu_waiting_seconds_total{} 30.750581"]);
    check(8, &["node_filefd_allocated{} 593", "node_filefd_maximum{} 2466177"]);
    check(9, &["node_sockstat_TCP_mem_bytes{} 442368", "node_sockstat_FRAG_memory{} 0"]);
    check(11, &["node_netstat_Tcp_ActiveOpens{} 122", "node_netstat_Tcp_OutRsts{} 126"]);
    check(12, &["node_netstat_Ip6_InOctets{} 128", "node_netstat_Icmp6_OutMsgs{} 9"]);
    check(
        13,
        &[
            "node_disk_info{device=vda,major=254,minor=0} 1",
            "node_disk_written_bytes_total{device=vda} 10424508416",
            "node_disk_io_time_seconds_total{device=vda} 11.624",
            "node_disk_flush_requests_time_seconds_total{device=vda} 0.126",
        ],
    );
    check(
        14,
        &[
            "node_network_receive_bytes_total{device=eth0} 387575166",
            "node_network_transmit_packets_total{device=eth0} 7935",
        ],
    );
}

#[test]
fn hostile_lines_are_left_out_or_have_no_value() {
    let idle =
        |core: &str, value: &str| format!("node_cpu_seconds_total{{cpu={core},mode=idle}} {value}");
    let torn = read(Format::Cores, b"cpu  1 2 3\ncpu0 1 2 3 18446744073709551616 5\ncpu1 1 2 3 4");
    assert_eq!((torn.len(), &torn[3], &torn[13]), (20, &idle("0", "-"), &idle("1", "0.04")));
    assert!(torn[14..].iter().all(|line| line.ends_with(" -")));
    check_all(Format::Cores, b"cpux 1 2\ncpu 1\ncpu0x 1 2 3 4\ncpu7\n", &[]);
    check(Format::Stat, b"intr\nctxt x\nbtime -5\nprocesses 7", &["node_forks_total{} 7"]);
    check_all(
        Format::Load,
        b"0.1 -1.00 \xff\xff",
        &["node_load1{} -", "node_load5{} -", "node_load15{} -"],
    );
    check_all(
        Format::Meminfo,
        b"A\xff(b): 9999999999999999999 kB\nNoColon 1 kB\n: 1 kB\nC: 2 kB",
        &["node_memory_A__b_bytes{} -", "node_memory__bytes{} 1024", "node_memory_C_bytes{} 2048"],
    );
    check_all(
        Format::Vmstat,
        b"pgfault\npgpgin x\nfaultpg 1\npgalloc 2\noom_killed 3",
        &["node_vmstat_pgfault{} -", "node_vmstat_pgpgin{} -", "node_vmstat_oom_killed{} 3"],
    );
    check_all(
        Format::Pressure(Resource::Io),
        b"some total=\nfull avg10=0.00 total=12",
        &[
            "node_pressure_io_waiting_seconds_total{} -",
            "node_pressure_io_stalled_seconds_total{} 0.000012",
        ],
    );
    check_all(
        PAGE,
        b"TCP: inuse 1 mem\nUDP: mem 99999999999999999\nx 1 2",
        &[
            "node_sockstat_TCP_inuse{} 1",
            "node_sockstat_UDP_mem{} 100000000000000000",
            "node_sockstat_UDP_mem_bytes{} -",
        ],
    );
    check_all(
        Format::Pairs,
        b"Tcp: CurrEstab InSegs OutSegs\nTcp: -1 -1\nUdp: InErrors\nIp: 5\nUdp: InErrors",
        &["node_netstat_Tcp_CurrEstab{} -1", "node_netstat_Tcp_InSegs{} -"],
    );
    check(
        Format::Devices,
        b" a:1:7 2 3\nnone\n: \n",
        &[
            "node_network_receive_bytes_total{device=a:1} 7",
            "node_network_transmit_bytes_total{device=a:1} -",
        ],
    );
}

#[test]
fn disks_of_older_kernels_have_fewer_columns() {
    let columns = |fields: usize| {
        let line = format!("8 0 sda {}", "1 ".repeat(fields));
        read(Format::Disks, line.as_bytes()).len()
    };
    // 14, 18 and 20 columns with the three that name the disk; fewer is not a disk.
    assert_eq!([columns(11), columns(15), columns(17)], [12, 16, 18]);
    assert_eq!([columns(10), columns(12), columns(40)], [0, 12, 18]);
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        for (format, _) in FORMATS {
            read(format, &bytes);
        }
        filesystem::parse(&bytes);
    }

    /// Real files with a few bytes changed and the end cut off get further into the parsers.
    #[test]
    fn damaged_files(
        which in 0..FORMATS.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        end in any::<prop::sample::Index>(),
    ) {
        let (format, whole) = FORMATS[which];
        let mut bytes = whole.to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(end.index(bytes.len() + 1));
        read(format, &bytes);
    }
}
