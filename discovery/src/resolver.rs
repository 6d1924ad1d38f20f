//! Asks the machine's name servers for SRV records, which `getaddrinfo` does not know.

use crate::dns::{DnsError, Service, ask_srv, read_srv};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

/// Name servers, in the order in which they are asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolver {
    servers: Vec<SocketAddr>,
}

/// No server answered.
#[derive(Debug, thiserror::Error)]
#[error("{name} cannot be looked up: {why}")]
pub struct ResolveError {
    name: String,
    why: String,
}

impl Resolver {
    /// Of these servers.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers }
    }

    /// As `/etc/resolv.conf` says (resolv.conf(5)); without it, a server on this machine.
    #[must_use]
    pub fn of_file(path: &Path) -> Self {
        Self::of_text(&std::fs::read_to_string(path).unwrap_or_default())
    }

    fn of_text(text: &str) -> Self {
        let server = |line: &str| {
            let mut words = line.split_whitespace();
            let named = words.next() == Some("nameserver");
            let address: IpAddr = words.next().filter(|_| named)?.parse().ok()?;
            Some(SocketAddr::new(address, PORT))
        };
        let mut servers: Vec<SocketAddr> =
            text.lines().filter_map(server).take(SERVERS_MAX).collect();
        if servers.is_empty() {
            servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        Self { servers }
    }

    /// Where the service `name` is. Takes 4 s a server at most.
    ///
    /// # Errors
    /// No server answered, or the first that did says no.
    pub fn srv(&self, name: &str) -> Result<Vec<Service>, ResolveError> {
        let fail = |why: String| ResolveError { name: name.to_owned(), why };
        let mut last = "there is no name server".to_owned();
        for _ in 0..TRIES {
            for server in &self.servers {
                match ask(*server, name) {
                    Ok(services) => return Ok(services),
                    Err(Failed::Silent(why)) => last = format!("{server}: {why}"),
                    Err(Failed::Said(why)) => return Err(fail(format!("{server} says: {why}"))),
                }
            }
        }
        Err(fail(last))
    }
}

enum Failed {
    /// Another one is asked.
    Silent(io::Error),
    /// That is the answer.
    Said(DnsError),
}

fn ask(server: SocketAddr, name: &str) -> Result<Vec<Service>, Failed> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|why| Failed::Silent(io::Error::other(why.to_string())))?;
    let id = u16::from_le_bytes(id);
    let question = ask_srv(id, name).map_err(Failed::Said)?;
    let answer = by_udp(server, &question).map_err(Failed::Silent)?;
    match read_srv(&answer, id, name) {
        Err(DnsError::Truncated) => {
            let answer = by_tcp(server, &question).map_err(Failed::Silent)?;
            read_srv(&answer, id, name).map_err(Failed::Said)
        }
        // What anybody may have sent.
        Err(DnsError::Malformed(why)) => Err(Failed::Silent(io::Error::other(why))),
        said => said.map_err(Failed::Said),
    }
}

fn by_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    // A connected socket hears that server alone.
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(question)?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// RFC 1035, 4.2.2: two bytes of length before each message.
fn by_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

const PORT: u16 = 53;
/// As glibc's.
const SERVERS_MAX: usize = 3;
const TRIES: usize = 2;
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::rdata::{RData, SRV};
    use simple_dns::{CLASS, Name, Packet, PacketFlag, RCODE, ResourceRecord};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    #[test]
    fn servers_stand_in_resolv_conf() {
        let text =
            "# mine\nnameserver 10.0.0.2\nsearch x\nnameserver fd00::1\nnameserver nonsense\n";
        let servers = Resolver::of_text(text).servers;
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(servers, [at("10.0.0.2:53"), at("[fd00::1]:53")]);
        assert_eq!(Resolver::of_text("").servers, [at("127.0.0.1:53")]);
    }

    /// A server that answers one question by UDP, cut off, and then whole by TCP.
    fn server(rcode: RCODE) -> (SocketAddr, JoinHandle<()>) {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let run = move || {
            let mut question = [0; 512];
            let (length, from) = udp.recv_from(&mut question).unwrap();
            let asked = Packet::parse(&question[..length]).unwrap();
            let mut reply = Packet::new_reply(asked.id());
            *reply.rcode_mut() = rcode;
            if rcode == RCODE::NoError {
                reply.set_flags(PacketFlag::TRUNCATION);
            }
            udp.send_to(&reply.build_bytes_vec().unwrap(), from).unwrap();
            if rcode != RCODE::NoError {
                return;
            }
            reply.remove_flags(PacketFlag::TRUNCATION);
            let name = asked.questions[0].qname.clone();
            for host in ["b.example.com", "a.example.com"] {
                let target = Name::new_unchecked(host);
                let srv = SRV { priority: 1, weight: 1, port: 9, target };
                let record = ResourceRecord::new(name.clone(), CLASS::IN, 1, RData::SRV(srv));
                reply.answers.push(record);
            }
            let (mut stream, _) = tcp.accept().unwrap();
            let bytes = reply.build_bytes_vec().unwrap();
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length, bytes.as_slice()].concat()).unwrap();
        };
        (address, std::thread::spawn(run))
    }

    #[test]
    fn a_silent_server_is_passed_over_and_a_long_answer_comes_by_tcp() {
        // Nobody is there: the kernel says so at once.
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (address, running) = server(RCODE::NoError);
        let services = Resolver::new(vec![nobody, address]).srv("_x._tcp.example.com").unwrap();
        let names: Vec<&str> = services.iter().map(|service| service.target.as_str()).collect();
        assert_eq!(names, ["a.example.com", "b.example.com"]);
        running.join().unwrap();
    }

    #[test]
    fn a_no_is_an_answer() {
        let (address, running) = server(RCODE::NameError);
        let why = Resolver::new(vec![address]).srv("_x._tcp.example.com").unwrap_err().to_string();
        assert!(why.contains("says: _x._tcp.example.com: no such name"), "{why}");
        running.join().unwrap();
        let none = Resolver::new(Vec::new()).srv("x").unwrap_err().to_string();
        assert!(none.contains("there is no name server"), "{none}");
    }
}
