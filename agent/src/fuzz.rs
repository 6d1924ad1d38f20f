//! What the fuzz targets may call of what is private otherwise. Not part of any normal build.

pub use crate::input::fuzz::input;
use crate::readers::host::Resource;
use crate::readers::sheet::{Outcome, Sheet, Vanish};
use crate::readers::{Format, filesystem};
use strobe_wire::limits::SECTION_COLUMNS_MAX;
use strobe_wire::schema::Schema;

/// What the kernel says of processes, groups, links and sockets: a file or an answer by netlink.
pub fn kernel(which: u8, bytes: &[u8]) {
    crate::readers::fuzz::answer(which, bytes);
}

/// One source over several ticks, read as the sampler reads it.
///
/// # Panics
/// If a parser's columns, values and schema do not belong together.
pub fn proc_file<'a, T: Iterator<Item = &'a [u8]>>(format: u8, ticks: T) {
    let Some(&(format, vanish)) = FORMATS.get(usize::from(format) % (FORMATS.len() + 1)) else {
        ticks.for_each(mounts);
        return;
    };
    let mut sheet = Sheet::new(vanish);
    for bytes in ticks {
        sheet.begin();
        format.parse(bytes, &mut sheet);
        if sheet.end() == Outcome::Changed {
            sheet.learn();
            format.parse(bytes, &mut sheet);
            sheet.learned();
        }
        let mut columns = Vec::new();
        for entry in sheet.entries() {
            let own = format.columns_about(entry, "zfs_arc");
            assert_eq!(own.len(), entry.count, "{format:?} {entry:?}");
            columns.extend(own);
        }
        // As many values as columns: the one behind the last is not there.
        assert_eq!(sheet.value(columns.len()), None);
        for columns in columns.chunks(SECTION_COLUMNS_MAX) {
            let schema = Schema { section: "x".to_owned(), columns: columns.to_vec() };
            assert_eq!(schema.check(), Ok(()), "{format:?}");
        }
    }
}

fn mounts(bytes: &[u8]) {
    for mut mount in filesystem::parse(bytes) {
        mount.rebase(std::path::Path::new("/rootfs"));
        let schema = Schema { section: "x".to_owned(), columns: mount.columns() };
        assert_eq!(schema.check(), Ok(()), "{mount:?}");
        assert!(!mount.key().is_empty());
    }
}

const FORMATS: [(Format, Vanish); 36] = [
    (Format::Cores, Vanish::Go),
    (Format::Stat, Vanish::Stay),
    (Format::Load, Vanish::Stay),
    (Format::Meminfo, Vanish::Stay),
    (Format::Vmstat, Vanish::Stay),
    (Format::Pressure(Resource::Cpu), Vanish::Stay),
    (Format::Pressure(Resource::Io), Vanish::Stay),
    (Format::Pressure(Resource::Irq), Vanish::Stay),
    (Format::Handles, Vanish::Stay),
    (Format::Sockstat { page_bytes: 4096 }, Vanish::Stay),
    (Format::Pairs, Vanish::Stay),
    (Format::Pairs, Vanish::Go),
    (Format::Six, Vanish::Stay),
    (Format::Disks, Vanish::Go),
    (Format::Devices, Vanish::Go),
    (Format::Softnet, Vanish::Go),
    (Format::Schedstat, Vanish::Go),
    (Format::Conntrack, Vanish::Go),
    (Format::Arp, Vanish::Go),
    (Format::Udp, Vanish::Go),
    (Format::Xfs, Vanish::Go),
    (Format::Interrupts, Vanish::Go),
    (Format::Buddy, Vanish::Go),
    (Format::Zones, Vanish::Go),
    (Format::Slabs, Vanish::Go),
    (Format::Cgroups, Vanish::Go),
    (Format::Raid, Vanish::Go),
    (Format::IpvsStats, Vanish::Go),
    (Format::Ipvs, Vanish::Go),
    (Format::NfsClient, Vanish::Go),
    (Format::NfsServer, Vanish::Go),
    (Format::NodeMemory, Vanish::Go),
    (Format::NodeStat, Vanish::Go),
    (Format::Kstat, Vanish::Go),
    (Format::Pool, Vanish::Go),
    (Format::Writeback, Vanish::Go),
];
