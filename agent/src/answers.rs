//! What is asked of this host, in text: the processes, sockets and mounts that there are now. It reads, and
//! changes nothing; every answer has a bound.

use crate::config::Config;
use crate::exposition;
use crate::readers::text::{number, words};
use crate::sampler::CATALOG;
use crate::sampler::{Sampler, Tick, Trees};
use crate::schemas::Table;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use strobe_wire::message::ANSWER_BYTES_MAX;

/// What processes had used at one moment.
#[derive(Debug, Default)]
pub(crate) struct Used {
    by_pid: BTreeMap<u64, Process>,
}

#[derive(Clone, Debug)]
struct Process {
    name: String,
    state: char,
    started: u64,
    ticks: u64,
    pages: u64,
    threads: u64,
}

/// Looks at all processes, [`PROCESSES_MAX`] at most.
pub(crate) fn used(procfs: &Path) -> Used {
    let mut used = Used::default();
    let Ok(entries) = fs::read_dir(procfs) else { return used };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for pid in pids.take(PROCESSES_MAX) {
        let stat = fs::read(procfs.join(format!("{pid}/stat"))).ok();
        if let Some(process) = stat.as_deref().and_then(process) {
            used.by_pid.insert(pid, process);
        }
    }
    used
}

/// Those that used most of the processors between two moments, then those that have most memory.
pub(crate) fn top(before: &Used, after: &Used, ms: u64, page_bytes: u64) -> String {
    let mut rows: Vec<(u64, u64, &Process)> = Vec::new();
    for (pid, process) in &after.by_pid {
        let same = before.by_pid.get(pid).filter(|before| before.started == process.started);
        let ticks = same.map_or(0, |before| process.ticks.saturating_sub(before.ticks));
        // A tick is 10 ms wherever Linux tells user space of it.
        rows.push((ticks * 1_000 * 10 / ms.max(1), *pid, process));
    }
    let mut out = format!("{} processes; CPU within {ms} ms\n", rows.len());
    out += "      PID   CPU%    RSS MiB THREADS STATE NAME\n";
    let mut say = |rows: &[(u64, u64, &Process)]| {
        for (permille, pid, process) in rows.iter().take(TOP) {
            let kib = process.pages.saturating_mul(page_bytes) >> 10;
            let written = writeln!(
                out,
                "{pid:>9} {:>4}.{} {:>8}.{} {:>7} {:>5} {}",
                permille / 10,
                permille % 10,
                kib >> 10,
                ((kib & 1_023) * 10) >> 10,
                process.threads,
                process.state,
                process.name
            );
            debug_assert!(written.is_ok(), "writing to a String does not fail");
        }
    };
    rows.sort_by_key(|(permille, pid, _)| (std::cmp::Reverse(*permille), *pid));
    say(&rows);
    rows.sort_by_key(|(_, pid, process)| (std::cmp::Reverse(process.pages), *pid));
    say(&rows);
    out
}

/// Sockets that listen or are connected.
pub(crate) fn sockets(procfs: &Path) -> String {
    let mut out = "PROTO STATE        RECV-Q   SEND-Q LOCAL REMOTE UID\n".to_owned();
    let (mut told, mut left) = (0, 0_u64);
    for protocol in ["tcp", "tcp6", "udp", "udp6"] {
        // The host's, where /proc is another namespace's.
        let first = fs::File::open(procfs.join("1/net").join(protocol));
        let file = first.or_else(|_| fs::File::open(procfs.join("net").join(protocol)));
        // Line by line: a million sockets are 150 MB of text.
        let lines = file.into_iter().flat_map(|file| BufReader::new(file).lines());
        for line in lines.map_while(Result::ok).skip(1) {
            if SOCKETS_MAX <= told || ANSWER_BYTES_MAX / 2 < out.len() {
                left += 1;
            } else if let Some(row) = socket(protocol, &line) {
                out += &row;
                told += 1;
            }
        }
    }
    if 0 < left {
        out += &format!("… and {left} more\n");
    }
    out
}

/// Mounts with their space; one that does not answer is named as such.
pub(crate) fn mounts(config: &Config, clock: fn() -> u64, now: Tick, wait: Duration) -> String {
    let mut trees: Trees = config.trees();
    trees.choice.enable.clear();
    let others =
        CATALOG.iter().map(|collector| collector.name).filter(|name| *name != "filesystem");
    trees.choice.disable = others.map(str::to_owned).collect();
    let mut sampler = Sampler::new(&trees, clock, Arc::new(Table::new()));
    let text = exposition::sample(&mut sampler, now, wait);
    let mut rows: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("node_filesystem_")) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
        rows.entry(labels).or_default().insert(name, value.parse().unwrap_or(0.0));
    }
    let mut out = "   SIZE MiB  AVAIL MiB USED% MOUNT\n".to_owned();
    for (labels, of) in rows.iter().take(MOUNTS_MAX) {
        let value = |name: &str| of.get(name).copied().unwrap_or(0.0);
        let (size, free) = (value("size_bytes"), value("free_bytes"));
        let used = if 0.0 < size { 100.0 * (size - free) / size } else { 0.0 };
        let hung = if 0.0 < value("device_error") { " (does not answer)" } else { "" };
        let ro = if 0.0 < value("readonly") { " (read only)" } else { "" };
        let (size, avail) = (size / f64::from(1 << 20), value("avail_bytes") / f64::from(1 << 20));
        out += &format!("{size:>11.0} {avail:>10.0} {used:>5.1} {labels}{ro}{hung}\n");
    }
    out
}

/// An answer that fits.
pub(crate) fn bounded(mut text: String) -> String {
    if ANSWER_BYTES_MAX < text.len() {
        let at = text.floor_char_boundary(ANSWER_BYTES_MAX - 16);
        text.truncate(at);
        text.push_str("\n… cut off\n");
    }
    text
}

fn process(stat: &[u8]) -> Option<Process> {
    // The name is in brackets and may hold any byte, brackets too.
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let name = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    let name = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let mut rest = words(stat.get(close + 1..)?);
    let state = rest.next()?.first().copied()?;
    let values: Vec<u64> = rest.map(|word| number(word).unwrap_or(0)).collect();
    let value = |at: usize| values.get(at).copied().unwrap_or(0);
    Some(Process {
        name,
        state: char::from(state),
        ticks: value(10).saturating_add(value(11)),
        threads: value(16),
        started: value(18),
        pages: value(20),
    })
}

fn socket(protocol: &str, line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, remote) = (address(words.next()?)?, address(words.next()?)?);
    let state = usize::from_str_radix(words.next()?, 16).ok()?;
    let state = if protocol.starts_with("udp") { "-" } else { STATES.get(state).copied()? };
    let (send, receive) = words.next()?.split_once(':')?;
    let queue = |text| u64::from_str_radix(text, 16).ok();
    let (send, receive) = (queue(send)?, queue(receive)?);
    let uid = words.nth(2)?;
    Some(format!("{protocol:<5} {state:<12} {receive:>6} {send:>8} {local} {remote} {uid:.10}\n"))
}

/// `0100007F:1F90`, or with 32 digits, in the order of this machine's bytes.
fn address(text: &str) -> Option<String> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(ip.get(8 * at..8 * at + 8)?, 16).ok()?;
        // What the kernel prints as one number are four bytes of its memory.
        Some(if cfg!(target_endian = "big") { word.to_be_bytes() } else { word.to_le_bytes() })
    };
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(std::net::SocketAddr::new(ip, port).to_string())
}

const STATES: [&str; 13] = [
    "?",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
];
const PROCESSES_MAX: usize = 50_000;
const TOP: usize = 15;
const SOCKETS_MAX: usize = 500;
const MOUNTS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_and_sockets_of_hostile_files() {
        let line = b"7 (a) b\x1b) R 1 1 1 0 -1 4194304 0 0 0 0 150 50 0 0 20 0 3 0 999 10000 25 18";
        let found = process(line).unwrap();
        assert_eq!((found.name.as_str(), found.state, found.ticks), ("a) b?", 'R', 200));
        assert_eq!((found.threads, found.started, found.pages), (3, 999, 25));
        for end in 0..line.len() {
            process(&line[..end]);
        }
        let text =
            "  0: 0100007F:1F90 00000000:0000 0A 00000002:00000001 00:00000000 00000000  1000 0 1";
        let row = socket("tcp", text).unwrap();
        assert_eq!(row, "tcp   LISTEN            1        2 127.0.0.1:8080 0.0.0.0:0 1000\n");
        for end in 0..text.len() {
            socket("tcp", text.get(..end).unwrap());
        }
        assert_eq!(socket("tcp", &text.replace(" 0A ", " FF ")), None);
        let six = address("00000000000000000000000001000000:0050").unwrap();
        assert_eq!(six, "[::1]:80");
    }

    #[test]
    fn who_used_most_comes_first() {
        let of = |ticks, started| Process {
            name: format!("p{started}"),
            state: 'S',
            started,
            ticks,
            pages: 256 * started,
            threads: 1,
        };
        let used = |list: &[(u64, Process)]| Used { by_pid: list.iter().cloned().collect() };
        let before = used(&[(1, of(10, 1)), (2, of(10, 2)), (3, of(500, 3))]);
        let after = used(&[(1, of(10, 1)), (2, of(60, 2)), (3, of(900, 4))]);
        let text = top(&before, &after, 1_000, 4_096);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(lines[0].contains(" 50.0 ") && lines[0].ends_with("p2"), "{text}");
        // Another process of the same number has used nothing yet, and most of the memory.
        assert!(lines[3].contains("  0.0 ") && lines[3].ends_with("p4"), "{text}");
        assert!(bounded("ü".repeat(ANSWER_BYTES_MAX)).len() <= ANSWER_BYTES_MAX);
        let here = used_here();
        assert!(here.contains("processes") && here.lines().count() > 3, "{here}");
    }

    fn used_here() -> String {
        let used = used(Path::new("/proc"));
        top(&used, &used, 1_000, 4_096)
    }
}
