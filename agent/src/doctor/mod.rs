//! `strobe-agent doctor`: what this agent finds on this host, what is denied, and what would change that.
//!
//! Everything is looked at as the agent itself would, with its configuration; nothing is changed, and an
//! agent that runs is not disturbed: its state directory is only read.

mod files;
mod host;
mod json;
mod probe;
mod state;

use crate::config::Config;
use crate::costs::{self, Cost};
use crate::sampler::{Sampler, Tick};
use crate::schemas::Table;
use std::fmt::Write as _;
use std::sync::Arc;

/// What was found.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// In the order they are told.
    pub findings: Vec<Finding>,
    /// What each collector costs.
    pub costs: Vec<Cost>,
}

/// One thing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How it is.
    pub state: Health,
    /// Which part it is about: `files`, `sight`, `kernel`, `pressure`, `memory`, `clock`, `state`, `spool`,
    /// `broker`.
    pub area: &'static str,
    /// What was looked at.
    pub name: String,
    /// What was found.
    pub found: String,
    /// What would change it, if anything is to be.
    pub advice: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Health {
    /// As it should be.
    Good,
    /// Something is less than it could be, and the agent does without.
    Less,
    /// The agent does not do what it is there for.
    Bad,
}

impl Finding {
    fn new(area: &'static str, name: impl Into<String>, found: impl Into<String>) -> Self {
        let (name, found) = (name.into(), found.into());
        Self { state: Health::Good, area, name, found, advice: None }
    }

    fn less(self, advice: impl Into<String>) -> Self {
        Self { state: Health::Less, advice: Some(advice.into()), ..self }
    }

    fn bad(self, advice: impl Into<String>) -> Self {
        Self { state: Health::Bad, advice: Some(advice.into()), ..self }
    }
}

/// Looks at everything. `reached` is what became of a try to reach the broker, if there is one.
#[must_use]
pub fn examine(
    config: &Config,
    now: Tick,
    clock: fn() -> u64,
    reached: Option<&Result<String, String>>,
) -> Report {
    let mut sampler = Sampler::new(&config.trees(), clock, Arc::new(Table::new()));
    let costs = costs::measure(&mut sampler, &config.choice, now);
    let mut findings = host::sight(config);
    findings.extend(files::look(config));
    findings.extend(idle(&costs));
    findings.extend(probe::look(config));
    findings.extend(host::pressure(config));
    findings.extend(host::memory(config));
    findings.extend(host::clock(config));
    findings.extend(state::look(config, now));
    findings.push(broker(config, reached));
    Report { findings, costs }
}

impl Report {
    /// The worst of it.
    #[must_use]
    pub fn worst(&self) -> Health {
        self.findings.iter().map(|finding| finding.state).max().unwrap_or(Health::Good)
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for Finding { state, area, name, found, advice } in &self.findings {
            let _ = writeln!(out, "{:<4} {area:<9} {name:<28} {found}", state.word());
            if let Some(advice) = advice {
                let _ = writeln!(out, "{:<14} -> {advice}", "");
            }
        }
        let _ =
            writeln!(out, "\n{:<20} {:>8} {:>10} {:>10}", "collector", "interval", "us", "us/s");
        let mut sum = 0.0;
        for cost in &self.costs {
            if let (Some(reading_us), Some(second_us)) = (cost.reading_us, cost.second_us()) {
                sum += second_us;
                let (name, every) = (cost.name, cost.interval());
                let _ = writeln!(out, "{name:<20} {every:>8} {reading_us:>10.1} {second_us:>10.2}");
            }
        }
        let _ = writeln!(out, "{:<20} {:>8} {:>10} {sum:>10.2}", "all", "", "");
        let off = self.costs.iter().filter(|cost| cost.reading_us.is_none()).map(|cost| cost.name);
        let _ = writeln!(out, "off: {}", off.collect::<Vec<_>>().join(" "));
        out
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        json::report(self)
    }
}

impl Health {
    /// `ok`, `less` or `BAD`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Less => "less",
            Self::Bad => "BAD",
        }
    }
}

/// Collectors that are on and have nothing to read here; files that are missing are told one by one.
fn idle(costs: &[Cost]) -> Option<Finding> {
    let idle = costs.iter().filter(|cost| cost.reading_us.is_some() && !cost.success);
    let names: Vec<&str> = idle.map(|cost| cost.name).collect();
    (!names.is_empty()).then(|| Finding::new("collector", "nothing here for", names.join(" ")))
}

fn broker(config: &Config, reached: Option<&Result<String, String>>) -> Finding {
    let Some(address) = &config.broker else {
        return Finding::new("broker", "none", "nothing is sent anywhere")
            .less("--broker HOST:PORT names one");
    };
    match reached {
        Some(Ok(found)) => Finding::new("broker", address, found),
        Some(Err(why)) => Finding::new("broker", address, why)
            .bad("is it running there, and its UDP port open from here?"),
        None => Finding::new("broker", address, "was not asked"),
    }
}

#[cfg(test)]
mod tests;
