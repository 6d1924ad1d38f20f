//! Every parser on files of a real kernel, on handwritten hostile ones, and on any bytes.
#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use super::host::Resource;
use super::sheet::{Outcome, Sheet, Vanish};
use super::*;
use proptest::prelude::*;
use std::sync::OnceLock;
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

/// The tables of the server's tree.
const TABLES: [(Format, &str); 21] = [
    (Format::Softnet, "proc/net/softnet_stat"),
    (Format::Schedstat, "proc/schedstat"),
    (Format::Conntrack, "proc/net/stat/nf_conntrack"),
    (Format::Arp, "proc/net/arp"),
    (Format::Udp, "proc/net/udp"),
    (Format::Xfs, "sys/fs/xfs/sda1/stats/stats"),
    (Format::Interrupts, "proc/interrupts"),
    (Format::Softirqs, "proc/interrupts"),
    (Format::Buddy, "proc/buddyinfo"),
    (Format::Zones, "proc/zoneinfo"),
    (Format::Slabs, "proc/slabinfo"),
    (Format::Cgroups, "proc/cgroups"),
    (Format::Raid, "proc/mdstat"),
    (Format::IpvsStats, "proc/net/ip_vs_stats"),
    (Format::Ipvs, "proc/net/ip_vs"),
    (Format::NfsClient, "proc/net/rpc/nfs"),
    (Format::NfsServer, "proc/net/rpc/nfsd"),
    (Format::NodeMemory, "sys/devices/system/node/node0/meminfo"),
    (Format::NodeStat, "sys/devices/system/node/node0/numastat"),
    (Format::Kstat, "proc/spl/kstat/zfs/arcstats"),
    (
        Format::Writeback,
        "sys/fs/bcache/3c9d5b1e-7f42-4a86-b0d1-95e2c4f8a637/bdev0/writeback_rate_debug",
    ),
];

/// A file of the server's tree.
fn server(path: &str) -> Vec<u8> {
    let text = include_str!("../../../tests/fixtures/trees/server.tree");
    let file = text.lines().find_map(|line| line.strip_prefix(path)?.strip_prefix('\t'));
    file.unwrap().replace("\\n", "\n").into_bytes()
}

fn formats() -> &'static [(Format, Vec<u8>)] {
    static ALL: OnceLock<Vec<(Format, Vec<u8>)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let first = FORMATS.iter().map(|(format, bytes)| (*format, bytes.to_vec()));
        first.chain(TABLES.iter().map(|(format, path)| (*format, server(path)))).collect()
    })
}

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
            let columns = format.columns_about(entry, "zfs_arc");
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

/// Kernels before 5.10 do not say which CPU a line of softnet_stat is; later ones do, and leave out
/// those that are off line.
#[test]
fn a_cpu_that_is_off_line_takes_nobodys_name() {
    let line = |cpu: &str| format!("0000000{cpu} 0 0 0 0 0 0 0 0 0 0 0 {cpu} 0 0\n");
    let found = read(Format::Softnet, (line("1") + &line("3")).as_bytes());
    let processed: Vec<_> = found.iter().filter(|name| name.contains("processed")).collect();
    assert_eq!(
        processed,
        ["node_softnet_processed_total{cpu=1} 1", "node_softnet_processed_total{cpu=3} 3"]
    );
    let old = |row: &str| format!("{row} 0 0 0 0 0 0 0 0 0 0\n");
    let mut sheet = Sheet::new(Vanish::Go);
    let mut keys = |text: &str| {
        sheet.begin();
        Format::Softnet.parse(text.as_bytes(), &mut sheet);
        if sheet.end() == Outcome::Changed {
            sheet.learn();
            Format::Softnet.parse(text.as_bytes(), &mut sheet);
            sheet.learned();
        }
        sheet.entries().iter().map(|entry| entry.key.to_vec()).collect::<Vec<_>>()
    };
    let (all, fewer) = (old("1") + &old("2") + &old("3"), old("1") + &old("3"));
    let three = [b"0".to_vec(), b"1".to_vec(), b"2".to_vec()];
    assert_eq!(keys(&all), three);
    assert_eq!([keys(&fewer), keys(&fewer)], [vec![], vec![]] as [Vec<Vec<u8>>; 2]);
    assert_eq!(keys(&all), three);
    let found =
        read(Format::Interrupts, b"      CPU0  CPU2\n 9: 5 6 IO-APIC 9-fasteoi acpi\nERR: 0\n");
    assert_eq!(
        found,
        [
            "node_interrupts_total{cpu=0,devices=9-fasteoi acpi,info=IO-APIC,type=9} 5",
            "node_interrupts_total{cpu=2,devices=9-fasteoi acpi,info=IO-APIC,type=9} 6"
        ]
    );
}

/// Found by fuzzing: such a line was an entry without values and with a piece of a key.
#[test]
fn an_interrupt_with_too_long_a_name_is_refused() {
    let file = format!(" CPU0\n 9: 5 {}\n10: 6 short\n", "x".repeat(1100));
    let mut sheet = Sheet::new(Vanish::Go);
    for learning in [false, true] {
        if learning {
            sheet.learn();
        } else {
            sheet.begin();
        }
        Format::Interrupts.parse(file.as_bytes(), &mut sheet);
    }
    sheet.learned();
    assert_eq!((sheet.entries().len(), sheet.refused()), (1, 1));
}

/// 1,152 CPUs and 1,000 interrupts are a file of 13 MB, and a million series if nobody sums.
#[test]
fn a_machine_of_1152_cpus_has_sums_within_the_budget() {
    let cpus: String = (0..1152).map(|cpu| format!("{:>11}", format!("CPU{cpu}"))).collect();
    let values = format!("{:>11}", 4_000_000).repeat(1152);
    let lines: String =
        (0..1000).map(|n| format!("{n:>4}:{values}  PCI-MSI {n}-edge eth{n}\n")).collect();
    let file = format!("     {cpus}\n{lines}ERR:          0\n");
    assert!(12 << 20 < file.len(), "{}", file.len());
    let found = read(Format::Interrupts, file.as_bytes());
    assert_eq!(found.len(), 1000);
    let first = "node_interrupts_total{cpu=all,devices=0-edge eth0,info=PCI-MSI,type=0} 4608000000";
    assert_eq!(found[0], first);
    // The `intr` line of such a machine is 130 kB, and what stands below it is still found.
    let intr = format!("intr 99{}\nctxt 7\nbtime 5\n", " 4000000".repeat(16_000));
    assert!(120_000 < intr.len());
    let stat: String =
        (0..1152).map(|cpu| format!("cpu{cpu} 1 2 3 4 5 6 7 8 9 10\n")).collect::<String>() + &intr;
    check(
        Format::Stat,
        stat.as_bytes(),
        &["node_intr_total{} 99", "node_context_switches_total{} 7"],
    );
    // 640 CPUs are sixteen full sections; the others are refused and counted.
    assert_eq!(read(Format::Cores, stat.as_bytes()).len(), 6400);
}

#[test]
fn hostile_tables_are_left_out_or_have_no_value() {
    check_all(Format::Softnet, b"zz 1 2\n1 2\n00000001 00000002 1ffffffffffffffff 0", &[]);
    check_all(
        Format::Conntrack,
        b"heading\nff x 00000002",
        &[
            "node_nf_conntrack_stat_found{} 2",
            "node_nf_conntrack_stat_invalid{} -",
            "node_nf_conntrack_stat_ignore{} -",
            "node_nf_conntrack_stat_insert{} -",
            "node_nf_conntrack_stat_insert_failed{} -",
            "node_nf_conntrack_stat_drop{} -",
            "node_nf_conntrack_stat_early_drop{} -",
            "node_nf_conntrack_stat_search_restart{} -",
        ],
    );
    check_all(
        Format::Udp,
        b"sl\n 0: a b 07 0000000f:0000001 x\n1: a b 07 0000000f000001\n 2: a",
        &["node_udp_queues{ip=zfs_arc,queue=tx} 15", "node_udp_queues{ip=zfs_arc,queue=rx} 1"],
    );
    check_all(Format::Buddy, b"Node 0, zone\nNode\nNode 0, zane DMA 1\n", &[]);
    check_all(
        Format::Buddy,
        b"Node 1, zone DMA 5 x",
        &[
            "node_buddyinfo_blocks{node=1,size=0,zone=DMA} 5",
            "node_buddyinfo_blocks{node=1,size=1,zone=DMA} -",
        ],
    );
    check_all(
        Format::Writeback,
        b"rate: 1.5k/sec\ntarget:\nproportional: -x\nintegral: -2.0M\nrated: 7\n: 1\nchange: 8.0E/sec\xff",
        &[
            "node_bcache_writeback_rate{uuid=zfs_arc} 1524",
            "node_bcache_dirty_target_bytes{uuid=zfs_arc} -",
            "node_bcache_writeback_rate_proportional_term{uuid=zfs_arc} -",
            "node_bcache_writeback_rate_integral_term{uuid=zfs_arc} -2097152",
            "node_bcache_writeback_change{uuid=zfs_arc} -",
        ],
    );
    check_all(Format::Writeback, b"rate\nrate:\n\n:::\ntarget: \xff", &[]);
    let debug = server(TABLES[20].1);
    for end in 0..debug.len() {
        read(Format::Writeback, &debug[..end]);
    }
    check_all(Format::Ipvs, b"-> 1:2 Route 1 2 3\nTCP\n->\nTCP x y\n-> nonsense Route 1 2 3", &[]);
    // A line that is cut has no fields, which are absent and not 0.
    check(
        Format::NfsClient,
        b"rpc 5\nproc3 22 1 x",
        &[
            "node_nfs_rpcs_total{} 5",
            "node_nfs_rpc_retransmissions_total{} -",
            "node_nfs_requests_total{method=Null,proto=3} 1",
            "node_nfs_requests_total{method=GetAttr,proto=3} -",
        ],
    );
    check_all(
        Format::Kstat,
        b"hits 4 5\nname type data\nhits 4 18446744073709551615\nx 7 y",
        &["node_zfs_arc_hits{} -"],
    );
    let raid = read(Format::Raid, b"md0 : active raid1 sda1[0]\n  nonsense\n\nmd1 : active");
    assert_eq!(
        (raid.len(), &*raid[0], &*raid[9]),
        (11, "node_md_disks_required{device=md0} -", "node_md_blocks{device=md0} -",)
    );
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        for (format, _) in formats() {
            read(*format, &bytes);
        }
        filesystem::parse(&bytes);
    }

    /// Real files with a few bytes changed and the end cut off get further into the parsers.
    #[test]
    fn damaged_files(
        which in 0..FORMATS.len() + TABLES.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        end in any::<prop::sample::Index>(),
    ) {
        let (format, mut bytes) = formats()[which].clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(end.index(bytes.len() + 1));
        read(format, &bytes);
    }
}
