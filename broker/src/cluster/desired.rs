//! What hosts and brokers are to run, of a moment of the agreed state.

use strobe_cluster::State;
use strobe_cluster::kinds::versions::{self, Version};
use strobe_wire::fleet::{Document, Scope};
use strobe_wire::ids::HostId;
use strobe_wire::message::Hello;

/// The version in force, and the one on trial.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    /// Number 0 and nothing in it while there was none.
    in_force: Text,
    trial: Option<(Canary, Text)>,
    /// The last number given: a host that runs a later one has heard more than this broker.
    pub newest: u64,
}

/// A version's text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Text {
    /// The version.
    pub number: u64,
    /// None: a later program wrote it, and this one does not understand it.
    pub document: Option<Document>,
}

/// Who tries a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    /// A host.
    Host(HostId),
    /// A broker, by its number; 0 is one in no cluster.
    Broker(u64),
}

impl Desired {
    /// Of `state`.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let in_force = versions::in_force(state);
        let in_force = in_force.map_or_else(
            || Text { number: 0, document: Some(Document::default()) },
            |version| Text::of(&version),
        );
        let trial = versions::on_trial(state)
            .and_then(|version| Some((version.canary.parse().ok()?, Text::of(&version))));
        let newest = versions::last(state).map_or(0, |version| version.number);
        Self { in_force, trial, newest }
    }

    /// What a host is to run.
    #[must_use]
    pub fn of_host(&self, hello: &Hello) -> Option<(u64, Vec<(String, String)>)> {
        let host = HostId(hello.host);
        let text = match &self.trial {
            Some((Canary::Host(canary), text)) if *canary == host => text,
            _ => &self.in_force,
        };
        let document = text.document.as_ref()?;
        Some((text.number, document.of_host(hello)))
    }

    /// What a broker is to run.
    #[must_use]
    pub fn of_broker(&self, me: u64) -> Option<(u64, Vec<(String, String)>)> {
        let text = self.brokers_text(me);
        Some((text.number, text.document.as_ref()?.of_brokers()))
    }

    /// What a broker is to promise some hosts; the last one that is of a host counts.
    #[must_use]
    pub fn promises(&self, me: u64) -> Vec<(Scope, String)> {
        let document = self.brokers_text(me).document.as_ref();
        document.map(Document::promises).unwrap_or_default()
    }

    fn brokers_text(&self, me: u64) -> &Text {
        match &self.trial {
            Some((Canary::Broker(canary), text)) if *canary == me => text,
            _ => &self.in_force,
        }
    }

    /// The version on trial, and by whom.
    #[must_use]
    pub fn trial(&self) -> Option<(u64, Canary)> {
        self.trial.as_ref().map(|(canary, text)| (text.number, *canary))
    }
}

impl Text {
    fn of(version: &Version) -> Self {
        let read = Document::read(&version.text);
        if let Err(why) = &read {
            log::error!("version {} of the configuration cannot be read: {why}", version.number);
        }
        Self { number: version.number, document: read.ok() }
    }
}

impl std::fmt::Display for Canary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(host) => write!(f, "host:{host}"),
            Self::Broker(id) => write!(f, "broker:{id}"),
        }
    }
}

impl std::str::FromStr for Canary {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':') {
            Some(("host", id)) => Ok(Self::Host(id.parse().map_err(drop)?)),
            Some(("broker", id)) => Ok(Self::Broker(id.parse().map_err(drop)?)),
            _ => Err(()),
        }
    }
}
