//! The configuration of a fleet, as a text that brokers agree on: what hosts and brokers are to run.
//!
//! ```text
//! [agent]                          every host
//! interval = "1s"
//! [label."site=berlin".agent]      hosts with this label, in the order of the labels' names
//! collectors.disable = ["xfs"]
//! [host."web-1".agent]             one host, by its instance or id
//! recorder.on = true
//! [label."class=billing".broker]   what brokers promise hosts with this label; [host."…".broker] too
//! durability = "wal+redis"
//! [broker]                         every broker
//! retention = "14d"
//! ```
//!
//! What stands further down wins; of what brokers promise, what is for fewer hosts. Only what may change while a program runs can be set so: never who
//! somebody is, where it listens, or what it allows others to ask ([`AGENT`], [`BROKER`]). A text is
//! read as a whole or not at all; what is wrong with it is told with its line and key.

use crate::ids::HostId;
use crate::message::Hello;
use crate::settings::{boolean, duration_ms, labels, nearest, size_bytes};
use std::collections::BTreeMap;
use std::fmt;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One key that may be set for a fleet.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// As in a program's own file; `agent.intervals.*` is a table of names.
    pub name: &'static str,
    /// What values it may have.
    pub form: Form,
}

/// A form of values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A time of so many ms at least and at most.
    Time(u64, u64),
    /// Bytes, so many at least and at most; 0 is always good where the flag says so.
    Size {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
        /// Whether 0 is good too.
        zero: bool,
    },
    /// A number, so large at least and at most.
    Count(u64, u64),
    /// True or false.
    Switch,
    /// Names with commas between.
    Names,
    /// `name=value` with commas between.
    Labels,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// A text that was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Document {
    /// In the order in which they count.
    pub sections: Vec<Section>,
}

/// What is set for some hosts, or for the brokers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Section {
    /// For whom.
    pub scope: Scope,
    /// By key; a name of `agent.intervals.*` stands where the star is.
    pub values: BTreeMap<String, String>,
}

/// For whom a section is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scope {
    /// Every host.
    Hosts,
    /// Hosts with this label.
    Label(String, String),
    /// The host with this instance or id.
    Host(String),
    /// Every broker.
    Brokers,
}

/// What is wrong with a text, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}{}: {why}", key_of(.key))]
pub struct FleetError {
    /// Counted from 1.
    pub line: usize,
    /// The key, if it is one that is wrong.
    pub key: String,
    /// Why, and what is wanted.
    pub why: String,
}

impl Document {
    /// Of a text.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn read(text: &str) -> Result<Self, FleetError> {
        let reading = Reading { text };
        if TEXT_BYTES_MAX < text.len() {
            return Err(reading.wrong(0, "", &format!("more than {TEXT_BYTES_MAX} bytes")));
        }
        let table = DeTable::parse(text).map_err(|why| {
            let at = why.span().map_or(0, |span| span.start);
            reading.wrong(at, "", &format!("not TOML: {}", why.message()))
        })?;
        let mut sections = Vec::new();
        for (name, value) in table.get_ref() {
            let (at, name) = (name.span().start, name.get_ref().as_ref());
            match name {
                "agent" => sections.push(reading.section(Scope::Hosts, "agent", (at, value))?),
                "broker" => {
                    sections.push(reading.section(Scope::Brokers, "broker", (at, value))?);
                }
                "host" | "label" => {
                    for (whom, inner) in reading.table(name, (at, value))? {
                        sections.push(reading.some_hosts(name, whom, inner)?);
                    }
                }
                _ => {
                    let known = ["agent", "broker", "host", "label"];
                    return Err(reading.unknown(at, name, known.into_iter()));
                }
            }
        }
        sections.sort_by(|a: &Section, b: &Section| a.scope.cmp(&b.scope));
        if SECTIONS_MAX < sections.len() {
            return Err(reading.wrong(0, "", &format!("more than {SECTIONS_MAX} sections")));
        }
        Ok(Self { sections })
    }

    /// What a host is to run, by key.
    #[must_use]
    pub fn of_host(&self, hello: &Hello) -> Vec<(String, String)> {
        let mine = self.sections.iter().filter(|section| section.scope.is_of(hello));
        let mut all = merged(&mine.collect::<Vec<_>>());
        // What brokers promise it is not its business.
        all.retain(|(key, _)| key.starts_with("agent."));
        all
    }

    /// What brokers promise some hosts, in the order in which it counts: the last one that is of a host.
    #[must_use]
    pub fn promises(&self) -> Vec<(Scope, String)> {
        let some = self.sections.iter().filter(|section| section.scope != Scope::Brokers);
        let of = some.filter_map(|section| {
            Some((section.scope.clone(), section.values.get(DURABILITY)?.clone()))
        });
        of.collect()
    }

    /// What brokers are to run, by key.
    #[must_use]
    pub fn of_brokers(&self) -> Vec<(String, String)> {
        let ours = self.sections.iter().filter(|section| section.scope == Scope::Brokers);
        merged(&ours.collect::<Vec<_>>())
    }

    /// Whether it says anything about hosts.
    #[must_use]
    pub fn is_about_hosts(&self) -> bool {
        self.sections.iter().any(|section| section.scope != Scope::Brokers)
    }
}

impl Scope {
    /// Whether it is for this host.
    #[must_use]
    pub fn is_of(&self, hello: &Hello) -> bool {
        match self {
            Self::Hosts => true,
            Self::Label(name, value) => hello.labels.iter().any(|(n, v)| n == name && v == value),
            Self::Host(whom) => {
                hello.instance == *whom || whom.parse().ok() == Some(HostId(hello.host))
            }
            Self::Brokers => false,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hosts => write!(f, "every host"),
            Self::Label(name, value) => write!(f, "hosts with {name}={value}"),
            Self::Host(whom) => write!(f, "host {whom}"),
            Self::Brokers => write!(f, "every broker"),
        }
    }
}

impl Form {
    /// Whether `text` is of this form.
    ///
    /// # Errors
    /// What is wanted.
    pub fn check(self, text: &str) -> Result<(), String> {
        match self {
            Self::Time(min, max) => {
                let found = duration_ms(text)?;
                let fits = min <= found && found <= max;
                fits.then_some(()).ok_or_else(|| format!("{min}ms to {max}ms is wanted"))
            }
            Self::Size { min, max, zero } => {
                let found = size_bytes(text)?;
                let fits = (min..=max).contains(&found) || zero && found == 0;
                let or_zero = if zero { "0, or " } else { "" };
                fits.then_some(()).ok_or_else(|| format!("{or_zero}{min} to {max} bytes wanted"))
            }
            Self::Count(min, max) => {
                let fits = text.parse().is_ok_and(|found| (min..=max).contains(&found));
                fits.then_some(()).ok_or_else(|| format!("a number from {min} to {max} is wanted"))
            }
            Self::Switch => boolean(text).map(drop),
            Self::Names => {
                let is_name = |name: &str| {
                    !name.is_empty()
                        && name.len() <= 64
                        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                };
                match text.split(',').map(str::trim).find(|name| !is_name(name)) {
                    Some(name) if !text.is_empty() => Err(format!("{name:?} is no name")),
                    _ => Ok(()),
                }
            }
            Self::Labels => labels(text).map(drop),
            Self::Word(words) => {
                let fits = words.contains(&text);
                fits.then_some(()).ok_or_else(|| format!("{} is wanted", words.join(" or ")))
            }
        }
    }
}

struct Reading<'a> {
    text: &'a str,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Reading<'_> {
    /// `[label."site=berlin".agent]` or `[host."web-1".agent]`; or, of the promise, `.broker`.
    fn some_hosts(
        &self,
        kind: &str,
        whom: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Value<'_>,
    ) -> Result<Section, FleetError> {
        let (at, name) = (whom.span().start, whom.get_ref().as_ref());
        let scope = match (kind, name.split_once('=')) {
            ("label", Some((name, value))) if !name.is_empty() && !value.is_empty() => {
                Scope::Label(name.to_owned(), value.to_owned())
            }
            ("label", _) => return Err(self.wrong(at, name, "NAME=VALUE of a label is wanted")),
            _ => Scope::Host(name.to_owned()),
        };
        let key = format!("{kind}.{name:?}");
        let mut section = Section { scope, values: BTreeMap::new() };
        for (inner, value) in self.table(&key, (at, value))? {
            let (at, prefix) = (inner.span().start, inner.get_ref().as_ref());
            if !["agent", "broker"].contains(&prefix) {
                let key = format!("{key}.{prefix}");
                return Err(self.wrong(at, &key, "only `agent` or `broker` can stand here"));
            }
            let values = self.section(section.scope.clone(), prefix, (at, value))?.values;
            if let Some(wrong) = values.keys().find(|k| prefix == "broker" && *k != DURABILITY) {
                let why = "of a broker, only `durability` can be set for some hosts";
                return Err(self.wrong(at, wrong, why));
            }
            section.values.extend(values);
        }
        if kind == "label" && section.values.contains_key("agent.labels") {
            let why = "who has a label cannot depend on labels that depend on it";
            return Err(self.wrong(at, "agent.labels", why));
        }
        Ok(section)
    }

    fn section(
        &self,
        scope: Scope,
        prefix: &str,
        table: (usize, &Value<'_>),
    ) -> Result<Section, FleetError> {
        let mut values = BTreeMap::new();
        self.flatten(prefix, table, &mut values, 0)?;
        Ok(Section { scope, values })
    }

    fn flatten(
        &self,
        prefix: &str,
        table: (usize, &Value<'_>),
        values: &mut BTreeMap<String, String>,
        depth: usize,
    ) -> Result<(), FleetError> {
        for (key, value) in self.table(prefix, table)? {
            let (at, name) = (key.span().start, format!("{prefix}.{}", key.get_ref()));
            if matches!(value.get_ref(), DeValue::Table(_)) && depth < DEPTH_MAX {
                self.flatten(&name, (at, value), values, depth + 1)?;
                continue;
            }
            let known = AGENT.iter().chain(BROKER);
            let setting = known.clone().find(|setting| setting.is(&name)).ok_or_else(|| {
                let root = name.split('.').next().unwrap_or_default();
                let near = known.clone().map(|s| s.name).filter(|key| key.starts_with(root));
                self.unknown(at, &name, near)
            })?;
            let text = self.plain(at, &name, value.get_ref())?;
            setting.form.check(&text).map_err(|why| {
                self.wrong(value.span().start, &name, &format!("it is {text:?}: {why}"))
            })?;
            values.insert(name, text);
        }
        Ok(())
    }

    fn plain(&self, at: usize, key: &str, value: &DeValue<'_>) -> Result<String, FleetError> {
        Ok(match value {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Boolean(truth) => truth.to_string(),
            DeValue::Array(items) => {
                let items = items.iter().map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok(text.to_string()),
                    _ => Err(self.wrong(item.span().start, key, "a list of texts is wanted")),
                });
                items.collect::<Result<Vec<_>, _>>()?.join(",")
            }
            DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => {
                return Err(self.wrong(
                    at,
                    key,
                    "a text, a number, true, false or a list is wanted",
                ));
            }
        })
    }

    fn table<'t, 'i>(
        &self,
        key: &str,
        (at, value): (usize, &'t Value<'i>),
    ) -> Result<&'t DeTable<'i>, FleetError> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self.wrong(at, key, "a table is wanted")),
        }
    }

    fn unknown(
        &self,
        at: usize,
        key: &str,
        known: impl Iterator<Item = &'static str>,
    ) -> FleetError {
        let hint = nearest(known, key).map(|near| format!("; did you mean `{near}`?"));
        let why = "unknown key, or one that cannot be set for a fleet";
        self.wrong(at, key, &format!("{why}{}", hint.unwrap_or_default()))
    }

    fn wrong(&self, at: usize, key: &str, why: &str) -> FleetError {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        FleetError { line, key: key.to_owned(), why: why.to_owned() }
    }
}

impl Setting {
    fn is(&self, key: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(prefix) => key.strip_prefix(prefix).is_some_and(|rest| !rest.contains('.')),
            None => self.name == key,
        }
    }
}

/// Later ones win; the names of a table become one text again, as a program's own file has it.
fn merged(sections: &[&Section]) -> Vec<(String, String)> {
    let mut all: BTreeMap<&str, &str> = BTreeMap::new();
    for section in sections {
        all.extend(section.values.iter().map(|(key, text)| (key.as_str(), text.as_str())));
    }
    let mut out: Vec<(String, String)> = Vec::with_capacity(all.len());
    for (key, text) in all {
        match (key.strip_prefix(INTERVALS), out.last_mut()) {
            (Some(name), Some((last, list))) if last.ends_with('*') => {
                *list = format!("{list},{name}={text}");
            }
            (Some(name), _) => out.push((format!("{INTERVALS}*"), format!("{name}={text}"))),
            (None, _) => out.push((key.to_owned(), text.to_owned())),
        }
    }
    out
}

fn key_of(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!(", `{key}`") }
}

/// Of an agent. Its own file may lock any of them (`agent.locked`).
pub const AGENT: &[Setting] = &[
    Setting { name: "agent.interval", form: Form::Time(100, 300_000) },
    Setting { name: "agent.filesystem_interval", form: Form::Time(100, 3_600_000) },
    Setting { name: "agent.collectors.enable", form: Form::Names },
    Setting { name: "agent.collectors.disable", form: Form::Names },
    Setting { name: "agent.intervals.*", form: Form::Time(100, 86_400_000) },
    Setting { name: "agent.scores", form: Form::Switch },
    Setting { name: "agent.recorder.on", form: Form::Switch },
    Setting { name: "agent.recorder.interval", form: Form::Time(10, 1_000) },
    Setting { name: "agent.recorder.window", form: Form::Time(1_000, 60_000) },
    Setting { name: "agent.labels", form: Form::Labels },
    Setting {
        name: "agent.spool.size",
        form: Form::Size { min: 1 << 20, max: 64 << 30, zero: false },
    },
];

/// Of a broker.
pub const BROKER: &[Setting] = &[
    Setting { name: "broker.retention", form: Form::Time(HOUR_MS, AGES_MS) },
    Setting { name: "broker.minute_retention", form: Form::Time(HOUR_MS, AGES_MS) },
    Setting { name: "broker.hour_retention", form: Form::Time(HOUR_MS, AGES_MS) },
    Setting { name: "broker.size_max", form: SIZE },
    Setting { name: "broker.free_min", form: Form::Size { min: 0, max: u64::MAX, zero: true } },
    Setting {
        name: "broker.head_max",
        form: Form::Size { min: 1 << 20, max: 64 << 30, zero: false },
    },
    Setting { name: "broker.query_time", form: Form::Time(100, 600_000) },
    Setting { name: "broker.query_samples", form: Form::Count(1_000, 1_000_000_000_000) },
    Setting { name: DURABILITY, form: Form::Word(&["wal", "wal+redis"]) },
];

/// What an acknowledgement is worth: the one key of a broker that may be set for some hosts.
pub const DURABILITY: &str = "broker.durability";
const SIZE: Form = Form::Size { min: 16 << 20, max: u64::MAX, zero: false };
const INTERVALS: &str = "agent.intervals.";
const HOUR_MS: u64 = 3_600_000;
/// A hundred years.
const AGES_MS: u64 = 36_500 * 86_400_000;
/// Bytes of a text.
pub const TEXT_BYTES_MAX: usize = 64 << 10;
const SECTIONS_MAX: usize = 1_000;
/// Tables in tables; no key has more.
const DEPTH_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[broker]
retention = "14d"
[host.web-1.agent]
interval = "500ms"
intervals.os = "2h"
[agent]
interval = "2s"
collectors.disable = ["xfs", "nfs"]
[agent.intervals]
netclass = "1m"
os = "1h"
[label."site=berlin".agent]
interval = "5s"
scores = false
"#;

    fn host(instance: &str, labels: &[(&str, &str)]) -> Hello {
        let labels = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Hello { host: 7, instance: instance.to_owned(), labels, ..Hello::default() }
    }

    #[test]
    fn what_stands_further_down_wins() {
        let document = Document::read(TEXT).unwrap();
        let of = |hello: &Hello| {
            let of = document.of_host(hello);
            of.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
        };
        let all = "agent.collectors.disable=xfs,nfs agent.interval=2s \
                   agent.intervals.*=netclass=1m,os=1h";
        assert_eq!(of(&host("a", &[])), all);
        let berlin = host("a", &[("site", "berlin")]);
        assert!(of(&berlin).contains("interval=5s") && of(&berlin).contains("scores=false"));
        let web = of(&host("web-1", &[("site", "berlin")]));
        assert!(web.contains("interval=500ms") && web.contains("netclass=1m,os=2h"), "{web}");
        assert_eq!(document.of_brokers(), [("broker.retention".to_owned(), "14d".to_owned())]);
    }

    /// Agents of before know no such key, and would refuse all of a version that told them.
    #[test]
    fn promises_are_the_brokers_business() {
        let text = "[broker]\ndurability = \"wal\"\n[host.b.broker]\ndurability = \"wal\"\n\
                    [label.\"class=gold\".broker]\ndurability = \"wal+redis\"\n\
                    [label.\"class=gold\".agent]\nscores = false\n";
        let document = Document::read(text).unwrap();
        let gold = host("a", &[("class", "gold")]);
        assert_eq!(document.of_host(&gold), [("agent.scores".to_owned(), "false".to_owned())]);
        let wanted = [
            (Scope::Label("class".into(), "gold".into()), "wal+redis".to_owned()),
            (Scope::Host("b".into()), "wal".to_owned()),
        ];
        assert_eq!(document.promises(), wanted);
        assert_eq!(document.of_brokers(), [(DURABILITY.to_owned(), "wal".to_owned())]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, wanted) in [
            ("[agent]\n\nintervall = \"1s\"", "line 3, `agent.intervall`: unknown key"),
            ("[agent]\nintervall = \"1s\"", "did you mean `agent.interval`?"),
            ("[agent]\ninterval = \"1ms\"", "line 2, `agent.interval`: it is \"1ms\": 100ms to"),
            ("[agent]\nlisten = \"x:1\"", "cannot be set for a fleet"),
            ("[agent]\ncommands = [\"top\"]", "cannot be set for a fleet"),
            ("[agent]\n[agent]\n", "line 2: not TOML"),
            ("[agents]\n", "did you mean `agent`?"),
            ("[label.berlin.agent]\n", "NAME=VALUE"),
            ("[label.\"a=b\".agent]\nlabels = \"a=c\"", "cannot depend"),
            ("[host.x.broker]\nretention = \"2d\"", "only `durability` can be set for some"),
            ("[host.x.agents]\nscores = true", "only `agent` or `broker` can stand here"),
            ("[broker]\nretention = \"1m\"", "line 2, `broker.retention`"),
            ("[broker]\nlisten = \"x:1\"", "cannot be set for a fleet"),
            ("[broker]\ndurability = \"redis\"", "\"redis\": wal or wal+redis is wanted"),
            ("agent = 1", "a table is wanted"),
            ("[agent]\nscores = 1.5", "a list is wanted"),
            ("[agent]\ncollectors.enable = [\"a b\"]", "\"a b\" is no name"),
        ] {
            let said = Document::read(text).unwrap_err().to_string();
            assert!(said.contains(wanted), "{said}");
        }
    }
}
