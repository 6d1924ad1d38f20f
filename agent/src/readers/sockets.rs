//! TCP sockets as the kernel counts them, by sock_diag(7): how many in each state, and how full the
//! queues of those that listen are. /proc/net/tcp would be 150 bytes of text a socket.
//!
//! One request a family is dumped into one buffer. Of listening sockets only those that listen are
//! asked for, so a host of a million connections pays for its listeners alone.
#![expect(clippy::host_endian_bytes, reason = "netlink speaks the host's own order")]

use super::netlink::{HEADER_BYTES, REQUEST_DUMP, u16_at, u32_at};
use super::sheet::{Repair, Sheet};
use super::{COUNTER, GAUGE, column};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{recv, send, socket};
use std::os::fd::{AsRawFd, OwnedFd};
use strobe_wire::schema::Column;

/// What is asked of each socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Question {
    /// How many there are in each state, and what their queues hold in all.
    States,
    /// The queue of each that listens.
    Listeners,
}

/// A socket to the kernel and the buffer for its answers.
#[derive(Debug)]
pub(crate) struct Sockets {
    question: Question,
    link: Option<OwnedFd>,
    buffer: Vec<u8>,
    sums: [u64; STATES.len() + 2],
    listeners: Vec<Listener>,
    /// Whether the kernel answered.
    told: bool,
}

/// One listening socket: those of one port and address are told as one.
#[derive(Clone, Copy, Debug)]
struct Listener {
    family: u8,
    address: [u8; 16],
    port: u16,
    queued: u64,
    limit: u64,
    /// Connections turned away since it listens; none where the kernel does not say.
    drops: Option<u64>,
}

impl Sockets {
    pub(crate) fn new(question: Question) -> Self {
        Self {
            question,
            link: None,
            buffer: vec![0; BUFFER_BYTES],
            sums: [0; STATES.len() + 2],
            listeners: Vec::new(),
            told: false,
        }
    }

    /// Asks for the sockets of both families.
    pub(super) fn ask(&mut self) {
        self.told = false;
        self.sums = [0; STATES.len() + 2];
        self.listeners.clear();
        for family in [libc::AF_INET, libc::AF_INET6] {
            // A kernel without IPv6 refuses the second; what the first said stands.
            let told = self.dump(u8::try_from(family).unwrap_or(0)).is_some();
            if !told && family == libc::AF_INET {
                self.link = None;
                return;
            }
        }
        self.told = true;
        self.merge();
        let key = |listener: &Listener| (listener.family, listener.address, listener.port);
        self.listeners.sort_unstable_by(|a, b| b.queued.cmp(&a.queued).then(key(a).cmp(&key(b))));
    }

    /// What was told.
    pub(super) fn put(&self, sheet: &mut Sheet) {
        match self.question {
            _ if !self.told => {}
            Question::States => {
                let values = self.sums.map(Some);
                sheet.put(STATE, b"", &values, Repair::None);
            }
            Question::Listeners => self.put_listeners(sheet),
        }
    }

    /// The fullest queues, and all others together.
    fn put_listeners(&self, sheet: &mut Sheet) {
        let mut others = (0_u64, 0_u64);
        for (place, listener) in self.listeners.iter().enumerate() {
            if LISTENERS_MAX <= place {
                others.0 = others.0.saturating_add(listener.queued);
                others.1 = others.1.saturating_add(listener.limit);
                continue;
            }
            let mut key = [0; 19];
            key[0] = listener.family;
            key[1..17].copy_from_slice(&listener.address);
            key[17..19].copy_from_slice(&listener.port.to_be_bytes());
            let values = [Some(listener.queued), Some(listener.limit), listener.drops];
            sheet.put(LISTENER, &key, &values, Repair::None);
        }
        sheet.put(OTHERS, b"", &[Some(others.0), Some(others.1)], Repair::None);
    }

    /// Sockets that share a port (`SO_REUSEPORT`) have a queue each.
    fn merge(&mut self) {
        let key = |listener: &Listener| (listener.family, listener.address, listener.port);
        self.listeners.sort_unstable_by_key(key);
        self.listeners.dedup_by(|later, first| {
            let same = key(later) == key(first);
            if same {
                first.queued = first.queued.saturating_add(later.queued);
                first.limit = first.limit.saturating_add(later.limit);
                let drops = first.drops.zip(later.drops);
                first.drops = drops.map(|(first, later)| first.saturating_add(later));
            }
            same
        });
    }

    /// Asks for the sockets of a family and takes every answer; `None` if the kernel refuses.
    fn dump(&mut self, family: u8) -> Option<()> {
        if self.link.is_none() {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let protocol = SockProtocol::NetlinkSockDiag;
            self.link = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).ok();
        }
        let link = self.link.as_ref()?.as_raw_fd();
        let states = if self.question == Question::Listeners { 1 << LISTEN } else { u32::MAX };
        send(link, &request(family, states), MsgFlags::empty()).ok()?;
        for _ in 0..ANSWERS_MAX {
            let length = recv(link, &mut self.buffer, MsgFlags::empty()).ok()?;
            let (sums, listeners) = (&mut self.sums, &mut self.listeners);
            let answer = self.buffer.get(..length)?;
            let take = |socket: &[u8]| match self.question {
                Question::States => count(socket, sums),
                Question::Listeners => listeners.extend(listener(socket)),
            };
            match messages(answer, take) {
                End::More => {}
                End::Done => return Some(()),
                End::Refused => return None,
            }
        }
        // An answer without an end: another socket next time.
        None
    }
}

pub(super) fn columns(shape: u8, key: &[u8]) -> Vec<Column> {
    let queue = |labels: &[(&str, &str)]| {
        let names = ["strobe_tcp_listen_queued", "strobe_tcp_listen_queue_limit"];
        names.map(|name| column(name, labels, GAUGE)).to_vec()
    };
    match shape {
        STATE => {
            let states = STATES.iter().chain(&["rx_queued_bytes", "tx_queued_bytes"]);
            let state =
                |state: &&str| column("node_tcp_connection_states", &[("state", state)], GAUGE);
            states.map(state).collect()
        }
        OTHERS => queue(&[("address", "other")]),
        _ => {
            let (Some(family), Some(address), Some(port)) =
                (key.first(), key.get(1..17), key.get(17..19))
            else {
                return Vec::new();
            };
            let mut bytes = [0; 16];
            bytes.copy_from_slice(address);
            let address = if i32::from(*family) == libc::AF_INET {
                let [a, b, c, d, ..] = bytes;
                std::net::Ipv4Addr::new(a, b, c, d).to_string()
            } else {
                std::net::Ipv6Addr::from(bytes).to_string()
            };
            let port = port.iter().fold(0_u16, |port, byte| port << 8 | u16::from(*byte));
            let port = port.to_string();
            let labels = [("address", &*address), ("port", &*port)];
            let mut columns = queue(&labels);
            columns.push(column("strobe_tcp_listen_drops_total", &labels, COUNTER));
            columns
        }
    }
}

/// Whether more is to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    More,
    Done,
    Refused,
}

/// Hands the sockets of one answer to `each`.
fn messages(answer: &[u8], mut each: impl FnMut(&[u8])) -> End {
    let mut rest = answer;
    while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = rest.get(HEADER_BYTES..length) else { return End::Refused };
        match i32::from(kind) {
            libc::NLMSG_DONE => return End::Done,
            libc::NLMSG_ERROR => return End::Refused,
            _ => each(body),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    End::More
}

/// `inet_diag_msg`: family, state, timer, retransmissions, 48 bytes of who with whom, expiry, both
/// queues.
fn count(socket: &[u8], sums: &mut [u64; STATES.len() + 2]) {
    let state = socket.get(1).map_or(0, |state| usize::from(*state));
    let queues = [u32_at(socket, 56), u32_at(socket, 60)].map(|queue| queue.unwrap_or(0));
    if let Some(sum) =
        state.checked_sub(1).filter(|at| *at < STATES.len()).and_then(|at| sums.get_mut(at))
    {
        *sum += 1;
    }
    for (sum, queue) in sums.iter_mut().skip(STATES.len()).zip(queues) {
        *sum = sum.saturating_add(u64::from(queue));
    }
}

/// Of a socket that listens the queues are how many wait to be accepted, and how many may.
fn listener(socket: &[u8]) -> Option<Listener> {
    let mut address = [0; 16];
    address.copy_from_slice(socket.get(8..24)?);
    let port = socket.get(4..6)?.iter().fold(0, |port, byte| port << 8 | u16::from(*byte));
    Some(Listener {
        family: *socket.first()?,
        address,
        port,
        queued: u64::from(u32_at(socket, 56)?),
        limit: u64::from(u32_at(socket, 60)?),
        drops: drops(socket.get(MESSAGE_BYTES..)?),
    })
}

/// `SK_MEMINFO_DROPS`, the ninth number of the attribute.
fn drops(mut attributes: &[u8]) -> Option<u64> {
    loop {
        let (length, kind) = (usize::from(u16_at(attributes, 0)?), u16_at(attributes, 2)?);
        let body = attributes.get(4..length)?;
        if kind == MEMORY_INFO {
            return u32_at(body, 8 * 4).map(u64::from);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// `nlmsghdr` and `inet_diag_req_v2`.
fn request(family: u8, states: u32) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    let length = u32::try_from(REQUEST_BYTES).unwrap_or(0);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes[16] = family;
    bytes[17] = IPPROTO_TCP;
    // Only of those that listen is more wanted than each message has.
    if states == 1 << LISTEN {
        bytes[18] = 1 << (MEMORY_INFO - 1);
    }
    bytes[20..24].copy_from_slice(&states.to_ne_bytes());
    bytes
}

/// For the fuzz target.
#[cfg(fuzzing)]
pub(crate) fn fuzz(answer: &[u8]) {
    let mut sockets = Sockets::new(Question::Listeners);
    let (sums, listeners) = (&mut sockets.sums, &mut sockets.listeners);
    messages(answer, |socket| {
        count(socket, sums);
        listeners.extend(listener(socket));
    });
    sockets.told = true;
    sockets.merge();
    let mut sheet = Sheet::new(super::sheet::Vanish::Go);
    sheet.learn();
    sockets.put(&mut sheet);
    for entry in sheet.entries() {
        assert_eq!(columns(entry.shape, &entry.key).len(), entry.count);
    }
}

const STATE: u8 = 0;
const LISTENER: u8 = 1;
const OTHERS: u8 = 2;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const IPPROTO_TCP: u8 = 6;
/// `INET_DIAG_SKMEMINFO`.
const MEMORY_INFO: u16 = 7;
/// `inet_diag_msg`; attributes follow.
const MESSAGE_BYTES: usize = 72;
const REQUEST_BYTES: usize = HEADER_BYTES + 56;
const LISTEN: u32 = 10;
/// The kernel fills what it is given, up to this.
const BUFFER_BYTES: usize = 32 << 10;
/// Some three hundred sockets each.
const ANSWERS_MAX: usize = 20_000;
/// Queues told by name.
const LISTENERS_MAX: usize = 50;
/// In the order of the kernel's numbers, from 1.
const STATES: [&str; 11] = [
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
];

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::readers::sheet::{Outcome, Vanish};

    #[test]
    fn a_port_that_listens_is_told_with_its_queue() {
        let first = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let _waiting = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut sockets = Sockets::new(Question::Listeners);
        let mut sheet = Sheet::new(Vanish::Go);
        sheet.learn();
        sockets.ask();
        sockets.put(&mut sheet);
        sheet.learned();
        let mut first = 0;
        let mut found = None;
        for entry in sheet.entries() {
            let columns = columns(entry.shape, &entry.key);
            assert_eq!(columns.len(), entry.count);
            if columns[0].labels.value("port") == Some(&*port.to_string()) {
                found = Some((columns[0].labels.value("address").unwrap().to_owned(), first));
            }
            first += entry.count;
        }
        let (address, first) = found.expect("our port");
        assert_eq!((&*address, sheet.value(first)), ("127.0.0.1", Some(1)));
        assert!(Some(1) < sheet.value(first + 1));
        assert_eq!(sheet.value(first + 2), Some(0), "nobody was turned away");
    }

    /// A port whose queue is full turns away whoever comes, and says how many.
    #[test]
    fn what_a_full_queue_turns_away_is_counted() {
        let listener = narrow_listener();
        let port = listener.local_addr().unwrap().port();
        let address = listener.local_addr().unwrap();
        let patience = std::time::Duration::from_millis(30);
        // One more than its backlog is let in; the others are not answered.
        let waiting: Vec<_> = (0..4)
            .filter_map(|_| std::net::TcpStream::connect_timeout(&address, patience).ok())
            .collect();
        assert!(waiting.len() < 4);
        let mut sockets = Sockets::new(Question::Listeners);
        sockets.ask();
        let found = sockets.listeners.iter().find(|listener| listener.port == port).unwrap();
        assert!(Some(0) < found.drops, "{found:?}");
    }

    /// With a backlog of one.
    fn narrow_listener() -> std::net::TcpListener {
        use nix::sys::socket::{Backlog, SockaddrIn, bind, listen};
        let (flags, kind) = (SockFlag::SOCK_CLOEXEC, SockType::Stream);
        let link = socket(AddressFamily::Inet, kind, flags, None).unwrap();
        bind(link.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        listen(&link, Backlog::new(1).unwrap()).unwrap();
        link.into()
    }

    #[test]
    fn states_are_counted_and_answers_that_are_torn_end() {
        let mut sockets = Sockets::new(Question::States);
        let mut sheet = Sheet::new(Vanish::Go);
        sockets.ask();
        sockets.put(&mut sheet);
        assert_eq!(sheet.end(), Outcome::Changed);
        assert_eq!(columns(STATE, b"").len(), STATES.len() + 2);
        let mut sums = [0; STATES.len() + 2];
        for length in 0..80 {
            let mut message = vec![0xff; length];
            assert_ne!(messages(&message, |socket| count(socket, &mut sums)), End::Done);
            if 16 <= length {
                message[..4].copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
                messages(&message, |socket| count(socket, &mut sums));
                let mut found = Vec::new();
                messages(&message, |socket| found.extend(listener(socket)));
            }
        }
        assert_eq!(sums[..STATES.len()], [0; STATES.len()]);
        // A length of nothing would go on for ever.
        assert_eq!(messages(&[0; 64], |_| ()), End::Refused);
    }
}
