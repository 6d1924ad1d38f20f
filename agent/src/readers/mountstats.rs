//! NFS mounts as their client sees them: /proc/self/mountstats, and the servers' addresses from
//! /proc/self/mountinfo, which has the same mounts in the same order.
//!
//! ```text
//! device stor:/pool mounted on /srv with fstype nfs4 statvers=1.1   ◀─▶  … - nfs4 stor:/pool rw,…,addr=10.0.0.2
//!     age: 4242    bytes: …    events: …    xprt: tcp …                  a mount's own columns
//!     per-op statistics
//!         READ: 12 12 0 …                                                an operation's
//! ```
//!
//! What is mounted twice shares its counters: an export is told once for each protocol and address, as
//! node_exporter does. Of several connections (`nconnect`) the last is told, as there.
//!
//! Bounds: [`MOUNTS_MAX`] exports and the columns of a [`Sheet`]; what is over is refused and counted.

use super::kept::{Buffer, Kept, Shape};
use super::sheet::{Repair, Sheet};
use super::text::{Words, lines, number, words};
use super::{COUNTER, GAUGE, column};
use std::path::Path;
use strobe_wire::limits::LABEL_VALUE_BYTES_MAX;
use strobe_wire::schema::{Column, Kind};

/// Both files.
#[derive(Debug)]
pub(crate) struct Mountstats {
    stats: Source,
    info: Source,
    key: Vec<u8>,
}

/// A file and a buffer that still has it when the other is read.
#[derive(Debug)]
struct Source {
    file: Kept,
    buffer: Buffer,
    is_there: bool,
}

/// One mount, while its lines are read.
struct Mount<'f> {
    name: Name<'f>,
    values: [Option<u64>; MOUNT.len()],
    stage: Stage,
}

/// What sets one export apart from another.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Name<'f> {
    export: &'f [u8],
    protocol: &'f [u8],
    address: &'f [u8],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its own lines.
    Own,
    /// The lines of its operations.
    Operations,
    /// It is told already, or refused.
    Over,
}

/// The exports that are told.
struct Told<'f> {
    names: [Name<'f>; MOUNTS_MAX],
    count: usize,
}

impl Mountstats {
    pub(crate) fn new(procfs: &Path) -> Self {
        let source = |name: &str| Source {
            // A record is a mount, whose operations may be more than a page: read to the end.
            file: Kept::new(procfs.join("self").join(name), Shape::Records(usize::MAX / 2)),
            buffer: Buffer::new(),
            is_there: false,
        };
        Self { stats: source("mountstats"), info: source("mountinfo"), key: Vec::new() }
    }

    pub(super) fn read(&mut self) {
        for source in [&mut self.stats, &mut self.info] {
            source.is_there = source.file.read(&mut source.buffer).is_some();
        }
    }

    pub(super) fn put(&mut self, sheet: &mut Sheet) {
        parse(self.stats.bytes(), self.info.bytes(), &mut self.key, sheet);
    }
}

impl Source {
    fn bytes(&self) -> &[u8] {
        self.file.last(&self.buffer).filter(|_| self.is_there).unwrap_or(&[])
    }
}

/// `key` is scratch.
fn parse(stats: &[u8], info: &[u8], key: &mut Vec<u8>, sheet: &mut Sheet) {
    let mut told = Told { names: [Name::default(); MOUNTS_MAX], count: 0 };
    let mut addresses = lines(info).map(address);
    let mut mount: Option<Mount<'_>> = None;
    for line in lines(stats) {
        let mut words = words(line);
        let Some(word) = words.next() else { continue };
        let is_mount =
            word == b"device" || word == b"no" && words.clone().next() == Some(b"device");
        if is_mount {
            if let Some(mount) = &mut mount {
                mount.tell(&mut told, key, sheet);
            }
            let address = addresses.next().unwrap_or(&[]);
            mount = Mount::new(words, address).filter(|_| word == b"device");
        } else if let Some(mount) = &mut mount {
            match mount.stage {
                Stage::Own if word == b"per-op" => mount.tell(&mut told, key, sheet),
                Stage::Own => mount.own(word, words),
                Stage::Operations => mount.operation(word, words, key, sheet),
                Stage::Over => {}
            }
        }
    }
    if let Some(mount) = &mut mount {
        mount.tell(&mut told, key, sheet);
    }
}

impl<'f> Mount<'f> {
    /// `stor:/pool mounted on /srv with fstype nfs4 statvers=1.1`, if it is one of NFS.
    fn new(mut words: Words<'f>, address: &'f [u8]) -> Option<Self> {
        let mut next = [&[][..]; 8];
        for (next, word) in next.iter_mut().zip(&mut words) {
            *next = word;
        }
        let [export, b"mounted", b"on", _, b"with", b"fstype", b"nfs" | b"nfs4", version] = next
        else {
            return None;
        };
        version.strip_prefix(b"statvers=")?;
        let name = Name { export, protocol: &[], address };
        Some(Self { name, values: [None; MOUNT.len()], stage: Stage::Own })
    }

    /// A line before those of operations.
    fn own(&mut self, line: &[u8], mut words: Words<'f>) {
        let mut numbers = [None; NUMBERS_MAX];
        let mut put = |place: usize, word: Option<u64>| {
            if let Some(number) = numbers.get_mut(place) {
                *number = word;
            }
        };
        if line == b"xprt:" {
            let Some(protocol) = words.next() else { return };
            self.name.protocol = protocol;
            // Of UDP there are no connections, and no numbers of them; RDMA has others behind the first ten.
            let (gap, most) = match protocol {
                b"tcp" => (0, NUMBERS_MAX),
                b"udp" => (3, NUMBERS_MAX),
                b"rdma" => (0, 10),
                _ => (0, 0),
            };
            (2..2 + gap).for_each(|place| put(place, Some(0)));
            for (place, word) in (0..2).chain(2 + gap..).zip(words.take(most)) {
                put(place, number(word));
            }
        } else {
            words.enumerate().for_each(|(place, word)| put(place, number(word)));
        }
        for (value, (of, place, ..)) in self.values.iter_mut().zip(MOUNT) {
            if of.as_bytes() == line {
                *value = numbers.get(place).copied().flatten();
            }
        }
    }

    /// Its own columns, unless they are told; operations may follow.
    fn tell(&mut self, told: &mut Told<'f>, key: &mut Vec<u8>, sheet: &mut Sheet) {
        if self.stage != Stage::Own {
            return;
        }
        self.stage = Stage::Over;
        let Name { export, protocol, address } = self.name;
        if told.has(self.name) {
            return;
        }
        if ![export, protocol, address].into_iter().all(is_label) || !told.add(self.name) {
            sheet.refuse();
            return;
        }
        self.stage = Stage::Operations;
        self.begin(key);
        sheet.put(OWN, key, &self.values, Repair::None);
    }

    /// `READ: 12 12 0 2160 1440 3 40 45`.
    fn operation(&self, word: &[u8], words: Words<'_>, key: &mut Vec<u8>, sheet: &mut Sheet) {
        let Some(name) = word.strip_suffix(b":").filter(|name| is_label(name)) else { return };
        let mut values = [None; OPERATION.len()];
        for (value, word) in values.iter_mut().zip(words) {
            *value = number(word);
        }
        self.begin(key);
        key.push(b'\n');
        key.extend_from_slice(name);
        sheet.put(OF_OPERATION, key, &values, Repair::None);
    }

    fn begin(&self, key: &mut Vec<u8>) {
        let Name { export, protocol, address } = self.name;
        key.clear();
        for part in [export, b"\n", protocol, b"\n", address] {
            key.extend_from_slice(part);
        }
    }
}

impl<'f> Told<'f> {
    fn has(&self, name: Name<'f>) -> bool {
        self.names.iter().take(self.count).any(|told| *told == name)
    }

    /// Whether there is room for it.
    fn add(&mut self, name: Name<'f>) -> bool {
        let Some(free) = self.names.get_mut(self.count) else { return false };
        *free = name;
        self.count += 1;
        true
    }
}

pub(super) fn columns(shape: u8, key: &[u8]) -> Vec<Column> {
    let key = String::from_utf8_lossy(key);
    let mut parts = key.split('\n');
    let mut part = || parts.next().unwrap_or("");
    let labels = [("export", part()), ("protocol", part()), ("mountaddr", part())];
    let named = |name: &str, labels: &[(&str, &str)], kind| {
        column(&format!("node_mountstats_nfs_{name}"), labels, kind)
    };
    if shape == OWN {
        return MOUNT.iter().map(|(_, _, name, kind)| named(name, &labels, *kind)).collect();
    }
    let [export, protocol, address] = labels;
    let labels = [export, protocol, address, ("operation", part())];
    let operation =
        |(name, kind): &(&str, Kind)| named(&format!("operations_{name}"), &labels, *kind);
    OPERATION.iter().map(operation).collect()
}

/// The server of a line of mountinfo; none where there is no `addr=`.
fn address(line: &[u8]) -> &[u8] {
    let options = words(line).last().unwrap_or(&[]);
    let mut found = options.rsplit(|byte| *byte == b',');
    found.find_map(|option| option.strip_prefix(b"addr=")).unwrap_or(&[])
}

/// Whether it is told as it stands there: two names must not become the same label.
fn is_label(text: &[u8]) -> bool {
    text.len() <= LABEL_VALUE_BYTES_MAX && std::str::from_utf8(text).is_ok()
}

/// For the fuzz target: mountstats and mountinfo, parted by 0xFF.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    check(bytes);
}

/// Parses it twice, as the sampler does, and holds columns and values against each other.
#[cfg(any(test, fuzzing))]
fn check(bytes: &[u8]) -> Vec<(Column, Option<u64>)> {
    use super::sheet::Vanish;
    use strobe_wire::schema::Schema;
    let mut parts = bytes.split(|byte| *byte == 0xff);
    let (stats, info) = (parts.next().unwrap_or(&[]), parts.next().unwrap_or(&[]));
    let (mut sheet, mut key) = (Sheet::new(Vanish::Go), Vec::new());
    sheet.learn();
    parse(stats, info, &mut key, &mut sheet);
    sheet.learned();
    sheet.begin();
    parse(stats, info, &mut key, &mut sheet);
    let all: Vec<_> = sheet
        .entries()
        .iter()
        .flat_map(|entry| {
            let columns = columns(entry.shape, &entry.key);
            assert_eq!(columns.len(), entry.count, "{entry:?}");
            columns
        })
        .collect();
    assert_eq!(all.len(), sheet.width());
    for columns in all.chunks(400) {
        let schema = Schema { section: "x".to_owned(), columns: columns.to_vec() };
        assert_eq!(schema.check(), Ok(()));
    }
    all.into_iter().enumerate().map(|(at, column)| (column, sheet.value(at))).collect()
}

const OWN: u8 = 0;
const OF_OPERATION: u8 = 1;
/// With their operations fewer fit into a sheet.
const MOUNTS_MAX: usize = 128;
/// Of one line: 27 events are the most.
const NUMBERS_MAX: usize = 27;
const MILLISECONDS: Kind = Kind::Counter { scale: 3 };
/// Line, field of it, metric, kind.
const MOUNT: [(&str, usize, &str, Kind); 45] = [
    ("age:", 0, "age_seconds_total", COUNTER),
    ("bytes:", 0, "read_bytes_total", COUNTER),
    ("bytes:", 1, "write_bytes_total", COUNTER),
    ("bytes:", 2, "direct_read_bytes_total", COUNTER),
    ("bytes:", 3, "direct_write_bytes_total", COUNTER),
    ("bytes:", 4, "total_read_bytes_total", COUNTER),
    ("bytes:", 5, "total_write_bytes_total", COUNTER),
    ("bytes:", 6, "read_pages_total", COUNTER),
    ("bytes:", 7, "write_pages_total", COUNTER),
    ("xprt:", 1, "transport_bind_total", COUNTER),
    ("xprt:", 2, "transport_connect_total", COUNTER),
    ("xprt:", 4, "transport_idle_time_seconds", GAUGE),
    ("xprt:", 5, "transport_sends_total", COUNTER),
    ("xprt:", 6, "transport_receives_total", COUNTER),
    ("xprt:", 7, "transport_bad_transaction_ids_total", COUNTER),
    ("xprt:", 9, "transport_backlog_queue_total", COUNTER),
    ("xprt:", 10, "transport_maximum_rpc_slots", GAUGE),
    ("xprt:", 11, "transport_sending_queue_total", COUNTER),
    ("xprt:", 12, "transport_pending_queue_total", COUNTER),
    ("events:", 0, "event_inode_revalidate_total", COUNTER),
    ("events:", 1, "event_dnode_revalidate_total", COUNTER),
    ("events:", 2, "event_data_invalidate_total", COUNTER),
    ("events:", 3, "event_attribute_invalidate_total", COUNTER),
    ("events:", 4, "event_vfs_open_total", COUNTER),
    ("events:", 5, "event_vfs_lookup_total", COUNTER),
    ("events:", 6, "event_vfs_access_total", COUNTER),
    ("events:", 7, "event_vfs_update_page_total", COUNTER),
    ("events:", 8, "event_vfs_read_page_total", COUNTER),
    ("events:", 9, "event_vfs_read_pages_total", COUNTER),
    ("events:", 10, "event_vfs_write_page_total", COUNTER),
    ("events:", 11, "event_vfs_write_pages_total", COUNTER),
    ("events:", 12, "event_vfs_getdents_total", COUNTER),
    ("events:", 13, "event_vfs_setattr_total", COUNTER),
    ("events:", 14, "event_vfs_flush_total", COUNTER),
    ("events:", 15, "event_vfs_fsync_total", COUNTER),
    ("events:", 16, "event_vfs_lock_total", COUNTER),
    ("events:", 17, "event_vfs_file_release_total", COUNTER),
    ("events:", 19, "event_truncation_total", COUNTER),
    ("events:", 20, "event_write_extension_total", COUNTER),
    ("events:", 21, "event_silly_rename_total", COUNTER),
    ("events:", 22, "event_short_read_total", COUNTER),
    ("events:", 23, "event_short_write_total", COUNTER),
    ("events:", 24, "event_jukebox_delay_total", COUNTER),
    ("events:", 25, "event_pnfs_read_total", COUNTER),
    ("events:", 26, "event_pnfs_write_total", COUNTER),
];
/// The numbers of an operation, in their order.
const OPERATION: [(&str, Kind); 8] = [
    ("requests_total", COUNTER),
    ("transmissions_total", COUNTER),
    ("major_timeouts_total", COUNTER),
    ("sent_bytes_total", COUNTER),
    ("received_bytes_total", COUNTER),
    ("queue_time_seconds_total", MILLISECONDS),
    ("response_time_seconds_total", MILLISECONDS),
    ("request_time_seconds_total", MILLISECONDS),
];

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    /// `name{label values} value` of each column that has one.
    fn read(stats: &str, info: &str) -> Vec<String> {
        let told = check(&[stats.as_bytes(), &[0xff], info.as_bytes()].concat()).into_iter();
        let told = told.filter_map(|(column, value)| {
            let labels: Vec<_> = column.labels.0.iter().map(|(_, value)| value.as_str()).collect();
            let name = column.name.strip_prefix("node_mountstats_nfs_")?;
            Some(format!("{name}{{{}}} {}", labels.join(","), column.kind.value(value?)))
        });
        told.collect()
    }

    fn server(path: &str) -> String {
        let text = include_str!("../../../tests/fixtures/trees/server.tree");
        let file = text.lines().find_map(|line| line.strip_prefix(path)?.strip_prefix('\t'));
        file.unwrap().replace("\\n", "\n")
    }

    const HEAD: &str = "device s:/a mounted on /a with fstype nfs statvers=1.1\n";

    #[test]
    fn an_export_is_told_once_for_each_protocol_and_address() {
        let mount = |age: u8, protocol: &str| {
            format!(
                "{HEAD}\tage:\t{age}\n\txprt:\t{protocol} 7 1\n\tper-op statistics\n\t READ: {age} 2 0 4\n\n"
            )
        };
        let stats = mount(1, "tcp") + &mount(2, "tcp") + &mount(3, "tcp") + &mount(4, "udp");
        let info = "1 - nfs s:/a rw,addr=1.2.3.4\n1 - nfs s:/a rw,addr=1.2.3.4\n1 - nfs s:/a rw,mountaddr=9,addr=::5,x\n";
        let found = read(&stats, info);
        let ages: Vec<_> = found.iter().filter(|line| line.starts_with("age")).collect();
        assert_eq!(
            ages,
            [
                "age_seconds_total{s:/a,1.2.3.4,tcp} 1",
                "age_seconds_total{s:/a,::5,tcp} 3",
                "age_seconds_total{s:/a,udp} 4",
            ]
        );
        let requests: Vec<_> = found.iter().filter(|line| line.contains("requests")).collect();
        assert_eq!(
            requests,
            [
                "operations_requests_total{s:/a,1.2.3.4,READ,tcp} 1",
                "operations_requests_total{s:/a,::5,READ,tcp} 3",
                "operations_requests_total{s:/a,READ,udp} 4",
            ]
        );
    }

    /// Kernels say `no device` of what has no name; it has its line in mountinfo all the same. node_exporter
    /// takes the address of the mount before there.
    #[test]
    fn addresses_are_those_of_the_mount_itself() {
        let stats = format!(
            "no device mounted on /x with fstype tmpfs\ndevice a mounted on / with fstype ext4\n{HEAD}\tage:\t5\n"
        );
        let info =
            "1 - tmpfs none rw,addr=no\n2 - ext4 a rw,addr=neither\n3 - nfs s:/a rw,addr=1.1.1.1\n";
        assert_eq!(read(&stats, info), ["age_seconds_total{s:/a,1.1.1.1} 5"]);
    }

    #[test]
    fn transports_have_their_numbers_in_places_of_their_own() {
        let sends = |line: &str| {
            let found = read(&format!("{HEAD}\txprt:\t{line}\n"), "");
            let value = |name: &str| {
                let line = found.iter().find(|line| line.starts_with(name));
                line.map_or("-", |line| line.rsplit(' ').next().unwrap_or("")).to_owned()
            };
            ["bind", "connect", "idle", "sends", "backlog", "maximum", "pending"]
                .map(|name| value(&format!("transport_{name}")))
                .join(" ")
        };
        assert_eq!(sends("tcp 0 1 2 3 4 5 6 7 8 9 10 11 12"), "1 2 4 5 9 10 12");
        assert_eq!(sends("udp 0 1 5 6 7 8 9 10 11 12"), "1 0 0 5 9 10 12");
        assert_eq!(sends("rdma 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14"), "1 2 4 5 9 - -");
        assert_eq!(sends("local 1 2 3 4 5"), "- - - - - - -");
        assert_eq!(sends("tcp 0 1 2 3 4 5 6 7 8 9"), "1 2 4 5 9 - -");
        // The last of several connections.
        assert_eq!(sends("tcp 0 7 7 7 7 7\n\txprt:\ttcp 0 1 2"), "1 2 - - - - -");
    }

    #[test]
    fn hostile_mounts_are_left_out_or_have_no_value() {
        let told = |stats: &str| read(stats, "");
        for nothing in [
            "",
            "\n\n",
            "device",
            "no",
            "device s:/a mounted on /a with fstype nfs\n\tage: 5",
            "device s:/a mounted on /a with fstype ext4 statvers=1.1\n\tage: 5",
            "device s:/a mounted at /a with fstype nfs statvers=1.1\n\tage: 5",
            "device s:/a mounted on /a without fstype nfs statvers=1.1\n\tage: 5",
            "\tage: 5\n\txprt:\ttcp 1 2 3\n\tper-op statistics\n\tREAD: 1 2 3\n",
        ] {
            assert_eq!(told(nothing), [""; 0], "{nothing}");
        }
        let rest = "\tage:\t18446744073709551616\n\tbytes:\t1 x 18446744073709551615\n\tevents:\n\txprt:\n\tper-op statistics\nREAD 1\n\t:\n\tGETATTR: 7 y";
        assert_eq!(
            told(&format!("{HEAD}{rest}")),
            [
                "read_bytes_total{s:/a} 1",
                "direct_read_bytes_total{s:/a} 18446744073709552000",
                "operations_requests_total{s:/a,GETATTR} 7",
            ]
        );
        // What is no UTF-8 could become the label of another.
        let bytes =
            [&b"device s\xc3 mounted on /a with fstype nfs statvers=1.1\n age: 5\n"[..]].concat();
        assert_eq!(check(&bytes).len(), 0);
    }

    #[test]
    fn what_is_over_the_bounds_is_refused() {
        let mount = |at: usize| {
            format!(
                "device s:/{at} mounted on /a with fstype nfs4 statvers=1.1\n\tage:\t{at}\n\tper-op statistics\n"
            )
        };
        let stats: String = (0..MOUNTS_MAX + 2).map(mount).collect();
        let (mut sheet, mut key) = (Sheet::new(super::super::sheet::Vanish::Go), Vec::new());
        sheet.learn();
        parse(stats.as_bytes(), b"", &mut key, &mut sheet);
        assert_eq!((sheet.entries().len(), sheet.refused()), (MOUNTS_MAX, 2));
        let operations: String = (0..5000).map(|at| format!("\tOP{at}: 1 2 3\n")).collect();
        let found = check((mount(0) + &operations).as_bytes());
        assert!((6000..=6400).contains(&found.len()), "{}", found.len());
    }

    #[test]
    fn files_that_end_anywhere_are_read() {
        let (stats, info) = (server("proc/4711/mountstats"), server("proc/4711/mountinfo"));
        let whole = read(&stats, &info).len();
        assert_eq!(whole, 2 * (MOUNT.len() + 6 * OPERATION.len()));
        for end in 0..stats.len() {
            // The third is the second again, unless its protocol is not told any more.
            let most = whole + MOUNT.len();
            assert!(read(stats.get(..end).unwrap(), &info).len() <= most, "{end}");
        }
        for end in 0..info.len() {
            assert!(whole <= read(&stats, info.get(..end).unwrap()).len(), "{end}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000)) {
            check(&bytes);
        }

        #[test]
        fn damaged_files(
            damage in proptest::collection::vec(
                (proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()),
                0..20,
            ),
        ) {
            let (stats, info) = (server("proc/4711/mountstats"), server("proc/4711/mountinfo"));
            let mut bytes = [stats.as_bytes(), &[0xff], info.as_bytes()].concat();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            check(&bytes);
        }
    }
}
