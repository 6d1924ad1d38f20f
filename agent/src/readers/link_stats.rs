//! Links by RTM_GETSTATS where there are many: what /proc/net/dev says, in 232 bytes a link that need no
//! printing and no parsing.
//!
//! ```text
//! text ── more than LINKS_MANY? ── as sure and cheaper? ─▶ answers ── refused, or an hour over ─▶ text
//!          └ asked between two readings of the text, which no value may leave; time of each
//! ```
//!
//! The kernel's answers have no names. A number's name is asked for once, and again when the kernel tells
//! that something about the link is new (`RTNLGRP_LINK`; more than its queue holds forgets all names).
#![expect(clippy::host_endian_bytes, reason = "netlink speaks the host's own order")]

use super::netlink::{HEADER_BYTES, REQUEST_DUMP, u16_at, u32_at};
use super::network::DEVICE;
use super::sheet::{Repair, Sheet, Vanish};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{bind, recv, send, socket};
use std::os::fd::{AsRawFd, OwnedFd};

/// The links by their numbers, and when to ask for them so.
#[derive(Debug, Default)]
pub(crate) struct LinkStats {
    chosen: bool,
    /// When the choice is made anew.
    next_ns: u64,
    asks: Option<OwnedFd>,
    news: Option<OwnedFd>,
    buffer: Vec<u8>,
    names: Vec<Name>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Name {
    number: u32,
    text: Box<[u8]>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    number: u32,
    values: [u64; DEVICE.len()],
}

impl LinkStats {
    /// Whether links are read here, and not as text.
    pub(crate) fn is_chosen(&self) -> bool {
        self.chosen
    }

    /// After a reading as text, which found `links`: whether the kernel is to be tried.
    pub(crate) fn is_due(&self, links: usize, now_ns: u64) -> bool {
        LINKS_MANY <= links && self.next_ns <= now_ns
    }

    /// Tries: `text` reads as text into a sheet. Whether it is as sure and cheaper.
    pub(crate) fn try_out(
        &mut self,
        now_ns: u64,
        clock: fn() -> u64,
        mut text: impl FnMut(&mut Sheet),
    ) {
        self.next_ns = now_ns.saturating_add(CHOICE_NS);
        let mut sheets = [(); 3].map(|()| Sheet::new(Vanish::Go));
        sheets.iter_mut().for_each(Sheet::learn);
        let [before, between, after] = &mut sheets;
        // Names first: they are asked for once.
        if !self.ask() {
            return;
        }
        let start = clock();
        text(before);
        let middle = clock();
        let answered = self.ask();
        self.put(between);
        let end = clock();
        text(after);
        let sure = answered && is_between(before, between, after);
        self.chosen = sure && end.saturating_sub(middle) < middle.saturating_sub(start);
        log::debug!(
            "links: text {} ns, netlink {} ns, the same: {sure}",
            middle.saturating_sub(start),
            end.saturating_sub(middle)
        );
        if !self.chosen {
            *self = Self { next_ns: self.next_ns, ..Self::default() };
        }
    }

    /// Asks for all; whether the kernel answered. Without an answer the text is read again, for an hour.
    pub(crate) fn read(&mut self, now_ns: u64) -> bool {
        if self.next_ns <= now_ns {
            // The choice is made anew, from the text.
            self.chosen = false;
            return false;
        }
        self.chosen = self.ask();
        self.chosen
    }

    /// What was told.
    pub(crate) fn put(&self, sheet: &mut Sheet) {
        for row in &self.rows {
            let name = self.names.binary_search_by_key(&row.number, |name| name.number);
            if let Some(name) = name.ok().and_then(|at| self.names.get(at)) {
                sheet.put(0, &name.text, &row.values.map(Some), Repair::None);
            }
        }
    }

    fn ask(&mut self) -> bool {
        let told = self.hear().and_then(|()| self.dump()).is_some();
        if !told {
            // Another socket next time.
            (self.asks, self.news) = (None, None);
            return false;
        }
        for row in &self.rows {
            let Err(at) = self.names.binary_search_by_key(&row.number, |name| name.number) else {
                continue;
            };
            // One that is gone already has none, and is left out.
            if let Ok(text) = nix::net::if_::if_indextoname(row.number) {
                let text = text.as_bytes().into();
                self.names.insert(at, Name { number: row.number, text });
            }
        }
        true
    }

    /// Forgets the names of links of which something is new.
    fn hear(&mut self) -> Option<()> {
        if self.news.is_none() {
            let news = open()?;
            bind(news.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK)).ok()?;
            self.news = Some(news);
            self.names.clear();
            self.buffer.resize(BUFFER_BYTES, 0);
        }
        let news = self.news.as_ref()?.as_raw_fd();
        loop {
            match recv(news, &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => {
                    let names = &mut self.names;
                    each(self.buffer.get(..length)?, |_, body| {
                        let number = u32_at(body, 4);
                        names.retain(|name| Some(name.number) != number);
                    });
                }
                Err(Errno::EAGAIN) => return Some(()),
                Err(Errno::ENOBUFS) => self.names.clear(),
                Err(_) => return None,
            }
        }
    }

    /// Every link's numbers, into `rows`.
    fn dump(&mut self) -> Option<()> {
        if self.asks.is_none() {
            self.asks = open();
        }
        let asks = self.asks.as_ref()?.as_raw_fd();
        send(asks, &request(), MsgFlags::empty()).ok()?;
        self.rows.clear();
        for _ in 0..ANSWERS_MAX {
            let length = recv(asks, &mut self.buffer, MsgFlags::empty()).ok()?;
            let rows = &mut self.rows;
            let end = each(self.buffer.get(..length)?, |kind, body| {
                if kind == RTM_NEWSTATS {
                    rows.extend(row(body));
                }
            });
            match end {
                End::More => {}
                End::Done => return Some(()),
                End::Refused => return None,
            }
        }
        None
    }
}

/// Whether more is to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    More,
    Done,
    Refused,
}

/// Hands kind and body of each message to `visit`.
fn each(answer: &[u8], mut visit: impl FnMut(u16, &[u8])) -> End {
    let mut rest = answer;
    while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = rest.get(HEADER_BYTES..length) else { return End::Refused };
        match i32::from(kind) {
            libc::NLMSG_DONE => return End::Done,
            libc::NLMSG_ERROR => return End::Refused,
            _ => visit(kind, body),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    End::More
}

/// `if_stats_msg` (family, padding, number, mask) and `IFLA_STATS_LINK_64`, before which there may be an
/// attribute that only makes it lie on eight bytes.
fn row(message: &[u8]) -> Option<Row> {
    let number = u32_at(message, 4)?;
    let mut attributes = message.get(STATS_BYTES..)?;
    loop {
        let (length, kind) = (usize::from(u16_at(attributes, 0)?), u16_at(attributes, 2)?);
        let body = attributes.get(4..length)?;
        if kind == STATS_LINK_64 {
            return Some(Row { number, values: values(body)? });
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// What the columns of /proc/net/dev are made of (`dev_seq_printf_stats`), by their places in
/// `rtnl_link_stats64`.
fn values(stats: &[u8]) -> Option<[u64; DEVICE.len()]> {
    let mut values = [0_u64; DEVICE.len()];
    for (value, places) in values.iter_mut().zip(SUMS) {
        for place in places {
            let bytes = stats.get(place * 8..place * 8 + 8)?;
            *value = value.wrapping_add(u64::from_ne_bytes(bytes.try_into().ok()?));
        }
    }
    Some(values)
}

/// Whether all three have the same links in any order, and no value of the second is outside of what the
/// first and the last have.
fn is_between(before: &Sheet, between: &Sheet, after: &Sheet) -> bool {
    let same = before.entries().len() == between.entries().len()
        && after.entries().len() == between.entries().len();
    same && between.entries().iter().all(|entry| {
        let (shape, key) = (entry.shape, &*entry.key);
        let low = before.entry_values(shape, key);
        let values = between.entry_values(shape, key);
        let high = after.entry_values(shape, key);
        let (Some(low), Some(values), Some(high)) = (low, values, high) else { return false };
        let mut all = low.iter().zip(values).zip(high);
        all.all(|((low, value), high)| low <= value && value <= high)
    })
}

/// For the fuzz target.
#[cfg(fuzzing)]
pub(crate) fn fuzz(answer: &[u8]) {
    let mut links = LinkStats::default();
    each(answer, |kind, body| {
        if kind == RTM_NEWSTATS {
            links.rows.extend(row(body));
        }
    });
    let text: Box<[u8]> = (*b"eth0").into();
    links.names.extend(links.rows.first().map(|row| Name { number: row.number, text }));
    let mut sheet = Sheet::new(Vanish::Go);
    sheet.learn();
    links.put(&mut sheet);
    assert!(sheet.width() <= DEVICE.len(), "one link has a name");
}

fn open() -> Option<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute).ok()
}

/// `nlmsghdr` and `if_stats_msg`.
fn request() -> [u8; HEADER_BYTES + STATS_BYTES] {
    let mut bytes = [0; HEADER_BYTES + STATS_BYTES];
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&RTM_GETSTATS.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes[24..28].copy_from_slice(&(1_u32 << (STATS_LINK_64 - 1)).to_ne_bytes());
    bytes
}

/// Fewer are as cheap as text.
pub(crate) const LINKS_MANY: usize = 64;
const CHOICE_NS: u64 = 3_600_000_000_000;
const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;
const RTMGRP_LINK: u32 = 1;
const STATS_LINK_64: u16 = 1;
const STATS_BYTES: usize = 12;
/// The kernel fills what it is given, up to this.
const BUFFER_BYTES: usize = 32 << 10;
/// A hundred links each.
const ANSWERS_MAX: usize = 1000;
/// Received: bytes, packets, errors, drops, FIFO, frame, compressed, multicast; sent: bytes, packets,
/// errors, drops, FIFO, collisions, carrier, compressed.
const SUMS: [&[usize]; DEVICE.len()] = [
    &[2],
    &[0],
    &[4],
    &[6, 15],
    &[14],
    &[10, 11, 12, 13],
    &[21],
    &[8],
    &[3],
    &[1],
    &[5],
    &[7],
    &[18],
    &[9],
    &[16, 17, 19, 20],
    &[22],
];

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests;
