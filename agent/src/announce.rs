//! This host says by multicast DNS that it is here, to whoever asks on its link: a broker that looks for
//! machines (`broker.discover_mdns`), `avahi-browse`, a phone.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::AtomicBool;
use strobe_discovery::dns::Announced;
use strobe_discovery::mdns::{Announcer, PORT, Place};

/// Answers from a thread of its own until the process ends.
///
/// # Errors
/// The network refuses.
pub fn start(interface: Ipv4Addr, instance: &str, port: u16) -> io::Result<()> {
    let announcer = Announcer::new(Place { interface, port: PORT })?;
    // No datagram is sent: the kernel says which of our addresses it would come from.
    let towards = UdpSocket::bind(SocketAddrV4::new(interface, 0))?;
    towards.connect(SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), PORT))?;
    let SocketAddr::V4(own) = towards.local_addr()? else {
        return Err(io::Error::other("this host has no IPv4 address to announce"));
    };
    // A name of several labels would be another host's domain.
    let name = instance.split(['.', ':']).next().unwrap_or(instance).to_owned();
    let announced = Announced { service: SERVICE.to_owned(), name, address: *own.ip(), port };
    std::thread::Builder::new()
        .name("strobe-announce".to_owned())
        .spawn(move || announcer.run(&announced, &AtomicBool::new(false)))
        .map(drop)
}

/// What is announced.
pub const SERVICE: &str = "_strobe-agent._tcp.local";
