//! Multicast DNS on one link: who is there, and here I am.

use crate::Found;
use crate::dns::{Announced, DnsError, Gathered};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, setsockopt, sockopt};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Where multicast DNS is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The address of the interface; unspecified: the one with the default route.
    pub interface: Ipv4Addr,
    /// [`PORT`], except in tests.
    pub port: u16,
}

/// Why nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub enum MdnsError {
    /// The network.
    #[error("multicast DNS cannot be used: {0}")]
    Io(#[from] io::Error),
    /// What was to be asked.
    #[error(transparent)]
    Name(#[from] DnsError),
}

/// Asks once, from a port of our own (RFC 6762, 5.1), and gathers for at least `wait` what comes back.
///
/// # Errors
/// A service is no name, or the network refuses.
pub fn browse(place: Place, services: &[String], wait: Duration) -> Result<Vec<Found>, MdnsError> {
    let socket = UdpSocket::bind(SocketAddrV4::new(place.interface, 0))?;
    setsockopt(&socket, sockopt::IpMulticastTtl, &TTL).map_err(io::Error::from)?;
    let mut gathered = Gathered::new(services);
    let group = SocketAddrV4::new(GROUP, place.port);
    let mut question = Some(gathered.first()?);
    let mut message = vec![0; MESSAGE_BYTES_MAX];
    socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
    for _ in 0..ROUNDS_MAX {
        let Some(asked) = question else { break };
        socket.send_to(&asked, group)?;
        for _ in 0..MESSAGES_MAX {
            match socket.recv_from(&mut message) {
                Ok((length, _)) => gathered.take(message.get(..length).unwrap_or_default()),
                Err(error) if is_silence(&error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        question = gathered.next();
    }
    Ok(gathered.found())
}

/// Answers for a machine until it is told to end.
#[derive(Debug)]
pub struct Announcer {
    socket: UdpSocket,
    place: Place,
}

impl Announcer {
    /// Listens beside others on this machine that speak multicast DNS.
    ///
    /// # Errors
    /// The network refuses.
    pub fn new(place: Place) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let open = socket::socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
        setsockopt(&open, sockopt::ReuseAddr, &true)?;
        setsockopt(&open, sockopt::ReusePort, &true)?;
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, place.port);
        socket::bind(open.as_raw_fd(), &socket::SockaddrIn::from(any))?;
        let socket = UdpSocket::from(open);
        socket.join_multicast_v4(&GROUP, &place.interface)?;
        socket.set_read_timeout(Some(LOOK_EVERY))?;
        Ok(Self { socket, place })
    }

    /// Until `stopping`.
    pub fn run(&self, announced: &Announced, stopping: &AtomicBool) {
        let mut message = vec![0; MESSAGE_BYTES_MAX];
        while !stopping.load(Ordering::Relaxed) {
            let (length, from) = match self.socket.recv_from(&mut message) {
                Ok(received) => received,
                Err(error) if is_silence(&error) => continue,
                Err(error) => {
                    log::warn!("multicast DNS is not answered any more: {error}");
                    return;
                }
            };
            let legacy = from.port() != self.place.port;
            let asked = message.get(..length).unwrap_or_default();
            if let Some(answer) = announced.answer(asked, legacy) {
                let group = SocketAddrV4::new(GROUP, self.place.port).into();
                let to = if legacy { from } else { group };
                if let Err(error) = self.socket.send_to(&answer, to) {
                    log::debug!("an answer by multicast DNS was not sent: {error}");
                }
            }
        }
    }
}

fn is_silence(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut, io::ErrorKind::Interrupted];
    kinds.contains(&error.kind())
}

/// Of RFC 6762, 3.
pub const PORT: u16 = 5353;
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
/// Not beyond this link.
const TTL: u8 = 1;
/// RFC 6762, 17.
const MESSAGE_BYTES_MAX: usize = 9000;
/// PTR, SRV and A, each asked for.
const ROUNDS_MAX: usize = 3;
/// Taken in one round, whoever floods the link.
const MESSAGES_MAX: usize = 4096;
/// How soon the announcer sees that it shall end.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn machines_that_announce_themselves_are_found() {
        // A port of this test alone: others on this machine may speak the real one.
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = Place { interface: Ipv4Addr::LOCALHOST, port };
        let stopping = Arc::new(AtomicBool::new(false));
        let service = "_strobe-agent._tcp.local".to_owned();
        let running: Vec<_> = ["one", "two"]
            .map(|name| {
                let announcer = Announcer::new(place).unwrap();
                let (service, stopping) = (service.clone(), Arc::clone(&stopping));
                let address = Ipv4Addr::LOCALHOST;
                let announced = Announced { service, name: name.to_owned(), address, port: 7802 };
                std::thread::spawn(move || announcer.run(&announced, &stopping))
            })
            .into();
        let wait = Duration::from_millis(300);
        let found = browse(place, std::slice::from_ref(&service), wait).unwrap();
        let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(found.iter().all(|f| f.address == Some(Ipv4Addr::LOCALHOST.into())));
        assert_eq!(browse(place, &["_ssh._tcp.local".to_owned()], wait).unwrap(), []);
        stopping.store(true, Ordering::Relaxed);
        running.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
