//! NFS: /proc/net/rpc/nfs of a client and nfsd of a server. A line is a word and its numbers;
//! `proc4` and its like begin with how many follow.

use super::sheet::{Repair, Sheet};
use super::text::{lines, number, words};
use super::{COUNTER, GAUGE, column};
use strobe_wire::schema::{Column, Kind};

pub(super) fn parse_client(bytes: &[u8], sheet: &mut Sheet) {
    parse(bytes, &CLIENT, sheet);
}

pub(super) fn parse_server(bytes: &[u8], sheet: &mut Sheet) {
    parse(bytes, &SERVER, sheet);
}

pub(super) fn client_columns(line: &str, count: usize) -> Vec<Column> {
    columns(&CLIENT, "nfs", line, count)
}

pub(super) fn server_columns(line: &str, count: usize) -> Vec<Column> {
    columns(&SERVER, "nfsd", line, count)
}

/// One line of a file.
struct Line {
    word: &'static str,
    /// Whether the first number says how many follow.
    counted: bool,
    fields: Fields,
}

enum Fields {
    /// Requests of this protocol, by method; `""` is not told.
    Methods(&'static str, &'static [&'static str]),
    /// Which number, metric, kind, and a label.
    Named(&'static [Field]),
}

/// Which number of a line, its metric, its kind, and a label.
struct Field(usize, &'static str, Kind, Option<(&'static str, &'static str)>);

fn parse(bytes: &[u8], known: &[Line], sheet: &mut Sheet) {
    for line in lines(bytes) {
        let mut words = words(line);
        let Some(word) = words.next() else { continue };
        let Some(known) = known.iter().find(|known| known.word.as_bytes() == word) else {
            continue;
        };
        if known.counted {
            words.next();
        }
        let mut values = [None; METHODS_MAX];
        let mut count = 0;
        for (value, word) in values.iter_mut().zip(words) {
            *value = number(word);
            count += 1;
        }
        let values = values.get(..count).unwrap_or(&[]);
        match known.fields {
            Fields::Methods(_, names) => {
                let mut told = [None; METHODS_MAX];
                let known = names.iter().zip(values).filter(|(name, _)| !name.is_empty());
                let mut end = 0;
                for (told, (_, value)) in told.iter_mut().zip(known) {
                    *told = *value;
                    end += 1;
                }
                sheet.put(0, word, told.get(..end).unwrap_or(&[]), Repair::None);
            }
            Fields::Named(fields) => {
                let mut named = [None; NAMED_MAX];
                for (value, Field(place, ..)) in named.iter_mut().zip(fields) {
                    *value = values.get(*place).copied().flatten();
                }
                let named = named.get(..fields.len()).unwrap_or(&[]);
                sheet.put(0, word, named, Repair::None);
            }
        }
    }
}

fn columns(known: &[Line], family: &str, line: &str, count: usize) -> Vec<Column> {
    let Some(known) = known.iter().find(|known| known.word == line) else { return Vec::new() };
    match known.fields {
        Fields::Methods(protocol, names) => names
            .iter()
            .filter(|method| !method.is_empty())
            .take(count)
            .map(|method| {
                let labels = [("proto", protocol), ("method", method)];
                column(&format!("node_{family}_requests_total"), &labels, COUNTER)
            })
            .collect(),
        Fields::Named(fields) => fields
            .iter()
            .map(|Field(_, metric, kind, label)| {
                let labels: Vec<_> = label.iter().copied().collect();
                column(&format!("node_{family}_{metric}"), &labels, *kind)
            })
            .collect(),
    }
}

const fn requests(word: &'static str, proto: &'static str, names: &'static [&'static str]) -> Line {
    Line { word, counted: true, fields: Fields::Methods(proto, names) }
}

const CLIENT: [Line; 5] = [
    Line { word: "net", counted: false, fields: Fields::Named(CLIENT_NET) },
    Line {
        word: "rpc",
        counted: false,
        fields: Fields::Named(&[
            Field(0, "rpcs_total", COUNTER, None),
            Field(1, "rpc_retransmissions_total", COUNTER, None),
            Field(2, "rpc_authentication_refreshes_total", COUNTER, None),
        ]),
    },
    requests("proc2", "2", &V2),
    requests("proc3", "3", &V3),
    requests("proc4", "4", &CLIENT_V4),
];
const SERVER: [Line; 10] = [
    Line { word: "net", counted: false, fields: Fields::Named(SERVER_NET) },
    Line {
        word: "rc",
        counted: false,
        fields: Fields::Named(&[
            Field(0, "reply_cache_hits_total", COUNTER, None),
            Field(1, "reply_cache_misses_total", COUNTER, None),
            Field(2, "reply_cache_nocache_total", COUNTER, None),
        ]),
    },
    Line {
        word: "fh",
        counted: false,
        fields: Fields::Named(&[Field(0, "file_handles_stale_total", COUNTER, None)]),
    },
    Line {
        word: "io",
        counted: false,
        fields: Fields::Named(&[
            Field(0, "disk_bytes_read_total", COUNTER, None),
            Field(1, "disk_bytes_written_total", COUNTER, None),
        ]),
    },
    Line {
        word: "th",
        counted: false,
        fields: Fields::Named(&[Field(0, "server_threads", GAUGE, None)]),
    },
    Line {
        word: "ra",
        counted: false,
        fields: Fields::Named(&[
            Field(0, "read_ahead_cache_size_blocks", GAUGE, None),
            Field(11, "read_ahead_cache_not_found_total", COUNTER, None),
        ]),
    },
    Line {
        word: "rpc",
        counted: false,
        fields: Fields::Named(&[
            Field(0, "server_rpcs_total", COUNTER, None),
            Field(2, "rpc_errors_total", COUNTER, Some(("error", "fmt"))),
            Field(3, "rpc_errors_total", COUNTER, Some(("error", "auth"))),
            Field(4, "rpc_errors_total", COUNTER, Some(("error", "cInt"))),
        ]),
    },
    requests("proc2", "2", SERVER_V2),
    requests("proc3", "3", SERVER_V3),
    requests("proc4ops", "4", &SERVER_V4),
];
const CLIENT_NET: &[Field] = &[
    Field(1, "packets_total", COUNTER, Some(("protocol", "udp"))),
    Field(2, "packets_total", COUNTER, Some(("protocol", "tcp"))),
    Field(3, "connections_total", COUNTER, None),
];
const SERVER_NET: &[Field] = &[
    Field(1, "packets_total", COUNTER, Some(("proto", "udp"))),
    Field(2, "packets_total", COUNTER, Some(("proto", "tcp"))),
    Field(3, "connections_total", COUNTER, None),
];
const METHODS_MAX: usize = 80;
const NAMED_MAX: usize = 4;
const V2: [&str; 18] = [
    "Null", "GetAttr", "SetAttr", "Root", "Lookup", "ReadLink", "Read", "WrCache", "Write",
    "Create", "Remove", "Rename", "Link", "SymLink", "MkDir", "RmDir", "ReadDir", "FsStat",
];
const V3: [&str; 22] = [
    "Null",
    "GetAttr",
    "SetAttr",
    "Lookup",
    "Access",
    "ReadLink",
    "Read",
    "Write",
    "Create",
    "MkDir",
    "SymLink",
    "MkNod",
    "Remove",
    "RmDir",
    "Rename",
    "Link",
    "ReadDir",
    "ReadDirPlus",
    "FsStat",
    "FsInfo",
    "PathConf",
    "Commit",
];
const CLIENT_V4: [&str; 59] = [
    "Null",
    "Read",
    "Write",
    "Commit",
    "Open",
    "OpenConfirm",
    "OpenNoattr",
    "OpenDowngrade",
    "Close",
    "Setattr",
    "FsInfo",
    "Renew",
    "SetClientID",
    "SetClientIDConfirm",
    "Lock",
    "Lockt",
    "Locku",
    "Access",
    "Getattr",
    "Lookup",
    "LookupRoot",
    "Remove",
    "Rename",
    "Link",
    "Symlink",
    "Create",
    "Pathconf",
    "StatFs",
    "ReadLink",
    "ReadDir",
    "ServerCaps",
    "DelegReturn",
    "GetACL",
    "SetACL",
    "FsLocations",
    "ReleaseLockowner",
    "Secinfo",
    "FsidPresent",
    "ExchangeID",
    "CreateSession",
    "DestroySession",
    "Sequence",
    "GetLeaseTime",
    "ReclaimComplete",
    "LayoutGet",
    "GetDeviceInfo",
    "LayoutCommit",
    "LayoutReturn",
    "SecinfoNoName",
    "TestStateID",
    "FreeStateID",
    "GetDeviceList",
    "BindConnToSession",
    "DestroyClientID",
    "Seek",
    "Allocate",
    "DeAllocate",
    "LayoutStats",
    "Clone",
];
const SERVER_V4: [&str; 38] = [
    "",
    "",
    "",
    "Access",
    "Close",
    "Commit",
    "Create",
    "DelegPurge",
    "DelegReturn",
    "GetAttr",
    "GetFH",
    "Link",
    "Lock",
    "Lockt",
    "Locku",
    "Lookup",
    "LookupRoot",
    "Nverify",
    "Open",
    "OpenAttr",
    "OpenConfirm",
    "OpenDgrd",
    "PutFH",
    "",
    "",
    "Read",
    "ReadDir",
    "ReadLink",
    "Remove",
    "Rename",
    "Renew",
    "RestoreFH",
    "SaveFH",
    "SecInfo",
    "SetAttr",
    "Verify",
    "Write",
    "RelLockOwner",
];
/// A server keeps its empty calls to itself.
const SERVER_V2: &[&str] = &[
    "", "GetAttr", "SetAttr", "Root", "Lookup", "ReadLink", "Read", "WrCache", "Write", "Create",
    "Remove", "Rename", "Link", "SymLink", "MkDir", "RmDir", "ReadDir", "FsStat",
];
const SERVER_V3: &[&str] = &[
    "",
    "GetAttr",
    "SetAttr",
    "Lookup",
    "Access",
    "ReadLink",
    "Read",
    "Write",
    "Create",
    "MkDir",
    "SymLink",
    "MkNod",
    "Remove",
    "RmDir",
    "Rename",
    "Link",
    "ReadDir",
    "ReadDirPlus",
    "FsStat",
    "FsInfo",
    "PathConf",
    "Commit",
];
