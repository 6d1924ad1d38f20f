//! Where machines are looked for, and what is checked of them. By default: nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;
use strobe_discovery::check::Check;
use strobe_discovery::is_name;
use strobe_discovery::range::Range;
use strobe_discovery::scan::Plan;
use strobe_wire::settings::{Settings, SettingsError, duration_ms};

/// What the lookout is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LookoutConfig {
    /// Machines by name, with an address if it is not the name's own.
    pub named: Vec<(String, Option<IpAddr>)>,
    /// DNS names of SRV records.
    pub srv: Vec<String>,
    /// Services that machines announce by multicast DNS.
    pub mdns: Vec<String>,
    /// The interface on which they are asked.
    pub mdns_interface: Ipv4Addr,
    /// What is scanned.
    pub scan: Option<Plan>,
    /// How often all of this is looked at again.
    pub find_every: Duration,
    /// What is checked of every machine.
    pub checks: Vec<Check>,
    /// How often.
    pub check_every: Duration,
    /// How long a check may take.
    pub patience: Duration,
    /// Failures in a row after which a machine counts as down.
    pub strikes_max: u32,
    /// Where scripts are.
    pub scripts: Option<PathBuf>,
}

impl LookoutConfig {
    /// Typed values.
    ///
    /// # Errors
    /// The first value that is wrong, who set it, and what is wanted.
    pub fn of(settings: &Settings) -> Result<Self, SettingsError> {
        let time = |name, least_ms: u64, most_ms: u64| {
            settings.parse(name, |text| {
                let ms = duration_ms(text)?;
                let wanted = || format!("{least_ms}ms to {most_ms}ms is wanted");
                let fits = (least_ms..=most_ms).contains(&ms);
                fits.then_some(Duration::from_millis(ms)).ok_or_else(wanted)
            })
        };
        let scan_rate = settings.parse("broker.discover_scan_rate", number)?;
        let ports = settings.parse("broker.discover_scan_ports", |text| list(text, port))?;
        Ok(Self {
            named: settings.parse("broker.discover_static", |text| list(text, named))?,
            srv: settings.parse("broker.discover_srv", |text| list(text, name))?,
            mdns: settings.parse("broker.discover_mdns", |text| list(text, name))?,
            mdns_interface: settings.parse("broker.discover_mdns_interface", |text| {
                text.parse().map_err(|_| "an IPv4 address is wanted".to_owned())
            })?,
            scan: settings.parse("broker.discover_scan", |text| {
                let ranges: Vec<Range> = list(text, |one| one.parse().map_err(words))?;
                if ranges.is_empty() {
                    return Ok(None);
                }
                let plan = Plan::new(ranges, ports.clone(), scan_rate, SCAN_PATIENCE);
                plan.map(Some).map_err(words)
            })?,
            find_every: time("broker.discover_interval", 1_000, DAY_MS)?,
            checks: settings
                .parse("broker.checks", |text| list(text, |one| one.parse().map_err(words)))?,
            check_every: time("broker.check_interval", 1_000, DAY_MS)?,
            patience: time("broker.check_timeout", 10, 60_000)?,
            strikes_max: settings.parse("broker.check_strikes", |text| match number(text)? {
                strikes @ 1..=100 => Ok(strikes),
                _ => Err("1 to 100 is wanted".to_owned()),
            })?,
            scripts: settings.parse("broker.check_scripts", |text| {
                Ok((!text.is_empty()).then(|| PathBuf::from(text)))
            })?,
        })
    }

    /// Whether there is anything to find.
    #[must_use]
    pub fn finds(&self) -> bool {
        let lists = [self.named.is_empty(), self.srv.is_empty(), self.mdns.is_empty()];
        lists != [true; 3] || self.scan.is_some()
    }
}

/// What stands between commas.
fn list<T>(text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let all: Result<Vec<T>, String> = parts.map(read).collect();
    match all {
        Ok(all) if LIST_MAX < all.len() => Err(format!("at most {LIST_MAX} are wanted")),
        all => all,
    }
}

fn name(text: &str) -> Result<String, String> {
    let wanted = || format!("{text:?} is no name: letters, digits and -_.: are wanted");
    is_name(text).then(|| text.to_owned()).ok_or_else(wanted)
}

fn named(text: &str) -> Result<(String, Option<IpAddr>), String> {
    match text.split_once('=') {
        None => Ok((name(text)?, None)),
        Some((before, address)) => {
            let wanted = |_| format!("{address:?} is no address; NAME=ADDRESS is wanted");
            Ok((name(before)?, Some(address.parse().map_err(wanted)?)))
        }
    }
}

fn port(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|port| 0 < *port);
    number.ok_or_else(|| format!("{text:?} is no port, 1 to 65535"))
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "a number is wanted".to_owned())
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err wants it")]
fn words(why: impl ToString) -> String {
    why.to_string()
}

const LIST_MAX: usize = 1_000;
const DAY_MS: u64 = 86_400_000;
const SCAN_PATIENCE: Duration = Duration::from_secs(1);
