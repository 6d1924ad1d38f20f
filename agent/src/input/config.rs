//! What other inputs are configured, from the texts of their keys.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use strobe_wire::schema::{Labels, is_label_name};
use strobe_wire::settings::{Key, Settings, SettingsError, duration_ms, pairs, size_bytes};

/// Every input besides the host's own files; by default none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inputs {
    /// What is scraped.
    pub scrapes: Vec<ScrapeConfig>,
    /// What is run.
    pub execs: Vec<ExecConfig>,
    /// Where StatsD is heard.
    pub statsd: Vec<Door>,
    /// How often what was heard there is told.
    pub statsd_interval_ms: u64,
    /// Where remote-write is taken.
    pub remote_write: Option<SocketAddr>,
    /// The socket for lines of collectors of the user's own.
    pub socket: Option<PathBuf>,
    /// Series of all of them together.
    pub series_max: usize,
}

/// A target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScrapeConfig {
    /// Its name, and its `job` unless that is given.
    pub name: String,
    /// `host:port`.
    pub authority: String,
    /// With the query.
    pub path: String,
    /// How often.
    pub interval_ms: u64,
    /// How long it may take.
    pub timeout_ms: u64,
    /// Bytes of an answer.
    pub bytes_max: usize,
    /// Samples of an answer; one with more is refused whole.
    pub samples_max: usize,
    /// The `job` of its series.
    pub job: String,
    /// The `instance` of its series.
    pub instance: String,
    /// Labels for all of them.
    pub labels: Labels,
    /// Whether its own `job` and `instance` stand (else they become `exported_…`).
    pub honor_labels: bool,
}

/// A command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExecConfig {
    /// Its name.
    pub name: String,
    /// How often.
    pub interval_ms: u64,
    /// How long it may take.
    pub timeout_ms: u64,
    /// Bytes of what it prints.
    pub bytes_max: usize,
    /// What it prints.
    pub format: ExecFormat,
    /// The program and its arguments; there is no shell between.
    pub command: Vec<String>,
}

/// What a command prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExecFormat {
    /// Prometheus text, or OpenMetrics.
    Prometheus,
    /// One line and performance data, and a status as exit code.
    Nagios,
    /// `key value` or `key=value`, a line each.
    Pairs,
}

/// Where datagrams come in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Door {
    /// UDP.
    Udp(SocketAddr),
    /// A Unix datagram socket.
    Unix(PathBuf),
}

/// The keys of all of them.
pub(crate) const INPUT_KEYS: &[Key] = &[
    Key {
        name: "agent.scrape.*",
        flag: "scrape.*",
        env: "STROBE_SCRAPE",
        default: "",
        help: "Targets to scrape (docs/collectors.md): --scrape.web \"http://HOST:PORT/PATH interval=15s\".",
    },
    Key {
        name: "agent.exec.*",
        flag: "exec.*",
        env: "STROBE_EXEC",
        default: "",
        help: "Commands whose output is read: --exec.disk \"interval=1m timeout=10s format=nagios /PATH …\".",
    },
    Key {
        name: "agent.inputs.statsd",
        flag: "statsd",
        env: "STROBE_STATSD",
        default: "",
        help: "Where StatsD is heard: udp://127.0.0.1:8125, unix:///run/strobe/statsd.sock, or both.",
    },
    Key {
        name: "agent.inputs.statsd_interval",
        flag: "statsd-interval",
        env: "STROBE_STATSD_INTERVAL",
        default: "10s",
        help: "How often what StatsD heard is told, 1s to 5m.",
    },
    Key {
        name: "agent.inputs.remote_write",
        flag: "remote-write",
        env: "STROBE_AGENT_REMOTE_WRITE",
        default: "",
        help: "Loopback address that takes Prometheus remote-write (/api/v1/write), as in 127.0.0.1:9201.",
    },
    Key {
        name: "agent.inputs.socket",
        flag: "socket",
        env: "STROBE_AGENT_SOCKET",
        default: "",
        help: "Unix stream socket that takes lines of Prometheus text from collectors of your own.",
    },
    Key {
        name: "agent.inputs.series",
        flag: "input-series",
        env: "STROBE_INPUT_SERIES",
        default: "20000",
        help: "Series of all other inputs together, 1 to 50000; more are refused and counted.",
    },
];

impl Inputs {
    /// Makes values of texts.
    ///
    /// # Errors
    /// The first value of the wrong form.
    pub fn new(settings: &Settings) -> Result<Self, SettingsError> {
        let path = |text: &str| match text.strip_prefix('/') {
            Some(_) => Ok(PathBuf::from(text)),
            None => Err("an absolute path is wanted".to_owned()),
        };
        let has = |key: &str| !settings.text(key).is_empty();
        let socket = has("agent.inputs.socket")
            .then(|| settings.parse("agent.inputs.socket", path))
            .transpose()?;
        let remote_write = has("agent.inputs.remote_write")
            .then(|| settings.parse("agent.inputs.remote_write", loopback))
            .transpose()?;
        Ok(Self {
            scrapes: settings.parse("agent.scrape.*", |text| named(text, scrape))?,
            execs: settings.parse("agent.exec.*", |text| named(text, exec))?,
            statsd: settings.parse("agent.inputs.statsd", |text| {
                let doors = text.split(',').map(str::trim).filter(|door| !door.is_empty());
                doors.map(door).collect()
            })?,
            statsd_interval_ms: settings
                .parse("agent.inputs.statsd_interval", |text| within(text, 1000, 300_000))?,
            remote_write,
            socket,
            series_max: settings.parse("agent.inputs.series", |text| {
                let found = text.parse().ok().filter(|found| (1..=SERIES_MAX).contains(found));
                found.ok_or_else(|| format!("1 to {SERIES_MAX} is wanted"))
            })?,
        })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scrapes.is_empty()
            && self.execs.is_empty()
            && self.statsd.is_empty()
            && self.remote_write.is_none()
            && self.socket.is_none()
    }
}

/// `name=text` pairs, each made into a value by `make`.
fn named<T>(text: &str, make: fn(&str, &str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let all = pairs(text)?;
    if NAMES_MAX < all.len() {
        return Err(format!("{} of them; at most {NAMES_MAX} are allowed", all.len()));
    }
    for (index, (name, _)) in all.iter().enumerate() {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if name.is_empty() || 40 < name.len() || !name.bytes().all(plain) {
            return Err(format!("{name:?} is no name: 1 to 40 of a-z, 0-9 and '_' are wanted"));
        }
        if all.iter().take(index).any(|(other, _)| other == name) {
            return Err(format!("{name:?} stands twice"));
        }
    }
    all.iter()
        .map(|(name, text)| make(name, text).map_err(|why| format!("{name}: {why}")))
        .collect()
}

/// `http://host:port/path interval=15s timeout=10s bytes=8MiB samples=10000 job=… instance=…`.
fn scrape(name: &str, text: &str) -> Result<ScrapeConfig, String> {
    let words = words(text)?;
    let mut words = words.iter().map(String::as_str);
    let url = words.next().unwrap_or_default();
    let rest = url.strip_prefix("http://").ok_or("http://HOST:PORT/PATH is wanted")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, "metrics"));
    let port = authority.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    let authority = match port {
        Some(Ok(_)) => authority.to_owned(),
        _ if authority.is_empty() => return Err("it has no host".to_owned()),
        _ => format!("{authority}:80"),
    };
    let path = format!("/{path}");
    if !path.bytes().chain(authority.bytes()).all(|byte| byte.is_ascii_graphic()) {
        return Err("its address has a blank or a letter beyond ASCII".to_owned());
    }
    let mut config = ScrapeConfig {
        name: name.to_owned(),
        instance: authority.clone(),
        authority,
        path,
        interval_ms: 15_000,
        timeout_ms: 10_000,
        bytes_max: 8 << 20,
        samples_max: 10_000,
        job: name.to_owned(),
        labels: Labels::default(),
        honor_labels: false,
    };
    let mut labels = Vec::new();
    for word in words {
        let (key, value) =
            word.split_once('=').ok_or_else(|| format!("{word:?} is no key=value"))?;
        match key {
            "interval" => config.interval_ms = within(value, 1000, 3_600_000)?,
            "timeout" => config.timeout_ms = within(value, 100, 300_000)?,
            "bytes" => config.bytes_max = size(value)?,
            "samples" => config.samples_max = count(value)?,
            "job" => value.clone_into(&mut config.job),
            "instance" => value.clone_into(&mut config.instance),
            "honor_labels" => config.honor_labels = value == "true",
            label => match label.strip_prefix("label.") {
                Some(label) if is_label_name(label) && !label.starts_with("__") => {
                    labels.push((label.to_owned(), value.to_owned()));
                }
                _ => return Err(format!("it has no key {label:?}")),
            },
        }
    }
    config.timeout_ms = config.timeout_ms.min(config.interval_ms);
    config.labels = Labels::new(labels);
    Ok(config)
}

/// `interval=1m timeout=10s bytes=1MiB format=prometheus COMMAND ARGUMENT…`.
fn exec(name: &str, text: &str) -> Result<ExecConfig, String> {
    let mut words = words(text)?;
    let mut config = ExecConfig {
        name: name.to_owned(),
        interval_ms: 60_000,
        timeout_ms: 10_000,
        bytes_max: 1 << 20,
        format: ExecFormat::Prometheus,
        command: Vec::new(),
    };
    let options = words.iter().take_while(|word| word.contains('=') && !word.starts_with('/'));
    for word in words.drain(..options.count()) {
        let (key, value) = word.split_once('=').unwrap_or((&word, ""));
        match (key, value) {
            ("interval", _) => config.interval_ms = within(value, 1000, 86_400_000)?,
            ("timeout", _) => config.timeout_ms = within(value, 100, 600_000)?,
            ("bytes", _) => config.bytes_max = size(value)?,
            ("format", "prometheus") => config.format = ExecFormat::Prometheus,
            ("format", "nagios") => config.format = ExecFormat::Nagios,
            ("format", "pairs") => config.format = ExecFormat::Pairs,
            ("format", _) => return Err("format is prometheus, nagios or pairs".to_owned()),
            _ => return Err(format!("it has no key {key:?}")),
        }
    }
    match words.first() {
        Some(program) if program.starts_with('/') => config.command = words,
        _ => return Err("the absolute path of a program is wanted".to_owned()),
    }
    Ok(config)
}

fn door(text: &str) -> Result<Door, String> {
    let wanted = || format!("{text:?}: udp://ADDRESS:PORT or unix:///PATH is wanted");
    if let Some(path) = text.strip_prefix("unix://").filter(|path| path.starts_with('/')) {
        return Ok(Door::Unix(PathBuf::from(path)));
    }
    let address = text.strip_prefix("udp://").and_then(|address| address.parse().ok());
    address.map(Door::Udp).ok_or_else(wanted)
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: Option<SocketAddr> = text.parse().ok();
    let near = address.filter(|address| match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    });
    near.ok_or_else(|| {
        "an address of this machine alone is wanted, as in 127.0.0.1:9201: it asks nobody who they are"
            .to_owned()
    })
}

/// Words between blanks; `'…'` and `"…"` keep theirs together, nothing else means anything.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut open) = (Vec::new(), None::<String>, None);
    for character in text.chars() {
        match (open, character) {
            (Some(quote), _) if quote == character => open = None,
            (None, '\'' | '"') => {
                open = Some(character);
                word.get_or_insert_default();
            }
            (None, _) if character.is_ascii_whitespace() => words.extend(word.take()),
            (_, character) => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    if open.is_some() { Err("a quote is not closed".to_owned()) } else { Ok(words) }
}

fn within(text: &str, min_ms: u64, max_ms: u64) -> Result<u64, String> {
    let found = duration_ms(text)?;
    let fits = (min_ms..=max_ms).contains(&found);
    fits.then_some(found).ok_or_else(|| format!("{min_ms}ms to {max_ms}ms is wanted"))
}

fn size(text: &str) -> Result<usize, String> {
    let found = size_bytes(text).ok().filter(|found| (1 << 10..=64 << 20).contains(found));
    let found = found.and_then(|found| usize::try_from(found).ok());
    found.ok_or_else(|| "1KiB to 64MiB is wanted".to_owned())
}

fn count(text: &str) -> Result<usize, String> {
    let found = text.parse().ok().filter(|found| (1..=SERIES_MAX).contains(found));
    found.ok_or_else(|| format!("1 to {SERIES_MAX} is wanted"))
}

/// Sections of 400 and one begun for each input fit the table of schemas, beside the host's own.
pub(crate) const SERIES_MAX: usize = 50_000;
/// Targets, and commands.
const NAMES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_commands() {
        let found = scrape("a", "http://[::1]:9100/m?x=1 interval=5s job=n label.site=b").unwrap();
        assert_eq!((&*found.authority, &*found.path), ("[::1]:9100", "/m?x=1"));
        assert_eq!((found.interval_ms, found.timeout_ms, &*found.job), (5000, 5000, "n"));
        assert_eq!((found.labels, &*found.instance), (Labels::of(&[("site", "b")]), "[::1]:9100"));
        let found = scrape("a", "http://box").unwrap();
        assert_eq!((&*found.authority, &*found.path, &*found.job), ("box:80", "/metrics", "a"));
        let found = exec("d", "interval=5m format=nagios /x/check -w '20 %,1' \"\" a=b").unwrap();
        assert_eq!(found.command, ["/x/check", "-w", "20 %,1", "", "a=b"]);
        assert_eq!((found.interval_ms, found.format), (300_000, ExecFormat::Nagios));
        assert_eq!(door("unix:///run/s").unwrap(), Door::Unix("/run/s".into()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let scrape = |text| scrape("a", text).map(drop);
        let exec = |text| exec("a", text).map(drop);
        for (found, wanted) in [
            (scrape("https://a:1/"), "http://HOST:PORT/PATH is wanted"),
            (scrape("http:///x"), "no host"),
            (scrape("http://a:1/ interval=1ms"), "1000ms to"),
            (scrape("http://a:1/ 'x"), "not closed"),
            (scrape("http://a:1/ intervall=1s"), "no key \"intervall\""),
            (exec("ls"), "absolute path"),
            (exec("format=xml /bin/ls"), "prometheus, nagios or pairs"),
            (door("tcp://1.2.3.4:5").map(drop), "udp://ADDRESS:PORT"),
            (loopback("0.0.0.0:1").map(drop), "this machine alone"),
            (named("A=http://a:1/", super::scrape).map(drop), "is no name"),
            (named("a=http://a:1/,a=http://b:1/", super::scrape).map(drop), "stands twice"),
        ] {
            let found = found.unwrap_err();
            assert!(found.contains(wanted), "{found}");
        }
    }
}
