//! The broker's settings: one table of keys, and the typed values they become.

mod keys;

pub use keys::KEYS;

pub use crate::class::Durability;
use crate::lookout::LookoutConfig;
use crate::scaling::ScalingConfig;
use crate::store::redis::RedisConfig;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;
use strobe_cluster::Pace;
use strobe_wire::settings::{Settings, SettingsError, duration_ms, size_bytes};

/// What the broker is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The state directory.
    pub dir: PathBuf,
    /// Where agents and dashboards connect (QUIC, UDP).
    pub listen: SocketAddr,
    /// Where samples go.
    pub store: StoreChoice,
    /// Which Redis, and how it is used; without a URL, one that is given later.
    pub redis: RedisConfig,
    /// What may change while it runs.
    pub hot: Hot,
    /// Longest wait for company before a commit.
    pub commit_ms: u64,
    /// How long a certificate is good.
    pub certificate_life_s: u64,
    /// How soon the brokers of a cluster miss each other.
    pub pace: Pace,
    /// Machines besides agents.
    pub lookout: LookoutConfig,
    /// When more brokers are proposed, or fewer.
    pub scaling: ScalingConfig,
    /// Keys that the fleet's configuration does not change here.
    pub locked: Vec<String>,
    /// What all of this was read from, for what the fleet's configuration puts above it.
    pub settings: Settings,
}

/// What may change while a broker runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hot {
    /// How long raw samples are kept.
    pub raw_retention_ms: i64,
    /// How long 1 min rollups are kept.
    pub minute_retention_ms: i64,
    /// How long 1 h rollups are kept.
    pub hour_retention_ms: i64,
    /// Hard cap of stored bytes.
    pub bytes_max: u64,
    /// Free space under which nothing more is acknowledged.
    pub free_bytes_min: u64,
    /// Memory for rows that are not sealed yet.
    pub head_bytes_max: usize,
    /// How long one query may take.
    pub query_ms_max: u64,
    /// Samples that one query may scan.
    pub query_samples_max: u64,
    /// What an acknowledgement is worth, where nothing else is said of a host.
    pub durability: Durability,
}

/// Which store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreChoice {
    /// Files in the state directory.
    Local,
    /// Files in the state directory, and every sealed block in this Redis.
    Redis,
}

impl Config {
    /// Typed values. `home` and `root` decide where `auto` is.
    ///
    /// # Errors
    /// The first value that is wrong, who set it, and what is wanted.
    pub fn of(settings: &Settings, home: Option<&Path>, root: bool) -> Result<Self, SettingsError> {
        let age = |name| settings.parse(name, |text| retention_ms(text, 3_600_000));
        let url = settings.parse("broker.store", store)?;
        settings.parse("broker.durability", |text| match (text.parse()?, &url) {
            (Durability::WalRedis, None) => Err("broker.store has to be a Redis for it".into()),
            _ => Ok(()),
        })?;
        Ok(Self {
            dir: settings.parse("broker.dir", |text| state_dir(text, home, root))?,
            listen: settings.parse("broker.listen", address)?,
            store: match &url {
                None => StoreChoice::Local,
                Some(_) => StoreChoice::Redis,
            },
            redis: RedisConfig {
                url: url.unwrap_or_default(),
                ca: settings.parse("broker.redis_ca", file)?,
                identity: identity(settings)?,
                read_replicas: settings.parse("broker.redis_reads", |text| match text {
                    "primary" => Ok(false),
                    "replica" => Ok(true),
                    _ => Err("primary or replica is wanted".to_owned()),
                })?,
                prefix: settings.parse("broker.redis_prefix", prefix)?,
                raw_ms: age("broker.redis_retention")?,
                metadata_ms: age("broker.redis_metadata_retention")?,
                queue_ms: age("broker.redis_queue_retention")?,
                queue_max: settings.parse("broker.redis_queue", count)?,
            },
            hot: Hot::of(settings)?,
            locked: list(settings.text("broker.locked")),
            settings: settings.clone(),
            commit_ms: settings.parse("broker.commit_interval", |text| {
                let ms = duration_ms(text)?;
                if (1..=50).contains(&ms) { Ok(ms) } else { Err("1ms to 50ms is wanted".into()) }
            })?,
            certificate_life_s: settings.parse("broker.certificate_life", |text| {
                let s = duration_ms(text)? / 1000;
                let fits = (2..=365 * 86_400).contains(&s);
                fits.then_some(s).ok_or_else(|| "2s to 365d is wanted".to_owned())
            })?,
            pace: pace(settings)?,
            lookout: LookoutConfig::of(settings)?,
            scaling: ScalingConfig::of(settings)?,
        })
    }
}

impl Hot {
    /// Of `settings`.
    ///
    /// # Errors
    /// As of [`Config::of`].
    pub fn of(settings: &Settings) -> Result<Self, SettingsError> {
        let age = |name| settings.parse(name, |text| retention_ms(text, 3_600_000));
        Ok(Self {
            raw_retention_ms: age("broker.retention")?,
            minute_retention_ms: age("broker.minute_retention")?,
            hour_retention_ms: age("broker.hour_retention")?,
            bytes_max: settings.parse("broker.size_max", |text| at_least(text, 16 << 20))?,
            free_bytes_min: settings.parse("broker.free_min", size_bytes)?,
            head_bytes_max: settings.parse("broker.head_max", |text| {
                usize::try_from(at_least(text, 1 << 20)?).map_err(|e| e.to_string())
            })?,
            query_ms_max: settings.parse("broker.query_time", |text| {
                let ms = duration_ms(text)?;
                let fits = (100..=600_000).contains(&ms);
                fits.then_some(ms).ok_or_else(|| "100ms to 10m is wanted".to_owned())
            })?,
            query_samples_max: settings.parse("broker.query_samples", count)?,
            durability: settings.parse("broker.durability", str::parse)?,
        })
    }
}

fn pace(settings: &Settings) -> Result<Pace, SettingsError> {
    let within = |text: &str, least: u64, most: u64| {
        let ms = duration_ms(text)?;
        let wanted = || format!("{least}ms to {most}ms is wanted");
        if (least..=most).contains(&ms) { Ok(Duration::from_millis(ms)) } else { Err(wanted()) }
    };
    let heartbeat = settings.parse("broker.cluster_heartbeat", |text| within(text, 50, 2_000))?;
    let election_min = settings.parse("broker.cluster_election", |text| {
        let election = within(text, 100, 10_000)?;
        // A heartbeat may come late once without an election.
        if election < 2 * heartbeat {
            return Err("two times broker.cluster_heartbeat is the least".to_owned());
        }
        Ok(election)
    })?;
    Ok(Pace { heartbeat, election_min })
}

fn list(text: &str) -> Vec<String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// The state directory that `text` means.
///
/// # Errors
/// `auto` without a home.
pub fn state_dir(text: &str, home: Option<&Path>, root: bool) -> Result<PathBuf, String> {
    match (text, home) {
        ("", _) => Err("a path is wanted".to_owned()),
        ("auto", _) if root => Ok(PathBuf::from("/var/lib/strobe")),
        ("auto", Some(home)) => Ok(home.join(".local/share/strobe")),
        ("auto", None) => Err("HOME is not set; name a directory".to_owned()),
        (path, _) => Ok(PathBuf::from(path)),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let wanted = "ADDRESS:PORT is wanted, as in 127.0.0.1:7801";
    text.to_socket_addrs()
        .map_err(|why| format!("{why}; {wanted}"))?
        .next()
        .ok_or_else(|| wanted.to_owned())
}

/// The URL of a Redis; `None`: none.
pub(crate) fn store(text: &str) -> Result<Option<String>, String> {
    match text {
        "local" => Ok(None),
        url if SCHEMES.iter().any(|scheme| url.starts_with(scheme)) => Ok(Some(url.to_owned())),
        _ => Err("local, redis://HOST:PORT, redis+sentinel://HOST:PORT,…/NAME or \
             redis+cluster://HOST:PORT,… is wanted"
            .to_owned()),
    }
}

/// A path; empty: none.
#[expect(clippy::unnecessary_wraps, reason = "as every reader of a setting")]
fn file(text: &str) -> Result<Option<PathBuf>, String> {
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

fn identity(settings: &Settings) -> Result<Option<(PathBuf, PathBuf)>, SettingsError> {
    let certificate = settings.parse("broker.redis_certificate", file)?;
    settings.parse("broker.redis_key", |text| match (certificate, file(text)?) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        _ => Err("broker.redis_certificate and broker.redis_key go together".to_owned()),
    })
}

fn count(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "a number is wanted".to_owned())
}

fn prefix(text: &str) -> Result<String, String> {
    // Braces would change which part of a key is its shard's tag.
    let good = |letter: char| letter.is_ascii_graphic() && !matches!(letter, '{' | '}');
    if text.len() <= 64 && text.chars().all(good) {
        Ok(text.to_owned())
    } else {
        Err("at most 64 letters, digits and signs but { and } are wanted".to_owned())
    }
}

fn retention_ms(text: &str, least_ms: u64) -> Result<i64, String> {
    let ms = duration_ms(text)?;
    if ms < least_ms {
        return Err("1h or more is wanted".to_owned());
    }
    i64::try_from(ms).map_err(|_| "that is too long".to_owned())
}

fn at_least(text: &str, least: u64) -> Result<u64, String> {
    let bytes = size_bytes(text)?;
    if bytes < least { Err(format!("{}MiB or more is wanted", least >> 20)) } else { Ok(bytes) }
}

const SCHEMES: [&str; 7] = [
    "unix://",
    "redis://",
    "rediss://",
    "redis+sentinel://",
    "rediss+sentinel://",
    "redis+cluster://",
    "rediss+cluster://",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Config, SettingsError> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let settings = Settings::load(KEYS, None, &|_| None, &args)?;
        Config::of(&settings, Some(Path::new("/home/a")), false)
    }

    #[test]
    fn defaults_are_valid_and_as_documented() {
        let config = config(&[]).unwrap();
        assert_eq!(config.dir, Path::new("/home/a/.local/share/strobe"));
        assert_eq!(config.listen.to_string(), "127.0.0.1:7801");
        assert_eq!((config.hot.raw_retention_ms, config.commit_ms), (604_800_000, 20));
        assert_eq!(config.pace, Pace::USUAL);
    }

    #[test]
    fn wrong_values_say_what_is_wanted() {
        let check = |args: &[&str], wanted: &str| {
            let said = config(args).unwrap_err().to_string();
            assert!(said.contains(wanted), "{said}");
        };
        check(
            &["--commit-interval", "1s"],
            "--commit-interval: `broker.commit_interval` is \"1s\"",
        );
        check(&["--store", "mysql://x"], "redis://HOST:PORT");
        check(&["--retention", "1m"], "1h or more");
        let redis = |more: [&'static str; 2]| [&["--store", "redis://h"], &more[..]].concat();
        check(&redis(["--redis-prefix", "a{b}"]), "but { and }");
        check(&redis(["--redis-retention", "1m"]), "1h or more");
        check(&redis(["--redis-key", "x"]), "go together");
        check(&redis(["--redis-reads", "all"]), "primary or replica");
        check(&["--durability", "wal+redis"], "broker.store has to be a Redis");
        check(&["--durability", "none"], "wal or wal+redis");
        check(&["--size-max", "1MiB"], "16MiB or more");
        check(&["--cluster-heartbeat", "3s"], "50ms to 2000ms is wanted");
        check(&["--cluster-heartbeat", "600ms"], "two times broker.cluster_heartbeat");
        check(&["--broker-listen", "7801"], "ADDRESS:PORT");
        check(&["--broker-listn", "x"], "did you mean `broker-listen`?");
    }
}
