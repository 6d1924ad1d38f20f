//! Every file that is read, how the kernel hands it out, and who parses it.

use crate::readers::host::Resource;
use crate::readers::kept::Shape;
use crate::readers::link_stats::LINKS_MANY;
use crate::readers::{Format, page_bytes};

/// What one parser of a file is for.
pub(super) struct FileFeed {
    pub(super) format: Format,
    pub(super) section: &'static str,
    pub(super) collector: &'static str,
    pub(super) needed: bool,
}

/// Every file, how the kernel hands it out, and who parses it.
pub(super) fn files() -> Vec<(&'static str, Shape, Vec<FileFeed>)> {
    let feed = |format, section, collector| FileFeed { format, section, collector, needed: true };
    let host = |format, collector| vec![feed(format, "host", collector)];
    let extra =
        |format, collector| vec![FileFeed { needed: false, ..feed(format, "host", collector) }];
    let pressure = Format::Pressure;
    let sockstat = Format::Sockstat { page_bytes: page_bytes() };
    let stat = vec![feed(Format::Stat, "host", "stat"), feed(Format::Cores, "cpu", "cpu")];
    let softnet = vec![feed(Format::Softnet, "cpu", "softnet")];
    vec![
        ("stat", Shape::Whole, stat),
        ("loadavg", Shape::Whole, host(Format::Load, "loadavg")),
        ("meminfo", Shape::Whole, host(Format::Meminfo, "meminfo")),
        ("vmstat", Shape::Fixed(LINE_BYTES_MAX), host(Format::Vmstat, "vmstat")),
        ("pressure/cpu", Shape::Whole, host(pressure(Resource::Cpu), "pressure")),
        ("pressure/io", Shape::Whole, host(pressure(Resource::Io), "pressure")),
        ("pressure/memory", Shape::Whole, host(pressure(Resource::Memory), "pressure")),
        ("pressure/irq", Shape::Whole, extra(pressure(Resource::Irq), "pressure")),
        ("sys/fs/file-nr", Shape::Line, host(Format::Handles, "filefd")),
        ("net/sockstat", Shape::Whole, host(sockstat, "sockstat")),
        ("net/sockstat6", Shape::Whole, extra(sockstat, "sockstat")),
        ("net/netstat", Shape::Whole, host(Format::Pairs, "netstat")),
        ("net/snmp", Shape::Whole, host(Format::Pairs, "netstat")),
        ("net/snmp6", Shape::Whole, extra(Format::Six, "netstat6")),
        (
            "diskstats",
            Shape::Records(LINE_BYTES_MAX),
            vec![feed(Format::Disks, "disk", "diskstats")],
        ),
        ("net/softnet_stat", Shape::Records(LINE_BYTES_MAX), softnet),
        ("net/dev", Shape::Records(LINE_BYTES_MAX), vec![feed(Format::Devices, "net", "netdev")]),
    ]
}

/// The path of each file, how much of it is read, and whether something is missing without it.
pub fn kept_files() -> impl Iterator<Item = (&'static str, String, bool)> {
    files().into_iter().map(|(path, shape, feeds)| {
        let how = match shape {
            Shape::Whole => "read whole".to_owned(),
            Shape::Line => "one line".to_owned(),
            Shape::Fixed(_) => "as long as it was".to_owned(),
            Shape::Records(_) => {
                let other = match path {
                    "diskstats" => "; a few disks by /sys/class/block/*/stat".to_owned(),
                    "net/dev" => {
                        format!("; {LINKS_MANY} links or more by RTM_GETSTATS where cheaper")
                    }
                    _ => String::new(),
                };
                format!("line by line, with room for more{other}")
            }
        };
        (path, how, feeds.iter().any(|feed| feed.needed))
    })
}

/// A disk's or device's name and twenty numbers of twenty digits.
const LINE_BYTES_MAX: usize = 512;
pub(super) const SECTIONS: [&str; 5] = ["host", "cpu", "disk", "net", "filesystem"];
/// node_exporter's names of the sources; the last is the sampler itself and is not published.
pub(super) const COLLECTORS: [&str; 16] = [
    "cpu",
    "diskstats",
    "filefd",
    "filesystem",
    "loadavg",
    "meminfo",
    "netdev",
    "netstat",
    "pressure",
    "sockstat",
    "softnet",
    "stat",
    "time",
    "uname",
    "vmstat",
    "",
];
