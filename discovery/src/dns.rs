//! Questions and answers of DNS (RFC 1035, RFC 2782) and multicast DNS (RFC 6762, RFC 6763), as bytes.
//!
//! Whatever answers is not believed further than this: names are those that [`crate::is_name`] lets
//! through, lists are bounded, and an answer to another question is no answer.

use crate::{Found, is_name};
use simple_dns::rdata::{A, PTR, RData, SRV};
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DnsError {
    /// The name cannot be asked for.
    #[error("{0:?} is no DNS name")]
    Name(String),
    /// What came is no message, or one that answers something else.
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
    /// The server says no.
    #[error("{name}: {why}")]
    Refused {
        /// What was asked for.
        name: String,
        /// What the server says.
        why: &'static str,
    },
    /// It has to be asked for again by TCP.
    #[error("the answer does not fit a datagram")]
    Truncated,
}

/// Where a service is (RFC 2782).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Service {
    /// Those with the least are to be used.
    pub priority: u16,
    /// Of one priority: how much of the use.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The machine.
    pub target: String,
}

/// The question for `name`'s SRV records.
///
/// # Errors
/// It is no name.
pub fn ask_srv(id: u16, name: &str) -> Result<Vec<u8>, DnsError> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(question(name, TYPE::SRV)?);
    bytes(&packet, name)
}

/// What a server answered to [`ask_srv`].
///
/// # Errors
/// It is no answer to that, or a refusal, or cut off.
pub fn read_srv(message: &[u8], id: u16, name: &str) -> Result<Vec<Service>, DnsError> {
    let malformed = |why: &str| DnsError::Malformed(why.to_owned());
    let packet = Packet::parse(message).map_err(|why| malformed(&why.to_string()))?;
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
        return Err(malformed("it belongs to another question"));
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Err(DnsError::Truncated);
    }
    let refused = |why| Err(DnsError::Refused { name: name.to_owned(), why });
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return refused("no such name"),
        RCODE::ServerFailure => return refused("the server failed"),
        RCODE::Refused => return refused("the server refuses to answer"),
        _ => return refused("the server answers with an error"),
    }
    let mut services: Vec<Service> = packet
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            RData::SRV(srv) => Some(Service {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: text(&srv.target),
            }),
            _ => None,
        })
        // RFC 2782: a single dot says that there is no such service.
        .filter(|service| is_name(&service.target))
        .take(RECORDS_MAX)
        .collect();
    services.sort();
    Ok(services)
}

/// What machines on the link say of themselves, gathered from any number of messages.
///
/// PTR names the instances of a service, SRV their machine and port, A or AAAA its address. A machine
/// may send all of it at once or wait to be asked for the rest ([`Gathered::next`]).
#[derive(Debug)]
pub struct Gathered {
    services: BTreeSet<String>,
    instances: BTreeMap<String, Option<(String, u16)>>,
    addresses: BTreeMap<String, IpAddr>,
}

impl Gathered {
    /// Nothing yet, of services as `_ssh._tcp.local`.
    #[must_use]
    pub fn new(services: &[String]) -> Self {
        let services = services.iter().map(|service| plain(service)).collect();
        Self { services, instances: BTreeMap::new(), addresses: BTreeMap::new() }
    }

    /// The first question.
    ///
    /// # Errors
    /// A service is no name.
    pub fn first(&self) -> Result<Vec<u8>, DnsError> {
        let services = self.services.iter();
        ask_all(&services.map(|service| (service.as_str(), TYPE::PTR)).collect::<Vec<_>>())
    }

    /// A message that came. What cannot be read, and what nobody asked for, is passed over.
    pub fn take(&mut self, message: &[u8]) {
        let Ok(packet) = Packet::parse(message) else { return };
        if !packet.has_flags(PacketFlag::RESPONSE) {
            return;
        }
        let records = || packet.answers.iter().chain(&packet.additional_records);
        for record in records() {
            let of = text(&record.name);
            if let RData::PTR(PTR(instance)) = &record.rdata
                && self.services.contains(&of)
                && self.instances.len() < RECORDS_MAX
            {
                self.instances.entry(text(instance)).or_default();
            }
        }
        for record in records() {
            let of = text(&record.name);
            match &record.rdata {
                RData::SRV(srv) => {
                    if let Some(place) = self.instances.get_mut(&of) {
                        *place = Some((text(&srv.target), srv.port));
                    }
                }
                RData::A(a) => self.address(of, Ipv4Addr::from(a.address).into()),
                RData::AAAA(aaaa) => self.address(of, Ipv6Addr::from(aaaa.address).into()),
                _ => {}
            }
        }
    }

    /// What is to be asked for now; `None`: everything is known.
    #[must_use]
    pub fn next(&self) -> Option<Vec<u8>> {
        let mut wanted: BTreeSet<(&String, u16)> = BTreeSet::new();
        for (instance, place) in &self.instances {
            match place {
                None => drop(wanted.insert((instance, TYPE::SRV.into()))),
                Some((target, _)) if !self.addresses.contains_key(target) => {
                    wanted.insert((target, TYPE::A.into()));
                }
                Some(_) => {}
            }
        }
        if wanted.is_empty() {
            return None;
        }
        let few = wanted.into_iter().take(QUESTIONS_MAX);
        ask_all(&few.map(|(name, kind)| (name.as_str(), TYPE::from(kind))).collect::<Vec<_>>()).ok()
    }

    /// The machines, by name.
    #[must_use]
    pub fn found(&self) -> Vec<Found> {
        let machine = |(target, port): &(String, u16)| {
            let name = target.strip_suffix(".local").unwrap_or(target);
            let address = self.addresses.get(target).copied();
            is_name(name).then(|| Found { name: name.to_owned(), address, port: *port })
        };
        let found: BTreeSet<Found> =
            self.instances.values().flatten().filter_map(machine).collect();
        found.into_iter().collect()
    }

    fn address(&mut self, of: String, address: IpAddr) {
        if self.addresses.len() < RECORDS_MAX || self.addresses.contains_key(&of) {
            let known = self.addresses.entry(of).or_insert(address);
            // A link-local address of IPv6 is of no use without its link.
            if address.is_ipv4() {
                *known = address;
            }
        }
    }
}

/// What a machine says of itself when it is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// `_strobe-agent._tcp.local`.
    pub service: String,
    /// What the machine is called, without `.local`.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Where the service is.
    pub port: u16,
}

impl Announced {
    /// The answer to `message`, if it asks for any of this. `legacy`: it came from another port than
    /// mDNS's own, so it is answered as plain DNS (RFC 6762, 6.7).
    #[must_use]
    pub fn answer(&self, message: &[u8], legacy: bool) -> Option<Vec<u8>> {
        let asked = Packet::parse(message).ok()?;
        if asked.has_flags(PacketFlag::RESPONSE) {
            return None;
        }
        let (machine, service) = (format!("{}.local", self.name), plain(&self.service));
        let instance = format!("{}.{service}", self.name);
        let is = |question: &&Question<'_>, name: &str, kind| {
            text(&question.qname) == plain(name) && is_kind(question.qtype, kind)
        };
        let any = |name: &str, kind| asked.questions.iter().any(|asked| is(&asked, name, kind));
        let wants = [any(&service, TYPE::PTR), any(&instance, TYPE::SRV), any(&machine, TYPE::A)];
        let mut reply = Packet::new_reply(if legacy { asked.id() } else { 0 });
        reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
        if legacy {
            reply.questions.clone_from(&asked.questions);
        }
        let target = Name::new(&machine).ok()?;
        let srv = SRV { priority: 0, weight: 0, port: self.port, target };
        let data = [
            (&service, RData::PTR(PTR(Name::new(&instance).ok()?))),
            (&instance, RData::SRV(srv)),
            (&machine, RData::A(A { address: self.address.into() })),
        ];
        for ((name, data), wanted) in data.into_iter().zip(wants) {
            let name = Name::new(name).ok()?;
            let record = ResourceRecord::new(name, CLASS::IN, TTL_S, data);
            let place = if wanted { &mut reply.answers } else { &mut reply.additional_records };
            place.push(record);
        }
        wants.contains(&true).then(|| reply.build_bytes_vec_compressed().ok())?
    }
}

fn ask_all(wanted: &[(&str, TYPE)]) -> Result<Vec<u8>, DnsError> {
    // Answers to a port that is not 5353 carry the id (RFC 6762, 6.7); nothing here rests on it.
    let mut packet = Packet::new_query(0);
    for (name, kind) in wanted {
        packet.questions.push(question(name, *kind)?);
    }
    bytes(&packet, "")
}

fn question(name: &str, kind: TYPE) -> Result<Question<'_>, DnsError> {
    let bad = || DnsError::Name(name.to_owned());
    let labels = name.trim_end_matches('.');
    let name = Name::new(labels).map_err(|_| bad())?;
    if name.get_labels().is_empty() {
        return Err(bad());
    }
    Ok(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false))
}

fn bytes(packet: &Packet<'_>, name: &str) -> Result<Vec<u8>, DnsError> {
    packet.build_bytes_vec().map_err(|_| DnsError::Name(name.to_owned()))
}

fn is_kind(asked: QTYPE, kind: TYPE) -> bool {
    matches!(asked, QTYPE::ANY) || asked == QTYPE::TYPE(kind)
}

fn text(name: &Name<'_>) -> String {
    plain(&name.to_string())
}

/// Names are equal whatever their case, with a dot behind or without.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Of one question.
const RECORDS_MAX: usize = 1024;
/// In one message: about 1,200 bytes of names.
const QUESTIONS_MAX: usize = 30;
/// RFC 6762, 10: of records that name a machine.
const TTL_S: u32 = 120;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(id: u16, records: &[(&str, SRV<'_>)]) -> Vec<u8> {
        let mut packet = Packet::new_reply(id);
        for (name, srv) in records {
            let (name, data) = (Name::new_unchecked(name), RData::SRV(srv.clone()));
            packet.answers.push(ResourceRecord::new(name, CLASS::IN, 60, data));
        }
        packet.build_bytes_vec().unwrap()
    }

    fn srv(priority: u16, port: u16, target: &str) -> SRV<'_> {
        SRV { priority, weight: 5, port, target: Name::new_unchecked(target) }
    }

    #[test]
    fn services_come_by_priority_and_only_as_names() {
        let name = "_strobe._udp.example.com";
        let records = [(name, srv(20, 1, "B.example.com")), (name, srv(10, 2, "a.example.com"))];
        let read = read_srv(&reply(7, &records), 7, name).unwrap();
        let found: Vec<_> = read.iter().map(|s| (s.target.as_str(), s.port)).collect();
        assert_eq!(found, [("a.example.com", 2), ("b.example.com", 1)]);
        assert_eq!(read_srv(&reply(7, &[(name, srv(1, 1, "a b"))]), 7, name), Ok(vec![]));
        assert!(matches!(read_srv(&reply(8, &records), 7, name), Err(DnsError::Malformed(_))));
        let question = ask_srv(7, "_strobe._udp.example.com.").unwrap();
        assert!(matches!(read_srv(&question, 7, name), Err(DnsError::Malformed(_))));
        assert!(ask_srv(7, &"a".repeat(64)).is_err() && ask_srv(7, "").is_err());
        let mut none = Packet::new_reply(7);
        *none.rcode_mut() = RCODE::NameError;
        let said = read_srv(&none.build_bytes_vec().unwrap(), 7, name).unwrap_err();
        assert_eq!(said.to_string(), "_strobe._udp.example.com: no such name");
    }

    #[test]
    fn a_machine_is_gathered_from_what_it_announces() {
        let service = "_strobe-agent._tcp.local".to_owned();
        let announced = |name: &str, last| Announced {
            service: service.clone(),
            name: name.to_owned(),
            address: Ipv4Addr::new(10, 0, 0, last),
            port: 7802,
        };
        let mut gathered = Gathered::new(std::slice::from_ref(&service));
        let first = gathered.first().unwrap();
        for (name, last) in [("Web1", 1), ("web2", 2), ("bad name", 3)] {
            gathered.take(&announced(name, last).answer(&first, true).unwrap());
        }
        assert_eq!(gathered.next(), None);
        let found = |name: &str, last| Found {
            name: name.to_owned(),
            address: Some(Ipv4Addr::new(10, 0, 0, last).into()),
            port: 7802,
        };
        assert_eq!(gathered.found(), [found("web1", 1), found("web2", 2)]);
        // Another service's machines keep silent, and nobody answers answers.
        let other = Gathered::new(&["_ssh._tcp.local".to_owned()]).first().unwrap();
        assert_eq!(announced("web1", 1).answer(&other, true), None);
        let answer = announced("web1", 1).answer(&first, false).unwrap();
        assert_eq!(announced("web1", 1).answer(&answer, true), None);
    }

    #[test]
    fn what_a_machine_left_out_is_asked_for() {
        let service = "_ssh._tcp.local".to_owned();
        let machine = Announced {
            service: service.clone(),
            name: "nas".to_owned(),
            address: Ipv4Addr::new(10, 0, 0, 9),
            port: 22,
        };
        let bare = |answer: &[u8]| {
            let mut packet = Packet::parse(answer).unwrap();
            packet.additional_records.clear();
            packet.build_bytes_vec().unwrap()
        };
        let mut gathered = Gathered::new(std::slice::from_ref(&service));
        let mut question = gathered.first().unwrap();
        for round in 0..3 {
            gathered.take(&bare(&machine.answer(&question, true).unwrap()));
            match gathered.next() {
                Some(next) => question = next,
                None => assert_eq!(round, 2),
            }
        }
        assert_eq!(gathered.found()[0].address, Some(machine.address.into()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(message: Vec<u8>, id: u16) {
            let mut gathered = Gathered::new(&["_ssh._tcp.local".to_owned()]);
            gathered.take(&message);
            drop(read_srv(&message, id, "a"));
            let address = Ipv4Addr::LOCALHOST;
            let (service, name) = ("_ssh._tcp.local".to_owned(), "a".to_owned());
            drop(Announced { service, name, address, port: 1 }.answer(&message, true));
        }
    }
}
