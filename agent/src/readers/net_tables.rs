//! Tables of the network stack: softnet_stat, nf_conntrack, arp, udp.

use super::sheet::{Repair, Sheet};
use super::text::{lines, words};
use super::{COUNTER, GAUGE, column};
use strobe_wire::schema::Column;

/// `00f50059 00000000 00000002 …`, a line a CPU. Since Linux 5.10 the thirteenth word is the CPU's
/// number; before, offline CPUs had no line, and the n-th line was called CPU n (as node_exporter
/// 1.5 still does).
pub(super) fn parse_softnet(bytes: &[u8], sheet: &mut Sheet) {
    // Before 5.10 a row does not say whose it is, and a CPU that is off line has none: where there are fewer
    // rows than there were, nobody knows which is whose.
    let rows = lines(bytes).count();
    sheet.most = sheet.most.max(rows);
    let is_short = rows < sheet.most;
    for (index, line) in lines(bytes).enumerate() {
        let mut words = words(line);
        let values: [Option<u64>; SOFTNET.len()] =
            std::array::from_fn(|_| words.next().and_then(hexadecimal));
        let by_place = || u64::try_from(index).ok().filter(|_| !is_short);
        let number = words.nth(9).and_then(hexadecimal).or_else(by_place);
        if values.iter().all(Option::is_some)
            && let Some(number) = number
        {
            sheet.put(0, Digits::new(number).bytes(), &values, Repair::None);
        }
    }
}

pub(super) fn softnet_columns(cpu: &str) -> Vec<Column> {
    SOFTNET.map(|name| column(name, &[("cpu", cpu)], COUNTER)).into()
}

/// A line a CPU below a heading, in hexadecimal, whose sum is told. `entries` is the same in each.
pub(super) fn parse_conntrack(bytes: &[u8], sheet: &mut Sheet) {
    let mut sums = [None; CONNTRACK.len()];
    for line in lines(bytes).skip(1) {
        for (at, word) in words(line).enumerate() {
            let place = CONNTRACK.iter().position(|(field, _)| *field == at);
            let Some(sum) = place.and_then(|place| sums.get_mut(place)) else { continue };
            let Some(value) = hexadecimal(word) else { continue };
            *sum = Some(sum.unwrap_or(0_u64).saturating_add(value));
        }
    }
    if sums.iter().any(Option::is_some) {
        sheet.put(0, b"", &sums, Repair::None);
    }
}

pub(super) fn conntrack_columns() -> Vec<Column> {
    CONNTRACK.map(|(_, name)| column(name, &[], GAUGE)).into()
}

/// `192.0.2.1  0x1  0x2  02:fc:00:00:00:05  *  eth0`: how many a device has.
pub(super) fn parse_arp(bytes: &[u8], sheet: &mut Sheet) {
    let mut counts: [(&[u8], u64); ARP_DEVICES_MAX] = [(b"", 0); ARP_DEVICES_MAX];
    for line in lines(bytes).skip(1) {
        let Some(device) = words(line).nth(5) else { continue };
        let free = |known: &&mut (&[u8], u64)| known.1 == 0 || known.0 == device;
        // A bridge of many containers has one device; hundreds of devices with neighbours are
        // left out beyond the last place.
        if let Some(place) = counts.iter_mut().find(free) {
            *place = (device, place.1 + 1);
        }
    }
    for (device, count) in counts.iter().take_while(|(_, count)| 0 < *count) {
        sheet.put(0, device, &[Some(*count)], Repair::None);
    }
}

pub(super) fn arp_columns(device: &str) -> Vec<Column> {
    vec![column("node_arp_entries", &[("device", device)], GAUGE)]
}

/// `6: 00000000:B2DE 00000000:0000 07 00000000:00000340 …`, a line a socket: the sums of both
/// queues in bytes.
pub(super) fn parse_udp(bytes: &[u8], sheet: &mut Sheet) {
    let (mut sent, mut received) = (0_u64, 0_u64);
    for line in lines(bytes).skip(1) {
        let Some(queues) = words(line).nth(4) else { continue };
        let Some((tx, rx)) = queues.split_at_checked(8) else { continue };
        let rx = rx.strip_prefix(b":").and_then(hexadecimal);
        let (Some(tx), Some(rx)) = (hexadecimal(tx), rx) else { continue };
        sent = sent.saturating_add(tx);
        received = received.saturating_add(rx);
    }
    sheet.put(0, b"", &[Some(sent), Some(received)], Repair::None);
}

pub(super) fn udp_columns(version: &str) -> Vec<Column> {
    let queue = |queue| column("node_udp_queues", &[("queue", queue), ("ip", version)], GAUGE);
    vec![queue("tx"), queue("rx")]
}

/// `cpu0 0 0 0 0 0 0 2045936778163039 343796328169361 4767485306`: the last three fields are ns
/// running, ns waiting and time slices. Lines of scheduling domains stand between.
pub(super) fn parse_schedstat(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes) {
        let Some(rest) = line.strip_prefix(b"cpu") else { continue };
        let mut words = words(rest);
        let Some(cpu) = words.next().filter(|cpu| super::text::number(cpu).is_some()) else {
            continue;
        };
        let mut words = words.skip(6);
        let values: [Option<u64>; 3] = std::array::from_fn(|_| super::text::next(&mut words));
        if values.iter().any(Option::is_some) {
            sheet.put(0, cpu, &values, Repair::None);
        }
    }
}

pub(super) fn schedstat_columns(cpu: &str) -> Vec<Column> {
    let labels = [("cpu", cpu)];
    vec![
        column("node_schedstat_running_seconds_total", &labels, super::NANOSECONDS),
        column("node_schedstat_waiting_seconds_total", &labels, super::NANOSECONDS),
        column("node_schedstat_timeslices_total", &labels, COUNTER),
    ]
}

/// At most sixteen hexadecimal digits.
pub(super) fn hexadecimal(word: &[u8]) -> Option<u64> {
    if word.is_empty() || 16 < word.len() {
        return None;
    }
    word.iter().try_fold(0_u64, |value, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

/// A number's digits, on the stack.
pub(super) struct Digits {
    bytes: [u8; 20],
    first: usize,
}

impl Digits {
    pub(super) fn new(mut value: u64) -> Self {
        let mut digits = Self { bytes: [b'0'; 20], first: 20 };
        loop {
            digits.first -= 1;
            if let Some(byte) = digits.bytes.get_mut(digits.first) {
                *byte = b'0' + u8::try_from(value % 10).unwrap_or(0);
            }
            value /= 10;
            if value == 0 {
                return digits;
            }
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.first..).unwrap_or(&[])
    }
}

const SOFTNET: [&str; 3] = [
    "node_softnet_processed_total",
    "node_softnet_dropped_total",
    "node_softnet_times_squeezed_total",
];
/// Field of a line and metric, as node_exporter takes them.
const CONNTRACK: [(usize, &str); 8] = [
    (2, "node_nf_conntrack_stat_found"),
    (4, "node_nf_conntrack_stat_invalid"),
    (5, "node_nf_conntrack_stat_ignore"),
    (8, "node_nf_conntrack_stat_insert"),
    (9, "node_nf_conntrack_stat_insert_failed"),
    (10, "node_nf_conntrack_stat_drop"),
    (11, "node_nf_conntrack_stat_early_drop"),
    (16, "node_nf_conntrack_stat_search_restart"),
];
const ARP_DEVICES_MAX: usize = 128;
