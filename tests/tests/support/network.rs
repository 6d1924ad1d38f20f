//! What lies between the brokers of a test, and between them and agents: a relay before each, or a network
//! with a machine for each.

use super::{Broker, Cluster};
use std::net::SocketAddr;
use strobe_tests::namespace::{Machine, Segment};
use strobe_tests::relay::{Relay, Way, Weather};

/// Whom agents reach when a broker is cut off from the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    All,
    Others,
}

impl Broker {
    /// Reached by a relay of its own.
    fn behind_a_relay(name: &str, seed: u64) -> Self {
        let mut broker = Self::start(name, "127.0.0.1:0");
        let relay = Relay::start(broker.listens(), seed);
        broker.address = relay.address().to_string();
        broker.relay = Some(relay);
        broker
    }

    fn listens(&self) -> SocketAddr {
        self.listen.parse().expect("an address")
    }
}

impl Cluster {
    /// So many brokers, all of them voters, each behind a relay of its own.
    pub(crate) fn behind_relays(name: &str, count: usize) -> Self {
        let start = |at| Broker::behind_a_relay(&format!("{name}-{at}"), at as u64);
        Self::made_of((1..=count).map(start).collect())
    }

    /// So many brokers, all of them voters, each on a machine of its own, with these arguments.
    pub(crate) fn on_machines(segment: &Segment, count: u8, more: &[&str]) -> Self {
        let program = [&["strobe-broker"], more].concat();
        let start = |at: u8| {
            let machine = segment.machine(1 + at);
            let listen = format!("{}:7801", machine.address());
            let mut broker = Broker::before_its_start(&format!("machine-{at}"), listen, &program);
            broker.machine = Some(machine);
            broker.begin();
            broker
        };
        Self::made_of((1..=count).map(start).collect())
    }

    /// Where this broker runs.
    pub(crate) fn machine(&self, at: usize) -> &Machine {
        self.brokers[at].machine.as_ref().expect("it has one")
    }

    /// What this broker is reached by.
    pub(crate) fn relay(&self, at: usize) -> &Relay {
        self.brokers[at].relay.as_ref().expect("it has one")
    }

    /// Where this broker dials from.
    pub(crate) fn source(&self, at: usize) -> SocketAddr {
        self.brokers[at].listens()
    }

    /// This broker and the others do not reach each other any more; agents reach all, or not it.
    pub(crate) fn isolate(&self, at: usize, agents: Reach) {
        for other in (0..self.brokers.len()).filter(|other| *other != at) {
            self.relay(at).cut(&[self.source(other)]);
            self.relay(other).cut(&[self.source(at)]);
        }
        if agents == Reach::Others {
            self.relay(at).cut_all();
        }
    }

    /// Agents do not reach this broker any more; the others do.
    pub(crate) fn hide_from_agents(&self, at: usize) {
        let others = (0..self.brokers.len()).filter(|other| *other != at);
        for source in others.map(|other| self.source(other)) {
            for way in [Way::There, Way::Back] {
                self.relay(at).weather_of(source, way, Weather::FINE);
            }
        }
        self.relay(at).weather(Weather::CUT);
    }

    pub(crate) fn heal(&self) {
        self.brokers.iter().filter_map(|broker| broker.relay.as_ref()).for_each(Relay::heal);
    }
}
