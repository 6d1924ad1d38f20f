//! /proc/net: dev, sockstat, netstat, snmp, snmp6.

use super::picks::Picks;
use super::sheet::{Repair, Sheet};
use super::text::{fields, lines, next, number, signed, words};
use super::{COUNTER, GAUGE, column, metric_text};
use strobe_wire::schema::Column;

/// `eth0: 313369549 9452 …`, eight fields received and eight sent.
pub(super) fn parse_devices(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes) {
        // An alias has a colon of its own (`eth0:1:`), numbers have none.
        let Some(colon) = line.iter().rposition(|byte| *byte == b':') else { continue };
        let Some((name, rest)) = line.split_at_checked(colon) else { continue };
        let mut words = words(rest.get(1..).unwrap_or(&[]));
        let values: [Option<u64>; DEVICE.len()] = std::array::from_fn(|_| next(&mut words));
        if values.iter().any(Option::is_some) {
            sheet.put(0, name.trim_ascii(), &values, Repair::None);
        }
    }
}

pub(super) fn device_columns(device: &str) -> Vec<Column> {
    DEVICE.iter().map(|name| column(name, &[("device", device)], COUNTER)).collect()
}

/// `TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 144`; `mem` is pages and is given in bytes as well.
pub(super) fn parse_sockstat(bytes: &[u8], page_bytes: u64, sheet: &mut Sheet) {
    for line in lines(bytes) {
        let mut words = words(line);
        let Some(protocol) = words.next().and_then(|word| word.strip_suffix(b":")) else {
            continue;
        };
        while let (Some(field), Some(value)) = (words.next(), words.next()) {
            let mut key = Key::new();
            if !(key.push(protocol) && key.push(b"_") && key.push(field)) {
                continue;
            }
            let value = number(value);
            let pages = value.and_then(|pages| pages.checked_mul(page_bytes));
            match field {
                b"mem" => sheet.put(PAGES, key.bytes(), &[value, pages], Repair::None),
                _ => sheet.put(PLAIN, key.bytes(), &[value], Repair::None),
            }
        }
    }
}

pub(super) fn sockstat_columns(shape: u8, key: &str) -> Vec<Column> {
    let name = format!("node_sockstat_{}", metric_text(key));
    match shape {
        PAGES => vec![column(&name, &[], GAUGE), column(&format!("{name}_bytes"), &[], GAUGE)],
        _ => vec![column(&name, &[], GAUGE)],
    }
}

/// Pairs of lines, `Tcp: RtoAlgorithm …` and `Tcp: 1 …`, of netstat and snmp.
pub(super) fn parse_pairs(bytes: &[u8], sheet: &mut Sheet) {
    let mut picks = std::mem::take(&mut sheet.picks);
    if !picks.fit(bytes) {
        learn_pairs(bytes, &mut picks);
    }
    picks.each(bytes, |key, value| put_value(key, value, sheet));
    sheet.picks = picks;
}

fn learn_pairs(bytes: &[u8], picks: &mut Picks) {
    picks.clear();
    let mut lines = lines(bytes);
    while let (Some(line), Some(values)) = (lines.next(), lines.next()) {
        let (mut names, mut values) = (fields(line), fields(values));
        let first = names.next().unwrap_or(&[]);
        let protocol = first.strip_suffix(b":");
        let protocol = protocol.filter(|_| line.starts_with(first) && values.next() == Some(first));
        picks.pair(line, protocol.map(|_| first.len()));
        let Some(protocol) = protocol else { continue };
        for (index, field) in names.enumerate() {
            let mut key = Key::new();
            let wanted = is_wanted(protocol, field);
            if wanted && key.push(protocol) && key.push(b"_") && key.push(field) {
                picks.pick(index, key.bytes());
            }
        }
    }
}

/// `Ip6InOctets  128`: the protocol ends with the first `6`.
pub(super) fn parse_six(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes) {
        let mut words = words(line);
        let Some(key) = words.next() else { continue };
        let Some(six) = key.iter().position(|byte| *byte == b'6') else { continue };
        let Some((protocol, field)) = key.split_at_checked(six + 1) else { continue };
        if is_wanted(protocol, field)
            && let Some(value) = words.next()
        {
            put_field(protocol, field, value, sheet);
        }
    }
}

pub(super) fn field_columns(shape: u8, key: &str) -> Vec<Column> {
    let kind = if shape == LEVEL { GAUGE } else { COUNTER };
    vec![column(&format!("node_netstat_{}", metric_text(key)), &[], kind)]
}

fn put_field(protocol: &[u8], field: &[u8], value: &[u8], sheet: &mut Sheet) {
    let mut key = Key::new();
    if key.push(protocol) && key.push(b"_") && key.push(field) {
        put_value(key.bytes(), value, sheet);
    }
}

fn put_value(key: &[u8], value: &[u8], sheet: &mut Sheet) {
    match key {
        b"Tcp_CurrEstab" | b"Ip_Forwarding" => {
            sheet.put(LEVEL, key, &[signed(value)], Repair::None);
        }
        _ => sheet.put(PLAIN, key, &[number(value)], Repair::None),
    }
}

/// node_exporter's default field filter (that of 1.8, which has two TcpExt fields more than 1.5).
fn is_wanted(protocol: &[u8], field: &[u8]) -> bool {
    if matches!(field, b"InErrors" | b"InErrs") {
        return true;
    }
    let fields: &[&[u8]] = match protocol {
        b"Ip" => &[b"Forwarding"],
        b"Ip6" | b"IpExt" => &[b"InOctets", b"OutOctets"],
        b"Icmp" | b"Icmp6" => &[b"InMsgs", b"OutMsgs"],
        // Of 130 fields most are told by their first letter.
        b"TcpExt" => match field.first() {
            Some(b'L') => return field.starts_with(b"Listen"),
            Some(b'S') => return field.starts_with(b"Syncookies"),
            Some(b'T') => &[b"TCPSynRetrans", b"TCPTimeouts", b"TCPOFOQueue", b"TCPRcvQDrop"],
            _ => &[],
        },
        b"Tcp" => &[
            b"ActiveOpens",
            b"InSegs",
            b"OutSegs",
            b"OutRsts",
            b"PassiveOpens",
            b"RetransSegs",
            b"CurrEstab",
        ],
        b"Udp" | b"Udp6" => {
            &[b"InDatagrams", b"OutDatagrams", b"NoPorts", b"RcvbufErrors", b"SndbufErrors"]
        }
        _ => &[],
    };
    fields.contains(&field)
}

/// A key put together on the stack.
struct Key {
    bytes: [u8; 128],
    length: usize,
}

impl Key {
    fn new() -> Self {
        Self { bytes: [0; 128], length: 0 }
    }

    /// Whether there was room.
    fn push(&mut self, part: &[u8]) -> bool {
        let end = self.length + part.len();
        let Some(room) = self.bytes.get_mut(self.length..end) else { return false };
        room.copy_from_slice(part);
        self.length = end;
        true
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

const PLAIN: u8 = 0;
const PAGES: u8 = 1;
const LEVEL: u8 = 2;
pub(super) const DEVICE: [&str; 16] = [
    "node_network_receive_bytes_total",
    "node_network_receive_packets_total",
    "node_network_receive_errs_total",
    "node_network_receive_drop_total",
    "node_network_receive_fifo_total",
    "node_network_receive_frame_total",
    "node_network_receive_compressed_total",
    "node_network_receive_multicast_total",
    "node_network_transmit_bytes_total",
    "node_network_transmit_packets_total",
    "node_network_transmit_errs_total",
    "node_network_transmit_drop_total",
    "node_network_transmit_fifo_total",
    "node_network_transmit_colls_total",
    "node_network_transmit_carrier_total",
    "node_network_transmit_compressed_total",
];
